//! What a request gets from the table, in every situation that PROTOCOL §7 names; random ones are in `model`.

use super::*;
use crate::testing::{Log, close, execute, open, replied, resolve};

const WINDOW: u64 = SESSION_WINDOW;

fn session(height: u64, index: u32) -> SessionId {
    SessionId { height: Height::new(height), index }
}

fn invalid(reason: Invalid) -> Outcome {
    Outcome::Invalid { reason }
}

#[test]
fn open_two_in_one_block_gives_two_ids() {
    // A session is named by height and index of its open: two in one block never share replies (S6).
    let mut log = Log::new();
    let applied = log.block(&[open(1), open(2), execute(session(1, 1), 1, 0, "a"), execute(session(1, 0), 1, 0, "b")]);
    let opened = |index| Outcome::SessionOpened { session: session(1, index) };
    assert_eq!(applied.outcomes, [opened(0), opened(1), replied(0, "a"), replied(1, "b")]);
}

#[test]
fn open_same_nonce_while_live_gives_same_session() {
    // The same nonce opens the same session for as long as it lives, in its own block and later; then a new one.
    let mut log = Log::new();
    let applied = log.block(&[open(1), open(1)]);
    let first = Outcome::SessionOpened { session: session(1, 0) };
    assert_eq!(applied.outcomes, [first.clone(), first.clone()]);
    assert_eq!(log.one(open(1)), first);
    let applied = log.block(&[close(session(1, 0)), open(1)]);
    assert_eq!(applied.outcomes[1], Outcome::SessionOpened { session: session(3, 1) });
    assert_eq!(log.executor.stats().sessions, 1);
}

#[test]
fn execute_again_in_later_block_answers_from_table() {
    // What was executed is answered as then and not executed again, whatever the retry's body says.
    let mut log = Log::new();
    let id = log.open(1);
    let first = log.block(&[execute(id, 1, 0, "a")]);
    assert_eq!((first.executed, first.answered_from_table), (vec![(id, 1)], 0));
    let again = log.block(&[execute(id, 1, 0, "b")]);
    assert_eq!(again.outcomes, [replied(0, "a")]);
    assert_eq!((again.executed, again.answered_from_table), (vec![], 1));
}

#[test]
fn execute_again_in_same_block_executes_once() {
    // The filter sees its own earlier hits (S12d).
    let mut log = Log::new();
    let id = log.open(1);
    let applied = log.block(&[execute(id, 1, 0, "a"), execute(id, 1, 0, "a"), resolve(id, 1), execute(id, 2, 0, "b")]);
    assert_eq!(applied.outcomes, [replied(0, "a"), replied(0, "a"), replied(0, "a"), replied(1, "b")]);
    assert_eq!((applied.executed, applied.answered_from_table), (vec![(id, 1), (id, 2)], 2));
}

#[test]
fn execute_acknowledged_in_same_block_is_answered_and_forgotten() {
    // An acknowledgement takes effect at once, even on a reply that the machine has yet to give.
    let mut log = Log::new();
    let id = log.open(1);
    let applied = log.block(&[execute(id, 1, 0, "a"), execute(id, 2, 1, "b"), execute(id, 1, 0, "a")]);
    assert_eq!(applied.outcomes, [replied(0, "a"), replied(1, "b"), Outcome::AlreadyAcknowledged]);
    assert_eq!(log.executor.stats().reply_bytes, 9);
}

#[test]
fn execute_then_close_in_same_block_is_answered() {
    // A request that was executed is answered, although its session ended in the same block.
    let mut log = Log::new();
    let id = log.open(1);
    let applied = log.block(&[execute(id, 1, 0, "a"), close(id), execute(id, 1, 0, "a")]);
    assert_eq!(applied.outcomes, [replied(0, "a"), Outcome::SessionClosed, Outcome::Evicted]);
    let stats = log.executor.stats();
    assert_eq!((stats.sessions, stats.reply_bytes, stats.executed), (0, 0, 1));
}

#[test]
fn execute_above_next_is_a_gap_and_changes_nothing() {
    // Sequences execute in order; what is ahead is neither executed nor remembered, nor is its acknowledgement.
    let mut log = Log::new();
    let id = log.open(1);
    assert_eq!(log.one(execute(id, 1, 0, "a")), replied(0, "a"));
    assert_eq!(log.one(execute(id, 3, 1, "c")), Outcome::Gap { expected: 2 });
    assert_eq!(log.one(execute(id, 1, 0, "a")), replied(0, "a"));
    assert_eq!(log.one(execute(id, 2, 0, "b")), replied(1, "b"));
    assert_eq!(log.one(execute(id, 3, 1, "c")), replied(2, "c"));
}

#[test]
fn execute_beyond_window_is_refused_until_acknowledged() {
    // A window of sequences may be in flight above what is acknowledged, not one more.
    let mut log = Log::new();
    let id = log.open(1);
    for sequence in 1..=WINDOW {
        assert_eq!(log.one(execute(id, sequence, 0, "a")), replied(sequence - 1, "a"));
    }
    assert_eq!(log.one(execute(id, WINDOW + 1, 0, "b")), Outcome::OverWindow { limit: WINDOW });
    assert_eq!(log.one(execute(id, u64::MAX, 0, "b")), Outcome::OverWindow { limit: WINDOW });
    assert_eq!(log.one(execute(id, 1, 0, "a")), replied(0, "a"));
    assert_eq!(log.one(execute(id, WINDOW + 1, 1, "b")), replied(WINDOW, "b"));
}

#[test]
fn execute_with_absurd_numbers_is_refused() {
    // No number overflows, and nobody acknowledges what was never executed.
    let mut log = Log::new();
    let id = log.open(1);
    assert_eq!(log.one(execute(id, u64::MAX, u64::MAX - 1, "a")), Outcome::OverWindow { limit: WINDOW });
    assert_eq!(log.one(execute(id, 20, 19, "a")), Outcome::Gap { expected: 1 });
    assert_eq!(log.one(resolve(id, u64::MAX)), Outcome::Gap { expected: 1 });
    assert_eq!(log.one(execute(id, 1, 0, "a")), replied(0, "a"));
}

#[test]
fn execute_acknowledged_sequence_is_the_clients_fault() {
    // What the client acknowledged is forgotten; the reply is gone, and it is not executed again.
    let mut log = Log::new();
    let id = log.open(1);
    log.block(&[execute(id, 1, 0, "a"), execute(id, 2, 0, "b"), execute(id, 3, 2, "c")]);
    assert_eq!(log.one(execute(id, 1, 0, "a")), Outcome::AlreadyAcknowledged);
    assert_eq!(log.one(resolve(id, 2)), Outcome::AlreadyAcknowledged);
    assert_eq!(log.one(execute(id, 3, 0, "c")), replied(2, "c"));
    assert_eq!(log.executor.stats().reply_bytes, 9);
}

#[test]
fn execute_retry_with_acknowledgement_prunes() {
    // A retry, too, says what its client has got meanwhile.
    let mut log = Log::new();
    let id = log.open(1);
    log.block(&[execute(id, 1, 0, "a"), execute(id, 2, 0, "b")]);
    assert_eq!(log.executor.stats().reply_bytes, 18);
    assert_eq!(log.one(execute(id, 2, 1, "b")), replied(1, "b"));
    assert_eq!(log.executor.stats().reply_bytes, 9);
}

#[test]
fn sequence_that_makes_no_sense_is_invalid() {
    // Sequences count from 1 and lie above what they acknowledge; anything else changes nothing.
    let mut log = Log::new();
    let id = log.open(1);
    for command in [execute(id, 0, 0, "a"), execute(id, 1, 1, "a"), execute(id, 1, 7, "a"), resolve(id, 0)] {
        assert_eq!(log.one(command), invalid(Invalid::Sequence));
    }
    assert_eq!(log.one(execute(id, 1, 0, "a")), replied(0, "a"));
}

#[test]
fn resolve_executed_gives_its_reply() {
    // Resolve is how to ask again: executed gives the reply.
    let mut log = Log::new();
    let id = log.open(1);
    log.one(execute(id, 1, 0, "a"));
    let applied = log.block(&[resolve(id, 1)]);
    assert_eq!((applied.outcomes, applied.answered_from_table), (vec![replied(0, "a")], 1));
}

#[test]
fn resolve_next_cancels_it_for_good() {
    // A sequence resolved before it came is consumed: a late request never executes, and the next one does (S12b).
    let mut log = Log::new();
    let id = log.open(1);
    let applied = log.block(&[resolve(id, 1), execute(id, 1, 0, "a")]);
    assert_eq!((applied.outcomes, applied.answered_from_table), (vec![Outcome::Cancelled, Outcome::Cancelled], 1));
    assert_eq!(log.one(execute(id, 1, 0, "a")), Outcome::Cancelled);
    assert_eq!(log.one(resolve(id, 1)), Outcome::Cancelled);
    assert_eq!(log.one(execute(id, 2, 0, "b")), replied(0, "b"));
}

#[test]
fn resolve_above_next_is_a_gap() {
    // A sequence whose predecessors are open cannot be consumed: they would never execute.
    let mut log = Log::new();
    let id = log.open(1);
    assert_eq!(log.one(resolve(id, 2)), Outcome::Gap { expected: 1 });
    assert_eq!(log.one(execute(id, 1, 0, "a")), replied(0, "a"));
}

#[test]
fn resolve_beyond_recorded_window_frees_it() {
    // The acknowledgement of a full window may be in the very request that got lost. Its sequence alone says that what
    // lies a window below is acknowledged; refusing the resolve would wedge the session.
    let mut log = Log::new();
    let id = log.open(1);
    for sequence in 1..=WINDOW {
        log.one(execute(id, sequence, 0, "a"));
    }
    assert_eq!(log.one(resolve(id, WINDOW + 1)), Outcome::Cancelled);
    assert_eq!(log.one(execute(id, 1, 0, "a")), Outcome::AlreadyAcknowledged);
    assert_eq!(log.one(execute(id, 2, 0, "a")), replied(1, "a"));
    assert_eq!(log.executor.stats().reply_bytes, 9 * (WINDOW - 1));
}

#[test]
fn close_twice_is_closed() {
    // Closing is idempotent; what was never opened cannot be closed.
    let mut log = Log::new();
    let id = log.open(1);
    assert_eq!(log.one(close(id)), Outcome::SessionClosed);
    assert_eq!(log.one(close(id)), Outcome::SessionClosed);
    assert_eq!(log.one(close(session(9, 0))), invalid(Invalid::UnknownSession));
}

#[test]
fn session_gone_or_never_there_shows_in_its_id() {
    // An id at or below the command's own place is gone for good; one above was never given out (S6).
    let mut log = Log::new();
    let id = log.open(1);
    log.one(close(id));
    assert_eq!(log.one(execute(id, 1, 0, "a")), Outcome::Evicted);
    assert_eq!(log.one(resolve(id, 1)), Outcome::Evicted);
    assert_eq!(log.one(execute(session(5, 0), 1, 0, "a")), Outcome::Evicted);
    assert_eq!(log.one(execute(session(6, 1), 1, 0, "a")), invalid(Invalid::UnknownSession));
    assert_eq!(log.one(resolve(session(8, 0), 1)), invalid(Invalid::UnknownSession));
}

#[test]
fn eviction_over_sessions_takes_least_recently_used() {
    // The session whose last use lies furthest back goes; a retry is a use, a refusal is none.
    let mut log = Log::with_limits(3, 1000);
    let ids = [log.open(1), log.open(2), log.open(3)];
    log.block(&[execute(ids[1], 1, 0, "a"), execute(ids[0], 1, 0, "a"), execute(ids[2], 1, 0, "a")]);
    log.block(&[execute(ids[1], 1, 0, "a"), execute(ids[0], 3, 0, "a")]);
    let applied = log.block(&[open(4)]);
    assert_eq!(applied.evicted, [ids[0]]);
    assert_eq!(log.one(execute(ids[0], 1, 0, "a")), Outcome::Evicted);
    assert_eq!(log.one(execute(ids[2], 1, 0, "a")), replied(2, "a"));
    assert_eq!(log.executor.stats().evictions, 1);
}

#[test]
fn eviction_waits_for_the_end_of_the_block() {
    // A block that goes over the limit still executes for every session that lived when it began (S12d).
    let mut log = Log::with_limits(1, 1000);
    let id = log.open(1);
    let applied = log.block(&[open(2), execute(id, 1, 0, "a"), open(3), execute(session(2, 0), 1, 0, "b")]);
    assert_eq!(applied.outcomes[1], replied(0, "a"));
    assert_eq!(applied.outcomes[3], replied(1, "b"));
    assert_eq!(applied.evicted, [id, session(2, 0)]);
    assert_eq!(log.one(execute(session(2, 2), 1, 0, "c")), replied(2, "c"));
}

#[test]
fn eviction_in_a_storm_of_opens_takes_newcomers_first() {
    // Clients that only ever open push each other out, oldest first, not the clients at work (S12e).
    let mut log = Log::with_limits(8, 1000);
    let ids: Vec<SessionId> = (1..=7).map(|nonce| log.open(nonce)).collect();
    ids.iter().for_each(|id| assert!(matches!(log.one(execute(*id, 1, 0, "a")), Outcome::Replied { .. })));
    let applied = log.block(&(20..60).map(open).collect::<Vec<_>>());
    let height = log.executor.applied().get();
    assert_eq!(applied.evicted, (0..39).map(|index| session(height, index)).collect::<Vec<_>>());
    ids.iter().for_each(|id| assert!(matches!(log.one(execute(*id, 2, 1, "a")), Outcome::Replied { .. })));
}

#[test]
fn eviction_from_a_table_of_the_dead_lets_a_newcomer_in() {
    // A table full of sessions whose clients are gone gives a place to a new client, and time to use it.
    let mut log = Log::with_limits(4, 1000);
    let ids: Vec<SessionId> = (1..=4).map(|nonce| log.open(nonce)).collect();
    ids.iter().for_each(|id| assert!(matches!(log.one(execute(*id, 1, 0, "a")), Outcome::Replied { .. })));
    let applied = log.block(&[open(9)]);
    assert_eq!(applied.evicted, [ids[0]]);
    log.block(&[]);
    assert_eq!(log.one(execute(session(9, 0), 1, 0, "b")), replied(4, "b"));
}

#[test]
fn eviction_over_reply_bytes_takes_least_recently_used() {
    // Cached replies are bounded over all sessions; those without a request hold none and stay.
    let mut log = Log::with_limits(8, 30);
    let ids = [log.open(1), log.open(2), log.open(3)];
    log.block(&[execute(ids[1], 1, 0, "aa"), execute(ids[0], 1, 0, "bb"), execute(ids[0], 2, 0, "cc")]);
    assert_eq!(log.executor.stats().reply_bytes, 30);
    let applied = log.block(&[execute(ids[0], 3, 0, "")]);
    assert_eq!(applied.evicted, []);
    let applied = log.block(&[execute(ids[0], 4, 0, "d")]);
    assert_eq!(applied.evicted, [ids[1]]);
    let stats = log.executor.stats();
    assert_eq!((stats.sessions, stats.reply_bytes), (2, 29));
}

#[test]
fn eviction_of_all_that_is_allowed_is_no_fault() {
    // A service without room for sessions or replies still answers within the block.
    let mut log = Log::with_limits(0, 0);
    let applied = log.block(&[open(1), execute(session(1, 0), 1, 0, "a")]);
    assert_eq!(applied.outcomes[1], replied(0, "a"));
    assert_eq!(applied.evicted, [session(1, 0)]);
    let stats = log.executor.stats();
    assert_eq!((stats.sessions, stats.reply_bytes), (0, 0));
}
