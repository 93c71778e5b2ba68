//! Gathers the facts of this machine. Nothing here decides anything or returns an error.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use libloading::{Library, Symbol};

use super::command::{CommandOutcome, run};
use super::scheduler::{field, parse_config, parse_partitions};
use super::{
    Controller, Cuda, Facts, InstalledGpu, Libtorch, Mpi, Nccl, NodeNetwork, RunDirectory,
    Scheduler, Scratch, Skew, Version,
};
use crate::launcher;
use crate::{filesystem, interfaces, scratch};

/// Time limit of commands that answer from this node.
const SHORT: Duration = Duration::from_secs(10);
/// Time limit of a step on another node.
const STEP: Duration = Duration::from_secs(20);
/// Most nodes that are asked for their time.
const MOST_CLOCKS: usize = 16;

/// The facts that only the caller knows.
#[derive(Clone, Debug, Default)]
pub struct CallerFacts {
    /// The libtorch that this process has loaded.
    pub libtorch: Libtorch,
    /// Whether this program was built with MPI.
    pub mpi: bool,
    /// The run's directory, or the place where runs would be made.
    pub run: PathBuf,
    /// Seconds that the run's newest checkpoint took to write; none before the first.
    pub save_s: Option<f64>,
    /// Bytes of the run's dataset; 0 when they are unknown.
    pub data_bytes: u64,
    /// Scratch directories of the site file; may be empty.
    pub scratch: Vec<String>,
    /// The interface that the site file asks for.
    pub interface: Option<String>,
}

/// Collects all facts; takes some seconds where commands are slow to answer.
pub fn gather(given: CallerFacts) -> Facts {
    let env = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    let nodes = nodes(&env);
    let torch_dir = given.libtorch.dir.clone();
    Facts {
        node: node(&env),
        cuda: Cuda {
            driver: driver(),
            gpus: gpus(),
            promised: env("SLURM_GPUS_ON_NODE").and_then(|n| n.parse().ok()),
        },
        nccl: nccl(torch_dir.as_deref()),
        libtorch: given.libtorch,
        mpi: Mpi {
            compiled: given.mpi,
            mpirun: mpirun(),
            plugins: mpi_plugins(),
        },
        scheduler: scheduler(&env, given.save_s),
        run: run_directory(&given.run),
        scratch: Scratch {
            candidates: scratch::look(scratch::candidates(&given.scratch, true, &env)),
            needed: given.data_bytes,
        },
        network: NodeNetwork {
            interfaces: interfaces::list().unwrap_or_default(),
            wish: given.interface,
            several_nodes: nodes.len() > 1,
            clocks: (nodes.len() > 1).then(|| clocks(&nodes)),
        },
    }
}

fn node(env: &dyn Fn(&str) -> Option<String>) -> String {
    let uname = || {
        rustix::system::uname()
            .nodename()
            .to_string_lossy()
            .into_owned()
    };
    env("SLURMD_NODENAME").unwrap_or_else(uname)
}

// --- CUDA ----------------------------------------------------------------------------------------

/// Decodes `1000 * major + 10 * minor`, as CUDA writes versions.
fn of_cuda(number: i32) -> Option<Version> {
    let number = u32::try_from(number).ok().filter(|n| *n > 0)?;
    Some(Version(number / 1000, number % 1000 / 10, 0))
}

/// The newest CUDA that the driver supports.
fn driver() -> Option<Version> {
    let mut version = 0;
    // SAFETY: libcuda's constructors touch nothing of ours. cuDriverGetVersion has this signature in every version of
    // CUDA, needs no initialisation, and writes one int.
    let code = unsafe {
        let library = Library::new("libcuda.so.1").ok()?;
        let get: Symbol<unsafe extern "C" fn(*mut i32) -> i32> =
            library.get(b"cuDriverGetVersion\0").ok()?;
        let code = get(&raw mut version);
        // Hardly any program unloads a driver, so this one does not try it.
        std::mem::forget(library);
        code
    };
    if code == 0 { of_cuda(version) } else { None }
}

fn gpus() -> Option<Vec<InstalledGpu>> {
    let query = [
        "--query-gpu=name,memory.total,compute_cap",
        "--format=csv,noheader,nounits",
    ];
    run("nvidia-smi", &query, SHORT)
        .good()
        .map(|text| parse_gpus(&text))
}

fn parse_gpus(text: &str) -> Vec<InstalledGpu> {
    text.lines()
        .filter_map(|line| {
            let mut parts = line.split(',').map(str::trim);
            Some(InstalledGpu {
                name: parts.next()?.to_owned(),
                memory_mib: parts.next()?.parse().ok()?,
                capability: parts.next().and_then(|c| c.parse().ok()),
            })
        })
        .collect()
}

/// The NCCL that libtorch would load: next to libtorch, in the wheel's place, or where the loader looks.
fn nccl(torch: Option<&Path>) -> Nccl {
    let beside = torch.into_iter().flat_map(|lib| {
        let wheel = lib.join("../../nvidia/nccl/lib");
        [lib.to_owned(), wheel].map(|dir| dir.join("libnccl.so.2"))
    });
    let mut beside = beside.filter(|path| path.exists());
    if let Some(path) = beside.next() {
        let path = path.canonicalize().unwrap_or(path);
        return Nccl {
            version: nccl_version(&path),
            path: Some(path),
        };
    }
    let name = Path::new("libnccl.so.2");
    let version = nccl_version(name);
    Nccl {
        path: version.map(|_| name.to_owned()),
        version,
    }
}

fn nccl_version(library: &Path) -> Option<Version> {
    let mut number = 0;
    // SAFETY: as for libcuda; ncclGetVersion has this signature since NCCL 2, needs no initialisation, and writes one
    // int.
    let code = unsafe {
        let library = Library::new(library).ok()?;
        let get: Symbol<unsafe extern "C" fn(*mut i32) -> i32> =
            library.get(b"ncclGetVersion\0").ok()?;
        let code = get(&raw mut number);
        std::mem::forget(library);
        code
    };
    let number = u32::try_from(number).ok().filter(|n| code == 0 && *n > 0)?;
    // NCCL up to 2.8 writes 2804, from 2.9 on 22809.
    Some(if number < 10_000 {
        Version(number / 1000, number % 1000 / 100, number % 100)
    } else {
        Version(number / 10_000, number % 10_000 / 100, number % 100)
    })
}

// --- MPI and Slurm -------------------------------------------------------------------------------

fn mpirun() -> Option<String> {
    let text = run("mpirun", &["--version"], SHORT).good()?;
    text.lines().next().map(|line| line.trim().to_owned())
}

fn mpi_plugins() -> Option<Vec<String>> {
    match run("srun", &["--mpi=list"], SHORT) {
        CommandOutcome::Missing => None,
        CommandOutcome::TooLong => Some(Vec::new()),
        // Some versions of srun answer on standard error.
        CommandOutcome::Ended { out, err, .. } => Some(launcher::plugins(&format!("{out}\n{err}"))),
    }
}

fn scheduler(env: &dyn Fn(&str) -> Option<String>, save_s: Option<f64>) -> Option<Scheduler> {
    let version = match run("scontrol", &["--version"], SHORT) {
        CommandOutcome::Missing => return None,
        ran => ran.good(),
    };
    let mut slurm = Scheduler {
        version: version
            .and_then(|text| text.split_whitespace().find_map(|word| word.parse().ok())),
        job: env("SLURM_JOB_ID").and_then(|id| id.parse().ok()),
        save_s,
        ..Scheduler::default()
    };
    match run("scontrol", &["show", "config"], SHORT) {
        CommandOutcome::Ended {
            good: true, out, ..
        } => slurm.config = parse_config(&out),
        CommandOutcome::Ended { err, .. } => {
            let last = err.lines().last().unwrap_or("no answer");
            slurm.controller = Controller::Silent(last.trim().to_owned());
            return Some(slurm);
        }
        CommandOutcome::Missing | CommandOutcome::TooLong => {
            let said = format!("no answer in {} s", SHORT.as_secs());
            slurm.controller = Controller::Silent(said);
            return Some(slurm);
        }
    }
    let partitions = run("scontrol", &["show", "partition", "--oneliner"], SHORT).good();
    slurm.partitions = partitions
        .map(|text| parse_partitions(&text))
        .unwrap_or_default();
    slurm.job_requeue = slurm.job.and_then(|job| {
        let text = run(
            "scontrol",
            &["show", "job", &job.to_string(), "--oneliner"],
            SHORT,
        )
        .good()?;
        Some(field(text.lines().next()?, "Requeue")? != "0")
    });
    Some(slurm)
}

/// The nodes of this allocation; empty outside of one.
fn nodes(env: &dyn Fn(&str) -> Option<String>) -> Vec<String> {
    let Some(list) = env("SLURM_JOB_NODELIST") else {
        return Vec::new();
    };
    let text = run("scontrol", &["show", "hostnames", &list], SHORT).good();
    text.unwrap_or_default()
        .lines()
        .map(str::to_owned)
        .collect()
}

/// Asks each node for its time. The answer is compared with the middle of the interval that asking took.
fn clocks(nodes: &[String]) -> Vec<Skew> {
    nodes
        .iter()
        .take(MOST_CLOCKS)
        .map(|node| clock(node))
        .collect()
}

fn clock(node: &str) -> Skew {
    let arguments = ["--overlap", "-N1", "-n1", "-w", node, "date", "+%s.%N"];
    let (before, begun) = (now_s(), Instant::now());
    let answer = run("srun", &arguments, STEP).good();
    let took = begun.elapsed().as_secs_f64();
    let theirs: Option<f64> = answer.and_then(|text| text.trim().parse().ok());
    Skew {
        node: node.to_owned(),
        ahead_s: theirs.map(|theirs| theirs - (before + took / 2.0)),
        within_s: took / 2.0,
    }
}

fn now_s() -> f64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0.0, |since| since.as_secs_f64())
}

// --- the run's file system -----------------------------------------------------------------------

/// Number of syncs that are timed.
const SYNCS: usize = 5;

fn run_directory(run: &Path) -> RunDirectory {
    let absolute = std::path::absolute(run).unwrap_or_else(|_| run.to_owned());
    let path = absolute
        .ancestors()
        .find(|dir| dir.is_dir())
        .unwrap_or(Path::new("/"))
        .to_owned();
    let mut found = RunDirectory {
        mounted: filesystem::look(&path).ok(),
        refused: None,
        fsync_ms: None,
        lock_problem: None,
        path,
    };
    let trial = found
        .path
        .join(format!(".fovea-doctor-{}", std::process::id()));
    match sync_ms(&trial) {
        Ok(ms) => {
            found.fsync_ms = Some(ms);
            found.lock_problem = lock_problem(&trial);
        }
        Err(error) => found.refused = Some(error.to_string()),
    }
    // The file is missing when it could not be created.
    let _ = fs::remove_file(&trial);
    found
}

fn sync_ms(path: &Path) -> std::io::Result<f64> {
    let mut file = File::create(path)?;
    let mut times = Vec::new();
    for _ in 0..SYNCS {
        let begun = Instant::now();
        file.write_all(&[b'.'; 4096])?;
        file.sync_all()?;
        times.push(begun.elapsed().as_secs_f64() * 1e3);
    }
    times.sort_by(f64::total_cmp);
    Ok(times[SYNCS / 2])
}

/// A file system with working locks refuses a second lock on a locked file.
fn lock_problem(path: &Path) -> Option<String> {
    let lock = || -> Result<(), String> {
        let first = File::open(path).map_err(|e| e.to_string())?;
        first.try_lock().map_err(|e| e.to_string())?;
        let second = File::open(path).map_err(|e| e.to_string())?;
        match second.try_lock() {
            Err(std::fs::TryLockError::WouldBlock) => Ok(()),
            Ok(()) => Err("a second lock on the same file was granted".to_owned()),
            Err(error) => Err(error.to_string()),
        }
    };
    lock().err()
}

#[cfg(test)]
mod tests {
    use super::super::{judge, page, worst};
    use super::*;

    #[test]
    fn what_nvidia_smi_prints_is_read() {
        let gpus = parse_gpus("NVIDIA H200, 143771, 9.0\nTesla V100-SXM2-32GB, 32768, [N/A]\n");
        assert_eq!(gpus.len(), 2);
        assert_eq!(
            (gpus[0].memory_mib, gpus[0].capability),
            (143_771, Some(Version(9, 0, 0)))
        );
        assert_eq!(gpus[1].capability, None);
        assert_eq!(parse_gpus("No devices were found\n"), []);
        assert_eq!(of_cuda(12_080), Some(Version(12, 8, 0)));
        assert_eq!(of_cuda(0), None);
    }

    #[test]
    fn a_directory_is_tried_and_left_as_it_was() {
        let dir = tempfile::tempdir().unwrap();
        let found = run_directory(&dir.path().join("not/there/yet"));
        assert_eq!(found.path, dir.path());
        assert!(found.fsync_ms.is_some_and(|ms| ms > 0.0), "{found:?}");
        assert_eq!((found.refused, found.lock_problem), (None, None));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
        let found = run_directory(Path::new("/proc/self"));
        assert!(found.refused.is_some());
    }

    #[test]
    fn this_machine_gets_a_page() {
        let dir = tempfile::tempdir().unwrap();
        let facts = gather(CallerFacts {
            run: dir.path().to_owned(),
            ..CallerFacts::default()
        });
        let lines = judge(&facts);
        println!("{}\n{:?}", page("here", &lines, false), worst(&lines));
        assert!(lines.len() >= 8, "{lines:?}");
        serde_json::to_string(&facts).unwrap();
    }
}
