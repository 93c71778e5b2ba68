//! A canvas for labelled pictures: pixels, boxes, outlines, text.

use std::path::Path;

use ab_glyph::{Font, FontRef, PxScale, ScaleFont, point};
use image::{Rgb, RgbImage};

use crate::{Error, Result};

/// A colour, R, G, B.
pub(super) type Colour = [u8; 3];

/// A picture being drawn. Everything outside it is ignored.
pub(super) struct MosaicCanvas {
    image: RgbImage,
    font: FontRef<'static>,
}

impl MosaicCanvas {
    pub fn new(width: u32, height: u32, ground: Colour) -> Self {
        let font = FontRef::try_from_slice(fovea_pictures::font::bytes())
            .expect("the embedded font is a TrueType font");
        Self {
            image: RgbImage::from_pixel(width, height, Rgb(ground)),
            font,
        }
    }

    pub fn set(&mut self, x: i64, y: i64, colour: Colour) {
        self.mix(x, y, colour, 1.0);
    }

    /// Lays `colour` over a pixel; `share` 0 leaves it, 1 replaces it.
    pub fn mix(&mut self, x: i64, y: i64, colour: Colour, share: f32) {
        let (Ok(x), Ok(y)) = (u32::try_from(x), u32::try_from(y)) else {
            return;
        };
        let Some(pixel) = self.image.get_pixel_mut_checked(x, y) else {
            return;
        };
        for (value, colour) in pixel.0.iter_mut().zip(colour) {
            *value = (f32::from(*value) * (1.0 - share) + f32::from(colour) * share).round() as u8;
        }
    }

    pub fn fill(
        &mut self,
        (x, y): (i64, i64),
        width: i64,
        height: i64,
        colour: Colour,
        share: f32,
    ) {
        for y in y..y + height {
            for x in x..x + width {
                self.mix(x, y, colour, share);
            }
        }
    }

    pub fn frame(&mut self, (x, y): (i64, i64), width: i64, height: i64, colour: Colour) {
        self.fill((x, y), width, 1, colour, 1.0);
        self.fill((x, y + height - 1), width, 1, colour, 1.0);
        self.fill((x, y), 1, height, colour, 1.0);
        self.fill((x + width - 1, y), 1, height, colour, 1.0);
    }

    /// Draws `text` with its upper left corner at (x, y); the x after its last letter. `height` in pixels from
    /// the top of the tallest letter to the bottom of the lowest.
    pub fn text(&mut self, (x, y): (i64, i64), height: f32, colour: Colour, text: &str) -> i64 {
        let scale = PxScale::from(height);
        // Cloned, because letters are drawn while the canvas changes; it is a slice and a few offsets.
        let font = self.font.clone();
        let scaled = font.as_scaled(scale);
        let mut pen = x as f32;
        let baseline = y as f32 + scaled.ascent();
        let mut before = None;
        for letter in text.chars() {
            let id = font.glyph_id(letter);
            pen += before.map_or(0.0, |before| scaled.kern(before, id));
            if let Some(outline) =
                font.outline_glyph(id.with_scale_and_position(scale, point(pen, baseline)))
            {
                let bounds = outline.px_bounds();
                let (left, top) = (bounds.min.x as i64, bounds.min.y as i64);
                outline.draw(|dx, dy, share| {
                    self.mix(
                        left + i64::from(dx),
                        top + i64::from(dy),
                        colour,
                        share.min(1.0),
                    )
                });
            }
            pen += scaled.h_advance(id);
            before = Some(id);
        }
        pen.ceil() as i64
    }

    /// Width of `text` in pixels.
    pub fn text_width(&self, height: f32, text: &str) -> f32 {
        let scaled = self.font.as_scaled(PxScale::from(height));
        text.chars()
            .map(|letter| scaled.h_advance(self.font.glyph_id(letter)))
            .sum()
    }

    /// `text` cut so that it is at most `width` pixels wide.
    pub fn fitted(&self, height: f32, width: f32, text: &str) -> String {
        if self.text_width(height, text) <= width {
            return text.to_owned();
        }
        let mut short: String = text.to_owned();
        while short.pop().is_some() {
            let with_dots = format!("{short}...");
            if self.text_width(height, &with_dots) <= width {
                return with_dots;
            }
        }
        short
    }

    /// Writes the canvas as a PNG, atomically.
    pub fn save(&self, path: &Path) -> Result<()> {
        let mut bytes = std::io::Cursor::new(Vec::new());
        self.image
            .write_to(&mut bytes, image::ImageFormat::Png)
            .map_err(|e| Error::io("encode", path, std::io::Error::other(e)))?;
        Ok(fovea_files::replace_alone(path, bytes.get_ref())?)
    }

    #[cfg(test)]
    pub fn pixel(&self, x: u32, y: u32) -> Colour {
        self.image.get_pixel(x, y).0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_leaves_ink_where_it_stands() {
        let mut canvas = MosaicCanvas::new(120, 30, [0; 3]);
        let end = canvas.text((10, 5), 18.0, [255; 3], "MA 12");
        assert!((end - 10) as f32 >= canvas.text_width(18.0, "MA 12") - 2.0);
        let ink =
            |from: u32, to: u32| (from..to).any(|x| (0..30).any(|y| canvas.pixel(x, y)[0] > 150));
        assert!(ink(10, end as u32));
        assert!(!ink(0, 9) && !ink(end as u32 + 1, 120));
        assert!(
            canvas
                .fitted(18.0, 60.0, "a rather long name")
                .ends_with("...")
        );
        assert_eq!(canvas.fitted(18.0, 60.0, "short"), "short");
    }

    #[test]
    fn drawing_outside_is_ignored() {
        let mut canvas = MosaicCanvas::new(4, 4, [9; 3]);
        canvas.fill((-3, -3), 20, 20, [1, 2, 3], 1.0);
        canvas.frame((-2, 3), 50, 50, [7; 3]);
        assert_eq!(canvas.pixel(2, 2), [1, 2, 3]);
        assert_eq!(canvas.pixel(2, 3), [7; 3]);
    }
}
