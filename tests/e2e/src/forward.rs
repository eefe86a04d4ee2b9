//! `kubectl port-forward`, for as long as the value lives.

use std::process::Stdio;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio::time::timeout;

use crate::cluster::Cluster;
use crate::{Result, fail};

const LIMIT: Duration = Duration::from_secs(10);

/// A port of this machine that leads to one of a pod.
#[derive(Debug)]
pub struct Forward {
    /// `host:port`.
    pub address: String,
    // Ends with the value.
    _child: Child,
}

impl Forward {
    /// Opens one to `target`, such as `pod/kv-0` or `service/kv`.
    pub async fn open(cluster: &Cluster, namespace: &str, target: &str, port: u16) -> Result<Self> {
        let mut child = Command::new(cluster.kubectl_path())
            .args(["port-forward", "--namespace", namespace, "--address", "127.0.0.1", target, &format!(":{port}")])
            .kill_on_drop(true)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        let mut lines = BufReader::new(child.stdout.take().expect("piped above")).lines();
        let first = match timeout(LIMIT, lines.next_line()).await {
            Ok(line) => line?,
            Err(_) => fail!("port-forward to {target} says nothing within {LIMIT:?}"),
        };
        let address = first.as_deref().and_then(|line| Some(line.strip_prefix("Forwarding from ")?.split_once(' ')?.0));
        let Some(address) = address else {
            let mut error = String::new();
            let reading = child.stderr.take().expect("piped above");
            let _ = timeout(LIMIT, reading.take(1 << 16).read_to_string(&mut error)).await;
            fail!("port-forward to {target} does not start: {} {}", first.unwrap_or_default(), error.trim())
        };
        let address = address.to_owned();
        // It writes a line for each connection, and would stop at a full pipe.
        tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
        Ok(Forward { address, _child: child })
    }
}
