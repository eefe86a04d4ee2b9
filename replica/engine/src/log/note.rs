//! What each batch of the log repeats in a second place: the newest promises, and what is remembered of the others.

use bytes::Bytes;
use lockstep_consensus::{Promise, Record};
use lockstep_types::codec::{Reader as Bits, Writer as Bytewise};
use lockstep_types::{BlockRef, DecodeError, Digest, Height, View};

use crate::witness::{self, Mark, Rank, Witness};

/// What each batch repeats in a second place.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Note {
    pub head: Option<BlockRef>,
    /// The highest block that was ever written: who chained a snapshot in place of its log may have a lower head.
    highest: Rank,
    pub timeout: Option<View>,
    pub lead: Option<View>,
}

impl Note {
    /// Layout of its bytes.
    const VERSION: u8 = 2;

    pub fn take(&mut self, record: &Record) {
        match record {
            Record::Block(block) => self.reach(block.reference()),
            Record::Base(block) => self.reach(*block),
            Record::Promise(Promise::Timeout(view)) => self.timeout = self.timeout.max(Some(*view)),
            Record::Promise(Promise::Lead(view)) => self.lead = self.lead.max(Some(*view)),
        }
    }

    pub fn mark(&self) -> Mark {
        Mark { rank: self.highest, promised: self.timeout.unwrap_or(View::ZERO) }
    }

    fn reach(&mut self, head: BlockRef) {
        self.head = Some(head);
        self.highest = self.highest.max(head.rank());
    }

    pub fn encode(&self, witness: &Witness) -> Bytes {
        const { assert!(NOTE_BYTES + witness::NOTE_BYTES_MAX <= lockstep_wal::MAX_NOTE) };
        let mut out = Bytewise::with_capacity(NOTE_BYTES + witness::NOTE_BYTES_MAX);
        let head = self.head.unwrap_or(BlockRef::GENESIS);
        out.u8(Self::VERSION).view(head.view).height(head.height).raw(head.hash.as_bytes());
        witness::put(&mut out, self.mark());
        out.view(self.lead.unwrap_or(View::ZERO));
        witness.encode(&mut out);
        Bytes::from(out.finish())
    }

    pub fn decode(bytes: Bytes) -> Result<(Self, Witness), DecodeError> {
        let mut bits = Bits::new(bytes);
        let found = bits.u8("note version")?;
        if found != Self::VERSION {
            return Err(match found > Self::VERSION {
                true => DecodeError::NewerVersion { what: "note", found: found.into(), known: Self::VERSION.into() },
                false => DecodeError::UnknownTag { what: "note version", tag: found },
            });
        }
        let view = bits.view("note head")?;
        let height = bits.height("note head")?;
        let hash: Digest = bits.digest("note head")?;
        let known = |view: View| (view > View::ZERO).then_some(view);
        let mark = witness::mark(&mut bits)?;
        let note = Note {
            head: (height > Height::ZERO).then_some(BlockRef { view, height, hash }),
            highest: mark.rank,
            timeout: known(mark.promised),
            lead: known(bits.view("note lead")?),
        };
        let witness = Witness::decode(&mut bits)?;
        bits.finish("note")?;
        Ok((note, witness))
    }
}

/// Bytes of a note before what is remembered of the others.
const NOTE_BYTES: usize = 1 + 12 + 8 + 32 + 32 + 12;
