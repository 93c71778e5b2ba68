//! The sample order: pure, and the same for every world size.
//!
//! A [`Sampler`] lists the samples of an epoch: [`AllSamples`] every non-black patch of every training image exactly
//! once, or every image for a model that reads only whole images ([`Grain`]); [`Balanced`] those with lesions and as many
//! healthy ones as asked for. The listed cells of an image are permuted and cut into *units* of at most `patches_per_image` cells (the last unit of
//! an image may be smaller); then all units of all images are permuted. A global batch is the next
//! `images_per_step` units. The number of ranks enters only when a batch is split into virtual shards and
//! those onto ranks, so what a step trains on never depends on it.
//!
//! Permutations sort by the first 8 bytes of a BLAKE3 keyed hash of (seed, epoch, image, index),
//! ties by id. No random number crate is involved, so the order is stable forever; a golden test
//! checks it.

mod all;
mod balanced;
mod sampler;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::ops::Range;

pub use all::AllSamples;
pub use balanced::Balanced;
pub use sampler::{SAMPLERS, Sampler, SamplerChoice, Sampling};

use crate::error::{Error, Result};

/// Domain of the key derivation. Changing it changes the order of every run.
const KEY_CONTEXT: &str = "fovea-coordinator 2026 sample order v1";
const TAG_CELL: u8 = 0;
const TAG_UNIT: u8 = 1;

/// What the cursor, the ledger and the audit count as one sample.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Grain {
    /// A cell of the grid over an image; images come with some of their cells.
    Cell,
    /// A whole image.
    Image,
}

/// An image and, at [`Grain::Cell`], one of its cells.
pub type SampleName = (u32, Option<u16>);

/// What enters the model together: one image with up to `patches_per_image` of its non-black patches, or, at
/// [`Grain::Image`], the image alone, without cells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unit {
    /// Image index (position in the manifest).
    pub image: u32,
    /// Grid cell indices, `row * grid + column`, in the order in which they are used.
    pub cells: Vec<u16>,
}

impl Unit {
    /// Samples in it, at least 1: its cells, or the image.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.cells.len().max(1) as u64
    }

    /// Its samples, in the order in which they are used.
    #[must_use]
    pub fn samples(&self) -> Vec<SampleName> {
        match self.cells.is_empty() {
            true => vec![(self.image, None)],
            false => self.cells.iter().map(|c| (self.image, Some(*c))).collect(),
        }
    }
}

/// What an epoch's order is made from. The order does not depend on the order of `images` or of
/// the cells in them.
#[derive(Clone, Debug)]
pub struct OrderInput {
    /// Training images: (image index, its non-black cells). At [`Grain::Cell`], an image without cells has no units.
    pub images: Vec<(u32, Vec<u16>)>,
    /// What a sample is.
    pub grain: Grain,
    /// What chooses the samples of an epoch.
    pub sampler: &'static dyn Sampler,
    /// What the sampler chooses by, in addition to the samples themselves.
    pub sampling: Sampling,
    /// Seed of the run.
    pub seed: u64,
    /// Most patches of one image in one unit, at least 1.
    pub patches_per_image: usize,
}

/// The units of one epoch in global order.
#[derive(Clone, Debug)]
pub struct EpochOrder {
    epoch: u32,
    units: Vec<Unit>,
    /// `starts[i]`: samples before unit `i`; one entry more than units. Strictly increasing.
    starts: Vec<u64>,
}

/// The units that one step trains on, over all ranks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GlobalBatch {
    /// Samples of this epoch committed before this batch.
    pub cursor: u64,
    /// The batch's units: a range into [`EpochOrder::units`].
    pub units: Range<usize>,
    /// Samples in the batch.
    pub samples: u64,
}

impl GlobalBatch {
    /// The cursor once this batch is committed.
    pub fn cursor_after(&self) -> u64 {
        self.cursor + self.samples
    }

    /// Units of virtual shard `v` of `count`, as a range into [`EpochOrder::units`].
    pub fn shard(&self, v: usize, count: usize) -> Range<usize> {
        let local = virtual_shard(self.units.len(), v, count);
        self.units.start + local.start..self.units.start + local.end
    }
}

impl OrderInput {
    /// The samples that the sampler lists for `epoch`, before they are ordered.
    #[must_use]
    pub fn listed(&self, epoch: u32) -> BTreeSet<SampleName> {
        let images = self.sampler.epoch(self, epoch);
        names(&images, self.grain).collect()
    }
}

/// The samples in a list of images with their cells.
fn names(images: &[(u32, Vec<u16>)], grain: Grain) -> impl Iterator<Item = SampleName> {
    images.iter().flat_map(move |(image, cells)| {
        let cells = cells.iter().map(|cell| (*image, Some(*cell)));
        let whole = (grain == Grain::Image).then_some((*image, None));
        cells.filter(move |_| grain == Grain::Cell).chain(whole)
    })
}

impl EpochOrder {
    /// Orders one epoch. Fails when `patches_per_image` is 0, or an image or a cell is listed twice
    /// (it would be trained twice).
    pub fn new(input: &OrderInput, epoch: u32) -> Result<Self> {
        if input.patches_per_image == 0 {
            return Err(Error::PatchesPerImage);
        }
        let key = epoch_key(input.seed, epoch);
        let mut units = Vec::new();
        let listed = input.sampler.epoch(input, epoch);
        let mut images: Vec<&(u32, Vec<u16>)> = listed.iter().collect();
        images.sort_by_key(|(image, _)| *image);
        for pair in images.windows(2) {
            if pair[0].0 == pair[1].0 {
                return Err(Error::ImageTwice { image: pair[0].0 });
            }
        }
        for (image, cells) in images {
            let chunks: Vec<Vec<u16>> = match input.grain {
                Grain::Cell => {
                    let cells = permuted_cells(&key, *image, cells)?;
                    let chunks = cells.chunks(input.patches_per_image);
                    chunks.map(<[u16]>::to_vec).collect()
                }
                Grain::Image => vec![Vec::new()],
            };
            for (index, cells) in (0u32..).zip(chunks) {
                let rank = hash64(&key, TAG_UNIT, *image, index);
                let image = *image;
                units.push((rank, index, Unit { image, cells }));
            }
        }
        units.sort_by_key(|(rank, index, unit)| (*rank, unit.image, *index));
        let units: Vec<Unit> = units.into_iter().map(|(_, _, unit)| unit).collect();
        let mut starts = Vec::with_capacity(units.len() + 1);
        let mut samples = 0u64;
        for unit in &units {
            starts.push(samples);
            samples += unit.count();
        }
        starts.push(samples);
        Ok(Self {
            epoch,
            units,
            starts,
        })
    }

    /// The epoch this order is for.
    pub fn epoch(&self) -> u32 {
        self.epoch
    }

    /// All units in global order.
    pub fn units(&self) -> &[Unit] {
        &self.units
    }

    /// Samples in the epoch: the cursor at its end.
    pub fn total_samples(&self) -> u64 {
        self.starts[self.units.len()]
    }

    /// Steps that the epoch takes from its beginning.
    pub fn steps(&self, images_per_step: usize) -> usize {
        self.units.len().div_ceil(images_per_step.max(1))
    }

    /// The global batch that starts at `cursor` (samples already committed): the next
    /// `images_per_step` units, fewer at the end of the epoch, `None` when the epoch is over.
    ///
    /// Any cursor that a committed step left is accepted, also when `images_per_step` was another
    /// one then; a cursor inside a unit is an error, because part of that unit was never trained.
    pub fn batch(&self, cursor: u64, images_per_step: usize) -> Result<Option<GlobalBatch>> {
        if images_per_step == 0 {
            return Err(Error::ImagesPerStep);
        }
        let total = self.total_samples();
        let first = self
            .starts
            .binary_search(&cursor)
            .map_err(|next| Error::Cursor {
                epoch: self.epoch,
                cursor,
                total,
                // `starts[0]` is 0, so a cursor that is not found lies behind at least one start.
                below: self.starts[next.saturating_sub(1)],
            })?;
        if first == self.units.len() {
            return Ok(None);
        }
        let end = first.saturating_add(images_per_step).min(self.units.len());
        Ok(Some(GlobalBatch {
            cursor,
            units: first..end,
            samples: self.starts[end] - cursor,
        }))
    }
}

/// Virtual shard `v` of `count` gets a contiguous block of the batch's units: `0..batch_units`,
/// relative to the batch. Sizes differ by at most one, the larger ones first; a block may be empty.
/// A `v` that is not below `count` gets the empty block at the end.
pub fn virtual_shard(batch_units: usize, v: usize, count: usize) -> Range<usize> {
    if v >= count {
        return batch_units..batch_units;
    }
    let (size, larger) = (batch_units / count, batch_units % count);
    let start = v * size + v.min(larger);
    start..start + size + usize::from(v < larger)
}

/// Rank `rank` of `world` owns virtual shards `rank * V / world .. (rank + 1) * V / world`.
///
/// The reduction is a binary tree over the virtual shards. A rank's block must be a whole subtree
/// of it, or the sums would be rounded in another order than with one rank: so `world` has to
/// divide `virtual_shards` into blocks of a power of two, unless it is 1.
pub fn rank_shards(rank: usize, world: usize, virtual_shards: usize) -> Result<Range<usize>> {
    if !is_allowed(world, virtual_shards) {
        return Err(Error::WorldSize {
            world,
            virtual_shards,
            allowed: allowed_world_sizes(virtual_shards),
        });
    }
    if rank >= world {
        return Err(Error::Rank { rank, world });
    }
    let block = virtual_shards / world;
    Ok(rank * block..(rank + 1) * block)
}

/// World sizes that [`rank_shards`] accepts for `virtual_shards`, ascending. Empty for 0.
pub fn allowed_world_sizes(virtual_shards: usize) -> Vec<usize> {
    if virtual_shards == 0 {
        return Vec::new();
    }
    // Halves of halves, as far as they are whole; and one rank in any case.
    let halves = (0..=virtual_shards.trailing_zeros()).map(|k| virtual_shards >> k);
    let mut sizes: Vec<usize> = halves.chain([1]).collect();
    sizes.sort_unstable();
    sizes.dedup();
    sizes
}

fn is_allowed(world: usize, virtual_shards: usize) -> bool {
    world != 0
        && virtual_shards != 0
        && virtual_shards.is_multiple_of(world)
        && (world == 1 || (virtual_shards / world).is_power_of_two())
}

fn epoch_key(seed: u64, epoch: u32) -> [u8; 32] {
    let mut material = [0u8; 12];
    material[..8].copy_from_slice(&seed.to_le_bytes());
    material[8..].copy_from_slice(&epoch.to_le_bytes());
    blake3::derive_key(KEY_CONTEXT, &material)
}

fn hash64(key: &[u8; 32], tag: u8, image: u32, index: u32) -> u64 {
    let mut message = [0u8; 9];
    message[0] = tag;
    message[1..5].copy_from_slice(&image.to_le_bytes());
    message[5..].copy_from_slice(&index.to_le_bytes());
    let hash = blake3::keyed_hash(key, &message);
    let mut first = [0u8; 8];
    first.copy_from_slice(&hash.as_bytes()[..8]);
    u64::from_le_bytes(first)
}

fn permuted_cells(key: &[u8; 32], image: u32, cells: &[u16]) -> Result<Vec<u16>> {
    let mut keyed: Vec<(u64, u16)> = cells
        .iter()
        .map(|cell| (hash64(key, TAG_CELL, image, u32::from(*cell)), *cell))
        .collect();
    keyed.sort_unstable();
    // Equal cells have equal hashes, so a cell listed twice is now next to its copy.
    if let Some(pair) = keyed.windows(2).find(|pair| pair[0] == pair[1]) {
        return Err(Error::CellTwice {
            image,
            cell: pair[0].1,
        });
    }
    Ok(keyed.into_iter().map(|(_, cell)| cell).collect())
}
