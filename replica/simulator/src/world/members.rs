//! An operator that replaces, adds and removes members, one operation at a time, as the real one does: the newcomer becomes a
//! standby, joins, catches up, is promoted; then the one that it replaces is removed.
//!
//! A disk that is lost for good takes its replica along: the identity never comes back. One that was removed with its disk
//! goes on running, and may wake up again at any time; nobody must listen to it.

use super::*;

/// Between two looks at an operation under way.
const LOOK: Micros = SECOND / 5;

/// What a host is to the service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Life {
    /// It has no genesis yet.
    Waiting,
    /// It runs, or will again.
    Member,
    /// It was removed and still has its disk.
    Removed,
    /// Its disk is gone.
    Lost,
}

/// One change of membership after the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Operation {
    /// Comes.
    newcomer: Option<usize>,
    /// Goes.
    leaver: Option<usize>,
    step: Step,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Add,
    Promote,
    Remove,
}

impl World {
    /// A disk is lost for good, and its replica with it; another takes its place.
    pub(super) fn lose_disk(&mut self, victim: usize) -> Result<(), Violation> {
        let voters = self.config().voters().len();
        if self.is_busy() || self.hosts[victim].life != Life::Member || voters < 3 || !self.is_voter(victim) {
            return Ok(());
        }
        self.counters.add(Kind::DiskLost);
        self.trace.line(self.now, format_args!("{} loses its disk for good", slot(victim)));
        self.hosts[victim].life = Life::Lost;
        self.crash(victim, true)?;
        self.hosts[victim].disk = Arc::new(SimDisk::default());
        self.checkers.lost(victim);
        self.begin(true, Some(victim));
        Ok(())
    }

    /// A member is replaced, one comes, or one goes: all disks are well.
    pub(super) fn reshape(&mut self, victim: usize) {
        let voters = self.config().voters().len();
        if self.is_busy() || self.hosts[victim].life != Life::Member || !self.is_voter(victim) {
            return;
        }
        match self.random.below(3) {
            0 if voters < 5 => self.begin(true, None),
            1 if voters > 1 => self.begin(false, Some(victim)),
            _ => self.begin(true, Some(victim)),
        }
    }

    /// This voter is replaced, if nothing else is under way.
    pub(super) fn replace(&mut self, replica: usize) {
        if !self.is_busy() && self.hosts[replica].life == Life::Member {
            self.begin(true, Some(replica));
        }
    }

    /// Whether a member is on its way out already, found out or not: one more would be one fault too many.
    pub(super) fn is_busy(&self) -> bool {
        let forgot = |host: &Host| host.forgot.is_some() && host.life == Life::Member;
        self.operation.is_some() || !self.retired.is_empty() || self.hosts.iter().any(forgot)
    }

    /// The next one that retired is replaced, once nothing else is under way.
    pub(super) fn replace_retired(&mut self) {
        if self.operation.is_none()
            && let Some(replica) = self.retired.pop_front()
        {
            self.begin(true, Some(replica));
        }
    }

    fn begin(&mut self, comes: bool, leaver: Option<usize>) {
        let newcomer = comes.then(|| self.new_host());
        let step = if comes { Step::Add } else { Step::Remove };
        self.operation = Some(Operation { newcomer, leaver, step });
        self.trace
            .line(self.now, format_args!("operation: {:?} comes, {:?} goes", newcomer.map(slot), leaver.map(slot)));
        self.after(LOOK, Event::Operate);
    }

    /// A machine with an empty disk.
    fn new_host(&mut self) -> usize {
        let disk = Arc::new(SimDisk::default());
        let random = self.random.bytes();
        let identity = Identity::start(&*disk, random).expect("an empty disk takes an identity");
        disk.complete();
        let id = WalId { service: *self.genesis.service.as_bytes(), replica: *identity.replica.as_bytes() };
        self.checkers.joins(id);
        let host = Host::new(self.hosts.len(), disk, identity.replica, Life::Waiting, &mut self.random);
        self.hosts.push(host);
        let count = self.hosts.len();
        self.peers_busy.iter_mut().for_each(|row| row.resize(count, 0));
        self.peers_busy.resize(count, vec![0; count]);
        self.cut.iter_mut().for_each(|row| row.resize(count, false));
        self.cut.resize(count, vec![false; count]);
        self.doors_cut.iter_mut().for_each(|row| row.resize(count, 0));
        self.doors_busy.iter_mut().for_each(|row| row.resize(count, (0, 0)));
        self.asked.resize(count, 0);
        count - 1
    }

    /// The newest configuration that any replica knew to be committed.
    pub(super) fn config(&self) -> &Configuration {
        &self.configs.last().expect("the genesis has one").1
    }

    pub(super) fn is_voter(&self, replica: usize) -> bool {
        self.config().slot_of(self.hosts[replica].id).is_some_and(|slot| self.config().voter(slot).is_some())
    }

    /// Whether clients and links count on it.
    pub(super) fn is_member(&self, replica: usize) -> bool {
        self.hosts[replica].life == Life::Member
    }

    /// What a replica says of the membership.
    pub(super) fn note_membership(&mut self, membership: &MembershipStatus) {
        if membership.committed.epoch() > self.config().epoch() {
            self.configs.push((membership.height, membership.committed.clone()));
            self.trace.line(self.now, format_args!("committed: {}", membership.committed));
        }
        if membership.settled {
            self.settled = self.settled.max(membership.committed.epoch());
        }
    }

    /// The configuration that decided the last block, for the checker of disks.
    pub(super) fn config_at(&self, height: Height) -> &Configuration {
        let at = self.configs.iter().rev().find(|(change, _)| *change < height);
        &at.unwrap_or(&self.configs[0]).1
    }

    /// Looks at the operation under way, and does what is next.
    pub(super) fn operate(&mut self) -> Result<(), Violation> {
        let Some(Operation { newcomer, leaver, step }) = self.operation else { return Ok(()) };
        let change = match (step, newcomer, leaver) {
            (Step::Add, Some(newcomer), _) => Change::AddStandby { replica: self.hosts[newcomer].id },
            (Step::Promote, Some(newcomer), _) => Change::Promote { slot: slot(newcomer) },
            (Step::Remove, _, Some(leaver)) => Change::Remove { slot: slot(leaver) },
            (Step::Add | Step::Promote, None, _) | (Step::Remove, _, None) => unreachable!("no such step"),
        };
        let config = self.config();
        if config.holds(&change) && self.settled == config.epoch() {
            self.step_done(change, newcomer, leaver)?;
        } else {
            self.propose_change(change)?;
        }
        match self.operation {
            Some(_) => self.after(LOOK, Event::Operate),
            None => self.replace_retired(),
        }
        Ok(())
    }

    fn step_done(&mut self, change: Change, newcomer: Option<usize>, leaver: Option<usize>) -> Result<(), Violation> {
        self.trace.line(self.now, format_args!("settled: {change}"));
        let next = match change {
            Change::AddStandby { replica } => {
                let newcomer = newcomer.expect("it was added");
                let given = self.config().slot_of(replica);
                require!(
                    given == Some(slot(newcomer)),
                    "a slot is given once",
                    "{} was given slot {given:?}",
                    slot(newcomer)
                );
                self.counters.add(Kind::StandbyAdded);
                let disk = Arc::clone(&self.hosts[newcomer].disk);
                let mut identity = Identity::start(&*disk, [0; 16]).expect("its identity is there");
                identity.join(self.genesis.clone(), slot(newcomer), &*disk).expect("a new identity joins");
                disk.complete();
                self.hosts[newcomer].life = Life::Member;
                self.after(1, Event::Restart { replica: newcomer });
                Some(Step::Promote)
            }
            Change::Promote { .. } => {
                self.counters.add(Kind::Promoted);
                self.retarget()?;
                leaver.map(|_| Step::Remove)
            }
            Change::Remove { .. } => {
                let leaver = leaver.expect("it was removed");
                self.counters.add(Kind::Removed);
                if self.hosts[leaver].life == Life::Member {
                    self.hosts[leaver].life = Life::Removed;
                }
                self.retarget()?;
                None
            }
        };
        self.operation = next.map(|step| Operation { newcomer, leaver, step });
        Ok(())
    }

    fn propose_change(&mut self, change: Change) -> Result<(), Violation> {
        let leader = (0..self.hosts.len())
            .filter(|replica| self.hosts[*replica].role == RoleName::Leader)
            .max_by_key(|replica| self.hosts[*replica].view);
        let Some(leader) = leader.filter(|leader| self.hosts[*leader].paused_until[0] <= self.now) else {
            return Ok(());
        };
        let now = self.local(leader);
        let State::Up { engine, .. } = &mut self.hosts[leader].state else { return Ok(()) };
        match engine.change(now, change) {
            Ok(height) => {
                if change == (Change::Remove { slot: slot(leader) }) {
                    self.counters.add(Kind::LeaderRemoved);
                }
                self.trace.line(self.now, format_args!("{} proposes at {height}: {change}", slot(leader)));
            }
            Err(reject) => {
                self.counters.add(Kind::ChangeRefused);
                self.trace.line(self.now, format_args!("{} refuses to {change}: {reject}", slot(leader)));
            }
        }
        self.poll(leader)
    }

    /// Clients learn who can be asked.
    pub(super) fn retarget(&mut self) -> Result<(), Violation> {
        for client in 0..self.clients.len() {
            let targets = self.targets();
            self.client_step(client, Input::Targets(targets))?;
        }
        Ok(())
    }

    pub(super) fn targets(&self) -> Vec<Target> {
        (0..self.hosts.len()).filter(|replica| self.is_member(*replica)).map(|replica| Target(replica as u32)).collect()
    }
}
