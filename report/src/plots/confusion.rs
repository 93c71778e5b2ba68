//! Confusion: a 2 x 2 table per class at the threshold, or one table of all classes where a sample has exactly one.

use fovea_run::metrics::{ClassMetrics, Metrics};
use fovea_task::Target;

use super::super::palette::{Ink, SHADES};
use super::super::shape::{At, Drawing};
use super::super::text::{self, Anchor};
use super::noun;

const CELL: (f64, f64) = (104.0, 58.0);
const LEFT: f64 = 56.0;
const GAP: f64 = 26.0;

/// The drawing and what it shows in words.
pub(in super::super) fn confusion(
    metrics: &Metrics,
    target: &Target,
    standalone: bool,
) -> (Drawing, String) {
    match &metrics.agreement {
        Some(agreement) => matrix(&agreement.confusion, target, standalone),
        None => per_class(metrics, target, standalone),
    }
}

fn per_class(metrics: &Metrics, target: &Target, standalone: bool) -> (Drawing, String) {
    let table = LEFT + 2.0 * CELL.0;
    let title_height = if standalone { 34.0 } else { 0.0 };
    let width = target.classes.len() as f64 * (table + GAP) - GAP + 8.0;
    let mut drawing = Drawing::new(width, title_height + 2.0 * CELL.1 + 54.0);
    if standalone {
        let title = format!("Confusion per class, {}", noun(target));
        drawing.heading((12.0, 22.0), title, 16.0, Anchor::Start);
    }
    let mut words = Vec::new();
    for (index, (class, c)) in target.classes.iter().zip(&metrics.per_class).enumerate() {
        let corner = (index as f64 * (table + GAP), title_height);
        one(&mut drawing, corner, &class.name, c);
        words.push(format!(
            "{}: {} found, {} missed, {} false alarms, {} rightly negative",
            class.name, c.tp, c.fn_, c.fp, c.tn
        ));
    }
    (drawing, in_words(target, &words))
}

fn in_words(target: &Target, words: &[String]) -> String {
    format!(
        "Confusion on validation {}. {}",
        noun(target),
        words.join("; ")
    )
}

/// True classes down, predicted ones across; shaded by the share of the row.
fn matrix(confusion: &[Vec<u64>], target: &Target, standalone: bool) -> (Drawing, String) {
    let names: Vec<&str> = target
        .classes
        .iter()
        .map(|class| class.name.as_str())
        .collect();
    let widths = names.iter().map(|name| f64::from(text::width(name, 12.0)));
    // A tenth more: the reader's font may run wider than the embedded one.
    let widest = widths.fold(0.0, f64::max) * 1.1;
    let (left, cell) = (widest.max(LEFT) + 16.0, (CELL.0.max(widest + 8.0), CELL.1));
    let top = if standalone { 34.0 } else { 0.0 } + 48.0;
    let side = names.len() as f64;
    // Room for the title also above a matrix of two classes.
    let width = (left + side * cell.0 + 8.0).max(480.0);
    let mut drawing = Drawing::new(width, top + side * cell.1 + 6.0);
    if standalone {
        let title = format!("Confusion, {}", noun(target));
        drawing.heading((12.0, 22.0), title, 16.0, Anchor::Start);
    }
    let across = (left + side * cell.0 / 2.0, top - 28.0);
    drawing.text(across, "predicted", 12.0, Ink::Muted, Anchor::Middle);
    let mut words = Vec::new();
    for (truth, (name, row)) in names.iter().zip(confusion).enumerate() {
        let middle = left + (truth as f64 + 0.5) * cell.0;
        drawing.text((middle, top - 8.0), *name, 12.0, Ink::Muted, Anchor::Middle);
        let upper = top + truth as f64 * cell.1;
        let label = (left - 8.0, upper + cell.1 / 2.0 + 4.0);
        drawing.text(label, *name, 12.0, Ink::Muted, Anchor::End);
        let total = row.iter().sum();
        for (guess, &count) in row.iter().enumerate() {
            let corner = (left + guess as f64 * cell.0, upper);
            share(&mut drawing, (corner, cell), (count, total), truth == guess);
        }
        let counts = row.iter().zip(&names).filter(|(count, _)| **count > 0);
        let counts: Vec<String> = counts
            .map(|(count, guess)| format!("{count} {guess}"))
            .collect();
        words.push(format!(
            "{name}: {total}, predicted {}",
            match counts.is_empty() {
                true => "nothing".to_owned(),
                false => counts.join(", "),
            }
        ));
    }
    (drawing, in_words(target, &words))
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
            let corner = (left + i as f64 * CELL.0, upper);
            share(drawing, (corner, CELL), (count, total), right);
        }
    }
}

/// One cell: how many of `total` in its row, and which share that is.
fn share(drawing: &mut Drawing, (corner, size): (At, At), (count, total): (u64, u64), right: bool) {
    let share = match total {
        0 => 0.0,
        total => count as f64 / total as f64,
    };
    let shade = (share * f64::from(SHADES)).round() as u8;
    let fill = match right {
        true => Ink::Right(shade),
        false => Ink::Wrong(shade),
    };
    drawing.rect(
        (corner.0 + 1.0, corner.1 + 1.0),
        (corner.0 + size.0 - 1.0, corner.1 + size.1 - 1.0),
        fill,
    );
    let middle = (corner.0 + size.0 / 2.0, corner.1 + size.1 / 2.0);
    let number = (middle.0, middle.1 + 1.0);
    drawing.heading(number, grouped(count), 17.0, Anchor::Middle);
    let percent = match total {
        0 => "\u{2013}".to_owned(),
        _ => format!("{:.1} %", share * 100.0),
    };
    let below = (middle.0, middle.1 + 17.0);
    drawing.text(below, percent, 11.5, Ink::Text, Anchor::Middle);
}

/// Digits in groups of three: `12 345`.
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
    use fovea_run::metrics::Agreement;
    use fovea_task::{Kind, Task};

    #[test]
    fn texts_fit_and_counts_are_said() {
        let mut metrics = Metrics {
            per_class: vec![ClassMetrics::default(); 4],
            ..Metrics::default()
        };
        let task = Task::lesions();
        metrics.per_class[0] = ClassMetrics::from_counts(11_993, 123_456, 7, 136_237);
        metrics.per_class[3] = ClassMetrics::from_counts(0, 0, 0, 5);
        for standalone in [true, false] {
            let (drawing, alt) = confusion(&metrics, task.cells().unwrap(), standalone);
            assert_texts_fit(&drawing, "confusion");
            assert!(alt.contains(
                "MA: 11993 found, 7 missed, 123456 false alarms, 136237 rightly negative"
            ));
        }
        assert_eq!(grouped(0), "0");
        assert_eq!(grouped(1_234_567), "1\u{00a0}234\u{00a0}567");
    }

    #[test]
    fn a_matrix_names_every_class_twice() {
        let mut target = Task::lesions().targets()[0].clone();
        target.kind = Kind::OneOf;
        target.name = "grade".to_owned();
        target.classes[1].name = "proliferative retinopathy".to_owned();
        let mut confusion = vec![vec![0; 4]; 4];
        (confusion[0][0], confusion[0][1], confusion[2][0]) = (1_234_567, 3, 1);
        let metrics = Metrics {
            agreement: Some(Agreement {
                confusion,
                ..Agreement::default()
            }),
            ..Metrics::default()
        };
        for standalone in [true, false] {
            let (drawing, alt) = super::confusion(&metrics, &target, standalone);
            assert_texts_fit(&drawing, "matrix");
            assert!(
                alt.contains(
                    "validation images (grade). MA: 1234570, predicted 1234567 MA, 3 prol"
                ),
                "{alt}"
            );
            assert!(
                alt.contains("EX: 1, predicted 1 MA; SE: 0, predicted nothing"),
                "{alt}"
            );
            let svg = drawing.svg(&alt);
            assert_eq!(svg.into_string().matches(">SE<").count(), 2);
        }
    }
}
