//! Between generated messages and the requests and replies of the key-value machine: what its unary calls take and give.
//!
//! What is missing in a request is refused here. Not here: whether its keys and sizes are within bounds
//! ([`KvRequest::checked`]).

use lockstep_types::kv::{
    Compare, Entry, Expected, KvOperation, KvRequest, OperationReply, Page, SCAN_ENTRIES_MAX, Scan, Transaction,
    TransactionReply, Versioned,
};

use crate::convert::{WireError, present};
use crate::v1;

impl From<v1::PutRequest> for KvRequest {
    fn from(put: v1::PutRequest) -> Self {
        KvRequest::Put { key: put.key, value: put.value }
    }
}

impl From<v1::GetRequest> for KvRequest {
    fn from(get: v1::GetRequest) -> Self {
        KvRequest::Get { key: get.key }
    }
}

impl From<v1::DeleteRequest> for KvRequest {
    fn from(delete: v1::DeleteRequest) -> Self {
        KvRequest::Delete { key: delete.key }
    }
}

impl TryFrom<v1::CompareAndSetRequest> for KvRequest {
    type Error = WireError;

    fn try_from(set: v1::CompareAndSetRequest) -> Result<Self, WireError> {
        use v1::compare_and_set_request::Expected as Wire;
        let expected = match present("expected_version, expected_value or expected_exists", set.expected)? {
            Wire::ExpectedVersion(version) => Expected::Version(version),
            Wire::ExpectedValue(value) => Expected::Value(value),
            Wire::ExpectedExists(v1::Empty {}) => Expected::Exists,
        };
        Ok(KvRequest::CompareAndSet { key: set.key, expected, value: set.value })
    }
}

impl From<v1::ScanRequest> for KvRequest {
    fn from(scan: v1::ScanRequest) -> Self {
        let limit = if scan.limit == 0 { SCAN_ENTRIES_MAX } else { scan.limit };
        let whole = Scan { start: scan.start, end: scan.end, limit, keys_only: scan.keys_only };
        KvRequest::Scan(whole.within(scan.prefix))
    }
}

impl TryFrom<v1::TransactionRequest> for KvRequest {
    type Error = WireError;

    fn try_from(transaction: v1::TransactionRequest) -> Result<Self, WireError> {
        Ok(KvRequest::Transaction(Transaction {
            compares: transaction.compares.into_iter().map(compare).collect::<Result<_, _>>()?,
            then: transaction.then.into_iter().map(operation).collect::<Result<_, _>>()?,
            otherwise: transaction.otherwise.into_iter().map(operation).collect::<Result<_, _>>()?,
        }))
    }
}

fn compare(compare: v1::Compare) -> Result<Compare, WireError> {
    let expected = match present("version, value or exists of a compare", compare.expected)? {
        v1::compare::Expected::Version(version) => Expected::Version(version),
        v1::compare::Expected::Value(value) => Expected::Value(value),
        v1::compare::Expected::Exists(true) => Expected::Exists,
        v1::compare::Expected::Exists(false) => Expected::Version(0),
    };
    Ok(Compare { key: compare.key, expected })
}

fn operation(operation: v1::TransactionOperation) -> Result<KvOperation, WireError> {
    use v1::transaction_operation::Operation as Wire;
    Ok(match present("put, get or delete of a transaction", operation.operation)? {
        Wire::Put(put) => KvOperation::Put { key: put.key, value: put.value },
        Wire::Get(get) => KvOperation::Get { key: get.key },
        Wire::Delete(delete) => KvOperation::Delete { key: delete.key },
    })
}

impl From<Option<Versioned>> for v1::GetResponse {
    fn from(found: Option<Versioned>) -> Self {
        found.map_or_else(v1::GetResponse::default, |Versioned { value, version }| v1::GetResponse {
            found: true,
            value,
            version,
        })
    }
}

impl From<Page> for v1::ScanResponse {
    fn from(page: Page) -> Self {
        let entry = |Entry { key, found: Versioned { value, version } }| v1::Entry { key, value, version };
        v1::ScanResponse { entries: page.entries.into_iter().map(entry).collect(), next: page.next.unwrap_or_default() }
    }
}

impl From<TransactionReply> for v1::TransactionResponse {
    fn from(transaction: TransactionReply) -> Self {
        use v1::operation_response::Response as Wire;
        let response = |reply| match reply {
            OperationReply::Put { version } => Wire::Put(v1::PutResponse { version }),
            OperationReply::Get { found } => Wire::Get(found.into()),
            OperationReply::Delete { deleted } => Wire::Delete(v1::DeleteResponse { deleted }),
        };
        let response = |reply| v1::OperationResponse { response: Some(response(reply)) };
        v1::TransactionResponse {
            held: transaction.held,
            responses: transaction.replies.into_iter().map(response).collect(),
        }
    }
}
