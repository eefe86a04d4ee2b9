//! Frames, connections and bytes that are too many or make no sense: refused, and harmless to everyone else.

use std::time::Duration;

use lockstep_types::Command;
use lockstep_types::kv::KvRequest;
use lockstep_types::limits::REQUEST_BYTES_MAX;
use lockstep_wire::{Answer, limits, v1};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tonic::Code;

use crate::service::{PATIENCE, Service};
use crate::serving::{Stream, command};

#[tokio::test]
async fn garbage_on_every_port_harms_nothing() {
    let service = Service::born(3).await;
    let replica = &service.replicas[0];
    let mut noise = Vec::new();
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    while noise.len() < 4096 {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        noise.extend_from_slice(&state.to_le_bytes());
    }
    // What looks like HTTP/2 at first, then is not.
    let preface = [&b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"[..], &noise].concat();
    for address in [replica.client_address(), replica.peer_address(), replica.metrics_address()] {
        for bytes in [&noise[..], &preface[..], b"GET / HTTP/1.1\r\n\r\n", b"\0"] {
            let mut stream = TcpStream::connect(&address).await.expect("it listens");
            // The other end may close before all is sent.
            let _ = stream.write_all(bytes).await;
            let _ = stream.shutdown().await;
            let mut answer = Vec::new();
            let read = timeout(PATIENCE, stream.read_to_end(&mut answer)).await;
            assert!(read.is_ok(), "{address} keeps a connection that sent {} bytes of nonsense", bytes.len());
        }
    }
    assert_eq!(replica.put("key", "value").await.expect("a majority runs"), 1);
}

#[tokio::test]
async fn frame_above_the_limit_ends_its_stream_only() {
    let service = Service::born(3).await;
    let mut other = Stream::open(&service.replicas[0]).await;
    let session = other.open_session(1).await;

    let mut stream = Stream::open(&service.replicas[0]).await;
    let body = vec![0; limits::FRAME_BYTES_MAX].into();
    stream.send(vec![command(1, Command::Plain { body })]).await;
    let refused = stream.answers.message().await.expect_err("too large a frame");
    assert_eq!(refused.code(), Code::OutOfRange, "{refused}");

    let body = KvRequest::Put { key: "key".into(), value: "value".into() }.encode();
    let request = Command::Execute { session, sequence: 1, acknowledged: 0, body };
    assert!(matches!(other.ask(command(2, request)).await, Answer::Outcome(_)));
}

#[tokio::test]
async fn request_above_the_limit_is_refused_and_its_neighbours_are_not() {
    let service = Service::born(1).await;
    let mut stream = Stream::open(&service.replicas[0]).await;
    let small = KvRequest::Put { key: "key".into(), value: "value".into() }.encode();
    let large = vec![0; REQUEST_BYTES_MAX + 1].into();
    stream.send(vec![command(1, Command::Plain { body: small }), command(2, Command::Plain { body: large })]).await;
    let answers = stream.take(2).await;
    assert!(matches!(answers[0].1, Answer::Outcome(_)), "{answers:?}");
    let Answer::Invalid { reason } = &answers[1].1 else { panic!("taken: {answers:?}") };
    assert_eq!(reason, "request body has 1048577 bytes; at most 1048576 are taken");
}

#[tokio::test]
async fn frame_with_too_many_requests_is_refused() {
    let service = Service::born(1).await;
    let mut stream = Stream::open(&service.replicas[0]).await;
    let count = limits::FRAME_REQUESTS_MAX as u64 + 1;
    stream.send((0..count).map(|id| command(id, Command::OpenSession { nonce: [0; 16] })).collect()).await;
    let refused = stream.answers.message().await.expect_err("too many");
    assert_eq!(refused.code(), Code::InvalidArgument);
    assert_eq!(refused.message(), "a frame holds 1025 requests; at most 1024 are taken");
}

#[tokio::test]
async fn key_or_value_out_of_bounds_is_refused() {
    let service = Service::born(1).await;
    let replica = &service.replicas[0];
    for key in [String::new(), "k".repeat(4097)] {
        let refused = replica.put(&key, "value").await.expect_err("no key");
        assert_eq!(refused.code(), Code::InvalidArgument);
        assert_eq!(refused.message(), format!("a key has 1 to 4096 bytes, not {}", key.len()));
    }
    let refused = replica.put("key", &"v".repeat(REQUEST_BYTES_MAX)).await.expect_err("too large");
    assert_eq!(refused.code(), Code::InvalidArgument);
    assert!(refused.message().ends_with("at most 1048576 are taken"), "{refused}");
    assert_eq!(replica.put("key", &"v".repeat(REQUEST_BYTES_MAX - 100)).await.expect("it fits"), 1);
}

#[tokio::test]
async fn scan_or_transaction_out_of_bounds_is_refused() {
    let service = Service::born(1).await;
    let mut kv = service.replicas[0].kv();
    let refused = |status: tonic::Status, code: Code, words: &str| {
        assert_eq!((status.code(), status.message()), (code, words));
    };
    let scan = v1::ScanRequest { limit: 10_001, ..v1::ScanRequest::default() };
    let words = "a scan gives 1 to 10000 keys at a time, not 10001";
    refused(kv.scan(scan).await.expect_err("too many"), Code::InvalidArgument, words);
    let scan = v1::ScanRequest { prefix: vec![7; 4097].into(), ..v1::ScanRequest::default() };
    let words = "the start of a scan has at most 4096 bytes, not 4097";
    refused(kv.scan(scan).await.expect_err("too long"), Code::InvalidArgument, words);

    let get = v1::transaction_operation::Operation::Get(v1::GetRequest { key: "key".into() });
    let get = v1::TransactionOperation { operation: Some(get) };
    let transaction = |then| v1::TransactionRequest { then, ..v1::TransactionRequest::default() };
    let words = "a transaction has at most 128 operations if they hold, not 129; make it several";
    let status = kv.transaction(transaction(vec![get.clone(); 129])).await.expect_err("too many");
    refused(status, Code::InvalidArgument, words);
    let words = "put, get or delete of a transaction is missing";
    let status = kv.transaction(transaction(vec![v1::TransactionOperation { operation: None }])).await;
    refused(status.expect_err("nothing to do"), Code::InvalidArgument, words);

    service.replicas[0].put("key", &"v".repeat(600_000)).await.expect("it fits");
    let status = kv.transaction(transaction(vec![get; 2])).await.expect_err("a reply of 1.2 MB");
    let words =
        "the transaction changed nothing: the values that it reads are larger than a reply; read fewer keys at a time";
    refused(status, Code::OutOfRange, words);
}

#[tokio::test]
async fn connection_above_the_limit_is_closed_and_the_others_stay() {
    let mut service = Service::stopped(1);
    service.replicas[0].option("--max-connections=3");
    service.replicas[0].start();
    service.give_birth().await;
    service.leader().await;
    let replica = &service.replicas[0];
    let mut stream = Stream::open(replica).await;
    stream.open_session(1).await;

    let mut held = Vec::new();
    loop {
        let mut next = TcpStream::connect(replica.client_address()).await.expect("it listens");
        let mut byte = [0];
        // HTTP/2 speaks first on a connection that is kept; one that is not ends.
        match timeout(PATIENCE, next.read(&mut byte)).await.expect("one or the other") {
            Ok(1..) => held.push(next),
            Ok(0) | Err(_) => break,
        }
        assert!(held.len() < 3, "no connection is refused");
    }
    stream.open_session(2).await;
    held.clear();
    // Their places are free again.
    assert_eq!(replica.up().await.boot, 1);
}

#[tokio::test]
async fn client_that_reads_no_answers_is_not_read_and_harms_nobody() {
    let service = Service::born(1).await;
    let stream = Stream::open(&service.replicas[0]).await;
    // More answers than there are places: those of 64 KiB each do not fit into the connection either.
    let value = "v".repeat(64 << 10);
    service.replicas[0].put("key", &value).await.expect("it leads itself");
    let read = || lockstep_wire::Operation::Read { body: KvRequest::Get { key: "key".into() }.encode() };
    let mut sent = 0;
    let stuck = loop {
        let requests = (0..500).map(|id| crate::serving::request(id, read())).collect();
        let frame = v1::ClientFrame { requests };
        match timeout(Duration::from_secs(1), stream.frames.send(frame)).await {
            Ok(sending) => sending.expect("the stream is open"),
            Err(_) => break sent,
        }
        sent += 500;
        if sent > 1_000_000 {
            break sent;
        }
    };
    assert!(stuck < 1_000_000, "a replica reads requests without end");
    assert_eq!(service.replicas[0].put("other", "value").await.expect("it leads itself"), 1);
}

#[tokio::test]
async fn deadline_of_a_call_is_kept() {
    let mut service = Service::born(3).await;
    let leader = service.leader().await;
    let others: Vec<usize> = (0..3).filter(|index| *index != leader).collect();
    // The leader goes on for a moment, but nothing commits.
    for index in &others {
        service.replicas[*index].signal(rustix::process::Signal::STOP);
    }
    let body = KvRequest::Put { key: "key".into(), value: "value".into() }.encode();
    let request = v1::Request { timeout_ms: 300, ..command(1, Command::Plain { body }) };
    let refused = service.replicas[leader].client().call(request).await.expect_err("no majority");
    assert!(matches!(refused.code(), Code::DeadlineExceeded | Code::Unavailable), "{refused}");
    assert!(refused.metadata().get("lockstep-never-proposed").is_none(), "it may be in the leader's log: {refused}");
    for index in &others {
        service.replicas[*index].signal(rustix::process::Signal::CONT);
    }
    service.leader().await;
}
