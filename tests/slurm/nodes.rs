//! Nodes that programs cannot distinguish from separate machines: each has its own network, processes, mounts, shared
//! memory and host name. They are linked to a bridge in the head's network, which leaves this machine's own network
//! untouched. Everything disappears when its last process ends.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};

use crate::config::NODES;
use crate::process::detach;

/// Script of the head's process: it waits for the end of the test.
const HEAD: &str = r#"
set -e
hostname head
mount --bind "$1/hosts" /etc/hosts
ip link set lo up
ip link add bridge type bridge
ip address add "$2/24" dev bridge
ip link set bridge up
echo ready
read -r _ || true
"#;

/// Script of the first process of a node. When that process ends, for any reason, all others of the node end too.
const NODE: &str = r#"
set -e
hostname "$3"
mount -t tmpfs -o size=2g tmpfs /dev/shm
mount -t tmpfs tmpfs "$1/scratch"
mount --bind "$1/hosts" /etc/hosts
ip link set lo up
echo ready
read -r _
ip address add "$2/24" dev eth0
ip link set eth0 up
echo ready
read -r _ || true
"#;

/// The head with its bridge, and the nodes linked to it.
pub struct Network {
    directory: PathBuf,
    head: Machine,
    nodes: BTreeMap<String, Machine>,
}

impl Network {
    /// The head's address, which exists only in these namespaces.
    pub const HEAD: &str = "10.211.0.1";

    /// A node's address, which exists only in these namespaces.
    pub fn address(node: &str) -> String {
        let number = NODES.iter().position(|n| *n == node).unwrap();
        format!("10.211.0.{}", 11 + number)
    }

    /// Starts the head, without any nodes.
    #[track_caller]
    pub fn start(directory: &Path) -> Self {
        let mut hosts = format!("127.0.0.1 localhost\n{} head\n", Self::HEAD);
        for node in NODES {
            hosts += &format!("{} {node}\n", Self::address(node));
        }
        fs::write(directory.join("hosts"), hosts).unwrap();
        let head = Machine::start(
            directory,
            "head",
            &["--net", "--uts", "--mount"],
            HEAD,
            Self::HEAD,
        );
        Self {
            directory: directory.to_owned(),
            head,
            nodes: BTreeMap::new(),
        }
    }

    /// A command with the network and host name of the head.
    pub fn command_on_head(&self, cwd: &Path, program: &OsStr) -> Command {
        self.head
            .command(&["--net", "--uts", "--mount"], cwd, program)
    }

    /// A command among the processes of a node.
    pub fn command_on(&self, node: &str, cwd: &Path, program: &OsStr) -> Command {
        let machine = &self.nodes[node];
        // unshare puts its children into the new process namespace, but not itself.
        let pid = format!("--pid=/proc/{}/ns/pid_for_children", machine.pid());
        let names = ["--net", "--uts", "--mount", "--ipc", &pid];
        machine.command(&names, cwd, program)
    }

    /// Starts a node of this name, linked to the bridge.
    #[track_caller]
    pub fn start_node(&mut self, node: &str) {
        if self.nodes.contains_key(node) {
            return;
        }
        let own = [
            "--net",
            "--uts",
            "--mount",
            "--ipc",
            "--pid",
            "--mount-proc",
        ];
        let address = Self::address(node);
        let mut machine = Machine::start(&self.directory, node, &own, NODE, &address);
        let namespace = machine.pid().to_string();
        // The link of a dead node lingers for a moment.
        let _ = self.ip(&["link", "delete", node]);
        for args in [
            &[
                "link", "add", node, "type", "veth", "peer", "name", "eth0", "netns", &namespace,
            ][..],
            &["link", "set", node, "master", "bridge", "up"],
        ] {
            self.ip(args).unwrap_or_else(|e| panic!("{e}"));
        }
        machine.go_on(&self.directory);
        self.nodes.insert(node.to_owned(), machine);
    }

    /// Kills all processes of a node, as a power cut does.
    pub fn kill_node(&mut self, node: &str) {
        drop(self.nodes.remove(node));
    }

    /// Cuts a node's link: no packet reaches it or leaves it, and nothing else tells it.
    #[track_caller]
    pub fn cut(&self, node: &str) {
        self.ip(&["link", "set", node, "nomaster"]).unwrap();
    }

    /// Restores a node's link after [`Network::cut`].
    #[track_caller]
    pub fn mend(&self, node: &str) {
        self.ip(&["link", "set", node, "master", "bridge"]).unwrap();
    }

    /// Limits a node's link to `rate` (`100mbit`) in either direction.
    #[track_caller]
    pub fn slow(&self, node: &str, rate: &str) {
        let bucket = [
            "root", "tbf", "rate", rate, "burst", "256kb", "latency", "100ms",
        ];
        for (mut tc, link) in [
            (
                self.command_on_head(&self.directory, OsStr::new("tc")),
                node,
            ),
            (
                self.command_on(node, &self.directory, OsStr::new("tc")),
                "eth0",
            ),
        ] {
            tc.args(["qdisc", "replace", "dev", link]).args(bucket);
            done(&mut tc).unwrap_or_else(|e| panic!("{e}"));
        }
    }

    /// Ends all nodes and the head.
    pub fn end(&mut self) {
        self.nodes.clear();
        self.head.kill();
    }

    /// Runs `ip` in the head's network.
    fn ip(&self, args: &[&str]) -> Result<(), String> {
        let mut ip = self.command_on_head(&self.directory, OsStr::new("ip"));
        done(ip.args(args))
    }
}

fn done(command: &mut Command) -> Result<(), String> {
    let output = command.output().map_err(|e| e.to_string())?;
    let said = String::from_utf8_lossy(&output.stderr);
    let failed = || format!("{command:?}: {}: {said}", output.status);
    output.status.success().then_some(()).ok_or_else(failed)
}

/// Whether this machine allows us to make such namespaces; otherwise the reason.
pub fn namespaces() -> Result<(), String> {
    let mut unshare = Command::new("unshare");
    unshare.args([
        "--net",
        "--uts",
        "--mount",
        "--ipc",
        "--pid",
        "--fork",
        "--mount-proc",
    ]);
    unshare.args(["ip", "link", "add", "probe", "type", "bridge"]);
    done(&mut unshare)
}

/// A set of namespaces, held by a process that ends with the test.
struct Machine {
    name: String,
    child: Child,
    /// The script continues at each line, and ends when there are no more.
    input: Option<ChildStdin>,
    said: BufReader<std::process::ChildStdout>,
}

impl Machine {
    #[track_caller]
    fn start(directory: &Path, name: &str, own: &[&str], script: &str, address: &str) -> Self {
        let mut command = Command::new("unshare");
        // Killing unshare kills the first process, and with that all others.
        command
            .args(own)
            .args(["--fork", "--kill-child", "bash", "-c", script, "machine"]);
        command.arg(directory).args([address, name]);
        let output = File::create(directory.join(format!("machine.{name}.out"))).unwrap();
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(output);
        command
            .env("SLURM_CONF", directory.join("slurm.conf"))
            .env("SLURMD_NODENAME", name);
        let mut child = detach(&mut command)
            .spawn()
            .unwrap_or_else(|e| panic!("unshare: {e}"));
        let mut machine = Self {
            name: name.to_owned(),
            input: child.stdin.take(),
            said: BufReader::new(child.stdout.take().unwrap()),
            child,
        };
        machine.ready(directory);
        machine
    }

    #[track_caller]
    fn ready(&mut self, directory: &Path) {
        let mut line = String::new();
        let _ = self.said.read_line(&mut line);
        if line.trim() != "ready" {
            let file = directory.join(format!("machine.{}.out", self.name));
            let said = fs::read_to_string(file).unwrap_or_default();
            panic!("node {} does not come up: {said}", self.name);
        }
    }

    /// Lets the script continue to its next `ready`.
    #[track_caller]
    fn go_on(&mut self, directory: &Path) {
        use std::io::Write as _;
        let _ = self.input.as_mut().map(|pipe| pipe.write_all(b"\n"));
        self.ready(directory);
    }

    fn pid(&self) -> u32 {
        self.child.id()
    }

    /// A command in some of the namespaces of this machine.
    fn command(&self, names: &[&str], cwd: &Path, program: &OsStr) -> Command {
        let mut command = Command::new("nsenter");
        command
            .args(["--target", &self.pid().to_string()])
            .args(names);
        // Entering other mounts loses the working directory.
        command
            .args(["sh", "-c", r#"cd "$0" && exec "$@""#])
            .arg(cwd)
            .arg(program);
        command
    }

    fn kill(&mut self) {
        drop(self.input.take());
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.kill();
    }
}
