//! `fovea prepare`: turns a raw dataset into checked shards.

use fovea_dataset::{Bar, Crop, Dataset, Fit, LayoutChoice, PrepareOptions, TableOptions, prepare};

use crate::cli::PrepareArgs;
use crate::exit::{Ending, Usage};
use crate::say;

/// Working size of a dataset in which only whole images have labels, pixels.
const WHOLE_SIZE: u32 = 256;

pub fn run(args: &PrepareArgs) -> anyhow::Result<Ending> {
    let options = options(args)?;
    prepare(&args.src, &args.out, &options, &Bar::new("images"))?;
    let data = Dataset::open_unverified(&args.out)?;
    say!("{}", data.label_table())?;
    Ok(Ending::Finished)
}

fn options(args: &PrepareArgs) -> Result<PrepareOptions, Usage> {
    let usage = |option: &str, value: &str, e: String| Usage(format!("{option} {value}: {e}"));
    let usual = PrepareOptions::default();
    let crop = match args.crop.as_str() {
        "auto" => None,
        other => Some(
            other
                .parse::<Crop>()
                .map_err(|e| usage("--crop", other, e))?,
        ),
    };
    let fit = args.fit.as_deref().map(|text| {
        let fit = text.parse::<Fit>();
        fit.map_err(|e| usage("--fit", text, e))
    });
    Ok(PrepareOptions {
        layout: args
            .layout
            .parse::<LayoutChoice>()
            .map_err(|e| usage("--layout", &args.layout, e))?,
        tables: TableOptions {
            image_column: args.image_column.clone(),
            labels: args.labels.clone(),
            max_boxes: args.max_boxes,
        },
        size: args.size.unwrap_or(usual.size),
        patch: args.patch.unwrap_or(usual.patch),
        // A grid that the user asks for is made for any task.
        whole_size: match args.patch {
            None => Some(args.size.unwrap_or(WHOLE_SIZE)),
            Some(_) => None,
        },
        crop,
        fit: fit.transpose()?,
        min_lesion_pixels: args.min_lesion_pixels,
        seed: args.seed,
        group_by: args.group_by.clone(),
        workers: args.workers,
        ..usual
    })
}
