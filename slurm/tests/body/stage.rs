//! A temporary directory in which a batch script runs with stand-ins for Slurm's commands and for fovea.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use fovea_slurm::script::{Job, render};
use fovea_slurm::site::Site;
use rustix::process::{Pid, Signal, kill_process};

/// Time limit for everything that must happen soon, long enough for a busy machine.
const SOON: Duration = Duration::from_secs(30);

/// All stand-ins are this script under several names; `$STAND_INS/do/NAME` holds what each one does.
const STAND_IN: &str = r#"#!/bin/bash
name=${0##*/}
[ "$name" != fovea ] || { name=$1; shift; }
[ "$name" != job ] || { name=$1; shift; }
say() { local line="$name $*"; echo "${line//$'\n'/, }" >> "$STAND_INS/log"; }
. "$STAND_INS/do/$name"
"#;

/// Defines `next_line`: it takes the next line of a file, and repeats the last one.
const NEXT_LINE: &str = r#"
next_line() {
    local all
    mapfile -t all < "$1"
    [ ${#all[@]} -le 1 ] || printf '%s\n' "${all[@]:1}" > "$1"
    echo "${all[0]}"
}
"#;

pub struct Stage {
    pub dir: tempfile::TempDir,
    batch: Child,
}

/// The job by default runs until the file `finish` exists; a test changes parts of it.
#[derive(Default)]
pub struct Scene<'a> {
    /// Names of stand-ins, each with its script in bash.
    pub act: &'a [(&'a str, &'a str)],
    pub site: Site,
    pub array: Option<&'a str>,
    pub set: &'a [&'a str],
    pub scratch: &'a [&'a str],
}

const COORDINATOR: &str = r#"
say start $$ "$@"
trap 'say got USR1; exit 85' USR1
until [ -e "$STAND_INS/finish" ]; do sleep 0.05; done
say finishes
exit 0
"#;
/// The trainers leave when a coordinator has finished or got a signal.
const TRAINER: &str = r#"
say start "$@"
until grep -q -e 'coordinator finishes' -e 'coordinator got' "$STAND_INS/log"; do sleep 0.05; done
exit 0
"#;
const SRUN: &str = r#"
[ "$1" != --mpi=list ] || { echo "none pmix"; exit; }
case "$*" in
    *--nodelist=n2*true) exit 1 ;; # gone
    *true) exit ;;
esac
say "$@"
while [ "${1##*/}" != fovea ]; do shift; done
exec "$@"
"#;
const SQUEUE: &str = r#"
case "$*" in
    *%L*) echo 1:02:03 ;;
    *%T*) cat "$STAND_INS/state" ;;
esac
"#;

impl Stage {
    pub fn new(scene: &Scene<'_>) -> Self {
        let dir = tempfile::Builder::new()
            .prefix("o'neil \"100%\" ")
            .tempdir()
            .expect("a directory");
        let path = dir.path();
        for folder in ["bin", "do", "runs/first run/slurm"] {
            fs::create_dir_all(path.join(folder)).expect("a folder");
        }
        let plan = "say \"$@\"; echo 'launch=(srun --ntasks=2 \"--comment=a b\")'; echo bind=10.0.0.1; echo finished=";
        let next = format!("{NEXT_LINE}\nsay \"$@\"; exit \"$(next_line \"$STAND_INS/codes\")\"");
        let acts = [
            ("coordinator", COORDINATOR),
            ("trainer", TRAINER),
            ("srun", SRUN),
            ("squeue", SQUEUE),
            ("sinfo", "echo 'n1 alloc'; echo 'n2 alloc'"),
            ("mpirun", "echo 'mpirun (Open MPI) 4.1'"),
            ("scontrol", "say \"$@\""),
            ("scancel", "say \"$@\""),
            ("stage", "say \"$@\""),
            ("plan", plan),
            ("next", &next),
        ];
        for (name, act) in acts {
            let act = scene
                .act
                .iter()
                .find(|(n, _)| *n == name)
                .map_or(act, |(_, act)| act);
            fs::write(path.join("do").join(name), act).expect("an act");
        }
        for name in [
            "srun", "mpirun", "squeue", "sinfo", "scontrol", "scancel", "fovea",
        ] {
            // Another process copies the file: Linux refuses to run a file that this process still has open for
            // writing, and another thread may be starting a process that has inherited it for a moment.
            let from = path.join("stand-in");
            fs::write(&from, STAND_IN).expect("a stand-in");
            let install = Command::new("install")
                .arg("-m755")
                .arg(&from)
                .arg(path.join("bin").join(name))
                .status();
            assert!(install.expect("install").success());
        }
        fs::write(path.join("codes"), "0\n").expect("codes");
        fs::write(path.join("state"), "RUNNING None\n").expect("a state");
        fs::write(path.join("log"), "").expect("a log");
        let batch = Self::begin(path, scene);
        Self { dir, batch }
    }

    fn begin(path: &Path, scene: &Scene<'_>) -> Child {
        let text = |path: PathBuf| path.to_str().expect("a name").to_owned();
        let job = Job {
            name: "fovea-first".to_owned(),
            run: text(path.join("runs/first run")),
            data: "/data/two words".to_owned(),
            program: text(path.join("bin/fovea")),
            nodes: 1,
            ranks_per_node: 2,
            gpus_per_node: 0,
            cpus_per_rank: None,
            time: Duration::from_secs(3600),
            lead: Duration::from_secs(120),
            array: scene.array.map(str::to_owned),
            set: scene.set.iter().map(|set| (*set).to_owned()).collect(),
            container: None,
            scratch: scene
                .scratch
                .iter()
                .map(|place| (*place).to_owned())
                .collect(),
            site: scene.site.clone(),
        };
        job.check().expect("a job");
        let patience = "\npatience=20\n";
        let script = render(&job);
        assert!(script.contains(patience));
        fs::write(
            path.join("job.sh"),
            script.replace(patience, "\npatience=2\n"),
        )
        .expect("a script");
        let bin = text(path.join("bin"));
        let path_variable = format!("{bin}:{}", std::env::var("PATH").expect("PATH"));
        let mut bash = Command::new("bash");
        bash.arg(path.join("job.sh"))
            .env("PATH", path_variable)
            .env("STAND_INS", path)
            .env("SLURM_JOB_ID", "17")
            .env("SLURM_JOB_NODELIST", "n1")
            .env("SLURM_JOB_NUM_NODES", "1")
            .stdin(Stdio::null());
        if scene.array.is_some() {
            bash.env("SLURM_ARRAY_JOB_ID", "17")
                .env("SLURM_ARRAY_TASK_ID", "3");
        }
        bash.spawn().expect("bash")
    }

    pub fn log(&self) -> Vec<String> {
        let text = fs::read_to_string(self.dir.path().join("log")).expect("the log");
        text.lines().map(str::to_owned).collect()
    }

    pub fn count(&self, begin: &str) -> usize {
        self.log()
            .iter()
            .filter(|line| line.starts_with(begin))
            .count()
    }

    pub fn write(&self, file: &str, text: &str) {
        fs::write(self.dir.path().join(file), text).expect(file);
    }

    /// Waits for the `nth` line of the log with this beginning.
    pub fn until(&self, nth: usize, begin: &str) -> String {
        let end = Instant::now() + SOON;
        loop {
            let log = self.log();
            if let Some(line) = log
                .iter()
                .filter(|line| line.starts_with(begin))
                .nth(nth - 1)
            {
                return line.clone();
            }
            assert!(
                Instant::now() < end,
                "no {begin:?} number {nth} in {log:#?}"
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// The process id of the `nth` coordinator; waits for it to start.
    pub fn coordinator(&self, nth: usize) -> u32 {
        let line = self.until(nth, "coordinator start");
        line.split(' ')
            .nth(2)
            .and_then(|pid| pid.parse().ok())
            .expect("a pid")
    }

    pub fn signal_batch(&self, signal: &str) {
        signal_to(self.batch.id(), signal);
    }

    /// Exit code and log of the script; asserts that no process of it is left.
    pub fn end(mut self) -> (i32, Vec<String>) {
        let end = Instant::now() + SOON;
        let status = loop {
            if let Some(status) = self.batch.try_wait().expect("bash") {
                break status;
            }
            assert!(Instant::now() < end, "still running: {:#?}", self.log());
            std::thread::sleep(Duration::from_millis(20));
        };
        // A killed stand-in may leave a `sleep` behind, which ends by itself.
        let settled = Instant::now() + Duration::from_millis(500);
        while !self.processes().is_empty() && Instant::now() < settled {
            std::thread::sleep(Duration::from_millis(20));
        }
        assert_eq!(
            self.processes(),
            Vec::<String>::new(),
            "processes left behind"
        );
        (status.code().expect("an exit code"), self.log())
    }

    /// All processes with this stage's environment.
    fn processes(&self) -> Vec<String> {
        let mark = format!("STAND_INS={}", self.dir.path().display());
        fs::read_dir("/proc")
            .expect("/proc")
            .flatten()
            .filter(|entry| {
                let environ = fs::read(entry.path().join("environ")).unwrap_or_default();
                environ.split(|b| *b == 0).any(|var| var == mark.as_bytes())
            })
            .map(|entry| {
                let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
                String::from_utf8_lossy(&line).replace('\0', " ")
            })
            .collect()
    }
}

impl Drop for Stage {
    /// A failed test leaves no processes behind either.
    fn drop(&mut self) {
        let _ = self.batch.kill();
        let mark = format!("STAND_INS={}", self.dir.path().display());
        for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
            let environ = fs::read(entry.path().join("environ")).unwrap_or_default();
            let pid = entry.file_name().to_string_lossy().parse();
            if let Ok(pid) = pid
                && environ.split(|b| *b == 0).any(|var| var == mark.as_bytes())
            {
                signal_to(pid, "KILL");
            }
        }
        let _ = self.batch.wait();
    }
}

pub fn signal_to(pid: u32, signal: &str) {
    let signal = match signal {
        "INT" => Signal::INT,
        "TERM" => Signal::TERM,
        "USR1" => Signal::USR1,
        "USR2" => Signal::USR2,
        "CONT" => Signal::CONT,
        "KILL" => Signal::KILL,
        other => panic!("no signal of these tests: {other}"),
    };
    // A process that has exited already needs no signal.
    if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
        let _ = kill_process(pid, signal);
    }
}
