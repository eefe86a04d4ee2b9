//! One connection to one replica: connect, ask who it is, then exchange frames until the stream ends.

use std::net::SocketAddr;
use std::time::Duration;

use lockstep_session::Target;
use lockstep_types::ServiceId;
use lockstep_wire::v1::client_client::ClientClient;
use lockstep_wire::{WireError, convert, limits, v1};
use tokio::sync::mpsc;
use tokio::task::AbortHandle;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::Status;
use tonic::transport::Channel;

use crate::endpoint;

/// How long a replica may take to say who leads.
const LOCATE_TIMEOUT: Duration = Duration::from_secs(2);

/// What connections tell the driver.
#[derive(Debug)]
pub(crate) enum Event {
    /// Connected, and the replica serves the right service, as far as it knows one.
    Up { target: Target, link: Link, located: Located },
    /// A replica said who leads.
    Located { target: Target, located: Located },
    /// Answers.
    Answers { target: Target, responses: Vec<v1::Response> },
    /// The connection is gone or did not come up. Nothing follows.
    Down { target: Target, reason: String },
    /// What a name stands for now.
    Resolved { name: String, addresses: Result<Vec<SocketAddr>, String> },
}

/// An open connection.
#[derive(Debug)]
pub(crate) struct Link {
    frames: mpsc::UnboundedSender<v1::ClientFrame>,
    client: ClientClient<Channel>,
}

/// What a replica knows of its service.
#[derive(Clone, Debug, Default)]
pub(crate) struct Located {
    pub(crate) service: Option<ServiceId>,
    /// Empty if not known.
    pub(crate) leader: String,
    pub(crate) voters: Vec<String>,
}

impl Link {
    /// Queues requests, as few frames as their size allows.
    pub(crate) fn send(&self, requests: Vec<v1::Request>) {
        let mut frame = v1::ClientFrame::default();
        let mut bytes = 0;
        for request in requests {
            let size = size(&request);
            let full = bytes + size > limits::FRAME_BYTES_TARGET || frame.requests.len() == limits::FRAME_REQUESTS_MAX;
            if full && !frame.requests.is_empty() {
                // A closed channel: the driver hears of it as `Down`.
                let _ = self.frames.send(std::mem::take(&mut frame));
                bytes = 0;
            }
            bytes += size;
            frame.requests.push(request);
        }
        let _ = self.frames.send(frame);
    }

    /// Asks who leads; the answer comes as an event.
    pub(crate) fn locate(&self, target: Target, events: mpsc::UnboundedSender<Event>) {
        let mut client = self.client.clone();
        tokio::spawn(async move {
            if let Ok(located) = locate(&mut client).await {
                let _ = events.send(Event::Located { target, located });
            }
        });
    }
}

/// About what a request takes on the wire.
fn size(request: &v1::Request) -> usize {
    let body = match &request.operation {
        Some(v1::request::Operation::Execute(execute)) => execute.body.len(),
        Some(v1::request::Operation::Plain(plain)) => plain.body.len(),
        Some(v1::request::Operation::Read(read)) => read.body.len(),
        Some(
            v1::request::Operation::OpenSession(_)
            | v1::request::Operation::CloseSession(_)
            | v1::request::Operation::Resolve(_),
        )
        | None => 0,
    };
    body + 80
}

/// Starts a connection. Its last event is [`Event::Down`], unless it is aborted.
pub(crate) fn start(
    target: Target,
    address: SocketAddr,
    service: Option<ServiceId>,
    events: mpsc::UnboundedSender<Event>,
) -> AbortHandle {
    let task = tokio::spawn(async move {
        let reason = match run(target, address, service, &events).await {
            Ok(()) => "the replica closed the connection".to_owned(),
            Err(reason) => reason,
        };
        let _ = events.send(Event::Down { target, reason });
    });
    task.abort_handle()
}

async fn run(
    target: Target,
    address: SocketAddr,
    service: Option<ServiceId>,
    events: &mpsc::UnboundedSender<Event>,
) -> Result<(), String> {
    let endpoint = endpoint::endpoint(&address.to_string())?;
    // The transport's own limit covers the TCP connection only.
    let channel = match tokio::time::timeout(2 * endpoint::CONNECT_TIMEOUT, endpoint.connect()).await {
        Ok(Ok(channel)) => channel,
        Ok(Err(error)) => return Err(endpoint::root_cause(&error)),
        Err(_) => return Err("connection timed out".to_owned()),
    };
    let mut client = ClientClient::new(channel)
        .max_decoding_message_size(limits::FRAME_BYTES_MAX)
        .max_encoding_message_size(limits::FRAME_BYTES_MAX);
    let located = locate(&mut client).await?;
    if let (Some(wanted), Some(found)) = (service, located.service)
        && wanted != found
    {
        return Err(format!("it serves service {found}, not {wanted}"));
    }

    let (frames, outbound) = mpsc::unbounded_channel();
    let link = Link { frames, client: client.clone() };
    let _ = events.send(Event::Up { target, link, located });
    let response = client.exchange(UnboundedReceiverStream::new(outbound)).await;
    let mut inbound = response.map_err(|status| words(&status))?.into_inner();
    while let Some(frame) = inbound.message().await.map_err(|status| words(&status))? {
        let _ = events.send(Event::Answers { target, responses: frame.responses });
    }
    Ok(())
}

async fn locate(client: &mut ClientClient<Channel>) -> Result<Located, String> {
    let response = match tokio::time::timeout(LOCATE_TIMEOUT, client.locate(v1::LocateRequest {})).await {
        Ok(Ok(response)) => response.into_inner(),
        Ok(Err(status)) if status.code() == tonic::Code::Unimplemented => {
            return Err("it is not a Lockstep replica".to_owned());
        }
        Ok(Err(status)) => return Err(words(&status)),
        Err(_) => return Err(format!("no answer within {LOCATE_TIMEOUT:?}")),
    };
    located(response).map_err(|error| format!("its answer makes no sense: {error}"))
}

fn located(response: v1::LocateResponse) -> Result<Located, WireError> {
    Ok(Located {
        service: convert::service_id("service_id", &response.service_id)?,
        leader: convert::leader(response.leader)?.map(|leader| leader.address).unwrap_or_default(),
        voters: response.voters.into_iter().map(|voter| voter.address).filter(|address| !address.is_empty()).collect(),
    })
}

/// A failed call in the words of its cause.
fn words(status: &Status) -> String {
    match std::error::Error::source(status) {
        Some(cause) => endpoint::root_cause(cause),
        None => status.message().to_owned(),
    }
}
