//! A block is a header and a batch of commands; the log is a chain of them.
//!
//! The hash of a block is the BLAKE3 digest of its header's canonical bytes; the header holds the digest of the body and
//! the hash of the parent, so a hash names a whole history.

use alloc::vec::Vec;
use core::fmt;

use bytes::Bytes;

use crate::codec::{DecodeError, Reader, Writer};
use crate::ids::{Digest, Epoch, Height, LogTime, ServiceId, View};
use crate::limits::{BLOCK_BYTES_MAX, BLOCK_COMMANDS_MAX, FORMAT_VERSION};
use crate::membership::Change;

/// Canonical bytes of a header at most.
pub const HEADER_BYTES_MAX: usize = 2 + 16 + 8 + 12 + 8 + 32 + 32 + 8 + Change::BYTES_MAX;

/// What a block is and where it stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct BlockHeader {
    /// The service whose log this is.
    pub service: ServiceId,
    /// The configuration in force at this height.
    pub epoch: Epoch,
    /// The view in which the block was proposed. Never lower than the parent's.
    pub view: View,
    /// The parent's plus one; 1 for the first.
    pub height: Height,
    /// Hash of the block below; [`Digest::ZERO`] for the first.
    pub parent: Digest,
    /// Digest of the canonical body.
    pub body: Digest,
    /// Never lower than the parent's.
    pub log_time: LogTime,
    /// A change of membership, in force above this height. Such a block has no commands. It stands in the header, so that
    /// whoever follows a chain of headers knows who counts.
    pub change: Option<Change>,
}

impl BlockHeader {
    /// The canonical bytes, at most [`HEADER_BYTES_MAX`] of them.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Writer::with_capacity(HEADER_BYTES_MAX);
        out.u16(FORMAT_VERSION)
            .raw(self.service.as_bytes())
            .u64(self.epoch.get())
            .view(self.view)
            .height(self.height)
            .raw(self.parent.as_bytes())
            .raw(self.body.as_bytes())
            .u64(self.log_time.as_millis());
        Change::write(self.change.as_ref(), &mut out);
        out.finish()
    }

    /// Reads a header from the front of `reader`.
    ///
    /// # Errors
    /// Truncated bytes, an unknown change, or a version newer than [`FORMAT_VERSION`].
    pub fn decode(reader: &mut Reader) -> Result<Self, DecodeError> {
        let found = reader.u16("block version")?;
        if found > FORMAT_VERSION {
            return Err(DecodeError::NewerVersion { what: "block", found, known: FORMAT_VERSION });
        }
        Ok(BlockHeader {
            service: reader.service("block service")?,
            epoch: reader.epoch("block epoch")?,
            view: reader.view("block view")?,
            height: reader.height("block height")?,
            parent: reader.digest("block parent")?,
            body: reader.digest("block body digest")?,
            log_time: reader.log_time("block log time")?,
            change: Change::read(reader)?,
        })
    }
}

/// A place in the log: ordered by view, then height, which is the order of ranks (PROTOCOL §3).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BlockRef {
    /// The view in the block's header.
    pub view: View,
    /// Its height.
    pub height: Height,
    /// Its hash.
    pub hash: Digest,
}

impl BlockRef {
    /// Before the first block: where every log starts.
    pub const GENESIS: BlockRef = BlockRef { view: View::ZERO, height: Height::ZERO, hash: Digest::ZERO };

    /// View and height, without the hash: what ranks compare (PROTOCOL §3).
    pub fn rank(&self) -> (View, Height) {
        (self.view, self.height)
    }
}

impl fmt::Display for BlockRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.height, self.view)
    }
}

/// A header, its hash and the canonical bytes of its commands. Invariant: `header.body` is the digest of `body`, and
/// `hash` that of the header; every constructor computes or checks both.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Block {
    header: BlockHeader,
    hash: Digest,
    body: Bytes,
}

impl Block {
    /// A block of `body` (see [`encode_body`]) with the digests filled in; `header.body` is overwritten.
    pub fn new(mut header: BlockHeader, body: Bytes) -> Self {
        header.body = Digest::of(&body);
        Block { header, hash: Digest::of(&header.encode()), body }
    }

    /// The header.
    pub fn header(&self) -> &BlockHeader {
        &self.header
    }

    /// The hash.
    pub fn hash(&self) -> Digest {
        self.hash
    }

    /// The height.
    pub fn height(&self) -> Height {
        self.header.height
    }

    /// The view of the header.
    pub fn view(&self) -> View {
        self.header.view
    }

    /// View, height and hash.
    pub fn reference(&self) -> BlockRef {
        BlockRef { view: self.header.view, height: self.header.height, hash: self.hash }
    }

    /// The canonical body.
    pub fn body(&self) -> &Bytes {
        &self.body
    }

    /// Header and body as two parts that follow each other on disk.
    pub fn encode_parts(&self) -> [Bytes; 2] {
        [Bytes::from(self.header.encode()), self.body.clone()]
    }

    /// Reads a block of exactly these bytes and checks the body against the header.
    ///
    /// # Errors
    /// As [`BlockHeader::decode`]; a body that is too large, is not a list of commands, or not the one the header names; or
    /// commands beside a change.
    pub fn decode(bytes: Bytes) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(bytes);
        let header = BlockHeader::decode(&mut reader)?;
        let body = reader.raw(reader.remaining(), "block body")?;
        if Digest::of(&body) != header.body {
            return Err(DecodeError::OutOfRange { what: "block body digest" });
        }
        let commands = decode_body(&body)?;
        if header.change.is_some() && !commands.is_empty() {
            return Err(DecodeError::OutOfRange { what: "body of a block with a change" });
        }
        Ok(Block { header, hash: Digest::of(&header.encode()), body })
    }
}

impl fmt::Display for Block {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.reference().fmt(f)
    }
}

/// Canonical body of these commands: their count, then each with its length.
pub fn encode_body(commands: &[Bytes]) -> Bytes {
    let size = 4 + commands.iter().map(|command| 4 + command.len()).sum::<usize>();
    let mut out = Writer::with_capacity(size);
    out.u32(u32::try_from(commands.len()).expect("a block holds few commands"));
    for command in commands {
        out.bytes(command);
    }
    Bytes::from(out.finish())
}

/// The commands of a canonical body; they share its buffer.
///
/// # Errors
/// Truncated or left-over bytes, more than [`BLOCK_COMMANDS_MAX`] commands or [`BLOCK_BYTES_MAX`] bytes.
pub fn decode_body(body: &Bytes) -> Result<Vec<Bytes>, DecodeError> {
    if body.len() > BLOCK_BYTES_MAX {
        return Err(DecodeError::OutOfRange { what: "block size" });
    }
    let mut reader = Reader::new(body.clone());
    let count = reader.u32("command count")? as usize;
    if count > BLOCK_COMMANDS_MAX {
        return Err(DecodeError::OutOfRange { what: "command count" });
    }
    let commands = (0..count).map(|_| reader.bytes("command")).collect::<Result<Vec<_>, _>>()?;
    reader.finish("block body")?;
    Ok(commands)
}
