//! The data of measurements: images of random pixels, and labels by hash, for the model of preset `hybrid`.

use std::sync::Arc;

use fovea_coordinator::order::{AllSamples, Grain, OrderInput, Sampling, Unit};
use fovea_dataset::{MAX_PATCH, MAX_SIZE};
use fovea_kernels::{Augment, ImageU8, resize_antialias};
use fovea_run::config::{Config, Device, Precision as PrecisionChoice};
use fovea_task::Label;
use rand::{RngCore, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use fovea_trainer::gpu::SetShape;
use fovea_trainer::precision::Precision;
use fovea_trainer::samples::{Assembler, Randomness, ShardBatch, augment};
use fovea_trainer::{Error, Result};

/// Most bytes of images that may lie in host memory.
const MOST_HOST_BYTES: usize = 4 << 30;

/// Most cells along a side: a cell's number has 16 bits.
const MOST_CELLS_A_SIDE: u32 = 255;

/// The work that is measured: its size, its device and its settings.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Work {
    /// The device that computes, as `train.device`.
    pub device: Device,
    /// Number of images in the set.
    pub images: u32,
    /// Side of an image in pixels.
    pub size: u32,
    /// Side of a patch in pixels; divides `size`.
    pub patch: u32,
    /// Side of the global view in pixels.
    pub global_size: u32,
    /// Images of a step, over all ranks.
    pub images_per_step: u32,
    /// Patches of each image of a step, as `data.patches_per_image`.
    pub patches_per_image: u32,
    /// Virtual shards of a step, as `train.virtual_shards`.
    pub virtual_shards: u32,
    /// Precision of the convolutions, as `train.precision`.
    pub precision: PrecisionChoice,
    /// CPU threads of each rank, as `train.threads_per_rank`.
    pub threads: u32,
    /// Whether to run steps as CUDA graphs, as `train.cuda_graphs`.
    pub cuda_graphs: bool,
    /// Whether to leave out cells, which gives every image of a step exactly `patches_per_image` patches.
    pub even: bool,
}

impl Work {
    /// The configuration with which `ranks` ranks do this work together.
    pub fn config(&self, ranks: u32) -> Result<Config> {
        let mut config = Config::preset("hybrid")?;
        config.train.device = self.device;
        config.train.images_per_step = self.images_per_step;
        config.train.virtual_shards = self.virtual_shards;
        config.train.precision = self.precision;
        config.train.threads_per_rank = self.threads;
        config.train.cuda_graphs = self.cuda_graphs;
        config.train.ranks = ranks;
        config.data.patches_per_image = self.patches_per_image;
        config.data.global_size = self.global_size;
        config.validate()?;
        self.check()?;
        Ok(config)
    }

    fn check(&self) -> Result<()> {
        let wrong = |what: String, help: &str| {
            Err(Error::Usage {
                what,
                help: help.to_owned(),
            })
        };
        let (size, patch) = (self.size, self.patch);
        let fits = (patch..=MAX_SIZE).contains(&size) && size.is_multiple_of(patch);
        if !(32..=MAX_PATCH).contains(&patch) || !fits || size / patch > MOST_CELLS_A_SIDE {
            return wrong(
                format!("images of {size} pixels cannot be cut into patches of {patch}"),
                &format!(
                    "--patch is 32 to {MAX_PATCH} and divides --size into at most {MOST_CELLS_A_SIDE}; --size is at most {MAX_SIZE}"
                ),
            );
        }
        let cells = self.cells();
        if cells == 0 {
            return wrong(
                format!(
                    "{} patches per image, but an image has {}",
                    self.patches_per_image,
                    (size / patch).pow(2)
                ),
                "lower --patches or --patch, or raise --size",
            );
        }
        if self.units() < u64::from(self.images_per_step) {
            return wrong(
                format!(
                    "{} images with {cells} patches each are less than one step of {} times {}",
                    self.images, self.images_per_step, self.patches_per_image
                ),
                "raise the number of images, or lower those per step",
            );
        }
        Ok(())
    }

    /// Number of cells of each image that are used.
    fn cells(&self) -> u32 {
        let all = (self.size / self.patch).pow(2);
        match self.even {
            true => all / self.patches_per_image * self.patches_per_image,
            false => all,
        }
    }

    /// Units of an epoch: an image is in as many steps as its cells need.
    fn units(&self) -> u64 {
        u64::from(self.images) * u64::from(self.cells().div_ceil(self.patches_per_image))
    }

    /// Number and size of the images.
    pub(crate) fn shape(&self) -> SetShape {
        SetShape {
            count: self.images as usize,
            size: self.size as usize,
            patch: self.patch as usize,
        }
    }

    /// The input of the sample order: every cell that is used, because none is black.
    pub(crate) fn order_input(&self, seed: u64) -> OrderInput {
        let cells: Vec<u16> = (0..self.cells() as u16).collect();
        OrderInput {
            images: (0..self.images)
                .map(|image| (image, cells.clone()))
                .collect(),
            grain: Grain::Cell,
            sampler: &AllSamples,
            sampling: Sampling::default(),
            seed,
            patches_per_image: self.patches_per_image as usize,
        }
    }
}

/// The source of synthetic samples, in place of a dataset.
pub(crate) struct SyntheticSamples {
    assembler: Assembler,
    augment: Augment,
    seed: u64,
    /// The images of the CPU; none on a GPU, which makes its own in its memory.
    host: Option<Host>,
}

struct Host {
    size: usize,
    pixels: Vec<Vec<u8>>,
    /// The images, resized to the global view's size.
    resized: Vec<Arc<Vec<f32>>>,
}

impl SyntheticSamples {
    /// Makes the images on the CPU; a GPU makes its own later.
    pub fn new(work: &Work, config: &Config, precision: Precision, on_gpu: bool) -> Result<Self> {
        let shape = work.shape();
        let host = match on_gpu {
            true => None,
            false => Some(Host::new(shape, config.data.global_size as usize)?),
        };
        Ok(Self {
            assembler: Assembler {
                grid: shape.size / shape.patch,
                patch: shape.patch,
                global_size: config.data.global_size as usize,
                precision,
            },
            augment: augment(config),
            seed: config.train.seed,
            host,
        })
    }

    /// Loads the samples of these units, as `SampleSource::load` does in training.
    pub fn load(&self, units: &[Unit], epoch: u32) -> Result<ShardBatch> {
        let mut batch = match &self.host {
            None => self.assembler.crops(units, Some(epoch), &[]),
            Some(host) => {
                let images: Vec<ImageU8<'_>> = units.iter().map(|u| host.view(u.image)).collect();
                let resized: Vec<_> = units
                    .iter()
                    .map(|u| Arc::clone(&host.resized[u.image as usize]))
                    .collect();
                let random = Randomness {
                    augment: &self.augment,
                    seed: self.seed,
                    epoch,
                    corners: &[],
                };
                self.assembler
                    .assemble(units, &images, &resized, Some(random))?
            }
        };
        let labels = |ids: &[u64]| ids.iter().map(|id| label(*id)).collect();
        batch.labels = vec![labels(&batch.image_ids), labels(&batch.patch_ids)];
        Ok(batch)
    }
}

impl Host {
    fn new(shape: SetShape, global_size: usize) -> Result<Self> {
        let bytes = shape.count * shape.image_bytes();
        if bytes > MOST_HOST_BYTES {
            return Err(Error::Usage {
                what: format!(
                    "{} images of {} pixels are {:.1} GB of host memory, more than {:.1}",
                    shape.count,
                    shape.size,
                    bytes as f64 / 1e9,
                    MOST_HOST_BYTES as f64 / 1e9
                ),
                help: "on the CPU measure fewer images, for example --images 64, or a GPU"
                    .to_owned(),
            });
        }
        let mut host = Self {
            size: shape.size,
            pixels: Vec::with_capacity(shape.count),
            resized: Vec::with_capacity(shape.count),
        };
        let mut rng = ChaCha8Rng::seed_from_u64(0);
        for image in 0..shape.count {
            let mut pixels = vec![0; shape.image_bytes()];
            rng.fill_bytes(&mut pixels);
            host.pixels.push(pixels);
            let resized = resize_antialias(&host.view(image as u32), global_size, global_size)?;
            host.resized.push(Arc::new(resized));
        }
        Ok(host)
    }

    fn view(&self, image: u32) -> ImageU8<'_> {
        ImageU8 {
            data: &self.pixels[image as usize],
            height: self.size,
            width: self.size,
        }
    }
}

/// The label of a sample: four classes, each on a quarter of the samples (the multiplier is splitmix64's).
fn label(id: u64) -> Label {
    let bits = id.wrapping_mul(0x9E37_79B9_7F4A_7C15);
    Label((bits >> 60) & (bits >> 56) & 15)
}

#[cfg(test)]
mod tests {
    use super::*;
    use fovea_coordinator::order::EpochOrder;

    fn work() -> Work {
        Work {
            device: Device::Cpu,
            images: 6,
            size: 160,
            patch: 32,
            global_size: 64,
            images_per_step: 4,
            patches_per_image: 10,
            virtual_shards: 2,
            precision: PrecisionChoice::F32,
            threads: 1,
            cuda_graphs: false,
            even: false,
        }
    }

    #[test]
    fn an_epoch_is_every_patch_and_an_even_one_has_full_units_only() {
        let all = EpochOrder::new(&work().order_input(1), 0).expect("an order");
        assert_eq!(all.total_samples(), 6 * 25);
        let even = Work {
            even: true,
            ..work()
        };
        let order = EpochOrder::new(&even.order_input(1), 0).expect("an order");
        assert_eq!(order.total_samples(), 6 * 20);
        assert!(order.units().iter().all(|unit| unit.cells.len() == 10));
        assert_eq!((order.units().len(), even.units()), (12, 12));
    }

    #[test]
    fn samples_are_complete_and_labels_vary() {
        let work = work();
        let config = work.config(1).expect("a configuration");
        let order = EpochOrder::new(&work.order_input(1), 0).expect("an order");
        let units = &order.units()[..3];
        let on_cpu = SyntheticSamples::new(&work, &config, Precision::F32, false).expect("images");
        let on_gpu = SyntheticSamples::new(&work, &config, Precision::F32, true).expect("none");
        let (here, there) = (
            on_cpu.load(units, 0).expect("pixels"),
            on_gpu.load(units, 0).expect("crops"),
        );
        let patches: usize = units.iter().map(|unit| unit.cells.len()).sum();
        let rows: Vec<usize> = here.labels.iter().map(Vec::len).collect();
        assert_eq!(rows, [3, patches]);
        assert_eq!(here.labels, there.labels);
        assert_eq!(here.patch_ids, there.patch_ids);
        let positive: u32 = (0..4000).map(|id| label(id).0.count_ones()).sum();
        assert!((3600..4400).contains(&positive), "{positive} of 16000");
    }

    #[test]
    fn what_cannot_be_measured_is_refused() {
        let refused = |work: Work, said: &str| {
            let text = work.config(1).expect_err("refused").to_string();
            assert!(text.contains(said) && text.contains("\n  help: "), "{text}");
        };
        refused(
            Work {
                patch: 48,
                ..work()
            },
            "patches of 48",
        );
        refused(
            Work {
                images: 1,
                ..work()
            },
            "less than one step of 4 times 10",
        );
        let too_many = Work {
            patches_per_image: 26,
            even: true,
            ..work()
        };
        refused(too_many, "26 patches per image, but an image has 25");
        refused(
            Work {
                global_size: 8,
                ..work()
            },
            "data.global_size",
        );
        let large = Work {
            images: 2000,
            size: 1280,
            ..work()
        };
        let config = large.config(1).expect("a configuration");
        let text = SyntheticSamples::new(&large, &config, Precision::F32, false)
            .err()
            .expect("refused")
            .to_string();
        assert!(
            text.contains("9.8 GB") && text.contains("--images"),
            "{text}"
        );
    }
}
