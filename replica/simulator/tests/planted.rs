//! A build with a bug in it, which the ordinary run must find: else what it says of a build without one is worth nothing.

use std::path::Path;
use std::process::Command;

/// Seeds within which the bug must show. It shows in most of them.
const SEEDS: &str = "0..10";

#[test]
fn planted_ack_before_sync_is_caught() {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let output = Command::new(env!("CARGO"))
        .args(["run", "--quiet", "--package", "lockstep-simulator", "--bin", "simulate", "--target-dir"])
        .arg(workspace.join("target/planted"))
        .args(["--", "--seeds", SEEDS])
        .env("RUSTFLAGS", "--cfg planted=\"ack-before-sync\"")
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        .current_dir(&workspace)
        .output()
        .expect("cargo runs");
    let text = String::from_utf8_lossy(&output.stderr);
    let verdict = text.lines().find(|line| line.contains(" violates: ")).unwrap_or_default();
    let caught = verdict.contains("acknowledged is durable") || verdict.contains("promised is durable");
    assert!(caught, "the planted bug was not caught by seeds {SEEDS}; the run said:\n{text}");
    assert_eq!(output.status.code(), Some(1), "a violation ends the run with code 1");
    assert!(text.contains("replay: make simulate SEED="), "a failure prints the command that replays it:\n{text}");
    println!("caught: {verdict}");
}
