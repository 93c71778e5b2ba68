//! What can be wrong with the rows given to a metric, or with `metrics.csv`.

use std::path::PathBuf;

/// Result of this module.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why scores could not be computed, written or read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A set without labelled samples: nothing to score.
    #[error(
        "no samples to score: the metrics of an empty set are undefined\n  help: check that the split has images (`fovea data DATA`) and that at least one cell is not black"
    )]
    Empty,
    /// A probability that is NaN, infinite or outside `[0, 1]`.
    #[error(
        "sample {id}, class {class}: the probability is {value}, outside 0..=1\n  help: the model diverged; resume from an earlier checkpoint with a lower learning rate"
    )]
    BadProbability {
        /// Id of the sample: that of a patch, or the index of an image.
        id: u64,
        /// Name of the class in its target.
        class: String,
        /// The value that is out of range.
        value: f32,
    },
    /// A label that means no class of the target.
    #[error(
        "sample {id}: {reason}\n  help: run `fovea prepare` again, the prepared labels are not of this version"
    )]
    BadLabel {
        /// Id of the sample: that of a patch, or the index of an image.
        id: u64,
        /// The label, and which there are.
        reason: String,
    },
    /// Columns of a table that do not belong together.
    #[error(
        "{ids} ids have {labels} labels and {probabilities} probabilities of {classes} classes\n  help: this is a defect of the caller, please report it"
    )]
    Shape {
        /// Ids in the table.
        ids: usize,
        /// Labels in the table.
        labels: usize,
        /// Probabilities in the table.
        probabilities: usize,
        /// Classes of the target.
        classes: usize,
    },
    /// Another number of thresholds than of classes.
    #[error(
        "{thresholds} thresholds were given for {classes} classes\n  help: this is a defect of the caller, please report it"
    )]
    Thresholds {
        /// How many thresholds the caller gave.
        thresholds: usize,
        /// Classes of the target.
        classes: usize,
    },
    /// The same id twice: the set was not gathered exactly.
    #[error(
        "sample {id} appears more than once among {samples} rows\n  help: each sample must be scored by exactly one rank; this is a defect of the caller, please report it"
    )]
    Duplicate {
        /// Id of the sample: that of a patch, or the index of an image.
        id: u64,
        /// How many rows the caller gave.
        samples: usize,
    },
    /// A loss that is NaN or infinite.
    #[error(
        "the loss is {0}\n  help: the model diverged; resume from an earlier checkpoint with a lower learning rate"
    )]
    BadLoss(f64),
    /// A threshold that is not a number.
    #[error(
        "threshold of class {class} is {value}\n  help: thresholds are probabilities, 0.5 by default"
    )]
    BadThreshold {
        /// Name of the class in its target.
        class: String,
        /// The value that is out of range.
        value: f32,
    },
    /// Scores of a target that the task does not have, or not with as many classes.
    #[error(
        "scores of {target:?} with {classes} classes are not of this task\n  help: this is a defect of the caller, please report it"
    )]
    Foreign {
        /// Name of the target that the row is about.
        target: String,
        /// Classes that were scored.
        classes: usize,
    },
    /// The file could not be read or written.
    #[error(
        "{path}: cannot {action}: {source}\n  help: check that the run directory exists, is writable and that the disk is not full"
    )]
    Io {
        /// The file that the error is about.
        path: PathBuf,
        /// What was tried, as a verb.
        action: &'static str,
        /// The reason that the operating system gave.
        source: std::io::Error,
    },
    /// The file begins with other columns.
    #[error(
        "{path}: the header is not that of a metrics file of this version (found {found:?})\n  help: move the file aside, or use the version of fovea that wrote it"
    )]
    Header {
        /// The file that the error is about.
        path: PathBuf,
        /// First bytes of what is there.
        found: String,
    },
    /// A complete line that cannot be read.
    #[error(
        "{path}: line {line}: {reason}\n  help: the file was edited or damaged; repair that line or delete it"
    )]
    Row {
        /// The file that the error is about.
        path: PathBuf,
        /// Number of the line, the header being 1.
        line: u64,
        /// What is wrong with it.
        reason: String,
    },
}

impl Error {
    /// Whether data or a file that was given is to blame: no retry helps.
    pub fn is_usage(&self) -> bool {
        matches!(
            self,
            Self::Empty | Self::BadLabel { .. } | Self::Header { .. } | Self::Row { .. }
        )
    }
}
