//! Scores of a split: every image with all its non-black patches at once, each sample once.

use bytemuck::{Pod, Zeroable};
use fovea_dataset::Split;
use fovea_kernels::{FocalParams, focal_loss};
use fovea_run::metrics::{self, Level, Metrics, Scored};

use crate::error::Result;
use crate::lanes::ReadOnly;
use crate::replica::Replica;
use crate::samples::SampleSource;

/// One scored sample as ranks exchange it.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Pod, Zeroable)]
pub struct Row {
    /// Sample id of a patch, index of an image.
    pub id: u64,
    /// Logits, class order MA, HE, EX, SE.
    pub logits: [f32; 4],
    /// Label byte.
    pub label: u32,
    /// 0 patch, 1 image.
    pub level: u32,
}

impl Row {
    /// Level as an enum.
    pub fn level(&self) -> Level {
        if self.level == 1 {
            Level::Image
        } else {
            Level::Patch
        }
    }

    /// Whether the model's answer is a number at all.
    pub fn is_finite(&self) -> bool {
        self.logits.iter().all(|x| x.is_finite())
    }

    /// Sigmoid of the logits.
    pub fn scored(&self) -> Scored {
        Scored {
            id: self.id,
            label: self.label as u8,
            probs: self.logits.map(sigmoid),
        }
    }
}

/// `1 / (1 + exp(-z))`, in f64 so that it never overflows.
pub fn sigmoid(z: f32) -> f32 {
    (1.0 / (1.0 + (-f64::from(z)).exp())) as f32
}

/// Images of a split that rank `rank` of `world` evaluates.
pub fn images_of(source: &SampleSource, split: Split, rank: usize, world: usize) -> Vec<usize> {
    source
        .data()
        .indices(split)
        .into_iter()
        .skip(rank)
        .step_by(world.max(1))
        .collect()
}

/// Scores `images`, as many at a time as the replica has lanes; `tick` is called after each, and ends it
/// with its error.
pub fn score(
    replica: &Replica,
    source: &SampleSource,
    images: &[usize],
    mut tick: impl FnMut() -> Result<()>,
) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    // SAFETY: an evaluation reads the replica.
    let shared = unsafe { ReadOnly::new(replica) };
    for together in images.chunks(replica.lanes().count()) {
        let scored = replica.lanes().run(together.len(), |i| {
            score_image(shared.get(), source, together[i])
        })?;
        for image in scored {
            rows.extend(image);
            tick()?;
        }
    }
    Ok(rows)
}

/// The image itself, then its cells that are not black.
fn score_image(replica: &Replica, source: &SampleSource, image: usize) -> Result<Vec<Row>> {
    let batch = source.load(&[source.whole_image(image)], None)?;
    let scores = replica.evaluate(&batch)?;
    let logits = |flat: &[f32], i: usize| [0, 1, 2, 3].map(|c| flat[4 * i + c]);
    let whole = Row {
        id: image as u64,
        logits: logits(&scores.image, 0),
        label: u32::from(batch.image_labels[0]),
        level: 1,
    };
    let cells = batch.patch_ids.iter().zip(&batch.patch_labels).enumerate();
    let cells = cells.map(|(i, (&id, &label))| Row {
        id,
        logits: logits(&scores.patch, i),
        label: u32::from(label),
        level: 0,
    });
    Ok(std::iter::once(whole).chain(cells).collect())
}

/// Metrics at both levels. Independent of the order of the rows, so of who computed them.
#[derive(Clone, Debug)]
pub struct Summary {
    /// Over grid cells.
    pub patch: Metrics,
    /// Over whole images.
    pub image: Metrics,
}

/// Computes both levels' metrics from all ranks' rows.
pub fn summarise(rows: &[Row], replica: &Replica, threshold: f32) -> Result<Summary> {
    let level = |level: Level, focal: &FocalParams| -> Result<Metrics> {
        let mut rows: Vec<&Row> = rows.iter().filter(|r| r.level() == level).collect();
        rows.sort_by_key(|r| r.id);
        let scored: Vec<Scored> = rows.iter().map(|r| r.scored()).collect();
        Ok(metrics::compute(
            &scored,
            [threshold; 4],
            mean_loss(&rows, focal)?,
        )?)
    };
    let objective = replica.objective();
    Ok(Summary {
        patch: level(Level::Patch, &objective.patch)?,
        image: level(Level::Image, &objective.image)?,
    })
}

fn mean_loss(rows: &[&Row], focal: &FocalParams) -> Result<f64> {
    if rows.is_empty() {
        return Ok(0.0);
    }
    let logits: Vec<f32> = rows.iter().flat_map(|r| r.logits).collect();
    let labels: Vec<u8> = rows.iter().map(|r| r.label as u8).collect();
    let mut scratch = vec![0.0; logits.len()];
    Ok(focal_loss(&logits, &labels, focal, 1.0, &mut scratch)? / rows.len() as f64)
}
