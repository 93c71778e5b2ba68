use super::*;
use crate::augment::tests::{GOLDEN, GOLDEN_EPOCH, GOLDEN_SEED};
use crate::golden::{assert_close, picture, values, with_threads};
use crate::{ImageU8, resize_antialias};
use half::bf16;

fn resized(size: usize) -> Vec<f32> {
    let data = picture(40, 48);
    let image = ImageU8 {
        data: &data,
        height: 40,
        width: 48,
    };
    resize_antialias(&image, size, size).unwrap()
}

#[test]
fn views_are_those_of_torchvision() {
    let source = resized(17);
    for id in [1, 6] {
        let mut out = vec![0.0; 17 * 17 * 3];
        let batch = BatchMut::F32(&mut out);
        global_view(
            &source,
            17,
            GOLDEN_SEED,
            GOLDEN_EPOCH,
            id,
            Some(&GOLDEN),
            batch,
        )
        .unwrap();
        let name = format!("global.{id}");
        assert_close(&name, &out, &values(&name), 2e-5);
    }
}

#[test]
fn bits_depend_neither_on_threads_nor_on_the_processor() {
    let source = resized(70);
    for id in 0..20 {
        let run = |threads: usize| {
            with_threads(threads, || {
                let mut out = vec![0.0; 70 * 70 * 3];
                let batch = BatchMut::F32(&mut out);
                global_view(&source, 70, 1, 2, id, Some(&GOLDEN), batch).unwrap();
                out
            })
        };
        let one = run(1);
        assert_eq!(one, run(2));
        let window = Window {
            pixels: source.as_chunks::<3>().0,
            stride: 70,
            size: 70,
        };
        for level in SimdLevel::available() {
            let mut out = vec![0.0f32; one.len()];
            shade(level, window, &draw(1, 2, id, &GOLDEN), &mut out);
            assert_eq!(one, out, "{level:?}");
            let mut rounded = vec![bf16::ZERO; one.len()];
            shade(level, window, &draw(1, 2, id, &GOLDEN), &mut rounded);
            assert!(
                one.iter()
                    .zip(&rounded)
                    .all(|(&a, &b)| bf16::from_f32(a) == b)
            );
        }
    }
}

#[test]
fn without_augmentation_it_only_normalises() {
    let source = [0.0, 127.5, 255.0];
    let mut out = [0.0; 3];
    global_view(&source, 1, 0, 0, 0, None, BatchMut::F32(&mut out)).unwrap();
    let want = [-0.485 / 0.229, (0.5 - 0.456) / 0.224, (1.0 - 0.406) / 0.225];
    assert_close("normalised", &out, &want, 1e-6);
}

#[test]
fn bad_arguments_are_errors() {
    let run = |resized: usize, size: usize, out: usize, aug: Option<&Augment>| {
        let (resized, mut out) = (vec![0.0; resized], vec![0.0; out]);
        global_view(&resized, size, 0, 0, 0, aug, BatchMut::F32(&mut out)).unwrap_err()
    };
    assert!(matches!(
        run(11, 2, 12, None),
        Error::Length {
            what: "resized",
            ..
        }
    ));
    assert!(matches!(
        run(12, 2, 13, None),
        Error::Length { what: "out", .. }
    ));
    assert!(matches!(
        run(0, 0, 0, None),
        Error::Argument { what: "size", .. }
    ));
    assert!(matches!(
        run(0, usize::MAX, 0, None),
        Error::Overflow { .. }
    ));
    let aug = Augment {
        saturation: f32::NAN,
        ..Augment::default()
    };
    assert!(matches!(run(12, 2, 12, Some(&aug)), Error::Argument { .. }));
}
