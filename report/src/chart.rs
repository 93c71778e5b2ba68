//! One line chart: its content as data, and its layout as a [`Drawing`].

use super::palette::Ink;
use super::shape::{At, Drawing};
use super::text::{self, Anchor};

/// How an axis counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Count {
    /// Whole numbers only (epochs, steps).
    Whole,
    /// Real numbers, as many decimals as tell ticks apart.
    Real,
}

/// Ends, label and kind of ticks of an axis.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Axis {
    pub(super) min: f64,
    pub(super) max: f64,
    pub(super) label: &'static str,
    pub(super) count: Count,
}

/// A shaded horizontal band with a word for it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Band {
    pub(super) from: f64,
    pub(super) to: f64,
    pub(super) name: &'static str,
    pub(super) ink: Ink,
}

/// How a series is drawn.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Stroke {
    /// A line of this width.
    Line(f64),
    /// A line of this width with a dot on each point.
    Dotted(f64),
    /// A dashed line: a trend.
    Dashed,
    /// Fine dots: something to compare with.
    Reference,
}

/// Points joined in order.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Series {
    /// Name in the legend; empty for none.
    pub(super) name: String,
    pub(super) ink: Ink,
    pub(super) stroke: Stroke,
    pub(super) points: Vec<At>,
}

/// The marked point of the best epoch.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct MarkedPoint {
    pub(super) at: At,
    pub(super) label: String,
}

/// Natural size of a chart on the page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Size {
    /// Three to a row.
    Small,
    /// Two to a row.
    Wide,
    /// Two to a row, and high: both axes are fractions.
    Tall,
}

/// A chart, its file name and the words around it.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Chart {
    /// File name without `.png`.
    pub(super) slug: String,
    pub(super) title: String,
    /// What it shows, for those who cannot see it.
    pub(super) alt: String,
    /// One line of explanation beneath, may be empty.
    pub(super) note: String,
    pub(super) size: Size,
    pub(super) x: Axis,
    pub(super) y: Axis,
    pub(super) bands: Vec<Band>,
    /// The most important first: the legend begins with it, and it is drawn last, on top.
    pub(super) series: Vec<Series>,
    pub(super) mark: Option<MarkedPoint>,
    /// Faint vertical lines (epoch starts).
    pub(super) guides: Vec<f64>,
    /// Whether the legend is drawn on the page too; in a picture file it always is.
    pub(super) own_legend: bool,
}

const TICK: f64 = 11.0;
const LEGEND_ROW: f64 = 18.0;
const SWATCH: f64 = 20.0;

/// The rectangle that the data fill, and the mapping into it.
struct PlotArea {
    left: f64,
    top: f64,
    right: f64,
    bottom: f64,
}

impl Chart {
    /// Lays the chart out. `standalone` adds the title and the legend, for a file of its own.
    pub(super) fn drawing(&self, standalone: bool) -> Drawing {
        let (width, plot_height) = match self.size {
            Size::Small => (400.0, 190.0),
            Size::Wide => (560.0, 250.0),
            Size::Tall => (560.0, 340.0),
        };
        // On the page the card has its own padding.
        let pad = if standalone { 12.0 } else { 1.0 };
        let legend = if standalone || self.own_legend {
            self.legend_rows(pad, width)
        } else {
            Vec::new()
        };
        let title_height = if standalone { 30.0 } else { 0.0 };
        let head = title_height
            + LEGEND_ROW * legend.len() as f64
            + if self.mark.is_some() { 20.0 } else { 10.0 };
        let y_ticks = ticks(&self.y, 5);
        let labels: Vec<String> = y_ticks.iter().map(|&v| tick_label(v, &y_ticks)).collect();
        let widest = labels
            .iter()
            .map(|l| text_width(l, TICK))
            .fold(0.0, f64::max);
        let name_height = if self.y.label.is_empty() { 0.0 } else { 14.0 };
        let frame = PlotArea {
            // A tenth more: the reader's font may run wider than the embedded one.
            left: pad + widest * 1.1 + 8.0,
            top: head + name_height,
            right: width - pad - if self.bands.is_empty() { 12.0 } else { 58.0 },
            bottom: head + name_height + plot_height,
        };
        let mut drawing = Drawing::new(width, frame.bottom + 40.0);
        if standalone {
            drawing.heading((pad, 22.0), self.title.clone(), 14.0, Anchor::Start);
        }
        draw_legend(&mut drawing, &legend, title_height);
        self.draw_bands(&mut drawing, &frame);
        self.draw_grid(&mut drawing, &frame, &y_ticks, &labels);
        if !self.y.label.is_empty() {
            // Above the label of the best epoch, if there is one.
            let y = frame.top - if self.mark.is_some() { 22.0 } else { 9.0 };
            drawing.text((pad, y), self.y.label, TICK, Ink::Muted, Anchor::Start);
        }
        for series in self.series.iter().rev() {
            self.draw_series(&mut drawing, &frame, series);
        }
        self.draw_mark(&mut drawing, &frame);
        drawing
    }

    fn place(&self, frame: &PlotArea, at: At) -> At {
        let part = |value: f64, axis: &Axis| {
            let span = axis.max - axis.min;
            if span > 0.0 {
                ((value - axis.min) / span).clamp(0.0, 1.0)
            } else {
                0.5
            }
        };
        (
            frame.left + part(at.0, &self.x) * (frame.right - frame.left),
            frame.bottom - part(at.1, &self.y) * (frame.bottom - frame.top),
        )
    }

    fn draw_bands(&self, drawing: &mut Drawing, frame: &PlotArea) {
        for band in &self.bands {
            let (from, to) = (band.from.max(self.y.min), band.to.min(self.y.max));
            if from >= to {
                continue;
            }
            let (top, bottom) = (
                self.place(frame, (0.0, to)).1,
                self.place(frame, (0.0, from)).1,
            );
            drawing.rect((frame.left, top), (frame.right, bottom), band.ink);
            if bottom - top >= TICK + 2.0 {
                let at = (frame.right + 6.0, (top + bottom) / 2.0 + TICK * 0.3);
                drawing.text(at, band.name, TICK - 1.0, Ink::Muted, Anchor::Start);
            }
        }
    }

    fn draw_grid(&self, drawing: &mut Drawing, frame: &PlotArea, ys: &[f64], labels: &[String]) {
        for (&value, label) in ys.iter().zip(labels) {
            let y = self.place(frame, (0.0, value)).1;
            drawing.line(
                vec![(frame.left, y), (frame.right, y)],
                Ink::Grid,
                1.0,
                None,
            );
            drawing.text(
                (frame.left - 6.0, y + TICK * 0.35),
                label.clone(),
                TICK,
                Ink::Muted,
                Anchor::End,
            );
        }
        for &x in &self.guides {
            let x = self.place(frame, (x, 0.0)).0;
            drawing.line(
                vec![(x, frame.top), (x, frame.bottom)],
                Ink::Grid,
                1.0,
                None,
            );
        }
        drawing.line(
            vec![(frame.left, frame.bottom), (frame.right, frame.bottom)],
            Ink::Axis,
            1.0,
            None,
        );
        let xs = ticks(&self.x, if self.size == Size::Small { 6 } else { 8 });
        for &value in &xs {
            let x = self.place(frame, (value, 0.0)).0;
            drawing.line(
                vec![(x, frame.bottom), (x, frame.bottom + 4.0)],
                Ink::Axis,
                1.0,
                None,
            );
            let at = (x, frame.bottom + 16.0);
            drawing.text(at, tick_label(value, &xs), TICK, Ink::Muted, Anchor::Middle);
        }
        let middle = ((frame.left + frame.right) / 2.0, frame.bottom + 33.0);
        drawing.text(middle, self.x.label, TICK, Ink::Muted, Anchor::Middle);
    }

    fn draw_series(&self, drawing: &mut Drawing, frame: &PlotArea, series: &Series) {
        let points: Vec<At> = series
            .points
            .iter()
            .map(|&p| self.place(frame, p))
            .collect();
        let (width, dash) = line_style(series.stroke);
        drawing.line(points.clone(), series.ink, width, dash);
        let dotted = matches!(series.stroke, Stroke::Dotted(_));
        // A lone point has no line, and dots on a crowded line are a smear.
        if points.len() == 1 || (dotted && points.len() <= 40) {
            for point in points {
                drawing.disc(point, 4.0, Ink::Paper);
                drawing.disc(point, 2.8, series.ink);
            }
        }
    }

    fn draw_mark(&self, drawing: &mut Drawing, frame: &PlotArea) {
        let Some(mark) = &self.mark else { return };
        let at = self.place(frame, mark.at);
        drawing.line(
            vec![(at.0, frame.top - 4.0), (at.0, frame.bottom)],
            Ink::Best,
            1.2,
            Some((3.0, 3.0)),
        );
        drawing.disc(at, 6.0, Ink::Paper);
        drawing.disc(at, 4.5, Ink::Best);
        let half = text_width(&mark.label, TICK) * 0.58;
        let x = at.0.clamp(
            frame.left.max(half),
            (frame.right.min(drawing.width - 2.0) - half).max(frame.left + half),
        );
        drawing.text(
            (x, frame.top - 7.0),
            mark.label.clone(),
            TICK,
            Ink::Best,
            Anchor::Middle,
        );
    }

    /// Legend entries with their x, wrapped to the width.
    fn legend_rows(&self, pad: f64, width: f64) -> Vec<Vec<(f64, String, Ink, Stroke)>> {
        let mut entries: Vec<(String, Ink, Stroke)> = self
            .series
            .iter()
            .filter(|s| !s.name.is_empty() && !s.points.is_empty())
            .map(|s| (s.name.clone(), s.ink, s.stroke))
            .collect();
        if self.mark.is_some() {
            entries.push(("best epoch".to_owned(), Ink::Best, Stroke::Dashed));
        }
        let mut rows: Vec<Vec<(f64, String, Ink, Stroke)>> = Vec::new();
        let mut x = f64::INFINITY;
        for (name, ink, stroke) in entries {
            // The reader's font may run wider than the embedded one.
            let space = SWATCH + 6.0 + text_width(&name, TICK) * 1.15 + 12.0;
            if x + space > width {
                rows.push(Vec::new());
                x = pad;
            }
            if let Some(row) = rows.last_mut() {
                row.push((x, name, ink, stroke));
            }
            x += space;
        }
        rows
    }
}

fn draw_legend(drawing: &mut Drawing, rows: &[Vec<(f64, String, Ink, Stroke)>], top: f64) {
    for (index, row) in rows.iter().enumerate() {
        let y = top + LEGEND_ROW * index as f64 + 12.0;
        for (x, name, ink, stroke) in row {
            let (width, dash) = line_style(*stroke);
            drawing.line(
                vec![(*x, y - 4.0), (x + SWATCH, y - 4.0)],
                *ink,
                width.max(1.6),
                dash,
            );
            if matches!(stroke, Stroke::Dotted(_)) {
                drawing.disc((x + SWATCH / 2.0, y - 4.0), 2.8, *ink);
            }
            drawing.text(
                (x + SWATCH + 6.0, y),
                name.clone(),
                TICK,
                Ink::Muted,
                Anchor::Start,
            );
        }
    }
}

fn line_style(stroke: Stroke) -> (f64, Option<(f64, f64)>) {
    match stroke {
        Stroke::Line(width) | Stroke::Dotted(width) => (width, None),
        Stroke::Dashed => (1.5, Some((6.0, 4.0))),
        Stroke::Reference => (1.3, Some((1.5, 3.0))),
    }
}

fn text_width(text: &str, size: f64) -> f64 {
    f64::from(text::width(text, size as f32))
}

/// About `target` round values (1, 2 or 5 times a power of ten) within the axis.
pub(super) fn ticks(axis: &Axis, target: usize) -> Vec<f64> {
    let span = axis.max - axis.min;
    if !span.is_finite() || span <= 0.0 {
        return vec![axis.min];
    }
    let raw = span / target.max(1) as f64;
    let power = 10f64.powf(raw.log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0]
        .map(|m| m * power)
        .into_iter()
        .find(|&s| s >= raw * 0.999)
        .unwrap_or(raw);
    let step = if axis.count == Count::Whole {
        step.max(1.0).round()
    } else {
        step
    };
    let first = (axis.min / step - 1e-9).ceil() as i64;
    let last = (axis.max / step + 1e-9).floor() as i64;
    let values: Vec<f64> = (first..=last).map(|i| i as f64 * step).collect();
    if values.is_empty() {
        vec![axis.min]
    } else {
        values
    }
}

/// A tick's text with as many decimals as tell the ticks apart; thousands as k, tiny rates as powers.
pub(super) fn tick_label(value: f64, all: &[f64]) -> String {
    let largest = all.iter().fold(0.0f64, |m, v| m.max(v.abs()));
    let step = all
        .windows(2)
        .map(|w| w[1] - w[0])
        .fold(f64::INFINITY, f64::min);
    let step = if step.is_finite() {
        step
    } else {
        largest.max(f64::MIN_POSITIVE)
    };
    if value == 0.0 {
        return "0".to_owned();
    }
    if largest < 0.01 {
        let power = (largest.log10() + 1e-9).floor() as i32;
        let scaled = value / 10f64.powi(power);
        return format!(
            "{}e{power}",
            fixed(scaled, decimals(step / 10f64.powi(power)))
        );
    }
    if largest >= 10_000.0 {
        return format!("{}k", fixed(value / 1000.0, decimals(step / 1000.0)));
    }
    fixed(value, decimals(step))
}

fn decimals(step: f64) -> usize {
    (0..6)
        .find(|&d| {
            (step * 10f64.powi(d) - (step * 10f64.powi(d)).round()).abs() < 1e-6 * 10f64.powi(d)
        })
        .unwrap_or(6) as usize
}

fn fixed(value: f64, decimals: usize) -> String {
    format!("{value:.decimals$}")
}

#[cfg(test)]
mod tests {
    use super::super::shape::assert_texts_fit;
    use super::*;
    use proptest::prelude::*;

    fn axis(min: f64, max: f64, count: Count) -> Axis {
        Axis {
            min,
            max,
            label: "epoch",
            count,
        }
    }

    fn labels(min: f64, max: f64, count: Count) -> Vec<String> {
        let all = ticks(&axis(min, max, count), 5);
        all.iter().map(|&v| tick_label(v, &all)).collect()
    }

    #[test]
    fn ticks_are_round_and_told_apart() {
        assert_eq!(
            labels(0.0, 1.0, Count::Real),
            ["0", "0.2", "0.4", "0.6", "0.8", "1.0"]
        );
        assert_eq!(
            labels(0.0, 0.05, Count::Real),
            ["0", "0.01", "0.02", "0.03", "0.04", "0.05"]
        );
        assert_eq!(
            labels(0.0, 2.5e-4, Count::Real),
            ["0", "0.5e-4", "1.0e-4", "1.5e-4", "2.0e-4", "2.5e-4"]
        );
        assert_eq!(
            labels(0.0, 50_000.0, Count::Whole),
            ["0", "10k", "20k", "30k", "40k", "50k"]
        );
        assert_eq!(labels(0.5, 3.5, Count::Whole), ["1", "2", "3"]);
        assert_eq!(labels(7.0, 7.0, Count::Whole), ["7"]);
    }

    proptest! {
        #[test]
        fn ticks_stay_inside_and_few(min in -1e6f64..1e6, span in 1e-6f64..1e7, whole in any::<bool>()) {
            let count = if whole { Count::Whole } else { Count::Real };
            let all = ticks(&axis(min, min + span, count), 5);
            prop_assert!(!all.is_empty() && all.len() <= 7);
            if all.len() > 1 {
                prop_assert!(all.iter().all(|&t| t >= min - span * 1e-3 && t <= min + span * 1.001));
                let names: std::collections::BTreeSet<_> = all.iter().map(|&v| tick_label(v, &all)).collect();
                prop_assert_eq!(names.len(), all.len());
            }
        }

        #[test]
        fn texts_fit_wherever_the_best_epoch_is(
            epochs in 1usize..60, best in 0usize..60, top in 0.001f64..2000.0, small in any::<bool>()
        ) {
            let points: Vec<At> = (0..epochs).map(|e| (e as f64, top * (e as f64 * 0.37).sin().abs())).collect();
            let at = points[best % epochs];
            let bands = [("poor", 0.0, 0.6, Ink::Poor), ("moderate", 0.6, 0.75, Ink::Middle), ("good", 0.75, 1.0, Ink::Good)];
            let chart = Chart {
                slug: String::new(), title: "Mean average precision, image level".to_owned(), alt: String::new(), note: String::new(),
                size: if small { Size::Small } else { Size::Wide },
                x: axis(0.0, (epochs - 1) as f64, Count::Whole),
                y: Axis { min: 0.0, max: top, label: "ms", count: Count::Real },
                bands: bands.map(|(name, from, to, ink)| Band { from: from * top, to: to * top, name, ink }).to_vec(),
                series: ["validation", "training", "quadratic trend", "best constant", "another"].map(|name| Series {
                    name: name.to_owned(), ink: Ink::Val, stroke: Stroke::Dotted(2.0), points: points.clone(),
                }).to_vec(),
                mark: Some(MarkedPoint { at, label: format!("epoch {}: {:.3}", at.0, at.1) }),
                guides: vec![],
                own_legend: true,
            };
            assert_texts_fit(&chart.drawing(true), "standalone");
            assert_texts_fit(&chart.drawing(false), "page");
        }
    }
}
