//! A real Slurm of two nodes, brought up for one test and taken down after it: munge, slurmctld, two slurmd,
//! with a directory, a key and ports of its own. It leaves no process, file or socket, also when the test fails,
//! and complains about processes that outlive their job.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fmt::Write as _;
use std::fs;
use std::io::{Read, Write as _};
use std::net::TcpListener;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::config::{self, NODES, Options, Sites};
use crate::job::Job;
use crate::nodes::Network;
use crate::process::{Daemon, Janitor, LOOK, Process, end_all, kill_all, processes};

/// The longest that the daemons may take to come up, on a loaded machine.
const START: Duration = Duration::from_secs(60);
/// Slurm's own variables in the tests' environment would tell its commands about another cluster.
const FOREIGN: [&str; 11] = [
    "SLURM", "SBATCH", "SALLOC", "SRUN", "SQUEUE", "SINFO", "SCANCEL", "SCONTROL", "PMI", "OMPI", "FOVEA",
];
/// The longest path of a Unix socket is 107 bytes; Slurm's and PMIx's names in the directory need up to 50.
const LONGEST: usize = 55;

/// A running cluster.
pub struct Cluster {
    daemons: BTreeMap<String, Daemon>,
    network: Option<Network>,
    options: Options,
    janitor: Option<Janitor>,
    directory: TempDir,
}

impl Cluster {
    /// Both nodes on the loopback interface of this machine, under its one host name.
    #[track_caller]
    pub fn start(options: &Options) -> Self {
        let host = hostname();
        let [head_port, first, second] = free_ports();
        let sites = Sites {
            head: (host.clone(), "127.0.0.1".to_owned()),
            head_port,
            nodes: [
                (host.clone(), "127.0.0.11".to_owned(), first),
                (host, "127.0.0.12".to_owned(), second),
            ],
            user: user(),
        };
        let mut cluster = Self::prepare(options, &sites);
        cluster.start_daemons();
        cluster
    }

    /// Each node, and the head, with a network, processes, mounts and a host name of its own. Root only.
    #[track_caller]
    pub fn start_apart(options: &Options) -> Self {
        let sites = Sites {
            head: ("head".to_owned(), Network::HEAD.to_owned()),
            head_port: 6817,
            nodes: NODES.map(|node| (node.to_owned(), Network::address(node), 6818)),
            user: user(),
        };
        let mut cluster = Self::prepare(options, &sites);
        cluster.network = Some(Network::start(cluster.dir()));
        cluster.start_daemons();
        cluster
    }

    fn prepare(options: &Options, sites: &Sites) -> Self {
        let directory = state_directory();
        let dir = directory.path();
        // slurmd does not trust a spool directory that others could have a hand in.
        fs::set_permissions(dir, fs::Permissions::from_mode(0o755)).unwrap();
        for name in ["state", "spool.n1", "spool.n2", "tmp", "work", "scratch"] {
            fs::create_dir(dir.join(name)).unwrap();
        }
        let write = |name: &str, text: &str| fs::write(dir.join(name), text).unwrap();
        write("slurm.conf", &config::slurm_conf(dir, sites, options));
        write("gres.conf", config::GRES_CONF);
        write("cgroup.conf", config::CGROUP_CONF);
        let mut key = [0; 128];
        fs::File::open("/dev/urandom").unwrap().read_exact(&mut key).unwrap();
        let mut file = fs::OpenOptions::new();
        let file = file.create_new(true).write(true).mode(0o600).open(dir.join("munge.key"));
        file.unwrap().write_all(&key).unwrap();
        Self {
            daemons: BTreeMap::new(),
            network: None,
            options: options.clone(),
            janitor: Some(Janitor::hire(dir)),
            directory,
        }
    }

    #[track_caller]
    fn start_daemons(&mut self) {
        let dir = self.dir().to_owned();
        let file = |option: &str, name: &str| format!("--{option}={}", dir.join(name).display());
        let mut munged = self.command("munged");
        munged.arg("--foreground").args([
            file("key-file", "munge.key"),
            file("socket", "munge.sock"),
            file("pid-file", "munged.pid"),
            file("log-file", "munged.log"),
            file("seed-file", "munged.seed"),
        ]);
        self.daemon("munged", &mut munged);
        self.wait_up("munged", |cluster| {
            let mut munge = cluster.command("munge");
            munge.arg("-n").arg(file("socket", "munge.sock"));
            munge.output().unwrap().status.success()
        });
        let mut slurmctld = self.command("slurmctld");
        self.daemon("slurmctld", slurmctld.arg("-D"));
        for node in NODES {
            self.start_node(node);
        }
        self.wait_up("slurmctld and both slurmd", |cluster| {
            let mut sinfo = cluster.command("sinfo");
            let output = sinfo.args(["-h", "-N", "-t", "idle", "-p", "low"]).output().unwrap();
            String::from_utf8_lossy(&output.stdout).lines().count() == NODES.len()
        });
    }

    fn daemon(&mut self, name: &str, command: &mut Command) {
        let output = self.dir().join(format!("{name}.out"));
        let daemon = Daemon::spawn(name, command, &output);
        self.daemons.insert(name.to_owned(), daemon);
    }

    #[track_caller]
    fn wait_up(&mut self, what: &str, up: impl Fn(&Self) -> bool) {
        let deadline = Instant::now() + START;
        while !up(self) {
            let ended = self.daemons.values_mut().find_map(Daemon::ended);
            let late = (Instant::now() > deadline).then(|| format!("{what} not up after {START:?}"));
            if let Some(why) = ended.or(late) {
                panic!("{why}\n{}", self.logs());
            }
            std::thread::sleep(LOOK);
        }
    }

    /// Where all files of the cluster are. `work/` is the working directory of jobs, `scratch/` is local to
    /// each node where nodes are apart.
    pub fn dir(&self) -> &Path {
        self.directory.path()
    }

    /// A command on the login node: any program, also `fovea`.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = match &self.network {
            Some(network) => network.command_on_head(&self.dir().join("work"), program.as_ref()),
            None => Command::new(program),
        };
        self.equip(&mut command);
        command
    }

    /// The environment of everything on the cluster.
    fn equip(&self, command: &mut Command) {
        for (name, _) in std::env::vars_os() {
            let text = name.to_string_lossy();
            if FOREIGN.iter().any(|prefix| text.starts_with(prefix)) {
                command.env_remove(&name);
            }
        }
        let path = std::env::var("PATH").unwrap_or_default();
        command
            .env("SLURM_CONF", self.dir().join("slurm.conf"))
            // Daemons are in sbin, which is not on every user's path.
            .env("PATH", format!("{path}:/usr/sbin:/sbin"))
            // What MPI leaves behind when it is killed goes with the cluster.
            .env("TMPDIR", self.dir().join("tmp"))
            .env("OMPI_MCA_btl_vader_backing_directory", self.dir().join("tmp"))
            .current_dir(self.dir().join("work"))
            .stdin(Stdio::null());
    }

    /// Runs a command on the login node; it must succeed. What it printed, without the last newline.
    #[track_caller]
    pub fn output<A: AsRef<OsStr>>(&self, program: &str, args: &[A]) -> String {
        let output = self.command(program).args(args).output().unwrap();
        let stdout = String::from_utf8_lossy(&output.stdout).trim_end().to_owned();
        if !output.status.success() {
            let words: Vec<_> = args.iter().map(|a| a.as_ref().to_string_lossy()).collect();
            let stderr = String::from_utf8_lossy(&output.stderr);
            let status = output.status;
            panic!("$ {program} {}\n{status}\n{stdout}\n{stderr}\n{}", words.join(" "), self.logs());
        }
        stdout
    }

    /// Submits a batch script with these options of `sbatch`; its job id. Its output goes to `work/`.
    #[track_caller]
    pub fn submit(&self, options: &[&str], script: &str) -> String {
        let mut sbatch = self.command("sbatch");
        sbatch.args(["--parsable", "--open-mode=append", "--output=job-%j.log"]).args(options);
        sbatch.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = sbatch.spawn().unwrap();
        let script = format!("#!/bin/bash\n{script}\n");
        child.stdin.take().unwrap().write_all(script.as_bytes()).unwrap();
        let Output { status, stdout, stderr } = child.wait_with_output().unwrap();
        let stderr = String::from_utf8_lossy(&stderr);
        assert!(status.success(), "sbatch {options:?}: {status}\n{stderr}\n{script}");
        String::from_utf8(stdout).unwrap().trim().to_owned()
    }

    /// All jobs that Slurm still knows, each element of an array for itself.
    pub fn jobs(&self) -> Vec<Job> {
        let output = self.command("scontrol").args(["-o", "show", "job"]).output().unwrap();
        String::from_utf8_lossy(&output.stdout).lines().filter_map(Job::parse).collect()
    }

    /// A job by its id, an element of an array by `ARRAY_TASK`.
    #[track_caller]
    pub fn job(&self, id: &str) -> Job {
        let text = self.output("scontrol", &["-o", "show", "job", id]);
        let job = text.lines().find_map(Job::parse);
        job.unwrap_or_else(|| panic!("no job {id} in {text:?}"))
    }

    /// Looks until there is an answer; it is an error when that takes longer than `limit`.
    #[track_caller]
    pub fn wait<T>(&self, what: &str, limit: Duration, look: impl Fn() -> Option<T>) -> T {
        let deadline = Instant::now() + limit;
        loop {
            if let Some(answer) = look() {
                return answer;
            }
            assert!(Instant::now() < deadline, "no {what} after {limit:?}\n{}", self.logs());
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

    /// Waits until a job runs that was requeued at least so many times, without the time that Slurm lets pass
    /// before it starts a requeued job again.
    #[track_caller]
    pub fn wait_restarted(&self, id: &str, restarts: u32, limit: Duration) -> Job {
        let hurried = std::cell::Cell::new(None::<Instant>);
        self.wait(&format!("restart {restarts} of job {id}"), limit, || {
            let job = self.job(id);
            // Once for each delay: asking again would put the start off again.
            if hurried.get().is_none_or(|at| at.elapsed() > Duration::from_secs(3)) && self.hurry(&job) {
                hurried.set(Some(Instant::now()));
            }
            Some(job).filter(|job| job.state == "RUNNING" && job.restarts >= restarts)
        })
    }

    /// Has a requeued job start soon; whether it was waiting for its begin time. Not `now`: a start in the very
    /// second of the requeue fails for good in half of the cases.
    pub fn hurry(&self, job: &Job) -> bool {
        let update = [format!("JobId={}", job.id), "StartTime=now+1".to_owned()];
        job.is_held_back() && {
            let done = self.command("scontrol").arg("update").args(update).output();
            done.unwrap().status.success()
        }
    }

    /// Processes that run for a job, on any node: the batch script, its steps, and whatever they started.
    pub fn processes_of_job(&self, id: &str) -> Vec<Process> {
        let step = format!("slurmstepd: [{id}.");
        let mut all = self.processes();
        all.retain(|p| p.has("SLURM_JOB_ID", id) || p.line.starts_with(&step));
        all
    }

    /// All processes that were started by this cluster or by one of its commands.
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

    /// No process may be left of any job, nor any that names the run directory, soon after the last job.
    #[track_caller]
    pub fn assert_nobody_left(&self, run: &Path) {
        let run = run.to_string_lossy();
        let left = || {
            let mut all = processes();
            let conf = self.dir().join("slurm.conf");
            all.retain(|p| {
                let of_job = p.has("SLURM_CONF", &conf)
                    && (p.line.starts_with("slurmstepd: ") || p.variable("SLURM_JOB_ID").is_some());
                of_job || p.line.contains(&*run)
            });
            all
        };
        let deadline = Instant::now() + self.grace();
        while !left().is_empty() {
            if Instant::now() > deadline {
                panic!("still there after {:?}: {:?}\n{}", self.grace(), left(), self.logs());
            }
            std::thread::sleep(LOOK);
        }
    }

    /// How long jobs may take to leave when they are told to.
    fn grace(&self) -> Duration {
        Duration::from_secs(u64::from(self.options.kill_wait) + 15)
    }

    /// The state of a node as `sinfo` has it: `idle`, `alloc`, `mix`, `down`, `drain`, ... `*`: does not answer.
    #[track_caller]
    pub fn node_state(&self, node: &str) -> String {
        self.output("sinfo", &["-h", "-N", "-n", node, "-p", "low", "-o", "%t"])
    }

    /// All nodes must be ready for the next job: none is down, and none was drained since a job did not end.
    #[track_caller]
    pub fn assert_nodes_idle(&self) {
        let idle = || NODES.iter().all(|node| self.node_state(node) == "idle");
        self.wait("two idle nodes", self.grace(), || idle().then_some(()));
    }

    /// Has the controller take a node for dead at once, instead of after `slurmd_timeout`.
    #[track_caller]
    pub fn set_down(&self, node: &str) {
        let node = format!("NodeName={node}");
        self.output("scontrol", &["update", &node, "State=DOWN", "Reason=test"]);
    }

    /// Starts the slurmd of a node, and the node itself where it is a thing of its own.
    #[track_caller]
    pub fn start_node(&mut self, node: &str) {
        let name = format!("slurmd.{node}");
        let dir = self.dir().to_owned();
        let mut command = match &mut self.network {
            Some(network) => {
                network.start_node(node);
                network.command_on(node, &dir.join("work"), OsStr::new("slurmd"))
            }
            None => Command::new("slurmd"),
        };
        self.equip(&mut command);
        // slurmd hands it down to its steps: this is how they are known.
        command.env("SLURMD_NODENAME", node).current_dir(&dir);
        self.daemon(&name, command.args(["-D", "-N", node]));
    }

    /// Kills slurmd, all steps and all tasks of a node: what is left of it after a power cut. Nobody says goodbye.
    #[track_caller]
    pub fn kill_node(&mut self, node: &str) {
        if let Some(network) = &mut self.network {
            network.kill_node(node);
        }
        if let Some(slurmd) = self.daemons.get_mut(&format!("slurmd.{node}")) {
            slurmd.kill();
        }
        kill_all(|| self.processes_on(node));
    }

    /// Kills the slurmd of a node and nothing else; jobs go on.
    #[track_caller]
    pub fn kill_slurmd(&mut self, node: &str) {
        kill_all(|| {
            let mut all = self.processes_on(node);
            all.retain(|p| p.line.starts_with("slurmd "));
            all
        });
    }

    /// The links between the nodes, where nodes are apart.
    #[track_caller]
    pub fn network(&self) -> &Network {
        self.network.as_ref().expect("a cluster that was started apart")
    }

    /// What is there to know about a failure: nodes, jobs, the ends of all logs and of the jobs' output.
    pub fn logs(&self) -> String {
        let mut text = String::new();
        let say = |program: &str, args: &[&str]| {
            let output = self.command(program).args(args).output().unwrap();
            format!("--- {program}\n{}", String::from_utf8_lossy(&output.stdout))
        };
        if self.daemons.contains_key("slurmctld") {
            text += &say("sinfo", &["-h", "-N", "-l", "-p", "low"]);
            for job in self.jobs() {
                let _ = writeln!(text, "job {job:?}");
                text += &tail(&job.output, 40);
            }
        }
        let files = fs::read_dir(self.dir()).unwrap().flatten().map(|e| e.path());
        let mut files: Vec<PathBuf> = files.collect();
        // What has no log of its own has said it on its output.
        files.retain(|p| {
            let is = |ext: &str| p.extension().is_some_and(|e| e == ext);
            is("log") || is("out") && !p.with_extension("log").exists()
        });
        files.sort();
        text.extend(files.iter().map(|path| tail(path, 30)));
        text
    }

    /// Ends all jobs and waits until they are gone, as Slurm does it.
    fn cancel_all(&self) {
        let deadline = Instant::now() + self.grace();
        loop {
            let queue = self.command("squeue").args(["-h", "-o", "%A"]).output().unwrap();
            let ids = String::from_utf8_lossy(&queue.stdout).into_owned();
            if ids.trim().is_empty() || Instant::now() > deadline {
                return;
            }
            let _ = self.command("scancel").arg("-Q").args(ids.split_whitespace()).output();
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        let running = |cluster: &mut Self| cluster.daemons.get_mut("slurmctld").map(Daemon::ended);
        if running(self) == Some(None) {
            self.cancel_all();
        }
        end_all(self.daemons.values_mut(), Duration::from_secs(5));
        if let Some(mut network) = self.network.take() {
            network.end();
        }
        let left = self.processes();
        if !left.is_empty() {
            kill_all(|| self.processes());
        }
        drop(self.janitor.take());
        assert!(
            left.is_empty() || std::thread::panicking(),
            "outlived all jobs and their nodes: {left:?}"
        );
    }
}

/// The last lines of a file, under its name.
fn tail(path: &Path, lines: usize) -> String {
    let bytes = fs::read(path).unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    let skip = text.lines().count().saturating_sub(lines);
    let lines: Vec<_> = text.lines().skip(skip).collect();
    format!("--- {}\n{}\n", path.display(), lines.join("\n"))
}

/// In the target directory, unless its path is too long for sockets or has what `slurm.conf` does not take.
fn state_directory() -> TempDir {
    let target = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let text = target.to_string_lossy();
    let fits = text.len() <= LONGEST && !text.contains(|c: char| c.is_whitespace() || "#,=%[]".contains(c));
    let parent = if fits { target.to_owned() } else { std::env::temp_dir() };
    TempDir::with_prefix_in("slurm-", &parent).unwrap_or_else(|e| panic!("{}: {e}", parent.display()))
}

/// Ports that nobody listens on, below those that the system hands out by itself; other test binaries look
/// elsewhere at the same time.
fn free_ports() -> [u16; 3] {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let mut free = Vec::new();
    let mut listeners = Vec::new();
    for _ in 0..2000 {
        let number = std::process::id().wrapping_mul(97) + NEXT.fetch_add(1, Ordering::Relaxed);
        let port = 20_000 + (number % 12_000) as u16;
        if let Ok(listener) = TcpListener::bind(("0.0.0.0", port)) {
            listeners.push(listener);
            free.push(port);
        }
        if let Ok(ports) = free.as_slice().try_into() {
            return ports;
        }
    }
    panic!("no three free ports between 20000 and 32000");
}

fn said_by(program: &str, args: &[&str]) -> String {
    let output = Command::new(program).args(args).output();
    let output = output.unwrap_or_else(|e| panic!("{program}: {e}"));
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

fn hostname() -> String {
    let name = fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
    // Slurm compares names up to the first dot.
    name.trim().split('.').next().unwrap().to_owned()
}

fn user() -> String {
    said_by("id", &["-un"])
}
