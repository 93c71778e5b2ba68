//! Tests of whole pictures and of the dataset on disk.

use fovea_dataset::Silent;

use super::*;
use canvas::POSITIVE;
use std::collections::BTreeMap;

const SMALL: SynthOptions = SynthOptions {
    images: 3,
    size: 256,
    seed: 11,
};

fn files(root: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut open = vec![root.to_owned()];
    while let Some(dir) = open.pop() {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                open.push(path);
            } else {
                found.insert(
                    path.strip_prefix(root).unwrap().to_owned(),
                    fs::read(&path).unwrap(),
                );
            }
        }
    }
    found
}

fn made(options: &SynthOptions) -> BTreeMap<PathBuf, Vec<u8>> {
    let dir = tempfile::tempdir().unwrap();
    synth(&dir.path().join("out"), options, &Silent).unwrap();
    files(&dir.path().join("out"))
}

#[test]
fn same_seed_same_bytes_whatever_the_threads() {
    let here = made(&SMALL);
    let pool = rayon::ThreadPoolBuilder::new()
        .num_threads(1)
        .build()
        .unwrap();
    let alone = pool.install(|| made(&SMALL));
    assert!(here == alone, "one thread and many gave different bytes");
    let other = made(&SynthOptions { seed: 12, ..SMALL });
    let photo = Path::new("Seg-set/Original_Images/0001_1.png");
    assert!(here[photo] != other[photo]);
}

#[test]
fn layout_sizes_and_grades_are_fgadrs() {
    let all = made(&SMALL);
    assert_eq!(all.len(), 3 * 5 + 1);
    for folder in [PHOTOS].into_iter().chain(MASK_FOLDERS) {
        for index in 0..3 {
            let path = Path::new(FINISHED).join(folder).join(file_name(index));
            let decoded = image::load_from_memory(&all[&path]).unwrap();
            assert_eq!((decoded.width(), decoded.height()), (256, 256));
            let photo = folder == PHOTOS;
            assert_eq!(
                decoded.color(),
                if photo {
                    image::ColorType::Rgb8
                } else {
                    image::ColorType::L8
                }
            );
        }
    }
    let csv = String::from_utf8(all[&Path::new(FINISHED).join("DR_Seg_Grading_Label.csv")].clone())
        .unwrap();
    let cases = plan::plan(3, SMALL.seed);
    for (index, line) in csv.lines().enumerate() {
        assert_eq!(line, format!("{},{}", file_name(index), cases[index].grade));
    }
}

#[test]
fn the_surround_is_black_and_the_retina_is_not() {
    for index in 0..6 {
        let case = Case {
            grade: 0,
            cells: [0; 4],
        };
        let picture = paint(256, 2, index, case);
        for corner in [(3, 3), (252, 3), (3, 252), (252, 252)] {
            assert!(
                picture
                    .photo
                    .get_pixel(corner.0, corner.1)
                    .0
                    .iter()
                    .all(|&v| v < 10)
            );
        }
        let middle = picture.photo.get_pixel(128, 128).0;
        assert!(middle[0] > 40 && middle[0] > middle[2], "{middle:?}");
        assert!(picture.masks.iter().all(|m| m.data.iter().all(|&v| v == 0)));
    }
}

#[test]
fn lesions_meet_the_rates_and_show_in_the_picture() {
    let (images, size, seed) = (60, 256, 4);
    let cases = plan::plan(images, seed);
    let pictures: Vec<PaintedPicture> = cases
        .par_iter()
        .enumerate()
        .map(|(i, &case)| paint(size, seed, i, case))
        .collect();
    for class in 0..4 {
        let masks = || pictures.iter().map(|p| &p.masks[class]);
        let positive = masks().filter(|m| m.cells_touched() > 0).count() as f64 / images as f64;
        let wanted = plan::IMAGE_RATES[class];
        assert!(
            (positive - wanted).abs() < 0.03,
            "class {class}: image rate {positive}, wanted {wanted}"
        );
        let cells = masks().map(LesionMask::cells_touched).sum::<usize>() as f64 / images as f64;
        let wanted = plan::CELLS_PER_IMAGE[class];
        assert!(
            (cells / wanted - 1.0).abs() < 0.15,
            "class {class}: {cells} cells an image, wanted {wanted}"
        );
        let grey = masks()
            .flat_map(|m| &m.data)
            .filter(|&&v| v > 0 && v < 255)
            .count();
        assert!(grey > 1000, "class {class}: {grey} anti-aliased pixels");
        assert!(class == 0 || masks().flat_map(|m| &m.data).any(|&v| v == 255));
    }
    // Red lesions are darker than the retina around them, exudates brighter.
    for (class, brighter) in [(1, false), (2, true), (3, true)] {
        let contrast: Vec<f64> = pictures.iter().filter_map(|p| contrast(p, class)).collect();
        let right = contrast.iter().filter(|&&c| (c > 0.0) == brighter).count();
        assert!(
            right * 10 > contrast.len() * 9,
            "class {class}: {right} of {} have the right sign",
            contrast.len()
        );
    }
}

/// Mean green inside the lesions of a class minus the mean of a frame around them.
fn contrast(picture: &PaintedPicture, class: usize) -> Option<f64> {
    let mask = &picture.masks[class];
    let size = mask.size;
    let (mut inside, mut around) = ((0.0, 0u32), (0.0, 0u32));
    for y in 4..size - 4 {
        for x in 4..size - 4 {
            let green = f64::from(picture.photo.get_pixel(x as u32, y as u32).0[1]);
            let marked =
                |x: usize, y: usize| picture.masks.iter().any(|m| m.data[y * size + x] > 0);
            if mask.data[y * size + x] >= POSITIVE {
                inside = (inside.0 + green, inside.1 + 1);
            } else if !marked(x, y)
                && [(x - 4, y), (x + 4, y), (x, y - 4), (x, y + 4)]
                    .iter()
                    .any(|&(x, y)| mask.data[y * size + x] >= POSITIVE)
            {
                around = (around.0 + green, around.1 + 1);
            }
        }
    }
    (inside.1 > 0 && around.1 > 0)
        .then(|| inside.0 / f64::from(inside.1) - around.0 / f64::from(around.1))
}

#[test]
fn lesions_scale_with_the_image() {
    let case = Case {
        grade: 3,
        cells: [8, 14, 10, 5],
    };
    let [small, large] = [256, 640].map(|size| paint(size, 9, 0, case));
    for class in 0..4 {
        let share = |p: &PaintedPicture| {
            let positive = p.masks[class]
                .data
                .iter()
                .filter(|&&v| v >= POSITIVE)
                .count();
            positive as f64 / p.masks[class].data.len() as f64
        };
        let (a, b) = (share(&small), share(&large));
        assert!(
            a / b < 4.0 && b / a < 4.0,
            "class {class}: {a} of the small image, {b} of the large one"
        );
    }
}

#[test]
fn a_full_directory_and_bad_options_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("thesis.tex"), "x").unwrap();
    let error = synth(dir.path(), &SMALL, &Silent).unwrap_err().to_string();
    assert!(error.contains("not empty (it holds thesis.tex)"), "{error}");
    assert!(
        error.contains("\n  help: choose a new directory"),
        "{error}"
    );
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    for bad in [
        SynthOptions { size: 128, ..SMALL },
        SynthOptions {
            size: 5000,
            ..SMALL
        },
        SynthOptions { images: 0, ..SMALL },
    ] {
        assert!(
            synth(&dir.path().join("new"), &bad, &Silent)
                .unwrap_err()
                .to_string()
                .contains("\n  help: ")
        );
    }
    assert!(!dir.path().join("new").exists());
}

#[test]
fn what_a_killed_run_left_is_replaced() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join(UNFINISHED)).unwrap();
    fs::write(dir.path().join(UNFINISHED).join("junk"), "x").unwrap();
    synth(dir.path(), &SynthOptions { images: 1, ..SMALL }, &Silent).unwrap();
    let all = files(dir.path());
    assert_eq!(all.len(), 6, "{:?}", all.keys());
    assert!(all.keys().all(|path| path.starts_with(FINISHED)));
}
