//! One voter, a real disk, no threads: the contract with the host in its smallest form.

use std::path::Path;
use std::sync::Arc;

use lockstep_consensus::Moment;
use lockstep_engine::{Answer, Engine, EngineOptions, Event, Identity, Operation, Refusal, Token};
use lockstep_types::kv::{KvReply, KvRequest};
use lockstep_types::{Command, FaultModel, Genesis, LogTime, Outcome, ServiceId};
use lockstep_wal::{FileDisk, Writer};

struct Host {
    engine: Engine<FileDisk>,
    writer: Writer<FileDisk>,
    now: Moment,
    tokens: u64,
}

impl Host {
    fn start(folder: &Path) -> Host {
        let disk = Arc::new(FileDisk::open(folder).unwrap());
        let mut identity = Identity::start(&*disk, [1; 16]).unwrap();
        let genesis = Genesis {
            service: ServiceId::from_bytes([5; 16]),
            fault_model: FaultModel::Crash,
            voters: vec![identity.replica],
            machine: "KeyValue".into(),
            sessions_max: Genesis::SESSIONS_MAX,
            reply_bytes_max: Genesis::REPLY_BYTES_MAX,
        };
        identity.adopt(genesis, &*disk).unwrap();
        let now = Moment::from_micros(0);
        let mut engine = Engine::start(disk, &identity, EngineOptions::default(), now).unwrap();
        let writer = engine.take_writer();
        Host { engine, writer, now, tokens: 0 }
    }

    /// Runs until this request is answered.
    fn ask(&mut self, operation: Operation) -> Answer {
        self.tokens += 1;
        let token = Token(self.tokens);
        let deadline = self.now.plus(5_000_000);
        self.engine.handle(self.now, Event::Request { token, operation, deadline });
        for _ in 0..100_000 {
            let output = self.engine.poll(self.now, LogTime::from_millis(1_700_000_000_000)).unwrap();
            assert!(output.send.is_empty(), "there is nobody to talk to");
            if let Some(batch) = output.write {
                self.writer.commit(&batch).unwrap();
                self.engine.handle(self.now, Event::Written(batch.seq()));
            }
            if let Some((_, answer)) = output.replies.into_iter().find(|(answered, _)| *answered == token) {
                return answer;
            }
            self.now = self.now.plus(1_000);
        }
        panic!("no answer");
    }

    fn put(&mut self, key: &'static [u8], value: &'static [u8]) -> KvReply {
        let body = KvRequest::Put { key: key.into(), value: value.into() }.encode();
        match self.ask(Operation::Command(Command::Plain { body }.encode())) {
            Answer::Outcome(Outcome::Replied { reply }) => KvReply::decode(reply).unwrap(),
            other => panic!("unexpected answer {other:?}"),
        }
    }

    fn get(&mut self, key: &'static [u8]) -> KvReply {
        match self.ask(Operation::Read(KvRequest::Get { key: key.into() }.encode())) {
            Answer::Read(reply) => KvReply::decode(reply).unwrap(),
            other => panic!("unexpected answer {other:?}"),
        }
    }
}

#[test]
fn single_voter_writes_reads_and_finds_its_data_after_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let mut host = Host::start(folder.path());
    assert_eq!(host.put(b"a", b"1"), KvReply::Written { version: 1 });
    assert_eq!(host.put(b"a", b"2"), KvReply::Written { version: 2 });
    let digest = host.engine.status(host.now).digest;
    drop(host);

    let mut host = Host::start(folder.path());
    let KvReply::Found(found) = host.get(b"a") else { panic!("the key is gone") };
    assert_eq!((&found.value[..], found.version), (&b"2"[..], 2));
    assert_ne!(host.engine.status(host.now).digest, digest, "a new view's no-op is part of the history");
    assert_eq!(host.put(b"a", b"3"), KvReply::Written { version: 3 });
}

#[test]
fn malformed_command_is_answered_and_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let mut host = Host::start(folder.path());
    let answer = host.ask(Operation::Command(b"\xffgarbage"[..].into()));
    assert!(matches!(answer, Answer::Outcome(Outcome::Invalid { .. })), "{answer:?}");
    assert_eq!(host.put(b"a", b"1"), KvReply::Written { version: 1 });
}

#[test]
fn request_past_its_deadline_is_refused_as_unknown_or_never_proposed() {
    let folder = tempfile::tempdir().unwrap();
    let mut host = Host::start(folder.path());
    let token = Token(1 << 30);
    let body = KvRequest::Put { key: "k".into(), value: "v".into() }.encode();
    let operation = Operation::Command(Command::Plain { body }.encode());
    // No leader yet, and no time to find one.
    host.engine.handle(host.now, Event::Request { token, operation, deadline: host.now.plus(1) });
    host.now = host.now.plus(400_000);
    let output = host.engine.poll(host.now, LogTime::default()).unwrap();
    let refused = Answer::Refused(Refusal::Deadline { never_proposed: true });
    assert_eq!(output.replies, vec![(token, refused)]);
}
