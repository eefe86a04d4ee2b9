//! The handle that applications hold.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use lockstep_session::{Doubt, Outcome, Rejection, Ticket};
use lockstep_types::ServiceId;
use lockstep_types::limits::REQUEST_BYTES_MAX;
use tokio::sync::{mpsc, oneshot};

use crate::driver::{Call, Driver, Reply};
use crate::{ClientError, Kv, endpoint};

/// How long a call waits unless said otherwise.
pub const TIMEOUT: Duration = Duration::from_secs(10);

/// Where the service is and how long calls may take.
#[derive(Clone, Debug)]
pub struct ClientOptions {
    /// `host:port` of replicas, or of the service. A name with several addresses stands for all of them.
    pub endpoints: Vec<String>,
    /// The service that is meant. None: the one that answers first; then it stays that one.
    pub service_id: Option<ServiceId>,
    /// How long a call waits for its outcome, retries included.
    pub timeout: Duration,
}

impl ClientOptions {
    /// Options with [`TIMEOUT`] and whichever service answers.
    pub fn new(endpoints: impl IntoIterator<Item = impl Into<String>>) -> Self {
        ClientOptions { endpoints: endpoints.into_iter().map(Into::into).collect(), service_id: None, timeout: TIMEOUT }
    }

    /// These options with another [`timeout`](Self::timeout).
    #[must_use]
    pub fn with_timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }
}

/// A client of one service. Cheap to clone; clones share a session and connections. Once all are gone, the session closes in
/// the background.
#[derive(Clone, Debug)]
pub struct Client {
    calls: mpsc::UnboundedSender<Call>,
    tickets: Arc<AtomicU64>,
    timeout: Duration,
}

/// What became of a request whose outcome was unknown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Resolution {
    /// It was executed; the machine's reply.
    Executed(Bytes),
    /// It was not executed and never will be.
    Cancelled,
}

impl Client {
    /// A client of the service behind these endpoints. Connects in the background, and again whenever it must: a service
    /// that is not there yet is no error until a call's time is up. Must be called within a Tokio runtime.
    ///
    /// # Errors
    /// No endpoint, or one that is not `host:port`.
    pub fn connect(options: ClientOptions) -> Result<Self, ClientError> {
        if options.endpoints.is_empty() {
            return Err(ClientError::NoEndpoint);
        }
        for endpoint in &options.endpoints {
            endpoint::endpoint(endpoint)
                .map_err(|reason| ClientError::Endpoint { endpoint: endpoint.clone(), reason })?;
        }
        let (calls, receiver) = mpsc::unbounded_channel();
        tokio::spawn(Driver::new(&options, receiver).run());
        Ok(Client { calls, tickets: Arc::new(AtomicU64::new(1)), timeout: options.timeout })
    }

    /// The same client with another limit on calls.
    #[must_use]
    pub fn with_timeout(&self, timeout: Duration) -> Self {
        Client { timeout, ..self.clone() }
    }

    /// The calls of the key-value machine.
    pub fn kv(&self) -> Kv {
        Kv::new(self.clone())
    }

    /// Executes a request exactly once and gives the machine's reply. A dropped call may still be executed.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn execute(&self, body: Bytes) -> Result<Bytes, ClientError> {
        fits(&body)?;
        self.call(self.ticket(), |ticket, deadline, reply| Call::Execute { ticket, body, deadline, reply }).await
    }

    /// Reads, linearizably, and gives the machine's reply.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn read(&self, body: Bytes) -> Result<Bytes, ClientError> {
        fits(&body)?;
        self.call(self.ticket(), |ticket, deadline, reply| Call::Read { ticket, body, deadline, reply }).await
    }

    /// Tells what became of a request that ended as [`ClientError::Unknown`]. The answer is kept and may be asked for again.
    ///
    /// # Errors
    /// [`ClientError::Unknown`] again if nobody answers in time, [`ClientError::Lost`] if nobody knows.
    pub async fn resolve(&self, ticket: Ticket) -> Result<Resolution, ClientError> {
        match self.call(ticket, |ticket, deadline, reply| Call::Resolve { ticket, deadline, reply }).await {
            Ok(reply) => Ok(Resolution::Executed(reply)),
            Err(ClientError::Rejected { .. }) => Ok(Resolution::Cancelled),
            Err(error) => Err(error),
        }
    }

    /// Takes no more calls from any clone, waits for those under way, at most for the timeout, and ends the session.
    pub async fn close(self) {
        let (reply, closed) = oneshot::channel();
        let deadline = Instant::now() + self.timeout;
        if self.calls.send(Call::Close { deadline, reply }).is_ok() {
            let _ = closed.await;
        }
    }

    fn ticket(&self) -> Ticket {
        Ticket(self.tickets.fetch_add(1, Ordering::Relaxed))
    }

    async fn call(
        &self,
        ticket: Ticket,
        call: impl FnOnce(Ticket, Instant, oneshot::Sender<Reply>) -> Call,
    ) -> Result<Bytes, ClientError> {
        let started = Instant::now();
        let (sender, reply) = oneshot::channel();
        if self.calls.send(call(ticket, started + self.timeout, sender)).is_err() {
            return Err(ClientError::Closed);
        }
        match reply.await {
            Ok(Reply { outcome, tried }) => outcome_of(ticket, outcome, self.timeout, tried),
            Err(_) => Err(ClientError::Lost { ticket, reason: "the client's driver stopped".to_owned() }),
        }
    }
}

fn fits(body: &Bytes) -> Result<(), ClientError> {
    match body.len() {
        0..=REQUEST_BYTES_MAX => Ok(()),
        bytes => Err(ClientError::Rejected {
            reason: format!("the request has {bytes} bytes; at most {REQUEST_BYTES_MAX} are taken"),
        }),
    }
}

fn outcome_of(ticket: Ticket, outcome: Outcome, waited: Duration, tried: String) -> Result<Bytes, ClientError> {
    let reason = match outcome {
        Outcome::Committed { reply } => return Ok(reply),
        Outcome::Rejected { reason: Rejection::NeverProposed } => {
            return Err(ClientError::NeverSent { waited, tried });
        }
        Outcome::Rejected { reason: Rejection::Unanswered } => return Err(ClientError::Unanswered { waited, tried }),
        Outcome::Rejected { reason: Rejection::Closed } => return Err(ClientError::Closed),
        Outcome::Rejected { reason: Rejection::Cancelled } => {
            return Err(ClientError::Rejected { reason: "its sequence was cancelled".to_owned() });
        }
        Outcome::Rejected { reason: Rejection::Invalid { reason } } => return Err(ClientError::Rejected { reason }),
        Outcome::Unknown { reason } => reason,
    };
    let reason = match reason {
        Doubt::Unconfirmed => return Err(ClientError::Unknown { ticket, waited, tried }),
        Doubt::Evicted => "the service ended the session with the request in flight",
        Doubt::Forgotten => "the client does not remember this request",
        Doubt::Closed => "the client was closed with the request in flight",
    };
    Err(ClientError::Lost { ticket, reason: reason.to_owned() })
}
