//! The one place that reads clocks.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use lockstep_consensus::Moment;
use lockstep_types::LogTime;

/// Time since the process started, and the wall clock.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock {
    start: Instant,
}

impl Clock {
    pub fn start() -> Self {
        Clock { start: Instant::now() }
    }

    pub fn now(&self) -> Moment {
        Moment::from_micros(micros(self.uptime()))
    }

    pub fn uptime(&self) -> Duration {
        self.start.elapsed()
    }

    /// This long from now.
    pub fn after(&self, duration: Duration) -> Moment {
        self.now().plus(micros(duration))
    }

    pub fn instant(&self, moment: Moment) -> Instant {
        // Far beyond any timer, and within what an Instant can hold.
        const FAR: Duration = Duration::from_secs(3600);
        let limit = self.start.elapsed() + FAR;
        self.start + Duration::from_micros(moment.as_micros()).min(limit)
    }

    /// What the wall clock says. The rules never depend on it (PROTOCOL §8).
    pub fn wall() -> LogTime {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        LogTime::from_millis(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}
