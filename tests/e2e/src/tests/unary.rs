//! Unary calls need neither the library nor the leader: whichever replica gets them sees to them.

use crate::client_pod::ClientPod;
use crate::forward::Forward;
use crate::scope::Scope;
use crate::service::{CLIENT_PORT, Service};
use crate::unary::Unary;
use crate::{Result, ensure};

const PUTS: u64 = 100;

pub async fn run(scope: &Scope) -> Result {
    let service = Service::start(scope, "kv", 3).await?;
    // Through the Service it is any replica's, and a follower's port-forward shows that it need not be the leader's.
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
    Ok(())
}
