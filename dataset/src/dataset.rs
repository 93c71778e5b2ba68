//! A prepared dataset, opened: pixels and labels by image index, straight from mapped shards.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use fovea_task::{Label, Level, Task};
use rayon::prelude::*;

use crate::labels;
use crate::manifest::{ImageEntry, Manifest};
use crate::shard::{self, Shard};
use crate::source::{Copies, ShardSource};
use crate::{LabelTable, Result, Split, stage};

/// An opened prepared dataset. Cheap to share between threads; pixels stay on disk until they are looked at.
#[derive(Debug)]
pub struct Dataset {
    dir: PathBuf,
    manifest: Manifest,
    shards: Vec<ShardSource>,
    copies: OnceLock<Copies>,
}

/// An image's pixels, RGB, `[height, width, 3]`.
#[derive(Clone, Copy, Debug)]
pub struct ImageView<'a> {
    /// Pixels, row by row, R, G, B.
    pub data: &'a [u8],
    /// How many rows of pixels there are.
    pub height: usize,
    /// Pixels in a row.
    pub width: usize,
}

impl Dataset {
    /// Opens the dataset in `dir` after checking all of it: manifest, file lengths, and the blake3 of every shard.
    /// Reads every byte once (in parallel), so it takes as long as the disk needs.
    pub fn open(dir: &Path) -> Result<Self> {
        let manifest = Manifest::load(dir)?;
        manifest.shards.par_iter().try_for_each(|entry| {
            shard::verify(&dir.join(&entry.file), entry.bytes, Some(&entry.blake3))
        })?;
        Self::map(dir, manifest)
    }

    /// As [`Dataset::open`] without reading the shards' content: for processes that start after another has verified.
    pub fn open_unverified(dir: &Path) -> Result<Self> {
        let manifest = Manifest::load(dir)?;
        for entry in &manifest.shards {
            shard::verify(&dir.join(&entry.file), entry.bytes, None)?;
        }
        Self::map(dir, manifest)
    }

    fn map(dir: &Path, manifest: Manifest) -> Result<Self> {
        let open = |entry: &crate::manifest::ShardEntry| {
            ShardSource::open(dir, entry, manifest.shape(entry.images))
        };
        let shards = manifest.shards.iter().map(open).collect::<Result<_>>()?;
        Ok(Self {
            dir: dir.to_owned(),
            manifest,
            shards,
            copies: OnceLock::new(),
        })
    }

    /// Reads each shard from its staged copy (see [`crate::stage`]) in one of the `scratch` directories as
    /// soon as that is there and whole, and from here until then; for a copy of other bytes than these the directories
    /// are not looked into. Readers never wait, and what they hold stays valid. Only the first call counts.
    pub fn prefer(&self, scratch: &[PathBuf]) {
        let dirs = scratch
            .iter()
            .map(|dir| stage::staged_dir(dir, &self.manifest));
        self.copies.get_or_init(|| Copies::new(dirs.collect()));
    }

    /// Looks for all copies now, which readers else do by and by. How many of the shards are read from a copy.
    pub fn look_for_copies(&self) -> usize {
        self.copies.get().map_or(0, |copies| {
            self.shards.iter().filter(|s| s.look(copies)).count()
        })
    }

    /// The directory it was opened from.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// What is known of it besides pixels and cells.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// How many images it holds, over all splits.
    pub fn len(&self) -> usize {
        self.manifest.images.len()
    }

    /// Whether there are no images.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Pixels along an edge of an image.
    pub fn size(&self) -> usize {
        self.manifest.recipe.size as usize
    }

    /// Pixels along an edge of a cell; 0 without a grid.
    pub fn patch(&self) -> usize {
        self.manifest.recipe.patch as usize
    }

    /// Cells along an edge of an image; 0 without a grid.
    pub fn grid(&self) -> usize {
        self.manifest.grid as usize
    }

    fn place(&self, i: usize) -> (&Shard, usize) {
        let ImageEntry { shard, row, .. } = &self.manifest.images[i];
        let shard = self.shards[*shard as usize].shard(self.copies.get());
        (shard, *row as usize)
    }

    /// Pixels of image `i`.
    ///
    /// # Panics
    /// This and the methods below panic when `i >= len()`.
    pub fn image(&self, i: usize) -> ImageView<'_> {
        let (shard, row) = self.place(i);
        ImageView {
            data: shard.image(row),
            height: self.size(),
            width: self.size(),
        }
    }

    /// Class bits per pixel of image `i`, `[size, size]`; `None` when the dataset was made without masks.
    pub fn mask(&self, i: usize) -> Option<&[u8]> {
        let (shard, row) = self.place(i);
        shard.mask(row)
    }

    /// Lesion pixels per cell and class of image `i`, `[grid, grid, classes]` with the classes of the task's target at
    /// patch level; empty without one.
    pub fn areas(&self, i: usize) -> Vec<u16> {
        let (shard, row) = self.place(i);
        shard.areas(row)
    }

    /// Black cells of image `i`, `[grid, grid]`, 1 for black; empty without a grid.
    pub fn black(&self, i: usize) -> &[u8] {
        let (shard, row) = self.place(i);
        shard.black(row)
    }

    /// The questions that its labels answer.
    pub fn task(&self) -> &Task {
        &self.manifest.task
    }

    /// Labels of the cells of image `i`, `[grid, grid]`, for the task's target at patch level; empty without one. Where any
    /// number of classes is allowed, a cell has those of which it has at least `min_lesion_pixels`; where one excludes the
    /// others, that with most pixels, and [`Label::UNKNOWN`] if these are fewer. Pass the manifest's own value for the
    /// labels that its figures describe.
    pub fn patch_labels(&self, i: usize, min_lesion_pixels: u32) -> Vec<Label> {
        match self.task().cells() {
            Some(target) => labels::of_cells(target, &self.areas(i), min_lesion_pixels),
            None => Vec::new(),
        }
    }

    /// Label of image `i` by the manifest, for the target at position `target` of the task: of a union of cells, under the
    /// manifest's own `min_lesion_pixels`.
    ///
    /// # Panics
    /// When that target is not at image level.
    pub fn label(&self, i: usize, target: usize) -> Label {
        let targets = self.task().targets();
        assert_eq!(targets[target].level, Level::Image, "target {target}");
        let before = targets[..target].iter();
        let number = before.filter(|t| t.level == Level::Image).count();
        self.manifest.images[i].labels[number]
    }

    /// The numbers of image `i` that the task's columns name, in their order; empty for most tasks.
    pub fn columns(&self, i: usize) -> &[f32] {
        &self.manifest.images[i].columns
    }

    /// What image `i` shares with the others of its group, where the raw dataset says that.
    pub fn group(&self, i: usize) -> Option<&str> {
        self.manifest.images[i].group.as_deref()
    }

    /// Indices of the images of `split`, ascending.
    pub fn indices(&self, split: Split) -> Vec<usize> {
        self.manifest.indices(split)
    }

    /// The manifest's counts of images, patches and labels per split, to print.
    pub fn label_table(&self) -> LabelTable {
        self.manifest.label_table()
    }
}
