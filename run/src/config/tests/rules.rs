//! The table of keys, the presets, and the rules between keys.

use std::collections::BTreeSet;

use super::super::keys::{KEYS, Leaf, SECTIONS, ValueKind, ValueRange};
use super::super::*;

#[test]
fn the_table_is_complete_and_in_order() {
    let table = toml::Table::try_from(Config::default()).unwrap();
    let of_structs: BTreeSet<String> = table
        .iter()
        .flat_map(|(section, keys)| {
            let keys = keys.as_table().unwrap().keys();
            keys.map(move |key| format!("{section}.{key}"))
        })
        .collect();
    let of_table: BTreeSet<String> = KEYS.iter().map(keys::Key::path).collect();
    assert_eq!(of_structs, of_table);
    assert_eq!(
        of_table.len(),
        KEYS.len(),
        "a key stands twice in the table"
    );
    // Sections in the order of SECTIONS, each in one piece.
    let mut order: Vec<&str> = KEYS.iter().map(|key| key.section).collect();
    order.dedup();
    let sections: Vec<&str> = SECTIONS.iter().map(|section| section.name).collect();
    assert_eq!(order, sections);
}

#[test]
fn every_key_reads_and_writes_its_own_field() {
    for key in KEYS {
        let mut config = Config::default();
        let before = (key.get)(&config);
        let other = match (&before, (key.kind)(&config), key.range) {
            (Leaf::Bool(value), ..) => Leaf::Bool(!value),
            // The largest allowed value must fit the field.
            (Leaf::Int(_), _, ValueRange::Int(_, max)) => Leaf::Int(max),
            (Leaf::Real(value), _, ValueRange::Real(..)) => Leaf::Real(value / 2.0 + 0.03125),
            (
                Leaf::Text(word),
                ValueKind::Choice(known) | ValueKind::ChoiceOrWeights(known),
                ValueRange::Any | ValueRange::Real(..),
            ) => match known.iter().find(|name| *name != word) {
                Some(name) => Leaf::Text((*name).into()),
                None => continue,
            },
            (Leaf::Text(_), ValueKind::Text, ValueRange::Any) => Leaf::Text("elsewhere".into()),
            wrong => panic!(
                "{}: kind, value and range do not fit: {wrong:?}",
                key.path()
            ),
        };
        assert!(key.range.contains(&other), "{}", key.path());
        assert!((key.set)(&mut config, other.clone()), "{}", key.path());
        assert_eq!((key.get)(&config), other, "{}", key.path());
        // Exactly this field, as serde sees it, has changed.
        let text = |config: &Config| serde_json::to_value(config).unwrap();
        let (new, old) = (text(&config), text(&Config::default()));
        for check in KEYS {
            let same = new[check.section][check.name] == old[check.section][check.name];
            assert_eq!(
                same,
                check.path() != key.path(),
                "{} / {}",
                key.path(),
                check.path()
            );
        }
        assert!(
            !(key.set)(&mut config, Leaf::Weights(vec![0.0; 4]))
                || ["alpha", "pos_weight"].contains(&key.name)
        );
    }
}

#[test]
fn documentation_says_something() {
    for key in KEYS {
        assert!(
            key.doc.len() > 10 && key.doc.ends_with('.'),
            "{}",
            key.path()
        );
        assert!(!key.doc.contains('|'), "{}: breaks the table", key.path());
    }
}

#[test]
fn defaults_and_presets_are_valid() {
    Config::default().validate().unwrap();
    for (name, _) in PRESETS {
        Config::preset(name).unwrap().validate().unwrap();
    }
}

#[test]
fn preset_hybrid_is_the_published_recipe() {
    let c = Config::preset("hybrid").unwrap();
    assert_eq!(
        (
            c.data.patches_per_image,
            c.data.global_size,
            c.data.min_lesion_pixels
        ),
        (16, 512, 1)
    );
    assert_eq!(c.model.name, "hybrid");
    assert_eq!(
        (c.loss.gamma, c.loss.alpha, c.loss.balance),
        (2.0, Alpha::InverseFrequency, false)
    );
    assert_eq!(c.loss.patch_weight, 1.0);
    assert_eq!(
        (c.optimizer.kind, c.optimizer.lr, c.optimizer.weight_decay),
        (OptimizerKind::Adam, 1e-4, 1e-5)
    );
    assert!(c.early_stopping.patience > 0);
    assert_eq!(c.eval.threshold, 0.5);
}

#[test]
fn preset_demo_fits_two_cores() {
    let c = Config::preset("demo").unwrap();
    assert_eq!((c.data.global_size, c.data.patches_per_image), (128, 16));
    assert_eq!(
        (c.train.epochs, c.train.images_per_step, c.train.ranks),
        (4, 4, 2)
    );
    assert_eq!((c.train.virtual_shards, c.train.threads_per_rank), (2, 1));
    assert_eq!(
        (c.optimizer.lr, c.schedule.kind, c.schedule.warmup_steps),
        (3e-4, ScheduleKind::Cosine, 20)
    );
    assert_eq!(c.loss.alpha, Alpha::None);
    assert_eq!(
        (
            c.loss.balance,
            c.loss.positive_weight,
            c.loss.negative_weight
        ),
        (true, 0.85, 0.15)
    );
}

/// The message of `validate` for the default configuration with these changes.
fn broken(change: impl FnOnce(&mut Config)) -> String {
    let mut config = Config::default();
    change(&mut config);
    let message = config.validate().unwrap_err().to_string();
    assert!(message.contains("\n  help: "), "{message}");
    message
}

#[test]
fn ranks_must_own_power_of_two_blocks() {
    let message = broken(|c| c.train.ranks = 3);
    assert!(message.contains("train.ranks = 3"), "{message}");
    assert!(message.contains("train.virtual_shards = 4"), "{message}");
    assert!(message.contains("4 is not divisible by 3"), "{message}");
    assert!(
        message.contains("allowed rank counts are 1, 2, 4;"),
        "{message}"
    );
    let message = broken(|c| (c.train.ranks, c.train.virtual_shards) = (2, 12));
    assert!(
        message.contains("6 virtual shards per rank is not a power of two"),
        "{message}"
    );
    assert!(
        message.contains("allowed rank counts are 1, 3, 6, 12;"),
        "{message}"
    );
    let message = broken(|c| c.train.ranks = 8);
    assert!(message.contains("4 is not divisible by 8"), "{message}");
    for (ranks, shards) in [
        (1, 1),
        (1, 7),
        (7, 7),
        (2, 4),
        (4, 4),
        (3, 12),
        (1, 4096),
        (4096, 4096),
    ] {
        let mut config = Config::default();
        (config.train.ranks, config.train.virtual_shards) = (ranks, shards);
        config.validate().unwrap();
    }
}

#[test]
fn numbers_set_in_code_are_checked_too() {
    let message = broken(|c| c.optimizer.lr = f32::NAN);
    assert!(message.contains("`optimizer.lr` is given nan"), "{message}");
    let message = broken(|c| c.train.seed = u64::MAX);
    assert!(
        message.contains("`train.seed`") && message.contains("2^63 - 1"),
        "{message}"
    );
    let message = broken(|c| c.train.images_per_step = 0);
    assert!(message.contains("`train.images_per_step`"), "{message}");
    // Every real number of the table refuses what is not finite.
    for key in KEYS
        .iter()
        .filter(|key| matches!(key.range, ValueRange::Real(..)))
    {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            assert!(!key.range.contains(&Leaf::Real(bad)), "{}", key.path());
            assert!(
                !key.range.contains(&Leaf::Weights(vec![1.0, 1.0, 1.0, bad])),
                "{}",
                key.path()
            );
        }
    }
}

#[test]
fn keys_that_do_not_fit_each_other() {
    let message = broken(|c| c.schedule.min_lr = 1e-3);
    assert!(
        message.contains("schedule.min_lr = 0.001 is above optimizer.lr = 0.0001"),
        "{message}"
    );
    let message = broken(|c| {
        c.loss.balance = true;
        (c.loss.positive_weight, c.loss.negative_weight) = (0.0, 0.0);
    });
    assert!(message.contains("loss.positive_weight"), "{message}");
    let message = broken(|c| c.loss.alpha = Alpha::Weights(vec![0.0; 4]));
    assert!(message.contains("loss.alpha"), "{message}");
    let message = broken(|c| c.loss.patch_weight = 0.0);
    assert!(
        message.contains("early_stopping.level = \"image\""),
        "{message}"
    );
    let message = broken(|c| c.model.init_blake3 = "0".repeat(64));
    assert!(message.contains("model.init names none"), "{message}");
    let message = broken(|c| {
        c.model.init = "w.safetensors".into();
        c.model.init_blake3 = "0".repeat(63);
    });
    assert!(message.contains("no blake3 hash"), "{message}");
    for set in [
        |c: &mut Config| c.data.healthy_ratio = 2.0,
        |c: &mut Config| c.data.class_cap = 5,
    ] {
        let message = broken(set);
        assert!(
            message.contains("data.sampler = \"all\" does not read it"),
            "{message}"
        );
        let mut balanced = Config::default();
        balanced.set("data.sampler=balanced").unwrap();
        set(&mut balanced);
        balanced.validate().unwrap();
    }
    let message = Config::default()
        .set("data.sampler=balance")
        .unwrap_err()
        .to_string();
    assert!(message.contains("balanced"), "{message}");
    let mut image_level = Config::default();
    image_level.loss.patch_weight = 0.0;
    image_level.early_stopping.level = Level::Image;
    image_level.validate().unwrap();
}

#[test]
fn the_hash_is_of_what_changes_the_result() {
    let base = Config::default();
    for assignment in [
        "data.path=/elsewhere",
        "run.out=runs/7",
        "train.ranks=2",
        "train.threads_per_rank=1",
        "train.backend=local",
        "train.step_timeout_s=9",
        "checkpoint.every_steps=10",
        "checkpoint.keep_best=false",
        "model.init=/elsewhere/w.safetensors",
        "eval.train_metrics=true",
    ] {
        let mut other = base.clone();
        other.set(assignment).unwrap();
        assert_ne!(other, base);
        assert_eq!(other.blake3(), base.blake3(), "{assignment}");
        assert!(other.differences(&base).is_empty());
    }
    for assignment in [
        "train.seed=1",
        "train.virtual_shards=8",
        "train.precision=f32",
        "train.reduce_dtype=bf16",
        "optimizer.lr=2e-4",
        "data.patches_per_image=8",
        "eval.every_epochs=2",
        "augment.enabled=false",
        "data.sampler=balanced",
        "data.healthy_ratio=2",
        "data.class_cap=9",
        "data.cells=centred",
        "data.window_labels=true",
        "augment.rotation=10",
        "augment.scale=0.1",
        "augment.erasing=0.5",
        "model.init_blake3=00",
        "loss.pos_weight=balanced",
        "loss.pos_weight=[2, 1, 1, 1]",
        "loss.beta=0.99",
        "loss.label_smoothing=0.1",
    ] {
        let mut other = base.clone();
        other.set(assignment).unwrap();
        assert_ne!(other.blake3(), base.blake3(), "{assignment}");
        assert_eq!(other.differences(&base).len(), 1);
    }
    let mut other = base.clone();
    other.set("optimizer.lr=2e-4").unwrap();
    assert_eq!(
        other.differences(&base),
        [Difference {
            key: "optimizer.lr".into(),
            ours: "0.0002".into(),
            theirs: "0.0001".into()
        }]
    );
}

/// The hash is stored in checkpoints: it may change only when the keys do. If a key was added or a
/// default moved on purpose, put the new values here.
#[test]
fn the_hash_is_stable() {
    assert_eq!(
        Config::default().blake3(),
        "89862afd02fe4ce2b2c662c2890cf30d5fbec9dfd34911e7820c4c0d2ac638be"
    );
    assert_eq!(
        Config::preset("demo").unwrap().blake3(),
        "91b447f3615d71c9ae18ab7b6ebe2a98c5aab31aa6630651030e83f1e5d673be"
    );
}

#[test]
fn threads_share_the_cores() {
    let mut train = TrainConfig {
        ranks: 2,
        ..TrainConfig::default()
    };
    assert_eq!([1, 2, 3, 8].map(|cores| train.threads(cores)), [1, 1, 1, 4]);
    train.threads_per_rank = 3;
    assert_eq!(train.threads(2), 3);
}

#[test]
fn every_preset_says_what_it_is_for() {
    let presets = presets();
    assert_eq!(presets.len(), PRESETS.len());
    for preset in presets {
        assert!(preset.about.ends_with('.'), "{preset:?}");
        assert!(!preset.published.is_empty(), "{preset:?}");
    }
}
