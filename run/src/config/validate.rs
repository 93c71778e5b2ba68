//! Rules that need more than one key.

use fovea_coordinator::order::allowed_world_sizes;
use fovea_task::{Target, Task};

use super::error::{Error, Place};
use super::keys::{self, KEYS};
use super::read::{in_words, out_of_range, wrong_type};
use super::sections::{Alpha, DataConfig, Level, PosWeight};
use super::stage_keys;
use super::{Config, Result};

/// Where a value stands that was read before.
fn configuration() -> Place {
    Place {
        origin: "configuration".into(),
        line: None,
    }
}

/// What the task alone decides: the number of class weights.
pub(super) fn fits(config: &Config, task: &Task) -> Result<()> {
    if let Alpha::Weights(weights) = &config.loss.alpha {
        one_per_class(config, task, "alpha", weights.len())?;
    }
    if let PosWeight::Factors(factors) = &config.loss.pos_weight {
        one_per_class(config, task, "pos_weight", factors.len())?;
    }
    Ok(())
}

/// Refuses a list of the section `[loss]` with another number of weights than a target has classes.
fn one_per_class(config: &Config, task: &Task, name: &str, weights: usize) -> Result<()> {
    let other = |target: &&Target| target.classes.len() != weights;
    let (Some(target), Some(key)) = (task.targets().iter().find(other), keys::find("loss", name))
    else {
        return Ok(());
    };
    let given = format!("{} (a list)", (key.get)(config));
    let classes = target.classes.len();
    Err(wrong_type(key, config, &given, configuration(), classes))
}

/// Every range, then every rule between keys.
pub(super) fn validate(config: &Config) -> Result<()> {
    for key in KEYS {
        let value = (key.get)(config);
        if !key.range.contains(&value) {
            return Err(out_of_range(key, configuration(), value.to_string()));
        }
    }
    ranks_fit(config)?;
    rates_fit(config)?;
    stage_keys::validate(config)?;
    weights_fit(config)?;
    initial_weights_fit(config)?;
    sampler_reads(config)?;
    watched_metric_fits(config)
}

fn conflict(problem: String, help: impl Into<String>) -> Result<()> {
    Err(Error::Conflict {
        problem,
        help: help.into(),
    })
}

/// Ranks own whole subtrees of the reduction tree over the virtual shards.
fn ranks_fit(config: &Config) -> Result<()> {
    let (ranks, shards) = (config.train.ranks, config.train.virtual_shards);
    let allowed = allowed_world_sizes(shards as usize);
    if allowed.contains(&(ranks as usize)) {
        return Ok(());
    }
    let list: Vec<String> = allowed.iter().map(usize::to_string).collect();
    let why = if !shards.is_multiple_of(ranks) {
        format!("{shards} is not divisible by {ranks}")
    } else {
        format!(
            "{} virtual shards per rank is not a power of two",
            shards / ranks
        )
    };
    conflict(
        format!("train.ranks = {ranks} does not fit train.virtual_shards = {shards}: {why}"),
        format!(
            "with {shards} virtual shards the allowed rank counts are {}; or set train.virtual_shards to {ranks} times a power of two (this changes the result)",
            list.join(", ")
        ),
    )
}

fn rates_fit(config: &Config) -> Result<()> {
    let (min_lr, lr) = (config.schedule.min_lr, config.optimizer.lr);
    if min_lr > lr {
        return conflict(
            format!("schedule.min_lr = {min_lr:?} is above optimizer.lr = {lr:?}"),
            format!("lower schedule.min_lr to at most {lr:?}, or raise optimizer.lr"),
        );
    }
    Ok(())
}

fn weights_fit(config: &Config) -> Result<()> {
    let loss = &config.loss;
    if loss.balance && loss.positive_weight == 0.0 && loss.negative_weight == 0.0 {
        return conflict(
            "loss.positive_weight and loss.negative_weight are both 0 with loss.balance = true: the loss is always 0".into(),
            "set at least one of them above 0, or loss.balance = false",
        );
    }
    if let Alpha::Weights(weights) = &loss.alpha
        && weights.iter().all(|&weight| weight == 0.0)
    {
        let zeros = vec!["0"; weights.len()].join(", ");
        return conflict(
            format!("loss.alpha = [{zeros}] gives no class any weight: the loss is always 0"),
            format!(
                "set at least one of the {} above 0, or use \"inverse-frequency\" or \"none\"",
                in_words(weights.len())
            ),
        );
    }
    Ok(())
}

/// A number that the sampler does not read would have no effect.
fn sampler_reads(config: &Config) -> Result<()> {
    let (data, defaults) = (&config.data, DataConfig::default());
    if data.sampler.sampler().reads_classes() {
        return Ok(());
    }
    let name = data.sampler.name();
    let unread = [
        (
            "healthy_ratio",
            data.healthy_ratio != defaults.healthy_ratio,
        ),
        ("class_cap", data.class_cap != defaults.class_cap),
    ];
    match unread.into_iter().find(|(_, is_set)| *is_set) {
        None => Ok(()),
        Some((key, _)) => conflict(
            format!("data.{key} is set, and data.sampler = \"{name}\" does not read it"),
            format!("set data.sampler = \"balanced\", or leave data.{key} at its default"),
        ),
    }
}

/// A hash belongs to a file.
fn initial_weights_fit(config: &Config) -> Result<()> {
    let (init, hash) = (&config.model.init, &config.model.init_blake3);
    if init.is_empty() && !config.model.init_map.is_empty() {
        return conflict(
            format!(
                "model.init_map = {:?} distributes the tensors of a file, and model.init names none",
                config.model.init_map
            ),
            "name the file in model.init (or --init), or leave model.init_map empty",
        );
    }
    if hash.is_empty() {
        return Ok(());
    }
    if init.is_empty() {
        return conflict(
            format!(
                "model.init_blake3 = {hash:?} is the hash of a file, and model.init names none"
            ),
            "name the file in model.init (or --init), or leave model.init_blake3 empty",
        );
    }
    if hash.len() != 64 || !hash.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
        return conflict(
            format!("model.init_blake3 = {hash:?} is no blake3 hash: 64 hex digits in lower case"),
            "give what `b3sum` prints of the file, or leave it empty",
        );
    }
    Ok(())
}

/// With `patch_weight` 0 the patch head stays as it was initialised: nothing may be decided by it.
fn watched_metric_fits(config: &Config) -> Result<()> {
    if config.loss.patch_weight == 0.0 && config.early_stopping.level == Level::Patch {
        return conflict(
            "loss.patch_weight = 0 leaves the patch head untrained, but early_stopping.level = \"patch\" watches it".into(),
            "set early_stopping.level = \"image\", or loss.patch_weight above 0",
        );
    }
    Ok(())
}
