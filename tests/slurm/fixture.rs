//! Tests of the test bed itself: what the tests of jobs assume about this Slurm.

use std::cell::RefCell;
use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use crate::cluster::Cluster;
use crate::config::Options;
use crate::need;
use crate::process::{Process, processes};

/// Time limit on a loaded machine; everything that it limits takes seconds.
pub const SOON: Duration = Duration::from_secs(60);

/// A well-behaved job: at TERM its tasks stop, and it requeues itself. It records what happened in `log.JOB`.
pub const WELL_BEHAVED: &str = r#"
trap 'echo term >>"log.$SLURM_JOB_ID"; kill $step' TERM
trap : CONT
echo "start ${SLURM_RESTART_COUNT:-0}" >>"log.$SLURM_JOB_ID"
srun --kill-on-bad-exit=0 --no-kill sleep 1000 & step=$!
while :; do wait $step; kill -0 $step 2>/dev/null || break; done
scontrol requeue $SLURM_JOB_ID
exit 0
"#;

/// Prints how long something took.
pub fn timed<T>(what: &str, act: impl FnOnce() -> T) -> T {
    let start = Instant::now();
    let result = act();
    println!("{what}: {:.2} s", start.elapsed().as_secs_f64());
    result
}

fn log_of(cluster: &Cluster, id: &str) -> String {
    fs::read_to_string(cluster.dir().join(format!("work/log.{id}"))).unwrap_or_default()
}

/// Waits until the job's step runs on all its nodes.
pub fn wait_step(cluster: &Cluster, id: &str, tasks: usize) {
    cluster.wait("tasks", SOON, || {
        (sleepers(&cluster.processes_of_job(id)) == tasks).then_some(())
    });
}

/// How many of these processes are tasks. srun starts tasks by their whole path, and has none in its own command line.
pub fn sleepers(processes: &[Process]) -> usize {
    processes
        .iter()
        .filter(|p| p.line.ends_with("/sleep 1000"))
        .count()
}

/// Things that a test must not leave on this machine: links, network namespaces, mounts, shared memory.
pub fn traces() -> Vec<String> {
    let mut all = Vec::new();
    for file in ["/proc/net/dev", "/proc/mounts"] {
        let text = fs::read_to_string(file).unwrap();
        all.extend(
            text.lines()
                .filter_map(|l| {
                    l.split_whitespace()
                        .nth(usize::from(file == "/proc/mounts"))
                })
                // Tests that fill a disk mount these small ones.
                .filter(|l| {
                    !l.starts_with(env!("CARGO_TARGET_TMPDIR")) || !l.ends_with("/checkpoints")
                })
                .map(str::to_owned),
        );
    }
    for directory in ["/dev/shm", "/run/netns"] {
        let entries = fs::read_dir(directory).into_iter().flatten().flatten();
        let ours = |name: &str| {
            directory != "/dev/shm" || name.starts_with("vader") || name.contains("fovea")
        };
        all.extend(
            entries
                .map(|e| e.file_name().to_string_lossy().into_owned())
                .filter(|n| ours(n)),
        );
    }
    all.sort();
    all
}

/// Asserts that nothing new since `before` stays. Other tests run at the same time; what is theirs disappears by
/// itself.
#[track_caller]
pub fn assert_no_traces(before: &[String]) {
    let deadline = Instant::now() + SOON;
    loop {
        let mut new = traces();
        new.retain(|trace| !before.contains(trace));
        if new.is_empty() {
            return;
        }
        assert!(Instant::now() < deadline, "left behind: {new:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn srun_reaches_both_nodes_and_nothing_is_left() {
    let Some(_turn) = need::slurm() else { return };
    let before = traces();
    let cluster = timed("start", || Cluster::start(&Options::default()));
    let said = timed("srun", || {
        cluster.output("srun", &["-N2", "-n2", "sh", "-c", "echo $SLURMD_NODENAME"])
    });
    let mut nodes: Vec<_> = said.lines().collect();
    nodes.sort_unstable();
    assert_eq!(nodes, ["n1", "n2"]);
    // A job that ignores signals must not hold up the end of the cluster.
    let id = cluster.submit(
        &["-N2"],
        "trap : TERM; while :; do srun sleep 1000; sleep 0.1; done",
    );
    wait_step(&cluster, &id, 2);
    let (directory, conf) = (cluster.dir().to_owned(), cluster.dir().join("slurm.conf"));
    timed("stop", || drop(cluster));
    assert!(!directory.exists(), "{}", directory.display());
    let left = processes();
    let left: Vec<_> = left.iter().filter(|p| p.has("SLURM_CONF", &conf)).collect();
    assert!(left.is_empty(), "{left:?}");
    assert_no_traces(&before);
}

#[test]
fn a_failed_test_leaves_nothing() {
    let Some(_turn) = need::slurm() else { return };
    let directory = RefCell::new(PathBuf::new());
    let failed = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let cluster = Cluster::start(&Options::default());
        *directory.borrow_mut() = cluster.dir().to_owned();
        cluster.submit(&["-N2"], WELL_BEHAVED);
        panic!("on purpose");
    }));
    assert_eq!(failed.unwrap_err().downcast_ref(), Some(&"on purpose"));
    let directory = directory.into_inner();
    assert!(!directory.exists(), "{}", directory.display());
    let left = crate::common::processes_of(&directory);
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn fake_gpus_are_handed_out() {
    let Some(_turn) = need::slurm() else { return };
    let cluster = Cluster::start(&Options::default());
    let show = [
        "sh",
        "-c",
        "echo $SLURMD_NODENAME $SLURM_LOCALID $CUDA_VISIBLE_DEVICES",
    ];
    let gpus = ["-N2", "--ntasks-per-node=2", "--gpus-per-task=1"];
    let said = cluster.output("srun", &[&gpus[..], &show[..]].concat());
    let mut lines: Vec<_> = said.lines().collect();
    lines.sort_unstable();
    assert_eq!(lines, ["n1 0 0", "n1 1 1", "n2 0 0", "n2 1 1"]);
}

#[test]
fn preemption_requeues_a_job_that_asks_for_it() {
    let Some(_turn) = need::slurm() else { return };
    for grace_time in [0, 5] {
        let cluster = Cluster::start(&Options {
            grace_time,
            ..Options::default()
        });
        let low = cluster.submit(&["-N2", "--requeue"], WELL_BEHAVED);
        wait_step(&cluster, &low, 2);
        let start = Instant::now();
        let high = cluster.submit(&["-N2", "-p", "high", "--exclusive"], "sleep 1");
        cluster.wait_state(&high, "RUNNING", SOON);
        println!(
            "grace {grace_time}: in {:.2} s",
            start.elapsed().as_secs_f64()
        );
        cluster.wait_state(&high, "COMPLETED", SOON);
        let again = timed("again after", || cluster.wait_restarted(&low, 1, SOON));
        assert_eq!(again.restarts, 1, "{again:?}\n{}", cluster.logs());
        wait_step(&cluster, &low, 2);
        assert!(
            log_of(&cluster, &low).contains("start 1"),
            "{}",
            log_of(&cluster, &low)
        );
    }
}

#[test]
fn a_batch_script_may_ask_by_its_exit_code() {
    let Some(_turn) = need::slurm() else { return };
    let cluster = Cluster::start(&Options {
        requeue_exit: Some(85),
        ..Options::default()
    });
    let script = "test -n \"$SLURM_RESTART_COUNT\" || exit 85; exit 3";
    let id = cluster.submit(&["--requeue"], script);
    cluster.wait("requeue", SOON, || {
        Some(cluster.job(&id)).filter(|job| job.restarts == 1)
    });
    let job = cluster.wait("end", SOON, || {
        let job = cluster.job(&id);
        cluster.hurry(&job);
        Some(job).filter(|job| job.is_over())
    });
    assert_eq!(
        (&*job.state, job.exit_code, job.restarts),
        ("FAILED", 3, 1),
        "{job:?}"
    );
}

#[test]
fn a_dead_node_requeues_a_job() {
    let Some(_turn) = need::slurm() else { return };
    let mut cluster = Cluster::start(&Options::default());
    // srun may report the dead task before Slurm knows that the node is dead; the job has not failed at that point.
    let script = "srun sleep 1000; sleep 1000";
    let id = cluster.submit(&["-N2", "--requeue"], script);
    wait_step(&cluster, &id, 2);
    cluster.kill_node("n2");
    assert!(cluster.processes_on("n2").is_empty());
    timed("noticed", || {
        cluster.set_down("n2");
        cluster.wait("requeue", SOON, || {
            Some(cluster.job(&id)).filter(|job| job.restarts == 1)
        });
    });
    timed("back", || {
        cluster.start_node("n2");
        cluster.wait("n2", SOON, || {
            (cluster.node_state("n2") == "idle").then_some(())
        });
    });
    timed("again", || cluster.wait_restarted(&id, 1, SOON));
    wait_step(&cluster, &id, 2);
}

#[test]
fn a_dead_node_leaves_a_job_that_wants_to_stay() {
    let Some(_turn) = need::slurm() else { return };
    let mut cluster = Cluster::start(&Options::default());
    // One step per node: the step on the other node continues.
    let script = "srun -w n1 -N1 -n1 sleep 1000 & srun -w n2 -N1 -n1 sleep 1000 & wait -n; wait";
    let id = cluster.submit(&["-N2", "--requeue", "--no-kill"], script);
    wait_step(&cluster, &id, 2);
    cluster.kill_node("n2");
    cluster.set_down("n2");
    cluster.wait("n2 down", SOON, || {
        cluster.node_state("n2").starts_with("down").then_some(())
    });
    // Long enough for Slurm to end a job for this reason.
    std::thread::sleep(Duration::from_secs(4));
    let job = cluster.job(&id);
    assert_eq!(
        (&*job.state, job.restarts),
        ("RUNNING", 0),
        "{}",
        cluster.logs()
    );
    let tasks = cluster.processes_of_job(&id);
    assert_eq!(sleepers(&tasks), 1, "{tasks:?}");
    cluster.start_node("n2");
}

#[test]
fn tasks_outlive_their_slurmd() {
    let Some(_turn) = need::slurm() else { return };
    let mut cluster = Cluster::start(&Options::default());
    let id = cluster.submit(&["-N2"], "srun sleep 1000");
    wait_step(&cluster, &id, 2);
    cluster.kill_slurmd("n2");
    wait_step(&cluster, &id, 2);
    cluster.start_node("n2");
    cluster.output("scancel", &[&id]);
    cluster.wait_state(&id, "CANCELLED", SOON);
    cluster.assert_nobody_left(&cluster.dir().join("work/run"));
    cluster.assert_nodes_idle();
}

/// A process that left its session and lost its parent is out of Slurm's sight, and the test bed finds it all the same.
#[test]
fn a_process_that_outlives_its_job_is_found() {
    let Some(_turn) = need::slurm() else { return };
    let cluster = Cluster::start(&Options::default());
    let id = cluster.submit(&["-N1"], "(setsid sleep 1000 >/dev/null 2>&1 &)");
    cluster.wait_state(&id, "COMPLETED", SOON);
    let orphan = cluster.wait("the orphan alone", SOON, || {
        let [orphan] = &cluster.processes_of_jobs()[..] else {
            return None;
        };
        Some(orphan.pid)
    });
    assert_eq!(cluster.processes_of_job(&id)[0].pid, orphan);
    crate::common::send(orphan, crate::common::Signal::KILL);
    cluster.assert_nobody_left(&cluster.dir().join("work/run"));
}

/// When a test is killed, everything that it had started ends too.
#[test]
fn a_killed_test_leaves_nothing() {
    let Some(_turn) = need::slurm() else { return };
    if std::env::var_os("FOVEA_TEST_TO_BE_KILLED").is_some() {
        let cluster = Cluster::start(&Options::default());
        let id = cluster.submit(&["-N2"], "srun sleep 1000");
        wait_step(&cluster, &id, 2);
        fs::write(
            std::env::var_os("FOVEA_TEST_TO_BE_KILLED").unwrap(),
            cluster.dir().to_str().unwrap(),
        )
        .unwrap();
        std::thread::sleep(SOON);
        unreachable!("to be killed");
    }
    let scratch = crate::common::scratch();
    let told = scratch.path().join("told");
    let mut test = Command::new(std::env::current_exe().unwrap());
    test.args(["--exact", "fixture::a_killed_test_leaves_nothing"]);
    let mut test = test.env("FOVEA_TEST_TO_BE_KILLED", &told).spawn().unwrap();
    let deadline = Instant::now() + SOON;
    let directory = loop {
        if let Some(text) = fs::read_to_string(&told)
            .ok()
            .filter(|text| !text.is_empty())
        {
            break PathBuf::from(text);
        }
        assert!(Instant::now() < deadline && test.try_wait().unwrap().is_none());
        std::thread::sleep(Duration::from_millis(20));
    };
    test.kill().unwrap();
    test.wait().unwrap();
    let conf = directory.join("slurm.conf");
    while directory.exists() {
        assert!(
            Instant::now() < deadline,
            "{} is still there",
            directory.display()
        );
        std::thread::sleep(Duration::from_millis(20));
    }
    let left: Vec<_> = processes()
        .into_iter()
        .filter(|p| p.has("SLURM_CONF", &conf))
        .collect();
    assert!(left.is_empty(), "{left:?}");
}

#[cfg(feature = "mpi")]
const SUM: &str = r#"
#include <mpi.h>
#include <stdio.h>
int main(int argc, char **argv) {
    int rank, sum = 0;
    MPI_Init(&argc, &argv);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    int mine = rank + 1;
    MPI_Allreduce(&mine, &sum, 1, MPI_INT, MPI_SUM, MPI_COMM_WORLD);
    printf("rank %d sum %d\n", rank, sum);
    MPI_Finalize();
    return 0;
}
"#;

/// The launch that two-node jobs on CPUs use: srun starts the ranks, and PMIx connects them.
#[cfg(feature = "mpi")]
pub fn mpi_sums(cluster: &Cluster) {
    let (source, program) = (cluster.dir().join("sum.c"), cluster.dir().join("sum"));
    fs::write(&source, SUM).unwrap();
    let built = Command::new("mpicc")
        .arg("-o")
        .args([&program, &source])
        .status();
    assert!(built.unwrap().success());
    let said = timed("srun --mpi=pmix", || {
        let program = program.to_str().unwrap();
        cluster.output("srun", &["--mpi=pmix", "-N2", "-n4", program])
    });
    let mut lines: Vec<_> = said.lines().collect();
    lines.sort_unstable();
    let sums = [
        "rank 0 sum 10",
        "rank 1 sum 10",
        "rank 2 sum 10",
        "rank 3 sum 10",
    ];
    assert_eq!(lines, sums);
}

#[test]
#[cfg(feature = "mpi")]
fn mpi_spans_both_nodes() {
    let Some(_turn) = need::slurm() else { return };
    let before = traces();
    let cluster = Cluster::start(&Options::default());
    mpi_sums(&cluster);
    drop(cluster);
    assert_no_traces(&before);
}
