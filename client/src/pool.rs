//! Which replicas there are: the endpoints as given and what their names stand for, the voters that replicas tell of, and a
//! warm connection to each, so that a fail-over never waits for one. An address that cannot be reached costs nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use lockstep_session::{AttemptId, Target};
use lockstep_types::ServiceId;
use lockstep_wire::v1;
use tokio::sync::mpsc;
use tokio::task::AbortHandle;
use tracing::debug;

use crate::connection::{self, Event, Link, Located};

/// Delay before a connection is tried again; doubles up to the limit.
const RECONNECT_MIN: Duration = Duration::from_millis(100);
/// Longest delay for an endpoint as given.
const RECONNECT_MAX: Duration = Duration::from_secs(1);
/// Longest delay for an address that a replica told of: it may not be reachable from here at all.
const RECONNECT_TOLD_MAX: Duration = Duration::from_secs(15);
/// How often names are looked up again: while something is missing, if a told name stands for nothing here, and otherwise.
const LOOKUP_MISSING: Duration = Duration::from_secs(2);
const LOOKUP_TOLD_FAILED: Duration = Duration::from_secs(15);
const LOOKUP_COMPLETE: Duration = Duration::from_secs(30);

/// Of a peer that is connected and has refused nothing since.
const CONNECTED: &str = "connected, no answer yet";

/// A replica, or whatever answers at its address.
#[derive(Debug)]
struct Peer {
    address: SocketAddr,
    state: State,
    failures: u32,
    /// What it said or what happened last, for people.
    last: String,
}

#[derive(Debug)]
enum State {
    Down { retry_at: Instant },
    Connecting { task: AbortHandle },
    Up { link: Link, task: AbortHandle, outbox: Vec<v1::Request> },
}

/// A name that stands for addresses.
#[derive(Debug)]
struct Name {
    /// Given by the application, not told by a replica.
    given: bool,
    addresses: Vec<SocketAddr>,
    error: Option<String>,
    looking_up: bool,
    lookup_at: Instant,
}

/// All peers.
#[derive(Debug)]
pub(crate) struct Pool {
    names: BTreeMap<String, Name>,
    peers: BTreeMap<Target, Peer>,
    next_target: u32,
    service: Option<ServiceId>,
    /// Where the leader is, as last told.
    leader: String,
    events: mpsc::UnboundedSender<Event>,
}

impl Pool {
    pub(crate) fn new(
        endpoints: &[String],
        service: Option<ServiceId>,
        events: mpsc::UnboundedSender<Event>,
        now: Instant,
    ) -> Self {
        let mut pool = Pool {
            names: BTreeMap::new(),
            peers: BTreeMap::new(),
            next_target: 0,
            service,
            leader: String::new(),
            events,
        };
        for endpoint in endpoints {
            pool.add_name(endpoint, true, now);
        }
        pool
    }

    /// The service that is meant, once it is known.
    pub(crate) fn service(&self) -> Option<ServiceId> {
        self.service
    }

    /// Peers that can be asked now.
    pub(crate) fn targets(&self) -> Vec<Target> {
        self.peers
            .iter()
            .filter(|(_, peer)| matches!(peer.state, State::Up { .. }))
            .map(|(target, _)| *target)
            .collect()
    }

    /// The connected peer at the leader's address, if it is known.
    pub(crate) fn leader(&self) -> Option<Target> {
        self.connected_at(&self.leader)
    }

    /// The connected peer at `address`, `host:port`.
    pub(crate) fn connected_at(&self, address: &str) -> Option<Target> {
        let addresses = &self.names.get(address)?.addresses;
        let up = |peer: &Peer| matches!(peer.state, State::Up { .. }) && addresses.contains(&peer.address);
        self.peers.iter().find(|(_, peer)| up(peer)).map(|(target, _)| *target)
    }

    /// Puts a request into the frame that [`flush`](Self::flush) sends. False if the peer is not connected.
    pub(crate) fn push(&mut self, target: Target, request: v1::Request) -> bool {
        match self.peers.get_mut(&target).map(|peer| &mut peer.state) {
            Some(State::Up { outbox, .. }) => {
                outbox.push(request);
                true
            }
            Some(State::Down { .. } | State::Connecting { .. }) | None => false,
        }
    }

    /// Sends what was put together.
    pub(crate) fn flush(&mut self) {
        for peer in self.peers.values_mut() {
            if let State::Up { link, outbox, .. } = &mut peer.state
                && !outbox.is_empty()
            {
                link.send(std::mem::take(outbox));
            }
        }
    }

    /// A peer is connected. False if it serves another service, and is not used.
    pub(crate) fn up(&mut self, target: Target, link: Link, located: &Located, now: Instant) -> bool {
        let Some(peer) = self.peers.get_mut(&target) else { return false };
        let State::Connecting { task } = &peer.state else { return false };
        let task = task.clone();
        if let (Some(wanted), Some(found)) = (self.service, located.service)
            && wanted != found
        {
            task.abort();
            peer.last = format!("it serves service {found}, not {wanted}");
            peer.state = State::Down { retry_at: now + RECONNECT_MAX };
            return false;
        }
        debug!(address = %peer.address, "connected");
        peer.failures = 0;
        peer.last = CONNECTED.to_owned();
        peer.state = State::Up { link, task, outbox: Vec::new() };
        true
    }

    /// A replica told who leads and who votes; one that is not trusted is believed no more than the service's identity.
    pub(crate) fn located(&mut self, located: &Located, trusted: bool, now: Instant) {
        self.service = self.service.or(located.service);
        if !trusted {
            return;
        }
        let told: BTreeSet<&String> =
            located.voters.iter().chain([&located.leader]).filter(|name| !name.is_empty()).collect();
        if !told.is_empty() {
            self.names.retain(|name, entry| entry.given || told.contains(name));
        }
        for name in told {
            self.add_name(name, false, now);
        }
        if !located.leader.is_empty() {
            self.leader.clone_from(&located.leader);
        }
    }

    /// A refusal told who leads.
    pub(crate) fn hinted(&mut self, address: &str, now: Instant) {
        self.add_name(address, false, now);
        self.leader = address.to_owned();
    }

    /// A peer is gone. Gives the attempts that were not sent.
    pub(crate) fn down(&mut self, target: Target, reason: String, now: Instant) -> Vec<AttemptId> {
        let Some(peer) = self.peers.get_mut(&target) else { return Vec::new() };
        debug!(address = %peer.address, reason, "disconnected");
        let most = if self.names.values().any(|name| name.given && name.addresses.contains(&peer.address)) {
            RECONNECT_MAX
        } else {
            RECONNECT_TOLD_MAX
        };
        let delay = RECONNECT_MIN.saturating_mul(1 << peer.failures.min(16)).min(most);
        peer.failures += 1;
        peer.last = reason;
        let state = std::mem::replace(&mut peer.state, State::Down { retry_at: now + delay });
        for name in self.names.values_mut().filter(|name| name.error.is_none()) {
            name.lookup_at = name.lookup_at.min(now + LOOKUP_MISSING);
        }
        match state {
            State::Up { outbox, .. } => outbox.into_iter().map(|request| AttemptId(request.id)).collect(),
            State::Down { .. } | State::Connecting { .. } => Vec::new(),
        }
    }

    /// What a peer said, for people.
    pub(crate) fn note(&mut self, target: Target, said: &str) {
        if let Some(peer) = self.peers.get_mut(&target)
            && peer.last != said
        {
            said.clone_into(&mut peer.last);
        }
    }

    /// A peer answered as it should.
    pub(crate) fn answered(&mut self, target: Target) {
        self.note(target, CONNECTED);
    }

    /// A name was looked up.
    pub(crate) fn resolved(&mut self, name: &str, addresses: Result<Vec<SocketAddr>, String>, now: Instant) {
        let Some(entry) = self.names.get_mut(name) else { return };
        entry.looking_up = false;
        match addresses {
            Ok(addresses) => {
                entry.error = None;
                entry.addresses = addresses;
            }
            Err(error) => entry.error = Some(error),
        }
        let known: BTreeSet<SocketAddr> = self.peers.values().map(|peer| peer.address).collect();
        let wanted: BTreeSet<SocketAddr> =
            self.names.values().flat_map(|name| name.addresses.iter().copied()).collect();
        for address in wanted.difference(&known) {
            let target = Target(self.next_target);
            self.next_target += 1;
            let state = State::Down { retry_at: now };
            self.peers.insert(target, Peer { address: *address, state, failures: 0, last: "not tried yet".to_owned() });
        }
        // An address that no name stands for any more is used for as long as it works.
        self.peers.retain(|_, peer| wanted.contains(&peer.address) || matches!(peer.state, State::Up { .. }));
        self.plan_lookup(name, now);
    }

    fn plan_lookup(&mut self, name: &str, now: Instant) {
        let up = |address: &SocketAddr| {
            self.peers.values().any(|peer| peer.address == *address && matches!(peer.state, State::Up { .. }))
        };
        let Some(entry) = self.names.get(name) else { return };
        let complete = entry.addresses.iter().all(up);
        let delay = match (entry.given, &entry.error) {
            (_, None) if complete => LOOKUP_COMPLETE,
            (false, Some(_)) => LOOKUP_TOLD_FAILED,
            (true, Some(_)) | (_, None) => LOOKUP_MISSING,
        };
        if let Some(entry) = self.names.get_mut(name) {
            entry.lookup_at = now + delay;
        }
    }

    fn add_name(&mut self, name: &str, given: bool, now: Instant) {
        if name.is_empty() || self.names.contains_key(name) {
            return;
        }
        let entry = Name { given, addresses: Vec::new(), error: None, looking_up: false, lookup_at: now };
        self.names.insert(name.to_owned(), entry);
    }

    /// Connects and looks up what is due. Gives the time when something is due next.
    pub(crate) fn maintain(&mut self, now: Instant) -> Option<Instant> {
        let mut next: Option<Instant> = None;
        let mut due_at = |at: Instant| next = Some(next.map_or(at, |next| next.min(at)));
        for (name, entry) in self.names.iter_mut().filter(|(_, entry)| !entry.looking_up) {
            if entry.lookup_at <= now {
                entry.looking_up = true;
                look_up(name.clone(), self.events.clone());
            } else {
                due_at(entry.lookup_at);
            }
        }
        for (target, peer) in &mut self.peers {
            if let State::Down { retry_at } = peer.state {
                if retry_at <= now {
                    let task = connection::start(*target, peer.address, self.service, self.events.clone());
                    peer.state = State::Connecting { task };
                } else {
                    due_at(retry_at);
                }
            }
        }
        next
    }

    /// Asks a peer who leads.
    pub(crate) fn locate(&self, target: Target) {
        if let Some(Peer { state: State::Up { link, .. }, .. }) = self.peers.get(&target) {
            link.locate(target, self.events.clone());
        }
    }

    /// Every endpoint and what it said last, for people.
    pub(crate) fn tried(&self) -> String {
        let mut text = String::new();
        for (name, entry) in self.names.iter().filter(|(_, entry)| entry.given) {
            if let Some(error) = &entry.error {
                let _ = write!(text, "{}{name} ({error})", separator(&text));
            }
        }
        for peer in self.peers.values() {
            let _ = write!(text, "{}{} ({})", separator(&text), peer.address, peer.last);
        }
        if text.is_empty() {
            let names: Vec<&str> = self.names.keys().map(String::as_str).collect();
            return format!("{} (not resolved yet)", names.join(", "));
        }
        text
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        for peer in self.peers.values() {
            match &peer.state {
                State::Connecting { task } | State::Up { task, .. } => task.abort(),
                State::Down { .. } => {}
            }
        }
    }
}

fn separator(text: &str) -> &'static str {
    if text.is_empty() { "" } else { ", " }
}

fn look_up(name: String, events: mpsc::UnboundedSender<Event>) {
    tokio::spawn(async move {
        let addresses = match tokio::net::lookup_host(&name).await {
            Ok(addresses) => {
                let addresses: BTreeSet<SocketAddr> = addresses.collect();
                Ok(addresses.into_iter().collect())
            }
            Err(error) => Err(format!("the name does not resolve: {error}")),
        };
        let _ = events.send(Event::Resolved { name, addresses });
    });
}
