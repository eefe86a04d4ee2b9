//! One voter, a real disk, no threads: the contract with the host in its smallest form.

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use lockstep_consensus::Moment;
use lockstep_engine::{Answer, Engine, EngineOptions, Event, Identity, Operation, Refusal, StartError, Token};
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
        Host::start_with(folder, EngineOptions::default()).unwrap()
    }

    fn start_with(folder: &Path, options: EngineOptions) -> Result<Host, StartError> {
        let disk = Arc::new(FileDisk::open(folder).unwrap());
        let mut identity = Identity::start(&*disk, [1; 16]).unwrap();
        let genesis = Genesis {
            service: ServiceId::from_bytes([5; 16]),
            fault_model: FaultModel::Crash,
            voters: vec![identity.replica],
            machine: "KeyValue".into(),
            sessions_max: Genesis::SESSIONS_MAX,
            reply_bytes_max: Genesis::REPLY_BYTES_MAX,
            snapshot_bytes: Genesis::SNAPSHOT_BYTES,
        };
        identity.adopt(genesis, &*disk).unwrap();
        let now = Moment::from_micros(0);
        let mut engine = Engine::start(disk, &identity, options, now)?;
        let writer = engine.take_writer();
        Ok(Host { engine, writer, now, tokens: 0 })
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

    fn put(&mut self, key: &'static [u8], value: &[u8]) -> KvReply {
        let body = KvRequest::Put { key: key.into(), value: Bytes::copy_from_slice(value) }.encode();
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
fn segments_too_small_for_the_largest_block_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let with =
        |segment_bytes| EngineOptions { wal: lockstep_wal::Options { segment_bytes }, ..EngineOptions::default() };
    let error = Host::start_with(folder.path(), with(2 << 20)).map(|_| ()).unwrap_err();
    assert_eq!(
        error.to_string(),
        "log segments of 2097152 bytes hold batches of 2071408 bytes, and the largest block takes 2097335; \
         choose segments of 2125824 bytes or more"
    );
    let error = Host::start_with(folder.path(), with(2_125_824 - 4096)).map(|_| ()).unwrap_err();
    assert!(matches!(error, StartError::SegmentBytes { least: 2_125_824, .. }), "{error}");
    assert!(Host::start_with(folder.path(), with(4096)).is_err_and(|error| error.to_string().contains("2125824")));
    // What the error says will do does, also for the largest request.
    let mut host = Host::start_with(folder.path(), with(2_125_824)).unwrap();
    let value = vec![7; lockstep_types::limits::REQUEST_BYTES_MAX - 100];
    assert_eq!(host.put(b"large", &value), KvReply::Written { version: 1 });
}

#[test]
fn log_without_its_first_segment_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let options = EngineOptions { wal: lockstep_wal::Options { segment_bytes: 4 << 20 }, ..EngineOptions::default() };
    let mut host = Host::start_with(folder.path(), options.clone()).unwrap();
    for version in 1..=6 {
        assert_eq!(host.put(b"a", &[7; 1 << 19]), KvReply::Written { version });
        assert_eq!(host.put(b"b", &[7; 1 << 19]), KvReply::Written { version });
    }
    drop(host);
    std::fs::remove_file(folder.path().join("wal-000000000001.log")).unwrap();
    let error = Host::start_with(folder.path(), options).map(|_| ()).unwrap_err();
    assert_eq!(
        error.to_string(),
        "log begins with wal-000000000002.log, the segments before it are missing, and no snapshot stands for them; the replica stops and keeps its \
         data: put them back, or give this replica an empty directory so that it joins as a new one"
    );
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
