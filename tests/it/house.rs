//! The house: which room may know what.

use std::path::{Path, PathBuf};

fn files(folder: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join(folder)];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            match path.is_dir() {
                true => folders.push(path),
                false => found.push(path),
            }
        }
    }
    assert!(!found.is_empty(), "{folder} has files");
    found
}

/// Words that may not stand in a room's code, comments aside; and the file in it that may use them.
const BANNED: [(&str, &[&str], &str); 5] = [
    (
        "src/core",
        &["tokio", "axum", "reqwest", "crate::ports", "crate::flow", "crate::wire", "crate::http"],
        "",
    ),
    ("src/core", &["std::sync", "RandomState", "SystemTime", "std::time", "HashMap", "HashSet"], "sync.rs"),
    ("src/flow", &["tokio", "axum", "reqwest", "crate::adapters", "crate::http", "std::time", "HashMap"], ""),
    ("src/wire", &["tokio", "crate::core", "crate::flow", "crate::ports", "crate::config", "HashMap"], ""),
    ("src/config", &["tokio", "std::fs", "std::env", "crate::core", "crate::flow", "HashMap"], ""),
];

#[test]
fn arrows_point_one_way() {
    for (folder, words, except) in BANNED {
        for path in files(folder).iter().filter(|path| !path.ends_with(except) || except.is_empty()) {
            let text = std::fs::read_to_string(path).unwrap();
            // A test that is built with the server's features may take an adapter for its world.
            let text = text.split("#[cfg(all(test, feature = \"server\"))]").next().unwrap_or_default();
            for (number, line) in text.lines().enumerate() {
                let code = line.split("//").next().unwrap_or_default();
                for word in words {
                    assert!(!code.contains(word), "{}:{}: `{word}` in {folder}", path.display(), number + 1);
                }
            }
        }
    }
}

#[test]
fn every_atomic_and_lock_of_the_core_comes_from_its_sync_file() {
    for path in files("src/core").iter().filter(|path| !path.ends_with("sync.rs")) {
        let text = std::fs::read_to_string(path).unwrap();
        for word in ["std::sync::atomic", "core::sync::atomic", "Mutex", "RwLock"] {
            assert!(!text.contains(word), "{}: `{word}`", path.display());
        }
    }
}
