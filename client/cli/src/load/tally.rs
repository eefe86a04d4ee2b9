//! The counts of a load.

use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use lockstep_client::ClientError;
use serde_json::json;

use super::{LoadOptions, Report, name};

/// Counts that writers share.
#[derive(Debug)]
pub struct Tally(Mutex<Counts>);

#[derive(Debug)]
struct Counts {
    keys: Vec<Key>,
    errors: u64,
    last_error: Option<String>,
    started: Instant,
    ended: Option<Instant>,
    last_acknowledged: Instant,
    longest_gap: Duration,
    latency: Histogram,
    told: u64,
}

#[derive(Clone, Copy, Debug, Default)]
struct Key {
    acknowledged: u64,
    unknown: u64,
    executed: u64,
    cancelled: u64,
}

impl Tally {
    /// Counts of so many keys, all zero.
    pub fn new(keys: u32) -> Self {
        let now = Instant::now();
        Tally(Mutex::new(Counts {
            keys: vec![Key::default(); keys as usize],
            errors: 0,
            last_error: None,
            started: now,
            ended: None,
            last_acknowledged: now,
            longest_gap: Duration::ZERO,
            latency: Histogram::default(),
            told: 0,
        }))
    }

    fn counts(&self) -> MutexGuard<'_, Counts> {
        self.0.lock().expect("no writer panics while it counts")
    }

    pub(super) fn start(&self) {
        let mut counts = self.counts();
        counts.started = Instant::now();
        counts.last_acknowledged = counts.started;
    }

    pub(super) fn end(&self) {
        let mut counts = self.counts();
        let now = Instant::now();
        counts.ended = Some(now);
        counts.longest_gap = counts.longest_gap.max(now - counts.last_acknowledged);
    }

    pub(super) fn acknowledged(&self, key: u32, latency: Duration) {
        let mut counts = self.counts();
        counts.keys[key as usize].acknowledged += 1;
        let now = Instant::now();
        counts.longest_gap = counts.longest_gap.max(now - counts.last_acknowledged);
        counts.last_acknowledged = now;
        counts.latency.add(latency);
    }

    pub(super) fn unknown(&self, key: u32) {
        self.counts().keys[key as usize].unknown += 1;
    }

    pub(super) fn resolved(&self, key: u32, executed: bool) {
        let mut counts = self.counts();
        let key = &mut counts.keys[key as usize];
        match executed {
            true => key.executed += 1,
            false => key.cancelled += 1,
        }
    }

    pub(super) fn failed(&self, error: &ClientError) {
        let mut counts = self.counts();
        counts.errors += 1;
        counts.last_error = Some(error.to_string());
    }

    /// Compares the versions of all keys with the counts.
    pub(super) fn report(&self, options: &LoadOptions, before: &[u64], after: &[u64]) -> Report {
        let counts = self.counts();
        let mut mismatches = Vec::new();
        for (index, ((key, before), after)) in (0..).zip(counts.keys.iter().zip(before).zip(after)) {
            let least = before + key.acknowledged + key.executed;
            let most = least + key.unknown - key.executed - key.cancelled;
            if !(least..=most).contains(after) {
                let expected = if least == most { least.to_string() } else { format!("{least} to {most}") };
                mismatches.push(format!("key {:?} has version {after}, expected {expected}", name(options, index)));
            }
        }
        let sum = |count: fn(&Key) -> u64| counts.keys.iter().map(count).sum::<u64>();
        let (executed, cancelled, unknown) =
            (sum(|key| key.executed), sum(|key| key.cancelled), sum(|key| key.unknown));
        let ended = counts.ended.unwrap_or_else(Instant::now);
        Report {
            acknowledged: sum(|key| key.acknowledged),
            unknown,
            resolved_executed: executed,
            resolved_cancelled: cancelled,
            unresolved: unknown - executed - cancelled,
            errors: counts.errors,
            last_error: counts.last_error.clone(),
            longest_gap_ms: millis(counts.longest_gap),
            p50_ms: counts.latency.quantile(0.50),
            p99_ms: counts.latency.quantile(0.99),
            max_ms: counts.latency.max.as_secs_f64() * 1e3,
            elapsed_ms: millis(ended - counts.started),
            versions: after.iter().sum::<u64>().saturating_sub(before.iter().sum()),
            verified: mismatches.is_empty(),
            mismatches,
        }
    }

    /// Progress for people.
    pub fn line(&self) -> String {
        let mut counts = self.counts();
        let (acknowledged, rate) = counts.progress();
        format!(
            "{:>5}s  {acknowledged} acknowledged  {rate}/s  {} unknown  {} errors  longest gap {} ms",
            counts.started.elapsed().as_secs(),
            counts.keys.iter().map(|key| key.unknown).sum::<u64>(),
            counts.errors,
            millis(counts.gap()),
        )
    }

    /// Progress for programs.
    pub fn json(&self) -> String {
        let mut counts = self.counts();
        let (acknowledged, rate) = counts.progress();
        json!({
            "elapsed_ms": millis(counts.started.elapsed()),
            "acknowledged": acknowledged,
            "rate": rate,
            "unknown": counts.keys.iter().map(|key| key.unknown).sum::<u64>(),
            "errors": counts.errors,
            "longest_gap_ms": millis(counts.gap()),
            "current_gap_ms": millis(counts.last_acknowledged.elapsed()),
        })
        .to_string()
    }
}

impl Counts {
    /// All that was acknowledged, and how much since the last look.
    fn progress(&mut self) -> (u64, u64) {
        let acknowledged = self.keys.iter().map(|key| key.acknowledged).sum();
        let rate = acknowledged - self.told;
        self.told = acknowledged;
        (acknowledged, rate)
    }

    /// The longest gap, the one under way included.
    fn gap(&self) -> Duration {
        self.longest_gap.max(self.last_acknowledged.elapsed())
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// Latencies in buckets of about 3 %: 32 for each power of two of microseconds.
#[derive(Debug)]
struct Histogram {
    buckets: Vec<u64>,
    count: u64,
    max: Duration,
}

impl Default for Histogram {
    fn default() -> Self {
        Histogram { buckets: vec![0; 32 * 40], count: 0, max: Duration::ZERO }
    }
}

impl Histogram {
    fn add(&mut self, latency: Duration) {
        let micros = u64::try_from(latency.as_micros()).unwrap_or(u64::MAX).max(1);
        let power = micros.ilog2() as usize;
        // The five bits below the highest one.
        let fraction = if power >= 5 { (micros >> (power - 5)) & 31 } else { (micros << (5 - power)) & 31 };
        let bucket = (power * 32 + fraction as usize).min(self.buckets.len() - 1);
        self.buckets[bucket] += 1;
        self.count += 1;
        self.max = self.max.max(latency);
    }

    /// In milliseconds; 0 if nothing was counted.
    fn quantile(&self, quantile: f64) -> f64 {
        let rank = (self.count as f64 * quantile).ceil() as u64;
        let mut seen = 0;
        for (bucket, count) in (0u32..).zip(&self.buckets) {
            seen += count;
            if seen >= rank && seen > 0 {
                let micros = f64::from(32 + bucket % 32) / 32.0 * 2f64.powf(f64::from(bucket / 32));
                return (micros / 10.0).round() / 100.0;
            }
        }
        0.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options() -> LoadOptions {
        LoadOptions {
            keys: 2,
            prefix: "k".to_owned(),
            concurrency: 1,
            value_bytes: 0,
            duration: None,
            count: None,
            rate: 0,
            settle: Duration::ZERO,
        }
    }

    #[test]
    fn report_versions_as_counted_is_verified() {
        let tally = Tally::new(2);
        tally.acknowledged(0, Duration::from_millis(1));
        tally.unknown(1);
        tally.resolved(1, true);
        tally.unknown(1);
        tally.resolved(1, false);
        let report = tally.report(&options(), &[7, 0], &[8, 1]);
        assert!(report.verified, "{report:?}");
        assert_eq!((report.versions, report.unknown, report.unresolved), (2, 2, 0));
    }

    #[test]
    fn report_write_lost_is_a_mismatch() {
        let tally = Tally::new(2);
        tally.acknowledged(1, Duration::from_millis(1));
        let report = tally.report(&options(), &[0, 3], &[0, 3]);
        assert!(!report.verified);
        assert_eq!(report.mismatches, ["key \"k1\" has version 3, expected 4"]);
    }

    #[test]
    fn report_write_doubled_on_one_key_and_lost_on_another_is_a_mismatch() {
        let tally = Tally::new(2);
        tally.acknowledged(0, Duration::from_millis(1));
        tally.acknowledged(1, Duration::from_millis(1));
        assert!(!tally.report(&options(), &[0, 0], &[2, 0]).verified);
    }

    #[test]
    fn report_unresolved_allows_either() {
        let tally = Tally::new(2);
        tally.unknown(0);
        assert!(tally.report(&options(), &[0, 0], &[0, 0]).verified);
        assert!(tally.report(&options(), &[0, 0], &[1, 0]).verified);
        assert!(!tally.report(&options(), &[0, 0], &[2, 0]).verified);
    }

    #[test]
    fn histogram_quantiles_are_close() {
        let mut histogram = Histogram::default();
        for micros in 1..=100_000u64 {
            histogram.add(Duration::from_micros(micros));
        }
        let close = |found: f64, expected: f64| (found - expected).abs() < expected * 0.04;
        assert!(close(histogram.quantile(0.5), 50.0), "{}", histogram.quantile(0.5));
        assert!(close(histogram.quantile(0.99), 99.0), "{}", histogram.quantile(0.99));
        assert_eq!(Histogram::default().quantile(0.5), 0.0);
    }
}
