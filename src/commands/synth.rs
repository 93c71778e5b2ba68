//! `fovea synth`: writes a synthetic dataset.

use fovea_dataset::Bar;
use fovea_synth::{SynthOptions, synth};

use crate::cli::SynthArgs;
use crate::exit::Ending;
use crate::say;
use crate::show;

pub fn run(args: &SynthArgs) -> anyhow::Result<Ending> {
    let options = SynthOptions {
        images: args.images,
        size: args.size,
        seed: args.seed,
    };
    synth(&args.out, &options, &Bar::new("images"))?;
    say!(
        "{}: {} of {} x {} in FGADR layout",
        args.out.display(),
        show::counted(args.images as usize, "image"),
        args.size,
        args.size
    )?;
    Ok(Ending::Finished)
}
