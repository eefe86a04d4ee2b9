//! A client's stream: frames of requests in, frames of answers out, in any order.
//!
//! A request holds a place from when it is read until its answer is taken by the connection. Without a free place nothing
//! more is read, so a client that sends without end, or does not read its answers, waits and costs little.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;

use futures::Stream;
use lockstep_engine::Answer;
use lockstep_wire::{convert, limits, v1};
use prometheus_client::metrics::gauge::Gauge;
use prost::Message as _;
use tokio::sync::{Semaphore, mpsc, oneshot};
use tonic::{Status, Streaming};

use crate::clients::{self, Prepared};
use crate::core::{ClientRequest, ReplyTo, Sink};
use crate::process::{Process, Stage};

/// Answers of one stream.
pub(crate) type Frames = Pin<Box<dyn Stream<Item = Result<v1::ServerFrame, Status>> + Send>>;

/// Starts to read requests; gives the answers.
pub(crate) fn serve(process: Arc<Process>, number: u64, requests: Streaming<v1::ClientFrame>) -> Frames {
    let (answers, engine) = mpsc::unbounded_channel();
    let (refusals, refused) = mpsc::unbounded_channel();
    let (end, ended) = oneshot::channel();
    let places = Arc::new(Semaphore::new(process.args.max_stream_requests));
    let reader = Reader {
        process: Arc::clone(&process),
        sink: Arc::new(Sink { number, answers }),
        refusals,
        places: Arc::clone(&places),
    };
    tokio::spawn(reader.read(requests, end));
    let open = Open::new(&process.metrics.client_streams);
    let writer = Writer { process, engine, refused, ended: Some(ended), places, ready: VecDeque::new(), _open: open };
    Box::pin(futures::stream::unfold(Some(writer), |writer| async move {
        let mut writer = writer?;
        match writer.next().await {
            Some(Ok(frame)) => Some((Ok(frame), Some(writer))),
            Some(Err(status)) => Some((Err(status), None)),
            None => None,
        }
    }))
}

/// Counts a stream for as long as it lives.
struct Open(Gauge);

impl Open {
    fn new(gauge: &Gauge) -> Self {
        gauge.inc();
        Open(gauge.clone())
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// Requests on their way in.
struct Reader {
    process: Arc<Process>,
    sink: Arc<Sink>,
    /// Answers that need no engine.
    refusals: mpsc::UnboundedSender<v1::Response>,
    places: Arc<Semaphore>,
}

impl Reader {
    /// Until the client has said all, leaves, or this replica stops. What is under way then is still answered.
    async fn read(self, mut requests: Streaming<v1::ClientFrame>, end: oneshot::Sender<Status>) {
        let draining = self.process.reached(Stage::Draining);
        tokio::pin!(draining);
        loop {
            let frame = tokio::select! {
                frame = requests.message() => frame,
                () = self.sink.answers.closed() => return,
                () = &mut draining => {
                    let _ = end.send(Status::unavailable("this replica is shutting down; ask another one"));
                    return;
                }
            };
            let taken = match frame {
                Ok(Some(frame)) => self.take(frame).await,
                Ok(None) => return,
                Err(status) => Err(status),
            };
            if let Err(status) = taken {
                tracing::debug!("a client's stream ended: {status}");
                let _ = end.send(status);
                return;
            }
        }
    }

    async fn take(&self, frame: v1::ClientFrame) -> Result<(), Status> {
        let count = frame.requests.len();
        if count > limits::FRAME_REQUESTS_MAX {
            let (limit, field) = (limits::FRAME_REQUESTS_MAX, "requests");
            return Err(lockstep_wire::WireError::TooMany { field, limit, actual: count }.into());
        }
        let mut requests = Vec::with_capacity(count);
        let mut bytes = 0;
        for request in frame.requests {
            if self.places.available_permits() == 0 {
                // The answers that free places may be those of this very frame.
                self.hand_over(&mut requests, &mut bytes).await?;
            }
            let left = |_| Status::cancelled("the client left");
            self.places.acquire().await.map_err(left)?.forget();
            let id = request.id;
            match clients::prepare(&self.process, request) {
                Prepared::Ask { operation, timeout } => {
                    bytes += clients::bytes_of(&operation);
                    let deadline = clients::deadline(&self.process, timeout);
                    let reply = ReplyTo::Stream { sink: Arc::clone(&self.sink), id };
                    requests.push(ClientRequest { operation, deadline, reply });
                }
                Prepared::Refused(refusal) => self.answer(id, lockstep_wire::Answer::Refused(refusal)),
                Prepared::Invalid(reason) => self.answer(id, lockstep_wire::Answer::Invalid { reason }),
            }
        }
        self.hand_over(&mut requests, &mut bytes).await
    }

    fn answer(&self, id: u64, answer: lockstep_wire::Answer) {
        // A client that is gone needs no answer.
        let _ = self.refusals.send(convert::response(id, answer));
    }

    async fn hand_over(&self, requests: &mut Vec<ClientRequest>, bytes: &mut usize) -> Result<(), Status> {
        if requests.is_empty() {
            return Ok(());
        }
        let stopping = || Status::unavailable("this replica is shutting down; ask another one");
        let running = self.process.running().ok_or_else(stopping)?;
        let (requests, bytes) = (std::mem::take(requests), std::mem::take(bytes));
        running.core.requests(requests, bytes).await.map_err(|_| stopping())
    }
}

/// Answers on their way out.
struct Writer {
    process: Arc<Process>,
    engine: mpsc::UnboundedReceiver<Vec<(u64, Answer)>>,
    refused: mpsc::UnboundedReceiver<v1::Response>,
    /// How the stream ends once all is answered; nothing if the client just stopped sending.
    ended: Option<oneshot::Receiver<Status>>,
    places: Arc<Semaphore>,
    ready: VecDeque<v1::Response>,
    _open: Open,
}

impl Drop for Writer {
    fn drop(&mut self) {
        // The reader may wait for a place that nobody will free.
        self.places.close();
    }
}

impl Writer {
    /// The next frame. None once nothing more can come.
    async fn next(&mut self) -> Option<Result<v1::ServerFrame, Status>> {
        while self.ready.is_empty() {
            // Each ends when the reader has ended and, for the engine's, when all requests are answered.
            tokio::select! {
                Some(answers) = self.engine.recv() => self.take(answers),
                Some(response) = self.refused.recv() => self.ready.push_back(response),
                else => return self.end().await,
            }
        }
        while let Ok(answers) = self.engine.try_recv() {
            self.take(answers);
        }
        while let Ok(response) = self.refused.try_recv() {
            self.ready.push_back(response);
        }
        Some(Ok(self.frame()))
    }

    fn take(&mut self, answers: Vec<(u64, Answer)>) {
        for (id, answer) in answers {
            self.ready.push_back(convert::response(id, clients::answer(&self.process, answer)));
        }
    }

    fn frame(&mut self) -> v1::ServerFrame {
        let mut bytes = 0;
        let mut responses = Vec::new();
        while let Some(response) = self.ready.front() {
            bytes += response.encoded_len();
            let full = responses.len() == limits::FRAME_RESPONSES_MAX || bytes > limits::FRAME_BYTES_TARGET;
            if full && !responses.is_empty() {
                break;
            }
            responses.extend(self.ready.pop_front());
        }
        self.places.add_permits(responses.len());
        v1::ServerFrame { responses }
    }

    async fn end(&mut self) -> Option<Result<v1::ServerFrame, Status>> {
        let status = self.ended.take()?.await.ok()?;
        Some(Err(status))
    }
}
