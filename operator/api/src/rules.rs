//! Every rule on a `ReplicatedService`, as (CEL expression, text of the refusal). The one source of both: the derive puts
//! them into the CRD, [`validate`](crate::validate()) runs them without an API server, docs and tests quote them.
//!
//! A text says what is wrong and what to do. Expressions and texts hold no line breaks: the API server refuses them.

/// A rule: the expression that must hold, and what the user reads when it does not.
pub type Rule = (&'static str, &'static str);

/// The longest name. The StatefulSet's label `controller-revision-hash` is the name and eleven characters, and must fit 63.
pub const NAME_MAX: usize = 50;

/// On the whole object.
pub const NAME_LENGTH: Rule = (
    "self.metadata.name.size() <= 50",
    "metadata.name is too long for the DNS names and labels of the replicas: use at most 50 characters",
);
/// On the whole object.
pub const NAME_DNS: Rule = (
    "self.metadata.name.matches('^[a-z]([-a-z0-9]*[a-z0-9])?$')",
    "metadata.name becomes a DNS label: use lower-case letters, digits and '-', start with a letter, \
     end with a letter or digit",
);
/// On the whole object: PROTOCOL §5, L6.
pub const GENESIS_ONCE: Rule = (
    "!has(oldSelf.status) || !has(oldSelf.status.genesis) || \
     (has(self.status) && has(self.status.genesis) && self.status.genesis == oldSelf.status.genesis)",
    "status.genesis is recorded once and never changes: delete the resource to start another service",
);

/// On `spec.replicas`.
pub const REPLICAS_ODD: Rule = (
    "self in [1, 3, 5, 7]",
    "replicas must be 1, 3, 5 or 7: an even number survives no more failures than the odd number below it",
);
/// On `spec.faultModel`.
pub const FAULT_MODEL_FIXED: Rule =
    ("self == oldSelf", "faultModel cannot change: it is part of the genesis; create a new service");
/// On `spec.stateMachine.builtin`.
pub const MACHINE_KNOWN: Rule = (
    "self in ['KeyValue', 'KeyValueWithFaults']",
    "unknown state machine: this release has the built-in machine KeyValue; set spec.stateMachine.builtin to KeyValue",
);
/// On `spec.stateMachine`.
pub const MACHINE_FIXED: Rule =
    ("self == oldSelf", "stateMachine cannot change: it is part of the genesis; create a new service");
/// On `spec.storage.size`.
pub const SIZE_QUANTITY: Rule = (
    "isQuantity(self) && quantity(self).isGreaterThan(quantity('0'))",
    "size must be a positive quantity, such as 1Gi or 500Mi",
);
/// On `spec.storage.size`.
pub const SIZE_GROWS: Rule = (
    "!isQuantity(self) || !isQuantity(oldSelf) || !quantity(self).isLessThan(quantity(oldSelf))",
    "size cannot shrink: a volume only grows; set it back to at least what it was",
);
/// On `spec.storage`.
pub const STORAGE_CLASS_FIXED: Rule = (
    "has(self.storageClassName) == has(oldSelf.storageClassName) && \
     (!has(self.storageClassName) || self.storageClassName == oldSelf.storageClassName)",
    "storageClassName cannot change: volumes stay where they are; create a new service",
);
/// On `spec.snapshots.everyBytes`.
pub const EVERY_BYTES_QUANTITY: Rule = (
    "isQuantity(self) && !quantity(self).isLessThan(quantity('4Ki')) && !quantity(self).isGreaterThan(quantity('1Ti'))",
    "everyBytes must be a quantity from 4Ki to 1Ti; 64Mi is usual",
);
/// On `spec.snapshots.everyBytes`.
pub const EVERY_BYTES_FIXED: Rule = (
    "!isQuantity(self) || !isQuantity(oldSelf) || quantity(self).compareTo(quantity(oldSelf)) == 0",
    "everyBytes cannot change: all replicas take their snapshots at the same blocks, so it is part of the genesis; set it \
     back, or create a new service",
);
/// On `spec.snapshots.retainLogBytes`.
pub const RETAIN_LOG_BYTES_QUANTITY: Rule = (
    "isQuantity(self) && !quantity(self).isLessThan(quantity('0')) && !quantity(self).isGreaterThan(quantity('1Pi'))",
    "retainLogBytes must be a quantity from 0 to 1Pi; 256Mi is usual",
);
/// On `spec.storage.replaceAfter`.
pub const REPLACE_AFTER: Rule = (
    "self.matches('^[1-9][0-9]{0,5}[smh]$')",
    "replaceAfter is a whole number of seconds, minutes or hours, such as 90s, 10m or 2h; leave it out for never",
);
/// On `spec.serviceId`.
pub const SERVICE_ID: Rule = (
    "self.matches('^[0-9a-f]{32}$')",
    "serviceId is 32 lower-case hexadecimal digits: copy it from the condition that named the kept volumes, \
     or from status.serviceId",
);
/// On `spec.pod`.
pub const POD_LABELS: Rule = (
    "!has(self.labels) || self.labels.all(key, !key.startsWith('app.kubernetes.io/') && !key.contains('lockstep.dev/'))",
    "pod.labels may not start with app.kubernetes.io/ or lockstep.dev/: the operator owns those; use a prefix of your own",
);
/// On `spec.pod`.
pub const POD_ANNOTATIONS: Rule = (
    "!has(self.annotations) || self.annotations.all(key, !key.contains('lockstep.dev/'))",
    "pod.annotations may not start with lockstep.dev/: the operator owns those; use a prefix of your own",
);
