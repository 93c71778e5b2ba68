//! Whole scripts against files, in `slurm/tests/scripts`; `tests/body` tests what they do.
//! `FOVEA_UPDATE_SNAPSHOTS=1 cargo test -p fovea-slurm` rewrites the files.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::*;

fn job() -> Job {
    Job {
        name: "fovea-first".to_owned(),
        run: "/home/user/runs/first".to_owned(),
        data: "/data/fgadr".to_owned(),
        program: "/home/user/bin/fovea".to_owned(),
        nodes: 2,
        ranks_per_node: 2,
        gpus_per_node: 0,
        cpus_per_rank: Some(4),
        time: Duration::from_secs(4 * 3600),
        lead: Duration::from_secs(120),
        array: None,
        set: Vec::new(),
        container: None,
        scratch: Vec::new(),
        site: Site::default(),
    }
}

fn variants() -> Vec<(&'static str, Job)> {
    let some = |text: &str| Some(text.to_owned());
    let gpus = Job {
        gpus_per_node: 2,
        cpus_per_rank: Some(8),
        ..job()
    };
    let typed = Site {
        gpu: GpuLine::Gres,
        gpu_type: some("a100"),
        ..Site::default()
    };
    let named = Site {
        partition: some("gpu"),
        account: some("lab"),
        qos: some("long"),
        constraint: some("a100&ib"),
        modules: vec!["gcc/13".to_owned(), "openmpi/5.0".to_owned()],
        sbatch: vec!["--mem=0".to_owned(), "--comment=\"two words\"".to_owned()],
        mpi: some("pmix_v4"),
        interface: some("ib0"),
        ..Site::default()
    };
    let array = Job {
        array: some("0-9%2"),
        set: vec!["train.seed=%a".to_owned(), "run.note='seed %a'".to_owned()],
        ..job()
    };
    let scratch = vec!["$SLURM_TMPDIR".to_owned(), "/scratch/local".to_owned()];
    let names = Job {
        run: "/home/o'neil/100% \"mine\"/$HOME #1".to_owned(),
        data: "/data/two words".to_owned(),
        ..job()
    };
    vec![
        ("cpu", job()),
        ("gpu", gpus.clone()),
        (
            "gpu-gres-type",
            Job {
                site: typed,
                ..gpus.clone()
            },
        ),
        (
            "account",
            Job {
                site: named,
                ..job()
            },
        ),
        ("array", array.clone()),
        (
            "array-named",
            Job {
                run: "/home/user/runs/lr-%a".to_owned(),
                ..array
            },
        ),
        (
            "container",
            Job {
                container: some("/images/fovea.sif"),
                program: "fovea".to_owned(),
                ..gpus
            },
        ),
        ("stage", Job { scratch, ..job() }),
        (
            "chain",
            Job {
                site: Site {
                    requeue: Requeue::Chain,
                    ..Site::default()
                },
                ..job()
            },
        ),
        ("names", names),
    ]
}

fn snapshot(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/scripts")
        .join(format!("{name}.sh"))
}

#[test]
fn whole_scripts() {
    for (name, job) in variants() {
        job.check().expect(name);
        let script = render(&job);
        let path = snapshot(name);
        if std::env::var_os("FOVEA_UPDATE_SNAPSHOTS").is_some() {
            std::fs::write(&path, &script).expect("a snapshot");
        }
        let expected = std::fs::read_to_string(&path).unwrap_or_default();
        let differs = script
            .lines()
            .zip(expected.lines())
            .position(|(a, b)| a != b);
        assert!(
            script == expected,
            "{}: differs from line {}; see the module's comment",
            path.display(),
            differs.map_or(0, |at| at + 1)
        );
    }
}

#[test]
fn bash_reads_every_script() {
    for (name, job) in variants() {
        let mut bash = Command::new("bash")
            .arg("-n")
            .stdin(Stdio::piped())
            .spawn()
            .expect("bash");
        let mut stdin = bash.stdin.take().expect("stdin");
        std::io::Write::write_all(&mut stdin, render(&job).as_bytes()).expect("the script");
        drop(stdin);
        assert!(bash.wait().expect("bash").success(), "{name}");
    }
}

/// The text that bash makes of a word.
fn in_bash(word: &str, element: &str) -> String {
    let script = format!("element={element}; printf %s {word}");
    let out = Command::new("bash")
        .args(["-c", &script])
        .output()
        .expect("bash");
    String::from_utf8(out.stdout).expect("text")
}

#[test]
fn words_arrive_as_they_are() {
    for text in [
        "plain",
        "",
        "two words",
        "o'neil",
        "\"q\"",
        "$HOME `id` \\ !",
        "a;b&c|d",
        "new\nline",
        "*",
        "~",
        "é",
    ] {
        assert_eq!(in_bash(&quote(text), "7"), text);
        let with = format!("{text}%a{text}");
        assert_eq!(
            in_bash(&quote_element(&with), "7"),
            format!("{text}7{text}")
        );
    }
    assert_eq!(in_bash(&quote_element("%a"), "7"), "7");
}

#[test]
fn notice_ahead_of_the_limit() {
    let seconds = Duration::from_secs;
    let hours = |h: u64| seconds(3600 * h);
    for (save, time, lead) in [
        (None, hours(4), 120),
        (Some(Duration::ZERO), hours(4), 120),
        (Some(seconds(2)), hours(4), 60),
        (Some(Duration::from_millis(90_100)), hours(4), 301),
        (Some(seconds(3000)), hours(4), 3600),
        (Some(hours(100)), hours(1000), 65_535),
        (None, seconds(300), 75),
        (None, seconds(60), 60),
    ] {
        assert_eq!(signal_lead(save, time), seconds(lead), "{save:?} {time:?}");
    }
}

#[test]
fn jobs_that_cannot_be() {
    let refused = |job: Job| job.check().expect_err("refused").to_string();
    assert!(
        refused(Job {
            run: "/a\nb".to_owned(),
            ..job()
        })
        .contains("control character")
    );
    assert!(
        refused(Job {
            run: "/a\\b".to_owned(),
            ..job()
        })
        .contains("backslash")
    );
    assert!(refused(Job { nodes: 0, ..job() }).contains("0 nodes"));
    let array = |text: &str| Job {
        array: Some(text.to_owned()),
        ..job()
    };
    assert!(refused(array("a")).contains("no list of numbers"));
    assert!(refused(array("")).contains("no list of numbers"));
    let chain = Site {
        requeue: Requeue::Chain,
        ..Site::default()
    };
    assert!(
        refused(Job {
            site: chain,
            ..array("1-2")
        })
        .contains("chain")
    );
    assert_eq!(elements("7,9"), Ok(vec![7, 9]));
    assert_eq!(elements("10-20:5%2"), Ok(vec![10, 15, 20]));
    assert_eq!(elements("3,0-4:2,3"), Ok(vec![3, 0, 2, 4]));
    for wrong in ["", "1-", "5-3", "1-9:0", "0-4294967295", "1%", "1;2"] {
        assert!(elements(wrong).is_err(), "{wrong:?}");
    }
    assert_eq!(run_of_element("/runs/lr-%a", 3), "/runs/lr-3");
    assert_eq!(run_of_element("/runs/sweep", 3), "/runs/sweep/3");
}

#[test]
fn an_array_has_one_directory_for_all() {
    assert_eq!(base("/runs/first", true), "/runs/first");
    assert_eq!(base("/runs/lr-%a", true), "/runs/lr-array");
    assert_eq!(base("/runs/lr-%a", false), "/runs/lr-%a");
}
