//! Each test starts this test binary under `mpirun` on one of the ignored tests below, whose ranks report
//! on standard output what happened. Without `mpirun` these tests fail: the feature is on.
#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::fs;
use std::io::{Read, Seek, Write};
use std::process::{Command, Stdio};

use super::*;
use crate::Collective;
use crate::testing::{child_command, exercise, soon};

/// Long enough for a busy machine; only reached when something hangs.
const MPIRUN_TIMEOUT: Duration = Duration::from_secs(120);
/// For mpirun to end once all ranks are about to leave.
const MPIRUN_GRACE: Duration = Duration::from_secs(5);

/// Runs the ignored test `name` on `world` ranks; its output and whether all ranks succeeded.
///
/// The `mpirun` of Open MPI 4.1.4 with PMIx 4.2 can deadlock within itself (PMIx_server_finalize) after
/// ranks have left without finalizing; then it is ended here, and counts as not having succeeded.
fn mpirun(world: usize, name: &str) -> (String, bool) {
    let child = child_command(module_path!(), name);
    let mut output = tempfile::tempfile().unwrap();
    let leaving = tempfile::TempDir::new().unwrap();
    let mut mpirun = Command::new("mpirun")
        // More ranks than processors, and root in a container, are both fine for a test.
        .args([
            "-n",
            &world.to_string(),
            "--oversubscribe",
            "--bind-to",
            "none",
        ])
        .arg(child.get_program())
        .args(child.get_args())
        .env("OMPI_ALLOW_RUN_AS_ROOT", "1")
        .env("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1")
        .env("FOVEA_TEST_DIR", leaving.path())
        .stdin(Stdio::null())
        .stdout(output.try_clone().unwrap())
        .stderr(output.try_clone().unwrap())
        .spawn()
        .expect("mpirun comes with the MPI that the feature `mpi` needs");
    let mut end = Instant::now() + MPIRUN_TIMEOUT;
    let status = loop {
        if let Some(status) = mpirun.try_wait().unwrap() {
            break Some(status);
        }
        if fs::read_dir(leaving.path()).unwrap().count() == world {
            end = end.min(Instant::now() + MPIRUN_GRACE);
        }
        if Instant::now() >= end {
            mpirun.kill().unwrap();
            mpirun.wait().unwrap();
            break None;
        }
        std::thread::sleep(Duration::from_millis(10));
    };
    let mut text = Vec::new();
    output.rewind().unwrap();
    output.read_to_end(&mut text).unwrap();
    let text = String::from_utf8_lossy(&text).into_owned();
    (text, status.is_some_and(|status| status.success()))
}

/// The launcher ends all ranks as soon as one has left without finalizing: so nobody leaves before
/// all have said what happened to them. Not through MPI, which is out of order by then.
fn leave_together(rank: usize, world: usize) {
    let dir = std::env::var("FOVEA_TEST_DIR").expect("run by another test of this file only");
    fs::write(format!("{dir}/{rank}"), "").unwrap();
    let end = soon();
    while fs::read_dir(&dir).unwrap().count() < world && Instant::now() < end {
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// A line for the test that started us, in one write so that ranks do not mix.
fn tell(line: &str) {
    let line = format!("\n{line}\n");
    std::io::stdout().write_all(line.as_bytes()).unwrap();
}

#[test]
#[ignore = "run under mpirun by `ranks_get_the_bits_of_tree_sum`"]
fn child_exercises() {
    let mut mpi = MpiCollective::init(&AbortHandle::new()).unwrap();
    let (rank, world) = (mpi.rank(), mpi.world());
    exercise(&mut mpi, 11, &[0, 1, 17, 5000, 2 * CHUNK_F32 + 1234]);
    // Longer than a piece, another length on each rank.
    let message = |rank: usize| vec![rank as u8; rank * (3 * CHUNK_F32 + 7)];
    let all = mpi.all_gather(&message(rank), soon()).unwrap();
    assert_eq!(all, (0..world).map(message).collect::<Vec<_>>());
    drop(mpi);
    tell(&format!("rank {rank} of {world} is done"));
}

#[test]
fn ranks_get_the_bits_of_tree_sum() {
    for world in [1, 2, 3] {
        let (text, success) = mpirun(world, "child_exercises");
        assert!(success, "{text}");
        for rank in 0..world {
            assert!(
                text.contains(&format!("rank {rank} of {world} is done")),
                "{text}"
            );
        }
    }
}

#[test]
#[ignore = "run under mpirun by `an_abort_reaches_the_other_rank`"]
fn child_aborts() {
    let abort = AbortHandle::new();
    let mut mpi = MpiCollective::init(&abort).unwrap();
    mpi.barrier(soon()).unwrap();
    let rank = mpi.rank();
    // A barrier lets its ranks go one after the other: rank 1 must not abort the one that rank 0 is in.
    let launcher = rustix::process::getppid().unwrap().as_raw_nonzero();
    let past_the_barrier = std::env::temp_dir().join(format!("fovea-test-abort-{launcher}"));
    if rank == 0 {
        std::fs::write(&past_the_barrier, "").unwrap();
    }
    if rank == 1 {
        std::thread::spawn(move || {
            while std::fs::remove_file(&past_the_barrier).is_err() {
                std::thread::sleep(Duration::from_millis(1));
            }
            abort.abort("generation 9");
        });
    }
    let mut buf = vec![1.0; 100];
    // Rank 2 never comes; the others wait for it until rank 1 hears of generation 9.
    if rank != 2 {
        let error = mpi.all_reduce(&mut buf, soon()).unwrap_err();
        let again = mpi.barrier(soon()).unwrap_err();
        tell(&format!(
            "rank {rank} heard: {error}\nrank {rank} again: {again}"
        ));
    }
    leave_together(rank, mpi.world());
}

#[test]
fn an_abort_reaches_the_other_rank() {
    let (text, success) = mpirun(3, "child_aborts");
    for rank in [0, 1] {
        let heard = format!(
            "rank {rank} heard: all_reduce on rank {rank} was aborted by rank 1: generation 9"
        );
        assert!(text.contains(&heard), "{text}");
        let again = format!(
            "rank {rank} again: barrier on rank {rank} was aborted by rank 1: generation 9"
        );
        assert!(text.contains(&again), "{text}");
    }
    assert!(
        !success,
        "a rank that gave up must not pass for one that is done: {text}"
    );
}

#[test]
#[ignore = "run under mpirun by `a_missing_rank_and_a_mismatch_are_named`"]
fn child_fails() {
    let mut mpi = MpiCollective::init(&AbortHandle::new()).unwrap();
    mpi.barrier(soon()).unwrap();
    let (rank, world) = (mpi.rank(), mpi.world());
    let result = match (rank, world) {
        (0, 2) => mpi.barrier(Instant::now() + Duration::from_millis(50)),
        (_, 2) => Ok(()), // never comes
        (0, _) => mpi.all_reduce(&mut [0.0; 7], soon()),
        _ => mpi.broadcast(&mut [0; 8], 1, soon()),
    };
    if let Err(error) = result {
        tell(&format!("rank {rank}: {error}"));
    }
    leave_together(rank, world);
    // Rank 1 of 2 would finalize, and so wait for the other, which does not.
    std::process::exit(3);
}

#[test]
fn a_missing_rank_and_a_mismatch_are_named() {
    let (text, success) = mpirun(2, "child_fails");
    assert!(
        text.contains("rank 0: barrier on rank 0 of 2 gave up after "),
        "{text}"
    );
    assert!(text.contains("waiting for rank 1\n  help: "), "{text}");
    assert!(!success, "{text}");
    let (text, success) = mpirun(3, "child_fails");
    // Whoever sees it first says so, and the others quote that.
    assert!(text.contains("ranks are out of step: rank "), "{text}");
    assert!(text.contains("in all_reduce of 7 f32"), "{text}");
    assert!(
        text.contains("in broadcast of 8 bytes from rank 1"),
        "{text}"
    );
    assert!(!success, "{text}");
}
