//! `fovea submit` with stand-ins for Slurm's commands: what it refuses, writes and asks them. `slurm/tests/body` tests
//! what the script does; `tests/slurm` tests everything with a real Slurm.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod common;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use common::{Done, FAILED, FINISHED, Process, USAGE, data, scratch};
use tempfile::TempDir;

/// A login node: a directory with stand-ins for `sbatch`, `squeue` and `scontrol`, which record how they were called.
struct Login {
    dir: TempDir,
}

const SBATCH: &str = r#"#!/bin/sh
echo "sbatch $*" >> "$LOGIN/asked"
[ ! -e "$LOGIN/refuse" ] || { echo "sbatch: error: invalid partition specified: gpu" >&2; exit 1; }
case "$*" in
    *--test-only*) echo "sbatch: Job 16 to start at now" >&2; exit ;;
esac
next=$(cat "$LOGIN/next")
echo $((next + 1)) > "$LOGIN/next"
echo "$next"
"#;
const SQUEUE: &str = "#!/bin/sh\ncat \"$LOGIN/queue\"\n";
const SCONTROL: &str =
    "#!/bin/sh\necho 'slurm_load_jobs error: Invalid job id specified' >&2\nexit 1\n";

impl Login {
    fn new() -> Self {
        let dir = scratch();
        let at = |name: &str| dir.path().join(name);
        fs::create_dir(at("bin")).unwrap();
        for (name, act) in [
            ("sbatch", SBATCH),
            ("squeue", SQUEUE),
            ("scontrol", SCONTROL),
        ] {
            let path = at("bin").join(name);
            fs::write(&path, act).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        }
        std::os::unix::fs::symlink("/bin/cat", at("bin").join("cat")).unwrap();
        fs::write(at("next"), "17\n").unwrap();
        fs::write(at("queue"), "").unwrap();
        fs::write(at("asked"), "").unwrap();
        fs::write(at("site.toml"), "").unwrap();
        Self { dir }
    }

    fn at(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.at(name)).unwrap()
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.at(name), text).unwrap();
    }

    /// `fovea submit --data ... --out RUN` with more words.
    fn submit(&self, more: &[&str]) -> Done {
        let (data, run) = (data().prepared.clone(), self.at("run"));
        let mut words = vec!["submit"];
        for (name, place) in [("--data", &data), ("--out", &run)] {
            if !more.contains(&name) {
                words.extend([name, place.to_str().unwrap()]);
            }
        }
        words.extend(more);
        // Only the stand-ins are on the path: this machine may have a Slurm of its own.
        let path = self.at("bin");
        let site = self.at("site.toml");
        let environment = [
            ("PATH", path.as_path()),
            ("LOGIN", self.dir.path()),
            ("FOVEA_SITE", site.as_path()),
        ];
        Process::start_with(&words, &environment, None).wait()
    }
}

#[test]
fn a_run_is_submitted_once() {
    let login = Login::new();
    let done = login.submit(&["--preset", "demo", "--nodes", "2", "--set", "train.seed=7"]);
    done.with_code(FINISHED).prints(&[
        "submitted job 17: 2 nodes with 1 rank each, 4:00:00 at a time",
        "squeue -j 17",
        "scancel --batch --signal=INT 17",
        "fovea status",
    ]);
    let script = login.at("run/slurm/job.sh").display().to_string();
    assert_eq!(
        login.read("asked"),
        format!("sbatch --test-only {script}\nsbatch --parsable {script}\n")
    );
    let config = login.read("run/slurm/config.toml");
    assert!(
        config.contains("seed = 7") && config.contains("ranks = 2"),
        "{config}"
    );
    assert!(
        config.contains("backend = \"auto\""),
        "what the backend is, the job decides: {config}"
    );
    let submitted: serde_json::Value =
        serde_json::from_str(&login.read("run/slurm/submitted.json")).unwrap();
    assert_eq!(submitted["jobs"], serde_json::json!([17]));
    assert!(submitted["command"].to_string().contains("train.seed=7"));

    // While its job exists, the run is not submitted again.
    login.write("queue", "17|RUNNING|1:00:00|n1|None\n");
    login
        .submit(&["--preset", "demo"])
        .with_code(USAGE)
        .explains(&["job already", "17 is RUNNING", "scancel 17"]);
    // Afterwards the run directory is enough: the last options apply, except for those on the command line.
    login.write("queue", "");
    login
        .submit(&["--time", "30m"])
        .with_code(FINISHED)
        .prints(&["submitted job 18: 2 nodes with 1 rank each, 0:30:00 at a time"]);
    assert!(login.read("run/slurm/config.toml").contains("seed = 7"));

    // A job that was submitted by hand counts as well, once it has started the run.
    let begun = r#"{"event":"start","unix_ms":9000000000000,"job":"42","requeues":0,"nodes":["n1"],"world":1,"backend":"local","step":0}"#;
    login.write("run/slurm/history.jsonl", &format!("{begun}\n"));
    login.write("queue", "42|RUNNING|1:00:00|n1|None\n");
    login
        .submit(&[])
        .with_code(USAGE)
        .explains(&["42 is RUNNING"]);
}

#[test]
fn what_is_wrong_is_said_on_the_login_node() {
    let login = Login::new();
    let refused = |more: &[&str], words: &[&str]| {
        login.submit(more).with_code(USAGE).explains(words);
    };
    refused(&[], &["no configuration given"]);
    refused(
        &["--preset", "demo", "--set", "optimizer.lr=-1"],
        &["optimizer.lr"],
    );
    refused(
        &[
            "--preset",
            "demo",
            "--set",
            "train.virtual_shards=4",
            "--nodes",
            "3",
        ],
        &["3 nodes with 1 rank each make 3 ranks", "1, 2, 4"],
    );
    refused(
        &[
            "--preset",
            "demo",
            "--nodes",
            "2",
            "--set",
            "train.backend=local",
        ],
        &["one machine"],
    );
    refused(&["--preset", "demo", "--data", "/nowhere"], &["/nowhere"]);
    refused(&["--preset", "demo", "--array", "x"], &["--array"]);
    refused(
        &[
            "--preset",
            "demo",
            "--array",
            "1-3",
            "--set",
            "train.seed=a%a",
        ],
        &["train.seed"],
    );
    login.write("site.toml", "\npartitoin = \"gpu\"\n");
    refused(
        &["--preset", "demo"],
        &["site.toml, line 2", "did you mean partition"],
    );
    assert_eq!(login.read("asked"), "", "Slurm was asked");
    assert!(!login.at("run").exists(), "a refusal leaves nothing");
}

#[test]
fn what_slurm_refuses_is_quoted() {
    let login = Login::new();
    login.write("refuse", "");
    login
        .submit(&["--preset", "demo"])
        .with_code(USAGE)
        .explains(&["invalid partition specified: gpu", "--partition"]);
    assert!(!login.at("run").exists(), "a refusal leaves nothing");
    fs::remove_file(login.at("bin/sbatch")).unwrap();
    login
        .submit(&["--preset", "demo"])
        .with_code(FAILED)
        .explains(&["sbatch", "login node", "--dry-run"]);
    // The failure leaves nothing that would prevent another attempt.
    login
        .submit(&["--preset", "demo", "--dry-run"])
        .with_code(FINISHED);
}

#[test]
fn a_dry_run_prints_the_script_and_writes_nothing() {
    let login = Login::new();
    login.write(
        "site.toml",
        "partition = \"gpu\"\nmodules = [\"gcc\"]\ngpu = \"gres:a100\"\ntime = 30\n",
    );
    let done = login.submit(&[
        "--preset",
        "demo",
        "--dry-run",
        "--gpus-per-node",
        "2",
        "--partition",
        "long",
        "--module",
        "mpi",
    ]);
    done.with_code(FINISHED).prints(&[
        "#!/bin/bash\n",
        "#SBATCH --partition=long\n",
        "#SBATCH --gres=gpu:a100:2\n",
        "#SBATCH --ntasks-per-node=2\n",
        "#SBATCH --time=0:30:00\n",
        "module load gcc || exit 2\nmodule load mpi || exit 2\n",
    ]);
    assert!(!login.at("run").exists());
    assert_eq!(login.read("asked"), "");
}

#[test]
fn an_array_keeps_what_differs_for_its_elements() {
    let login = Login::new();
    let out = login.at("seed-%a").display().to_string();
    login
        .submit(&[
            "--preset",
            "demo",
            "--out",
            &out,
            "--array",
            "3-5",
            "--set",
            "train.seed=%a",
        ])
        .with_code(FINISHED)
        .prints(&["submitted array 17 (3-5)", "seed-ELEMENT", "17_ELEMENT"]);
    let script = login.read("seed-array/slurm/job.sh");
    assert!(
        script.contains("--set train.seed=\"$element\"") && script.contains("#SBATCH --array=3-5"),
        "{script}"
    );
}

#[test]
fn a_chain_is_submitted_as_a_whole() {
    let login = Login::new();
    login.write("site.toml", "requeue = \"chain\"\nchain = 3\n");
    login
        .submit(&["--preset", "demo"])
        .with_code(FINISHED)
        .prints(&["job 17 and 2 that follow it"]);
    let asked = login.read("asked");
    for behind in [17, 18] {
        let option = format!("--dependency=afternotok:{behind} --kill-on-invalid-dep=yes");
        assert!(asked.contains(&option), "{asked}");
    }
    assert_eq!(login.read("run/slurm/chain"), "18\n19\n");
}
