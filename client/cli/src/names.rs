//! What people call a replica: its slot, its address, or the first digits of its identity.

use lockstep_client::ReplicaStatus;
use lockstep_types::{ReplicaId, Slot};

use crate::CliError;
use crate::survey::Row;

/// Digits of an identity that name it at least; less is a slot.
const PREFIX_MIN: usize = 4;

/// A replica by all its names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Named {
    /// Its slot.
    pub slot: Slot,
    /// Its identity.
    pub replica: ReplicaId,
    /// Where clients reach it; none if nobody knows that.
    pub address: Option<String>,
}

impl Named {
    fn is_called(&self, name: &str) -> bool {
        let slot = name.strip_prefix('r').unwrap_or(name);
        let by_slot = slot.len() < PREFIX_MIN && slot.parse() == Ok(self.slot.get());
        let by_identity = name.len() >= PREFIX_MIN && self.replica.to_string().starts_with(&name.to_ascii_lowercase());
        by_slot || by_identity || self.address.as_deref() == Some(name)
    }

    /// All its names, for people.
    pub fn names(&self) -> String {
        let address = self.address.as_deref().unwrap_or("at no known address");
        format!("{} {} {address}", self.slot, &self.replica.to_string()[..8])
    }
}

/// A replica with the address at which it was asked.
pub fn named(slot: Slot, replica: ReplicaId, rows: &[Row]) -> Named {
    let row = rows.iter().find(|row| row.replica == Some(replica));
    Named { slot, replica, address: row.map(|row| row.address.clone()) }
}

/// The voters as this replica, the leader, knows them.
pub fn voters(leader: &ReplicaStatus, rows: &[Row]) -> Vec<Named> {
    let voters = leader.members.iter().filter(|member| member.votes);
    voters.map(|voter| named(voter.slot, voter.replica, rows)).collect()
}

/// All members as this replica, the leader, knows them.
pub fn members(leader: &ReplicaStatus, rows: &[Row]) -> Vec<Named> {
    leader.members.iter().map(|member| named(member.slot, member.replica, rows)).collect()
}

/// The one of that name. `what` it is stands in the errors.
///
/// # Errors
/// No replica, or several, have that name.
pub fn find<'a>(what: &str, name: &str, among: &'a [Named]) -> Result<&'a Named, CliError> {
    let called: Vec<&Named> = among.iter().filter(|replica| replica.is_called(name)).collect();
    match called[..] {
        [one] => Ok(one),
        [] => {
            let names: Vec<String> = among.iter().map(Named::names).collect();
            Err(CliError::Usage(format!("no {what} is called {name:?}; they are {}", names.join(", "))))
        }
        _ => {
            let names: Vec<String> = called.into_iter().map(Named::names).collect();
            Err(CliError::Usage(format!(
                "{name:?} is the name of several {what}s: {}; give more digits",
                names.join(", ")
            )))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn voters() -> Vec<Named> {
        let voter = |slot, first, second, address: Option<&str>| {
            let mut id = [0; 16];
            (id[0], id[1], id[2]) = (0xab, first, second);
            Named { slot: Slot::new(slot), replica: ReplicaId::from_bytes(id), address: address.map(str::to_owned) }
        };
        vec![
            voter(1, 0x10, 1, Some("127.0.0.1:7400")),
            voter(2, 0x20, 2, Some("127.0.0.1:7410")),
            voter(12, 0x20, 3, None),
        ]
    }

    fn slot(name: &str) -> Result<u32, String> {
        find("voter", name, &voters()).map(|voter| voter.slot.get()).map_err(|error| error.to_string())
    }

    #[test]
    fn voter_is_found_by_each_of_its_names() {
        for (name, found) in
            [("r1", 1), ("2", 2), ("r12", 12), ("127.0.0.1:7410", 2), ("ab10", 1), ("AB2003", 12), ("ab20020000", 2)]
        {
            assert_eq!(slot(name), Ok(found), "{name}");
        }
    }

    #[test]
    fn voter_that_is_not_there_is_told_with_those_that_are() {
        for name in ["r3", "3", "ab1", "ab11", "127.0.0.1:7420", ""] {
            assert_eq!(
                slot(name),
                Err(format!(
                    "no voter is called {name:?}; they are r1 ab100100 127.0.0.1:7400, r2 ab200200 127.0.0.1:7410, \
                     r12 ab200300 at no known address"
                ))
            );
        }
    }

    #[test]
    fn voter_whose_digits_are_those_of_another_is_refused() {
        assert_eq!(
            slot("ab20"),
            Err("\"ab20\" is the name of several voters: r2 ab200200 127.0.0.1:7410, r12 ab200300 at no known address; \
                 give more digits"
                .to_owned())
        );
    }
}
