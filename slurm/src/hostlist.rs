//! Slurm's notation for lists of nodes: `n[1-2,05-08],gpu7,rack[1-2]n[01-04]`.
//!
//! Pure. Names come out in the order of the list, which is the order of the node ids in a job.

/// Most names that a list may stand for: a typing error must not take all memory.
pub const MAX_NAMES: usize = 65_536;

/// A list of nodes that cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("node list {list:?}, at character {at}: {what}\n  help: write it like n[1-2,05-08],gpu7")]
pub struct Error {
    /// The whole list, as it was given.
    pub list: String,
    /// The offending character's place in the list, counted from 1.
    pub at: usize,
    /// What is wrong there.
    pub what: String,
}

/// All names that a list stands for, in its order.
pub fn expand(list: &str) -> Result<Vec<String>, Error> {
    let mut reader = HostlistReader::new(list);
    let mut names = Vec::new();
    if list.is_empty() {
        return Ok(names);
    }
    loop {
        reader.names(&mut names)?;
        match reader.next() {
            None => return Ok(names),
            Some(',') => {}
            Some(other) => return Err(reader.error_here(format!("unexpected {other:?}"))),
        }
    }
}

struct HostlistReader<'a> {
    list: &'a str,
    chars: Vec<char>,
    /// Characters read so far.
    at: usize,
}

impl<'a> HostlistReader<'a> {
    fn new(list: &'a str) -> Self {
        Self {
            list,
            chars: list.chars().collect(),
            at: 0,
        }
    }

    fn peek(&self) -> Option<char> {
        self.chars.get(self.at).copied()
    }

    fn next(&mut self) -> Option<char> {
        let next = self.peek();
        self.at += usize::from(next.is_some());
        next
    }

    fn error(&self, at: usize, what: impl Into<String>) -> Error {
        Error {
            list: self.list.to_owned(),
            at,
            what: what.into(),
        }
    }

    /// An error about the character that was read last.
    fn error_here(&self, what: impl Into<String>) -> Error {
        self.error(self.at.max(1), what)
    }

    /// One element of the list, up to the comma behind it: plain text and brackets in turn.
    fn names(&mut self, all: &mut Vec<String>) -> Result<(), Error> {
        let begin = self.at;
        let mut names = vec![String::new()];
        while let Some(c) = self.peek().filter(|c| *c != ',') {
            self.at += 1;
            match c {
                '[' => {
                    let numbers = self.bracket(MAX_NAMES / names.len())?;
                    names = names
                        .iter()
                        .flat_map(|name| {
                            numbers.iter().map(move |number| format!("{name}{number}"))
                        })
                        .collect();
                }
                ']' => return Err(self.error_here("a bracket closes that was not opened")),
                c if c.is_whitespace() || c.is_control() => {
                    return Err(self.error_here(format!("{c:?} in a name")));
                }
                c => names.iter_mut().for_each(|name| name.push(c)),
            }
        }
        if self.at == begin {
            return Err(self.error(begin + 1, "a name is missing"));
        }
        if all.len() + names.len() > MAX_NAMES {
            return Err(self.error(begin + 1, format!("more than {MAX_NAMES} names")));
        }
        all.append(&mut names);
        Ok(())
    }

    /// Reads up to the closing bracket and returns the numbers as text, at most `limit`; the caller has read the
    /// opening one.
    fn bracket(&mut self, limit: usize) -> Result<Vec<String>, Error> {
        let open = self.at;
        let mut numbers = Vec::new();
        loop {
            let begin = self.at + 1;
            let (first, width) = self.number()?;
            let last = match self.peek() {
                Some('-') => {
                    self.at += 1;
                    self.number()?.0
                }
                _ => first,
            };
            if last < first {
                return Err(self.error(begin, format!("the range {first}-{last} runs backwards")));
            }
            let room = limit.saturating_sub(numbers.len());
            if last - first >= room as u64 {
                return Err(self.error(begin, format!("more than {MAX_NAMES} names")));
            }
            numbers.extend((first..=last).map(|number| format!("{number:0width$}")));
            match self.next() {
                Some(',') => {}
                Some(']') => return Ok(numbers),
                Some(other) => {
                    return Err(
                        self.error_here(format!("{other:?} where a number, - , or ] belongs"))
                    );
                }
                None => return Err(self.error(open, "this bracket is not closed")),
            }
        }
    }

    /// A number and its count of digits, leading zeros included.
    fn number(&mut self) -> Result<(u64, usize), Error> {
        let begin = self.at;
        while self.peek().is_some_and(|c| c.is_ascii_digit()) {
            self.at += 1;
        }
        let text: String = self.chars[begin..self.at].iter().collect();
        if text.is_empty() {
            return Err(self.error(begin + 1, "a number is missing"));
        }
        // 18 digits are below 2^63, and more than any site has nodes.
        match text.parse() {
            Ok(number) if text.len() <= 18 => Ok((number, text.len())),
            _ => Err(self.error(begin + 1, format!("{text} is too large a number"))),
        }
    }
}

/// The shortest notation for the names in their order: `n1 n2 n3` becomes `n[1-3]`.
///
/// Names are never reordered, so [`expand`] returns the same names in the same order. Names with commas, brackets or
/// spaces are no node names.
pub fn compress<S: AsRef<str>>(names: &[S]) -> String {
    let mut groups: Vec<Group<'_>> = Vec::new();
    for name in names.iter().map(AsRef::as_ref) {
        let part = Numbered::split(name);
        match (groups.last_mut(), part) {
            (Some(Group::Numbers { prefix, ranges }), Some(part)) if *prefix == part.prefix => {
                push(ranges, part.number, part.width);
            }
            (_, Some(part)) => groups.push(Group::Numbers {
                prefix: part.prefix,
                ranges: vec![(part.number, part.number, part.width)],
            }),
            (_, None) => groups.push(Group::Name(name)),
        }
    }
    let written: Vec<String> = groups.iter().map(Group::write).collect();
    written.join(",")
}

/// A name that ends in a number.
struct Numbered<'a> {
    prefix: &'a str,
    number: u64,
    width: usize,
}

impl<'a> Numbered<'a> {
    fn split(name: &'a str) -> Option<Self> {
        let prefix = name.trim_end_matches(|c: char| c.is_ascii_digit());
        let digits = &name[prefix.len()..];
        // Longer numbers stay text: they never form a range.
        let number = digits.parse().ok().filter(|_| digits.len() <= 18)?;
        Some(Self {
            prefix,
            number,
            width: digits.len(),
        })
    }
}

/// First number, last number, digits of the first.
type NumberRange = (u64, u64, usize);

enum Group<'a> {
    Name(&'a str),
    Numbers {
        prefix: &'a str,
        ranges: Vec<NumberRange>,
    },
}

/// Lengthens the last range by one where the number follows it and is written as the range would write it.
fn push(ranges: &mut Vec<NumberRange>, number: u64, width: usize) {
    if let Some((_, last, digits)) = ranges.last_mut() {
        let next = *last + 1;
        if number == next && format!("{next:0digits$}").len() == width {
            *last = next;
            return;
        }
    }
    ranges.push((number, number, width));
}

impl Group<'_> {
    fn write(&self) -> String {
        match self {
            Self::Name(name) => (*name).to_owned(),
            Self::Numbers { prefix, ranges } => {
                let written: Vec<String> = ranges
                    .iter()
                    .map(|&(first, last, width)| match first == last {
                        true => format!("{first:0width$}"),
                        false => format!("{first:0width$}-{last:0width$}"),
                    })
                    .collect();
                match ranges.as_slice() {
                    [(first, last, _)] if first == last => format!("{prefix}{}", written[0]),
                    _ => format!("{prefix}[{}]", written.join(",")),
                }
            }
        }
    }
}

/// `2(x3),1` as Slurm writes counts per node: `2, 2, 2, 1`.
pub fn expand_counts(list: &str) -> Result<Vec<u32>, Error> {
    let error = |at: usize, what: String| Error {
        list: list.to_owned(),
        at,
        what,
    };
    let mut counts = Vec::new();
    let mut at = 1;
    for element in list.split(',') {
        let wrong = || error(at, format!("{element:?} is no count like 2 or 2(x3)"));
        let (count, times) = match element.split_once("(x") {
            Some((count, times)) => (count, times.strip_suffix(')').ok_or_else(wrong)?),
            None => (element, "1"),
        };
        let count: u32 = count.parse().map_err(|_| wrong())?;
        let times: usize = times.parse().map_err(|_| wrong())?;
        if times > MAX_NAMES - counts.len() {
            return Err(error(at, format!("more than {MAX_NAMES} nodes")));
        }
        counts.extend(std::iter::repeat_n(count, times));
        at += element.chars().count() + 1;
    }
    Ok(counts)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn names(list: &str) -> Vec<String> {
        expand(list).expect(list)
    }

    #[test]
    fn lists_as_slurm_writes_them() {
        assert_eq!(names("n1"), ["n1"]);
        assert_eq!(names("n[1-2]"), ["n1", "n2"]);
        assert_eq!(
            names("n[1-2,05-08],gpu7,login"),
            ["n1", "n2", "n05", "n06", "n07", "n08", "gpu7", "login"]
        );
        assert_eq!(
            names("rack[1-2]n[01-02]"),
            ["rack1n01", "rack1n02", "rack2n01", "rack2n02"]
        );
        assert_eq!(names("n[1-2]-ib"), ["n1-ib", "n2-ib"]);
        assert_eq!(names("n[099-101]"), ["n099", "n100", "n101"]);
        assert_eq!(names("n[9-10].cluster"), ["n9.cluster", "n10.cluster"]);
        assert!(names("").is_empty());
    }

    #[test]
    fn errors_say_where() {
        for (list, at, what) in [
            ("n[1-2", 2, "not closed"),
            ("n1]", 3, "closes"),
            ("n1,,n2", 4, "missing"),
            ("n1,", 4, "missing"),
            ("n[]", 3, "number is missing"),
            ("n[1-]", 5, "number is missing"),
            ("n[3-1]", 3, "backwards"),
            ("n[1;2]", 4, "where a number"),
            ("n[1-70000]", 3, "more than 65536"),
            ("a[1-300]b[1-300]", 11, "more than 65536"),
            ("n[1-99999999999999999999]", 5, "too large"),
            ("n1 n2", 3, "in a name"),
            ("n[1-40000],m[1-40000]", 12, "more than 65536"),
        ] {
            let error = expand(list).expect_err(list);
            assert_eq!(error.at, at, "{error}");
            assert!(error.what.contains(what), "{error}");
            assert!(error.to_string().contains("\n  help: "), "{error}");
        }
    }

    #[test]
    fn as_many_names_as_allowed() {
        assert_eq!(names("n[0-65535]").len(), MAX_NAMES);
        assert_eq!(names("a[1-256]b[1-256]").len(), MAX_NAMES);
    }

    #[test]
    fn short_lists() {
        assert_eq!(compress(&names("n[1-3,5],gpu7,x")), "n[1-3,5],gpu7,x");
        assert_eq!(compress(&["n08", "n09", "n10", "n011"]), "n[08-10,011]");
        assert_eq!(compress(&["n9", "n10"]), "n[9-10]");
        assert_eq!(compress(&["n2", "n1"]), "n[2,1]");
        assert_eq!(compress::<&str>(&[]), "");
    }

    #[test]
    fn counts() {
        assert_eq!(expand_counts("2(x3),1").expect("counts"), [2, 2, 2, 1]);
        assert_eq!(expand_counts("4").expect("counts"), [4]);
        for (wrong, at) in [
            ("", 1),
            ("2,", 3),
            ("2(x3", 1),
            ("1,2(3)", 3),
            ("1(x70000)", 1),
        ] {
            assert_eq!(expand_counts(wrong).expect_err(wrong).at, at, "{wrong}");
        }
    }

    proptest! {
        #[test]
        fn compressed_lists_expand_to_the_same(
            parts in prop::collection::vec(("[a-z]{0,2}-?", 0u64..120, 0usize..4, "(|-ib)"), 0..40)
        ) {
            let before: Vec<String> = parts
                .iter()
                .map(|(prefix, number, width, suffix)| format!("{prefix}{number:0width$}{suffix}"))
                .collect();
            prop_assert_eq!(expand(&compress(&before)).expect("a list"), before);
        }

        #[test]
        fn no_text_makes_it_panic(text in "[a-c0-9\\[\\],\\- é]{0,24}") {
            if let Ok(names) = expand(&text) {
                prop_assert!(names.len() <= MAX_NAMES);
                prop_assert_eq!(expand(&compress(&names)).expect("a list"), names);
            }
        }
    }
}
