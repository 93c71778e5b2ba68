//! A run that jobs train: `fovea submit` and `fovea status` as on a login node.

use std::ffi::OsStr;
use std::fs;
use std::path::Path;
use std::time::Duration;

use serde_json::Value;

use crate::cluster::Cluster;
use crate::common::{FINISHED, Run, once};
use crate::job::Job;
use crate::process::Process;

/// Longest time from one state of a job to the next, on a loaded machine.
pub const LIMIT: Duration = Duration::from_secs(300);
/// Settings of a run that lasts long enough for a fault to hit it.
pub const LONG: [&str; 2] = ["train.epochs=8", "checkpoint.every_steps=3"];
pub const STEPS: u64 = 56;
/// Steps between two checkpoints of such a run.
pub const EVERY: u64 = 3;
pub const FOVEA: &str = env!("CARGO_BIN_EXE_fovea");

/// The outcome of a run without a scheduler.
pub fn reference() -> String {
    once("slurm-reference", || {
        let run = Run::new(&LONG);
        run.start(2).wait().with_code(FINISHED);
        run.final_hash()
    })
}

/// A run that jobs train.
pub struct Submitted<'a> {
    pub cluster: &'a Cluster,
    pub run: Run,
    pub id: String,
}

impl<'a> Submitted<'a> {
    /// Runs `fovea submit` with these options, after those that all tests share.
    #[track_caller]
    pub fn new(cluster: &'a Cluster, settings: &[&str], options: &[&str]) -> Self {
        let run = Run::new(&[&LONG, settings].concat());
        let said = fovea(cluster, &words(&run, options), FINISHED);
        let submitted = read(&run.path.join("slurm/submitted.json"));
        let id = submitted["jobs"][0].to_string();
        assert!(said.contains(&id), "job {id} is not named\n{said}");
        Self { cluster, run, id }
    }

    /// The step that the run has reached, by its journal on disk, which the login node can read.
    pub fn step(&self) -> Option<u64> {
        status(self.cluster, &self.run.path)["step"].as_u64()
    }

    /// Waits until the run has committed a step.
    #[track_caller]
    pub fn wait_step(&self, step: u64) {
        self.cluster.wait(&format!("step {step}"), LIMIT, || {
            let job = self.cluster.job(&self.id);
            let reached = self.step().filter(|now| *now >= step);
            assert!(
                reached.is_some() || !job.is_over(),
                "job {} has ended before step {step}: {job:?}\n{}\n{}",
                self.id,
                self.log(),
                self.cluster.logs()
            );
            reached
        });
    }

    /// The output of its batch script and its ranks.
    fn log(&self) -> String {
        let mut all = String::new();
        for folder in ["slurm", "logs"] {
            let files = fs::read_dir(self.run.path.join(folder))
                .into_iter()
                .flatten();
            for file in files.flatten().map(|entry| entry.path()) {
                if file.extension().is_some_and(|e| e == "log" || e == "jsonl") {
                    let text = fs::read_to_string(&file).unwrap_or_default();
                    all += &format!("--- {}\n{text}\n", file.display());
                }
            }
        }
        all
    }

    /// Waits for the end of the job, and asserts that it succeeded with the reference weights.
    #[track_caller]
    pub fn finishes(&self) -> Job {
        let job = self.ends();
        assert_eq!(
            (&*job.state, job.exit_code),
            ("COMPLETED", 0),
            "{}\n{}",
            self.log(),
            self.cluster.logs()
        );
        assert_eq!(
            self.run.final_hash(),
            reference(),
            "{}",
            self.cluster.logs()
        );
        self.run.steps();
        job
    }

    /// Waits for the end of the job, through all its restarts; asserts that no process is left.
    #[track_caller]
    pub fn ends(&self) -> Job {
        let job = self
            .cluster
            .wait(&format!("end of job {}", self.id), LIMIT, || {
                let job = self.cluster.job(&self.id);
                self.cluster.hurry(&job);
                Some(job).filter(Job::is_over)
            });
        self.cluster.assert_nobody_left(&self.run.path);
        job
    }

    /// The processes of its trainers, on both nodes.
    pub fn trainers(&self) -> Vec<Process> {
        let mut all = self.cluster.processes_of_job(&self.id);
        all.retain(|p| p.line.starts_with(FOVEA) && p.line.contains(" trainer "));
        all
    }
}

/// The words of `fovea submit` for a run: those of `fovea train`, which has no options about nodes.
pub fn words(run: &Run, options: &[&str]) -> Vec<String> {
    let mut words = run.first(1);
    words[0] = "submit".to_owned();
    if words.iter().any(|word| word.starts_with("data.path=")) {
        let data = words.iter().position(|word| word == "--data").unwrap();
        words.drain(data..data + 2);
    }
    let ranks = words.iter().position(|word| word == "--ranks").unwrap();
    words.drain(ranks..ranks + 2);
    words.extend(options.iter().map(|&word| word.to_owned()));
    words
}

/// Runs `fovea` on the login node, with the test's own site file, and asserts the exit code. Returns both its outputs.
#[track_caller]
pub fn fovea<A: AsRef<OsStr>>(cluster: &Cluster, args: &[A], code: i32) -> String {
    let site = cluster.dir().join("site.toml");
    if !site.exists() {
        fs::write(&site, "partition = \"low\"\n").unwrap();
    }
    let output = cluster
        .command(FOVEA)
        .args(args)
        .env("FOVEA_SITE", site)
        .output()
        .unwrap();
    let said =
        [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    assert_eq!(
        output.status.code(),
        Some(code),
        "{}\n{}",
        said.join("\n---\n"),
        cluster.logs()
    );
    said.concat()
}

/// The output of `fovea status --json` on the login node; null when that prints no JSON.
pub fn status(cluster: &Cluster, run: &Path) -> Value {
    let mut fovea = cluster.command(FOVEA);
    let output = fovea.arg("status").arg(run).arg("--json").output().unwrap();
    serde_json::from_slice(&output.stdout).unwrap_or(Value::Null)
}

#[track_caller]
pub fn read(path: &Path) -> Value {
    let bytes = fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    serde_json::from_slice(&bytes).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// Options for a run of two ranks: on two nodes, which need MPI, or on one node.
pub const MPI: [&str; 6] = ["--nodes", "2", "--ranks-per-node", "1", "--time", "30"];
pub const LOCAL: [&str; 6] = ["--nodes", "1", "--ranks-per-node", "2", "--time", "30"];
pub const BACKEND_MPI: [&str; 1] = ["train.backend=mpi"];
