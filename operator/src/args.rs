//! The command line.

use std::net::SocketAddr;
use std::time::Duration;

use clap::{Parser, ValueEnum};

/// Runs replicated services: watches ReplicatedService resources and keeps their replicas as they shall be.
///
/// Speaks to the cluster of the pod that it runs in, or of the current kubeconfig context.
#[derive(Clone, Debug, Parser)]
#[command(name = "lockstep-operator", version, max_term_width = 110)]
pub struct Args {
    /// Watch this namespace only. Needs no rights beyond it. All namespaces if left out.
    #[arg(long, env = "LOCKSTEP_NAMESPACE", value_name = "NAMESPACE")]
    pub namespace: Option<String>,

    /// Image of the replicas of services that name none.
    #[arg(long, env = "LOCKSTEP_IMAGE", value_name = "IMAGE", default_value = "localhost/lockstep:dev")]
    pub image: String,

    /// Where to serve /metrics, /healthz and /readyz.
    #[arg(long, env = "LOCKSTEP_LISTEN", value_name = "ADDRESS", default_value = "0.0.0.0:8080")]
    pub listen: SocketAddr,

    /// Run without a lease. Only where nothing else can run an operator for the same resources.
    #[arg(long, env = "LOCKSTEP_NO_LEADER_ELECTION")]
    pub no_leader_election: bool,

    /// Name of the lease by which one operator at a time is chosen.
    #[arg(long, env = "LOCKSTEP_LEASE_NAME", value_name = "NAME", default_value = "lockstep-operator")]
    pub lease_name: String,

    /// Namespace of the lease. The pod's own, the watched one, or `default`, if left out.
    #[arg(long, env = "LOCKSTEP_LEASE_NAMESPACE", value_name = "NAMESPACE")]
    pub lease_namespace: Option<String>,

    /// How this process calls itself in the lease and in events. Made up if left out.
    #[arg(long, env = "POD_NAME", value_name = "NAME")]
    pub identity: Option<String>,

    /// Seconds between two looks at a service at rest.
    #[arg(long, env = "LOCKSTEP_POLL", value_name = "SECONDS", default_value = "10", value_parser = seconds)]
    pub poll: Duration,

    /// How many services are looked at at a time.
    #[arg(long, env = "LOCKSTEP_CONCURRENCY", value_name = "NUMBER", default_value_t = 8,
          value_parser = clap::value_parser!(u16).range(1..=256))]
    pub concurrency: u16,

    /// How many services have their pods replaced at a time. Sick pods are replaced at any time.
    #[arg(long, env = "LOCKSTEP_CONCURRENT_ROLLS", value_name = "NUMBER", default_value_t = 4,
          value_parser = clap::value_parser!(u16).range(1..))]
    pub concurrent_rolls: u16,

    /// What to log: a level, or directives such as info,lockstep_operator=debug.
    #[arg(long, env = "LOCKSTEP_LOG_LEVEL", value_name = "LEVEL", default_value = "info")]
    pub log_level: String,

    /// How to log: text for people, json for machines, one object a line.
    #[arg(
        long,
        env = "LOCKSTEP_LOG_FORMAT",
        value_name = "FORMAT",
        default_value = "text",
        hide_possible_values = true
    )]
    pub log_format: LogFormat,
}

/// How to log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

fn seconds(text: &str) -> Result<Duration, String> {
    match text.parse::<u64>() {
        Ok(seconds @ 1..=3600) => Ok(Duration::from_secs(seconds)),
        _ => Err("use a number of seconds from 1 to 3600".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn command_line_is_consistent() {
        Args::command().debug_assert();
    }
}
