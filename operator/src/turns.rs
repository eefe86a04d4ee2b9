//! How many services are rolled at the same time. A new default image or template makes every service outdated at once; taking
//! a few at a time keeps the load on nodes and storage small, and shows a bad one before it is everywhere.

use std::collections::HashMap;
use std::time::{Duration, Instant};

/// A roll that took no step for so long no longer keeps others from theirs: one service that cannot be rolled must not stop
/// all.
const STALLED: Duration = Duration::from_secs(300);

/// The services that are being rolled.
#[derive(Debug)]
pub struct Turns {
    at_most: usize,
    /// By uid of the resource, with its last step.
    rolling: HashMap<String, Instant>,
}

impl Turns {
    /// Room for so many.
    pub fn new(at_most: usize) -> Self {
        Turns { at_most, rolling: HashMap::new() }
    }

    /// Whether as many others as may are being rolled.
    pub fn crowded(&self, uid: &str, now: Instant) -> bool {
        let moving = |(other, step): &(&String, &Instant)| *other != uid && now.duration_since(**step) < STALLED;
        self.rolling.iter().filter(moving).count() >= self.at_most
    }

    /// Takes a turn, or keeps it; false if there is no room.
    pub fn take(&mut self, uid: &str, now: Instant) -> bool {
        let free = !self.crowded(uid, now);
        // A try is no step: what is held back for long stalls.
        if free && self.rolling.get(uid).is_none_or(|step| now.duration_since(*step) >= STALLED) {
            self.stepped(uid, now);
        }
        free
    }

    /// A step was taken.
    pub fn stepped(&mut self, uid: &str, now: Instant) {
        self.rolling.insert(uid.to_owned(), now);
    }

    /// Gives the turn back.
    pub fn end(&mut self, uid: &str) {
        self.rolling.remove(uid);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rolls_are_bounded_and_one_that_ends_makes_room() {
        let now = Instant::now();
        let mut turns = Turns::new(2);
        assert!(turns.take("a", now) && turns.take("b", now));
        assert!(turns.crowded("c", now) && !turns.take("c", now));
        assert!(!turns.crowded("a", now) && turns.take("a", now));
        turns.end("b");
        assert!(turns.take("c", now));
    }

    #[test]
    fn roll_that_stalls_keeps_nobody_waiting_for_ever() {
        let now = Instant::now();
        let mut turns = Turns::new(1);
        assert!(turns.take("bad", now));
        assert!(turns.crowded("good", now + STALLED - Duration::from_secs(1)));
        assert!(turns.take("good", now + STALLED));
        assert!(turns.crowded("bad", now + STALLED));
        // Trying does not keep a turn, taking a step does.
        let later = now + STALLED + Duration::from_secs(200);
        assert!(turns.take("good", later));
        assert!(!turns.crowded("bad", now + 2 * STALLED));
        turns.stepped("good", later);
        assert!(turns.crowded("bad", now + 2 * STALLED));
    }
}
