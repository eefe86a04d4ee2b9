//! Plain unary gRPC calls, as any program in any language makes them: no session, no retry, no library of ours. From here,
//! and from a pod that runs this very program.

use std::process::ExitCode;

use bytes::Bytes;
use lockstep_wire::v1::key_value_client::KeyValueClient;
use lockstep_wire::v1::{GetRequest, PutRequest};
use tonic::transport::{Channel, Endpoint};

use crate::failure::Failure;
use crate::{Result, ensure};

/// `e2e --unary HOST:PORT COUNT` is what the pod runs.
pub const FLAG: &str = "--unary";

/// Puts one key `count` times and reads it, each call over a connection of its own, so that a Service has to choose a
/// replica each time.
pub async fn puts(address: &str, count: &str) -> ExitCode {
    let work = async {
        let count: u64 = count.parse()?;
        for expected in 1..=count {
            let version = Unary::connect(address).await?.put("pod", &format!("value {expected}")).await?;
            ensure!(version == expected, "put {expected} gives version {version}");
            let value = Unary::connect(address).await?.get("pod").await?;
            ensure!(value == format!("value {expected}"), "get after put {expected} gives {value:?}");
        }
        Ok(())
    };
    match work.await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

/// Calls over one connection.
#[derive(Debug)]
pub struct Unary(KeyValueClient<Channel>);

impl Unary {
    /// Connects to `host:port`.
    pub async fn connect(address: &str) -> Result<Self> {
        let channel = Endpoint::from_shared(format!("http://{address}"))?.connect().await?;
        Ok(Unary(KeyValueClient::new(channel)))
    }

    /// Puts, and gives the key's new version.
    pub async fn put(&mut self, key: &str, value: &str) -> Result<u64> {
        let request = PutRequest { key: bytes(key), value: bytes(value) };
        let answer = self.0.put(request).await.map_err(|status| Failure(format!("put {key}: {status}")))?;
        Ok(answer.into_inner().version)
    }

    /// Gets a value, which must be there.
    pub async fn get(&mut self, key: &str) -> Result<String> {
        let request = GetRequest { key: bytes(key) };
        let answer = self.0.get(request).await.map_err(|status| Failure(format!("get {key}: {status}")))?.into_inner();
        ensure!(answer.found, "get {key}: there is no such key");
        Ok(String::from_utf8_lossy(&answer.value).into_owned())
    }
}

fn bytes(text: &str) -> Bytes {
    Bytes::copy_from_slice(text.as_bytes())
}
