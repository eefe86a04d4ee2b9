//! Newtypes without `From<u64>`: a height is never mistaken for a view.

use core::fmt;

/// Position of a block in the log. The first block has height 1; 0 stands for "before the first block".
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Height(u64);

impl Height {
    /// Before the first block.
    pub const ZERO: Height = Height(0);

    /// The height with this number.
    pub const fn new(number: u64) -> Self {
        Height(number)
    }

    /// The number: 0 before the first block.
    pub const fn get(self) -> u64 {
        self.0
    }

    /// The height above. Panics past `u64::MAX`, which a log never reaches.
    pub fn next(self) -> Height {
        Height(self.0.checked_add(1).expect("a height below the end of u64"))
    }

    /// The height below, or zero.
    pub const fn prev(self) -> Height {
        Height(self.0.saturating_sub(1))
    }

    /// This height plus `blocks`, saturating.
    pub const fn plus(self, blocks: u64) -> Height {
        Height(self.0.saturating_add(blocks))
    }

    /// How many blocks this height lies above `other`; 0 if it does not.
    pub const fn above(self, other: Height) -> u64 {
        self.0.saturating_sub(other.0)
    }
}

impl fmt::Display for Height {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Number of a member within a service. Given to an identity when it enters, first voters or standby, and never reused once
/// that is committed (PROTOCOL §1).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Slot(u32);

impl Slot {
    /// The slot with this number.
    pub const fn new(number: u32) -> Self {
        Slot(number)
    }

    /// The number.
    pub const fn get(self) -> u32 {
        self.0
    }
}

impl fmt::Display for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "r{}", self.0)
    }
}

/// A leader's reign: ordered by round, then slot. The number *contains* its leader, whatever membership a reader knows
/// (PROTOCOL §1, schedule S5). [`View::ZERO`] has no leader: it is the view of genesis.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct View {
    /// Counts up with every attempt to find a leader; 0 only in [`View::ZERO`].
    pub round: u64,
    /// The slot that leads.
    pub leader: Slot,
}

impl View {
    /// The view of genesis, below every real one; nobody leads it.
    pub const ZERO: View = View { round: 0, leader: Slot(0) };

    /// The view of this round that `leader` leads.
    pub const fn new(round: u64, leader: Slot) -> Self {
        View { round, leader }
    }
}

impl fmt::Display for View {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.round, self.leader.0)
    }
}

/// Number of a configuration: 1 at genesis, one more with every change of members.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Epoch(u64);

impl Epoch {
    /// The configuration of the genesis.
    pub const FIRST: Epoch = Epoch(1);

    /// The epoch with this number.
    pub const fn new(number: u64) -> Self {
        Epoch(number)
    }

    /// The number.
    pub const fn get(self) -> u64 {
        self.0
    }
}

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "e{}", self.0)
    }
}

macro_rules! identity {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name([u8; 16]);

        impl $name {
            /// The identity with these bytes.
            pub const fn from_bytes(bytes: [u8; 16]) -> Self {
                $name(bytes)
            }

            /// Its bytes.
            pub const fn as_bytes(&self) -> &[u8; 16] {
                &self.0
            }

            /// Reads 32 hexadecimal digits.
            pub fn parse(text: &str) -> Option<Self> {
                let digits = text.as_bytes();
                if digits.len() != 32 {
                    return None;
                }
                let mut bytes = [0; 16];
                for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
                    let high = (pair[0] as char).to_digit(16)?;
                    let low = (pair[1] as char).to_digit(16)?;
                    *byte = (high * 16 + low) as u8;
                }
                Some($name(bytes))
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }
    };
}

identity! {
    /// One replicated service, minted with its genesis: random 128 bits.
    ServiceId
}
identity! {
    /// One replica, minted with its data directory: random 128 bits, never the pod's ordinal. An empty disk is a new one.
    ReplicaId
}

/// A BLAKE3 digest.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest([u8; 32]);

impl Digest {
    /// The digest before anything was hashed: parent of the first block.
    pub const ZERO: Digest = Digest([0; 32]);

    /// The digest with these bytes.
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Digest(bytes)
    }

    /// Its bytes.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// Hashes `bytes`.
    pub fn of(bytes: &[u8]) -> Self {
        Digest(*blake3::hash(bytes).as_bytes())
    }

    /// Hashes the concatenation of `parts`.
    pub fn of_parts(parts: &[&[u8]]) -> Self {
        let mut hasher = blake3::Hasher::new();
        for part in parts {
            hasher.update(part);
        }
        Digest(*hasher.finalize().as_bytes())
    }
}

impl fmt::Display for Digest {
    /// The first eight digits: enough to tell blocks apart in a log line.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0[..4].iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Milliseconds since the Unix epoch as the log tells them: monotone along the chain, the only clock a machine sees
/// (PROTOCOL §8, schedule M4).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LogTime(u64);

impl LogTime {
    /// This many milliseconds since the Unix epoch.
    pub const fn from_millis(millis: u64) -> Self {
        LogTime(millis)
    }

    /// Milliseconds since the Unix epoch.
    pub const fn as_millis(self) -> u64 {
        self.0
    }
}

impl fmt::Display for LogTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}ms", self.0)
    }
}
