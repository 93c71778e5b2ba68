//! The table of the keys of a `[[stages]]` table, and reading, checking and printing by it.

use toml::de::{DeTable, DeValue};

use super::error::{Error, Place, one_of};
use super::keys::{Bound, FieldType, Leaf, ValueKind, ValueRange};
use super::read::{real, shorten, type_name};
use super::sections::{FrozenNorms, ScheduleKind};
use super::stages::{ALL, StageConfig};
use super::{Config, Result};

/// Most stages of a run.
const MOST_STAGES: usize = 64;
/// Most groups of a stage.
pub const MOST_GROUPS: usize = 16;

/// The type of a stage's key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum StageValue {
    /// As in the sections.
    Plain(ValueKind),
    /// A word, or a list of words.
    Words,
    /// A table of numbers.
    Rates,
}

/// One key of a stage.
pub(super) struct StageKey {
    pub name: &'static str,
    pub range: ValueRange,
    pub value: StageValue,
    /// What it means, with unit.
    pub doc: &'static str,
    /// What holds without it.
    pub default: &'static str,
    /// Its value; none where it is left out.
    pub get: fn(&StageConfig) -> Option<Leaf>,
    /// Stores a value; returns false when the leaf is of another type.
    pub set: fn(&mut StageConfig, Leaf) -> bool,
}

fn store<F: FieldType>(field: &mut F, leaf: Leaf) -> bool {
    F::from_leaf(leaf).is_some_and(|value| {
        *field = value;
        true
    })
}

/// A row whose field is a plain value.
macro_rules! own {
    ($name:ident, $kind:expr, $range:expr, $default:literal, $doc:literal) => {
        StageKey {
            name: stringify!($name),
            range: $range,
            value: StageValue::Plain($kind),
            doc: $doc,
            default: $default,
            get: |stage| Some(stage.$name.leaf()),
            set: |stage, leaf| store(&mut stage.$name, leaf),
        }
    };
}

/// A row whose field is left out unless the user gives it.
macro_rules! inherited {
    ($name:ident, $kind:expr, $range:expr, $default:literal, $doc:literal) => {
        StageKey {
            name: stringify!($name),
            range: $range,
            value: StageValue::Plain($kind),
            doc: $doc,
            default: $default,
            get: |stage| stage.$name.map(|value| value.leaf()),
            set: |stage, leaf| match FieldType::from_leaf(leaf) {
                Some(value) => {
                    stage.$name = Some(value);
                    true
                }
                None => false,
            },
        }
    };
}

const RATE: ValueRange = ValueRange::Real(Bound::Open(0.0), Bound::Closed(10.0));
const COUNT: u64 = u32::MAX as u64;

/// Every key of a stage, in the order they are printed.
#[rustfmt::skip] // one row per key
pub(super) static STAGE_KEYS: &[StageKey] = &[
    own!(epochs, ValueKind::Int, ValueRange::Int(1, 1_000_000), "1", "Passes over the training split; train.epochs is their sum over the stages."),
    StageKey {
        name: "train", range: ValueRange::Any, value: StageValue::Words, default: "[\"all\"]",
        doc: "Which parameters move: \"all\", \"head\" (what the model calls its head, docs/models.md), or a list of prefixes of parameter names, whole between dots: [\"layer4\", \"fc\"]. The others are frozen: no gradient, no decay.",
        get: |stage| Some(Leaf::Words(stage.train.clone())),
        set: |stage, leaf| match leaf {
            Leaf::Words(words) => { stage.train = words; true }
            _ => false,
        },
    },
    inherited!(lr, ValueKind::Real, RATE, "optimizer.lr", "Base learning rate of the stage."),
    StageKey {
        name: "groups", range: RATE, value: StageValue::Rates, default: "{ }",
        doc: "Base learning rates of single parts: { \"attn1\" = 1e-4 } by prefix of the parameter names; the longest prefix counts. They follow the stage's schedule.",
        get: |stage| Some(Leaf::Rates(stage.groups.clone())),
        set: |stage, leaf| match leaf {
            Leaf::Rates(rates) => { stage.groups = rates; true }
            _ => false,
        },
    },
    inherited!(kind, ValueKind::Choice(ScheduleKind::NAMES), ValueRange::Any, "schedule.kind", "Shape of the rate over the stage, made anew at its beginning."),
    own!(t_max, ValueKind::Int, ValueRange::Int(0, 1_000_000), "0", "Epochs of one half cosine, T_max of PyTorch's CosineAnnealingLR; 0 = the stage's epochs. In a longer stage the rate rises again, as PyTorch's does."),
    inherited!(warmup_steps, ValueKind::Int, ValueRange::Int(0, COUNT), "schedule.warmup_steps", "Steps of linear warm-up at the beginning of the stage."),
    inherited!(min_lr, ValueKind::Real, ValueRange::Real(Bound::Closed(0.0), Bound::Closed(10.0)), "schedule.min_lr", "Lowest rate of cosine and plateau; at most lr and every rate of groups."),
    inherited!(plateau_factor, ValueKind::Real, ValueRange::Real(Bound::Open(0.0), Bound::Open(1.0)), "schedule.plateau_factor", "What one reduction multiplies the rate by (plateau)."),
    inherited!(plateau_patience, ValueKind::Int, ValueRange::Int(1, 1_000_000), "schedule.plateau_patience", "Validations in a row without improvement that cause a reduction (plateau), counted from the beginning of the stage."),
    own!(frozen_norms, ValueKind::Choice(FrozenNorms::NAMES), ValueRange::Any, "\"eval\"", "Batch normalisation whose parameters are frozen: eval normalises with its running statistics and leaves them, train with those of the batch and updates them."),
];

/// Type and range of a key in words.
pub(super) fn allowed(key: &StageKey) -> String {
    let ranged = |what: &str| match key.range {
        ValueRange::Any => what.to_owned(),
        range => format!("{what}, {range}"),
    };
    match key.value {
        StageValue::Plain(ValueKind::Int) => ranged("whole number"),
        StageValue::Plain(ValueKind::Choice(known)) => {
            let quoted: Vec<String> = known.iter().map(|word| format!("\"{word}\"")).collect();
            quoted.join(" | ")
        }
        StageValue::Plain(_) => ranged("number"),
        StageValue::Words => "\"all\" | \"head\" | list of prefixes".to_owned(),
        StageValue::Rates => ranged("table of numbers"),
    }
}

/// Reads the value of `stages`: a list of tables.
pub(super) fn list(
    value: &DeValue<'_>,
    place: &dyn Fn(usize) -> Place,
) -> Result<Vec<StageConfig>> {
    let wrong = || Error::WrongType {
        place: place(0),
        key: "stages".to_owned(),
        given: format!("{}, but must be a list of tables", type_name(value)),
        help: "write [[stages]] with double brackets, once for each stage, and its keys below"
            .to_owned(),
    };
    let DeValue::Array(items) = value else {
        return Err(wrong());
    };
    let mut stages = Vec::new();
    for (index, item) in items.iter().enumerate() {
        let DeValue::Table(table) = item.get_ref() else {
            return Err(wrong());
        };
        stages.push(stage(index + 1, table, &|offset| {
            place(offset.max(item.span().start))
        })?);
    }
    Ok(stages)
}

fn stage(
    number: usize,
    table: &DeTable<'_>,
    place: &dyn Fn(usize) -> Place,
) -> Result<StageConfig> {
    let mut stage = StageConfig::default();
    let mut first: Option<(usize, Error)> = None;
    for (name, value) in table {
        let at = name.span().start;
        let result = apply(
            &mut stage,
            (number, name.get_ref()),
            value.get_ref(),
            &place(at),
        );
        if let Err(error) = result
            && first.as_ref().is_none_or(|(earlier, _)| at < *earlier)
        {
            first = Some((at, error));
        }
    }
    if let Some((_, error)) = first {
        return Err(error);
    }
    if !table.iter().any(|(name, _)| name.get_ref() == "epochs") {
        return Err(Error::Conflict {
            problem: format!("{}: stage {number} has no epochs", place(0)),
            help: "write epochs = N below [[stages]]".to_owned(),
        });
    }
    Ok(stage)
}

/// Checks one value against its key and stores it.
pub(super) fn apply(
    stage: &mut StageConfig,
    (number, name): (usize, &str),
    value: &DeValue<'_>,
    place: &Place,
) -> Result<()> {
    let path = format!("stages.{number}.{name}");
    let Some(key) = STAGE_KEYS.iter().find(|key| key.name == name) else {
        let names: Vec<&str> = STAGE_KEYS.iter().map(|key| key.name).collect();
        return Err(Error::UnknownKey {
            place: place.clone(),
            given: path,
            help: one_of(name, &names),
        });
    };
    let given = shorten(&value_text(value));
    let leaf = typed(key, value).ok_or_else(|| match (key.value, value) {
        (StageValue::Plain(ValueKind::Choice(known)), DeValue::String(word)) => {
            Error::UnknownValue {
                place: place.clone(),
                key: path.clone(),
                given: shorten(word),
                help: one_of(word, known),
            }
        }
        _ => Error::WrongType {
            place: place.clone(),
            key: path.clone(),
            given: format!("{given} ({})", type_name(value)),
            help: format!("write {name} = {}", allowed(key)),
        },
    })?;
    let out_of_range = || out_of_range(key, path.clone(), place.clone(), given.clone());
    if !key.range.contains(&leaf) || !(key.set)(stage, leaf) {
        return Err(out_of_range());
    }
    Ok(())
}

fn out_of_range(key: &StageKey, path: String, place: Place, given: String) -> Error {
    Error::OutOfRange {
        place,
        key: path,
        given,
        allowed: format!("{}; without it: {}", allowed(key), key.default),
    }
}

fn value_text(value: &DeValue<'_>) -> String {
    match value {
        DeValue::String(text) => format!("{text:?}"),
        DeValue::Integer(number) => number.as_str().to_owned(),
        DeValue::Float(number) => number.as_str().to_owned(),
        DeValue::Boolean(value) => value.to_string(),
        other => type_name(other).to_owned(),
    }
}

fn typed(key: &StageKey, value: &DeValue<'_>) -> Option<Leaf> {
    match (key.value, value) {
        (StageValue::Plain(ValueKind::Int), DeValue::Integer(number)) => {
            // Negative or beyond 64 bits: a number that is in no range.
            let number = u64::from_str_radix(number.as_str(), number.radix());
            Some(Leaf::Int(number.unwrap_or(u64::MAX)))
        }
        (StageValue::Plain(ValueKind::Real), value) => real(value).map(Leaf::Real),
        (StageValue::Plain(ValueKind::Choice(known)), DeValue::String(word)) => known
            .contains(&word.as_ref())
            .then(|| Leaf::Text(word.to_string())),
        (StageValue::Words, DeValue::String(word)) => Some(Leaf::Words(vec![word.to_string()])),
        (StageValue::Words, DeValue::Array(items)) => {
            let words = items.iter().map(|item| match item.get_ref() {
                DeValue::String(word) => Some(word.to_string()),
                _ => None,
            });
            words.collect::<Option<Vec<_>>>().map(Leaf::Words)
        }
        (StageValue::Rates, DeValue::Table(table)) => {
            let rates = table
                .iter()
                .map(|(name, value)| Some((name.get_ref().to_string(), real(value.get_ref())?)));
            rates.collect::<Option<_>>().map(Leaf::Rates)
        }
        _ => None,
    }
}

/// Applies `stages=[..]` or `stages.N.key=value` from the command line; on error nothing is changed.
pub(super) fn set(config: &mut Config, path: &str, text: &str, place: &Place) -> Result<()> {
    let mut stages = config.stages.clone();
    let parsed = DeValue::parse(text).map(toml::Spanned::into_inner);
    match path.strip_prefix("stages.") {
        None => {
            let value = parsed.unwrap_or_else(|_| DeValue::String(text.to_owned().into()));
            stages = list(&value, &|_| place.clone())?;
        }
        Some(rest) => {
            let (number, name) = rest.split_once('.').unwrap_or((rest, ""));
            let index = number.parse::<usize>().ok().and_then(|n| n.checked_sub(1));
            let count = stages.len();
            let Some(stage) = index.and_then(|index| stages.get_mut(index)) else {
                return Err(Error::Conflict {
                    problem: format!("{place}: there is no stage {number:?}; the configuration has {count} stages"),
                    help: "stages count from 1: stages.1.lr=1e-3; give a whole list with 'stages=[{epochs=5, train=\"head\"}, {epochs=20}]'".to_owned(),
                });
            };
            // A shell has eaten the quotes of a word.
            let value = parsed.unwrap_or_else(|_| DeValue::String(text.to_owned().into()));
            apply(stage, (index.unwrap_or(0) + 1, name), &value, place)?;
        }
    }
    config.stages = stages;
    if !config.stages.is_empty() {
        config.train.epochs = config.stage_epochs();
    }
    Ok(())
}

/// The rules that a configuration's stages must keep.
pub(super) fn validate(config: &Config) -> Result<()> {
    let conflict = |problem: String, help: &str| {
        Err(Error::Conflict {
            problem,
            help: help.to_owned(),
        })
    };
    if config.stages.len() > MOST_STAGES {
        return conflict(
            format!(
                "{} stages; at most {MOST_STAGES} are allowed",
                config.stages.len()
            ),
            "join stages",
        );
    }
    if !config.stages.is_empty() && config.train.epochs != config.stage_epochs() {
        return conflict(
            format!(
                "train.epochs = {}, but the stages have {} epochs together",
                config.train.epochs,
                config.stage_epochs()
            ),
            "leave train.epochs away, or change stages.N.epochs",
        );
    }
    for (index, written) in config.stages.iter().enumerate() {
        let number = index + 1;
        for key in STAGE_KEYS {
            if let Some(leaf) = (key.get)(written)
                && !key.range.contains(&leaf)
            {
                let place = Place {
                    origin: "configuration".to_owned(),
                    line: None,
                };
                let path = format!("stages.{number}.{}", key.name);
                return Err(out_of_range(key, path, place, leaf.to_string()));
            }
        }
        let words = &written.train;
        let is_empty = |word: &String| word.trim_matches('.').is_empty();
        if words.is_empty() || words.iter().chain(written.groups.keys()).any(is_empty) {
            return conflict(
                format!("stages.{number}: an empty prefix, or train = [ ]"),
                "name parameters by prefixes like \"layer4\", or write train = \"all\" or \"head\"",
            );
        }
        if words.len() > 1 && words.iter().any(|word| word == ALL) {
            return conflict(
                format!(
                    "stages.{number}.train = {} names parts besides \"all\"",
                    Leaf::Words(words.clone())
                ),
                "write \"all\" alone, or the parts alone",
            );
        }
        if written.groups.len() > MOST_GROUPS {
            return conflict(
                format!(
                    "stages.{number}.groups has {} rates; at most {MOST_GROUPS} are allowed",
                    written.groups.len()
                ),
                "use shorter prefixes",
            );
        }
    }
    for stage in config.plan().iter().filter(|_| !config.stages.is_empty()) {
        let (number, floor) = (stage.number, stage.schedule.min_lr);
        let rates = std::iter::once(stage.lr).chain(stage.groups.iter().map(|(_, lr)| *lr));
        if let Some(lr) = rates.into_iter().find(|lr| floor > *lr) {
            return conflict(
                format!("stages.{number}: min_lr = {floor:?} is above the rate {lr:?}"),
                "lower min_lr (or schedule.min_lr), or raise the rate",
            );
        }
        if stage.t_max > 0 && stage.schedule.kind != ScheduleKind::Cosine {
            return conflict(
                format!(
                    "stages.{number}.t_max = {} with kind = \"{}\"",
                    stage.t_max, stage.schedule.kind
                ),
                "t_max belongs to kind = \"cosine\"",
            );
        }
    }
    Ok(())
}
