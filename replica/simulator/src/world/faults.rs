//! What goes wrong, when and where, as the plan says.

use super::*;

impl World {
    pub(super) fn fault(&mut self, fault: Fault) -> Result<(), Violation> {
        if self.phase != Phase::Chaos {
            return Ok(());
        }
        let faults = &self.plan.faults;
        let mean = match fault {
            Fault::Partition => faults.partition,
            Fault::Crash => faults.crash,
            Fault::Blackout => faults.blackout,
            Fault::HandOver => faults.hand_over,
            Fault::Hang => faults.hang,
            Fault::Pause => faults.pause,
            Fault::WallJump => faults.wall_jump,
            Fault::ClientCrash => faults.client_crash,
            Fault::ClientCut => faults.client_cut,
            Fault::DiskLoss => faults.disk_loss,
            Fault::Restore => faults.restore,
            Fault::Reshape => faults.reshape,
            Fault::BitFlip => faults.bit_flip,
        };
        let next = self.random.around(mean.expect("only planned faults happen"));
        self.after(next, Event::Fault(fault));
        let victim = self.victim();
        match fault {
            Fault::Partition => self.partition(victim),
            Fault::Crash => {
                let power = self.random.percent(self.plan.power);
                self.crash(victim, power)?;
            }
            Fault::Blackout => {
                self.counters.add(Kind::Blackout);
                for replica in 0..self.hosts.len() {
                    self.crash(replica, true)?;
                }
            }
            Fault::HandOver if self.hosts[victim].paused_until[0] > self.now => {}
            Fault::HandOver => {
                let target = self.random.percent(70).then(|| slot(self.random.below(self.hosts.len() as u64) as usize));
                self.trace.line(self.now, format_args!("{} is asked to hand over", slot(victim)));
                self.handle(victim, EngineEvent::HandOver(target))?;
            }
            Fault::Hang => {
                self.counters.add(Kind::DiskHang);
                self.trace.line(self.now, format_args!("disk of {} hangs", slot(victim)));
                self.hosts[victim].hangs_until = self.now + self.random.between(SECOND, 6 * SECOND);
            }
            Fault::Pause => {
                self.counters.add(Kind::Pause);
                let until = self.now + self.random.between(SECOND / 10, 4 * SECOND);
                self.trace.line(self.now, format_args!("{} stands still until {until}", slot(victim)));
                self.hosts[victim].paused_until = std::array::from_fn(|_| until + self.random.below(1_000));
            }
            Fault::WallJump => {
                self.counters.add(Kind::WallJump);
                self.hosts[victim].wall_ms = 1_800_000_000_000 + self.random.below(1_000_000);
            }
            Fault::DiskLoss => self.lose_disk(victim)?,
            Fault::Restore => self.restore(victim)?,
            Fault::Reshape => self.reshape(victim),
            Fault::BitFlip => self.flip_bit(victim)?,
            Fault::ClientCrash => {
                let client = self.random.below(self.clients.len() as u64) as usize;
                self.counters.add(Kind::ClientCrash);
                self.trace.line(self.now, format_args!("c{client} dies"));
                self.clients[client].open.clear();
                self.new_client(client)?;
            }
            Fault::ClientCut => {
                let client = self.random.below(self.clients.len() as u64) as usize;
                self.counters.add(Kind::ClientCut);
                self.trace.line(self.now, format_args!("c{client} is cut from {}", slot(victim)));
                self.doors_cut[client][victim] = self.now + self.random.around(self.plan.cut_time);
            }
        }
        Ok(())
    }

    /// A replica to hurt: the leader, or any.
    pub(super) fn victim(&mut self) -> usize {
        let leader = (0..self.hosts.len())
            .filter(|replica| self.hosts[*replica].role == RoleName::Leader)
            .max_by_key(|replica| self.hosts[*replica].view);
        match leader {
            Some(leader) if self.random.percent(self.plan.aim) => leader,
            _ => self.random.below(self.hosts.len() as u64) as usize,
        }
    }

    pub(super) fn partition(&mut self, victim: usize) {
        let count = self.hosts.len();
        self.mend();
        let others: Vec<usize> = (0..count).filter(|replica| *replica != victim).collect();
        let friend = self.random.pick(&others);
        let kind = self.random.below(8);
        let mut cut = |from: usize, to: usize| self.cut[from][to] = from != to;
        match kind {
            0 => others.iter().for_each(|other| {
                cut(victim, *other);
                cut(*other, victim);
            }),
            1 => others.iter().for_each(|other| cut(victim, *other)),
            2 => others.iter().for_each(|other| cut(*other, victim)),
            3 => cut(victim, friend),
            4 => cut(friend, victim),
            5 => {
                // All links but those of one replica: nobody else sees anybody.
                for from in &others {
                    others.iter().for_each(|to| cut(*from, *to));
                }
            }
            6 => {
                // It keeps one friend.
                for other in others.iter().filter(|other| **other != friend) {
                    cut(victim, *other);
                    cut(*other, victim);
                }
            }
            _ => {
                // Two and the rest.
                for other in others.iter().filter(|other| **other != friend) {
                    for inside in [victim, friend] {
                        cut(inside, *other);
                        cut(*other, inside);
                    }
                }
            }
        }
        self.counters.add(if matches!(kind, 1..=4) { Kind::OneWayCut } else { Kind::Partition });
        self.trace.line(self.now, format_args!("partition {kind} around {}", slot(victim)));
        let lasts = self.random.around(self.plan.cut_time);
        self.after(lasts, Event::MendLinks);
    }

    pub(super) fn mend(&mut self) {
        self.cut.iter_mut().for_each(|row| row.fill(false));
    }
}
