//! Training steps over 1, 2, 4, ... ranks: `fovea bench scaling`.
//!
//! *Weak*: every rank has the same work, so the global batch grows. *Strong*: every world size has the global batch of
//! the largest one. Both are the same measurement at the largest world size. The number of virtual shards per image is
//! the same everywhere.

use std::path::Path;

use fovea_collectives::BackendChoice;
use fovea_report::measured::Shares;
use fovea_trainer::{Error, Result};
use serde::{Deserialize, Serialize};

use super::seat::MeetingSeat;
use super::synthetic::Work;
use super::times::Spread;
use super::training::{Training, take_steps};

/// What grows with the number of ranks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Growth {
    /// The global batch grows; every rank has the same work.
    Weak,
    /// Nothing grows: the global batch is always that of the largest world size.
    Strong,
}

/// The measurement of one world size.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Measured {
    /// The device of the rank that reports, with its threads on a CPU.
    pub device: String,
    /// The backend that exchanged the gradients.
    pub backend: String,
    /// World size of the measurement.
    pub ranks: usize,
    /// Images of a global batch, over all ranks.
    pub images: u32,
    /// Milliseconds from commit to commit, of the slowest rank in each step.
    pub step_ms: Spread,
    /// Patches of all ranks per second, by the median step.
    pub patches_per_s: f64,
}

/// The measurement of one world size, compared with one rank.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ScalingPoint {
    /// Whether this is a point of the weak or of the strong curve.
    pub growth: Growth,
    /// The measurement, flattened into this record in JSON.
    #[serde(flatten)]
    pub measured: Measured,
    /// Steps per second, by the median.
    pub steps_per_s: f64,
    /// Patches per second and rank, divided by those of one rank.
    pub efficiency: f64,
}

/// The powers of two up to `most`.
pub fn worlds(most: usize) -> Vec<usize> {
    let doubled = |world: &usize| world.checked_mul(2);
    std::iter::successors(Some(1), doubled)
        .take_while(|world| *world <= most)
        .collect()
}

/// The work of `world` ranks; `each` is that of one rank alone, `most` the largest number of ranks.
///
/// # Errors
/// The virtual shards of a rank are no power of two; the batch is too large.
pub fn shared(each: &Work, growth: Growth, world: usize, most: usize) -> Result<Work> {
    if !each.virtual_shards.is_power_of_two() {
        return Err(Error::Usage {
            what: format!("{} virtual shards of a rank", each.virtual_shards),
            help: "a power of two fits every number of ranks".to_owned(),
        });
    }
    let times = match growth {
        Growth::Weak => world,
        Growth::Strong => most,
    } as u32;
    let product = |value: u32| {
        value.checked_mul(times).ok_or_else(|| Error::Usage {
            what: format!("{value} images times {times} ranks"),
            help: "measure fewer images".to_owned(),
        })
    };
    Ok(Work {
        images: product(each.images)?,
        images_per_step: product(each.images_per_step)?,
        virtual_shards: product(each.virtual_shards)?,
        ..each.clone()
    })
}

/// Takes part in the measurement of `seat.world` ranks. All ranks get the same times.
///
/// # Errors
/// As for a training step; a rank is lost or never comes.
pub fn measure_rank(
    work: &Work,
    seat: &MeetingSeat,
    backend: BackendChoice,
    (warm_up, steps): (u32, u32),
) -> Result<Measured> {
    let mut training = Training::with(work, seat, backend)?;
    let taken = take_steps(&mut training, warm_up, steps)?;
    let mine: Vec<f64> = taken.iter().map(|step| step.ms).collect();
    let step_ms = Spread::of(&training.slowest(&mine)?);
    let patches = f64::from(work.images_per_step * work.patches_per_image);
    Ok(Measured {
        device: training.device(),
        backend: training.backend().to_owned(),
        ranks: seat.world,
        images: work.images_per_step,
        patches_per_s: patches / step_ms.median * 1e3,
        step_ms,
    })
}

/// The points of one curve, with efficiencies; the first of `measured` must be one rank.
pub fn points(growth: Growth, measured: &[Measured]) -> Vec<ScalingPoint> {
    let rate = |m: &Measured| m.patches_per_s / m.ranks as f64;
    let alone = measured.first().map_or(f64::NAN, rate);
    measured
        .iter()
        .map(|m| ScalingPoint {
            growth,
            steps_per_s: 1e3 / m.step_ms.median,
            efficiency: rate(m) / alone,
            measured: m.clone(),
        })
        .collect()
}

/// Draws the efficiency over the number of ranks into a PNG.
///
/// # Errors
/// The file cannot be written.
pub fn plot(points: &[ScalingPoint], path: &Path) -> fovea_report::Result<()> {
    let line = |growth: Growth, name: &str| {
        let of = points.iter().filter(|point| point.growth == growth);
        let at = of.map(|point| (point.measured.ranks as f64, point.efficiency));
        (name.to_owned(), at.collect())
    };
    let title = points.first().map_or_else(String::new, |point| {
        let what = point.measured.device.split(" (").next().unwrap_or_default();
        format!("Training steps over ranks: {what}")
    });
    let lines = vec![
        line(Growth::Weak, "same work per rank"),
        line(Growth::Strong, "same global batch"),
    ];
    Shares { title, lines }.save(path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use fovea_run::config::{Device, Precision};

    fn each() -> Work {
        Work {
            device: Device::Cpu,
            images: 8,
            size: 160,
            patch: 32,
            global_size: 64,
            images_per_step: 2,
            patches_per_image: 5,
            virtual_shards: 2,
            precision: Precision::F32,
            threads: 1,
            cuda_graphs: false,
            even: true,
        }
    }

    #[test]
    fn weak_and_strong_meet_at_the_most_ranks() {
        assert_eq!(worlds(1), [1]);
        assert_eq!(worlds(9), [1, 2, 4, 8]);
        let of = |growth, world| {
            let work = shared(&each(), growth, world, 8).expect("work");
            (work.images_per_step, work.virtual_shards, work.images)
        };
        assert_eq!(of(Growth::Weak, 1), (2, 2, 8));
        assert_eq!(of(Growth::Weak, 4), (8, 8, 32));
        assert_eq!(of(Growth::Strong, 1), (16, 16, 64));
        assert_eq!(of(Growth::Strong, 8), of(Growth::Weak, 8));
        for growth in [Growth::Weak, Growth::Strong] {
            for world in worlds(8) {
                let work = shared(&each(), growth, world, 8).expect("work");
                work.config(world as u32)
                    .expect("ranks fit the virtual shards");
            }
        }
        let odd = Work {
            virtual_shards: 3,
            ..each()
        };
        assert!(shared(&odd, Growth::Weak, 1, 8).is_err());
    }

    #[test]
    fn efficiency_is_against_one_rank() {
        let of = |ranks: usize, images: u32, ms: f64| Measured {
            device: "cpu".to_owned(),
            backend: "local".to_owned(),
            ranks,
            images,
            step_ms: Spread::of(&[ms]),
            patches_per_s: f64::from(images) * 10.0 / ms * 1e3,
        };
        // Twice the work in 25 % more time.
        let weak = points(Growth::Weak, &[of(1, 4, 100.0), of(2, 8, 125.0)]);
        assert!((weak[1].efficiency - 0.8).abs() < 1e-12);
        assert!((weak[1].steps_per_s - 8.0).abs() < 1e-12);
        // The same work in two thirds of the time.
        let strong = points(Growth::Strong, &[of(1, 4, 100.0), of(2, 4, 66.666_666)]);
        assert!((strong[1].efficiency - 0.75).abs() < 1e-6);
        assert_eq!(strong[0].efficiency, 1.0);
        assert!(points(Growth::Weak, &[]).is_empty());
    }
}
