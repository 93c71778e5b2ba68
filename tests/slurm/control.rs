//! Operations on a cluster: submit, await and hurry jobs, find processes, look at nodes.

use std::io::Write as _;
use std::path::Path;
use std::process::{Output, Stdio};
use std::sync::PoisonError;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crate::cluster::Cluster;
use crate::config::NODES;
use crate::job::Job;
use crate::process::{LOOK, Process, processes};

/// How long a job that was asked to start soon may take before it is asked again.
const AGAIN: Duration = Duration::from_secs(4);

impl Cluster {
    /// Submits a batch script with these options of `sbatch` and returns its job id. The output goes to `work/`.
    #[track_caller]
    pub fn submit(&self, options: &[&str], script: &str) -> String {
        let mut sbatch = self.command("sbatch");
        sbatch
            .args(["--parsable", "--open-mode=append", "--output=job-%j.log"])
            .args(options);
        sbatch
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = sbatch.spawn().unwrap();
        let script = format!("#!/bin/bash\n{script}\n");
        child
            .stdin
            .take()
            .unwrap()
            .write_all(script.as_bytes())
            .unwrap();
        let Output {
            status,
            stdout,
            stderr,
        } = child.wait_with_output().unwrap();
        let stderr = String::from_utf8_lossy(&stderr);
        assert!(
            status.success(),
            "sbatch {options:?}: {status}\n{stderr}\n{script}"
        );
        String::from_utf8(stdout).unwrap().trim().to_owned()
    }

    /// All jobs that Slurm still remembers, each element of an array separately.
    pub fn jobs(&self) -> Vec<Job> {
        let output = self
            .command("scontrol")
            .args(["-o", "show", "job"])
            .output()
            .unwrap();
        String::from_utf8_lossy(&output.stdout)
            .lines()
            .filter_map(Job::parse)
            .collect()
    }

    /// A job by its id; an element of an array by `ARRAY_TASK`.
    #[track_caller]
    pub fn job(&self, id: &str) -> Job {
        let text = self.output("scontrol", &["-o", "show", "job", id]);
        let job = text.lines().find_map(Job::parse);
        job.unwrap_or_else(|| panic!("no job {id} in {text:?}"))
    }

    /// Looks until there is an answer; panics when that takes longer than `limit`.
    #[track_caller]
    pub fn wait<T>(&self, what: &str, limit: Duration, look: impl Fn() -> Option<T>) -> T {
        let deadline = Instant::now() + limit;
        loop {
            if let Some(answer) = look() {
                return answer;
            }
            assert!(
                Instant::now() < deadline,
                "no {what} after {limit:?}\n{}",
                self.logs()
            );
            std::thread::sleep(LOOK);
        }
    }

    /// Waits until a job is in this state (`RUNNING`, `COMPLETED`, ...).
    #[track_caller]
    pub fn wait_state(&self, id: &str, state: &str, limit: Duration) -> Job {
        self.wait(&format!("{state} of job {id}"), limit, || {
            Some(self.job(id)).filter(|job| job.state == state)
        })
    }

    /// Waits until a job runs that was requeued at least this many times. Mostly skips the time that Slurm lets pass
    /// before it restarts a requeued job (6 to 8 s here, see [`Cluster::hurry`]).
    #[track_caller]
    pub fn wait_restarted(&self, id: &str, restarts: u32, limit: Duration) -> Job {
        self.wait(&format!("restart {restarts} of job {id}"), limit, || {
            let job = self.job(id);
            self.hurry(&job);
            Some(job).filter(|job| job.state == "RUNNING" && job.restarts >= restarts)
        })
    }

    /// Makes a requeued job that waits for its begin time start soon; may be called any number of times.
    ///
    /// The new begin time is not `now`: a start in the very second of the requeue fails for good in half of the cases.
    /// This does nothing where a node was lost: what the controller still does about the old start then hits the new
    /// one (`srun` finds a node too few, also in half of the cases).
    pub fn hurry(&self, job: &Job) {
        if !job.is_held_back() || self.lost.load(Ordering::Relaxed) {
            return;
        }
        // Each request delays the start again, so there is at most one per `AGAIN` for each requeue.
        let mut hurried = self.hurried.lock().unwrap_or_else(PoisonError::into_inner);
        let start = (job.id.clone(), job.restarts);
        if hurried.get(&start).is_some_and(|at| at.elapsed() < AGAIN) {
            return;
        }
        let mut scontrol = self.command("scontrol");
        scontrol.args(["update", &format!("JobId={}", job.id), "StartTime=now+1"]);
        if scontrol.output().unwrap().status.success() {
            hurried.insert(start, Instant::now());
        }
    }

    /// Processes that run for a job on any node: the batch script, its steps, and everything that they started.
    pub fn processes_of_job(&self, id: &str) -> Vec<Process> {
        let step = format!("slurmstepd: [{id}.");
        let mut all = self.processes();
        all.retain(|p| p.has("SLURM_JOB_ID", id) || p.line.starts_with(&step));
        all
    }

    /// All processes that this cluster or one of its commands has started.
    pub fn processes(&self) -> Vec<Process> {
        let conf = self.dir().join("slurm.conf");
        let mut all = processes();
        all.retain(|p| p.has("SLURM_CONF", &conf));
        all
    }

    /// Processes on a node: its slurmd, steps and tasks.
    pub fn processes_on(&self, node: &str) -> Vec<Process> {
        let mut all = self.processes();
        all.retain(|p| p.has("SLURMD_NODENAME", node));
        all
    }

    /// Asserts that soon after the last job no process of any job is left, nor one that names the run directory.
    #[track_caller]
    pub fn assert_nobody_left(&self, run: &Path) {
        let run = run.to_string_lossy();
        let left = || {
            let mut left = self.processes_of_jobs();
            left.extend(processes().into_iter().filter(|p| p.line.contains(&*run)));
            left
        };
        let deadline = Instant::now() + self.leaving();
        while !left().is_empty() {
            if Instant::now() > deadline {
                panic!(
                    "still there after {:?}: {:?}\n{}",
                    self.leaving(),
                    left(),
                    self.logs()
                );
            }
            std::thread::sleep(LOOK);
        }
    }

    /// Processes of any job, on any node.
    pub fn processes_of_jobs(&self) -> Vec<Process> {
        let mut all = self.processes();
        all.retain(|p| p.line.starts_with("slurmstepd: ") || p.variable("SLURM_JOB_ID").is_some());
        all
    }

    /// How long jobs may take to leave after they are told to.
    pub fn leaving(&self) -> Duration {
        Duration::from_secs(u64::from(self.options.kill_wait) + 15)
    }

    /// The state of a node as `sinfo` shows it: `idle`, `alloc`, `mix`, `down`, `drain`, ...; a `*` means that it does
    /// not answer.
    ///
    /// This asks for all nodes and picks the one: asked for a single node (`-n`), the controller may answer `mix` for
    /// ever, because it updates the CPUs in use only when it is asked for all.
    #[track_caller]
    pub fn node_state(&self, node: &str) -> String {
        let all = self.output("sinfo", &["-h", "-N", "-p", "low", "-o", "%N %t"]);
        let mut lines = all.lines().filter_map(|line| line.split_once(' '));
        let line = lines.find(|(name, _)| *name == node);
        line.unwrap_or_else(|| panic!("no {node} in {all:?}"))
            .1
            .trim()
            .to_owned()
    }

    /// Asserts that all nodes are ready for the next job: none is down, and none was drained because a job did not end.
    #[track_caller]
    pub fn assert_nodes_idle(&self) {
        let idle = || NODES.iter().all(|node| self.node_state(node) == "idle");
        self.wait("two idle nodes", Duration::from_secs(60), || {
            idle().then_some(())
        });
    }

    /// Makes the controller declare a node dead at once, instead of after `slurmd_timeout`.
    #[track_caller]
    pub fn set_down(&self, node: &str) {
        self.lost.store(true, Ordering::Relaxed);
        let node = format!("NodeName={node}");
        self.output("scontrol", &["update", &node, "State=DOWN", "Reason=test"]);
    }
}
