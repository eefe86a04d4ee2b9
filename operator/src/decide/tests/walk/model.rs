//! A small service and its cluster, as far as the operator sees and changes them.

use std::time::Duration;

use lockstep_types::{Change, Configuration};

use super::super::*;
use crate::world::{Strand, Stranded};

/// An ordinal: its volume, and the pod on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// How many volumes there were before this one.
    pub generation: u8,
    /// What is on the volume; none: there is no claim.
    pub disk: Option<Disk>,
    /// Whether the pod is there.
    pub runs: bool,
    /// Whether the pod does not answer.
    pub silent: bool,
    /// Whether its node is gone for good.
    pub stranded: bool,
    /// Whether the pod is of an old template.
    pub old: bool,
}

/// What a replica has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Disk {
    pub joined: bool,
    pub caught_up: bool,
}

/// The state of a walk.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Model {
    pub born: u8,
    pub places: Vec<Place>,
    /// The changes that were made: they are the configuration.
    pub changes: Vec<Change>,
    pub settled: bool,
    pub leader: Option<usize>,
    /// How many voters are asked for.
    pub wanted: usize,
    /// How many pods the StatefulSet is told to run.
    pub size: usize,
    /// What may still happen.
    pub left: Budget,
}

/// How often what may still happen on the way from one state to another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Budget {
    /// Pods that do not answer, at a time.
    pub silent: u8,
    /// Disks lost.
    pub losses: u8,
    /// Nodes lost.
    pub nodes: u8,
    /// Other numbers of replicas asked for.
    pub edits: u8,
    /// Other templates.
    pub templates: u8,
}

const EMPTY: Place = Place { generation: 0, disk: None, runs: false, silent: false, stranded: false, old: false };
const FRESH_DISK: Disk = Disk { joined: false, caught_up: false };

impl Model {
    /// A service of `n` at rest, with room for `most`.
    pub fn born(n: u8, most: u8, left: Budget) -> Self {
        let member = Place { disk: Some(Disk { joined: true, caught_up: true }), runs: true, ..EMPTY };
        let places = (0..n.max(most)).map(|ordinal| if ordinal < n { member } else { EMPTY }).collect();
        let size = usize::from(n);
        Model { born: n, places, changes: vec![], settled: true, leader: Some(0), wanted: size, size, left }
    }

    /// The identity on the volume of this ordinal.
    pub fn id(&self, ordinal: usize) -> ReplicaId {
        let number = u8::try_from(ordinal).expect("small") + 1 + 16 * self.places[ordinal].generation;
        ReplicaId::from_bytes([number; 16])
    }

    pub fn configuration(&self) -> Configuration {
        let apply = |members: Configuration, change: &Change| members.apply(change).expect("a change that can be");
        self.changes.iter().fold(genesis(self.born).configuration(), apply)
    }

    /// Whether a member of this configuration is on the volume of this ordinal.
    pub fn has_member(&self, configuration: &Configuration, ordinal: usize) -> bool {
        self.places[ordinal].disk.is_some() && configuration.slot_of(self.id(ordinal)).is_some()
    }

    /// Whether the replica of this ordinal votes, answers and has what the others have.
    pub fn counts(&self, configuration: &Configuration, ordinal: usize) -> bool {
        let place = &self.places[ordinal];
        let votes = configuration.voters().values().any(|id| *id == self.id(ordinal));
        votes && place.runs && !place.silent && place.disk.is_some_and(|disk| disk.joined && disk.caught_up)
    }

    pub fn counting(&self, configuration: &Configuration) -> usize {
        (0..self.places.len()).filter(|ordinal| self.counts(configuration, *ordinal)).count()
    }

    /// The resource as it stands, made of an example, with where members were last heard.
    pub fn service(&self, example: &Service) -> Service {
        let mut service = Service { replicas: self.wanted, ..example.clone() };
        service.recorded = Some(genesis(self.born));
        service.replace_after = Some(Duration::from_secs(600));
        service.status.members = self
            .configuration()
            .members()
            .map(|(slot, id)| lockstep_api::status::Member {
                pod: Some(service.pod_name(usize::from((id.as_bytes()[0] - 1) % 16))),
                slot: i64::from(slot.get()),
                replica_id: id.to_string(),
                standby: false,
            })
            .collect();
        service
    }

    pub fn world(&self) -> World {
        let configuration = self.configuration();
        let quorum = self.counting(&configuration) >= configuration.quorum();
        let mut world = world_of_pods(&vec![(Ready, N); self.places.len()]);
        world.size = Some(self.size);
        for (ordinal, place) in self.places.iter().enumerate() {
            match place.disk {
                None => world.claims.remove(&ordinal).map(drop).unwrap_or_default(),
                Some(disk) => {
                    let claim = world.claims.get_mut(&ordinal).expect("a claim");
                    claim.service = disk.joined.then_some(FRESH);
                }
            }
            let (Some(disk), true) = (place.disk, place.runs) else {
                world.pods.remove(&ordinal);
                continue;
            };
            let pod = world.pods.get_mut(&ordinal).expect("a pod");
            if place.old {
                pod.revision = "old".into();
            }
            if place.silent {
                pod.replica = None;
                let strand = Strand::Node { name: "n".into(), gone: true };
                pod.stranded = place.stranded.then(|| Stranded { strand, lasted: Duration::from_secs(601) });
                continue;
            }
            let seen = pod.replica.as_mut().expect("a replica");
            seen.id = self.id(ordinal);
            seen.leads = self.leader == Some(ordinal);
            seen.caught_up = disk.joined && disk.caught_up;
            seen.not_ready = (!quorum || !self.counts(&configuration, ordinal)).then(|| "not now".into());
            seen.members = disk.joined.then(|| Members { configuration: configuration.clone(), settled: self.settled });
            if !disk.joined {
                (seen.service, seen.genesis) = (None, None);
            }
        }
        world
    }

    /// After what the operator does.
    pub fn act(&self, action: &Action) -> Self {
        let mut next = self.clone();
        match action {
            Action::ChangeMembers { change, .. } => {
                next.changes.push(*change);
                next.settled = false;
            }
            Action::Join { ordinal, .. } => {
                next.places[*ordinal].disk = Some(Disk { joined: true, caught_up: false });
            }
            Action::HandOver { to, .. } => next.leader = Some(*to),
            Action::ReplacePod { ordinal, .. } => next.stop(*ordinal),
            Action::ReplaceVolume { ordinal, .. } => {
                next.stop(*ordinal);
                next.forget(*ordinal);
            }
            Action::DeleteClaims { claims } => claims.iter().for_each(|(ordinal, _)| next.forget(*ordinal)),
            Action::CreateToken
            | Action::Apply(_)
            | Action::RecordGenesis { .. }
            | Action::SendGenesis { .. }
            | Action::MarkVolumes { .. }
            | Action::GrowVolumes { .. } => panic!("{self:?}: {action:?}"),
        }
        next
    }

    fn stop(&mut self, ordinal: usize) {
        let place = &mut self.places[ordinal];
        (place.runs, place.silent, place.stranded, place.old) = (false, false, false, false);
        if self.leader == Some(ordinal) {
            self.leader = None;
        }
    }

    fn forget(&mut self, ordinal: usize) {
        let place = &mut self.places[ordinal];
        (place.disk, place.generation) = (None, place.generation + 1);
    }

    /// What gets better by itself.
    pub fn better(&self) -> Vec<Self> {
        let configuration = self.configuration();
        let mut all = vec![];
        let mut push = |change: &dyn Fn(&mut Self)| {
            let mut next = self.clone();
            change(&mut next);
            all.push(next);
        };
        let quorum = self.counting(&configuration) >= configuration.quorum();
        for (ordinal, place) in self.places.iter().enumerate() {
            if place.silent && !place.stranded {
                push(&|next| next.places[ordinal].silent = false);
            }
            if ordinal < self.size && !place.runs {
                push(&|next| {
                    let place = &mut next.places[ordinal];
                    (place.runs, place.disk) = (true, Some(place.disk.unwrap_or(FRESH_DISK)));
                });
            }
            if ordinal >= self.size && place.runs {
                push(&|next| next.stop(ordinal));
            }
            if quorum
                && self.has_member(&configuration, ordinal)
                && place.disk.is_some_and(|disk| disk.joined && !disk.caught_up)
            {
                push(&|next| next.places[ordinal].disk = Some(Disk { joined: true, caught_up: true }));
            }
            if quorum && self.leader != Some(ordinal) && self.counts(&configuration, ordinal) {
                push(&|next| next.leader = Some(ordinal));
            }
        }
        if quorum && !self.settled {
            push(&|next| next.settled = true);
        }
        all
    }

    /// What gets worse by itself, or is asked for.
    pub fn worse(&self) -> Vec<Self> {
        let mut all = vec![];
        let silent = self.places.iter().filter(|place| place.silent && !place.stranded).count();
        let silent = silent >= usize::from(self.left.silent);
        for ordinal in (0..self.places.len()).filter(|ordinal| self.places[*ordinal].runs) {
            let mut next = self.clone();
            if next.leader == Some(ordinal) {
                next.leader = None;
            }
            let place = self.places[ordinal];
            if self.left.losses > 0 && !place.stranded {
                let mut lost = next.clone();
                lost.left.losses -= 1;
                lost.places[ordinal] =
                    Place { generation: place.generation + 1, disk: Some(FRESH_DISK), runs: true, ..EMPTY };
                all.push(lost);
            }
            if self.left.nodes > 0 && !place.stranded {
                let mut lost = next.clone();
                lost.left.nodes -= 1;
                (lost.places[ordinal].silent, lost.places[ordinal].stranded) = (true, true);
                all.push(lost);
            }
            if !silent && !place.silent {
                next.places[ordinal].silent = true;
                all.push(next);
            }
        }
        for wanted in (1..=self.places.len()).step_by(2).filter(|wanted| *wanted != self.wanted && self.left.edits > 0)
        {
            let mut edited = self.clone();
            edited.left.edits -= 1;
            edited.wanted = wanted;
            all.push(edited);
        }
        if self.left.templates > 0 {
            let mut edited = self.clone();
            edited.left.templates -= 1;
            edited.places.iter_mut().filter(|place| place.runs).for_each(|place| place.old = true);
            all.push(edited);
        }
        all
    }
}
