//! Bounds that every replica of a service shares. Larger input is refused before it reaches the log.

/// Version of the blocks and promises on disk and on the wire. A later one is refused, never guessed at.
pub const FORMAT_VERSION: u16 = 1;

/// Bytes of one request body.
pub const REQUEST_BYTES_MAX: usize = 1 << 20;

/// Bytes of all commands of one block, with their lengths.
pub const BLOCK_BYTES_MAX: usize = 2 << 20;

/// Commands in one block.
pub const BLOCK_COMMANDS_MAX: usize = 4096;

/// Blocks of its own view that a leader may have above what is committed (PROTOCOL §2).
pub const WINDOW_BLOCKS: u64 = 16;

/// Requests of one session in flight: a sequence number above `acknowledged + SESSION_WINDOW` is refused.
pub const SESSION_WINDOW: u64 = 64;

/// Voters at most: seven, and one more on each side of a swap.
pub const VOTERS_MAX: usize = 9;

/// Standbys at most: as many as voters, so that all may be swapped in one sweep.
pub const STANDBYS_MAX: usize = 9;
