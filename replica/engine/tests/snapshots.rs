//! Snapshots of a few voters on real disks, without threads: taken at the same heights, restarted from, served to one that
//! lags; and what a broken or full disk does to them.

mod group;

use std::fs;
use std::sync::Arc;

use group::{Group, slot};
use lockstep_engine::snapshots::manifest::{chunk_digest, is_manifest, is_snapshot_file};
use lockstep_engine::{Engine, EngineOptions, Event, Identity, Job, PeerMessage};
use lockstep_types::{Epoch, Height};
use lockstep_wal::FileDisk;

/// Three of which one, a follower, is down while the log goes on so far that the others forget where it was.
fn with_laggard() -> (Group, u32) {
    let mut group = Group::start(3);
    group.write(3);
    group.quiet();
    let away = (1..=3).find(|number| Some(*number) != group.leader()).unwrap();
    group.down(away);
    group.write(80);
    (group, away)
}

#[test]
fn snapshot_points_of_all_replicas_give_equal_snapshots_and_the_log_is_cut() {
    let mut group = Group::start(3);
    group.write(60);
    group.quiet();
    let newest = group.status(1).snapshots.newest.expect("one was taken");
    for number in 1..=3 {
        let snapshots = group.status(number).snapshots;
        assert_eq!((snapshots.newest, snapshots.agreed), (Some(newest), Some(newest)), "r{number}");
        assert!(snapshots.log_begins_above > Height::ZERO && snapshots.log_begins_above < newest, "r{number}");
        assert_eq!(group.files(number, is_manifest).len(), 2, "two are kept");
        assert_eq!(
            group.files(number, is_snapshot_file),
            group.files(1, is_snapshot_file),
            "equal names, equal states"
        );
    }
}

#[test]
fn restart_from_a_snapshot_finds_the_same_state() {
    let mut group = Group::start(1);
    group.write(60);
    let before = group.status(1);
    let value = group.get(1, "key 7");
    group.down(1);
    group.up(1);
    let after = group.status(1);
    assert_eq!(Some(after.applied), before.snapshots.newest, "the log below was not applied again");
    assert_eq!(after.snapshots.log_begins_above, Height::ZERO, "and is all there: it fits in one segment");
    group.until("it applied all again", |group| group.status(1).applied > before.applied);
    assert_eq!(group.get(1, "key 7"), value);
}

#[test]
fn laggard_below_the_log_installs_a_snapshot_and_follows() {
    let (mut group, away) = with_laggard();
    group.up(away);
    group.write(1);
    group.quiet();
    let status = group.status(away);
    assert_eq!(status.snapshots.counters.installed, 1);
    assert_eq!(status.snapshots.fetching, None);
    // What it installed is durable: it restarts from there.
    group.down(away);
    group.up(away);
    assert!(group.status(away).applied > Height::new(3));
    group.quiet();
}

#[test]
fn transfer_cut_short_by_a_restart_fetches_only_the_rest() {
    let (mut group, away) = with_laggard();
    group.up(away);
    group.until("one chunk is here", |group| {
        group.status(away).snapshots.fetching.is_some_and(|(_, have, of)| have > 0 && have < of)
    });
    group.down(away);
    let served = |group: &Group| -> u64 {
        let up = (1..=3).filter(|number| *number != away);
        up.map(|number| group.status(number).snapshots.counters.served).sum()
    };
    // What it asked for before is answered to nobody.
    (0..50).for_each(|_| group.turn());
    let before = served(&group);
    group.up(away);
    group.quiet();
    assert_eq!(group.status(away).snapshots.counters.installed, 1);
    let chunks = group.files(away, |file| file.starts_with("chunk-")).len() as u64;
    assert!(served(&group) - before < 1 + chunks, "the manifest and all {chunks} chunks were served again");
}

#[test]
fn restart_beside_a_lost_replica_still_serves_the_laggard() {
    // Two of three agreed on the snapshots; one of them is lost for good and the other restarts. It alone must still be able
    // to offer what its log rests on: else the two that are left could never go on.
    let (mut group, away) = with_laggard();
    let leader = group.leader().unwrap();
    let other = (1..=3).find(|number| *number != leader && *number != away).unwrap();
    assert!(group.status(leader).snapshots.log_begins_above > Height::new(3));
    group.down(other);
    group.down(leader);
    group.up(leader);
    group.up(away);
    group.until("the two of them lead", |group| group.leader().is_some());
    group.write(1);
}

#[test]
fn damaged_snapshot_is_passed_over_for_the_older_one() {
    let mut group = Group::start(1);
    group.write(60);
    let kept = group.files(1, is_manifest);
    let before = group.status(1);
    group.down(1);
    fs::write(group.folder(1).join(&kept[1]), b"rot").unwrap();
    group.up(1);
    let after = group.status(1);
    let older: u64 = kept[0].rsplit('-').next().unwrap().parse().unwrap();
    assert_eq!(after.applied, Height::new(older));
    assert!(after.snapshots.trouble.is_some_and(|trouble| trouble.contains(&kept[1])));
    group.until("it applied all again", |group| group.status(1).applied > before.applied);
}

#[test]
fn damaged_snapshots_without_the_log_below_refuse_to_start() {
    let wal = lockstep_wal::Options { segment_bytes: 4 << 20 };
    let mut group = Group::start_with(1, EngineOptions { wal, ..EngineOptions::default() });
    group.write_values(30, 1 << 19);
    assert!(!group.folder(1).join("wal-000000000001.log").exists(), "the first segment is cut");
    // The state and what follows it are there after a restart.
    let before = group.status(1);
    group.down(1);
    group.up(1);
    group.until("it applied all again", |group| group.status(1).applied > before.applied);
    group.down(1);
    for file in group.files(1, is_manifest) {
        fs::write(group.folder(1).join(file), b"rot").unwrap();
    }
    let disk = Arc::new(FileDisk::open(group.folder(1)).unwrap());
    let identity = Identity::start(&*disk, [1; 16]).unwrap();
    let refused = Engine::start(disk, &identity, group.options.clone(), group.now);
    let why = refused.err().expect("a state out of thin air").to_string();
    assert!(why.contains("no snapshot stands for them"), "{why}");
}

#[test]
fn full_disk_leaves_a_snapshot_point_out_and_loses_nothing() {
    let mut group = Group::start(3);
    group.hosts.get_mut(&slot(1)).unwrap().full = true;
    group.write(60);
    group.until("the others agree", |group| group.status(2).snapshots.agreed.is_some());
    let snapshots = group.status(1).snapshots;
    assert_eq!((snapshots.newest, snapshots.counters.taken), (None, 0));
    assert!(snapshots.counters.left_out > 0);
    let trouble = snapshots.trouble.expect("it says why");
    assert!(trouble.starts_with("failed to write a chunk: "), "{trouble}");
    assert!(trouble.ends_with("; free space or grow the volume, the next snapshot is tried anyway"), "{trouble}");
    assert_eq!(group.files(1, is_snapshot_file), Vec::<String>::new());
    group.hosts.get_mut(&slot(1)).unwrap().full = false;
    group.write(60);
    group.quiet();
    let snapshots = group.status(1).snapshots;
    assert!(snapshots.agreed.is_some() && snapshots.trouble.is_none(), "{snapshots:?}");
}

#[test]
fn replica_that_lost_its_identity_beside_a_snapshot_is_refused() {
    let mut group = Group::start(1);
    group.write(60);
    group.down(1);
    let keep = group.files(1, is_manifest);
    for file in group.files(1, |file| !keep.contains(&file.to_owned())) {
        fs::remove_file(group.folder(1).join(file)).unwrap();
    }
    let disk = FileDisk::open(group.folder(1)).unwrap();
    assert!(Identity::start(&disk, [9; 16]).is_err(), "a fresh start would forget a promise");
}

#[test]
fn damaged_chunk_on_the_laggard_is_fetched_again() {
    // Its name is in a snapshot that the laggard keeps, and in the one that it fetches.
    let mut group = Group::start(3);
    group.write(60);
    group.quiet();
    let away = (1..=3).find(|number| Some(*number) != group.leader()).unwrap();
    group.down(away);
    let head = group.files(away, |file| file.starts_with("chunk-"));
    for file in &head {
        fs::write(group.folder(away).join(file), b"rot").unwrap();
    }
    // None of its snapshots loads any more, and all of its log is there: it starts from the log.
    group.up(away);
    group.until("it follows", |group| group.status(away).not_ready.is_none());
    group.write(60);
    group.quiet();
    assert_eq!(group.status(away).snapshots.trouble, None);
    for file in group.files(away, |file| file.starts_with("chunk-")) {
        assert_ne!(fs::read(group.folder(away).join(&file)).unwrap(), b"rot", "{file} is believed in");
    }
}

#[test]
fn chunk_found_damaged_while_a_snapshot_is_written_is_written_by_the_next() {
    let mut group = Group::start(3);
    // Several chunks of state.
    let leader = group.leader().expect("someone leads");
    (0..20).for_each(|number| group.put(leader, format!("large {number}"), 1 << 17));
    group.write(60);
    group.quiet();
    let shared = group.files(1, |file| file.starts_with("chunk-"));
    let taken = group.status(1).snapshots.counters.taken;
    // New values of one key: most chunks stay as they are, so the next snapshots share them with those that are kept.
    let writing = |group: &Group| {
        let up = group.hosts[&slot(1)].up.as_ref().expect("it is up");
        up.jobs.iter().any(|job| matches!(job, Job::Write(_)))
    };
    let leader = group.leader().expect("someone leads");
    group.hosts.get_mut(&slot(1)).unwrap().busy = true;
    while !writing(&group) {
        group.put(leader, "key 1".to_owned(), 256);
    }
    for file in &shared {
        fs::write(group.folder(1).join(file), b"rot").unwrap();
        let message = PeerMessage::FetchChunk { digest: chunk_digest(file).expect("a chunk's name") };
        let up = group.hosts.get_mut(&slot(1)).unwrap().up.as_mut().unwrap();
        up.engine.handle(group.now, Event::Peer { from: slot(2), epoch: Epoch::FIRST, message });
    }
    // The peer's questions come before the rest of it.
    let waiting = |group: &Group| group.hosts[&slot(1)].up.as_ref().expect("it is up").jobs.len();
    group.until("all are asked for", |group| waiting(group) == shared.len() + 1);
    let host = group.hosts.get_mut(&slot(1)).unwrap();
    host.up.as_mut().unwrap().jobs.rotate_left(1);
    host.busy = false;
    group.until("it is written", |group| group.status(1).snapshots.counters.taken > taken);
    // The two that are kept then are younger.
    let taken = group.status(1).snapshots.counters.taken;
    while group.status(1).snapshots.counters.taken < taken + 3 {
        group.put(leader, "key 1".to_owned(), 256);
    }
    for file in group.files(1, |file| file.starts_with("chunk-")) {
        assert_ne!(fs::read(group.folder(1).join(&file)).unwrap(), b"rot", "{file} is believed in");
    }
}

#[test]
fn installed_snapshot_that_is_lost_before_the_next_block_is_missed() {
    // It was acknowledged. What the log held before it is all there, and must not be taken for the whole.
    let (mut group, away) = with_laggard();
    group.up(away);
    group.until("it installs", |group| group.status(away).snapshots.counters.installed == 1);
    (0..3).for_each(|_| group.turn());
    group.down(away);
    for file in group.files(away, is_manifest) {
        fs::write(group.folder(away).join(file), b"rot").unwrap();
    }
    let disk = Arc::new(FileDisk::open(group.folder(away)).unwrap());
    let identity = Identity::start(&*disk, [away as u8; 16]).unwrap();
    let refused = Engine::start(disk, &identity, group.options.clone(), group.now);
    let why = refused.err().expect("it would forget what it acknowledged").to_string();
    assert!(why.contains("was written, and does not chain from"), "{why}");
}
