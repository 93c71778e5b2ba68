#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use fovea_coordinator::order::Grain;
use fovea_dataset::{PrepareOptions, Silent, prepare};
use fovea_synth::{SynthOptions, synth};

use super::*;
use crate::precision::Precision;
use crate::samples::{SampleSource, whole_image};

/// Synthetic photographs, prepared at 256 pixels with patches of 64.
struct Setup {
    data: Arc<Dataset>,
    config: Config,
    _dir: tempfile::TempDir,
}

impl Setup {
    fn new(mask: bool) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (raw, out) = (dir.path().join("raw"), dir.path().join("data"));
        let (images, size, patch, seed) = (6, 256, 64, 5);
        synth(&raw, &SynthOptions { images, size, seed }, &Silent).unwrap();
        let options = PrepareOptions {
            size,
            patch,
            mask,
            ..PrepareOptions::default()
        };
        prepare(&raw, &out, &options, &Silent).unwrap();
        let mut config = Config::preset("hybrid").unwrap();
        config.data.global_size = 64;
        config.augment.enabled = false;
        Self {
            data: Arc::new(Dataset::open_unverified(&out).unwrap()),
            config,
            _dir: dir,
        }
    }

    fn windows(&self, cells: CellPlaces) -> Windows {
        let mut config = self.config.clone();
        config.data.cells = cells;
        config.data.window_labels = true;
        Windows::new(&self.data, &config).unwrap()
    }

    fn units(&self) -> Vec<(Unit, Vec<Label>)> {
        let of = |image| {
            let labels = self.data.patch_labels(image, 1);
            (whole_image(&self.data, Grain::Cell, image), labels)
        };
        (0..self.data.len()).map(of).collect()
    }

    fn grid_corner(&self, cell: u16) -> Corner {
        let (grid, patch) = (self.data.grid() as u32, self.data.patch() as u32);
        (
            u32::from(cell) / grid * patch,
            u32::from(cell) % grid * patch,
        )
    }
}

/// Class bits of the pixels of a window.
fn under(data: &Dataset, image: usize, (top, left): Corner) -> Label {
    let (size, patch) = (data.size(), data.patch());
    let rows = data.mask(image).unwrap().chunks_exact(size);
    let window = rows.skip(top as usize).take(patch);
    let pixels = window.flat_map(|row| &row[left as usize..left as usize + patch]);
    Label(pixels.fold(0, |all, bits| all | u64::from(*bits)))
}

#[test]
fn windows_of_lesions_hold_one_and_the_others_none() {
    let setup = Setup::new(true);
    let windows = setup.windows(CellPlaces::Centred);
    let last = (setup.data.size() - setup.data.patch()) as u32;
    let (mut ill, mut healthy, mut moved) = (0, 0, 0);
    for epoch in 0..4 {
        for (unit, cells) in setup.units() {
            let (corners, labels) = windows.of(&unit, &cells, epoch).unwrap();
            assert_eq!(
                (corners.len(), labels.len()),
                (unit.cells.len(), unit.cells.len())
            );
            for ((cell, corner), label) in unit.cells.iter().zip(&corners).zip(&labels) {
                assert!(corner.0 <= last && corner.1 <= last);
                assert_eq!(*label, under(&setup.data, unit.image as usize, *corner));
                let own = cells[usize::from(*cell)];
                // A window around a lesion holds it; one of a healthy cell is healthy.
                assert_eq!(
                    label.0 != 0,
                    own.0 != 0,
                    "cell {cell} of image {}",
                    unit.image
                );
                assert!(own.0 != 0 || !windows.is_black(unit.image as usize, *corner));
                moved += usize::from(*corner != setup.grid_corner(*cell));
                match own.0 {
                    0 => healthy += 1,
                    _ => ill += 1,
                }
            }
        }
    }
    assert!(
        ill > 40 && healthy > 40,
        "{ill} with lesions, {healthy} without"
    );
    assert!(
        moved * 10 > (ill + healthy) * 9,
        "{moved} of {}",
        ill + healthy
    );
}

#[test]
fn windows_are_a_function_of_seed_epoch_and_sample() {
    let setup = Setup::new(true);
    let (unit, cells) = setup.units().swap_remove(0);
    let windows = setup.windows(CellPlaces::Centred);
    let first = windows.of(&unit, &cells, 3).unwrap();
    assert_eq!(
        first,
        setup
            .windows(CellPlaces::Centred)
            .of(&unit, &cells, 3)
            .unwrap()
    );
    assert_ne!(first.0, windows.of(&unit, &cells, 4).unwrap().0);
    // A sample's window does not depend on the others of its unit.
    let alone = Unit {
        image: unit.image,
        cells: vec![unit.cells[2]],
    };
    assert_eq!(windows.of(&alone, &cells, 3).unwrap().0[0], first.0[2]);
    let mut other = Setup::new(true);
    other.config.train.seed = 9;
    assert_ne!(
        first.0,
        other
            .windows(CellPlaces::Centred)
            .of(&unit, &cells, 3)
            .unwrap()
            .0
    );
}

#[test]
fn mixed_windows_are_half_on_the_grid() {
    let setup = Setup::new(true);
    let windows = setup.windows(CellPlaces::Mixed);
    let (mut on_grid, mut all) = (0usize, 0usize);
    for epoch in 0..8 {
        for (unit, cells) in setup.units() {
            let (corners, _) = windows.of(&unit, &cells, epoch).unwrap();
            let stay = unit.cells.iter().zip(&corners);
            on_grid += stay
                .filter(|(cell, at)| setup.grid_corner(**cell) == **at)
                .count();
            all += corners.len();
        }
    }
    // A few come to lie there by chance.
    assert!(
        all > 300 && on_grid.abs_diff(all / 2) < all / 8,
        "{on_grid} of {all}"
    );
}

/// On the grid and without a shift, the label under a window is the cell's.
#[test]
fn windows_on_cells_have_the_labels_of_cells() {
    let setup = Setup::new(true);
    let windows = setup.windows(CellPlaces::Grid);
    for (unit, cells) in setup.units() {
        let (corners, labels) = windows.of(&unit, &cells, 1).unwrap();
        for ((cell, corner), label) in unit.cells.iter().zip(corners).zip(labels) {
            assert_eq!(corner, setup.grid_corner(*cell));
            assert_eq!(label, cells[usize::from(*cell)]);
        }
    }
}

/// The label moves with the shift of the augmentation, on the CPU's and on a GPU's path alike, and never in evaluation.
#[test]
fn labels_follow_the_shift() {
    let mut setup = Setup::new(true);
    setup.config.augment.enabled = true;
    setup.config.augment.offset = 40;
    setup.config.data.window_labels = true;
    let units: Vec<Unit> = setup.units().into_iter().map(|(unit, _)| unit).collect();
    let source = |on_gpu| {
        let data = Arc::clone(&setup.data);
        SampleSource::new(data, &setup.config, Grain::Cell, Precision::F32, on_gpu)
    };
    let load = |epoch, on_gpu| source(on_gpu).load(&units, epoch).unwrap();
    let patches = load(None, false).labels[1].clone();
    let (shifted, crops) = (load(Some(0), false), load(Some(0), true));
    assert_eq!(shifted.labels, crops.labels);
    assert_ne!(
        shifted.labels[1], patches,
        "40 pixels off, some lesion is no longer seen"
    );
    assert_eq!(
        shifted.labels[0],
        load(None, false).labels[0],
        "an image keeps its label"
    );
    let augment = augment(&setup.config);
    for (row, id) in crops.patch_ids.iter().enumerate() {
        let cells = (setup.data.grid() * setup.data.grid()) as u64;
        let (top, left) = setup.grid_corner((id % cells) as u16);
        let drawn = draw(setup.config.train.seed, 0, *id, &augment);
        let last = (setup.data.size() - setup.data.patch()) as i32;
        let at = |start: u32, shift: i32| (start as i32 + shift).clamp(0, last) as u32;
        let corner = (at(top, drawn.dy), at(left, drawn.dx));
        let want = under(&setup.data, (id / cells) as usize, corner);
        assert_eq!(crops.labels[1][row], want, "sample {id}");
    }
}

#[test]
fn without_masks_there_are_no_windows() {
    let mut setup = Setup::new(false);
    setup.config.data.window_labels = true;
    setup.config.data.cells = CellPlaces::Centred;
    assert!(Windows::new(&setup.data, &setup.config).is_none());
    let with_masks = Setup::new(true);
    assert!(
        Windows::new(&with_masks.data, &with_masks.config).is_none(),
        "nothing asks for any"
    );
}

#[test]
fn a_lesion_across_a_border_has_one_middle_and_a_large_one_several() {
    let (size, patch) = (32, 8);
    let mut mask = vec![0u8; size * size];
    // Class 0: rows 3..5, columns 6..9, across cells 0 and 1. Class 1: one pixel in cell 5. Class 0 again: row 20, from
    // column 2 to 27, across four cells. Two pixels that touch at a corner are one lesion.
    for (y, x) in [3, 4].into_iter().flat_map(|y| (6..9).map(move |x| (y, x))) {
        mask[y * size + x] |= 1;
    }
    mask[10 * size + 12] |= 2;
    (2..28).for_each(|x| mask[20 * size + x] |= 1);
    mask[30 * size + 30] |= 2;
    mask[31 * size + 31] |= 2;
    let cells = middles(&mask, size, patch, 2);
    assert_eq!((&cells[0], &cells[1]), (&vec![(4, 7)], &vec![(4, 7)]));
    assert_eq!(cells[5], [(10, 12)]);
    let row: Vec<_> = (8..12).map(|cell| cells[cell].clone()).collect();
    assert_eq!(
        row,
        [
            vec![(20, 5)],
            vec![(20, 12)],
            vec![(20, 20)],
            vec![(20, 26)]
        ]
    );
    assert_eq!(cells[15].len(), 1);
    let there = cells.iter().filter(|lesions| !lesions.is_empty()).count();
    assert_eq!(there, 8);
    // A class beyond those of the task is none.
    assert_eq!(middles(&mask, size, patch, 1)[5], []);
}
