//! `fovea data`

use fovea_dataset::{Dataset, MosaicOptions, mosaic};

use crate::cli::DataArgs;
use crate::exit::Ending;

pub fn run(args: &DataArgs) -> anyhow::Result<Ending> {
    let data = Dataset::open(&args.data).map_err(fovea_trainer::Error::from)?;
    print!("{}", data.label_table());
    if let Some(out) = &args.mosaic {
        mosaic(&data, out, &MosaicOptions::default()).map_err(fovea_trainer::Error::from)?;
        println!("{}", out.display());
    }
    Ok(Ending::Finished)
}
