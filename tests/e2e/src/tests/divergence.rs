//! A replica whose state is not that of the others: fenced at the very block, its first differing key named, built anew with its
//! log and identity kept; and one whose machine is not deterministic, which stays fenced while the others serve.

use std::time::Duration;

use lockstep_client::{Divergence, ReplicaStatus, StateDoubt};

use crate::client_pod::ClientPod;
use crate::forward::Forward;
use crate::scope::Scope;
use crate::service::{CLIENT_PORT, Pod, READY_WITHIN, Service, manifest};
use crate::unary::Unary;
use crate::{Result, ensure, fail, wait};

const WITHIN: Duration = Duration::from_secs(40);
/// Writes after which a service is known to go on.
const MORE: u64 = 200;

pub async fn run(scope: &Scope) -> Result {
    let service = Service { scope: scope.clone(), name: "kv".to_owned(), replicas: 3 };
    scope.apply(&manifest(&service.name, 3, "").replace("KeyValue", "KeyValueWithFaults")).await?;
    service.until_ready(READY_WITHIN).await?;
    let (leader, _) = wait::until("a leader", WITHIN, async || service.leader().await).await?;
    let Some(wrong) = service.pods().await?.into_iter().find(|pod| pod.uid != leader.uid) else {
        fail!("no follower of {}", leader.name)
    };
    let before = service.status(&wrong.name).await?;
    let nodes = scope.cluster.nodes().await?;
    let client = ClientPod::start(&service, "load", &nodes[0]).await?;

    // A flipped bit: it is gone once the block was executed again.
    let key = put(&service, &leader, "once", &before).await?;
    let found = until(&service, &wrong, StateDoubt::Over).await?;
    names(&found, &key)?;
    ensure!(found.exact, "not the very block: {}", found.text);
    told(&service, "False", "StateRebuilt", &wrong, &found).await?;
    service.until_ready(READY_WITHIN).await?;
    client.until_more(MORE, WITHIN).await?;

    // A machine that is not deterministic: no state that it makes can be believed.
    let key = put(&service, &leader, "always", &before).await?;
    let found = until(&service, &wrong, StateDoubt::FencedAgain).await?;
    told(&service, "True", "StateDiverged", &wrong, &found).await?;
    let found = wait::until("the key named", WITHIN, async || {
        let found = until(&service, &wrong, StateDoubt::FencedAgain).await?;
        names(&found, &key)?;
        Ok(found)
    })
    .await?;
    client.until_more(MORE, WITHIN).await?;
    let pods = service.pods().await?;
    let ready: Vec<_> = pods.iter().filter(|pod| pod.ready).map(|pod| pod.name.as_str()).collect();
    ensure!(ready.len() == 2 && !ready.contains(&&*wrong.name), "ready are {ready:?}");
    let after = service.status(&wrong.name).await?;
    ensure!((after.replica, after.boot) == (before.replica, before.boot), "{} was started again", wrong.name);
    ensure!(pods.iter().any(|pod| !pod.is_another_than(&wrong) && pod.uid == wrong.uid), "{} was replaced", wrong.name);
    // Its log is not in doubt and goes on.
    let head = service.status(&leader.name).await?.committed;
    wait::until("the log of the fenced one", WITHIN, async || {
        let status = service.status(&wrong.name).await?;
        ensure!(
            status.head >= head && status.applied == found.block,
            "head {}, applied {}",
            status.head,
            status.applied
        );
        Ok(())
    })
    .await?;
    let report = client.stop().await?;
    println!("        {}: {}; {} writes acknowledged", wrong.name, found.text, report.acknowledged);
    Ok(())
}

/// Puts the key that goes wrong on this replica. Gives the key.
async fn put(service: &Service, through: &Pod, how: &str, wrong: &ReplicaStatus) -> Result<String> {
    let Some(slot) = wrong.slot else { fail!("{} has no slot", wrong.replica) };
    let key = format!("fault/{how}/{slot}");
    let target = format!("pod/{}", through.name);
    let forward = Forward::open(&service.scope.cluster, &service.scope.namespace, &target, CLIENT_PORT).await?;
    Unary::connect(&forward.address).await?.put(&key, "value").await?;
    Ok(key)
}

async fn until(service: &Service, pod: &Pod, doubt: StateDoubt) -> Result<Divergence> {
    wait::until(&format!("{} {doubt:?}", pod.name), WITHIN, async || {
        let status = service.status(&pod.name).await?;
        match status.divergence {
            Some(found) if found.doubt == doubt => Ok(found),
            other => fail!("it says {other:?}"),
        }
    })
    .await
}

fn names(found: &Divergence, key: &str) -> Result {
    ensure!(found.key.as_deref() == Some(key.as_bytes()), "{key} is not named: {}", found.text);
    Ok(())
}

/// The resource's condition, and an event, say it too: pod, block and key.
async fn told(service: &Service, status: &str, reason: &str, pod: &Pod, found: &Divergence) -> Result {
    wait::until(&format!("Degraded {status} by {reason}"), WITHIN, async || {
        let (now, why, message) = service.condition("Degraded").await?;
        ensure!(now == status && why == reason, "Degraded is {now} ({why}): {message}");
        let block = format!("block {}", found.block);
        ensure!(message.contains(&pod.name) && message.contains(&block), "{message:?}");
        ensure!(!service.events(reason).await?.is_empty(), "no event {reason}");
        Ok(())
    })
    .await
}
