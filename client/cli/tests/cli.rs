//! The binary itself, where no service is needed.

use std::process::{Command, Output};

fn lockstep(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_lockstep")).args(args).env_remove("LOCKSTEP_ENDPOINTS").output().unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

#[test]
fn kv_without_a_service_fails_with_what_was_tried() {
    let output = lockstep(&["kv", "get", "a", "--endpoints", "127.0.0.1:1", "--timeout", "300ms"]);
    assert_eq!(output.status.code(), Some(1));
    let text = stderr(&output);
    assert!(text.starts_with("lockstep: no replica answered the read within 300ms; tried 127.0.0.1:1 ("), "{text}");
}

#[test]
fn kv_endpoint_malformed_is_a_usage_error() {
    let output = lockstep(&["kv", "get", "a", "--endpoints", "here"]);
    assert_eq!(output.status.code(), Some(2));
    assert_eq!(
        stderr(&output),
        "lockstep: endpoint \"here\" is not host:port: the port is missing; clients use 7400\n"
    );
}

#[test]
fn cas_without_an_expectation_is_a_usage_error() {
    let output = lockstep(&["kv", "cas", "a", "b"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("--expect-absent"));
}

#[test]
fn txn_malformed_is_a_usage_error_in_words() {
    for (args, words) in [
        (&["kv", "txn"][..], "--if <CONDITION>|--then <OPERATION>|--else <OPERATION>"),
        (
            &["kv", "txn", "--if", "lock"],
            "\"lock\" is no condition; write KEY=version:3, KEY=value:x, KEY=exists or KEY=missing",
        ),
        (&["kv", "txn", "--if", "lock=version:x"], "\"x\" is no version; versions are whole numbers"),
        (&["kv", "txn", "--then", "take lock"], "\"take lock\" is no operation; write 'put KEY VALUE', 'get KEY'"),
        (&["kv", "txn", "--else", "get 'k"], "the quotes in \"get 'k\" do not match"),
        (&["kv", "scan", "--limit", "0"], "invalid value '0' for '--limit <COUNT>'"),
    ] {
        let output = lockstep(args);
        assert_eq!(output.status.code(), Some(2), "{args:?}");
        assert!(stderr(&output).contains(words), "{}", stderr(&output));
    }
}

#[test]
fn kv_commands_show_an_example_in_their_help() {
    for command in ["put", "get", "delete", "cas", "scan", "txn"] {
        let output = lockstep(&["kv", command, "--help"]);
        let help = String::from_utf8(output.stdout).unwrap();
        assert!(help.contains(&format!("Example: lockstep kv {command} ")), "{help}");
    }
}

#[test]
fn status_without_a_service_lists_why() {
    let output = lockstep(&["status", "--endpoints", "127.0.0.1:1"]);
    assert_eq!(output.status.code(), Some(1));
    let table = String::from_utf8(output.stdout.clone()).unwrap();
    assert!(table.contains("127.0.0.1:1") && table.contains("does not answer: Connection refused"), "{table}");
    assert!(stderr(&output).starts_with("lockstep: no replica of 127.0.0.1:1 answers; "));
}

#[test]
fn timeout_malformed_is_a_usage_error() {
    let output = lockstep(&["status", "--timeout", "soon"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("write 500ms, 10s, 2m or 1h"));
}
