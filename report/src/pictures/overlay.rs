//! The overlay on the photograph in each panel.

use fovea_task::Label;
use image::{Rgb, RgbImage};

use super::super::text::blend;
use super::{Guess, PANEL, Scene};

/// Width of a lesion outline in panel pixels.
const OUTLINE: i64 = 3;
/// Radius of a class mark as a share of the cell.
const MARK: f32 = 0.115;
/// Opacity of the heat over the grey photograph.
const HEAT: f32 = 0.7;

/// Colours of the heat from probability 0 to 1 in equal steps (viridis: even in lightness).
pub(in super::super) const HEAT_STOPS: [[u8; 3]; 6] = [
    [68, 1, 84],
    [65, 68, 135],
    [42, 120, 142],
    [34, 168, 132],
    [122, 209, 81],
    [253, 231, 37],
];

/// How a class mark looks.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Mark {
    /// Truth, or predicted and true: a disc.
    Disc,
    /// Predicted, not true: a square.
    Square,
    /// True, not predicted: a ring.
    Ring,
}

/// The photograph with lesion outlines, or, without a mask, the classes of each cell.
pub(super) fn truth(scene: &Scene) -> RgbImage {
    let mut picture = scene.photo.clone();
    if let Some(mask) = &scene.mask {
        outline(&mut picture, scene, mask);
    }
    each_cell(scene, |frame, cell| {
        let there: Vec<usize> = classes(scene, &[cell.label]).collect();
        if !there.is_empty() {
            border(&mut picture, frame);
        }
        // Marks would hide the lesions that the outlines show.
        for class in there.into_iter().filter(|_| !scene.has_mask()) {
            class_mark(&mut picture, scene, frame, class, Mark::Disc);
        }
    });
    picture
}

/// The photograph with the predicted classes of each cell, right, wrong and missed.
pub(super) fn prediction(scene: &Scene) -> RgbImage {
    let mut picture = scene.photo.clone();
    each_cell(scene, |frame, cell| {
        if classes(scene, &[cell.predicted]).next().is_some() {
            border(&mut picture, frame);
        }
        for class in classes(scene, &[cell.predicted, cell.label]) {
            let has = |label| scene.target.has(label, class);
            let (said, so) = (has(cell.predicted), has(cell.label));
            let kind = match (said, so) {
                (true, true) => Mark::Disc,
                (true, false) => Mark::Square,
                _ => Mark::Ring,
            };
            class_mark(&mut picture, scene, frame, class, kind);
        }
    });
    picture
}

/// The photograph in grey beneath the highest probability of any class in each cell.
pub(super) fn heat(scene: &Scene) -> RgbImage {
    let mut picture = scene.photo.clone();
    for pixel in picture.pixels_mut() {
        let [r, g, b] = pixel.0.map(f32::from);
        // Flat and dark, so that the brightness of the photograph is not taken for probability.
        let grey = 25.0 + 0.45 * (0.299 * r + 0.587 * g + 0.114 * b);
        *pixel = Rgb([grey.round() as u8; 3]);
    }
    each_cell(scene, |(left, top, side), cell| {
        let colour = heat_colour(cell.probabilities.iter().copied().fold(0.0, f32::max));
        // Cells share no pixel: each begins where the one before it ends.
        for y in top.round() as i64..(top + side).round() as i64 {
            for x in left.round() as i64..(left + side).round() as i64 {
                blend(&mut picture, x, y, colour, HEAT);
            }
        }
    });
    picture
}

/// Colour of a probability, linear between the stops.
pub(in super::super) fn heat_colour(probability: f32) -> [u8; 3] {
    let at = probability.clamp(0.0, 1.0) * (HEAT_STOPS.len() - 1) as f32;
    let low = (at as usize).min(HEAT_STOPS.len() - 2);
    let part = at - low as f32;
    std::array::from_fn(|i| {
        let (a, b) = (
            f32::from(HEAT_STOPS[low][i]),
            f32::from(HEAT_STOPS[low + 1][i]),
        );
        (a + (b - a) * part).round() as u8
    })
}

/// `(left, top, side)` of a cell in panel pixels.
type CellSquare = (f32, f32, f32);

fn each_cell(scene: &Scene, mut visit: impl FnMut(CellSquare, &Guess)) {
    let side = PANEL as f32 / scene.grid as f32;
    for (index, cell) in scene.cells.iter().enumerate() {
        if let Some(cell) = cell {
            let (row, col) = (index / scene.grid, index % scene.grid);
            visit((col as f32 * side, row as f32 * side, side), cell);
        }
    }
}

/// Classes that any of `labels` has.
fn classes(scene: &Scene, labels: &[Label]) -> impl Iterator<Item = usize> {
    let target = &scene.target;
    (0..target.classes.len()).filter(|&c| labels.iter().any(|&label| target.has(label, c)))
}

/// Each of `classes` classes has its own place in the cell, up to four their corners, so that marks never cover each other.
fn place((left, top, side): CellSquare, class: usize, classes: usize) -> (f32, f32) {
    let edge = rows(classes);
    // From 0.2 to 0.8 of the cell.
    let at = |step: usize| 0.2 + 0.6 * step as f32 / (edge - 1) as f32;
    let (dx, dy) = (at(class % edge), at(class / edge));
    (left + side * dx, top + side * dy)
}

/// Marks along an edge of a cell: two for up to four classes.
fn rows(classes: usize) -> usize {
    classes.isqrt().max(2) + usize::from(classes > 4 && classes.isqrt().pow(2) < classes)
}

fn class_mark(picture: &mut RgbImage, scene: &Scene, frame: CellSquare, class: usize, kind: Mark) {
    let classes = &scene.target.classes;
    let radius = frame.2 * MARK / (rows(classes.len()) - 1) as f32;
    let centre = place(frame, class, classes.len());
    mark(picture, centre, radius, classes[class].colour, kind);
}

/// A mark of `radius` with a dark rim that keeps it visible on bright exudates.
pub(super) fn mark(
    picture: &mut RgbImage,
    centre: (f32, f32),
    radius: f32,
    colour: [u8; 3],
    kind: Mark,
) {
    let rim = 1.5;
    let reach = (radius + rim + 1.0).ceil() as i64;
    let (cx, cy) = (centre.0.round() as i64, centre.1.round() as i64);
    for y in cy - reach..=cy + reach {
        for x in cx - reach..=cx + reach {
            let (dx, dy) = (x as f32 - centre.0, y as f32 - centre.1);
            let distance = match kind {
                Mark::Square => dx.abs().max(dy.abs()) / 0.85,
                Mark::Disc | Mark::Ring => dx.hypot(dy),
            };
            // Coverage falls from 1 to 0 over one pixel at the edge.
            let inside = |edge: f32| (edge + 0.5 - distance).clamp(0.0, 1.0);
            blend(picture, x, y, [0, 0, 0], 0.65 * inside(radius + rim));
            blend(picture, x, y, colour, inside(radius));
            if kind == Mark::Ring {
                blend(picture, x, y, [20, 14, 12], inside(radius * 0.55));
            }
        }
    }
}

/// A thin frame just inside a cell.
fn border(picture: &mut RgbImage, (left, top, side): CellSquare) {
    let (x0, y0) = (left.round() as i64, top.round() as i64);
    let (x1, y1) = (
        (left + side).round() as i64 - 1,
        (top + side).round() as i64 - 1,
    );
    for x in x0..=x1 {
        blend(picture, x, y0, [255; 3], 0.4);
        blend(picture, x, y1, [255; 3], 0.4);
    }
    for y in y0 + 1..y1 {
        blend(picture, x0, y, [255; 3], 0.4);
        blend(picture, x1, y, [255; 3], 0.4);
    }
}

/// Outlines every lesion just outside its edge, so that the lesion itself stays visible.
fn outline(picture: &mut RgbImage, scene: &Scene, mask: &[u8]) {
    let panel = i64::from(PANEL);
    let bits = |x: i64, y: i64| {
        if (0..panel).contains(&x) && (0..panel).contains(&y) {
            mask[(y * panel + x) as usize]
        } else {
            0
        }
    };
    for y in 0..panel {
        for x in 0..panel {
            let mut near = 0;
            for dy in -OUTLINE..=OUTLINE {
                for dx in -OUTLINE..=OUTLINE {
                    if dx * dx + dy * dy <= OUTLINE * OUTLINE + 1 {
                        near |= bits(x + dx, y + dy);
                    }
                }
            }
            let around = near & !bits(x, y);
            for (bit, class) in scene.target.classes.iter().enumerate().take(8) {
                if around >> bit & 1 == 1 {
                    blend(picture, x, y, class.colour, 0.9);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::scene;
    use super::*;
    use fovea_task::Task;

    fn colour(class: usize) -> [u8; 3] {
        Task::lesions().targets()[0].classes[class].colour
    }

    #[test]
    fn outlines_lie_outside_the_lesion() {
        let picture = truth(&scene());
        assert_eq!(
            picture.get_pixel(220, 115).0,
            [120, 60, 30],
            "inside is the photograph"
        );
        assert_eq!(
            picture.get_pixel(60, 60).0,
            [120, 60, 30],
            "no marks over outlines"
        );
        let unmasked = truth(&Scene {
            mask: None,
            ..scene()
        });
        assert_eq!(unmasked.get_pixel(60, 60).0, colour(0));
        let edge = picture.get_pixel(220, 99).0;
        assert!(edge[2] > 200 && edge[0] < 40, "MA is cyan: {edge:?}");
    }

    #[test]
    fn marks_tell_found_missed_and_false() {
        let picture = prediction(&scene());
        let centre = |cell: (f32, f32), class| {
            let (x, y) = place((cell.0, cell.1, 300.0), class, 4);
            picture.get_pixel(x as u32, y as u32).0
        };
        assert_eq!(centre((0.0, 0.0), 0), colour(0), "found: a disc");
        assert_eq!(centre((0.0, 300.0), 1), colour(1), "false alarm: a square");
        assert!(
            centre((300.0, 300.0), 2).iter().all(|&v| v < 40),
            "missed: a ring around nothing"
        );
        assert_eq!(
            picture.get_pixel(450, 150).0,
            [120, 60, 30],
            "a cell without prediction is untouched"
        );
        let corner = place((0.0, 300.0, 300.0), 1, 4);
        let near_corner = picture
            .get_pixel((corner.0 + 27.0) as u32, (corner.1 + 27.0) as u32)
            .0;
        assert_eq!(near_corner, colour(1), "squares have corners");
    }

    #[test]
    fn heat_follows_the_highest_probability() {
        assert_eq!(heat_colour(0.0), HEAT_STOPS[0]);
        assert_eq!(heat_colour(0.2), HEAT_STOPS[1]);
        assert_eq!(heat_colour(1.0), HEAT_STOPS[5]);
        let picture = heat(&scene());
        let black_cell = picture.get_pixel(450, 150).0;
        assert!(black_cell[0] == black_cell[1] && black_cell[1] == black_cell[2]);
    }

    #[test]
    fn marks_never_cover_each_other() {
        let corners = [(20.0, 20.0), (80.0, 20.0), (20.0, 80.0), (80.0, 80.0)];
        for (class, corner) in corners.into_iter().enumerate() {
            assert_eq!(place((0.0, 0.0, 100.0), class, 4), corner);
        }
        for classes in 1..=63 {
            let centre = |class| place((0.0, 0.0, 100.0), class, classes);
            let radius = 100.0 * MARK / (rows(classes) - 1) as f32;
            for class in 0..classes {
                let (x, y) = centre(class);
                assert!(
                    (19.0..81.0).contains(&x) && (19.0..81.0).contains(&y),
                    "{classes}"
                );
                for other in 0..class {
                    let (dx, dy) = (centre(other).0 - x, centre(other).1 - y);
                    assert!(
                        dx.hypot(dy) > 2.0 * radius,
                        "{class} and {other} of {classes}"
                    );
                }
            }
        }
    }
}
