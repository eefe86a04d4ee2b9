//! From what a user wrote to a [`Service`] that every later step can rely on. Pure.
//!
//! The CRD's rules stop most mistakes at the API server; they run here again, because a CRD can be older than the operator, or
//! have been loosened by hand.

use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::Resource;
use lockstep_api::rules;
use lockstep_api::spec::{ImagePullPolicy, OnDelete, PodOptions};
use lockstep_api::{ReplicatedService, ReplicatedServiceStatus};
use lockstep_types::{FaultModel, Genesis, ServiceId};
use thiserror::Error;

use lockstep_api::quantity::Amount;

/// What the operator fills in where a resource says nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Defaults {
    /// The image of the replicas.
    pub image: String,
}

/// A resource that passed every rule.
#[derive(Clone, Debug, PartialEq)]
pub struct Service {
    /// Its name; all objects are named after it.
    pub name: String,
    /// Its namespace; nothing reaches out of it.
    pub namespace: String,
    /// The reference that makes an object go with it.
    pub owner: OwnerReference,
    /// The generation of the spec.
    pub generation: Option<i64>,
    /// 1, 3, 5 or 7.
    pub replicas: usize,
    /// Which failures it survives.
    pub fault_model: FaultModel,
    /// A built-in machine of this release.
    pub machine: String,
    /// The size of each volume, as written.
    pub size: String,
    /// The same in bytes.
    pub size_bytes: Amount,
    /// Bytes of blocks from one snapshot to the next, for the genesis.
    pub snapshot_bytes: u64,
    /// Bytes of log that the leader keeps for a replica that lags but answers.
    pub retain_bytes: u64,
    /// The storage class; the cluster's default if none.
    pub storage_class: Option<String>,
    /// Whether volumes stay when the resource goes.
    pub keep_volumes: bool,
    /// How long a replica may be away with its node before a new one comes in its place; for ever if none.
    pub replace_after: Option<Duration>,
    /// The same as written.
    pub replace_after_text: Option<String>,
    /// The service whose kept volumes shall be adopted.
    pub adopt: Option<ServiceId>,
    /// The image of the replicas.
    pub image: String,
    /// When to pull it.
    pub pull_policy: Option<ImagePullPolicy>,
    /// What the replicas log.
    pub log_level: String,
    /// The knobs of the pods.
    pub pod: PodOptions,
    /// The genesis that the status holds.
    pub recorded: Option<Genesis>,
    /// The status as last written.
    pub status: ReplicatedServiceStatus,
}

impl Service {
    /// The votes that are enough.
    pub fn quorum(&self) -> usize {
        self.fault_model.quorum(self.replicas)
    }

    /// The pod of this ordinal.
    pub fn pod_name(&self, ordinal: usize) -> String {
        format!("{}-{ordinal}", self.name)
    }

    /// The ordinal of the pod with this name, if it can be one of this service.
    pub fn ordinal(&self, pod: &str) -> Option<usize> {
        (0..REPLICAS_MAX).find(|ordinal| self.pod_name(*ordinal) == pod)
    }

    /// The claim of this ordinal.
    pub fn claim_name(&self, ordinal: usize) -> String {
        format!("{CLAIM}-{}-{ordinal}", self.name)
    }

    /// The Secret with the admin token.
    pub fn token_name(&self) -> String {
        format!("{}-admin", self.name)
    }

    /// The headless Service of the replicas.
    pub fn peers_name(&self) -> String {
        format!("{}-peers", self.name)
    }
}

/// The most replicas that a resource can ask for.
pub const REPLICAS_MAX: usize = 7;
/// Name of the claim template.
pub const CLAIM: &str = "data";
/// What replicas log unless said otherwise.
pub const LOG_LEVEL: &str = "info";

/// Why there is nothing to work with. Waits for a change of the resource.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Invalid {
    /// A rule is broken.
    #[error("{}", .0.join("; "))]
    Spec(Vec<String>),
    /// The recorded genesis cannot be read.
    #[error(
        "status.genesis cannot be read: {0}; restore the status from a backup, or delete this resource, keep its volumes, \
         and create it again with spec.serviceId"
    )]
    Genesis(String),
}

impl Invalid {
    /// The reason in conditions and events.
    pub fn reason(&self) -> &'static str {
        match self {
            Invalid::Spec(_) => "InvalidSpec",
            Invalid::Genesis(_) => "GenesisUnreadable",
        }
    }
}

/// Checks `resource` and fills in `defaults`.
///
/// # Errors
/// See [`Invalid`].
pub fn validate(resource: &ReplicatedService, defaults: &Defaults) -> Result<Service, Invalid> {
    lockstep_api::validate(resource).map_err(Invalid::Spec)?;
    let missing = |what: &str| Invalid::Spec(vec![format!("metadata.{what} is missing")]);
    let meta = &resource.metadata;
    let spec = &resource.spec;
    let status = resource.status.clone().unwrap_or_default();
    let recorded = match &status.genesis {
        None => None,
        Some(text) => Some(read_genesis(text).map_err(Invalid::Genesis)?),
    };
    let size_bytes = Amount::parse(&spec.storage.size)
        .ok_or_else(|| Invalid::Spec(vec![format!("spec.storage.size: {}", rules::SIZE_QUANTITY.1)]))?;
    let bytes = |read: Result<u64, String>| read.map_err(|wrong| Invalid::Spec(vec![wrong]));
    let replicas = usize::try_from(spec.replicas)
        .map_err(|_| Invalid::Spec(vec![format!("spec.replicas: {}", rules::REPLICAS_ODD.1)]))?;
    Ok(Service {
        name: meta.name.clone().ok_or_else(|| missing("name"))?,
        namespace: meta.namespace.clone().ok_or_else(|| missing("namespace"))?,
        owner: resource.controller_owner_ref(&()).ok_or_else(|| missing("uid"))?,
        generation: meta.generation,
        replicas,
        fault_model: match spec.fault_model {
            lockstep_api::FaultModel::Crash => FaultModel::Crash,
        },
        machine: spec.state_machine.builtin.clone(),
        size: spec.storage.size.clone(),
        size_bytes,
        snapshot_bytes: bytes(spec.snapshots.every())?,
        retain_bytes: bytes(spec.snapshots.retain_log())?,
        storage_class: spec.storage.storage_class_name.clone(),
        keep_volumes: match spec.storage.on_delete {
            OnDelete::Keep => true,
            OnDelete::Delete => false,
        },
        replace_after: spec.storage.replace_after.as_deref().map(read_duration).transpose()?,
        replace_after_text: spec.storage.replace_after.clone(),
        adopt: spec.service_id.as_deref().and_then(ServiceId::parse),
        image: spec.image.clone().unwrap_or_else(|| defaults.image.clone()),
        pull_policy: spec.image_pull_policy,
        log_level: spec.log_level.clone().unwrap_or_else(|| LOG_LEVEL.to_owned()),
        pod: spec.pod.clone().unwrap_or_default(),
        recorded,
        status,
    })
}

/// A whole number of seconds, minutes or hours.
fn read_duration(text: &str) -> Result<Duration, Invalid> {
    let unit = |unit: char| match unit {
        's' => Some(1),
        'm' => Some(60),
        'h' => Some(3600),
        _ => None,
    };
    let seconds = text.char_indices().last().and_then(|(at, last)| {
        let number: u64 = text[..at].parse().ok()?;
        number.checked_mul(unit(last)?)
    });
    let refused =
        || Invalid::Spec(vec![format!("spec.storage.replaceAfter: {}", lockstep_api::rules::REPLACE_AFTER.1)]);
    seconds.map(Duration::from_secs).ok_or_else(refused)
}

/// The genesis as the status holds it.
pub fn write_genesis(genesis: &Genesis) -> String {
    genesis.encode().iter().map(|byte| format!("{byte:02x}")).collect()
}

fn read_genesis(text: &str) -> Result<Genesis, String> {
    let digits = |at: usize| text.get(at..at + 2).and_then(|pair| u8::from_str_radix(pair, 16).ok());
    let bytes: Option<Vec<u8>> = (0..text.len()).step_by(2).map(digits).collect();
    let bytes = bytes.ok_or("it is not an even number of hexadecimal digits")?;
    let genesis = Genesis::decode(bytes.into()).map_err(|error| error.to_string())?;
    genesis.validate().map_err(|error| error.to_string())?;
    Ok(genesis)
}

#[cfg(test)]
pub mod tests {
    use lockstep_types::ReplicaId;

    use super::*;

    /// What the API server would hand out for `yaml` in namespace `apps`.
    pub fn resource(yaml: &str) -> ReplicatedService {
        let mut resource: ReplicatedService = serde_saphyr::from_str(yaml).expect("a fixture");
        resource.metadata.namespace = Some("apps".into());
        resource.metadata.uid = Some("5f0c7a9e-0000-4000-8000-000000000001".into());
        resource.metadata.generation = Some(1);
        resource.metadata.resource_version = Some("7".into());
        resource
    }

    /// The example, run through the real step. The names differ on purpose: `kv` is a service of replicas named `kv-…`.
    pub fn example() -> Service {
        service(include_str!("../../examples/kv.yaml"))
    }

    /// Any fixture, run through the real step.
    pub fn service(yaml: &str) -> Service {
        validate(&resource(yaml), &Defaults { image: "localhost/lockstep:test".into() }).expect("valid")
    }

    pub fn genesis(voters: u8) -> Genesis {
        Genesis {
            service: ServiceId::from_bytes([9; 16]),
            fault_model: FaultModel::Crash,
            voters: (0..voters).map(|number| ReplicaId::from_bytes([number + 1; 16])).collect(),
            machine: "KeyValue".into(),
            sessions_max: Genesis::SESSIONS_MAX,
            reply_bytes_max: Genesis::REPLY_BYTES_MAX,
            snapshot_bytes: Genesis::SNAPSHOT_BYTES,
        }
    }

    #[test]
    fn example_validated_takes_the_defaults() {
        let service = example();
        assert_eq!(service.image, "localhost/lockstep:test");
        assert_eq!(service.log_level, "info");
        assert!(service.keep_volumes);
        assert_eq!((service.replicas, service.quorum()), (3, 2));
        assert_eq!(service.recorded, None);
        assert_eq!(service.snapshot_bytes, Genesis::SNAPSHOT_BYTES);
        // As of the replica's own default.
        assert_eq!(service.retain_bytes, 256 << 20);
    }

    #[test]
    fn least_snapshot_bytes_that_are_accepted_make_a_genesis() {
        let yaml = include_str!("../../examples/kv.yaml").replace("spec:", "spec:\n  snapshots: {everyBytes: 4Ki}");
        let snapshot_bytes = service(&yaml).snapshot_bytes;
        assert_eq!(Genesis { snapshot_bytes, ..genesis(3) }.validate(), Ok(()));
        assert_eq!(snapshot_bytes, Genesis::SNAPSHOT_BYTES_MIN);
    }

    #[test]
    fn time_to_replace_is_read_in_each_unit() {
        let after = |text: &str| {
            let more = format!("size: 1Gi\n    replaceAfter: {text}");
            service(&include_str!("../../examples/kv.yaml").replace("size: 1Gi", &more)).replace_after
        };
        assert_eq!(after("90s"), Some(Duration::from_secs(90)));
        assert_eq!(after("10m"), Some(Duration::from_secs(600)));
        assert_eq!(after("2h"), Some(Duration::from_secs(7200)));
        assert_eq!(example().replace_after, None);
    }

    #[test]
    fn resource_past_a_loose_crd_is_still_refused() {
        let mut resource = resource(include_str!("../../examples/kv.yaml"));
        resource.spec.replicas = 4;
        resource.spec.state_machine.builtin = "Blockchain".into();
        let invalid = validate(&resource, &Defaults { image: "x".into() }).expect_err("a refusal");
        assert_eq!(invalid.reason(), "InvalidSpec");
        let text = invalid.to_string();
        assert!(text.contains(rules::REPLICAS_ODD.1), "{text}");
        assert!(text.contains(rules::MACHINE_KNOWN.1), "{text}");
    }

    #[test]
    fn genesis_written_and_read_is_the_same() {
        assert_eq!(read_genesis(&write_genesis(&genesis(5))), Ok(genesis(5)));
    }

    #[test]
    fn genesis_that_is_damaged_is_refused() {
        let mut resource = resource(include_str!("../../examples/kv.yaml"));
        for text in ["0", "zz", "0001", &write_genesis(&genesis(4))] {
            resource.status = Some(ReplicatedServiceStatus { genesis: Some(text.into()), ..Default::default() });
            let invalid = validate(&resource, &Defaults { image: "x".into() }).expect_err("a refusal");
            assert_eq!(invalid.reason(), "GenesisUnreadable", "{text}");
        }
    }
}
