//! `fovea predict`

use std::path::Path;

use fovea_dataset::{Bar, Dataset, Progress};
use fovea_trainer::predict::{Predictor, photos};
use fovea_trainer::run_dir::{Prediction, write_predictions};

use super::eval::apply;
use crate::cli::PredictArgs;
use crate::exit::{Ending, Usage};

pub fn run(args: &PredictArgs) -> anyhow::Result<Ending> {
    if !args.input.exists() {
        let help = "give a prepared dataset, a photograph, or a folder of photographs";
        return Err(Usage(format!(
            "{}: no such file or directory\n  help: {help}",
            args.input.display()
        ))
        .into());
    }
    let predictor = Predictor::load(&args.checkpoint, |config| apply(config, &args.set))?;
    let rows = if args.input.join("manifest.json").is_file() {
        prepared(&predictor, &args.input)?
    } else {
        photographs(&predictor, &args.input)?
    };
    write_predictions(&args.out, &rows, false)?;
    let images = rows.iter().filter(|r| r.cell.is_none()).count();
    println!(
        "{}: {images} images, {} patches",
        args.out.display(),
        rows.len() - images
    );
    Ok(Ending::Finished)
}

fn prepared(predictor: &Predictor, path: &Path) -> anyhow::Result<Vec<Prediction>> {
    let data = Dataset::open(path).map_err(fovea_trainer::Error::from)?;
    let bar = Bar::new("images");
    bar.start(data.len() as u64);
    let rows = predictor.dataset(data, || bar.advance(1))?;
    bar.finish();
    Ok(rows)
}

fn photographs(predictor: &Predictor, path: &Path) -> anyhow::Result<Vec<Prediction>> {
    let files = photos(path)?;
    let bar = Bar::new("photographs");
    bar.start(files.len() as u64);
    let rows = predictor.photos(&files, || bar.advance(1))?;
    bar.finish();
    Ok(rows)
}
