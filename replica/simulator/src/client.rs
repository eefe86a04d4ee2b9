//! A client: the release's session state machine, the requests it was given, and what it was told.

use std::collections::BTreeMap;

use bytes::Bytes;
use lockstep_session::{Options, Session, Ticket};

use crate::Micros;
use crate::plan::Clients;

/// One client process; a new generation after it died or closed its session.
pub(crate) struct Client {
    pub session: Session,
    pub generation: u64,
    /// Requests whose final outcome is not known.
    pub open: BTreeMap<Ticket, Request>,
    pub next_ticket: u64,
    /// When the session wants to be stepped; a wake-up for another time is void.
    pub wake_at: Micros,
    pub closing: bool,
    /// The reads of the final check are submitted.
    pub probed: bool,
}

/// What was asked.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    pub what: What,
    /// What had been answered to anyone when it was submitted.
    pub floor: u64,
    /// When it completes at the latest; moves when it is asked for again.
    pub deadline: Micros,
    /// The client was told that the outcome is unknown, and asks again.
    pub asked_again: bool,
    /// Belongs to the final check: must be committed.
    pub probe: bool,
}

#[derive(Clone, Debug)]
pub(crate) enum What {
    Write { body: Bytes },
    Read { key: Bytes },
}

impl Client {
    pub fn new(generation: u64, seed: [u8; 16], plan: &Clients) -> Self {
        let options = Options { idle: plan.idle, attempt_timeout: plan.attempt_timeout, ..Options::new(seed) };
        Client {
            session: Session::new(options),
            generation,
            open: BTreeMap::new(),
            next_ticket: 1,
            wake_at: Micros::MAX,
            closing: false,
            probed: false,
        }
    }

    pub fn ticket(&mut self) -> Ticket {
        self.next_ticket += 1;
        Ticket(self.next_ticket)
    }

    /// Requests that the application waits for.
    pub fn waiting(&self) -> usize {
        self.open.values().filter(|request| !request.asked_again).count()
    }
}
