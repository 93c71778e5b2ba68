//! Loading weights: finds the file, maps the names of its tensors, and checks that they are the model's.
//!
//! Every checkpoint (of a resume, `eval`, `predict`) goes through [`fitted`], and `model.init` through [`crate::initial`],
//! so no computation uses incomplete or non-finite weights. The decision is pure: it takes tensors and returns tensors or
//! an error.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use fovea_run::checkpoint::{self, NamedTensor, TensorData};
use fovea_run::run_dir::RunDir;

use crate::error::{Error, Result};
use crate::models::Blueprint;
use crate::train::best_of;

/// Number of names that a message lists before it only counts the others.
const NAMED: usize = 4;

/// Parts that wrappers put between the dots of a name: anywhere, and as often as they are nested.
const WRAPPERS: [(&str, &str); 2] = [
    ("module", "DistributedDataParallel"),
    ("_orig_mod", "torch.compile"),
];

/// Keys under which whole models are stored, when all names begin with one of them.
const HOLDERS: [&str; 4] = ["model", "net", "network", "state_dict"];

/// Tensors under the model's own names.
#[derive(Debug)]
pub struct Fitted<'a> {
    tensors: BTreeMap<String, &'a NamedTensor>,
}

impl Fitted<'_> {
    /// The elements of a tensor in PyTorch's order.
    ///
    /// # Errors
    /// The model has no such tensor; [`fitted`] has checked all that it has.
    pub fn values(&self, name: &str) -> Result<&[f32]> {
        match self.tensors.get(name).map(|tensor| &tensor.data) {
            Some(TensorData::F32(values)) => Ok(values),
            _ => Err(Error::Internal(format!("no tensor {name} was looked for"))),
        }
    }
}

/// Maps the tensors of `origin` to those of the model: removes what wrappers added to the names (and logs it), and
/// checks that every parameter and every running statistic is there, in its shape and finite, and that there is no
/// other tensor.
///
/// # Errors
/// [`Error::Mismatch`] with the tensors that are missing, unexpected, of another shape or not finite.
pub fn fitted<'a>(
    blueprint: &Blueprint,
    tensors: &'a [NamedTensor],
    origin: &Path,
) -> Result<Fitted<'a>> {
    let wanted = wanted(blueprint);
    let given: Vec<&str> = tensors.iter().map(|tensor| tensor.name.as_str()).collect();
    let plain = plain_names(&given, |name| wanted.contains_key(name));
    if !plain.removed.is_empty() {
        tracing::warn!(
            "{}: the names of its tensors hold {}, which is left away",
            origin.display(),
            plain.removed.join(" and ")
        );
    }
    let mut by_name: BTreeMap<String, &NamedTensor> = BTreeMap::new();
    for (name, tensor) in plain.names.into_iter().zip(tensors) {
        if let Some(other) = by_name.get(&name) {
            let what = format!(
                "tensors {} and {} are both {name} of the model",
                other.name, tensor.name
            );
            return Err(mismatch(origin, what));
        }
        by_name.insert(name, tensor);
    }
    if let Some(what) = misfits(&wanted, &by_name) {
        return Err(mismatch(origin, what));
    }
    refuse_not_finite(tensors, origin)?;
    Ok(Fitted { tensors: by_name })
}

/// Names and shapes of the tensors that a model needs: parameters and running statistics.
pub(crate) fn wanted(blueprint: &Blueprint) -> BTreeMap<String, Vec<usize>> {
    let params = blueprint.params.iter().map(|spec| {
        let shape = spec.shape.iter().map(|&d| d as usize).collect();
        (spec.name.clone(), shape)
    });
    let norms = blueprint.norms.iter().flat_map(|norm| {
        ["running_mean", "running_var"]
            .map(|suffix| (format!("{}.{suffix}", norm.name), vec![norm.channels]))
    });
    params.chain(norms).collect()
}

/// Whether this is the counter that PyTorch keeps with running statistics, which older files do not have.
pub(crate) fn is_counter(wanted: &BTreeMap<String, Vec<usize>>, name: &str) -> bool {
    name.strip_suffix(".num_batches_tracked")
        .is_some_and(|norm| wanted.contains_key(&format!("{norm}.running_mean")))
}

/// All differences between the tensors and the model's in one sentence; none when they fit.
fn misfits(
    wanted: &BTreeMap<String, Vec<usize>>,
    given: &BTreeMap<String, &NamedTensor>,
) -> Option<String> {
    let missing: Vec<String> = wanted
        .keys()
        .filter(|name| !given.contains_key(*name))
        .cloned()
        .collect();
    let unexpected: Vec<String> = given
        .keys()
        .filter(|name| !wanted.contains_key(*name) && !is_counter(wanted, name))
        .cloned()
        .collect();
    let misshaped: Vec<String> = wanted
        .iter()
        .filter_map(|(name, shape)| {
            let tensor = given.get(name)?;
            match &tensor.data {
                TensorData::F32(_) if tensor.shape == *shape => None,
                TensorData::F32(_) => Some(format!("{name} is {:?}, not {shape:?}", tensor.shape)),
                TensorData::I64(_) => Some(format!("{name} holds integers, not f32")),
            }
        })
        .collect();
    let parts: Vec<String> = [
        ("missing", missing),
        ("unexpected", unexpected),
        ("of another shape or type", misshaped),
    ]
    .into_iter()
    .filter(|(_, names)| !names.is_empty())
    .map(|(what, names)| format!("{} {what} ({})", names.len(), listed(&names)))
    .collect();
    (!parts.is_empty()).then(|| {
        format!(
            "its tensors are not those of the model, which has {}: {}",
            wanted.len(),
            parts.join("; ")
        )
    })
}

fn listed(names: &[String]) -> String {
    let more = match names.len().saturating_sub(NAMED) {
        0 => String::new(),
        more => format!(", and {more} more"),
    };
    let first: Vec<&str> = names.iter().take(NAMED).map(String::as_str).collect();
    format!("{}{more}", first.join(", "))
}

/// Refuses NaN and infinities, which make every answer of a model NaN, or wrong.
///
/// # Errors
/// [`Error::Mismatch`] with the tensors that hold some, and their number.
pub fn refuse_not_finite(tensors: &[NamedTensor], origin: &Path) -> Result<()> {
    let bad: Vec<String> = tensors
        .iter()
        .filter_map(|tensor| {
            let TensorData::F32(values) = &tensor.data else {
                return None;
            };
            let bad = values.iter().filter(|value| !value.is_finite()).count();
            (bad > 0).then(|| format!("{bad} of the {} in {}", values.len(), tensor.name))
        })
        .collect();
    if bad.is_empty() {
        return Ok(());
    }
    Err(Error::Mismatch {
        path: origin.to_owned(),
        what: format!(
            "it holds values that are not finite (NaN or infinite), in {} of {} tensors: {}",
            bad.len(),
            tensors.len(),
            listed(&bad)
        ),
        help: "the training that wrote it has diverged, or the file was damaged: take an earlier checkpoint, or other weights".to_owned(),
    })
}

/// Names without the parts that wrappers added.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Plain {
    /// The names, in the order given.
    pub(crate) names: Vec<String>,
    /// The removed parts, as `` `module.` (DistributedDataParallel) ``.
    pub(crate) removed: Vec<String>,
}

/// Removes the parts that wrappers and holders put into names; a name that the model knows stays unchanged.
pub(crate) fn plain_names(given: &[&str], known: impl Fn(&str) -> bool) -> Plain {
    let mut names: Vec<String> = given.iter().map(|&name| name.to_owned()).collect();
    let mut removed = Vec::new();
    for (wrapper, of) in WRAPPERS {
        let mut found = false;
        for name in names.iter_mut().filter(|name| !known(name)) {
            let parts: Vec<&str> = name.split('.').collect();
            let kept: Vec<&str> = parts
                .iter()
                .copied()
                .filter(|part| *part != wrapper)
                .collect();
            if kept.len() < parts.len() && !kept.is_empty() {
                *name = kept.join(".");
                found = true;
            }
        }
        if found {
            removed.push(format!("`{wrapper}.` ({of})"));
        }
    }
    while !names.iter().any(|name| known(name))
        && let Some(holder) = shared_holder(&names)
    {
        for name in &mut names {
            name.drain(..=holder.len());
        }
        removed.push(format!("`{holder}.`"));
    }
    Plain { names, removed }
}

/// The holder that every name begins with; none without one.
fn shared_holder(names: &[String]) -> Option<&'static str> {
    let begins = |name: &String, holder: &str| {
        name.strip_prefix(holder)
            .and_then(|rest| rest.strip_prefix('.'))
            .is_some_and(|rest| !rest.is_empty())
    };
    let all = |holder: &&&str| names.iter().all(|name| begins(name, holder));
    HOLDERS
        .iter()
        .find(all)
        .copied()
        .filter(|_| !names.is_empty())
}

fn mismatch(origin: &Path, what: String) -> Error {
    let help = "give weights of the configured model (model.name), in f32, with the parameter names that docs/models.md lists";
    Error::Mismatch {
        path: origin.to_owned(),
        what,
        help: help.to_owned(),
    }
}

/// The checkpoint or file that a path means: a checkpoint, a run directory, its `checkpoints`, or a file of weights.
///
/// # Errors
/// [`Error::Usage`] when the path leads to none of these.
pub fn checkpoint_in(path: &Path) -> Result<PathBuf> {
    if !path.exists() {
        return Err(Error::Usage {
            what: format!("{}: no such file or directory", path.display()),
            help: "give a checkpoint directory, a run directory, or a .safetensors or PyTorch file"
                .to_owned(),
        });
    }
    let run = RunDir::new(path);
    if run.checkpoints().is_dir() {
        return best_of(&run.checkpoints());
    }
    if path.is_dir() && !checkpoint::list(path)?.is_empty() {
        return best_of(path);
    }
    Ok(path.to_owned())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::models;

    fn plain(given: &[&str]) -> (Vec<String>, usize) {
        let known = |name: &str| ["a.weight", "b.conv.bias"].contains(&name);
        let plain = plain_names(given, known);
        (plain.names, plain.removed.len())
    }

    #[test]
    fn wrappers_and_holders_are_taken_off() {
        let names = ["a.weight", "b.conv.bias"].map(str::to_owned).to_vec();
        for (given, removed) in [
            (["a.weight", "b.conv.bias"], 0),
            (["module.a.weight", "module.b.conv.bias"], 1),
            (
                ["_orig_mod.module.a.weight", "_orig_mod.module.b.conv.bias"],
                2,
            ),
            (
                ["module._orig_mod.module.a.weight", "module.b.conv.bias"],
                2,
            ),
            // A part of the model was wrapped by itself.
            (["a.weight", "b._orig_mod.conv.module.bias"], 2),
            (["model.a.weight", "model.b.conv.bias"], 1),
            (
                [
                    "state_dict.net.module.a.weight",
                    "state_dict.net.module.b.conv.bias",
                ],
                3,
            ),
            (
                [
                    "network.model._orig_mod.a.weight",
                    "network.model._orig_mod.b.conv.bias",
                ],
                3,
            ),
        ] {
            assert_eq!(plain(&given), (names.clone(), removed), "{given:?}");
        }
        // Not all names share it, so it is part of the name.
        let mixed = ["model.a.weight", "net.b.conv.bias"];
        assert_eq!(plain(&mixed), (mixed.map(str::to_owned).to_vec(), 0));
        assert_eq!(plain(&["model.", "module"]).1, 0, "nothing would be left");
        assert_eq!(plain(&[]), (vec![], 0));
    }

    proptest! {
        #[test]
        fn any_nesting_of_prefixes_comes_off(prefixes in prop::collection::vec(
            prop::sample::select(vec!["module.", "_orig_mod.", "model.", "net.", "network.", "state_dict."]), 0..6)) {
            let prefix = prefixes.concat();
            let given = [format!("{prefix}a.weight"), format!("{prefix}b.conv.bias")];
            let given: Vec<&str> = given.iter().map(String::as_str).collect();
            prop_assert_eq!(plain(&given).0, ["a.weight", "b.conv.bias"]);
        }
    }

    fn tensors(blueprint: &Blueprint) -> Vec<NamedTensor> {
        wanted(blueprint)
            .into_iter()
            .map(|(name, shape)| NamedTensor {
                data: TensorData::F32(vec![0.5; shape.iter().product()]),
                name,
                shape,
            })
            .collect()
    }

    fn refusal(blueprint: &Blueprint, tensors: &[NamedTensor]) -> String {
        let error = fitted(blueprint, tensors, Path::new("w.safetensors")).expect_err("refused");
        assert!(error.is_usage());
        error.to_string()
    }

    #[test]
    fn what_does_not_fit_is_told_all_at_once() {
        let blueprint = models::hybrid_for_lesions().1;
        let mut all = tensors(&blueprint);
        fitted(&blueprint, &all, Path::new("w")).expect("all there");
        let gone = all.remove(0).name;
        all[0].shape = vec![1, 2, 3];
        all[1].data = TensorData::I64(vec![1]);
        all.push(NamedTensor {
            name: "classifier.extra".to_owned(),
            shape: vec![],
            data: TensorData::F32(vec![0.0]),
        });
        let text = refusal(&blueprint, &all);
        for words in [
            &format!("1 missing ({gone})"),
            "1 unexpected (classifier.extra)",
            "2 of another shape or type",
            "is [1, 2, 3], not [",
            "holds integers, not f32",
            "\n  help: ",
        ] {
            assert!(text.contains(words), "{words}: {text}");
        }
        let text = refusal(&blueprint, &[]);
        assert!(text.contains("and ") && text.contains(" more)"), "{text}");
        let mut twice = tensors(&blueprint);
        let mut again = twice[3].clone();
        again.name = format!("module.{}", again.name);
        twice.push(again);
        assert!(refusal(&blueprint, &twice).contains("are both"));
    }

    #[test]
    fn values_that_are_not_finite_are_counted() {
        let blueprint = models::hybrid_for_lesions().1;
        let mut all = tensors(&blueprint);
        let name = all[5].name.clone();
        let TensorData::F32(values) = &mut all[5].data else {
            panic!("f32")
        };
        let len = values.len();
        (values[0], values[1]) = (f32::NAN, f32::NEG_INFINITY);
        let text = refusal(&blueprint, &all);
        assert!(
            text.contains(&format!("2 of the {len} in {name}")),
            "{text}"
        );
        assert!(text.contains("in 1 of "), "{text}");
    }
}
