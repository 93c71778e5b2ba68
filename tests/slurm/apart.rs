//! The test bed whose nodes are separate machines: checks that they are separate, and that they can be lost.

use std::process::Command;
use std::time::{Duration, Instant};

use crate::cluster::Cluster;
use crate::config::Options;
#[cfg(feature = "mpi")]
use crate::fixture::mpi_sums;
use crate::fixture::{SOON, WELL_BEHAVED, assert_no_traces, sleepers, timed, traces, wait_step};
use crate::need;

/// Longest time until Slurm notices a dead or isolated node: up to three times `SLURMD_TIMEOUT`, on a tick of its own.
const NOTICED: Duration = Duration::from_secs(120);
const SLURMD_TIMEOUT: u32 = 5;

#[test]
fn nodes_apart_are_machines_of_their_own() {
    let Some(_turn) = need::namespaces() else {
        return;
    };
    let before = traces();
    let cluster = timed("start apart", || Cluster::start_apart(&Options::default()));
    let show = r#"echo $(hostname) $(hostname -i) $(ls /dev/shm | wc -l) $(ps -e | wc -l); touch /dev/shm/mine "$0/here.$(hostname)"; ls "$0""#;
    let scratch = cluster.dir().join("scratch");
    let said = cluster.output(
        "srun",
        &["-N2", "-n2", "sh", "-c", show, scratch.to_str().unwrap()],
    );
    for node in ["n1 10.211.0.11 0 ", "n2 10.211.0.12 0 "] {
        assert!(said.contains(node), "{said}");
    }
    assert_eq!(
        said.matches("here.").count(),
        2,
        "scratch is not the node's own: {said}"
    );
    let found = Command::new("ip").args(["address"]).output().unwrap();
    assert!(
        !String::from_utf8_lossy(&found.stdout).contains("10.211.0."),
        "the test's network got out"
    );
    timed("stop apart", || drop(cluster));
    assert_no_traces(&before);
}

#[test]
fn a_node_apart_dies_and_comes_back() {
    let Some(_turn) = need::namespaces() else {
        return;
    };
    let mut cluster = Cluster::start_apart(&Options {
        slurmd_timeout: SLURMD_TIMEOUT,
        ..Options::default()
    });
    let id = cluster.submit(&["-N2", "--requeue"], WELL_BEHAVED);
    wait_step(&cluster, &id, 2);
    cluster.kill_node("n2");
    timed("death noticed", || {
        cluster.wait("n2 down", NOTICED, || {
            cluster.node_state("n2").starts_with("down").then_some(())
        });
    });
    timed("requeue", || {
        cluster.wait("requeue", NOTICED, || {
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
fn a_cut_link_is_a_lost_node_until_it_is_mended() {
    let Some(_turn) = need::namespaces() else {
        return;
    };
    let cluster = Cluster::start_apart(&Options {
        slurmd_timeout: SLURMD_TIMEOUT,
        ..Options::default()
    });
    let id = cluster.submit(&["-N2", "--requeue"], WELL_BEHAVED);
    wait_step(&cluster, &id, 2);
    cluster.cut("n2");
    timed("cut noticed", || {
        cluster.wait("requeue", NOTICED, || {
            Some(cluster.job(&id)).filter(|job| job.restarts == 1)
        });
    });
    assert_eq!(sleepers(&cluster.processes_on("n2")), 1, "somebody told n2");
    timed("mended", || {
        cluster.mend("n2");
        cluster.wait("n2", NOTICED, || {
            (cluster.node_state("n2") == "idle").then_some(())
        });
    });
    timed("again", || cluster.wait_restarted(&id, 1, SOON));
    wait_step(&cluster, &id, 2);
}

#[test]
fn a_link_can_be_slow() {
    let Some(_turn) = need::namespaces() else {
        return;
    };
    let cluster = Cluster::start_apart(&Options::default());
    cluster.slow("n2", "20mbit");
    // 5 MB from n1 to n2, by the path of a step's output: n2 -> n1 -> head.
    let start = Instant::now();
    let said = cluster.output("srun", &["-w", "n2", "head", "-c", "5000000", "/dev/zero"]);
    let took = start.elapsed();
    assert_eq!(said.len(), 5_000_000);
    println!("5 MB in {took:?}");
    assert!(
        took > Duration::from_millis(1500),
        "{took:?} is not 20 Mbit/s"
    );
}

#[test]
#[cfg(feature = "mpi")]
fn mpi_spans_nodes_apart() {
    let Some(_turn) = need::namespaces() else {
        return;
    };
    mpi_sums(&Cluster::start_apart(&Options::default()));
}
