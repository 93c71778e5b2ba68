//! Trains one run after another, causes faults in them, and records what the faults cost.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use fovea_coordinator::journal::{self, JournalEntry};
use fovea_coordinator::protocol::MemberState;
use fovea_coordinator::status::{RunState, Status};

use crate::common::{
    self, Dice, FINISHED, LIMIT, Outcome, Process, RESUME, Run, Signal, fovea, once, outcome,
    process_of, processes_of, send,
};
use crate::fault::{ALL, Fault, What, When};
use crate::hands::{Disk, HungThread, MovableClock, Proxy};

/// Number of ranks with which every run starts.
const RANKS: u32 = 4;
/// Steps of a run, and of an epoch.
const STEPS: u64 = 56;
const EPOCH: u64 = 7;
/// Least number of steps between the start of a fault and the end: the run must not be over before it notices.
const TAIL: u64 = 5;
const SETTINGS: [&str; 4] = [
    "train.epochs=8",
    "elastic.watchdog_s=4",
    "checkpoint.keep_last=3",
    "checkpoint.every_steps=3",
];

/// The outcome of an undisturbed run.
fn reference() -> Outcome {
    once("chaos-reference", || {
        let run = Run::new(&SETTINGS);
        run.start(2).wait().with_code(FINISHED);
        outcome(&run)
    })
}

/// A line of the table of faults and their costs.
struct Row {
    fault: Fault,
    step: u64,
    detected_ms: Option<u64>,
    again_ms: u64,
    steps_lost: u64,
}

/// A run in which faults happen.
struct Arena {
    run: Run,
    process: Process,
    proxy: Proxy,
    clock: Option<MovableClock>,
    disk: Option<Disk>,
    _tools: tempfile::TempDir,
    rows: Vec<Row>,
}

pub struct Storm {
    dice: Dice,
    arena: Option<Arena>,
    rows: Vec<Row>,
    runs: u32,
}

impl Storm {
    pub fn new(seed: u64) -> Self {
        Self {
            dice: Dice::seeded(seed),
            arena: None,
            rows: Vec::new(),
            runs: 0,
        }
    }

    /// A random fault whose name contains `only`.
    pub fn any_fault(&mut self, only: &str) -> Fault {
        let kinds = ALL.len() as u64;
        loop {
            // Plain kills at any moment are the most frequent faults.
            let fault = match self.dice.roll(0, kinds + 3) {
                i if i < kinds => ALL[i as usize],
                _ => Fault {
                    what: What::Kill(1),
                    when: When::Anytime,
                },
            };
            if fault.what.to_string().contains(only) {
                return fault;
            }
        }
    }

    /// Causes a fault in the present run, or in a new one when that is nearly over.
    pub fn inject(&mut self, fault: Fault) {
        let last = STEPS
            - TAIL
            - if fault.when == When::InEvaluation {
                EPOCH
            } else {
                0
            };
        if self.arena.as_mut().is_some_and(|arena| arena.step() > last) {
            self.end_run();
        }
        loop {
            let arena = self.arena.get_or_insert_with(|| {
                self.runs += 1;
                Arena::start()
            });
            if arena.inject(fault, &mut self.dice) {
                println!("{}", line(arena.rows.last().unwrap()));
                return;
            }
            // The run was over before it noticed.
            self.end_run();
        }
    }

    fn end_run(&mut self) {
        if let Some(arena) = self.arena.take() {
            self.rows.extend(arena.end());
        }
    }

    /// Lets the last run finish, and prints the table.
    pub fn end(mut self) {
        self.end_run();
        println!(
            "\nfault                            when             at step  detected ms  training again ms  steps lost"
        );
        self.rows.iter().for_each(|row| println!("{}", line(row)));
        self.by_kind();
        let lost: u64 = self.rows.iter().map(|row| row.steps_lost).sum();
        println!(
            "\n{} faults in {} runs, {lost} steps lost, 0 samples missed, 0 repeated; all final weights equal to the \
             undisturbed run's ({})",
            self.rows.len(),
            self.runs,
            &reference().0[..16],
        );
    }
}

impl Storm {
    /// Prints the medians over all faults of a kind.
    fn by_kind(&self) {
        println!(
            "\nfault                            count  detected ms  training again ms: median  worst  steps lost at most"
        );
        let mut kinds: Vec<What> = Vec::new();
        for row in &self.rows {
            if !kinds.contains(&row.fault.what) {
                kinds.push(row.fault.what);
            }
        }
        for kind in kinds {
            let rows: Vec<&Row> = self.rows.iter().filter(|r| r.fault.what == kind).collect();
            let sorted = |value: fn(&Row) -> Option<u64>| {
                let mut values: Vec<u64> = rows.iter().filter_map(|row| value(row)).collect();
                values.sort_unstable();
                values
            };
            let (detected, again) = (sorted(|r| r.detected_ms), sorted(|r| Some(r.again_ms)));
            let median = |values: &[u64]| values.get(values.len() / 2).copied();
            println!(
                "{:<32} {:>5}  {:>11}  {:>25}  {:>5}  {:>18}",
                kind.to_string(),
                rows.len(),
                median(&detected).map_or("-".to_owned(), |ms| ms.to_string()),
                median(&again).unwrap_or(0),
                again.last().copied().unwrap_or(0),
                rows.iter().map(|row| row.steps_lost).max().unwrap_or(0),
            );
        }
    }
}

fn line(row: &Row) -> String {
    let detected = row.detected_ms.map_or("-".to_owned(), |ms| ms.to_string());
    format!(
        "{:<32} {:<16} {:>7}  {detected:>11}  {:>17}  {:>10}",
        row.fault.what.to_string(),
        row.fault.when.to_string(),
        row.step,
        row.again_ms,
        row.steps_lost,
    )
}

impl Arena {
    fn start() -> Self {
        reference();
        let tools = common::scratch();
        let clock = MovableClock::build(tools.path());
        let run = Run::new(&SETTINGS);
        let checkpoints = run.path.join("checkpoints");
        fs::create_dir_all(&checkpoints).unwrap();
        let disk = Disk::mount(&checkpoints);
        let proxy = Proxy::before(&run.path);
        let process = Self::launch(&run, clock.as_ref(), &run.first(RANKS));
        let mut arena = Self {
            run,
            process,
            proxy,
            clock,
            disk,
            _tools: tools,
            rows: Vec::new(),
        };
        arena.until("the first step", |status| status.step >= 1);
        arena
    }

    fn launch(run: &Run, clock: Option<&MovableClock>, words: &[String]) -> Process {
        let environment: Vec<(&str, &Path)> = clock
            .map(|clock| {
                vec![
                    ("LD_PRELOAD", clock.library.as_path()),
                    ("CHAOS_CLOCK", clock.offset.as_path()),
                ]
            })
            .unwrap_or_default();
        Process::start_with(words, &environment, Some(&run.path))
    }

    fn until(&mut self, what: &str, wanted: impl Fn(&Status) -> bool) -> Status {
        self.run.wait_until(&mut self.process, what, wanted)
    }

    fn step(&mut self) -> u64 {
        self.until("a status", |_| true).step
    }

    /// Waits for the fault's moment, at most until the run is nearly over.
    fn wait_for(&mut self, fault: Fault, dice: &mut Dice) -> Status {
        let when = fault.when;
        let checkpoints = self.run.path.join("checkpoints");
        let any = |status: &Status, state| status.ranks.iter().any(|r| r.state == state);
        let writes = || {
            let entries = fs::read_dir(&checkpoints).unwrap();
            entries
                .flatten()
                .any(|e| e.file_name().to_string_lossy().starts_with(".tmp-"))
        };
        // The loss of the only rank would lose steps; a preemption of it does not.
        let least = if fault.what == What::Preempt { 1 } else { 2 };
        let full = |status: &Status| {
            let seated = status.ranks.iter().filter(|r| r.rank.is_some()).count();
            status.generation > 0 && seated >= least && !status.state.is_over()
        };
        std::thread::sleep(Duration::from_millis(dice.roll(0, 600)));
        self.until(&format!("{when:?}"), |status| {
            let now = match when {
                When::Anytime => true,
                When::InCollective => any(status, MemberState::Waiting),
                When::InCheckpoint => writes(),
                When::InEvaluation => any(status, MemberState::Evaluating),
                When::InRendezvous => true,
            };
            (now && full(status)) || status.step > STEPS - 2
        })
    }

    /// Process ids of trainers in a random order: first those with a rank, then those that start or stand by, whose
    /// loss costs nothing.
    fn trainers(&self, now: &Status, dice: &mut Dice) -> Vec<u32> {
        let all = processes_of(&self.run.path);
        let mut pids: Vec<u32> = all
            .into_iter()
            .filter(|(_, line)| line.contains(" trainer "))
            .map(|(pid, _)| pid)
            .collect();
        for i in (1..pids.len()).rev() {
            pids.swap(i, dice.roll(0, i as u64) as usize);
        }
        let seated = |pid: &u32| now.ranks.iter().any(|r| r.pid == *pid && r.rank.is_some());
        pids.sort_by_key(|pid| !seated(pid));
        pids
    }

    /// Returns whether the fault hit: a run may have ended before.
    fn inject(&mut self, fault: Fault, dice: &mut Dice) -> bool {
        let before = self.wait_for(fault, dice);
        let trainers = self.trainers(&before, dice);
        let kill = |n: usize| {
            trainers
                .iter()
                .take(n)
                .for_each(|pid| send(*pid, Signal::KILL))
        };
        let coordinator = || process_of(&self.run.path, " coordinator ");
        if fault.when == When::InRendezvous {
            // Two faults must overlap: first another trainer, then the one that is measured.
            if let Some(other) = trainers.get(1) {
                send(*other, Signal::KILL);
            }
            std::thread::sleep(Duration::from_millis(dice.roll(0, 300)));
        }
        let (now, unix_ms) = (Instant::now(), unix_ms());
        let mut hung = None;
        let mut steps_lost = 0;
        match fault.what {
            What::Kill(n) => kill(n.min(trainers.len() as u32 - 1).max(1) as usize),
            What::KillInRecovery => {
                kill(1);
                std::thread::sleep(Duration::from_millis(dice.roll(0, 400)));
                if let Some(other) = trainers.get(1) {
                    send(*other, Signal::KILL);
                }
            }
            What::Stop => send(trainers[0], Signal::STOP),
            What::Pause => {
                send(trainers[0], Signal::STOP);
                std::thread::sleep(Duration::from_secs(3));
                send(trainers[0], Signal::CONT);
            }
            What::Hang => hung = HungThread::main_of(trainers[0]),
            What::KillCoordinator => send(coordinator(), Signal::KILL),
            What::KillCoordinatorAndRank => {
                send(coordinator(), Signal::KILL);
                kill(1);
            }
            What::CorruptCheckpoint => {
                self.corrupt_newest();
                kill(1);
            }
            What::FullDisk => {
                if let Some(disk) = &self.disk {
                    disk.fill(Duration::from_millis(dice.roll(200, 2000)));
                }
            }
            What::DropConnections => self.proxy.drop_all(),
            What::Delay => self.proxy.hold(Duration::from_millis(1200)),
            What::ClockJump => {
                if let Some(clock) = &self.clock {
                    clock.jump([3600, -3600, 0][dice.roll(0, 2) as usize]);
                }
            }
            What::Preempt => {
                let mut everybody = trainers.clone();
                everybody.extend([coordinator(), self.process.pid()]);
                let victim = everybody[dice.roll(0, everybody.len() as u64 - 1) as usize];
                let signals = [Signal::TERM, Signal::INT, Signal::USR1, Signal::USR2];
                send(victim, signals[dice.roll(0, 3) as usize]);
                if self.resume(Some(RESUME), dice).is_none() {
                    return false;
                }
            }
            What::KillLauncher => {
                send(self.process.pid(), Signal::KILL);
                let at = self.resume(None, dice);
                steps_lost = before.step.saturating_sub(at.unwrap_or(0));
            }
        }
        let (from, generation) = (before.step, before.generation);
        let after = self.until("training again", |status| {
            let anew = !fault.what.ends_the_generation() || status.generation > generation;
            status.step > from && anew
        });
        let again_ms = now.elapsed().as_millis() as u64;
        drop(hung);
        let (detected_ms, lost) = costs(&self.run.path, unix_ms, after.generation);
        self.rows.push(Row {
            fault,
            step: from,
            detected_ms,
            again_ms,
            steps_lost: steps_lost + lost,
        });
        true
    }

    /// Lets the run leave, with this exit code if it can choose one, and resumes it with any number of ranks. Returns
    /// the step after which it continues; `None` when it has finished instead.
    fn resume(&mut self, code: Option<i32>, dice: &mut Dice) -> Option<u64> {
        let deadline = Instant::now() + LIMIT;
        while !self.process.has_ended() {
            assert!(Instant::now() < deadline, "it did not leave");
            std::thread::sleep(Duration::from_millis(5));
        }
        common::assert_nobody_left(&self.run.path);
        let finished = |status: Status| status.state == RunState::Finished;
        if code.is_some() && Status::load(&self.run.path).is_ok_and(finished) {
            return None;
        }
        let ranks = [1, 2, 4][dice.roll(0, 2) as usize].to_string();
        let run = self.run.text().to_owned();
        let words = ["train", "--out", &run, "--resume", "--ranks", &ranks];
        let words = words.map(str::to_owned);
        let next = Self::launch(&self.run, self.clock.as_ref(), &words);
        let left = std::mem::replace(&mut self.process, next).wait();
        if let Some(code) = code {
            left.with_code(code);
        }
        let resumed = self.until("the resumed run", |status| status.generation > 0);
        Some(resumed.step)
    }

    fn corrupt_newest(&self) {
        let entries = fs::read_dir(self.run.path.join("checkpoints")).unwrap();
        let steps = entries.flatten().map(|e| e.path());
        let newest = steps
            .filter(|p| {
                p.file_name()
                    .is_some_and(|n| n.to_string_lossy().starts_with("step-"))
            })
            .max();
        if let Some(newest) = newest {
            common::flip_byte(&newest.join("weights.safetensors"), 4_000_000);
        }
    }

    /// Asserts that the run ends as if nothing had happened.
    fn end(mut self) -> Vec<Row> {
        if let Some(clock) = &self.clock {
            clock.jump(0);
        }
        self.process.wait().with_code(FINISHED);
        common::assert_nobody_left(&self.run.path);
        let (ended, undisturbed) = (outcome(&self.run), reference());
        assert_eq!(ended.0, undisturbed.0, "the final weights");
        assert_eq!(ended.1, undisturbed.1, "metrics.csv");
        assert_eq!(ended.2, undisturbed.2, "throughput.csv");
        fovea(&["audit", self.run.text()]).with_code(FINISHED);
        self.process = Process::start(&["--version"], None);
        let segments = fs::read_dir("/dev/shm").map_or(0, |entries| {
            let ours = |e: &fs::DirEntry| e.file_name().to_string_lossy().contains("fovea");
            entries.flatten().filter(ours).count()
        });
        assert_eq!(segments, 0, "shared memory is left behind");
        std::mem::take(&mut self.rows)
    }
}

/// Costs by the run's journal: milliseconds from `since` to the first incident (or the first start of a coordinator),
/// and the steps that were repeated until `generation`.
fn costs(run: &Path, since: u64, generation: u64) -> (Option<u64>, u64) {
    const HOUR_MS: u64 = 3_600_000;
    let records = journal::read(run).unwrap().records;
    // The clock of the run may be an hour ahead or behind.
    let later = |unix_ms: u64| (unix_ms % HOUR_MS + HOUR_MS - since % HOUR_MS) % HOUR_MS;
    let noticed = records.iter().filter(|record| {
        matches!(
            record.entry,
            JournalEntry::Incident { .. } | JournalEntry::Started { .. }
        )
    });
    let noticed = noticed
        .map(|record| later(record.unix_ms))
        .find(|ms| *ms < HOUR_MS / 2);
    let lost = records.iter().filter_map(|record| match record.entry {
        JournalEntry::Recovered {
            generation: g,
            steps_lost,
            ..
        } if g == generation => Some(steps_lost),
        _ => None,
    });
    (noticed, lost.sum())
}

fn unix_ms() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_millis() as u64)
}
