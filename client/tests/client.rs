//! The client against a small real server: fail-over, lost answers, honest errors.

mod fake;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use bytes::Bytes;
use fake::{Replica, Service, genesis};
use lockstep_client::{
    CasOutcome, Client, ClientError, ClientOptions, Compare, Entry, Expected, KvOperation, OperationReply, Resolution,
    Scan, Transaction, TransactionReply, Versioned,
};
use lockstep_types::ServiceId;
use lockstep_types::kv::KvRequest;

fn service(replicas: u8) -> (Arc<Service>, Vec<Replica>) {
    let service = Service::new(genesis());
    let replicas = (0..replicas).map(|index| Replica::start(&service, index)).collect();
    (service, replicas)
}

fn options(replicas: &[Replica]) -> ClientOptions {
    ClientOptions::new(replicas.iter().map(|replica| replica.address.to_string()))
}

fn connect(replicas: &[Replica]) -> Client {
    Client::connect(options(replicas)).unwrap()
}

/// Puts to `keys` keys as fast as they are answered, for `duration`. Gives the puts and the longest time one took.
async fn load(client: &Client, keys: usize, duration: Duration) -> (u64, Duration) {
    let end = Instant::now() + duration;
    let writers: Vec<_> = (0..keys)
        .map(|key| {
            let client = client.clone();
            tokio::spawn(async move {
                let (mut writes, mut longest) = (0, Duration::ZERO);
                while Instant::now() < end {
                    let started = Instant::now();
                    let version = client.kv().put(format!("key {key}"), "value").await.expect("no error ever");
                    writes += 1;
                    assert_eq!(version, writes, "each put is executed once");
                    longest = longest.max(started.elapsed());
                }
                (writes, longest)
            })
        })
        .collect();
    let mut total = (0, Duration::ZERO);
    for writer in writers {
        let (writes, longest) = writer.await.unwrap();
        total = (total.0 + writes, total.1.max(longest));
    }
    total
}

#[tokio::test]
async fn client_all_operations_work() {
    let (service, replicas) = service(3);
    let client = connect(&replicas);
    let kv = client.kv();
    assert_eq!(kv.get("a").await.unwrap(), None);
    assert_eq!(kv.put("a", "1").await.unwrap(), 1);
    assert_eq!(kv.put("a", "2").await.unwrap(), 2);
    let found = kv.get("a").await.unwrap().unwrap();
    assert_eq!((&found.value[..], found.version), (&b"2"[..], 2));
    let written = kv.cas("a", Expected::Version(2), "3").await.unwrap();
    assert_eq!(written, CasOutcome::Written { version: 3 });
    let mismatch = kv.cas("a", Expected::Value(Bytes::from_static(b"2")), "4").await.unwrap();
    assert!(matches!(mismatch, CasOutcome::Mismatch { current: Some(current) } if current.version == 3));
    assert!(kv.delete("a").await.unwrap());
    assert!(!kv.delete("a").await.unwrap());
    assert_eq!(service.sessions(), 1);
    client.close().await;
    assert_eq!(service.sessions(), 0, "close ends the session");
}

#[tokio::test]
async fn client_scan_follows_pages_to_the_end() {
    let (_service, replicas) = service(1);
    let client = connect(&replicas);
    let kv = client.kv();
    for key in ["user/c", "user/a", "other", "user/b", "user0"] {
        kv.put(key, format!("value of {key}")).await.unwrap();
    }
    let mut keys = Vec::new();
    let mut scan = Some(Scan { limit: 2, ..Scan::prefix("user/") });
    while let Some(range) = scan {
        let page = kv.scan(range.clone()).await.unwrap();
        assert!(page.entries.len() <= 2);
        for Entry { key, found } in page.entries {
            assert_eq!(found.value, format!("value of {}", String::from_utf8_lossy(&key)));
            keys.push(key);
        }
        scan = page.next.map(|start| Scan { start, ..range });
    }
    assert_eq!(keys, ["user/a", "user/b", "user/c"]);
    let page = kv.scan(Scan { keys_only: true, ..Scan::all() }).await.unwrap();
    assert_eq!((page.entries.len(), page.next), (5, None));
    assert!(page.entries.iter().all(|entry| entry.found.value.is_empty() && entry.found.version == 1));
}

#[tokio::test]
async fn client_transaction_writes_once_or_reads() {
    let (service, replicas) = service(3);
    let client = connect(&replicas);
    let kv = client.kv();
    let take = Transaction {
        compares: vec![Compare::missing("lock")],
        then: vec![KvOperation::put("lock", "me"), KvOperation::put("count", "1")],
        otherwise: vec![KvOperation::get("lock")],
    };
    // The first attempt is executed and not answered: the retry gets the same answer, and finds no lock of its own.
    service.swallow.store(1, Ordering::SeqCst);
    let done = kv.transaction(take.clone()).await.unwrap();
    assert_eq!((done.held, done.replies.len()), (true, 2));
    assert_eq!(service.version("count"), 1);
    let found = Versioned { value: "me".into(), version: 1 };
    let refused = kv.transaction(take).await.unwrap();
    assert_eq!(refused, TransactionReply { held: false, replies: vec![OperationReply::Get { found: Some(found) }] });
    let read =
        Transaction { then: vec![KvOperation::get("count"), KvOperation::get("none")], ..Transaction::default() };
    let read = kv.transaction(read).await.unwrap();
    assert!(matches!(&read.replies[..], [OperationReply::Get { found: Some(_) }, OperationReply::Get { found: None }]));
}

#[tokio::test]
async fn client_request_out_of_range_is_rejected_and_not_sent() {
    let (_service, replicas) = service(1);
    let client = connect(&replicas);
    let kv = client.kv();
    let rejected = |reason: &str| ClientError::Rejected { reason: reason.to_owned() };
    assert_eq!(kv.get("").await, Err(rejected("a key has 1 to 4096 bytes, not 0")));
    assert_eq!(kv.put("k".repeat(4097), "").await, Err(rejected("a key has 1 to 4096 bytes, not 4097")));
    let scan = Scan { limit: 0, ..Scan::all() };
    assert_eq!(kv.scan(scan).await, Err(rejected("a scan gives 1 to 10000 keys at a time, not 0")));
    let then = vec![KvOperation::get("k"); 129];
    assert_eq!(
        kv.transaction(Transaction { then, ..Transaction::default() }).await,
        Err(rejected("a transaction has at most 128 operations if they hold, not 129; make it several"))
    );
    assert_eq!(replicas[0].faults.requests.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn client_many_calls_share_frames() {
    let (_service, replicas) = service(1);
    let client = connect(&replicas);
    client.kv().put("warm", "").await.unwrap();
    let frames = replicas[0].faults.frames.load(Ordering::Relaxed);
    let calls: Vec<_> = (0..500)
        .map(|key| {
            let client = client.clone();
            tokio::spawn(async move { client.kv().put(format!("{key}"), "value").await })
        })
        .collect();
    for call in calls {
        assert_eq!(call.await.unwrap(), Ok(1));
    }
    let frames = replicas[0].faults.frames.load(Ordering::Relaxed) - frames;
    assert!(frames < 100, "500 puts in {frames} frames");
}

#[tokio::test]
async fn client_dropped_closes_its_session() {
    let (service, replicas) = service(1);
    let client = connect(&replicas);
    client.kv().put("a", "1").await.unwrap();
    drop(client);
    let patience = Instant::now() + Duration::from_secs(5);
    while service.sessions() > 0 {
        assert!(Instant::now() < patience);
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn client_replica_killed_and_back_goes_on_without_error() {
    let (service, mut replicas) = service(3);
    let client = connect(&replicas);
    let running = tokio::spawn({
        let client = client.clone();
        async move { load(&client, 8, Duration::from_secs(3)).await }
    });
    for (index, replica) in (0..).zip(&mut replicas) {
        tokio::time::sleep(Duration::from_millis(500)).await;
        let address = replica.address;
        replica.kill();
        tokio::time::sleep(Duration::from_millis(200)).await;
        *replica = Replica::start_at(&service, index, address);
    }
    let (writes, longest) = running.await.unwrap();
    assert!(longest < Duration::from_secs(1), "a put took {longest:?}");
    assert_eq!((0..8).map(|key| service.version(&format!("key {key}"))).sum::<u64>(), writes);
}

#[tokio::test(flavor = "multi_thread")]
async fn client_replica_vanishes_goes_on_without_error() {
    let (service, replicas) = service(3);
    let client = connect(&replicas);
    // Whichever is in use is the one that vanishes.
    *service.leader.lock().unwrap() = replicas[1].address.to_string();
    let running = tokio::spawn({
        let client = client.clone();
        async move { load(&client, 8, Duration::from_secs(8)).await }
    });
    tokio::time::sleep(Duration::from_secs(3)).await;
    replicas[1].vanish();
    let (writes, longest) = running.await.unwrap();
    assert!(longest < Duration::from_secs(4), "a put took {longest:?}");
    assert!(longest > Duration::from_millis(500), "nothing vanished: the longest put took {longest:?}");
    assert_eq!((0..8).map(|key| service.version(&format!("key {key}"))).sum::<u64>(), writes);
}

#[tokio::test]
async fn client_streams_dropped_executes_once() {
    let (service, replicas) = service(3);
    let client = connect(&replicas);
    replicas[0].faults.drop_streams.store(true, Ordering::Relaxed);
    replicas[1].faults.drop_streams.store(true, Ordering::Relaxed);
    for version in 1..=20 {
        assert_eq!(client.kv().put("a", "value").await, Ok(version));
    }
    assert_eq!(service.version("a"), 20);
}

#[tokio::test]
async fn client_one_replica_mute_is_answered_by_another() {
    let (service, replicas) = service(3);
    *service.leader.lock().unwrap() = replicas[2].address.to_string();
    replicas[2].faults.mute.store(true, Ordering::Relaxed);
    let client = connect(&replicas);
    let started = Instant::now();
    assert_eq!(client.kv().put("a", "value").await, Ok(1));
    assert!(started.elapsed() < Duration::from_secs(3));

    for replica in &replicas {
        replica.faults.mute.store(true, Ordering::Relaxed);
    }
    let impatient = client.with_timeout(Duration::from_millis(300));
    let text = impatient.kv().get("a").await.unwrap_err().to_string();
    assert!(text.contains(&format!("{} (connected, no answer yet)", replicas[0].address)), "{text}");
}

#[tokio::test]
async fn client_election_waits_then_succeeds() {
    let (service, replicas) = service(3);
    service.has_leader.store(false, Ordering::Relaxed);
    let client = connect(&replicas);
    let put = tokio::spawn({
        let client = client.clone();
        async move { client.kv().put("a", "value").await }
    });
    tokio::time::sleep(Duration::from_millis(1500)).await;
    service.has_leader.store(true, Ordering::Relaxed);
    assert_eq!(put.await.unwrap(), Ok(1));
    let seen: u64 = replicas.iter().map(|replica| replica.faults.requests.load(Ordering::Relaxed)).sum();
    assert!(seen < 40, "{seen} requests in 1.5 s without a leader: back off");
}

#[tokio::test]
async fn client_leader_known_goes_there() {
    let (service, replicas) = service(3);
    *service.leader.lock().unwrap() = replicas[1].address.to_string();
    let client = connect(&replicas);
    for _ in 0..10 {
        client.kv().put("a", "value").await.unwrap();
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let to_leader = replicas[1].faults.requests.load(Ordering::Relaxed);
    assert!(to_leader >= 8, "{to_leader} requests went to the leader");

    // The leader changes: the client follows within a few seconds.
    *service.leader.lock().unwrap() = replicas[2].address.to_string();
    let patience = Instant::now() + Duration::from_secs(6);
    while replicas[2].faults.requests.load(Ordering::Relaxed) < 5 {
        assert!(Instant::now() < patience);
        client.kv().put("a", "value").await.unwrap();
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn client_leader_not_reachable_keeps_its_endpoint() {
    let (service, replicas) = service(1);
    // A documentation address: packets go nowhere.
    *service.leader.lock().unwrap() = "192.0.2.1:7400".to_owned();
    let client = connect(&replicas);
    let started = Instant::now();
    for version in 1..=50 {
        assert_eq!(client.kv().put("a", "value").await, Ok(version));
    }
    assert!(started.elapsed() < Duration::from_secs(1), "{:?}", started.elapsed());
}

#[tokio::test]
async fn client_no_leader_until_the_deadline_was_never_sent() {
    let (service, replicas) = service(2);
    service.has_leader.store(false, Ordering::Relaxed);
    let client = Client::connect(options(&replicas).with_timeout(Duration::from_millis(700))).unwrap();
    let error = client.kv().put("a", "value").await.unwrap_err();
    assert!(matches!(error, ClientError::NeverSent { .. }), "{error:?}");
    assert!(error.is_certain());
    let (first, second) = (replicas[0].address, replicas[1].address);
    let text = error.to_string();
    assert!(text.starts_with("no replica took the request within 700ms; it was not executed; tried "), "{text}");
    assert!(text.contains(&format!("{first} (no leader is known)")), "{text}");
    assert!(text.contains(&format!("{second} (no leader is known)")), "{text}");
    let error = client.kv().get("a").await.unwrap_err();
    assert!(matches!(error, ClientError::Unanswered { .. }), "{error:?}");
}

#[tokio::test]
async fn client_nobody_there_was_never_sent() {
    let client = Client::connect(
        ClientOptions::new(["127.0.0.1:1", "no.such.name.invalid:7400"]).with_timeout(Duration::from_secs(1)),
    )
    .unwrap();
    let text = client.kv().put("a", "value").await.unwrap_err().to_string();
    assert!(text.contains("127.0.0.1:1 (Connection refused"), "{text}");
    assert!(text.contains("no.such.name.invalid:7400 (the name does not resolve: "), "{text}");
}

#[tokio::test]
async fn client_answer_lost_is_unknown_then_resolved_as_executed() {
    let (service, replicas) = service(1);
    let client = connect(&replicas);
    client.kv().put("a", "first").await.unwrap();
    // More than the attempts within the deadline.
    service.swallow.store(100, Ordering::Relaxed);
    let impatient = client.with_timeout(Duration::from_millis(500));
    let error = impatient.kv().put("a", "second").await.unwrap_err();
    let ClientError::Unknown { ticket, .. } = error.clone() else { panic!("{error:?}") };
    assert!(!error.is_certain());
    let resolution = client.resolve(ticket).await.unwrap();
    assert!(matches!(resolution, Resolution::Executed(_)), "{resolution:?}");
    assert_eq!(client.resolve(ticket).await.unwrap(), resolution, "it is remembered");
    assert_eq!(service.version("a"), 2);
    // The session goes on.
    service.swallow.store(0, Ordering::Relaxed);
    assert_eq!(client.kv().put("a", "third").await, Ok(3));
}

#[tokio::test]
async fn client_request_lost_is_unknown_then_resolved_as_cancelled() {
    let (service, replicas) = service(1);
    let client = connect(&replicas);
    client.kv().put("a", "first").await.unwrap();
    replicas[0].faults.refuse_vaguely.store(true, Ordering::Relaxed);
    let impatient = client.with_timeout(Duration::from_millis(300));
    let error = impatient.kv().put("a", "second").await.unwrap_err();
    let ClientError::Unknown { ticket, .. } = error else { panic!("{error:?}") };
    assert!(matches!(impatient.resolve(ticket).await, Err(ClientError::Unknown { .. })), "nobody answers yet");
    replicas[0].faults.refuse_vaguely.store(false, Ordering::Relaxed);
    assert_eq!(client.resolve(ticket).await.unwrap(), Resolution::Cancelled);
    assert_eq!(service.version("a"), 1);
}

#[tokio::test]
async fn client_session_evicted_in_flight_is_lost_and_the_next_call_works() {
    let (service, replicas) = service(1);
    let client = connect(&replicas);
    client.kv().put("a", "first").await.unwrap();
    for nonce in 0..40u8 {
        let outcome = service.apply(&lockstep_types::Command::OpenSession { nonce: [nonce; 16] });
        let lockstep_types::Outcome::SessionOpened { session } = outcome else { panic!("{outcome}") };
        let body = KvRequest::Delete { key: Bytes::from_static(b"other") }.encode();
        service.apply(&lockstep_types::Command::Execute { session, sequence: 1, acknowledged: 0, body });
    }
    let error = client.kv().put("a", "second").await.unwrap_err();
    assert!(matches!(error, ClientError::Lost { .. }), "{error:?}");
    assert_eq!(client.kv().put("a", "third").await, Ok(2));
}

#[tokio::test]
async fn client_wrong_service_says_so() {
    let (_service, replicas) = service(2);
    let mut options = options(&replicas).with_timeout(Duration::from_millis(500));
    options.service_id = Some(ServiceId::from_bytes([6; 16]));
    let client = Client::connect(options).unwrap();
    let text = client.kv().put("a", "value").await.unwrap_err().to_string();
    let id = |byte: &str| byte.repeat(16);
    assert!(text.contains(&format!("it serves service {}, not {}", id("05"), id("06"))), "{text}");
}

#[tokio::test]
async fn client_request_too_large_is_rejected() {
    let (_service, replicas) = service(1);
    let client = connect(&replicas);
    let error = client.kv().put("a", vec![0; 1 << 20]).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "the request was rejected and not executed: the request has 1048586 bytes; at most 1048576 are taken"
    );
    assert_eq!(client.kv().put("a", vec![0; (1 << 20) - 100]).await, Ok(1));
}

#[tokio::test]
async fn client_key_empty_is_rejected() {
    let (_service, replicas) = service(1);
    let error = connect(&replicas).kv().put("", "value").await.unwrap_err();
    assert!(matches!(error, ClientError::Rejected { .. }), "{error:?}");
}

#[tokio::test]
async fn client_endpoint_malformed_is_refused() {
    let refused = |endpoint: &str| Client::connect(ClientOptions::new([endpoint])).unwrap_err().to_string();
    assert_eq!(
        refused("http://a:7400"),
        "endpoint \"http://a:7400\" is not host:port: leave out the scheme and any path"
    );
    assert_eq!(refused("a"), "endpoint \"a\" is not host:port: the port is missing; clients use 7400");
    assert!(matches!(Client::connect(ClientOptions::new(Vec::<String>::new())), Err(ClientError::NoEndpoint)));
}

#[tokio::test]
async fn client_closed_takes_no_more_calls() {
    let (_service, replicas) = service(1);
    let client = connect(&replicas);
    client.kv().put("a", "value").await.unwrap();
    let other = client.clone();
    client.close().await;
    assert_eq!(other.kv().put("a", "value").await, Err(ClientError::Closed));
}
