//! One operator at a time, by a `Lease`. Every write carries the resource version that was read, so two processes can never
//! both take a free lease, nor one take back what another has just won.
//!
//! Why not a crate: kube-lease-manager 0.13 frees an expired lease by a patch without a precondition, which can throw out a
//! process that has taken it in between, and that one goes on until its next renewal.

use std::time::{Duration, Instant};

use k8s_openapi::api::coordination::v1::{Lease as KubernetesLease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, PostParams};
use kube::core::ObjectMeta;
use kube::{Client, ResourceExt};

/// How long others wait for a holder that is silent. Measured on their own clock, from when they saw the last renewal.
const DURATION: Duration = Duration::from_secs(15);
/// How often the holder renews, and others look.
const PERIOD: Duration = Duration::from_secs(4);
/// A holder that could not renew for so long gives up, well before others take over.
const DEADLINE: Duration = Duration::from_secs(10);

/// A lease that this process holds or wants.
pub struct Lease {
    api: Api<KubernetesLease>,
    name: String,
    identity: String,
}

/// The last renewal of another holder, as seen here.
struct Sighting {
    version: String,
    since: Instant,
}

impl Lease {
    /// The lease `name` in `namespace`, for a process that calls itself `identity`.
    pub fn new(client: Client, namespace: &str, name: &str, identity: &str) -> Self {
        let api = Api::namespaced(client, namespace);
        Lease { api, name: name.to_owned(), identity: identity.to_owned() }
    }

    /// Returns once this process holds the lease.
    pub async fn acquire(&self) {
        let mut sighting: Option<Sighting> = None;
        let mut told = String::new();
        loop {
            match self.try_acquire(&mut sighting).await {
                Ok(None) => return,
                Ok(Some(holder)) if holder != told => {
                    tracing::info!(%holder, "standing by: another operator holds the lease");
                    told = holder;
                }
                Ok(Some(_)) => {}
                Err(error) => tracing::warn!(%error, "failed to look at the lease; trying again"),
            }
            tokio::time::sleep(PERIOD).await;
        }
    }

    /// Renews until that fails for too long, or somebody else holds the lease. Then this process must stop.
    pub async fn hold(&self) {
        let mut renewed = Instant::now();
        while renewed.elapsed() < DEADLINE {
            tokio::time::sleep(if renewed.elapsed() < PERIOD { PERIOD } else { Duration::from_secs(1) }).await;
            let asked = Instant::now();
            match tokio::time::timeout(PERIOD, self.renew()).await {
                Ok(Ok(true)) => renewed = asked,
                Ok(Ok(false)) => return,
                Ok(Err(error)) => tracing::warn!(%error, "failed to renew the lease; trying again"),
                Err(_) => tracing::warn!("failed to renew the lease in time; trying again"),
            }
        }
    }

    /// Frees the lease, so that the next operator need not wait.
    pub async fn release(&self) {
        let freed = async {
            let Some(mut lease) = self.api.get_opt(&self.name).await? else { return Ok(()) };
            if holder(&lease) == self.identity {
                lease.spec.get_or_insert_default().holder_identity = None;
                self.write(lease).await?;
            }
            Ok::<_, kube::Error>(())
        };
        match tokio::time::timeout(PERIOD, freed).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, "failed to release the lease"),
            Err(_) => tracing::warn!("failed to release the lease in time"),
        }
    }

    /// None if the lease is ours now, else who holds it.
    async fn try_acquire(&self, sighting: &mut Option<Sighting>) -> Result<Option<String>, kube::Error> {
        let Some(mut lease) = self.api.get_opt(&self.name).await? else {
            let mut lease = KubernetesLease {
                metadata: ObjectMeta { name: Some(self.name.clone()), ..Default::default() },
                spec: None,
            };
            self.take(&mut lease);
            return Ok(match self.api.create(&PostParams::default(), &lease).await {
                Ok(_) => None,
                Err(error) if conflict(&error) => Some("another".to_owned()),
                Err(error) => return Err(error),
            });
        };
        let holder = holder(&lease).to_owned();
        let version = lease.resource_version().unwrap_or_default();
        if !holder.is_empty() && holder != self.identity && !expired(sighting, &version, Instant::now()) {
            return Ok(Some(holder));
        }
        self.take(&mut lease);
        match self.write(lease).await {
            Ok(()) => Ok(None),
            Err(error) if conflict(&error) => Ok(Some(holder)),
            Err(error) => Err(error),
        }
    }

    /// False if somebody else holds the lease.
    async fn renew(&self) -> Result<bool, kube::Error> {
        let mut lease = self.api.get(&self.name).await?;
        if holder(&lease) != self.identity {
            return Ok(false);
        }
        lease.spec.get_or_insert_default().renew_time = Some(MicroTime(Timestamp::now()));
        self.write(lease).await.map(|()| true)
    }

    fn take(&self, lease: &mut KubernetesLease) {
        let now = MicroTime(Timestamp::now());
        let before = lease.spec.take().unwrap_or_default();
        let transitions = before.lease_transitions.unwrap_or(0);
        lease.spec = Some(LeaseSpec {
            holder_identity: Some(self.identity.clone()),
            lease_duration_seconds: Some(i32::try_from(DURATION.as_secs()).expect("seconds")),
            acquire_time: Some(now.clone()),
            renew_time: Some(now),
            lease_transitions: Some(transitions.saturating_add(1)),
            ..before
        });
    }

    /// Replaces the very version that was read, or nothing.
    async fn write(&self, lease: KubernetesLease) -> Result<(), kube::Error> {
        self.api.replace(&self.name, &PostParams::default(), &lease).await.map(|_| ())
    }
}

fn holder(lease: &KubernetesLease) -> &str {
    lease.spec.as_ref().and_then(|spec| spec.holder_identity.as_deref()).unwrap_or_default()
}

fn conflict(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 409)
}

/// Whether nothing has changed for the duration of a lease. Clocks of different machines are never compared.
fn expired(sighting: &mut Option<Sighting>, version: &str, now: Instant) -> bool {
    match sighting {
        Some(last) if last.version == version => now.duration_since(last.since) > DURATION,
        _ => {
            *sighting = Some(Sighting { version: version.to_owned(), since: now });
            false
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lease_of_a_silent_holder_expires_only_after_its_whole_duration() {
        let start = Instant::now();
        let mut sighting = None;
        assert!(!expired(&mut sighting, "1", start));
        assert!(!expired(&mut sighting, "1", start + DURATION));
        assert!(!expired(&mut sighting, "2", start + DURATION), "renewed");
        assert!(!expired(&mut sighting, "2", start + DURATION * 2));
        assert!(expired(&mut sighting, "2", start + DURATION * 2 + Duration::from_millis(1)));
    }

    #[test]
    fn holder_gives_up_before_others_take_over() {
        assert!(DEADLINE + PERIOD <= DURATION);
    }
}
