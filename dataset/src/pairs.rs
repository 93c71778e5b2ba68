//! Names that look like the eyes, or several photographs, of one patient.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use crate::Split;
use crate::groups::groups;

/// Words for the sides, as pairs of left and right.
const SIDES: [(&str, &str); 11] = [
    ("left", "right"),
    ("lefteye", "righteye"),
    ("l", "r"),
    ("os", "od"),
    ("oi", "od"),
    ("le", "re"),
    ("og", "od"),
    ("la", "ra"),
    ("links", "rechts"),
    ("sin", "dex"),
    ("izq", "der"),
];

/// Groups named in a warning.
const EXAMPLES: usize = 3;

/// A name taken apart: what may be the patient, and what tells its photographs apart.
#[derive(Debug, PartialEq, Eq)]
struct Name {
    patient: Vec<String>,
    /// The word for the side, lower case.
    side: Option<String>,
    /// A single digit or letter at the end, or a digit behind a zero.
    count: Option<String>,
}

/// Names the images that look like those of one patient and lie in different splits; `None`: none do. `published` says per
/// image whether its split is that of the raw dataset, which is never changed.
pub(crate) fn patients_apart(images: &[(&str, Split)], published: &[bool]) -> Option<String> {
    let ids: Vec<&str> = images.iter().map(|(id, _)| *id).collect();
    let patients = patients(&ids);
    let apart: Vec<&Vec<usize>> = patients
        .iter()
        .filter(|images_of| {
            let splits: HashSet<Split> = images_of.iter().map(|i| images[*i].1).collect();
            splits.len() > 1
        })
        .collect();
    if apart.is_empty() {
        return None;
    }
    let example = |members: &&Vec<usize>| {
        let first = members[0];
        let other = members.iter().find(|i| images[**i].1 != images[first].1);
        let shown = [Some(&first), other].into_iter().flatten();
        let shown = shown.map(|i| format!("{} in {}", images[*i].0, images[*i].1));
        shown.collect::<Vec<_>>().join(", ")
    };
    let mut examples: Vec<String> = apart.iter().take(EXAMPLES).map(example).collect();
    if apart.len() > EXAMPLES {
        examples.push("...".to_owned());
    }
    let torn = |members: &&&Vec<usize>| {
        members
            .iter()
            .any(|i| published[*i] != published[members[0]])
    };
    let kept = |members: &&&Vec<usize>| members.iter().all(|i| published[*i]);
    let remedy = match pattern(&ids, &patients) {
        _ if apart.iter().any(|members| kept(&members)) => {
            "the published split is kept as it is, so say this where you report its scores"
                .to_owned()
        }
        _ if apart.iter().any(|members| torn(&members)) => {
            "the published test set is kept as it is, so say this where you report its scores"
                .to_owned()
        }
        Some(pattern) => format!("prepare with --group-by '{pattern}' to keep each patient in one split"),
        None => "prepare with a --group-by whose first group is the patient, to keep each patient in one split".to_owned(),
    };
    let subject = match apart.len() {
        1 => "one group of images looks like one patient, and lies".to_owned(),
        n => format!("{n} groups of images look like one patient each, and lie"),
    };
    Some(format!(
        "by their names {subject} in different splits ({}): scores will look better than they are; {remedy}",
        examples.join("; ")
    ))
}

/// Images that look like those of one patient, two or more each, in the order of their first image.
fn patients(ids: &[&str]) -> Vec<Vec<usize>> {
    let names: Vec<Name> = ids.iter().map(|id| take_apart(id)).collect();
    let mut by_patient: BTreeMap<&[String], Vec<usize>> = BTreeMap::new();
    for (i, name) in names.iter().enumerate() {
        if !name.patient.is_empty() && (name.side.is_some() || name.count.is_some()) {
            by_patient.entry(&name.patient).or_default().push(i);
        }
    }
    let both_sides = |members: &[usize]| {
        let has = |side: &str| {
            members
                .iter()
                .any(|i| names[*i].side.as_deref() == Some(side))
        };
        SIDES.iter().any(|(left, right)| has(left) && has(right))
    };
    let (sided, counted): (Vec<_>, Vec<_>) = by_patient
        .into_values()
        .filter(|members| members.len() > 1)
        .partition(|members| both_sides(members));
    let counted: Vec<Vec<usize>> = counted
        .into_iter()
        .filter(|members| members.iter().all(|i| names[*i].count.is_some()))
        .collect();
    // A single series that is merely counted is more likely a data set than a patient.
    let mut patients = sided;
    if counted.len() > 1 || !patients.is_empty() {
        patients.extend(counted);
    }
    patients.sort();
    patients
}

fn take_apart(id: &str) -> Name {
    let mut words = words(id);
    let is_side = |word: &String| SIDES.iter().any(|(l, r)| word == l || word == r);
    let side = words.iter().rposition(is_side).map(|at| words.remove(at));
    let has_number = |words: &[String]| words.iter().any(|w| w.as_bytes()[0].is_ascii_digit());
    let is_count =
        |word: &str| matches!(word.as_bytes(), [b'0'..=b'9' | b'a'..=b'f'] | [b'0', b'0'..=b'9']);
    let count = match words.split_last() {
        Some((last, rest)) if is_count(last) && has_number(rest) => words.pop(),
        _ => None,
    };
    Name {
        patient: words,
        side,
        count,
    }
}

/// Runs of letters and runs of digits, in lower case.
fn words(id: &str) -> Vec<String> {
    let kind = |c: char| (c.is_alphabetic(), c.is_numeric());
    let mut words: Vec<String> = Vec::new();
    let mut before = (false, false);
    for c in id.chars() {
        let now = kind(c);
        if now != (false, false) {
            if now != before {
                words.push(String::new());
            }
            if let Some(word) = words.last_mut() {
                word.extend(c.to_lowercase());
            }
        }
        before = now;
    }
    words
}

/// A pattern whose first group names each patient.
fn pattern(ids: &[&str], patients: &[Vec<usize>]) -> Option<String> {
    let members = || patients.iter().flatten().map(|i| ids[*i]);
    let sides: BTreeSet<String> = members().filter_map(|id| take_apart(id).side).collect();
    let sides = sides.into_iter().collect::<Vec<_>>().join("|");
    let separators: BTreeSet<char> = members()
        .flat_map(str::chars)
        .filter(|c| "_-. ".contains(*c))
        .collect();
    let between = match separators.iter().collect::<Vec<_>>()[..] {
        [one] => regex::escape(&one.to_string()),
        _ => "[-_. ]".to_owned(),
    };
    let any_case = members().any(|id| id.chars().any(char::is_uppercase));
    let mut shapes = Vec::new();
    if !sides.is_empty() {
        shapes.extend([
            format!("^(.+){between}(?:{sides})$"),
            format!("^(?:{sides}){between}(.+)$"),
            format!("^(.*[0-9])(?:{sides})$"),
            format!("^(?:{sides})([0-9].*)$"),
            format!("^(.+?){between}(?:{sides}){between}.*$"),
            format!("^(?:{sides}){between}(.+){between}[0-9a-f]$"),
            format!("^(.+?){between}?(?:{sides})(?:{between}.*)?$"),
        ]);
    }
    shapes.extend([
        format!("^(.+){between}[0-9a-f]$"),
        format!("^(.+){between}0[0-9]$"),
        "^(.*[0-9])[a-f]$".to_owned(),
        "^([^0-9]*[0-9]+)".to_owned(),
    ]);
    let mends = |shape: &String| {
        let Ok(groups) = groups(shape, ids) else {
            return false;
        };
        let mut names = HashSet::new();
        patients.iter().all(|members| {
            let name = groups[members[0]];
            name.is_some() && members.iter().all(|i| groups[*i] == name) && names.insert(name)
        })
    };
    shapes.into_iter().find_map(|shape| {
        let in_any_case = format!("(?i){shape}");
        let forms = [Some(shape), any_case.then_some(in_any_case)];
        forms.into_iter().flatten().find(mends)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The images of each patient, by name.
    fn found(ids: &[&str]) -> Vec<String> {
        let named = |members: Vec<usize>| {
            members
                .iter()
                .map(|i| ids[*i])
                .collect::<Vec<_>>()
                .join(" ")
        };
        patients(ids).into_iter().map(named).collect()
    }

    #[test]
    fn pairs_are_seen_in_any_order_and_case() {
        for (ids, pattern_expected) in [
            (
                ["P000_left", "P000_right", "P001_left", "P001_right"],
                "^(.+)_(?:left|right)$",
            ),
            (
                ["left_12", "right_12", "left_13", "right_13"],
                "^(?:left|right)_(.+)$",
            ),
            (["12L", "12R", "13L", "13R"], "(?i)^(.*[0-9])(?:l|r)$"),
            (["OD_a7", "OS_a7", "OD_a8", "OS_a8"], "(?i)^(?:od|os)_(.+)$"),
            (
                ["A-1-OD", "A-1-OS", "A-2-OD", "A-2-OS"],
                "(?i)^(.+)\\-(?:od|os)$",
            ),
            (["0921_1", "0921_2", "0922_1", "0922_2"], "^(.+)_[0-9a-f]$"),
            (
                ["P000_01", "P000_02", "P001_01", "P001_02"],
                "^(.+)_0[0-9]$",
            ),
            (["7_OG", "7_OD", "8_OG", "8_OD"], "(?i)^(.+)_(?:od|og)$"),
            (
                ["7_links", "7_rechts", "8_links", "8_rechts"],
                "^(.+)_(?:links|rechts)$",
            ),
            (["7a", "7b", "8a", "8b"], "^(.*[0-9])[a-f]$"),
            (
                ["Anna_Left", "Anna_Right", "Ben_Left", "Ben_Right"],
                "(?i)^(.+)_(?:left|right)$",
            ),
            (
                ["5_left_0", "5_right_1", "6_left_0", "6_right_1"],
                "^(.+?)_(?:left|right)_.*$",
            ),
        ] {
            let [a, b, c, d] = ids;
            assert_eq!(found(&ids), [format!("{a} {b}"), format!("{c} {d}")]);
            let found = pattern(&ids, &patients(&ids));
            assert_eq!(found.as_deref(), Some(pattern_expected));
        }
        // One left and one right of different order.
        assert_eq!(found(&["left_P1", "P1_RIGHT"]), ["left_P1 P1_RIGHT"]);
    }

    #[test]
    fn numbered_images_are_no_pairs() {
        assert_eq!(found(&["img_1", "img_2", "img_3"]), [""; 0]);
        assert_eq!(found(&["IDRiD_01", "IDRiD_02"]), [""; 0]);
        assert_eq!(found(&["007-5846-300", "007-5847-300"]), [""; 0]);
        assert_eq!(found(&["v2_1", "v2_2", "v2_3"]), [""; 0]);
        assert_eq!(found(&["0000_1", "0001_1", "0002_1"]), [""; 0]);
        assert_eq!(found(&["left", "right"]), [""; 0]);
        assert_eq!(found(&["a_left", "b_right", "", "_"]), [""; 0]);
    }

    #[test]
    fn only_patients_in_two_splits_are_told() {
        let (train, test) = (Split::Train, Split::Test);
        let images = [
            ("1_L", train),
            ("1_R", test),
            ("2_L", train),
            ("2_R", train),
        ];
        let text = patients_apart(&images, &[false; 4]).unwrap();
        assert_eq!(
            text,
            "by their names one group of images looks like one patient, and lies in different splits (1_L in train, 1_R in test): \
             scores will look better than they are; prepare with --group-by '(?i)^(.+)_(?:l|r)$' to keep each patient in one split"
        );
        assert_eq!(patients_apart(&images[2..], &[false; 2]), None);
        let text = patients_apart(&images, &[true; 4]).unwrap();
        assert!(
            text.contains("the published split is kept as it is"),
            "{text}"
        );
        // No pattern would be taken that moves images out of a published part.
        let text = patients_apart(&images, &[false, true, false, false]).unwrap();
        assert!(
            text.ends_with(": scores will look better than they are; the published test set is kept as it is, so say this where you report its scores"),
            "{text}"
        );
    }
}
