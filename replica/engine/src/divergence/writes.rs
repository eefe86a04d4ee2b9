//! What the last blocks wrote, to name the first key that differs: kept for a while, each cut short.

use std::collections::VecDeque;

use bytes::Bytes;
use lockstep_types::Height;

/// Bytes kept of one block: its first writes. A later one that differs stays without a name.
const BLOCK_BYTES: usize = 256 << 10;
/// Bytes kept of all blocks.
const BYTES: usize = 4 << 20;

/// Write sets of consecutive blocks, oldest first.
#[derive(Debug, Default)]
pub(crate) struct Writes {
    list: VecDeque<(Height, Bytes)>,
    bytes: usize,
}

impl Writes {
    /// Takes in what the next block wrote, in canonical bytes.
    pub fn push(&mut self, height: Height, writes: &[u8]) {
        let writes = Bytes::copy_from_slice(&writes[..writes.len().min(BLOCK_BYTES)]);
        self.bytes += writes.len();
        self.list.push_back((height, writes));
        while self.bytes > BYTES || self.list.len() > BYTES / 1024 {
            let (_, gone) = self.list.pop_front().expect("something takes the bytes");
            self.bytes -= gone.len();
        }
    }

    /// What this block wrote, if it is remembered: as executed last.
    pub fn of(&self, height: Height) -> Option<Bytes> {
        self.list.iter().rev().find(|(at, _)| *at == height).map(|(_, writes)| writes.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writes_of_the_last_blocks_are_remembered_up_to_a_bound() {
        let mut writes = Writes::default();
        (1..=40).for_each(|height| writes.push(Height::new(height), &vec![height as u8; BLOCK_BYTES + 1]));
        assert_eq!(writes.of(Height::new(24)), None);
        assert_eq!(writes.of(Height::new(25)), Some(Bytes::from(vec![25; BLOCK_BYTES])));
        // Executed again, it is the last execution that counts.
        writes.push(Height::new(40), b"again");
        assert_eq!(writes.of(Height::new(40)), Some(Bytes::from_static(b"again")));
    }
}
