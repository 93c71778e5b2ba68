//! Scores of a split: each image once, with all of its non-black patches or, for a model of whole images, alone.

use bytemuck::pod_collect_to_vec;
use fovea_dataset::Split;
use fovea_kernels::loss::{self, Loss};
use fovea_run::metrics::{self, Metrics, Table};
use fovea_task::{Kind, Label, Level, Target, Task};

use crate::error::{Error, Result};
use crate::lanes::ReadOnly;
use crate::objective::{HeadLoss, Objective};
use crate::replica::Replica;
use crate::samples::SampleSource;
use crate::tta::{self, TestViews};

/// A model's answers for one target, in columns.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Answers {
    /// Sample ids of patches, or indices of images; `[n]`.
    pub ids: Vec<u64>,
    /// Label of each row, `[n]`; [`Label::UNKNOWN`] where the dataset has none.
    pub labels: Vec<Label>,
    /// Logits of each row, `[n, C]` row-major.
    pub logits: Vec<f32>,
}

impl Answers {
    /// Answers without rows, one per target.
    pub fn none(task: &Task) -> Vec<Self> {
        vec![Self::default(); task.targets().len()]
    }

    fn extend(&mut self, more: Self) {
        self.ids.extend(more.ids);
        self.labels.extend(more.labels);
        self.logits.extend(more.logits);
    }

    /// `(id, label, logits)` of each row; `classes` are those of the target.
    pub fn rows(&self, classes: usize) -> impl Iterator<Item = (u64, Label, &[f32])> {
        let labelled = self.ids.iter().zip(&self.labels);
        let rows = labelled.zip(self.logits.chunks_exact(classes));
        rows.map(|((&id, &label), logits)| (id, label, logits))
    }

    /// Ids of the rows in which an answer is NaN or infinite.
    pub fn not_finite(&self, classes: usize) -> impl Iterator<Item = u64> {
        self.rows(classes)
            .filter(|(.., logits)| !logits.iter().all(|x| x.is_finite()))
            .map(|(id, ..)| id)
    }

    /// The same rows with probabilities in place of logits.
    pub fn table(&self, target: &Target) -> Table {
        let rows = self.logits.chunks_exact(target.classes.len());
        Table {
            ids: self.ids.clone(),
            labels: self.labels.clone(),
            probabilities: rows.flat_map(|row| probabilities(target, row)).collect(),
        }
    }

    /// The labelled rows, sorted by id.
    pub(crate) fn labelled(&self, classes: usize) -> Self {
        let mut rows: Vec<_> = self.rows(classes).filter(|row| row.1.is_known()).collect();
        rows.sort_by_key(|row| row.0);
        Self {
            ids: rows.iter().map(|row| row.0).collect(),
            labels: rows.iter().map(|row| row.1).collect(),
            logits: rows.iter().flat_map(|row| row.2).copied().collect(),
        }
    }
}

/// The bytes that ranks exchange: per target the number of rows, then ids, labels and logits, in the machine's byte
/// order.
pub fn encode(answers: &[Answers]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for of_target in answers {
        let labels: Vec<u64> = of_target.labels.iter().map(|label| label.0).collect();
        bytes.extend((of_target.ids.len() as u64).to_ne_bytes());
        bytes.extend(bytemuck::cast_slice::<u64, u8>(&of_target.ids));
        bytes.extend(bytemuck::cast_slice::<u64, u8>(&labels));
        bytes.extend(bytemuck::cast_slice::<f32, u8>(&of_target.logits));
    }
    bytes
}

/// Adds the rows of another rank, as [`encode`] wrote them.
///
/// # Errors
/// [`Error::Internal`] for bytes that are no answers for this task.
pub fn decode(task: &Task, bytes: &[u8], into: &mut [Answers]) -> Result<()> {
    let broken = || {
        Error::Internal(format!(
            "{} bytes of scores are no whole rows of this task",
            bytes.len()
        ))
    };
    let mut rest = bytes;
    let mut take = |count: usize, size: usize| -> Result<&[u8]> {
        let len = count.checked_mul(size).ok_or_else(broken)?;
        let (part, after) = rest.split_at_checked(len).ok_or_else(broken)?;
        rest = after;
        Ok(part)
    };
    for (target, all) in task.targets().iter().zip(into) {
        let count = take(1, 8)?.try_into().map_err(|_| broken())?;
        let count = u64::from_ne_bytes(count) as usize;
        // The bytes of a Vec<u8> need not be aligned for numbers.
        let ids = pod_collect_to_vec(take(count, 8)?);
        let labels: Vec<u64> = pod_collect_to_vec(take(count, 8)?);
        let logits = pod_collect_to_vec(take(count, 4 * target.classes.len())?);
        all.extend(Answers {
            ids,
            labels: labels.into_iter().map(Label).collect(),
            logits,
        });
    }
    match rest.is_empty() {
        true => Ok(()),
        false => Err(broken()),
    }
}

/// Probability per class of one row of logits: sigmoids, or a softmax where there is exactly one class.
pub fn probabilities(target: &Target, logits: &[f32]) -> Vec<f32> {
    match target.kind {
        Kind::AnyOf => logits.iter().map(|&z| loss::sigmoid(z)).collect(),
        Kind::OneOf => loss::softmax(logits),
    }
}

/// Images of a split that rank `rank` of `world` evaluates, as indices of the dataset.
pub fn images_of(source: &SampleSource, split: Split, rank: usize, world: usize) -> Vec<usize> {
    source
        .data()
        .indices(split)
        .into_iter()
        .skip(rank)
        .step_by(world.max(1))
        .collect()
}

/// Scores `images`, as many at a time as the replica has lanes, each in all `views`; returns the answers per target of the
/// dataset's task. Calls `tick` after each image; an error of `tick` ends the evaluation.
pub fn score(
    replica: &Replica,
    source: &SampleSource,
    images: &[usize],
    views: TestViews,
    mut tick: impl FnMut() -> Result<()>,
) -> Result<Vec<Answers>> {
    let mut all = Answers::none(source.data().task());
    // SAFETY: an evaluation reads the replica.
    let shared = unsafe { ReadOnly::new(replica) };
    for together in images.chunks(replica.lanes().count()) {
        let scored = replica.lanes().run(together.len(), |i| {
            score_image(shared.get(), source, together[i], views)
        })?;
        for image in scored {
            for (all, more) in all.iter_mut().zip(image) {
                all.extend(more);
            }
            tick()?;
        }
    }
    Ok(all)
}

/// Scores one image: the image itself and, unless the model reads whole images only, its cells that are not black.
fn score_image(
    replica: &Replica,
    source: &SampleSource,
    image: usize,
    views: TestViews,
) -> Result<Vec<Answers>> {
    let mut batch = source.load(&[source.whole_image(image)], None)?;
    let labels = std::mem::take(&mut batch.labels);
    let cells = batch.patch_ids.clone();
    let task = source.data().task();
    let scores = tta::evaluate(replica, task, batch, views)?;
    let answers = task.targets().iter().zip(scores.heads).zip(labels);
    Ok(answers
        .map(|((target, logits), labels)| Answers {
            ids: match target.level {
                Level::Image => vec![image as u64],
                Level::Patch => cells.clone(),
            },
            labels,
            logits,
        })
        .collect())
}

/// The same threshold for all classes of each target of a task.
pub fn one_threshold(task: &Task, threshold: f32) -> Vec<Vec<f32>> {
    let targets = task.targets().iter();
    targets.map(|t| vec![threshold; t.classes.len()]).collect()
}

/// Metrics per target from all ranks' answers, `None` for a target without any label. They do not depend on the order
/// of the rows, so not on which rank computed which. `thresholds` are those of each class, per target.
pub fn summarise(
    task: &Task,
    answers: &[Answers],
    objective: &Objective,
    thresholds: &[Vec<f32>],
) -> Result<Vec<Option<Metrics>>> {
    type Asked<'a> = (((&'a Target, &'a Answers), &'a HeadLoss), &'a Vec<f32>);
    let of = |(((target, answers), head), thresholds): Asked<'_>| {
        let classes = target.classes.len();
        let labelled = answers.labelled(classes);
        if labelled.ids.is_empty() && !answers.ids.is_empty() {
            return Ok(None);
        }
        let loss = mean_loss(&labelled, head.loss.as_ref())?;
        let table = labelled.table(target);
        Ok(Some(metrics::compute(target, &table, thresholds, loss)?))
    };
    let targets = task.targets().iter().zip(answers);
    targets.zip(objective).zip(thresholds).map(of).collect()
}

fn mean_loss(rows: &Answers, loss: &dyn Loss) -> Result<f64> {
    if rows.ids.is_empty() {
        return Ok(0.0);
    }
    let mut scratch = vec![0.0; rows.logits.len()];
    Ok(loss.host(&rows.logits, &rows.labels, 1.0, &mut scratch)? / rows.ids.len() as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answers(rows: u64, first: u64) -> Answers {
        Answers {
            ids: (first..first + rows).collect(),
            labels: (0..rows).map(|i| Label(i % 16)).collect(),
            logits: (0..4 * rows).map(|i| i as f32 - 3.5).collect(),
        }
    }

    #[test]
    fn answers_travel_whole_or_not_at_all() {
        let task = Task::lesions();
        let mine = [answers(2, 5), answers(0, 0)];
        let theirs = [answers(1, 9), answers(3, 1 << 40)];
        let mut all = Answers::none(&task);
        for part in [&mine, &theirs] {
            let mut bytes = vec![0; 1]; // no longer aligned
            bytes.extend(encode(part));
            decode(&task, &bytes[1..], &mut all).expect("whole");
            for cut in 0..bytes.len() - 1 {
                let mut into = Answers::none(&task);
                assert!(decode(&task, &bytes[1..=cut], &mut into).is_err(), "{cut}");
            }
            bytes.push(0);
            assert!(decode(&task, &bytes[1..], &mut Answers::none(&task)).is_err());
        }
        assert_eq!(all[0].ids, [5, 6, 9]);
        assert_eq!(all[0].logits[8..], answers(1, 0).logits);
        assert_eq!(all[1], theirs[1]);
    }

    #[test]
    fn rows_without_a_label_are_left_out_and_infinite_ones_found() {
        let mut all = answers(3, 7);
        all.ids.reverse();
        all.labels[1] = Label::UNKNOWN;
        all.logits[9] = f32::INFINITY;
        assert_eq!(all.not_finite(4).collect::<Vec<_>>(), [7]);
        let labelled = all.labelled(4);
        assert_eq!(
            (labelled.ids, labelled.labels),
            (vec![7, 9], vec![Label(2), Label(0)])
        );
        assert_eq!(labelled.logits[4..], all.logits[..4]);
    }

    #[test]
    fn probabilities_of_one_class_sum_to_one() {
        let mut target = Task::lesions().targets()[0].clone();
        assert_eq!(probabilities(&target, &[0.0, 1e30, -1e30]), [0.5, 1.0, 0.0]);
        (target.kind, target.union_of_cells) = (Kind::OneOf, false);
        assert_eq!(probabilities(&target, &[0.0; 4]), [0.25; 4]);
        assert_eq!(
            probabilities(&target, &[3e38, -3e38, 3e38]),
            [0.5, 0.0, 0.5]
        );
        let p = probabilities(&target, &[1.0, 2.0, 3.0]);
        assert!((p.iter().sum::<f32>() - 1.0).abs() < 1e-6);
        assert!((p[2] / p[1] - std::f32::consts::E).abs() < 1e-5);
    }
}
