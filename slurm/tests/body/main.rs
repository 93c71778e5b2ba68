//! Tests of what the batch script does, without Slurm: bash runs it with stand-ins for Slurm's commands and for fovea.
//! The stand-ins log their calls in one file.

mod stage;

use std::time::Duration;

use fovea_slurm::site::{Requeue, Site};

use stage::{Scene, Stage, signal_to};

fn requeues(log: &[String]) -> Vec<&str> {
    log.iter()
        .filter_map(|line| line.strip_prefix("scontrol requeue "))
        .collect()
}

#[test]
fn a_run_that_finishes() {
    let stage = Stage::new(&Scene::default());
    stage.coordinator(1);
    stage.until(1, "trainer start");
    stage.write("finish", "");
    let run = stage
        .dir
        .path()
        .join("runs/first run")
        .display()
        .to_string();
    let (code, log) = stage.end();
    assert_eq!(code, 0);
    let line = |begin: &str| {
        log.iter()
            .find(|line| line.starts_with(begin))
            .expect(begin)
            .clone()
    };
    assert_eq!(
        line("plan"),
        format!(
            "plan {run}/slurm/config.toml --out {run} --node-states n1 alloc, n2 alloc --mpi-list none pmix --mpirun mpirun (Open MPI) 4.1"
        )
    );
    assert!(
        line("srun").starts_with("srun --ntasks=2 --comment=a b /"),
        "{log:#?}"
    );
    assert_eq!(line("trainer"), format!("trainer start {run} --in-job"));
    assert!(
        line("coordinator start").ends_with(&format!(
            " {run} --in-job --bind 10.0.0.1 --time-left 1:02:03"
        )),
        "{log:#?}"
    );
    assert_eq!(
        line("next"),
        format!("next {run} --coordinator 0 --trainers 0")
    );
    assert!(requeues(&log).is_empty());
}

#[test]
fn a_coordinator_that_is_killed_starts_again() {
    let stage = Stage::new(&Scene::default());
    for nth in 1..=2 {
        signal_to(stage.coordinator(nth), "KILL");
    }
    stage.coordinator(3);
    assert_eq!(stage.count("trainer start"), 1, "the ranks stay");
    stage.write("finish", "");
    let (code, log) = stage.end();
    assert_eq!((code, requeues(&log).len()), (0, 0), "{log:#?}");
}

#[test]
fn one_that_is_killed_at_once_every_time_is_given_up() {
    let stage = Stage::new(&Scene {
        act: &[
            ("coordinator", "say start; kill -KILL $$"),
            (
                "trainer",
                "say start; until grep -q enough \"$STAND_INS/log\"; do sleep 0.05; done",
            ),
        ],
        ..Scene::default()
    });
    stage.write("codes", "1\n");
    stage.until(5, "coordinator start");
    let (code, log) = stage.end();
    assert_eq!(code, 1);
    assert_eq!(
        log.iter()
            .filter(|line| *line == "coordinator start")
            .count(),
        5,
        "{log:#?}"
    );
    assert!(
        log.iter().any(|line| line.contains("--coordinator 137")),
        "{log:#?}"
    );
}

#[test]
fn a_notice_becomes_one_drain_and_one_requeue() {
    for signals in [
        &["USR1"][..],
        &["TERM", "TERM"],
        &["USR1", "CONT", "TERM", "TERM", "USR1"],
    ] {
        let stage = Stage::new(&Scene {
            // The coordinator takes its time, so all signals arrive while it leaves.
            act: &[(
                "coordinator",
                "say start $$; trap 'say got USR1' USR1\nuntil grep -q 'got USR1' \"$STAND_INS/log\"; do sleep 0.05; done; sleep 0.5; exit 85",
            )],
            ..Scene::default()
        });
        stage.write("codes", "85\n");
        stage.coordinator(1);
        stage.until(1, "trainer start");
        for signal in signals {
            stage.signal_batch(signal);
            std::thread::sleep(Duration::from_millis(50));
        }
        let (code, log) = stage.end();
        assert_eq!(code, 0, "{signals:?}");
        assert_eq!(
            log.iter()
                .filter(|line| *line == "coordinator got USR1")
                .count(),
            1,
            "{log:#?}"
        );
        assert_eq!(requeues(&log), ["17"], "{log:#?}");
        assert!(
            log.iter()
                .any(|line| line.contains("--coordinator 85 --trainers 0 --noticed ")),
            "{log:#?}"
        );
        assert_eq!(log.last().expect("a line"), "scontrol requeue 17");
    }
}

#[test]
fn a_coordinator_that_is_killed_after_the_notice_starts_draining() {
    let stage = Stage::new(&Scene {
        act: &[(
            "coordinator",
            "say start $$ \"$@\"; trap 'say told' USR1\ncase \"$*\" in *--drain*) say finishes; exit 85;; esac; while :; do sleep 0.05; done",
        )],
        ..Scene::default()
    });
    stage.write("codes", "85\n");
    let pid = stage.coordinator(1);
    stage.signal_batch("USR1");
    stage.until(1, "coordinator told");
    signal_to(pid, "KILL");
    let (code, log) = stage.end();
    assert_eq!((code, requeues(&log).len()), (0, 1), "{log:#?}");
    assert!(
        log.iter()
            .any(|line| line.contains("--in-job --bind 10.0.0.1 --drain --time-left")),
        "{log:#?}"
    );
}

#[test]
fn a_notice_before_the_start_goes_straight_back_to_the_queue() {
    let stage = Stage::new(&Scene {
        act: &[(
            "plan",
            "say plans; until [ -e \"$STAND_INS/finish\" ]; do sleep 0.05; done; echo 'launch=(srun -n2)'",
        )],
        ..Scene::default()
    });
    stage.until(1, "plan plans");
    stage.signal_batch("USR1");
    stage.write("finish", "");
    let (code, log) = stage.end();
    assert_eq!(code, 0);
    assert_eq!(log, ["plan plans", "scontrol requeue 17"]);
}

#[test]
fn starts_again_when_told_to() {
    let stage = Stage::new(&Scene {
        act: &[("coordinator", "say finishes; exit 1")],
        ..Scene::default()
    });
    stage.write("codes", "75\n75\n1\n");
    let (code, log) = stage.end();
    assert_eq!(code, 1);
    for what in [
        "plan",
        "srun",
        "trainer start",
        "coordinator finishes",
        "next",
    ] {
        assert_eq!(
            log.iter().filter(|line| line.starts_with(what)).count(),
            3,
            "{what}: {log:#?}"
        );
    }
    // After a failure, a node that starts no process counts as down, whatever Slurm still reports.
    let plans: Vec<&String> = log.iter().filter(|line| line.starts_with("plan")).collect();
    let down: Vec<bool> = plans.iter().map(|line| line.contains("n2 down")).collect();
    assert_eq!(down, [false, true, true], "{plans:#?}");
    assert!(
        plans.iter().all(|line| !line.contains("n1 down")),
        "{plans:#?}"
    );
    assert!(requeues(&log).is_empty());
}

#[test]
fn a_configuration_error_is_never_requeued() {
    let stage = Stage::new(&Scene {
        act: &[("plan", "say; exit 2")],
        ..Scene::default()
    });
    let (code, log) = stage.end();
    assert_eq!(code, 2);
    assert_eq!(log, ["plan "]);
}

#[test]
fn a_run_that_is_finished_already_starts_nothing() {
    let stage = Stage::new(&Scene {
        act: &[("plan", "say; echo finished=1")],
        ..Scene::default()
    });
    let (code, log) = stage.end();
    assert_eq!((code, log), (0, vec!["plan ".to_owned()]));
}

#[test]
fn without_trainers_the_coordinator_is_asked_to_end() {
    let stage = Stage::new(&Scene {
        act: &[("trainer", "say start; exit 3")],
        ..Scene::default()
    });
    stage.write("codes", "85\n");
    let (code, log) = stage.end();
    assert_eq!(code, 0);
    assert!(log.contains(&"coordinator got USR1".to_owned()), "{log:#?}");
    assert!(
        log.iter()
            .any(|line| line.ends_with("--coordinator 85 --trainers 3")),
        "{log:#?}"
    );
}

#[test]
fn what_does_not_leave_is_ended() {
    let deaf = "say start; trap '' TERM USR1; while :; do sleep 0.05; done";
    let stage = Stage::new(&Scene {
        act: &[("trainer", deaf)],
        ..Scene::default()
    });
    stage.until(1, "trainer start");
    stage.write("finish", "");
    let (code, log) = stage.end();
    assert_eq!(code, 0);
    assert!(
        log.iter()
            .any(|line| line.ends_with("--coordinator 0 --trainers 137")),
        "{log:#?}"
    );

    let stage = Stage::new(&Scene {
        act: &[("coordinator", deaf), ("trainer", "say start; exit 0")],
        ..Scene::default()
    });
    stage.write("codes", "1\n");
    let (code, log) = stage.end();
    assert_eq!(code, 1);
    assert!(
        log.iter()
            .any(|line| line.ends_with("--coordinator 137 --trainers 0")),
        "{log:#?}"
    );
}

#[test]
fn where_requeueing_fails_the_exit_code_says_so() {
    let stage = Stage::new(&Scene {
        act: &[("scontrol", "say \"$@\"; exit 1")],
        ..Scene::default()
    });
    stage.write("codes", "85\n");
    stage.write("finish", "");
    let (code, log) = stage.end();
    assert_eq!((code, requeues(&log).len()), (85, 1));
}

#[test]
fn a_job_that_slurm_is_ending_does_not_requeue_itself() {
    for (state, times) in [
        ("COMPLETING None", 0),
        ("CANCELLED None", 0),
        ("PENDING BeginTime", 0),
        ("COMPLETING TimeLimit", 1),
        ("", 1),
    ] {
        let stage = Stage::new(&Scene::default());
        stage.write("codes", "85\n");
        stage.write("state", state);
        stage.write("finish", "");
        let (code, log) = stage.end();
        assert_eq!(requeues(&log).len(), times, "{state}");
        assert_eq!(code, if times == 0 { 85 } else { 0 }, "{state}");
    }
}

#[test]
fn a_job_that_is_asked_to_stop_stays_away() {
    let stage = Stage::new(&Scene::default());
    stage.write("codes", "85\n");
    stage.coordinator(1);
    stage.until(1, "trainer start");
    stage.signal_batch("INT");
    let (code, log) = stage.end();
    assert_eq!((code, requeues(&log).len()), (0, 0), "{log:#?}");
    assert!(log.contains(&"coordinator got USR1".to_owned()), "{log:#?}");
}

#[test]
fn an_array_requeues_its_own_element() {
    let stage = Stage::new(&Scene {
        array: Some("3-4"),
        set: &["train.seed=%a", "run.note=it's %a"],
        ..Scene::default()
    });
    stage.write("codes", "85\n");
    stage.write("finish", "");
    let run = stage
        .dir
        .path()
        .join("runs/first run")
        .display()
        .to_string();
    let (code, log) = stage.end();
    assert_eq!(code, 0);
    assert_eq!(requeues(&log), ["17_3"]);
    let plan = log
        .iter()
        .find(|line| line.starts_with("plan"))
        .expect("a plan");
    let expected = format!(
        "plan {run}/slurm/config.toml --out {run}/3 --set train.seed=3 --set run.note=it's 3 "
    );
    assert!(plan.starts_with(&expected), "{plan}");
}

#[test]
fn a_chain_leaves_requeueing_to_the_next_link() {
    let chain = Site {
        requeue: Requeue::Chain,
        ..Site::default()
    };
    for (code, cancelled) in [
        ("85", None),
        ("0", None),
        ("1", Some("scancel --state=PENDING 18 19")),
    ] {
        let stage = Stage::new(&Scene {
            site: chain.clone(),
            // The stand-in for `fovea job plan` writes the chain before the ranks start.
            act: &[(
                "plan",
                "printf '18\\n19\\n' > \"${1%/config.toml}/chain\"; echo 'launch=(srun -n1)'",
            )],
            ..Scene::default()
        });
        stage.write("codes", code);
        stage.write("finish", "");
        let (ended, log) = stage.end();
        assert_eq!(ended.to_string(), code);
        let found = log.iter().find(|line| line.starts_with("scancel"));
        assert_eq!(found.map(String::as_str), cancelled, "{log:#?}");
        assert!(requeues(&log).is_empty());
    }
}

#[test]
fn copies_are_made_beside_and_removed_at_the_end() {
    let stage = Stage::new(&Scene {
        scratch: &["$SLURM_TMPDIR", "/two words"],
        ..Scene::default()
    });
    stage.until(1, "stage /data");
    stage.write("finish", "");
    let (code, log) = stage.end();
    assert_eq!(code, 0);
    let to = "--to $SLURM_TMPDIR --to /two words";
    let calls: Vec<&String> = log
        .iter()
        .filter(|line| line.starts_with("stage"))
        .collect();
    assert_eq!(
        calls,
        [
            &format!("stage /data/two words {to}"),
            &format!("stage --remove /data/two words {to}")
        ]
    );
    assert!(
        log.iter().any(|line| line.starts_with("trainer start")
            && line.ends_with(" --staged $SLURM_TMPDIR --staged /two words")),
        "{log:#?}"
    );
}
