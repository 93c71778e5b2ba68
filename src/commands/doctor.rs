//! `fovea doctor`

use std::fs;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};

use fovea_coordinator::status::Status;
use fovea_dataset::Manifest;
use fovea_slurm::doctor::gather::{Given, gather};
use fovea_slurm::doctor::{Facts, Libtorch, Line, Verdict, Version, judge, page, worst};
use fovea_slurm::site::Site;
use fovea_trainer::config::Config;
use fovea_trainer::exit_code::FAILED;
use fovea_trainer::run_dir::RunDir;
use serde::Serialize;

use crate::cli::DoctorArgs;
use crate::exit::Ending;
use crate::say;

/// The libtorch that tch is made for; as in scripts/setup.sh.
const LIBTORCH: Version = Version(2, 11, 0);

/// What `--json` prints.
#[derive(Serialize)]
struct Answer<'a> {
    verdict: Verdict,
    lines: &'a [Line],
    facts: &'a Facts,
}

pub fn run(args: &DoctorArgs) -> anyhow::Result<Ending> {
    let run = args.run.clone().unwrap_or_else(|| PathBuf::from("."));
    // A site file that cannot be read is one finding among others.
    let (site, site_is_wrong) = match Site::load() {
        Ok(site) => (site, false),
        Err(error) => {
            tracing::error!("site file: {error}");
            (Site::default(), true)
        }
    };
    let saved = Status::load(&run).ok().and_then(|status| status.checkpoint);
    let facts = gather(Given {
        libtorch: libtorch(),
        mpi: cfg!(feature = "mpi"),
        data_bytes: data_bytes(&run).unwrap_or(0),
        save_s: saved.map(|checkpoint| checkpoint.took_ms as f64 / 1e3),
        scratch: site.scratch,
        interface: site.interface,
        run,
    });
    let lines = judge(&facts);
    let verdict = worst(&lines);
    if args.json {
        let answer = Answer {
            verdict,
            lines: &lines,
            facts: &facts,
        };
        say!("{}", serde_json::to_string_pretty(&answer)?)?;
    } else {
        let colours = std::io::stdout().is_terminal()
            && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty());
        say!("{}", page(&facts.node, &lines, colours))?;
    }
    Ok(match verdict {
        _ if site_is_wrong => Ending::Code(FAILED),
        Verdict::Fail => Ending::Code(FAILED),
        Verdict::Ok | Verdict::Warn => Ending::Finished,
    })
}

/// Bytes of the dataset that the run is configured for; none when there is no such run, or no such dataset here.
fn data_bytes(run: &Path) -> Option<u64> {
    let config = Config::load(&RunDir::new(run).config()).ok()?;
    let manifest = Manifest::load(config.data.path.as_ref()).ok()?;
    Some(manifest.shards.iter().map(|shard| shard.bytes).sum())
}

/// The libtorch in this process. It is linked, so without one there is nobody to ask.
pub fn libtorch() -> Libtorch {
    let maps = fs::read_to_string("/proc/self/maps").unwrap_or_default();
    let loaded = |name: &str| {
        maps.lines()
            .filter_map(|line| line.find('/').map(|at| Path::new(&line[at..])))
            .find(|path| path.file_name().is_some_and(|file| file == name))
    };
    let dir = loaded("libtorch_cpu.so").and_then(Path::parent);
    let (version, cuda) = dir.and_then(Path::parent).map_or((None, None), versions);
    Libtorch {
        dir: dir.map(Path::to_owned),
        version,
        wanted: LIBTORCH,
        cuda,
        cuda_side: loaded("libtorch_cuda.so").is_some(),
    }
}

/// Version and CUDA version of the libtorch in `root`: "2.11.0+cu130" in `build-version` of an unpacked archive, the same
/// in quotes in `version.py` of a wheel.
fn versions(root: &Path) -> (Option<Version>, Option<Version>) {
    let full = fs::read_to_string(root.join("build-version")).or_else(|_| {
        fs::read_to_string(root.join("version.py")).map(|text| {
            let line = text.lines().find(|line| line.starts_with("__version__"));
            let quoted = line.and_then(|line| line.split('\'').nth(1));
            quoted.unwrap_or_default().to_owned()
        })
    });
    let full = full.unwrap_or_default();
    // cu130 is 13.0, cu92 would be 9.2.
    let cuda = full.split_once("+cu").and_then(|(_, digits)| {
        let digits: u32 = digits.trim().parse().ok()?;
        Some(Version(digits / 10, digits % 10, 0))
    });
    (full.trim().parse().ok(), cuda)
}
