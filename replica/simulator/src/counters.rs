//! What a run caused. A campaign in which a kind never happened proves nothing about it, and fails.

use std::collections::BTreeMap;
use std::fmt;

macro_rules! kinds {
    ($($name:ident $text:literal),* $(,)?) => {
        /// A kind of event worth causing.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        #[allow(missing_docs, reason = "each one's text says it")]
        pub enum Kind { $($name),* }

        impl Kind {
            /// All of them.
            pub const ALL: &[Kind] = &[$(Kind::$name),*];
        }

        impl fmt::Display for Kind {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(match self { $(Kind::$name => $text),* })
            }
        }
    };
}

kinds! {
    Commit "blocks committed",
    Executed "requests executed",
    NoOp "no-ops committed",
    ViewChange "views begun by a leader",
    PreCheck "views left after a pre-check",
    HandOver "hand-overs",
    HandOverSlowDisk "hand-overs of a hung disk",
    StepDown "leaders that stepped down",
    Unmute "views begun for a muted voter",
    Kill "processes killed",
    PowerCut "power cuts",
    PowerCutLost "power cuts that lost unsynced writes",
    TornTail "torn tails cut",
    Blackout "power cuts of all at once",
    DiedSending "crashes between two messages",
    NewLeaderCrash "new leaders crashed",
    Restart "restarts",
    DiskHang "disks hung",
    Pause "processes paused",
    Segment "log segments begun",
    Partition "partitions",
    OneWayCut "one-way cuts",
    Lost "messages lost",
    CutOff "messages lost to a cut",
    Duplicated "messages duplicated",
    Reordered "messages reordered",
    Late "messages delayed",
    VeryOld "very old messages replayed",
    Fetched "catch-up answers with blocks",
    Forgotten "catch-up answers with a snapshot",
    SnapshotTaken "snapshots taken",
    SnapshotLeftOut "snapshot points left out",
    SnapshotInstalled "snapshots of peers installed",
    SnapshotNotInstalled "snapshots of peers that did not come",
    SnapshotRestart "restarts from a snapshot",
    ChunkServed "chunks of snapshots served",
    LogCut "logs cut from below",
    Diverged "catch-up from a diverged suffix",
    Replaced "diverged suffixes replaced",
    Forwarded "requests forwarded to the leader",
    AnsweredFromTable "retries answered from the table",
    Gap "gaps refused",
    ResolveExecuted "resolves: executed before",
    ResolveCancelled "resolves: cancelled",
    SessionOpened "sessions opened",
    SessionClosed "sessions closed",
    Evicted "answers from evicted sessions",
    ReadLeader "reads by the leader",
    ReadFollower "reads by a follower",
    ReadMonitor "reads from outside all sessions",
    RefusedNoLeader "requests refused without a leader",
    RefusedFenced "reads refused by a fenced replica",
    RefusedDeadline "requests refused at their deadline",
    Committed "outcomes: committed",
    Rejected "outcomes: rejected",
    Unknown "outcomes: unknown",
    ClientCrash "clients crashed",
    ClientCut "clients cut from a replica",
    Disconnected "connections broken",
    DiskLost "disks lost for good",
    Restored "volumes restored from an old copy",
    Retired "identities that forgot, found out",
    StandbyAdded "standbys added",
    Promoted "standbys promoted",
    Removed "members removed",
    LeaderRemoved "leaders that removed themselves",
    ChangeRefused "changes of membership refused",
    WallJump "wall clocks that jumped",
    BitFlip "states with a flipped bit",
    Doubted "states that somebody differed from, without a quorum",
    Fenced "states that a quorum was against",
    Rebuilt "states built anew",
    KeyNamed "keys named that differed",
    LogChecked "logs replayed by the checker",
}

/// How often each kind happened.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counters(BTreeMap<Kind, u64>);

impl Counters {
    /// Once more.
    pub fn add(&mut self, kind: Kind) {
        self.add_many(kind, 1);
    }

    /// So often more.
    pub fn add_many(&mut self, kind: Kind, count: u64) {
        *self.0.entry(kind).or_default() += count;
    }

    /// How often.
    pub fn get(&self, kind: Kind) -> u64 {
        self.0.get(&kind).copied().unwrap_or(0)
    }

    /// Takes in what another run caused.
    pub fn merge(&mut self, other: &Counters) {
        for (kind, count) in &other.0 {
            self.add_many(*kind, *count);
        }
    }

    /// Kinds that never happened.
    pub fn missing(&self) -> Vec<Kind> {
        Kind::ALL.iter().copied().filter(|kind| self.get(*kind) == 0).collect()
    }
}

impl fmt::Display for Counters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Kind::ALL.iter().try_for_each(|kind| writeln!(f, "{kind:>40} {:>10}", self.get(*kind)))
    }
}
