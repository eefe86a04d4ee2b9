//! Bounds on frames. Both ends of a connection know them; what is larger is refused, never cut.

use lockstep_types::limits::{BLOCK_BYTES_MAX, REQUEST_BYTES_MAX, SESSION_WINDOW};

/// Version of the peer and client protocol. A later one is refused with FAILED_PRECONDITION, never guessed at.
pub const PROTOCOL_VERSION: u32 = 1;

/// Bytes of one gRPC message at most, either way, on every service. Set it on clients *and* servers: tonic's own limit of
/// decoded messages is 4 MiB.
pub const FRAME_BYTES_MAX: usize = 8 << 20;

/// Bytes after which a sender closes a frame that it fills with several messages. A single message may exceed it.
pub const FRAME_BYTES_TARGET: usize = 256 << 10;

/// Requests in one [`ClientFrame`](crate::v1::ClientFrame) at most.
pub const FRAME_REQUESTS_MAX: usize = 1024;

/// Responses in one [`ServerFrame`](crate::v1::ServerFrame) at most.
pub const FRAME_RESPONSES_MAX: usize = 1024;

/// Messages in one [`PeerFrame`](crate::v1::PeerFrame) at most.
pub const FRAME_PEER_MESSAGES_MAX: usize = 1024;

/// Bytes of blocks in one [`Fetched`](crate::v1::Fetched) at most, unless a single block is larger.
pub const FETCHED_BYTES_MAX: usize = 4 << 20;

/// Bytes of a genesis in an admin request.
pub const GENESIS_BYTES_MAX: usize = 64 << 10;

/// What a replica waits for if a request names no timeout, in milliseconds.
pub const TIMEOUT_MS_DEFAULT: u32 = 10_000;

/// The longest timeout that a request may name, in milliseconds. A longer one counts as this.
pub const TIMEOUT_MS_MAX: u32 = 60_000;

/// Requests in flight on one client stream at most: what a replica takes before it answers OVERLOADED.
pub const STREAM_REQUESTS_MAX: usize = 1024;

/// HTTP/2 flow-control window of one stream, in bytes.
pub const STREAM_WINDOW_BYTES: u32 = 4 << 20;

/// HTTP/2 flow-control window of one connection, in bytes.
pub const CONNECTION_WINDOW_BYTES: u32 = 16 << 20;

/// Port of clients, admin, health and reflection.
pub const CLIENT_PORT: u16 = 7400;

/// Port of peers.
pub const PEER_PORT: u16 = 7401;

/// Port of metrics.
pub const METRICS_PORT: u16 = 7402;

// A frame holds the largest block, and the largest request, with room for the fields around them.
const _: () = assert!(FRAME_BYTES_MAX >= 2 * BLOCK_BYTES_MAX && FRAME_BYTES_MAX >= 2 * REQUEST_BYTES_MAX);
const _: () = assert!(FETCHED_BYTES_MAX + BLOCK_BYTES_MAX <= FRAME_BYTES_MAX);
const _: () = assert!(STREAM_REQUESTS_MAX as u64 >= SESSION_WINDOW);
