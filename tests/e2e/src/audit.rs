//! The API server's audit log: who changed what. Reads are not in it.

use std::io::SeekFrom;
use std::path::Path;

use serde_json::Value;
use tokio::fs::File;
use tokio::io::{AsyncReadExt, AsyncSeekExt};

use crate::Result;
use crate::cluster::text;

/// A place in the log.
#[derive(Clone, Copy, Debug)]
pub struct Mark(u64);

/// One change that was asked for.
#[derive(Clone, Debug)]
pub struct Change {
    /// By whom.
    pub user: String,
    /// What: `create`, `delete`, `patch` …
    pub verb: String,
    /// In which namespace; empty for what is in none.
    pub namespace: String,
    /// Of which kind, in the plural, such as `pods`, or a part of it, such as `pods/eviction`.
    pub resource: String,
    line: String,
}

impl std::fmt::Display for Change {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.line)
    }
}

/// Here and now.
pub async fn mark(log: &Path) -> Result<Mark> {
    Ok(Mark(File::open(log).await?.metadata().await?.len()))
}

/// All changes since then.
pub async fn since(log: &Path, mark: Mark) -> Result<Vec<Change>> {
    let mut file = File::open(log).await?;
    file.seek(SeekFrom::Start(mark.0)).await?;
    let mut lines = String::new();
    file.read_to_string(&mut lines).await?;
    // The last line may be half written.
    let whole = lines.rfind('\n').map_or("", |end| &lines[..end]);
    whole
        .lines()
        .map(|line| {
            let entry: Value = serde_json::from_str(line)?;
            let user = text(&entry, "/user/username");
            let (verb, mut resource) = (text(&entry, "/verb"), text(&entry, "/objectRef/resource"));
            let part = text(&entry, "/objectRef/subresource");
            if !part.is_empty() {
                resource = format!("{resource}/{part}");
            }
            let (namespace, name) = (text(&entry, "/objectRef/namespace"), text(&entry, "/objectRef/name"));
            let line = format!("{user}: {verb} {resource} {namespace}/{name}");
            Ok(Change { user, verb, namespace, resource, line })
        })
        .collect()
}
