use super::*;

#[test]
fn jobs_in_the_queue() {
    let text = "17|RUNNING|3:59:58|n[1-2]|None\n15_3|PENDING|4:00:00||BeginTime\n9|COMPLETING|INVALID|n1|TimeLimit\n\n";
    let jobs = parse_squeue(text).expect("states");
    assert_eq!(jobs.len(), 3);
    assert_eq!(jobs[0].time_left, Some(Duration::from_secs(4 * 3600 - 2)));
    assert_eq!(
        (jobs[0].nodes.as_str(), jobs[0].reason.as_str()),
        ("n[1-2]", "None")
    );
    assert_eq!(
        (jobs[1].id.as_str(), jobs[1].state.as_str()),
        ("15_3", "PENDING")
    );
    assert!(jobs[1].is_waiting() && !jobs[1].is_over());
    assert_eq!(jobs[2].time_left, None);
    assert!(
        parse_squeue("17|RUNNING")
            .expect_err("fields")
            .contains("2 fields")
    );
    // The reason is free text, and may contain the separator.
    assert_eq!(
        parse_squeue("1|PENDING|1:00||(a|b)").expect("a reason")[0].reason,
        "(a|b)"
    );
}

#[test]
fn jobs_as_the_controller_shows_them() {
    let text = "JobId=5 ArrayJobId=5 ArrayTaskId=4 JobName=a b UserId=root(0) JobState=FAILED Reason=NonZeroExitCode Dependency=(null) Requeue=1 Restarts=2 BatchFlag=1 Reboot=0 ExitCode=2:0 NodeList=n[1-2] BatchHost=n1\n";
    let jobs = parse_show_job(text).expect("states");
    assert_eq!(
        jobs,
        [JobState {
            id: "5_4".to_owned(),
            state: "FAILED".to_owned(),
            reason: "NonZeroExitCode".to_owned(),
            time_left: None,
            nodes: "n[1-2]".to_owned(),
            restarts: Some(2),
            exit: Some((2, 0)),
        }]
    );
    assert!(jobs[0].is_over());
    assert!(
        parse_show_job("JobId=5 X=1")
            .expect_err("no state")
            .contains("no JobState")
    );
    assert_eq!(parse_show_job("slurm_load_jobs error"), Ok(Vec::new()));
}

#[test]
fn both_views_of_a_job() {
    let queued = parse_squeue("17|RUNNING|1:00|n1|None").expect("a state");
    let shown =
        parse_show_job("JobId=17 JobState=RUNNING Restarts=3 ExitCode=0:0").expect("a state");
    let job = &merge(queued, shown)[0];
    assert_eq!(
        (job.restarts, job.time_left),
        (Some(3), Some(Duration::from_secs(60)))
    );
    let ended = parse_show_job("JobId=17 JobState=COMPLETED").expect("a state");
    assert_eq!(merge(Vec::new(), ended).len(), 1);
    let together =
        parse_show_job("JobId=17 ArrayJobId=17 ArrayTaskId=1-9 JobState=PENDING").expect("a state");
    assert!(merge(Vec::new(), together).is_empty());
}

#[test]
fn ids() {
    assert_eq!(parse_job_id("17\n"), Some(17));
    assert_eq!(parse_job_id("17;cluster"), Some(17));
    assert_eq!(parse_job_id("Welcome!\n17\n"), Some(17));
    assert_eq!(parse_job_id("Submitted batch job 17"), None);
    assert_eq!(parse_job_id(""), None);
}

#[test]
fn errors_quote_the_command() {
    let shell = |script: &str, limit| {
        run("sh", &["-c", script], limit)
            .expect_err(script)
            .to_string()
    };
    let error = shell(
        "echo 'sbatch: error: invalid partition specified: x' >&2; echo 'sbatch: error: Batch job submission failed' >&2; exit 1",
        TIMEOUT,
    );
    assert!(
        error.contains(
            "failed (exit status: 1): invalid partition specified: x; Batch job submission failed"
        ),
        "{error}"
    );
    assert!(error.contains("\n  help: choose a partition"), "{error}");
    let away = run(
        "sh",
        &[
            "-c",
            "echo 'sbatch: error: Unable to contact slurm controller' >&2; exit 1",
        ],
        TIMEOUT,
    );
    assert!(!away.expect_err("away").is_usage());
    let error = shell("echo only output; exit 3", TIMEOUT);
    assert!(error.contains("(exit status: 3): only output"), "{error}");
    let error = run("fovea-no-such-command", &[], TIMEOUT)
        .expect_err("missing")
        .to_string();
    assert!(
        error.contains("not found") && error.contains("--dry-run") && error.contains("login node"),
        "{error}"
    );
}

#[test]
fn nobody_waits_forever() {
    let begun = Instant::now();
    // The killed shell's child keeps the pipes open.
    let error = run(
        "sh",
        &["-c", "sleep 3 & sleep 60"],
        Duration::from_millis(200),
    )
    .expect_err("late");
    assert!(matches!(error, Error::Timeout { .. }), "{error}");
    assert!(begun.elapsed() < Duration::from_secs(3));
}

#[test]
fn much_output_does_not_block() {
    let said = run(
        "sh",
        &[
            "-c",
            "head -c 300000 /dev/zero | tr '\\0' x; head -c 300000 /dev/zero >&2",
        ],
        TIMEOUT,
    );
    assert_eq!(said.expect("output").out.len(), 300_000);
}
