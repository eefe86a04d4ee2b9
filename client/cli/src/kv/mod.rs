//! `lockstep kv`: operations on a key-value service.

mod scan;
mod txn;

use clap::{Args, Subcommand};
use lockstep_client::{CasOutcome, Client, Expected, Versioned};
use serde_json::{Map, Value, json};

use crate::CliError;
use crate::options::{Output, ServiceOptions, print};

/// Arguments of `kv`.
#[derive(Debug, Args)]
pub struct KvArgs {
    #[command(flatten)]
    service: ServiceOptions,
    /// How to print the result.
    #[arg(short, long, global = true, value_enum, default_value_t)]
    output: Output,
    #[command(subcommand)]
    command: KvCommand,
}

#[derive(Debug, Subcommand)]
enum KvCommand {
    /// Write a key. Prints its new version.
    #[command(after_help = "Example: lockstep kv put colour blue")]
    Put {
        /// The key.
        key: String,
        /// Its new value.
        value: String,
    },
    /// Print the value of a key. Exit code 3 if there is no such key.
    #[command(after_help = "Example: lockstep kv get colour")]
    Get {
        /// The key.
        key: String,
    },
    /// Remove a key. Exit code 3 if there is no such key.
    #[command(after_help = "Example: lockstep kv delete colour")]
    Delete {
        /// The key.
        key: String,
    },
    /// Write a key only if it is as expected. Exit code 3 if it is not.
    #[command(after_help = "Example: lockstep kv cas colour --expect-version 3 red")]
    Cas {
        /// The key.
        key: String,
        #[command(flatten)]
        expect: Expect,
        /// Its new value.
        value: String,
    },
    /// Print keys and values in the order of the keys, a tab between them.
    #[command(after_help = "Example: lockstep kv scan --prefix user/ --limit 10")]
    Scan(scan::ScanArgs),
    /// Compare, then do one thing or the other; all of it or nothing. Exit code 3 if the conditions do not hold.
    #[command(
        after_help = "Example: lockstep kv txn --if 'lock=missing' --then 'put lock me' --then 'get config' --else 'get lock'"
    )]
    Txn(txn::TxnArgs),
}

#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
struct Expect {
    /// The key has this version.
    #[arg(long, value_name = "VERSION")]
    expect_version: Option<u64>,
    /// The key has this value.
    #[arg(long, value_name = "VALUE")]
    expect_value: Option<String>,
    /// The key exists, whatever its value.
    #[arg(long)]
    expect_exists: bool,
    /// There is no such key.
    #[arg(long)]
    expect_absent: bool,
}

impl Expect {
    fn expected(self) -> Expected {
        match (self.expect_version, self.expect_value) {
            (Some(version), _) => Expected::Version(version),
            (None, Some(value)) => Expected::Value(value.into()),
            (None, None) if self.expect_exists => Expected::Exists,
            (None, None) => Expected::Version(0),
        }
    }
}

/// Runs one operation.
///
/// # Errors
/// The operation failed, the key is missing or not as expected.
pub async fn run(args: KvArgs) -> Result<(), CliError> {
    let client = args.service.client()?;
    let done = operate(&client, args.command, args.output).await;
    // The outcome is known; closing only spares the service an idle session.
    client.with_timeout(std::time::Duration::from_secs(1)).close().await;
    done
}

async fn operate(client: &Client, command: KvCommand, output: Output) -> Result<(), CliError> {
    let kv = client.kv();
    match command {
        KvCommand::Put { key, value } => {
            let version = kv.put(key.clone(), value).await?;
            print(output, version.to_string().as_bytes(), json!({"key": key, "version": version}))
        }
        KvCommand::Get { key } => match kv.get(key.clone()).await? {
            Some(found) => print(output, &found.value, describe(&key, &found)),
            None => Err(missing(&key)),
        },
        KvCommand::Delete { key } => match kv.delete(key.clone()).await? {
            true => print(output, b"deleted", json!({"key": key, "deleted": true})),
            false => Err(missing(&key)),
        },
        KvCommand::Cas { key, expect, value } => match kv.cas(key.clone(), expect.expected(), value).await? {
            CasOutcome::Written { version } => {
                print(output, version.to_string().as_bytes(), json!({"key": key, "version": version}))
            }
            CasOutcome::Mismatch { current: None } => {
                Err(CliError::Unmet(format!("key {key:?} does not exist; nothing was written")))
            }
            CasOutcome::Mismatch { current: Some(current) } => {
                let value = String::from_utf8_lossy(&current.value);
                let version = current.version;
                let words = format!("key {key:?} has version {version} and value {value:?}; nothing was written");
                Err(CliError::Unmet(words))
            }
        },
        KvCommand::Scan(args) => scan::run(&kv, args, output).await,
        KvCommand::Txn(args) => txn::run(&kv, args, output).await,
    }
}

fn missing(key: &str) -> CliError {
    CliError::Unmet(format!("key {key:?} does not exist"))
}

fn describe(key: &str, found: &Versioned) -> Value {
    let fields =
        [("key".into(), json!(key)), text_or_hex("value", &found.value), ("version".into(), json!(found.version))];
    Value::from(Map::from_iter(fields))
}

/// A field of JSON: the bytes as text, or under `NAME_hex` as digits if they are none.
fn text_or_hex(name: &str, bytes: &[u8]) -> (String, Value) {
    match std::str::from_utf8(bytes) {
        Ok(text) => (name.to_owned(), json!(text)),
        Err(_) => {
            let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
            (format!("{name}_hex"), json!(hex))
        }
    }
}
