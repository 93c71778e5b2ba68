use super::super::Verdict::{Fail, Ok as Good, Warn};
use super::super::tests::about;
use super::*;

/// The output of `scontrol show config` in Slurm 22.05.8, shortened.
const CONFIG: &str = "\
Configuration data as of 2026-11-21T11:30:00
AuthInfo                = socket=/run/munge.sock,cred_expire=5
ClusterName             = test
JobRequeue              = 1
KillWait                = 30 sec
PreemptMode             = REQUEUE
PreemptType             = preempt/partition_prio
RequeueExit             = (null)
RequeueExitHold         = (null)
SLURM_VERSION           = 22.05.8

Slurmctld(primary) at head is UP
";

const PARTITIONS: &str = "\
PartitionName=low AllowGroups=ALL Default=YES GraceTime=5 MaxTime=UNLIMITED PreemptMode=REQUEUE State=UP
PartitionName=high AllowGroups=ALL Default=NO GraceTime=0 MaxTime=UNLIMITED PreemptMode=OFF State=UP
";

fn slurm() -> Scheduler {
    Scheduler {
        version: Some(Version(22, 5, 8)),
        config: parse_config(CONFIG),
        partitions: parse_partitions(PARTITIONS),
        ..Scheduler::default()
    }
}

fn with(key: &str, value: &str) -> Scheduler {
    let mut slurm = slurm();
    slurm.config.insert(key.to_owned(), value.to_owned());
    slurm
}

fn verdict(slurm: &Scheduler, topic: &str) -> super::super::Verdict {
    about(&judge(Some(slurm)), topic).0
}

#[test]
fn a_good_cluster_is_green_throughout() {
    let lines = judge(Some(&slurm()));
    let topics: Vec<&str> = lines.iter().map(|line| line.topic).collect();
    assert_eq!(
        topics,
        [
            "Slurm",
            "requeue",
            "exit codes",
            "preemption",
            "time to save"
        ]
    );
    for topic in topics {
        assert_eq!(about(&lines, topic).0, Good, "{topic}: {lines:?}");
    }
    assert_eq!(
        about(&lines, "preemption").1,
        "REQUEUE in low; OFF in high by preempt/partition_prio"
    );
    assert_eq!(
        about(&lines, "time to save").1,
        "35 s from the signal to the end (5 s of grace in low and KillWait 30 s); a save takes perhaps 5 s"
    );
    assert_eq!(about(&lines, "Slurm").1, "22.05.8, cluster test");
    assert_eq!(about(&judge(None), "Slurm").0, Good);
}

#[test]
fn what_scontrol_prints_is_read() {
    let slurm = slurm();
    assert_eq!(
        slurm.value("AuthInfo"),
        Some("socket=/run/munge.sock,cred_expire=5")
    );
    assert_eq!(slurm.value("RequeueExit"), None);
    assert_eq!(slurm.number("KillWait"), Some(30));
    assert_eq!(slurm.config.len(), 9);
    let low = Partition {
        name: "low".to_owned(),
        preempt_mode: "REQUEUE".to_owned(),
        grace_s: 5,
    };
    assert_eq!(slurm.partitions[0], low);
    assert_eq!(
        field("JobId=7 JobName=x Requeue=1 Restarts=0", "Requeue"),
        Some("1")
    );
}

#[test]
fn a_silent_controller_is_red_inside_a_job_only() {
    let mut silent = slurm();
    silent.controller = Controller::Silent("Unable to contact slurm controller".to_owned());
    assert_eq!(verdict(&silent, "Slurm"), Warn);
    silent.job = Some(7);
    assert_eq!(verdict(&silent, "Slurm"), Fail);
    assert_eq!(judge(Some(&silent)).len(), 1, "nothing else is known");
}

#[test]
fn versions_before_overlap_are_amber() {
    let old = Scheduler {
        version: Some(Version(20, 2, 7)),
        ..slurm()
    };
    assert_eq!(verdict(&old, "Slurm"), Warn);
    let unknown = Scheduler {
        version: None,
        ..slurm()
    };
    assert_eq!(verdict(&unknown, "Slurm"), Good);
}

#[test]
fn requeue_may_be_off_by_default_but_not_for_this_job() {
    assert_eq!(verdict(&with("JobRequeue", "0"), "requeue"), Good);
    assert_eq!(verdict(&with("JobRequeue", "(null)"), "requeue"), Warn);
    let forbidden = Scheduler {
        job: Some(7),
        job_requeue: Some(false),
        ..slurm()
    };
    assert_eq!(verdict(&forbidden, "requeue"), Fail);
    let allowed = Scheduler {
        job: Some(7),
        job_requeue: Some(true),
        ..slurm()
    };
    assert_eq!(verdict(&allowed, "requeue"), Good);
}

#[test]
fn exit_codes_must_mean_the_same_to_slurm() {
    for (value, expected) in [
        ("99", Good),
        ("85,99", Good),
        ("1", Warn),
        ("90,1-3", Warn),
        ("10-20", Good),
    ] {
        assert_eq!(
            verdict(&with("RequeueExit", value), "exit codes"),
            expected,
            "{value}"
        );
    }
    assert_eq!(
        verdict(&with("RequeueExitHold", "80-90"), "exit codes"),
        Warn
    );
    assert_eq!(verdict(&with("RequeueExitHold", "142"), "exit codes"), Good);
}

#[test]
fn preemption_that_ends_or_stops_jobs_is_amber() {
    let none = with("PreemptType", "preempt/none");
    assert!(
        about(&judge(Some(&none)), "preemption")
            .1
            .starts_with("never")
    );
    for (mode, expected) in [
        ("CANCEL", Warn),
        ("SUSPEND,GANG", Warn),
        ("GANG,SUSPEND", Warn),
        ("requeue", Good),
    ] {
        let mut slurm = slurm();
        slurm.partitions[0].preempt_mode = mode.to_owned();
        assert_eq!(verdict(&slurm, "preemption"), expected, "{mode}");
        slurm.partitions.clear();
        slurm
            .config
            .insert("PreemptMode".to_owned(), mode.to_owned());
        assert_eq!(verdict(&slurm, "preemption"), expected, "{mode} for all");
    }
}

#[test]
fn a_save_must_fit_between_signal_and_kill() {
    let with = |kill: u64, grace: u64, save: Option<f64>| {
        let mut slurm = with("KillWait", &format!("{kill} sec"));
        slurm.partitions[0].grace_s = grace;
        slurm.save_s = save;
        verdict(&slurm, "time to save")
    };
    assert_eq!(with(30, 0, None), Good);
    assert_eq!(with(2, 0, None), Warn);
    assert_eq!(with(2, 60, None), Good);
    assert_eq!(with(30, 0, Some(26.0)), Warn);
    assert_eq!(with(30, 5, Some(26.0)), Good);
    assert_eq!(with(6, 0, Some(0.4)), Good);
}
