//! Every way a configuration can be wrong, and the user's message.

use fovea_task::Task;

use super::super::{Config, Error};

/// The message for a file `t.toml` with this text.
fn refused(text: &str) -> String {
    match Config::from_toml_str(text, "t.toml") {
        Ok(_) => panic!("accepted: {text}"),
        Err(error) => checked(&error),
    }
}

/// Every message ends with what to do.
pub(super) fn checked(error: &Error) -> String {
    let text = error.to_string();
    assert!(text.contains("\n  help: "), "no help line in: {text}");
    text
}

#[track_caller]
pub(super) fn says(message: &str, parts: &[&str]) {
    for part in parts {
        assert!(message.contains(part), "{part:?} is not in:\n{message}");
    }
}

#[test]
fn a_missing_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("nowhere.toml");
    let message = checked(&Config::load(&path).unwrap_err());
    says(
        &message,
        &["nowhere.toml", "No such file", "--preset hybrid"],
    );
}

#[test]
fn a_directory_instead_of_a_file() {
    let dir = tempfile::tempdir().unwrap();
    let message = checked(&Config::load(dir.path()).unwrap_err());
    says(
        &message,
        &["is a directory", &dir.path().display().to_string()],
    );
    std::fs::write(dir.path().join("mine.toml"), "").unwrap();
    let message = checked(&Config::load(dir.path()).unwrap_err());
    says(&message, &["for example", "mine.toml"]);
    std::fs::write(dir.path().join("config.toml"), "").unwrap();
    let message = checked(&Config::load(dir.path()).unwrap_err());
    says(&message, &["for example", "config.toml"]);
}

#[test]
fn bytes_that_are_not_text() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("latin1.toml");
    std::fs::write(&path, b"[data]\n# caf\xe9\npath = \"x\"\n").unwrap();
    let message = checked(&Config::load(&path).unwrap_err());
    says(&message, &["latin1.toml:2", "invalid UTF-8", "byte 12"]);
}

#[test]
fn a_file_far_too_large() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("shard.bin");
    let file = std::fs::File::create(&path).unwrap();
    file.set_len(1 << 40).unwrap();
    let message = checked(&Config::load(&path).unwrap_err());
    says(&message, &["shard.bin", "1048576 bytes"]);
}

#[test]
fn a_file_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("c.toml");
    std::fs::write(&path, "[optimizer]\r\nlr = 3e-4\r\n").unwrap();
    assert_eq!(Config::load(&path).unwrap().optimizer.lr, 3e-4);
    std::fs::write(&path, "").unwrap();
    assert_eq!(Config::load(&path).unwrap(), Config::default());
    std::fs::write(&path, "\u{feff}[train]\nepochs = 3\n").unwrap();
    assert_eq!(Config::load(&path).unwrap().train.epochs, 3);
}

#[test]
fn text_that_is_not_toml() {
    let message = refused("[schedule]\nkind = cosine\n");
    says(&message, &["t.toml:2", "kind = cosine", "double quotes"]);
    let message = refused("[train]\nepochs\n");
    says(&message, &["t.toml:2", "not TOML", "key = value"]);
    let message = refused("[train\nepochs = 1\n");
    says(&message, &["t.toml:1", "not TOML"]);
    let message = refused("[train]\nepochs = \n");
    says(&message, &["t.toml:2", "not TOML"]);
    let message = refused("[data]\npath = \"C:\\data\"\n");
    says(&message, &["t.toml:2", "not TOML", "single quotes"]);
}

#[test]
fn a_key_given_twice() {
    let message =
        refused("[train]\nepochs = 1\n\n[optimizer]\nlr = 1e-3\nkind = \"adam\"\nlr = 1e-4\n");
    says(
        &message,
        &["t.toml:7", "`optimizer.lr` is given twice", "line 5"],
    );
    let message = refused("[train]\nepochs = 1\n[data]\n[train]\nranks = 2\n");
    says(
        &message,
        &["t.toml:4", "`[train]` is given twice", "line 1"],
    );
    // The same key name in two sections is two keys.
    Config::from_toml_str(
        "[model]\n[loss]\nkind = \"focal\"\n[optimizer]\nkind = \"adamw\"\n",
        "t",
    )
    .unwrap();
}

#[test]
fn an_unknown_section() {
    let message = refused("[optimiser]\nlr = 1e-3\n");
    says(
        &message,
        &[
            "t.toml:1",
            "unknown section `[optimiser]`",
            "did you mean `[optimizer]`?",
            "early_stopping",
        ],
    );
    let message = refused("\n[zzz]\n");
    says(
        &message,
        &["t.toml:2", "`[zzz]`", "sections are: data, model"],
    );
    assert!(!message.contains("did you mean"), "{message}");
    // A key above all sections.
    let message = refused("lr = 1e-3\n");
    says(&message, &["t.toml:1", "`lr`", "below `[optimizer]`"]);
}

#[test]
fn an_unknown_key() {
    let message = refused("[optimizer]\nlearning_rate = 1e-3\n");
    says(
        &message,
        &[
            "t.toml:2",
            "unknown key `optimizer.learning_rate`",
            "[optimizer] has: kind, lr",
        ],
    );
    let message = refused("[train]\n\nepoch = 3\n");
    says(
        &message,
        &["t.toml:3", "`train.epoch`", "did you mean `train.epochs`?"],
    );
    // Right name, wrong section.
    let message = refused("[train]\nweight_decay = 0.1\n");
    says(&message, &["did you mean `optimizer.weight_decay`?"]);
    let message = refused("[train]\nkind = \"adam\"\n");
    says(
        &message,
        &["did you mean `loss.kind` or `optimizer.kind` or `schedule.kind`?"],
    );
    // Spelled with hyphens.
    let message = refused("[train]\nimages-per-step = 3\n");
    says(&message, &["did you mean `train.images_per_step`?"]);
    // A table below a section is no known key either.
    let message = refused("[train.extra]\nx = 1\n");
    says(&message, &["t.toml:1", "`train.extra`"]);
}

#[test]
fn an_unknown_word() {
    let message = refused("[schedule]\nkind = \"cosin\"\n");
    says(
        &message,
        &[
            "t.toml:2",
            "`schedule.kind`",
            "\"cosin\"",
            "did you mean `cosine`?",
            "constant, cosine, plateau",
        ],
    );
    let message = refused("[loss]\nalpha = \"inverse_frequency\"\n");
    says(
        &message,
        &["did you mean `inverse-frequency`?", "list of four numbers"],
    );
    let message = refused("[train]\nbackend = \"gloo\"\n");
    says(&message, &["`train.backend`", "auto, local, mpi, nccl"]);
}

#[test]
fn a_section_that_is_something_else() {
    let message = refused("train = 3\n");
    says(
        &message,
        &[
            "t.toml:1",
            "`train` is a section",
            "3 (a whole number)",
            "epochs",
        ],
    );
    let message = refused("[[train]]\nepochs = 3\n");
    says(&message, &["`train` is a section", "single brackets"]);
}

#[test]
fn a_value_of_another_type() {
    for (text, key, given, must, help) in [
        (
            "[train]\nepochs = \"8\"",
            "train.epochs",
            "\"8\" (a string)",
            "a whole number",
            "epochs = without quotes",
        ),
        (
            "[train]\nepochs = 8.0",
            "train.epochs",
            "8.0 (a number with a fraction)",
            "a whole number",
            "1 to 1000000",
        ),
        (
            "[augment]\nflip = 1",
            "augment.flip",
            "1 (a whole number)",
            "true or false",
            "flip = true or false",
        ),
        (
            "[augment]\nflip = \"true\"",
            "augment.flip",
            "\"true\" (a string)",
            "true or false",
            "without quotes",
        ),
        (
            "[optimizer]\nlr = \"1e-3\"",
            "optimizer.lr",
            "(a string)",
            "a number",
            "lr = without quotes",
        ),
        (
            "[optimizer]\nlr = true",
            "optimizer.lr",
            "true (true or false)",
            "a number",
            "above 0 to 10",
        ),
        (
            "[data]\npath = 3",
            "data.path",
            "3 (a whole number)",
            "a string",
            "double quotes",
        ),
        (
            "[schedule]\nkind = 2020-01-01",
            "schedule.kind",
            "(a date)",
            "one of a few words",
            "\"cosine\"",
        ),
        (
            "[loss]\nalpha = [1, 2, 3, \"4\"]",
            "loss.alpha",
            "(a list)",
            "four numbers",
            "\"none\"",
        ),
        (
            "[loss]\nalpha = 1.0",
            "loss.alpha",
            "1.0",
            "four numbers",
            "\"none\"",
        ),
        (
            "[loss]\ngamma = {a = 1}",
            "loss.gamma",
            "(a table)",
            "a number",
            "0 to 10",
        ),
    ] {
        says(&refused(text), &["t.toml:2", key, given, must, help]);
    }
}

#[test]
fn as_many_class_weights_as_classes() {
    let mut config = Config::default();
    let lesions = Task::lesions();
    config.fits(&lesions).unwrap();
    config.set("loss.alpha=[1, 2, 3, 4]").unwrap();
    config.fits(&lesions).unwrap();
    for (weights, given) in [
        ("[1,2]", "[1.0, 2.0] (a list)"),
        ("[1,2,3,4,5]", "5.0] (a list)"),
    ] {
        config.set(&format!("loss.alpha={weights}")).unwrap();
        let message = checked(&config.fits(&lesions).unwrap_err());
        says(
            &message,
            &[
                "`loss.alpha`",
                given,
                "four numbers",
                "[1.0, 1.0, 1.0, 1.0]",
            ],
        );
    }
    let mut image = lesions.targets()[0].clone();
    image.union_of_cells = false;
    image.classes.pop();
    let three = Task::new(vec![image]).unwrap();
    let message = checked(&config.fits(&three).unwrap_err());
    says(&message, &["list of 3 numbers", "or [1.0, 1.0, 1.0]"]);
}

#[test]
fn a_number_out_of_range() {
    for (text, key, allowed) in [
        (
            "[train]\nepochs = 0",
            "train.epochs",
            "1 to 1000000; the default is 20",
        ),
        ("[train]\nepochs = -3", "train.epochs", "1 to 1000000"),
        (
            "[train]\nepochs = 4294967296",
            "train.epochs",
            "1 to 1000000",
        ),
        (
            "[train]\nimages_per_step = 0",
            "train.images_per_step",
            "1 to 65536",
        ),
        (
            "[train]\nseed = 9223372036854775808",
            "train.seed",
            "0 to 2^63 - 1",
        ),
        (
            "[train]\nseed = 99999999999999999999999",
            "train.seed",
            "0 to 2^63 - 1",
        ),
        (
            "[checkpoint]\nevery_steps = 4294967296",
            "checkpoint.every_steps",
            "0 to 2^32 - 1",
        ),
        (
            "[optimizer]\nlr = nan",
            "optimizer.lr",
            "above 0 to 10; the default is 0.0001",
        ),
        ("[optimizer]\nlr = inf", "optimizer.lr", "above 0 to 10"),
        ("[optimizer]\nlr = -inf", "optimizer.lr", "above 0 to 10"),
        ("[optimizer]\nlr = 0", "optimizer.lr", "above 0 to 10"),
        // Not zero as written, but zero in f32; and finite as written, but not in f32.
        ("[optimizer]\nlr = 1e-60", "optimizer.lr", "above 0 to 10"),
        (
            "[optimizer]\nclip_norm = 1e60",
            "optimizer.clip_norm",
            "0 to 1000000",
        ),
        (
            "[optimizer]\nbeta2 = 1.0",
            "optimizer.beta2",
            "0 to below 1",
        ),
        (
            "[schedule]\nplateau_factor = 1",
            "schedule.plateau_factor",
            "above 0 to below 1",
        ),
        ("[loss]\nalpha = [1, 1, nan, 1]", "loss.alpha", "0 to 1000"),
        ("[loss]\nalpha = [1, 1, -1, 1]", "loss.alpha", "0 to 1000"),
        (
            "[eval]\nthreshold = 1.5",
            "eval.threshold",
            "above 0 to below 1; the default is 0.5",
        ),
    ] {
        let given = text.split("= ").nth(1).unwrap();
        says(
            &refused(text),
            &["t.toml:2", key, given, "out of range", allowed],
        );
    }
}

#[test]
fn the_first_problem_of_the_file_is_shown() {
    // In alphabetical order `augment` comes first; in the file it does not.
    let message = refused("[train]\nranks = 0\nepochs = 0\n[augment]\nflip = 1\n");
    says(&message, &["t.toml:2", "train.ranks"]);
}

#[test]
fn long_values_are_cut_in_messages() {
    let message = refused(&format!("[schedule]\nkind = \"{}\"\n", "x".repeat(10_000)));
    assert!(message.len() < 400, "{message}");
}

#[test]
fn an_unknown_preset() {
    let message = checked(&Config::preset("hybird").unwrap_err());
    says(
        &message,
        &["\"hybird\"", "did you mean `hybrid`?", "demo, hybrid"],
    );
}
