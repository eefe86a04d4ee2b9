//! House checks: what the compiler cannot see. The checks are in `tests/`; this crate holds what they share.

use std::path::{Path, PathBuf};

/// The root of the repository.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().expect("the repository")
}

/// All files that git knows, or would take in, with these endings.
pub fn files(endings: &[&str]) -> Vec<PathBuf> {
    let root = root();
    let listed = std::process::Command::new("git")
        .args(["ls-files", "--cached", "--others", "--exclude-standard"])
        .current_dir(&root)
        .output()
        .expect("git is there, since the repository is");
    assert!(listed.status.success(), "git ls-files failed");
    let mut files: Vec<PathBuf> = String::from_utf8(listed.stdout)
        .expect("names are UTF-8")
        .lines()
        .filter(|name| endings.iter().any(|ending| name.ends_with(ending)))
        .map(|name| root.join(name))
        .filter(|path| path.is_file())
        .collect();
    files.sort();
    files
}

/// A file's text.
pub fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|error| panic!("failed to read {}: {error}", path.display()))
}
