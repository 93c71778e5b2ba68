//! Checks whether the tests of this binary can run here. No test passes by silently not running.

use std::io::Write;
use std::path::Path;
use std::sync::{MutexGuard, Once};

use crate::{common, nodes};

/// Debian's packages that these tests need; set-up installs them.
const PACKAGES: &str =
    "slurmctld slurmd slurm-client slurm-wlm-basic-plugins munge libpmix2 iproute2";
const PROGRAMS: [&str; 8] = [
    "munged",
    "slurmctld",
    "slurmd",
    "sbatch",
    "srun",
    "scontrol",
    "sinfo",
    "squeue",
];

/// The turn of a test that needs a cluster; `None` where the user leaves these tests out.
#[track_caller]
pub fn slurm() -> Option<MutexGuard<'static, ()>> {
    static SAID: Once = Once::new();
    if is_off("FOVEA_TEST_SLURM", "jobs on Slurm", &SAID) {
        return None;
    }
    let path = std::env::var("PATH").unwrap_or_default() + ":/usr/sbin:/sbin";
    let is_there = |program: &&&str| {
        path.split(':')
            .any(|dir| Path::new(dir).join(program).is_file())
    };
    let missing: Vec<_> = PROGRAMS.iter().filter(|p| !is_there(p)).collect();
    assert!(
        missing.is_empty(),
        "error: the tests of jobs need {missing:?}\n  help: apt-get install -y --no-install-recommends {PACKAGES}\n  \
         help: or leave these tests out: FOVEA_TEST_SLURM=off"
    );
    Some(common::turn())
}

/// The turn of a test that needs nodes in namespaces of their own; `None` where the user leaves these tests out.
#[track_caller]
pub fn namespaces() -> Option<MutexGuard<'static, ()>> {
    static SAID: Once = Once::new();
    if is_off(
        "FOVEA_TEST_NAMESPACES",
        "nodes with a network of their own",
        &SAID,
    ) {
        return None;
    }
    let turn = slurm()?;
    if let Err(why) = nodes::namespaces() {
        panic!(
            "error: nodes cannot be set apart: {why}\n  help: these tests want root, iproute2, and a kernel that \
             allows namespaces\n  help: or leave them out: FOVEA_TEST_NAMESPACES=off"
        );
    }
    Some(turn)
}

/// Whether this variable switches tests off. Reports that once, past the capture of test output, because a passing run
/// must show what it skipped.
fn is_off(name: &str, what: &str, said: &Once) -> bool {
    let off = std::env::var(name).is_ok_and(|value| value == "off");
    if off {
        said.call_once(|| {
            let _ = writeln!(
                std::io::stderr(),
                "left out ({name}=off): the tests of {what}"
            );
        });
    }
    off
}
