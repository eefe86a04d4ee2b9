//! Plain unary gRPC calls, as any program in any language makes them: no session, no retry, no library of ours.

use bytes::Bytes;
use lockstep_wire::v1::key_value_client::KeyValueClient;
use lockstep_wire::v1::{GetRequest, PutRequest};
use tonic::transport::{Channel, Endpoint};

use crate::failure::Failure;
use crate::{Result, ensure};

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
