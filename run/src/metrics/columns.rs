//! The columns of `metrics.csv`, and a row as text. Pure.

use std::str::FromStr;

use fovea_dataset::{CLASSES, Split};

use super::{CLASS_COUNT, ClassMetrics, Level, Metrics, MetricsRow, Result};

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

/// Column names, in file order: [`LEADING`], then `MA_precision`, `MA_recall`, ... per class.
#[must_use]
pub fn columns() -> Vec<String> {
    let classes = CLASSES
        .iter()
        .flat_map(|class| PER_CLASS.iter().map(move |what| format!("{class}_{what}")));
    LEADING
        .iter()
        .map(|&name| name.to_owned())
        .chain(classes)
        .collect()
}

/// The fields of one row, in the order of [`columns`].
pub(super) fn fields(row: &MetricsRow) -> Vec<String> {
    let optional = |value: Option<f64>| value.map_or_else(String::new, |v| v.to_string());
    let m = &row.metrics;
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
        row.level.to_string(),
        m.samples.to_string(),
        m.f1_macro.to_string(),
        optional(m.mean_auroc),
        optional(m.mean_ap),
    ];
    for class in &m.per_class {
        fields.extend([
            class.precision.to_string(),
            class.recall.to_string(),
            class.f1.to_string(),
        ]);
        fields.extend([optional(class.auroc), optional(class.ap)]);
        fields.extend([class.tp, class.fp, class.fn_, class.tn].map(|count| count.to_string()));
    }
    fields
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
    let mut row = MetricsRow {
        timestamp: take.text()?.to_owned(),
        epoch: take.parse()?,
        split: Split::Train,
        level: Level::Patch,
        metrics: Metrics::default(),
    };
    let m = &mut row.metrics;
    m.f1_micro = take.parse()?;
    m.hamming = take.parse()?;
    m.subset_acc = take.parse()?;
    m.iou = take.parse()?;
    m.dice = take.parse()?;
    m.pearson_r = take.optional()?;
    m.loss = take.parse()?;
    row.split = take.parse()?;
    let level = take.text()?;
    let named = Level::ALL.iter().find(|known| known.name() == level);
    row.level =
        *named.ok_or_else(|| format!("column level: {level:?} is none of {:?}", Level::NAMES))?;
    m.samples = take.parse()?;
    m.f1_macro = take.parse()?;
    m.mean_auroc = take.optional()?;
    m.mean_ap = take.optional()?;
    for class in m.per_class.iter_mut().take(CLASS_COUNT) {
        let (precision, recall, f1) = (take.parse()?, take.parse()?, take.parse()?);
        let (auroc, ap) = (take.optional()?, take.optional()?);
        let counts = [take.parse()?, take.parse()?, take.parse()?, take.parse()?];
        let [tp, fp, fn_, tn] = counts;
        let positives = u64::checked_add(tp, fn_).ok_or("tp + fn is beyond 64 bits")?;
        *class = ClassMetrics {
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
        };
    }
    Ok(row)
}
