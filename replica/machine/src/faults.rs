//! A machine that goes wrong on request, for exercises and tests only: it shows what Lockstep does about a replica whose state
//! is not that of the others (PROTOCOL §9). Never for a service that matters.
//!
//! It is [`KeyValue`] but for puts of the keys `fault/once/NAME` and `fault/always/NAME`: the replica of that name writes another
//! value than was asked for. `once`: the first time in the life of its process, as a flipped bit would; `always`: every time, as
//! a machine does that looks at something which differs from replica to replica. That is what this one does: a name is no part
//! of the replicated state.

use std::collections::BTreeSet;
use std::sync::{Mutex, OnceLock};

use bytes::Bytes;
use lockstep_types::kv::KvRequest;

use crate::key_value::KeyValue;
use crate::machine::{Context, StateMachine};
use crate::store::Store;

/// The name of the replica that this process is.
static THIS_PROCESS: OnceLock<String> = OnceLock::new();

/// [`KeyValue`] with faults on request.
#[derive(Debug, Default)]
pub struct KeyValueWithFaults {
    /// Overrides the name of the process.
    name: Option<String>,
    /// The keys of faults that happen once and have happened.
    spent: Mutex<BTreeSet<Bytes>>,
}

impl KeyValueWithFaults {
    /// The name in a genesis.
    pub const NAME: &str = "KeyValueWithFaults";

    /// The machine of the replica of this name, where one process holds several.
    pub fn named(name: String) -> Self {
        KeyValueWithFaults { name: Some(name), spent: Mutex::default() }
    }

    /// Says which replica this process is; the first word counts.
    pub fn name_this_process(name: String) {
        let _ = THIS_PROCESS.set(name);
    }

    /// The key whose put goes wrong on the replica of this name: once, or always.
    pub fn key(name: &str, always: bool) -> Bytes {
        Bytes::from(format!("fault/{}/{name}", if always { "always" } else { "once" }))
    }

    /// What this replica executes in place of a request.
    fn altered(&self, request: &Bytes) -> Bytes {
        let Ok(KvRequest::Put { key, value }) = KvRequest::decode(request.clone()) else { return request.clone() };
        let Some(name) = self.name.as_ref().or(THIS_PROCESS.get()) else { return request.clone() };
        let goes_wrong = if key == Self::key(name, false) {
            self.spent.lock().is_ok_and(|mut spent| spent.insert(key.clone()))
        } else {
            key == Self::key(name, true)
        };
        if !goes_wrong {
            return request.clone();
        }
        let mut value = value.to_vec();
        match value.last_mut() {
            Some(last) => *last ^= 1,
            None => value.push(b'!'),
        }
        KvRequest::Put { key, value: value.into() }.encode()
    }
}

impl StateMachine for KeyValueWithFaults {
    fn apply(&self, context: &Context, requests: &[Bytes], store: &mut Store) -> Vec<Bytes> {
        let requests: Vec<Bytes> = requests.iter().map(|request| self.altered(request)).collect();
        KeyValue.apply(context, &requests, store)
    }

    fn check(&self, key: &[u8], value: &[u8]) -> Result<(), &'static str> {
        KeyValue.check(key, value)
    }

    fn query(&self, request: &Bytes, store: &Store) -> Bytes {
        KeyValue.query(request, store)
    }
}

#[cfg(test)]
mod tests {
    use lockstep_types::{Digest, Height, LogTime, View};

    use super::*;
    use crate::store::first_difference;

    /// What a put of this key writes, by each of two replicas, twice.
    fn writes(key: &Bytes) -> [Vec<u8>; 4] {
        let context =
            Context { height: Height::new(1), view: View::ZERO, log_time: LogTime::from_millis(1), seed: Digest::ZERO };
        let machines = [KeyValueWithFaults::named("s1".into()), KeyValueWithFaults::named("s2".into())];
        [0, 1, 0, 1].map(|replica: usize| {
            let mut store = Store::default();
            let request = KvRequest::Put { key: key.clone(), value: Bytes::from_static(b"value") }.encode();
            machines[replica].apply(&context, &[request], &mut store);
            store.writes().to_vec()
        })
    }

    #[test]
    fn fault_that_happens_once_shows_on_one_replica_the_first_time() {
        let key = KeyValueWithFaults::key("s2", false);
        let [sound, wrong, sound_again, healed] = writes(&key);
        assert_eq!(first_difference(&sound, &wrong), Some(key));
        assert_eq!((&sound, &sound), (&sound_again, &healed));
    }

    #[test]
    fn fault_that_happens_always_shows_on_one_replica_every_time() {
        let [sound, wrong, sound_again, wrong_again] = writes(&KeyValueWithFaults::key("s2", true));
        assert_ne!(sound, wrong);
        assert_eq!((sound, wrong), (sound_again, wrong_again));
    }

    #[test]
    fn other_keys_never_go_wrong() {
        let [first, second, ..] = writes(&Bytes::from_static(b"fault/once"));
        assert_eq!(first, second);
    }
}
