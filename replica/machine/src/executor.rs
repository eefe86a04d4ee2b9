//! What the engine gives committed blocks to: machine, store, sessions and the rolling digest, at one height.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use lockstep_types::codec::Writer;
use lockstep_types::{BlockHeader, Command, Digest, Genesis, Height, Invalid, Outcome, SessionId};

use crate::machine::{Context, MachineError, StateMachine, by_name};
use crate::sessions::{Position, Sessions, Verdict};
use crate::store::Store;

/// All replicated state above the log, as of one height. A clone goes its own way.
///
/// Invariant: it is a function of the genesis and the blocks applied, apart from the counters in [`Stats`], which say what
/// this executor did since it was made.
#[derive(Clone, Debug)]
pub struct Executor {
    machine: Arc<dyn StateMachine>,
    store: Store,
    sessions: Sessions,
    applied: Height,
    digest: Digest,
    counters: Counters,
}

#[derive(Clone, Copy, Debug, Default)]
struct Counters {
    executed: u64,
    answered_from_table: u64,
    evictions: u64,
}

/// What a block did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Applied {
    /// One for each command, in order.
    pub outcomes: Vec<Outcome>,
    /// Requests and resolves that were answered as before, without executing anything.
    pub answered_from_table: u32,
    /// Sessions' requests that were executed in this block, in order.
    pub executed: Vec<(SessionId, u64)>,
    /// Sessions that the replicated rule ended after this block.
    pub evicted: Vec<SessionId>,
}

/// Sizes now, and counters since the executor was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Live sessions.
    pub sessions: usize,
    /// Bytes of all cached replies.
    pub reply_bytes: u64,
    /// Keys in the store.
    pub keys: usize,
    /// Counter: requests that the machine executed.
    pub executed: u64,
    /// Counter: requests and resolves that were answered as before.
    pub answered_from_table: u64,
    /// Counter: sessions that the replicated rule ended.
    pub evictions: u64,
}

impl Executor {
    /// The state before the first block.
    ///
    /// # Errors
    /// A machine that this release does not have.
    pub fn new(genesis: &Genesis) -> Result<Self, MachineError> {
        Ok(Executor::with_machine(genesis, by_name(&genesis.machine)?))
    }

    /// The state before the first block, with a machine that need not be built in.
    pub fn with_machine(genesis: &Genesis, machine: Arc<dyn StateMachine>) -> Self {
        Executor {
            machine,
            store: Store::default(),
            sessions: Sessions::new(genesis),
            applied: Height::ZERO,
            digest: Digest::ZERO,
            counters: Counters::default(),
        }
    }

    /// Executes the next committed block. `hash` is the hash of `header`, `commands` are the parts of its body. Panics if
    /// the block is not the next one; bytes in it never panic.
    pub fn apply(&mut self, header: &BlockHeader, hash: Digest, commands: &[Bytes]) -> Applied {
        assert!(header.height == self.applied.next(), "block {} applied after {}", header.height, self.applied);
        let context = Context {
            height: header.height,
            view: header.view,
            log_time: header.log_time,
            seed: Digest::of_parts(&[b"lockstep seed", hash.as_bytes()]),
        };

        let mut batch = Batch::default();
        let verdicts: Vec<Verdict> = (0..)
            .zip(commands)
            .map(|(index, command)| self.filter(Position { height: header.height, index }, command, &mut batch))
            .collect();

        self.store.begin();
        let replies = self.machine.apply(&context, &batch.requests, &mut self.store);
        assert!(
            replies.len() == batch.requests.len(),
            "machine gave {} replies to {} requests at height {}",
            replies.len(),
            batch.requests.len(),
            header.height
        );
        let replies: Vec<Bytes> = replies.into_iter().map(own).collect();

        let mut executed = Vec::with_capacity(replies.len());
        for (owner, reply) in batch.owners.iter().zip(&replies) {
            if let Some((session, sequence)) = *owner {
                self.sessions.record(session, sequence, reply.clone());
                executed.push((session, sequence));
            }
        }
        let evicted = self.sessions.evict();

        let mut answered_from_table = 0;
        let mut places = replies.iter();
        let outcomes: Vec<Outcome> = verdicts
            .into_iter()
            .map(|verdict| match verdict {
                Verdict::Execute => {
                    Outcome::Replied { reply: places.next().expect("one reply for each request").clone() }
                }
                Verdict::Decided(outcome) => outcome,
                Verdict::Again(outcome) => {
                    answered_from_table += 1;
                    outcome
                }
                Verdict::AgainInBatch(place) => {
                    answered_from_table += 1;
                    Outcome::Replied { reply: replies[place].clone() }
                }
            })
            .collect();

        self.counters.executed += replies.len() as u64;
        self.counters.answered_from_table += u64::from(answered_from_table);
        self.counters.evictions += evicted.len() as u64;
        self.digest = roll(self.digest, hash, self.store.writes(), &outcomes, &evicted);
        self.applied = header.height;
        Applied { outcomes, answered_from_table, executed, evicted }
    }

    /// Decides on one command; what is to be executed goes into the batch.
    fn filter(&mut self, at: Position, command: &Bytes, batch: &mut Batch) -> Verdict {
        match Command::decode(command.clone()) {
            Ok(Command::OpenSession { nonce }) => Verdict::Decided(self.sessions.open(at, nonce)),
            Ok(Command::CloseSession { session }) => Verdict::Decided(self.sessions.close(at, session)),
            Ok(Command::Execute { session, sequence, acknowledged, body }) => {
                let verdict = self.sessions.execute(at, session, sequence, acknowledged, batch.requests.len());
                if verdict == Verdict::Execute {
                    batch.push(body, Some((session, sequence)));
                }
                verdict
            }
            Ok(Command::Resolve { session, sequence }) => self.sessions.resolve(at, session, sequence),
            Ok(Command::Plain { body }) => {
                batch.push(body, None);
                Verdict::Execute
            }
            Err(_) => Verdict::Decided(Outcome::Invalid { reason: Invalid::Malformed }),
        }
    }

    /// Answers a read from the state at [`Executor::applied`]; changes nothing.
    pub fn query(&self, body: &Bytes) -> Bytes {
        self.machine.query(body, &self.store)
    }

    /// Height of the last block applied.
    pub fn applied(&self) -> Height {
        self.applied
    }

    /// The execution digest at [`Executor::applied`]: of all that was executed, written and answered so far. Replicas
    /// compare it (PROTOCOL §9).
    pub fn digest(&self) -> Digest {
        self.digest
    }

    /// The store, to look into.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// Sizes and counters.
    pub fn stats(&self) -> Stats {
        Stats {
            sessions: self.sessions.len(),
            reply_bytes: self.sessions.reply_bytes(),
            keys: self.store.len(),
            executed: self.counters.executed,
            answered_from_table: self.counters.answered_from_table,
            evictions: self.counters.evictions,
        }
    }
}

impl fmt::Display for Executor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Executor { applied, digest, sessions, store, .. } = self;
        write!(f, "applied={applied} digest={digest} sessions={} keys={}", sessions.len(), store.len())
    }
}

/// The requests of a block that go to the machine, and whose they are: a session's sequence, or nobody's.
#[derive(Debug, Default)]
struct Batch {
    requests: Vec<Bytes>,
    owners: Vec<Option<(SessionId, u64)>>,
}

impl Batch {
    fn push(&mut self, request: Bytes, owner: Option<(SessionId, u64)>) {
        self.requests.push(request);
        self.owners.push(owner);
    }
}

/// A reply in memory of its own: a machine may answer with a piece of a request, which holds its whole block.
fn own(reply: Bytes) -> Bytes {
    match reply.is_unique() {
        true => reply,
        false => Bytes::copy_from_slice(&reply),
    }
}

/// The next execution digest. The write set comes with its length, the lists with their counts, so that no two different
/// executions hash the same bytes.
fn roll(previous: Digest, block: Digest, writes: &[u8], outcomes: &[Outcome], evicted: &[SessionId]) -> Digest {
    let mut answers = Writer::default();
    answers.u32(count(outcomes));
    for outcome in outcomes {
        answers.bytes(&outcome.encode());
    }
    answers.u32(count(evicted));
    for session in evicted {
        answers.height(session.height).u32(session.index);
    }
    let length = (writes.len() as u64).to_le_bytes();
    Digest::of_parts(&[previous.as_bytes(), block.as_bytes(), &length, writes, &answers.finish()])
}

fn count<T>(list: &[T]) -> u32 {
    u32::try_from(list.len()).expect("a block holds few commands, a table few sessions")
}

#[cfg(test)]
mod tests {
    use lockstep_types::kv::KvRequest;
    use lockstep_types::limits::BLOCK_BYTES_MAX;

    use super::*;
    use crate::testing::{Log, execute, feed, genesis, journal_reply, open, plain};

    fn bytes(text: &'static str) -> Bytes {
        Bytes::from_static(text.as_bytes())
    }

    #[test]
    fn machine_unknown_is_an_error() {
        // A genesis that names a machine we do not have stops the replica instead of running another one.
        let genesis = Genesis { machine: "Abacus".into(), ..genesis(1, 1) };
        let error = Executor::new(&genesis).expect_err("there is no such machine");
        assert_eq!(error.to_string(), "unknown state machine \"Abacus\"; this release has KeyValue");
    }

    #[test]
    fn machine_in_every_genesis_is_found() {
        // What a genesis may name, we have.
        for name in Genesis::MACHINES {
            assert!(by_name(name).is_ok(), "{name}");
        }
    }

    #[test]
    fn command_malformed_is_invalid_and_changes_nothing() {
        // Whatever gets into the log is answered; bytes that are no command do nothing.
        let mut log = Log::new();
        let applied = log.bytes(&[Bytes::new(), bytes("\u{9}"), bytes("\u{3}ab"), open(1).encode().slice(..16)]);
        assert_eq!(applied.outcomes, vec![Outcome::Invalid { reason: Invalid::Malformed }; 4]);
        assert_eq!(log.executor.stats(), Stats::default());
    }

    #[test]
    fn plain_again_executes_again() {
        // Without a session a retry is a new request.
        let mut log = Log::new();
        let applied = log.block(&[plain(&bytes("a")), plain(&bytes("a"))]);
        let replied = |before| Outcome::Replied { reply: journal_reply(before, b"a") };
        assert_eq!(applied.outcomes, [replied(0), replied(1)]);
        assert_eq!((applied.executed, applied.answered_from_table), (vec![], 0));
        assert_eq!(log.executor.stats().executed, 2);
    }

    #[test]
    fn block_empty_moves_height_and_digest() {
        // Every block counts, also the one that a new leader starts with.
        let mut log = Log::new();
        let applied = log.block(&[]);
        assert_eq!(applied.outcomes, []);
        assert_eq!(log.executor.applied(), Height::new(1));
        assert_ne!(log.executor.digest(), Digest::ZERO);
    }

    #[test]
    #[should_panic(expected = "block 1 applied after 1")]
    fn block_out_of_order_panics() {
        // A block applied twice is our bug: stop before the state is wrong.
        let mut log = Log::new();
        log.block(&[]);
        let block = log.blocks[0].clone();
        feed(&mut log.executor, &block);
    }

    #[test]
    fn digest_of_same_blocks_is_the_same() {
        // A clone, and an executor that starts over, get to the digest of the first.
        let mut log = Log::new();
        let id = log.open(1);
        let mut clone = log.executor.clone();
        log.block(&[execute(id, 1, 0, "a"), plain(&bytes("b"))]);
        feed(&mut clone, &log.blocks[1]);
        let mut other = Log::new().executor;
        log.blocks.iter().for_each(|block| drop(feed(&mut other, block)));
        assert_eq!((clone.digest(), other.digest()), (log.executor.digest(), log.executor.digest()));
    }

    /// Answers nothing and writes what it was made with, to stand for a machine that differs between replicas.
    #[derive(Debug)]
    struct Bent(&'static [(&'static str, Option<&'static str>)], &'static str);

    impl StateMachine for Bent {
        fn apply(&self, _: &Context, requests: &[Bytes], store: &mut Store) -> Vec<Bytes> {
            for (key, value) in self.0 {
                match value {
                    Some(value) => store.put(key.as_bytes(), value.as_bytes().to_vec()),
                    None => drop(store.delete(key.as_bytes())),
                }
            }
            requests.iter().map(|_| bytes(self.1)).collect()
        }

        fn query(&self, _: &Bytes, _: &Store) -> Bytes {
            Bytes::new()
        }
    }

    #[test]
    fn digest_with_any_difference_differs() {
        // One byte of a key or value, the order of writes, a write that was overwritten, a delete, a reply: each shows at
        // the very block (PROTOCOL §9).
        let machines = [
            Bent(&[], "r"),
            Bent(&[], "s"),
            Bent(&[("a", Some("1"))], "r"),
            Bent(&[("a", Some("2"))], "r"),
            Bent(&[("b", Some("1"))], "r"),
            Bent(&[("a", Some("1")), ("b", Some("1"))], "r"),
            Bent(&[("b", Some("1")), ("a", Some("1"))], "r"),
            Bent(&[("a", Some("2")), ("a", Some("1"))], "r"),
            Bent(&[("a", Some("1")), ("a", None)], "r"),
            Bent(&[("ab", Some("1"))], "r"),
            Bent(&[("a", Some("b1"))], "r"),
        ];
        let mut digests = std::collections::BTreeSet::new();
        let count = machines.len();
        for machine in machines {
            let mut log = Log::new();
            log.executor = Executor::with_machine(&genesis(8, 1000), Arc::new(machine));
            log.block(&[plain(&bytes("a"))]);
            let at_once = log.executor.digest();
            log.block(&[]);
            assert!(digests.insert(at_once));
            assert!(digests.insert(log.executor.digest()), "a difference stays");
        }
        assert_eq!(digests.len(), 2 * count);
    }

    #[test]
    fn write_set_of_a_block_is_its_own() {
        // The digest of a block covers what this block wrote; nothing piles up.
        let mut log = Log::new();
        log.block(&[plain(&bytes("a"))]);
        let one_write = log.executor.store().writes().len();
        log.block(&[plain(&bytes("b"))]);
        assert_eq!(log.executor.store().writes().len(), one_write);
        log.block(&[]);
        assert_eq!(log.executor.store().writes(), []);
    }

    #[test]
    fn digest_with_other_eviction_differs() {
        // Replicas that end different sessions are told apart at that block, not when the client comes back.
        let mut narrow = Log::with_limits(1, 1000);
        let mut wide = Log::with_limits(2, 1000);
        narrow.open(1);
        wide.open(1);
        assert_eq!(narrow.executor.digest(), wide.executor.digest());
        narrow.open(2);
        wide.open(2);
        assert_ne!(narrow.executor.digest(), wide.executor.digest());
    }

    #[test]
    fn seed_of_each_block_is_its_own() {
        // The machine's only randomness: the same on every replica, another in every block.
        #[derive(Debug)]
        struct Dice;
        impl StateMachine for Dice {
            fn apply(&self, context: &Context, requests: &[Bytes], _: &mut Store) -> Vec<Bytes> {
                requests.iter().map(|_| Bytes::copy_from_slice(context.seed.as_bytes())).collect()
            }

            fn query(&self, _: &Bytes, _: &Store) -> Bytes {
                Bytes::new()
            }
        }
        let mut log = Log::new();
        log.executor = Executor::with_machine(&genesis(8, 1000), Arc::new(Dice));
        let mut other = log.executor.clone();
        let [first, second] = [log.block(&[plain(&bytes(""))]), log.block(&[plain(&bytes(""))])];
        assert_ne!(first.outcomes, second.outcomes);
        assert_eq!(feed(&mut other, &log.blocks[0]), first);
    }

    #[test]
    fn reply_that_is_a_piece_of_a_request_gets_its_own_memory() {
        // A cached reply must not hold its whole block.
        #[derive(Debug)]
        struct Echo;
        impl StateMachine for Echo {
            fn apply(&self, _: &Context, requests: &[Bytes], _: &mut Store) -> Vec<Bytes> {
                requests.to_vec()
            }

            fn query(&self, request: &Bytes, _: &Store) -> Bytes {
                request.clone()
            }
        }
        let mut log = Log::new();
        log.executor = Executor::with_machine(&genesis(8, 1000), Arc::new(Echo));
        let applied = log.block(&[open(1), execute(SessionId { height: Height::new(1), index: 0 }, 1, 0, "a")]);
        assert_eq!(applied.outcomes[1], Outcome::Replied { reply: bytes("a") });
        assert!(log.blocks[0].body().is_unique(), "something shares the memory of the block");
    }

    #[test]
    fn value_of_a_block_gets_its_own_memory() {
        // Neither keys, values nor cached replies hold the block that they came in.
        let mut log = Log::new();
        log.executor = Executor::new(&genesis(8, 1000)).expect("the built-in machine");
        let id = log.open(1);
        let put = KvRequest::Put { key: bytes("key"), value: bytes("value") }.encode();
        let get = KvRequest::Get { key: bytes("key") }.encode();
        let request =
            |sequence, body: &Bytes| Command::Execute { session: id, sequence, acknowledged: 0, body: body.clone() };
        let applied =
            log.block(&[request(1, &put), request(2, &get), plain(&Bytes::from(vec![0; BLOCK_BYTES_MAX / 4]))]);
        assert_eq!(applied.executed.len(), 2);
        assert!(log.blocks[1].body().is_unique(), "something shares the memory of the block");
    }

    #[test]
    fn query_changes_nothing() {
        // A read leaves digest and counters as they are.
        let mut log = Log::new();
        log.block(&[plain(&bytes("a"))]);
        let before = (log.executor.digest(), log.executor.stats());
        assert_eq!(log.executor.query(&Bytes::new())[..], 1u64.to_le_bytes());
        assert_eq!((log.executor.digest(), log.executor.stats()), before);
    }

    #[test]
    fn executor_prints_on_one_line() {
        // Every state prints on one line.
        let log = Log::new();
        assert_eq!(log.executor.to_string(), "applied=0 digest=00000000 sessions=0 keys=0");
    }
}
