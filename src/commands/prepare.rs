//! `fovea prepare`: turns a raw dataset into checked shards.

use fovea_dataset::{Bar, Dataset, PrepareOptions, prepare};

use crate::cli::PrepareArgs;
use crate::exit::{Ending, Usage};
use crate::say;

pub fn run(args: &PrepareArgs) -> anyhow::Result<Ending> {
    let options = PrepareOptions {
        layout: args
            .layout
            .parse()
            .map_err(|e| Usage(format!("--layout {}: {e}", args.layout)))?,
        size: args.size,
        patch: args.patch,
        min_lesion_pixels: args.min_lesion_pixels,
        seed: args.seed,
        group_by: args.group_by.clone(),
        workers: args.workers,
        ..PrepareOptions::default()
    };
    prepare(&args.src, &args.out, &options, &Bar::new("images"))?;
    let data = Dataset::open_unverified(&args.out)?;
    say!("{}", data.label_table())?;
    Ok(Ending::Finished)
}
