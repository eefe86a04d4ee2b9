//! What Prometheus scrapes: `GET /metrics` in the OpenMetrics text format.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use lockstep_consensus::RoleName;
use lockstep_engine::{Answer, Refusal, StateDoubt, Status};
use lockstep_types::Height;
use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue, text};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

/// All metrics of one replica. Names get the prefix `lockstep_`.
#[derive(Debug)]
pub(crate) struct Metrics {
    registry: Registry,
    view_round: Gauge,
    is_leader: Gauge,
    role: Family<RoleLabel, Gauge>,
    ready: Gauge,
    head: Gauge,
    committed: Gauge,
    applied: Gauge,
    lag: Gauge,
    sessions: Gauge,
    reply_bytes: Gauge,
    keys: Gauge,
    open_requests: Gauge,
    queued_bytes: Gauge,
    executed: Counter,
    answered_from_table: Counter,
    evictions: Counter,
    snapshot_height: Gauge,
    snapshot_agreed_height: Gauge,
    log_begins_above: Gauge,
    snapshot_fetching: Gauge,
    snapshots_taken: Counter,
    snapshots_left_out: Counter,
    snapshots_installed: Counter,
    snapshots_not_installed: Counter,
    snapshot_chunks_served: Counter,
    fenced: Gauge,
    doubted: Gauge,
    divergences: Counter,
    fences: Counter,
    rebuilds: Counter,
    /// What the engine's counters stood at when they were last looked at.
    seen: Seen,
    requests: Family<KindLabel, Counter>,
    refusals: Family<ReasonLabel, Counter>,
    commit_seconds: Histogram,
    read_seconds: Histogram,
    pub requests_per_sync: Histogram,
    pub wal_sync_seconds: Histogram,
    pub wal_bytes: Counter,
    pub peers_connected: Gauge,
    pub peer_sent: Counter,
    pub peer_dropped: Counter,
    pub peer_refused: Counter,
    pub client_connections: Gauge,
    pub client_connections_refused: Counter,
    pub client_streams: Gauge,
}

#[derive(Debug, Default)]
struct Seen {
    executed: AtomicU64,
    answered_from_table: AtomicU64,
    evictions: AtomicU64,
    snapshots_taken: AtomicU64,
    snapshots_left_out: AtomicU64,
    snapshots_installed: AtomicU64,
    snapshots_not_installed: AtomicU64,
    snapshot_chunks_served: AtomicU64,
    divergences: AtomicU64,
    fences: AtomicU64,
    rebuilds: AtomicU64,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RoleLabel {
    role: RoleValue,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct RoleValue(RoleName);

impl EncodeLabelValue for RoleValue {
    fn encode(&self, encoder: &mut prometheus_client::encoding::LabelValueEncoder<'_>) -> Result<(), std::fmt::Error> {
        let name = match self.0 {
            RoleName::Follower => "follower",
            RoleName::Candidate => "candidate",
            RoleName::Leader => "leader",
        };
        EncodeLabelValue::encode(&name, encoder)
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct KindLabel {
    kind: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReasonLabel {
    reason: &'static str,
}

/// Whether a request is logged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Command,
    Read,
}

impl Metrics {
    pub fn new() -> Self {
        let seconds = || Histogram::new(exponential_buckets(0.000_05, 2.0, 18));
        let mut metrics = Metrics {
            registry: Registry::with_prefix("lockstep"),
            view_round: Gauge::default(),
            is_leader: Gauge::default(),
            role: Family::default(),
            ready: Gauge::default(),
            head: Gauge::default(),
            committed: Gauge::default(),
            applied: Gauge::default(),
            lag: Gauge::default(),
            sessions: Gauge::default(),
            reply_bytes: Gauge::default(),
            keys: Gauge::default(),
            open_requests: Gauge::default(),
            queued_bytes: Gauge::default(),
            executed: Counter::default(),
            answered_from_table: Counter::default(),
            evictions: Counter::default(),
            snapshot_height: Gauge::default(),
            snapshot_agreed_height: Gauge::default(),
            log_begins_above: Gauge::default(),
            snapshot_fetching: Gauge::default(),
            snapshots_taken: Counter::default(),
            snapshots_left_out: Counter::default(),
            snapshots_installed: Counter::default(),
            snapshots_not_installed: Counter::default(),
            snapshot_chunks_served: Counter::default(),
            fenced: Gauge::default(),
            doubted: Gauge::default(),
            divergences: Counter::default(),
            fences: Counter::default(),
            rebuilds: Counter::default(),
            seen: Seen::default(),
            requests: Family::default(),
            refusals: Family::default(),
            commit_seconds: seconds(),
            read_seconds: seconds(),
            requests_per_sync: Histogram::new(exponential_buckets(1.0, 2.0, 14)),
            wal_sync_seconds: seconds(),
            wal_bytes: Counter::default(),
            peers_connected: Gauge::default(),
            peer_sent: Counter::default(),
            peer_dropped: Counter::default(),
            peer_refused: Counter::default(),
            client_connections: Gauge::default(),
            client_connections_refused: Counter::default(),
            client_streams: Gauge::default(),
        };
        metrics.register();
        metrics.register_snapshots();
        metrics.register_divergence();
        metrics
    }

    fn register_divergence(&mut self) {
        let registry = &mut self.registry;
        registry.register(
            "fenced",
            "1 while the state of this replica is not that of a quorum: it applies nothing and answers no reads",
            self.fenced.clone(),
        );
        registry.register(
            "state_in_doubt",
            "1 while another replica has another state and no side has a quorum: nothing is applied or answered",
            self.doubted.clone(),
        );
        registry.register(
            "divergences",
            "Times that another replica was found to have another state and no quorum was known to agree with this one",
            self.divergences.clone(),
        );
        registry.register("fences", "Times that a quorum had another state than this replica", self.fences.clone());
        registry.register("state_rebuilds", "States built anew after a divergence", self.rebuilds.clone());
    }

    fn register_snapshots(&mut self) {
        let registry = &mut self.registry;
        registry.register(
            "snapshot_height",
            "Height of the newest snapshot on the disk, 0 if there is none",
            self.snapshot_height.clone(),
        );
        registry.register(
            "snapshot_agreed_height",
            "Height of the newest snapshot that a quorum has alike, as known since the start, 0 if none",
            self.snapshot_agreed_height.clone(),
        );
        registry.register(
            "log_begins_above_height",
            "The log holds the blocks above this height, 0 if it holds all",
            self.log_begins_above.clone(),
        );
        registry.register(
            "snapshot_fetching",
            "1 while a snapshot of peers is being fetched",
            self.snapshot_fetching.clone(),
        );
        registry.register("snapshots_taken", "Snapshots written", self.snapshots_taken.clone());
        registry.register(
            "snapshots_left_out",
            "Snapshot points left out: the disk refused, or the snapshot before was still being written",
            self.snapshots_left_out.clone(),
        );
        registry.register(
            "snapshots_installed",
            "Snapshots of peers that took the place of the state",
            self.snapshots_installed.clone(),
        );
        registry.register(
            "snapshots_install_failures",
            "Attempts to fetch a snapshot of peers that came to nothing",
            self.snapshots_not_installed.clone(),
        );
        registry.register(
            "snapshot_chunks_served",
            "Chunks and manifests of snapshots sent to peers",
            self.snapshot_chunks_served.clone(),
        );
    }

    fn register(&mut self) {
        let registry = &mut self.registry;
        registry.register(
            "view_round",
            "Round of the current view; each new leader has a higher one",
            self.view_round.clone(),
        );
        registry.register("is_leader", "1 if this replica leads", self.is_leader.clone());
        registry.register("role", "1 for the role of this replica in its view, 0 for the others", self.role.clone());
        registry.register(
            "ready",
            "1 if this replica is caught up and has a leader: it should get requests",
            self.ready.clone(),
        );
        registry.register("head_height", "Height of the highest block in the log", self.head.clone());
        registry.register(
            "committed_height",
            "Height up to which blocks are known to be committed",
            self.committed.clone(),
        );
        registry.register("applied_height", "Height up to which blocks are executed", self.applied.clone());
        registry.register(
            "lag_blocks",
            "Blocks that the leader has and this replica has not executed",
            self.lag.clone(),
        );
        registry.register("sessions", "Client sessions that are alive", self.sessions.clone());
        registry.register(
            "session_reply_bytes",
            "Bytes of replies kept for clients that ask again",
            self.reply_bytes.clone(),
        );
        registry.register("keys", "Keys in the state machine's store", self.keys.clone());
        registry.register("open_requests", "Client requests that wait for an answer here", self.open_requests.clone());
        registry.register("queued_bytes", "Bytes of blocks that wait for the disk", self.queued_bytes.clone());
        registry.register(
            "executed",
            "Requests that the state machine executed since the start, those of a replayed log included",
            self.executed.clone(),
        );
        registry.register(
            "answered_from_table",
            "Requests that were sent again and answered as before, without executing them",
            self.answered_from_table.clone(),
        );
        registry.register(
            "session_evictions",
            "Sessions that ended because too many were open",
            self.evictions.clone(),
        );
        registry.register("requests", "Client requests that arrived here, by kind", self.requests.clone());
        registry.register("refusals", "Client requests that were refused here, by reason", self.refusals.clone());
        registry.register(
            "commit_seconds",
            "Time from a command's arrival here to its answer: committed by a quorum and executed",
            self.commit_seconds.clone(),
        );
        registry.register(
            "read_seconds",
            "Time from a linearizable read's arrival here to its answer",
            self.read_seconds.clone(),
        );
        registry.register(
            "requests_per_sync",
            "Commands that one sync of the log made durable",
            self.requests_per_sync.clone(),
        );
        registry.register(
            "wal_sync_seconds",
            "Time to write and sync one batch of the log",
            self.wal_sync_seconds.clone(),
        );
        registry.register("wal_bytes", "Bytes written to the log", self.wal_bytes.clone());
        registry.register(
            "peers_connected",
            "Other replicas that this one has a stream to",
            self.peers_connected.clone(),
        );
        registry.register("peer_messages_sent", "Messages handed to streams to other replicas", self.peer_sent.clone());
        registry.register(
            "peer_messages_dropped",
            "Messages dropped because the queue to a connected replica was full",
            self.peer_dropped.clone(),
        );
        registry.register(
            "peer_streams_refused",
            "Streams of other replicas that were refused",
            self.peer_refused.clone(),
        );
        registry.register("client_connections", "Connections of clients", self.client_connections.clone());
        registry.register(
            "client_connections_refused",
            "Connections closed because there were too many",
            self.client_connections_refused.clone(),
        );
        registry.register("client_streams", "Request streams of clients", self.client_streams.clone());
    }

    /// Takes over what the engine says of itself.
    pub fn observe_status(&self, status: &Status) {
        self.view_round.set(signed(status.view.round));
        self.is_leader.set(i64::from(status.role == RoleName::Leader));
        for role in [RoleName::Follower, RoleName::Candidate, RoleName::Leader] {
            self.role.get_or_create(&RoleLabel { role: RoleValue(role) }).set(i64::from(status.role == role));
        }
        self.ready.set(i64::from(status.not_ready.is_none()));
        self.head.set(signed(status.head.get()));
        self.committed.set(signed(status.committed.get()));
        self.applied.set(signed(status.applied.get()));
        self.lag.set(signed(status.leader_head.map_or(0, |head| head.above(status.applied))));
        self.sessions.set(signed(status.machine.sessions as u64));
        self.reply_bytes.set(signed(status.machine.reply_bytes));
        self.keys.set(signed(status.machine.keys as u64));
        self.open_requests.set(signed(status.requests as u64));
        self.queued_bytes.set(signed(status.queued_bytes as u64));
        let catch_up = |counter: &Counter, seen: &AtomicU64, now: u64| {
            counter.inc_by(now.saturating_sub(seen.swap(now, Ordering::Relaxed)));
        };
        catch_up(&self.executed, &self.seen.executed, status.machine.executed);
        catch_up(&self.answered_from_table, &self.seen.answered_from_table, status.machine.answered_from_table);
        catch_up(&self.evictions, &self.seen.evictions, status.machine.evictions);
        let (snapshots, seen) = (&status.snapshots, &self.seen);
        self.snapshot_height.set(signed(snapshots.newest.map_or(0, Height::get)));
        self.snapshot_agreed_height.set(signed(snapshots.agreed.map_or(0, Height::get)));
        self.log_begins_above.set(signed(snapshots.log_begins_above.get()));
        self.snapshot_fetching.set(i64::from(snapshots.fetching.is_some()));
        let counters = &snapshots.counters;
        catch_up(&self.snapshots_taken, &seen.snapshots_taken, counters.taken);
        catch_up(&self.snapshots_left_out, &seen.snapshots_left_out, counters.left_out);
        catch_up(&self.snapshots_installed, &seen.snapshots_installed, counters.installed);
        catch_up(&self.snapshots_not_installed, &seen.snapshots_not_installed, counters.not_installed);
        catch_up(&self.snapshot_chunks_served, &seen.snapshot_chunks_served, counters.served);
        let doubt = status.divergence.as_ref().map_or(StateDoubt::Over, |found| found.state);
        self.fenced.set(i64::from(matches!(doubt, StateDoubt::Fenced | StateDoubt::FencedAgain)));
        self.doubted.set(i64::from(matches!(doubt, StateDoubt::Open | StateDoubt::OpenAgain)));
        catch_up(&self.divergences, &seen.divergences, status.divergences.halts);
        catch_up(&self.fences, &seen.fences, status.divergences.fences);
        catch_up(&self.rebuilds, &seen.rebuilds, status.divergences.rebuilds);
    }

    pub fn observe_arrivals(&self, commands: u64, reads: u64) {
        for (kind, count) in [("command", commands), ("read", reads)] {
            if count > 0 {
                self.requests.get_or_create(&KindLabel { kind }).inc_by(count);
            }
        }
    }

    pub fn observe_answer(&self, kind: Kind, answer: &Answer, took: Duration) {
        match (answer, kind) {
            (Answer::Refused(refusal), _) => {
                let reason = match refusal {
                    Refusal::Overloaded => "overloaded",
                    Refusal::NoLeader { .. } => "no_leader",
                    Refusal::Fenced => "fenced",
                    Refusal::Deadline { .. } => "deadline",
                };
                self.refusals.get_or_create(&ReasonLabel { reason }).inc();
            }
            (Answer::Outcome(_) | Answer::Read(_), Kind::Command) => self.commit_seconds.observe(took.as_secs_f64()),
            (Answer::Outcome(_) | Answer::Read(_), Kind::Read) => self.read_seconds.observe(took.as_secs_f64()),
        }
    }

    fn page(&self) -> String {
        let mut page = String::with_capacity(16 << 10);
        text::encode(&mut page, &self.registry).expect("a string takes whatever is written");
        page
    }
}

fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// `GET /metrics`.
pub(crate) fn routes(metrics: Arc<Metrics>) -> axum::Router {
    let page = move || async move {
        ([(header::CONTENT_TYPE, "application/openmetrics-text; version=1.0.0; charset=utf-8")], metrics.page())
    };
    axum::Router::new()
        .route("/metrics", axum::routing::get(page))
        .fallback(|| async { (StatusCode::NOT_FOUND, "metrics are at /metrics\n").into_response() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metrics_page_names_and_explains_every_metric() {
        let metrics = Metrics::new();
        metrics.observe_arrivals(3, 1);
        metrics.observe_answer(Kind::Command, &Answer::Refused(Refusal::Overloaded), Duration::ZERO);
        metrics.requests_per_sync.observe(3.0);
        let page = metrics.page();
        for line in [
            "# HELP lockstep_view_round ",
            "# TYPE lockstep_requests_per_sync histogram",
            "# TYPE lockstep_log_begins_above_height gauge",
            "# TYPE lockstep_snapshots_left_out counter",
            "lockstep_snapshots_install_failures_total 0",
            "lockstep_requests_per_sync_sum 3.0",
            "lockstep_requests_total{kind=\"command\"} 3",
            "lockstep_refusals_total{reason=\"overloaded\"} 1",
        ] {
            assert!(page.contains(line), "{line:?} is missing in\n{page}");
        }
    }
}
