//! A line chart in its own file, for measurements.

use std::path::Path;

use super::chart::{Axis, Chart, Count, Series, Size, Stroke};
use super::palette::Ink;
use super::shape::At;
use super::{Result, files};

/// How efficient ranks are, over their number: a chart with a line per kind of measurement.
pub struct Shares {
    /// Heading above the chart.
    pub title: String,
    /// Named lines of (ranks, share).
    pub lines: Vec<(String, Vec<At>)>,
}

impl Shares {
    fn chart(&self) -> Chart {
        let points = || self.lines.iter().flat_map(|(_, points)| points);
        let most = |of: fn(&At) -> f64, least: f64| points().map(of).fold(least, f64::max);
        let last = most(|at| at.0, 1.0);
        let mut series: Vec<Series> = self
            .lines
            .iter()
            .enumerate()
            .map(|(number, (name, points))| Series {
                name: name.clone(),
                ink: Ink::Rank(number),
                stroke: Stroke::Dotted(1.8),
                points: points.clone(),
            })
            .collect();
        series.push(Series {
            name: "as one rank".to_owned(),
            ink: Ink::Constant,
            stroke: Stroke::Reference,
            points: vec![(1.0, 1.0), (last, 1.0)],
        });
        Chart {
            slug: "scaling".to_owned(),
            title: self.title.clone(),
            alt: "Efficiency over the number of ranks".to_owned(),
            note: String::new(),
            size: Size::Wide,
            x: Axis {
                min: 1.0,
                max: last,
                label: "ranks",
                count: Count::Whole,
            },
            y: Axis {
                min: 0.0,
                max: most(|at| at.1, 1.1),
                label: "efficiency",
                count: Count::Real,
            },
            bands: Vec::new(),
            series,
            mark: None,
            guides: Vec::new(),
            own_legend: true,
        }
    }

    /// Draws the chart into a PNG file.
    pub fn save(&self, path: &Path) -> Result<()> {
        files::replace(path, &files::png(&self.chart().drawing(true).picture()?)?)
    }
}

#[cfg(test)]
mod tests {
    use super::super::shape::assert_texts_fit;
    use super::*;

    #[test]
    fn the_plot_is_readable_and_a_png() {
        let line = |name: &str, shares: [f64; 4]| {
            let ranks = [1.0, 2.0, 4.0, 8.0];
            (name.to_owned(), ranks.into_iter().zip(shares).collect())
        };
        let shares = Shares {
            title: "Training steps, NVIDIA H200, backend nccl".to_owned(),
            lines: vec![
                line("same work per rank", [1.0, 0.98, 0.97, 1.2]),
                line("same global batch", [1.0, 0.9, 0.7, 0.4]),
            ],
        };
        let chart = shares.chart();
        assert_eq!(chart.y.max, 1.2);
        assert_texts_fit(&chart.drawing(true), "scaling");
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("scaling.png");
        shares.save(&path).unwrap();
        let picture = image::open(&path).unwrap();
        assert_eq!(picture.width(), 1120);
        assert!(shares.save(Path::new("/nowhere/x.png")).is_err());
    }
}
