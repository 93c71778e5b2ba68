//! `fovea gradcam`: pictures of where a model looks.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context;
use fovea_dataset::{BadFile, Bar, Dataset, ProgressListener};
use fovea_report::heat;
use fovea_run::config::{Config, Precision};
use fovea_trainer::gradcam::{Explained, HeatMap, Wanted};
use fovea_trainer::predict::{Predictor, photos};

use super::average;
use crate::cli::GradcamArgs;
use crate::exit::{Ending, Usage};
use crate::say;
use crate::show;

pub fn run(args: &GradcamArgs) -> anyhow::Result<Ending> {
    if !args.input.exists() {
        return Err(Usage(format!(
            "{}: no such file or directory\n  help: give a prepared dataset, a photograph, or a folder of photographs",
            args.input.display()
        ))
        .into());
    }
    let split = average::split(&args.split)?;
    let model = Predictor::load(&args.checkpoint, |config: &mut Config| {
        // Gradients of small numbers: bf16 would round them away. --set can still choose it.
        config.train.precision = Precision::F32;
        average::apply(config, &args.set)
    })?;
    let wanted = match args.classes.is_empty() {
        true => Wanted::Predicted,
        false => Wanted::Named(args.classes.clone()),
    };
    wanted.check(model.task())?;
    fs::create_dir_all(&args.out).with_context(|| {
        format!(
            "cannot make the directory {}\n  help: choose another --out",
            args.out.display()
        )
    })?;
    let (mut images, mut pictures, mut bad) = (0, 0, Vec::<BadFile>::new());
    let bar = Bar::new("images");
    let mut each = |explained: Result<Explained, BadFile>| {
        bar.advance(1);
        match explained {
            Err(file) => bad.push(file),
            Ok(explained) => {
                images += 1;
                pictures += write(&args.out, &explained, args.raw)?;
            }
        }
        Ok(())
    };
    let total = if args.input.join("manifest.json").is_file() {
        let data = Arc::new(Dataset::open(&args.input)?);
        let mut chosen = data.indices(split);
        chosen.truncate(args.limit);
        bar.start(chosen.len() as u64);
        model.explain_images(&data, &chosen, &wanted, &mut each)?;
        chosen.len()
    } else {
        let mut files = photos(&args.input)?;
        files.truncate(args.limit);
        bar.start(files.len() as u64);
        model.explain_photos(&files, &wanted, &mut each)?;
        files.len()
    };
    bar.finish();
    say!(
        "{}: {} of {}",
        args.out.display(),
        show::counted(pictures, "picture"),
        show::counted(images, "image")
    )?;
    match bad.is_empty() {
        true => Ok(Ending::Finished),
        false => Err(fovea_dataset::Error::BadPhotos { total, files: bad }.into()),
    }
}

/// Writes the pictures of one image; returns how many.
fn write(out: &Path, explained: &Explained, raw: bool) -> fovea_trainer::Result<usize> {
    // An id may hold slashes, of photographs in subfolders.
    let folder = out.join(explained.id.replace(['/', '\\'], "_"));
    fs::create_dir_all(&folder).map_err(|e| failed(&folder, &e))?;
    let maps = explained.maps.iter();
    let mut named: Vec<(String, &HeatMap, bool)> = maps
        .map(|of| (format!("{}-{}", of.class, of.branch), &of.map, true))
        .collect();
    let attention = explained.attention.as_ref();
    named.extend(attention.map(|map| ("attention".to_owned(), map, false)));
    for (name, map, smooth) in &named {
        let name = name.replace(['/', '\\'], "_");
        let shown = match smooth {
            true => map.scaled(explained.side, explained.side),
            false => cells(map, explained.side),
        };
        let path = folder.join(format!("{name}.png"));
        heat::write(&path, &explained.pixels, explained.side, &shown.values).map_err(|e| {
            fovea_trainer::Error::Usage {
                what: e.to_string(),
                help: "choose another --out".to_owned(),
            }
        })?;
        if raw {
            let path = folder.join(format!("{name}.npy"));
            let bytes = npy(map);
            fovea_run::run_dir::replace(&path, &bytes)?;
        }
    }
    Ok(named.len())
}

fn failed(path: &PathBuf, error: &std::io::Error) -> fovea_trainer::Error {
    fovea_run::Error::file(path, error, "choose another --out").into()
}

/// The map at `side` pixels in squares of one value each, the largest 1.
fn cells(map: &HeatMap, side: usize) -> HeatMap {
    let most = map.values.iter().copied().fold(f32::MIN_POSITIVE, f32::max);
    let value = |i: usize| {
        let (y, x) = (i / side * map.height / side, i % side * map.width / side);
        map.values[y * map.width + x] / most
    };
    HeatMap {
        height: side,
        width: side,
        values: (0..side * side).map(value).collect(),
    }
}

/// A map in NumPy's format, version 1.0: little-endian f32, `[height, width]`.
fn npy(map: &HeatMap) -> Vec<u8> {
    let header = format!(
        "{{'descr': '<f4', 'fortran_order': False, 'shape': ({}, {}), }}",
        map.height, map.width
    );
    // Magic, version and length take 10 bytes; the data begins at a multiple of 64.
    let padded = (10 + header.len() + 1).next_multiple_of(64) - 10;
    let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
    bytes.extend((padded as u16).to_le_bytes());
    bytes.extend(format!("{header:<width$}\n", width = padded - 1).bytes());
    bytes.extend(map.values.iter().flat_map(|v| v.to_le_bytes()));
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numpy_reads_the_numbers() {
        let map = HeatMap {
            height: 2,
            width: 1,
            values: vec![0.5, -1.0],
        };
        let bytes = npy(&map);
        assert_eq!(bytes.len(), 128 + 8);
        assert_eq!(&bytes[..10], b"\x93NUMPY\x01\x00\x76\x00");
        assert_eq!(bytes[127], b'\n');
        assert_eq!(bytes[128..132], 0.5f32.to_le_bytes());
        let header = String::from_utf8_lossy(&bytes[10..127]);
        assert!(header.starts_with("{'descr': '<f4', 'fortran_order': False, 'shape': (2, 1), }"));
    }

    #[test]
    fn squares_keep_their_place() {
        let map = HeatMap {
            height: 2,
            width: 2,
            values: vec![0.0, 1.0, 2.0, 4.0],
        };
        let shown = cells(&map, 4);
        assert_eq!(shown.values[..4], [0.0, 0.0, 0.25, 0.25]);
        assert_eq!(shown.values[12..], [0.5, 0.5, 1.0, 1.0]);
    }
}
