//! Every event as a line: hashed, so that two runs can be compared, and the last ones kept, so that a failure can be read.

use std::collections::VecDeque;
use std::fmt::{Arguments, Write};

use crate::Micros;

/// Lines kept for a failure.
const TAIL: usize = 400;

/// The lines of one run.
#[derive(Debug)]
pub struct Trace {
    hasher: blake3::Hasher,
    tail: VecDeque<String>,
    lines: u64,
    print: bool,
}

impl Trace {
    /// An empty one; `print`: every line goes to standard output at once.
    pub fn new(print: bool) -> Self {
        Trace { hasher: blake3::Hasher::new(), tail: VecDeque::with_capacity(TAIL), lines: 0, print }
    }

    /// One event.
    pub fn line(&mut self, now: Micros, event: Arguments<'_>) {
        let mut line = if self.tail.len() == TAIL { self.tail.pop_front().expect("it is full") } else { String::new() };
        line.clear();
        write!(line, "{:4}.{:06} {event}", now / 1_000_000, now % 1_000_000).expect("a string takes everything");
        self.hasher.update(line.as_bytes()).update(b"\n");
        self.lines += 1;
        if self.print {
            println!("{line}");
        }
        self.tail.push_back(line);
    }

    /// Digest of all lines.
    pub fn digest(&self) -> String {
        self.hasher.finalize().to_hex()[..16].to_owned()
    }

    /// How many lines there were.
    pub fn lines(&self) -> u64 {
        self.lines
    }

    /// The last lines.
    pub fn tail(&self, count: usize) -> Vec<String> {
        self.tail.iter().skip(self.tail.len().saturating_sub(count)).cloned().collect()
    }
}
