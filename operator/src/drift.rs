//! Whether an object still is as it was built. Pure.
//!
//! An object is left alone when it carries the hash of what would be built now, and everything that was built still stands in
//! it. Fields that others add are theirs. What Kubernetes writes differently (quantities, empty values) is equal.

use serde_json::Value;

use crate::build::HASH;
use lockstep_api::quantity::Amount;

/// A short, stable hash of an object: FNV-1a over its JSON.
pub fn hash(object: &Value) -> String {
    let mut hash: u64 = 0xcbf2_9ce4_8422_2325;
    for byte in object.to_string().bytes() {
        hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    }
    format!("{hash:016x}")
}

/// Where `found` is not as `desired`; none if it is. An object that is `settled`, that is stands as our last apply left it, can
/// only differ by what is desired now.
pub fn difference(desired: &Value, found: &Value, settled: bool) -> Option<String> {
    let hash = |object: &Value| object["metadata"]["annotations"][HASH].clone();
    if hash(desired) != hash(found) {
        return Some(format!("metadata.annotations.{HASH}"));
    }
    if settled { None } else { missing("", desired, found) }
}

/// The first path of `desired` that `found` does not cover.
fn missing(path: &str, desired: &Value, found: &Value) -> Option<String> {
    match (desired, found) {
        (Value::Object(desired), Value::Object(found)) => desired.iter().find_map(|(key, value)| {
            let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
            missing(&path, value, found.get(key).unwrap_or(&Value::Null))
        }),
        (Value::Array(desired), Value::Array(found)) => {
            let named = |value: &Value| value.get("name").is_some();
            if desired.iter().all(named) && found.iter().all(named) {
                // Lists that merge by name: others may have added to them.
                return desired.iter().find_map(|item| {
                    let path = format!("{path}[{}]", item["name"].as_str().unwrap_or_default());
                    let same = found.iter().find(|other| other["name"] == item["name"]).unwrap_or(&Value::Null);
                    missing(&path, item, same)
                });
            }
            if desired.len() != found.len() {
                return Some(path.to_owned());
            }
            (0..desired.len()).find_map(|at| missing(&format!("{path}[{at}]"), &desired[at], &found[at]))
        }
        (desired, found) if desired == found || (is_empty(desired) && is_empty(found)) => None,
        (Value::String(desired), Value::String(found)) => {
            let (desired, found) = (Amount::parse(desired), Amount::parse(found));
            (desired.is_none() || desired != found).then(|| path.to_owned())
        }
        (Value::Object(_), Value::Null) => missing(path, desired, &Value::Object(Default::default())),
        _ => Some(path.to_owned()),
    }
}

/// What Kubernetes leaves out when it writes an object.
fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(value) => !value,
        Value::Number(value) => value.as_i64() == Some(0),
        Value::String(value) => value.is_empty(),
        Value::Array(value) => value.is_empty(),
        Value::Object(value) => value.values().all(is_empty),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::build;
    use crate::validate::tests::example;

    fn set() -> Value {
        build::build(&example(), None).desired().pop().expect("the set").object
    }

    #[test]
    fn object_with_defaults_filled_in_is_left_alone() {
        let desired = set();
        let mut found = desired.clone();
        found["metadata"]["uid"] = json!("x");
        found["metadata"]["annotations"]["kubectl.kubernetes.io/note"] = json!("by hand");
        found["spec"]["revisionHistoryLimit"] = json!(10);
        found["spec"]["template"]["spec"]["containers"][0]["terminationMessagePath"] = json!("/dev/termination-log");
        found["spec"]["template"]["metadata"]["annotations"] = json!({"kubectl.kubernetes.io/restartedAt": "now"});
        found["spec"]["volumeClaimTemplates"][0]["status"] = json!({"phase": "Pending"});
        found["spec"]["volumeClaimTemplates"][0]["spec"]["resources"]["requests"]["storage"] = json!("1024Mi");
        assert_eq!(difference(&desired, &found, false), None);
    }

    #[test]
    fn object_with_an_injected_container_is_left_alone() {
        let desired = set();
        let mut found = desired.clone();
        let containers = found["spec"]["template"]["spec"]["containers"].as_array_mut().expect("containers");
        containers.insert(0, json!({"name": "mesh"}));
        assert_eq!(difference(&desired, &found, false), None);
    }

    #[test]
    fn object_changed_by_hand_is_told_by_its_path() {
        let desired = set();
        let mut found = desired.clone();
        found["spec"]["template"]["spec"]["containers"][0]["image"] = json!("evil");
        let path = difference(&desired, &found, false);
        assert_eq!(path.as_deref(), Some("spec.template.spec.containers[replica].image"));
        found = desired.clone();
        found["spec"]["replicas"] = json!(2);
        assert_eq!(difference(&desired, &found, false).as_deref(), Some("spec.replicas"));
        found = desired.clone();
        found["spec"].as_object_mut().expect("a spec").remove("updateStrategy");
        assert_eq!(difference(&desired, &found, false).as_deref(), Some("spec.updateStrategy.type"));
    }

    #[test]
    fn object_with_a_field_no_longer_wanted_is_told_by_its_hash() {
        let desired = set();
        let mut found = desired.clone();
        found["metadata"]["annotations"][HASH] = json!("older");
        assert!(difference(&desired, &found, false).is_some());
        assert!(difference(&desired, &found, true).is_some(), "however it came to be");
    }

    #[test]
    fn empty_values_left_out_are_equal() {
        let desired = json!({"nodeSelector": {}, "key": "", "flag": false, "list": [], "affinity": {"node": {}}});
        assert_eq!(missing("", &desired, &json!({})), None);
        assert_eq!(missing("", &json!({"flag": true}), &json!({})).as_deref(), Some("flag"));
    }
}
