//! Sockets with limits: a connection too many is closed at once, one that says nothing is closed soon.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::Stream;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Sleep, sleep};
use tonic::transport::server::{Connected, TcpConnectInfo};

use crate::error::RunError;

/// How long a new connection may say nothing.
const SILENCE: Duration = Duration::from_secs(10);
/// Pause after a failed accept: too many open files, most likely.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

pub(crate) async fn bind(
    who: &'static str,
    address: SocketAddr,
    option: &'static str,
) -> Result<TcpListener, RunError> {
    TcpListener::bind(address).await.map_err(|source| RunError::Listen { who, address, option, source })
}

/// How many connections, and where they are counted.
#[derive(Clone, Debug)]
pub(crate) struct Limit {
    pub connections: usize,
    pub open: Gauge,
    pub refused: Counter,
}

/// Connections as they come in.
pub(crate) fn connections(listener: TcpListener, limit: Limit) -> impl Stream<Item = io::Result<Connection>> {
    let places = Arc::new(Semaphore::new(limit.connections));
    futures::stream::unfold((listener, places, limit), |(listener, places, limit)| async move {
        loop {
            let stream = match listener.accept().await {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::warn!("failed to accept a connection: {error}");
                    sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            let Ok(place) = Arc::clone(&places).try_acquire_owned() else {
                limit.refused.inc();
                continue;
            };
            // Without it a small frame may wait for the acknowledgement of the one before.
            if let Err(error) = stream.set_nodelay(true) {
                tracing::debug!("connection without TCP_NODELAY: {error}");
            }
            limit.open.inc();
            let connection =
                Connection { stream, silent: Some(Box::pin(sleep(SILENCE))), open: limit.open.clone(), _place: place };
            return Some((Ok(connection), (listener, places, limit)));
        }
    })
}

/// An accepted connection; it holds one place of the limit.
pub(crate) struct Connection {
    stream: TcpStream,
    /// Until the first byte: when to give up.
    silent: Option<Pin<Box<Sleep>>>,
    open: Gauge,
    _place: OwnedSemaphorePermit,
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.open.dec();
    }
}

impl Connected for Connection {
    type ConnectInfo = TcpConnectInfo;

    fn connect_info(&self) -> TcpConnectInfo {
        self.stream.connect_info()
    }
}

impl AsyncRead for Connection {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let read = Pin::new(&mut self.stream).poll_read(cx, buf);
        if read.is_ready() {
            self.silent = None;
        }
        if let Some(silent) = &mut self.silent
            && silent.as_mut().poll(cx).is_ready()
        {
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the connection said nothing")));
        }
        read
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}
