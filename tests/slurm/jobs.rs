//! Jobs of Fovea on a real Slurm, from `fovea submit` to a finished run. Whatever the scheduler does to them, their
//! final weights must equal those of `fovea train` on this machine.

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use crate::cluster::Cluster;
use crate::common::{self, Dice, FINISHED, Run, USAGE};
use crate::config::Options;
use crate::job::Job;
use crate::need;
use crate::process::Process;
#[cfg(feature = "mpi")]
use crate::submitted::{BACKEND_MPI, EVERY, MPI};
use crate::submitted::{LIMIT, LOCAL, STEPS, Submitted, fovea, reference, status, words};

// --- 1 ---------------------------------------------------------------------------------------------

#[test]
#[cfg(feature = "mpi")]
fn two_nodes_train_what_one_machine_does() {
    let Some(_turn) = need::slurm() else { return };
    reference();
    let cluster = Cluster::start(&Options::default());
    let job = Submitted::new(&cluster, &BACKEND_MPI, &MPI);
    job.wait_step(1);
    let mut nodes: Vec<_> = job
        .trainers()
        .iter()
        .map(|p| p.variable("SLURMD_NODENAME").unwrap().to_owned())
        .collect();
    nodes.sort();
    assert_eq!(nodes, ["n1", "n2"], "one rank on each node");
    assert_eq!(job.finishes().restarts, 0);
    cluster.assert_nodes_idle();
}

#[test]
fn one_node_trains_what_one_machine_does() {
    let Some(_turn) = need::slurm() else { return };
    reference();
    let cluster = Cluster::start(&Options::default());
    let job = Submitted::new(&cluster, &[], &LOCAL);
    assert_eq!(job.finishes().restarts, 0);
    cluster.assert_nodes_idle();
}

/// Where Slurm cannot start MPI, `mpirun` does it inside the job. At a preemption it ends the ranks before they can
/// agree on a last step, so the steps since the newest complete checkpoint are lost. One checkpoint may still be on its
/// way to the disk then; training waits for it before it hands over the next one.
#[test]
#[cfg(feature = "mpi")]
fn mpirun_trains_over_both_nodes() {
    let Some(_turn) = need::slurm() else { return };
    reference();
    let cluster = Cluster::start(&Options::default());
    let site = "partition = \"low\"\nmpi = \"mpirun\"\n";
    fs::write(cluster.dir().join("site.toml"), site).unwrap();
    let job = Submitted::new(&cluster, &BACKEND_MPI, &MPI);
    job.wait_step(1);
    // The mpirun of Open MPI 5 becomes `prterun`.
    let launcher = |p: &&Process| p.line.starts_with("mpirun ") || p.line.starts_with("prterun ");
    let all = cluster.processes_of_job(&job.id);
    assert!(all.iter().any(|p| launcher(&p)), "{all:?}");
    let lost = preempt(&job, 5);
    assert!(lost <= 2 * EVERY, "{lost} steps lost\n{}", cluster.logs());
    assert_eq!(job.finishes().restarts, 1);
    cluster.assert_nodes_idle();
}

// --- 2 ---------------------------------------------------------------------------------------------

/// Preempts a job that has just committed `step`, and lets it continue. Returns how many steps were done twice.
#[track_caller]
fn preempt(job: &Submitted<'_>, step: u64) -> u64 {
    let cluster = job.cluster;
    job.wait_step(step);
    let restarts = cluster.job(&job.id).restarts;
    let start = Instant::now();
    let high = cluster.submit(&["-p", "high", "-N2", "--exclusive"], "sleep 1");
    cluster.wait("everybody gone", LIMIT, || {
        job.trainers().is_empty().then_some(())
    });
    let gone = start.elapsed();
    let saved = status(cluster, &job.run.path)["checkpoint"]["step"]
        .as_u64()
        .unwrap_or(0);
    let reached = job.step().unwrap_or(0);
    cluster.wait_state(&high, "COMPLETED", LIMIT);
    cluster.wait_restarted(&job.id, restarts + 1, LIMIT);
    let restart = Instant::now();
    job.wait_step(reached + 1);
    println!(
        "preempted at step {reached}, {} lost: gone after {:.1} s, first step {:.1} s after the restart",
        reached - saved,
        gone.as_secs_f64(),
        restart.elapsed().as_secs_f64()
    );
    reached - saved
}

fn preempted(settings: &[&str], options: &[&str], grace_time: u32) {
    let mut dice = Dice::new("preempted");
    reference();
    let cluster = Cluster::start(&Options {
        grace_time,
        ..Options::default()
    });
    let job = Submitted::new(&cluster, settings, options);
    // Before the first checkpoint, in the middle, and towards the end.
    for (low, high) in [(0, 2), (15, 30), (38, STEPS - 12)] {
        let lost = preempt(&job, dice.roll(low, high));
        assert!(lost <= 1, "{lost} steps lost\n{}", cluster.logs());
    }
    job.finishes();
    // The count comes from the run's own history: Slurm 24.11 counts a requeue twice when both preemption and the
    // script asked for it.
    let history = fs::read_to_string(job.run.path.join("slurm/history.jsonl")).unwrap();
    assert_eq!(
        history.matches("\"event\":\"start\"").count(),
        4,
        "{history}"
    );
    cluster.assert_nodes_idle();
}

/// Every process gets the signal at once.
#[test]
#[cfg(feature = "mpi")]
fn two_nodes_survive_preemption() {
    let Some(_turn) = need::slurm() else { return };
    preempted(&BACKEND_MPI, &MPI, 0);
}

/// With a grace time, the ranks get the signal first.
#[test]
fn one_node_survives_preemption() {
    let Some(_turn) = need::slurm() else { return };
    preempted(&[], &LOCAL, 5);
}

/// Slurm counts minutes and checks limits every 30 s, so the notice of a limit of one minute comes late: the run must
/// last longer than that.
#[test]
#[ignore = "takes five minutes: cargo test --release --features mpi --test slurm -- --ignored"]
fn the_time_limit_is_survived() {
    let Some(_turn) = need::slurm() else { return };
    let settings = ["train.epochs=40", "checkpoint.every_steps=50"];
    let direct = Run::new(&settings);
    direct.start(2).wait().with_code(FINISHED);
    let cluster = Cluster::start(&Options::default());
    let options = ["--nodes", "1", "--ranks-per-node", "2", "--time", "1"];
    let job = Submitted::new(&cluster, &settings, &options);
    let ended = job.ends();
    assert_eq!(ended.state, "COMPLETED", "{}", cluster.logs());
    assert!(
        ended.restarts > 0,
        "the run was too short for this test\n{}",
        cluster.logs()
    );
    assert_eq!(job.run.final_hash(), direct.final_hash());
    job.run.steps();
    cluster.assert_nodes_idle();
}

// --- 3 ---------------------------------------------------------------------------------------------

#[test]
#[cfg(feature = "mpi")]
fn a_dead_node_is_survived() {
    let Some(_turn) = need::slurm() else { return };
    reference();
    let mut cluster = Cluster::start(&Options {
        // Longer than a message to the dead node takes: Slurm 24.11 delays the pings to other nodes until then.
        slurmd_timeout: 12,
        ..Options::default()
    });
    let (run, id) = {
        let job = Submitted::new(&cluster, &BACKEND_MPI, &MPI);
        job.wait_step(10);
        (job.run, job.id)
    };
    let start = Instant::now();
    cluster.kill_node("n2");
    let job = Submitted {
        cluster: &cluster,
        run,
        id,
    };
    let at = job.step().unwrap_or(0);
    job.wait_step(at + 1);
    println!(
        "a node died at step {at}: next step {:.1} s later",
        start.elapsed().as_secs_f64()
    );
    // The run continues in the same job, on the node that is left.
    assert_eq!(job.finishes().restarts, 0);
    drop(job);
    cluster.start_node("n2");
    cluster.wait("n2 back", LIMIT, || {
        (cluster.node_state("n2") == "idle").then_some(())
    });
    cluster.assert_nodes_idle();
}

#[test]
#[cfg(feature = "mpi")]
fn a_cut_link_is_survived() {
    let Some(_turn) = need::namespaces() else {
        return;
    };
    reference();
    let cluster = Cluster::start_apart(&Options {
        slurmd_timeout: 5,
        ..Options::default()
    });
    let job = Submitted::new(&cluster, &BACKEND_MPI, &MPI);
    job.wait_step(10);
    let start = Instant::now();
    cluster.cut("n2");
    let at = job.step().unwrap_or(0);
    job.wait_step(at + 1);
    println!(
        "a link was cut at step {at}: next step {:.1} s later",
        start.elapsed().as_secs_f64()
    );
    // The isolated ranks notice it, too, and leave by themselves.
    cluster.wait("nobody on the far side", LIMIT, || {
        let far = |p: &&Process| p.variable("SLURMD_NODENAME").is_some_and(|n| n == "n2");
        (job.trainers().iter().filter(far).count() == 0).then_some(())
    });
    cluster.mend("n2");
    job.finishes();
    let state = cluster.node_state("n2");
    assert!(!state.contains("drain"), "{state}");
}

// --- 4 ---------------------------------------------------------------------------------------------

#[test]
fn ten_elements_all_finish() {
    let Some(_turn) = need::slurm() else { return };
    let mut dice = Dice::new("ten_elements_all_finish");
    let short = ["train.epochs=3", "checkpoint.every_steps=3"];
    let direct = Run::new(&short);
    direct.start(2).wait().with_code(FINISHED);
    let cluster = Cluster::start(&Options::default());
    let options = [
        "--nodes",
        "1",
        "--ranks-per-node",
        "1",
        "--time",
        "30",
        "--array",
        "0-9%4",
    ];
    let array = Submitted::new(&cluster, &short, &options);
    let elements = || -> Vec<Job> {
        cluster
            .jobs()
            .into_iter()
            .filter(|job| job.element.is_some())
            .collect()
    };
    let runs: Vec<PathBuf> = (0..10)
        .map(|element| array.run.path.join(element.to_string()))
        .collect();
    // There must never be two coordinators for one element; this is checked all the time.
    let once = || {
        let all = cluster.processes();
        for element in 0..10u32 {
            let coordinators = all.iter().filter(|p| {
                p.line.contains(" coordinator ")
                    && p.has("SLURM_ARRAY_TASK_ID", element.to_string())
            });
            assert!(
                coordinators.count() <= 1,
                "element {element} runs twice: {all:?}"
            );
        }
    };
    for _ in 0..4 {
        let wanted = Duration::from_millis(dice.roll(500, 6000));
        let start = Instant::now();
        cluster.wait("a random moment", LIMIT, || {
            once();
            elements().iter().for_each(|job| cluster.hurry(job));
            (start.elapsed() > wanted).then_some(())
        });
        let high = cluster.submit(&["-p", "high", "-N1", "--exclusive"], "sleep 1");
        cluster.wait_state(&high, "COMPLETED", LIMIT);
    }
    cluster.wait("end of all elements", 3 * LIMIT, || {
        once();
        let elements = elements();
        elements.iter().for_each(|job| cluster.hurry(job));
        (elements.len() == 10 && elements.iter().all(Job::is_over)).then_some(())
    });
    for job in elements() {
        assert_eq!(
            (&*job.state, job.exit_code),
            ("COMPLETED", 0),
            "{job:?}\n{}",
            cluster.logs()
        );
    }
    println!(
        "restarts: {:?}",
        elements()
            .iter()
            .map(|job| job.restarts)
            .collect::<Vec<_>>()
    );
    for run in &runs {
        let status = status(&cluster, run);
        assert_eq!(status["state"], "finished", "{}: {status:#}", run.display());
        assert_eq!(
            status["checkpoint"]["weights_blake3"],
            direct.final_hash(),
            "{}",
            run.display()
        );
    }
    cluster.assert_nobody_left(&array.run.path);
    cluster.assert_nodes_idle();
    // There is nothing to submit again, and the array's own directory holds no run.
    let out = array.run.text();
    let said = fovea(&cluster, &["submit", "--out", out], FINISHED);
    assert!(said.contains("all 10 elements of 0-9%4 finished"), "{said}");
    let said = fovea(&cluster, &["audit", out], USAGE);
    assert!(said.contains(&format!("{out}/0")), "{said}");
    fovea(&cluster, &["audit", &format!("{out}/0")], FINISHED);
}

// --- 5 ---------------------------------------------------------------------------------------------

/// The configuration was right at the submission, and is wrong when the job starts.
#[test]
fn a_config_error_ends_the_job_at_once() {
    let Some(_turn) = need::slurm() else { return };
    let cluster = Cluster::start(&Options::default());
    // The login node refuses a mistake that it can see.
    let run = Run::new(&[]);
    let refused = [&LOCAL[..], &["--set", "train.no_such_key=1"]].concat();
    let said = fovea(&cluster, &words(&run, &refused), USAGE);
    assert!(
        said.contains("no_such_key") && said.contains("\n  help: "),
        "{said}"
    );
    assert!(cluster.jobs().is_empty());

    // Another job blocks the nodes, and the test removes the dataset before the job starts.
    let data = common::scratch();
    let moved = data.path().join("data");
    common::copy(&common::data().prepared, &moved);
    let setting = format!("data.path={}", moved.display());
    let blocker = cluster.submit(&["-p", "high", "-N2", "--exclusive"], "sleep 1000");
    cluster.wait_state(&blocker, "RUNNING", LIMIT);
    let job = Submitted::new(&cluster, &[&setting], &LOCAL);
    fs::remove_dir_all(&moved).unwrap();
    cluster.output("scancel", &[&blocker]);
    let ended = job.ends();
    assert_eq!(
        (&*ended.state, ended.exit_code, ended.restarts),
        ("FAILED", USAGE, 0),
        "{}",
        cluster.logs()
    );
    let status = fovea(&cluster, &["status", job.run.text()], FINISHED);
    assert!(
        status.contains(moved.to_str().unwrap()),
        "it does not say why:\n{status}"
    );
    cluster.assert_nodes_idle();
}

/// All trainers are killed again and again before they can take a step.
#[test]
fn no_progress_ends_the_job() {
    let Some(_turn) = need::slurm() else { return };
    let cluster = Cluster::start(&Options::default());
    let job = Submitted::new(&cluster, &["elastic.max_restarts=2"], &LOCAL);
    let ended = cluster.wait("end", LIMIT, || {
        for trainer in job.trainers() {
            common::send(trainer.pid, common::Signal::KILL);
        }
        let now = cluster.job(&job.id);
        cluster.hurry(&now);
        Some(now).filter(Job::is_over)
    });
    assert_eq!(
        (&*ended.state, ended.exit_code),
        ("FAILED", 1),
        "{}",
        cluster.logs()
    );
    cluster.assert_nobody_left(&job.run.path);
    cluster.assert_nodes_idle();
}

// --- 6 ---------------------------------------------------------------------------------------------

#[test]
fn every_rank_has_a_gpu_of_its_own() {
    let Some(_turn) = need::slurm() else { return };
    let cluster = Cluster::start(&Options::default());
    // The GPUs are only two device files.
    let on_cpu = ["--set", "train.device=cpu"];
    let options = [
        &["--nodes", "1", "--gpus-per-node", "2", "--time", "30"],
        &on_cpu[..],
    ]
    .concat();
    let job = Submitted::new(&cluster, &[], &options);
    let trainers = cluster.wait("two trainers", LIMIT, || {
        Some(job.trainers()).filter(|all| all.len() == 2)
    });
    let value =
        |p: &Process, name: &str| p.variable(name).map(|v| v.to_string_lossy().into_owned());
    let mut devices: Vec<_> = trainers
        .iter()
        .map(|p| value(p, "CUDA_VISIBLE_DEVICES").unwrap_or_default())
        .collect();
    devices.sort();
    // Either each rank sees its own GPU alone, or all ranks see all GPUs and choose by local rank.
    let mut local: Vec<_> = trainers
        .iter()
        .map(|p| value(p, "SLURM_LOCALID").unwrap_or_default())
        .collect();
    local.sort();
    assert_eq!(local, ["0", "1"]);
    assert!(
        devices == ["0", "1"] || devices == ["0,1", "0,1"],
        "{devices:?}"
    );
    job.wait_step(1);
    cluster.output("scancel", &[&job.id]);
    job.ends();
    cluster.assert_nodes_idle();
}
