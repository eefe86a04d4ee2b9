//! The walk: from a service at rest, every way in which disks are lost, pods fall silent and come back, the lead moves and the
//! operator acts, in any order. An operator that is killed is nothing of its own here: the next one sees the same world.

use std::collections::{BTreeMap, VecDeque};

use lockstep_types::{Change, Configuration};

use super::*;
use crate::decide::members;

/// Disks lost on the way from one state to another, at most.
const LOSSES: u8 = 2;

/// What is in a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Disk {
    id: u8,
    joined: bool,
    caught_up: bool,
    silent: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Model {
    disks: Vec<Disk>,
    /// The changes that were made: they are the configuration.
    changes: Vec<Change>,
    settled: bool,
    leader: Option<usize>,
    lost: u8,
}

fn replica(id: u8) -> ReplicaId {
    ReplicaId::from_bytes([id; 16])
}

impl Model {
    fn born(n: u8) -> Self {
        let disk = |number| Disk { id: number + 1, joined: true, caught_up: true, silent: false };
        Model { disks: (0..n).map(disk).collect(), changes: vec![], settled: true, leader: Some(0), lost: 0 }
    }

    fn n(&self) -> u8 {
        u8::try_from(self.disks.len()).expect("small")
    }

    fn configuration(&self) -> Configuration {
        let apply = |members: Configuration, change: &Change| members.apply(change).expect("a change that can be");
        self.changes.iter().fold(genesis(self.n()).configuration(), apply)
    }

    /// Whether the replica in this pod votes, answers and has what the others have.
    fn counts(&self, configuration: &Configuration, disk: &Disk) -> bool {
        let votes = configuration.voters().values().any(|id| *id == replica(disk.id));
        votes && disk.joined && disk.caught_up && !disk.silent
    }

    fn counting(&self, configuration: &Configuration) -> usize {
        self.disks.iter().filter(|disk| self.counts(configuration, disk)).count()
    }

    fn world(&self) -> World {
        let configuration = self.configuration();
        let quorum = self.counting(&configuration) >= configuration.quorum();
        let mut world = world_of_pods(&vec![(Ready, N); self.disks.len()]);
        for (ordinal, disk) in self.disks.iter().enumerate() {
            let pod = world.pods.get_mut(&ordinal).expect("a pod");
            if disk.silent {
                pod.replica = None;
                continue;
            }
            let seen = pod.replica.as_mut().expect("a replica");
            seen.id = replica(disk.id);
            seen.leads = self.leader == Some(ordinal);
            seen.caught_up = disk.joined && disk.caught_up;
            seen.not_ready = (!quorum || !self.counts(&configuration, disk)).then(|| "not now".into());
            seen.members = disk.joined.then(|| Members { configuration: configuration.clone(), settled: self.settled });
            if !disk.joined {
                (seen.service, seen.genesis) = (None, None);
            }
        }
        world
    }

    /// After what the operator does, and only if the replicas can do it.
    fn act(&self, action: &Action) -> Self {
        let mut next = self.clone();
        match action {
            Action::ChangeMembers { change, .. } => {
                next.changes.push(*change);
                next.settled = false;
            }
            Action::Join { ordinal, .. } => next.disks[*ordinal].joined = true,
            Action::MarkVolumes { .. } => {}
            Action::CreateToken
            | Action::Apply(_)
            | Action::RecordGenesis { .. }
            | Action::SendGenesis { .. }
            | Action::HandOver { .. }
            | Action::ReplacePod { .. }
            | Action::GrowVolumes { .. } => panic!("{self:?}: {action:?}"),
        }
        next
    }

    /// What gets better by itself.
    fn better(&self) -> Vec<Self> {
        let configuration = self.configuration();
        let mut all = vec![];
        let mut push = |change: &dyn Fn(&mut Self)| {
            let mut next = self.clone();
            change(&mut next);
            all.push(next);
        };
        let quorum = self.counting(&configuration) >= configuration.quorum();
        for (ordinal, disk) in self.disks.iter().enumerate() {
            if disk.silent {
                push(&|next| next.disks[ordinal].silent = false);
            }
            if quorum && disk.joined && !disk.caught_up {
                push(&|next| next.disks[ordinal].caught_up = true);
            }
            if quorum && self.leader != Some(ordinal) && self.counts(&configuration, disk) {
                push(&|next| next.leader = Some(ordinal));
            }
        }
        if quorum && !self.settled {
            push(&|next| next.settled = true);
        }
        all
    }

    /// What gets worse by itself.
    fn worse(&self) -> Vec<Self> {
        let mut all = vec![];
        let silent = self.disks.iter().filter(|disk| disk.silent).count();
        for ordinal in 0..self.disks.len() {
            let mut next = self.clone();
            if next.leader == Some(ordinal) {
                next.leader = None;
            }
            if self.lost < LOSSES {
                let mut lost = next.clone();
                lost.lost += 1;
                lost.disks[ordinal] = Disk { id: 100 + lost.lost, joined: false, caught_up: false, silent: false };
                all.push(lost);
            }
            if silent == 0 {
                next.disks[ordinal].silent = true;
                all.push(next);
            }
        }
        all
    }
}

/// What the operator decides, and that it harms nothing.
fn check(service: &Service, model: &Model) -> Decision {
    let (world, before) = (model.world(), model.configuration());
    let decision = crate::decide::pods(service, &world, FRESH);
    match &decision {
        Decision::Act(Action::ChangeMembers { change, leader, .. }) => {
            let after = model.act(&Action::ChangeMembers {
                leader: *leader,
                change: *change,
                replacement: members::Replacement { step: members::Step::Promote, target: None, newcomer: None },
            });
            let members = after.configuration();
            assert!(model.settled, "{model:?}: {change} before the last change has settled");
            assert!(model.counting(&before) >= before.quorum(), "{model:?}: {change} without a quorum");
            assert!(after.counting(&members) >= members.quorum(), "{model:?}: {change} takes the quorum away");
            assert!(members.standbys().len() <= 1, "{model:?}: {change} begins a second operation");
            assert!(members.voters().len() >= service.replicas, "{model:?}: {change} leaves too few voters");
            assert!(members.voters().len() <= service.replicas + 1, "{model:?}: {change} leaves too many voters");
            if let Change::Remove { slot } = change {
                let gone = before.member(*slot).expect("a member");
                let runs = model.disks.iter().any(|disk| replica(disk.id) == gone);
                assert!(!runs, "{model:?}: {change} of a replica whose disk is there");
            }
        }
        Decision::Act(Action::Join { ordinal, slot, .. }) => {
            assert_eq!(before.standbys().get(slot), Some(&replica(model.disks[*ordinal].id)), "{model:?}");
        }
        Decision::Refuse(refusal) => {
            let voters = before.voters().values();
            let living = voters.filter(|id| model.disks.iter().any(|disk| replica(disk.id) == **id)).count();
            assert_eq!(refusal.reason(), "ReplicaLost", "{model:?}");
            assert!(living < before.quorum(), "{model:?}: refused with a quorum of disks");
        }
        Decision::Act(_) | Decision::Wait(_) => {}
        Decision::Converged => {
            assert_eq!(model.counting(&before), service.replicas, "{model:?}: converged");
            assert_eq!(before.members().count(), service.replicas, "{model:?}: converged");
        }
    }
    decision
}

/// All steps that can follow, and those of them after which nothing is worse.
fn steps(service: &Service, model: &Model) -> Vec<Model> {
    let mut next = model.better();
    if let Decision::Act(action) = check(service, model) {
        next.push(model.act(&action));
    }
    next
}

#[test]
fn every_way_to_lose_disks_ends_well_or_in_a_named_refusal() {
    for n in [1, 3, 5] {
        let service = with_genesis(of_size(usize::from(n)));
        let mut seen = BTreeMap::from([(Model::born(n), ())]);
        let mut open = VecDeque::from([Model::born(n)]);
        let mut edges: BTreeMap<Model, Vec<Model>> = BTreeMap::new();
        let mut ends = vec![];
        while let Some(model) = open.pop_front() {
            let good = steps(&service, &model);
            match check(&service, &model) {
                Decision::Converged | Decision::Refuse(_) => ends.push(model.clone()),
                Decision::Act(_) | Decision::Wait(_) => {}
            }
            for next in &good {
                edges.entry(next.clone()).or_default().push(model.clone());
            }
            for next in good.into_iter().chain(model.worse()) {
                if seen.insert(next.clone(), ()).is_none() {
                    open.push_back(next);
                }
            }
        }
        // Backwards from the ends: from everywhere one of them is reached without another fault.
        let mut reached: BTreeMap<Model, ()> = ends.iter().map(|end| (end.clone(), ())).collect();
        while let Some(model) = ends.pop() {
            for before in edges.get(&model).into_iter().flatten() {
                if reached.insert(before.clone(), ()).is_none() {
                    ends.push(before.clone());
                }
            }
        }
        println!("{n} replicas, {LOSSES} disks lost at most: {} states", seen.len());
        let stuck = seen.keys().find(|model| !reached.contains_key(*model));
        assert_eq!(stuck, None, "nothing leads on from here");
    }
}
