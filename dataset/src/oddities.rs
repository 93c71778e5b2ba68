//! Labels and images of a prepared dataset that look like mistakes.

use std::collections::{BTreeMap, HashMap};

use rayon::prelude::*;

use crate::raw::names::{counted, first_few};
use crate::{CLASSES, Dataset, Split};

/// Images named per kind.
const NAMES: usize = 5;

/// A mask that covers a larger share of the field of view is told.
const MOST_OF_VIEW: f64 = 0.5;

/// A mask that covers a larger share of what is outside the eye is upside down; and one that covers nearly all.
const MOST_OF_OUTSIDE: f64 = 0.5;
const NEARLY_ALL: f64 = 0.85;

/// Rows of an image that are compared before the whole.
const SAMPLED_ROWS: usize = 16;

/// What is known of one image besides its pixels.
struct Image<'a> {
    id: &'a str,
    split: Split,
    /// Label byte.
    label: u8,
    /// Lesion pixels per cell and class.
    areas: Vec<u16>,
    /// 1 for black cells.
    black: &'a [u8],
}

/// Says what in a prepared dataset cannot be meant so, each in a sentence that names images and numbers: masks that
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
                label: entry.label,
                areas: data.areas(i),
                black: data.black(i),
            }
        })
        .collect();
    let mut told = large_masks(&images, (data.patch() * data.patch()) as u64);
    let labels: Vec<(Split, u8)> = images.iter().map(|i| (i.split, i.label)).collect();
    told.extend(lacking_classes(&labels));
    told.extend(splits_without_lesions(&labels));
    told.extend(black_images(&images));
    let twins = twins(data);
    told.extend(same_images(&images, &twins));
    told
}

/// Masks that are upside down, or cover most of the eye.
fn large_masks(images: &[Image], cell_pixels: u64) -> Vec<String> {
    let mut inverted: BTreeMap<usize, Vec<&str>> = BTreeMap::new();
    let mut large: BTreeMap<usize, Vec<&str>> = BTreeMap::new();
    for image in images {
        for class in 0..CLASSES.len() {
            let sum = |black: bool| -> u64 {
                let cells = image.areas.chunks_exact(CLASSES.len()).zip(image.black);
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
            CLASSES[*class],
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

/// Classes that no image has, also in the training split.
fn lacking_classes(labels: &[(Split, u8)]) -> Vec<String> {
    let has = |labels: &mut dyn Iterator<Item = u8>| labels.fold(0, |all, label| all | label);
    let anywhere = has(&mut labels.iter().map(|(_, label)| *label));
    let of_training = labels.iter().filter(|(split, _)| *split == Split::Train);
    let in_training = has(&mut of_training.map(|(_, label)| *label));
    if labels.is_empty() {
        return Vec::new();
    }
    if anywhere == 0 {
        return vec![format!(
            "none of the {} has a lesion: there is nothing to learn; check that masks have their images' names and are bright where lesions are",
            counted(labels.len(), "image")
        )];
    }
    let named = |mask: u8| -> Vec<&str> {
        let lacking = |class: &usize| mask >> class & 1 == 0;
        (0..CLASSES.len())
            .filter(lacking)
            .map(|class| CLASSES[class])
            .collect()
    };
    let mut told = Vec::new();
    let lacking = named(anywhere);
    if !lacking.is_empty() {
        told.push(format!(
            "no image has {}: a model will learn that there is none; check these masks if there should be some",
            lacking.join(" or ")
        ));
    }
    let untaught = named(in_training | !anywhere);
    if !untaught.is_empty() {
        told.push(format!(
            "no image of the train split has {}: it cannot be learned; prepare more images, or try another --seed",
            untaught.join(" or ")
        ));
    }
    told
}

/// Which of the splits say nothing about lesions, when there are any in the dataset.
fn splits_without_lesions(labels: &[(Split, u8)]) -> Option<String> {
    let names: Vec<String> = [Split::Val, Split::Test]
        .into_iter()
        .filter_map(|split| {
            let of_split: Vec<u8> = labels
                .iter()
                .filter(|l| l.0 == split)
                .map(|l| l.1)
                .collect();
            let none = of_split.iter().all(|label| *label == 0);
            none.then(|| format!("the {split} split ({} of the images)", of_split.len()))
        })
        .collect();
    let any = labels.iter().any(|(_, label)| *label != 0);
    (any && !names.is_empty()).then(|| {
        format!(
            "no lesion in {}: its metrics will say nothing; prepare more images, or try another --seed",
            names.join(" and in ")
        )
    })
}

fn black_images(images: &[Image]) -> Option<String> {
    let is_black = |image: &&Image| image.black.iter().all(|black| *black != 0);
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
    // Black images are alike, and told as black.
    let twins: Vec<&Vec<usize>> = twins
        .iter()
        .filter(|twins| images[twins[0]].black.contains(&0))
        .collect();
    let across = |twins: &&&Vec<usize>| {
        twins
            .iter()
            .any(|i| images[*i].split != images[twins[0]].split)
    };
    let unlike = |twins: &&&Vec<usize>| {
        twins
            .iter()
            .any(|i| images[*i].areas != images[twins[0]].areas)
    };
    let named = |twins: &[&Vec<usize>]| {
        let one = |twins: &&Vec<usize>| {
            let ids: Vec<String> = twins
                .iter()
                .map(|i| format!("{} ({})", images[*i].id, images[*i].split))
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
        told.push(format!(
            "{} with other lesions under another name: {}: at most one of the masks can be right",
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
            split: Split::Train,
            label: 4,
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
            large_masks(&images, PIXELS),
            [
                "EX of 2 images looks inverted: the mask covers nearly all, or the black around the eye, too (inverted, all): \
                 in a mask lesions are bright and the rest is black",
                "EX of 1 image covers more than half of the field of view (large): look at the masks; lesions are bright in them, \
                 the rest is black",
            ]
        );
    }

    #[test]
    fn classes_that_are_missing_are_named() {
        let (train, val, test) = (Split::Train, Split::Val, Split::Test);
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
        assert_eq!(splits_without_lesions(&all), None);
        let told = |labels: &[(Split, u8)]| splits_without_lesions(labels).unwrap();
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
        images[1].split = Split::Test;
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
