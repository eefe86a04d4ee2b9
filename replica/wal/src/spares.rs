//! Segments made ready before they are needed: the writer takes them, and an [`Allocator`] in another thread makes them.

use std::collections::BTreeSet;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use crate::error::{CommitError, IoFailure};
use crate::format::segment_name;
use crate::{Disk, SPARES};

/// What the writer and the allocators of one log share.
pub(crate) struct Spares<D> {
    disk: Arc<D>,
    /// Size of a new segment.
    segment_bytes: u64,
    state: Mutex<State>,
    /// A segment was made, or could not be.
    made: Condvar,
}

struct State {
    /// The segment that the writer is in.
    active: u64,
    /// Segments above it that exist with their full size.
    ready: BTreeSet<u64>,
    /// Whether somebody is zero-filling the one after it: its number is nobody else's meanwhile. Files get other names only
    /// while the lock is held.
    making: bool,
    /// The first failure's text, once there was one: whoever asks after that is refused.
    poison: Option<String>,
}

impl State {
    fn check_poison(&self) -> Result<(), CommitError> {
        match &self.poison {
            None => Ok(()),
            Some(cause) => Err(CommitError::Poisoned { cause: cause.clone() }),
        }
    }
}

impl<D: Disk> Spares<D> {
    pub fn new(disk: Arc<D>, segment_bytes: u64, active: u64, ready: BTreeSet<u64>) -> Arc<Self> {
        let state = State { active, ready, making: false, poison: None };
        Arc::new(Spares { disk, segment_bytes, state: Mutex::new(state), made: Condvar::new() })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn check_poison(&self) -> Result<(), CommitError> {
        self.state().check_poison()
    }

    /// Refuses everything from now on. Passes the failure on.
    pub fn poison(&self, failure: IoFailure) -> CommitError {
        self.state().poison.get_or_insert_with(|| failure.to_string());
        failure.into()
    }

    /// Whether the segment after the active one is neither there nor being made.
    pub fn lacks_next(&self) -> bool {
        let state = self.state();
        !state.making && !state.ready.contains(&(state.active + 1))
    }

    /// Makes the segment after the active one, unless it is there. Waits if another thread is at it.
    ///
    /// Any failure but a full disk poisons.
    pub fn make_next(&self) -> Result<(), CommitError> {
        let made = |state: &mut State| state.making;
        let mut state = self.made.wait_while(self.state(), made).unwrap_or_else(PoisonError::into_inner);
        state.check_poison()?;
        let next = state.active + 1;
        if state.ready.contains(&next) {
            return Ok(());
        }
        if let Some(other) = state.ready.first().copied() {
            // One with a higher number was made while this one could not be, or before the process stopped.
            let renamed = self.rename(other, next);
            if renamed.is_ok() {
                state.ready.remove(&other);
                state.ready.insert(next);
            }
            drop(state);
            return renamed.map_err(|failure| self.failed(failure));
        }
        state.making = true;
        drop(state);
        let name = segment_name(next);
        let made = self.disk.allocate(&name, self.segment_bytes);
        if made.is_err() {
            // What is there of it, if anything, would be in the way of the next attempt and takes the space that is short.
            let _ = self.disk.remove(&name);
        }
        let mut state = self.state();
        state.making = false;
        if made.is_ok() {
            state.ready.insert(next);
        }
        drop(state);
        let made = made.map_err(|error| self.failed(IoFailure::of("allocate", &name)(error)));
        self.made.notify_all();
        made
    }

    fn failed(&self, failure: IoFailure) -> CommitError {
        if failure.is_no_space() { failure.into() } else { self.poison(failure) }
    }

    fn rename(&self, from: u64, to: u64) -> Result<(), IoFailure> {
        let from = segment_name(from);
        self.disk.rename(&from, &segment_name(to)).map_err(IoFailure::of("rename", &from))
    }

    /// The writer takes the segment after the active one, which is ready.
    pub fn take_next(&self) {
        let mut state = self.state();
        let next = state.active + 1;
        assert!(state.ready.remove(&next), "segment {next} is begun before it was made");
        state.active = next;
    }

    /// Takes a segment that was let go for one of the next, if it fits and there are not enough. Returns whether it did.
    pub fn recycle(&self, segment: u64) -> Result<bool, IoFailure> {
        let name = segment_name(segment);
        let len = self.disk.len(&name).map_err(IoFailure::of("read the size of", &name))?;
        let mut state = self.state();
        let made = state.active + u64::from(state.making);
        if len != self.segment_bytes || state.ready.len() + usize::from(state.making) >= SPARES {
            return Ok(false);
        }
        let number = state.ready.last().map_or(made, |last| made.max(*last)) + 1;
        self.rename(segment, number)?;
        state.ready.insert(number);
        Ok(true)
    }
}

/// Makes the next segment while the [`crate::Writer`] commits. For a thread of its own; from [`crate::Writer::allocator`].
///
/// What it made and nobody took is found at the next start, and taken then. Holds on to the disk until dropped.
pub struct Allocator<D> {
    pub(crate) spares: Arc<Spares<D>>,
}

impl<D: Disk> Allocator<D> {
    /// Makes the next segment, if it is not there: zero-fills it, which takes as long as the disk takes for that many bytes.
    ///
    /// # Errors
    /// A full disk may be tried again: nothing was promised, and the segment that is written has room left. Any other failure
    /// poisons the writer too.
    pub fn make_next(&self) -> Result<(), CommitError> {
        self.spares.make_next()
    }
}
