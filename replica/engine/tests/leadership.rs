//! Requests of a leader that loses its lead: none is forgotten. The peers are played by the test.

use std::path::Path;
use std::sync::Arc;

use lockstep_consensus::{Message, Moment, RoleName};
use lockstep_engine::{Engine, EngineOptions, Event, Identity, Operation, PeerMessage, Token};
use lockstep_types::block::encode_body;
use lockstep_types::kv::KvRequest;
use lockstep_types::{
    Block, BlockHeader, BlockRef, Command, Digest, Epoch, FaultModel, Genesis, Height, LogTime, ReplicaId, ServiceId,
    Slot, View,
};
use lockstep_wal::{FileDisk, Writer};

const PEER: Slot = Slot::new(2);
const SERVICE: ServiceId = ServiceId::from_bytes([5; 16]);

struct Host {
    engine: Engine<FileDisk>,
    writer: Writer<FileDisk>,
    now: Moment,
    proposed: Vec<Block>,
    sent: Vec<PeerMessage>,
}

fn view(round: u64, leader: u32) -> View {
    View::new(round, Slot::new(leader))
}

impl Host {
    /// Leads view 1.1, whose no-op is committed.
    fn leading(folder: &Path) -> Host {
        let disk = Arc::new(FileDisk::open(folder).unwrap());
        let mut identity = Identity::start(&*disk, [1; 16]).unwrap();
        let others = [2, 3].map(|number| ReplicaId::from_bytes([number; 16]));
        let genesis = Genesis {
            service: SERVICE,
            fault_model: FaultModel::Crash,
            voters: vec![identity.replica, others[0], others[1]],
            machine: "KeyValue".into(),
            sessions_max: 64,
            reply_bytes_max: 1 << 20,
            snapshot_bytes: Genesis::SNAPSHOT_BYTES,
        };
        identity.adopt(genesis, &*disk).unwrap();
        let now = Moment::from_micros(1_000_000);
        let mut engine = Engine::start(disk, &identity, EngineOptions::default(), now).unwrap();
        let writer = engine.take_writer();
        let mut host = Host { engine, writer, now, proposed: Vec::new(), sent: Vec::new() };
        host.now = host.now.plus(700_000);
        host.turn();
        let (current, head) = (View::ZERO, BlockRef::GENESIS);
        host.hear(Message::PreCheckReply { view: view(1, 1), would_leave: true, current, head, committed: head });
        host.hear(Message::Timeout { view: view(1, 1), rank: head, faults: Vec::new() });
        host.acknowledge(view(1, 1));
        assert_eq!(host.engine.status(host.now).role, RoleName::Leader);
        host
    }

    fn turn(&mut self) {
        loop {
            let output = self.engine.poll(self.now, LogTime::from_millis(1_700_000_000_000)).unwrap();
            for outgoing in output.send {
                if let PeerMessage::Consensus(Message::Propose { block, .. }) = &outgoing.message
                    && outgoing.to == PEER
                {
                    self.proposed.push(block.clone());
                }
                self.sent.push(outgoing.message);
            }
            let Some(batch) = output.write else { return };
            self.writer.commit(&batch).unwrap();
            self.engine.handle(self.now, Event::Written(batch.seq()));
        }
    }

    fn hear(&mut self, message: Message) {
        let message = PeerMessage::Consensus(message);
        self.engine.handle(self.now, Event::Peer { from: PEER, epoch: Epoch::FIRST, message });
        self.turn();
    }

    fn acknowledge(&mut self, view: View) {
        let block = self.proposed.last().expect("a block was proposed").reference();
        let (applied, digest) = (Height::ZERO, Digest::ZERO);
        self.hear(Message::Ack { view, height: block.height, hash: block.hash, applied, digest });
    }

    fn ask(&mut self, token: u64, operation: Operation) {
        let deadline = self.now.plus(60_000_000);
        self.engine.handle(self.now, Event::Request { token: Token(token), operation, deadline });
        self.turn();
    }

    fn put(&mut self, token: u64) {
        let body = KvRequest::Put { key: "k".into(), value: "v".into() }.encode();
        self.ask(token, Operation::Command(Command::Plain { body }.encode()));
    }
}

#[test]
fn request_whose_height_is_proposed_again_is_not_forgotten() {
    let folder = tempfile::tempdir().unwrap();
    let mut host = Host::leading(folder.path());
    for token in 1..=3 {
        host.put(token);
    }
    let no_op = host.proposed[0].reference();
    // r2 leads 2.2, replaces all three, and hands over to r1, who proposes at the same heights again.
    let header = BlockHeader {
        service: SERVICE,
        epoch: Epoch::FIRST,
        view: view(2, 2),
        height: Height::new(2),
        parent: no_op.hash,
        body: Digest::ZERO,
        log_time: LogTime::from_millis(1_700_000_000_000),
        change: None,
    };
    let other = Block::new(header, encode_body(&[]));
    host.hear(Message::Propose { view: view(2, 2), block: other.clone(), committed: no_op });
    host.hear(Message::HandOver { view: view(2, 2), next: view(3, 1) });
    host.hear(Message::Timeout { view: view(3, 1), rank: other.reference(), faults: Vec::new() });
    host.acknowledge(view(3, 1));
    host.put(4);
    for _ in 0..20 {
        host.now = host.now.plus(50_000);
        host.turn();
        host.acknowledge(view(3, 1));
    }
    let status = host.engine.status(host.now);
    assert_eq!((status.role, status.applied), (RoleName::Leader, status.head));
    assert_eq!(status.requests, 0, "a request is still held though everything is applied");
}

#[test]
fn read_that_arrives_in_the_step_that_steps_down_is_asked_again() {
    let folder = tempfile::tempdir().unwrap();
    let mut host = Host::leading(folder.path());
    // The process stood still for longer than the election time.
    host.now = host.now.plus(1_000_000);
    host.ask(9, Operation::Read(KvRequest::Get { key: "k".into() }.encode()));
    assert_eq!(host.engine.status(host.now).role, RoleName::Candidate);

    let head = host.proposed[0].reference();
    let heartbeat = Message::Heartbeat { view: view(3, 2), round: 1, head, committed: head, acknowledged: head.height };
    host.hear(heartbeat);
    assert!(
        host.sent.iter().any(|message| matches!(message, PeerMessage::ReadIndex { .. })),
        "asked of the new leader"
    );
}
