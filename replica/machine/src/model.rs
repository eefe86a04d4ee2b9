//! Random blocks against a naive model that keeps everything, executes one command after the other and forgets nothing.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use lockstep_types::limits::SESSION_WINDOW;
use lockstep_types::{Command, Height, Invalid, Outcome, SessionId};
use proptest::prelude::*;

use crate::executor::Executor;
use crate::testing::{Journal, Log, feed, genesis, journal_reply};

pub(crate) const SESSIONS_MAX: u32 = 5;
pub(crate) const REPLY_BYTES_MAX: u64 = 300;

/// A command before it is known which sessions there are.
#[derive(Clone, Debug)]
pub(crate) enum Draft {
    Open { nonce: u8 },
    Close { session: usize },
    Execute { session: usize, offset: u64, unacknowledged: u64, body: Vec<u8> },
    Resolve { session: usize, offset: u64 },
    Plain { body: Vec<u8> },
    Snapshot,
    Junk(Vec<u8>),
}

/// So many requests of one session, in order, that acknowledge nothing: the way to a full window.
fn burst(session: usize, count: usize) -> Vec<Draft> {
    vec![Draft::Execute { session, offset: 10, unacknowledged: u64::MAX, body: Vec::new() }; count]
}

fn draft() -> impl Strategy<Value = Draft> {
    let body = || proptest::collection::vec(any::<u8>(), 0..20);
    // Counted from the newest session, so that most commands meet a live one.
    let session = || prop_oneof![4 => 0..4usize, 1 => 0..40usize];
    // 10 is the next sequence: mostly that, retries below, gaps above.
    let offset = || prop_oneof![6 => Just(10u64), 3 => 7..12u64, 1 => 0..14u64];
    prop_oneof![
        2 => (0..12u8).prop_map(|nonce| Draft::Open { nonce }),
        1 => session().prop_map(|session| Draft::Close { session }),
        16 => (session(), offset(), prop_oneof![0..4u64, 0..80u64], body()).prop_map(
            |(session, offset, unacknowledged, body)| Draft::Execute { session, offset, unacknowledged, body }
        ),
        4 => (session(), offset()).prop_map(|(session, offset)| Draft::Resolve { session, offset }),
        2 => body().prop_map(|body| Draft::Plain { body }),
        1 => Just(Draft::Snapshot),
        1 => body().prop_map(Draft::Junk),
    ]
}

pub(crate) fn drafts() -> impl Strategy<Value = Vec<Vec<Draft>>> {
    let few = || {
        prop_oneof![
            60 => draft().prop_map(|draft| vec![draft]),
            1 => (0..4usize, 1..80usize).prop_map(|(session, count)| burst(session, count)),
        ]
    };
    let block = proptest::collection::vec(few(), 0..12).prop_map(|drafts| drafts.concat());
    proptest::collection::vec(block, 1..60)
}

/// Every session that ever was.
#[derive(Debug, Default)]
pub(crate) struct Model {
    sessions: BTreeMap<SessionId, ModelSession>,
    /// Requests executed so far, which is what [`Journal`] answers with.
    executed: u64,
}

#[derive(Debug, Default)]
struct ModelSession {
    nonce: u8,
    live: bool,
    /// Of every sequence from 1 on, for ever.
    outcomes: Vec<Outcome>,
    acknowledged: u64,
    last_use: Option<SessionId>,
}

impl ModelSession {
    fn reply_bytes(&self) -> u64 {
        let kept = self.outcomes.iter().skip(self.acknowledged as usize);
        let bytes = |outcome: &Outcome| match outcome {
            Outcome::Replied { reply } => reply.len() as u64,
            _ => 0,
        };
        kept.map(bytes).sum()
    }
}

impl Model {
    /// The commands of the next block, and what they answer.
    pub fn block(&mut self, height: Height, drafts: &[Draft]) -> (Vec<Bytes>, Vec<Outcome>) {
        let mut commands = Vec::new();
        let mut expected = Vec::new();
        for (index, draft) in (0..).zip(drafts) {
            let command = self.command(draft);
            expected.push(self.apply(SessionId { height, index }, command.clone()));
            commands.push(command);
        }
        (commands, expected)
    }

    fn command(&mut self, draft: &Draft) -> Bytes {
        let command = match draft {
            Draft::Open { nonce } => Command::OpenSession { nonce: [*nonce; 16] },
            Draft::Close { session } => Command::CloseSession { session: self.pick(*session) },
            Draft::Execute { session, offset, unacknowledged, body } => {
                let session = self.pick(*session);
                let sequence = self.sequence(session, *offset);
                let acknowledged = sequence.saturating_sub(*unacknowledged);
                Command::Execute { session, sequence, acknowledged, body: body.clone().into() }
            }
            Draft::Resolve { session, offset } => {
                let session = self.pick(*session);
                Command::Resolve { session, sequence: self.sequence(session, *offset) }
            }
            Draft::Plain { body } => Command::Plain { body: body.clone().into() },
            Draft::Snapshot => Command::Snapshot,
            Draft::Junk(bytes) => return bytes.clone().into(),
        };
        command.encode()
    }

    /// The session that many before the newest; one that was never opened if there are not as many.
    fn pick(&self, session: usize) -> SessionId {
        let unknown = SessionId { height: Height::new(1000), index: 0 };
        self.sessions.keys().rev().nth(session).copied().unwrap_or(unknown)
    }

    fn sequence(&self, session: SessionId, offset: u64) -> u64 {
        let last = self.sessions.get(&session).map_or(0, |session| session.outcomes.len() as u64);
        (last + 1 + offset).saturating_sub(10)
    }

    fn apply(&mut self, at: SessionId, command: Bytes) -> Outcome {
        let Ok(command) = Command::decode(command) else {
            return Outcome::Invalid { reason: Invalid::Malformed };
        };
        match command {
            Command::OpenSession { nonce } => {
                let known = self.sessions.iter().find(|(_, session)| session.live && session.nonce == nonce[0]);
                let session = known.map_or(at, |(id, _)| *id);
                self.sessions.entry(session).or_insert(ModelSession {
                    nonce: nonce[0],
                    live: true,
                    ..ModelSession::default()
                });
                Outcome::SessionOpened { session }
            }
            Command::CloseSession { session } => match self.sessions.get_mut(&session) {
                Some(session) => {
                    session.live = false;
                    Outcome::SessionClosed
                }
                None => Outcome::Invalid { reason: Invalid::UnknownSession },
            },
            Command::Execute { session, sequence, acknowledged, body } => {
                if acknowledged >= sequence {
                    return Outcome::Invalid { reason: Invalid::Sequence };
                }
                let Some(known) = self.sessions.get_mut(&session) else {
                    return Outcome::Invalid { reason: Invalid::UnknownSession };
                };
                let last = known.outcomes.len() as u64;
                let claimed = known.acknowledged.max(acknowledged.min(last));
                match sequence {
                    _ if !known.live => Outcome::Evicted,
                    _ if sequence <= known.acknowledged => Outcome::AlreadyAcknowledged,
                    _ if sequence > claimed + SESSION_WINDOW => Outcome::OverWindow { limit: SESSION_WINDOW },
                    _ if sequence > last + 1 => Outcome::Gap { expected: last + 1 },
                    _ => {
                        known.acknowledged = claimed;
                        known.last_use = Some(at);
                        if sequence == last + 1 {
                            known.outcomes.push(execute(&mut self.executed, &body));
                        }
                        known.outcomes[sequence as usize - 1].clone()
                    }
                }
            }
            Command::Resolve { session, sequence } => {
                if sequence == 0 {
                    return Outcome::Invalid { reason: Invalid::Sequence };
                }
                let Some(known) = self.sessions.get_mut(&session) else {
                    return Outcome::Invalid { reason: Invalid::UnknownSession };
                };
                let last = known.outcomes.len() as u64;
                match sequence {
                    _ if !known.live => Outcome::Evicted,
                    _ if sequence <= known.acknowledged => Outcome::AlreadyAcknowledged,
                    _ if sequence > last + 1 => Outcome::Gap { expected: last + 1 },
                    _ => {
                        known.last_use = Some(at);
                        if sequence == last + 1 {
                            known.acknowledged = known.acknowledged.max(sequence.saturating_sub(SESSION_WINDOW));
                            known.outcomes.push(Outcome::Cancelled);
                        }
                        known.outcomes[sequence as usize - 1].clone()
                    }
                }
            }
            Command::Plain { body } => execute(&mut self.executed, &body),
            Command::Snapshot => Outcome::SnapshotPoint { height: at.height },
        }
    }

    /// Ends sessions one by one, looking at all of them each time.
    pub fn evict(&mut self) -> Vec<SessionId> {
        let mut victims = Vec::new();
        loop {
            let live = || self.sessions.iter().filter(|(_, session)| session.live);
            let too_many = live().count() > SESSIONS_MAX as usize;
            let too_large = live().map(|(_, session)| session.reply_bytes()).sum::<u64>() > REPLY_BYTES_MAX;
            let newcomers: Vec<SessionId> =
                live().filter(|(_, session)| session.last_use.is_none()).map(|(id, _)| *id).collect();
            let used = live().filter(|(_, session)| session.last_use.is_some());
            let oldest_used = used.min_by_key(|(_, session)| session.last_use).map(|(id, _)| *id);
            let victim = match (too_many, too_large) {
                (true, _) if newcomers.len() > 1 => newcomers[0],
                (true, _) | (false, true) => oldest_used.unwrap_or_else(|| newcomers[0]),
                (false, false) => return victims,
            };
            self.sessions.get_mut(&victim).expect("a live session").live = false;
            victims.push(victim);
        }
    }
}

fn execute(executed: &mut u64, body: &[u8]) -> Outcome {
    let before = *executed;
    *executed += 1;
    match body.is_empty() {
        true => Outcome::Replied { reply: Bytes::new() },
        false => Outcome::Replied { reply: journal_reply(before, body) },
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    /// Outcomes, evictions and sizes are those of the model; nothing executes twice; a second executor gets to the same
    /// digest at every block.
    #[test]
    fn sessions_under_random_blocks_follow_the_model(drafts in drafts()) {
        let mut model = Model::default();
        let mut log = Log::with_limits(SESSIONS_MAX, REPLY_BYTES_MAX);
        let genesis = genesis(SESSIONS_MAX, REPLY_BYTES_MAX);
        let mut twin = Executor::with_machine(&genesis, std::sync::Arc::new(Journal));
        let mut executed = BTreeSet::new();
        for drafts in drafts {
            let height = log.executor.applied().next();
            let (commands, expected) = model.block(height, &drafts);
            let applied = log.bytes(&commands);
            prop_assert_eq!(&applied.outcomes, &expected);
            prop_assert_eq!(&applied.evicted, &model.evict());
            for request in &applied.executed {
                prop_assert!(executed.insert(*request), "{}/{} executed twice", request.0, request.1);
            }

            let stats = log.executor.stats();
            let live = || model.sessions.values().filter(|session| session.live);
            prop_assert_eq!(stats.sessions, live().count());
            prop_assert_eq!(stats.reply_bytes, live().map(ModelSession::reply_bytes).sum::<u64>());
            prop_assert_eq!(stats.executed, model.executed);

            prop_assert_eq!(feed(&mut twin, log.blocks.last().expect("just applied")), applied);
            prop_assert_eq!(twin.digest(), log.executor.digest());
        }
    }

    /// No bytes that can be in a block make the built-in machine, or anything around it, panic.
    #[test]
    fn executor_fed_junk_answers(blocks in proptest::collection::vec(proptest::collection::vec(junk(), 0..8), 1..8)) {
        let mut log = Log::new();
        log.executor = Executor::new(&genesis(2, 100)).expect("the built-in machine");
        for commands in blocks {
            let applied = log.bytes(&commands);
            prop_assert_eq!(applied.outcomes.len(), commands.len());
        }
    }
}

/// Bytes that decode now and then, in part or in whole.
fn junk() -> impl Strategy<Value = Bytes> {
    let body = proptest::collection::vec(0..6u8, 0..30).prop_map(Bytes::from);
    let small = prop_oneof![0..3u64, Just(u64::MAX)];
    let session = (small.clone(), 0..3u32);
    prop_oneof![
        body.clone(),
        Just(Command::OpenSession { nonce: [1; 16] }.encode()),
        body.clone().prop_map(|body| Command::Plain { body }.encode()),
        (session, small.clone(), small, body).prop_map(|((height, index), sequence, acknowledged, body)| {
            let session = SessionId { height: Height::new(height), index };
            Command::Execute { session, sequence, acknowledged, body }.encode()
        }),
    ]
}
