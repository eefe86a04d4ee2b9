//! `lockstep kv scan`: keys in their order, page after page.

use std::io::Write;

use bytes::Bytes;
use clap::Args;
use lockstep_client::{Kv, Page, SCAN_ENTRIES_MAX, Scan};
use serde_json::{Map, Value, json};

use super::text_or_hex;
use crate::CliError;
use crate::options::Output;

/// Arguments of `kv scan`.
#[derive(Debug, Args)]
pub struct ScanArgs {
    /// Only keys that begin with this.
    #[arg(long, value_name = "PREFIX", default_value = "")]
    prefix: String,
    /// The first key, if it exists.
    #[arg(long, value_name = "KEY", default_value = "")]
    from: String,
    /// The first key that is not wanted any more.
    #[arg(long, value_name = "KEY", default_value = "")]
    to: String,
    /// So many keys at most. Without it: all.
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u64).range(1..))]
    limit: Option<u64>,
    /// Print no values.
    #[arg(long)]
    keys_only: bool,
}

impl ScanArgs {
    fn range(&self) -> Scan {
        let bytes = |text: &str| Bytes::copy_from_slice(text.as_bytes());
        Scan { start: bytes(&self.from), end: bytes(&self.to), limit: SCAN_ENTRIES_MAX, keys_only: self.keys_only }
            .within(bytes(&self.prefix))
    }
}

/// Prints the keys of the range. Each page is read linearizably, at a moment of its own.
///
/// # Errors
/// The service does not answer, or the output cannot be written.
pub async fn run(kv: &Kv, args: ScanArgs, output: Output) -> Result<(), CliError> {
    let mut range = args.range();
    let mut left = args.limit.unwrap_or(u64::MAX);
    let mut found = Vec::new();
    let next = loop {
        range.limit = u32::try_from(left).map_or(SCAN_ENTRIES_MAX, |left| left.min(SCAN_ENTRIES_MAX));
        let page = kv.scan(range.clone()).await?;
        left -= page.entries.len() as u64;
        match output {
            Output::Text => std::io::stdout().lock().write_all(&lines(&page, args.keys_only))?,
            Output::Json => found.extend(values(&page, args.keys_only)),
        }
        match page.next {
            Some(start) if left > 0 => range.start = start,
            next => break next,
        }
    };
    match (output, next) {
        (Output::Text, None) => {}
        (Output::Text, Some(next)) => {
            let next = String::from_utf8_lossy(&next);
            eprintln!("lockstep: more keys follow; go on with --from {next:?}");
        }
        (Output::Json, next) => {
            let mut all = Map::from_iter([("entries".to_owned(), Value::from(found))]);
            all.extend(next.map(|next| text_or_hex("next", &next)));
            writeln!(std::io::stdout().lock(), "{}", Value::from(all))?;
        }
    }
    Ok(())
}

/// One line for each key: the key, a tab and the value, as they are.
fn lines(page: &Page, keys_only: bool) -> Vec<u8> {
    let mut lines = Vec::new();
    for entry in &page.entries {
        lines.extend_from_slice(&entry.key);
        if !keys_only {
            lines.push(b'\t');
            lines.extend_from_slice(&entry.found.value);
        }
        lines.push(b'\n');
    }
    lines
}

fn values(page: &Page, keys_only: bool) -> impl Iterator<Item = Value> {
    page.entries.iter().map(move |entry| {
        let mut value =
            Map::from_iter([text_or_hex("key", &entry.key), ("version".into(), json!(entry.found.version))]);
        if !keys_only {
            value.extend([text_or_hex("value", &entry.found.value)]);
        }
        Value::from(value)
    })
}

#[cfg(test)]
mod tests {
    use lockstep_client::{Entry, Versioned};

    use super::*;

    fn page() -> Page {
        let entry = |key: &'static [u8], value: &'static [u8]| Entry {
            key: Bytes::from_static(key),
            found: Versioned { value: Bytes::from_static(value), version: 3 },
        };
        Page { entries: vec![entry(b"a", b"1"), entry(b"b", &[255])], next: None }
    }

    #[test]
    fn scan_as_text_is_a_line_for_each_key() {
        assert_eq!(lines(&page(), false), b"a\t1\nb\t\xff\n");
        assert_eq!(lines(&page(), true), b"a\nb\n");
    }

    #[test]
    fn scan_as_json_shows_what_is_no_text_as_hex() {
        let values: Vec<Value> = values(&page(), false).collect();
        assert_eq!(
            values,
            [json!({"key": "a", "version": 3, "value": "1"}), json!({"key": "b", "version": 3, "value_hex": "ff"})]
        );
    }

    #[test]
    fn scan_arguments_make_one_range() {
        let args = ScanArgs {
            prefix: "user/".to_owned(),
            from: "user/b".to_owned(),
            to: String::new(),
            limit: None,
            keys_only: true,
        };
        let range = Scan { start: "user/b".into(), end: "user0".into(), limit: SCAN_ENTRIES_MAX, keys_only: true };
        assert_eq!(args.range(), range);
    }
}
