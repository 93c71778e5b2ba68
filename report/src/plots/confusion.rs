//! Confusion of each class at the threshold: four 2 x 2 tables in a row.

use fovea_dataset::CLASSES;
use fovea_run::config::Level;
use fovea_run::metrics::{ClassMetrics, Metrics};

use super::super::palette::{Ink, SHADES};
use super::super::shape::Drawing;
use super::super::text::Anchor;
use super::noun;

const CELL: (f64, f64) = (104.0, 58.0);
const LEFT: f64 = 56.0;
const GAP: f64 = 26.0;

/// The drawing and what it shows in words.
pub(in super::super) fn confusion(
    metrics: &Metrics,
    level: Level,
    standalone: bool,
) -> (Drawing, String) {
    let table = LEFT + 2.0 * CELL.0;
    let title_height = if standalone { 34.0 } else { 0.0 };
    let width = CLASSES.len() as f64 * (table + GAP) - GAP + 8.0;
    let mut drawing = Drawing::new(width, title_height + 2.0 * CELL.1 + 54.0);
    if standalone {
        let title = format!("Confusion per class, {}", noun(level));
        drawing.heading((12.0, 22.0), title, 16.0, Anchor::Start);
    }
    for (index, class) in metrics.per_class.iter().enumerate() {
        one(
            &mut drawing,
            (index as f64 * (table + GAP), title_height),
            CLASSES[index],
            class,
        );
    }
    let words: Vec<String> = metrics
        .per_class
        .iter()
        .zip(CLASSES)
        .map(|(c, name)| {
            format!(
                "{name}: {} found, {} missed, {} false alarms, {} rightly negative",
                c.tp, c.fn_, c.fp, c.tn
            )
        })
        .collect();
    (
        drawing,
        format!(
            "Confusion on validation {}. {}",
            noun(level),
            words.join("; ")
        ),
    )
}

/// Rows are the truth, columns the prediction; shaded by the share of the row.
fn one(drawing: &mut Drawing, (x, y): (f64, f64), name: &str, c: &ClassMetrics) {
    let left = x + LEFT;
    drawing.heading((left, y + 18.0), name, 15.0, Anchor::Start);
    for (i, head) in ["predicted", "not predicted"].iter().enumerate() {
        let middle = left + (i as f64 + 0.5) * CELL.0;
        drawing.text((middle, y + 40.0), *head, 12.0, Ink::Muted, Anchor::Middle);
    }
    let top = y + 48.0;
    let rows = [
        ("present", [(c.tp, true), (c.fn_, false)]),
        ("absent", [(c.fp, false), (c.tn, true)]),
    ];
    for (r, (truth, cells)) in rows.iter().enumerate() {
        let upper = top + r as f64 * CELL.1;
        let label = (left - 8.0, upper + CELL.1 / 2.0 + 4.0);
        drawing.text(label, *truth, 12.0, Ink::Muted, Anchor::End);
        let total = cells[0].0 + cells[1].0;
        for (i, &(count, right)) in cells.iter().enumerate() {
            let share = if total == 0 {
                0.0
            } else {
                count as f64 / total as f64
            };
            let shade = (share * f64::from(SHADES)).round() as u8;
            let corner = (left + i as f64 * CELL.0, upper);
            let fill = if right {
                Ink::Right(shade)
            } else {
                Ink::Wrong(shade)
            };
            drawing.rect(
                (corner.0 + 1.0, corner.1 + 1.0),
                (corner.0 + CELL.0 - 1.0, corner.1 + CELL.1 - 1.0),
                fill,
            );
            let middle = (corner.0 + CELL.0 / 2.0, corner.1 + CELL.1 / 2.0);
            drawing.heading(
                (middle.0, middle.1 + 1.0),
                grouped(count),
                17.0,
                Anchor::Middle,
            );
            let percent = if total == 0 {
                "\u{2013}".to_owned()
            } else {
                format!("{:.1} %", share * 100.0)
            };
            drawing.text(
                (middle.0, middle.1 + 17.0),
                percent,
                11.5,
                Ink::Text,
                Anchor::Middle,
            );
        }
    }
}

/// `12 345`.
pub(in super::super) fn grouped(count: u64) -> String {
    let digits = count.to_string();
    let mut text = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push('\u{00a0}');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::super::super::shape::assert_texts_fit;
    use super::*;

    #[test]
    fn texts_fit_and_counts_are_said() {
        let mut metrics = Metrics::default();
        metrics.per_class[0] = ClassMetrics::from_counts(11_993, 123_456, 7, 136_237);
        metrics.per_class[3] = ClassMetrics::from_counts(0, 0, 0, 5);
        for standalone in [true, false] {
            let (drawing, alt) = confusion(&metrics, Level::Patch, standalone);
            assert_texts_fit(&drawing, "confusion");
            assert!(alt.contains(
                "MA: 11993 found, 7 missed, 123456 false alarms, 136237 rightly negative"
            ));
        }
        assert_eq!(grouped(0), "0");
        assert_eq!(grouped(1_234_567), "1\u{00a0}234\u{00a0}567");
    }
}
