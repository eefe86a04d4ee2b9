//! The first seeds, in every test run. The campaign of hundreds is `make simulate`.

use lockstep_simulator::{Counters, Kind, Scenario, run};

/// Each takes about a second in a debug build.
const SEEDS: u64 = 24;

/// What these few must have caused already.
const EXPECTED: &[Kind] = &[
    Kind::Commit,
    Kind::ViewChange,
    Kind::PreCheck,
    Kind::HandOver,
    Kind::StepDown,
    Kind::Kill,
    Kind::PowerCut,
    Kind::PowerCutLost,
    Kind::Restart,
    Kind::Pause,
    Kind::Segment,
    Kind::Partition,
    Kind::OneWayCut,
    Kind::Lost,
    Kind::Duplicated,
    Kind::Reordered,
    Kind::Late,
    Kind::VeryOld,
    Kind::Fetched,
    Kind::SnapshotTaken,
    Kind::SnapshotInstalled,
    Kind::SnapshotRestart,
    Kind::DiskLost,
    Kind::Promoted,
    Kind::Removed,
    Kind::Forwarded,
    Kind::AnsweredFromTable,
    Kind::Gap,
    Kind::ResolveExecuted,
    Kind::ResolveCancelled,
    Kind::Evicted,
    Kind::ReadLeader,
    Kind::ReadFollower,
    Kind::ClientCrash,
    Kind::LogChecked,
];

#[test]
fn seeds_first_ones_hold_every_property() {
    let mut counters = Counters::default();
    for seed in 0..SEEDS {
        let report = run(seed, Scenario::Chaos, false);
        counters.merge(&report.counters);
        if let Some(failure) = report.failure {
            panic!(
                "{}\n{}\n  {}\nseed {seed} violates: {}\nreplay: make simulate SEED={seed}",
                failure.plan,
                failure.tail.join("\n"),
                failure.state,
                failure.violation
            );
        }
    }
    let missing: Vec<String> =
        EXPECTED.iter().filter(|kind| counters.get(**kind) == 0).map(ToString::to_string).collect();
    assert!(missing.is_empty(), "{SEEDS} seeds never caused: {}", missing.join(", "));
}

#[test]
fn seed_run_twice_gives_the_same_trace() {
    for seed in [3, 7, 11] {
        let (first, second) = (run(seed, Scenario::Chaos, false), run(seed, Scenario::Chaos, false));
        assert_eq!((first.digest, first.lines), (second.digest, second.lines), "seed {seed}");
    }
}
