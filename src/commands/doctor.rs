//! `fovea doctor`: gathers facts about this machine and judges them.

use std::io::IsTerminal;
use std::path::{Path, PathBuf};

use fovea_coordinator::status::Status;
use fovea_dataset::Manifest;
use fovea_launch::exit_code::FAILED;
use fovea_run::config::Config;
use fovea_run::run_dir::RunDir;
use fovea_slurm::doctor::gather::{CallerFacts, gather};
use fovea_slurm::doctor::{Facts, Line, Verdict, judge, page, worst};
use fovea_slurm::site::Site;
use serde::Serialize;

use crate::cli::DoctorArgs;
use crate::exit::Ending;
use crate::libtorch::libtorch;
use crate::say;

/// The object that `--json` prints.
#[derive(Serialize)]
struct JsonAnswer<'a> {
    verdict: Verdict,
    lines: &'a [Line],
    facts: &'a Facts,
}

pub fn run(args: &DoctorArgs) -> anyhow::Result<Ending> {
    let run = args.run.clone().unwrap_or_else(|| PathBuf::from("."));
    // An unreadable site file is one finding among others.
    let (site, site_is_wrong) = match Site::load() {
        Ok(site) => (site, false),
        Err(error) => {
            tracing::error!("site file: {error}");
            (Site::default(), true)
        }
    };
    let saved = Status::load(&run).ok().and_then(|status| status.checkpoint);
    let facts = gather(CallerFacts {
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
        let answer = JsonAnswer {
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
