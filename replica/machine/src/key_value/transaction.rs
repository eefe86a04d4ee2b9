//! Several compares and operations as one step. Nothing fails half-way: what the reply will take is reckoned before anything
//! is written.

use std::collections::BTreeMap;

use lockstep_types::kv::{
    KvOperation, KvReply, OperationReply, REPLY_ENTRIES_BYTES_MAX, Transaction, TransactionReply,
};

use super::{Room, VERSION_BYTES, holds, put, versioned};
use crate::store::Store;

/// Compares, then does the one branch or the other.
pub(super) fn execute(transaction: &Transaction, store: &mut Store, room: &mut Room) -> KvReply {
    let (held, operations) = match branch(transaction, store, room) {
        Ok(branch) => branch,
        Err(refusal) => return refusal,
    };
    let replies = operations.iter().map(|operation| operate(operation, store)).collect();
    KvReply::Transaction(TransactionReply { held, replies })
}

/// As [`execute`], if both branches only read.
pub(super) fn query(transaction: &Transaction, store: &Store, room: &mut Room) -> KvReply {
    if !transaction.is_read() {
        return KvReply::Invalid;
    }
    let (held, operations) = match branch(transaction, store, room) {
        Ok(branch) => branch,
        Err(refusal) => return refusal,
    };
    let get = |operation: &KvOperation| match operation {
        KvOperation::Get { key } => Some(OperationReply::Get { found: store.get(key).map(versioned) }),
        KvOperation::Put { .. } | KvOperation::Delete { .. } => None,
    };
    KvReply::Transaction(TransactionReply { held, replies: operations.iter().filter_map(get).collect() })
}

/// Whether the compares hold, and what is to be done then; or why nothing is: its reply would be too large.
fn branch<'a>(
    transaction: &'a Transaction,
    store: &Store,
    room: &mut Room,
) -> Result<(bool, &'a [KvOperation]), KvReply> {
    let held = transaction.compares.iter().all(|compare| holds(&compare.expected, store.get(&compare.key)));
    let operations = if held { &transaction.then } else { &transaction.otherwise };
    let bytes = bytes_read(operations, store);
    if bytes > REPLY_ENTRIES_BYTES_MAX {
        return Err(KvReply::TooLarge);
    }
    if !room.take(bytes) {
        return Err(KvReply::Omitted);
    }
    Ok((held, operations))
}

/// Bytes of all values that these operations will read, each seeing what those before it wrote.
fn bytes_read(operations: &[KvOperation], store: &Store) -> usize {
    let mut written = BTreeMap::new();
    let mut bytes = 0;
    for operation in operations {
        match operation {
            KvOperation::Put { key, value } => {
                written.insert(key, value.len());
            }
            KvOperation::Delete { key } => {
                written.insert(key, 0);
            }
            KvOperation::Get { key } => {
                let stored = || store.get(key).map_or(0, |stored| stored.len() - VERSION_BYTES);
                bytes += written.get(key).copied().unwrap_or_else(stored);
            }
        }
    }
    bytes
}

fn operate(operation: &KvOperation, store: &mut Store) -> OperationReply {
    match operation {
        KvOperation::Put { key, value } => OperationReply::Put { version: put(key, value, store) },
        KvOperation::Get { key } => OperationReply::Get { found: store.get(key).map(versioned) },
        KvOperation::Delete { key } => OperationReply::Delete { deleted: store.delete(key) },
    }
}
