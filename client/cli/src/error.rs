//! How a command fails: what to say, and the exit code.

use lockstep_client::ClientError;
use thiserror::Error;

/// Why a command did not work. Shown to people as it is.
#[derive(Debug, Error)]
pub enum CliError {
    /// It was tried and failed. Exit code 1.
    #[error("{0}")]
    Failed(String),
    /// The service answered, and what was asked for is not so: no such key, or not as expected. Exit code 3.
    #[error("{0}")]
    Unmet(String),
    /// The command makes no sense. Exit code 2.
    #[error("{0}")]
    Usage(String),
}

impl CliError {
    /// A failure in these words.
    pub fn failed(words: impl ToString) -> Self {
        CliError::Failed(words.to_string())
    }

    /// The exit code.
    pub fn code(&self) -> u8 {
        match self {
            CliError::Failed(_) => 1,
            CliError::Usage(_) => 2,
            CliError::Unmet(_) => 3,
        }
    }
}

impl From<ClientError> for CliError {
    fn from(error: ClientError) -> Self {
        match error {
            ClientError::Endpoint { .. } | ClientError::NoEndpoint => CliError::Usage(error.to_string()),
            ClientError::NeverSent { .. }
            | ClientError::Unanswered { .. }
            | ClientError::Unknown { .. }
            | ClientError::Lost { .. }
            | ClientError::Rejected { .. }
            | ClientError::Reply { .. }
            | ClientError::Closed => CliError::failed(error),
        }
    }
}

impl From<std::io::Error> for CliError {
    fn from(error: std::io::Error) -> Self {
        CliError::Failed(format!("writing the output failed: {error}"))
    }
}
