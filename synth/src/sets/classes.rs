//! Slices of a head, grey: healthy, or with one of three findings that differ in place and form.

use super::sketch::{Sketch, reach};
use super::{Drawn, split_of};
use crate::noise::{Noise, smoothstep};
use crate::rng::{Purpose, RandomStream};

/// In the order of `index % 4`.
const CLASSES: [&str; 4] = ["healthy", "midline", "rim", "ring"];

pub(super) fn draw(size: usize, seed: u64, index: usize) -> Drawn {
    let class = index % CLASSES.len();
    let stream = |purpose| RandomStream::new(seed, index as u64, purpose);
    let mut shape = stream(Purpose::Geometry);
    let mut tone = stream(Purpose::Tone);
    let mut lesion = stream(Purpose::Lesions);
    let noise = [tone.word(), tone.word()].map(Noise::new);
    let centre = [shape.range(0.47, 0.53), shape.range(0.47, 0.53)];
    let axes = [shape.range(0.34, 0.4), shape.range(0.4, 0.46)];
    let angle = 0.08 * shape.normal();
    let grey = |value: f32| [value; 3];

    let mut sketch = Sketch::new(size, grey(0.02));
    // Skin and bone, the dark gap, the brain.
    sketch.ellipse(centre, axes, angle, grey(tone.range(0.5, 0.8)));
    let inner = axes.map(|axis| axis * 0.9);
    sketch.ellipse(centre, inner, angle, grey(0.05));
    let brain = axes.map(|axis| axis * 0.85);
    let tissue = tone.range(0.28, 0.5);
    sketch.ellipse(centre, brain, angle, grey(tissue));
    let folds = tone.range(0.5, 0.9);
    sketch.lay(grey(0.75 * tissue), |x, y| {
        let inside = reach(centre, brain, angle, x, y) < 0.97;
        let fold = noise[0].fractal(14.0 * x, 14.0 * y, 2).max(0.0);
        if inside { folds * fold } else { 0.0 }
    });
    let wide = shape.range(0.025, 0.05);
    for side in [-1.0, 1.0] {
        let at = [centre[0] + side * 0.06, centre[1] - 0.03];
        sketch.ellipse(at, [wide, 0.11], side * 0.3, grey(0.08));
    }
    finding(
        &mut sketch,
        CLASSES[class],
        centre,
        brain,
        tissue,
        &mut lesion,
        &noise[1],
    );

    // Scanners differ more in brightness than any finding changes it.
    let gain = tone.range(0.7, 1.3);
    let grain = tone.range(0.01, 0.04);
    let pixels = sketch.pixels([gain; 3], grain, &mut stream(Purpose::Camera));
    let part = match split_of(index / 4 + index % 4 * 5) {
        "test" => "Testing",
        _ => "Training",
    };
    Drawn {
        pixels,
        path: format!("{part}/{}/slice_{index:05}.png", CLASSES[class]),
        line: None,
    }
}

fn finding(
    sketch: &mut Sketch,
    class: &str,
    centre: [f32; 2],
    brain: [f32; 2],
    tissue: f32,
    draw: &mut RandomStream,
    noise: &Noise,
) {
    let bright = [(tissue + draw.range(0.3, 0.45)).min(1.0); 3];
    match class {
        // Low in the middle, small, smooth.
        "midline" => {
            let at = [
                centre[0] + draw.range(-0.015, 0.015),
                centre[1] + brain[1] * draw.range(0.45, 0.6),
            ];
            let radius = draw.range(0.05, 0.075);
            sketch.ellipse(at, [radius, radius * draw.range(0.8, 1.1)], 0.0, bright);
        }
        // Broad against the bone, smooth, as bright.
        "rim" => {
            let angle = draw.range(-1.1, 1.1)
                + if draw.chance(0.5) {
                    0.0
                } else {
                    std::f32::consts::PI
                };
            let far = draw.range(0.82, 0.92);
            let at = [
                centre[0] + far * brain[0] * angle.cos(),
                centre[1] + far * brain[1] * angle.sin(),
            ];
            let radius = draw.range(0.07, 0.1);
            sketch.ellipse(at, [radius, radius * 1.2], angle, bright);
        }
        // A ragged bright ring around a dark core, within one half.
        "ring" => {
            let side = draw.sign();
            let at = [
                centre[0] + side * brain[0] * draw.range(0.38, 0.52),
                centre[1] + brain[1] * draw.range(-0.35, 0.3),
            ];
            let radius = draw.range(0.085, 0.115);
            let ragged = |x: f32, y: f32| {
                reach(at, [radius, radius], 0.0, x, y) + 0.35 * noise.at(30.0 * x, 30.0 * y)
            };
            sketch.lay(bright, |x, y| smoothstep(1.1, 0.95, ragged(x, y)));
            sketch.lay([0.12; 3], |x, y| smoothstep(0.6, 0.45, ragged(x, y)));
        }
        _ => {}
    }
}
