//! Streams to other replicas: one task an address, which dials again and again until it finds itself at the other end, or the
//! address holds no more. Addresses are those behind the names of the command line, and those of who calls.

use std::error::Error as _;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use lockstep_types::Slot;
use lockstep_wire::{limits, v1};
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Endpoint;
use tonic::{Code, Status};

use crate::peers::names::{self, Listed};
use crate::peers::outbox::Drain;
use crate::peers::{HelloError, Peers, Who, convert};
use crate::process::Process;

/// Pauses between attempts: the first, and the longest.
const PAUSE_MIN: Duration = Duration::from_millis(50);
const PAUSE_MAX: Duration = Duration::from_millis(500);
/// For a connection to come up, and for the other end's Hello.
const CONNECT: Duration = Duration::from_secs(1);
const HELLO: Duration = Duration::from_secs(5);
/// How long an address is left alone whose replica has another one.
const SPARE: Duration = Duration::from_secs(5);
/// A machine that vanished answers no ping.
const PING: Duration = Duration::from_secs(1);
const PONG: Duration = Duration::from_secs(2);

/// Keeps streams to all addresses behind the names of the command line until the process stops.
pub(crate) fn dial_all(process: &Arc<Process>, peers: &Arc<Peers>) {
    for name in &process.args.peers {
        let (process, peers, name) = (Arc::clone(process), Arc::clone(peers), name.clone());
        tokio::spawn(async move {
            let pause = || names::pause(peers.is_complete());
            let dial = |address, listed| dial(&process, &peers, address, Source::Name(address, listed));
            tokio::select! {
                () = names::follow(&name, names::lookup, pause, dial) => {}
                () = process.stopped() => {}
            }
        });
    }
}

/// Keeps a stream to one who called from an address that nobody told this replica: who joins later is not in its list.
pub(crate) fn dial_back(process: &Arc<Process>, peers: &Arc<Peers>, slot: Slot, address: &str) {
    if !address.is_empty() {
        dial(process, peers, address, Source::Caller(slot));
    }
}

/// Where an address comes from.
enum Source {
    /// A name of the command line stands for it.
    Name(SocketAddr, Listed),
    /// The member in this slot said that it is reached there.
    Caller(Slot),
}

impl Source {
    /// Whether the address may still be a member's.
    fn holds(&self, peers: &Peers) -> bool {
        match self {
            Source::Name(address, listed) => listed.borrow().contains(address),
            Source::Caller(slot) => peers.is_told(*slot),
        }
    }

    /// Whether a stream to the same replica is up, by another address.
    fn is_spare(&self, peers: &Peers) -> bool {
        match self {
            // Which replica is there now is known only once it was asked.
            Source::Name(..) => false,
            Source::Caller(slot) => peers.is_connected(*slot),
        }
    }
}

fn dial(process: &Arc<Process>, peers: &Arc<Peers>, address: impl ToString, source: Source) {
    let address = address.to_string();
    if !peers.claim_address(&address) {
        return;
    }
    let (process, peers) = (Arc::clone(process), Arc::clone(peers));
    tokio::spawn(async move {
        tokio::select! {
            () = keep(&process, &peers, &address, &source) => {}
            () = process.stopped() => {}
        }
    });
}

/// How a stream ended.
enum End {
    /// The address is this replica's own.
    Myself,
    /// It carried messages for a while.
    Lost(Status),
    /// It never came up.
    Failed(Status),
    /// A stream to the same replica is up already, by another address.
    Spare(Slot),
}

async fn keep(process: &Process, peers: &Peers, address: &str, source: &Source) {
    let mut pause = PAUSE_MIN;
    let mut said = String::new();
    while source.holds(peers) {
        // The same replica may have another address that is dialled already; two streams would push each other out.
        if source.is_spare(peers) {
            sleep(PAUSE_MAX).await;
            continue;
        }
        match stream(process, peers, address).await {
            // Nobody else gets this address while this process has it: it is never dialled again.
            End::Myself => return,
            End::Spare(slot) => {
                // Not for ever: the address may be another replica's by then.
                let _ = timeout(SPARE, peers.until_parted(slot)).await;
                pause = PAUSE_MIN;
            }
            End::Lost(status) => {
                tracing::info!("lost the stream to {address}: {}", describe(&status));
                pause = PAUSE_MIN;
                said.clear();
            }
            End::Failed(status) => {
                let text = describe(&status);
                if status.code() == Code::DataLoss {
                    process.retire(text);
                    return;
                }
                // A refusal needs someone to act; a peer that is not up yet does not. Each is said once.
                if text != said {
                    match status.code() {
                        Code::FailedPrecondition | Code::InvalidArgument | Code::Unimplemented => {
                            tracing::warn!("no stream to {address}: {text}");
                        }
                        _ => tracing::info!("no stream to {address} yet: {text}"),
                    }
                    said = text;
                }
            }
        }
        sleep(pause).await;
        pause = (pause * 2).min(PAUSE_MAX);
    }
    tracing::info!("{address} is nobody's to dial any more");
    peers.release_address(address);
}

async fn stream(process: &Process, peers: &Peers, address: &str) -> End {
    match open(process, peers, address).await {
        Ok(Opened { who: Who::Myself, .. }) => End::Myself,
        Ok(Opened { who: Who::Member { slot, claim, .. }, frames, hellos }) => {
            let outbox = peers.outbox(slot);
            let Some(drain) = outbox.connect(claim.boot) else { return End::Spare(slot) };
            tracing::info!("stream to {slot} at {address} is up");
            End::Lost(carry(&drain, frames, hellos).await)
        }
        Err(status) => End::Failed(status),
    }
}

type Frames = mpsc::Sender<v1::PeerFrame>;
type Hellos = tonic::Streaming<v1::PeerHello>;

/// A stream whose other end said who it is.
struct Opened {
    who: Who,
    frames: Frames,
    hellos: Hellos,
}

async fn open(process: &Process, peers: &Peers, address: &str) -> Result<Opened, Status> {
    let endpoint = Endpoint::from_shared(format!("http://{address}"))
        .map_err(|error| Status::invalid_argument(format!("{address} is no address: {error}")))?
        .connect_timeout(CONNECT)
        .tcp_nodelay(true)
        .http2_keep_alive_interval(PING)
        .keep_alive_timeout(PONG)
        .keep_alive_while_idle(true)
        .initial_stream_window_size(limits::STREAM_WINDOW_BYTES)
        .initial_connection_window_size(limits::CONNECTION_WINDOW_BYTES);
    // Names are looked up anew with each attempt: a pod that was moved has another address.
    let channel = endpoint.connect().await.map_err(|error| Status::from_error(Box::new(error)))?;
    let mut client = v1::peer_client::PeerClient::new(channel)
        .max_decoding_message_size(limits::FRAME_BYTES_MAX)
        .max_encoding_message_size(limits::FRAME_BYTES_MAX);
    let (frames, stream) = mpsc::channel(1);
    frames
        .try_send(v1::PeerFrame { hello: Some(peers.hello()), messages: Vec::new() })
        .expect("a new channel has room");
    let late = |_| Status::deadline_exceeded("the other end did not say who it is");
    let exchange = async {
        let mut hellos = client.exchange(ReceiverStream::new(stream)).await?.into_inner();
        let hello = hellos.message().await?.ok_or_else(|| Status::unavailable("closed before the first word"))?;
        Ok::<_, Status>((hello, hellos))
    };
    let (hello, hellos) = timeout(HELLO, exchange).await.map_err(late)??;
    let core = &process.running().ok_or_else(|| Status::unavailable("this replica is starting"))?.core;
    let who = match peers.admit(&hello, core).await {
        // It is the other end that must retire, and hears so when it calls.
        Err(error @ HelloError::Amnesia { .. }) => return Err(Status::failed_precondition(error.to_string())),
        admitted => admitted?,
    };
    Ok(Opened { who, frames, hellos })
}

/// Moves messages from the outbox to the stream until either end gives up.
async fn carry(drain: &Drain<'_>, frames: Frames, mut hellos: Hellos) -> Status {
    loop {
        let messages = tokio::select! {
            messages = drain.next() => messages,
            ended = hellos.message() => return match ended {
                Err(status) => status,
                Ok(_) => Status::unavailable("the other end closed the stream"),
            },
        };
        let Some(messages) = messages else { return Status::aborted("another stream to the same replica took over") };
        let messages = messages.into_iter().map(convert::encode).collect();
        let sent = tokio::select! {
            sent = frames.send(v1::PeerFrame { hello: None, messages }) => sent.is_ok(),
            ended = hellos.message() => return match ended {
                Err(status) => status,
                Ok(_) => Status::unavailable("the other end closed the stream"),
            },
        };
        if !sent {
            return Status::unavailable("the connection is gone");
        }
    }
}

/// The innermost cause: the outer layers of the transport alone say nothing.
fn describe(status: &Status) -> String {
    let mut text = status.message().to_owned();
    let mut source = status.source();
    while let Some(cause) = source {
        text = cause.to_string();
        source = cause.source();
    }
    text
}
