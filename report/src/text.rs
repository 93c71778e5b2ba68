//! Text in pictures: measured and drawn with the font that is part of the program.
//!
//! Drawn here and not by plotters, whose `ab_glyph` path drops each glyph's left bearing (0.3.7), which
//! shows as uneven gaps at label size.

use std::sync::OnceLock;

use ab_glyph::{Font, FontRef, Glyph, ScaleFont, point};
use image::RgbImage;

use super::{Error, Result};

/// Where the given x stands in the text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Anchor {
    Start,
    Middle,
    End,
}

fn font() -> Result<&'static FontRef<'static>> {
    static FONT: OnceLock<Option<FontRef<'static>>> = OnceLock::new();
    FONT.get_or_init(|| FontRef::try_from_slice(fovea_pictures::font::bytes()).ok())
        .as_ref()
        .ok_or_else(|| Error::Draw("the embedded font is not a TrueType font".to_owned()))
}

/// `size` is the em in pixels; ab_glyph scales by ascent + descent instead.
fn scale_of(font: &FontRef<'static>, size: f32) -> f32 {
    font.units_per_em()
        .map_or(size, |em| size * font.height_unscaled() / em)
}

/// Glyphs of `text` from x = 0 on the baseline y = 0, and the advance width in pixels.
fn layout(text: &str, size: f32) -> Result<(Vec<Glyph>, f32)> {
    let font = font()?;
    let scaled = font.as_scaled(scale_of(font, size));
    let (mut x, mut previous, mut glyphs) = (0.0, None, Vec::new());
    for c in text.chars() {
        let mut glyph = scaled.scaled_glyph(c);
        x += previous.map_or(0.0, |p| scaled.kern(p, glyph.id));
        glyph.position = point(x, 0.0);
        previous = Some(glyph.id);
        x += scaled.h_advance(glyph.id);
        glyphs.push(glyph);
    }
    Ok((glyphs, x))
}

/// Width of `text` in pixels at an em of `size` pixels.
pub(super) fn width(text: &str, size: f32) -> f32 {
    layout(text, size).map_or(text.chars().count() as f32 * size * 0.55, |(_, width)| {
        width
    })
}

/// How `draw` sets a text.
#[derive(Clone, Copy, Debug)]
pub(super) struct Style {
    /// Height of an em in pixels.
    pub(super) size: f32,
    pub(super) colour: [u8; 3],
    pub(super) anchor: Anchor,
    /// Thickens the strokes; the embedded font has one weight.
    pub(super) bold: bool,
}

/// Draws `text` with its baseline at `y`. What lies outside the picture is cut.
pub(super) fn draw(
    picture: &mut RgbImage,
    (x, y): (f32, f32),
    text: &str,
    style: Style,
) -> Result<()> {
    let (glyphs, width) = layout(text, style.size)?;
    let start = match style.anchor {
        Anchor::Start => x,
        Anchor::Middle => x - width / 2.0,
        Anchor::End => x - width,
    };
    let strikes: &[f32] = if style.bold { &[-0.02, 0.02] } else { &[0.0] };
    for strike in strikes {
        for glyph in &glyphs {
            let mut glyph = glyph.clone();
            glyph.position.x += start + strike * style.size;
            glyph.position.y += y;
            let Some(outline) = font()?.outline_glyph(glyph) else {
                continue;
            };
            let bounds = outline.px_bounds();
            outline.draw(|dx, dy, coverage| {
                let (px, py) = (bounds.min.x + dx as f32, bounds.min.y + dy as f32);
                blend(picture, px as i64, py as i64, style.colour, coverage);
            });
        }
    }
    Ok(())
}

/// Lays `colour` over one pixel; outside the picture nothing happens.
pub(super) fn blend(picture: &mut RgbImage, x: i64, y: i64, colour: [u8; 3], alpha: f32) {
    let (Ok(x), Ok(y)) = (u32::try_from(x), u32::try_from(y)) else {
        return;
    };
    if let Some(pixel) = picture.get_pixel_mut_checked(x, y) {
        for (under, over) in pixel.0.iter_mut().zip(colour) {
            let mixed =
                f32::from(*under) + (f32::from(over) - f32::from(*under)) * alpha.clamp(0.0, 1.0);
            *under = mixed.round() as u8;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use image::Rgb;

    fn ink_columns(text: &str, anchor: Anchor) -> (u32, u32) {
        let mut picture = RgbImage::from_pixel(300, 40, Rgb([255; 3]));
        let style = Style {
            size: 20.0,
            colour: [0; 3],
            anchor,
            bold: false,
        };
        draw(&mut picture, (150.0, 30.0), text, style).unwrap();
        let columns: Vec<u32> = (0..300)
            .filter(|&x| (0..40).any(|y| picture.get_pixel(x, y).0[0] < 128))
            .collect();
        (columns[0], *columns.last().unwrap())
    }

    #[test]
    fn anchors_place_the_measured_width() {
        let measured = width("Training 0.123", 20.0);
        assert!((80.0..160.0).contains(&measured));
        let near = |a: u32, b: f32| (a as f32 - b).abs() < 4.0;
        let (left, right) = ink_columns("Training 0.123", Anchor::Start);
        assert!(near(left, 150.0) && near(right, 150.0 + measured));
        let (left, right) = ink_columns("Training 0.123", Anchor::Middle);
        assert!(near(left, 150.0 - measured / 2.0) && near(right, 150.0 + measured / 2.0));
        let (left, right) = ink_columns("Training 0.123", Anchor::End);
        assert!(near(left, 150.0 - measured) && near(right, 150.0));
    }

    #[test]
    fn the_font_has_the_signs_that_the_report_uses() {
        let font = font().unwrap();
        for c in
            "abcXYZ0123456789.,:;%()+-/=\u{2013}\u{00b7}\u{2265}\u{00d7}\u{2212}\u{2026}".chars()
        {
            assert_ne!(font.glyph_id(c).0, 0, "no glyph for {c:?}");
        }
    }

    #[test]
    fn drawing_outside_is_cut() {
        let mut picture = RgbImage::new(10, 10);
        let style = Style {
            size: 30.0,
            colour: [255; 3],
            anchor: Anchor::Start,
            bold: true,
        };
        draw(&mut picture, (-20.0, 5.0), "far too long", style).unwrap();
    }
}
