//! From text to a checked [`Config`]: files and `--set`.

use std::io::Read as _;
use std::ops::Range;
use std::path::Path;

use toml::de::{DeTable, DeValue};

use super::error::{Error, Place, one_of};
use super::keys::{self, Key, Leaf, SECTIONS, ValueKind};
use super::{Config, Result, stage_keys};

/// Class weights that messages speak of where the task is not known: those of the lesions.
const LESIONS: usize = 4;

/// A configuration is a few kilobytes; a checkpoint named by mistake is not read to its end.
const MAX_FILE_BYTES: u64 = 1 << 20;

/// Reads a file as text, with its own error for each way that goes wrong.
pub(super) fn read_file(path: &Path) -> Result<String> {
    let failed = |source: std::io::Error| Error::Read {
        path: path.into(),
        help: match source.kind() {
            std::io::ErrorKind::NotFound => {
                "check the path (a relative one starts at the current directory), or start from a preset: fovea train --preset hybrid --print-config > config.toml"
            }
            std::io::ErrorKind::PermissionDenied => "make the file readable for this user",
            _ => "check the path and the disk it is on",
        },
        source,
    };
    if path.is_dir() {
        return Err(Error::Directory {
            path: path.into(),
            inside: toml_file_in(path),
        });
    }
    let file = std::fs::File::open(path).map_err(failed)?;
    let mut bytes = Vec::new();
    file.take(MAX_FILE_BYTES + 1)
        .read_to_end(&mut bytes)
        .map_err(failed)?;
    if bytes.len() as u64 > MAX_FILE_BYTES {
        return Err(Error::TooLarge {
            path: path.into(),
            limit_bytes: MAX_FILE_BYTES,
        });
    }
    String::from_utf8(bytes).map_err(|error| {
        let byte = error.utf8_error().valid_up_to();
        let line = 1 + error.as_bytes()[..byte]
            .iter()
            .filter(|b| **b == b'\n')
            .count();
        Error::NotUtf8 {
            place: Place {
                origin: path.display().to_string(),
                line: Some(line),
            },
            byte,
        }
    })
}

/// The TOML file a user may have meant by naming its directory: `config.toml`, else the first by name.
fn toml_file_in(directory: &Path) -> Option<std::path::PathBuf> {
    let usual = directory.join("config.toml");
    if usual.is_file() {
        return Some(usual);
    }
    let mut found: Vec<_> = std::fs::read_dir(directory)
        .ok()?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.extension().is_some_and(|e| e == "toml") && path.is_file())
        .collect();
    found.sort();
    found.into_iter().next()
}

/// Text with the name it goes by, to turn byte offsets into places.
struct NamedText<'a> {
    text: &'a str,
    origin: &'a str,
}

impl<'a> NamedText<'a> {
    fn line(&self, offset: usize) -> usize {
        let before = self.text.as_bytes().get(..offset);
        1 + before.map_or(0, |bytes| bytes.iter().filter(|b| **b == b'\n').count())
    }

    fn place(&self, offset: usize) -> Place {
        Place {
            origin: self.origin.into(),
            line: Some(self.line(offset)),
        }
    }

    fn slice(&self, span: Range<usize>) -> &'a str {
        self.text.get(span).unwrap_or_default()
    }
}

/// Parses TOML over the defaults and checks each key by itself.
pub(super) fn parse(text: &str, origin: &str) -> Result<Config> {
    let source = NamedText { text, origin };
    let document = DeTable::parse(text).map_err(|error| syntax_error(&source, &error))?;
    let mut config = Config::default();
    // Keys come in alphabetical order; the error to show is the first one in the file.
    let mut first_error: Option<(usize, Error)> = None;
    let mut epochs_at = None;
    let mut note = |offset: usize, error: Error| {
        if first_error.as_ref().is_none_or(|(at, _)| offset < *at) {
            first_error = Some((offset, error));
        }
    };
    for (section, content) in document.get_ref() {
        let at = section.span().start;
        let name = section.get_ref().as_ref();
        if name == "stages" {
            let place = |offset: usize| source.place(offset.max(at));
            match stage_keys::list(content.get_ref(), &place) {
                Ok(stages) => config.stages = stages,
                Err(error) => note(at, error),
            }
            continue;
        }
        if name == "train"
            && let DeValue::Table(entries) = content.get_ref()
        {
            let epochs = entries.iter().find(|(key, _)| key.get_ref() == "epochs");
            epochs_at = epochs.map(|(key, _)| key.span().start);
        }
        if !SECTIONS.iter().any(|known| known.name == name) {
            note(at, Error::unknown_section(source.place(at), name));
            continue;
        }
        let DeValue::Table(entries) = content.get_ref() else {
            note(at, not_a_section(&source, at, name, content));
            continue;
        };
        for (key, value) in entries {
            let at = key.span().start;
            let given = shorten(source.slice(value.span()));
            if let Err(error) = apply(
                &mut config,
                (name, key.get_ref()),
                value.get_ref(),
                &given,
                &source.place(at),
            ) {
                note(at, error);
            }
        }
    }
    if let Some((_, error)) = first_error {
        return Err(error);
    }
    if !config.stages.is_empty() {
        epochs_of_stages(&mut config, epochs_at.map(|at| source.place(at)))?;
    }
    Ok(config)
}

/// `train.epochs` follows from the stages; one that was `given` at a place must be their sum.
fn epochs_of_stages(config: &mut Config, given: Option<Place>) -> Result<()> {
    let (epochs, sum) = (config.train.epochs, config.stage_epochs());
    if let Some(place) = given
        && epochs != sum
    {
        return Err(Error::Conflict {
            problem: format!(
                "{place}: train.epochs = {epochs}, but the stages have {sum} epochs together"
            ),
            help: "leave train.epochs away; to change it, set stages.N.epochs of a stage".into(),
        });
    }
    config.train.epochs = sum;
    Ok(())
}

fn not_a_section(
    source: &NamedText<'_>,
    at: usize,
    section: &str,
    content: &toml::Spanned<DeValue<'_>>,
) -> Error {
    Error::NotASection {
        place: source.place(at),
        section: section.into(),
        given: match content.get_ref() {
            DeValue::Array(_) => "a list (sections have single brackets)".into(),
            value => format!(
                "{} ({})",
                shorten(source.slice(content.span())),
                type_name(value)
            ),
        },
        keys: keys::names_in(section).join(", "),
    }
}

/// Applies `section.key=value` from the command line.
pub(super) fn set(config: &mut Config, assignment: &str) -> Result<()> {
    let not_an_assignment = |problem| Error::NotAnAssignment {
        given: assignment.into(),
        problem,
    };
    let (path, text) = assignment
        .split_once('=')
        .ok_or_else(|| not_an_assignment("has no `=`"))?;
    let (path, text) = (path.trim(), text.trim());
    let place = Place {
        origin: format!("--set {}", shorten(assignment)),
        line: None,
    };
    if path == "stages" || path.starts_with("stages.") {
        return stage_keys::set(config, path, text, &place);
    }
    let Some((section, name)) = path.split_once('.') else {
        // `--set lr=1`: the key alone, or a section without a key.
        return Err(if keys::KEYS.iter().any(|key| key.name == path) {
            Error::unknown_section(place, path)
        } else {
            not_an_assignment("names no key of the form section.key")
        });
    };
    if !SECTIONS.iter().any(|known| known.name == section) {
        return Err(Error::unknown_section(place, section));
    }
    let Some(key) = keys::find(section, name) else {
        return Err(Error::unknown_key(place, section, name));
    };
    let words = matches!(
        (key.kind)(config),
        ValueKind::Text | ValueKind::Choice(_) | ValueKind::ChoiceOrWeights(_)
    );
    let quoted = text.starts_with(['"', '\'', '[']);
    let value = match DeValue::parse(text) {
        Ok(value) if !words || quoted => value.into_inner(),
        // A shell has eaten the quotes, or the user never typed them: `--set schedule.kind=cosine`.
        // A path may begin like a quote or a list and still be no TOML; then it is taken as it is.
        _ if words => DeValue::String(text.to_owned().into()),
        _ => {
            let given = format!("{:?}", shorten(text));
            return Err(wrong_type(key, config, &given, place, LESIONS));
        }
    };
    let before = config.train.epochs;
    apply(config, (section, name), &value, &shorten(text), &place)?;
    if (section, name) == ("train", "epochs") && !config.stages.is_empty() {
        let checked = epochs_of_stages(config, Some(place));
        if checked.is_err() {
            config.train.epochs = before;
        }
        checked?;
    }
    Ok(())
}

/// Checks one value against its key and stores it.
fn apply(
    config: &mut Config,
    (section, name): (&str, &str),
    value: &DeValue<'_>,
    given: &str,
    place: &Place,
) -> Result<()> {
    let Some(key) = keys::find(section, name) else {
        return Err(Error::unknown_key(place.clone(), section, name));
    };
    let leaf = typed(key, config, value, given, place)?;
    if !key.range.contains(&leaf) {
        return Err(out_of_range(key, place.clone(), given.into()));
    }
    if !(key.set)(config, leaf) {
        // The leaf has the key's own type and range, so this is a number its field cannot hold.
        return Err(out_of_range(key, place.clone(), given.into()));
    }
    Ok(())
}

pub(super) fn out_of_range(key: &Key, place: Place, given: String) -> Error {
    Error::OutOfRange {
        place,
        key: key.path(),
        given,
        allowed: format!(
            "{}; the default is {}",
            key.range,
            (key.get)(&Config::default())
        ),
    }
}

/// The value as the type of its key.
fn typed(
    key: &Key,
    config: &Config,
    value: &DeValue<'_>,
    given: &str,
    place: &Place,
) -> Result<Leaf> {
    let kind = (key.kind)(config);
    let wrong = || {
        let given = format!("{given} ({})", type_name(value));
        wrong_type(key, config, &given, place.clone(), LESIONS)
    };
    match (kind, value) {
        (ValueKind::Bool, DeValue::Boolean(value)) => Ok(Leaf::Bool(*value)),
        (ValueKind::Int, DeValue::Integer(number)) => {
            // Negative or beyond 64 bits: a whole number, but not one in any range.
            u64::from_str_radix(number.as_str(), number.radix())
                .map(Leaf::Int)
                .map_err(|_| out_of_range(key, place.clone(), given.into()))
        }
        (ValueKind::Real, value) => real(value).map(Leaf::Real).ok_or_else(wrong),
        (ValueKind::Text, DeValue::String(text)) => Ok(Leaf::Text(text.to_string())),
        (ValueKind::Choice(known) | ValueKind::ChoiceOrWeights(known), DeValue::String(word)) => {
            if known.contains(&word.as_ref()) {
                return Ok(Leaf::Text(word.to_string()));
            }
            let mut help = one_of(word, known);
            if matches!(kind, ValueKind::ChoiceOrWeights(_)) {
                help.push_str(", or a list of four numbers");
            }
            Err(Error::UnknownValue {
                place: place.clone(),
                key: key.path(),
                given: shorten(word),
                help,
            })
        }
        (ValueKind::ChoiceOrWeights(_), DeValue::Array(items)) => {
            let numbers: Option<Vec<f32>> = items.iter().map(|item| real(item.get_ref())).collect();
            // How many there must be is known with the task: `Config::fits`.
            let weights = numbers.filter(|numbers| !numbers.is_empty());
            weights.map(Leaf::Weights).ok_or_else(wrong)
        }
        _ => Err(wrong()),
    }
}

/// A TOML float or integer as f32. Too large for f32 gives infinity, which no range contains.
pub(super) fn real(value: &DeValue<'_>) -> Option<f32> {
    match value {
        DeValue::Float(number) => number.as_str().parse::<f32>().ok(),
        DeValue::Integer(number) => i128::from_str_radix(number.as_str(), number.radix())
            .ok()
            .map(|number| number as f32),
        _ => None,
    }
}

/// The number of class weights in messages: `four` as the documentation has it, else digits.
pub(super) fn in_words(count: usize) -> String {
    match count {
        LESIONS => "four".to_owned(),
        count => count.to_string(),
    }
}

/// `classes`: how many numbers a list of class weights must have.
pub(super) fn wrong_type(
    key: &Key,
    config: &Config,
    given: &str,
    place: Place,
    classes: usize,
) -> Error {
    let list = format!(
        "one of a few words or a list of {} numbers",
        in_words(classes)
    );
    let (wanted, example) = match (key.kind)(config) {
        ValueKind::Bool => ("true or false", "true or false".into()),
        ValueKind::Int => ("a whole number", format!("a whole number, {}", key.range)),
        ValueKind::Real => ("a number", format!("a number, {}", key.range)),
        ValueKind::Text => ("a string", "text in double quotes".into()),
        ValueKind::Choice(known) => ("one of a few words", quoted_list(known)),
        ValueKind::ChoiceOrWeights(known) => (
            list.as_str(),
            format!(
                "{} or [{}]",
                quoted_list(known),
                vec!["1.0"; classes].join(", ")
            ),
        ),
    };
    // `epochs = "8"`: the value is right but for its quotes.
    let is_plain = matches!(
        (key.kind)(config),
        ValueKind::Bool | ValueKind::Int | ValueKind::Real
    );
    let unquote = if is_plain && given.ends_with("(a string)") {
        "without quotes, "
    } else {
        ""
    };
    Error::WrongType {
        place,
        key: key.path(),
        given: format!("{given}, but must be {wanted}"),
        help: format!("write {} = {unquote}{example}", key.name),
    }
}

fn quoted_list(words: &[&str]) -> String {
    let quoted: Vec<String> = words.iter().map(|word| format!("\"{word}\"")).collect();
    quoted.join(" or ")
}

pub(super) fn type_name(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "a string",
        DeValue::Integer(_) => "a whole number",
        DeValue::Float(_) => "a number with a fraction",
        DeValue::Boolean(_) => "true or false",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a table",
    }
}

/// The error of the TOML parser in this room's words.
fn syntax_error(source: &NamedText<'_>, error: &toml::de::Error) -> Error {
    let span = error.span().unwrap_or(0..0);
    let place = source.place(span.start);
    let line = source.text.lines().nth(source.line(span.start) - 1);
    let excerpt = shorten(line.unwrap_or_default().trim());
    let message = error.message();
    if message.contains("duplicate key") {
        return duplicate(source, place, span, &excerpt);
    }
    Error::Syntax {
        help: if message.contains("must be quoted") {
            "put words and paths in double quotes: kind = \"cosine\""
        } else if message.contains("escape") {
            "in double quotes a backslash starts an escape; put such text in single quotes"
        } else {
            "sections are [name] on a line of their own; below it one key = value per line; comments start with #"
        },
        place,
        message: message.replace('\n', " "),
        excerpt,
    }
}

fn duplicate(source: &NamedText<'_>, place: Place, span: Range<usize>, excerpt: &str) -> Error {
    let name = source.slice(span.clone()).trim();
    let is_header = excerpt.starts_with('[');
    let header = |line: &str| {
        let line = line.trim();
        line.strip_prefix('[')
            .and_then(|rest| rest.split(']').next())
            .map(|name| name.trim().to_owned())
    };
    // Which section the second one stands in, and where the first one is: plain lines are enough
    // here, because this only words the message.
    let last_line = source.line(span.start);
    let mut section = String::new();
    let mut first = None;
    let mut seen: Vec<(String, String, usize)> = Vec::new();
    for (index, line) in source.text.lines().take(last_line).enumerate() {
        if let Some(name) = header(line) {
            section = name;
            seen.push((section.clone(), String::new(), index + 1));
        } else if let Some((key, _)) = line.split_once('=') {
            seen.push((section.clone(), key.trim().to_owned(), index + 1));
        }
    }
    let wanted = if is_header { "" } else { name };
    for (in_section, key, line) in seen {
        if in_section == section && key == wanted && line < last_line && first.is_none() {
            first = Some(line);
        }
    }
    Error::Duplicate {
        place,
        key: match (is_header, section.is_empty()) {
            (true, _) => format!("[{section}]"),
            (false, true) => name.into(),
            (false, false) => format!("{section}.{name}"),
        },
        first: first.map_or_else(String::new, |line| format!("; the first is on line {line}")),
    }
}

/// Text for a message: one line, at most 80 characters.
pub(super) fn shorten(text: &str) -> String {
    let line: String = text
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .take(81)
        .collect();
    if line.chars().count() > 80 {
        let cut: String = line.chars().take(77).collect();
        format!("{cut}...")
    } else {
        line
    }
}
