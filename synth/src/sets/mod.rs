//! Small drawn datasets with labels of whole images: signs in fundus photographs, folders of classes, scenes with boxes.
//!
//! Each is learnable by a small network in a few epochs, and not by a constant or by the mean colour of a picture. They show
//! a system from raw pictures to its table; they say nothing about real photographs.

mod classes;
mod labels;
mod scenes;
mod sketch;

use std::fs;
use std::path::{Path, PathBuf};

use fovea_dataset::{Error, ProgressListener, Result};
use image::ExtendedColorType;
use rayon::prelude::*;

use super::{SynthOptions, rename, write, write_png};

/// A drawn dataset with labels of whole images.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DrawnSet {
    /// Fundus photographs with the signs D (lesions of diabetes), G (a large cup of the optic disc) and A (drusen), any number
    /// of them: tables `train.csv`, `val.csv` and `test.csv` for the layout `csv`.
    Labels,
    /// Grey slices of a head with one of four findings: folders for the layout `classes`.
    Classes,
    /// Street scenes with numbers and boxes: a table for the layout `boxes`. A scene is interesting when a person is near (as
    /// a box tells) and the lamp is red (as only the picture tells).
    Boxes,
}

impl DrawnSet {
    /// All kinds.
    pub const ALL: [Self; 3] = [Self::Labels, Self::Classes, Self::Boxes];

    /// The name on the command line, and of the folder that is made.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Labels => "labels",
            Self::Classes => "classes",
            Self::Boxes => "boxes",
        }
    }

    fn painted(self, options: &SynthOptions, index: usize) -> Drawn {
        let size = options.size as usize;
        match self {
            Self::Labels => labels::draw(size, options.seed, index),
            Self::Classes => classes::draw(size, options.seed, index),
            Self::Boxes => scenes::draw(size, options.seed, index),
        }
    }

    /// Headings of its tables; none without tables.
    fn headings(self) -> Option<&'static str> {
        match self {
            Self::Labels => Some(labels::HEADINGS),
            Self::Classes => None,
            Self::Boxes => Some(scenes::HEADINGS),
        }
    }
}

/// A drawn picture, where it goes, and its line in a table.
struct Drawn {
    /// RGB, `[size, size, 3]`.
    pixels: Vec<u8>,
    /// Path of the file below the dataset.
    path: String,
    /// File name of the table, and the line without its end.
    line: Option<(&'static str, String)>,
}

/// Of 20 pictures, which train, validate and test.
fn split_of(index: usize) -> &'static str {
    match index % 20 {
        3 | 9 | 16 => "val",
        5 | 11 | 18 => "test",
        _ => "train",
    }
}

/// Draws `OUT/NAME`, the raw dataset of `kind`. A run that was killed leaves nothing that `prepare` would take for one.
///
/// # Errors
/// Options out of range, an output directory that holds anything else, and whatever the disk refuses.
pub fn draw_set(
    out: &Path,
    kind: DrawnSet,
    options: &SynthOptions,
    progress: &dyn ProgressListener,
) -> Result<()> {
    check(options)?;
    let staging = staging(out, kind)?;
    progress.start(u64::from(options.images));
    let drawn: Result<Vec<Option<(&str, String)>>> = (0..options.images as usize)
        .into_par_iter()
        .map(|index| {
            let Drawn { pixels, path, line } = kind.painted(options, index);
            let path = staging.join(path);
            if let Some(folder) = path.parent() {
                fs::create_dir_all(folder).map_err(|e| Error::io("create", folder, e))?;
            }
            write_png(&path, &pixels, options.size, ExtendedColorType::Rgb8)?;
            progress.advance(1);
            Ok(line)
        })
        .collect();
    progress.finish();
    let mut tables = std::collections::BTreeMap::<&str, String>::new();
    for (table, line) in drawn?.into_iter().flatten() {
        let text = tables.entry(table).or_insert_with(|| {
            let headings = kind.headings().unwrap_or_default();
            format!("{headings}\n")
        });
        *text += &line;
        text.push('\n');
    }
    for (table, text) in tables {
        write(&staging.join(table), text.as_bytes())?;
    }
    rename(&staging, &out.join(kind.name()))
}

fn check(options: &SynthOptions) -> Result<()> {
    let refuse = |option, value: u32, limit: &str, help: &str| {
        Err(Error::Option {
            option,
            value: value.to_string(),
            limit: limit.to_owned(),
            help: help.to_owned(),
        })
    };
    match options.images {
        0..20 => {
            return refuse(
                "--images",
                options.images,
                "a drawn set needs at least 20 images, so that each split has some",
                "240 images are enough to try everything",
            );
        }
        1_000_001.. => {
            return refuse(
                "--images",
                options.images,
                "a drawn set has at most 1000000 images",
                "240 images are enough to try everything",
            );
        }
        _ => {}
    }
    match options.size {
        64..=1024 => Ok(()),
        size => refuse(
            "--size",
            size,
            "images of a drawn set are from 64 to 1024 pixels wide",
            "256 is the size that the presets read",
        ),
    }
}

/// The folder in which the unfinished set is drawn; hidden, so that `prepare` does not see it. What an earlier run left of it
/// goes.
fn staging(out: &Path, kind: DrawnSet) -> Result<PathBuf> {
    let name = format!(".{}.partial", kind.name());
    let staging = out.join(&name);
    if out.exists() {
        for entry in fs::read_dir(out).map_err(|e| Error::io("list", out, e))? {
            let found = entry.map_err(|e| Error::io("list", out, e))?.file_name();
            if found != name.as_str() {
                return Err(super::not_empty(out, &found));
            }
        }
        if staging.exists() {
            fs::remove_dir_all(&staging).map_err(|e| Error::io("remove", &staging, e))?;
        }
    }
    fs::create_dir_all(&staging).map_err(|e| Error::io("create", &staging, e))?;
    Ok(staging)
}

#[cfg(test)]
mod tests;
