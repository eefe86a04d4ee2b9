//! Who a data directory is: minted once, never another, never a fresh start where something was lost.

use std::fs;

use lockstep_engine::identity::{FILE, Identity, IdentityError};
use lockstep_types::{FaultModel, Genesis, ReplicaId, ServiceId, Slot};
use lockstep_wal::FileDisk;

fn genesis(service: u8, voter: ReplicaId) -> Genesis {
    Genesis {
        service: ServiceId::from_bytes([service; 16]),
        fault_model: FaultModel::Crash,
        voters: vec![voter],
        machine: "KeyValue".into(),
        sessions_max: Genesis::SESSIONS_MAX,
        reply_bytes_max: Genesis::REPLY_BYTES_MAX,
        snapshot_bytes: Genesis::SNAPSHOT_BYTES,
    }
}

fn start(folder: &tempfile::TempDir, random: u8) -> Result<Identity, IdentityError> {
    let disk = FileDisk::open(folder.path()).expect("the directory is writable");
    Identity::start(&disk, [random; 16])
}

#[test]
fn identity_of_a_used_directory_stays_and_counts_its_starts() {
    let folder = tempfile::tempdir().unwrap();
    let first = start(&folder, 1).unwrap();
    let second = start(&folder, 2).unwrap();
    assert_eq!(first.replica, second.replica);
    assert_eq!((first.boot, second.boot), (1, 2));
}

#[test]
fn identity_of_another_directory_differs() {
    let (a, b) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    assert_ne!(start(&a, 1).unwrap().replica, start(&b, 2).unwrap().replica);
}

#[test]
fn genesis_once_adopted_is_the_only_one() {
    let folder = tempfile::tempdir().unwrap();
    let mut identity = start(&folder, 1).unwrap();
    let disk = FileDisk::open(folder.path()).unwrap();
    let ours = genesis(5, identity.replica);
    assert!(identity.adopt(ours.clone(), &disk).unwrap());
    assert!(!identity.adopt(ours.clone(), &disk).unwrap(), "the same genesis again changes nothing");

    let other = identity.adopt(genesis(6, identity.replica), &disk).unwrap_err();
    assert!(matches!(other, IdentityError::OtherGenesis { .. }), "{other}");
    let differs = identity.adopt(Genesis { sessions_max: 7, ..ours.clone() }, &disk).unwrap_err();
    assert!(matches!(differs, IdentityError::Differs { .. }), "{differs}");
    drop(disk);
    assert_eq!(start(&folder, 9).unwrap().genesis, Some(ours));
}

#[test]
fn genesis_that_names_others_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let mut identity = start(&folder, 1).unwrap();
    let disk = FileDisk::open(folder.path()).unwrap();
    let error = identity.adopt(genesis(5, ReplicaId::from_bytes([9; 16])), &disk).unwrap_err();
    assert!(matches!(error, IdentityError::NotNamed { .. }), "{error}");
    let even =
        Genesis { voters: vec![identity.replica, ReplicaId::from_bytes([9; 16])], ..genesis(5, identity.replica) };
    let error = identity.adopt(even, &disk).unwrap_err();
    assert_eq!(error.to_string(), "fault model Crash takes 1, 3, 5 or 7 voters, not 2");
    assert_eq!(identity.genesis, None);
}

#[test]
fn replica_that_joined_keeps_its_genesis_and_its_slot() {
    let folder = tempfile::tempdir().unwrap();
    let mut identity = start(&folder, 1).unwrap();
    let disk = FileDisk::open(folder.path()).unwrap();
    // Born without this replica.
    let theirs = genesis(5, ReplicaId::from_bytes([9; 16]));
    assert!(identity.join(theirs.clone(), Slot::new(4), &disk).unwrap());
    assert!(!identity.join(theirs.clone(), Slot::new(4), &disk).unwrap(), "the same again changes nothing");
    assert!(!identity.adopt(theirs.clone(), &disk).unwrap(), "it has this genesis");

    let slot = identity.join(theirs.clone(), Slot::new(5), &disk).unwrap_err();
    assert_eq!(slot.to_string(), format!("replica {} is r4 of its service; it refuses to become r5", identity.replica));
    let other = identity.join(genesis(6, ReplicaId::from_bytes([9; 16])), Slot::new(4), &disk).unwrap_err();
    assert!(matches!(other, IdentityError::OtherGenesis { .. }), "{other}");
    let differs = identity.join(Genesis { sessions_max: 7, ..theirs.clone() }, Slot::new(4), &disk).unwrap_err();
    assert!(matches!(differs, IdentityError::Differs { .. }), "{differs}");
    drop(disk);
    let again = start(&folder, 2).unwrap();
    assert_eq!((again.replica, again.genesis, again.slot), (identity.replica, Some(theirs), Some(Slot::new(4))));
}

#[test]
fn replica_that_was_born_with_the_service_joins_in_its_own_slot_only() {
    let folder = tempfile::tempdir().unwrap();
    let mut identity = start(&folder, 1).unwrap();
    let disk = FileDisk::open(folder.path()).unwrap();
    let ours = genesis(5, identity.replica);
    assert!(identity.adopt(ours.clone(), &disk).unwrap());
    assert!(!identity.join(ours.clone(), Slot::new(1), &disk).unwrap());
    let slot = identity.join(ours, Slot::new(2), &disk).unwrap_err();
    assert!(matches!(slot, IdentityError::OtherSlot { .. }), "{slot}");
}

#[test]
fn replica_that_joins_with_a_genesis_that_is_not_valid_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let mut identity = start(&folder, 1).unwrap();
    let disk = FileDisk::open(folder.path()).unwrap();
    let empty = Genesis { voters: vec![], ..genesis(5, identity.replica) };
    let error = identity.join(empty, Slot::new(4), &disk).unwrap_err();
    assert!(matches!(error, IdentityError::Invalid(_)), "{error}");
    assert_eq!((identity.genesis, identity.slot), (None, None));
}

#[test]
fn identity_with_any_flipped_bit_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    start(&folder, 1).unwrap();
    let path = folder.path().join(FILE);
    let good = fs::read(&path).unwrap();
    for bit in 0..good.len() * 8 {
        let mut bad = good.clone();
        bad[bit / 8] ^= 1 << (bit % 8);
        fs::write(&path, &bad).unwrap();
        let error = start(&folder, 2).unwrap_err();
        assert!(matches!(error, IdentityError::Damaged { .. }), "bit {bit}: {error}");
    }
    fs::write(&path, &good[..good.len() / 2]).unwrap();
    assert!(matches!(start(&folder, 2).unwrap_err(), IdentityError::Damaged { .. }));
}

#[test]
fn log_and_identity_without_each_other_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let mut identity = start(&folder, 1).unwrap();
    {
        let disk = std::sync::Arc::new(FileDisk::open(folder.path()).unwrap());
        identity.adopt(genesis(5, identity.replica), &*disk).unwrap();
        let options = lockstep_engine::EngineOptions::default();
        lockstep_engine::Engine::start(disk, &identity, options, lockstep_consensus::Moment::default()).unwrap();
    }
    let identity_file = fs::read(folder.path().join(FILE)).unwrap();
    fs::remove_file(folder.path().join(FILE)).unwrap();
    let error = start(&folder, 2).unwrap_err();
    assert!(matches!(error, IdentityError::Lost { .. }), "{error}");
    assert!(error.to_string().contains("give this replica an empty directory"), "{error}");

    // The other way round: the identity is there, and its log is not.
    fs::write(folder.path().join(FILE), identity_file).unwrap();
    for entry in fs::read_dir(folder.path()).unwrap() {
        let entry = entry.unwrap();
        if lockstep_wal::is_segment(entry.file_name().to_str().unwrap()) {
            fs::remove_file(entry.path()).unwrap();
        }
    }
    let error = start(&folder, 2).unwrap_err();
    assert!(matches!(error, IdentityError::LogLost { .. }), "{error}");
}
