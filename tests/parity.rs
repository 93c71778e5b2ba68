//! `fovea prepare` and `fovea predict` with PyTorch's weights against PyTorch's probabilities on the
//! same pixels, stored by `tests/golden/predict.py`.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod common;
#[allow(dead_code, reason = "its pictures are for the test of a training step")]
#[path = "golden/formula.rs"]
mod formula;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use common::{FINISHED, fovea, scratch};
use fovea_dataset::Dataset;
use fovea_task::Task;
use image::{GrayImage, Luma, Rgb, RgbImage};
use safetensors::tensor::{Dtype, TensorView};
use serde::Deserialize;

#[derive(Deserialize)]
struct Golden {
    photographs: Vec<Photograph>,
    size: u32,
    patch: u32,
    global_size: u32,
    /// Names and shapes of PyTorch's state dict.
    state_dict: Vec<(String, Vec<usize>)>,
    rows: Vec<Row>,
}

#[derive(Deserialize)]
struct Photograph {
    name: String,
    width: u32,
    height: u32,
    /// Checksum of its prepared pixels, by `checksum`.
    checksum: u64,
}

#[derive(Deserialize)]
struct Row {
    image_id: String,
    row: Option<u32>,
    col: Option<u32>,
    probs: [f64; 4],
}

/// Image, row and column; row and column are `None` for the image itself.
type Key = (String, Option<u32>, Option<u32>);

impl Photograph {
    /// A disc with waves and texture of its own, on black; the last photograph is empty.
    fn draw(&self, index: i64) -> RgbImage {
        let (width, height) = (i64::from(self.width), i64::from(self.height));
        let diameter = width.max(height) - 4;
        RgbImage::from_fn(self.width, self.height, |x, y| {
            let (x, y) = (i64::from(x), i64::from(y));
            let (dx, dy) = (2 * x + 1 - width, 2 * y + 1 - height);
            let inside = index < 3 && dx * dx + dy * dy <= diameter * diameter;
            Rgb([0, 1, 2].map(|c| {
                let phase = (x * (2 + index) + y * (1 + c) + 40 * c) % 256;
                let smooth = 60 + (phase - 128).abs() / (1 + c);
                let texture =
                    (x * x * 7 + y * y * 13 + x * y * (5 + index) + 29 * c) % (17 + 8 * index);
                (if inside {
                    smooth + texture
                } else {
                    (x + y) % 3
                }) as u8
            }))
        })
    }

    /// One mark of 20 x 20 pixels.
    fn mask(&self) -> GrayImage {
        let (left, top) = (self.width / 3, self.height / 2);
        GrayImage::from_fn(self.width, self.height, |x, y| {
            let marked = (left..left + 20).contains(&x) && (top..top + 20).contains(&y);
            Luma([if marked { 255 } else { 0 }])
        })
    }
}

/// Writes the photographs in `folder` layout; each class has one mark, and the classes alternate between photographs.
fn write_raw(raw: &Path, photographs: &[Photograph]) {
    fs::create_dir_all(raw.join("images")).unwrap();
    for (index, photograph) in photographs.iter().enumerate() {
        let path = raw.join(format!("images/{}.png", photograph.name));
        photograph.draw(index as i64).save(path).unwrap();
    }
    let lesions = Task::lesions();
    for (index, class) in lesions.cell_classes().iter().enumerate() {
        let photograph = &photographs[index % 3];
        let folder = raw.join("masks").join(&class.name);
        fs::create_dir_all(&folder).unwrap();
        let path = folder.join(format!("{}.png", photograph.name));
        photograph.mask().save(path).unwrap();
    }
}

/// Writes a file like that of `safetensors.torch.save_file(model.state_dict(), ..)`.
fn write_weights(path: &Path, state_dict: &[(String, Vec<usize>)]) {
    let bytes: Vec<Vec<u8>> = state_dict
        .iter()
        .map(|(name, shape)| {
            if name.ends_with("num_batches_tracked") {
                return 0i64.to_le_bytes().to_vec();
            }
            let values = formula::weight(name, shape);
            values.iter().flat_map(|v| v.to_le_bytes()).collect()
        })
        .collect();
    let views = state_dict.iter().zip(&bytes).map(|((name, shape), bytes)| {
        let integer = name.ends_with("num_batches_tracked");
        let dtype = if integer { Dtype::I64 } else { Dtype::F32 };
        let view = TensorView::new(dtype, shape.clone(), bytes).unwrap();
        (name, view)
    });
    safetensors::serialize_to_file(views, None, path).unwrap();
}

/// A checksum of prepared pixels: the sum of bytes times their place (from 1), modulo 65521.
fn checksum(pixels: &[u8]) -> u64 {
    let place = |i: usize| i as u64 % 65521 + 1;
    let terms = pixels.iter().enumerate();
    terms.map(|(i, &byte)| u64::from(byte) * place(i)).sum()
}

fn read_predictions(path: &Path) -> BTreeMap<Key, [f64; 4]> {
    let text = fs::read_to_string(path).unwrap();
    let mut lines = text.lines();
    assert_eq!(
        lines.next(),
        Some("image_id,row,col,p_MA,p_HE,p_EX,p_SE,usable,note")
    );
    let row = |line: &str| {
        let fields: Vec<&str> = line.split(',').collect();
        assert_eq!((fields.len(), &fields[7..]), (9, &["1", ""][..]), "{line}");
        let place = |text: &str| (!text.is_empty()).then(|| text.parse().unwrap());
        let key = (fields[0].to_owned(), place(fields[1]), place(fields[2]));
        (key, [3, 4, 5, 6].map(|i| fields[i].parse().unwrap()))
    };
    lines.map(row).collect()
}

/// Largest difference over rows and classes; asserts that the rows are the same.
fn largest_difference(got: &BTreeMap<Key, [f64; 4]>, want: &[Row]) -> f64 {
    assert_eq!(got.len(), want.len());
    let rows = want.iter().map(|w| {
        let key = (w.image_id.clone(), w.row, w.col);
        let g = got
            .get(&key)
            .unwrap_or_else(|| panic!("no row for {key:?}"));
        let classes = g.iter().zip(&w.probs).map(|(a, b)| (a - b).abs());
        classes.fold(0.0, f64::max)
    });
    rows.fold(0.0, f64::max)
}

#[test]
fn pytorch_weights_give_pytorch_probabilities() {
    let golden: Golden = serde_json::from_str(include_str!("golden/predict.json")).unwrap();
    let scratch = scratch();
    let path = |name: &str| scratch.path().join(name);
    let text = |name: &str| path(name).to_str().unwrap().to_owned();
    let (size, patch) = (golden.size.to_string(), golden.patch.to_string());
    write_raw(&path("raw"), &golden.photographs);
    let (raw, data) = (text("raw"), text("data"));
    let sizes = ["--layout", "folder", "--size", &size, "--patch", &patch];
    fovea(&[&["prepare", raw.as_str(), &data], &sizes[..]].concat()).with_code(FINISHED);

    let prepared = Dataset::open(&path("data")).unwrap();
    for photograph in &golden.photographs {
        let images = &prepared.manifest().images;
        let index = images.iter().position(|i| i.id == photograph.name).unwrap();
        assert_eq!(
            checksum(prepared.image(index).data),
            photograph.checksum,
            "{}: `prepare` makes other pixels than when PyTorch scored them; where that is meant, run \
             tests/golden/predict.py again",
            photograph.name
        );
    }

    write_weights(&path("weights.safetensors"), &golden.state_dict);
    let global_size = format!("data.global_size={}", golden.global_size);
    // f32: the required bound is 1e-4; both sides round 20 layers of sums, which gives about 1e-6. bf16: 8 bits per
    // activation; 4e-3 was measured.
    for (precision, limit) in [("f32", 1e-5), ("bf16", 2e-2)] {
        let (weights, out) = (text("weights.safetensors"), text("predicted.csv"));
        let precision = format!("train.precision={precision}");
        let files = ["predict", weights.as_str(), &data, "--out", &out];
        let set = ["--set", &precision, "--set", &global_size];
        fovea(&[&files[..], &set[..]].concat()).with_code(FINISHED);
        let difference =
            largest_difference(&read_predictions(&path("predicted.csv")), &golden.rows);
        println!("{precision}: {difference:.2e}");
        assert!(
            difference <= limit,
            "{precision}: {difference:.2e} from PyTorch's, limit {limit:.0e}"
        );
    }
}
