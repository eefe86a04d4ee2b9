//! Options that several commands share.

use std::time::Duration;

use clap::{Args, ValueEnum};
use lockstep_client::{Client, ClientError, ClientOptions};
use lockstep_types::ServiceId;

/// Where the service is.
#[derive(Clone, Debug, Args)]
pub struct ServiceOptions {
    /// Replicas, or the service, as host:port, separated by commas. A name with several addresses stands for all of them.
    #[arg(
        long,
        global = true,
        env = "LOCKSTEP_ENDPOINTS",
        value_delimiter = ',',
        default_value = "127.0.0.1:7400",
        value_name = "HOST:PORT"
    )]
    pub endpoints: Vec<String>,

    /// How long an operation may take, retries included, as 500ms, 10s or 2m.
    #[arg(long, global = true, default_value = "10s", value_parser = duration, value_name = "DURATION")]
    pub timeout: Duration,

    /// The service that is meant, as 32 hexadecimal digits. Without it: whichever answers.
    #[arg(long, global = true, value_parser = service_id, value_name = "ID")]
    pub service_id: Option<ServiceId>,
}

impl ServiceOptions {
    /// A client of that service.
    ///
    /// # Errors
    /// An endpoint that is not `host:port`.
    pub fn client(&self) -> Result<Client, ClientError> {
        Client::connect(ClientOptions {
            endpoints: self.endpoints.clone(),
            service_id: self.service_id,
            timeout: self.timeout,
        })
    }
}

/// How results are printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// For people.
    #[default]
    Text,
    /// One JSON value.
    Json,
}

/// Reads a duration: a whole number and `ms`, `s`, `m` or `h`.
///
/// # Errors
/// Anything else.
pub fn duration(text: &str) -> Result<Duration, String> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let wrong = || format!("{text:?} is not a duration; write 500ms, 10s, 2m or 1h");
    let count: u64 = text[..digits].parse().map_err(|_| wrong())?;
    let millis = match &text[digits..] {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => return Err(wrong()),
    };
    count.checked_mul(millis).map(Duration::from_millis).ok_or_else(wrong)
}

fn service_id(text: &str) -> Result<ServiceId, String> {
    ServiceId::parse(text).ok_or_else(|| format!("{text:?} is not 32 hexadecimal digits"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn duration_with_unit_is_read() {
        assert_eq!(duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(duration("10s"), Ok(Duration::from_secs(10)));
        assert_eq!(duration("2m"), Ok(Duration::from_secs(120)));
        assert_eq!(duration("1h"), Ok(Duration::from_secs(3600)));
    }

    #[test]
    fn duration_otherwise_is_refused() {
        for text in ["", "10", "s", "-1s", "1.5s", "10 s", "99999999999999999999s", "18446744073709551615h"] {
            assert!(duration(text).is_err(), "{text:?}");
        }
    }
}
