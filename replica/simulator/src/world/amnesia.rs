//! Volumes that are restored from an old copy: what such a replica had acknowledged since is gone, so nobody may listen to it
//! again (schedule M3). It retires, and is replaced like one whose disk is lost.

use super::*;

/// How old a copy must be: within that time the others have told each other what it does not hold.
const OLD: Micros = 3 * SECOND;

/// A copy of a volume.
pub(super) struct Copy {
    disk: SimDisk,
    taken: Micros,
    /// No less than what it holds.
    holds: Mark,
}

impl World {
    /// A volume is copied; or, if it was, and everyone remembers more than the copy holds, it is put back.
    pub(super) fn restore(&mut self, victim: usize) -> Result<(), Violation> {
        let voters = self.config().voters().len();
        if self.is_busy() || self.hosts[victim].life != Life::Member || voters < 3 || !self.is_voter(victim) {
            return Ok(());
        }
        let host = &self.hosts[victim];
        let State::Up { engine, .. } = &host.state else { return Ok(()) };
        let fresh = host.copy.as_ref().is_none_or(|copy| self.now < copy.taken + OLD);
        if fresh {
            let copy = Copy { disk: host.disk.synced_copy(), taken: self.now, holds: engine.mark() };
            self.hosts[victim].copy = Some(copy);
            return Ok(());
        }
        let others: Vec<usize> =
            (0..self.hosts.len()).filter(|other| *other != victim && self.is_voter(*other)).collect();
        let id = host.id;
        let holds = host.copy.as_ref().expect("it was copied").holds;
        for other in &others {
            if !self.remembers_more(*other, id, holds)? {
                return Ok(());
            }
        }
        self.counters.add(Kind::Restored);
        self.trace.line(self.now, format_args!("{} gets an old copy of its volume, up to {holds}", slot(victim)));
        self.crash(victim, true)?;
        let host = &mut self.hosts[victim];
        let Copy { disk, .. } = host.copy.take().expect("it was copied");
        host.disk = Arc::new(disk);
        host.forgot = Some(others);
        self.checkers.lost(victim);
        Ok(())
    }

    /// Whether a replica, started from what is on its disk now, would remember more of another one than this.
    fn remembers_more(&mut self, replica: usize, id: ReplicaId, than: Mark) -> Result<bool, Violation> {
        let disk = Arc::new(self.hosts[replica].disk.synced_copy());
        let engine = self.start_engine(replica, disk)?;
        Ok(engine.remembers(id).is_some_and(|known| !than.covers(known.heard)))
    }

    /// Whether a message of one replica reaches another: they have met, in these starts of both.
    pub(super) fn listens(&mut self, to: usize, from: usize) -> Result<bool, Violation> {
        let (claim, id) = (self.hosts[from].claim, self.hosts[from].id);
        if self.hosts[to].met.get(&from) == Some(&claim.start) {
            return Ok(true);
        }
        let now = self.local(to);
        let State::Up { engine, .. } = &mut self.hosts[to].state else { return Ok(false) };
        match engine.meet(now, id, claim) {
            Ok(()) => {
                // What is still on its way from before its end is believed.
                let runs = !matches!(self.hosts[from].state, State::Down);
                let knew = self.hosts[from].forgot.as_ref().is_some_and(|witnesses| runs && witnesses.contains(&to));
                require!(!knew, "who forgot is not listened to", "{} listens to {}", slot(to), slot(from));
                self.hosts[to].met.insert(from, claim.start);
                Ok(true)
            }
            Err(amnesia) => {
                self.retire(from, amnesia)?;
                Ok(false)
            }
        }
    }

    /// A replica hears that it forgot what it had promised.
    pub(super) fn retire(&mut self, replica: usize, amnesia: Amnesia) -> Result<(), Violation> {
        require!(
            self.hosts[replica].forgot.is_some(),
            "who forgot nothing is listened to",
            "{} is refused: {amnesia}",
            slot(replica)
        );
        if self.hosts[replica].life != Life::Member {
            return Ok(());
        }
        self.counters.add(Kind::Retired);
        self.trace.line(self.now, format_args!("{} retires: {amnesia}", slot(replica)));
        self.crash(replica, false)?;
        self.hosts[replica].life = Life::Lost;
        self.retired.push_back(replica);
        self.replace_retired();
        Ok(())
    }
}
