//! What a block does as a whole: batches, digest, memory, snapshot points. Sessions have tests of their own.

use lockstep_types::block::HEADER_BYTES_MAX;
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

    fn check(&self, _: &[u8], _: &[u8]) -> Result<(), &'static str> {
        Ok(())
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

        fn check(&self, _: &[u8], _: &[u8]) -> Result<(), &'static str> {
            Ok(())
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

        fn check(&self, _: &[u8], _: &[u8]) -> Result<(), &'static str> {
            Ok(())
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
    let applied = log.block(&[request(1, &put), request(2, &get), plain(&Bytes::from(vec![0; BLOCK_BYTES_MAX / 4]))]);
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

#[test]
fn snapshot_point_comes_with_the_bytes_of_blocks() {
    // Bodies count, whatever is in them, and a header each, as long as headers get; the block that reaches the limit is the point, and the sum starts anew.
    let mut log = Log::with_genesis(Genesis { snapshot_bytes: 4096, ..genesis(8, 1000) });
    let mut sum = 0;
    let mut points = 0;
    for number in 0..60 {
        let applied = log.block(&vec![plain(&Bytes::from(vec![0; number * 7])); number % 5]);
        sum += (HEADER_BYTES_MAX + log.blocks.last().expect("just applied").body().len()) as u64;
        assert_eq!(applied.snapshot_point, sum >= 4096, "block {number}");
        if applied.snapshot_point {
            points += 1;
            sum = 0;
        }
        assert_eq!(log.executor.bytes_since_snapshot_point(), sum);
    }
    assert!(points > 3);
}

#[test]
fn snapshot_asked_for_makes_its_height_a_point() {
    // The command counts once a block, is answered with the height, and starts the sum anew.
    let mut log = Log::new();
    assert!(!log.block(&[plain(&bytes("a"))]).snapshot_point);
    assert!(log.executor.bytes_since_snapshot_point() > 0);
    let applied = log.block(&[Command::Snapshot, plain(&bytes("a")), Command::Snapshot]);
    let point = Outcome::SnapshotPoint { height: Height::new(2) };
    assert_eq!([&applied.outcomes[0], &applied.outcomes[2]], [&point, &point]);
    assert!(applied.snapshot_point);
    assert_eq!(log.executor.bytes_since_snapshot_point(), 0);
    assert!(!log.block(&[]).snapshot_point);
}
