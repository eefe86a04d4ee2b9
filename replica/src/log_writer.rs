//! The thread "wal": commits batches one after the other and says so. It is the only one that waits for the disk.

use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use lockstep_wal::{Disk, Prepared, Writer};
use tokio::sync::mpsc::UnboundedSender;

use crate::core::{EndsProcess, Urgent};
use crate::metrics::Metrics;

/// Without a batch for this long, the next segment is made ready.
const IDLE: Duration = Duration::from_millis(20);

/// A batch and the number of client commands in it.
pub(crate) struct Batch {
    pub prepared: Prepared,
    pub commands: usize,
}

/// Makes the second segment ready, then starts the thread. It ends when the sender is dropped.
pub(crate) fn start<D: Disk>(
    mut writer: Writer<D>,
    done: UnboundedSender<Urgent>,
    metrics: Arc<Metrics>,
) -> io::Result<(Sender<Batch>, JoinHandle<()>)> {
    let (batches, queue) = channel();
    // Before the first vote: zero-filling may take longer than an election.
    allocate_ahead(&mut writer);
    let thread = thread::Builder::new().name("wal".to_owned()).spawn(move || {
        let _guard = EndsProcess;
        write(writer, &queue, &done, &metrics);
    })?;
    Ok((batches, thread))
}

fn write<D: Disk>(mut writer: Writer<D>, queue: &Receiver<Batch>, done: &UnboundedSender<Urgent>, metrics: &Metrics) {
    // Whether the next segment may be missing.
    let mut due = false;
    loop {
        let batch = match queue.recv_timeout(if due { IDLE } else { Duration::MAX }) {
            Ok(batch) => batch,
            Err(RecvTimeoutError::Timeout) => {
                allocate_ahead(&mut writer);
                due = false;
                continue;
            }
            Err(RecvTimeoutError::Disconnected) => return,
        };
        let started = Instant::now();
        if let Err(error) = writer.commit(&batch.prepared) {
            stop(&error);
        }
        metrics.wal_sync_seconds.observe(started.elapsed().as_secs_f64());
        metrics.wal_bytes.inc_by(batch.prepared.bytes());
        if batch.commands > 0 {
            metrics.requests_per_sync.observe(batch.commands as f64);
        }
        due = true;
        if done.send(Urgent::Written(batch.prepared.seq())).is_err() {
            return;
        }
    }
}

fn allocate_ahead<D: Disk>(writer: &mut Writer<D>) {
    match writer.allocate_ahead() {
        Ok(()) => {}
        Err(lockstep_wal::CommitError::Io(failure)) if failure.is_no_space() => {
            tracing::warn!("the disk is nearly full; this replica stops once the current segment is full: {failure}");
        }
        Err(error) => stop(&error),
    }
}

/// What the disk holds is in doubt, so what is in memory is worth nothing (PROTOCOL §8).
fn stop(error: &lockstep_wal::CommitError) -> ! {
    tracing::error!("the log cannot be written, the replica stops: {error}");
    eprintln!("lockstep replica: {error}");
    std::process::exit(1);
}
