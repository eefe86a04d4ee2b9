//! The key-value machine as plain unary calls. Writes name no session: at least once, if the caller retries.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use lockstep_engine::{Answer, Operation};
use lockstep_types::kv::{KvReply, KvRequest};
use lockstep_types::{Command, Outcome};
use lockstep_wire::{limits, v1};
use tonic::metadata::MetadataMap;
use tonic::{Request, Response, Status};

use crate::clients::{self, unary};
use crate::process::Process;

/// The key-value service.
pub(crate) struct KeyValueService {
    pub process: Arc<Process>,
}

impl KeyValueService {
    async fn ask(&self, metadata: &MetadataMap, request: KvRequest) -> Result<KvReply, Status> {
        let longest = Duration::from_millis(u64::from(limits::TIMEOUT_MS_MAX));
        let timeout = match unary::grpc_timeout(metadata) {
            Some(timeout) => timeout.min(longest),
            None => clients::timeout_of(0),
        };
        clients::takes_requests(&self.process, None).map_err(unary::status)?;
        let reads = request.is_read();
        let operation = operation(&request)?;
        let reply = match unary::ask(&self.process, operation, timeout).await? {
            Answer::Outcome(Outcome::Replied { reply }) | Answer::Read(reply) => reply,
            Answer::Outcome(outcome) => return Err(Status::internal(format!("unexpected outcome: {outcome}"))),
            Answer::Refused(refusal) => return Err(unary::refused(&self.process, refusal)),
        };
        match KvReply::decode(reply) {
            Ok(KvReply::Invalid) => Err(Status::invalid_argument("the state machine does not understand the request")),
            Ok(KvReply::Omitted) => Err(Status::unavailable(
                "the request changed nothing, and its reply was left out among many large ones; try again",
            )),
            Ok(KvReply::TooLarge) => Err(Status::out_of_range(
                "the transaction changed nothing: the values that it reads are larger than a reply; read fewer keys at a time",
            )),
            Ok(reply) => Ok(reply),
            Err(error) => Err(Status::internal(format!(
                "the {} was executed, but its reply does not decode: {error}",
                if reads { "read" } else { "write" }
            ))),
        }
    }
}

fn operation(request: &KvRequest) -> Result<Operation, Status> {
    let body = request.checked().map_err(|error| Status::invalid_argument(error.to_string()))?;
    Ok(if request.is_read() { Operation::Read(body) } else { Operation::Command(Command::Plain { body }.encode()) })
}

fn unexpected(reply: &KvReply) -> Status {
    Status::internal(format!("unexpected reply {reply:?}"))
}

#[tonic::async_trait]
impl v1::key_value_server::KeyValue for KeyValueService {
    async fn put(&self, request: Request<v1::PutRequest>) -> Result<Response<v1::PutResponse>, Status> {
        let (metadata, _, put) = request.into_parts();
        match self.ask(&metadata, put.into()).await? {
            KvReply::Written { version } => Ok(Response::new(v1::PutResponse { version })),
            reply => Err(unexpected(&reply)),
        }
    }

    async fn get(&self, request: Request<v1::GetRequest>) -> Result<Response<v1::GetResponse>, Status> {
        let (metadata, _, get) = request.into_parts();
        match self.ask(&metadata, get.into()).await? {
            KvReply::Found(found) => Ok(Response::new(Some(found).into())),
            KvReply::Missing => Ok(Response::new(None.into())),
            reply => Err(unexpected(&reply)),
        }
    }

    async fn delete(&self, request: Request<v1::DeleteRequest>) -> Result<Response<v1::DeleteResponse>, Status> {
        let (metadata, _, delete) = request.into_parts();
        match self.ask(&metadata, delete.into()).await? {
            KvReply::Deleted => Ok(Response::new(v1::DeleteResponse { deleted: true })),
            KvReply::Missing => Ok(Response::new(v1::DeleteResponse { deleted: false })),
            reply => Err(unexpected(&reply)),
        }
    }

    async fn compare_and_set(
        &self,
        request: Request<v1::CompareAndSetRequest>,
    ) -> Result<Response<v1::CompareAndSetResponse>, Status> {
        let (metadata, _, set) = request.into_parts();
        let (written, version, value) = match self.ask(&metadata, set.try_into()?).await? {
            KvReply::Written { version } => (true, version, Bytes::new()),
            KvReply::Mismatch { current: Some(current) } => (false, current.version, current.value),
            KvReply::Mismatch { current: None } => (false, 0, Bytes::new()),
            reply => return Err(unexpected(&reply)),
        };
        Ok(Response::new(v1::CompareAndSetResponse { written, version, value }))
    }

    async fn scan(&self, request: Request<v1::ScanRequest>) -> Result<Response<v1::ScanResponse>, Status> {
        let (metadata, _, scan) = request.into_parts();
        match self.ask(&metadata, scan.into()).await? {
            KvReply::Scanned(page) => Ok(Response::new(page.into())),
            reply => Err(unexpected(&reply)),
        }
    }

    async fn transaction(
        &self,
        request: Request<v1::TransactionRequest>,
    ) -> Result<Response<v1::TransactionResponse>, Status> {
        let (metadata, _, transaction) = request.into_parts();
        match self.ask(&metadata, transaction.try_into()?).await? {
            KvReply::Transaction(done) => Ok(Response::new(done.into())),
            reply => Err(unexpected(&reply)),
        }
    }
}
