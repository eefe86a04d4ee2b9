//! Waiting on conditions, never on time alone.

use std::time::{Duration, Instant};

use crate::{Result, fail};

/// Between two looks. Short, for it is the error of every time that is measured.
const PAUSE: Duration = Duration::from_millis(100);

/// Looks until it sees what it is waiting for. A look that fails says what is still missing; if that lasts for longer than
/// `within`, it is the failure.
pub async fn until<T>(what: &str, within: Duration, mut look: impl AsyncFnMut() -> Result<T>) -> Result<T> {
    let start = Instant::now();
    loop {
        match look().await {
            Ok(seen) => return Ok(seen),
            Err(missing) if start.elapsed() > within => fail!("{what}: not within {within:?}: {missing}"),
            Err(_) => tokio::time::sleep(PAUSE).await,
        }
    }
}
