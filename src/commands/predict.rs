//! `fovea predict`: lesion probabilities for a prepared dataset or for photographs.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use fovea_dataset::{Bar, Dataset, ProgressListener};
use fovea_run::predictions::{self, Columns, Prediction};
use fovea_run::submission;
use fovea_trainer::ensemble::Ensemble;
use fovea_trainer::predict::photos;

use super::{average, output};
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
    let checked = |option: &str, file: &Option<PathBuf>| {
        let file = file.as_ref();
        file.map(|file| output::checked(option, file, &args.input))
            .transpose()
    };
    let out = checked("--out", &args.out)?;
    let submission = checked("--submission", &args.submission)?;
    let mut models = average::open(&args.checkpoint, &args.average, &args.set)?;
    if submission.is_some() {
        submission::check(models.task()).map_err(Usage)?;
    }
    let (rows, bad) = if args.input.join("manifest.json").is_file() {
        (prepared(&mut models, &args.input)?, None)
    } else {
        photographs(&mut models, &args.input)?
    };
    if rows.is_empty()
        && let Some(bad) = bad
    {
        return Err(bad.into());
    }
    if let Some(out) = &out {
        predictions::write(out, models.task(), &rows, Columns::Usable)?;
    }
    if let Some(file) = &submission {
        submission::write(file, models.task(), &rows, &models.thresholds())?;
    }
    // An image or patch may have several targets.
    let places = |wanted: &dyn Fn(&Prediction) -> bool| {
        let places = rows.iter().filter(|row| wanted(row));
        let places: HashSet<_> = places.map(|row| (&row.image_id, row.cell)).collect();
        places.len()
    };
    let images = places(&|row| row.cell.is_none());
    let patches = places(&|row| row.cell.is_some());
    let unusable = places(&|row| row.cell.is_none() && row.note.is_some());
    let files = [&args.out, &args.submission].into_iter().flatten();
    let files: Vec<String> = files.map(|file| file.display().to_string()).collect();
    say!(
        "{}: {}, {} patches{}",
        files.join(", "),
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
    if let Some((path, tuning)) = models.tuning() {
        say!(
            "temperatures{} of {}: {} (--untuned ignores them)",
            if submission.is_some() {
                " and thresholds"
            } else {
                ""
            },
            path.display(),
            tuning.describe()
        )?;
    }
    bad.map_or(Ok(Ending::Finished), |bad| Err(bad.into()))
}

fn prepared(models: &mut Ensemble, path: &Path) -> anyhow::Result<Vec<Prediction>> {
    let data = Arc::new(Dataset::open(path)?);
    let bar = Bar::new("images");
    bar.start(models.ticks_of(Some(&data), data.len()));
    let rows = models.dataset(&data, &mut || bar.advance(1))?;
    bar.finish();
    Ok(rows)
}

/// Rows of the photographs that could be read, and an error that lists the others.
fn photographs(
    models: &mut Ensemble,
    path: &Path,
) -> anyhow::Result<(Vec<Prediction>, Option<fovea_dataset::Error>)> {
    let files = photos(path)?;
    let bar = Bar::new("photographs");
    bar.start(models.ticks_of(None, files.len()));
    let scored = models.photos(&files, &mut || bar.advance(1))?;
    bar.finish();
    let bad = (!scored.bad.is_empty()).then_some(fovea_dataset::Error::BadPhotos {
        total: files.len(),
        files: scored.bad,
    });
    Ok((scored.rows, bad))
}
