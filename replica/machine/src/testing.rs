//! What the tests share: a log that applies blocks, and a machine whose replies tell a second execution from the first.

use bytes::Bytes;
use lockstep_types::{
    Block, BlockHeader, Command, Digest, Epoch, FaultModel, Genesis, LogTime, Outcome, ReplicaId, ServiceId, SessionId,
    Slot, View, block,
};

use crate::executor::{Applied, Executor};
use crate::machine::{Context, StateMachine};
use crate::store::{Change, Store};

/// A genesis of one voter with these limits on sessions.
pub(crate) fn genesis(sessions_max: u32, reply_bytes_max: u64) -> Genesis {
    Genesis {
        service: ServiceId::from_bytes([7; 16]),
        fault_model: FaultModel::Crash,
        voters: vec![ReplicaId::from_bytes([1; 16])],
        machine: "KeyValue".into(),
        sessions_max,
        reply_bytes_max,
        snapshot_bytes: Genesis::SNAPSHOT_BYTES,
    }
}

/// An executor and the chain of blocks that it was fed.
#[derive(Clone, Debug)]
pub(crate) struct Log {
    pub executor: Executor,
    pub blocks: Vec<Block>,
}

impl Log {
    /// Runs [`Journal`] under the usual limits.
    pub fn new() -> Self {
        Log::with_limits(Genesis::SESSIONS_MAX, Genesis::REPLY_BYTES_MAX)
    }

    /// Runs [`Journal`] under these limits.
    pub fn with_limits(sessions_max: u32, reply_bytes_max: u64) -> Self {
        Log::with_genesis(genesis(sessions_max, reply_bytes_max))
    }

    /// Runs [`Journal`] from this genesis.
    pub fn with_genesis(genesis: Genesis) -> Self {
        Log { executor: Executor::with_machine(&genesis, std::sync::Arc::new(Journal)), blocks: Vec::new() }
    }

    /// Commits one block of these commands.
    pub fn block(&mut self, commands: &[Command]) -> Applied {
        self.bytes(&commands.iter().map(Command::encode).collect::<Vec<_>>())
    }

    /// Commits one block of one command.
    pub fn one(&mut self, command: Command) -> Outcome {
        self.block(&[command]).outcomes.remove(0)
    }

    /// Commits one block of whatever these bytes are.
    pub fn bytes(&mut self, commands: &[Bytes]) -> Applied {
        let header = BlockHeader {
            service: ServiceId::from_bytes([7; 16]),
            epoch: Epoch::FIRST,
            view: View::new(1, Slot::new(1)),
            height: self.executor.applied().next(),
            parent: self.blocks.last().map_or(Digest::ZERO, Block::hash),
            body: Digest::ZERO,
            log_time: LogTime::from_millis(1000),
            change: None,
        };
        let block = Block::new(header, block::encode_body(commands));
        let applied = feed(&mut self.executor, &block);
        self.blocks.push(block);
        applied
    }

    /// Opens a session in a block of its own.
    pub fn open(&mut self, nonce: u8) -> SessionId {
        match self.one(open(nonce)) {
            Outcome::SessionOpened { session } => session,
            outcome => panic!("no session but {outcome}"),
        }
    }
}

/// Applies a block as a host would.
pub(crate) fn feed(executor: &mut Executor, block: &Block) -> Applied {
    let commands = block::decode_body(block.body()).expect("a block's body is a list of commands");
    executor.apply(block.header(), block.hash(), &commands)
}

/// Answers each request with how many were executed before, and the request. An empty request gets no such mark, so that
/// a reply can be empty.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Journal;

impl StateMachine for Journal {
    fn apply(&self, _: &Context, requests: &[Bytes], store: &mut Store) -> Vec<Bytes> {
        requests.iter().map(|request| journal(request, store)).collect()
    }

    fn check(&self, _: &[u8], value: &[u8]) -> Result<(), &'static str> {
        if value.len() == 8 { Ok(()) } else { Err("a count has eight bytes") }
    }

    fn query(&self, _: &Bytes, store: &Store) -> Bytes {
        store.get(b"executed").cloned().unwrap_or_default()
    }
}

fn journal(request: &Bytes, store: &mut Store) -> Bytes {
    let before = store.update(b"executed", |current| {
        let before = current.map_or(0, |current| u64::from_le_bytes(current[..].try_into().expect("eight bytes")));
        (Change::Put((before + 1).to_le_bytes().to_vec()), before)
    });
    match request.is_empty() {
        true => Bytes::new(),
        false => journal_reply(before, request),
    }
}

/// The reply to `request` when `before` requests were executed before.
pub(crate) fn journal_reply(before: u64, request: &[u8]) -> Bytes {
    [&before.to_le_bytes()[..], request].concat().into()
}

pub(crate) fn open(nonce: u8) -> Command {
    Command::OpenSession { nonce: [nonce; 16] }
}

pub(crate) fn close(session: SessionId) -> Command {
    Command::CloseSession { session }
}

pub(crate) fn execute(session: SessionId, sequence: u64, acknowledged: u64, body: &'static str) -> Command {
    Command::Execute { session, sequence, acknowledged, body: Bytes::from_static(body.as_bytes()) }
}

pub(crate) fn resolve(session: SessionId, sequence: u64) -> Command {
    Command::Resolve { session, sequence }
}

pub(crate) fn plain(body: &Bytes) -> Command {
    Command::Plain { body: body.clone() }
}

/// The outcome of the request that [`Journal`] executed after `before` others.
pub(crate) fn replied(before: u64, request: &str) -> Outcome {
    Outcome::Replied { reply: journal_reply(before, request.as_bytes()) }
}
