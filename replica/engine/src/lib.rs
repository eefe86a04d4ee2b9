//! One replica, synchronous: step, persist, send, apply. What the release runs is what the simulator runs.
//!
//! The engine owns the rules (`lockstep-consensus`), the log (`lockstep-wal`) and the state (`lockstep-machine`), and keeps
//! the order between them, which is where implementations of consensus go wrong: a message that promises something
//! leaves only after the sync that it depends on. It has no threads, no sockets and no clock. Its host
//!
//! 1. hands in what happened, with the time: [`Engine::handle`] with an [`Event`];
//! 2. asks what to do: [`Engine::poll`] gives an [`Output`];
//! 3. commits the batch in it with the log's `Writer`, and says so with [`Event::Written`]; then makes the cut, if there is one;
//! 4. runs [`Output::jobs`] beside that, one after the other, and brings back [`Event::Job`];
//! 5. comes back at [`Output::wake_at`] at the latest.
//!
//! | module | what it does |
//! |---|---|
//! | [`identity`] | who this data directory is: minted once, with its genesis and its number of starts |
//! | [`engine`] | the loop above: batches, the order of effects, apply |
//! | [`log`] | blocks and promises as records; bodies from memory or from the disk |
//! | [`requests`] | client requests from arrival to answer: proposed here, or forwarded to the leader |
//! | [`snapshots`] | taking, agreeing on, serving and fetching snapshots; cutting the log below them |
//! | [`divergence`] | comparing what was executed; fencing and rebuilding a state that a quorum is against |
//! | [`status`] | what a replica says of itself |
//! | [`witness`] | what replicas remember of each other, so that one that forgot is found out |
//! | [`message`] | what replicas say to each other beyond the rules: forwarded requests, reads |
//!
//! Group commit needs no timer: while one batch is being synced, records and commands gather, and the next batch takes all
//! of them.

pub mod divergence;
pub mod engine;
pub mod identity;
pub mod log;
pub mod message;
pub mod requests;
pub mod snapshots;
pub mod status;
pub mod witness;

pub use divergence::{DivergenceCounters, DivergenceStatus, StateDoubt};
pub use engine::{Engine, EngineOptions, Event, Output, StartError};
pub use identity::{Identity, IdentityError};
pub use message::{ForwardResult, PeerMessage};
pub use requests::{Answer, Operation, Refusal, Token};
pub use snapshots::job::{Job, JobDone, SnapshotError};
pub use snapshots::{SnapshotCounters, SnapshotOptions, SnapshotStatus};
pub use status::{MemberStatus, MembershipStatus, Status};
pub use witness::{Amnesia, Claim};
