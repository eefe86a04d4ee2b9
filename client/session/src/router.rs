//! Which replica is asked next, and how long to wait before. One target at a time, so that sequences arrive in order.

use std::collections::BTreeMap;

use crate::random::Random;
use crate::{Micros, Options, RefusalKind, Target};

/// The choice of a target.
#[derive(Clone, Debug)]
pub(crate) struct Router {
    targets: Vec<Target>,
    /// Where the rotation stands in `targets`.
    position: usize,
    current: Option<Target>,
    /// Targets that did not answer, and until when they are avoided.
    cooling: BTreeMap<Target, Micros>,
    /// Failures since the last answer.
    failures: u32,
    /// Attempts that timed out since the last answer.
    timeouts: u32,
    /// Nothing is sent before.
    not_before: Micros,
}

impl Router {
    pub(crate) fn new() -> Self {
        Router {
            targets: Vec::new(),
            position: 0,
            current: None,
            cooling: BTreeMap::new(),
            failures: 0,
            timeouts: 0,
            not_before: 0,
        }
    }

    pub(crate) fn set_targets(&mut self, targets: Vec<Target>, random: &mut Random) {
        self.position = random.below(targets.len() as u64) as usize;
        self.targets = targets;
    }

    /// Nothing is to be sent before this time.
    pub(crate) fn not_before(&self) -> Micros {
        self.not_before
    }

    pub(crate) fn current(&self) -> Option<Target> {
        self.current
    }

    /// The target to ask now, if there is any.
    pub(crate) fn target(&mut self, now: Micros) -> Option<Target> {
        if self.current.is_none() {
            self.current = self.rotate(now);
        }
        self.current
    }

    /// How long the current target may take.
    pub(crate) fn attempt_timeout(&self, options: &Options) -> Micros {
        options.attempt_timeout << self.timeouts.min(2)
    }

    /// An answer came: the way there works.
    pub(crate) fn answered(&mut self) {
        self.failures = 0;
        self.timeouts = 0;
    }

    /// Asks `target` from now on, unless it recently failed. True if that is a change.
    pub(crate) fn prefer(&mut self, now: Micros, target: Target) -> bool {
        if self.current == Some(target) || self.is_cooling(now, target) {
            return false;
        }
        self.current = Some(target);
        true
    }

    /// The current target could not be reached. The others are tried at once, then after a delay.
    pub(crate) fn disconnected(&mut self, now: Micros, target: Target, options: &Options, random: &mut Random) {
        self.cool(now, target, options);
        self.failures += 1;
        let rounds = self.failures.checked_sub(u32::try_from(self.targets.len().max(1)).unwrap_or(u32::MAX));
        if let Some(rounds) = rounds {
            self.delay(now, rounds, options, random);
        }
        self.current = None;
    }

    /// The current target took too long.
    pub(crate) fn timed_out(&mut self, now: Micros, target: Target, options: &Options) {
        self.cool(now, target, options);
        self.failures += 1;
        self.timeouts += 1;
        self.current = None;
    }

    /// The current target refused. True if another one is asked now.
    pub(crate) fn refused(
        &mut self,
        now: Micros,
        kind: RefusalKind,
        leader: Option<Target>,
        options: &Options,
        random: &mut Random,
    ) -> bool {
        let Some(current) = self.current else { return false };
        match kind {
            RefusalKind::Overloaded => {
                // Many attempts are refused together; that is one failure.
                if self.not_before <= now {
                    self.delay(now, self.failures, options, random);
                    self.failures += 1;
                }
                return false;
            }
            RefusalKind::Unavailable => {}
            RefusalKind::Foreign => self.cool(now, current, options),
        }
        let hint = leader.filter(|hint| *hint != current && !self.is_cooling(now, *hint));
        // A first hint is followed at once; replicas that send us round in circles are not.
        if hint.is_none() || self.failures > 0 {
            self.delay(now, self.failures, options, random);
        }
        self.failures += 1;
        self.current = hint;
        true
    }

    fn cool(&mut self, now: Micros, target: Target, options: &Options) {
        self.cooling.retain(|_, until| *until > now);
        self.cooling.insert(target, now + options.cooling);
    }

    fn is_cooling(&self, now: Micros, target: Target) -> bool {
        self.cooling.get(&target).is_some_and(|until| *until > now)
    }

    fn rotate(&mut self, now: Micros) -> Option<Target> {
        let count = self.targets.len();
        let steps = || (1..=count).map(|step| (self.position + step) % count);
        let warm = steps().find(|position| !self.is_cooling(now, self.targets[*position]));
        self.position = warm.or_else(|| steps().next())?;
        Some(self.targets[self.position])
    }

    /// Half of the delay is jitter, so that clients of a lost leader do not return together.
    fn delay(&mut self, now: Micros, doublings: u32, options: &Options, random: &mut Random) {
        let delay = options.backoff_min.saturating_mul(1 << doublings.min(20)).min(options.backoff_max);
        let jittered = delay / 2 + random.below(delay / 2 + 1);
        self.not_before = self.not_before.max(now + jittered);
    }
}
