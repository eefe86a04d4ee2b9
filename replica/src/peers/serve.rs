//! Streams that other replicas open: a Hello, checked, then their messages.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures::Stream;
use lockstep_types::Slot;
use lockstep_wire::v1;
use prost::Message as _;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use crate::core::CoreHandle;
use crate::peers::{Peers, Who, convert, dial_back};
use crate::process::Process;

/// How long a caller may take to say who it is.
const HELLO: Duration = Duration::from_secs(5);

/// The peer port.
pub(crate) struct PeerService {
    pub process: Arc<Process>,
}

#[tonic::async_trait]
impl v1::peer_server::Peer for PeerService {
    type ExchangeStream = Pin<Box<dyn Stream<Item = Result<v1::PeerHello, Status>> + Send>>;

    async fn exchange(
        &self,
        request: Request<Streaming<v1::PeerFrame>>,
    ) -> Result<Response<Self::ExchangeStream>, Status> {
        let caller = request.remote_addr().map_or_else(|| "unknown".to_owned(), |address| address.to_string());
        let mut frames = request.into_inner();
        let Some(running) = self.process.running() else {
            return Err(Status::unavailable("this replica has no genesis yet, or is reading its log; try again"));
        };
        let first = timeout(HELLO, frames.message()).await;
        let Ok(Ok(Some(v1::PeerFrame { hello: Some(hello), messages }))) = first else {
            return Err(Status::invalid_argument("the first frame must be a Hello, within five seconds"));
        };
        let from = match running.peers.admit(&hello, &running.core).await {
            Ok(Who::Member { slot, claim, .. }) => Some((slot, claim.boot)),
            // It dialled itself and finds out from the answer.
            Ok(Who::Myself) => None,
            Err(error) => {
                tracing::warn!("refused a peer's stream from {caller}: {error}");
                self.process.metrics.peer_refused.inc();
                return Err(error.into());
            }
        };
        let (answers, stream) = mpsc::channel(1);
        answers.try_send(Ok(running.peers.hello())).expect("a new channel has room");
        if let Some((from, boot)) = from {
            tracing::debug!("{from} opened a stream from {caller}");
            dial_back(&self.process, &running.peers, from, &hello.peer_address);
            let reading = Reading { from, boot, core: running.core.clone(), peers: Arc::clone(&running.peers) };
            let process = Arc::clone(&self.process);
            tokio::spawn(async move {
                let ended = tokio::select! {
                    ended = reading.read(messages, &mut frames, &answers) => ended,
                    () = process.stopped() => Status::unavailable("the replica is shutting down"),
                };
                // Its other end may be gone already.
                let _ = answers.send(Err(ended)).await;
            });
        }
        Ok(Response::new(Box::pin(ReceiverStream::new(stream))))
    }
}

struct Reading {
    from: Slot,
    boot: u64,
    core: CoreHandle,
    peers: Arc<Peers>,
}

impl Reading {
    /// Hands frames to the core thread until the stream ends; gives what the caller is told.
    async fn read(
        &self,
        first: Vec<v1::PeerMessage>,
        frames: &mut Streaming<v1::PeerFrame>,
        answers: &mpsc::Sender<Result<v1::PeerHello, Status>>,
    ) -> Status {
        let mut messages = first;
        loop {
            if let Err(status) = self.take(messages).await {
                return status;
            }
            let frame = tokio::select! {
                frame = frames.message() => frame,
                () = answers.closed() => return Status::cancelled("the stream was closed"),
            };
            messages = match frame {
                Ok(Some(frame)) => frame.messages,
                Ok(None) => return Status::ok("the stream ended"),
                Err(status) => {
                    tracing::debug!("the stream of {} ended: {status}", self.from);
                    return status;
                }
            };
        }
    }

    async fn take(&self, messages: Vec<v1::PeerMessage>) -> Result<(), Status> {
        if messages.is_empty() {
            return Ok(());
        }
        if self.peers.is_superseded(self.from, self.boot) {
            return Err(Status::aborted("a later start of the same replica has come"));
        }
        let bytes = messages.iter().map(v1::PeerMessage::encoded_len).sum();
        let decoded = messages.into_iter().map(convert::decode).collect::<Result<Vec<_>, _>>().map_err(|error| {
            let replica = self.peers.locate(self.from).map(|voter| voter.replica.to_string()).unwrap_or_default();
            tracing::warn!("closed the stream of {} (replica {replica}): a message makes no sense: {error}", self.from);
            Status::invalid_argument(format!("a message makes no sense: {error}; the stream is closed"))
        })?;
        let stopped = |_| Status::unavailable("the replica is shutting down");
        self.core.peers(self.from, decoded, bytes).await.map_err(stopped)
    }
}
