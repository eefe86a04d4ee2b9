//! The thread "wal": commits batches one after the other and says so. It is the only one that waits for the disk, but for
//! "wal-ahead", which makes the next segment of the log meanwhile, so that no commit waits for its zero-filling.

use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use lockstep_wal::{Allocator, CommitError, Cut, Disk, Prepared, Writer};
use tokio::sync::mpsc::UnboundedSender;

use crate::core::{EndsProcess, Urgent};
use crate::metrics::Metrics;

/// How long a full disk is left alone before the next segment is tried again.
const FULL: Duration = Duration::from_secs(1);

/// What the thread does, in order.
#[allow(clippy::large_enum_variant, reason = "nearly all are commits")]
pub(crate) enum Work {
    /// Commit a batch; so many client commands are in it.
    Commit { prepared: Prepared, commands: usize },
    /// Let segments go.
    Cut(Cut),
}

/// Makes the second segment ready, then starts both threads. They end when the sender is dropped; joining the one that is
/// returned waits for both.
pub(crate) fn start<D: Disk>(
    writer: Writer<D>,
    done: UnboundedSender<Urgent>,
    metrics: Arc<Metrics>,
) -> io::Result<(Sender<Work>, JoinHandle<()>)> {
    let (batches, queue) = channel();
    let allocator = writer.allocator();
    // Before the first vote: zero-filling may take longer than an election.
    make_next(&allocator);
    let (missing, missed) = sync_channel(1);
    let ahead = thread::Builder::new().name("wal-ahead".to_owned()).spawn(move || {
        let _guard = EndsProcess;
        allocate(&allocator, &missed);
    })?;
    let thread = thread::Builder::new().name("wal".to_owned()).spawn(move || {
        let _guard = EndsProcess;
        write(writer, &queue, &done, &metrics, missing);
        // It has the disk, which the next process in this directory waits for.
        ahead.join().expect("a panic there has ended the process");
    })?;
    Ok((batches, thread))
}

fn cut_log<D: Disk>(writer: &mut Writer<D>, cut: &Cut) {
    match writer.cut(cut) {
        Ok(freed) => tracing::debug!(
            "cut the log below segment {}: {} segments to be used again, {} removed",
            cut.first_kept(),
            freed.recycled,
            freed.removed
        ),
        Err(error) => stop(&error),
    }
}

/// `missing`: the next segment has to be made.
fn write<D: Disk>(
    mut writer: Writer<D>,
    queue: &Receiver<Work>,
    done: &UnboundedSender<Urgent>,
    metrics: &Metrics,
    missing: SyncSender<()>,
) {
    while let Ok(work) = queue.recv() {
        let (prepared, commands) = match work {
            Work::Commit { prepared, commands } => (prepared, commands),
            Work::Cut(cut) => {
                cut_log(&mut writer, &cut);
                continue;
            }
        };
        let started = Instant::now();
        if let Err(error) = writer.commit(&prepared) {
            stop(&error);
        }
        metrics.wal_sync_seconds.observe(started.elapsed().as_secs_f64());
        metrics.wal_bytes.inc_by(prepared.bytes());
        if commands > 0 {
            metrics.requests_per_sync.observe(commands as f64);
        }
        if done.send(Urgent::Written(prepared.seq())).is_err() {
            return;
        }
        if writer.lacks_next() {
            // One that waits already will do.
            let _ = missing.try_send(());
        }
    }
}

fn allocate<D: Disk>(allocator: &Allocator<D>, missed: &Receiver<()>) {
    while let Ok(()) = missed.recv() {
        if !make_next(allocator) {
            thread::sleep(FULL);
        }
    }
}

/// Returns whether the next segment is there.
fn make_next<D: Disk>(allocator: &Allocator<D>) -> bool {
    match allocator.make_next() {
        Ok(()) => true,
        Err(CommitError::Io(failure)) if failure.is_no_space() => {
            tracing::warn!("the disk is nearly full; this replica stops once the current segment is full: {failure}");
            false
        }
        Err(error) => stop(&error),
    }
}

/// What the disk holds is in doubt, so what is in memory is worth nothing (PROTOCOL §8).
fn stop(error: &CommitError) -> ! {
    tracing::error!("the log cannot be written, the replica stops: {error}");
    eprintln!("lockstep replica: {error}");
    std::process::exit(1);
}
