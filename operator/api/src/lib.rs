//! The custom resource `ReplicatedService`, its rules, and the generator of `crds/`.
//!
//! What a user may write stands in [`spec`], what the operator answers in [`status`]. Every rule is CEL in the CRD
//! (module [`rules`]), and [`validate`] runs the very same rules on the client side: for unit tests, for the operator, and
//! for `lockstep dev`. Not here: a Kubernetes client, and anything that depends on the rest of the workspace.

pub mod crd;
pub mod quantity;
pub mod rules;
pub mod spec;
pub mod status;
pub mod validate;

pub use spec::{FaultModel, ReplicatedService, ReplicatedServiceSpec};
pub use status::ReplicatedServiceStatus;
pub use validate::{parse, validate, validate_update};

/// The API group. Ours alone; nothing else spells it out but the generated CRD and the charts, which tests compare.
pub const GROUP: &str = "lockstep.dev";
/// The served version.
pub const VERSION: &str = "v1alpha1";
/// The kind.
pub const KIND: &str = "ReplicatedService";
/// The name of the CRD.
pub const CRD_NAME: &str = "replicatedservices.lockstep.dev";
/// The built-in state machines of this release.
pub const MACHINES: [&str; 2] = ["KeyValue", "KeyValueWithFaults"];
