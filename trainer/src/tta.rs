//! Test-time augmentation: a batch is scored in several orientations, and the probabilities are averaged.
//!
//! Only orientations are used. They permute pixels, so every view holds exactly the photograph's values. An image and
//! its patches turn together; the rows of a batch keep their order, so the probabilities of a cell average over views
//! of that cell.

use fovea_task::{Target, Task};
use tch::Tensor;

use crate::average::{Part, average};
use crate::error::{Error, Result};
use crate::replica::{Replica, Scores};
use crate::samples::{Pixels, ShardBatch, Views};

/// An orientation: mirror left-right, then quarter turns counter-clockwise, as in training's augmentation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Orientation {
    /// Whether the picture is mirrored left-right, before it is turned.
    pub flip: bool,
    /// Counter-clockwise quarter turns, 0 to 3.
    pub turns: u8,
}

const fn orientation(flip: bool, turns: u8) -> Orientation {
    Orientation { flip, turns }
}

/// The orientations in which each sample is scored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TestViews {
    /// The picture as it is.
    #[default]
    One,
    /// As it is, the two mirrors (left-right and up-down), and the two quarter turns.
    Five,
    /// All eight orientations of a square.
    Eight,
}

impl TestViews {
    /// The views of this number, which is 1, 5 or 8.
    #[must_use]
    pub fn of_count(count: usize) -> Option<Self> {
        let all = [Self::One, Self::Five, Self::Eight];
        all.into_iter()
            .find(|views| views.orientations().len() == count)
    }

    /// The orientations, the unchanged one first.
    #[must_use]
    pub fn orientations(self) -> &'static [Orientation] {
        match self {
            Self::One => &EIGHT[..1],
            Self::Five => &FIVE,
            Self::Eight => &EIGHT,
        }
    }
}

static FIVE: [Orientation; 5] = [
    orientation(false, 0),
    orientation(true, 0),
    orientation(true, 2),
    orientation(false, 1),
    orientation(false, 3),
];

static EIGHT: [Orientation; 8] = [
    orientation(false, 0),
    orientation(false, 1),
    orientation(false, 2),
    orientation(false, 3),
    orientation(true, 0),
    orientation(true, 1),
    orientation(true, 2),
    orientation(true, 3),
];

/// Pixels in another orientation: whole images `[b, 3, S, S]` and patches `[n, 3, P, P]`, channels-last, in new memory;
/// images and patches keep their order.
///
/// # Errors
/// libtorch's.
pub fn oriented(views: &Views, to: Orientation) -> Result<Views> {
    Ok(Views {
        globals: turned(&views.globals, to)?,
        patches: turned(&views.patches, to)?,
    })
}

fn turned(pixels: &Tensor, to: Orientation) -> Result<Tensor> {
    let mirrored = match to.flip {
        true => pixels.f_flip([3])?,
        false => pixels.shallow_clone(),
    };
    let turned = mirrored.f_rot90(i64::from(to.turns), [2, 3])?;
    // In memory [n, h, w, 3].
    let rows = turned.f_permute([0, 2, 3, 1])?.f_contiguous()?;
    Ok(rows.f_permute([0, 3, 1, 2])?)
}

/// Logits of a batch whose probabilities are the mean over the views; with one view exactly those of
/// [`Replica::evaluate`]. Rows are those of the batch.
///
/// # Errors
/// [`Error::Internal`] for several views of a batch whose pixels a GPU still has to cut.
pub fn evaluate(
    replica: &Replica,
    task: &Task,
    mut batch: ShardBatch,
    views: TestViews,
) -> Result<Scores> {
    if views == TestViews::One {
        return replica.evaluate(&batch);
    }
    let Pixels::Views(upright) = batch.pixels else {
        return Err(Error::Internal(
            "test-time views of a batch without pixels".to_owned(),
        ));
    };
    let mut seen = Vec::new();
    for &to in views.orientations() {
        batch.pixels = Pixels::Views(oriented(&upright, to)?);
        seen.push(replica.evaluate(&batch)?.heads);
    }
    let mean = |(index, target): (usize, &Target)| {
        let parts: Vec<Part<'_>> = seen.iter().map(|heads| (&heads[index][..], 1.0)).collect();
        average(target, &parts)
    };
    Ok(Scores {
        heads: task.targets().iter().enumerate().map(mean).collect(),
    })
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
mod tests {
    use fovea_run::config::Config;
    use tch::{Device, Kind};

    use super::*;
    use crate::lanes::ThreadLanes;
    use crate::objective::unweighted;
    use crate::precision::Precision;

    fn views() -> Views {
        let picture = |n: i64, side: i64| {
            let all = Tensor::arange(n * 3 * side * side, (Kind::Float, Device::Cpu));
            let rows = all.view([n, side, side, 3]);
            rows.permute([0, 3, 1, 2])
        };
        Views {
            globals: picture(2, 4),
            patches: picture(3, 2),
        }
    }

    /// Pixel (row, column) of the first channel of the last patch.
    fn patch(views: &Views) -> [f64; 4] {
        let at = |y: i64, x: i64| views.patches.double_value(&[2, 0, y, x]);
        [at(0, 0), at(0, 1), at(1, 0), at(1, 1)]
    }

    #[test]
    fn orientations_are_those_of_training() {
        let upright = views();
        let [a, b, c, d] = patch(&upright);
        let seen = |flip, turns| patch(&oriented(&upright, orientation(flip, turns)).unwrap());
        assert_eq!(seen(false, 0), [a, b, c, d]);
        // Counter-clockwise, and mirrored before turned: as `Window::place` of the kernels has it.
        assert_eq!(seen(false, 1), [b, d, a, c]);
        assert_eq!(seen(true, 1), [a, c, b, d]);
        // The two mirrors of the five views.
        assert_eq!(seen(true, 0), [b, a, d, c]);
        assert_eq!(seen(true, 2), [c, d, a, b]);
        for to in TestViews::Eight.orientations() {
            let views = oriented(&upright, *to).unwrap();
            assert!(views.globals.permute([0, 2, 3, 1]).is_contiguous());
            assert_eq!(views.patches.size(), [3, 3, 2, 2]);
        }
    }

    #[test]
    fn five_are_among_eight_distinct_ones() {
        assert_eq!(TestViews::of_count(1), Some(TestViews::One));
        assert_eq!(TestViews::of_count(5), Some(TestViews::Five));
        assert_eq!(TestViews::of_count(8), Some(TestViews::Eight));
        assert_eq!(TestViews::of_count(2), None);
        let eight = TestViews::Eight.orientations();
        let upright = views();
        let mut all: Vec<_> = eight
            .iter()
            .map(|to| patch(&oriented(&upright, *to).unwrap()).map(|v| v as i64))
            .collect();
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), 8);
        let five = TestViews::Five.orientations();
        assert!(five.iter().all(|to| eight.contains(to)));
        assert_eq!(five[0], orientation(false, 0));
    }

    /// All eight orientations of a turned picture are those of the picture, so the average does not feel a turn.
    #[test]
    fn eight_views_do_not_feel_a_turn() {
        let config = Config::preset("hybrid").unwrap();
        let task = Task::lesions();
        let objective = unweighted(&config.loss, &task).unwrap();
        let (precision, lanes) = (Precision::F32, ThreadLanes::one());
        let replica =
            Replica::configured(&config, &task, precision, objective, lanes, None).unwrap();
        let picture = |n: i64, side: i64| {
            let values = Tensor::arange(n * 3 * side * side, (Kind::Float, Device::Cpu));
            let rows = (values * 0.7).sin().view([n, side, side, 3]);
            rows.permute([0, 3, 1, 2])
        };
        let batch = |to: Orientation| {
            let upright = Views {
                globals: picture(1, 64),
                patches: picture(2, 32),
            };
            ShardBatch {
                pixels: Pixels::Views(oriented(&upright, to).unwrap()),
                counts: vec![2],
                labels: Vec::new(),
                columns: Vec::new(),
                image_ids: vec![0],
                patch_ids: vec![0, 1],
            }
        };
        let scores = |turns, views| {
            let scores = evaluate(&replica, &task, batch(orientation(false, turns)), views);
            scores.unwrap().heads.concat()
        };
        let far = |a: &[f32], b: &[f32]| {
            let pairs = a.iter().zip(b);
            pairs.map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
        };
        let one = [scores(0, TestViews::One), scores(1, TestViews::One)];
        let eight = [scores(0, TestViews::Eight), scores(1, TestViews::Eight)];
        let (one, eight) = (far(&one[0], &one[1]), far(&eight[0], &eight[1]));
        assert!(one > 100.0 * eight, "one view {one}, eight views {eight}");
        assert!(eight < 1e-4, "{eight}");
    }
}
