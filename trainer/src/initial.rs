//! The weights that a run begins from: which tensors of a file fit which parameters, and what is left as it was drawn.
//!
//! Other than a checkpoint, such a file may hold a part of the model, or another head: what fits by name and shape is
//! taken, and the rest is reported. The decision is pure: tensors in, a [`Start`] or an error out.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use fovea_run::checkpoint::{self, NamedTensor, TensorData};
use fovea_run::config::Config;
use fovea_task::Task;

use crate::error::{Error, Result};
use crate::models::{self, Blueprint};
use crate::params::{Params, StateBuffer};
use crate::weights::{checkpoint_in, is_counter, plain_names, refuse_not_finite, wanted};

/// Number of names that a report lists before it only counts the others.
const LISTED: usize = 12;

/// `model.init_map`: where the tensors of a file go.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct InitMap {
    /// Prefix in the model and prefix in the file, both without a dot at the end.
    pairs: Vec<(String, String)>,
}

impl InitMap {
    /// Reads `MODEL = FILE, MODEL = FILE`; either side may be empty, and may end in a dot.
    ///
    /// # Errors
    /// [`Error::Usage`]: a part without `=`, or a prefix of the model that stands twice.
    pub fn parse(text: &str) -> Result<Self> {
        let refuse = |what: String| {
            Err(Error::Usage {
                what: format!("model.init_map = {text:?}: {what}"),
                help: "write prefixes of the model and of the file, for example \"global_branch = resnet, local_branch = resnet\""
                    .to_owned(),
            })
        };
        let mut pairs: Vec<(String, String)> = Vec::new();
        for part in text.split(',').filter(|part| !part.trim().is_empty()) {
            let Some((model, file)) = part.split_once('=') else {
                return refuse(format!("{:?} has no `=`", part.trim()));
            };
            let plain = |prefix: &str| prefix.trim().trim_end_matches('.').to_owned();
            let (model, file) = (plain(model), plain(file));
            if pairs.iter().any(|(known, _)| *known == model) {
                return refuse(format!("{model:?} stands twice"));
            }
            pairs.push((model, file));
        }
        Ok(Self { pairs })
    }

    /// The name in the file for a tensor of the model; none if the map has no place for it.
    fn source(&self, name: &str) -> Option<String> {
        if self.pairs.is_empty() {
            return Some(name.to_owned());
        }
        let fits = |(model, file): &(String, String)| {
            let rest = match model.as_str() {
                "" => Some(name),
                model => name.strip_prefix(model)?.strip_prefix('.'),
            };
            Some((model.len(), file.clone(), rest?.to_owned()))
        };
        let (_, file, rest) = self.pairs.iter().filter_map(fits).max_by_key(|fit| fit.0)?;
        Some(match file.as_str() {
            "" => rest,
            file => format!("{file}.{rest}"),
        })
    }
}

/// What a run takes from a file, and what it leaves.
#[derive(Debug)]
pub struct Start<'a> {
    /// Tensors of the file, by the names of the model.
    taken: BTreeMap<String, &'a NamedTensor>,
    /// One line each: what was taken, what was left as drawn and why, what of the file is not used.
    pub report: Vec<String>,
}

/// Decides what a model takes from the tensors of `origin`.
///
/// # Errors
/// [`Error::Mismatch`] when nothing fits, two tensors have one name, or one that fits is not finite.
/// [`Error::Usage`] when a prefix of the map is none of the model's.
pub fn start<'a>(
    blueprint: &Blueprint,
    tensors: &'a [NamedTensor],
    map: &InitMap,
    origin: &Path,
) -> Result<Start<'a>> {
    let wanted = wanted(blueprint);
    for (model, _) in &map.pairs {
        let begins = |name: &String| {
            name.strip_prefix(model.as_str())
                .is_some_and(|r| r.starts_with('.'))
        };
        if !model.is_empty() && !wanted.keys().any(begins) {
            return Err(Error::Usage {
                what: format!("model.init_map: no tensor of the model begins with {model:?}"),
                help: "docs/models.md lists the parts of each model".to_owned(),
            });
        }
    }
    let sources: BTreeMap<&String, Option<String>> =
        wanted.keys().map(|name| (name, map.source(name))).collect();
    let known: BTreeSet<&String> = sources.values().flatten().collect();
    let given: Vec<&str> = tensors.iter().map(|tensor| tensor.name.as_str()).collect();
    let plain = plain_names(&given, |name| known.contains(&name.to_owned()));
    let mut by_name: BTreeMap<&str, &NamedTensor> = BTreeMap::new();
    for (name, tensor) in plain.names.iter().zip(tensors) {
        if let Some(other) = by_name.insert(name, tensor) {
            return Err(mismatch(
                origin,
                format!("tensors {} and {} are both {name}", other.name, tensor.name),
            ));
        }
    }
    let mut taken = BTreeMap::new();
    let (mut unmapped, mut missing, mut misshaped) = (Vec::new(), Vec::new(), Vec::new());
    for (name, shape) in &wanted {
        let Some(source) = sources.get(name).and_then(Option::as_ref) else {
            unmapped.push(name.clone());
            continue;
        };
        match by_name.get(source.as_str()) {
            None => missing.push(name.clone()),
            Some(tensor) if !matches!(tensor.data, TensorData::F32(_)) => {
                misshaped.push(format!("{name} holds integers"));
            }
            Some(tensor) if tensor.shape != *shape => {
                misshaped.push(format!(
                    "{name} is {:?} there, {shape:?} here",
                    tensor.shape
                ));
            }
            Some(tensor) => drop(taken.insert(name.clone(), *tensor)),
        }
    }
    let unused: Vec<String> = plain
        .names
        .iter()
        .filter(|name| {
            !known.contains(name) && !is_counter_of(&known, name) && !is_counter(&wanted, name)
        })
        .cloned()
        .collect();
    let mut report = vec![format!(
        "took {} of the model's {} tensors",
        taken.len(),
        wanted.len()
    )];
    if !plain.removed.is_empty() {
        report.push(format!(
            "left {} away from its names",
            plain.removed.join(" and ")
        ));
    }
    for (what, names) in [
        ("left as drawn, not in the file", missing),
        ("left as drawn, of another shape or type", misshaped),
        ("left as drawn, not in model.init_map", unmapped),
        ("in the file and not in the model", unused),
    ] {
        if !names.is_empty() {
            report.push(format!("{what}: {} ({})", names.len(), listed(&names)));
        }
    }
    if taken.is_empty() {
        return Err(mismatch(
            origin,
            format!(
                "none of its {} tensors fits the model: {}",
                tensors.len(),
                report[1..].join("; ")
            ),
        ));
    }
    for tensor in taken.values() {
        refuse_not_finite(std::slice::from_ref(*tensor), origin)?;
    }
    Ok(Start { taken, report })
}

/// Whether this is the counter that PyTorch keeps with running statistics, under a name of the file.
fn is_counter_of(known: &BTreeSet<&String>, name: &str) -> bool {
    name.strip_suffix("num_batches_tracked")
        .is_some_and(|norm| known.contains(&format!("{norm}running_mean")))
}

fn listed(names: &[String]) -> String {
    let first: Vec<&str> = names.iter().take(LISTED).map(String::as_str).collect();
    match names.len().saturating_sub(LISTED) {
        0 => first.join(", "),
        more => format!("{}, and {more} more", first.join(", ")),
    }
}

fn mismatch(origin: &Path, what: String) -> Error {
    Error::Mismatch {
        path: origin.to_owned(),
        what,
        help: "give weights of the configured model (model.name) or of a part of it, with the parameter names that docs/models.md lists; model.init_map says which part of the file goes where".to_owned(),
    }
}

/// Overwrites the parameters and running statistics that the file has; the others keep their values.
///
/// # Errors
/// As [`start`].
pub fn restore_initial(
    params: &mut Params,
    tensors: &[NamedTensor],
    map: &InitMap,
    origin: &Path,
) -> Result<Vec<String>> {
    let Start { taken, report } = start(&params.blueprint, tensors, map, origin)?;
    let values = |name: &str| match taken.get(name).map(|tensor| &tensor.data) {
        Some(TensorData::F32(values)) => Some(values),
        _ => None,
    };
    let mut flat = params.read(StateBuffer::Master)?.into_owned();
    for (index, spec) in params.blueprint.params.iter().enumerate() {
        if let Some(values) = values(&spec.name) {
            params.put_pytorch(index, values, &mut flat)?;
        }
    }
    params.edit(StateBuffer::Master, |master| {
        master.copy_from_slice(&flat);
        Ok(())
    })?;
    let norms = params.blueprint.norms.clone();
    params.edit(StateBuffer::Running, |running| {
        for norm in &norms {
            let (mean, var) = (norm.offset, norm.offset + norm.channels);
            for (suffix, start) in [("running_mean", mean), ("running_var", var)] {
                if let Some(values) = values(&format!("{}.{suffix}", norm.name)) {
                    running[start..start + norm.channels].copy_from_slice(values);
                }
            }
        }
        Ok(())
    })?;
    Ok(report)
}

/// Makes `model.init` name one file, checks that it fits the model, and stores its hash in `model.init_blake3`, which
/// records what a run began from. Does nothing without `model.init`. Without a task, skips the check that
/// the weights fit. Returns what the model takes from the file and what it does not, one line each.
///
/// # Errors
/// The file does not exist, nothing in it fits, or it has another hash than the given one.
pub fn pin(config: &mut Config, task: Option<&Task>) -> Result<Vec<String>> {
    if config.model.init.is_empty() {
        return Ok(Vec::new());
    }
    let found = checkpoint_in(Path::new(&config.model.init))?;
    let file = if found.is_dir() {
        // A checkpoint is verified by its own chain of hashes.
        checkpoint::verify(&found)?;
        found.join(checkpoint::WEIGHTS)
    } else {
        found
    };
    let file = std::path::absolute(&file)
        .map_err(|e| fovea_run::Error::file(&file, &e, "give the weights by another path"))?;
    let Some(text) = file.to_str() else {
        return Err(Error::Usage {
            what: format!("{}: the name is not UTF-8", file.display()),
            help: "give the weights another name".to_owned(),
        });
    };
    config.model.init = text.to_owned();
    let (tensors, hash) = read(&file)?;
    same_content(config, &file, &hash)?;
    let mut report = Vec::new();
    if let Some(task) = task {
        let (_, blueprint) = models::find(&config.model.name)?.build(task, &config.model)?;
        let map = InitMap::parse(&config.model.init_map)?;
        report = start(&blueprint, &tensors, &map, &file)?.report;
    }
    config.model.init_blake3 = hash;
    Ok(report)
}

/// The tensors that the run begins from, read from the file that [`pin`] has checked.
///
/// # Errors
/// The file is missing, is of another kind, or differs from the one that the run began from.
pub fn pinned(config: &Config) -> Result<Vec<NamedTensor>> {
    let file = Path::new(&config.model.init);
    let (tensors, hash) = read(file)?;
    same_content(config, file, &hash)?;
    Ok(tensors)
}

fn read(file: &Path) -> Result<(Vec<NamedTensor>, String)> {
    checkpoint::refuse_pipe(file)?;
    let bytes = fs::read(file).map_err(|e| Error::Usage {
        what: format!("model.init: cannot read {}: {e}", file.display()),
        help: "give a .safetensors or PyTorch file, a checkpoint directory or a run directory; a run needs it until its first checkpoint".to_owned(),
    })?;
    let tensors = checkpoint::decode_weights(file, &bytes)?;
    Ok((tensors, blake3::hash(&bytes).to_hex().to_string()))
}

fn same_content(config: &Config, file: &Path, hash: &str) -> Result<()> {
    let pinned = &config.model.init_blake3;
    if pinned.is_empty() || pinned == hash {
        return Ok(());
    }
    Err(Error::Mismatch {
        path: file.to_owned(),
        what: format!(
            "this file has blake3 {hash}, and the run is to begin from one with {pinned} (model.init_blake3)"
        ),
        help: "put the file back as it was, or start a new run with another --out".to_owned(),
    })
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
mod tests {
    use super::*;
    use crate::precision::Precision;
    use tch::Device;

    /// A ResNet18 as torchvision saves one, whose layer4.0.conv1 is missing and whose classifier has another width.
    fn resnet(prefix: &str) -> Vec<NamedTensor> {
        let blueprint = models::hybrid_for_lesions().1;
        let mut tensors: Vec<NamedTensor> = wanted(&blueprint)
            .into_iter()
            .filter_map(|(name, shape)| {
                let name = name.strip_prefix("global_branch.")?.to_owned();
                let data = TensorData::F32(vec![0.25; shape.iter().product()]);
                Some(NamedTensor { name, shape, data })
            })
            .filter(|tensor| tensor.name != "layer4.0.conv1.weight")
            .collect();
        for (name, shape) in [("fc.weight", vec![1000, 512]), ("fc.bias", vec![1000])] {
            let data = TensorData::F32(vec![0.0; shape.iter().product()]);
            tensors.push(NamedTensor {
                name: name.to_owned(),
                shape,
                data,
            });
        }
        tensors.push(NamedTensor {
            name: "bn1.num_batches_tracked".to_owned(),
            shape: Vec::new(),
            data: TensorData::I64(vec![3]),
        });
        tensors
            .iter_mut()
            .for_each(|tensor| tensor.name.insert_str(0, prefix));
        tensors
    }

    #[test]
    fn one_file_serves_two_branches_and_the_rest_stays_as_drawn() {
        for (prefix, text) in [
            ("", "global_branch. = , local_branch. = "),
            (
                "backbone.",
                "global_branch=backbone, local_branch = backbone.",
            ),
            ("module.", "global_branch=,local_branch="),
        ] {
            let tensors = resnet(prefix);
            let map = InitMap::parse(text).unwrap();
            let blueprint = models::hybrid_for_lesions().1;
            let mut params = Params::new(blueprint, Precision::F32, 5, Device::Cpu).unwrap();
            let before = params.read(StateBuffer::Master).unwrap().into_owned();
            let report = restore_initial(&mut params, &tensors, &map, Path::new("r.pth")).unwrap();
            let report = report.join("\n");
            for words in [
                "took 198 of the model's 218 tensors",
                "not in the file: 2 (global_branch.layer4.0.conv1.weight, local_branch.layer4.0.conv1.weight)",
                "not in model.init_map: 18 (",
                "in the file and not in the model: 2 (",
            ] {
                assert!(report.contains(words), "{words}\n{report}");
            }
            let after = params.read(StateBuffer::Master).unwrap();
            for (index, spec) in params.blueprint.params.iter().enumerate() {
                let range = params.layout.ranges[index].clone();
                let drawn = spec.name.contains("layer4.0.conv1") || !spec.name.contains("_branch.");
                match drawn {
                    true => assert_eq!(after[range.clone()], before[range], "{}", spec.name),
                    false => assert!(after[range].iter().all(|x| *x == 0.25), "{}", spec.name),
                }
            }
            assert!(
                params
                    .read(StateBuffer::Running)
                    .unwrap()
                    .iter()
                    .all(|x| *x == 0.25)
            );
        }
    }

    #[test]
    fn what_fits_nowhere_is_refused() {
        let blueprint = models::hybrid_for_lesions().1;
        let origin = Path::new("r.pth");
        let tensors = resnet("");
        let error = start(&blueprint, &tensors, &InitMap::default(), origin).unwrap_err();
        let text = error.to_string();
        assert!(text.contains("none of its 102 tensors fits"), "{text}");
        assert!(text.contains("model.init_map"), "{text}");
        let map = InitMap::parse("local = resnet").unwrap();
        let text = start(&blueprint, &tensors, &map, origin)
            .unwrap_err()
            .to_string();
        assert!(
            text.contains("no tensor of the model begins with \"local\""),
            "{text}"
        );
        for wrong in ["global_branch", "a = b, a. = c"] {
            let text = InitMap::parse(wrong).unwrap_err().to_string();
            assert!(
                text.contains("model.init_map") && text.contains("\n  help: "),
                "{text}"
            );
        }
        let mut tensors = tensors;
        let TensorData::F32(values) = &mut tensors[0].data else {
            panic!("f32")
        };
        values[0] = f32::NAN;
        let map = InitMap::parse("global_branch =").unwrap();
        let text = start(&blueprint, &tensors, &map, origin)
            .unwrap_err()
            .to_string();
        assert!(text.contains("not finite"), "{text}");
    }

    #[test]
    fn the_longest_prefix_decides() {
        let map = InitMap::parse(" = all, a.b = x, a = y.z.").unwrap();
        let source = |name: &str| map.source(name).unwrap();
        assert_eq!(source("a.b.w"), "x.w");
        assert_eq!(source("a.c.w"), "y.z.c.w");
        assert_eq!(source("ab.w"), "all.ab.w");
        assert_eq!(InitMap::parse("a = x").unwrap().source("b.w"), None);
        assert_eq!(
            InitMap::parse(" ").unwrap().source("b.w").as_deref(),
            Some("b.w")
        );
    }
}
