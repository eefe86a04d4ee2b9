//! What a replica says about itself, with types: [`ReplicaStatus`] ↔ [`v1::StatusResponse`].
//!
//! A replica builds it, the operator, the command line and tests read it.

use core::fmt;
use core::time::Duration;

use bytes::Bytes;
use lockstep_types::{Configuration, Digest, Epoch, Genesis, Height, ReplicaId, ServiceId, Slot, View};

use crate::convert::{self, WireError};
use crate::v1;

/// What a replica is and knows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReplicaStatus {
    /// Its identity, minted with its data directory.
    pub replica: ReplicaId,
    /// The service; none before genesis.
    pub service: Option<ServiceId>,
    /// The release that it runs.
    pub version: String,
    /// Starts of this identity, from 1.
    pub boot: u64,
    /// Its part in its view.
    pub role: Role,
    /// Its view; [`View::ZERO`] before genesis.
    pub view: View,
    /// Its slot; none before it is a member.
    pub slot: Option<Slot>,
    /// The configuration that it knows; none before genesis.
    pub epoch: Option<Epoch>,
    /// Who leads, as it knows.
    pub leader: Option<ReplicaId>,
    /// The highest block of its log.
    pub head: Height,
    /// The highest block that it knows to be committed, at most `head`.
    pub committed: Height,
    /// The highest block that it executed, at most `committed`.
    pub applied: Height,
    /// The leader's head as last heard.
    pub leader_head: Option<Height>,
    /// How long ago the leader was heard.
    pub leader_heard: Option<Duration>,
    /// Why it is not ready; none if it is: a voter of the current epoch, caught up, the leader heard recently.
    pub not_ready: Option<String>,
    /// The genesis that it started from.
    pub genesis: Option<Genesis>,
    /// The members of the newest configuration that it knows, by slot.
    pub members: Vec<MemberStatus>,
    /// The rolling execution digest at `applied`.
    pub digest: Option<Digest>,
    /// The built-in state machine; empty before genesis.
    pub state_machine: String,
    /// Time since the process started.
    pub uptime: Duration,
    /// Who belongs to the service; none before genesis.
    pub membership: Option<Membership>,
    /// Its snapshots; the default before genesis.
    pub snapshots: SnapshotsStatus,
    /// Why it has retired: it forgot what it had promised, and is never listened to again.
    pub retired: Option<String>,
    /// What it executed differently than others; none as long as nobody was found to differ, since the start of its process.
    pub divergence: Option<Divergence>,
}

impl ReplicaStatus {
    /// Whether it is ready to serve.
    pub fn is_ready(&self) -> bool {
        self.not_ready.is_none()
    }

    /// Blocks that the leader has and this replica has not applied. 0 while no leader was heard.
    pub fn lag(&self) -> u64 {
        self.leader_head.map_or(0, |head| head.above(self.applied))
    }
}

/// What a replica executed and what others did differ, or did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Divergence {
    /// How its state stands now.
    pub doubt: StateDoubt,
    /// The first block that is known to have been executed differently.
    pub block: Height,
    /// It was equal right below: this very block was.
    pub exact: bool,
    /// The first key that this block wrote differently; none if it is not known, or only answers differ.
    pub key: Option<Bytes>,
    /// One that differs.
    pub witness: Slot,
    /// All that in words, after the replica's name.
    pub text: String,
}

/// How a state stands that another was found to differ from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum StateDoubt {
    /// It is that of a quorum again.
    Over,
    /// No side has a quorum: nothing is applied or answered.
    Open,
    /// The same, and executing the block again changed nothing.
    OpenAgain,
    /// A quorum is against it: it is being built anew.
    Fenced,
    /// The same, and it differs again: the state machine is not deterministic on this replica.
    FencedAgain,
}

impl From<StateDoubt> for v1::StateDoubt {
    fn from(doubt: StateDoubt) -> Self {
        match doubt {
            StateDoubt::Over => v1::StateDoubt::DoubtOver,
            StateDoubt::Open => v1::StateDoubt::DoubtOpen,
            StateDoubt::OpenAgain => v1::StateDoubt::DoubtOpenAgain,
            StateDoubt::Fenced => v1::StateDoubt::DoubtFenced,
            StateDoubt::FencedAgain => v1::StateDoubt::DoubtFencedAgain,
        }
    }
}

impl From<Divergence> for v1::Divergence {
    fn from(found: Divergence) -> Self {
        v1::Divergence {
            doubt: v1::StateDoubt::from(found.doubt).into(),
            block: found.block.get(),
            exact: found.exact,
            key: found.key,
            witness_slot: found.witness.get(),
            text: found.text,
        }
    }
}

impl TryFrom<v1::Divergence> for Divergence {
    type Error = WireError;

    fn try_from(found: v1::Divergence) -> Result<Self, WireError> {
        let unknown = WireError::Unknown { field: "divergence.doubt", value: found.doubt };
        Ok(Divergence {
            doubt: match v1::StateDoubt::try_from(found.doubt).map_err(|_| unknown)? {
                v1::StateDoubt::DoubtOver => StateDoubt::Over,
                v1::StateDoubt::DoubtOpen => StateDoubt::Open,
                v1::StateDoubt::DoubtOpenAgain => StateDoubt::OpenAgain,
                v1::StateDoubt::DoubtFenced => StateDoubt::Fenced,
                v1::StateDoubt::DoubtFencedAgain => StateDoubt::FencedAgain,
            },
            block: Height::new(found.block),
            exact: found.exact,
            key: found.key,
            witness: Slot::new(found.witness_slot),
            text: found.text,
        })
    }
}

/// A replica's part in its view.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// Before genesis, or not a member.
    None,
    /// Follows a leader.
    Follower,
    /// Left its view, waits for the next one.
    Candidate,
    /// Leads.
    Leader,
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Role::None => "none",
            Role::Follower => "follower",
            Role::Candidate => "candidate",
            Role::Leader => "leader",
        })
    }
}

/// A member as another replica sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemberStatus {
    /// Its identity.
    pub replica: ReplicaId,
    /// Its slot.
    pub slot: Slot,
    /// On the leader: the height that it acknowledged. Else zero.
    pub acknowledged: Height,
    /// On the leader: it answered recently.
    pub connected: bool,
    /// It votes; else it is a standby.
    pub votes: bool,
}

/// Who belongs to the service, as one replica knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Membership {
    /// The newest configuration known to be committed.
    pub configuration: Configuration,
    /// The height of the change that brought it.
    pub height: Height,
    /// Who left with that change is needed no more: pod and volume may go.
    pub settled: bool,
}

impl From<Membership> for v1::Membership {
    fn from(membership: Membership) -> Self {
        v1::Membership {
            configuration: Bytes::from(membership.configuration.encode()),
            height: membership.height.get(),
            settled: membership.settled,
        }
    }
}

impl TryFrom<v1::Membership> for Membership {
    type Error = WireError;

    fn try_from(membership: v1::Membership) -> Result<Self, WireError> {
        let configuration = Configuration::decode(membership.configuration)
            .map_err(|error| WireError::Decode { field: "membership.configuration", error })?;
        Ok(Membership { configuration, height: Height::new(membership.height), settled: membership.settled })
    }
}

/// Snapshots as one replica knows them. The counters start at 0 with its process.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SnapshotsStatus {
    /// The newest one on its disk.
    pub newest: Option<Height>,
    /// The newest one that a quorum has alike, as it knows since its start; at most `newest`.
    pub agreed: Option<Height>,
    /// Its log holds the blocks above this height; zero: all of them.
    pub log_begins_above: Height,
    /// One that it is fetching from peers.
    pub fetching: Option<SnapshotFetch>,
    /// Why the last one was not taken or fetched; none once one was.
    pub trouble: Option<String>,
    /// Snapshots written.
    pub taken: u64,
    /// Snapshot points left out: the disk refused, or the one before was still being written.
    pub left_out: u64,
    /// Snapshots of peers that took the place of the state.
    pub installed: u64,
    /// Attempts to fetch one that came to nothing.
    pub install_failures: u64,
    /// Chunks served to peers.
    pub chunks_served: u64,
}

/// A snapshot on its way from peers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SnapshotFetch {
    /// Its height.
    pub height: Height,
    /// Chunks on the disk.
    pub chunks: u64,
    /// Chunks that it has; 0 until that is known.
    pub of: u64,
}

impl From<Role> for v1::Role {
    fn from(role: Role) -> Self {
        match role {
            Role::None => v1::Role::None,
            Role::Follower => v1::Role::Follower,
            Role::Candidate => v1::Role::Candidate,
            Role::Leader => v1::Role::Leader,
        }
    }
}

impl From<v1::Role> for Role {
    fn from(role: v1::Role) -> Self {
        match role {
            v1::Role::None => Role::None,
            v1::Role::Follower => Role::Follower,
            v1::Role::Candidate => Role::Candidate,
            v1::Role::Leader => Role::Leader,
        }
    }
}

impl From<ReplicaStatus> for v1::StatusResponse {
    fn from(status: ReplicaStatus) -> Self {
        v1::StatusResponse {
            replica_id: convert::id_bytes(status.replica.as_bytes()),
            service_id: status.service.map(|id| convert::id_bytes(id.as_bytes())).unwrap_or_default(),
            version: status.version,
            boot: status.boot,
            role: v1::Role::from(status.role).into(),
            view_round: status.view.round,
            view_leader_slot: status.view.leader.get(),
            slot: status.slot.map_or(0, Slot::get),
            epoch: status.epoch.map_or(0, Epoch::get),
            leader_id: status.leader.map(|id| convert::id_bytes(id.as_bytes())).unwrap_or_default(),
            head: status.head.get(),
            committed: status.committed.get(),
            applied: status.applied.get(),
            leader_head: status.leader_head.map_or(0, Height::get),
            leader_heard_ms: status.leader_heard.map(millis),
            ready: status.not_ready.is_none(),
            not_ready_reason: status.not_ready.unwrap_or_default(),
            genesis: status.genesis.map(|genesis| Bytes::from(genesis.encode())).unwrap_or_default(),
            members: status.members.into_iter().map(v1::Member::from).collect(),
            digest: status.digest.map(|digest| convert::digest_bytes(&digest)).unwrap_or_default(),
            state_machine: status.state_machine,
            uptime_ms: millis(status.uptime),
            membership: status.membership.map(v1::Membership::from),
            snapshots: Some(status.snapshots.into()),
            retired: status.retired.unwrap_or_default(),
            divergence: status.divergence.map(v1::Divergence::from),
        }
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

impl TryFrom<v1::StatusResponse> for ReplicaStatus {
    type Error = WireError;

    fn try_from(status: v1::StatusResponse) -> Result<Self, WireError> {
        let role = v1::Role::try_from(status.role)
            .map_err(|_| WireError::Unknown { field: "role", value: status.role })?
            .into();
        let genesis = (!status.genesis.is_empty())
            .then(|| Genesis::decode(status.genesis))
            .transpose()
            .map_err(|error| WireError::Decode { field: "genesis", error })?;
        let not_ready = match (status.ready, status.not_ready_reason) {
            (true, _) => None,
            (false, reason) if reason.is_empty() => Some("no reason given".to_owned()),
            (false, reason) => Some(reason),
        };
        Ok(ReplicaStatus {
            replica: convert::replica_id("replica_id", &status.replica_id)?,
            service: convert::service_id("service_id", &status.service_id)?,
            version: status.version,
            boot: status.boot,
            role,
            view: View::new(status.view_round, Slot::new(status.view_leader_slot)),
            slot: (status.slot != 0).then(|| Slot::new(status.slot)),
            epoch: (status.epoch != 0).then(|| Epoch::new(status.epoch)),
            leader: convert::optional_replica_id("leader_id", &status.leader_id)?,
            head: Height::new(status.head),
            committed: Height::new(status.committed),
            applied: Height::new(status.applied),
            leader_head: (status.leader_head != 0).then(|| Height::new(status.leader_head)),
            leader_heard: status.leader_heard_ms.map(Duration::from_millis),
            not_ready,
            genesis,
            members: status.members.into_iter().map(MemberStatus::try_from).collect::<Result<_, _>>()?,
            digest: (!status.digest.is_empty()).then(|| convert::digest("digest", &status.digest)).transpose()?,
            state_machine: status.state_machine,
            uptime: Duration::from_millis(status.uptime_ms),
            membership: status.membership.map(Membership::try_from).transpose()?,
            snapshots: status.snapshots.map(SnapshotsStatus::from).unwrap_or_default(),
            retired: (!status.retired.is_empty()).then_some(status.retired),
            divergence: status.divergence.map(Divergence::try_from).transpose()?,
        })
    }
}

impl From<SnapshotsStatus> for v1::SnapshotsStatus {
    fn from(status: SnapshotsStatus) -> Self {
        v1::SnapshotsStatus {
            height: status.newest.map_or(0, Height::get),
            agreed_height: status.agreed.map_or(0, Height::get),
            log_begins_above: status.log_begins_above.get(),
            fetching: status.fetching.map(|fetch| v1::SnapshotFetch {
                height: fetch.height.get(),
                chunks: fetch.chunks,
                of: fetch.of,
            }),
            trouble: status.trouble.unwrap_or_default(),
            taken: status.taken,
            left_out: status.left_out,
            installed: status.installed,
            install_failures: status.install_failures,
            chunks_served: status.chunks_served,
        }
    }
}

impl From<v1::SnapshotsStatus> for SnapshotsStatus {
    fn from(status: v1::SnapshotsStatus) -> Self {
        let height = |height: u64| (height != 0).then(|| Height::new(height));
        SnapshotsStatus {
            newest: height(status.height),
            agreed: height(status.agreed_height),
            log_begins_above: Height::new(status.log_begins_above),
            fetching: status.fetching.map(|fetch| SnapshotFetch {
                height: Height::new(fetch.height),
                chunks: fetch.chunks,
                of: fetch.of,
            }),
            trouble: Some(status.trouble).filter(|trouble| !trouble.is_empty()),
            taken: status.taken,
            left_out: status.left_out,
            installed: status.installed,
            install_failures: status.install_failures,
            chunks_served: status.chunks_served,
        }
    }
}

impl From<MemberStatus> for v1::Member {
    fn from(member: MemberStatus) -> Self {
        v1::Member {
            replica_id: convert::id_bytes(member.replica.as_bytes()),
            slot: member.slot.get(),
            acknowledged: member.acknowledged.get(),
            connected: member.connected,
            standby: !member.votes,
        }
    }
}

impl TryFrom<v1::Member> for MemberStatus {
    type Error = WireError;

    fn try_from(member: v1::Member) -> Result<Self, WireError> {
        Ok(MemberStatus {
            replica: convert::replica_id("member.replica_id", &member.replica_id)?,
            slot: Slot::new(member.slot),
            acknowledged: Height::new(member.acknowledged),
            connected: member.connected,
            votes: !member.standby,
        })
    }
}
