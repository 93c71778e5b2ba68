//! Street scenes with persons, vehicles and other things, and what a detector says of them.
//!
//! Half of the scenes are interesting: a person is near, and the lamp is red. Of the others two in five have the one, two in
//! five the other and one in five neither, so that neither the boxes nor the lamp decide alone. The counts tell nothing.

use super::sketch::Sketch;
use super::{Drawn, split_of};
use crate::rng::{Purpose, RandomStream};

pub(super) const HEADINGS: &str = "image_name,interesting/not interesting,num_person,num_vehicles,avg_person_conf,total_boxes,bounding_boxes,split";

/// The table of all scenes.
const TABLE: &str = "scenes.csv";

/// What the detector reports.
struct Detection {
    /// x1, y1, x2, y2 in shares of the picture's edge.
    corners: [f32; 4],
    score: f32,
    label: &'static str,
}

/// Whether a person is near, and whether the lamp is red. Each ten scenes have five with both.
fn facts(seed: u64, index: usize) -> [bool; 2] {
    let mut draw = RandomStream::new(seed, (index / 10) as u64, Purpose::Plan);
    match draw.permutation(10)[index % 10] {
        0..5 => [true, true],
        5 | 6 => [true, false],
        7 | 8 => [false, true],
        _ => [false, false],
    }
}

pub(super) fn draw(size: usize, seed: u64, index: usize) -> Drawn {
    let [near, red] = facts(seed, index);
    let stream = |purpose| RandomStream::new(seed, index as u64, purpose);
    let mut tone = stream(Purpose::Tone);
    let mut place = stream(Purpose::Geometry);
    let horizon = place.range(0.38, 0.48);
    let sky = [
        tone.range(0.3, 0.9),
        tone.range(0.4, 0.9),
        tone.range(0.5, 1.0),
    ];
    let road = tone.range(0.2, 0.6);
    let mut sketch = Sketch::new(size, sky);
    sketch.rectangle([-0.1, horizon, 1.1, 1.1], [road, road, road * 0.95]);
    lamp(&mut sketch, red, &mut place);

    let mut all = Vec::new();
    for _ in 0..place.count(0, 2) {
        all.push(vehicle(&mut sketch, horizon, &mut place, &mut tone));
    }
    if place.chance(0.5) {
        all.push(dog(&mut sketch, horizon, &mut place, &mut tone));
    }
    let persons = place.count(1, 3);
    let nearest = place.below(persons);
    for number in 0..persons {
        let height = match near && number == nearest {
            true => place.range(0.42, 0.55),
            false => place.range(0.1, 0.2),
        };
        all.push(person(&mut sketch, horizon, height, &mut place, &mut tone));
    }
    let gain = tone.range(0.6, 1.2);
    let tint = [tone.range(0.9, 1.1), 1.0, tone.range(0.9, 1.1)];
    let pixels = sketch.pixels(tint.map(|t| t * gain), 0.02, &mut stream(Purpose::Camera));
    let name = format!("scene_{index:05}");
    let split = split_of(index / 10 + index % 10 * 7);
    Drawn {
        pixels,
        path: format!("images/{name}.png"),
        line: Some((TABLE, line(&name, near && red, &all, size as f32, split))),
    }
}

/// A signal on its mast at the upper right.
fn lamp(sketch: &mut Sketch, red: bool, draw: &mut RandomStream) {
    let (x, y) = (draw.range(0.78, 0.9), draw.range(0.1, 0.18));
    let dark = [0.06; 3];
    sketch.rectangle([x - 0.008, y, x + 0.008, 0.6], dark);
    sketch.rectangle([x - 0.055, y - 0.07, x + 0.055, y + 0.13], dark);
    let lit = |on: bool, colour: [f32; 3]| if on { colour } else { colour.map(|v| 0.2 * v) };
    let radius = [0.042, 0.042];
    sketch.ellipse([x, y - 0.02], radius, 0.0, lit(red, [1.0, 0.12, 0.08]));
    sketch.ellipse([x, y + 0.08], radius, 0.0, lit(!red, [0.1, 0.95, 0.3]));
}

fn any_colour(draw: &mut RandomStream) -> [f32; 3] {
    [0, 1, 2].map(|_| draw.range(0.1, 0.85))
}

fn person(
    sketch: &mut Sketch,
    horizon: f32,
    height: f32,
    place: &mut RandomStream,
    tone: &mut RandomStream,
) -> Detection {
    let foot = (horizon + 0.75 * height + place.range(0.04, 0.12)).min(0.98);
    let x = place.range(0.12, 0.88);
    let (wide, top) = (0.17 * height, foot - height);
    let head = 0.09 * height;
    sketch.ellipse(
        [x, foot - 0.4 * height],
        [wide, 0.4 * height],
        0.0,
        any_colour(tone),
    );
    sketch.ellipse([x, top + head], [head, head], 0.0, [0.85, 0.65, 0.5]);
    Detection {
        corners: [x - wide, top, x + wide, foot],
        score: tone.range(0.5, 0.99),
        label: "person",
    }
}

fn vehicle(
    sketch: &mut Sketch,
    horizon: f32,
    place: &mut RandomStream,
    tone: &mut RandomStream,
) -> Detection {
    let (wide, x) = (place.range(0.14, 0.3), place.range(0.05, 0.65));
    let bottom = place.range(horizon + 0.12, 0.95);
    let corners = [x, bottom - 0.45 * wide, x + wide, bottom];
    let body = [x, bottom - 0.3 * wide, x + wide, bottom - 0.06 * wide];
    let colour = any_colour(tone);
    sketch.rectangle(body, colour);
    sketch.rectangle(
        [x + 0.2 * wide, corners[1], x + 0.8 * wide, body[1]],
        colour,
    );
    for at in [0.22, 0.78] {
        let wheel = [x + at * wide, bottom - 0.08 * wide];
        sketch.ellipse(wheel, [0.09 * wide, 0.09 * wide], 0.0, [0.05; 3]);
    }
    let labels = ["car", "truck", "bus"];
    Detection {
        corners,
        score: tone.range(0.5, 0.99),
        label: labels[place.below(labels.len())],
    }
}

fn dog(
    sketch: &mut Sketch,
    horizon: f32,
    place: &mut RandomStream,
    tone: &mut RandomStream,
) -> Detection {
    let (x, y) = (place.range(0.1, 0.9), place.range(horizon + 0.1, 0.9));
    let colour = any_colour(tone);
    sketch.ellipse([x, y], [0.05, 0.022], 0.0, colour);
    sketch.ellipse([x + 0.05, y - 0.02], [0.018, 0.018], 0.0, colour);
    Detection {
        corners: [x - 0.05, y - 0.04, x + 0.07, y + 0.022],
        score: tone.range(0.3, 0.9),
        label: "dog",
    }
}

/// The scene's line in the table, with boxes as JSON in pixels.
fn line(name: &str, interesting: bool, all: &[Detection], size: f32, split: &str) -> String {
    let persons: Vec<&Detection> = all.iter().filter(|one| one.label == "person").collect();
    let confidence = persons.iter().map(|one| one.score).sum::<f32>() / persons.len().max(1) as f32;
    let vehicles = all
        .iter()
        .filter(|one| ["car", "truck", "bus"].contains(&one.label));
    let json = |one: &Detection| {
        let [x1, y1, x2, y2] = one.corners.map(|at| at.clamp(0.0, 1.0) * size);
        format!(
            "{{\"\"bbox\"\": [{x1:.1}, {y1:.1}, {x2:.1}, {y2:.1}], \"\"score\"\": {:.3}, \"\"label\"\": \"\"{}\"\"}}",
            one.score, one.label
        )
    };
    let boxes: Vec<String> = all.iter().map(json).collect();
    format!(
        "{name},{},{},{},{confidence:.3},{},\"[{}]\",{split}",
        if interesting {
            "interesting"
        } else {
            "not interesting"
        },
        persons.len(),
        vehicles.count(),
        all.len(),
        boxes.join(", ")
    )
}
