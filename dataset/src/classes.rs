//! The lesion classes and the splits: their names and their order everywhere.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Lesion classes in the order of label bits: bit `i` of a label byte is `CLASSES[i]`.
/// MA microaneurysms, HE haemorrhages, EX hard exudates, SE soft exudates.
pub const CLASSES: [&str; 4] = ["MA", "HE", "EX", "SE"];

/// The label byte with every class set.
pub const ALL_CLASSES: u8 = 0b1111;

/// RGB colours that stand for the classes in every picture; chosen to be seen on red and on yellow.
pub const CLASS_COLOURS: [[u8; 3]; 4] = [
    [0, 229, 255],
    [57, 255, 20],
    [255, 77, 255],
    [255, 255, 255],
];

/// "MA HE" for a label byte; "healthy" for none.
pub fn label_names(label: u8) -> String {
    let names: Vec<&str> = CLASSES
        .iter()
        .enumerate()
        .filter(|(class, _)| label >> class & 1 == 1)
        .map(|(_, name)| *name)
        .collect();
    if names.is_empty() {
        "healthy".to_owned()
    } else {
        names.join(" ")
    }
}

/// What an image is used for. All patches of an image are in one split.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Split {
    /// Parameters are fitted on it.
    Train,
    /// Choices (early stopping, thresholds) are made on it.
    Val,
    /// Looked at once, at the end.
    Test,
}

impl Split {
    /// All splits, in the order of tables.
    pub const ALL: [Self; 3] = [Self::Train, Self::Val, Self::Test];

    /// The name in manifests and on command lines.
    pub fn name(self) -> &'static str {
        match self {
            Self::Train => "train",
            Self::Val => "val",
            Self::Test => "test",
        }
    }
}

impl fmt::Display for Split {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Split {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL
            .into_iter()
            .find(|split| split.name() == text)
            .ok_or_else(|| format!("`{text}` is no split\n  help: use train, val or test"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn splits_have_one_spelling() {
        for split in Split::ALL {
            assert_eq!(split.name().parse(), Ok(split));
            assert_eq!(
                serde_json::to_string(&split).unwrap(),
                format!("\"{split}\"")
            );
        }
        assert!(
            "training"
                .parse::<Split>()
                .unwrap_err()
                .contains("help: use train, val or test")
        );
    }

    #[test]
    fn labels_read_as_names_in_bit_order() {
        assert_eq!(label_names(0), "healthy");
        assert_eq!(label_names(0b0001), "MA");
        assert_eq!(label_names(0b1010), "HE SE");
        assert_eq!(label_names(ALL_CLASSES), "MA HE EX SE");
    }
}
