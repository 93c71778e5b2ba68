//! The members, and what each of them last reported.

use std::collections::BTreeMap;
use std::collections::btree_map::ValuesMut;
use std::ops::Deref;

use super::clip;
use crate::protocol::{MemberId, MemberState, Ready, StartPoint, TrainerInfo};

/// Whether a member has left for good. It keeps this through a rendezvous.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Done {
    No,
    Finished,
    Left,
}

#[derive(Clone, Debug)]
pub(super) struct Member {
    pub info: TrainerInfo,
    /// Its answer for this rendezvous; the ranks of a generation keep theirs until the next one.
    pub ready: Option<Ready>,
    pub seat: Option<usize>,
    /// Its seat in the generation before this rendezvous.
    pub last_seat: Option<usize>,
    pub state: MemberState,
    pub step: u64,
    pub samples_per_s: f32,
    pub last_seen_ms: u64,
    pub beat: u64,
    /// When its training thread last got something done.
    pub moved_ms: u64,
    pub done: Done,
}

/// All members by id. It counts the members that are ready and those that owe it, because a rendezvous
/// of N members asks for both N times.
#[derive(Clone, Debug, Default)]
pub(super) struct Roster {
    members: BTreeMap<MemberId, Member>,
    ready: usize,
    owing: usize,
}

impl Roster {
    /// Members that are ready.
    pub fn ready(&self) -> usize {
        self.ready
    }

    /// Members that had a seat in the generation before and are not ready yet.
    pub fn owing(&self) -> usize {
        self.owing
    }

    pub fn admit(&mut self, id: MemberId, member: Member) {
        self.owing += usize::from(member.owes_ready());
        self.members.insert(id, member);
    }

    pub fn forget(&mut self, id: MemberId) {
        if let Some(member) = self.members.remove(&id) {
            self.ready -= usize::from(member.ready.is_some());
            self.owing -= usize::from(member.owes_ready());
        }
    }

    pub fn set_ready(&mut self, id: MemberId, ready: Ready) {
        if let Some(member) = self.members.get_mut(&id) {
            self.ready += usize::from(member.ready.is_none());
            self.owing -= usize::from(member.owes_ready());
            member.ready = Some(ready);
            member.state = MemberState::Waiting;
        }
    }

    /// Seats become last seats, and a member that had one owes a new answer. A member without a seat
    /// has given its answer already.
    pub fn unseat(&mut self, now_ms: u64) {
        for member in self.members.values_mut() {
            if member.seat.is_some() {
                member.ready = None;
            }
            member.last_seat = member.seat.take();
            member.moved_ms = now_ms;
        }
        let count = |is: fn(&Member) -> bool| self.members.values().filter(|m| is(m)).count();
        self.ready = count(|m| m.ready.is_some());
        self.owing = count(Member::owes_ready);
    }

    /// For everything but `ready` and `last_seat`, which are counted.
    pub fn get_mut(&mut self, id: MemberId) -> Option<&mut Member> {
        self.members.get_mut(&id)
    }

    /// As [`Roster::get_mut`], for all members.
    pub fn values_mut(&mut self) -> ValuesMut<'_, MemberId, Member> {
        self.members.values_mut()
    }

    pub fn describe(&self, id: MemberId) -> String {
        match self.members.get(&id) {
            Some(member) => member.describe(id),
            None => format!("member {id}"),
        }
    }

    /// The ids of the members that `is` selects, ascending.
    pub fn ids(&self, is: impl Fn(&Member) -> bool) -> Vec<MemberId> {
        let selected = self.members.iter().filter(|(_, member)| is(member));
        selected.map(|(id, _)| *id).collect()
    }
}

impl Deref for Roster {
    type Target = BTreeMap<MemberId, Member>;

    fn deref(&self) -> &Self::Target {
        &self.members
    }
}

impl Member {
    pub fn new(mut info: TrainerInfo, now_ms: u64) -> Self {
        info.host = clip(&info.host);
        info.machine = clip(&info.machine);
        Self {
            info,
            ready: None,
            seat: None,
            last_seat: None,
            state: MemberState::Starting,
            step: 0,
            samples_per_s: 0.0,
            last_seen_ms: now_ms,
            beat: 0,
            moved_ms: now_ms,
            done: Done::No,
        }
    }

    /// It had a seat in the generation before this rendezvous and is not ready yet.
    pub fn owes_ready(&self) -> bool {
        self.last_seat.is_some() && self.ready.is_none()
    }

    /// The committed step whose state it holds, if it is ready.
    pub fn holds(&self) -> Option<StartPoint> {
        self.ready.as_ref().and_then(|ready| ready.have)
    }

    /// `rank 1 (host node3, pid 77, last step 12)`.
    pub fn describe(&self, id: MemberId) -> String {
        let TrainerInfo { host, pid, .. } = &self.info;
        match self.seat.or(self.last_seat) {
            Some(rank) => format!(
                "rank {rank} (host {host}, pid {pid}, last step {})",
                self.step
            ),
            None => format!("member {id} (host {host}, pid {pid}, without a rank)"),
        }
    }
}
