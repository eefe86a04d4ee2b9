//! Unary calls need neither the library nor the leader: whichever replica gets them sees to them.

use std::time::Duration;

use crate::client_pod::pod;
use crate::cluster::text;
use crate::forward::Forward;
use crate::scope::Scope;
use crate::service::{CLIENT_PORT, Service};
use crate::unary::{FLAG, Unary};
use crate::{Result, ensure, wait};

const PUTS: u64 = 100;
/// Made by `tests/e2e/run` of this very program.
const CLIENT_IMAGE: &str = "localhost/lockstep-e2e:dev";
const WITHIN: Duration = Duration::from_secs(30);

pub async fn run(scope: &Scope) -> Result {
    let service = Service::start(scope, "kv", 3).await?;
    let arguments = [FLAG, &service.endpoint(), &PUTS.to_string()];
    scope.apply(&pod("unary", CLIENT_IMAGE, &arguments, "")).await?;

    // A follower's port-forward shows that it need not be the leader's.
    let (leader, _) = service.leader().await?;
    let follower = service.pods().await?.into_iter().find(|pod| pod.uid != leader.uid);
    let follower = format!("pod/{}", follower.map(|pod| pod.name).unwrap_or_default());
    for target in [&format!("service/{}", service.name), &follower] {
        let forward = Forward::open(&scope.cluster, &scope.namespace, target, CLIENT_PORT).await?;
        let mut unary = Unary::connect(&forward.address).await?;
        for expected in 1..=PUTS {
            let version = unary.put(target, &format!("value {expected}")).await?;
            ensure!(version == expected, "put {expected} through {target} gives version {version}");
        }
        let value = unary.get(target).await?;
        ensure!(value == format!("value {PUTS}"), "get through {target} gives {value:?}");
    }

    wait::until("the end of the pod", WITHIN, async || {
        let phase = text(&scope.get(&["pod", "unary"]).await?, "/status/phase");
        ensure!(phase == "Succeeded" || phase == "Failed", "it is {phase}");
        Ok(())
    })
    .await?;
    let said = scope.kubectl(&["logs", "unary"]).await?;
    let phase = text(&scope.get(&["pod", "unary"]).await?, "/status/phase");
    ensure!(phase == "Succeeded", "through the Service: {}", said.trim());
    Ok(())
}
