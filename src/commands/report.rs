//! `fovea report`: writes a run's report with all plots.

use fovea_report::write_report;

use super::scheduled::refuse_not_begun;
use crate::cli::ReportArgs;
use crate::exit::Ending;
use crate::say;

pub fn run(args: &ReportArgs) -> anyhow::Result<Ending> {
    refuse_not_begun(&args.run)?;
    let paths = write_report(&args.run)?;
    for note in &paths.notes {
        say!("{note}")?;
    }
    say!("{}", paths.html.display())?;
    Ok(Ending::Finished)
}
