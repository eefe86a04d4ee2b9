//! Admin and health calls to one replica. Used by the operator, the command line and tests; no session, no retry.

use std::error::Error as _;
use std::future::Future;
use std::time::Duration;

use bytes::Bytes;
use lockstep_types::{Change, Genesis, Height, ReplicaId, ServiceId, Slot};
use lockstep_wire::v1::{admin_client, client_client};
use lockstep_wire::{Leader, Membership, ReplicaStatus, WireError, convert, limits, v1};
use tonic::metadata::errors::InvalidMetadataValue;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::Channel;
use tonic::{Request, Response, Status};
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::{HealthCheckRequest, health_client};

use crate::AdminError;
use crate::endpoint;

/// How long an admin or health call may take unless said otherwise.
pub const ADMIN_TIMEOUT: Duration = Duration::from_secs(3);

/// How long a hand-over may take unless said otherwise: an election with time to spare.
pub const HAND_OVER_TIMEOUT: Duration = Duration::from_secs(10);

/// How long it may take to make a snapshot point unless said otherwise: a request with time to spare.
pub const TAKE_SNAPSHOT_TIMEOUT: Duration = Duration::from_secs(10);

/// Admin calls to the replica at one address. Cheap to clone; connects with the first call and again after a failure.
#[derive(Clone, Debug)]
pub struct AdminClient {
    address: String,
    channel: Channel,
    token: Option<MetadataValue<Ascii>>,
    timeout: Option<Duration>,
}

impl AdminClient {
    /// A client of the replica at `address` (`host:port`), with the service's admin token if a call is made that changes
    /// something. Does not wait for the connection.
    ///
    /// # Errors
    /// [`AdminError::Other`] for an address that is not `host:port` or a token that is not printable ASCII. Must be called
    /// within a Tokio runtime.
    pub fn connect(address: &str, token: Option<&str>) -> Result<Self, AdminError> {
        let other = |reason: String| AdminError::Other { address: address.to_owned(), reason };
        let channel = endpoint::endpoint(address).map_err(other)?.connect_lazy();
        let token = token
            .map(|token| {
                let mut value = MetadataValue::try_from(format!("Bearer {}", token.trim()))?;
                // So that it is not printed.
                value.set_sensitive(true);
                Ok(value)
            })
            .transpose()
            .map_err(|_: InvalidMetadataValue| other("the admin token is not printable ASCII".to_owned()))?;
        Ok(AdminClient { address: address.to_owned(), channel, token, timeout: None })
    }

    /// The same client with this limit on every call instead of [`ADMIN_TIMEOUT`], [`HAND_OVER_TIMEOUT`] and
    /// [`TAKE_SNAPSHOT_TIMEOUT`].
    #[must_use]
    pub fn with_timeout(mut self, timeout: Duration) -> Self {
        self.timeout = Some(timeout);
        self
    }

    /// The address as given.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// What the replica is and knows. It answers at once, whatever state the service is in.
    ///
    /// # Errors
    /// See [`AdminError`].
    pub async fn status(&self) -> Result<ReplicaStatus, AdminError> {
        let mut client = self.client();
        let request = self.request(v1::StatusRequest {});
        let status = self.call(ADMIN_TIMEOUT, client.status(request)).await?;
        ReplicaStatus::try_from(status).map_err(|error| self.other(format!("status makes no sense: {error}")))
    }

    /// Gives birth to the service, idempotently. False if the replica had this very genesis already.
    ///
    /// # Errors
    /// See [`AdminError`]; `Refused` with `FailedPrecondition` if the replica has another genesis.
    pub async fn genesis(&self, genesis: &Genesis) -> Result<bool, AdminError> {
        let mut client = self.client();
        let request = self.request(v1::GenesisRequest { genesis: Bytes::from(genesis.encode()) });
        Ok(self.call(ADMIN_TIMEOUT, client.genesis(request)).await?.created)
    }

    /// Asks the leader to hand over to `target`, or to whichever voter is caught up best, and waits until another replica
    /// leads. Gives the new leader.
    ///
    /// # Errors
    /// See [`AdminError`].
    pub async fn hand_over(&self, target: Option<ReplicaId>) -> Result<ReplicaId, AdminError> {
        let mut client = self.client();
        let target = target.map(|id| convert::id_bytes(id.as_bytes())).unwrap_or_default();
        let request = self.request(v1::HandOverRequest { target });
        let answer = self.call(HAND_OVER_TIMEOUT, client.hand_over(request)).await?;
        convert::replica_id("leader_id", &answer.leader_id).map_err(|error| self.other(error.to_string()))
    }

    /// Makes a new height a snapshot point, through any replica, and gives that height. All replicas then write a snapshot of
    /// the state there, beside their other work; [`ReplicaStatus::snapshots`] tells when. Calling again makes another one.
    ///
    /// # Errors
    /// See [`AdminError`]; `Refused` with `Unavailable` while there is no leader or no genesis, `ResourceExhausted` under too
    /// much load.
    pub async fn take_snapshot(&self) -> Result<Height, AdminError> {
        let mut client = self.client();
        let request = self.request(v1::TakeSnapshotRequest {});
        let answer = self.call(TAKE_SNAPSHOT_TIMEOUT, client.take_snapshot(request)).await?;
        Ok(Height::new(answer.height))
    }

    /// Makes the replica a member of the service of this genesis, in the slot that [`Self::change_members`] gave to it. False
    /// if it was that already.
    ///
    /// # Errors
    /// See [`AdminError`]; `Refused` with `FailedPrecondition` if it has another genesis or slot.
    pub async fn join(&self, genesis: &Genesis, slot: Slot) -> Result<bool, AdminError> {
        let mut client = self.client();
        let request = v1::JoinRequest { genesis: Bytes::from(genesis.encode()), slot: slot.get() };
        Ok(self.call(ADMIN_TIMEOUT, client.join(self.request(request))).await?.created)
    }

    /// Changes the membership, on the leader, and waits until that is committed and settled. Gives the membership, and the slot
    /// of the replica that the change is about. What is so already is answered at once, so it may be asked again.
    ///
    /// # Errors
    /// See [`AdminError`]; `Refused` with `FailedPrecondition` if the change cannot be made, or this replica does not lead.
    pub async fn change_members(&self, change: Change) -> Result<(Membership, Slot), AdminError> {
        use v1::change_members_request::Change as Asked;
        let mut client = self.client();
        let asked = match change {
            Change::AddStandby { replica } => Asked::Add(convert::id_bytes(replica.as_bytes())),
            Change::Promote { slot } => Asked::Promote(slot.get()),
            Change::Remove { slot } => Asked::Remove(slot.get()),
        };
        let request = self.request(v1::ChangeMembersRequest { change: Some(asked) });
        let answer = self.call(HAND_OVER_TIMEOUT, client.change_members(request)).await?;
        let membership = answer.membership.ok_or_else(|| self.other("its answer names no membership".to_owned()))?;
        let membership = Membership::try_from(membership).map_err(|error| self.other(error.to_string()))?;
        Ok((membership, Slot::new(answer.slot)))
    }

    /// Who leads and who votes, as this replica knows it, with the addresses of their client APIs.
    ///
    /// # Errors
    /// See [`AdminError`].
    pub async fn locate(&self) -> Result<Located, AdminError> {
        let mut client = client_client::ClientClient::new(self.channel.clone());
        let request = Request::new(v1::LocateRequest {});
        let answer = self.call(ADMIN_TIMEOUT, client.locate(request)).await?;
        self.located(answer).map_err(|error| self.other(format!("its answer makes no sense: {error}")))
    }

    fn located(&self, answer: v1::LocateResponse) -> Result<Located, WireError> {
        let all = |hints: Vec<v1::LeaderHint>| {
            hints.into_iter().filter_map(|hint| convert::leader(Some(hint)).transpose()).collect::<Result<_, _>>()
        };
        Ok(Located {
            service: convert::service_id("service_id", &answer.service_id)?,
            leader: convert::leader(answer.leader)?,
            voters: all(answer.voters)?,
            standbys: all(answer.standbys)?,
        })
    }

    /// What the replica's health service says of the whole replica (service name ``).
    ///
    /// # Errors
    /// See [`AdminError`].
    pub async fn health(&self) -> Result<Health, AdminError> {
        self.health_of("").await
    }

    /// What the replica's health service says of `service`.
    ///
    /// # Errors
    /// See [`AdminError`]; `Refused` with `NotFound` for a service that the replica does not report on.
    pub async fn health_of(&self, service: &str) -> Result<Health, AdminError> {
        let mut client = health_client::HealthClient::new(self.channel.clone());
        let request = Request::new(HealthCheckRequest { service: service.to_owned() });
        let answer = self.call(ADMIN_TIMEOUT, client.check(request)).await?;
        Ok(match answer.status() {
            ServingStatus::Serving => Health::Serving,
            ServingStatus::NotServing => Health::NotServing,
            ServingStatus::Unknown | ServingStatus::ServiceUnknown => Health::Unknown,
        })
    }

    fn client(&self) -> admin_client::AdminClient<Channel> {
        admin_client::AdminClient::new(self.channel.clone())
            .max_decoding_message_size(limits::FRAME_BYTES_MAX)
            .max_encoding_message_size(limits::FRAME_BYTES_MAX)
    }

    fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        if let Some(token) = &self.token {
            request.metadata_mut().insert("authorization", token.clone());
        }
        request
    }

    async fn call<T>(
        &self,
        default: Duration,
        call: impl Future<Output = Result<Response<T>, Status>>,
    ) -> Result<T, AdminError> {
        let timeout = self.timeout.unwrap_or(default);
        match tokio::time::timeout(timeout, call).await {
            Ok(Ok(response)) => Ok(response.into_inner()),
            Ok(Err(status)) => Err(self.failed(&status)),
            Err(_) => Err(AdminError::Unreachable {
                address: self.address.clone(),
                reason: format!("no answer within {timeout:?}"),
            }),
        }
    }

    /// A status that the transport made up carries its cause; one that the replica sent does not.
    fn failed(&self, status: &Status) -> AdminError {
        let address = self.address.clone();
        match status.source() {
            Some(cause) => AdminError::Unreachable { address, reason: endpoint::root_cause(cause) },
            None => AdminError::Refused { address, code: status.code(), message: status.message().to_owned() },
        }
    }

    fn other(&self, reason: String) -> AdminError {
        AdminError::Other { address: self.address.clone(), reason }
    }
}

/// What a replica knows of its service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Located {
    /// The service; none before genesis.
    pub service: Option<ServiceId>,
    /// Who leads, if that is known.
    pub leader: Option<Leader>,
    /// All voters whose addresses it knows.
    pub voters: Vec<Leader>,
    /// All standbys whose addresses it knows. They have no vote.
    pub standbys: Vec<Leader>,
}

/// What a health service says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Health {
    /// Ready.
    Serving,
    /// Alive, not ready.
    NotServing,
    /// The service does not say.
    Unknown,
}

/// Whether the replica at `address` is ready, by `grpc.health.v1`, within [`ADMIN_TIMEOUT`].
///
/// # Errors
/// See [`AdminError`].
pub async fn health(address: &str) -> Result<Health, AdminError> {
    AdminClient::connect(address, None)?.health().await
}
