//! Many replicas and clients in one thread, driven by one seed: a hostile network, disks that lose what was not synced,
//! clocks that disagree; and checkers that look at every step.
//!
//! What runs is the release's own code: engine, rules, write-ahead log, state machine and client session. Only network, disk
//! and clock are replaced. The same seed gives the same run to the last line, whose digest proves it.
//!
//! | module | what it does |
//! |---|---|
//! | [`plan`] | what a seed draws: sizes, times, kinds of faults |
//! | `world` | replicas, clients, network, clocks; one queue of events; faults; the end, when all is healed |
//! | [`disk`] | a disk with synced, written and cached layers |
//! | [`checkers`] | what must hold, judged from outside |
//! | [`counters`] | what was caused; a kind that never happens fails a campaign |
//! | [`trace`] | every event as a line, and their digest |
//!
//! What is checked, after every step unless said otherwise:
//!
//! - one block per height, applied in order; equal digest at equal height; committed never shrinks;
//! - one leader process per view, one chain per view; views never decrease; no acknowledgement after leaving a view, and
//!   every Timeout covers all acknowledgements before it;
//! - acknowledged is durable: the synced layer is replayed for one in some hundred acknowledgements, for the first Timeout
//!   and the first proposal in each view, and at each start, where all promises ever made count; at each crash and at the
//!   end the last committed block is on the disks of a quorum;
//! - each (session, sequence) is executed at most once, and so is each request; its reply is that of a model, every time;
//! - what clients are told is true: committed, rejected or cancelled; writes and reads are linearizable, and so are the reads
//!   of a monitor, which asks any replica at any time, above all one that believes to lead;
//! - a state with a flipped bit is noticed at the very block, its key named, and built anew; nothing is read from a state in doubt,
//!   who is fenced takes no lead, and never more are fenced than may fail;
//! - after the faults have ended: every client is served and all replicas become equal, in bounded time.
//!
//! Processes are killed, lose power, stand still; clients die; links fail in one direction or both. Not yet: clocks that
//! drift, disks that fail, rot or reorder writes at a power cut, changes of membership, snapshots.

pub mod checkers;
mod client;
pub mod counters;
pub mod disk;
pub mod plan;
pub mod random;
pub mod trace;
mod world;

use std::any::Any;
use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Once;

pub use checkers::Violation;
pub use counters::{Counters, Kind};
pub use plan::Scenario;

/// Simulated microseconds.
pub type Micros = u64;

pub(crate) const SECOND: Micros = 1_000_000;

/// What came of a run.
#[derive(Clone, Debug)]
pub struct Report {
    /// Its seed.
    pub seed: u64,
    /// Digest of all its events.
    pub digest: String,
    /// Lines in its trace.
    pub lines: u64,
    /// How long it took, in simulated time.
    pub simulated: Micros,
    /// What it caused.
    pub counters: Counters,
    /// What went wrong, with the plan and the last lines of the trace.
    pub failure: Option<Failure>,
}

/// A run that failed.
#[derive(Clone, Debug)]
pub struct Failure {
    /// The property that did not hold.
    pub violation: Violation,
    /// What the seed drew.
    pub plan: String,
    /// The last events.
    pub tail: Vec<String>,
    /// What everyone was, at the end.
    pub state: String,
}

/// Runs one seed. `print`: every event goes to standard output.
pub fn run(seed: u64, scenario: Scenario, print: bool) -> Report {
    catch_quietly();
    let mut world = world::World::new(seed, scenario, print);
    let plan = world.plan.to_string();
    let result = catch_unwind(AssertUnwindSafe(|| world.run()));
    let violation = match result {
        Ok(Ok(())) => None,
        Ok(Err(violation)) => Some(violation),
        Err(panic) => Some(Violation { property: "no assertion fails", detail: describe(&*panic) }),
    };
    if let Some(violation) = &violation {
        world.trace.line(world.now, format_args!("{violation}"));
    }
    let failure = violation.map(|violation| Failure {
        violation,
        plan,
        tail: world.trace.tail(60),
        state: catch_unwind(AssertUnwindSafe(|| world.describe())).unwrap_or_default(),
    });
    Report {
        seed,
        digest: world.trace.digest(),
        lines: world.trace.lines(),
        simulated: world.now,
        counters: world.counters,
        failure,
    }
}

thread_local! {
    static PANICKED_AT: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// A failed assertion is a result here: its place is kept, nothing is printed.
fn catch_quietly() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let usual = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            let ours = info.location().is_some_and(|location| !location.file().contains("simulator/tests"));
            if ours {
                let place = info.location().map(ToString::to_string);
                PANICKED_AT.with(|at| *at.borrow_mut() = place);
            } else {
                usual(info);
            }
        }));
    });
}

fn describe(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref::<&str>().copied());
    let place = PANICKED_AT.with(|at| at.borrow_mut().take()).unwrap_or_default();
    format!("{} at {place}", text.unwrap_or("a panic"))
}
