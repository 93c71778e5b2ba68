//! A real Slurm of two nodes, started for one test and stopped after it: munge, slurmctld and two slurmd, with their
//! own directory, key and ports. It leaves no process, file or socket, even when the test fails, and fails the test
//! when processes outlive their job.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fmt::Write as _;
use std::fs;
use std::io::{Read, Write as _};
use std::net::TcpListener;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::config::{self, NODES, Options, Sites};
use crate::nodes::Network;
use crate::process::{Daemon, Janitor, LOOK, end_all, kill_all};

/// Longest time that the daemons may take to start, on a loaded machine.
const START: Duration = Duration::from_secs(60);
/// Variables of another Slurm in the tests' environment, which would send the commands to that cluster.
const FOREIGN: [&str; 11] = [
    "SLURM", "SBATCH", "SALLOC", "SRUN", "SQUEUE", "SINFO", "SCANCEL", "SCONTROL", "PMI", "OMPI",
    "FOVEA",
];

/// A running cluster: munge, slurmctld and two slurmd.
pub struct Cluster {
    daemons: BTreeMap<String, Daemon>,
    network: Option<Network>,
    pub(crate) options: Options,
    /// Whether a test has made a node unreachable at any time.
    pub(crate) lost: AtomicBool,
    /// When each requeued job was asked to start soon, by id and number of restarts.
    pub(crate) hurried: Mutex<BTreeMap<(String, u32), Instant>>,
    janitor: Option<Janitor>,
    directory: TempDir,
}

impl Cluster {
    /// Starts both nodes on the loopback interface of this machine, under its one host name.
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

    /// Starts each node, and the head, with its own network, processes, mounts and host name. Needs root.
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
        // slurmd does not trust a spool directory that others could write.
        fs::set_permissions(dir, fs::Permissions::from_mode(0o755)).unwrap();
        for name in ["state", "tmp", "work", "scratch"] {
            fs::create_dir(dir.join(name)).unwrap();
        }
        for node in NODES {
            fs::create_dir(dir.join(format!("spool.{node}"))).unwrap();
            fs::create_dir(dir.join(format!("tmp.{node}"))).unwrap();
        }
        let write = |name: &str, text: &str| fs::write(dir.join(name), text).unwrap();
        write("slurm.conf", &config::slurm_conf(dir, sites, options));
        write("gres.conf", config::GRES_CONF);
        write("cgroup.conf", config::CGROUP_CONF);
        let mut key = [0; 128];
        fs::File::open("/dev/urandom")
            .unwrap()
            .read_exact(&mut key)
            .unwrap();
        let mut file = fs::OpenOptions::new();
        let file = file
            .create_new(true)
            .write(true)
            .mode(0o600)
            .open(dir.join("munge.key"));
        file.unwrap().write_all(&key).unwrap();
        Self {
            daemons: BTreeMap::new(),
            network: None,
            options: options.clone(),
            lost: AtomicBool::new(false),
            hurried: Mutex::default(),
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
        // A slurmd that registers before the controller listens waits a whole second before it tries again.
        self.wait_up("slurmctld", |cluster| {
            let mut scontrol = cluster.command("scontrol");
            scontrol.arg("ping").output().unwrap().status.success()
        });
        for node in NODES {
            self.start_node(node);
        }
        self.wait_up("slurmctld and both slurmd", |cluster| {
            let mut sinfo = cluster.command("sinfo");
            let output = sinfo
                .args(["-h", "-N", "-t", "idle", "-p", "low"])
                .output()
                .unwrap();
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
            let late =
                (Instant::now() > deadline).then(|| format!("{what} not up after {START:?}"));
            if let Some(why) = ended.or(late) {
                panic!("{why}\n{}", self.logs());
            }
            std::thread::sleep(LOOK);
        }
    }

    /// Directory of all files of the cluster. `work/` is the working directory of jobs; `scratch/` is local to each
    /// node where nodes are separate.
    pub fn dir(&self) -> &Path {
        self.directory.path()
    }

    /// A command on the login node: any program, including `fovea`.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = match &self.network {
            Some(network) => network.command_on_head(&self.dir().join("work"), program.as_ref()),
            None => Command::new(program),
        };
        self.equip(&mut command);
        command
    }

    /// Sets the environment that everything on the cluster has.
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
            // The daemons are in sbin, which is not on every user's path.
            .env("PATH", format!("{path}:/usr/sbin:/sbin"))
            // Files that a killed MPI leaves behind disappear with the cluster.
            .env("TMPDIR", self.dir().join("tmp"))
            .env(
                "OMPI_MCA_btl_vader_backing_directory",
                self.dir().join("tmp"),
            )
            // Open MPI 5 searches the kernel's routing tables for a route between two addresses, and finds none between
            // two nodes on one machine (seen on Debian 13); its hierarchical collectives crash there. mpirun refuses to
            // run as root, which these tests may do, unless two variables allow it.
            .env("OMPI_MCA_reachable", "^netlink")
            .env("OMPI_MCA_coll", "^han")
            .env("OMPI_ALLOW_RUN_AS_ROOT", "1")
            .env("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1")
            .current_dir(self.dir().join("work"))
            .stdin(Stdio::null());
    }

    /// Runs a command on the login node, which must succeed. Returns its output without the last newline.
    #[track_caller]
    pub fn output<A: AsRef<OsStr>>(&self, program: &str, args: &[A]) -> String {
        let output = self.command(program).args(args).output().unwrap();
        let stdout = String::from_utf8_lossy(&output.stdout)
            .trim_end()
            .to_owned();
        if !output.status.success() {
            let words: Vec<_> = args.iter().map(|a| a.as_ref().to_string_lossy()).collect();
            let stderr = String::from_utf8_lossy(&output.stderr);
            let status = output.status;
            panic!(
                "$ {program} {}\n{status}\n{stdout}\n{stderr}\n{}",
                words.join(" "),
                self.logs()
            );
        }
        stdout
    }

    /// Starts the slurmd of a node, and the node itself where it is separate.
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
        // slurmd passes this variable to its steps, and the tests find them by it.
        command.env("SLURMD_NODENAME", node).current_dir(&dir);
        self.daemon(&name, command.args(["-D", "-N", node]));
    }

    /// Kills slurmd, all steps and all tasks of a node, as a power cut does: nobody gets a notice.
    #[track_caller]
    pub fn kill_node(&mut self, node: &str) {
        self.lost.store(true, Ordering::Relaxed);
        if let Some(network) = &mut self.network {
            network.kill_node(node);
        }
        if let Some(slurmd) = self.daemons.get_mut(&format!("slurmd.{node}")) {
            slurmd.kill();
        }
        kill_all(|| self.processes_on(node));
    }

    /// Kills only the slurmd of a node; its jobs continue.
    #[track_caller]
    pub fn kill_slurmd(&mut self, node: &str) {
        kill_all(|| {
            let mut all = self.processes_on(node);
            all.retain(|p| p.line.starts_with("slurmd "));
            all
        });
    }

    /// Isolates a node: no packet reaches it or leaves it, and nobody gets a notice. Only for separate nodes.
    #[track_caller]
    pub fn cut(&self, node: &str) {
        self.lost.store(true, Ordering::Relaxed);
        self.network().cut(node);
    }

    /// Reconnects a node after [`Cluster::cut`].
    #[track_caller]
    pub fn mend(&self, node: &str) {
        self.network().mend(node);
    }

    /// Limits a node's link to `rate` (`100mbit`) in either direction. Only for separate nodes.
    #[track_caller]
    pub fn slow(&self, node: &str, rate: &str) {
        self.network().slow(node, rate);
    }

    #[track_caller]
    fn network(&self) -> &Network {
        self.network
            .as_ref()
            .expect("a cluster that was started apart")
    }

    /// Everything that explains a failure: nodes, jobs, the ends of all logs and of the jobs' output.
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
        let files = fs::read_dir(self.dir())
            .unwrap()
            .flatten()
            .map(|e| e.path());
        let mut files: Vec<PathBuf> = files.collect();
        // A daemon without a log file has its messages in its output.
        files.retain(|p| {
            let is = |ext: &str| p.extension().is_some_and(|e| e == ext);
            is("log") || is("out") && !p.with_extension("log").exists()
        });
        files.sort();
        text.extend(files.iter().map(|path| tail(path, 30)));
        text
    }

    /// Cancels all jobs and waits until Slurm has ended them.
    fn cancel_all(&self) {
        let deadline = Instant::now() + self.leaving();
        loop {
            let queue = self
                .command("squeue")
                .args(["-h", "-o", "%A"])
                .output()
                .unwrap();
            let ids = String::from_utf8_lossy(&queue.stdout).into_owned();
            if ids.trim().is_empty() || Instant::now() > deadline {
                return;
            }
            let _ = self
                .command("scancel")
                .arg("-Q")
                .args(ids.split_whitespace())
                .output();
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        let mut left = Vec::new();
        let slurmctld = self.daemons.get_mut("slurmctld");
        if slurmctld.is_some_and(|daemon| daemon.ended().is_none()) {
            self.cancel_all();
            left = self.processes_of_jobs();
            // A step may end a moment after its job; a step on an isolated node gets no notice at all.
            let deadline = Instant::now() + self.leaving();
            while !left.is_empty()
                && !self.lost.load(Ordering::Relaxed)
                && Instant::now() < deadline
            {
                std::thread::sleep(LOOK);
                left = self.processes_of_jobs();
            }
        }
        end_all(self.daemons.values_mut(), Duration::from_secs(5));
        if let Some(mut network) = self.network.take() {
            network.end();
        }
        kill_all(|| self.processes());
        drop(self.janitor.take());
        assert!(
            left.is_empty() || self.lost.load(Ordering::Relaxed) || std::thread::panicking(),
            "outlived their jobs: {left:?}"
        );
    }
}

/// The last lines of a file, below its name.
fn tail(path: &Path, lines: usize) -> String {
    let bytes = fs::read(path).unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    let skip = text.lines().count().saturating_sub(lines);
    let lines: Vec<_> = text.lines().skip(skip).collect();
    format!("--- {}\n{}\n", path.display(), lines.join("\n"))
}

/// A directory with a short path: it holds the sockets of munge, Slurm and PMIx, and a socket's path has 107 bytes at
/// most.
fn state_directory() -> TempDir {
    let parent = std::env::temp_dir();
    TempDir::with_prefix_in("slurm-", &parent)
        .unwrap_or_else(|e| panic!("{}: {e}", parent.display()))
}

/// Ports that nobody listens on, below those that the system assigns by itself. Other test binaries may search at the
/// same time, so each process starts at another port.
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
    // Slurm compares host names only up to the first dot.
    name.trim().split('.').next().unwrap().to_owned()
}

fn user() -> String {
    said_by("id", &["-un"])
}
