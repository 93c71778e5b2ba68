//! The status, as seen from the state machine.

use super::{Membership, Phase, RunOutcome};
use crate::protocol::MemberState;
use crate::status::{RankStatus, RunState, Status, Turned};

impl Membership {
    /// The status at a time.
    pub fn status(&self, now_ms: u64) -> Status {
        let mut ranks: Vec<RankStatus> = self
            .members
            .iter()
            .map(|(id, member)| RankStatus {
                rank: member.seat,
                member: *id,
                host: member.info.host.clone(),
                pid: member.info.pid,
                state: member.state,
                step: member.step,
                samples_per_s: member.samples_per_s,
                last_seen_ms: now_ms.saturating_sub(member.last_seen_ms),
            })
            .collect();
        ranks.sort_by_key(|rank| (rank.rank.unwrap_or(usize::MAX), rank.member));
        let samples_total = self
            .agreed
            .as_ref()
            .map_or(0, |ready| ready.samples_per_epoch);
        let epochs_left = self
            .config
            .epochs
            .saturating_sub(self.at.epoch.saturating_add(1));
        let to_go = samples_total
            .saturating_sub(self.at.cursor)
            .saturating_add(samples_total.saturating_mul(u64::from(epochs_left)));
        let state = self.run_state();
        Status {
            state,
            generation: self.generation,
            epoch: self.at.epoch,
            epochs: self.config.epochs,
            step: self.at.step,
            cursor: self.at.cursor,
            samples_total,
            world: self.world,
            incidents: self.incidents.count,
            last_incident: self.incidents.last.clone(),
            ranks,
            ranks_left_out: 0,
            samples_per_s: self.progress.samples_per_s(),
            loss: self.results.loss,
            eta_s: if state.is_over() {
                None
            } else {
                self.progress.eta_s(to_go)
            },
            checkpoint: self.results.checkpoint.clone(),
            last_epoch: self.results.epoch.clone(),
            reason: self.why.clone(),
            summary: self.config.summary.clone(),
            // Known to the shell.
            turned: Turned::default(),
            unsaved: self.results.unsaved.clone(),
        }
    }

    fn run_state(&self) -> RunState {
        let evaluates = |state: MemberState| state == MemberState::Evaluating;
        match &self.phase {
            Phase::Gathering(_) => RunState::Waiting,
            Phase::Running(_) if self.drain.is_some() => RunState::Draining,
            Phase::Running(_) if self.members.values().any(|m| evaluates(m.state)) => {
                RunState::Evaluating
            }
            Phase::Running(_) => RunState::Training,
            Phase::Over(RunOutcome::Finished { .. }) => RunState::Finished,
            Phase::Over(RunOutcome::Failed { .. }) => RunState::Failed,
            Phase::Over(RunOutcome::Drained { .. } | RunOutcome::Stopped { .. }) => {
                RunState::Stopped
            }
        }
    }
}
