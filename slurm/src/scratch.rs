//! The choice of a node's directory for a copy of the dataset.

use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::filesystem::{self, Mounted, Reach};

/// A directory that may be on a disk of the node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Candidate {
    /// Absolute path; it may not exist on this node.
    pub dir: PathBuf,
    /// Where the path comes from: "named" (site.toml or `--stage`), "$SLURM_TMPDIR", "$TMPDIR", "usual place".
    pub origin: String,
    /// Whether somebody has provided it for jobs; such a directory may be used even when it is in memory.
    pub provided: bool,
}

/// A candidate, and what the system says about it on this node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ScratchFacts {
    /// The candidate, flattened into this record in JSON.
    #[serde(flatten)]
    pub candidate: Candidate,
    /// Whether it is a directory in which this user may create files.
    pub writable: bool,
    /// Its file system; none when it does not exist.
    pub mounted: Option<Mounted>,
}

/// The result of [`choose`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScratchChoice<'a> {
    /// The first candidate that suits; none when no candidate does.
    pub chosen: Option<&'a ScratchFacts>,
    /// The reason against each candidate before it: "/tmp ($TMPDIR): 3.1 GB free, 12.0 GB needed".
    pub refused: Vec<String>,
}

/// All candidates in order of preference. First the `named` ones, in which `$NAME` stands for a variable of the job's
/// environment; then, with `usual`, the directories that Slurm and the system provide, and the usual places of scratch
/// disks.
pub fn candidates(
    named: &[String],
    usual: bool,
    env: &dyn Fn(&str) -> Option<String>,
) -> Vec<Candidate> {
    let mut found: Vec<Candidate> = Vec::new();
    let mut add = |dir: Option<String>, origin: &str, provided: bool| {
        let Some(dir) = dir.filter(|dir| dir.starts_with('/')) else {
            return; // not set here, or relative to an unknown directory
        };
        let dir = PathBuf::from(dir);
        if !found.iter().any(|other| other.dir == dir) {
            found.push(Candidate {
                dir,
                origin: origin.to_owned(),
                provided,
            });
        }
    };
    for entry in named {
        add(expand(entry, env), "named", true);
    }
    if !usual {
        return found;
    }
    add(env("SLURM_TMPDIR"), "$SLURM_TMPDIR", true);
    add(env("TMPDIR"), "$TMPDIR", false);
    add(Some("/scratch/local".to_owned()), "usual place", false);
    add(Some("/tmp".to_owned()), "usual place", false);
    found
}

/// Replaces `$NAME` and `${NAME}`; none when one of them is not set.
fn expand(text: &str, env: &dyn Fn(&str) -> Option<String>) -> Option<String> {
    let mut parts = text.split('$');
    let mut out = parts.next()?.to_owned();
    for part in parts {
        let (name, rest) = match part.strip_prefix('{') {
            Some(braced) => braced.split_once('}')?,
            None => {
                let end = part
                    .find(|c: char| !c.is_ascii_alphanumeric() && c != '_')
                    .unwrap_or(part.len());
                part.split_at(end)
            }
        };
        out += &env(name)?;
        out += rest;
    }
    Some(out)
}

/// Asks the system about each candidate.
pub fn look(candidates: Vec<Candidate>) -> Vec<ScratchFacts> {
    candidates
        .into_iter()
        .map(|candidate| ScratchFacts {
            writable: is_writable(&candidate.dir),
            mounted: filesystem::look(&candidate.dir).ok(),
            candidate,
        })
        .collect()
}

fn is_writable(dir: &Path) -> bool {
    let access = rustix::fs::Access::WRITE_OK | rustix::fs::Access::EXEC_OK;
    dir.is_dir() && rustix::fs::access(dir, access).is_ok()
}

/// The first candidate that is on a disk of the node (or in memory provided for jobs) and has room for `needed` bytes.
pub fn choose(facts: &[ScratchFacts], needed: u64) -> ScratchChoice<'_> {
    let mut refused = Vec::new();
    for fact in facts {
        match against(fact, needed) {
            None => {
                return ScratchChoice {
                    chosen: Some(fact),
                    refused,
                };
            }
            Some(reason) => {
                let Candidate { dir, origin, .. } = &fact.candidate;
                refused.push(format!("{} ({origin}): {reason}", dir.display()));
            }
        }
    }
    ScratchChoice {
        chosen: None,
        refused,
    }
}

fn against(fact: &ScratchFacts, needed: u64) -> Option<String> {
    let Some(Mounted { kind, free_bytes }) = fact.mounted else {
        return Some("does not exist".to_owned());
    };
    match kind.reach {
        Reach::Network => {
            return Some(format!("{}, which is no disk of this node", kind.name));
        }
        Reach::Unknown => return Some(format!("{}, perhaps no disk of this node", kind.name)),
        Reach::Memory if !fact.candidate.provided => {
            let name = kind.name;
            return Some(format!(
                "{name}: a copy would count against the job's memory"
            ));
        }
        Reach::Memory | Reach::Node => {}
    }
    if !fact.writable {
        return Some("cannot be written by this user".to_owned());
    }
    (free_bytes < needed).then(|| {
        let (free, needed) = (crate::bytes(free_bytes), crate::bytes(needed));
        format!("{free} free, {needed} needed")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const GB: u64 = 1_000_000_000;

    fn fact(dir: &str, magic: u64, free: u64) -> ScratchFacts {
        ScratchFacts {
            candidate: Candidate {
                dir: dir.into(),
                origin: "here".to_owned(),
                provided: false,
            },
            writable: true,
            mounted: Some(Mounted {
                kind: filesystem::kind(magic),
                free_bytes: free,
            }),
        }
    }

    const EXT4: u64 = 0xEF53;
    const NFS: u64 = 0x6969;
    const TMPFS: u64 = 0x0102_1994;

    #[test]
    fn the_first_local_disk_with_room_is_taken() {
        let absent = ScratchFacts {
            mounted: None,
            ..fact("/absent", EXT4, 0)
        };
        let locked = ScratchFacts {
            writable: false,
            ..fact("/locked", EXT4, 90 * GB)
        };
        let facts = [
            absent,
            fact("/home", NFS, 900 * GB),
            fact("/fuse", 0x6573_5546, 900 * GB),
            fact("/dev/shm", TMPFS, 900 * GB),
            locked,
            fact("/small", EXT4, 11 * GB),
            fact("/tmp", EXT4, 12 * GB),
            fact("/later", EXT4, 900 * GB),
        ];
        let choice = choose(&facts, 12 * GB);
        assert_eq!(choice.chosen, Some(&facts[6]));
        assert_eq!(
            choice.refused,
            [
                "/absent (here): does not exist",
                "/home (here): nfs, which is no disk of this node",
                "/fuse (here): fuse, perhaps no disk of this node",
                "/dev/shm (here): tmpfs: a copy would count against the job's memory",
                "/locked (here): cannot be written by this user",
                "/small (here): 11.0 GB free, 12.0 GB needed",
            ]
        );
        assert_eq!(choose(&facts[..6], 12 * GB).chosen, None);
        assert_eq!(choose(&[], 0).chosen, None);
    }

    #[test]
    fn memory_is_taken_when_the_site_provides_it() {
        let mut shm = fact("/dev/shm/job", TMPFS, 900 * GB);
        shm.candidate.provided = true;
        assert!(choose(std::slice::from_ref(&shm), 12 * GB).chosen.is_some());
    }

    #[test]
    fn candidates_come_in_order_and_once() {
        let env = |name: &str| match name {
            "USER" => Some("ada".to_owned()),
            "SLURM_TMPDIR" | "TMPDIR" => Some("/local/job.7".to_owned()),
            _ => None,
        };
        let site = [
            "/nvme/$USER/x",
            "${USER}/relative",
            "$UNSET/y",
            "/${USER}s",
            "/a${b",
        ];
        let found = candidates(&site.map(str::to_owned), true, &env);
        let found: Vec<(&str, &str, bool)> = found
            .iter()
            .map(|c| (c.dir.to_str().unwrap(), c.origin.as_str(), c.provided))
            .collect();
        assert_eq!(
            found,
            [
                ("/nvme/ada/x", "named", true),
                ("/adas", "named", true),
                ("/local/job.7", "$SLURM_TMPDIR", true),
                ("/scratch/local", "usual place", false),
                ("/tmp", "usual place", false),
            ]
        );
    }

    #[test]
    fn this_machine_is_looked_at() {
        let facts = look(candidates(&[], true, &|_| None));
        assert_eq!(facts.len(), 2);
        assert!(facts[1].writable && facts[1].mounted.is_some());
    }
}
