//! `lockstep kv txn`: compares and operations on the command line, and what came of them.

use std::io::Write;

use bytes::Bytes;
use clap::Args;
use lockstep_client::{Compare, Kv, KvOperation, OperationReply, Transaction, TransactionReply};
use serde_json::{Map, Value, json};

use super::text_or_hex;
use crate::CliError;
use crate::options::Output;

/// Arguments of `kv txn`.
#[derive(Debug, Args)]
#[group(required = true, multiple = true)]
pub struct TxnArgs {
    /// What must hold: KEY=version:N, KEY=value:TEXT, KEY=exists or KEY=missing. May be given several times; all must hold.
    #[arg(long = "if", value_name = "CONDITION", value_parser = condition)]
    compares: Vec<Compare>,
    /// What to do if it holds: 'put KEY VALUE', 'get KEY' or 'delete KEY', quoted as in a shell. In the order given.
    #[arg(long, value_name = "OPERATION", value_parser = operation)]
    then: Vec<KvOperation>,
    /// What to do if it does not hold.
    #[arg(long = "else", value_name = "OPERATION", value_parser = operation)]
    otherwise: Vec<KvOperation>,
}

/// Executes the transaction and prints what each operation did.
///
/// # Errors
/// The service does not answer, the output cannot be written, or the compares do not hold.
pub async fn run(kv: &Kv, args: TxnArgs, output: Output) -> Result<(), CliError> {
    let TxnArgs { compares, then, otherwise } = args;
    let done = kv.transaction(Transaction { compares, then: then.clone(), otherwise: otherwise.clone() }).await?;
    let operations = if done.held { &then } else { &otherwise };
    let mut out = std::io::stdout().lock();
    match output {
        Output::Text => out.write_all(&lines(operations, &done.replies))?,
        Output::Json => writeln!(out, "{}", value(operations, &done))?,
    }
    out.flush()?;
    match done.held {
        true => Ok(()),
        false if otherwise.is_empty() => {
            Err(CliError::Unmet("the conditions do not hold; nothing was done".to_owned()))
        }
        false => Err(CliError::Unmet("the conditions do not hold; the operations of --else were done".to_owned())),
    }
}

/// Reads `KEY=…`. The first `=` after which something is said of the key ends it.
fn condition(text: &str) -> Result<Compare, String> {
    for (place, _) in text.match_indices('=').filter(|(place, _)| *place > 0) {
        let (key, said) = (text[..place].to_owned(), &text[place + 1..]);
        if let Some(version) = said.strip_prefix("version:") {
            let version =
                version.parse().map_err(|_| format!("{version:?} is no version; versions are whole numbers"))?;
            return Ok(Compare::version(key, version));
        }
        if let Some(value) = said.strip_prefix("value:") {
            return Ok(Compare::value(key, value.to_owned()));
        }
        match said {
            "exists" => return Ok(Compare::exists(key)),
            "missing" => return Ok(Compare::missing(key)),
            _ => {}
        }
    }
    Err(format!("{text:?} is no condition; write KEY=version:3, KEY=value:x, KEY=exists or KEY=missing"))
}

fn operation(text: &str) -> Result<KvOperation, String> {
    let words = shlex::split(text).ok_or_else(|| format!("the quotes in {text:?} do not match"))?;
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match words[..] {
        ["put", key, value] => Ok(KvOperation::put(key.to_owned(), value.to_owned())),
        ["get", key] => Ok(KvOperation::get(key.to_owned())),
        ["delete", key] => Ok(KvOperation::delete(key.to_owned())),
        _ => Err(format!(
            "{text:?} is no operation; write 'put KEY VALUE', 'get KEY' or 'delete KEY', with quotes around what holds spaces"
        )),
    }
}

fn name(operation: &KvOperation) -> &'static str {
    match operation {
        KvOperation::Put { .. } => "put",
        KvOperation::Get { .. } => "get",
        KvOperation::Delete { .. } => "delete",
    }
}

/// One line for each operation: what it was, and what came of it.
fn lines(operations: &[KvOperation], replies: &[OperationReply]) -> Vec<u8> {
    let mut lines = Vec::new();
    for (operation, reply) in operations.iter().zip(replies) {
        lines.extend_from_slice(name(operation).as_bytes());
        lines.push(b' ');
        lines.extend_from_slice(operation.key());
        lines.extend_from_slice(b": ");
        match reply {
            OperationReply::Put { version } => lines.extend_from_slice(format!("version {version}").as_bytes()),
            OperationReply::Get { found: Some(found) } => lines.extend_from_slice(&found.value),
            OperationReply::Delete { deleted: true } => lines.extend_from_slice(b"deleted"),
            OperationReply::Get { found: None } | OperationReply::Delete { deleted: false } => {
                lines.extend_from_slice(b"no such key");
            }
        }
        lines.push(b'\n');
    }
    lines
}

fn value(operations: &[KvOperation], done: &TransactionReply) -> Value {
    let replies = operations.iter().zip(&done.replies).map(|(operation, reply)| {
        let key: &Bytes = operation.key();
        let mut value = Map::from_iter([("operation".into(), json!(name(operation))), text_or_hex("key", key)]);
        match reply {
            OperationReply::Put { version } => value.extend([("version".into(), json!(version))]),
            OperationReply::Get { found: Some(found) } => {
                value.extend([text_or_hex("value", &found.value), ("version".into(), json!(found.version))]);
            }
            OperationReply::Get { found: None } => value.extend([("version".into(), json!(0))]),
            OperationReply::Delete { deleted } => value.extend([("deleted".into(), json!(deleted))]),
        }
        Value::from(value)
    });
    json!({"held": done.held, "replies": replies.collect::<Vec<_>>()})
}

#[cfg(test)]
mod tests {
    use lockstep_client::Versioned;

    use super::*;

    #[test]
    fn condition_each_kind_is_read() {
        assert_eq!(condition("k=version:3"), Ok(Compare::version("k", 3)));
        assert_eq!(condition("k=value:a=b c"), Ok(Compare::value("k", "a=b c")));
        assert_eq!(condition("k=value:"), Ok(Compare::value("k", "")));
        assert_eq!(condition("k=exists"), Ok(Compare::exists("k")));
        assert_eq!(condition("a=b=missing"), Ok(Compare::missing("a=b")));
    }

    #[test]
    fn condition_malformed_is_refused_in_words() {
        for text in ["", "k", "k=", "=missing", "k=missin", "k=version"] {
            let words =
                format!("{text:?} is no condition; write KEY=version:3, KEY=value:x, KEY=exists or KEY=missing");
            assert_eq!(condition(text), Err(words));
        }
        assert_eq!(condition("k=version:x"), Err("\"x\" is no version; versions are whole numbers".to_owned()));
    }

    #[test]
    fn operation_each_kind_is_read() {
        assert_eq!(operation("put k v"), Ok(KvOperation::put("k", "v")));
        assert_eq!(operation(r#"put "my key" 'two words'"#), Ok(KvOperation::put("my key", "two words")));
        assert_eq!(operation("put k ''"), Ok(KvOperation::put("k", "")));
        assert_eq!(operation("  get k "), Ok(KvOperation::get("k")));
        assert_eq!(operation("delete k"), Ok(KvOperation::delete("k")));
    }

    #[test]
    fn operation_malformed_is_refused_in_words() {
        for text in ["", "get", "get a b", "put k", "put k two words", "set k v"] {
            assert!(
                operation(text).is_err_and(|words| words.contains("is no operation; write 'put KEY VALUE'")),
                "{text}"
            );
        }
        assert_eq!(operation("get 'k"), Err("the quotes in \"get 'k\" do not match".to_owned()));
    }

    #[test]
    fn transaction_done_prints_each_operation() {
        let operations = ["put a 1", "get a", "get b", "delete a", "delete b"].map(|text| operation(text).unwrap());
        let replies = vec![
            OperationReply::Put { version: 4 },
            OperationReply::Get { found: Some(Versioned { value: "1".into(), version: 4 }) },
            OperationReply::Get { found: None },
            OperationReply::Delete { deleted: true },
            OperationReply::Delete { deleted: false },
        ];
        assert_eq!(
            String::from_utf8(lines(&operations, &replies)).unwrap(),
            "put a: version 4\nget a: 1\nget b: no such key\ndelete a: deleted\ndelete b: no such key\n"
        );
        assert_eq!(
            value(&operations, &TransactionReply { held: true, replies }),
            json!({"held": true, "replies": [
                {"operation": "put", "key": "a", "version": 4},
                {"operation": "get", "key": "a", "value": "1", "version": 4},
                {"operation": "get", "key": "b", "version": 0},
                {"operation": "delete", "key": "a", "deleted": true},
                {"operation": "delete", "key": "b", "deleted": false},
            ]})
        );
    }
}
