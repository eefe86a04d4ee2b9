//! What unary calls to a key-value service take and give, and what is refused in words.

use bytes::Bytes;
use lockstep_types::kv::{
    Compare, Entry, Expected, KvOperation, KvRequest, OperationReply, Page, SCAN_ENTRIES_MAX, Scan, Transaction,
    TransactionReply, Versioned,
};
use lockstep_wire::v1;
use prost::Message;

fn over_the_wire<M: Message + Default>(message: &M) -> M {
    M::decode(Bytes::from(message.encode_to_vec())).unwrap()
}

fn found(value: &'static str, version: u64) -> Versioned {
    Versioned { value: value.into(), version }
}

#[test]
fn scan_request_with_prefix_and_bounds_is_one_range() {
    let scan =
        v1::ScanRequest { start: "user/b".into(), end: "x".into(), prefix: "user/".into(), limit: 7, keys_only: true };
    let expected = Scan { start: "user/b".into(), end: "user0".into(), limit: 7, keys_only: true };
    assert_eq!(KvRequest::from(over_the_wire(&scan)), KvRequest::Scan(expected));
    let all = Scan { start: Bytes::new(), end: Bytes::new(), limit: SCAN_ENTRIES_MAX, keys_only: false };
    assert_eq!(KvRequest::from(v1::ScanRequest::default()), KvRequest::Scan(all));
}

#[test]
fn scan_response_says_where_to_go_on() {
    let entry = Entry { key: "a".into(), found: found("1", 2) };
    let page = Page { entries: vec![entry], next: Some("b".into()) };
    let response: v1::ScanResponse = over_the_wire(&page.into());
    assert_eq!(response.entries, [v1::Entry { key: "a".into(), value: "1".into(), version: 2 }]);
    assert_eq!(response.next, "b");
    assert_eq!(v1::ScanResponse::from(Page::default()), v1::ScanResponse::default());
}

#[test]
fn transaction_request_each_kind_is_understood() {
    use v1::compare::Expected as Wire;
    use v1::transaction_operation::Operation;
    let compare = |expected| v1::Compare { key: "k".into(), expected: Some(expected) };
    let operation = |operation| v1::TransactionOperation { operation: Some(operation) };
    let request = v1::TransactionRequest {
        compares: vec![
            compare(Wire::Version(3)),
            compare(Wire::Value("v".into())),
            compare(Wire::Exists(true)),
            compare(Wire::Exists(false)),
        ],
        then: vec![
            operation(Operation::Put(v1::PutRequest { key: "k".into(), value: "w".into() })),
            operation(Operation::Delete(v1::DeleteRequest { key: "l".into() })),
        ],
        otherwise: vec![operation(Operation::Get(v1::GetRequest { key: "k".into() }))],
    };
    let expected = Transaction {
        compares: vec![Compare::version("k", 3), Compare::value("k", "v"), Compare::exists("k"), Compare::missing("k")],
        then: vec![KvOperation::put("k", "w"), KvOperation::delete("l")],
        otherwise: vec![KvOperation::get("k")],
    };
    assert_eq!(KvRequest::try_from(over_the_wire(&request)), Ok(KvRequest::Transaction(expected)));
}

#[test]
fn transaction_request_with_a_hole_is_refused_in_words() {
    let words = |request: v1::TransactionRequest| KvRequest::try_from(request).expect_err("a hole").to_string();
    let compares = vec![v1::Compare { key: "k".into(), expected: None }];
    let request = v1::TransactionRequest { compares, ..v1::TransactionRequest::default() };
    assert_eq!(words(request), "version, value or exists of a compare is missing");
    let otherwise = vec![v1::TransactionOperation { operation: None }];
    let request = v1::TransactionRequest { otherwise, ..v1::TransactionRequest::default() };
    assert_eq!(words(request), "put, get or delete of a transaction is missing");
}

#[test]
fn transaction_response_has_one_for_each_operation() {
    use v1::operation_response::Response;
    let reply = TransactionReply {
        held: true,
        replies: vec![
            OperationReply::Put { version: 4 },
            OperationReply::Get { found: None },
            OperationReply::Get { found: Some(found("v", 5)) },
            OperationReply::Delete { deleted: true },
        ],
    };
    let response: v1::TransactionResponse = over_the_wire(&reply.into());
    let responses: Vec<Response> = response.responses.into_iter().filter_map(|done| done.response).collect();
    let get =
        |found, value: &'static str, version| Response::Get(v1::GetResponse { found, value: value.into(), version });
    assert!(response.held);
    assert_eq!(
        responses,
        [
            Response::Put(v1::PutResponse { version: 4 }),
            get(false, "", 0),
            get(true, "v", 5),
            Response::Delete(v1::DeleteResponse { deleted: true }),
        ]
    );
}

#[test]
fn compare_and_set_request_needs_an_expectation() {
    use v1::compare_and_set_request::Expected as Wire;
    let set = |expected| KvRequest::try_from(v1::CompareAndSetRequest { key: "k".into(), expected, value: "v".into() });
    let request = |expected| KvRequest::CompareAndSet { key: "k".into(), expected, value: "v".into() };
    assert_eq!(set(Some(Wire::ExpectedVersion(2))), Ok(request(Expected::Version(2))));
    assert_eq!(set(Some(Wire::ExpectedValue("u".into()))), Ok(request(Expected::Value("u".into()))));
    assert_eq!(set(Some(Wire::ExpectedExists(v1::Empty {}))), Ok(request(Expected::Exists)));
    assert_eq!(
        set(None).expect_err("nothing is expected").to_string(),
        "expected_version, expected_value or expected_exists is missing"
    );
}
