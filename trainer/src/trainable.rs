//! Which parameters a stage moves, and how: frozen ones, learning rates by part, weight decay by shape.
//!
//! The decision is pure: a stage and a blueprint in, a [`Trainable`] or an error out. [`crate::params::Params`] applies
//! it.

use std::ops::Range;

use fovea_run::config::stages::{ALL, HEAD};
use fovea_run::config::{DecayTarget, FrozenNorms, Stage};

use crate::error::{Error, Result};
use crate::models::{Blueprint, ParamSpec};
use crate::params::FlatLayout;

/// Parameters that are updated alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UpdateClass {
    /// Index of their learning rate in [`Stage::rates`].
    pub rate: usize,
    /// Whether the weight decay acts on them.
    pub decays: bool,
}

/// Consecutive elements of the flat buffers that are updated alike.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UpdateRange {
    /// Their place, gaps between parameters included.
    pub elements: Range<usize>,
    /// Their class, an index of [`Trainable::classes`].
    pub class: usize,
}

/// What moves in a stage.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trainable {
    /// The class of each parameter, indexed by [`crate::models::ParamId`]; none for a frozen one.
    class_of: Vec<Option<usize>>,
    classes: Vec<UpdateClass>,
    /// Whether each normalisation layer keeps its running statistics, indexed by [`crate::models::NormId`].
    frozen_norms: Vec<bool>,
}

impl Trainable {
    /// Everything moves at one rate.
    pub fn all(blueprint: &Blueprint, decay: DecayTarget) -> Self {
        let rates = vec![Some(0); blueprint.params.len()];
        Self::classified(blueprint, &rates, decay, FrozenNorms::Eval)
    }

    /// What moves in `stage` of a model with this blueprint.
    ///
    /// # Errors
    /// [`Error::Usage`] when a prefix fits no parameter, the model names no head, or a group's parameters do not move.
    pub fn of(stage: &Stage, blueprint: &Blueprint, decay: DecayTarget) -> Result<Self> {
        let key = |name: &str| format!("stages.{}.{name}", stage.number);
        let mut parts = Vec::new();
        for word in &stage.train {
            match word.as_str() {
                ALL => parts.push(String::new()),
                HEAD if blueprint.heads.is_empty() => {
                    return Err(Error::Usage {
                        what: format!("{} = \"head\": this model does not say what its head is", key("train")),
                        help: "name the parameters that train by prefixes, for example train = [\"fc\"]"
                            .to_owned(),
                    });
                }
                HEAD => parts.extend(blueprint.heads.iter().cloned()),
                prefix => {
                    known(&key("train"), prefix, blueprint)?;
                    parts.push(prefix.to_owned());
                }
            }
        }
        let moves = |spec: &ParamSpec| parts.iter().any(|part| begins(&spec.name, part));
        for (prefix, _) in &stage.groups {
            known(&key("groups"), prefix, blueprint)?;
            let mut of_group = blueprint
                .params
                .iter()
                .filter(|spec| begins(&spec.name, prefix));
            if !of_group.any(moves) {
                return Err(Error::Usage {
                    what: format!(
                        "{}: {prefix:?} has a learning rate, but none of its parameters train",
                        key("groups")
                    ),
                    help: format!("add {prefix:?} to {}, or leave its rate away", key("train")),
                });
            }
        }
        let rate = |spec: &ParamSpec| {
            let groups = stage.groups.iter().enumerate();
            let of_it = groups.filter(|(_, (prefix, _))| begins(&spec.name, prefix));
            let longest = of_it.max_by_key(|(_, (prefix, _))| prefix.trim_end_matches('.').len());
            longest.map_or(0, |(index, _)| index + 1)
        };
        let params = blueprint.params.iter();
        let rates: Vec<_> = params.map(|spec| moves(spec).then(|| rate(spec))).collect();
        Ok(Self::classified(
            blueprint,
            &rates,
            decay,
            stage.frozen_norms,
        ))
    }

    /// From the rate of each parameter; none for a frozen one.
    fn classified(
        blueprint: &Blueprint,
        rates: &[Option<usize>],
        decay: DecayTarget,
        frozen: FrozenNorms,
    ) -> Self {
        let mut classes: Vec<UpdateClass> = Vec::new();
        let mut class_of = Vec::with_capacity(rates.len());
        for (rate, spec) in rates.iter().zip(&blueprint.params) {
            let class = rate.map(|rate| UpdateClass {
                rate,
                decays: decay == DecayTarget::All || spec.shape.len() > 1,
            });
            class_of.push(class.map(|class| {
                let found = classes.iter().position(|known| *known == class);
                found.unwrap_or_else(|| {
                    classes.push(class);
                    classes.len() - 1
                })
            }));
        }
        let trains = |name: &str| {
            let mut of_it = blueprint.params.iter().zip(&class_of);
            of_it.any(|(spec, class)| class.is_some() && begins(&spec.name, name))
        };
        let norms = blueprint.norms.iter();
        let frozen_norms = norms
            .map(|norm| frozen == FrozenNorms::Eval && !trains(&norm.name))
            .collect();
        Self {
            class_of,
            classes,
            frozen_norms,
        }
    }

    /// The classes of parameters that are updated alike.
    pub fn classes(&self) -> &[UpdateClass] {
        &self.classes
    }

    /// Whether a parameter moves.
    pub fn moves(&self, param: usize) -> bool {
        self.class_of[param].is_some()
    }

    /// Number of parameters that move.
    pub fn count(&self) -> usize {
        self.class_of.iter().flatten().count()
    }

    /// Whether a normalisation layer keeps its running statistics.
    pub fn is_frozen(&self, norm: usize) -> bool {
        self.frozen_norms[norm]
    }

    /// The elements to update, in their order; no range holds both parameters with a working copy and others.
    pub fn ranges(&self, layout: &FlatLayout) -> Vec<UpdateRange> {
        let mut params: Vec<_> = layout.ranges.iter().zip(&self.class_of).collect();
        params.sort_by_key(|(range, _)| range.start);
        let mut ranges: Vec<UpdateRange> = Vec::new();
        for (range, class) in params {
            let Some(class) = *class else { continue };
            let end = layout.padded_end(range);
            match ranges.last_mut() {
                Some(last)
                    if last.class == class
                        && last.elements.end == range.start
                        && range.start != layout.working_len =>
                {
                    last.elements.end = end;
                }
                _ => ranges.push(UpdateRange {
                    elements: range.start..end,
                    class,
                }),
            }
        }
        ranges
    }

    /// The elements of the flat statistics that batches update, in their order.
    pub fn moving_stats(&self, blueprint: &Blueprint) -> Vec<Range<usize>> {
        let mut ranges: Vec<Range<usize>> = Vec::new();
        for (norm, _) in blueprint
            .norms
            .iter()
            .zip(&self.frozen_norms)
            .filter(|(_, frozen)| !**frozen)
        {
            let end = norm.offset + 2 * norm.channels;
            match ranges.last_mut() {
                Some(last) if last.end == norm.offset => last.end = end,
                _ => ranges.push(norm.offset..end),
            }
        }
        ranges
    }
}

/// Whether a parameter is `prefix` or lies in it: prefixes are whole between dots, and an empty one holds everything.
fn begins(name: &str, prefix: &str) -> bool {
    let prefix = prefix.trim_end_matches('.');
    let rest = name.strip_prefix(prefix);
    prefix.is_empty() || rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
}

fn known(key: &str, prefix: &str, blueprint: &Blueprint) -> Result<()> {
    if blueprint
        .params
        .iter()
        .any(|spec| begins(&spec.name, prefix))
    {
        return Ok(());
    }
    let mut parts: Vec<&str> = Vec::new();
    for spec in &blueprint.params {
        let part = spec.name.split('.').next().unwrap_or_default();
        if !parts.contains(&part) {
            parts.push(part);
        }
    }
    Err(Error::Usage {
        what: format!("{key}: no parameter of the model begins with {prefix:?}"),
        help: format!("the parts of this model are: {}", parts.join(", ")),
    })
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
mod tests {
    use fovea_run::config::Config;

    use super::*;
    use crate::models;

    fn stage(text: &str) -> Stage {
        let mut config = Config::default();
        config
            .set(&format!("stages=[{{epochs=1, {text}}}]"))
            .unwrap();
        config.validate().unwrap();
        config.stage_of(0)
    }

    fn names(trainable: &Trainable, blueprint: &Blueprint) -> Vec<String> {
        let params = blueprint.params.iter().enumerate();
        let moving = params.filter(|(index, _)| trainable.moves(*index));
        moving.map(|(_, spec)| spec.name.clone()).collect()
    }

    #[test]
    fn without_stages_the_ranges_are_those_of_a_run_without_stages() {
        let blueprint = models::hybrid_for_lesions().1;
        let layout = FlatLayout::new(&blueprint.params);
        let all = Trainable::all(&blueprint, DecayTarget::All);
        assert_eq!(
            all.classes(),
            [UpdateClass {
                rate: 0,
                decays: true
            }]
        );
        let ranges = all.ranges(&layout);
        let places: Vec<_> = ranges.iter().map(|range| range.elements.clone()).collect();
        assert_eq!(
            places,
            [0..layout.working_len, layout.working_len..layout.len]
        );
        assert_eq!(all.moving_stats(&blueprint), vec![0..blueprint.stats_len()]);
        let single = Trainable::of(&Config::default().stage_of(3), &blueprint, DecayTarget::All);
        assert_eq!(single.unwrap(), all);
    }

    #[test]
    fn a_head_trains_alone() {
        let blueprint = models::hybrid_for_lesions().1;
        let layout = FlatLayout::new(&blueprint.params);
        let head = Trainable::of(&stage("train=\"head\""), &blueprint, DecayTarget::All).unwrap();
        let moving = names(&head, &blueprint);
        assert_eq!(moving.len(), 8, "{moving:?}");
        assert!(moving.iter().all(|name| name.contains("_head.")));
        assert_eq!(head.moving_stats(&blueprint), Vec::<Range<usize>>::new());
        let elements: usize = head.ranges(&layout).iter().map(|r| r.elements.len()).sum();
        assert!((2 * (32_896 + 516)..2 * (32_896 + 516 + 64)).contains(&elements));
        let kept = stage("train=\"head\", frozen_norms=\"train\"");
        let kept = Trainable::of(&kept, &blueprint, DecayTarget::All).unwrap();
        assert_eq!(
            kept.moving_stats(&blueprint),
            vec![0..blueprint.stats_len()]
        );
    }

    #[test]
    fn prefixes_groups_and_decay_make_classes() {
        let blueprint = models::hybrid_for_lesions().1;
        let stage = stage(
            "train=[\"local_branch.layer4\", \"attn\"], groups={\"attn\"=1e-3, \"attn.out_proj\"=1e-2}",
        );
        let some = Trainable::of(&stage, &blueprint, DecayTarget::Weights).unwrap();
        let class = |name: &str| {
            let index = blueprint
                .params
                .iter()
                .position(|spec| spec.name == name)
                .unwrap();
            some.class_of[index].map(|class| some.classes[class])
        };
        let of = |rate, decays| Some(UpdateClass { rate, decays });
        assert_eq!(class("local_branch.layer4.0.conv1.weight"), of(0, true));
        assert_eq!(class("local_branch.layer4.0.bn1.weight"), of(0, false));
        assert_eq!(class("attn.in_proj_weight"), of(1, true));
        assert_eq!(class("attn.in_proj_bias"), of(1, false));
        assert_eq!(class("attn.out_proj.weight"), of(2, true));
        assert_eq!(class("local_branch.layer3.0.conv1.weight"), None);
        let layout = FlatLayout::new(&blueprint.params);
        for pair in some.ranges(&layout).windows(2) {
            assert!(pair[0].elements.end <= pair[1].elements.start);
        }
        // The norms of layer4 move, those before do not.
        let frozen = |name: &str| {
            let index = blueprint
                .norms
                .iter()
                .position(|norm| norm.name == name)
                .unwrap();
            some.is_frozen(index)
        };
        assert!(!frozen("local_branch.layer4.1.bn2"));
        assert!(frozen("local_branch.layer3.1.bn2") && frozen("global_branch.bn1"));
    }

    #[test]
    fn what_does_not_exist_is_refused_with_what_does() {
        let blueprint = models::hybrid_for_lesions().1;
        for (text, words) in [
            (
                "train=[\"layer4\"]",
                "no parameter of the model begins with \"layer4\"",
            ),
            (
                "train=[\"local_branch.layer\"]",
                "no parameter of the model begins with",
            ),
            ("groups={\"fc\"=1e-3}", "stages.1.groups: no parameter"),
            (
                "train=\"head\", groups={\"attn\"=1e-3}",
                "none of its parameters train",
            ),
        ] {
            let error = Trainable::of(&stage(text), &blueprint, DecayTarget::All).unwrap_err();
            let text = error.to_string();
            assert!(
                text.contains(words) && text.contains("\n  help: "),
                "{text}"
            );
        }
        let mut headless = blueprint;
        headless.heads.clear();
        let error = Trainable::of(&stage("train=\"head\""), &headless, DecayTarget::All);
        assert!(
            error
                .unwrap_err()
                .to_string()
                .contains("does not say what its head is")
        );
    }
}
