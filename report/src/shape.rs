//! A drawing as a list of shapes: made once, then turned into SVG for the page and into pixels for
//! a file. Being a list, it can be tested: texts inside the frame, no two on top of each other.

use image::{RgbImage, imageops};
use maud::{Markup, html};
use plotters::prelude::{BitMapBackend, DrawingBackend, RGBColor};
use plotters::style::{Color, ShapeStyle};

use super::palette::Ink;
use super::text::{self, Anchor};
use super::{Error, Result};

/// `(x, y)` in drawing units, y downwards. One unit is a CSS pixel at the natural size.
pub(super) type At = (f64, f64);

/// One element of a drawing.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum DrawingElement {
    Rect {
        from: At,
        to: At,
        fill: Ink,
    },
    Line {
        points: Vec<At>,
        ink: Ink,
        width: f64,
        dash: Option<(f64, f64)>,
    },
    Disc {
        centre: At,
        radius: f64,
        fill: Ink,
    },
    Text {
        at: At,
        text: String,
        size: f64,
        ink: Ink,
        anchor: Anchor,
        bold: bool,
    },
}

/// Shapes in the order they are laid down, in a frame of `width` by `height`.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Drawing {
    pub(super) width: f64,
    pub(super) height: f64,
    pub(super) shapes: Vec<DrawingElement>,
}

/// Pixels per unit in a picture file.
const PIXELS: f64 = 2.0;
/// Drawn this much larger, then averaged: plotters' own edges are coarse.
const OVERSAMPLE: f64 = 2.0;

impl Drawing {
    pub(super) fn new(width: f64, height: f64) -> Self {
        Self {
            width,
            height,
            shapes: Vec::new(),
        }
    }

    pub(super) fn rect(&mut self, from: At, to: At, fill: Ink) {
        self.shapes.push(DrawingElement::Rect { from, to, fill });
    }

    pub(super) fn line(&mut self, points: Vec<At>, ink: Ink, width: f64, dash: Option<(f64, f64)>) {
        if points.len() > 1 {
            self.shapes.push(DrawingElement::Line {
                points,
                ink,
                width,
                dash,
            });
        }
    }

    pub(super) fn disc(&mut self, centre: At, radius: f64, fill: Ink) {
        self.shapes.push(DrawingElement::Disc {
            centre,
            radius,
            fill,
        });
    }

    pub(super) fn text(
        &mut self,
        at: At,
        text: impl Into<String>,
        size: f64,
        ink: Ink,
        anchor: Anchor,
    ) {
        self.shapes.push(DrawingElement::Text {
            at,
            text: text.into(),
            size,
            ink,
            anchor,
            bold: false,
        });
    }

    pub(super) fn heading(&mut self, at: At, text: impl Into<String>, size: f64, anchor: Anchor) {
        self.shapes.push(DrawingElement::Text {
            at,
            text: text.into(),
            size,
            ink: Ink::Text,
            anchor,
            bold: true,
        });
    }

    /// The drawing as an SVG element that takes its colours from the page; `alt` says what it shows.
    pub(super) fn svg(&self, alt: &str) -> Markup {
        html! {
            svg viewBox=(format!("0 0 {} {}", round(self.width), round(self.height))) role="img" aria-label=(alt) {
                @for shape in &self.shapes { (svg_shape(shape)) }
            }
        }
    }

    /// The drawing as pixels on white, two per unit.
    pub(super) fn picture(&self) -> Result<RgbImage> {
        let scale = PIXELS * OVERSAMPLE;
        let size = |units: f64| (units * scale).round() as u32;
        let (width, height) = (size(self.width), size(self.height));
        let mut canvas = RgbImage::from_pixel(width, height, image::Rgb(Ink::Paper.rgb()));
        {
            let mut backend = BitMapBackend::with_buffer(&mut canvas, (width, height));
            for shape in &self.shapes {
                raster_shape(&mut backend, shape, scale)?;
            }
            backend.present().map_err(draw_error)?;
        }
        // Texts last: nothing may lie on top of them.
        for shape in &self.shapes {
            if let DrawingElement::Text {
                at,
                text,
                size,
                ink,
                anchor,
                bold,
            } = shape
            {
                let place = ((at.0 * scale) as f32, (at.1 * scale) as f32);
                let style = text::Style {
                    size: (size * scale) as f32,
                    colour: ink.rgb(),
                    anchor: *anchor,
                    bold: *bold,
                };
                text::draw(&mut canvas, place, text, style)?;
            }
        }
        Ok(imageops::thumbnail(
            &canvas,
            (self.width * PIXELS) as u32,
            (self.height * PIXELS) as u32,
        ))
    }
}

/// Two decimals are finer than any screen and keep the page small.
fn round(value: f64) -> String {
    let text = format!("{value:.2}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

fn svg_shape(shape: &DrawingElement) -> Markup {
    match shape {
        DrawingElement::Rect { from, to, fill } => html! {
            rect x=(round(from.0)) y=(round(from.1)) width=(round(to.0 - from.0)) height=(round(to.1 - from.1))
                class=(format!("f-{}", fill.name())) {}
        },
        DrawingElement::Line {
            points,
            ink,
            width,
            dash,
        } => {
            let path: Vec<String> = points
                .iter()
                .map(|p| format!("{},{}", round(p.0), round(p.1)))
                .collect();
            html! {
                polyline points=(path.join(" ")) class=(format!("s-{}", ink.name())) stroke-width=(round(*width))
                    stroke-dasharray=[dash.map(|(on, off)| format!("{on} {off}"))] {}
            }
        }
        DrawingElement::Disc {
            centre,
            radius,
            fill,
        } => html! {
            circle cx=(round(centre.0)) cy=(round(centre.1)) r=(round(*radius)) class=(format!("f-{}", fill.name())) {}
        },
        DrawingElement::Text {
            at,
            text,
            size,
            ink,
            anchor,
            bold,
        } => {
            let anchor = match anchor {
                Anchor::Start => None,
                Anchor::Middle => Some("middle"),
                Anchor::End => Some("end"),
            };
            html! {
                text x=(round(at.0)) y=(round(at.1)) font-size=(round(*size)) text-anchor=[anchor]
                    font-weight=[bold.then_some("600")] class=(format!("f-{}", ink.name())) { (text) }
            }
        }
    }
}

fn draw_error(error: impl std::fmt::Display) -> Error {
    Error::Draw(error.to_string())
}

fn raster_shape(backend: &mut BitMapBackend<'_>, shape: &DrawingElement, scale: f64) -> Result<()> {
    let pixel = |at: At| ((at.0 * scale).round() as i32, (at.1 * scale).round() as i32);
    match shape {
        DrawingElement::Rect { from, to, fill } => backend
            .draw_rect(pixel(*from), pixel(*to), &filled(*fill), true)
            .map_err(draw_error),
        DrawingElement::Disc {
            centre,
            radius,
            fill,
        } => {
            let radius = (radius * scale).round() as u32;
            backend
                .draw_circle(pixel(*centre), radius, &filled(*fill), true)
                .map_err(draw_error)
        }
        DrawingElement::Line {
            points,
            ink,
            width,
            dash,
        } => {
            let pieces = match dash {
                Some((on, off)) => dashes(points, *on, *off),
                None => vec![points.clone()],
            };
            let style = filled(*ink).stroke_width((width * scale).round().max(1.0) as u32);
            let joint = (width * scale / 2.0).floor() as u32;
            for pair in pieces.iter().flat_map(|piece| piece.windows(2)) {
                // One segment at a time with round joints: plotters fills the outline of a whole
                // path, which leaves holes where a noisy curve crosses itself.
                let (from, to) = (pixel(pair[0]), pixel(pair[1]));
                if from != to {
                    backend.draw_path([from, to], &style).map_err(draw_error)?;
                }
                if joint > 1 && dash.is_none() {
                    backend
                        .draw_circle(to, joint, &style, true)
                        .map_err(draw_error)?;
                }
            }
            Ok(())
        }
        DrawingElement::Text { .. } => Ok(()),
    }
}

fn filled(ink: Ink) -> ShapeStyle {
    let [r, g, b] = ink.rgb();
    RGBColor(r, g, b).filled()
}

/// The parts of a polyline that a dash pattern leaves.
fn dashes(points: &[At], on: f64, off: f64) -> Vec<Vec<At>> {
    let (mut pieces, mut drawing, mut left) = (Vec::new(), true, on);
    let mut piece = points.first().map_or_else(Vec::new, |&first| vec![first]);
    for pair in points.windows(2) {
        let (mut from, to) = (pair[0], pair[1]);
        let mut length = (to.0 - from.0).hypot(to.1 - from.1);
        while length > left {
            let part = left / length;
            from = (
                from.0 + (to.0 - from.0) * part,
                from.1 + (to.1 - from.1) * part,
            );
            length -= left;
            if drawing {
                piece.push(from);
                pieces.push(std::mem::take(&mut piece));
            } else {
                piece = vec![from];
            }
            drawing = !drawing;
            left = if drawing { on } else { off };
        }
        left -= length;
        if drawing {
            piece.push(to);
        }
    }
    if drawing && piece.len() > 1 {
        pieces.push(piece);
    }
    pieces
}

/// Checks that no text leaves the frame or touches another. Widths are those of the embedded font with
/// a tenth added, since the page is set in the reader's own.
#[cfg(test)]
pub(super) fn assert_texts_fit(drawing: &Drawing, what: &str) {
    let boxes: Vec<(f64, f64, f64, f64, &str)> = drawing
        .shapes
        .iter()
        .filter_map(|shape| match shape {
            DrawingElement::Text {
                at,
                text,
                size,
                anchor,
                ..
            } => {
                let width = f64::from(text::width(text, *size as f32)) * 1.1;
                let x = match anchor {
                    Anchor::Start => at.0,
                    Anchor::Middle => at.0 - width / 2.0,
                    Anchor::End => at.0 - width,
                };
                Some((
                    x,
                    at.1 - size * 0.75,
                    x + width,
                    at.1 + size * 0.2,
                    text.as_str(),
                ))
            }
            _ => None,
        })
        .collect();
    for (i, a) in boxes.iter().enumerate() {
        assert!(
            a.0 >= 0.0 && a.1 >= 0.0 && a.2 <= drawing.width && a.3 <= drawing.height,
            "{what}: {:?} is cut: {a:?} in {}x{}",
            a.4,
            drawing.width,
            drawing.height
        );
        for b in &boxes[i + 1..] {
            let apart = a.2 <= b.0 || b.2 <= a.0 || a.3 <= b.1 || b.3 <= a.1;
            assert!(
                apart,
                "{what}: {:?} and {:?} overlap: {a:?} {b:?}",
                a.4, b.4
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dashes_cover_their_share_and_bend_with_the_line() {
        let pieces = dashes(&[(0.0, 0.0), (10.0, 0.0), (10.0, 10.0)], 3.0, 2.0);
        let length: f64 = pieces
            .iter()
            .flat_map(|p| p.windows(2))
            .map(|w| (w[1].0 - w[0].0).hypot(w[1].1 - w[0].1))
            .sum();
        assert!((length - 12.0).abs() < 1e-9, "{pieces:?}");
        assert_eq!(pieces[0], [(0.0, 0.0), (3.0, 0.0)]);
        assert!(dashes(&[], 1.0, 1.0).is_empty());
    }

    #[test]
    fn svg_escapes_and_picture_has_the_colours() {
        let mut drawing = Drawing::new(60.0, 20.0);
        drawing.rect((0.0, 0.0), (20.0, 20.0), Ink::Val);
        drawing.line(vec![(45.0, 2.0), (45.0, 18.0)], Ink::Best, 4.0, None);
        drawing.text((1.0, 10.0), "a<b&\"c", 8.0, Ink::Text, Anchor::Start);
        let svg = drawing.svg("x \"y\" <z>").into_string();
        assert!(
            svg.contains("a&lt;b&amp;") && svg.contains("aria-label=\"x &quot;y&quot; &lt;z&gt;\"")
        );
        let picture = drawing.picture().unwrap();
        assert_eq!(picture.dimensions(), (120, 40));
        assert_eq!(picture.get_pixel(30, 36).0, Ink::Val.rgb());
        assert_eq!(picture.get_pixel(90, 20).0, Ink::Best.rgb());
        assert_eq!(picture.get_pixel(110, 20).0, [255; 3]);
    }
}
