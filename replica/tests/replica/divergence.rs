//! A state that is not that of the others, as seen from outside: fenced, named, built anew; and one that differs again.

use lockstep_wire::{Divergence, StateDoubt};
use tonic::Code;

use crate::admin::metrics;
use crate::service::{Service, eventually};

async fn born() -> Service {
    Service::born_with(3, |genesis| genesis.machine = "KeyValueWithFaults".to_owned()).await
}

async fn until(service: &Service, index: usize, doubt: StateDoubt) -> Divergence {
    eventually(&format!("{doubt:?}"), || async {
        service.replicas[index].status().await?.divergence.filter(|found| found.doubt == doubt)
    })
    .await
}

/// Puts the key that goes wrong on this replica, through another. Gives the key.
async fn go_wrong(service: &Service, through: usize, wrong: usize, how: &str) -> String {
    let slot = service.replicas[wrong].up().await.slot.expect("it is a member");
    let key = format!("fault/{how}/{slot}");
    service.replicas[through].put(&key, "value").await.expect("a majority runs");
    key
}

#[tokio::test]
async fn state_with_a_flipped_bit_is_named_and_built_anew_with_log_and_identity_kept() {
    for wrong_leads in [false, true] {
        let mut service = born().await;
        let leader = service.leader().await;
        let wrong = if wrong_leads { leader } else { (leader + 1) % 3 };
        let before = service.replicas[wrong].up().await;
        service.replicas[leader].put("key", "value").await.expect("a majority runs");
        let key = go_wrong(&service, leader, wrong, "once").await;
        let found = until(&service, wrong, StateDoubt::Over).await;
        assert_eq!((found.exact, found.key.as_deref()), (true, Some(key.as_bytes())), "{}", found.text);
        let after = service.replicas[wrong].up().await;
        assert_eq!((after.replica, after.boot), (before.replica, before.boot));
        let page = metrics(&service.replicas[wrong]).await;
        assert!(page.contains("lockstep_fences_total 1") && page.contains("lockstep_fenced 0"), "{page}");
        eventually("it serves again", || async { service.replicas[wrong].status().await?.is_ready().then_some(()) })
            .await;
        let value = service.replicas[wrong].get(&key).await.expect("a majority runs");
        assert_eq!(value.as_deref(), Some("value"), "what it executed wrongly is gone");
        let log = service.replicas[wrong].log();
        assert!(log.contains(&format!("block {}", found.block)) && log.contains(&key), "{log}");
    }
}

#[tokio::test]
async fn state_that_differs_again_stays_fenced_over_a_restart_and_the_others_serve() {
    let mut service = born().await;
    let leader = service.leader().await;
    let wrong = (leader + 1) % 3;
    let key = go_wrong(&service, leader, wrong, "always").await;
    let found = until(&service, wrong, StateDoubt::FencedAgain).await;
    let named =
        eventually("the key is named", || async { service.replicas[wrong].status().await?.divergence?.key }).await;
    assert_eq!(named, key.as_bytes());
    let refused = service.replicas[wrong].get(&key).await.expect_err("it reads nothing");
    assert_eq!(refused.code(), Code::Unavailable, "{refused}");
    service.replicas[wrong].put("through", "it").await.expect("what it forwards is answered by the leader");
    let status = service.replicas[wrong].up().await;
    assert!(status.not_ready.is_some_and(|why| why.contains("not deterministic")));
    let page = metrics(&service.replicas[wrong]).await;
    assert!(page.contains("lockstep_fenced 1") && page.contains("lockstep_ready 0"), "{page}");

    service.replicas[wrong].kill();
    service.replicas[wrong].start();
    let again = until(&service, wrong, StateDoubt::FencedAgain).await;
    assert_eq!(again.block, found.block);
    assert!(service.replicas[wrong].runs());
    assert_eq!(service.replicas[leader].get("through").await.expect("a majority runs").as_deref(), Some("it"));
}

#[tokio::test]
async fn two_that_differ_answer_nothing_until_a_flipped_bit_is_gone() {
    let mut service = born().await;
    let leader = service.leader().await;
    let (wrong, away) = ((leader + 1) % 3, (leader + 2) % 3);
    service.replicas[away].kill();
    let key = go_wrong(&service, leader, wrong, "once").await;
    for index in [leader, wrong] {
        let found = until(&service, index, StateDoubt::Over).await;
        assert_eq!(found.key.as_deref(), Some(key.as_bytes()), "{}", found.text);
    }
    service.replicas[leader].put("key", "value").await.expect("the two are a majority");
    let page = metrics(&service.replicas[wrong]).await;
    assert!(page.contains("lockstep_fences_total 0") && page.contains("lockstep_divergences_total 1"), "{page}");
}
