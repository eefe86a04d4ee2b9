//! A state survives being written down; everything else is refused. Random histories are those of `model`.

use std::collections::BTreeSet;
use std::sync::Arc;

use lockstep_types::kv::KvRequest;
use lockstep_types::{BlockHeader, Command, Genesis, Outcome, ServiceId};
use proptest::prelude::*;

use super::*;
use crate::executor::Executor;
use crate::key_value::KeyValue;
use crate::machine::StateMachine;
use crate::model::{Model, REPLY_BYTES_MAX, SESSIONS_MAX, drafts};
use crate::testing::{Journal, Log, execute, feed, genesis, open, plain};

/// Chunks of a handful of records.
const SMALL: Sizes = Sizes { cut: 100, max: 200 };

fn chunks(frozen: &Frozen, sizes: Sizes) -> Vec<Bytes> {
    Chunks { sizes, ..frozen.chunks() }.collect()
}

fn restore(
    genesis: &Genesis,
    machine: impl StateMachine + 'static,
    sizes: Sizes,
    chunks: &[Bytes],
) -> Result<Executor, RestoreError> {
    let mut restoring = Restoring::with_sizes(genesis, Arc::new(machine), sizes);
    chunks.iter().try_for_each(|chunk| restoring.chunk(chunk.clone()))?;
    restoring.finish()
}

fn key_value(genesis: &Genesis) -> Log {
    Log { executor: Executor::new(genesis).expect("the built-in machine"), blocks: Vec::new() }
}

fn put(key: impl Into<Vec<u8>>, value: Vec<u8>) -> Command {
    let [key, value] = [key.into(), value].map(Bytes::from);
    Command::Plain { body: KvRequest::Put { key, value }.encode() }
}

fn delete(key: impl Into<Vec<u8>>) -> Command {
    Command::Plain { body: KvRequest::Delete { key: Bytes::from(key.into()) }.encode() }
}

/// A small state with everything in it: sessions unused and used, replies and cancellations, keys.
fn sample() -> (Genesis, Log) {
    let genesis = genesis(8, 1000);
    let mut log = key_value(&genesis);
    let ids = [log.open(1), log.open(2), log.open(3)];
    let resolve = |sequence| Command::Resolve { session: ids[1], sequence };
    log.block(&[execute(ids[0], 1, 0, "junk"), execute(ids[0], 2, 1, "junk"), resolve(1), resolve(2)]);
    log.block(&(0..12u8).map(|key| put([b'k', key], vec![key; 20])).collect::<Vec<_>>());
    log.block(&[put("k\u{3}", vec![7; 40]), delete("k\u{4}")]);
    (genesis, log)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, failure_persistence: None, ..ProptestConfig::default() })]

    /// Freeze anywhere, restore, run the rest on both: outcomes, digests, sizes and chunks stay equal, and the frozen state
    /// is what it was.
    #[test]
    fn state_frozen_in_a_random_history_goes_on_as_before(drafts in drafts(), at in any::<prop::sample::Index>()) {
        let genesis = Genesis { snapshot_bytes: 4096, ..genesis(SESSIONS_MAX, REPLY_BYTES_MAX) };
        let mut model = Model::default();
        let mut log = Log::with_genesis(genesis.clone());
        let mut frozen = log.executor.freeze();
        let at = at.index(drafts.len());
        let mut restored = None;
        for (number, drafts) in drafts.iter().enumerate() {
            if number == at {
                frozen = log.executor.freeze();
                restored = Some(restore(&genesis, Journal, SMALL, &chunks(&frozen, SMALL)).expect("a snapshot"));
            }
            let (commands, _) = model.block(log.executor.applied().next(), drafts);
            let applied = log.bytes(&commands);
            model.evict();
            if let Some(restored) = &mut restored {
                prop_assert_eq!(feed(restored, log.blocks.last().expect("just applied")), applied);
                prop_assert_eq!(restored.digest(), log.executor.digest());
                prop_assert_eq!(restored.stats(), log.executor.stats());
            }
        }
        let restored = restored.expect("the index lies in the history");
        prop_assert_eq!(chunks(&restored.freeze(), SMALL), chunks(&log.executor.freeze(), SMALL));
        let again = restore(&genesis, Journal, SMALL, &chunks(&frozen, SMALL)).expect("a snapshot");
        prop_assert_eq!((again.applied(), again.digest()), (frozen.applied(), frozen.digest()));
        prop_assert_eq!(again.applied().get(), at as u64);
    }

    /// The same with a store of many keys; the order of the writes that led to a state leaves no trace in the store's chunks.
    #[test]
    fn store_frozen_in_a_random_history_has_the_same_chunks_on_every_replica(
        writes in proptest::collection::vec((0..60u8, proptest::option::weighted(0.8, 0..60usize)), 1..200),
        at in any::<prop::sample::Index>(),
    ) {
        let genesis = genesis(8, 1000);
        let mut log = key_value(&genesis);
        let at = at.index(writes.len());
        let mut restored = None;
        for (number, (key, value)) in writes.iter().enumerate() {
            if number == at {
                let chunks = chunks(&log.executor.freeze(), SMALL);
                restored = Some(restore(&genesis, KeyValue, SMALL, &chunks).expect("a snapshot"));
            }
            log.block(&[value.map_or_else(|| delete([b'k', *key]), |length| put([b'k', *key], vec![*key; length]))]);
            if let Some(restored) = &mut restored {
                feed(restored, log.blocks.last().expect("just applied"));
            }
        }
        let restored = restored.expect("the index lies in the history");
        prop_assert_eq!(chunks(&restored.freeze(), SMALL), chunks(&log.executor.freeze(), SMALL));
        prop_assert!(restored.store().iter().eq(log.executor.store().iter()));
    }

    /// Whatever bytes come, they are refused, or they are a snapshot: the one of the state that they give.
    #[test]
    fn chunks_of_junk_are_refused_or_are_a_snapshot(
        junk in proptest::collection::vec((0..4u8, proptest::collection::vec(0..3u8, 0..80)), 1..4),
        head in any::<bool>(),
    ) {
        let (genesis, log) = sample();
        let mut given: Vec<Bytes> = chunks(&log.executor.freeze(), SMALL).into_iter().take(usize::from(head)).collect();
        given.extend(junk.into_iter().map(|(kind, bytes)| Bytes::from([vec![kind], bytes].concat())));
        if let Ok(executor) = restore(&genesis, KeyValue, SMALL, &given) {
            prop_assert_eq!(chunks(&executor.freeze(), SMALL), given);
        }
    }
}

#[test]
fn chunk_with_any_bit_flipped_or_cut_short_is_refused_or_is_a_snapshot() {
    // Every bit of every chunk: nothing panics, and what is taken is exactly the state that it says.
    let (genesis, log) = sample();
    let good = chunks(&log.executor.freeze(), SMALL);
    assert!(good.len() > 4, "{} chunks", good.len());
    let mut taken = 0;
    let mut refused = 0;
    for place in 0..good.len() {
        let bits = (0..good[place].len() * 8).map(|bit| {
            let mut chunk = good[place].to_vec();
            chunk[bit / 8] ^= 1 << (bit % 8);
            chunk
        });
        let cuts = (0..good[place].len()).map(|length| good[place][..length].to_vec());
        for chunk in bits.chain(cuts) {
            let mut given = good.clone();
            given[place] = Bytes::from(chunk);
            match restore(&genesis, KeyValue, SMALL, &given) {
                Ok(mut executor) => {
                    assert_eq!(chunks(&executor.freeze(), SMALL), given);
                    let header = BlockHeader { height: executor.applied().next(), ..*log.blocks[0].header() };
                    executor.apply(&header, Digest::ZERO, &[put("k\u{1}", vec![1]).encode()]);
                    taken += 1;
                }
                Err(error) => {
                    assert!((place..=good.len()).contains(&error.chunk), "{error}");
                    refused += 1;
                }
            }
        }
    }
    assert!(taken > 100 && refused > 1000, "{taken} taken, {refused} refused");
}

#[test]
fn chunks_missing_doubled_swapped_or_left_over_are_refused() {
    // Every sequence but the right one ends in words that say what is wrong, and where.
    let (genesis, log) = sample();
    let good = chunks(&log.executor.freeze(), SMALL);
    let last = good.len() - 1;
    assert_eq!(restore(&genesis, KeyValue, SMALL, &good).expect("a snapshot").stats(), log.executor.stats());
    let refusal = |given: &[Bytes]| restore(&genesis, KeyValue, SMALL, given).expect_err("no snapshot");
    assert_eq!(
        refusal(&[]).to_string(),
        "chunk 0 of the snapshot is unusable: it is missing: 0 of 1 heads are there; fetch the snapshot again, from another \
         replica"
    );
    assert_eq!(
        refusal(&good[..last]),
        RestoreError { chunk: last, fault: Fault::Missing { what: "keys", found: 9, expected: 11 } }
    );
    for place in 0..=last {
        let mut missing = good.clone();
        missing.remove(place);
        refusal(&missing);
        let mut twice = good.clone();
        twice.insert(place, good[place].clone());
        refusal(&twice);
        if place > 0 {
            let mut swapped = good.clone();
            swapped.swap(place - 1, place);
            refusal(&swapped);
        }
    }
    let joined = [&good[..last - 1], &[Bytes::from([&good[last - 1][..], &good[last][1..]].concat())]].concat();
    assert_eq!(refusal(&joined).fault, Fault::Cut);
    let empty = [&good[..], &[Bytes::from_static(&[STORE])]].concat();
    assert_eq!(refusal(&empty).fault, Fault::Empty);
    let more = [&good[..1], &[Bytes::from_static(&[9])]].concat();
    assert_eq!(refusal(&more).fault, Fault::Kind { kind: 9 });
    let large = Bytes::from(vec![0; CHUNK_BYTES_MAX + 1]);
    assert_eq!(refusal(&[large]).fault, Fault::TooLarge { bytes: CHUNK_BYTES_MAX + 1 });
}

#[test]
fn snapshot_refused_once_stays_refused() {
    // A chunk after a bad one is not taken for its replacement.
    let (genesis, log) = sample();
    let good = chunks(&log.executor.freeze(), Sizes::USUAL);
    let mut restoring = Restoring::new(&genesis).expect("the built-in machine");
    let refusal = restoring.chunk(Bytes::new()).expect_err("an empty chunk");
    assert_eq!(restoring.chunk(good[0].clone()), Err(refusal.clone()));
    assert_eq!(restoring.finish().expect_err("refused"), refusal);
}

#[test]
fn snapshot_of_another_service_machine_or_limit_is_refused() {
    // A snapshot is a state of this very service, under its replicated limits.
    let (ours, log) = sample();
    let good = chunks(&log.executor.freeze(), Sizes::USUAL);
    let fault = |genesis: &Genesis| {
        restore(genesis, KeyValue, Sizes::USUAL, &good).expect_err("another service").fault.to_string()
    };
    assert_eq!(
        fault(&Genesis { service: ServiceId::from_bytes([9; 16]), ..ours.clone() }),
        format!("it is of service {}, and this is service {}", ours.service, ServiceId::from_bytes([9; 16]))
    );
    assert_eq!(
        fault(&Genesis { machine: "Abacus".into(), ..ours.clone() }),
        "it is a state of machine \"KeyValue\", and this service runs \"Abacus\""
    );
    assert_eq!(
        fault(&Genesis { sessions_max: 9, ..ours.clone() }),
        "its limit sessions_max is 8, and this service has 9"
    );
    assert!(fault(&Genesis { reply_bytes_max: 9, ..ours.clone() }).contains("reply_bytes_max is 1000"));
    assert!(fault(&Genesis { snapshot_bytes: 5000, ..ours.clone() }).contains("snapshot_bytes is 67108864"));
    let abacus = Genesis { machine: "Abacus".into(), ..ours };
    assert_eq!(Executor::restore(&abacus, good).expect_err("no such machine").chunk, 0);
}

#[test]
fn snapshot_of_a_later_format_is_refused() {
    // An older release says what to do instead of guessing.
    let (genesis, log) = sample();
    let mut head = chunks(&log.executor.freeze(), Sizes::USUAL)[0].to_vec();
    head[1] = 2;
    let error = restore(&genesis, KeyValue, Sizes::USUAL, &[Bytes::from(head)]).expect_err("a later format");
    assert!(error.to_string().contains("snapshot has format version 2, this binary reads up to 1"), "{error}");
}

#[test]
fn entry_that_the_machine_never_wrote_is_refused() {
    // What apply relies on is checked before it is believed.
    for (key, value, reason) in [
        (&b"k"[..], &b"1234567"[..], "the value has no version"),
        (b"", &[1, 0, 0, 0, 0, 0, 0, 0], "the key is empty"),
        (b"k", &[0; 8], "the version is out of range"),
        (b"k", &[255; 8], "the version is out of range"),
    ] {
        assert_eq!(KeyValue.check(key, value), Err(reason));
        let genesis = genesis(8, 1000);
        let mut log = key_value(&genesis);
        log.block(&[put("x", vec![])]);
        let head = chunks(&log.executor.freeze(), SMALL).remove(0);
        let mut entry = Writer::default();
        entry.u8(STORE).bytes(key).bytes(value);
        let error = restore(&genesis, KeyValue, SMALL, &[head, Bytes::from(entry.finish())]).expect_err("no entry");
        assert_eq!(error, RestoreError { chunk: 1, fault: Fault::Entry { reason } });
    }
}

#[test]
fn chunks_of_the_largest_values_and_replies_are_bounded() {
    // One request of the largest size, and a window of the largest replies: no chunk exceeds the maximum, and none is lost.
    let genesis = genesis(8, 256 << 20);
    let mut log = key_value(&genesis);
    let id = log.open(1);
    let longest = lockstep_types::limits::REQUEST_BYTES_MAX - 1 - 4 - 4 - 1;
    log.block(&[put("k", vec![1; longest])]);
    log.block(&[put(vec![b'l'; 4096], vec![1; longest - 4095])]);
    for sequence in 1..=5 {
        let body = KvRequest::Get { key: Bytes::from_static(b"k") }.encode();
        log.block(&[Command::Execute { session: id, sequence, acknowledged: 0, body }]);
    }
    let chunks: Vec<Bytes> = log.executor.freeze().chunks().collect();
    assert_eq!(chunks.len(), 1 + 5 + 2);
    assert!(chunks.iter().all(|chunk| chunk.len() <= CHUNK_BYTES_MAX));
    let restored = Executor::restore(&genesis, chunks).expect("a snapshot");
    assert_eq!(restored.stats(), log.executor.stats());
}

#[test]
fn large_store_after_a_small_change_shares_most_chunks() {
    // One value written anew changes one chunk; one key more, less or longer moves a few cuts, and the others stay.
    let genesis = genesis(8, 1000);
    let mut log = key_value(&genesis);
    for block in 0..40u32 {
        let keys = (0..500).map(|key| format!("user/{:08x}", (block * 500 + key).wrapping_mul(0x9E37_79B9)));
        log.block(&keys.map(|key| put(key, vec![7; 250])).collect::<Vec<_>>());
    }
    let some = log.executor.store().iter().nth(9000).expect("20,000 keys").0.to_vec();
    let before: BTreeSet<Bytes> = log.executor.freeze().chunks().collect();
    assert!((15..40).contains(&before.len()), "{} chunks", before.len());
    let fresh = |command: Command| {
        let mut log = log.clone();
        log.block(&[command]);
        log.executor.freeze().chunks().filter(|chunk| !before.contains(chunk)).count()
    };
    assert_eq!(fresh(put(some.clone(), vec![8; 250])), 2, "the head and one chunk");
    assert!(fresh(put(some.clone(), vec![8; 50_000])) < 8);
    assert!(fresh(delete(some.clone())) < 8);
    assert!(fresh(put([&some[..], b"a"].concat(), vec![8; 250])) < 8);
}

#[test]
fn chunks_can_be_written_elsewhere_and_resumed() {
    // A background thread owns what it writes; a clone goes on from where the first one stood.
    fn owned<T: Send + Sync + 'static>(value: T) -> T {
        value
    }
    let (_, log) = sample();
    let frozen = owned(log.executor.freeze());
    let mut chunks = owned(Chunks { sizes: SMALL, ..frozen.chunks() });
    let all: Vec<Bytes> = chunks.clone().collect();
    for written in 0..all.len() {
        assert!(chunks.clone().eq(all[written..].iter().cloned()));
        chunks.next();
    }
    assert_eq!(chunks.next(), None);
}

#[test]
fn state_before_the_first_block_is_a_head_alone() {
    // A service without state can be restored as well.
    let genesis = genesis(8, 1000);
    let frozen = Executor::new(&genesis).expect("the built-in machine").freeze();
    let chunks: Vec<Bytes> = frozen.chunks().collect();
    assert_eq!((chunks.len(), frozen.applied(), frozen.digest()), (1, Height::ZERO, Digest::ZERO));
    let mut restored = Log { executor: Executor::restore(&genesis, chunks).expect("a snapshot"), blocks: Vec::new() };
    assert!(matches!(restored.block(&[open(1), plain(&Bytes::new())]).outcomes[0], Outcome::SessionOpened { .. }));
}
