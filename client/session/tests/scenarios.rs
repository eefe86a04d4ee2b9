//! One situation each, step by step.

use bytes::Bytes;
use lockstep_session::{
    Action, Answer, AttemptId, Doubt, Input, Operation, Options, Outcome, Refusal, RefusalKind, Rejection, Session,
    Target, Ticket,
};
use lockstep_types::limits::SESSION_WINDOW;
use lockstep_types::{Command, Height, Outcome as LogOutcome, SessionId};

const ID: SessionId = SessionId { height: Height::new(7), index: 1 };
const DEADLINE: u64 = 10_000_000;

struct Sent {
    target: u32,
    id: AttemptId,
    operation: Operation,
}

/// A session and what it did since the last look.
struct Bench {
    session: Session,
    now: u64,
    sent: Vec<Sent>,
    completed: Vec<(u64, Outcome)>,
    closed: bool,
}

impl Bench {
    fn new(targets: u32) -> Self {
        let session = Session::new(Options::new([9; 16]));
        let mut bench = Bench { session, now: 1, sent: vec![], completed: vec![], closed: false };
        bench.step(Input::Targets((0..targets).map(Target).collect()));
        bench
    }

    /// A bench whose session is open.
    fn open(targets: u32) -> Self {
        let mut bench = Bench::new(targets);
        bench.submit(0);
        let open = bench.sent.pop().unwrap();
        bench.answer(&open, LogOutcome::SessionOpened { session: ID });
        let first = bench.sent.pop().unwrap();
        bench.reply(&first);
        bench.completed.clear();
        bench
    }

    fn step(&mut self, input: Input) {
        for action in self.session.step(self.now, input) {
            match action {
                Action::Send { target, id, operation, .. } => self.sent.push(Sent { target: target.0, id, operation }),
                Action::Complete { ticket, outcome } => self.completed.push((ticket.0, outcome)),
                Action::WakeAt(_) => {}
                Action::Closed => self.closed = true,
            }
        }
    }

    fn submit(&mut self, ticket: u64) {
        self.step(Input::Submit { ticket: Ticket(ticket), body: Bytes::from(ticket.to_string()), deadline: DEADLINE });
    }

    fn answer(&mut self, sent: &Sent, outcome: LogOutcome) {
        self.step(Input::Answered { id: sent.id, answer: Answer::Outcome(outcome) });
    }

    fn reply(&mut self, sent: &Sent) {
        self.answer(sent, LogOutcome::Replied { reply: Bytes::from_static(b"done") });
    }

    fn refuse(&mut self, sent: &Sent, kind: RefusalKind, never_proposed: bool, leader: Option<u32>) {
        let refusal = Refusal { kind, never_proposed, leader: leader.map(Target) };
        self.step(Input::Answered { id: sent.id, answer: Answer::Refused(refusal) });
    }

    fn wait(&mut self, micros: u64) {
        self.now += micros;
        self.step(Input::Tick);
    }

    fn take(&mut self) -> Vec<Sent> {
        std::mem::take(&mut self.sent)
    }

    fn outcomes(&mut self) -> Vec<(u64, Outcome)> {
        std::mem::take(&mut self.completed)
    }
}

/// Sequences of these attempts, with an `r` before a resolve.
fn sequences(sent: &[Sent]) -> String {
    let names: Vec<String> = sent
        .iter()
        .map(|sent| match &sent.operation {
            Operation::Command(Command::Execute { sequence, .. }) => sequence.to_string(),
            Operation::Command(Command::Resolve { sequence, .. }) => format!("r{sequence}"),
            Operation::Command(Command::OpenSession { .. }) => "open".to_owned(),
            Operation::Command(Command::CloseSession { .. }) => "close".to_owned(),
            Operation::Command(Command::Plain { .. }) => "plain".to_owned(),
            Operation::Command(Command::Snapshot) => "snapshot".to_owned(),
            Operation::Read { .. } => "read".to_owned(),
        })
        .collect();
    names.join(" ")
}

fn nonce(sent: &Sent) -> [u8; 16] {
    match sent.operation {
        Operation::Command(Command::OpenSession { nonce }) => nonce,
        _ => panic!("not an open"),
    }
}

fn unknown(ticket: u64, reason: Doubt) -> (u64, Outcome) {
    (ticket, Outcome::Unknown { reason })
}

fn rejected(ticket: u64, reason: Rejection) -> (u64, Outcome) {
    (ticket, Outcome::Rejected { reason })
}

fn committed(ticket: u64) -> (u64, Outcome) {
    (ticket, Outcome::Committed { reply: Bytes::from_static(b"done") })
}

#[test]
fn session_reads_only_is_never_opened() {
    let mut bench = Bench::new(3);
    bench.step(Input::SubmitRead { ticket: Ticket(1), body: Bytes::new(), deadline: DEADLINE });
    let sent = bench.take();
    assert_eq!(sequences(&sent), "read");
    bench.reply(&sent[0]);
    assert_eq!(bench.outcomes(), [committed(1)]);
}

#[test]
fn session_open_refused_asks_again_with_the_same_nonce() {
    let mut bench = Bench::new(3);
    bench.submit(1);
    let first = bench.take();
    bench.refuse(&first[0], RefusalKind::Unavailable, false, None);
    bench.wait(20_000);
    let second = bench.take();
    assert_eq!(nonce(&first[0]), nonce(&second[0]));
    assert_ne!(first[0].target, second[0].target);
}

#[test]
fn session_disconnected_sends_all_again_in_sequence_order() {
    let mut bench = Bench::open(3);
    (1..=5).for_each(|ticket| bench.submit(ticket));
    let sent = bench.take();
    assert_eq!(sequences(&sent), "2 3 4 5 6");
    bench.reply(&sent[2]);
    bench.step(Input::Disconnected { target: Target(sent[0].target), unsent: vec![] });
    let again = bench.take();
    assert_eq!(sequences(&again), "2 3 5 6");
    assert!(again.iter().all(|attempt| attempt.target != sent[0].target));
}

#[test]
fn session_answer_to_an_abandoned_attempt_counts() {
    let mut bench = Bench::open(3);
    bench.submit(1);
    let sent = bench.take();
    bench.wait(1_100_000);
    assert_eq!(sequences(&bench.take()), "2");
    bench.reply(&sent[0]);
    assert_eq!(bench.outcomes(), [committed(1)]);
}

#[test]
fn session_leader_hint_is_followed_at_once_and_circles_are_not() {
    let mut bench = Bench::open(3);
    bench.submit(1);
    let sent = bench.take();
    let leader = (sent[0].target + 1) % 3;
    bench.refuse(&sent[0], RefusalKind::Unavailable, true, Some(leader));
    let again = bench.take();
    assert_eq!((again.len(), again[0].target), (1, leader));
    bench.refuse(&again[0], RefusalKind::Unavailable, true, Some(sent[0].target));
    assert_eq!(sequences(&bench.take()), "", "the second hint in a row waits");
    bench.wait(20_000);
    let third = bench.take();
    assert_eq!((third.len(), third[0].target), (1, sent[0].target));
}

#[test]
fn session_hint_to_a_target_that_just_failed_is_ignored() {
    let mut bench = Bench::open(3);
    bench.submit(1);
    let sent = bench.take();
    bench.step(Input::Disconnected { target: Target(sent[0].target), unsent: vec![] });
    let second = bench.take();
    bench.refuse(&second[0], RefusalKind::Unavailable, true, Some(sent[0].target));
    bench.wait(1_000_000);
    assert!(bench.take().iter().all(|attempt| attempt.target != sent[0].target));
}

#[test]
fn session_gap_sends_again_from_the_missing_sequence_in_order() {
    let mut bench = Bench::open(1);
    (1..=3).for_each(|ticket| bench.submit(ticket));
    let sent = bench.take();
    bench.refuse(&sent[0], RefusalKind::Overloaded, true, None);
    bench.answer(&sent[1], LogOutcome::Gap { expected: 2 });
    bench.answer(&sent[2], LogOutcome::Gap { expected: 2 });
    bench.wait(20_000);
    assert_eq!(sequences(&bench.take()), "2 3 4");
}

#[test]
fn session_gap_below_what_was_acknowledged_opens_another_session() {
    let mut bench = Bench::open(1);
    bench.submit(1);
    let sent = bench.take();
    bench.answer(&sent[0], LogOutcome::Gap { expected: 1 });
    assert_eq!(bench.outcomes(), [unknown(1, Doubt::Evicted)]);
    assert_eq!(bench.session.id(), None);
}

#[test]
fn session_window_full_holds_back_the_rest() {
    let mut bench = Bench::open(1);
    (1..=100).for_each(|ticket| bench.submit(ticket));
    let sent = bench.take();
    assert_eq!(sent.len() as u64, SESSION_WINDOW - 1);
    bench.reply(&sent[1]);
    assert_eq!(sequences(&bench.take()), "", "the first is not acknowledged");
    bench.reply(&sent[0]);
    assert_eq!(bench.take().len(), 2);
}

#[test]
fn request_never_sent_is_rejected_at_its_deadline() {
    let mut bench = Bench::new(0);
    bench.submit(1);
    bench.wait(DEADLINE);
    assert_eq!(bench.outcomes(), [rejected(1, Rejection::NeverProposed)]);
}

#[test]
fn request_refused_as_never_proposed_is_rejected_and_its_sequence_consumed() {
    let mut bench = Bench::open(1);
    bench.submit(1);
    let sent = bench.take();
    bench.refuse(&sent[0], RefusalKind::Overloaded, true, None);
    bench.now = DEADLINE;
    bench.step(Input::Tick);
    assert_eq!(bench.outcomes(), [rejected(1, Rejection::NeverProposed)]);
    assert_eq!(sequences(&bench.take()), "r2");
}

#[test]
fn request_refused_without_a_promise_is_unknown_then_resolved() {
    let mut bench = Bench::open(1);
    bench.submit(1);
    let sent = bench.take();
    bench.refuse(&sent[0], RefusalKind::Overloaded, false, None);
    bench.now = DEADLINE;
    bench.step(Input::Tick);
    assert_eq!(bench.outcomes(), [unknown(1, Doubt::Unconfirmed)]);
    let resolve = bench.take();
    assert_eq!(sequences(&resolve), "r2");

    bench.step(Input::Resolve { ticket: Ticket(1), deadline: DEADLINE + 1_000 });
    bench.wait(2_000);
    assert_eq!(bench.outcomes(), [unknown(1, Doubt::Unconfirmed)], "no answer yet");

    bench.step(Input::Resolve { ticket: Ticket(1), deadline: bench.now + 1_000 });
    bench.answer(&resolve[0], LogOutcome::Cancelled);
    assert_eq!(bench.outcomes(), [rejected(1, Rejection::Cancelled)]);
    bench.step(Input::Resolve { ticket: Ticket(1), deadline: bench.now + 1_000 });
    assert_eq!(bench.outcomes(), [rejected(1, Rejection::Cancelled)], "it is remembered");
    bench.step(Input::Forget { ticket: Ticket(1) });
    bench.step(Input::Resolve { ticket: Ticket(1), deadline: bench.now + 1_000 });
    assert_eq!(bench.outcomes(), [unknown(1, Doubt::Forgotten)]);
}

#[test]
fn request_unknown_does_not_block_later_ones() {
    let mut bench = Bench::open(1);
    bench.submit(1);
    bench.wait(DEADLINE);
    bench.take();
    bench.step(Input::Submit { ticket: Ticket(2), body: Bytes::new(), deadline: bench.now + DEADLINE });
    let sent = bench.take();
    assert_eq!(sequences(&sent), "3");
}

#[test]
fn request_connection_lost_is_unknown_at_its_deadline() {
    let mut bench = Bench::open(1);
    bench.submit(1);
    let sent = bench.take();
    bench.step(Input::Disconnected { target: Target(sent[0].target), unsent: vec![] });
    for attempt in bench.take() {
        bench.step(Input::Disconnected { target: Target(attempt.target), unsent: vec![attempt.id] });
    }
    bench.now = DEADLINE;
    bench.step(Input::Unsent { ids: bench.sent.iter().map(|sent| sent.id).collect() });
    assert_eq!(bench.outcomes(), [unknown(1, Doubt::Unconfirmed)]);
}

#[test]
fn request_never_written_to_any_connection_is_rejected() {
    let mut bench = Bench::open(1);
    bench.submit(1);
    let sent = bench.take();
    bench.step(Input::Disconnected { target: Target(sent[0].target), unsent: vec![sent[0].id] });
    bench.now = DEADLINE;
    let ids = bench.take().iter().map(|sent| sent.id).collect();
    bench.step(Input::Unsent { ids });
    assert_eq!(bench.outcomes(), [rejected(1, Rejection::NeverProposed)]);
}

#[test]
fn request_invalid_is_rejected_and_its_sequence_consumed() {
    let mut bench = Bench::open(1);
    bench.submit(1);
    let sent = bench.take();
    let answer = Answer::Invalid { reason: "too large".to_owned() };
    bench.step(Input::Answered { id: sent[0].id, answer });
    assert_eq!(bench.outcomes(), [rejected(1, Rejection::Invalid { reason: "too large".to_owned() })]);
    assert_eq!(sequences(&bench.take()), "r2");
}

#[test]
fn session_evicted_in_flight_stays_unknown_and_the_rest_goes_to_a_new_one() {
    let mut bench = Bench::open(1);
    (1..=100).for_each(|ticket| bench.submit(ticket));
    let sent = bench.take();
    let in_flight = sent.len() as u64;
    bench.answer(&sent[0], LogOutcome::Evicted);
    let outcomes = bench.outcomes();
    assert_eq!(outcomes, (1..=in_flight).map(|ticket| unknown(ticket, Doubt::Evicted)).collect::<Vec<_>>());
    let open = bench.take();
    assert_eq!(sequences(&open), "open");

    // What comes late for the old session changes nothing.
    bench.reply(&sent[1]);
    assert_eq!(bench.outcomes(), []);
    bench.answer(&open[0], LogOutcome::SessionOpened { session: SessionId { height: Height::new(90), index: 0 } });
    let sent = bench.take();
    assert_eq!(sent.len() as u64, 100 - in_flight);
    assert!(sequences(&sent).starts_with("1 2 3"));
    bench.step(Input::Resolve { ticket: Ticket(1), deadline: bench.now + 1 });
    assert_eq!(bench.outcomes(), [unknown(1, Doubt::Evicted)]);
}

#[test]
fn session_evicted_while_idle_is_replaced_without_doubt() {
    let mut bench = Bench::open(1);
    bench.wait(60_000_000);
    let deadline = bench.now + DEADLINE;
    bench.step(Input::Submit { ticket: Ticket(1), body: Bytes::new(), deadline });
    let open = bench.take();
    assert_eq!(sequences(&open), "open");
    bench.answer(&open[0], LogOutcome::SessionOpened { session: SessionId { height: Height::new(90), index: 0 } });
    let sent = bench.take();
    assert_eq!(sequences(&sent), "1");
    bench.reply(&sent[0]);
    assert_eq!(bench.outcomes(), [committed(1)]);
}

#[test]
fn session_idle_and_alive_goes_on_counting() {
    let mut bench = Bench::open(1);
    bench.wait(60_000_000);
    let deadline = bench.now + DEADLINE;
    bench.step(Input::Submit { ticket: Ticket(1), body: Bytes::new(), deadline });
    let open = bench.take();
    bench.answer(&open[0], LogOutcome::SessionOpened { session: ID });
    assert_eq!(sequences(&bench.take()), "2");
}

#[test]
fn session_closed_ends_after_what_is_under_way() {
    let mut bench = Bench::open(1);
    bench.submit(1);
    bench.step(Input::Close { deadline: DEADLINE });
    bench.submit(2);
    assert_eq!(bench.outcomes(), [rejected(2, Rejection::Closed)]);
    let sent = bench.take();
    assert_eq!(sequences(&sent), "2");
    bench.reply(&sent[0]);
    let close = bench.take();
    assert_eq!(sequences(&close), "close");
    bench.answer(&close[0], LogOutcome::SessionClosed);
    assert!(bench.closed);
}

#[test]
fn session_closed_without_an_answer_ends_at_its_deadline() {
    let mut bench = Bench::open(1);
    bench.submit(1);
    bench.step(Input::Close { deadline: 5_000_000 });
    bench.wait(5_000_000);
    assert_eq!(bench.outcomes(), [unknown(1, Doubt::Closed)]);
    assert!(bench.closed);
}

#[test]
fn session_preferred_target_takes_over_what_is_in_flight() {
    let mut bench = Bench::open(2);
    (1..=3).for_each(|ticket| bench.submit(ticket));
    bench.take();
    bench.step(Input::Prefer { target: Target(77) });
    let sent = bench.take();
    assert_eq!(sequences(&sent), "2 3 4");
    assert!(sent.iter().all(|sent| sent.target == 77));
}
