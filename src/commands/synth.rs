//! `fovea synth`: writes a synthetic dataset.

use fovea_dataset::Bar;
use fovea_synth::{DrawnSet, SynthOptions, draw_set, synth};

use crate::cli::{SynthArgs, SynthKind};
use crate::exit::Ending;
use crate::say;
use crate::show;

pub fn run(args: &SynthArgs) -> anyhow::Result<Ending> {
    let set = match args.kind {
        SynthKind::Lesions => None,
        SynthKind::Labels => Some(DrawnSet::Labels),
        SynthKind::Classes => Some(DrawnSet::Classes),
        SynthKind::Boxes => Some(DrawnSet::Boxes),
    };
    let usual = match set {
        None => SynthOptions::default(),
        Some(_) => SynthOptions {
            images: 240,
            size: 256,
            seed: 0,
        },
    };
    let options = SynthOptions {
        images: args.images.unwrap_or(usual.images),
        size: args.size.unwrap_or(usual.size),
        seed: args.seed,
    };
    let bar = Bar::new("images");
    let layout = match set {
        None => {
            synth(&args.out, &options, &bar)?;
            "FGADR"
        }
        Some(set) => {
            draw_set(&args.out, set, &options, &bar)?;
            match set {
                DrawnSet::Labels => "csv",
                DrawnSet::Classes => "classes",
                DrawnSet::Boxes => "boxes",
            }
        }
    };
    say!(
        "{}: {} of {} x {} in {layout} layout",
        args.out.display(),
        show::counted(options.images as usize, "image"),
        options.size,
        options.size
    )?;
    Ok(Ending::Finished)
}
