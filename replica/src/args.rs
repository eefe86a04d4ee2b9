//! Options of a replica. Each is also an environment variable, `LOCKSTEP_` and the option's name.

use std::io::IsTerminal;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use clap::ValueEnum;
use lockstep_wire::limits;
use tracing_subscriber::EnvFilter;

use crate::error::RunError;

/// How one replica runs. [`Args::default`] is what the command line gives without any option.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// Directory of this replica's log and identity. An empty one makes a new replica
    #[arg(long, env = "LOCKSTEP_DATA_DIR", value_name = "DIR", default_value = "/data")]
    pub data_dir: PathBuf,

    /// Where clients, admin calls, health checks and reflection are served
    #[arg(long, env = "LOCKSTEP_CLIENT_LISTEN", value_name = "ADDRESS", default_value_t = any(limits::CLIENT_PORT))]
    pub client_listen: SocketAddr,

    /// Where the other replicas are served
    #[arg(long, env = "LOCKSTEP_PEER_LISTEN", value_name = "ADDRESS", default_value_t = any(limits::PEER_PORT))]
    pub peer_listen: SocketAddr,

    /// Where metrics are served, at /metrics
    #[arg(long, env = "LOCKSTEP_METRICS_LISTEN", value_name = "ADDRESS", default_value_t = any(limits::METRICS_PORT))]
    pub metrics_listen: SocketAddr,

    /// Where members are reached, this one too if it is among them, in any order. A name is looked up again and again, and every
    /// address that it resolves to is dialled. Others are learnt from those who call
    #[arg(long, env = "LOCKSTEP_PEERS", value_name = "HOST:PORT,...", value_delimiter = ',')]
    pub peers: Vec<String>,

    /// Where clients reach this replica: told to them when it leads. Without it, --client-listen if that names an address
    #[arg(long, env = "LOCKSTEP_ADVERTISE_CLIENT", value_name = "HOST:PORT")]
    pub advertise_client: Option<String>,

    /// Where peers reach this replica: told to members that have no such address in their list yet
    #[arg(long, env = "LOCKSTEP_ADVERTISE_PEER", value_name = "HOST:PORT")]
    pub advertise_peer: Option<String>,

    /// File with the token that calls that change something need. Read at each call, so that it can be replaced
    #[arg(long, env = "LOCKSTEP_ADMIN_TOKEN_FILE", value_name = "FILE")]
    pub admin_token_file: Option<PathBuf>,

    /// The token itself; prefer the file or the environment variable, others can see a command line
    #[arg(long, env = "LOCKSTEP_ADMIN_TOKEN", value_name = "TOKEN", hide_env_values = true)]
    pub admin_token: Option<String>,

    /// What is logged: error, warn, info, debug, trace, or filters such as info,lockstep_replica=debug
    #[arg(long, env = "LOCKSTEP_LOG_LEVEL", value_name = "LEVEL", default_value = "info")]
    pub log_level: String,

    /// How it is logged
    #[arg(long, env = "LOCKSTEP_LOG_FORMAT", value_enum, default_value_t = LogFormat::Text)]
    pub log_format: LogFormat,

    /// Milliseconds between two heartbeats of a leader. The same on all replicas
    #[arg(long, env = "LOCKSTEP_HEARTBEAT_MS", value_name = "MS", default_value_t = 50)]
    pub heartbeat_ms: u64,

    /// Milliseconds without a leader's word before it is replaced, at least four heartbeats. The same on all replicas
    #[arg(long, env = "LOCKSTEP_ELECTION_MS", value_name = "MS", default_value_t = 500)]
    pub election_ms: u64,

    /// Connections of clients at most; one more is closed at once. Peers have as many to themselves
    #[arg(long, env = "LOCKSTEP_MAX_CONNECTIONS", value_name = "COUNT", default_value_t = 1024)]
    pub max_connections: usize,

    /// Calls and streams under way on one connection at most; further ones wait
    #[arg(long, env = "LOCKSTEP_MAX_STREAMS", value_name = "COUNT", default_value_t = 256)]
    pub max_streams: u32,

    /// Requests under way on one client stream at most; further ones are not read until some are answered
    #[arg(long, env = "LOCKSTEP_MAX_STREAM_REQUESTS", value_name = "COUNT", default_value_t = limits::STREAM_REQUESTS_MAX)]
    pub max_stream_requests: usize,

    /// Bytes of requests that wait for the core thread at most; further ones are not read until some are taken
    #[arg(long, env = "LOCKSTEP_MAX_QUEUED_BYTES", value_name = "BYTES", default_value_t = 64 << 20)]
    pub max_queued_bytes: usize,

    /// Bytes of one file of the log, zero-filled ahead: a multiple of 4096 from 8 MiB to 1 GiB
    #[arg(long, env = "LOCKSTEP_SEGMENT_BYTES", value_name = "BYTES", default_value_t = 64 << 20)]
    pub segment_bytes: u64,

    /// Bytes a second of snapshots served to replicas that lag, so that they do not slow the service down
    #[arg(long, env = "LOCKSTEP_SNAPSHOT_BANDWIDTH", value_name = "BYTES", default_value_t = 64 << 20)]
    pub snapshot_bandwidth: u64,

    /// Bytes of log that the leader keeps for a replica that lags but answers; beyond, that one needs a snapshot
    #[arg(long, env = "LOCKSTEP_RETAIN_BYTES", value_name = "BYTES", default_value_t = 256 << 20)]
    pub retain_bytes: u64,

    /// Process whose child this replica is: it stops when that process is gone
    #[arg(long, hide = true, value_name = "PID")]
    pub parent_pid: Option<i32>,
}

/// How log lines look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

fn any(port: u16) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::UNSPECIFIED, port))
}

impl Default for Args {
    fn default() -> Self {
        Args {
            data_dir: PathBuf::from("/data"),
            client_listen: any(limits::CLIENT_PORT),
            peer_listen: any(limits::PEER_PORT),
            metrics_listen: any(limits::METRICS_PORT),
            peers: Vec::new(),
            advertise_client: None,
            advertise_peer: None,
            admin_token_file: None,
            admin_token: None,
            log_level: "info".to_owned(),
            log_format: LogFormat::Text,
            heartbeat_ms: 50,
            election_ms: 500,
            max_connections: 1024,
            max_streams: 256,
            max_stream_requests: limits::STREAM_REQUESTS_MAX,
            max_queued_bytes: 64 << 20,
            segment_bytes: 64 << 20,
            snapshot_bandwidth: 64 << 20,
            retain_bytes: 256 << 20,
            parent_pid: None,
        }
    }
}

impl Args {
    /// Checks what one option alone cannot.
    pub(crate) fn check(&self) -> Result<(), RunError> {
        let wrong = |option: &'static str, why: String| Err(RunError::Option { option, why });
        if self.heartbeat_ms == 0 {
            return wrong("--heartbeat-ms", "must be at least 1".to_owned());
        }
        if self.election_ms < 4 * self.heartbeat_ms {
            let why = format!(
                "{} ms is less than four heartbeats of {} ms; a slow heartbeat would look like a dead leader",
                self.election_ms, self.heartbeat_ms
            );
            return wrong("--election-ms", why);
        }
        if self.max_queued_bytes < 2 * limits::FRAME_BYTES_MAX || self.max_queued_bytes > u32::MAX as usize {
            let why = format!("must be {} to {}", 2 * limits::FRAME_BYTES_MAX, u32::MAX);
            return wrong("--max-queued-bytes", why);
        }
        // Less than 8 MiB may be too little for one batch with the largest block.
        if !(8 << 20..=1 << 30).contains(&self.segment_bytes) || !self.segment_bytes.is_multiple_of(4096) {
            return wrong("--segment-bytes", "must be a multiple of 4096 from 8 MiB to 1 GiB".to_owned());
        }
        if self.max_connections == 0 || self.max_streams == 0 || self.max_stream_requests == 0 {
            return wrong(
                "--max-connections, --max-streams and --max-stream-requests",
                "must be at least 1".to_owned(),
            );
        }
        for address in self.peers.iter().chain(&self.advertise_client).chain(&self.advertise_peer) {
            let port = address.rsplit_once(':').and_then(|(host, port)| Some((host, port.parse::<u16>().ok()?)));
            if !port.is_some_and(|(host, _)| !host.is_empty() && !host.contains('/')) {
                return wrong("--peers and --advertise-client", format!("take host:port, not {address:?}"));
            }
        }
        Ok(())
    }

    /// Where clients reach this replica; empty if that is not known.
    pub(crate) fn client_address(&self, bound: SocketAddr) -> String {
        match &self.advertise_client {
            Some(address) => address.clone(),
            None if bound.ip().is_unspecified() => String::new(),
            None => bound.to_string(),
        }
    }

    /// Times of the rules.
    pub(crate) fn rules(&self) -> lockstep_consensus::Options {
        lockstep_consensus::Options {
            heartbeat: self.heartbeat_ms.saturating_mul(1000),
            election: self.election_ms.saturating_mul(1000),
            ..lockstep_consensus::Options::default()
        }
    }

    /// How snapshots are served, and how much log is kept.
    pub(crate) fn snapshots(&self) -> lockstep_engine::SnapshotOptions {
        lockstep_engine::SnapshotOptions {
            serve_bytes_per_second: self.snapshot_bandwidth,
            retain_bytes: self.retain_bytes,
            ..lockstep_engine::SnapshotOptions::default()
        }
    }

    /// Logs go to standard error. Does nothing if the process logs already.
    pub fn start_logging(&self) {
        let filter = EnvFilter::try_new(&self.log_level).unwrap_or_else(|error| {
            eprintln!("lockstep replica: --log-level {:?} is not understood ({error}); using info", self.log_level);
            EnvFilter::new("info")
        });
        let logs = tracing_subscriber::fmt()
            .with_env_filter(filter)
            .with_ansi(std::io::stderr().is_terminal())
            .with_writer(std::io::stderr);
        // An error means that a subscriber is there already, which is as good.
        let _ = match self.log_format {
            LogFormat::Text => logs.try_init(),
            LogFormat::Json => logs.json().try_init(),
        };
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        args: Args,
    }

    #[test]
    fn args_without_options_are_the_default() {
        let parsed = Cli::try_parse_from(["replica"]).expect("no option is needed").args;
        assert_eq!(format!("{parsed:?}"), format!("{:?}", Args::default()));
        parsed.check().expect("the default is valid");
    }

    #[test]
    fn args_with_a_short_election_are_refused() {
        let args = Args { election_ms: 150, ..Args::default() };
        let error = args.check().expect_err("three heartbeats are too few");
        assert_eq!(
            error.to_string(),
            "--election-ms: 150 ms is less than four heartbeats of 50 ms; a slow heartbeat would look like a dead leader"
        );
    }

    #[test]
    fn args_with_a_peer_without_port_are_refused() {
        let args = Args { peers: vec!["localhost".to_owned()], ..Args::default() };
        let error = args.check().expect_err("a port is needed");
        assert_eq!(error.to_string(), "--peers and --advertise-client: take host:port, not \"localhost\"");
    }
}
