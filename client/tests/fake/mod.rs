//! A service without replication: doors ("replicas") to one real executor, each on its own runtime so that it can be killed,
//! and behind its own proxy so that it can vanish.

#![allow(dead_code)]

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use lockstep_machine::Executor;
use lockstep_types::kv::{KvReply, KvRequest};
use lockstep_types::{
    Block, BlockHeader, Change, Command, Digest, Epoch, FaultModel, Genesis, Height, LogTime, Outcome, ReplicaId,
    ServiceId, Slot, View,
};
use lockstep_wire::v1::refusal::Reason;
use lockstep_wire::{
    Answer, Leader, Membership, Operation, Refusal, ReplicaStatus, Role, SnapshotsStatus, convert, v1,
};
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::{TcpListenerStream, UnboundedReceiverStream};
use tokio_stream::{Stream, StreamExt};
use tonic::{Request, Response, Status, Streaming};

pub const TOKEN: &str = "let me in";

pub fn genesis() -> Genesis {
    Genesis {
        service: ServiceId::from_bytes([5; 16]),
        fault_model: FaultModel::Crash,
        voters: (0..3).map(replica_id).collect(),
        machine: "KeyValue".to_owned(),
        sessions_max: 16,
        reply_bytes_max: 1 << 20,
        snapshot_bytes: Genesis::SNAPSHOT_BYTES,
    }
}

pub fn replica_id(index: u8) -> ReplicaId {
    ReplicaId::from_bytes([index; 16])
}

/// What all doors lead to.
pub struct Service {
    executor: Mutex<Executor>,
    genesis: Genesis,
    /// Address told as the leader's; empty: none.
    pub leader: Mutex<String>,
    /// Whether there is a leader at all.
    pub has_leader: AtomicBool,
    /// Executed, then not answered: so many of the next sequenced requests.
    pub swallow: AtomicU64,
}

impl Service {
    pub fn new(genesis: Genesis) -> Arc<Self> {
        Arc::new(Service {
            executor: Mutex::new(Executor::new(&genesis).unwrap()),
            genesis,
            leader: Mutex::default(),
            has_leader: AtomicBool::new(true),
            swallow: AtomicU64::new(0),
        })
    }

    pub fn apply(&self, command: &Command) -> Outcome {
        let mut executor = self.executor.lock().unwrap();
        let header = BlockHeader {
            service: self.genesis.service,
            epoch: Epoch::FIRST,
            view: View::new(1, Slot::new(1)),
            height: executor.applied().next(),
            parent: Digest::ZERO,
            body: Digest::ZERO,
            log_time: LogTime::from_millis(1),
            change: None,
        };
        let block = Block::new(header, lockstep_types::block::encode_body(&[command.encode()]));
        executor.apply(block.header(), block.hash(), &[command.encode()]).outcomes.remove(0)
    }

    pub fn query(&self, body: &Bytes) -> Bytes {
        self.executor.lock().unwrap().query(body)
    }

    pub fn sessions(&self) -> usize {
        self.executor.lock().unwrap().stats().sessions
    }

    pub fn version(&self, key: &str) -> u64 {
        let request = KvRequest::Get { key: Bytes::copy_from_slice(key.as_bytes()) };
        match KvReply::decode(self.query(&request.encode())).unwrap() {
            KvReply::Found(found) => found.version,
            reply => {
                assert_eq!(reply, KvReply::Missing);
                0
            }
        }
    }
}

/// A door's own faults and counters.
#[derive(Default)]
pub struct Faults {
    /// Takes requests and never answers.
    pub mute: AtomicBool,
    /// Answers every request with NO_LEADER, which never reached a log.
    pub refuse: AtomicBool,
    /// Like `refuse`, but makes no promise.
    pub refuse_vaguely: AtomicBool,
    /// Ends the stream after each frame, requests executed.
    pub drop_streams: AtomicBool,
    /// Requests seen.
    pub requests: AtomicU64,
    /// Frames seen.
    pub frames: AtomicU64,
}

/// A server behind a proxy.
pub struct Replica {
    pub address: SocketAddr,
    pub faults: Arc<Faults>,
    frozen: watch::Sender<bool>,
    runtime: Option<Runtime>,
}

impl Replica {
    pub fn start(service: &Arc<Service>, index: u8) -> Self {
        Self::start_at(service, index, "127.0.0.1:0".parse().unwrap())
    }

    pub fn start_at(service: &Arc<Service>, index: u8, address: SocketAddr) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let faults = Arc::new(Faults::default());
        let (frozen, freeze) = watch::channel(false);
        let door = Door { service: service.clone(), faults: faults.clone(), index };
        let (ready, address_of) = std::sync::mpsc::channel();
        runtime.spawn(async move {
            let inner = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let inner_address = inner.local_addr().unwrap();
            let (reporter, health) = tonic_health::server::health_reporter();
            reporter.set_service_status("", tonic_health::ServingStatus::Serving).await;
            let door = Arc::new(door);
            let client = v1::client_server::ClientServer::from_arc(door.clone());
            let admin = v1::admin_server::AdminServer::from_arc(door);
            let server = tonic::transport::Server::builder().add_service(client).add_service(admin).add_service(health);
            tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(inner)));
            let socket = tokio::net::TcpSocket::new_v4().unwrap();
            socket.set_reuseaddr(true).unwrap();
            socket.bind(address).unwrap();
            let outer = socket.listen(64).unwrap();
            ready.send(outer.local_addr().unwrap()).unwrap();
            proxy(outer, inner_address, freeze).await;
        });
        let address = address_of.recv().unwrap();
        Replica { address, faults, frozen, runtime: Some(runtime) }
    }

    /// The node loses power: packets get no answer, no connection is closed.
    pub fn vanish(&self) {
        self.frozen.send(true).unwrap();
    }

    /// The process dies: connections are reset, new ones refused.
    pub fn kill(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            let shutdown = move || runtime.shutdown_timeout(Duration::from_secs(1));
            std::thread::spawn(shutdown).join().unwrap();
        }
    }
}

impl Drop for Replica {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Passes bytes on until frozen; then connections hang, and new ones are taken by the kernel and never served.
async fn proxy(listener: TcpListener, to: SocketAddr, freeze: watch::Receiver<bool>) {
    loop {
        let mut freeze = freeze.clone();
        if *freeze.borrow() {
            std::future::pending::<()>().await;
        }
        tokio::select! {
            accepted = listener.accept() => {
                let (mut outer, _) = accepted.unwrap();
                tokio::spawn(async move {
                    let mut inner = TcpStream::connect(to).await.unwrap();
                    let frozen = async { freeze.wait_for(|frozen| *frozen).await.is_ok() };
                    let vanished = tokio::select! {
                        _ = copy_bidirectional(&mut outer, &mut inner) => false,
                        frozen = frozen => frozen,
                    };
                    if vanished {
                        std::future::pending::<()>().await;
                    }
                });
            }
            _ = freeze.changed() => {}
        }
    }
}

struct Door {
    service: Arc<Service>,
    faults: Arc<Faults>,
    index: u8,
}

impl Door {
    fn answer(&self, request: v1::Request) -> Option<v1::Response> {
        self.faults.requests.fetch_add(1, Ordering::Relaxed);
        if self.faults.mute.load(Ordering::Relaxed) {
            return None;
        }
        let named = convert::service_id("service_id", &request.service_id).unwrap();
        if named.is_some_and(|named| named != self.service.genesis.service) {
            return Some(convert::response(request.id, self.refusal(Reason::WrongService, "another service", true)));
        }
        let vaguely = self.faults.refuse_vaguely.load(Ordering::Relaxed);
        if vaguely || self.faults.refuse.load(Ordering::Relaxed) || !self.service.has_leader.load(Ordering::Relaxed) {
            let refusal = self.refusal(Reason::NoLeader, "no leader is known", !vaguely);
            return Some(convert::response(request.id, refusal));
        }
        let answer = match convert::operation(request.operation) {
            Ok(Operation::Command(command)) => {
                let outcome = self.service.apply(&command);
                let swallow = |left: u64| left.checked_sub(1);
                if matches!(command, Command::Execute { .. })
                    && self.service.swallow.fetch_update(Ordering::Relaxed, Ordering::Relaxed, swallow).is_ok()
                {
                    return None;
                }
                Answer::Outcome(outcome)
            }
            Ok(Operation::Read { body }) => Answer::Outcome(Outcome::Replied { reply: self.service.query(&body) }),
            Err(error) => Answer::Invalid { reason: error.to_string() },
        };
        Some(convert::response(request.id, answer))
    }

    fn refusal(&self, reason: Reason, message: &str, never_proposed: bool) -> Answer {
        Answer::Refused(Refusal { reason, message: message.to_owned(), never_proposed, leader: self.leader() })
    }

    fn leader(&self) -> Option<Leader> {
        let address = self.service.leader.lock().unwrap().clone();
        (!address.is_empty()).then(|| Leader { replica: replica_id(0), address })
    }
}

#[tonic::async_trait]
impl v1::client_server::Client for Door {
    type ExchangeStream = Pin<Box<dyn Stream<Item = Result<v1::ServerFrame, Status>> + Send>>;

    async fn exchange(
        &self,
        request: Request<Streaming<v1::ClientFrame>>,
    ) -> Result<Response<Self::ExchangeStream>, Status> {
        let mut inbound = request.into_inner();
        let (answers, outbound) = mpsc::unbounded_channel();
        let door = Door { service: self.service.clone(), faults: self.faults.clone(), index: self.index };
        tokio::spawn(async move {
            while let Some(Ok(frame)) = inbound.next().await {
                door.faults.frames.fetch_add(1, Ordering::Relaxed);
                let responses: Vec<_> = frame.requests.into_iter().filter_map(|request| door.answer(request)).collect();
                if door.faults.drop_streams.load(Ordering::Relaxed) {
                    let _ = answers.send(Err(Status::unavailable("dropped")));
                    return;
                }
                let _ = answers.send(Ok(v1::ServerFrame { responses }));
            }
        });
        Ok(Response::new(Box::pin(UnboundedReceiverStream::new(outbound))))
    }

    async fn call(&self, request: Request<v1::Request>) -> Result<Response<v1::Response>, Status> {
        self.answer(request.into_inner()).map(Response::new).ok_or_else(|| Status::deadline_exceeded("mute"))
    }

    async fn locate(&self, _: Request<v1::LocateRequest>) -> Result<Response<v1::LocateResponse>, Status> {
        Ok(Response::new(v1::LocateResponse {
            service_id: convert::id_bytes(self.service.genesis.service.as_bytes()),
            leader: self.leader().map(v1::LeaderHint::from),
            voters: Vec::new(),
            standbys: Vec::new(),
        }))
    }
}

#[tonic::async_trait]
impl v1::admin_server::Admin for Door {
    async fn status(&self, _: Request<v1::StatusRequest>) -> Result<Response<v1::StatusResponse>, Status> {
        Ok(Response::new(self.status().into()))
    }

    async fn genesis(&self, request: Request<v1::GenesisRequest>) -> Result<Response<v1::GenesisResponse>, Status> {
        self.authorize(&request)?;
        match Genesis::decode(request.into_inner().genesis) {
            Ok(genesis) if genesis == self.service.genesis => Ok(Response::new(v1::GenesisResponse { created: false })),
            Ok(_) => Err(Status::failed_precondition("another genesis is in force")),
            Err(error) => Err(Status::invalid_argument(error.to_string())),
        }
    }

    async fn hand_over(&self, _: Request<v1::HandOverRequest>) -> Result<Response<v1::HandOverResponse>, Status> {
        tokio::time::sleep(Duration::from_millis(100)).await;
        Ok(Response::new(v1::HandOverResponse { leader_id: convert::id_bytes(replica_id(1).as_bytes()) }))
    }

    async fn take_snapshot(
        &self,
        request: Request<v1::TakeSnapshotRequest>,
    ) -> Result<Response<v1::TakeSnapshotResponse>, Status> {
        self.authorize(&request)?;
        let height = self.service.executor.lock().unwrap().applied().next().get();
        Ok(Response::new(v1::TakeSnapshotResponse { height }))
    }

    async fn join(&self, request: Request<v1::JoinRequest>) -> Result<Response<v1::JoinResponse>, Status> {
        self.authorize(&request)?;
        let slot = request.into_inner().slot;
        match slot == u32::from(self.index) + 1 {
            true => Ok(Response::new(v1::JoinResponse { created: false })),
            false => Err(Status::failed_precondition("another slot is its own")),
        }
    }

    async fn change_members(
        &self,
        request: Request<v1::ChangeMembersRequest>,
    ) -> Result<Response<v1::ChangeMembersResponse>, Status> {
        use v1::change_members_request::Change as Asked;
        self.authorize(&request)?;
        let now = self.service.genesis.configuration();
        let change = match request.into_inner().change {
            Some(Asked::Add(replica)) => Change::AddStandby { replica: convert::replica_id("add", &replica).unwrap() },
            Some(Asked::Promote(slot)) => Change::Promote { slot: Slot::new(slot) },
            Some(Asked::Remove(slot)) => Change::Remove { slot: Slot::new(slot) },
            None => return Err(Status::invalid_argument("no change")),
        };
        let next = now.apply(&change).map_err(|error| Status::failed_precondition(error.to_string()))?;
        let slot = match change {
            Change::AddStandby { replica } => next.slot_of(replica).unwrap(),
            Change::Promote { slot } | Change::Remove { slot } => slot,
        };
        let membership = Membership { configuration: next, height: Height::new(9), settled: true };
        Ok(Response::new(v1::ChangeMembersResponse { membership: Some(membership.into()), slot: slot.get() }))
    }
}

impl Door {
    fn authorize<T>(&self, request: &Request<T>) -> Result<(), Status> {
        let token = request.metadata().get("authorization").and_then(|token| token.to_str().ok());
        match token == Some(&format!("Bearer {TOKEN}")) {
            true => Ok(()),
            false => Err(Status::unauthenticated("this call needs the admin token of the service")),
        }
    }

    pub fn status(&self) -> ReplicaStatus {
        let applied = self.service.executor.lock().unwrap().applied();
        ReplicaStatus {
            retired: None,
            replica: replica_id(self.index),
            service: Some(self.service.genesis.service),
            version: "0.0.0".to_owned(),
            boot: 1,
            role: if self.index == 0 { Role::Leader } else { Role::Follower },
            view: View::new(1, Slot::new(1)),
            slot: Some(Slot::new(u32::from(self.index) + 1)),
            epoch: Some(Epoch::FIRST),
            leader: Some(replica_id(0)),
            head: applied,
            committed: applied,
            applied,
            leader_head: Some(Height::new(applied.get() + 2)),
            leader_heard: Some(Duration::from_millis(3)),
            not_ready: None,
            genesis: Some(self.service.genesis.clone()),
            members: Vec::new(),
            membership: None,
            digest: Some(Digest::ZERO),
            state_machine: "KeyValue".to_owned(),
            uptime: Duration::from_secs(9),
            snapshots: SnapshotsStatus { newest: Some(Height::new(1)), ..SnapshotsStatus::default() },
            divergence: None,
        }
    }
}
