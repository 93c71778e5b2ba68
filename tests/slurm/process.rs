//! Processes of the test bed: daemons in their own sessions, and the processes of a cluster or a node,
//! found by the environment that Slurm passes to everything it starts.

use std::ffi::OsStr;
use std::fmt;
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::common::{Signal, send};

/// Pause between two looks while a test waits.
pub const LOOK: Duration = Duration::from_millis(10);

/// Starts `command` in a session of its own: no signal of a terminal or of a process group that is meant for the tests
/// reaches it.
pub fn detach(command: &mut Command) -> &mut Command {
    // SAFETY: between fork and exec only setsid is called, which is async-signal-safe and allocates nothing.
    unsafe { command.pre_exec(|| rustix::process::setsid().map(drop).map_err(Into::into)) }
}

/// A daemon that runs in the foreground, so its process id is that of our child.
pub struct Daemon {
    name: String,
    child: Child,
}

impl Daemon {
    /// Starts a daemon whose output is appended to the file `output`.
    pub fn spawn(name: &str, command: &mut Command, output: &Path) -> Self {
        let file = File::options().create(true).append(true).open(output);
        let file = file.unwrap_or_else(|e| panic!("{}: {e}", output.display()));
        command
            .stdout(file.try_clone().unwrap())
            .stderr(file)
            .stdin(Stdio::null());
        let child = detach(command).spawn();
        Self {
            name: name.to_owned(),
            child: child.unwrap_or_else(|e| panic!("{name} does not start: {e}")),
        }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The exit status, once the daemon has ended.
    pub fn ended(&mut self) -> Option<String> {
        let status = self.child.try_wait().unwrap()?;
        Some(format!("{} ended: {status}", self.name))
    }

    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Asks all daemons to end, and kills those that still run after `limit`.
pub fn end_all<'a>(daemons: impl Iterator<Item = &'a mut Daemon>, limit: Duration) {
    let mut left: Vec<_> = daemons.collect();
    left.retain_mut(|d| d.ended().is_none());
    left.iter().for_each(|d| send(d.pid(), Signal::TERM));
    let deadline = Instant::now() + limit;
    while !left.is_empty() && Instant::now() < deadline {
        std::thread::sleep(LOOK);
        left.retain_mut(|d| d.ended().is_none());
    }
    left.iter_mut().for_each(|d| d.kill());
}

/// A running process, as `/proc` shows it.
pub struct Process {
    pub pid: u32,
    /// Its command line, or the title that it gave itself.
    pub line: String,
    environment: Vec<u8>,
}

/// Leaves out the environment, which is long and does not belong in the log of a test.
impl fmt::Debug for Process {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {:?}", self.pid, self.line)
    }
}

impl Process {
    /// The value of a variable in the environment that it was started with.
    pub fn variable(&self, name: &str) -> Option<&OsStr> {
        let mut variables = self.environment.split(|byte| *byte == 0);
        let value = variables.find_map(|v| v.strip_prefix(name.as_bytes())?.strip_prefix(b"="));
        value.map(OsStr::from_bytes)
    }

    /// Whether it was started with `name=value` in its environment.
    pub fn has(&self, name: &str, value: impl AsRef<OsStr>) -> bool {
        self.variable(name) == Some(value.as_ref())
    }
}

/// All processes whose environment may be read; a zombie has none.
pub fn processes() -> Vec<Process> {
    let entries = fs::read_dir("/proc").unwrap().flatten();
    let pids = entries.filter_map(|e| e.file_name().to_str()?.parse::<u32>().ok());
    let look = |pid: u32| {
        let environment = fs::read(format!("/proc/{pid}/environ")).ok()?;
        let line = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        let line = String::from_utf8_lossy(&line)
            .replace('\0', " ")
            .trim()
            .to_owned();
        (!environment.is_empty()).then_some(Process {
            pid,
            line,
            environment,
        })
    };
    pids.filter_map(look).collect()
}

/// Kills all processes that `find` finds, and those that they started meanwhile, until it finds none.
#[track_caller]
pub fn kill_all(find: impl Fn() -> Vec<Process>) {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let left = find();
        if left.is_empty() {
            return;
        }
        left.iter().for_each(|p| send(p.pid, Signal::KILL));
        assert!(Instant::now() < deadline, "cannot be killed: {left:?}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// A process that cleans up after a cluster whose test was killed or interrupted: the test's end of a pipe closes then,
/// whatever happened to the test.
pub struct Janitor(Option<Child>);

const JANITOR: &str = r#"
read -r word
[ "$word" = done ] && exit
for round in 1 2 3 4 5; do
    for process in /proc/[0-9]*; do
        if grep -qzsxF "SLURM_CONF=$1/slurm.conf" "$process/environ"; then kill -9 "${process#/proc/}"; fi
    done
    sleep 0.1
done
rm -rf "$1"
"#;

impl Janitor {
    /// Starts a janitor for the cluster whose files are in `directory`.
    pub fn hire(directory: &Path) -> Self {
        let mut command = Command::new("sh");
        command.args(["-c", JANITOR, "janitor"]).arg(directory);
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        Self(Some(detach(&mut command).spawn().unwrap()))
    }
}

impl Drop for Janitor {
    fn drop(&mut self) {
        if let Some(mut child) = self.0.take() {
            let told = child.stdin.take().map(|mut pipe| pipe.write_all(b"done\n"));
            if !matches!(told, Some(Ok(()))) {
                let _ = child.kill();
            }
            let _ = child.wait();
        }
    }
}
