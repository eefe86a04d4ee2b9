//! The built-in key-value machine through a [`Client`].

use bytes::Bytes;
use lockstep_types::kv::{Expected, KvReply, KvRequest, Page, Scan, Transaction, TransactionReply, Versioned};

use crate::{Client, ClientError};

/// Calls to a key-value service. Writes are exactly once. What no service would take is rejected without being sent.
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
        match self.read(&KvRequest::Get { key: key.into() }).await? {
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

    /// Reads keys in their order, linearizably: a page of them, and where to go on.
    ///
    /// ```no_run
    /// # async fn example(kv: lockstep_client::Kv) -> Result<(), lockstep_client::ClientError> {
    /// use lockstep_client::Scan;
    ///
    /// let mut scan = Some(Scan::prefix("user/"));
    /// while let Some(range) = scan {
    ///     let page = kv.scan(range.clone()).await?;
    ///     for entry in &page.entries {
    ///         println!("{:?} {:?}", entry.key, entry.found.value);
    ///     }
    ///     scan = page.next.map(|start| Scan { start, ..range });
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn scan(&self, scan: Scan) -> Result<Page, ClientError> {
        match self.read(&KvRequest::Scan(scan)).await? {
            KvReply::Scanned(page) => Ok(page),
            reply => Err(unexpected(&reply)),
        }
    }

    /// Compares, then does the one branch or the other, as one step. If both only read, it is a linearizable read, else it is
    /// executed exactly once.
    ///
    /// ```no_run
    /// # async fn example(kv: lockstep_client::Kv) -> Result<(), lockstep_client::ClientError> {
    /// use lockstep_client::{Compare, KvOperation, Transaction};
    ///
    /// let done = kv.transaction(Transaction {
    ///     compares: vec![Compare::missing("lock")],
    ///     then: vec![KvOperation::put("lock", "me"), KvOperation::put("since", "now")],
    ///     otherwise: vec![KvOperation::get("lock")],
    /// });
    /// if !done.await?.held {
    ///     println!("somebody else has it");
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// See [`ClientError`]. Compares that do not hold are no error.
    pub async fn transaction(&self, transaction: Transaction) -> Result<TransactionReply, ClientError> {
        let request = KvRequest::Transaction(transaction);
        let reply = if request.is_read() { self.read(&request).await? } else { self.write(request).await? };
        match reply {
            KvReply::Transaction(done) => Ok(done),
            reply => Err(unexpected(&reply)),
        }
    }

    async fn read(&self, request: &KvRequest) -> Result<KvReply, ClientError> {
        decode(self.0.read(checked(request)?).await?)
    }

    async fn write(&self, request: KvRequest) -> Result<KvReply, ClientError> {
        decode(self.0.execute(checked(&request)?).await?)
    }
}

fn checked(request: &KvRequest) -> Result<Bytes, ClientError> {
    request.checked().map_err(|error| ClientError::Rejected { reason: error.to_string() })
}

fn decode(reply: Bytes) -> Result<KvReply, ClientError> {
    match KvReply::decode(reply) {
        Ok(KvReply::Invalid) => Err(ClientError::Rejected {
            reason: "the state machine does not understand it; it may run an older release".to_owned(),
        }),
        Ok(KvReply::Omitted) => Err(ClientError::Rejected {
            reason: "it changed nothing, and its reply was left out among many large ones; try again".to_owned(),
        }),
        Ok(KvReply::TooLarge) => Err(ClientError::Rejected {
            reason: "it changed nothing: the values that it reads are larger than a reply; read fewer keys at a time"
                .to_owned(),
        }),
        Ok(reply) => Ok(reply),
        Err(error) => Err(ClientError::Reply { reason: error.to_string() }),
    }
}

fn unexpected(reply: &KvReply) -> ClientError {
    ClientError::Reply { reason: format!("unexpected reply {reply:?}") }
}
