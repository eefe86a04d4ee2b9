//! What operators say to one replica: status, genesis, hand-over.

use std::sync::Arc;
use std::time::Duration;

use lockstep_consensus::RoleName;
use lockstep_engine::IdentityError;
use lockstep_types::{Genesis, Height, View};
use lockstep_wire::convert::{id_bytes, optional_replica_id};
use lockstep_wire::{ReplicaStatus, Role, VoterStatus, limits, v1};
use tokio::time::timeout;
use tonic::{Request, Response, Status};

use crate::process::{Process, Running, Stage, hand_over};

/// How long a hand-over may take.
const HAND_OVER: Duration = Duration::from_secs(5);

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
            voters: Vec::new(),
            digest: None,
            state_machine: String::new(),
            uptime: process.clock.uptime(),
        };
        match process.running() {
            Some(running) => self.status_of(running, base).await,
            None => match process.genesis().await {
                None => base,
                Some(genesis) => ReplicaStatus {
                    service: Some(genesis.service),
                    not_ready: Some("is reading its log".to_owned()),
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
            leader: status.leader.and_then(|leader| running.peers.config().voter(leader)),
            head: status.head,
            committed: status.committed,
            applied: status.applied,
            leader_head: status.leader_head,
            leader_heard: status.leader_silent_us.map(Duration::from_micros),
            not_ready: stopping.or(status.not_ready),
            genesis: Some(running.genesis.clone()),
            voters: status
                .voters
                .into_iter()
                .map(|voter| VoterStatus {
                    replica: voter.replica,
                    slot: voter.slot,
                    acknowledged: voter.acknowledged.unwrap_or(Height::ZERO),
                    connected: voter.connected,
                })
                .collect(),
            digest: Some(status.digest),
            state_machine: running.genesis.machine.clone(),
            ..base
        }
    }

    async fn hand_over_from(&self, running: &Running, target: &[u8]) -> Result<v1::HandOverResponse, Status> {
        let target = optional_replica_id("target", target)?;
        let config = running.peers.config();
        let slot = match target {
            None => None,
            Some(target) => Some(config.slot_of(target).ok_or_else(|| {
                Status::invalid_argument(format!("replica {target} is no voter of service {}", running.peers.service()))
            })?),
        };
        let status = running.core.fresh_status().await;
        let done = |leader| {
            let leader = config.voter(leader).expect("only voters lead");
            v1::HandOverResponse { leader_id: id_bytes(leader.as_bytes()) }
        };
        if status.role != RoleName::Leader {
            return match (status.leader, slot) {
                (Some(leader), Some(slot)) if leader == slot => Ok(done(leader)),
                (Some(leader), _) => {
                    let hint = running.peers.locate(leader).map(|leader| leader.address).unwrap_or_default();
                    Err(Status::failed_precondition(format!("{} does not lead; ask {leader} at {hint}", status.slot)))
                }
                (None, _) => Err(Status::unavailable("no leader is known; there is nobody to hand over")),
            };
        }
        if slot == Some(status.slot) {
            return Ok(done(status.slot));
        }
        if config.voters().len() == 1 {
            return Err(Status::failed_precondition("this service has one voter; there is nobody to hand over to"));
        }
        match timeout(HAND_OVER, hand_over(running, slot)).await {
            Ok(leader) => Ok(done(leader)),
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
        let bytes = request.into_inner().genesis;
        if bytes.len() > limits::GENESIS_BYTES_MAX {
            return Err(Status::invalid_argument("a genesis is far smaller than this"));
        }
        let genesis = Genesis::decode(bytes)
            .map_err(|error| Status::invalid_argument(format!("the genesis does not decode: {error}")))?;
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
}

fn refused(error: &IdentityError) -> Status {
    match error {
        IdentityError::OtherGenesis { .. } | IdentityError::Differs { .. } | IdentityError::NotNamed { .. } => {
            Status::failed_precondition(error.to_string())
        }
        IdentityError::Invalid(_) => Status::invalid_argument(error.to_string()),
        IdentityError::Disk { .. } => Status::unavailable(error.to_string()),
        IdentityError::Damaged { .. }
        | IdentityError::Newer { .. }
        | IdentityError::Lost { .. }
        | IdentityError::LogLost { .. } => Status::internal(error.to_string()),
    }
}
