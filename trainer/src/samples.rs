//! From the prepared dataset to the tensors of a virtual shard.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex};

use fovea_coordinator::order::{AllSamples, EpochOrder, GlobalBatch, Grain, OrderInput, Unit};
use fovea_dataset::{Dataset, Split};
use fovea_kernels::{
    Augment, BatchMut, CropSpec, ImageU8, global_view, patch_crop, resize_antialias,
};
use fovea_run::config::Config;
use fovea_task::{Label, Level, Task};
use half::bf16;
use tch::{Device, Kind, Tensor};

use crate::error::{Error, Result};
use crate::host;
use crate::precision::Precision;

/// Most bytes of resized whole images that one rank keeps.
const GLOBAL_CACHE_BYTES: usize = 1 << 30;
/// Batches that the loader thread may be ahead of training.
const PREFETCH: usize = 2;
/// Bit that separates the hash counters of a whole image's augmentation from those of its patches.
const IMAGE_DRAW: u64 = 1 << 63;

/// The samples of one virtual shard, ready for the model.
pub struct ShardBatch {
    /// The pixels of the samples, or where a GPU finds them.
    pub pixels: Pixels,
    /// Number of patches of each image, `[b]`; the sum is n.
    pub counts: Vec<usize>,
    /// Labels of each target, in the task's order: one per image `[b]` or per patch `[n]`. Empty for photographs
    /// without labels.
    pub labels: Vec<Vec<Label>>,
    /// The numbers that the task's columns name, `[b, k]` row-major; empty for photographs and most tasks.
    pub columns: Vec<f32>,
    /// Ids that the images' draws are hashed from, `[b]`.
    pub image_ids: Vec<u64>,
    /// Sample ids of the patches, `[n]`.
    pub patch_ids: Vec<u64>,
}

impl ShardBatch {
    /// Ids of the rows at `level`: of the images or of the patches.
    pub fn ids(&self, level: Level) -> &[u64] {
        match level {
            Level::Image => &self.image_ids,
            Level::Patch => &self.patch_ids,
        }
    }

    /// Whether a GPU must still make the pixels.
    pub fn is_cut_on_gpu(&self) -> bool {
        matches!(self.pixels, Pixels::Crops(_))
    }
}

/// The pixels of a batch, or where a GPU finds them.
pub enum Pixels {
    /// The pixels, ready for the model.
    Views(Views),
    /// The places of the pixels, for a GPU that makes them from its own copy of the images.
    Crops(Crops),
}

/// A batch's pixels, channels-last, in the working dtype.
pub struct Views {
    /// Whole images, `[b, 3, S, S]`; `[0, 3, 0, 0]` for a model that reads none.
    pub globals: Tensor,
    /// Patches of all images one after the other, `[n, 3, patch, patch]`.
    pub patches: Tensor,
}

/// Where the pixels of a batch come from.
pub struct Crops {
    /// Index in the dataset of each unit's image, `[b]`.
    pub images: Vec<u32>,
    /// Whether the model reads whole images.
    pub whole: bool,
    /// Place of each patch, `[n]`; its image is an index in the dataset.
    pub specs: Vec<CropSpec>,
    /// The epoch whose augmentation applies; none in evaluation.
    pub epoch: Option<u32>,
}

/// The images and settings from which the order of every epoch of the training split follows.
pub fn order_input(data: &Dataset, grain: Grain, config: &Config) -> OrderInput {
    let images = data.indices(Split::Train);
    OrderInput {
        images: images
            .into_iter()
            .map(|i| (i as u32, whole_image(data, grain, i).cells))
            .collect(),
        grain,
        sampler: &AllSamples,
        seed: config.train.seed,
        patches_per_image: config.data.patches_per_image as usize,
    }
}

/// Grid cells of an image that are not black, in row order; training and evaluation use only these.
pub fn non_black_cells(data: &Dataset, image: usize) -> Vec<u16> {
    let black = data.black(image);
    (0..black.len())
        .filter(|&c| black[c] == 0)
        .map(|c| c as u16)
        .collect()
}

/// The unit with all that a model of this grain reads of an image: every cell that is not black, or the image alone.
pub fn whole_image(data: &Dataset, grain: Grain, image: usize) -> Unit {
    Unit {
        image: image as u32,
        cells: match grain {
            Grain::Cell => non_black_cells(data, image),
            Grain::Image => Vec::new(),
        },
    }
}

/// Labels of target `target` of the dataset's task for a unit: one for its image, or one per cell of it. `cells` are
/// the labels of all cells of the image, `[grid * grid]`.
pub fn labels_of(data: &Dataset, cells: &[Label], target: usize, unit: &Unit) -> Vec<Label> {
    let asked = &data.task().targets()[target];
    match asked.level {
        Level::Patch => unit.cells.iter().map(|&c| cells[c as usize]).collect(),
        Level::Image if asked.union_of_cells => {
            vec![Label(cells.iter().fold(0, |all, cell| all | cell.0))]
        }
        Level::Image => vec![data.label(unit.image as usize, target)],
    }
}

/// The augmentation of the configuration.
pub fn augment(config: &Config) -> Augment {
    let a = &config.augment;
    let on = |strength: f32| if a.enabled { strength } else { 0.0 };
    Augment {
        flip: a.enabled && a.flip,
        quarter_turns: a.enabled && a.quarter_turns,
        offset: if a.enabled { a.offset } else { 0 },
        brightness: on(a.brightness),
        contrast: on(a.contrast),
        saturation: on(a.saturation),
    }
}

/// Reads samples, for training and for evaluation.
pub struct SampleSource {
    data: Arc<Dataset>,
    augment: Augment,
    seed: u64,
    /// 0 for a model that reads no whole images.
    global_size: usize,
    precision: Precision,
    /// Whether batches come without pixels, which a GPU makes.
    on_gpu: bool,
    grain: Grain,
    /// For each image of the dataset, the labels of its cells, `[grid * grid]`, for the task's target at patch level.
    cell_labels: Vec<Vec<Label>>,
    /// Whole images resized to the global branch's size, `[S, S, 3]` in 0..255.
    resized: Mutex<HashMap<u32, Arc<Vec<f32>>>>,
}

impl SampleSource {
    /// `config` gives sizes, label rule, augmentation and seed, `grain` the unit of the samples. With `on_gpu`, batches
    /// come without pixels.
    pub fn new(
        data: Arc<Dataset>,
        config: &Config,
        grain: Grain,
        precision: Precision,
        on_gpu: bool,
    ) -> Self {
        let cell_labels = (0..data.len())
            .map(|i| data.patch_labels(i, config.data.min_lesion_pixels))
            .collect();
        Self {
            data,
            augment: augment(config),
            seed: config.train.seed,
            global_size: config.data.global_size as usize,
            precision,
            on_gpu,
            grain,
            cell_labels,
            resized: Mutex::new(HashMap::new()),
        }
    }

    /// The same samples without whole images, unless the model reads them.
    #[must_use]
    pub fn with_images(mut self, reads_images: bool) -> Self {
        if !reads_images {
            self.global_size = 0;
        }
        self
    }

    /// The dataset that the samples come from.
    pub fn data(&self) -> &Dataset {
        &self.data
    }

    /// The dataset's task, whose targets the labels belong to.
    pub fn task(&self) -> &Task {
        self.data.task()
    }

    /// Labels of target `target` of the task for a unit: one for its image, or one per cell of it. The label of a cell,
    /// and of an image that has the classes of its cells, follows the configured rule.
    pub fn labels(&self, target: usize, unit: &Unit) -> Vec<Label> {
        let cells = &self.cell_labels[unit.image as usize];
        labels_of(&self.data, cells, target, unit)
    }

    /// The unit with all that the model reads of an image, for evaluation.
    pub fn whole_image(&self, image: usize) -> Unit {
        whole_image(&self.data, self.grain, image)
    }

    /// Reads and crops the samples of `units`; in training, when `epoch` is given, also augments them.
    pub fn load(&self, units: &[Unit], epoch: Option<u32>) -> Result<ShardBatch> {
        let mut batch = if self.on_gpu {
            self.assembler().crops(units, epoch)
        } else {
            self.views(units, epoch)?
        };
        let of_target = |target| units.iter().flat_map(|u| self.labels(target, u)).collect();
        batch.labels = (0..self.task().targets().len()).map(of_target).collect();
        let columns = units.iter().map(|u| self.data.columns(u.image as usize));
        batch.columns = columns.flatten().copied().collect();
        Ok(batch)
    }

    fn views(&self, units: &[Unit], epoch: Option<u32>) -> Result<ShardBatch> {
        let views: Vec<ImageU8<'_>> = units.iter().map(|u| self.view(u.image)).collect();
        let resized = match self.global_size {
            0 => Vec::new(),
            _ => units
                .iter()
                .map(|u| self.resized(u.image))
                .collect::<Result<Vec<_>>>()?,
        };
        let random = epoch.map(|epoch| Randomness {
            augment: &self.augment,
            seed: self.seed,
            epoch,
        });
        self.assembler().assemble(units, &views, &resized, random)
    }

    fn assembler(&self) -> Assembler {
        Assembler {
            grid: self.data.grid(),
            patch: self.data.patch(),
            global_size: self.global_size,
            precision: self.precision,
        }
    }

    fn view(&self, image: u32) -> ImageU8<'_> {
        let view = self.data.image(image as usize);
        ImageU8 {
            data: view.data,
            height: view.height,
            width: view.width,
        }
    }

    fn resized(&self, image: u32) -> Result<Arc<Vec<f32>>> {
        let poisoned =
            |_| Error::Internal("the cache of resized images was poisoned by a panic".to_owned());
        if let Some(found) = self.resized.lock().map_err(poisoned)?.get(&image) {
            return Ok(Arc::clone(found));
        }
        let fresh = Arc::new(resize_antialias(
            &self.view(image),
            self.global_size,
            self.global_size,
        )?);
        let mut cache = self.resized.lock().map_err(|_| {
            Error::Internal("the cache of resized images was poisoned by a panic".to_owned())
        })?;
        // Every image is needed once per pass: evicting one for another would gain nothing.
        if (cache.len() + 1) * fresh.len() * size_of::<f32>() <= GLOBAL_CACHE_BYTES {
            cache.insert(image, Arc::clone(&fresh));
        }
        Ok(fresh)
    }
}

/// The inputs of a training sample's random draws, apart from its id.
#[derive(Clone, Copy)]
pub struct Randomness<'a> {
    /// Strengths of the augmentation.
    pub augment: &'a Augment,
    /// The seed of the run, `train.seed`.
    pub seed: u64,
    /// The epoch, counted from 0.
    pub epoch: u32,
}

/// The ids of a batch's samples, and where they lie.
#[derive(Default)]
struct Selection {
    image_ids: Vec<u64>,
    patch_ids: Vec<u64>,
    specs: Vec<CropSpec>,
}

/// Turns pixels into the tensors of a batch.
#[derive(Clone, Copy, Debug)]
pub struct Assembler {
    /// Grid cells along a side of an image.
    pub grid: usize,
    /// Side of a grid cell, pixels.
    pub patch: usize,
    /// Side of the whole-image branch's input, pixels; 0 for a model that reads no whole images.
    pub global_size: usize,
    /// Dtype of the pixel tensors.
    pub precision: Precision,
}

impl Assembler {
    /// A photograph with these cells (in row order, without black ones), without labels.
    pub fn photo(&self, image: ImageU8<'_>, cells: Vec<u16>) -> Result<ShardBatch> {
        let side = self.global_size;
        let resized = match side {
            0 => Vec::new(),
            _ => vec![Arc::new(resize_antialias(&image, side, side)?)],
        };
        self.assemble(&[Unit { image: 0, cells }], &[image], &resized, None)
    }

    /// A batch for a GPU: the places of its pixels, without labels and pixels. A unit's image is an index in the
    /// dataset.
    pub fn crops(&self, units: &[Unit], epoch: Option<u32>) -> ShardBatch {
        let Selection {
            image_ids,
            patch_ids,
            mut specs,
        } = self.select(units);
        for spec in &mut specs {
            spec.image = units[spec.image].image as usize;
        }
        ShardBatch {
            pixels: Pixels::Crops(Crops {
                images: units.iter().map(|u| u.image).collect(),
                whole: self.global_size > 0,
                specs,
                epoch,
            }),
            counts: units.iter().map(|u| u.cells.len()).collect(),
            labels: Vec::new(),
            columns: Vec::new(),
            image_ids,
            patch_ids,
        }
    }

    /// Everything but labels and columns. `images` holds one entry for each of `units`, and so does `resized` unless the
    /// model reads no whole images.
    pub fn assemble(
        &self,
        units: &[Unit],
        images: &[ImageU8<'_>],
        resized: &[Arc<Vec<f32>>],
        random: Option<Randomness<'_>>,
    ) -> Result<ShardBatch> {
        let globals = self.empty(resized.len(), self.global_size)?;
        let mut patches = self.empty(units.iter().map(|u| u.cells.len()).sum(), self.patch)?;
        let Selection {
            image_ids,
            patch_ids,
            specs,
        } = self.select(units);
        let augment = random.map(|r| r.augment);
        let (seed, epoch) = random.map_or((0, 0), |r| (r.seed, r.epoch));
        with_pixels(&mut patches, |out| {
            patch_crop(images, &specs, self.patch, seed, epoch, augment, out)
        })?;
        for (slot, resized) in resized.iter().enumerate() {
            let mut target = globals.f_get(slot as i64)?;
            let id = image_ids[slot];
            with_pixels(&mut target, |out| {
                global_view(resized, self.global_size, seed, epoch, id, augment, out)
            })?;
        }
        // In memory [n, h, w, 3]; for libtorch a channels-last [n, 3, h, w].
        let pixels = Pixels::Views(Views {
            globals: globals.f_permute([0, 3, 1, 2])?,
            patches: patches.f_permute([0, 3, 1, 2])?,
        });
        Ok(ShardBatch {
            pixels,
            counts: units.iter().map(|u| u.cells.len()).collect(),
            labels: Vec::new(),
            columns: Vec::new(),
            image_ids,
            patch_ids,
        })
    }

    /// The ids of the units and the places of their patches; here a patch's image is the index of its unit.
    fn select(&self, units: &[Unit]) -> Selection {
        let (grid, patch) = (self.grid as u64, self.patch);
        let mut selection = Selection::default();
        for (slot, unit) in units.iter().enumerate() {
            // Without a grid, an image is counted as one sample.
            let base = u64::from(unit.image) * (grid * grid).max(1);
            let first = unit.cells.first().map_or(0, |&c| u64::from(c));
            selection.image_ids.push(IMAGE_DRAW | (base + first));
            for &cell in &unit.cells {
                let (row, col) = (u64::from(cell) / grid, u64::from(cell) % grid);
                let sample_id = base + u64::from(cell);
                selection.specs.push(CropSpec {
                    image: slot,
                    y: (row as usize * patch) as u32,
                    x: (col as usize * patch) as u32,
                    sample_id,
                });
                selection.patch_ids.push(sample_id);
            }
        }
        selection
    }

    fn empty(&self, n: usize, size: usize) -> Result<Tensor> {
        let shape = [n as i64, size as i64, size as i64, 3];
        Ok(Tensor::f_empty(
            shape,
            (self.precision.kind(), Device::Cpu),
        )?)
    }
}

fn with_pixels(
    tensor: &mut Tensor,
    write: impl FnOnce(BatchMut<'_>) -> fovea_kernels::Result<()>,
) -> Result<()> {
    Ok(match tensor.kind() {
        Kind::BFloat16 => write(BatchMut::Bf16(host::slice_mut::<bf16>(tensor)?)),
        _ => write(BatchMut::F32(host::slice_mut::<f32>(tensor)?)),
    }?)
}

/// The work of one rank in one step.
pub struct RankBatch {
    /// The global batch it belongs to.
    pub global: GlobalBatch,
    /// Number of images in the global batch.
    pub images: usize,
    /// Number of patches in the global batch.
    pub patches: u64,
    /// This rank's virtual shards, in order; an entry is none when the shard is empty.
    pub shards: Vec<Option<ShardBatch>>,
    /// Number of this rank's samples, as the epoch order counts them.
    pub samples: u64,
}

/// The part of each global batch that a rank reads.
#[derive(Clone, Debug)]
pub struct Part {
    /// Numbers of the rank's virtual shards.
    pub shards: Range<usize>,
    /// Number of virtual shards of the run.
    pub virtual_shards: usize,
    /// Number of images in a global batch.
    pub images_per_step: usize,
}

/// Reads the batches of one epoch ahead of training, on a thread of its own.
pub struct Loader {
    batches: Receiver<Result<RankBatch>>,
}

impl Loader {
    /// Starts reading at `cursor` with `load`, which gets the units of a virtual shard and the epoch. The thread ends
    /// with the epoch, or when the loader is dropped.
    pub fn spawn(
        load: impl Fn(&[Unit], u32) -> Result<ShardBatch> + Send + 'static,
        order: Arc<EpochOrder>,
        cursor: u64,
        part: Part,
    ) -> Result<Self> {
        let (send, batches) = sync_channel(PREFETCH);
        std::thread::Builder::new()
            .name("loader".to_owned())
            .spawn(move || read_epoch(&load, &order, cursor, &part, &send))
            .map_err(|e| Error::Internal(format!("cannot start the loader thread: {e}")))?;
        Ok(Self { batches })
    }

    /// The next batch; none at the end of the epoch.
    pub fn next_batch(&mut self) -> Result<Option<RankBatch>> {
        self.batches.recv().ok().transpose()
    }
}

fn read_epoch(
    load: &dyn Fn(&[Unit], u32) -> Result<ShardBatch>,
    order: &EpochOrder,
    mut cursor: u64,
    part: &Part,
    send: &SyncSender<Result<RankBatch>>,
) {
    loop {
        let batch = match order.batch(cursor, part.images_per_step) {
            Ok(None) => return,
            Ok(Some(global)) => {
                cursor = global.cursor_after();
                read_batch(load, order, global, part)
            }
            Err(e) => Err(e.into()),
        };
        let failed = batch.is_err();
        if send.send(batch).is_err() || failed {
            return; // training has dropped the loader, or an error ends the reading
        }
    }
}

fn read_batch(
    load: &dyn Fn(&[Unit], u32) -> Result<ShardBatch>,
    order: &EpochOrder,
    global: GlobalBatch,
    part: &Part,
) -> Result<RankBatch> {
    let units = |v| &order.units()[global.shard(v, part.virtual_shards)];
    let shards = part
        .shards
        .clone()
        .map(|v| match units(v) {
            [] => Ok(None),
            units => load(units, order.epoch()).map(Some),
        })
        .collect::<Result<Vec<_>>>()?;
    let samples = part.shards.clone().flat_map(units).map(Unit::count).sum();
    Ok(RankBatch {
        images: global.units.len(),
        patches: order.units()[global.units.clone()]
            .iter()
            .map(|unit| unit.cells.len() as u64)
            .sum(),
        global,
        shards,
        samples,
    })
}
