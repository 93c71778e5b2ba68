//! A run seen from outside: the live status, and `status.json` for when it is over.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::files;
use crate::ids::{CheckpointInfo, Generation, MemberId, MemberState};

/// File name in the run directory.
pub const STATUS_FILE: &str = "status.json";

/// Most bytes that a rank's status takes in a frame, without the name of its host.
const RANK_BYTES: usize = 50;

/// State of the whole run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RunState {
    /// Not all ranks are there yet.
    Waiting,
    /// The ranks are taking steps.
    Training,
    /// At least one rank evaluates.
    Evaluating,
    /// A drain was asked for; the next committed step is the last, or was.
    Draining,
    /// Training is complete; the coordinator is about to leave.
    Finished,
    /// The run ended with an error; see `reason`.
    Failed,
    /// The run was drained or stopped and can be resumed.
    Stopped,
}

impl RunState {
    /// No more steps will come from this coordinator.
    pub fn is_over(self) -> bool {
        matches!(self, Self::Finished | Self::Failed | Self::Stopped)
    }
}

/// One member, with or without a rank.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RankStatus {
    /// Its rank; `None` while the run waits for all of them.
    pub rank: Option<usize>,
    /// The process's id, which stays when its rank changes.
    pub member: MemberId,
    /// Host that the member runs on.
    pub host: String,
    /// Process id on `host`.
    pub pid: u32,
    /// Activity in its newest heartbeat.
    pub state: MemberState,
    /// Newest step it reported.
    pub step: u64,
    /// Throughput of this rank alone; 0 until it is known.
    pub samples_per_s: f32,
    /// Milliseconds since its last message.
    pub last_seen_ms: u64,
}

/// What the coordinator had to turn away since it started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Turned {
    /// Frames that are no message: too long, empty, of another version, or not decodable.
    pub malformed_frames: u64,
    /// Peers that did not show this run's token.
    pub refused_tokens: u64,
    /// Connections that this side closed for what the peer did or did not do, those of the malformed
    /// frames and refused tokens with them.
    pub dropped_connections: u64,
}

/// Figures of the newest evaluated epoch.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EpochSummary {
    /// The evaluated epoch, as the trainer reported it.
    pub epoch: u32,
    /// Named figures, all finite.
    pub metrics: BTreeMap<String, f64>,
    /// Why the watched metric has no value in this epoch; nothing when it has one.
    #[serde(default)]
    pub undefined: Option<String>,
}

/// State of a run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// State of the run.
    pub state: RunState,
    /// Membership version, 0 before the first.
    pub generation: Generation,
    /// Current epoch, from 0.
    pub epoch: u32,
    /// Epochs that the run shall train.
    pub epochs: u32,
    /// Committed steps of the whole run.
    pub step: u64,
    /// Committed samples of this epoch.
    pub cursor: u64,
    /// Samples in an epoch, 0 while unknown.
    pub samples_total: u64,
    /// Ranks of the newest generation.
    pub world: usize,
    /// The ranks, by rank; behind them those that stand by. Over the wire, as many as a frame holds.
    pub ranks: Vec<RankStatus>,
    /// How many more there are.
    #[serde(default)]
    pub ranks_left_out: usize,
    /// Ranks lost since this coordinator started.
    pub incidents: u32,
    /// The last of them.
    pub last_incident: Option<String>,
    /// Committed samples per second over the last steps.
    pub samples_per_s: f64,
    /// Mean loss per sample of the newest committed step.
    pub loss: Option<f64>,
    /// Seconds to the end of the last epoch at this throughput.
    pub eta_s: Option<f64>,
    /// Newest complete checkpoint; `None` until a rank has reported one.
    pub checkpoint: Option<CheckpointInfo>,
    /// Newest evaluated epoch; `None` until one is evaluated.
    pub last_epoch: Option<EpochSummary>,
    /// Why the run is in this state, with numbers.
    pub reason: String,
    /// What trains, for people: model, backend, ...
    pub summary: BTreeMap<String, String>,
    /// What was turned away.
    #[serde(default)]
    pub turned: Turned,
    /// Why the newest checkpoint that was tried is not on disk; nothing when it is.
    #[serde(default)]
    pub unsaved: Option<String>,
}

impl Status {
    /// Leaves out the last ranks until the others fit into `bytes`, by an upper bound of their size in
    /// a frame.
    pub fn fit(&mut self, bytes: usize) {
        let mut left = bytes;
        let fits = |rank: &&RankStatus| {
            let takes = RANK_BYTES + rank.host.len();
            let fits = takes <= left;
            left = left.saturating_sub(takes);
            fits
        };
        let keep = self.ranks.iter().take_while(fits).count();
        self.ranks_left_out += self.ranks.len() - keep;
        self.ranks.truncate(keep);
    }

    /// Training is complete before its last epoch: the watched metric did not improve for long enough.
    pub fn stopped_early(&self) -> bool {
        self.state == RunState::Finished && self.epoch.saturating_add(1) < self.epochs
    }

    /// Reads `RUN/status.json`, which the coordinator rewrites about once a second and at the end.
    pub fn load(run_dir: &Path) -> Result<Self> {
        let path = run_dir.join(STATUS_FILE);
        let bytes = files::read_small(&path)?;
        serde_json::from_slice(&bytes).map_err(|error| Error::Json {
            path,
            detail: error.to_string(),
        })
    }
}
