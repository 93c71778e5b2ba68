//! Judges the file system of the run directory, and the disks of the node.

use std::path::PathBuf;

use serde::Serialize;

use super::Line;
use crate::bytes;
use crate::filesystem::{Mounted, Reach};
use crate::scratch;

/// The directory of a run, or the part of its path that exists so far.
#[derive(Clone, Debug, Serialize)]
pub struct RunDirectory {
    /// The directory that was tried: the run's, or its nearest ancestor that exists.
    pub path: PathBuf,
    /// Its file system; none when the system refuses to tell.
    pub mounted: Option<Mounted>,
    /// The error when a file was written and synced there; none when that worked.
    pub refused: Option<String>,
    /// Milliseconds that a sync of a small file takes (median of five); none when writing failed.
    pub fsync_ms: Option<f64>,
    /// The error when a file was locked there; none when locks work, or when writing failed.
    pub lock_problem: Option<String>,
}

/// The node's disks for a copy of the dataset.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Scratch {
    /// Directories in order of preference, each with its file system.
    pub candidates: Vec<scratch::ScratchFacts>,
    /// Bytes that the run's dataset takes; 0 when they are unknown.
    pub needed: u64,
}

/// With less free space the line is red: a checkpoint may not fit.
const LITTLE_BYTES: u64 = 1_000_000_000;
/// With less free space the line is amber: a run keeps several checkpoints.
const SCARCE_BYTES: u64 = 10_000_000_000;
/// Milliseconds per sync above which commits slow a run down: each checkpoint and some records need one.
const SLOW_FSYNC_MS: f64 = 200.0;

pub(super) fn run(run: &RunDirectory, slurm: bool) -> Vec<Line> {
    const TOPIC: &str = "run directory";
    let path = run.path.display();
    if let Some(refused) = &run.refused {
        let remedy = "choose a directory that you can write, with `--out`";
        return vec![Line::fail(
            TOPIC,
            format!("{path} cannot be written: {refused}"),
            remedy,
        )];
    }
    let mut lines = vec![place(run, slurm)];
    if let Some(ms) = run.fsync_ms {
        let text = format!("a small file is on disk after {ms:.1} ms");
        lines.push(if ms > SLOW_FSYNC_MS {
            let remedy = "the disk is busy or slow, so checkpoints hold up training: put runs on another file system, or write fewer checkpoints";
            Line::warn("fsync", text, remedy)
        } else {
            Line::ok("fsync", text)
        });
    }
    lines.push(match &run.lock_problem {
        None => Line::ok("locks", "files can be locked there"),
        Some(problem) => Line::fail(
            "locks",
            format!("files cannot be locked in {path}: {problem}; no coordinator would start"),
            "put runs on another file system; Lustre has locks when it is mounted with -o flock, NFS when its lock service runs",
        ),
    });
    lines
}

fn place(run: &RunDirectory, slurm: bool) -> Line {
    const TOPIC: &str = "run directory";
    let path = run.path.display();
    let Some(Mounted { kind, free_bytes }) = run.mounted else {
        return Line::warn(
            TOPIC,
            format!("{path}: the system does not say what file system this is"),
            "check its free space with `df`",
        );
    };
    let text = format!("{path}, {}, {} free", kind.name, bytes(free_bytes));
    if free_bytes < LITTLE_BYTES {
        let remedy = "free some space (old checkpoints, old runs), ask for more quota, or choose another directory with `--out`";
        return Line::fail(TOPIC, text, remedy);
    }
    match kind.reach {
        Reach::Memory => Line::warn(
            TOPIC,
            format!("{text}: it is in memory and gone when the node restarts"),
            "put runs on a disk",
        ),
        Reach::Node if slurm => Line::warn(
            TOPIC,
            format!("{text}: a disk of this node, which other nodes do not see"),
            "fine for jobs of one node that come back to the same one; else put runs on the file system that all nodes share (your home directory, or the project's)",
        ),
        _ if free_bytes < SCARCE_BYTES => Line::warn(
            TOPIC,
            text,
            "a run keeps several checkpoints: free some space before a long one",
        ),
        _ => Line::ok(TOPIC, text),
    }
}

pub(super) fn scratch(facts: &Scratch) -> Line {
    const TOPIC: &str = "scratch";
    let choice = scratch::choose(&facts.candidates, facts.needed);
    match choice.chosen {
        Some(found) => {
            let (dir, origin) = (found.candidate.dir.display(), &found.candidate.origin);
            let (name, free) = found
                .mounted
                .map_or(("", 0), |m| (m.kind.name, m.free_bytes));
            let needed = match facts.needed {
                0 => String::new(),
                n => format!("; the dataset takes {}", bytes(n)),
            };
            let free = bytes(free);
            Line::ok(
                TOPIC,
                format!("{dir} ({origin}), {name}, {free} free{needed}"),
            )
        }
        None => Line::warn(
            TOPIC,
            format!(
                "no disk of this node for a copy of the dataset: {}",
                choice.refused.join("; ")
            ),
            "training reads the shared file system, which is slower where many jobs do; if the nodes have disks, name a directory in site.toml (scratch)",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Verdict::{Fail, Ok as Good, Warn};
    use super::super::tests::about;
    use super::*;
    use crate::filesystem::kind;
    use crate::scratch::{Candidate, ScratchFacts};

    const EXT4: u64 = 0xEF53;
    const LUSTRE: u64 = 0x0BD0_0BD0;
    const TMPFS: u64 = 0x0102_1994;

    fn directory(magic: u64, gigabytes: u64) -> RunDirectory {
        RunDirectory {
            path: "/runs".into(),
            mounted: Some(Mounted {
                kind: kind(magic),
                free_bytes: gigabytes * 1_000_000_000,
            }),
            refused: None,
            fsync_ms: Some(3.0),
            lock_problem: None,
        }
    }

    fn verdict(directory: &RunDirectory, slurm: bool, topic: &str) -> super::super::Verdict {
        about(&run(directory, slurm), topic).0
    }

    #[test]
    fn runs_lie_where_all_nodes_see_them_with_room() {
        let topic = "run directory";
        assert_eq!(verdict(&directory(LUSTRE, 500), true, topic), Good);
        assert_eq!(verdict(&directory(LUSTRE, 9), true, topic), Warn);
        assert_eq!(verdict(&directory(LUSTRE, 0), true, topic), Fail);
        assert_eq!(verdict(&directory(EXT4, 500), true, topic), Warn);
        assert_eq!(verdict(&directory(EXT4, 500), false, topic), Good);
        assert_eq!(verdict(&directory(TMPFS, 500), false, topic), Warn);
        let mute = RunDirectory {
            mounted: None,
            ..directory(EXT4, 1)
        };
        assert_eq!(verdict(&mute, false, topic), Warn);
        let refused = RunDirectory {
            refused: Some("Read-only file system".to_owned()),
            ..directory(LUSTRE, 500)
        };
        assert_eq!(run(&refused, true).len(), 1);
        assert_eq!(verdict(&refused, true, topic), Fail);
    }

    #[test]
    fn slow_disks_and_missing_locks_are_said() {
        let good = directory(LUSTRE, 500);
        assert_eq!(verdict(&good, true, "fsync"), Good);
        assert_eq!(verdict(&good, true, "locks"), Good);
        let slow = RunDirectory {
            fsync_ms: Some(950.0),
            ..good.clone()
        };
        assert_eq!(verdict(&slow, true, "fsync"), Warn);
        let unlocked = RunDirectory {
            lock_problem: Some("Function not implemented".to_owned()),
            ..good
        };
        assert_eq!(verdict(&unlocked, true, "locks"), Fail);
    }

    #[test]
    fn a_disk_of_the_node_is_named_or_missed() {
        let disk = |magic| ScratchFacts {
            candidate: Candidate {
                dir: "/local".into(),
                origin: "$TMPDIR".to_owned(),
                provided: false,
            },
            writable: true,
            mounted: directory(magic, 100).mounted,
        };
        let of = |magic, needed| {
            scratch(&Scratch {
                candidates: vec![disk(magic)],
                needed,
            })
        };
        let line = of(EXT4, 12_000_000_000);
        let found = about(std::slice::from_ref(&line), "scratch");
        assert_eq!(
            found,
            (
                Good,
                "/local ($TMPDIR), ext4, 100.0 GB free; the dataset takes 12.0 GB"
            )
        );
        assert_eq!(about(&[of(LUSTRE, 0)], "scratch").0, Warn);
        assert_eq!(about(&[of(EXT4, 200_000_000_000)], "scratch").0, Warn);
        assert_eq!(about(&[scratch(&Scratch::default())], "scratch").0, Warn);
    }
}
