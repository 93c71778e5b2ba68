//! Lays the lines out as one page of text.

use std::fmt::Write;

use super::{Line, Verdict};

/// Width of the page, in columns.
const WIDTH: usize = 100;
/// Columns before a line's text, for its verdict and topic.
const INDENT: usize = 23;

/// The page; it is readable without colours too.
pub fn page(node: &str, lines: &[Line], colours: bool) -> String {
    let mut page = format!("fovea doctor on {node}\n\n");
    for line in lines {
        let (word, colour) = match line.verdict {
            Verdict::Ok => ("ok", "32"),
            Verdict::Warn => ("warn", "33"),
            Verdict::Fail => ("FAIL", "31;1"),
        };
        let word = format!("{word:<4}");
        let word = if colours {
            format!("\x1b[{colour}m{word}\x1b[0m")
        } else {
            word
        };
        let text = wrap(&line.text, WIDTH - INDENT);
        let _ = writeln!(page, "  {word}  {:<15}{}", line.topic, text[0]);
        let mut further = |text: &str| {
            let _ = writeln!(page, "{:INDENT$}{text}", "");
        };
        text[1..].iter().for_each(|text| further(text));
        if let Some(remedy) = &line.remedy {
            for (i, text) in wrap(remedy, WIDTH - INDENT - 3).iter().enumerate() {
                further(&format!("{}{text}", if i == 0 { "-> " } else { "   " }));
            }
        }
    }
    let count = |verdict| lines.iter().filter(|l| l.verdict == verdict).count();
    let (fail, warn) = (count(Verdict::Fail), count(Verdict::Warn));
    let _ = write!(
        page,
        "\n{fail} FAIL, {warn} warn, {} ok",
        count(Verdict::Ok)
    );
    page
}

/// Breaks text at spaces into at least one line; a word that is longer than a line stays whole.
fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    let mut used = 0;
    for word in text.split_whitespace() {
        let length = word.chars().count();
        if used > 0 && used + 1 + length > width {
            lines.push(String::new());
            used = 0;
        }
        if let Some(line) = lines.last_mut() {
            if used > 0 {
                line.push(' ');
                used += 1;
            }
            line.push_str(word);
            used += length;
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_aligned_and_reads_without_colours() {
        let lines = [
            Line::ok("libtorch", "2.11.0"),
            Line::warn("CUDA driver", "none", "go where there is one"),
            Line::fail(
                "locks",
                "a text that is so long that it does not fit into the columns which a page has for it, so that it is broken",
                "a remedy that is so long that it does not fit into the columns which a page has for it",
            ),
        ];
        let expected = "\
fovea doctor on n1

  ok    libtorch       2.11.0
  warn  CUDA driver    none
                       -> go where there is one
  FAIL  locks          a text that is so long that it does not fit into the columns which a page has
                       for it, so that it is broken
                       -> a remedy that is so long that it does not fit into the columns which a
                          page has for it

1 FAIL, 1 warn, 1 ok";
        assert_eq!(page("n1", &lines, false), expected);
        let coloured = page("n1", &lines, true);
        assert!(
            coloured.contains("  \x1b[31;1mFAIL\x1b[0m  locks          a text"),
            "{coloured}"
        );
        let plain = coloured.replace("\x1b[32m", "").replace("\x1b[33m", "");
        assert_eq!(
            plain.replace("\x1b[31;1m", "").replace("\x1b[0m", ""),
            expected
        );
    }

    #[test]
    fn long_words_stay_whole() {
        assert_eq!(wrap("", 5), [""]);
        assert_eq!(
            wrap("a /very/long/path b", 5),
            ["a", "/very/long/path", "b"]
        );
    }
}
