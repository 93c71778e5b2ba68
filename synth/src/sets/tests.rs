//! Whether the drawn sets are what they claim: the layouts read them, and nothing trivial solves them.

use std::collections::BTreeMap;

use fovea_dataset::{Dataset, PrepareOptions, Silent, Split, prepare};
use fovea_task::{Kind, Label};

use super::*;

const OPTIONS: SynthOptions = SynthOptions {
    images: 160,
    size: 64,
    seed: 5,
};

/// The set, drawn and prepared at 64 pixels.
fn prepared(kind: DrawnSet) -> (tempfile::TempDir, Dataset) {
    let dir = tempfile::tempdir().unwrap();
    let (raw, out) = (dir.path().join("raw"), dir.path().join("data"));
    draw_set(&raw, kind, &OPTIONS, &Silent).unwrap();
    let options = PrepareOptions {
        whole_size: Some(64),
        ..PrepareOptions::default()
    };
    prepare(&raw, &out, &options, &Silent).unwrap();
    let data = Dataset::open(&out).unwrap();
    (dir, data)
}

/// Whether image `i` has each class.
fn has(data: &Dataset, i: usize) -> Vec<bool> {
    let target = &data.task().targets()[0];
    (0..target.classes.len())
        .map(|class| target.has(data.label(i, 0), class))
        .collect()
}

/// Mean red, green and blue.
fn mean_colour(data: &Dataset, i: usize) -> [f64; 3] {
    let pixels = data.image(i).data;
    let mean = |k: usize| {
        let sum: f64 = pixels
            .iter()
            .skip(k)
            .step_by(3)
            .map(|v| f64::from(*v))
            .sum();
        sum / (pixels.len() / 3) as f64
    };
    [mean(0), mean(1), mean(2)]
}

/// Balanced accuracy, on all images but the training split, of the nearest mean of the training images' features.
fn nearest_mean(data: &Dataset, class: usize, feature: impl Fn(usize) -> Vec<f64>) -> f64 {
    let features: Vec<Vec<f64>> = (0..data.len()).map(feature).collect();
    let train = data.indices(Split::Train);
    let mean = |wanted: bool| {
        let of: Vec<&Vec<f64>> = train
            .iter()
            .filter(|i| has(data, **i)[class] == wanted)
            .map(|i| &features[*i])
            .collect();
        let sum = |k: usize| of.iter().map(|f| f[k]).sum::<f64>() / of.len() as f64;
        (0..features[0].len()).map(sum).collect::<Vec<f64>>()
    };
    let (yes, no) = (mean(true), mean(false));
    let distance =
        |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(x, y)| (x - y).powi(2)).sum::<f64>();
    let mut right = [[0usize; 2]; 2];
    for i in (0..data.len()).filter(|i| !train.contains(i)) {
        let truth = has(data, i)[class];
        let said = distance(&features[i], &yes) < distance(&features[i], &no);
        right[usize::from(truth)][usize::from(said == truth)] += 1;
    }
    let rate = |[wrong, right]: [usize; 2]| right as f64 / (right + wrong) as f64;
    (rate(right[0]) + rate(right[1])) / 2.0
}

#[test]
fn each_set_is_read_by_its_layout_as_it_is_drawn() {
    for (kind, layout, classes, one_of, columns) in [
        (DrawnSet::Labels, "csv", 3, false, 0),
        (DrawnSet::Classes, "classes", 4, true, 0),
        (DrawnSet::Boxes, "boxes", 2, true, 84),
    ] {
        let (_dir, data) = prepared(kind);
        let manifest = data.manifest();
        assert_eq!(manifest.recipe.layout, layout);
        assert_eq!((data.grid(), data.patch(), data.size()), (0, 0, 64));
        let target = &data.task().targets()[0];
        assert_eq!(target.classes.len(), classes);
        assert_eq!(target.kind == Kind::OneOf, one_of);
        assert_eq!(data.task().columns().len(), columns);
        assert_eq!(manifest.unlabelled(), 0);
        for split in Split::ALL {
            assert!(data.indices(split).len() >= 15, "{layout} {split}");
        }
        for i in 0..data.len() {
            assert!(data.label(i, 0) != Label::UNKNOWN);
            assert_eq!(data.columns(i).len(), columns);
        }
    }
}

#[test]
fn neither_a_constant_nor_the_mean_colour_solves_a_set() {
    for kind in DrawnSet::ALL {
        let (_dir, data) = prepared(kind);
        for class in 0..data.task().targets()[0].classes.len() {
            let share = (0..data.len()).filter(|i| has(&data, *i)[class]).count();
            let share = share as f64 / data.len() as f64;
            assert!((0.2..=0.6).contains(&share), "{kind:?} {class}: {share}");
            let found = nearest_mean(&data, class, |i| mean_colour(&data, i).to_vec());
            assert!(found < 0.72, "{kind:?} {class}: {found} by the mean colour");
        }
    }
}

/// What the truth is made of solves each set: the labels are no noise.
#[test]
fn the_boxes_tell_one_half_and_the_picture_the_other() {
    let (_dir, data) = prepared(DrawnSet::Boxes);
    let names = data.task().columns();
    assert_eq!(
        names[..5],
        [
            "num_person",
            "num_vehicles",
            "avg_person_conf",
            "total_boxes",
            "box 1 x1"
        ]
    );
    let tallest = |i: usize| {
        let boxes = data.columns(i)[4..].chunks_exact(8);
        let heights = boxes.filter(|one| one[5] == 1.0).map(|one| one[3] - one[1]);
        heights.fold(0.0f32, f32::max)
    };
    // The upper lamp is lit or not; the brightest red minus green at the upper right says so.
    let red = |i: usize| {
        let pixels = data.image(i).data;
        let at = |x: usize, y: usize| (y * 64 + x) * 3;
        let excess = |p: usize| i32::from(pixels[p]) - i32::from(pixels[p + 1]);
        let places = (2..20).flat_map(|y| (44..62).map(move |x| (x, y)));
        places.map(|(x, y)| excess(at(x, y))).max().unwrap() > 70
    };
    let (mut both, mut boxes) = (0, 0);
    for i in 0..data.len() {
        let interesting = has(&data, i)[1];
        let near = tallest(i) > 0.3;
        both += usize::from((near && red(i)) == interesting);
        boxes += usize::from(near == interesting);
    }
    let share = |n: usize| n as f64 / data.len() as f64;
    assert!(share(both) > 0.95, "{}", share(both));
    assert!((0.7..0.9).contains(&share(boxes)), "{}", share(boxes));
}

#[test]
fn the_same_seed_draws_the_same_set_and_a_killed_run_leaves_none() {
    let files = |dir: &Path| -> BTreeMap<PathBuf, Vec<u8>> {
        let mut found = BTreeMap::new();
        let mut open = vec![dir.to_owned()];
        while let Some(folder) = open.pop() {
            for entry in fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                match path.is_dir() {
                    true => open.push(path),
                    false => {
                        let name = path.strip_prefix(dir).unwrap().to_owned();
                        found.insert(name, fs::read(&path).unwrap());
                    }
                }
            }
        }
        found
    };
    let small = SynthOptions {
        images: 20,
        ..OPTIONS
    };
    let dir = tempfile::tempdir().unwrap();
    for kind in DrawnSet::ALL {
        let [one, other] = ["one", "other"].map(|n| dir.path().join(n).join(kind.name()));
        fs::create_dir_all(one.join(format!(".{}.partial/left", kind.name()))).unwrap();
        for out in [&one, &other] {
            draw_set(out, kind, &small, &Silent).unwrap();
        }
        assert!(files(&one) == files(&other), "{kind:?}");
        let full = draw_set(&one, kind, &small, &Silent).unwrap_err();
        assert!(full.to_string().contains("is not empty"), "{full}");
    }
    for (images, size) in [(5, 64), (20, 63), (20, 1025)] {
        let bad = SynthOptions {
            images,
            size,
            seed: 0,
        };
        let text = draw_set(&dir.path().join("bad"), DrawnSet::Boxes, &bad, &Silent);
        assert!(text.unwrap_err().to_string().contains("  help: "));
    }
}
