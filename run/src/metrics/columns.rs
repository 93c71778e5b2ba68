//! The columns of `metrics.csv`, and a row as text. Pure.

use std::str::FromStr;

use fovea_dataset::Split;
use fovea_task::{Kind, Target, Task};

use super::{Agreement, ClassMetrics, Error, Metrics, MetricsRow, Result, class_names};

const LEADING: [&str; 15] = [
    "timestamp",
    "epoch",
    "f1_micro",
    "hamming",
    "subset_acc",
    "iou",
    "dice",
    "pearson_r",
    "loss",
    "split",
    "level",
    "samples",
    "f1_macro",
    "mean_auroc",
    "mean_ap",
];
const PER_CLASS: [&str; 9] = [
    "precision",
    "recall",
    "f1",
    "auroc",
    "ap",
    "tp",
    "fp",
    "fn",
    "tn",
];

/// Behind those of the classes, where the task has a target with exactly one class per sample. `confusion` holds the rows
/// of the matrix: `5 1;0 7`.
const AGREEMENT: [&str; 3] = ["accuracy", "kappa", "confusion"];

/// Column names of a task's `metrics.csv`, in file order: those of every metric, then `MA_precision`, `MA_recall`, ... for
/// the classes of all targets. A row leaves empty what its target does not have.
#[must_use]
pub fn columns(task: &Task) -> Vec<String> {
    let classes = class_names(task)
        .into_iter()
        .flat_map(|class| PER_CLASS.iter().map(move |what| format!("{class}_{what}")));
    let agreement = match has_agreement(task) {
        true => AGREEMENT.as_slice(),
        false => &[],
    };
    let names = LEADING.iter().map(|&name| name.to_owned()).chain(classes);
    names
        .chain(agreement.iter().map(|&name| name.to_owned()))
        .collect()
}

fn has_agreement(task: &Task) -> bool {
    task.targets().iter().any(|t| t.kind == Kind::OneOf)
}

/// The index of each of the task's classes in `target`, in the order of [`columns`].
fn places(task: &Task, target: &Target) -> Vec<Option<usize>> {
    let place = |name: &str| target.classes.iter().position(|class| class.name == name);
    class_names(task).into_iter().map(place).collect()
}

fn target_of<'a>(task: &'a Task, name: &str) -> Option<&'a Target> {
    task.targets().iter().find(|target| target.name == name)
}

fn optional(value: Option<f64>) -> String {
    value.map_or_else(String::new, |v| v.to_string())
}

/// The fields of one row, in the order of [`columns`].
pub(super) fn fields(task: &Task, row: &MetricsRow) -> Result<Vec<String>> {
    let m = &row.metrics;
    let target = target_of(task, &row.target)
        .filter(|target| target.classes.len() == m.per_class.len())
        .ok_or_else(|| Error::Foreign {
            target: row.target.clone(),
            classes: m.per_class.len(),
        })?;
    let mut fields = vec![
        row.timestamp.clone(),
        row.epoch.to_string(),
        m.f1_micro.to_string(),
        m.hamming.to_string(),
        m.subset_acc.to_string(),
        m.iou.to_string(),
        m.dice.to_string(),
        optional(m.pearson_r),
        m.loss.to_string(),
        row.split.to_string(),
        row.target.clone(),
        m.samples.to_string(),
        m.f1_macro.to_string(),
        optional(m.mean_auroc),
        optional(m.mean_ap),
    ];
    for place in places(task, target) {
        match place {
            Some(class) => fields.extend(class_fields(&m.per_class[class])),
            None => fields.extend(PER_CLASS.map(|_| String::new())),
        }
    }
    if has_agreement(task) {
        fields.extend(match &m.agreement {
            Some(it) => [
                it.accuracy.to_string(),
                optional(it.kappa),
                it.confusion
                    .iter()
                    .map(|row| spaced(row))
                    .collect::<Vec<_>>()
                    .join(";"),
            ],
            None => AGREEMENT.map(|_| String::new()),
        });
    }
    Ok(fields)
}

fn class_fields(class: &ClassMetrics) -> [String; PER_CLASS.len()] {
    let [precision, recall, f1] = [class.precision, class.recall, class.f1].map(|v| v.to_string());
    let [tp, fp, fn_, tn] = [class.tp, class.fp, class.fn_, class.tn].map(|n| n.to_string());
    let (auroc, ap) = (optional(class.auroc), optional(class.ap));
    [precision, recall, f1, auroc, ap, tp, fp, fn_, tn]
}

fn spaced(counts: &[u64]) -> String {
    let counts: Vec<String> = counts.iter().map(u64::to_string).collect();
    counts.join(" ")
}

/// One CSV line with its newline. Quoting follows RFC 4180.
pub(super) fn csv_line<I: IntoIterator<Item = String>>(fields: I) -> String {
    let quoted = fields.into_iter().map(|field| {
        if field.contains([',', '"', '\n', '\r']) {
            format!("\"{}\"", field.replace('"', "\"\""))
        } else {
            field
        }
    });
    quoted.collect::<Vec<_>>().join(",") + "\n"
}

/// Takes fields from the left.
struct Fields<'a> {
    names: &'a [String],
    record: &'a csv::StringRecord,
    next: usize,
}

impl Fields<'_> {
    fn text(&mut self) -> Result<&str, String> {
        let field = self.record.get(self.next).ok_or_else(|| {
            format!(
                "{} fields, expected {}",
                self.record.len(),
                self.names.len()
            )
        })?;
        self.next += 1;
        Ok(field)
    }

    fn parse<T: FromStr>(&mut self) -> Result<T, String> {
        let column = self.next;
        let text = self.text()?.to_owned();
        text.parse()
            .map_err(|_| format!("column {}: cannot read {text:?}", self.names[column]))
    }

    /// The fields of what a row does not have.
    fn empty(&mut self, count: usize) -> Result<(), String> {
        for _ in 0..count {
            let column = self.next;
            let text = self.text()?.to_owned();
            if !text.is_empty() {
                let name = &self.names[column];
                return Err(format!("column {name}: {text:?}, where nothing belongs"));
            }
        }
        Ok(())
    }

    fn optional(&mut self) -> Result<Option<f64>, String> {
        if self.record.get(self.next) == Some("") {
            self.next += 1;
            return Ok(None);
        }
        self.parse().map(Some)
    }
}

/// Reads one record; the error names the column and what it holds.
pub(super) fn parse_row(
    task: &Task,
    names: &[String],
    record: &csv::StringRecord,
) -> Result<MetricsRow, String> {
    if record.len() != names.len() {
        return Err(format!("{} fields, expected {}", record.len(), names.len()));
    }
    let mut take = Fields {
        names,
        record,
        next: 0,
    };
    let timestamp = take.text()?.to_owned();
    let epoch = take.parse()?;
    let mut m = Metrics {
        f1_micro: take.parse()?,
        hamming: take.parse()?,
        subset_acc: take.parse()?,
        iou: take.parse()?,
        dice: take.parse()?,
        pearson_r: take.optional()?,
        loss: take.parse()?,
        ..Metrics::default()
    };
    let split: Split = take.parse()?;
    let name = take.text()?;
    let target = target_of(task, name).ok_or_else(|| {
        let known: Vec<&str> = task.targets().iter().map(|t| t.name.as_str()).collect();
        format!("column level: {name:?} is none of {known:?}")
    })?;
    m.samples = take.parse()?;
    m.f1_macro = take.parse()?;
    m.mean_auroc = take.optional()?;
    m.mean_ap = take.optional()?;
    m.per_class = vec![ClassMetrics::default(); target.classes.len()];
    for place in places(task, target) {
        match place {
            Some(class) => m.per_class[class] = parse_class(&mut take)?,
            None => take.empty(PER_CLASS.len())?,
        }
    }
    match target.kind {
        Kind::OneOf => m.agreement = Some(parse_agreement(&mut take, target)?),
        Kind::AnyOf if has_agreement(task) => take.empty(AGREEMENT.len())?,
        Kind::AnyOf => {}
    }
    Ok(MetricsRow {
        timestamp,
        epoch,
        split,
        target: target.name.clone(),
        metrics: m,
    })
}

fn parse_class(take: &mut Fields<'_>) -> Result<ClassMetrics, String> {
    let (precision, recall, f1) = (take.parse()?, take.parse()?, take.parse()?);
    let (auroc, ap) = (take.optional()?, take.optional()?);
    let counts = [take.parse()?, take.parse()?, take.parse()?, take.parse()?];
    let [tp, fp, fn_, tn] = counts;
    let positives = u64::checked_add(tp, fn_).ok_or("tp + fn is beyond 64 bits")?;
    Ok(ClassMetrics {
        precision,
        recall,
        f1,
        auroc,
        ap,
        tp,
        fp,
        fn_,
        tn,
        positives,
    })
}

fn parse_agreement(take: &mut Fields<'_>, target: &Target) -> Result<Agreement, String> {
    let (accuracy, kappa) = (take.parse()?, take.optional()?);
    let (text, classes) = (take.text()?, target.classes.len());
    let row = |row: &str| -> Option<Vec<u64>> {
        row.split(' ').map(|count| count.parse().ok()).collect()
    };
    let confusion: Option<Vec<Vec<u64>>> = text.split(';').map(row).collect();
    let square = |m: &Vec<Vec<u64>>| m.len() == classes && m.iter().all(|r| r.len() == classes);
    Ok(Agreement {
        accuracy,
        kappa,
        confusion: confusion.filter(square).ok_or_else(|| {
            format!("column confusion: {text:?} is no {classes} x {classes} matrix of counts")
        })?,
    })
}
