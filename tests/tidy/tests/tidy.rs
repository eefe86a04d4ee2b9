//! Arrows only go down; documents say what is there; nothing unfinished lands.

use std::collections::{BTreeMap, BTreeSet};

use lockstep_tidy::{files, read, root};

/// What each of our crates may depend on among our own. Dev-dependencies are free.
const ARROWS: [(&str, &[&str]); 15] = [
    ("lockstep-types", &[]),
    ("lockstep-wal", &[]),
    ("lockstep-api", &[]),
    ("lockstep-consensus", &["lockstep-types"]),
    ("lockstep-machine", &["lockstep-types"]),
    ("lockstep-session", &["lockstep-types"]),
    ("lockstep-wire", &["lockstep-types"]),
    ("lockstep-engine", &["lockstep-consensus", "lockstep-machine", "lockstep-types", "lockstep-wal"]),
    (
        "lockstep-replica",
        &[
            "lockstep-consensus",
            "lockstep-engine",
            "lockstep-machine",
            "lockstep-types",
            "lockstep-wal",
            "lockstep-wire",
        ],
    ),
    (
        "lockstep-simulator",
        &[
            "lockstep-consensus",
            "lockstep-engine",
            "lockstep-machine",
            "lockstep-session",
            "lockstep-types",
            "lockstep-wal",
        ],
    ),
    ("lockstep-client", &["lockstep-session", "lockstep-types", "lockstep-wire"]),
    ("lockstep-operator", &["lockstep-api", "lockstep-client", "lockstep-types"]),
    ("lockstep", &["lockstep-api", "lockstep-client", "lockstep-replica", "lockstep-types"]),
    ("lockstep-e2e", &["lockstep-api", "lockstep-client", "lockstep-types", "lockstep-wire"]),
    ("lockstep-tidy", &[]),
];

/// What the pure crates may depend on outside: nothing with a clock, a socket, a thread or a hash order.
const PURE: [(&str, &[&str]); 3] = [
    ("lockstep-types", &["blake3", "bytes", "thiserror"]),
    ("lockstep-consensus", &["bytes"]),
    ("lockstep-session", &["bytes", "thiserror"]),
];

#[test]
fn dependencies_between_crates_point_down() {
    let packages = packages();
    let ours: BTreeSet<&String> = packages.keys().collect();
    let allowed: BTreeMap<&str, &[&str]> = ARROWS.into_iter().collect();
    for (name, dependencies) in &packages {
        let allowed = allowed.get(name.as_str()).unwrap_or_else(|| panic!("{name} is new: give it a place in ARROWS"));
        for dependency in dependencies.iter().filter(|dependency| ours.contains(dependency)) {
            assert!(allowed.contains(&dependency.as_str()), "{name} may not depend on {dependency}");
        }
    }
}

#[test]
fn pure_crates_depend_on_nothing_impure() {
    let packages = packages();
    for (name, allowed) in PURE {
        for dependency in packages[name].iter().filter(|dependency| !dependency.starts_with("lockstep-")) {
            assert!(allowed.contains(&dependency.as_str()), "{name} is pure and may not depend on {dependency}");
        }
    }
}

/// Our packages with their ordinary and build dependencies.
fn packages() -> BTreeMap<String, BTreeSet<String>> {
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".into());
    let output = std::process::Command::new(cargo)
        .args(["metadata", "--no-deps", "--format-version", "1", "--offline"])
        .current_dir(root())
        .output()
        .expect("cargo runs");
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).expect("cargo metadata is JSON");
    let text = |value: &serde_json::Value| value.as_str().expect("a string").to_owned();
    metadata["packages"]
        .as_array()
        .expect("packages")
        .iter()
        .map(|package| {
            let dependencies = package["dependencies"].as_array().expect("dependencies").iter();
            let ordinary = dependencies.filter(|dependency| dependency["kind"] != "dev");
            (text(&package["name"]), ordinary.map(|dependency| text(&dependency["name"])).collect())
        })
        .collect()
}

#[test]
fn modules_open_with_a_header() {
    for file in files(&[".rs"]) {
        let text = read(&file);
        assert!(text.starts_with("//!"), "{} does not open with a header: //! what it is, and is not", file.display());
    }
}

#[test]
fn nothing_unfinished_lands() {
    let marks = [
        concat!("TO", "DO"),
        concat!("FIX", "ME"),
        concat!("XX", "X:"),
        concat!("#[ign", "ore"),
        concat!("to", "do!("),
    ];
    for file in files(&[".rs", ".sh", ".go", ".yaml", ".proto", ".toml"]) {
        let text = read(&file);
        for (number, line) in text.lines().enumerate() {
            for mark in marks {
                assert!(!line.contains(mark), "{}:{}: {mark}", file.display(), number + 1);
            }
        }
    }
}

#[test]
fn files_carry_no_path_of_a_machine() {
    for file in files(&[".rs", ".sh", ".go", ".yaml", ".md", ".proto", ".toml", "Makefile", "Dockerfile"]) {
        let text = read(&file);
        for path in [concat!("/ro", "ot/."), concat!("/wo", "rk/"), concat!("/ho", "me/")] {
            assert!(!text.contains(path), "{} names {path}", file.display());
        }
    }
}

#[test]
fn documented_errors_have_their_tests() {
    let document = read(&root().join("docs/errors.md"));
    let code: String = files(&[".rs", ".go", "selftest"]).iter().map(|file| read(file)).collect();
    let mut rows = 0;
    for line in document.lines().filter(|line| line.starts_with("| ") && !line.starts_with("| input")) {
        let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
        assert!(cells.len() >= 3, "docs/errors.md: a row is input, test, message: {line}");
        for test in cells[1].split(", ") {
            let name = test.trim_matches('`');
            let name = name.rsplit("::").next().expect("split gives one part at least");
            assert!(
                code.contains(&format!("fn {name}(")) || code.contains(&format!("\"{name}\"")),
                "docs/errors.md names test {name}, which does not exist"
            );
        }
        rows += 1;
    }
    assert!(rows >= 12, "docs/errors.md has only {rows} rows");
}

#[test]
fn every_script_has_its_rule_and_every_rule_its_script() {
    let folder = root().join("replica/consensus/testscripts");
    let table = read(&folder.join("RULES.md"));
    let scripts: BTreeSet<String> = std::fs::read_dir(&folder)
        .expect("the scripts")
        .map(|entry| entry.expect("a script").file_name().into_string().expect("names are UTF-8"))
        .filter(|name| !name.contains('.'))
        .collect();
    let named: BTreeSet<String> = table
        .lines()
        .filter(|line| line.starts_with("| ") && !line.starts_with("| rule"))
        .filter_map(|line| line.split('|').nth(2))
        .map(|cell| cell.trim().to_owned())
        .collect();
    assert_eq!(scripts, named, "replica/consensus/testscripts and its RULES.md differ");
    for script in &scripts {
        assert!(read(&folder.join(script)).starts_with("# "), "{script} does not open with its rule");
    }
}

#[test]
fn links_in_documents_lead_somewhere() {
    for file in files(&[".md"]) {
        let text = read(&file);
        for link in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let target = link.split('#').next().unwrap_or_default();
            if target.is_empty() || target.contains("://") {
                continue;
            }
            let path = file.parent().expect("a folder").join(target);
            assert!(path.exists(), "{} links to {target}, which is not there", file.display());
        }
    }
}
