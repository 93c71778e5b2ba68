//! `fovea data`: prints the label table of a dataset, and draws mosaics.

use fovea_dataset::{Dataset, MosaicOptions, mosaic, mosaic_photos};

use super::output;
use crate::cli::DataArgs;
use crate::exit::{Ending, Usage};
use crate::say;

/// Working size and patch in pixels for photographs that are not prepared.
const PHOTO: (u32, u32) = (1280, 128);

pub fn run(args: &DataArgs) -> anyhow::Result<Ending> {
    let mosaic_file = match &args.mosaic {
        Some(out) => Some(output::checked("--mosaic", out, &args.data)?),
        None => None,
    };
    let options = MosaicOptions::default();
    if is_photographs(args) {
        let help = "prepare a dataset with `fovea prepare`, or add --mosaic FILE.png to look at photographs";
        let Some(out) = &mosaic_file else {
            let path = args.data.display();
            return Err(Usage(format!(
                "{path}: no manifest.json, so no prepared dataset\n  help: {help}"
            ))
            .into());
        };
        let drawn = mosaic_photos(&args.data, out, PHOTO.0, PHOTO.1, &options);
        let in_part =
            matches!(&drawn, Err(e @ fovea_dataset::Error::BadPhotos { .. }) if !e.is_usage());
        if drawn.is_ok() || in_part {
            say!("{}", out.display())?;
        }
        drawn?;
        return Ok(Ending::Finished);
    }
    let data = Dataset::open(&args.data)?;
    say!("{}", data.label_table())?;
    if let Some(out) = &mosaic_file {
        mosaic(&data, out, &options)?;
        say!("{}", out.display())?;
    }
    Ok(Ending::Finished)
}

/// Whether the path is a photograph, or a folder of photographs without a manifest.
fn is_photographs(args: &DataArgs) -> bool {
    !args.data.join("manifest.json").exists() && fovea_dataset::holds_photos(&args.data)
}
