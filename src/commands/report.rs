//! `fovea report`

use fovea_trainer::report::write_report;

use crate::cli::ReportArgs;
use crate::exit::Ending;

pub fn run(args: &ReportArgs) -> anyhow::Result<Ending> {
    let paths = write_report(&args.run)?;
    for note in &paths.notes {
        println!("{note}");
    }
    println!("{}", paths.html.display());
    Ok(Ending::Finished)
}
