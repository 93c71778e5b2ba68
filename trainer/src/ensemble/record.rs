//! The record of thresholds and temperatures that an ensemble uses, and whether it was made for these models.

use std::path::{Path, PathBuf};

use fovea_run::tuning::{Member, Tuning};

use super::{Ensemble, Tuned, Weights};
use crate::error::{Error, Result};

impl Ensemble {
    /// The record that the options ask for.
    pub(super) fn record(&self) -> Result<Option<(PathBuf, Tuning)>> {
        let (path, must) = match &self.options.tuned {
            Tuned::Not => return Ok(None),
            Tuned::File(path) => (Some(path.clone()), true),
            Tuned::Beside => (self.beside(), false),
        };
        let Some(path) = path else {
            return Ok(None);
        };
        let found = Tuning::read(&path, &self.task).map_err(|error| match error {
            fovea_run::Error::File { path, what, help } => Error::Mismatch { path, what, help },
            other => other.into(),
        })?;
        match found {
            None if must => Err(Error::Usage {
                what: format!("--tuned {}: no such file", path.display()),
                help: "make it with `fovea tune .. --out FILE`".to_owned(),
            }),
            None => Ok(None),
            Some(tuning) => {
                self.fits(&path, &tuning)?;
                Ok(Some((path, tuning)))
            }
        }
    }

    /// Whether a record was made for these models, in this order and with these weights.
    fn fits(&self, path: &Path, tuning: &Tuning) -> Result<()> {
        let refuse = |what: String| {
            Err(Error::Mismatch {
                path: path.to_owned(),
                what,
                help: "tune these models with `fovea tune`, or go without it: --untuned".to_owned(),
            })
        };
        if tuning.models.len() != self.models() {
            return refuse(format!(
                "it was made for {} models, {} are given",
                tuning.models.len(),
                self.models()
            ));
        }
        for (known, member) in self.known.iter().zip(&tuning.models) {
            if known.weights_blake3 != member.weights_blake3 {
                return refuse(format!(
                    "it was made for weights {}, {} has {}",
                    short(&member.weights_blake3),
                    known.path.display(),
                    short(&known.weights_blake3)
                ));
            }
        }
        if let Weights::Given(given) = &self.options.weights {
            let sum: f64 = given.iter().sum();
            let members = given.iter().zip(&tuning.models);
            let other = |(ours, member): (&f64, &Member)| (ours / sum - member.weight).abs() > 1e-9;
            if members.into_iter().any(other) {
                let theirs: Vec<String> =
                    tuning.models.iter().map(|m| m.weight.to_string()).collect();
                return refuse(format!(
                    "it was made with the weights {}",
                    theirs.join(", ")
                ));
            }
        }
        if tuning.views != self.views() {
            tracing::warn!(
                "{}: chosen over {} views of each picture, used over {}",
                path.display(),
                tuning.views,
                self.views()
            );
        }
        Ok(())
    }
}

/// The first characters of a hash.
fn short(hash: &str) -> &str {
    hash.get(..12).unwrap_or(hash)
}
