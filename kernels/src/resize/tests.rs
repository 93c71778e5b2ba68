use super::*;
use crate::golden::{assert_close, picture, values, with_threads};
use proptest::prelude::*;

fn resize(data: &[u8], height: usize, width: usize, out_h: usize, out_w: usize) -> Vec<f32> {
    let image = ImageU8 {
        data,
        height,
        width,
    };
    resize_antialias(&image, out_h, out_w).unwrap()
}

/// Shrinking, growing, one of each, the same size, a single row.
#[test]
fn results_are_those_of_torch() {
    for (h, w, out_h, out_w) in [
        (40, 48, 17, 17),
        (13, 40, 21, 9),
        (7, 5, 7, 5),
        (64, 3, 1, 8),
    ] {
        let name = format!("resize.{h}x{w}.{out_h}x{out_w}");
        let out = resize(&picture(h, w), h, w, out_h, out_w);
        // Values go up to 255. PyTorch works in f32 and does columns first.
        assert_close(&name, &out, &values(&name), 5e-4);
    }
}

proptest! {
    #[test]
    fn a_flat_image_stays_flat_and_nothing_leaves_the_range(
        h in 1usize..50, w in 1usize..50, out_h in 1usize..50, out_w in 1usize..50, value: u8,
        data in prop::collection::vec(any::<u8>(), 50 * 50 * 3),
    ) {
        let flat = resize(&vec![value; h * w * 3], h, w, out_h, out_w);
        prop_assert!(flat.iter().all(|&v| (v - f32::from(value)).abs() < 1e-3));
        let out = resize(&data[..h * w * 3], h, w, out_h, out_w);
        prop_assert!(out.iter().all(|&v| (-1e-3..=255.001).contains(&v)));
        prop_assert_eq!(out.len(), out_h * out_w * 3);
    }

    #[test]
    fn bits_depend_neither_on_threads_nor_on_the_processor(
        h in 1usize..40, w in 1usize..40, out_h in 1usize..40, out_w in 1usize..40,
    ) {
        let data = picture(h, w);
        let one = with_threads(1, || resize(&data, h, w, out_h, out_w));
        let two = with_threads(2, || resize(&data, h, w, out_h, out_w));
        prop_assert_eq!(one, two);
        let image = ImageU8 { data: &data, height: h, width: w };
        for taps in taps(h, out_h) {
            let mut want = vec![0.0; 3 * w];
            blend_rows(SimdLevel::detect(), &image, &taps, &mut want);
            for level in SimdLevel::available() {
                let mut row = vec![0.0; 3 * w];
                blend_rows(level, &image, &taps, &mut row);
                prop_assert_eq!(&row, &want);
            }
        }
    }

    #[test]
    fn taps_cover_the_axis(input in 1usize..300, output in 1usize..300) {
        for taps in taps(input, output) {
            prop_assert!(!taps.weights.is_empty() && taps.first + taps.weights.len() <= input);
            prop_assert!((taps.weights.iter().sum::<f32>() - 1.0).abs() < 1e-5);
        }
    }
}

#[test]
fn bad_arguments_are_errors() {
    let data = picture(4, 4);
    let image = ImageU8 {
        data: &data,
        height: 4,
        width: 4,
    };
    let what = |image: &ImageU8<'_>, h, w| resize_antialias(image, h, w).unwrap_err().to_string();
    assert!(what(&image, 0, 4).starts_with("out_h is 0"));
    assert!(what(&image, 4, 0).starts_with("out_w is 0"));
    let torn = ImageU8 { height: 5, ..image };
    assert!(what(&torn, 4, 4).starts_with("ImageU8::data has 48 elements, its shape needs 60"));
    let empty = ImageU8 {
        data: &[],
        height: 0,
        width: 4,
    };
    assert!(what(&empty, 4, 4).starts_with("ImageU8::height is 0"));
    assert!(what(&image, usize::MAX, 4).contains("overflows"));
}
