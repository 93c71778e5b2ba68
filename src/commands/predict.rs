//! `fovea predict`: lesion probabilities for a prepared dataset or for photographs.

use std::collections::HashSet;
use std::path::Path;

use fovea_dataset::{Bar, Dataset, ProgressListener};
use fovea_run::predictions::{self, Columns, Prediction};
use fovea_trainer::predict::{Predictor, photos};

use super::eval::apply;
use super::output;
use crate::cli::PredictArgs;
use crate::exit::{Ending, Usage};
use crate::say;
use crate::show;

pub fn run(args: &PredictArgs) -> anyhow::Result<Ending> {
    if !args.input.exists() {
        let help = "give a prepared dataset, a photograph, or a folder of photographs";
        return Err(Usage(format!(
            "{}: no such file or directory\n  help: {help}",
            args.input.display()
        ))
        .into());
    }
    let out = output::checked("--out", &args.out, &args.input)?;
    let predictor = Predictor::load(&args.checkpoint, |config| apply(config, &args.set))?;
    let (rows, bad) = if args.input.join("manifest.json").is_file() {
        (prepared(&predictor, &args.input)?, None)
    } else {
        photographs(&predictor, &args.input)?
    };
    if rows.is_empty()
        && let Some(bad) = bad
    {
        return Err(bad.into());
    }
    predictions::write(&out, predictor.task(), &rows, Columns::Usable)?;
    // An image or patch may have several targets.
    let places = |wanted: &dyn Fn(&Prediction) -> bool| {
        let places = rows.iter().filter(|row| wanted(row));
        let places: HashSet<_> = places.map(|row| (&row.image_id, row.cell)).collect();
        places.len()
    };
    let images = places(&|row| row.cell.is_none());
    let patches = places(&|row| row.cell.is_some());
    let unusable = places(&|row| row.cell.is_none() && row.note.is_some());
    say!(
        "{}: {}, {} patches{}",
        args.out.display(),
        show::counted(images, "image"),
        patches,
        match unusable {
            0 => String::new(),
            n => format!(
                "; {} not usable (see the column note)",
                show::counted(n, "image")
            ),
        }
    )?;
    bad.map_or(Ok(Ending::Finished), |bad| Err(bad.into()))
}

fn prepared(predictor: &Predictor, path: &Path) -> anyhow::Result<Vec<Prediction>> {
    let data = Dataset::open(path)?;
    let bar = Bar::new("images");
    bar.start(data.len() as u64);
    let rows = predictor.dataset(data, || bar.advance(1))?;
    bar.finish();
    Ok(rows)
}

/// Rows of the photographs that could be read, and an error that lists the others.
fn photographs(
    predictor: &Predictor,
    path: &Path,
) -> anyhow::Result<(Vec<Prediction>, Option<fovea_dataset::Error>)> {
    let files = photos(path)?;
    let bar = Bar::new("photographs");
    bar.start(files.len() as u64);
    let scored = predictor.photos(&files, || bar.advance(1))?;
    bar.finish();
    let bad = (!scored.bad.is_empty()).then_some(fovea_dataset::Error::BadPhotos {
        total: files.len(),
        files: scored.bad,
    });
    Ok((scored.rows, bad))
}
