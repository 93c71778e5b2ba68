//! The phases of a run. Each carries its own fields: entering a phase builds them, leaving it drops them.

use std::collections::BTreeMap;

use super::RunOutcome;
use crate::protocol::{MemberId, StartPoint, Vote};

#[derive(Clone, Debug)]
pub(super) enum Phase {
    Gathering(Gathering),
    Running(Running),
    Over(RunOutcome),
}

/// The rendezvous before a generation.
#[derive(Clone, Debug, Default)]
pub(super) struct Gathering {
    pub since_ms: u64,
    /// The newest complete checkpoint, once the shell has found it.
    pub found: Option<StartPoint>,
    /// Late reports of the generation before. They count in the next one.
    pub shared: Option<StateReports>,
}

/// One generation, from its first attempt to its end.
#[derive(Clone, Debug)]
pub(super) struct Running {
    /// Ranks that are still there.
    pub seated: usize,
    pub ballot: Ballot,
    /// Why the ranks meet after the next commit.
    pub regroup: Option<String>,
    /// The step that is agreed as the last one, once it is committed.
    pub drained_at: Option<u64>,
    /// Rank 0 has published.
    pub published: bool,
    pub shared: Option<StateReports>,
    /// How many ranks finished or left, and the first of them.
    pub done: usize,
    pub first_done: Option<MemberId>,
    /// The hash of the final weights, and the rank that reported it first.
    pub weights: Option<(MemberId, String)>,
}

/// The votes for the next step.
#[derive(Clone, Debug, Default)]
pub(super) struct Ballot {
    pub votes: BTreeMap<MemberId, Vote>,
    pub first: Option<MemberId>,
}

/// The hash of the state that the ranks were given, and how many of them have reported it.
#[derive(Clone, Debug)]
pub(super) struct StateReports {
    pub state_blake3: String,
    pub ranks: usize,
}

impl Gathering {
    pub fn new(now_ms: u64) -> Self {
        Self {
            since_ms: now_ms,
            ..Self::default()
        }
    }
}

impl Running {
    /// A generation of `world` ranks. With `last` they take no step: that step was the last.
    pub fn new(world: usize, last: Option<u64>, shared: Option<StateReports>) -> Self {
        Self {
            seated: world,
            ballot: Ballot::default(),
            regroup: None,
            drained_at: last,
            published: false,
            shared,
            done: 0,
            first_done: None,
            weights: None,
        }
    }
}

impl Ballot {
    pub fn cast(&mut self, id: MemberId, vote: Vote) {
        self.votes.insert(id, vote);
        self.first.get_or_insert(id);
    }
}
