//! What every pass shares: the client, what was learnt, and what can go wrong.

use std::collections::HashMap;
use std::sync::Mutex;
use std::time::Duration;

use kube::Client;
use kube::runtime::events::Recorder;
use lockstep_client::AdminError;
use thiserror::Error;

use crate::apply::Settled;
use crate::metrics::Metrics;
use crate::validate::Defaults;

/// Shared by all passes. Nothing in it is needed for safety: a fresh process starts with none of it.
pub struct Context {
    /// The API server.
    pub client: Client,
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
    /// What the last act of a resource ended with, by uid, if it failed.
    pub failures: Mutex<HashMap<String, Failure>>,
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
        self.settled.lock().expect("never poisoned").retain(|(owner, _, _), _| owner != uid);
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
