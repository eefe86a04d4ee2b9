//! Everything that a replica serves: clients, peers, metrics; and how that ends.

use std::sync::Arc;
use std::time::Duration;

use lockstep_wire::{limits, v1};
use tokio::net::TcpListener;
use tokio::time::timeout;
use tonic::transport::Server;

use crate::admin::AdminService;
use crate::clients::{ClientService, KeyValueService};
use crate::health;
use crate::listen::{self, Limit};
use crate::metrics;
use crate::peers::{PeerService, dial_all};
use crate::process::{Process, Stage, blocking};

/// How long requests under way may take to be answered when the process is told to stop.
const DRAIN: Duration = Duration::from_secs(1);
/// How long connections may take to close.
const CLOSE: Duration = Duration::from_millis(500);
/// HTTP/2 pings that clients must answer, and for how long they may not.
const CLIENT_PING: Duration = Duration::from_secs(10);
/// The same for peers.
const PEER_PING: Duration = Duration::from_secs(1);
const PEER_PONG: Duration = Duration::from_secs(2);

/// Everything that is served.
pub(crate) struct Servers {
    clients: tokio::task::JoinHandle<()>,
    peers: tokio::task::JoinHandle<()>,
}

impl Servers {
    pub fn start(process: &Arc<Process>, clients: TcpListener, peers: TcpListener, scrapes: TcpListener) -> Servers {
        let (health, reporter) = health::service();
        tokio::spawn(health::report(Arc::clone(process), reporter));
        tokio::spawn(serve_metrics(Arc::clone(process), scrapes));
        let dialling = Arc::clone(process);
        tokio::spawn(async move {
            let mut started = dialling.started.subscribe();
            tokio::select! {
                _ = started.wait_for(|started| *started) => {}
                () = dialling.stopped() => return,
            }
            if let Some(running) = dialling.running() {
                dial_all(&dialling, &running.peers);
            }
        });
        Servers {
            clients: tokio::spawn(serve_clients(Arc::clone(process), clients, health)),
            peers: tokio::spawn(serve_peers(Arc::clone(process), peers)),
        }
    }

    /// Lets requests under way be answered, then closes everything.
    pub async fn close(self, process: &Arc<Process>) {
        if timeout(DRAIN, self.clients).await.is_err() {
            tracing::info!("some clients are still connected; their requests are answered by the other replicas");
        }
        process.stage.send_replace(Stage::Stopped);
        let _ = timeout(CLOSE, self.peers).await;
        let stopping = Arc::clone(process);
        let threads = blocking(move || stopping.stop_threads());
        if timeout(DRAIN, threads).await.is_err() {
            tracing::warn!("the disk is slow; not waiting for it any longer");
        }
        tracing::info!("stopped");
    }
}

async fn serve_clients<H>(
    process: Arc<Process>,
    listener: TcpListener,
    health: tonic_health::pb::health_server::HealthServer<H>,
) where
    H: tonic_health::pb::health_server::Health,
{
    let limit = Limit {
        connections: process.args.max_connections,
        open: process.metrics.client_connections.clone(),
        refused: process.metrics.client_connections_refused.clone(),
    };
    let client = v1::client_server::ClientServer::new(ClientService::new(Arc::clone(&process)))
        .max_decoding_message_size(limits::FRAME_BYTES_MAX)
        .max_encoding_message_size(limits::FRAME_BYTES_MAX);
    let key_value = v1::key_value_server::KeyValueServer::new(KeyValueService { process: Arc::clone(&process) })
        .max_decoding_message_size(limits::FRAME_BYTES_MAX)
        .max_encoding_message_size(limits::FRAME_BYTES_MAX);
    let admin = v1::admin_server::AdminServer::new(AdminService { process: Arc::clone(&process) })
        .max_decoding_message_size(2 * limits::GENESIS_BYTES_MAX);
    let reflection = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(lockstep_wire::FILE_DESCRIPTOR_SET)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        .with_service_name("lockstep.v1.Client")
        .with_service_name("lockstep.v1.KeyValue")
        .with_service_name("lockstep.v1.Admin")
        .with_service_name("grpc.health.v1.Health")
        .with_service_name("grpc.reflection.v1.ServerReflection")
        .build_v1()
        .expect("the descriptors were made by the build");
    let served = Server::builder()
        .max_concurrent_streams(process.args.max_streams)
        .initial_stream_window_size(limits::STREAM_WINDOW_BYTES)
        .initial_connection_window_size(limits::CONNECTION_WINDOW_BYTES)
        .http2_keepalive_interval(Some(CLIENT_PING))
        .http2_keepalive_timeout(Some(CLIENT_PING))
        .add_service(client)
        .add_service(key_value)
        .add_service(admin)
        .add_service(health)
        .add_service(reflection)
        .serve_with_incoming_shutdown(listen::connections(listener, limit), process.reached(Stage::Draining))
        .await;
    if let Err(error) = served {
        tracing::error!("the client port is not served any more: {error}");
    }
}

async fn serve_peers(process: Arc<Process>, listener: TcpListener) {
    let limit = Limit {
        connections: process.args.max_connections,
        open: prometheus_client::metrics::gauge::Gauge::default(),
        refused: process.metrics.peer_refused.clone(),
    };
    let peer = v1::peer_server::PeerServer::new(PeerService { process: Arc::clone(&process) })
        .max_decoding_message_size(limits::FRAME_BYTES_MAX)
        .max_encoding_message_size(limits::FRAME_BYTES_MAX);
    let served = Server::builder()
        .max_concurrent_streams(process.args.max_streams)
        .initial_stream_window_size(limits::STREAM_WINDOW_BYTES)
        .initial_connection_window_size(limits::CONNECTION_WINDOW_BYTES)
        .http2_keepalive_interval(Some(PEER_PING))
        .http2_keepalive_timeout(Some(PEER_PONG))
        .add_service(peer)
        .serve_with_incoming_shutdown(listen::connections(listener, limit), process.stopped())
        .await;
    if let Err(error) = served {
        tracing::error!("the peer port is not served any more: {error}");
    }
}

async fn serve_metrics(process: Arc<Process>, listener: TcpListener) {
    const SCRAPERS: usize = 64;
    let limit = Limit {
        connections: SCRAPERS,
        open: prometheus_client::metrics::gauge::Gauge::default(),
        refused: process.metrics.client_connections_refused.clone(),
    };
    let routes = tonic::service::Routes::from(metrics::routes(Arc::clone(&process.metrics)));
    let served = Server::builder()
        .accept_http1(true)
        .add_routes(routes)
        .serve_with_incoming_shutdown(listen::connections(listener, limit), process.stopped())
        .await;
    if let Err(error) = served {
        tracing::error!("metrics are not served any more: {error}");
    }
}
