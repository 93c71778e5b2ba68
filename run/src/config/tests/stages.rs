//! Stages: written, set, hashed, and the learning rates that follow from them.

use proptest::prelude::*;

use super::super::{Config, PlateauState, ScheduleKind};

const TWO: &str = "
[optimizer]
lr = 3e-4

[[stages]]
epochs = 5
train = \"head\"
kind = \"cosine\"
t_max = 10

[[stages]]
epochs = 20
lr = 1e-5
groups = { \"attn1\" = 1e-4, \"attn\" = 2e-4 }
kind = \"cosine\"
t_max = 15
";

fn two() -> Config {
    let config = Config::from_toml_str(TWO, "two.toml").unwrap();
    config.validate().unwrap();
    config
}

#[test]
fn a_list_of_stages_is_a_plan() {
    let config = two();
    assert_eq!(config.train.epochs, 25, "follows from the stages");
    let plan = config.plan();
    assert_eq!(plan.len(), 2);
    assert_eq!((plan[0].first_epoch, plan[1].first_epoch), (0, 5));
    assert_eq!((plan[0].lr, plan[1].lr), (3e-4, 1e-5));
    assert_eq!(plan[0].train, ["head"]);
    assert_eq!(plan[1].train, ["all"]);
    assert!(!plan[0].is_last() && plan[1].is_last());
    let numbers = [0, 4, 5, 24, 25, 99].map(|epoch| config.stage_of(epoch).number);
    assert_eq!(numbers, [1, 1, 2, 2, 2, 2]);
}

#[test]
fn stages_survive_being_printed_and_serialised() {
    let config = two();
    let text = config.to_toml_documented();
    assert_eq!(Config::from_toml_str(&text, "printed").unwrap(), config);
    assert_eq!(toml::from_str::<Config>(&text).unwrap(), config);
    let json = serde_json::to_string(&config).unwrap();
    assert_eq!(serde_json::from_str::<Config>(&json).unwrap(), config);
}

/// Every field of a stage is in the table of its keys.
#[test]
fn the_table_of_a_stages_keys_is_complete() {
    let config = two();
    let filled = config.stages[1].filled(&config);
    let fields = toml::Table::try_from(filled).unwrap();
    let fields: std::collections::BTreeSet<&str> = fields.keys().map(String::as_str).collect();
    let keys = super::super::stage_keys::STAGE_KEYS.iter();
    assert_eq!(fields, keys.map(|key| key.name).collect());
}

#[test]
fn stages_are_set_from_the_command_line() {
    let mut config = Config::default();
    config
        .set("stages=[{epochs=5, train=\"head\", lr=3e-4}, {epochs=20}]")
        .unwrap();
    assert_eq!(config.train.epochs, 25);
    config.set("stages.2.lr=1e-5").unwrap();
    config.set("stages.1.kind=cosine").unwrap();
    config.set("stages.1.train=[\"layer4\", \"fc\"]").unwrap();
    config.set("stages.1.epochs=2").unwrap();
    config.set("train.epochs=22").unwrap();
    let plan = config.plan();
    assert_eq!(
        (plan[1].lr, plan[0].schedule.kind),
        (1e-5, ScheduleKind::Cosine)
    );
    assert_eq!(plan[0].train, ["layer4", "fc"]);
    let before = config.clone();
    for (wrong, words) in [
        ("train.epochs=9", "the stages have 22 epochs together"),
        ("stages.3.lr=1", "there is no stage \"3\""),
        ("stages.1.lr=-1", "out of range"),
        ("stages.1.lr=fast", "stages.1.lr"),
        ("stages.1.rate=1", "unknown key `stages.1.rate`"),
        ("stages.1.kind=cosin", "did you mean `cosine`?"),
        ("stages.1.epochs=0", "out of range"),
        ("stages=[{train=\"head\"}]", "has no epochs"),
        ("stages=5", "must be a list of tables"),
        ("stages.=5", "there is no stage"),
    ] {
        let text = config.set(wrong).unwrap_err().to_string();
        assert!(
            text.contains(words) && text.contains("  help: "),
            "{wrong}: {text}"
        );
        assert_eq!(config, before, "{wrong}");
    }
}

#[test]
fn stages_that_contradict_themselves_are_refused() {
    for (more, words) in [
        (
            "[train]\nepochs = 7\n",
            "t.toml:2: train.epochs = 7, but the stages have 3 epochs",
        ),
        (
            "[[stages]]\nepochs = 1\ntrain = [\"all\", \"fc\"]\n",
            "parts besides \"all\"",
        ),
        ("[[stages]]\nepochs = 1\ntrain = []\n", "empty prefix"),
        (
            "[[stages]]\nepochs = 1\nmin_lr = 1.0\n",
            "min_lr = 1.0 is above the rate",
        ),
        (
            "[[stages]]\nepochs = 1\nt_max = 3\n",
            "t_max belongs to kind",
        ),
        ("[stages]\nepochs = 1\n", "double brackets"),
        ("[[stages]]\nepoch = 1\n", "did you mean `epochs`?"),
    ] {
        let text = match more.starts_with("[stages]") {
            true => more.to_owned(),
            false => format!("{more}[[stages]]\nepochs = 3\n"),
        };
        let read = Config::from_toml_str(&text, "t.toml");
        let error = read.and_then(|config| config.validate()).unwrap_err();
        let text = error.to_string();
        assert!(
            text.contains(words) && text.contains("  help: "),
            "{more}: {text}"
        );
    }
}

/// A run without stages has the hash that it had before there were stages; with them, every key counts, and it does not
/// matter whether a value is left out or written down.
#[test]
fn the_hash_knows_what_a_stage_does() {
    assert!(Config::default().stages.is_empty());
    let config = two();
    let mut written = config.clone();
    written.set("stages.1.lr=3e-4").unwrap();
    assert_eq!(written.blake3(), config.blake3());
    assert!(written.differences(&config).is_empty());
    written.set("stages.1.lr=2e-4").unwrap();
    assert_ne!(written.blake3(), config.blake3());
    let differences = written.differences(&config);
    assert_eq!(differences.len(), 1);
    assert_eq!(differences[0].key, "stages.1.lr");
    let plain = Config {
        stages: Vec::new(),
        ..config.clone()
    };
    assert!(plain.differences(&config).len() > 10);
    assert_ne!(plain.blake3(), config.blake3());
}

/// PyTorch 2.11: `CosineAnnealingLR(optimizer, T_max=15, eta_min=0)` at the starts of epochs 0, 5, 15 and 19.
#[test]
fn the_rate_of_a_stage_is_pytorchs() {
    let config = two();
    let stage = config.stage_of(5);
    let rates = |epoch: u64| stage.rates(epoch * 7, 7, &PlateauState::default());
    for (epoch, want) in [(0, 1e-5), (5, 7.5e-6), (15, 0.0), (19, 1.654_346_968e-6)] {
        let got = rates(epoch);
        assert_eq!(got.len(), 3);
        assert!((f64::from(got[0]) - want).abs() < 1e-11, "{epoch}: {got:?}");
        // Groups in byte order: "attn", then "attn1".
        assert!((got[1] - 20.0 * got[0]).abs() < 1e-9, "{epoch}: {got:?}");
        assert!((got[2] - 10.0 * got[0]).abs() < 1e-9, "{epoch}: {got:?}");
    }
}

proptest! {
    /// The single stage of a configuration without stages has the rates that such a run always had.
    #[test]
    fn one_stage_is_a_run_without_stages(step in 0u64..400, per_epoch in 1u64..20, epochs in 1u32..20,
                                         warmup in 0u32..30, kind in 0usize..3, reductions in 0u32..4) {
        let mut config = Config::default();
        config.train.epochs = epochs;
        config.schedule.warmup_steps = warmup;
        config.schedule.kind = ScheduleKind::ALL[kind];
        config.schedule.min_lr = 1e-6;
        let plateau = PlateauState { waited: 0, reductions };
        let total = per_epoch * u64::from(epochs);
        let want = super::super::learning_rate(&config.schedule, config.optimizer.lr, step, total, &plateau);
        let got = config.stage_of(0).rates(step, per_epoch, &plateau);
        prop_assert_eq!(got.iter().map(|x| x.to_bits()).collect::<Vec<_>>(), vec![want.to_bits()]);
    }

    /// Every epoch belongs to one stage, stages follow each other, and rates stay between the floor and the base rate.
    #[test]
    fn a_plan_has_no_gap(epochs in proptest::collection::vec(1u32..9, 1..6), t_max in 0u32..12, warmup in 0u32..9,
                         step in 0u64..200) {
        let stages: Vec<String> = epochs.iter()
            .map(|n| format!("{{epochs={n}, kind=\"cosine\", t_max={t_max}, warmup_steps={warmup}, min_lr=1e-6}}"))
            .collect();
        let mut config = Config::default();
        config.set(&format!("stages=[{}]", stages.join(", "))).unwrap();
        config.validate().unwrap();
        let total: u32 = epochs.iter().sum();
        prop_assert_eq!(config.train.epochs, total);
        let mut numbers = Vec::new();
        for (index, n) in epochs.iter().enumerate() {
            numbers.extend(vec![index + 1; *n as usize]);
        }
        let got: Vec<usize> = (0..total).map(|epoch| config.stage_of(epoch).number).collect();
        prop_assert_eq!(got, numbers);
        let rate = config.stage_of(0).rates(step, 5, &PlateauState::default())[0];
        prop_assert!(rate > 0.0 && rate <= config.optimizer.lr, "{}", rate);
    }

    #[test]
    fn arbitrary_stages_never_panic(text in "[a-z_.=\\[\\]{}\"'0-9e,# \n-]{0,80}") {
        let _ = Config::from_toml_str(&format!("[[stages]]\n{text}"), "random");
        let _ = Config::from_toml_str(&format!("stages = {text}"), "random");
        let _ = Config::default().set(&format!("stages={text}"));
        let mut config = two();
        let _ = config.set(&format!("stages.1.{text}"));
        let _ = config.validate();
    }
}
