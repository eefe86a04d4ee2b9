//! What ends a replica: signals, and the death of its parent.

use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::sleep;

use crate::args::Args;
use crate::error::RunError;
use crate::process::system;

/// Between two looks at the parent process.
const PARENT: Duration = Duration::from_millis(500);

/// The signals that end a replica.
pub(crate) struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    pub fn new() -> Result<Self, RunError> {
        let listen = |kind| signal(kind).map_err(system("listen for signals"));
        Ok(Signals { terminate: listen(SignalKind::terminate())?, interrupt: listen(SignalKind::interrupt())? })
    }

    pub async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

/// A replica that `lockstep dev` started must not outlive it. The kernel says so on Linux; a look now and then says it
/// everywhere.
pub(crate) fn follow_parent(args: &Args) -> Result<(), RunError> {
    let Some(parent) = args.parent_pid else { return Ok(()) };
    #[cfg(target_os = "linux")]
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))
        .map_err(|error| system("ask for the parent's death")(error.into()))?;
    let gone = move || rustix::process::getppid().is_none_or(|pid| pid.as_raw_nonzero().get() != parent);
    tokio::spawn(async move {
        while !gone() {
            sleep(PARENT).await;
        }
        eprintln!("lockstep replica: process {parent}, which started this replica, is gone; stopping");
        std::process::exit(1);
    });
    Ok(())
}
