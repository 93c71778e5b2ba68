//! On environments captured from jobs of Slurm 22.05 on two nodes (`slurm/tests/environments`).

use std::collections::BTreeMap;
use std::path::Path;

use super::*;

fn captured(name: &str) -> BTreeMap<String, String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/environments")
        .join(name);
    let text = std::fs::read_to_string(&path).expect("a captured environment");
    text.lines()
        .filter_map(|line| line.split_once('='))
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect()
}

fn read(vars: &BTreeMap<String, String>) -> Result<Allocation, Error> {
    Allocation::from_env(|name| vars.get(name).cloned())
}

fn allocation(name: &str) -> Allocation {
    read(&captured(name)).expect(name)
}

#[test]
fn the_batch_script_of_two_nodes() {
    let job = allocation("two-nodes-batch.env");
    assert_eq!(job.nodes, ["n1", "n2"]);
    assert_eq!(job.tasks_per_node, [2, 2]);
    assert_eq!(job.ntasks, 4);
    assert_eq!(job.cpus_per_task, Some(1));
    assert_eq!(job.cpus_on_node, Some(2));
    assert_eq!(
        job.task, None,
        "the batch script is no task, though SLURM_PROCID is 0"
    );
    assert_eq!(job.restart_count, 0);
    assert_eq!(job.array, None);
    assert_eq!(job.gpus_on_node, 0);
    assert_eq!(job.partition.as_deref(), Some("low"));
    assert_eq!(job.node_name.as_deref(), Some("n1"));
    assert_eq!(job.submit_dir.as_deref(), Some("/home/user"));
    assert_eq!(job.end_time, None);
    assert_eq!(job.id_text(), job.job_id.to_string());
}

#[test]
fn tasks_of_a_step() {
    let task = allocation("two-nodes-step-3.env").task.expect("a task");
    assert_eq!(
        task,
        JobTask {
            step: 0,
            procid: 3,
            localid: 1,
            nodeid: 1,
            tasks: 4
        }
    );
    let job = allocation("uneven-step-2.env");
    assert_eq!(
        job.task.expect("a task"),
        JobTask {
            step: 0,
            procid: 2,
            localid: 0,
            nodeid: 1,
            tasks: 3
        }
    );
    assert_eq!(job.node_name.as_deref(), Some("n2"));
    assert_eq!(job.tasks_per_node, [2, 1]);
    assert_eq!(allocation("uneven-batch.env").ntasks, 3);
    assert_eq!(allocation("cpus-batch.env").cpus_per_task, Some(2));
}

#[test]
fn gpus() {
    assert_eq!(allocation("gpus-batch.env").gpus_on_node, 2);
    assert_eq!(allocation("gpus-step-3.env").gpus_on_node, 2);
    assert_eq!(allocation("gres-batch.env").gpus_on_node, 1);
    let mut old = captured("gpus-batch.env");
    old.remove("SLURM_GPUS_ON_NODE").expect("the count");
    assert_eq!(read(&old).expect("an old Slurm").gpus_on_node, 2);
}

#[test]
fn the_last_element_of_an_array_is_named_as_an_element() {
    let job = allocation("array-batch-4.env");
    let array = job.array.clone().expect("an element");
    assert_eq!(array.task, 4);
    assert_eq!(
        array.job, job.job_id,
        "this capture shows the case that matters"
    );
    assert_eq!(job.id_text(), format!("{}_4", array.job));
    assert_eq!(job.ntasks, 1, "SLURM_NTASKS is not set without --ntasks");
}

#[test]
fn restarts_are_counted() {
    let job = allocation("restart-batch-1.env");
    assert_eq!(job.restart_count, 1);
    assert_eq!(job.tasks_per_node, [1, 1]);
}

#[test]
fn the_end_time_where_slurm_tells_it() {
    let mut vars = captured("two-nodes-batch.env");
    vars.insert("SLURM_JOB_END_TIME".to_owned(), "1700000100".to_owned());
    let job = read(&vars).expect("an allocation");
    let at = |s| UNIX_EPOCH + Duration::from_secs(s);
    assert_eq!(
        job.time_left(at(1_700_000_000)),
        Some(Duration::from_secs(100))
    );
    assert_eq!(job.time_left(at(1_700_000_200)), Some(Duration::ZERO));
}

#[test]
fn what_is_wrong_is_named() {
    assert_eq!(Allocation::from_env(|_| None), Err(Error::NoJob));
    let change = |name: &str, value: &str| {
        let mut vars = captured("two-nodes-step-3.env");
        vars.insert(name.to_owned(), value.to_owned());
        read(&vars).expect_err(name).to_string()
    };
    for (name, value, said) in [
        ("SLURM_JOB_ID", "x", "not a number"),
        ("SLURM_JOB_NODELIST", "n[1-", "at character 5"),
        ("SLURM_TASKS_PER_NODE", "2(x", "at character 1"),
        ("SLURM_PROCID", "", "SLURM_PROCID is not set"),
        ("SLURM_RESTART_COUNT", "-1", "not a number"),
    ] {
        let error = change(name, value);
        assert!(error.contains(name) && error.contains(said), "{error}");
        assert!(error.contains("\n  help: "), "{error}");
    }
    let mut vars = captured("two-nodes-batch.env");
    vars.insert("SLURM_TASKS_PER_NODE".to_owned(), "2(x3)".to_owned());
    assert!(
        read(&vars)
            .expect_err("counts")
            .to_string()
            .contains("3 counts for 2 nodes")
    );
}
