//! The three panels of a scene side by side with headings and a legend: the picture file.

use fovea_task::Target;
use image::{Rgb, RgbImage, imageops};

use super::super::Result;
use super::super::palette::Ink;
use super::super::text::{self, Anchor, Style};
use super::overlay::{self, HEAT_STOPS, Mark};
use super::{PANEL, Panels, Scene};

const MARGIN: u32 = 28;
const GAP: u32 = 20;
const HEAD: u32 = 92;
const FOOT: u32 = 64;
const LABEL: f32 = 20.0;

/// Lays out one scene.
pub(in super::super) fn sheet(scene: &Scene, panels: &Panels) -> Result<RgbImage> {
    let width = 2 * MARGIN + 3 * PANEL + 2 * GAP;
    let mut page = RgbImage::from_pixel(width, HEAD + PANEL + FOOT, Rgb(Ink::Paper.rgb()));
    let title = Style {
        size: 26.0,
        colour: Ink::Text.rgb(),
        anchor: Anchor::Start,
        bold: true,
    };
    text::draw(&mut page, (MARGIN as f32, 38.0), &scene.id, title)?;
    if !scene.image.is_empty() {
        let told = scene.image.iter().map(|(target, image)| {
            format!(
                "{} \u{2013} predicted {}",
                target.describe(image.label),
                target.describe(image.predicted)
            )
        });
        let said = format!("whole image: {}", told.collect::<Vec<_>>().join("; "));
        let style = Style {
            size: LABEL,
            colour: Ink::Muted.rgb(),
            anchor: Anchor::End,
            bold: false,
        };
        text::draw(&mut page, ((width - MARGIN) as f32, 38.0), &said, style)?;
    }
    let truth = if scene.has_mask() {
        "Truth: lesion outlines"
    } else {
        "Truth: classes per cell"
    };
    let titled = [
        (truth, &panels.truth),
        ("Prediction per cell", &panels.prediction),
        ("Highest probability of any class", &panels.heat),
    ];
    for (i, (heading, panel)) in titled.into_iter().enumerate() {
        let x = MARGIN + i as u32 * (PANEL + GAP);
        text::draw(
            &mut page,
            (x as f32, HEAD as f32 - 12.0),
            heading,
            label_style(),
        )?;
        imageops::replace(&mut page, panel, i64::from(x), i64::from(HEAD));
    }
    legend(&mut page, &scene.target)?;
    Ok(page)
}

fn label_style() -> Style {
    Style {
        size: LABEL,
        colour: Ink::Text.rgb(),
        anchor: Anchor::Start,
        bold: false,
    }
}

fn legend(page: &mut RgbImage, target: &Target) -> Result<()> {
    let middle = (HEAD + PANEL) as f32 + FOOT as f32 / 2.0;
    let baseline = middle + LABEL * 0.35;
    // White and cyan need a dark ground; the marks get the tone of a photograph.
    let mut x = MARGIN as f32;
    let marks = (MARGIN + PANEL + GAP) as f32;
    for class in &target.classes {
        let width = 46.0 + text::width(&class.name, LABEL) + 18.0;
        if x + width > marks {
            break; // The page's own legend has all of them.
        }
        chip(page, x, middle);
        overlay::mark(page, (x + 15.0, middle), 8.0, class.colour, Mark::Disc);
        text::draw(page, (x + 40.0, baseline), &class.name, label_style())?;
        x += width;
    }
    x = marks;
    for (kind, name) in [
        (Mark::Disc, "found"),
        (Mark::Square, "false alarm"),
        (Mark::Ring, "missed"),
    ] {
        chip(page, x, middle);
        overlay::mark(page, (x + 15.0, middle), 8.0, [255; 3], kind);
        text::draw(page, (x + 40.0, baseline), name, label_style())?;
        x += 46.0 + text::width(name, LABEL) + 18.0;
    }
    heat_scale(page, (MARGIN + 2 * (PANEL + GAP)) as f32, middle)
}

fn chip(page: &mut RgbImage, x: f32, middle: f32) {
    for dy in -15..15 {
        for dx in 0..30 {
            text::blend(page, x as i64 + dx, middle as i64 + dy, [74, 40, 26], 1.0);
        }
    }
}

fn heat_scale(page: &mut RgbImage, x: f32, middle: f32) -> Result<()> {
    let baseline = middle + LABEL * 0.35;
    text::draw(page, (x, baseline), "0", label_style())?;
    let (left, length) = (x + 22.0, 240.0);
    for dx in 0..length as i64 {
        let at = dx as f32 / length * (HEAT_STOPS.len() - 1) as f32;
        let low = (at as usize).min(HEAT_STOPS.len() - 2);
        let part = at - low as f32;
        for dy in -9..9 {
            let (px, py) = (left as i64 + dx, middle as i64 + dy);
            text::blend(page, px, py, HEAT_STOPS[low], 1.0);
            text::blend(page, px, py, HEAT_STOPS[low + 1], part);
        }
    }
    text::draw(page, (left + length + 10.0, baseline), "1", label_style())
}

#[cfg(test)]
mod tests {
    use super::super::tests::scene;
    use super::*;

    #[test]
    fn the_sheet_holds_the_panels_unchanged() {
        let scene = scene();
        let panels = scene.panels();
        let page = sheet(&scene, &panels).unwrap();
        assert_eq!(page.width(), 2 * MARGIN + 3 * PANEL + 2 * GAP);
        let x = MARGIN + PANEL + GAP;
        assert_eq!(
            page.get_pixel(x + 60, HEAD + 60),
            panels.prediction.get_pixel(60, 60)
        );
    }
}
