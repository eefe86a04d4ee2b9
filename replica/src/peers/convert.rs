//! [`PeerMessage`] ↔ [`v1::PeerMessage`]. What comes off the wire is checked here once; it may still be a lie.

use bytes::{Bytes, BytesMut};
use lockstep_consensus::{FetchRefusal, Message};
use lockstep_engine::engine::Outgoing;
use lockstep_engine::witness::{Mark, Remembered};
use lockstep_engine::{Claim, ForwardResult, PeerMessage};
use lockstep_types::{Block, Epoch, Height, Outcome, ReplicaId, SnapshotRef};
use lockstep_wire::WireError;
use lockstep_wire::convert::{block_ref, digest, digest_bytes, id_bytes, replica_id, view};
use lockstep_wire::v1::{self, forward_reply, peer_message};

/// Replicas in one message of what is remembered: far more than a service has.
const REMEMBERED_MAX: usize = 256;

/// A message for the wire.
pub(crate) fn encode(outgoing: Outgoing) -> v1::PeerMessage {
    let message = match outgoing.message {
        PeerMessage::Consensus(message) => encode_consensus(message),
        PeerMessage::Forward { id, command } => peer_message::Message::Forward(v1::Forward { id, command }),
        PeerMessage::ForwardReply { id, result } => {
            peer_message::Message::ForwardReply(v1::ForwardReply { id, result: Some(encode_result(result)) })
        }
        PeerMessage::ReadIndex { id } => peer_message::Message::ReadIndex(v1::ReadIndex { id }),
        PeerMessage::ReadIndexReply { id, height } => {
            peer_message::Message::ReadIndexReply(v1::ReadIndexReply { id, height: height.map(Height::get) })
        }
        PeerMessage::Remembered(all) => {
            let replicas = all.into_iter().map(encode_remembered).collect();
            peer_message::Message::Remembered(v1::Remembered { replicas })
        }
        PeerMessage::Snapshots { kept, asks } => {
            let kept = kept.into_iter().map(encode_snapshot).collect();
            peer_message::Message::Snapshots(v1::Snapshots { kept, asks })
        }
        PeerMessage::FetchChunk { digest } => {
            peer_message::Message::FetchChunk(v1::FetchChunk { digest: digest_bytes(&digest) })
        }
        PeerMessage::Chunk { digest, bytes } => {
            peer_message::Message::Chunk(v1::Chunk { digest: digest_bytes(&digest), bytes })
        }
        PeerMessage::Digests { round, first, digests, have: (have_round, have) } => {
            let mut bytes = BytesMut::with_capacity(32 * digests.len());
            digests.iter().for_each(|digest| bytes.extend_from_slice(digest.as_bytes()));
            peer_message::Message::Digests(v1::Digests {
                round,
                first: first.get(),
                digests: bytes.freeze(),
                have_round,
                have: have.get(),
            })
        }
        PeerMessage::FetchWrites { height } => {
            peer_message::Message::FetchWrites(v1::FetchWrites { height: height.get() })
        }
        PeerMessage::Writes { height, writes } => {
            peer_message::Message::Writes(v1::Writes { height: height.get(), writes })
        }
    };
    v1::PeerMessage { epoch: outgoing.epoch.get(), message: Some(message) }
}

fn encode_consensus(message: Message) -> peer_message::Message {
    match message {
        Message::Propose { view, block, committed } => peer_message::Message::Propose(v1::Propose {
            view: Some(view.into()),
            block: encode_block(&block),
            committed: Some(committed.into()),
        }),
        Message::Heartbeat { view, round, head, committed, acknowledged } => {
            peer_message::Message::Heartbeat(v1::Heartbeat {
                view: Some(view.into()),
                round,
                head: Some(head.into()),
                committed: Some(committed.into()),
                acknowledged: acknowledged.get(),
            })
        }
        Message::HeartbeatReply { view, round } => {
            peer_message::Message::HeartbeatReply(v1::HeartbeatReply { view: Some(view.into()), round })
        }
        Message::Ack { view, height, hash, applied, digest } => peer_message::Message::Ack(v1::Ack {
            view: Some(view.into()),
            height: height.get(),
            hash: digest_bytes(&hash),
            applied: applied.get(),
            digest: digest_bytes(&digest),
        }),
        Message::PreCheck { view } => {
            peer_message::Message::PreCheck(v1::PreCheck { view: Some(view.into()), head: None })
        }
        Message::PreCheckReply { view, would_leave, current, head, committed } => {
            peer_message::Message::PreCheckReply(v1::PreCheckReply {
                view: Some(view.into()),
                would_leave,
                current: Some(current.into()),
                head: Some(head.into()),
                committed: Some(committed.into()),
            })
        }
        Message::HandOver { view, next } => {
            peer_message::Message::HandOver(v1::HandOver { view: Some(view.into()), next: Some(next.into()) })
        }
        Message::Timeout { view, rank, faults } => peer_message::Message::Timeout(v1::Timeout {
            view: Some(view.into()),
            rank: Some(rank.into()),
            faults: faults.into_iter().map(Height::get).collect(),
        }),
        Message::Fetch { after, anchor, tip } => peer_message::Message::Fetch(v1::Fetch {
            after: after.get(),
            anchor: digest_bytes(&anchor),
            tip: Some(tip.into()),
        }),
        Message::Fetched { after, blocks, committed } => {
            let (blocks, refusal, snapshot) = match blocks {
                Ok(blocks) => (blocks.iter().map(encode_block).collect(), v1::FetchRefusal::FetchOk, None),
                Err(FetchRefusal::Diverged) => (Vec::new(), v1::FetchRefusal::FetchDiverged, None),
                Err(FetchRefusal::Nothing) => (Vec::new(), v1::FetchRefusal::FetchNothing, None),
                Err(FetchRefusal::Forgotten { snapshot }) => {
                    (Vec::new(), v1::FetchRefusal::FetchForgotten, Some(encode_snapshot(snapshot)))
                }
            };
            peer_message::Message::Fetched(v1::Fetched {
                after: after.get(),
                blocks,
                committed: Some(committed.into()),
                refusal: refusal.into(),
                snapshot,
            })
        }
    }
}

pub(crate) fn encode_mark(mark: Mark) -> v1::Mark {
    let (view, height) = mark.rank;
    v1::Mark { view: Some(view.into()), height: height.get(), promised: Some(mark.promised.into()) }
}

pub(crate) fn decode_mark(field: &'static str, mark: Option<v1::Mark>) -> Result<Mark, WireError> {
    let mark = mark.ok_or(WireError::Missing { field })?;
    let rank = (view(field, mark.view)?, Height::new(mark.height));
    Ok(Mark { rank, promised: view(field, mark.promised)? })
}

fn encode_remembered((replica, known): (ReplicaId, Remembered)) -> v1::RememberedReplica {
    let Remembered { claim: Claim { boot, start, holds }, heard, forgot } = known;
    v1::RememberedReplica {
        replica_id: id_bytes(replica.as_bytes()),
        boot,
        start,
        held: Some(encode_mark(holds)),
        heard: Some(encode_mark(heard)),
        forgot,
    }
}

fn decode_remembered(known: v1::RememberedReplica) -> Result<(ReplicaId, Remembered), WireError> {
    let holds = decode_mark("remembered.held", known.held)?;
    let claim = Claim { boot: known.boot, start: known.start, holds };
    let heard = decode_mark("remembered.heard", known.heard)?;
    let replica = replica_id("remembered.replica_id", &known.replica_id)?;
    Ok((replica, Remembered { claim, heard, forgot: known.forgot }))
}

fn encode_snapshot(snapshot: SnapshotRef) -> v1::SnapshotRef {
    v1::SnapshotRef { block: Some(snapshot.block.into()), manifest: digest_bytes(&snapshot.manifest) }
}

fn decode_snapshot(snapshot: Option<v1::SnapshotRef>) -> Result<SnapshotRef, WireError> {
    let snapshot = snapshot.ok_or(WireError::Missing { field: "snapshot" })?;
    let block = block_ref("snapshot.block", snapshot.block)?;
    Ok(SnapshotRef { block, manifest: digest("snapshot.manifest", &snapshot.manifest)? })
}

fn encode_block(block: &Block) -> Bytes {
    let parts = block.encode_parts();
    let mut bytes = BytesMut::with_capacity(parts.iter().map(Bytes::len).sum());
    parts.iter().for_each(|part| bytes.extend_from_slice(part));
    bytes.freeze()
}

fn encode_result(result: ForwardResult) -> forward_reply::Result {
    match result {
        ForwardResult::Outcome(outcome) => forward_reply::Result::Outcome(Bytes::from(outcome.encode())),
        ForwardResult::NotLeader => refusal(false),
        ForwardResult::Overloaded => refusal(true),
    }
}

fn refusal(overloaded: bool) -> forward_reply::Result {
    forward_reply::Result::Refusal(v1::ForwardRefusal { never_proposed: true, overloaded })
}

/// A message off the wire.
///
/// # Errors
/// A field is missing, has the wrong length, or holds canonical bytes that do not decode.
pub(crate) fn decode(message: v1::PeerMessage) -> Result<(Epoch, PeerMessage), WireError> {
    let epoch = Epoch::new(message.epoch);
    let message = message.message.ok_or(WireError::Missing { field: "message" })?;
    Ok((epoch, decode_message(message)?))
}

fn decode_message(message: peer_message::Message) -> Result<PeerMessage, WireError> {
    Ok(PeerMessage::Consensus(match message {
        peer_message::Message::Propose(propose) => Message::Propose {
            view: view("propose.view", propose.view)?,
            block: decode_block("propose.block", propose.block)?,
            committed: block_ref("propose.committed", propose.committed)?,
        },
        peer_message::Message::Heartbeat(heartbeat) => Message::Heartbeat {
            view: view("heartbeat.view", heartbeat.view)?,
            round: heartbeat.round,
            head: block_ref("heartbeat.head", heartbeat.head)?,
            committed: block_ref("heartbeat.committed", heartbeat.committed)?,
            acknowledged: Height::new(heartbeat.acknowledged),
        },
        peer_message::Message::HeartbeatReply(reply) => {
            Message::HeartbeatReply { view: view("heartbeat_reply.view", reply.view)?, round: reply.round }
        }
        peer_message::Message::Ack(ack) => Message::Ack {
            view: view("ack.view", ack.view)?,
            height: Height::new(ack.height),
            hash: digest("ack.hash", &ack.hash)?,
            applied: Height::new(ack.applied),
            digest: digest("ack.digest", &ack.digest)?,
        },
        peer_message::Message::PreCheck(check) => Message::PreCheck { view: view("pre_check.view", check.view)? },
        peer_message::Message::PreCheckReply(reply) => Message::PreCheckReply {
            view: view("pre_check_reply.view", reply.view)?,
            would_leave: reply.would_leave,
            current: view("pre_check_reply.current", reply.current)?,
            head: block_ref("pre_check_reply.head", reply.head)?,
            committed: block_ref("pre_check_reply.committed", reply.committed)?,
        },
        peer_message::Message::HandOver(hand_over) => Message::HandOver {
            view: view("hand_over.view", hand_over.view)?,
            next: view("hand_over.next", hand_over.next)?,
        },
        peer_message::Message::Timeout(timeout) => Message::Timeout {
            view: view("timeout.view", timeout.view)?,
            rank: block_ref("timeout.rank", timeout.rank)?,
            faults: timeout.faults.into_iter().map(Height::new).collect(),
        },
        peer_message::Message::Fetch(fetch) => Message::Fetch {
            after: Height::new(fetch.after),
            anchor: digest("fetch.anchor", &fetch.anchor)?,
            tip: block_ref("fetch.tip", fetch.tip)?,
        },
        peer_message::Message::Fetched(fetched) => decode_fetched(fetched)?,
        peer_message::Message::Forward(forward) => {
            return Ok(PeerMessage::Forward { id: forward.id, command: forward.command });
        }
        peer_message::Message::ForwardReply(reply) => {
            return Ok(PeerMessage::ForwardReply { id: reply.id, result: decode_result(reply.result)? });
        }
        peer_message::Message::ReadIndex(read) => return Ok(PeerMessage::ReadIndex { id: read.id }),
        peer_message::Message::ReadIndexReply(reply) => {
            return Ok(PeerMessage::ReadIndexReply { id: reply.id, height: reply.height.map(Height::new) });
        }
        peer_message::Message::Remembered(remembered) => {
            let limit = REMEMBERED_MAX;
            let actual = remembered.replicas.len();
            if actual > limit {
                return Err(WireError::TooMany { field: "replicas remembered", limit, actual });
            }
            let all = remembered.replicas.into_iter().map(decode_remembered).collect::<Result<_, _>>()?;
            return Ok(PeerMessage::Remembered(all));
        }
        peer_message::Message::Snapshots(snapshots) => {
            let kept = snapshots.kept.into_iter().map(|kept| decode_snapshot(Some(kept))).collect::<Result<_, _>>()?;
            return Ok(PeerMessage::Snapshots { kept, asks: snapshots.asks });
        }
        peer_message::Message::FetchChunk(fetch) => {
            return Ok(PeerMessage::FetchChunk { digest: digest("fetch_chunk.digest", &fetch.digest)? });
        }
        peer_message::Message::Chunk(chunk) => {
            return Ok(PeerMessage::Chunk { digest: digest("chunk.digest", &chunk.digest)?, bytes: chunk.bytes });
        }
        peer_message::Message::Digests(said) => {
            let each = said.digests.chunks(32).map(|bytes| digest("digests.digests", bytes));
            return Ok(PeerMessage::Digests {
                round: said.round,
                first: Height::new(said.first),
                digests: each.collect::<Result<_, _>>()?,
                have: (said.have_round, Height::new(said.have)),
            });
        }
        peer_message::Message::FetchWrites(fetch) => {
            return Ok(PeerMessage::FetchWrites { height: Height::new(fetch.height) });
        }
        peer_message::Message::Writes(said) => {
            return Ok(PeerMessage::Writes { height: Height::new(said.height), writes: said.writes });
        }
    }))
}

fn decode_fetched(fetched: v1::Fetched) -> Result<Message, WireError> {
    let unknown = WireError::Unknown { field: "fetched.refusal", value: fetched.refusal };
    let blocks = match v1::FetchRefusal::try_from(fetched.refusal).map_err(|_| unknown)? {
        v1::FetchRefusal::FetchOk => Ok(fetched
            .blocks
            .into_iter()
            .map(|block| decode_block("fetched.blocks", block))
            .collect::<Result<_, _>>()?),
        v1::FetchRefusal::FetchDiverged => Err(FetchRefusal::Diverged),
        v1::FetchRefusal::FetchNothing => Err(FetchRefusal::Nothing),
        v1::FetchRefusal::FetchForgotten => {
            Err(FetchRefusal::Forgotten { snapshot: decode_snapshot(fetched.snapshot)? })
        }
    };
    let committed = block_ref("fetched.committed", fetched.committed)?;
    Ok(Message::Fetched { after: Height::new(fetched.after), blocks, committed })
}

fn decode_block(field: &'static str, bytes: Bytes) -> Result<Block, WireError> {
    Block::decode(bytes).map_err(|error| WireError::Decode { field, error })
}

fn decode_result(result: Option<forward_reply::Result>) -> Result<ForwardResult, WireError> {
    match result {
        None => Err(WireError::Missing { field: "forward_reply.result" }),
        Some(forward_reply::Result::Outcome(outcome)) => Outcome::decode(outcome)
            .map(ForwardResult::Outcome)
            .map_err(|error| WireError::Decode { field: "forward_reply.outcome", error }),
        Some(forward_reply::Result::Refusal(refusal)) if refusal.overloaded => Ok(ForwardResult::Overloaded),
        Some(forward_reply::Result::Refusal(_)) => Ok(ForwardResult::NotLeader),
    }
}

#[cfg(test)]
mod tests {
    use lockstep_types::block::encode_body;
    use lockstep_types::{BlockHeader, BlockRef, Digest, LogTime, ServiceId, SessionId, Slot, View};
    use proptest::collection::vec;
    use proptest::prelude::*;
    use prost::Message as _;

    use super::*;

    prop_compose! {
        fn any_view()(round: u64, slot: u32) -> View {
            View::new(round, Slot::new(slot))
        }
    }

    prop_compose! {
        fn any_digest()(bytes: [u8; 32]) -> Digest {
            Digest::from_bytes(bytes)
        }
    }

    prop_compose! {
        fn any_ref()(view in any_view(), height: u64, hash in any_digest()) -> BlockRef {
            BlockRef { view, height: Height::new(height), hash }
        }
    }

    prop_compose! {
        fn any_snapshot()(block in any_ref(), manifest in any_digest()) -> SnapshotRef {
            SnapshotRef { block, manifest }
        }
    }

    fn any_bytes() -> impl Strategy<Value = Bytes> {
        vec(any::<u8>(), 0..64).prop_map(Bytes::from)
    }

    prop_compose! {
        fn any_block()(
            service: [u8; 16],
            epoch: u64,
            view in any_view(),
            height: u64,
            parent in any_digest(),
            time: u64,
            commands in vec(any_bytes(), 0..4),
        ) -> Block {
            let header = BlockHeader {
                service: ServiceId::from_bytes(service),
                epoch: Epoch::new(epoch),
                view,
                height: Height::new(height),
                parent,
                body: Digest::ZERO,
                log_time: LogTime::from_millis(time),
                change: None,
            };
            Block::new(header, encode_body(&commands))
        }
    }

    fn any_consensus() -> impl Strategy<Value = Message> {
        let height = || any::<u64>().prop_map(Height::new);
        let blocks = prop_oneof![
            vec(any_block(), 0..3).prop_map(Ok),
            Just(Err(FetchRefusal::Diverged)),
            Just(Err(FetchRefusal::Nothing)),
            any_snapshot().prop_map(|snapshot| Err(FetchRefusal::Forgotten { snapshot })),
        ];
        prop_oneof![
            (any_view(), any_block(), any_ref()).prop_map(|(view, block, committed)| Message::Propose {
                view,
                block,
                committed
            }),
            (any_view(), any::<u64>(), any_ref(), any_ref(), height()).prop_map(
                |(view, round, head, committed, acknowledged)| Message::Heartbeat {
                    view,
                    round,
                    head,
                    committed,
                    acknowledged
                }
            ),
            (any_view(), any::<u64>()).prop_map(|(view, round)| Message::HeartbeatReply { view, round }),
            (any_view(), height(), any_digest(), height(), any_digest())
                .prop_map(|(view, height, hash, applied, digest)| Message::Ack { view, height, hash, applied, digest }),
            any_view().prop_map(|view| Message::PreCheck { view }),
            (any_view(), any::<bool>(), any_view(), any_ref(), any_ref()).prop_map(
                |(view, would_leave, current, head, committed)| Message::PreCheckReply {
                    view,
                    would_leave,
                    current,
                    head,
                    committed
                }
            ),
            (any_view(), any_view()).prop_map(|(view, next)| Message::HandOver { view, next }),
            (any_view(), any_ref(), vec(height(), 0..4)).prop_map(|(view, rank, faults)| Message::Timeout {
                view,
                rank,
                faults
            }),
            (height(), any_digest(), any_ref()).prop_map(|(after, anchor, tip)| Message::Fetch { after, anchor, tip }),
            (height(), blocks, any_ref()).prop_map(|(after, blocks, committed)| Message::Fetched {
                after,
                blocks,
                committed
            }),
        ]
    }

    fn any_result() -> impl Strategy<Value = ForwardResult> {
        let session =
            (any::<u64>(), any::<u32>()).prop_map(|(height, index)| SessionId { height: Height::new(height), index });
        prop_oneof![
            any_bytes().prop_map(|reply| ForwardResult::Outcome(Outcome::Replied { reply })),
            session.prop_map(|session| ForwardResult::Outcome(Outcome::SessionOpened { session })),
            any::<u64>().prop_map(|expected| ForwardResult::Outcome(Outcome::Gap { expected })),
            Just(ForwardResult::Outcome(Outcome::Evicted)),
            Just(ForwardResult::NotLeader),
            Just(ForwardResult::Overloaded),
        ]
    }

    fn any_remembered() -> impl Strategy<Value = (ReplicaId, Remembered)> {
        let mark = || {
            (any_view(), any::<u64>(), any_view())
                .prop_map(|(view, height, promised)| Mark { rank: (view, Height::new(height)), promised })
        };
        (any::<[u8; 16]>(), any::<u64>(), any::<u64>(), mark(), mark(), any::<bool>()).prop_map(
            |(replica, boot, start, holds, heard, forgot)| {
                let claim = Claim { boot, start, holds };
                (ReplicaId::from_bytes(replica), Remembered { claim, heard, forgot })
            },
        )
    }

    fn any_message() -> impl Strategy<Value = PeerMessage> {
        prop_oneof![
            10 => any_consensus().prop_map(PeerMessage::Consensus),
            1 => (any::<u64>(), any_bytes()).prop_map(|(id, command)| PeerMessage::Forward { id, command }),
            2 => (any::<u64>(), any_result()).prop_map(|(id, result)| PeerMessage::ForwardReply { id, result }),
            1 => any::<u64>().prop_map(|id| PeerMessage::ReadIndex { id }),
            1 => (any::<u64>(), any::<Option<u64>>())
                .prop_map(|(id, height)| PeerMessage::ReadIndexReply { id, height: height.map(Height::new) }),
            1 => (vec(any_snapshot(), 0..4), any::<bool>()).prop_map(|(kept, asks)| PeerMessage::Snapshots { kept, asks }),
            1 => vec(any_remembered(), 0..4).prop_map(PeerMessage::Remembered),
            1 => any_digest().prop_map(|digest| PeerMessage::FetchChunk { digest }),
            1 => (any_digest(), proptest::option::of(any_bytes()))
                .prop_map(|(digest, bytes)| PeerMessage::Chunk { digest, bytes }),
            1 => (any::<u64>(), any::<u64>(), vec(any_digest(), 0..4), any::<(u64, u64)>()).prop_map(
                |(round, first, digests, (of, have))| PeerMessage::Digests {
                    round,
                    first: Height::new(first),
                    digests,
                    have: (of, Height::new(have)),
                }
            ),
            1 => any::<u64>().prop_map(|height| PeerMessage::FetchWrites { height: Height::new(height) }),
            1 => (any::<u64>(), proptest::option::of(any_bytes()))
                .prop_map(|(height, writes)| PeerMessage::Writes { height: Height::new(height), writes }),
        ]
    }

    proptest! {
        #[test]
        fn message_over_the_wire_is_the_same(epoch: u64, message in any_message()) {
            let epoch = Epoch::new(epoch);
            let outgoing = Outgoing { to: Slot::new(2), epoch, message: message.clone() };
            let bytes = encode(outgoing).encode_to_vec();
            let received = v1::PeerMessage::decode(&bytes[..]).expect("just encoded");
            prop_assert_eq!(decode(received), Ok((epoch, message)));
        }

        #[test]
        fn garbage_off_the_wire_never_panics(bytes in vec(any::<u8>(), 0..256)) {
            if let Ok(message) = v1::PeerMessage::decode(&bytes[..]) {
                let _ = decode(message);
            }
        }

        #[test]
        fn damaged_message_off_the_wire_never_panics(message in any_message(), at: prop::sample::Index, byte: u8) {
            let outgoing = Outgoing { to: Slot::new(2), epoch: Epoch::FIRST, message };
            let mut bytes = encode(outgoing).encode_to_vec();
            let at = at.index(bytes.len());
            bytes[at] = byte;
            if let Ok(message) = v1::PeerMessage::decode(&bytes[..]) {
                let _ = decode(message);
            }
        }
    }
}
