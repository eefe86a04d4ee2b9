//! The binary itself, where no service is needed.

use std::process::{Command, Output};

fn lockstep(args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lockstep"));
    for name in ["LOCKSTEP_ENDPOINTS", "LOCKSTEP_ADMIN_TOKEN", "LOCKSTEP_ADMIN_TOKEN_FILE"] {
        command.env_remove(name);
    }
    command.args(args).output().unwrap()
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

#[test]
fn snapshot_and_transfer_without_a_token_are_usage_errors() {
    for command in ["snapshot", "transfer"] {
        let output = lockstep(&[command, "--endpoints", "127.0.0.1:1"]);
        assert_eq!(output.status.code(), Some(2));
        assert_eq!(
            stderr(&output),
            "lockstep: this command needs the service's admin token: name its file with --admin-token-file, or set \
             LOCKSTEP_ADMIN_TOKEN; `lockstep dev` keeps it in .lockstep/NAME/admin-token, the operator in the Secret \
             NAME-admin\n"
        );
    }
}

#[test]
fn token_file_that_is_missing_is_a_usage_error() {
    let output = lockstep(&["snapshot", "--admin-token-file", "/nowhere/token"]);
    assert_eq!(output.status.code(), Some(2));
    assert_eq!(
        stderr(&output),
        "lockstep: failed to read the admin token from /nowhere/token: No such file or directory (os error 2); \
         name its file with --admin-token-file\n"
    );
}

#[test]
fn token_given_twice_is_a_usage_error() {
    // One of them is from an environment that was forgotten: which is meant, nobody can guess.
    let output = lockstep(&["snapshot", "--admin-token-file", "/nowhere/token", "--admin-token", "any"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).starts_with("lockstep: two admin tokens are given: in the file /nowhere/token, "));
}

#[test]
fn snapshot_and_transfer_without_a_service_fail_with_where_it_was_looked_for() {
    for command in ["snapshot", "transfer"] {
        let output = lockstep(&[command, "--endpoints", "127.0.0.1:1", "--admin-token", "any"]);
        assert_eq!(output.status.code(), Some(1));
        assert!(stderr(&output).starts_with("lockstep: no replica of 127.0.0.1:1 answers; "), "{}", stderr(&output));
    }
}

#[test]
fn help_of_snapshot_and_transfer_shows_how() {
    for command in ["snapshot", "transfer"] {
        let output = lockstep(&[command, "--help"]);
        let text = String::from_utf8(output.stdout).unwrap();
        let example = format!("lockstep {command} --admin-token-file .lockstep/kv/admin-token");
        assert!(output.status.success() && text.contains(&example), "{text}");
    }
}

#[test]
fn members_without_a_token_or_a_service_say_what_is_missing() {
    for args in [["add", "127.0.0.1:1"], ["promote", "r4"], ["remove", "r2"]] {
        let [command, who] = args;
        let output = lockstep(&["members", command, who, "--endpoints", "127.0.0.1:1"]);
        assert_eq!(output.status.code(), Some(2));
        assert!(stderr(&output).starts_with("lockstep: this command needs the service's admin token"), "{output:?}");
    }
    let output = lockstep(&["members", "list", "--endpoints", "127.0.0.1:1"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).starts_with("lockstep: no replica of 127.0.0.1:1 answers; "), "{output:?}");
    let output = lockstep(&["members", "add", "127.0.0.1:1", "--admin-token", "any"]);
    assert_eq!(output.status.code(), Some(1));
    let text = stderr(&output);
    assert!(text.ends_with("start it with an empty data directory and the service's admin token first\n"), "{text}");
}

#[test]
fn help_of_each_members_command_shows_how() {
    for command in ["list", "add", "promote", "remove"] {
        let output = lockstep(&["members", command, "--help"]);
        let help = String::from_utf8(output.stdout).unwrap();
        assert!(help.contains(&format!("Example: lockstep members {command} ")), "{help}");
    }
}
