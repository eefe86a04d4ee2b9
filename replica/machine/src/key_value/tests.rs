//! What each request does and answers; transactions also against their steps one by one.

use lockstep_types::kv::{Compare, Entry, KvOperation, OperationReply, Page, Scan, Transaction, TransactionReply};
use lockstep_types::{Digest, Height, LogTime, View};
use proptest::prelude::*;

use super::*;

fn bytes(text: &'static str) -> Bytes {
    Bytes::from_static(text.as_bytes())
}

fn put(key: &'static str, value: &'static str) -> KvRequest {
    KvRequest::Put { key: bytes(key), value: bytes(value) }
}

fn get_request(key: &'static str) -> KvRequest {
    KvRequest::Get { key: bytes(key) }
}

fn delete(key: &'static str) -> KvRequest {
    KvRequest::Delete { key: bytes(key) }
}

fn compare(key: &'static str, expected: Expected, value: &'static str) -> KvRequest {
    KvRequest::CompareAndSet { key: bytes(key), expected, value: bytes(value) }
}

fn found(value: &'static str, version: u64) -> Versioned {
    Versioned { value: bytes(value), version }
}

fn apply(store: &mut Store, requests: &[Bytes]) -> Vec<KvReply> {
    let context =
        Context { height: Height::new(1), view: View::ZERO, log_time: LogTime::default(), seed: Digest::ZERO };
    let replies = KeyValue.apply(&context, requests, store);
    replies.into_iter().map(|reply| KvReply::decode(reply).expect("a reply of this machine")).collect()
}

/// Runs these requests as one batch on an empty store.
fn run(requests: &[KvRequest]) -> Vec<KvReply> {
    apply(&mut Store::default(), &requests.iter().map(KvRequest::encode).collect::<Vec<_>>())
}

#[test]
fn replies_of_one_block_are_bounded_and_change_nothing_beyond() {
    // A block of small requests must not ask for gigabytes of replies: it is committed, and would kill every replica.
    let large = Bytes::from(vec![7; 1 << 20]);
    let mut requests = vec![KvRequest::Put { key: bytes("k"), value: large }.encode()];
    requests.extend((0..64).map(|_| compare("k", Expected::Version(9), "x").encode()));
    requests.push(put("k", "small").encode());
    requests.push(get_request("k").encode());
    let replies = apply(&mut Store::default(), &requests);
    let full = |reply: &&KvReply| matches!(reply, KvReply::Mismatch { current: Some(_) });
    assert_eq!(replies.iter().filter(full).count(), BLOCK_REPLY_BYTES_MAX >> 20);
    assert_eq!(replies.iter().filter(|reply| **reply == KvReply::Omitted).count(), 57);
    assert_eq!(replies[65], KvReply::Written { version: 2 }, "writes go on");
}

#[test]
fn put_counts_versions_from_one() {
    // A key's version is how often it was written.
    let replies = run(&[put("k", "a"), put("k", "b"), put("other", "c"), get_request("k")]);
    let written = |version| KvReply::Written { version };
    assert_eq!(replies, [written(1), written(2), written(1), KvReply::Found(found("b", 2))]);
}

#[test]
fn get_without_key_is_missing() {
    // A key that was never written, or was deleted, is not there.
    let replies = run(&[get_request("k"), put("k", ""), get_request("k"), delete("k"), get_request("k")]);
    let written = KvReply::Written { version: 1 };
    assert_eq!(replies, [KvReply::Missing, written, KvReply::Found(found("", 1)), KvReply::Deleted, KvReply::Missing]);
}

#[test]
fn delete_then_put_starts_anew() {
    // A deleted key's version is forgotten; deleting what is not there says so.
    let replies = run(&[put("k", "a"), put("k", "b"), delete("k"), delete("k"), put("k", "c")]);
    let written = |version| KvReply::Written { version };
    assert_eq!(replies, [written(1), written(2), KvReply::Deleted, KvReply::Missing, written(1)]);
}

#[test]
fn compare_and_set_by_version_writes_only_if_it_holds() {
    // Version 0 expects that the key does not exist.
    let replies = run(&[
        compare("k", Expected::Version(1), "a"),
        compare("k", Expected::Version(0), "b"),
        compare("k", Expected::Version(0), "c"),
        compare("k", Expected::Version(1), "d"),
        get_request("k"),
    ]);
    let written = |version| KvReply::Written { version };
    let mismatch = |current| KvReply::Mismatch { current };
    assert_eq!(
        replies,
        [mismatch(None), written(1), mismatch(Some(found("b", 1))), written(2), KvReply::Found(found("d", 2))]
    );
}

#[test]
fn compare_and_set_by_value_writes_only_if_it_holds() {
    // A key that does not exist has no value, not an empty one.
    let value = |text| Expected::Value(bytes(text));
    let replies = run(&[
        compare("k", value(""), "a"),
        put("k", "a"),
        compare("k", value("b"), "c"),
        compare("k", value("a"), "d"),
        get_request("k"),
    ]);
    let written = |version| KvReply::Written { version };
    let mismatch = |current| KvReply::Mismatch { current };
    assert_eq!(
        replies,
        [mismatch(None), written(1), mismatch(Some(found("a", 1))), written(2), KvReply::Found(found("d", 2))]
    );
}

#[test]
fn request_malformed_is_invalid_and_writes_nothing() {
    // Bytes that are no request get the machine's own reply, and those around them are executed.
    let mut store = Store::default();
    let truncated = put("k", "value").encode().slice(..6);
    let replies = apply(&mut store, &[Bytes::new(), truncated, bytes("junk"), put("", "a").encode()]);
    assert_eq!(replies, vec![KvReply::Invalid; 4]);
    assert!(store.is_empty() && store.writes().is_empty());
    assert_eq!(apply(&mut store, &[bytes("junk"), put("k", "a").encode()])[1], KvReply::Written { version: 1 });
}

#[test]
fn query_reads_and_never_writes() {
    // A read answers a get as apply does and refuses everything else.
    let mut store = Store::default();
    apply(&mut store, &[put("k", "a").encode()]);
    let query = |request: KvRequest| KvReply::decode(KeyValue.query(&request.encode(), &store));
    assert_eq!(query(get_request("k")), Ok(KvReply::Found(found("a", 1))));
    assert_eq!(query(get_request("other")), Ok(KvReply::Missing));
    for request in [put("k", "b"), delete("k"), compare("k", Expected::Version(1), "b")] {
        assert_eq!(query(request), Ok(KvReply::Invalid));
    }
    assert_eq!(KvReply::decode(KeyValue.query(&bytes("junk"), &store)), Ok(KvReply::Invalid));
}

fn versioned_at(store: &Store, key: &'static str) -> Option<Versioned> {
    store.get(key.as_bytes()).map(super::versioned)
}

fn entry(key: &'static str, value: &'static str, version: u64) -> Entry {
    Entry { key: bytes(key), found: found(value, version) }
}

fn page(entries: Vec<Entry>, next: Option<&'static str>) -> KvReply {
    KvReply::Scanned(Page { entries, next: next.map(bytes) })
}

fn scan(start: &'static str, end: &'static str, limit: u32) -> KvRequest {
    KvRequest::Scan(Scan { start: bytes(start), end: bytes(end), limit, keys_only: false })
}

#[test]
fn scan_gives_the_range_in_order_and_where_to_go_on() {
    // From the start on, up to and without the end; the next key is named if the limit cut the range short.
    let mut store = Store::default();
    apply(
        &mut store,
        &[put("c", "3"), put("a", "1"), put("b", "2"), put("b", "4"), put("d", "5")].map(|put| put.encode()),
    );
    let query = |request: KvRequest| KvReply::decode(KeyValue.query(&request.encode(), &store)).expect("a reply");
    let [a, b, c, d] = [entry("a", "1", 1), entry("b", "4", 2), entry("c", "3", 1), entry("d", "5", 1)];
    assert_eq!(query(scan("", "", 9)), page(vec![a.clone(), b.clone(), c.clone(), d.clone()], None));
    assert_eq!(query(scan("", "", 4)), page(vec![a.clone(), b.clone(), c.clone(), d], None));
    assert_eq!(query(scan("", "", 2)), page(vec![a.clone(), b.clone()], Some("c")));
    assert_eq!(query(scan("aa", "d", 9)), page(vec![b.clone(), c], None));
    assert_eq!(query(scan("a", "c", 1)), page(vec![a], Some("b")));
    assert_eq!(query(scan("x", "", 1)), page(vec![], None));
    assert_eq!(query(scan("d", "a", 1)), page(vec![], None), "a range the wrong way round is empty");
    let keys = Scan { keys_only: true, limit: 2, ..Scan::prefix("b") };
    assert_eq!(query(KvRequest::Scan(keys)), page(vec![entry("b", "", 2)], None));
    assert_eq!(apply(&mut store, &[scan("", "", 1).encode()]), [page(vec![entry("a", "1", 1)], Some("b"))]);
}

#[test]
fn scan_of_large_values_is_bounded_and_always_gets_on() {
    // A page holds a mebibyte, or one entry that is larger; following `next` gives every key once.
    let mut store = Store::default();
    let largest = KvRequest::Put { key: bytes("m"), value: vec![7; REQUEST_BYTES_MAX - 10].into() };
    apply(&mut store, &[largest.checked().expect("it fits")]);
    for key in ["a", "b", "c", "x", "y"] {
        let value = Bytes::from(vec![7; 400 << 10]);
        apply(&mut store, &[KvRequest::Put { key: bytes(key), value }.encode()]);
    }
    let mut pages = Vec::new();
    let mut start = Some(Bytes::new());
    while let Some(from) = start {
        let request = KvRequest::Scan(Scan { start: from, ..Scan::all() });
        let reply = KeyValue.query(&request.encode(), &store);
        assert!(reply.len() <= crate::executor::REPLY_BYTES_MAX);
        let Ok(KvReply::Scanned(page)) = KvReply::decode(reply) else { panic!("no page") };
        pages.push(page.entries.iter().map(|entry| entry.key.clone()).collect::<Vec<_>>());
        start = page.next;
    }
    assert_eq!(pages, [vec!["a", "b"], vec!["c"], vec!["m"], vec!["x", "y"]]);
}

#[test]
fn scans_of_one_block_share_its_bound() {
    // Many scans in one block shrink, then are left out; none stops the writes after it.
    let mut store = Store::default();
    let values = (0..3u8).map(|key| KvRequest::Put { key: vec![key + 1].into(), value: vec![7; 290 << 10].into() });
    apply(&mut store, &values.map(|put| put.encode()).collect::<Vec<_>>());
    let mut requests = vec![scan("", "", 9).encode(); 20];
    requests.push(put("k", "v").encode());
    let replies = apply(&mut store, &requests);
    let bytes: usize = replies.iter().map(|reply| reply.encode().len()).sum();
    assert!(bytes < BLOCK_REPLY_BYTES_MAX + 4096, "{bytes}");
    let entries = |reply: &KvReply| match reply {
        KvReply::Scanned(page) => Some((page.entries.len(), page.next.is_some())),
        _ => None,
    };
    assert_eq!(entries(&replies[0]), Some((3, false)));
    assert!(replies.iter().any(|reply| matches!(entries(reply), Some((1 | 2, true)))));
    assert_eq!(replies[19], KvReply::Omitted);
    assert_eq!(replies[20], KvReply::Written { version: 1 });
}

fn transaction(
    compares: Vec<(&'static str, Expected)>,
    then: Vec<KvOperation>,
    otherwise: Vec<KvOperation>,
) -> KvRequest {
    let compares = compares.into_iter().map(|(key, expected)| Compare { key: bytes(key), expected }).collect();
    KvRequest::Transaction(Transaction { compares, then, otherwise })
}

fn step_put(key: &'static str, value: &'static str) -> KvOperation {
    KvOperation::Put { key: bytes(key), value: bytes(value) }
}

fn step_get(key: &'static str) -> KvOperation {
    KvOperation::Get { key: bytes(key) }
}

fn step_delete(key: &'static str) -> KvOperation {
    KvOperation::Delete { key: bytes(key) }
}

#[test]
fn transaction_takes_the_branch_that_its_compares_choose() {
    // All compares hold or the other branch is done; none at all holds.
    let mut store = Store::default();
    apply(&mut store, &[put("a", "1"), put("a", "2")].map(|put| put.encode()));
    let value = |text| Expected::Value(bytes(text));
    let mut held = |compares| {
        let request = transaction(compares, vec![step_get("a")], vec![]);
        match &apply(&mut store, &[request.encode()])[..] {
            [KvReply::Transaction(reply)] => {
                assert_eq!(reply.replies.len(), usize::from(reply.held));
                reply.held
            }
            replies => panic!("{replies:?}"),
        }
    };
    assert!(held(vec![]));
    assert!(held(vec![("a", Expected::Version(2)), ("a", value("2")), ("a", Expected::Exists)]));
    assert!(held(vec![("b", Expected::Version(0))]));
    assert!(!held(vec![("a", Expected::Version(1))]));
    assert!(!held(vec![("a", value("1"))]));
    assert!(!held(vec![("b", Expected::Exists)]));
    assert!(!held(vec![("b", value(""))]));
    assert!(!held(vec![("a", Expected::Exists), ("b", Expected::Exists)]));
}

#[test]
fn transaction_steps_see_those_before_them() {
    // One key may come several times; each step sees what the steps before it left.
    let mut store = Store::default();
    apply(&mut store, &[put("a", "1").encode()]);
    let steps = vec![
        step_put("a", "2"),
        step_get("a"),
        step_delete("a"),
        step_get("a"),
        step_delete("a"),
        step_put("a", "3"),
        step_put("b", "4"),
    ];
    let replies = apply(&mut store, &[transaction(vec![("a", Expected::Version(1))], steps, vec![]).encode()]);
    let replied = vec![
        OperationReply::Put { version: 2 },
        OperationReply::Get { found: Some(found("2", 2)) },
        OperationReply::Delete { deleted: true },
        OperationReply::Get { found: None },
        OperationReply::Delete { deleted: false },
        OperationReply::Put { version: 1 },
        OperationReply::Put { version: 1 },
    ];
    assert_eq!(replies, [KvReply::Transaction(TransactionReply { held: true, replies: replied })]);
    assert_eq!([versioned_at(&store, "a"), versioned_at(&store, "b")], [Some(found("3", 1)), Some(found("4", 1))]);
}

#[test]
fn transaction_whose_reply_is_too_large_changes_nothing() {
    // All or nothing, also when what it reads is too much: what it would read of its own writes counts as well.
    let half = Bytes::from(vec![7; 600 << 10]);
    let mut store = Store::default();
    apply(&mut store, &[KvRequest::Put { key: bytes("a"), value: half.clone() }.encode()]);
    let written = KvOperation::Put { key: bytes("b"), value: half };
    for steps in
        [vec![step_put("x", "1"), step_get("a"), step_get("a")], vec![written.clone(), step_get("b"), step_get("a")]]
    {
        assert_eq!(apply(&mut store, &[transaction(vec![], steps, vec![]).encode()]), [KvReply::TooLarge]);
    }
    assert_eq!([versioned_at(&store, "x"), versioned_at(&store, "b")], [None, None]);
    let deleted = vec![step_get("a"), step_delete("a"), step_get("a"), written, step_get("x")];
    assert!(matches!(
        &apply(&mut store, &[transaction(vec![], deleted, vec![]).encode()])[..],
        [KvReply::Transaction(TransactionReply { held: true, .. })]
    ));
    // In a block that has no room left it is left out, as a whole.
    let mut requests = vec![transaction(vec![], vec![step_get("b"), step_put("y", "1")], vec![]).encode(); 20];
    requests.push(transaction(vec![], vec![step_put("z", "1")], vec![]).encode());
    let replies = apply(&mut store, &requests);
    let done = replies.iter().filter(|reply| matches!(reply, KvReply::Transaction(_))).count();
    assert_eq!((done, &replies[19]), (BLOCK_REPLY_BYTES_MAX / (600 << 10) + 1, &KvReply::Omitted));
    assert_eq!(versioned_at(&store, "y").map(|found| found.version), Some(done as u64 - 1));
}

#[test]
fn transaction_as_a_query_reads_and_never_writes() {
    // Several keys of one state; a branch that would write, taken or not, makes it no read.
    let mut store = Store::default();
    apply(&mut store, &[put("a", "1"), put("b", "2")].map(|put| put.encode()));
    let query = |request: KvRequest| KvReply::decode(KeyValue.query(&request.encode(), &store)).expect("a reply");
    let replies = vec![
        OperationReply::Get { found: Some(found("2", 1)) },
        OperationReply::Get { found: None },
        OperationReply::Get { found: Some(found("1", 1)) },
    ];
    assert_eq!(
        query(transaction(vec![("c", Expected::Exists)], vec![], vec![step_get("b"), step_get("c"), step_get("a")])),
        KvReply::Transaction(TransactionReply { held: false, replies })
    );
    assert_eq!(query(transaction(vec![], vec![step_get("a")], vec![step_put("a", "9")])), KvReply::Invalid);
    assert_eq!(query(transaction(vec![], vec![step_delete("a")], vec![])), KvReply::Invalid);
}

fn model_key() -> impl Strategy<Value = &'static str> {
    prop::sample::select(vec!["a", "b", "c", "d"])
}

fn model_expected() -> impl Strategy<Value = Expected> {
    prop_oneof![
        (0..3u64).prop_map(Expected::Version),
        prop::sample::select(vec!["", "1", "2"]).prop_map(|value| Expected::Value(bytes(value))),
        Just(Expected::Exists),
    ]
}

fn model_steps() -> impl Strategy<Value = Vec<KvOperation>> {
    let step = prop_oneof![
        (model_key(), prop::sample::select(vec!["", "1", "2"])).prop_map(|(key, value)| step_put(key, value)),
        model_key().prop_map(step_get),
        model_key().prop_map(step_delete),
    ];
    proptest::collection::vec(step, 0..6)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    /// A transaction is what single requests, sent one by one while nobody else writes, would come to.
    #[test]
    fn transaction_is_as_its_steps_one_by_one(
        transactions in proptest::collection::vec(
            (proptest::collection::vec((model_key(), model_expected()), 0..3), model_steps(), model_steps()),
            1..8,
        ),
    ) {
        let [mut store, mut model] = [Store::default(), Store::default()];
        for (compares, then, otherwise) in transactions {
            let held = compares.iter().all(|(key, expected)| match (versioned_at(&model, key), expected) {
                (current, Expected::Version(expected)) => current.map_or(0, |current| current.version) == *expected,
                (Some(current), Expected::Value(expected)) => current.value == expected,
                (None, Expected::Value(_)) => false,
                (current, Expected::Exists) => current.is_some(),
            });
            let single = |step: &KvOperation| match step.clone() {
                KvOperation::Put { key, value } => KvRequest::Put { key, value }.encode(),
                KvOperation::Get { key } => KvRequest::Get { key }.encode(),
                KvOperation::Delete { key } => KvRequest::Delete { key }.encode(),
            };
            let steps = if held { &then } else { &otherwise };
            let replies = apply(&mut model, &steps.iter().map(single).collect::<Vec<_>>());
            let replies = steps.iter().zip(replies).map(|(step, reply)| match (step, reply) {
                (_, KvReply::Written { version }) => OperationReply::Put { version },
                (_, KvReply::Found(found)) => OperationReply::Get { found: Some(found) },
                (KvOperation::Get { .. }, KvReply::Missing) => OperationReply::Get { found: None },
                (_, reply) => OperationReply::Delete { deleted: reply == KvReply::Deleted },
            });
            let expected = KvReply::Transaction(TransactionReply { held, replies: replies.collect() });
            let request = transaction(compares, then, otherwise);
            prop_assert_eq!(apply(&mut store, &[request.encode()]), [expected]);
            prop_assert!(store.iter().eq(model.iter()));
        }
    }
}
