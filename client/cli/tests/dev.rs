//! `lockstep dev`: real processes on this machine.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process, test_kill_process};
use serde_json::Value;
use tempfile::TempDir;

const PATIENCE: Duration = Duration::from_secs(60);

fn example() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/kv.yaml")
}

/// The first of thirty ports that nobody uses.
fn ports() -> u16 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    loop {
        // Below the ports that the system gives to connections.
        let slot = (std::process::id() * 17 + NEXT.fetch_add(1, Ordering::Relaxed)) % 650;
        let base = 12_000 + slot as u16 * 30;
        if (0..30).all(|offset| TcpListener::bind(("127.0.0.1", base + offset)).is_ok()) {
            return base;
        }
    }
}

fn command(dir: &TempDir, base: u16, options: &[&str]) -> Command {
    command_of(&example(), dir, base, options)
}

fn command_of(file: &Path, dir: &TempDir, base: u16, options: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lockstep"));
    command.arg("dev").arg(file).arg("--port-base").arg(base.to_string()).args(options);
    command.current_dir(dir.path()).env_remove("LOCKSTEP_ENDPOINTS");
    command
}

fn lockstep(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_lockstep")).args(args).output().unwrap()
}

/// `lockstep dev` while it runs.
struct Dev {
    child: Child,
    lines: Receiver<String>,
    said: Vec<String>,
}

impl Dev {
    fn start(dir: &TempDir, base: u16) -> Self {
        Self::start_of(&example(), dir, base)
    }

    fn start_of(file: &Path, dir: &TempDir, base: u16) -> Self {
        let mut child =
            command_of(file, dir, base, &[]).stdout(Stdio::piped()).stderr(Stdio::inherit()).spawn().unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        let (sender, lines) = channel();
        std::thread::spawn(move || stdout.lines().map_while(Result::ok).try_for_each(|line| sender.send(line)));
        Dev { child, lines, said: Vec::new() }
    }

    /// Waits for a line that holds `text`.
    fn says(&mut self, text: &str) -> String {
        let until = Instant::now() + PATIENCE;
        loop {
            let rest = until.saturating_duration_since(Instant::now());
            let line = self.lines.recv_timeout(rest);
            let Ok(line) = line else { panic!("never said {text:?}, but {:?}", self.said) };
            self.said.push(line.clone());
            if line.contains(text) {
                return line;
            }
        }
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// The replicas' processes.
    fn children(&self) -> Vec<Pid> {
        let pid = self.child.id();
        let list = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
        list.split_whitespace().filter_map(|pid| Pid::from_raw(pid.parse().ok()?)).collect()
    }

    fn ended(&mut self) -> Option<i32> {
        until("dev ends", || self.child.try_wait().unwrap()).code()
    }
}

impl Drop for Dev {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn until<T>(what: &str, mut probe: impl FnMut() -> Option<T>) -> T {
    let started = Instant::now();
    loop {
        if let Some(found) = probe() {
            return found;
        }
        assert!(started.elapsed() < PATIENCE, "not within {PATIENCE:?}: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Whether the process is there and not just waiting to be buried.
fn lives(pid: Pid) -> bool {
    let state = fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero()));
    test_kill_process(pid).is_ok() && state.is_ok_and(|stat| !stat.contains(") Z "))
}

fn put(base: u16, key: &str, value: &str) {
    let done = lockstep(&["kv", "put", key, value, "--endpoints", &format!("127.0.0.1:{base}")]);
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
}

fn get(base: u16, key: &str) -> String {
    let done = lockstep(&["kv", "get", key, "--endpoints", &format!("127.0.0.1:{base}")]);
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    String::from_utf8(done.stdout).unwrap().trim_end().to_owned()
}

#[test]
fn demo_with_leaders_killed_passes() {
    let dir = TempDir::new().unwrap();
    let done = command(&dir, ports(), &["--demo", "--kills", "2"]).output().unwrap();
    let said = String::from_utf8(done.stdout).unwrap();
    let wrong = String::from_utf8(done.stderr).unwrap();
    assert!(done.status.success(), "{said}{wrong}");
    assert!(said.contains("\n1/2: killed r") && said.contains("\n2/2: killed r"), "{said}");
    let last = said.lines().last().unwrap();
    assert!(
        last.starts_with("PASS: ") && last.contains(" 2 leaders killed, 0 lost, 0 done twice, longest gap "),
        "{last}"
    );
}

#[test]
fn dev_stopped_and_started_again_finds_its_data() {
    let dir = TempDir::new().unwrap();
    let base = ports();
    let mut dev = Dev::start(&dir, base);
    dev.says("ready after");
    put(base, "colour", "blue");
    let genesis = fs::read(dir.path().join(".lockstep/kv/genesis")).unwrap();
    let replicas = dev.children();
    assert_eq!(replicas.len(), 3);
    dev.signal(Signal::INT);
    dev.says("stopped; the data stays in .lockstep/kv");
    assert_eq!(dev.ended(), Some(0));
    assert!(!replicas.into_iter().any(lives));

    let mut dev = Dev::start(&dir, base);
    dev.says("data in .lockstep/kv, from an earlier run");
    dev.says("ready after");
    assert_eq!(get(base, "colour"), "blue");
    assert_eq!(fs::read(dir.path().join(".lockstep/kv/genesis")).unwrap(), genesis);
}

#[test]
fn kv_scan_and_txn_print_what_they_found() {
    let dir = TempDir::new().unwrap();
    let base = ports();
    let mut dev = Dev::start(&dir, base);
    dev.says("ready after");
    let endpoint = format!("127.0.0.1:{base}");
    let kv = |args: &[&str]| {
        let done = lockstep(&[&["kv", "--endpoints", &endpoint], args].concat());
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        (done.status.code(), text(done.stdout), text(done.stderr))
    };
    let nothing = String::new;
    let lock =
        ["txn", "--if", "lock=missing", "--then", "put lock 'it is me'", "--then", "put use/1 a", "--else", "get lock"];
    assert_eq!(kv(&lock), (Some(0), "put lock: version 1\nput use/1: version 1\n".to_owned(), nothing()));
    let refusal = "lockstep: the conditions do not hold; the operations of --else were done\n";
    assert_eq!(kv(&lock), (Some(3), "get lock: it is me\n".to_owned(), refusal.to_owned()));
    let more = [
        "txn",
        "--if",
        "lock=value:it is me",
        "--if",
        "use/1=exists",
        "--then",
        "put use/2 b",
        "--then",
        "put use/3 c",
    ];
    assert_eq!(kv(&more).0, Some(0));

    assert_eq!(kv(&["scan"]), (Some(0), "lock\tit is me\nuse/1\ta\nuse/2\tb\nuse/3\tc\n".to_owned(), nothing()));
    assert_eq!(
        kv(&["scan", "--prefix", "use/", "--limit", "2", "--keys-only"]),
        (Some(0), "use/1\nuse/2\n".to_owned(), "lockstep: more keys follow; go on with --from \"use/3\"\n".to_owned())
    );
    assert_eq!(
        kv(&["scan", "--from", "m", "--to", "use/2", "-o", "json"]),
        (Some(0), "{\"entries\":[{\"key\":\"use/1\",\"value\":\"a\",\"version\":1}]}\n".to_owned(), nothing())
    );
    let cas = ["cas", "none", "--expect-exists", "x"];
    assert_eq!(
        kv(&cas),
        (Some(3), nothing(), "lockstep: key \"none\" does not exist; nothing was written\n".to_owned())
    );
}

#[test]
fn dev_killed_leaves_no_replica_running() {
    let dir = TempDir::new().unwrap();
    let base = ports();
    let mut dev = Dev::start(&dir, base);
    dev.says("ready after");
    put(base, "colour", "blue");
    let replicas = dev.children();
    assert!(replicas.len() == 3 && replicas.iter().copied().all(lives));
    dev.signal(Signal::KILL);
    assert_eq!(dev.ended(), None);
    until("no replica runs", || (!replicas.iter().copied().any(lives)).then_some(()));

    let mut dev = Dev::start(&dir, base);
    dev.says("ready after");
    assert_eq!(get(base, "colour"), "blue");
}

#[test]
fn replica_that_ends_is_started_again() {
    let dir = TempDir::new().unwrap();
    let base = ports();
    let mut dev = Dev::start(&dir, base);
    dev.says("ready after");
    let before = dev.children();
    kill_process(before[1], Signal::KILL).unwrap();
    let line = dev.says(" ended ");
    assert!(line.ends_with("signal: 9 (SIGKILL)); starting it again"), "{line}");
    until("three replicas run", || (dev.children().len() == 3).then_some(()));
    put(base, "colour", "blue");
    assert_eq!(get(base + 10, "colour"), "blue");
}

/// What `lockstep` prints as JSON, with the admin token of the service that runs from `dir`.
fn json(dir: &TempDir, base: u16, args: &[&str]) -> Value {
    let token = dir.path().join(".lockstep/kv/admin-token");
    let mut command = Command::new(env!("CARGO_BIN_EXE_lockstep"));
    command.args(args).args(["--output", "json", "--endpoints", &format!("127.0.0.1:{base}")]);
    let done = command.env("LOCKSTEP_ADMIN_TOKEN_FILE", token).output().unwrap();
    assert!(done.status.success(), "{args:?}: {}", String::from_utf8_lossy(&done.stderr));
    serde_json::from_slice(&done.stdout).unwrap()
}

#[test]
fn snapshot_of_a_running_service_is_taken_and_shown() {
    let dir = TempDir::new().unwrap();
    let base = ports();
    let mut dev = Dev::start(&dir, base);
    dev.says("ready after");
    put(base, "colour", "blue");
    let taken = json(&dir, base, &["snapshot"]);
    let height = taken["height"].as_u64().unwrap();
    let replicas = taken["replicas"].as_array().unwrap();
    assert!(replicas.len() == 3 && replicas.iter().filter(|row| row["has"] == true).count() >= 2, "{taken}");
    until("all replicas show it", || {
        let rows = json(&dir, base, &["status"]);
        let shown = |row: &Value| row["snapshots"]["height"] == height && row["snapshots"]["agreed_height"] == height;
        rows.as_array().unwrap().iter().all(shown).then_some(())
    });
    let table = lockstep(&["status", "--endpoints", &format!("127.0.0.1:{base}")]);
    let table = String::from_utf8(table.stdout).unwrap();
    assert!(table.contains("SNAPSHOT") && !table.contains("trouble"), "{table}");

    let guess = ["snapshot", "--admin-token", "a guess", "--endpoints", &format!("127.0.0.1:{base}")];
    let refused = lockstep(&guess);
    assert_eq!(refused.status.code(), Some(1));
    let text = String::from_utf8(refused.stderr).unwrap();
    assert!(text.ends_with(" refused: this is not the service's admin token\n"), "{text}");
}

#[test]
fn dev_of_a_resource_with_small_snapshots_takes_one_by_itself() {
    let dir = TempDir::new().unwrap();
    let base = ports();
    let file = dir.path().join("small.yaml");
    let small = "spec:\n  snapshots: {everyBytes: 4Ki, retainLogBytes: 1Mi}\n";
    fs::write(&file, fs::read_to_string(example()).unwrap().replace("spec:\n", small)).unwrap();
    let mut dev = Dev::start_of(&file, &dir, base);
    dev.says("ready after");
    for pid in dev.children() {
        let command = fs::read_to_string(format!("/proc/{}/cmdline", pid.as_raw_nonzero())).unwrap();
        assert!(command.contains("\0--retain-bytes=1048576\0"), "{command:?}");
    }
    put(base, "large", &"v".repeat(5000));
    until("all replicas show a snapshot", || {
        let rows = json(&dir, base, &["status"]);
        let shown = |row: &Value| row["snapshots"]["height"].as_u64().is_some_and(|height| height > 0);
        rows.as_array().unwrap().iter().all(shown).then_some(())
    });
}

#[test]
fn snapshot_without_a_majority_says_who_was_tried() {
    let dir = TempDir::new().unwrap();
    let base = ports();
    let mut dev = Dev::start(&dir, base);
    dev.says("ready after");
    for pid in &dev.children()[1..] {
        kill_process(*pid, Signal::STOP).unwrap();
    }
    let token = dir.path().join(".lockstep/kv/admin-token");
    let endpoint = format!("127.0.0.1:{base}");
    let options = ["--admin-token-file", token.to_str().unwrap(), "--timeout", "3s", "--endpoints", &endpoint];
    let failed = lockstep(&[&["snapshot"], &options[..]].concat());
    assert_eq!(failed.status.code(), Some(1));
    let text = String::from_utf8(failed.stderr).unwrap();
    assert!(text.starts_with(&format!("lockstep: no replica took the call; tried {endpoint} (")), "{text}");
}

#[test]
fn transfer_makes_the_named_replica_lead() {
    let dir = TempDir::new().unwrap();
    let base = ports();
    let mut dev = Dev::start(&dir, base);
    dev.says("ready after");
    let rows = until("all are ready, and one leads", || {
        let rows = json(&dir, base, &["status"]).as_array().unwrap().clone();
        let ready = rows.iter().filter(|row| row["ready"] == true).count() == 3;
        (ready && rows.iter().any(|row| row["role"] == "leader")).then_some(rows)
    });
    let others: Vec<&Value> = rows.iter().filter(|row| row["role"] != "leader").collect();
    let (first, second) = (others[0], others[1]);
    let by_slot = json(&dir, base, &["transfer", &format!("r{}", first["slot"])]);
    assert_eq!((&by_slot["leader"], &by_slot["slot"]), (&first["replica"], &first["slot"]));
    let again = json(&dir, base, &["transfer", &format!("{}", first["slot"])]);
    assert_eq!(again["leader"], again["leader_before"], "it leads already");
    let by_identity = json(&dir, base, &["transfer", &second["replica"].as_str().unwrap()[..12]]);
    assert_eq!(by_identity["leader"], second["replica"]);
    let by_address = json(&dir, base, &["transfer", first["address"].as_str().unwrap()]);
    assert_eq!((&by_address["leader"], &by_address["leader_before"]), (&first["replica"], &second["replica"]));
    let to_any = json(&dir, base, &["transfer"]);
    assert_ne!(to_any["leader"], first["replica"]);
    put(base, "colour", "blue");

    let unknown = ["transfer", "r9", "--admin-token", "any", "--endpoints", &format!("127.0.0.1:{base}")];
    let refused = lockstep(&unknown);
    assert_eq!(refused.status.code(), Some(2));
    let text = String::from_utf8(refused.stderr).unwrap();
    assert!(text.starts_with("lockstep: no voter is called \"r9\"; they are r1 "), "{text}");
}

#[test]
fn members_replace_a_replica_that_lost_its_disk() {
    let dir = TempDir::new().unwrap();
    let base = ports();
    let mut dev = Dev::start(&dir, base);
    dev.says("ready after");
    put(base, "colour", "blue");
    let rows = |args: &[&str]| json(&dir, base, args);
    // The last one is not at the endpoint that the commands are given.
    let lost = rows(&["status"]).as_array().unwrap().iter().find(|row| row["slot"] == 3).unwrap().clone();
    let address = format!("127.0.0.1:{}", base + 20);
    fs::remove_dir_all(dir.path().join(".lockstep/kv/r3")).unwrap();
    kill_process(dev.children()[2], Signal::KILL).unwrap();
    dev.says("starting it again");
    let status = |field: &str, value: Value| {
        let rows = json(&dir, base + 20, &["status"]);
        rows.as_array().unwrap().iter().any(|row| row["address"] == address && row[field] == value).then_some(())
    };
    until("it is up again, without a genesis", || {
        let done = lockstep(&["status", "--endpoints", &address]);
        String::from_utf8_lossy(&done.stdout).contains("has no genesis yet").then_some(())
    });

    let standby = rows(&["members", "add", &address]);
    assert_eq!(
        (&standby["slot"], &standby["member"], &standby["settled"]),
        (&4.into(), &"standby".into(), &true.into())
    );
    status("role", "standby".into()).expect("status says what it is");
    let voter = rows(&["members", "add", &address, "--voter"]);
    assert_eq!((&voter["replica"], &voter["member"]), (&standby["replica"], &"voter".into()));
    assert_eq!(rows(&["members", "promote", "r4"])["epoch"], voter["epoch"], "it votes already");
    let old = lost["replica"].as_str().unwrap();
    let removed = rows(&["members", "remove", &old[..8]]);
    assert_eq!((&removed["slot"], &removed["member"]), (&3.into(), &"removed".into()));
    assert_eq!(removed["voters"], serde_json::json!([1, 2, 4]));
    assert_eq!(rows(&["members", "remove", "r3"])["epoch"], removed["epoch"], "it is removed already");

    let list = rows(&["members", "list"]);
    assert_eq!((&list["epoch"], &list["settled"]), (&removed["epoch"], &true.into()));
    assert_eq!(list["removed"][0]["replica"], lost["replica"]);
    let members = list["members"].as_array().unwrap();
    let addresses: Vec<&Value> = members.iter().map(|member| &member["address"]).collect();
    let expected = [0, 10, 20].map(|port| Value::from(format!("127.0.0.1:{}", base + port)));
    assert_eq!(addresses, expected.iter().collect::<Vec<_>>());
    assert!(members.iter().all(|member| member["votes"] == true && member["connected"] == true), "{list}");

    // The one that leads is removed, too: it hands over first.
    let leads = members.iter().find(|member| member["leads"] == true).unwrap();
    let removed = rows(&["members", "remove", leads["address"].as_str().unwrap()]);
    assert_eq!((&removed["slot"], &removed["member"]), (&leads["slot"], &"removed".into()));
    assert_eq!(get(base + 20, "colour"), "blue");
    let shown = lockstep(&["members", "list", "--endpoints", &format!("127.0.0.1:{}", base + 20)]);
    let shown = String::from_utf8(shown.stdout).unwrap();
    assert!(shown.contains("epoch 5, settled") && shown.contains("  voter  ") && shown.contains("  leads"), "{shown}");
}

#[test]
fn port_in_use_is_named() {
    let dir = TempDir::new().unwrap();
    let base = ports();
    let _taken = TcpListener::bind(("127.0.0.1", base + 11)).unwrap();
    let done = command(&dir, base, &[]).output().unwrap();
    assert_eq!(done.status.code(), Some(1));
    let expected = format!(
        "lockstep: port {} on 127.0.0.1 is in use; stop what uses it, or choose other ports with --port-base\n",
        base + 11
    );
    assert_eq!(String::from_utf8(done.stderr).unwrap(), expected);
}

#[test]
fn folder_in_use_is_refused() {
    let dir = TempDir::new().unwrap();
    let mut dev = Dev::start(&dir, ports());
    dev.says("ready after");
    let done = command(&dir, ports(), &[]).output().unwrap();
    assert_eq!(done.status.code(), Some(1));
    assert_eq!(
        String::from_utf8(done.stderr).unwrap(),
        "lockstep: another `lockstep dev` runs from .lockstep/kv; stop that one, or choose another folder with --data-dir\n"
    );
}

#[test]
fn folder_that_cannot_be_written_is_named() {
    let dir = TempDir::new().unwrap();
    fs::write(dir.path().join("file"), "in the way").unwrap();
    let done = command(&dir, ports(), &["--data-dir", "file/data"]).output().unwrap();
    assert_eq!(done.status.code(), Some(1));
    let text = String::from_utf8(done.stderr).unwrap();
    assert!(text.starts_with("lockstep: failed to create file/data: "), "{text}");
    assert!(text.ends_with("choose another folder with --data-dir\n"), "{text}");
}

#[test]
fn folder_of_another_shape_is_refused() {
    let dir = TempDir::new().unwrap();
    let base = ports();
    let mut dev = Dev::start(&dir, base);
    dev.says("ready after");
    dev.signal(Signal::TERM);
    assert_eq!(dev.ended(), Some(0));

    let five = dir.path().join("five.yaml");
    fs::write(&five, fs::read_to_string(example()).unwrap().replace("replicas: 3", "replicas: 5")).unwrap();
    let done =
        Command::new(env!("CARGO_BIN_EXE_lockstep")).arg("dev").arg(&five).current_dir(dir.path()).output().unwrap();
    assert_eq!(done.status.code(), Some(1));
    let text = String::from_utf8(done.stderr).unwrap();
    assert_eq!(
        text,
        "lockstep: .lockstep/kv holds 3 replicas, and this resource asks for 5: `lockstep dev` does not change their number; \
         set spec.replicas back to 3, choose another folder with --data-dir, or to start a new service, remove .lockstep/kv\n"
    );
}

#[test]
fn file_that_breaks_a_rule_is_refused_in_the_words_of_the_rule() {
    let dir = TempDir::new().unwrap();
    let two = dir.path().join("two.yaml");
    fs::write(&two, fs::read_to_string(example()).unwrap().replace("replicas: 3", "replicas: 2")).unwrap();
    let mut text = String::new();
    let mut child = Command::new(env!("CARGO_BIN_EXE_lockstep"))
        .arg("dev")
        .arg(&two)
        .current_dir(dir.path())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stderr.take().unwrap().read_to_string(&mut text).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(2));
    assert!(text.contains("two.yaml: spec.replicas: "), "{text}");
    assert!(!dir.path().join(".lockstep").exists());
}

#[test]
fn file_that_is_missing_is_a_usage_error() {
    let done = lockstep(&["dev", "/nowhere/kv.yaml"]);
    assert_eq!(done.status.code(), Some(2));
    let text = String::from_utf8(done.stderr).unwrap();
    assert_eq!(
        text,
        "lockstep: failed to read /nowhere/kv.yaml: No such file or directory (os error 2); \
         examples/kv.yaml is one to start with\n"
    );
}
