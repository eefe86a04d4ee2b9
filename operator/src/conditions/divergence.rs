//! Replicas whose state is not that of others, by their own word.

use crate::validate::Service;
use crate::world::World;

/// The reason while a replica's state differs from that of others.
pub const STATE_DIVERGED: &str = "StateDiverged";
/// The reason once it was built anew.
pub const STATE_REBUILT: &str = "StateRebuilt";

/// The replicas whose state differs from that of others, or differed, each with block and key.
pub(super) fn diverged(service: &Service, world: &World, over: bool) -> Option<String> {
    let found = world.replicas().filter_map(|(ordinal, replica)| {
        let diverged = replica.diverged.as_ref().filter(|diverged| diverged.over == over)?;
        Some(format!("{}: {}", service.pod_name(ordinal), diverged.text))
    });
    let found: Vec<String> = found.collect();
    (!found.is_empty()).then(|| found.join("; "))
}
