//! Options that several commands share.

use std::io::Write;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};
use lockstep_client::{Client, ClientError, ClientOptions};
use lockstep_types::ServiceId;
use serde_json::Value;

use crate::CliError;

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

/// What calls need that change a service as a whole. The replicas' options have the same names.
#[derive(Clone, Debug, Args)]
pub struct TokenOptions {
    /// File with the service's admin token. `lockstep dev` keeps it in .lockstep/NAME/admin-token, the operator in the Secret
    /// NAME-admin, key token.
    #[arg(long, env = "LOCKSTEP_ADMIN_TOKEN_FILE", value_name = "FILE")]
    pub admin_token_file: Option<PathBuf>,

    /// The token itself; prefer the file or the environment variable, others can see a command line.
    #[arg(long, env = "LOCKSTEP_ADMIN_TOKEN", value_name = "TOKEN", hide_env_values = true)]
    pub admin_token: Option<String>,
}

impl TokenOptions {
    /// The token.
    ///
    /// # Errors
    /// No token is given, or two, or its file cannot be read.
    pub fn token(&self) -> Result<String, CliError> {
        let token = match (&self.admin_token_file, &self.admin_token) {
            (Some(path), Some(_)) => {
                return Err(CliError::Usage(format!(
                    "two admin tokens are given: in the file {}, by --admin-token-file or LOCKSTEP_ADMIN_TOKEN_FILE, and by \
                     --admin-token or LOCKSTEP_ADMIN_TOKEN; leave one out (unset the variable of the other)",
                    path.display()
                )));
            }
            (Some(path), None) => std::fs::read_to_string(path).map_err(|error| {
                let path = path.display();
                CliError::Usage(format!(
                    "failed to read the admin token from {path}: {error}; name its file with --admin-token-file"
                ))
            })?,
            (None, Some(token)) => token.clone(),
            (None, None) => String::new(),
        };
        match token.trim() {
            "" => Err(CliError::Usage(
                "this command needs the service's admin token: name its file with --admin-token-file, or set \
                 LOCKSTEP_ADMIN_TOKEN; `lockstep dev` keeps it in .lockstep/NAME/admin-token, the operator in the Secret \
                 NAME-admin"
                    .to_owned(),
            )),
            token => Ok(token.to_owned()),
        }
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

/// Prints one result and ends the line.
///
/// # Errors
/// Standard output is closed, or its disk is full.
pub fn print(output: Output, text: &[u8], value: Value) -> Result<(), CliError> {
    let mut out = std::io::stdout().lock();
    match output {
        Output::Text => out.write_all(text)?,
        Output::Json => write!(out, "{value}")?,
    }
    out.write_all(b"\n")?;
    Ok(out.flush()?)
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
