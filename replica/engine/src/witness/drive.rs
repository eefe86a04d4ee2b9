//! What an engine does about what it remembers: hears the others, tells them, meets them, and retires.

use std::collections::BTreeSet;

use lockstep_consensus::Moment;
use lockstep_types::{Configuration, ReplicaId, Slot};
use lockstep_wal::Disk;

use super::{Amnesia, Claim, Mark, Remembered, Witness};
use crate::engine::Engine;
use crate::message::PeerMessage;

/// Microseconds between two times that the others are told, if there is something new.
const TELL: u64 = 1_000_000;

/// What this replica remembers, and what it said of that.
#[derive(Debug)]
pub(crate) struct Witnessing {
    pub witness: Witness,
    /// What the others were told last.
    told: Vec<(ReplicaId, Remembered)>,
    tell_at: Moment,
    /// Members that forgot something: nothing that they say counts.
    deaf_to: BTreeSet<Slot>,
    /// This replica forgot something itself.
    pub retired: Option<Amnesia>,
}

impl Witnessing {
    pub fn new(witness: Witness) -> Self {
        Witnessing { witness, told: Vec::new(), tell_at: Moment::default(), deaf_to: BTreeSet::new(), retired: None }
    }
}

impl<D: Disk> Engine<D> {
    /// What this replica says of itself when it meets another: the same from its start to its end.
    pub fn claim(&self) -> Claim {
        self.claim
    }

    /// How far this replica came, batches under way included.
    pub fn mark(&self) -> Mark {
        self.log.mark()
    }

    /// What is remembered of another replica.
    pub fn remembers(&self, replica: ReplicaId) -> Option<Remembered> {
        self.witnessing.witness.of(replica)
    }

    /// Another replica says who it is; before any message of that start of it is handed in.
    ///
    /// # Errors
    /// It forgot what it had promised, and must not be listened to.
    pub fn meet(&mut self, now: Moment, replica: ReplicaId, claim: Claim) -> Result<(), Amnesia> {
        self.hear_all(now);
        let met = self.witnessing.witness.meet(replica, claim);
        self.mind_deaf();
        met
    }

    /// Whether nothing that this member says counts.
    pub(crate) fn is_deaf_to(&self, slot: Slot) -> bool {
        self.witnessing.deaf_to.contains(&slot)
    }

    /// What another replica remembers: of others, and of this one. Nobody remembers more of this one than it ever wrote, if
    /// it is what it takes itself for.
    pub(crate) fn on_remembered(&mut self, all: Vec<(ReplicaId, Remembered)>) {
        for (replica, known) in all {
            if replica == self.me {
                let ours = Remembered { claim: self.claim, heard: self.log.mark(), forgot: false };
                self.witnessing.retired = self.witnessing.retired.or(ours.contradicts(&known));
            } else if self.counted().any(|config| config.slot_of(replica).is_some()) {
                self.witnessing.witness.learn(replica, known);
            }
        }
        self.mind_deaf();
    }

    /// Tells the others what is new, now and then: above all what this replica wrote itself, for nobody else hears what a
    /// leader acknowledges to itself.
    pub(crate) fn drive_witness(&mut self, now: Moment) {
        if now < self.witnessing.tell_at {
            return;
        }
        self.witnessing.tell_at = now.plus(TELL);
        self.hear_all(now);
        let counted: BTreeSet<ReplicaId> =
            self.counted().flat_map(|config| config.members().map(|(_, replica)| replica)).collect();
        self.witnessing.witness.retain(|replica| counted.contains(&replica));
        let own = Remembered { claim: self.claim, heard: self.log.durable_mark(), forgot: false };
        let all: Vec<_> = [(self.me, own)].into_iter().chain(self.witnessing.witness.all()).collect();
        if all == self.witnessing.told {
            return;
        }
        for to in self.others() {
            self.send(to, PeerMessage::Remembered(all.clone()));
        }
        self.witnessing.told = all;
    }

    /// When the others are told next.
    pub(crate) fn tell_at(&self) -> Moment {
        self.witnessing.tell_at
    }

    /// What the others acknowledged and promised to this replica.
    fn hear_all(&mut self, now: Moment) {
        for slot in self.others() {
            let Some(replica) = self.counted().find_map(|config| config.member(slot)) else { continue };
            let block = self.core.acknowledged(slot, now).and_then(|(height, _)| self.core.chain().at(height));
            let acknowledged = Mark { rank: block.map(|block| block.rank()).unwrap_or_default(), ..Mark::default() };
            let left = self.core.heard_timeout(slot).map(|(view, block)| Mark { rank: block.rank(), promised: view });
            self.witnessing.witness.hear(replica, acknowledged.max(left.unwrap_or_default()));
        }
    }

    fn mind_deaf(&mut self) {
        let members = self.counted().flat_map(Configuration::members);
        let deaf = members.filter(|(_, replica)| self.witnessing.witness.forgot(*replica));
        self.witnessing.deaf_to = deaf.map(|(slot, _)| slot).collect();
    }

    /// The configurations whose members may still count.
    fn counted(&self) -> impl Iterator<Item = &Configuration> {
        [self.core.config(), self.core.membership().configuration].into_iter()
    }

    fn others(&self) -> BTreeSet<Slot> {
        let me = self.core.me();
        self.counted().flat_map(|config| config.members().map(|(slot, _)| slot)).filter(|slot| *slot != me).collect()
    }
}
