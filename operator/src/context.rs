//! What every pass shares: the client, what was learnt, and what can go wrong.

use std::collections::HashMap;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use kube::Client;
use kube::runtime::events::Recorder;
use lockstep_client::AdminError;
use thiserror::Error;

use crate::apply::Settled;
use crate::metrics::Metrics;
use crate::turns::Turns;
use crate::validate::Defaults;

/// Shared by all passes. Nothing in it is needed for safety: a fresh process starts with none of it.
pub struct Context {
    /// The API server.
    pub client: Client,
    /// The same without tries of its own.
    pub evictions: Client,
    /// Events.
    pub recorder: Recorder,
    /// What resources leave out.
    pub defaults: Defaults,
    /// How often a service at rest is looked at.
    pub poll: Duration,
    /// Figures.
    pub metrics: Metrics,
    /// Objects as our last apply left them, by owner, kind and name.
    pub settled: Mutex<HashMap<(String, &'static str, String), Settled>>,
    /// Whose pods are being replaced.
    pub turns: Mutex<Turns>,
    /// Pods whose eviction was held back at the last try, by the uid of their resource.
    pub held_back: Mutex<HashMap<String, String>>,
    /// What resources wait for.
    pub waits: Mutex<Waits>,
    /// What the last act of a resource ended with, by uid, if it failed.
    pub failures: Mutex<HashMap<String, Failure>>,
}

/// What resources wait for, and since when, by uid.
#[derive(Debug, Default)]
pub struct Waits(HashMap<String, (&'static str, Instant)>);

impl Waits {
    /// How long the resource has waited for what it waits for now; zero if it does not wait.
    pub fn waited(&mut self, uid: &str, wait: Option<&'static str>, now: Instant) -> Duration {
        let Some(reason) = wait else {
            self.0.remove(uid);
            return Duration::ZERO;
        };
        let (known, since) = self.0.entry(uid.to_owned()).or_insert((reason, now));
        if *known != reason {
            (*known, *since) = (reason, now);
        }
        now.duration_since(*since)
    }
}

/// A pass or an act that failed.
#[derive(Clone, Debug, Default)]
pub struct Failure {
    /// How many times in a row.
    pub attempts: u32,
    /// What the last act ended with; none if it was not an act that failed.
    pub act: Option<String>,
}

impl Context {
    /// Forgets what was remembered of the resource.
    pub fn forget(&self, uid: &str) {
        self.failures.lock().expect("never poisoned").remove(uid);
        self.held_back.lock().expect("never poisoned").remove(uid);
        self.waits.lock().expect("never poisoned").waited(uid, None, Instant::now());
        self.turns.lock().expect("never poisoned").end(uid);
        self.settled.lock().expect("never poisoned").retain(|(owner, _, _), _| owner != uid);
    }

    /// The pod whose eviction was held back at the last try.
    pub fn held_back(&self, uid: &str) -> Option<String> {
        self.held_back.lock().expect("never poisoned").get(uid).cloned()
    }

    /// Remembers that an eviction was held back, or that none is any more.
    pub fn hold_back(&self, uid: &str, pod: Option<&str>) {
        let mut held_back = self.held_back.lock().expect("never poisoned");
        match pod {
            Some(pod) => held_back.insert(uid.to_owned(), pod.to_owned()),
            None => held_back.remove(uid),
        };
    }

    /// What the last act ended with, if it failed.
    pub fn failure(&self, uid: &str) -> Option<String> {
        self.failures.lock().expect("never poisoned").get(uid).and_then(|failure| failure.act.clone())
    }

    /// Remembers that an act failed.
    pub fn act_failed(&self, uid: &str, text: String) {
        self.failures.lock().expect("never poisoned").entry(uid.to_owned()).or_default().act = Some(text);
    }

    /// Counts a failed pass.
    pub fn pass_failed(&self, uid: &str) -> u32 {
        let mut failures = self.failures.lock().expect("never poisoned");
        let failure = failures.entry(uid.to_owned()).or_default();
        failure.attempts = failure.attempts.saturating_add(1);
        failure.attempts
    }

    /// Forgets failures after a pass that went well.
    pub fn went_well(&self, uid: &str) {
        self.failures.lock().expect("never poisoned").remove(uid);
    }
}

/// Why a pass ended early.
#[derive(Debug, Error)]
pub enum Error {
    /// The API server said no, or nothing.
    #[error("{doing}: {}", explain(.source))]
    Kube {
        /// What was being done.
        doing: String,
        /// What it said.
        source: Box<kube::Error>,
    },
    /// A replica said no, or nothing.
    #[error(transparent)]
    Replica(AdminError),
}

impl Error {
    /// Wraps an error of the API client.
    pub fn kube(doing: &str) -> impl Fn(kube::Error) -> Error + use<> {
        let doing = doing.to_owned();
        move |source| Error::Kube { doing: doing.clone(), source: Box::new(source) }
    }

    /// Somebody wrote between our look and our write: look again.
    pub fn is_conflict(&self) -> bool {
        matches!(self, Error::Kube { source, .. } if matches!(&**source, kube::Error::Api(status) if status.code == 409))
    }
}

fn explain(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) => status.message.clone(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wait_for_something_else_starts_from_zero() {
        let (start, mut waits) = (Instant::now(), Waits::default());
        let mut waited = |wait, second| waits.waited("uid", wait, start + Duration::from_secs(second)).as_secs();
        assert_eq!(waited(Some("Rolling"), 0), 0);
        assert_eq!(waited(Some("Rolling"), 7), 7);
        assert_eq!(waited(Some("ReplicasNotReady"), 8), 0);
        assert_eq!(waited(Some("ReplicasNotReady"), 10), 2);
        assert_eq!(waited(None, 11), 0);
        assert_eq!(waited(Some("ReplicasNotReady"), 20), 0);
    }
}
