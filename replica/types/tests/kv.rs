//! Requests and replies of the key-value machine come back the same; what no machine would take is refused.

use bytes::Bytes;
use lockstep_types::DecodeError;
use lockstep_types::kv::{
    Compare, Entry, Expected, KEY_BYTES_MAX, KvError, KvOperation, KvReply, KvRequest, OperationReply, Page,
    SCAN_ENTRIES_MAX, Scan, TRANSACTION_STEPS_MAX, Transaction, TransactionReply, Versioned,
};
use lockstep_types::limits::REQUEST_BYTES_MAX;
use proptest::prelude::*;

fn bytes(range: std::ops::Range<usize>) -> impl Strategy<Value = Bytes> {
    proptest::collection::vec(any::<u8>(), range).prop_map(Bytes::from)
}

fn key() -> impl Strategy<Value = Bytes> {
    bytes(1..9)
}

fn expected() -> impl Strategy<Value = Expected> {
    prop_oneof![any::<u64>().prop_map(Expected::Version), bytes(0..9).prop_map(Expected::Value), Just(Expected::Exists),]
}

fn operations() -> impl Strategy<Value = Vec<KvOperation>> {
    let operation = prop_oneof![
        (key(), bytes(0..9)).prop_map(|(key, value)| KvOperation::Put { key, value }),
        key().prop_map(|key| KvOperation::Get { key }),
        key().prop_map(|key| KvOperation::Delete { key }),
    ];
    proptest::collection::vec(operation, 0..5)
}

fn requests() -> impl Strategy<Value = KvRequest> {
    let compare = (key(), expected()).prop_map(|(key, expected)| Compare { key, expected });
    prop_oneof![
        (key(), bytes(0..9)).prop_map(|(key, value)| KvRequest::Put { key, value }),
        key().prop_map(|key| KvRequest::Get { key }),
        key().prop_map(|key| KvRequest::Delete { key }),
        (key(), expected(), bytes(0..9)).prop_map(|(key, expected, value)| KvRequest::CompareAndSet {
            key,
            expected,
            value
        }),
        (bytes(0..9), bytes(0..9), 1..=SCAN_ENTRIES_MAX, any::<bool>())
            .prop_map(|(start, end, limit, keys_only)| KvRequest::Scan(Scan { start, end, limit, keys_only })),
        (proptest::collection::vec(compare, 0..5), operations(), operations())
            .prop_map(|(compares, then, otherwise)| KvRequest::Transaction(Transaction { compares, then, otherwise })),
    ]
}

fn replies() -> impl Strategy<Value = KvReply> {
    let versioned = || (bytes(0..9), any::<u64>()).prop_map(|(value, version)| Versioned { value, version });
    let entry = (key(), versioned()).prop_map(|(key, found)| Entry { key, found });
    let operation = prop_oneof![
        any::<u64>().prop_map(|version| OperationReply::Put { version }),
        proptest::option::of(versioned()).prop_map(|found| OperationReply::Get { found }),
        any::<bool>().prop_map(|deleted| OperationReply::Delete { deleted }),
    ];
    prop_oneof![
        any::<u64>().prop_map(|version| KvReply::Written { version }),
        versioned().prop_map(KvReply::Found),
        Just(KvReply::Missing),
        Just(KvReply::Deleted),
        proptest::option::of(versioned()).prop_map(|current| KvReply::Mismatch { current }),
        Just(KvReply::Invalid),
        Just(KvReply::Omitted),
        Just(KvReply::TooLarge),
        (proptest::collection::vec(entry, 0..5), proptest::option::of(key()))
            .prop_map(|(entries, next)| KvReply::Scanned(Page { entries, next })),
        (any::<bool>(), proptest::collection::vec(operation, 0..5))
            .prop_map(|(held, replies)| KvReply::Transaction(TransactionReply { held, replies })),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn request_comes_back_and_any_cut_is_refused(request in requests()) {
        let bytes = request.encode();
        prop_assert_eq!(KvRequest::decode(bytes.clone()), Ok(request.clone()));
        prop_assert_eq!(request.checked(), Ok(bytes.clone()));
        for length in 0..bytes.len() {
            prop_assert!(KvRequest::decode(bytes.slice(..length)).is_err());
        }
        let longer = Bytes::from([&bytes[..], &[0]].concat());
        prop_assert_eq!(
            KvRequest::decode(longer),
            Err(DecodeError::LeftOver { what: "key-value request", count: 1 })
        );
    }

    #[test]
    fn reply_comes_back_and_any_cut_is_refused(reply in replies()) {
        let bytes = reply.encode();
        prop_assert_eq!(KvReply::decode(bytes.clone()), Ok(reply));
        for length in 0..bytes.len() {
            prop_assert!(KvReply::decode(bytes.slice(..length)).is_err());
        }
    }

    /// Junk never panics; what is understood is canonical, so that no two encodings of one request can differ in a digest.
    #[test]
    fn request_of_junk_is_refused_or_canonical(tag in 0..9u8, junk in proptest::collection::vec(0..5u8, 0..40)) {
        let bytes = Bytes::from([vec![tag], junk].concat());
        if let Ok(request) = KvRequest::decode(bytes.clone()) {
            prop_assert_eq!(request.encode(), bytes.clone());
            prop_assert_eq!(request.checked(), Ok(bytes.clone()));
        }
        if let Ok(reply) = KvReply::decode(bytes.clone()) {
            prop_assert_eq!(reply.encode(), bytes);
        }
    }

    /// A prefix takes the keys that begin with it, and no other.
    #[test]
    fn scan_within_a_prefix_is_the_keys_that_begin_with_it(
        prefix in proptest::collection::vec(prop_oneof![Just(0u8), Just(1), Just(254), Just(255)], 0..4),
        key in proptest::collection::vec(prop_oneof![Just(0u8), Just(1), Just(254), Just(255)], 1..5),
        start in proptest::collection::vec(prop_oneof![Just(1u8), Just(255)], 0..3),
        end in proptest::collection::vec(prop_oneof![Just(1u8), Just(255)], 0..3),
    ) {
        let scan = Scan { start: start.clone().into(), end: end.clone().into(), ..Scan::all() }.within(prefix.clone());
        let inside = key >= scan.start.to_vec() && (scan.end.is_empty() || key < scan.end.to_vec());
        prop_assert_eq!(inside, key.starts_with(&prefix) && key >= start && (end.is_empty() || key < end));
    }
}

#[test]
fn request_out_of_range_is_refused_in_words() {
    // What a caller reads, and what a machine refuses of one who did not ask.
    let key = Bytes::from_static(b"k");
    let long = Bytes::from(vec![7; KEY_BYTES_MAX + 1]);
    let get = |key: &Bytes| KvOperation::Get { key: key.clone() };
    let transaction = |compares: usize, then: usize, otherwise: usize| {
        KvRequest::Transaction(Transaction {
            compares: vec![Compare { key: key.clone(), expected: Expected::Exists }; compares],
            then: vec![get(&key); then],
            otherwise: vec![get(&key); otherwise],
        })
    };
    let max = TRANSACTION_STEPS_MAX;
    assert!(transaction(max, max, max).checked().is_ok());
    for (request, words) in [
        (KvRequest::Get { key: Bytes::new() }, "a key has 1 to 4096 bytes, not 0"),
        (KvRequest::Delete { key: long.clone() }, "a key has 1 to 4096 bytes, not 4097"),
        (KvRequest::Scan(Scan { limit: 0, ..Scan::all() }), "a scan gives 1 to 10000 keys at a time, not 0"),
        (KvRequest::Scan(Scan { limit: 10_001, ..Scan::all() }), "a scan gives 1 to 10000 keys at a time, not 10001"),
        (
            KvRequest::Scan(Scan { start: long.clone(), ..Scan::all() }),
            "the start of a scan has at most 4096 bytes, not 4097",
        ),
        (
            KvRequest::Scan(Scan { end: long.clone(), ..Scan::all() }),
            "the end of a scan has at most 4096 bytes, not 4097",
        ),
        (transaction(max + 1, 0, 0), "a transaction has at most 128 compares, not 129; make it several"),
        (transaction(0, max + 1, 0), "a transaction has at most 128 operations if they hold, not 129; make it several"),
        (
            transaction(0, 0, max + 1),
            "a transaction has at most 128 operations if they do not hold, not 129; make it several",
        ),
        (
            KvRequest::Transaction(Transaction { then: vec![get(&Bytes::new())], ..Transaction::default() }),
            "a key has 1 to 4096 bytes, not 0",
        ),
        (
            KvRequest::Transaction(Transaction {
                compares: vec![Compare { key: long, expected: Expected::Exists }],
                ..Transaction::default()
            }),
            "a key has 1 to 4096 bytes, not 4097",
        ),
    ] {
        assert_eq!(request.checked().expect_err("out of range").to_string(), words);
        assert!(matches!(KvRequest::decode(request.encode()), Err(DecodeError::OutOfRange { .. })), "{words}");
    }
    let large = KvRequest::Put { key, value: vec![0; REQUEST_BYTES_MAX].into() };
    assert_eq!(large.checked(), Err(KvError::TooLarge { bytes: REQUEST_BYTES_MAX + 10 }));
}

#[test]
fn request_that_changes_nothing_is_a_read() {
    // Only such a request may be answered without the log.
    let key = Bytes::from_static(b"k");
    let get = KvOperation::Get { key: key.clone() };
    let put = KvOperation::Put { key: key.clone(), value: key.clone() };
    let transaction = |then: &[&KvOperation], otherwise: &[&KvOperation]| {
        let [then, otherwise] = [then, otherwise].map(|list| list.iter().map(|step| (*step).clone()).collect());
        KvRequest::Transaction(Transaction { compares: Vec::new(), then, otherwise })
    };
    assert!(transaction(&[&get], &[&get, &get]).is_read());
    assert!(!transaction(&[&put], &[]).is_read());
    assert!(!transaction(&[], &[&get, &KvOperation::Delete { key: key.clone() }]).is_read());
    assert!(KvRequest::Scan(Scan::all()).is_read() && KvRequest::Get { key: key.clone() }.is_read());
    assert!(!KvRequest::CompareAndSet { key: key.clone(), expected: Expected::Exists, value: key }.is_read());
}
