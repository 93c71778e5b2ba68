//! `fovea report`

use fovea_trainer::report::write_report;

use crate::cli::ReportArgs;
use crate::exit::Ending;
use crate::say;

pub fn run(args: &ReportArgs) -> anyhow::Result<Ending> {
    let paths = write_report(&args.run)?;
    for note in &paths.notes {
        say!("{note}")?;
    }
    say!("{}", paths.html.display())?;
    Ok(Ending::Finished)
}
