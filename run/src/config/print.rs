//! A configuration as text: documented TOML, and the canonical form that is hashed.

use std::fmt::Write as _;

use super::Config;
use super::keys::{KEYS, Key, SECTIONS, ValueKind, ValueRange};
use super::stage_keys::STAGE_KEYS;

/// Width of comment lines, with `# `.
const WIDTH: usize = 96;

const HEADER: &str = "Configuration of `fovea train`. Every key may be left out; it then has its \
     default. `--set section.key=value` overrides a key from the command line. Relative paths are \
     relative to the current directory, not to this file.";

/// What `[[stages]]` is for.
pub(super) const STAGES: &str = "Stages, one [[stages]] table each, trained one after the other: epochs, which \
     parameters train, and the learning rates. Without any, everything moves for train.epochs.";

/// Every section and key with its meaning, type, range and default.
pub(super) fn documented(config: &Config) -> String {
    let mut out = String::new();
    push_comment(&mut out, HEADER);
    let defaults = Config::default();
    for section in SECTIONS {
        out.push('\n');
        push_comment(&mut out, section.doc);
        push_line(&mut out, &format!("[{}]", section.name));
        for (index, key) in KEYS
            .iter()
            .filter(|key| key.section == section.name)
            .enumerate()
        {
            if index > 0 {
                out.push('\n');
            }
            push_comment(&mut out, key.doc);
            let default = (key.get)(&defaults);
            push_comment(&mut out, &format!("{}; default {default}", allowed(key)));
            push_line(&mut out, &format!("{} = {}", key.name, (key.get)(config)));
        }
    }
    push_stages(&mut out, config);
    out
}

/// Type and range of a key in words: `whole number, 1 to 4096`.
pub(super) fn allowed(key: &Key) -> String {
    let ranged = |what: &str| match key.range {
        ValueRange::Any => what.to_owned(),
        range => format!("{what}, {range}"),
    };
    let words = |known: &[&str]| {
        let quoted: Vec<String> = known.iter().map(|word| format!("\"{word}\"")).collect();
        quoted.join(" | ")
    };
    match (key.kind)(&Config::default()) {
        ValueKind::Bool => "true | false".into(),
        ValueKind::Int => ranged("whole number"),
        ValueKind::Real => ranged("number"),
        ValueKind::Text => "string".into(),
        ValueKind::Choice(known) => words(known),
        ValueKind::ChoiceOrWeights(known) => {
            format!("{} | {}", words(known), ranged("list of four numbers"))
        }
    }
}

/// Keys that came after the hash was made: at their default they are left out, so that hashes of before stay.
const LATER: &[&str] = &[
    "model.init_blake3",
    "data.sampler",
    "data.healthy_ratio",
    "data.class_cap",
    "data.cells",
    "data.window_labels",
    "augment.rotation",
    "augment.scale",
    "augment.erasing",
    "loss.pos_weight",
    "loss.beta",
    "loss.label_smoothing",
    "model.attention",
    "model.pooling",
    "model.fusion",
    "model.global_backbone",
    "model.local_backbone",
    "model.init_map",
    "optimizer.decay",
];

/// What is hashed: one `section.key = value` line per result-changing key, sorted, so that reordering
/// the table or rewording the documentation leaves the hash alone.
pub(super) fn canonical(config: &Config) -> String {
    let defaults = Config::default();
    let as_before =
        |key: &Key| LATER.contains(&&*key.path()) && (key.get)(config) == (key.get)(&defaults);
    let mut lines: Vec<String> = KEYS
        .iter()
        .filter(|key| key.changes_result && !as_before(key))
        .map(|key| format!("{} = {}\n", key.path(), (key.get)(config)))
        .collect();
    lines.extend(stage_lines(config));
    lines.sort();
    format!("fovea-config 1\n{}", lines.concat())
}

/// The stages with nothing left out, so that it does not matter where a value stands.
fn stage_lines(config: &Config) -> Vec<String> {
    let stages = config.stages.iter().enumerate();
    let line = |(index, stage): (usize, &super::StageConfig)| {
        let stage = stage.filled(config);
        let lines = STAGE_KEYS.iter().filter_map(move |key| {
            let value = (key.get)(&stage)?;
            Some(format!("stages.{}.{} = {value}\n", index + 1, key.name))
        });
        lines.collect::<Vec<_>>()
    };
    stages.flat_map(line).collect()
}

/// The stages as tables; without any, only what they are.
fn push_stages(out: &mut String, config: &Config) {
    out.push('\n');
    push_comment(
        out,
        &format!("{STAGES} docs/configuration.md has the keys."),
    );
    for (index, stage) in config.stages.iter().enumerate() {
        out.push('\n');
        push_line(out, "[[stages]]");
        for key in STAGE_KEYS {
            if let Some(value) = (key.get)(stage) {
                if index == 0 {
                    push_comment(out, key.doc);
                }
                push_line(out, &format!("{} = {value}", key.name));
            }
        }
    }
}

fn push_line(out: &mut String, line: &str) {
    // Writing to a String cannot fail.
    let _ = writeln!(out, "{line}");
}

fn push_comment(out: &mut String, text: &str) {
    let mut line = String::from("#");
    for word in text.split(' ') {
        if line.len() + 1 + word.len() > WIDTH {
            push_line(out, &line);
            line = String::from("#");
        }
        line.push(' ');
        line.push_str(word);
    }
    push_line(out, &line);
}
