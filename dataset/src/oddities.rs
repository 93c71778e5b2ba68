//! Labels and images of a prepared dataset that look like mistakes.

use std::collections::{BTreeMap, HashMap};

use fovea_task::{Class, Label, Task};
use rayon::prelude::*;

use crate::labels::{image_class_names, image_classes};
use crate::raw::names::{counted, first_few};
use crate::{Dataset, Split};

/// Images named per kind.
const NAMES: usize = 5;

/// A mask that covers a larger share of the field of view is worth a warning.
const MOST_OF_VIEW: f64 = 0.5;

/// A mask that covers a larger share of what is outside the eye is upside down; and one that covers nearly all.
const MOST_OF_OUTSIDE: f64 = 0.5;
const NEARLY_ALL: f64 = 0.85;

/// Rows of an image that are compared before the whole.
const SAMPLED_ROWS: usize = 16;

/// What is known of one image besides its pixels.
struct Image<'a> {
    id: &'a str,
    /// `None`: it has no label.
    split: Option<Split>,
    /// Per target at image level.
    labels: &'a [Label],
    /// Lesion pixels per cell and class.
    areas: Vec<u16>,
    /// 1 for black cells.
    black: &'a [u8],
}

impl Image<'_> {
    /// Whether all of its cells are black; never without a grid, where nobody looked.
    fn is_black(&self) -> bool {
        !self.black.is_empty() && self.black.iter().all(|black| *black != 0)
    }
}

/// The names of the classes that an image can have, and what they are called together.
struct Names<'a> {
    classes: Vec<&'a str>,
    /// "lesion", or "class" in a task without masks.
    kind: &'static str,
}

impl<'a> Names<'a> {
    fn of(task: &'a Task) -> Self {
        Self {
            classes: image_class_names(task),
            kind: match task.cells() {
                Some(_) => "lesion",
                None => "class",
            },
        }
    }
}

/// Reports what looks like a mistake in a prepared dataset, each in a sentence that names images and numbers: masks that
/// look inverted or cover more than half of the field of view, classes that no image has, no lesion at all, splits
/// without a lesion, images that are black all over, the same image twice. Reads labels of all images and a sample of
/// their pixels; writes nothing.
pub fn oddities(data: &Dataset) -> Vec<String> {
    let images: Vec<Image> = (0..data.len())
        .map(|i| {
            let entry = &data.manifest().images[i];
            Image {
                id: &entry.id,
                split: entry.split,
                labels: &entry.labels,
                areas: data.areas(i),
                black: data.black(i),
            }
        })
        .collect();
    let task = data.task();
    let cell_classes = task.cell_classes();
    let mut told = large_masks(&images, cell_classes, (data.patch() * data.patch()) as u64);
    let min = data.manifest().recipe.min_lesion_pixels;
    let classes = |i: usize| image_classes(task, images[i].labels, &data.patch_labels(i, min));
    let known: Vec<(Split, Vec<bool>)> = (0..images.len())
        .filter_map(|i| Some((images[i].split?, classes(i))))
        .collect();
    let names = Names::of(task);
    told.extend(lacking_classes(&known, &names));
    told.extend(splits_without_lesions(&known, &names));
    told.extend(black_images(&images));
    let twins = twins(data);
    told.extend(same_images(&images, &twins));
    told
}

/// Masks that are upside down, or cover most of the eye.
fn large_masks(images: &[Image], classes: &[Class], cell_pixels: u64) -> Vec<String> {
    let mut inverted: BTreeMap<usize, Vec<&str>> = BTreeMap::new();
    let mut large: BTreeMap<usize, Vec<&str>> = BTreeMap::new();
    for image in images {
        for class in 0..classes.len() {
            let sum = |black: bool| -> u64 {
                let cells = image.areas.chunks_exact(classes.len()).zip(image.black);
                let of_kind = cells.filter(|(_, is)| (**is != 0) == black);
                of_kind.map(|(areas, _)| u64::from(areas[class])).sum()
            };
            let outside = image.black.iter().filter(|black| **black != 0).count() as u64;
            let view = (image.black.len() as u64 - outside) * cell_pixels;
            let share = |area: u64, of: u64| area as f64 / of.max(1) as f64;
            if view == 0 || share(sum(false), view) <= MOST_OF_VIEW {
                continue;
            }
            let upside_down = share(sum(true), outside * cell_pixels) > MOST_OF_OUTSIDE
                || share(sum(false), view) > NEARLY_ALL;
            let kind = if upside_down {
                &mut inverted
            } else {
                &mut large
            };
            kind.entry(class).or_default().push(image.id);
        }
    }
    let line = |(class, ids): (&usize, &Vec<&str>), what: &str, help: &str| {
        format!(
            "{} of {} {what} ({}): {help}",
            classes[*class].name,
            counted(ids.len(), "image"),
            first_few(ids, NAMES)
        )
    };
    let inverted = inverted.iter().map(|entry| {
        line(
            entry,
            "looks inverted: the mask covers nearly all, or the black around the eye, too",
            "in a mask lesions are bright and the rest is black",
        )
    });
    let large = large.iter().map(|entry| {
        line(
            entry,
            "covers more than half of the field of view",
            "look at the masks; lesions are bright in them, the rest is black",
        )
    });
    inverted.chain(large).collect()
}

/// Classes that no image has, also in the training split. `known` holds, per image, whether it has each class.
fn lacking_classes(known: &[(Split, Vec<bool>)], names: &Names) -> Vec<String> {
    let kind = names.kind;
    let anywhere = |class: usize| known.iter().any(|(_, has)| has[class]);
    let in_training = |class: usize| {
        let mut training = known.iter().filter(|(split, _)| *split == Split::Train);
        training.any(|(_, has)| has[class])
    };
    if known.is_empty() {
        return Vec::new();
    }
    let (found, lacking): (Vec<usize>, Vec<usize>) =
        (0..names.classes.len()).partition(|class| anywhere(*class));
    if found.is_empty() {
        let check = match kind {
            "lesion" => "masks have their images' names and are bright where lesions are",
            _ => "labels have their images' names",
        };
        return vec![format!(
            "none of the {} has a {kind}: there is nothing to learn; check that {check}",
            counted(known.len(), "image")
        )];
    }
    let listed = |classes: &[usize]| {
        let named: Vec<&str> = classes.iter().map(|class| names.classes[*class]).collect();
        named.join(" or ")
    };
    let mut told = Vec::new();
    if !lacking.is_empty() {
        let labels = if kind == "lesion" { "masks" } else { "labels" };
        told.push(format!(
            "no image has {}: a model will learn that there is none; check these {labels} if there should be some",
            listed(&lacking)
        ));
    }
    let untaught: Vec<usize> = found.into_iter().filter(|c| !in_training(*c)).collect();
    if !untaught.is_empty() {
        told.push(format!(
            "no image of the train split has {}: it cannot be learned; prepare more images, or try another --seed",
            listed(&untaught)
        ));
    }
    told
}

/// Which of the splits say nothing about lesions, when there are any in the dataset.
fn splits_without_lesions(known: &[(Split, Vec<bool>)], names: &Names) -> Option<String> {
    let has_any = |has: &Vec<bool>| has.contains(&true);
    let splits: Vec<String> = [Split::Val, Split::Test]
        .into_iter()
        .filter_map(|split| {
            let of_split: Vec<&Vec<bool>> = known
                .iter()
                .filter(|(of, _)| *of == split)
                .map(|(_, has)| has)
                .collect();
            let none = !of_split.iter().any(|has| has_any(has));
            none.then(|| format!("the {split} split ({} of the images)", of_split.len()))
        })
        .collect();
    let any = known.iter().any(|(_, has)| has_any(has));
    (any && !splits.is_empty()).then(|| {
        format!(
            "no {} in {}: its metrics will say nothing; prepare more images, or try another --seed",
            names.kind,
            splits.join(" and in ")
        )
    })
}

fn black_images(images: &[Image]) -> Option<String> {
    let is_black = |image: &&Image| image.is_black();
    let ids: Vec<&str> = images
        .iter()
        .filter(is_black)
        .map(|image| image.id)
        .collect();
    (!ids.is_empty()).then(|| {
        format!(
            "{} black all over: {}: remove {} or bring a photograph",
            counted_are(ids.len(), "image"),
            first_few(&ids, NAMES),
            if ids.len() == 1 { "it" } else { "them" }
        )
    })
}

/// Images that have the same pixels, two or more each. Equal rows come first: whole images are compared only where
/// these agree, so that a large dataset is not read to its end.
fn twins(data: &Dataset) -> Vec<Vec<usize>> {
    let sampled = |i: usize| {
        let image = data.image(i);
        let mut hasher = blake3::Hasher::new();
        for row in 0..SAMPLED_ROWS {
            let row = image.height * (2 * row + 1) / (2 * SAMPLED_ROWS);
            hasher.update(&image.data[row * image.width * 3..][..image.width * 3]);
        }
        *hasher.finalize().as_bytes()
    };
    let whole = |i: usize| *blake3::hash(data.image(i).data).as_bytes();
    let all: Vec<usize> = (0..data.len()).collect();
    let mut twins: Vec<Vec<usize>> = alike(&all, sampled)
        .iter()
        .flat_map(|candidates| alike(candidates, whole))
        .collect();
    twins.sort();
    twins
}

/// Those of `images` that have the same key as another.
fn alike(images: &[usize], key: impl Fn(usize) -> [u8; 32] + Sync) -> Vec<Vec<usize>> {
    let keys: Vec<_> = images.par_iter().map(|i| key(*i)).collect();
    let mut groups: HashMap<[u8; 32], Vec<usize>> = HashMap::new();
    for (image, key) in images.iter().zip(keys) {
        groups.entry(key).or_default().push(*image);
    }
    groups
        .into_values()
        .filter(|group| group.len() > 1)
        .collect()
}

/// The same image under several names: across splits it spoils the test; with other labels one of them is wrong.
fn same_images(images: &[Image], twins: &[Vec<usize>]) -> Vec<String> {
    // Black images are alike, and reported as black.
    let twins: Vec<&Vec<usize>> = twins
        .iter()
        .filter(|twins| !images[twins[0]].is_black())
        .collect();
    let across = |twins: &&&Vec<usize>| {
        twins
            .iter()
            .any(|i| images[*i].split != images[twins[0]].split)
    };
    let unlike = |twins: &&&Vec<usize>| {
        twins.iter().any(|i| {
            let (one, first) = (&images[*i], &images[twins[0]]);
            let pairs = one.labels.iter().zip(first.labels);
            let mut known = pairs.filter(|(a, b)| a.is_known() && b.is_known());
            one.areas != first.areas || known.any(|(a, b)| a != b)
        })
    };
    let named = |twins: &[&Vec<usize>]| {
        let one = |twins: &&Vec<usize>| {
            let ids: Vec<String> = twins
                .iter()
                .map(|i| {
                    let split = images[*i].split.map_or("no split", Split::name);
                    format!("{} ({split})", images[*i].id)
                })
                .collect();
            first_few(&ids, NAMES).replace(", ", " = ")
        };
        let all: Vec<String> = twins.iter().map(one).collect();
        first_few(&all, NAMES)
    };
    let mut told = Vec::new();
    let (apart, together): (Vec<&Vec<usize>>, Vec<&Vec<usize>>) =
        twins.iter().partition(|twins| across(twins));
    if !apart.is_empty() {
        told.push(format!(
            "{} in different splits, pixel by pixel the same: {}: scores will look better than they are; keep one of each",
            counted(apart.len(), "image"),
            named(&apart)
        ));
    }
    if !together.is_empty() {
        told.push(format!(
            "{} there several times in one split, pixel by pixel the same: {}",
            counted_are(together.len(), "image"),
            named(&together)
        ));
    }
    let contradicting: Vec<&Vec<usize>> = twins
        .iter()
        .copied()
        .filter(|twins| unlike(&twins))
        .collect();
    if !contradicting.is_empty() {
        let (what, which) = match images[0].areas.is_empty() {
            true => ("labels", "labels"),
            false => ("lesions", "masks"),
        };
        told.push(format!(
            "{} with other {what} under another name: {}: at most one of the {which} can be right",
            counted(contradicting.len(), "image"),
            named(&contradicting)
        ));
    }
    told
}

fn counted_are(count: usize, what: &str) -> String {
    format!(
        "{} {}",
        counted(count, what),
        if count == 1 { "is" } else { "are" }
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const PIXELS: u64 = 100;

    /// Four cells, the last of them black; `areas` of EX per cell.
    fn image(id: &str, areas: [u16; 4]) -> Image<'_> {
        Image {
            id,
            split: Some(Split::Train),
            labels: &[Label(4)],
            areas: areas.iter().flat_map(|area| [0, 0, *area, 0]).collect(),
            black: &[0, 0, 0, 1],
        }
    }

    #[test]
    fn masks_upside_down_and_too_large_are_told_apart() {
        let images = [
            image("fine", [100, 40, 0, 0]),
            image("half", [100, 50, 0, 100]),
            image("large", [100, 51, 0, 50]),
            image("inverted", [99, 80, 10, 51]),
            image("all", [99, 80, 80, 0]),
        ];
        assert_eq!(
            large_masks(&images, &Task::lesions().targets()[0].classes, PIXELS),
            [
                "EX of 2 images looks inverted: the mask covers nearly all, or the black around the eye, too (inverted, all): \
                 in a mask lesions are bright and the rest is black",
                "EX of 1 image covers more than half of the field of view (large): look at the masks; lesions are bright in them, \
                 the rest is black",
            ]
        );
    }

    /// What label bytes say of the four lesions.
    fn known(labels: &[(Split, u64)]) -> Vec<(Split, Vec<bool>)> {
        let has = |label: &u64| image_classes(&Task::lesions(), &[Label(*label)], &[]);
        labels
            .iter()
            .map(|(split, label)| (*split, has(label)))
            .collect()
    }

    #[test]
    fn classes_that_are_missing_are_named() {
        let (train, val, test) = (Split::Train, Split::Val, Split::Test);
        let task = Task::lesions();
        let lacking_classes =
            |all: &[(Split, u64)]| lacking_classes(&known(all), &Names::of(&task));
        assert_eq!(lacking_classes(&[]), [""; 0]);
        assert_eq!(
            lacking_classes(&[(train, 7), (val, 8), (train, 8)]),
            [""; 0]
        );
        let none = lacking_classes(&[(train, 0), (test, 0)]);
        assert!(
            none[0].starts_with("none of the 2 images has a lesion"),
            "{none:?}"
        );
        let some = lacking_classes(&[(train, 1), (test, 2)]);
        assert!(some[0].starts_with("no image has EX or SE:"), "{some:?}");
        assert!(
            some[1].starts_with("no image of the train split has HE:"),
            "{some:?}"
        );
        assert_eq!(some.len(), 2);
    }

    #[test]
    fn splits_that_say_nothing_are_named() {
        let (train, val, test) = (Split::Train, Split::Val, Split::Test);
        let all = [(train, 1), (val, 2), (test, 8)];
        let task = Task::lesions();
        let splits_without_lesions =
            |all: &[(Split, u64)]| splits_without_lesions(&known(all), &Names::of(&task));
        assert_eq!(splits_without_lesions(&all), None);
        let told = |labels: &[(Split, u64)]| splits_without_lesions(labels).unwrap();
        assert!(
            told(&[(train, 1), (val, 0), (val, 0), (test, 1)])
                .starts_with("no lesion in the val split (2 of the images): ")
        );
        assert!(told(&[(train, 1)]).starts_with(
            "no lesion in the val split (0 of the images) and in the test split (0 of the images): "
        ));
        assert_eq!(splits_without_lesions(&[(train, 0), (val, 0)]), None);
    }

    #[test]
    fn the_same_image_twice_is_worst_across_splits() {
        let mut images: Vec<Image> = ["a", "b", "c", "d", "e", "f"]
            .map(|id| image(id, [1, 0, 0, 0]))
            .into();
        images[1].split = Some(Split::Test);
        images[3].areas[2] = 7;
        for black in [4, 5] {
            images[black].black = &[1; 4];
        }
        let told = same_images(&images, &[vec![0, 1], vec![2, 3], vec![4, 5]]);
        assert_eq!(
            told,
            [
                "1 image in different splits, pixel by pixel the same: a (train) = b (test): scores will look better than they are; keep one of each",
                "1 image is there several times in one split, pixel by pixel the same: c (train) = d (train)",
                "1 image with other lesions under another name: c (train) = d (train): at most one of the masks can be right",
            ]
        );
        assert_eq!(
            black_images(&images).unwrap(),
            "2 images are black all over: e, f: remove them or bring a photograph"
        );
    }
}
