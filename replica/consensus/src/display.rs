//! One line per replica: `r1@4.1 leader head=10@4.1 committed=9 r2:9 r3:0`.

use core::fmt;

use lockstep_types::Epoch;

use crate::following::Following;
use crate::membership::Standing;
use crate::replica::{Replica, Role};

impl fmt::Display for Replica {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{} ", self.me, self.view)?;
        match &self.role {
            Role::Follower(Following { heard: Some(_), .. }) => write!(f, "follower({})", self.view.leader)?,
            Role::Follower(Following { heard: None, .. }) => f.write_str("follower")?,
            Role::Candidate(_) => f.write_str("candidate")?,
            Role::Leader(_) => f.write_str("leader")?,
        }
        write!(f, " head={} committed={}", self.chain.head(), self.committed.height)?;
        if let Some((block, _)) = self.undurable.front().map(|(_, block, at)| (block, at)) {
            write!(f, " durable={}", block.height.prev())?;
        }
        if let Role::Leader(leading) = &self.role {
            for (slot, progress) in &leading.progress {
                write!(f, " {slot}:{}", progress.acknowledged)?;
            }
        }
        if self.config().epoch() > Epoch::FIRST {
            write!(f, " [{}]", self.config())?;
        }
        match self.standing() {
            Standing::Voter => {}
            Standing::Standby => f.write_str(" standby")?,
            Standing::Joining => f.write_str(" joining")?,
            Standing::Removed => f.write_str(" removed")?,
        }
        if let Some(catch_up) = &self.catch_up {
            write!(f, " catching-up={}", catch_up.tip())?;
        }
        Ok(())
    }
}
