//! The thread "snapshots": reads, writes and loads snapshots, one job after the other, beside the core thread.

use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};
use std::thread::{self, JoinHandle};

use lockstep_engine::Job;
use lockstep_wal::Disk;
use tokio::sync::mpsc::UnboundedSender;

use crate::core::{EndsProcess, Urgent};

/// Starts the thread. It ends when the sender is dropped, after the job under way.
pub(crate) fn start<D: Disk>(disk: Arc<D>, done: UnboundedSender<Urgent>) -> io::Result<(Sender<Job>, JoinHandle<()>)> {
    let (jobs, queue) = channel::<Job>();
    let thread = thread::Builder::new().name("snapshots".to_owned()).spawn(move || {
        let _guard = EndsProcess;
        while let Ok(job) = queue.recv() {
            if done.send(Urgent::Job(job.run(&*disk))).is_err() {
                return;
            }
        }
    })?;
    Ok((jobs, thread))
}
