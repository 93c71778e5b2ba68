//! `--set section.key=value`.

use super::super::{Alpha, Config, ScheduleKind};
use super::messages::{checked, says};

fn refused_set(assignment: &str) -> String {
    let mut config = Config::default();
    match config.set(assignment) {
        Ok(()) => panic!("accepted: {assignment}"),
        Err(error) => {
            assert_eq!(
                config,
                Config::default(),
                "a refused --set changed something"
            );
            checked(&error)
        }
    }
}

#[test]
fn set_changes_one_key() {
    let mut config = Config::default();
    for assignment in [
        "optimizer.lr=3e-4",
        " train.epochs = 3 ",
        "schedule.kind=cosine",
        "loss.alpha=[1, 2, 3, 4.5]",
        "data.path=/data/with = sign/x y",
        "run.out=\"quoted\"",
        "augment.flip=false",
        "train.seed=0xff",
        "optimizer.weight_decay=0",
        "eval.threshold=4e-1",
    ] {
        config.set(assignment).unwrap();
    }
    let mut expected = Config::default();
    expected.optimizer.lr = 3e-4;
    expected.train.epochs = 3;
    expected.schedule.kind = ScheduleKind::Cosine;
    expected.loss.alpha = Alpha::Weights(vec![1.0, 2.0, 3.0, 4.5]);
    expected.data.path = "/data/with = sign/x y".into();
    expected.run.out = "quoted".into();
    expected.augment.flip = false;
    expected.train.seed = 255;
    expected.optimizer.weight_decay = 0.0;
    expected.eval.threshold = 0.4;
    assert_eq!(config, expected);
    // Text stays text, whatever it looks like.
    for path in ["2024", "true", "1e3", "2020-01-01", "it's", "[x", ""] {
        config.set(&format!("data.path={path}")).unwrap();
        assert_eq!(config.data.path, path);
    }
    config.set("loss.alpha='none'").unwrap();
    assert_eq!(config.loss.alpha, Alpha::None);
}

#[test]
fn set_refuses_with_reasons() {
    says(
        &refused_set("optimizer.lr"),
        &["has no `=`", "--set optimizer.lr=3e-4"],
    );
    says(&refused_set("lr=3e-4"), &["--set lr=3e-4", "[optimizer]"]);
    says(&refused_set("train=3"), &["section.key"]);
    says(&refused_set("=3"), &["section.key"]);
    says(
        &refused_set("optimiser.lr=3"),
        &["--set optimiser.lr=3", "did you mean `[optimizer]`"],
    );
    says(
        &refused_set("train.rank=2"),
        &["did you mean `train.ranks`"],
    );
    says(
        &refused_set("train.epochs=many"),
        &["--set train.epochs=many", "a whole number", "1 to 1000000"],
    );
    says(
        &refused_set("train.epochs="),
        &["`train.epochs`", "a whole number"],
    );
    says(
        &refused_set("train.epochs=0"),
        &["out of range", "1 to 1000000"],
    );
    says(
        &refused_set("train.epochs=3\n[data]\npath='x'"),
        &["`train.epochs`"],
    );
    says(
        &refused_set("schedule.kind=cosin"),
        &["did you mean `cosine`"],
    );
    says(&refused_set("optimizer.lr=nan"), &["out of range"]);
    says(&refused_set("loss.alpha=[]"), &["four numbers"]);
    says(
        &refused_set("augment.flip=yes"),
        &["is given \"yes\", but must be true or false"],
    );
    says(
        &refused_set("eval.threshold=.4"),
        &[
            "is given \".4\", but must be a number",
            "above 0 to below 1",
        ],
    );
    says(
        &refused_set("train.epochs='3'"),
        &[
            "'3' (a string), but must be a whole number",
            "without quotes",
        ],
    );
}
