//! Antialiased resize.

use fovea_kernels::cuda::{ImageRecord, Resize, resize_table};
use fovea_kernels::{ImageU8, resize_antialias};
use proptest::prelude::*;

use crate::guarded::{Guarded, assert_bits};
use crate::runner::{Runner, for_all};

/// Pixels without a pattern that a resize could hide.
fn pixels(bytes: usize, salt: usize) -> Vec<u8> {
    (0..bytes as u32)
        .map(|k| {
            let word = fovea_kernels::philox::philox4x32([k, salt as u32, 0, 0], [1, 2]);
            word[0] as u8
        })
        .collect()
}

/// Resizes `selection` of three images and compares each with the twin.
fn compare<R: Runner>(
    r: &R,
    input: (usize, usize),
    output: (usize, usize),
    selection: &[u32],
    shift: usize,
) {
    let data: Vec<Vec<u8>> = (0..3).map(|n| pixels(input.0 * input.1 * 3, n)).collect();
    let buffers: Vec<_> = data.iter().map(|d| Guarded::input(r, d, shift)).collect();
    let records: Vec<ImageRecord> = buffers
        .iter()
        .map(|buffer| ImageRecord {
            data: buffer.address(),
            height: input.0 as u32,
            width: input.1 as u32,
        })
        .collect();
    let images = Guarded::input(r, &records, 0);
    let selected = Guarded::input(r, selection, 0);
    let rows = Guarded::input(r, &resize_table(input.0, output.0).unwrap(), 0);
    let columns = Guarded::input(r, &resize_table(input.1, output.1).unwrap(), 0);
    let each = output.0 * output.1 * 3;
    let out = Guarded::<R, f32>::output(r, selection.len() * each, shift);
    r.run(&Resize {
        images: images.address(),
        image_count: 3,
        selection: selected.address(),
        n: selection.len(),
        input,
        output,
        rows: rows.address(),
        columns: columns.address(),
        out: out.address(),
    });
    for (got, &index) in out.read().chunks(each).zip(selection) {
        let image = ImageU8 {
            data: &data[index as usize],
            height: input.0,
            width: input.1,
        };
        let want = resize_antialias(&image, output.0, output.1).unwrap();
        assert_bits("resized", got, &want);
    }
}

pub fn any_resize_has_the_bits_of_the_twin<R: Runner>(r: &R) {
    let side = || 1usize..60;
    let output = || prop_oneof![3 => 1usize..40, 1 => 60usize..140];
    let strategy = (
        (side(), side()),
        (output(), output()),
        prop::collection::vec(0u32..3, 0..3),
        0usize..4,
    );
    for_all(60, &strategy, |(input, output, selection, shift)| {
        compare(r, input, output, &selection, shift);
    });
}

/// More source columns than one window of shared memory holds, and one list of taps longer than it.
pub fn wide_images_and_wide_results<R: Runner>(r: &R) {
    compare(r, (3, 1300), (2, 65), &[2], 0);
    compare(r, (2, 1500), (1, 3), &[0, 1], 1);
    compare(r, (70, 5), (3, 400), &[1], 0);
}

pub fn images_of_another_size_give_nan<R: Runner>(r: &R) {
    let data = Guarded::input(r, &pixels(6 * 6 * 3, 0), 0);
    let record = |height, width| ImageRecord {
        data: data.address(),
        height,
        width,
    };
    let images = Guarded::input(r, &[record(6, 6), record(5, 6), record(6, 5)], 0);
    let selection = Guarded::input(r, &[0u32, 1, 2, 3, u32::MAX], 0);
    let table = Guarded::input(r, &resize_table(6, 4).unwrap(), 0);
    let out = Guarded::<R, f32>::output(r, 5 * 48, 0);
    r.run(&Resize {
        images: images.address(),
        image_count: 3,
        selection: selection.address(),
        n: 5,
        input: (6, 6),
        output: (4, 4),
        rows: table.address(),
        columns: table.address(),
        out: out.address(),
    });
    for (k, image) in out.read().chunks(48).enumerate() {
        let nan = image.iter().filter(|x| x.to_bits() == 0x7FC0_0000).count();
        assert_eq!(nan, if k == 0 { 0 } else { 48 }, "image {k}");
    }
}
