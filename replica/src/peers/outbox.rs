//! Messages that wait for the stream to one peer. Bounded; a message without room is dropped and counted.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use lockstep_consensus::Message;
use lockstep_engine::engine::Outgoing;
use lockstep_engine::{ForwardResult, PeerMessage};
use lockstep_types::Outcome;
use lockstep_wire::limits;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use tokio::sync::Notify;

/// Bytes that may wait: a leader's whole window of the largest blocks, so that a short stall drops nothing.
const BYTES_MAX: usize = 48 << 20;
/// Messages that may wait.
const MESSAGES_MAX: usize = 1 << 16;
/// Bytes after which a frame is closed.
const FRAME_BYTES: usize = 1 << 20;

/// One peer's queue.
pub(crate) struct Outbox {
    queue: Mutex<Queue>,
    filled: Notify,
    connected: Gauge,
    sent: Counter,
    dropped: Counter,
}

#[derive(Default)]
struct Queue {
    /// The number of the stream that takes messages out; none: nobody does, and nothing is kept.
    stream: Option<u64>,
    /// How many times the replica at its other end has started.
    boot: u64,
    last_stream: u64,
    messages: VecDeque<Outgoing>,
    bytes: usize,
}

/// One stream's hold on the queue. Dropped, nothing is queued any more, unless a newer stream took over.
pub(crate) struct Drain<'a> {
    outbox: &'a Outbox,
    stream: u64,
}

impl Outbox {
    pub fn new(metrics: &crate::metrics::Metrics) -> Self {
        Outbox {
            queue: Mutex::default(),
            filled: Notify::new(),
            connected: metrics.peers_connected.clone(),
            sent: metrics.peer_sent.clone(),
            dropped: metrics.peer_dropped.clone(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn push(&self, outgoing: Outgoing) {
        let size = size(&outgoing.message);
        let mut queue = self.lock();
        if queue.stream.is_none() {
            return;
        }
        if queue.messages.len() >= MESSAGES_MAX || queue.bytes + size > BYTES_MAX {
            drop(queue);
            self.dropped.inc();
            return;
        }
        queue.bytes += size;
        queue.messages.push_back(outgoing);
        let first = queue.messages.len() == 1;
        drop(queue);
        if first {
            self.filled.notify_one();
        }
    }

    /// Whether a stream takes messages out.
    pub fn is_connected(&self) -> bool {
        self.lock().stream.is_some()
    }

    /// From now on messages are queued, for this stream to a replica that has started so many times. None if another stream
    /// to that same process takes them out; one to an earlier process of it is replaced.
    pub fn connect(&self, boot: u64) -> Option<Drain<'_>> {
        let mut queue = self.lock();
        if queue.stream.is_some() && queue.boot >= boot {
            return None;
        }
        if queue.stream.is_none() {
            self.connected.inc();
        }
        queue.boot = boot;
        queue.last_stream += 1;
        queue.stream = Some(queue.last_stream);
        queue.messages.clear();
        queue.bytes = 0;
        let stream = queue.last_stream;
        drop(queue);
        // A stream that is replaced finds out.
        self.filled.notify_waiters();
        Some(Drain { outbox: self, stream })
    }
}

impl Drain<'_> {
    /// The next messages, at least one and about a frame; none once a newer stream took over. Nothing is lost if the
    /// future is dropped.
    pub async fn next(&self) -> Option<Vec<Outgoing>> {
        loop {
            let filled = self.outbox.filled.notified();
            {
                let mut queue = self.outbox.lock();
                if queue.stream != Some(self.stream) {
                    return None;
                }
                if !queue.messages.is_empty() {
                    let messages = queue.take_frame();
                    drop(queue);
                    self.outbox.sent.inc_by(messages.len() as u64);
                    return Some(messages);
                }
            }
            filled.await;
        }
    }
}

impl Queue {
    fn take_frame(&mut self) -> Vec<Outgoing> {
        let mut bytes = 0;
        let mut count = 0;
        for message in self.messages.iter().take(limits::FRAME_PEER_MESSAGES_MAX) {
            let size = size(&message.message);
            if count > 0 && bytes + size > FRAME_BYTES {
                break;
            }
            bytes += size;
            count += 1;
        }
        self.bytes -= bytes;
        self.messages.drain(..count).collect()
    }
}

impl Drop for Drain<'_> {
    fn drop(&mut self) {
        let mut queue = self.outbox.lock();
        if queue.stream == Some(self.stream) {
            queue.stream = None;
            queue.messages.clear();
            queue.bytes = 0;
            self.outbox.connected.dec();
        }
    }
}

/// About what the message takes in a frame.
fn size(message: &PeerMessage) -> usize {
    const FIELDS: usize = 256;
    FIELDS
        + match message {
            PeerMessage::Consensus(Message::Propose { block, .. }) => block.body().len(),
            PeerMessage::Consensus(Message::Fetched { blocks: Ok(blocks), .. }) => {
                blocks.iter().map(|block| FIELDS + block.body().len()).sum()
            }
            PeerMessage::Consensus(Message::Timeout { faults, .. }) => 8 * faults.len(),
            PeerMessage::Consensus(_) => 0,
            PeerMessage::Forward { command, .. } => command.len(),
            PeerMessage::ForwardReply { result: ForwardResult::Outcome(Outcome::Replied { reply }), .. } => reply.len(),
            PeerMessage::Chunk { bytes, .. } => bytes.as_ref().map_or(0, Bytes::len),
            PeerMessage::Snapshots { kept, .. } => 128 * kept.len(),
            PeerMessage::Remembered(all) => 160 * all.len(),
            PeerMessage::Digests { digests, .. } => 32 * digests.len(),
            PeerMessage::Writes { writes, .. } => writes.as_ref().map_or(0, Bytes::len),
            PeerMessage::ForwardReply { .. }
            | PeerMessage::ReadIndex { .. }
            | PeerMessage::ReadIndexReply { .. }
            | PeerMessage::FetchChunk { .. }
            | PeerMessage::FetchWrites { .. } => 0,
        }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use lockstep_types::{Epoch, Slot};

    use super::*;
    use crate::metrics::Metrics;

    fn message(bytes: usize) -> Outgoing {
        let command = Bytes::from(vec![0; bytes]);
        Outgoing { to: Slot::new(2), epoch: Epoch::FIRST, message: PeerMessage::Forward { id: 1, command } }
    }

    #[tokio::test]
    async fn outbox_without_a_stream_keeps_nothing() {
        let metrics = Metrics::new();
        let outbox = Outbox::new(&metrics);
        outbox.push(message(1));
        let drain = outbox.connect(1).expect("nobody else");
        outbox.push(message(2));
        assert_eq!(drain.next().await.expect("connected").len(), 1);
        assert_eq!(metrics.peer_dropped.get(), 0);
    }

    #[tokio::test]
    async fn outbox_that_is_full_drops_and_counts() {
        let metrics = Metrics::new();
        let outbox = Outbox::new(&metrics);
        let drain = outbox.connect(1).expect("nobody else");
        for _ in 0..60 {
            outbox.push(message(1 << 20));
        }
        assert_eq!(metrics.peer_dropped.get(), 13, "47 of 60 fit into 48 MiB with their fields");
        assert_eq!(drain.next().await.expect("connected").len(), 1, "a frame takes about 1 MiB");
    }

    #[tokio::test]
    async fn outbox_of_a_restarted_peer_is_taken_over_and_ends_the_older_stream() {
        let metrics = Metrics::new();
        let outbox = Outbox::new(&metrics);
        let older = outbox.connect(1).expect("nobody else");
        let newer = outbox.connect(2).expect("a later process of the same replica");
        outbox.push(message(1));
        assert!(older.next().await.is_none());
        drop(older);
        assert_eq!(newer.next().await.expect("still connected").len(), 1);
        assert_eq!(metrics.peers_connected.get(), 1);
        drop(newer);
        assert_eq!(metrics.peers_connected.get(), 0);
    }

    #[tokio::test]
    async fn outbox_of_a_peer_with_two_addresses_is_drained_by_one_stream_only() {
        let metrics = Metrics::new();
        let outbox = Outbox::new(&metrics);
        let first = outbox.connect(1).expect("nobody else");
        assert!(outbox.connect(1).is_none(), "the same process by another address");
        drop(first);
        assert!(outbox.connect(1).is_some());
    }
}
