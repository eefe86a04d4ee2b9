//! What operators say to one replica: status, genesis, hand-over, snapshot. Not here: the membership (`members`).

mod members;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use lockstep_consensus::RoleName;
use lockstep_engine::{self as engine, DivergenceStatus, IdentityError, SnapshotStatus};
use lockstep_types::{Genesis, Height, Slot, View};
use lockstep_wire::convert::{id_bytes, optional_replica_id};
use lockstep_wire::{
    Divergence, MemberStatus, Membership, ReplicaStatus, Role, SnapshotFetch, SnapshotsStatus, StateDoubt, limits, v1,
};
use tokio::time::timeout;
use tonic::{Request, Response, Status};

use crate::clients;
use crate::process::{Process, Running, Stage, hand_over};

/// How long a hand-over may take.
const HAND_OVER: Duration = Duration::from_secs(5);

/// How long a snapshot point may take to be committed.
const SNAPSHOT_POINT: Duration = Duration::from_secs(5);

/// The admin service.
pub(crate) struct AdminService {
    pub process: Arc<Process>,
}

impl AdminService {
    async fn authorize<T>(&self, request: &Request<T>) -> Result<(), Status> {
        let metadata = request.metadata().get("authorization").and_then(|value| value.to_str().ok());
        let token = metadata.and_then(|value| value.strip_prefix("Bearer ")).unwrap_or_default();
        match self.process.is_admin(token).await {
            Ok(true) => Ok(()),
            Ok(false) if token.is_empty() => Err(Status::unauthenticated(
                "this call needs the service's admin token in the metadata key authorization, as `Bearer TOKEN`",
            )),
            Ok(false) => Err(Status::unauthenticated("this is not the service's admin token")),
            Err(reason) => Err(Status::unauthenticated(reason)),
        }
    }

    async fn status_now(&self) -> ReplicaStatus {
        let process = &self.process;
        let base = ReplicaStatus {
            replica: process.born.replica,
            service: None,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            boot: process.born.boot,
            role: Role::None,
            view: View::ZERO,
            slot: None,
            epoch: None,
            leader: None,
            head: Height::ZERO,
            committed: Height::ZERO,
            applied: Height::ZERO,
            leader_head: None,
            leader_heard: None,
            not_ready: Some("has no genesis yet".to_owned()),
            genesis: None,
            members: Vec::new(),
            membership: None,
            digest: None,
            state_machine: String::new(),
            uptime: process.clock.uptime(),
            snapshots: SnapshotsStatus::default(),
            retired: process.born.retired.clone(),
            divergence: None,
        };
        match process.running() {
            Some(running) => self.status_of(running, base).await,
            None => match process.genesis().await {
                None => base,
                Some(genesis) => ReplicaStatus {
                    service: Some(genesis.service),
                    not_ready: Some(match &process.born.retired {
                        None => "is reading its log".to_owned(),
                        Some(_) => "forgot what it had promised, and has retired".to_owned(),
                    }),
                    state_machine: genesis.machine.clone(),
                    genesis: Some(genesis),
                    ..base
                },
            },
        }
    }

    async fn status_of(&self, running: &Running, base: ReplicaStatus) -> ReplicaStatus {
        let status = running.core.fresh_status().await;
        let stopping = (self.process.stage() > Stage::Up).then(|| "is shutting down".to_owned());
        ReplicaStatus {
            service: Some(running.genesis.service),
            role: match status.role {
                RoleName::Follower => Role::Follower,
                RoleName::Candidate => Role::Candidate,
                RoleName::Leader => Role::Leader,
            },
            view: status.view,
            slot: Some(status.slot),
            epoch: Some(status.epoch),
            leader: status.leader.and_then(|leader| running.peers.locate(leader)).map(|leader| leader.replica),
            head: status.head,
            committed: status.committed,
            applied: status.applied,
            leader_head: status.leader_head,
            leader_heard: status.leader_silent_us.map(Duration::from_micros),
            not_ready: stopping.or(status.not_ready),
            genesis: Some(running.genesis.clone()),
            members: status
                .members
                .into_iter()
                .map(|member| MemberStatus {
                    replica: member.replica,
                    slot: member.slot,
                    acknowledged: member.acknowledged.unwrap_or(Height::ZERO),
                    connected: member.connected,
                    votes: member.votes,
                })
                .collect(),
            membership: Some(Membership {
                configuration: status.membership.committed,
                height: status.membership.height,
                settled: status.membership.settled,
            }),
            digest: Some(status.digest),
            state_machine: running.genesis.machine.clone(),
            snapshots: snapshots(status.snapshots),
            divergence: status.divergence.map(divergence),
            ..base
        }
    }

    async fn hand_over_from(&self, running: &Running, target: &[u8]) -> Result<v1::HandOverResponse, Status> {
        let target = optional_replica_id("target", target)?;
        let config = running.peers.config();
        let no_voter = |replica| {
            let service = running.peers.service();
            Status::invalid_argument(format!("replica {replica} is no voter of service {service}"))
        };
        let slot = target.map(|target| config.slot_of(target).ok_or_else(|| no_voter(target))).transpose()?;
        let status = running.core.fresh_status().await;
        // It may lead by a change that this replica learnt only meanwhile, or not yet.
        let done = |leader| match running.peers.locate(leader).map(|leader| leader.replica) {
            Some(leader) => Ok(v1::HandOverResponse { leader_id: id_bytes(leader.as_bytes()) }),
            None => {
                Err(Status::unavailable(format!("{leader} leads, and this replica does not know it yet; ask again")))
            }
        };
        if status.role != RoleName::Leader {
            return match (status.leader, slot) {
                (Some(leader), Some(slot)) if leader == slot => done(leader),
                (Some(leader), _) => {
                    let hint = running.peers.locate(leader).map(|leader| leader.address).unwrap_or_default();
                    Err(Status::failed_precondition(format!("{} does not lead; ask {leader} at {hint}", status.slot)))
                }
                (None, _) => Err(Status::unavailable("no leader is known; there is nobody to hand over")),
            };
        }
        if slot == Some(status.slot) {
            return done(status.slot);
        }
        if let Some(slot) = slot.filter(|slot| config.voter(*slot).is_none()) {
            return Err(Status::failed_precondition(format!(
                "{slot} is a standby and cannot lead; promote it first: `lockstep members promote {slot}`"
            )));
        }
        if config.voters().len() == 1 {
            return Err(Status::failed_precondition("this service has one voter; there is nobody to hand over to"));
        }
        match timeout(HAND_OVER, hand_over(running, slot)).await {
            Ok(leader) => done(leader),
            Err(_) => Err(Status::deadline_exceeded(format!(
                "nobody took over within {HAND_OVER:?}; is the other voter up and caught up? `lockstep status` tells"
            ))),
        }
    }
}

#[tonic::async_trait]
impl v1::admin_server::Admin for AdminService {
    async fn status(&self, _request: Request<v1::StatusRequest>) -> Result<Response<v1::StatusResponse>, Status> {
        Ok(Response::new(self.status_now().await.into()))
    }

    async fn genesis(&self, request: Request<v1::GenesisRequest>) -> Result<Response<v1::GenesisResponse>, Status> {
        self.authorize(&request).await?;
        let genesis = decode_genesis(request.into_inner().genesis)?;
        match self.process.adopt(genesis).await {
            Ok(created) => Ok(Response::new(v1::GenesisResponse { created })),
            Err(error) => Err(refused(&error)),
        }
    }

    async fn hand_over(&self, request: Request<v1::HandOverRequest>) -> Result<Response<v1::HandOverResponse>, Status> {
        self.authorize(&request).await?;
        let Some(running) = self.process.running() else {
            return Err(Status::unavailable("this replica has no genesis yet; it cannot lead"));
        };
        self.hand_over_from(running, &request.into_inner().target).await.map(Response::new)
    }

    async fn join(&self, request: Request<v1::JoinRequest>) -> Result<Response<v1::JoinResponse>, Status> {
        self.authorize(&request).await?;
        let v1::JoinRequest { genesis, slot } = request.into_inner();
        let genesis = decode_genesis(genesis)?;
        match self.process.join(genesis, Slot::new(slot)).await {
            Ok(created) => Ok(Response::new(v1::JoinResponse { created })),
            Err(error) => Err(refused(&error)),
        }
    }

    async fn change_members(
        &self,
        request: Request<v1::ChangeMembersRequest>,
    ) -> Result<Response<v1::ChangeMembersResponse>, Status> {
        self.authorize(&request).await?;
        let Some(running) = self.process.running() else {
            return Err(Status::unavailable("this replica is no member yet, or is reading its log; ask another"));
        };
        members::change(running, request.into_inner()).await.map(Response::new)
    }

    async fn take_snapshot(
        &self,
        request: Request<v1::TakeSnapshotRequest>,
    ) -> Result<Response<v1::TakeSnapshotResponse>, Status> {
        self.authorize(&request).await?;
        let height = clients::snapshot_point(&self.process, SNAPSHOT_POINT).await?;
        Ok(Response::new(v1::TakeSnapshotResponse { height: height.get() }))
    }
}

fn decode_genesis(bytes: Bytes) -> Result<Genesis, Status> {
    if bytes.len() > limits::GENESIS_BYTES_MAX {
        return Err(Status::invalid_argument("a genesis is far smaller than this"));
    }
    Genesis::decode(bytes).map_err(|error| Status::invalid_argument(format!("the genesis does not decode: {error}")))
}

fn snapshots(status: SnapshotStatus) -> SnapshotsStatus {
    let chunks = |count: usize| u64::try_from(count).unwrap_or(u64::MAX);
    SnapshotsStatus {
        newest: status.newest,
        agreed: status.agreed,
        log_begins_above: status.log_begins_above,
        fetching: status.fetching.map(|(height, have, of)| SnapshotFetch {
            height,
            chunks: chunks(have),
            of: chunks(of),
        }),
        trouble: status.trouble,
        taken: status.counters.taken,
        left_out: status.counters.left_out,
        installed: status.counters.installed,
        install_failures: status.counters.not_installed,
        chunks_served: status.counters.served,
    }
}

fn divergence(found: DivergenceStatus) -> Divergence {
    Divergence {
        doubt: match found.state {
            engine::StateDoubt::Over => StateDoubt::Over,
            engine::StateDoubt::Open => StateDoubt::Open,
            engine::StateDoubt::OpenAgain => StateDoubt::OpenAgain,
            engine::StateDoubt::Fenced => StateDoubt::Fenced,
            engine::StateDoubt::FencedAgain => StateDoubt::FencedAgain,
        },
        text: found.to_string(),
        block: found.block,
        exact: found.exact,
        key: found.key,
        witness: found.witness,
    }
}

fn refused(error: &IdentityError) -> Status {
    match error {
        IdentityError::OtherGenesis { .. }
        | IdentityError::OtherSlot { .. }
        | IdentityError::Differs { .. }
        | IdentityError::NotNamed { .. }
        | IdentityError::Retired { .. } => Status::failed_precondition(error.to_string()),
        IdentityError::Invalid(_) => Status::invalid_argument(error.to_string()),
        IdentityError::Disk { .. } => Status::unavailable(error.to_string()),
        IdentityError::Damaged { .. }
        | IdentityError::Newer { .. }
        | IdentityError::Lost { .. }
        | IdentityError::LogLost { .. } => Status::internal(error.to_string()),
    }
}
