//! Members that are lost, replaced, added and removed, while clients write and lose nothing.

use lockstep_client::{AdminClient, AdminError, Client, ClientOptions, Code};
use lockstep_types::{Change, Genesis, ReplicaId, Slot};
use lockstep_wire::{Membership, ReplicaStatus, Role};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::service::{PATIENCE, Replica, Service, TOKEN, eventually};

/// Bytes of blocks between two snapshot points: a few of the values below.
const SNAPSHOT_BYTES: u64 = 64 << 10;

fn admin(replica: &Replica) -> AdminClient {
    AdminClient::connect(&replica.client_address(), Some(TOKEN)).expect("an address")
}

/// The words of a refusal.
fn refused<T: std::fmt::Debug>(answer: Result<T, AdminError>) -> (Code, String) {
    match answer {
        Err(AdminError::Refused { code, message, .. }) => (code, message),
        other => panic!("not refused: {other:?}"),
    }
}

/// The replica that leads and is ready.
async fn leader(service: &Service) -> usize {
    eventually("one replica leads", || async {
        for (index, replica) in service.replicas.iter().enumerate() {
            let status = replica.status().await;
            if status.is_some_and(|status| status.role == Role::Leader && status.is_ready()) {
                return Some(index);
            }
        }
        None
    })
    .await
}

/// Makes a change, asking whoever leads until it is made.
async fn change(service: &Service, change: Change) -> (Membership, Slot) {
    eventually(&format!("{change}"), || async {
        let leader = leader(service).await;
        admin(&service.replicas[leader]).change_members(change).await.ok()
    })
    .await
}

/// Makes this replica, which runs without a genesis, a standby that has caught up. Gives its slot.
async fn add(service: &Service, index: usize) -> Slot {
    let genesis = service.genesis.as_ref().expect("it is born");
    let newcomer = &service.replicas[index];
    let replica = newcomer.up().await.replica;
    let (_, slot) = change(service, Change::AddStandby { replica }).await;
    let leader = leader(service).await;
    let head = service.replicas[leader].up().await.head;
    admin(newcomer).join(genesis, slot).await.expect("it was given this slot");
    eventually("the standby has caught up", || async { (newcomer.status().await?.applied >= head).then_some(()) })
        .await;
    slot
}

fn slot_of(genesis: &Genesis, status: &ReplicaStatus) -> Slot {
    genesis.configuration().slot_of(status.replica).expect("a voter of the genesis")
}

/// A client that writes without pause, until it is told to stop.
struct Writer {
    stop: watch::Sender<bool>,
    written: watch::Receiver<u64>,
    task: JoinHandle<u64>,
}

impl Writer {
    fn start(service: &Service) -> Self {
        let endpoints = service.replicas.iter().map(Replica::client_address);
        let options = ClientOptions::new(endpoints).with_timeout(PATIENCE);
        let client = Client::connect(options).expect("addresses");
        let (stop, stopped) = watch::channel(false);
        let (count, written) = watch::channel(0);
        let task = tokio::spawn(async move {
            let mut number = 0;
            while !*stopped.borrow() {
                let (key, value) = (format!("written-{number}"), number.to_string());
                client.kv().put(key, value).await.expect("changes of membership disturb no client");
                number += 1;
                count.send_replace(number);
            }
            number
        });
        Writer { stop, written, task }
    }

    /// Waits until more was written than now.
    async fn goes_on(&mut self) {
        let now = *self.written.borrow();
        self.written.wait_for(|written| *written > now + 5).await.expect("it writes");
    }

    /// Ends it, and reads everything that it wrote.
    async fn verify(mut self, service: &Service, through: usize) {
        self.goes_on().await;
        self.stop.send_replace(true);
        let written = self.task.await.expect("it writes without an error");
        for number in 0..written {
            let found = service.replicas[through].get(&format!("written-{number}")).await.expect("a majority runs");
            assert_eq!(found, Some(number.to_string()), "of {written}");
        }
    }
}

#[tokio::test]
async fn replica_with_an_empty_disk_is_refused_until_added_then_replaces_the_lost_one() {
    let mut service = Service::born(3).await;
    let genesis = service.genesis.clone().expect("it is born");
    let leads = service.leader().await;
    let lost = (leads + 1) % 3;
    let mut writer = Writer::start(&service);
    writer.goes_on().await;
    let before = service.replicas[lost].up().await;
    let old_slot = slot_of(&genesis, &before);
    service.replicas[lost].kill();
    let kept = service.replicas[lost].lose_disk();
    service.replicas[lost].start();
    let blank = service.replicas[lost].up().await;
    assert_ne!(blank.replica, before.replica);
    assert_eq!(blank.not_ready.as_deref(), Some("has no genesis yet"));

    // It claims a slot that nobody gave to it.
    assert_eq!(admin(&service.replicas[lost]).join(&genesis, Slot::new(4)).await, Ok(true));
    eventually("the others refuse it, and it says why", || async {
        let why =
            format!("replica {} is no member of service {}; one with an empty disk", blank.replica, genesis.service);
        let said = [lost, leads].iter().all(|index| service.replicas[*index].log().contains(&why));
        said.then_some(())
    })
    .await;
    writer.goes_on().await;

    let slot = add(&service, lost).await;
    assert_eq!(slot, Slot::new(4));
    let standby = service.replicas[lost].up().await;
    assert_eq!(standby.not_ready.as_deref(), Some("is a standby: it gets every request and has no vote"));
    let (membership, _) = change(&service, Change::Promote { slot }).await;
    assert_eq!((membership.configuration.voters().len(), membership.settled), (4, true));
    let (membership, removed) = change(&service, Change::Remove { slot: old_slot }).await;
    assert_eq!((membership.configuration.voters().len(), removed), (3, old_slot));
    eventually("the new replica is ready", || async {
        service.replicas[lost].status().await?.is_ready().then_some(())
    })
    .await;
    // Asked again, it is so already.
    assert_eq!(change(&service, Change::Remove { slot: old_slot }).await.0, membership);

    // With one of the first gone, the new one's vote is needed.
    service.replicas[(leads + 2) % 3].kill();
    writer.goes_on().await;
    service.replicas[(leads + 2) % 3].start();

    // The old disk comes back, elsewhere.
    let revenant = service.newcomer();
    service.replicas[revenant].option(&format!("--data-dir={}", kept.display()));
    service.replicas[revenant].start();
    assert_eq!(service.replicas[revenant].up().await.replica, before.replica);
    let gone = format!("replica {} was {old_slot} of service {} until it was removed", before.replica, genesis.service);
    eventually("it is refused, and both sides say so", || async {
        let said = [revenant, leads].iter().all(|index| service.replicas[*index].log().contains(&gone));
        said.then_some(())
    })
    .await;
    let leads = leader(&service).await;
    let again = admin(&service.replicas[leads]).change_members(Change::AddStandby { replica: before.replica }).await;
    let (code, words) = refused(again);
    assert_eq!(code, Code::FailedPrecondition);
    assert!(words.contains("never returns; give it an empty data directory"), "{words}");
    writer.verify(&service, lost).await;
}

#[tokio::test]
async fn newcomer_at_a_new_address_catches_up_by_a_snapshot_and_votes() {
    let mut service = Service::born_with(3, |genesis| genesis.snapshot_bytes = SNAPSHOT_BYTES).await;
    let leads = service.leader().await;
    let value = "v".repeat(20_000);
    let mut number = 0;
    // Of all of them: it may ask any for the log.
    for index in 0..3 {
        while service.replicas[index].up().await.snapshots.log_begins_above.get() == 0 {
            service.replicas[leads].put(&format!("key-{number}"), &value).await.expect("a majority runs");
            number += 1;
            assert!(number < 2_000, "the log is never cut");
        }
    }
    let writer = Writer::start(&service);
    let newcomer = service.newcomer();
    service.replicas[newcomer].start();
    let slot = add(&service, newcomer).await;
    assert!(service.replicas[newcomer].up().await.snapshots.installed > 0);
    // It has no vote, and relays all the same.
    service.replicas[newcomer].put("through a standby", "kept").await.expect("a majority runs");
    let found = service.replicas[newcomer].get("through a standby").await.expect("a majority runs");
    assert_eq!(found.as_deref(), Some("kept"));
    let (membership, _) = change(&service, Change::Promote { slot }).await;
    assert_eq!(membership.configuration.voters().len(), 4);
    eventually("it is ready", || async { service.replicas[newcomer].status().await?.is_ready().then_some(()) }).await;
    let key = format!("key-{}", number - 1);
    assert_eq!(service.replicas[newcomer].get(&key).await.expect("a majority runs"), Some(value));

    // Its slot is on its disk, and its place in the snapshot or the log.
    service.replicas[newcomer].kill();
    service.replicas[newcomer].start();
    let status =
        eventually("it is back", || async { service.replicas[newcomer].status().await.filter(|s| s.is_ready()) });
    assert_eq!(status.await.slot, Some(slot));
    writer.verify(&service, newcomer).await;
}

#[tokio::test]
async fn leader_removed_hands_over_and_never_returns() {
    let mut service = Service::born(3).await;
    let genesis = service.genesis.clone().expect("it is born");
    let leads = service.leader().await;
    let mut writer = Writer::start(&service);
    writer.goes_on().await;
    let slot = slot_of(&genesis, &service.replicas[leads].up().await);
    let (membership, removed) = change(&service, Change::Remove { slot }).await;
    assert_eq!((membership.configuration.voters().len(), removed), (2, slot));
    assert_ne!(leader(&service).await, leads);
    let status = eventually("it knows that it left", || async {
        service.replicas[leads]
            .status()
            .await
            .filter(|status| status.not_ready.as_deref() == Some("was removed from the service and never returns"))
    })
    .await;
    assert_ne!(status.role, Role::Leader);
    writer.goes_on().await;

    service.replicas[leads].kill();
    service.replicas[leads].start();
    eventually("it is told that it never returns", || async {
        let gone = format!("was {slot} of service {} until it was removed, and never returns", genesis.service);
        service.replicas[leads].log().contains(&gone).then_some(())
    })
    .await;
    writer.verify(&service, (leads + 1) % 3).await;
}

#[tokio::test]
async fn member_down_during_two_changes_comes_back_and_follows() {
    let mut service = Service::born(3).await;
    let leads = service.leader().await;
    let away = (leads + 1) % 3;
    let mut writer = Writer::start(&service);
    writer.goes_on().await;
    service.replicas[away].kill();
    let newcomer = service.newcomer();
    service.replicas[newcomer].start();
    let slot = add(&service, newcomer).await;
    let (membership, _) = change(&service, Change::Promote { slot }).await;
    service.replicas[away].start();
    let status =
        eventually("it follows", || async { service.replicas[away].status().await.filter(ReplicaStatus::is_ready) })
            .await;
    assert_eq!(status.membership.map(|now| now.configuration), Some(membership.configuration));
    // Four vote, and three are needed: it and the newcomer speak to each other.
    service.replicas[leads].kill();
    writer.goes_on().await;
    service.replicas[leads].start();
    writer.verify(&service, away).await;
}

#[tokio::test]
async fn change_of_members_that_cannot_be_is_refused_in_words() {
    let mut service = Service::born(3).await;
    let leads = service.leader().await;
    let genesis = service.genesis.clone().expect("it is born");
    let other = (leads + 1) % 3;
    let slot = |index: usize| Slot::new(u32::try_from(index).expect("a few") + 1);
    let remove = Change::Remove { slot: slot(other) };

    for token in [None, Some("a guess")] {
        let client = AdminClient::connect(&service.replicas[leads].client_address(), token).expect("an address");
        assert_eq!(refused(client.change_members(remove).await).0, Code::Unauthenticated);
        assert_eq!(refused(client.join(&genesis, slot(leads)).await).0, Code::Unauthenticated);
    }
    let (code, words) = refused(admin(&service.replicas[other]).change_members(remove).await);
    let hint =
        format!("{} does not lead; ask {} at {}", slot(other), slot(leads), service.replicas[leads].client_address());
    assert_eq!((code, words), (Code::FailedPrecondition, hint));

    let lead = admin(&service.replicas[leads]);
    let (code, words) = refused(lead.join(&Genesis { sessions_max: 7, ..genesis.clone() }, slot(leads)).await);
    assert_eq!(code, Code::FailedPrecondition);
    assert!(words.starts_with("this replica has another genesis for service"), "{words}");
    let (code, words) = refused(lead.join(&genesis, Slot::new(9)).await);
    assert_eq!(code, Code::FailedPrecondition);
    assert!(words.ends_with(&format!("is {} of its service; it refuses to become r9", slot(leads))), "{words}");
    assert_eq!(lead.join(&genesis, slot(leads)).await, Ok(false), "it is that already");

    let unknown = refused(lead.change_members(Change::Remove { slot: Slot::new(9) }).await);
    assert_eq!(unknown, (Code::FailedPrecondition, "r9 was never given to a replica".to_owned()));
    let (_, standby) = change(&service, Change::AddStandby { replica: ReplicaId::from_bytes([7; 16]) }).await;
    let (code, words) = refused(lead.change_members(Change::Promote { slot: standby }).await);
    assert_eq!(code, Code::FailedPrecondition);
    assert!(words.starts_with("r4 is not caught up: r4 must run and acknowledge what the leader sends"), "{words}");

    service.replicas[other].kill();
    let third = slot((leads + 2) % 3);
    let without = eventually("the leader misses the one that is down", || async {
        let status = service.replicas[leads].status().await?;
        let missed = status.members.iter().any(|member| member.slot == slot(other) && !member.connected);
        missed.then_some(())
    });
    without.await;
    let (code, words) = refused(lead.change_members(Change::Remove { slot: third }).await);
    assert_eq!(code, Code::FailedPrecondition);
    assert_eq!(
        words,
        format!(
            "without {third} only 1 caught-up voters would be left, and 2 are needed; bring the others back, or add and \
             promote a new replica first, see `lockstep members list`"
        )
    );
    assert_eq!(lead.change_members(Change::Remove { slot: standby }).await.map(|(_, slot)| slot), Ok(standby));
}

#[tokio::test]
async fn change_asked_again_on_its_way_is_waited_for_and_made_once() {
    let mut service = Service::born(3).await;
    let leads = service.leader().await;
    let lead = admin(&service.replicas[leads]);
    let add = Change::AddStandby { replica: ReplicaId::from_bytes([7; 16]) };
    let asked = futures::future::join_all((0..4).map(|_| lead.change_members(add))).await;
    for made in asked {
        let (membership, slot) = made.expect("the same change is on its way");
        assert_eq!((slot, membership.configuration.epoch().get(), membership.settled), (Slot::new(4), 2, true));
    }
}

#[tokio::test]
async fn last_voter_is_not_removed() {
    let service = Service::born(1).await;
    let (code, words) =
        refused(admin(&service.replicas[0]).change_members(Change::Remove { slot: Slot::new(1) }).await);
    let expected = "r1 is the last voter; add and promote another replica first".to_owned();
    assert_eq!((code, words), (Code::FailedPrecondition, expected));
}

#[tokio::test]
async fn hand_over_to_a_standby_is_refused() {
    let service = Service::born(1).await;
    let replica = ReplicaId::from_bytes([7; 16]);
    let (_, slot) = change(&service, Change::AddStandby { replica }).await;
    let (code, words) = refused(admin(&service.replicas[0]).hand_over(Some(replica)).await);
    assert_eq!(code, Code::FailedPrecondition);
    assert!(words.starts_with(&format!("{slot} is a standby and cannot lead; promote it first")), "{words}");
}
