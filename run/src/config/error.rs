//! What can be wrong with a configuration, worded so that users can fix it.

use std::fmt;
use std::path::PathBuf;

use super::keys::{self, KEYS, SECTIONS};

/// Where a value stands: a line of a file, or a command-line override.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// File name, `--set ...`, or `configuration` for a value whose origin is not known any more.
    pub origin: String,
    /// Line, counted from 1, where there are lines.
    pub line: Option<usize>,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            Some(line) => write!(f, "{}:{line}", self.origin),
            None => f.write_str(&self.origin),
        }
    }
}

/// A configuration that cannot be used, and why.
///
/// `Display` gives what is wrong and where, then a line `  help: ` with what to do.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file could not be read.
    #[error("cannot read the configuration file {}: {source}\n  help: {help}", path.display())]
    Read {
        /// The file asked for.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
        /// What to do about it.
        help: &'static str,
    },
    /// The path names a directory or something else that is not a file.
    #[error(
        "the configuration path {} is a directory, not a file\n  help: name the TOML file itself{}",
        path.display(), inside.as_ref().map_or_else(String::new, |file| format!(", for example {}", file.display()))
    )]
    Directory {
        /// The path asked for.
        path: PathBuf,
        /// A TOML file found in it.
        inside: Option<PathBuf>,
    },
    /// The file is far too large to be a configuration.
    #[error(
        "the configuration file {} is larger than {limit_bytes} bytes\n  help: this is not a configuration; check the path", path.display()
    )]
    TooLarge {
        /// The file asked for.
        path: PathBuf,
        /// Largest size that is read, in bytes.
        limit_bytes: u64,
    },
    /// The file is not text.
    #[error(
        "{place}: invalid UTF-8 at byte {byte}\n  help: save the file as UTF-8; a configuration is TOML text"
    )]
    NotUtf8 {
        /// The file and the line in it.
        place: Place,
        /// Offset of the first bad byte, from 0.
        byte: usize,
    },
    /// The text is not TOML.
    #[error("{place}: this is not TOML: {message}\n      {excerpt}\n  help: {help}")]
    Syntax {
        /// The file and the line in it.
        place: Place,
        /// What the parser said.
        message: String,
        /// The line in question.
        excerpt: String,
        /// What to do about it.
        help: &'static str,
    },
    /// A key or section is given twice.
    #[error("{place}: `{key}` is given twice\n  help: keep one of them{first}")]
    Duplicate {
        /// File and line of the second one.
        place: Place,
        /// The key or section.
        key: String,
        /// Where the first one is, as a clause, or empty.
        first: String,
    },
    /// A section that does not exist.
    #[error("{place}: unknown section `[{given}]`\n  help: {help}")]
    UnknownSection {
        /// The file and line, or the `--set`, that holds it.
        place: Place,
        /// The text that was given, shortened.
        given: String,
        /// The nearest one and all there are.
        help: String,
    },
    /// A key that does not exist.
    #[error("{place}: unknown key `{given}`\n  help: {help}")]
    UnknownKey {
        /// The file and line, or the `--set`, that holds it.
        place: Place,
        /// What was given, as `section.name`.
        given: String,
        /// The nearest one and those of the section.
        help: String,
    },
    /// A section name that holds something else than keys.
    #[error(
        "{place}: `{section}` is a section, but is given {given}\n  help: write `[{section}]` on a line of its own and its keys below; they are: {keys}"
    )]
    NotASection {
        /// The file and line, or the `--set`, that holds it.
        place: Place,
        /// Name of the section.
        section: String,
        /// The text that was given, shortened.
        given: String,
        /// The keys of the section, comma-separated.
        keys: String,
    },
    /// A value of another type.
    #[error("{place}: `{key}` is given {given}\n  help: {help}")]
    WrongType {
        /// The file and line, or the `--set`, that holds it.
        place: Place,
        /// The key, as `section.name`.
        key: String,
        /// What was given, with its type and the wanted one.
        given: String,
        /// The line to write instead.
        help: String,
    },
    /// A word that is not among the known ones.
    #[error("{place}: `{key}` does not know {given:?}\n  help: {help}")]
    UnknownValue {
        /// The file and line, or the `--set`, that holds it.
        place: Place,
        /// The key, as `section.name`.
        key: String,
        /// The text that was given, shortened.
        given: String,
        /// The nearest one and all there are.
        help: String,
    },
    /// A number outside its range.
    #[error(
        "{place}: `{key}` is given {given}, which is out of range\n  help: allowed is {allowed}"
    )]
    OutOfRange {
        /// The file and line, or the `--set`, that holds it.
        place: Place,
        /// The key, as `section.name`.
        key: String,
        /// The text that was given, shortened.
        given: String,
        /// The range, and the default.
        allowed: String,
    },
    /// A preset that does not exist.
    #[error("there is no preset {given:?}\n  help: {help}")]
    UnknownPreset {
        /// The text that was given, shortened.
        given: String,
        /// The nearest one and all there are.
        help: String,
    },
    /// A `--set` that is not an assignment.
    #[error(
        "--set {given:?} {problem}\n  help: write --set section.key=value, for example --set optimizer.lr=3e-4"
    )]
    NotAnAssignment {
        /// The text that was given, shortened.
        given: String,
        /// What the assignment lacks.
        problem: &'static str,
    },
    /// Keys that do not fit each other.
    #[error("{problem}\n  help: {help}")]
    Conflict {
        /// The keys, their values and why they clash.
        problem: String,
        /// What to change, as an instruction.
        help: String,
    },
}

impl Error {
    pub(super) fn unknown_preset(given: &str) -> Self {
        let names: Vec<&str> = super::PRESETS.iter().map(|(name, _)| *name).collect();
        Self::UnknownPreset {
            given: given.into(),
            help: one_of(given, &names),
        }
    }

    pub(super) fn unknown_section(place: Place, given: &str) -> Self {
        let names: Vec<&str> = SECTIONS.iter().map(|section| section.name).collect();
        let suggestion = nearest(given, &names);
        // `lr = 1` above all sections: the key exists, but lives in a section.
        let homes = keys::sections_with(given);
        let help = match (suggestion, homes.is_empty()) {
            (_, false) => format!("write `{given}` below {}", homes.join(" or ")),
            (Some(name), true) => format!(
                "did you mean `[{name}]`? Sections are: {}",
                names.join(", ")
            ),
            (None, true) => format!("sections are: {}", names.join(", ")),
        };
        Self::UnknownSection {
            place,
            given: given.into(),
            help,
        }
    }

    pub(super) fn unknown_key(place: Place, section: &str, name: &str) -> Self {
        let own = keys::names_in(section);
        let given = format!("{section}.{name}");
        let everything: Vec<String> = KEYS.iter().map(keys::Key::path).collect();
        let everything: Vec<&str> = everything.iter().map(String::as_str).collect();
        // The right name in the wrong section, else a typo in this section, else anywhere.
        let moved: Vec<&str> = everything
            .iter()
            .copied()
            .filter(|path| path.split_once('.').is_some_and(|(_, key)| key == name))
            .collect();
        let suggestion = match (moved.is_empty(), nearest(name, &own)) {
            (false, _) => Some(moved.join("` or `")),
            (true, Some(near)) => Some(format!("{section}.{near}")),
            (true, None) => nearest(&given, &everything).map(String::from),
        };
        let list = format!("[{section}] has: {}", own.join(", "));
        Self::UnknownKey {
            place,
            given,
            help: match suggestion {
                Some(key) => format!("did you mean `{key}`? {list}"),
                None => list,
            },
        }
    }
}

/// `did you mean ..? Known are ..`, or only the second half when nothing is near.
pub(super) fn one_of(given: &str, known: &[&str]) -> String {
    let list = format!("known are: {}", known.join(", "));
    match nearest(given, known) {
        Some(name) => format!("did you mean `{name}`? {list}"),
        None => list,
    }
}

/// The known word a typo most likely meant, if any is near enough to be worth saying.
pub(super) fn nearest<'a>(given: &str, known: &[&'a str]) -> Option<&'a str> {
    let given = given.to_lowercase().replace('-', "_");
    known
        .iter()
        .map(|word| {
            let plain = word.replace('-', "_");
            (strsim::jaro_winkler(&given, &plain), *word)
        })
        .filter(|(similarity, _)| *similarity >= 0.75)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, word)| word)
}
