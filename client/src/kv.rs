//! The built-in key-value machine through a [`Client`].

use bytes::Bytes;
use lockstep_types::kv::{Expected, KvReply, KvRequest, Versioned};

use crate::{Client, ClientError};

/// Calls to a key-value service. Writes are exactly once.
#[derive(Clone, Debug)]
pub struct Kv(Client);

/// What a compare-and-set did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CasOutcome {
    /// It found what was expected and wrote.
    Written {
        /// The key's new version, from 1.
        version: u64,
    },
    /// It found something else and wrote nothing.
    Mismatch {
        /// What it found; none: no such key.
        current: Option<Versioned>,
    },
}

impl Kv {
    pub(crate) fn new(client: Client) -> Self {
        Kv(client)
    }

    /// Writes a key and gives its new version, from 1.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn put(&self, key: impl Into<Bytes>, value: impl Into<Bytes>) -> Result<u64, ClientError> {
        match self.write(KvRequest::Put { key: key.into(), value: value.into() }).await? {
            KvReply::Written { version } => Ok(version),
            reply => Err(unexpected(&reply)),
        }
    }

    /// Reads a key, linearizably. None: no such key.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn get(&self, key: impl Into<Bytes>) -> Result<Option<Versioned>, ClientError> {
        let reply = self.0.read(KvRequest::Get { key: key.into() }.encode()).await?;
        match decode(reply)? {
            KvReply::Found(found) => Ok(Some(found)),
            KvReply::Missing => Ok(None),
            reply => Err(unexpected(&reply)),
        }
    }

    /// Removes a key. False: no such key.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn delete(&self, key: impl Into<Bytes>) -> Result<bool, ClientError> {
        match self.write(KvRequest::Delete { key: key.into() }).await? {
            KvReply::Deleted => Ok(true),
            KvReply::Missing => Ok(false),
            reply => Err(unexpected(&reply)),
        }
    }

    /// Writes a key if it is as expected. `Expected::Version(0)`: if it does not exist.
    ///
    /// # Errors
    /// See [`ClientError`]. A mismatch is no error.
    pub async fn cas(
        &self,
        key: impl Into<Bytes>,
        expected: Expected,
        value: impl Into<Bytes>,
    ) -> Result<CasOutcome, ClientError> {
        let request = KvRequest::CompareAndSet { key: key.into(), expected, value: value.into() };
        match self.write(request).await? {
            KvReply::Written { version } => Ok(CasOutcome::Written { version }),
            KvReply::Mismatch { current } => Ok(CasOutcome::Mismatch { current }),
            reply => Err(unexpected(&reply)),
        }
    }

    async fn write(&self, request: KvRequest) -> Result<KvReply, ClientError> {
        decode(self.0.execute(request.encode()).await?)
    }
}

fn decode(reply: Bytes) -> Result<KvReply, ClientError> {
    match KvReply::decode(reply) {
        Ok(KvReply::Invalid) => Err(ClientError::Rejected {
            reason: "the state machine does not understand it; a key has 1 to 4096 bytes".to_owned(),
        }),
        Ok(KvReply::Omitted) => Err(ClientError::Rejected {
            reason: "it changed nothing, and its reply was left out among many large ones; try again".to_owned(),
        }),
        Ok(reply) => Ok(reply),
        Err(error) => Err(ClientError::Reply { reason: error.to_string() }),
    }
}

fn unexpected(reply: &KvReply) -> ClientError {
    ClientError::Reply { reason: format!("unexpected reply {reply:?}") }
}
