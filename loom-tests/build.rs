//! Grows the zoo: for every patch in `sim/zoo/` that loom or shuttle has to find, a copy of the router's
//! source with that one bug put back.
//!
//! A patch that touches `src/core` only gets a copy of `src/core`, which refers to itself by relative
//! paths and so can live in any module. One that touches `src/flow`, or is looked for by whole requests,
//! gets a copy of core, ports and flow, with `crate::` pointed at the copy; the pure rooms `wire` and
//! `config` are the unpatched crate's. The copies are modules of the test binary, next to the unpatched
//! crate, and the very same models run over both. A patch that does not apply is *stale*: the runner
//! reports it as a failure.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::{env, fs};

const WHOLE: [&str; 3] = ["core", "flow", "ports.rs"];

fn main() {
    let here = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("cargo names the manifest's folder"));
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo names the output folder"));
    for watched in ["../src", "../sim/zoo", "tests", "build.rs"] {
        println!("cargo::rerun-if-changed={watched}");
    }
    let driver = match (env::var_os("CARGO_FEATURE_LOOM"), env::var_os("CARGO_FEATURE_SHUTTLE")) {
        (Some(_), _) => "loom",
        (None, Some(_)) => "shuttle",
        (None, None) => return,
    };
    let mut patches: Vec<PathBuf> = fs::read_dir(here.join("../sim/zoo"))
        .expect("there is a zoo")
        .map(|entry| entry.expect("a readable entry").path())
        .filter(|path| path.extension().is_some_and(|ext| ext == "patch"))
        .collect();
    patches.sort();

    let (mut modules, mut table) = (String::new(), String::new());
    for path in patches {
        let patch = Patch::read(&path);
        let detectors: Vec<&str> =
            patch.all("detector").filter_map(|d| d.strip_prefix(driver)).map(str::trim).collect();
        if detectors.is_empty() {
            continue;
        }
        let module = patch.one("id").replace('-', "_");
        let stale = grow(&here, &out.join("zoo").join(&module), &patch, &detectors, driver).err();
        if stale.is_none() {
            let root = out.join("zoo").join(&module).join("mod.rs");
            writeln!(modules, "#[path = {root:?}]\npub(crate) mod {module};").expect("a string grows");
        }
        for detector in detectors {
            let file = detector.split("::").next().expect("a detector names its file");
            let models = match &stale {
                None => format!("{module}::{file}::ALL"),
                Some(_) => "&[]".to_owned(),
            };
            writeln!(
                table,
                "loom_tests::zoo::Entry {{ id: {:?}, detector: {detector:?}, promise: {:?}, origin: {:?}, \
                 models: {models}, stale: {stale:?} }},",
                patch.one("id"),
                patch.one("promise"),
                patch.one("origin"),
            )
            .expect("a string grows");
        }
    }
    let text =
        format!("{modules}\npub(crate) static ZOO: &[loom_tests::zoo::Entry<super::Item>] = &[\n{table}];\n");
    write(&out.join("zoo.rs"), &text);
}

/// One patch file: a header of `key: value` lines, then a unified diff.
struct Patch {
    header: Vec<(String, String)>,
    /// By file, each hunk as the lines before and the lines after.
    hunks: BTreeMap<String, Vec<(String, String)>>,
}

impl Patch {
    fn read(path: &Path) -> Patch {
        let text = fs::read_to_string(path).expect("a readable patch");
        let mut patch = Patch { header: Vec::new(), hunks: BTreeMap::new() };
        let mut file = None;
        for line in text.lines() {
            if let Some(name) = line.strip_prefix("+++ b/src/") {
                file = Some(name.trim().to_owned());
            } else if line.starts_with("--- ") {
                file = None;
            } else if let Some(file) = &file {
                let hunks = patch.hunks.entry(file.clone()).or_default();
                if line.starts_with("@@") {
                    hunks.push(Default::default());
                    continue;
                }
                let (before, after) = hunks.last_mut().expect("a hunk begins with @@");
                let (kind, rest) = line.split_at_checked(1).unwrap_or((" ", ""));
                if kind != "+" {
                    before.push_str(rest);
                    before.push('\n');
                }
                if kind != "-" {
                    after.push_str(rest);
                    after.push('\n');
                }
            } else if let Some((key, value)) = line.split_once(": ") {
                patch.header.push((key.to_owned(), value.trim().to_owned()));
            }
        }
        for key in ["id", "origin", "failure", "detector", "promise"] {
            assert!(patch.all(key).next().is_some(), "{} has no `{key}:` line", path.display());
        }
        for shows in patch.all("shows") {
            panic!("{}: `shows: {shows}` belongs into the `promise` line", path.display());
        }
        patch
    }

    fn all<'a>(&'a self, key: &str) -> impl Iterator<Item = &'a str> {
        self.header.iter().filter(move |(name, _)| name == key).map(|(_, value)| value.as_str())
    }

    fn one(&self, key: &str) -> &str {
        self.all(key).next().expect("checked when it was read")
    }
}

/// Writes the patched copy and the module that joins it with the models that look for the bug.
fn grow(here: &Path, root: &Path, patch: &Patch, detectors: &[&str], driver: &str) -> Result<(), String> {
    let flows = detectors.iter().any(|detector| detector.starts_with("routing::"));
    let whole = flows || patch.hunks.keys().any(|file| !file.starts_with("core/"));
    let parts: &[&str] = if whole { &WHOLE } else { &["core"] };
    let mut files = BTreeMap::new();
    for part in parts {
        collect(&here.join("../src").join(part), part, &mut files);
    }
    for (file, hunks) in &patch.hunks {
        let text = files.get_mut(file).ok_or_else(|| format!("src/{file} is not there"))?;
        for (before, after) in hunks {
            match text.matches(before.as_str()).count() {
                1 => *text = text.replacen(before, after, 1),
                n => return Err(format!("a hunk for src/{file} matches {n} places")),
            }
        }
    }
    let at = format!("crate::zoo::{}::", patch.one("id").replace('-', "_"));
    for (file, text) in files {
        // The router's unit tests stay out, although the copy is part of a test binary.
        let text = text.replace("cfg(test)", "cfg(any())").replace("cfg(all(test,", "cfg(all(any(),");
        let text =
            text.replace("crate::wire", "pointsman::wire").replace("crate::config", "pointsman::config");
        write(&root.join(file), &text.replace("crate::", &at));
    }
    let mut module = String::from("#![allow(warnings, clippy::all, clippy::restriction)]\n");
    if whole {
        module.push_str("pub use pointsman::{config, wire};\n");
    }
    for part in parts {
        writeln!(module, "pub mod {};", part.trim_end_matches(".rs")).expect("a string grows");
    }
    let models = here.join("tests").join(driver);
    let mut names: Vec<&str> = detectors.iter().filter_map(|detector| detector.split("::").next()).collect();
    if whole {
        names.push("world");
    }
    names.sort_unstable();
    names.dedup();
    let common = here.join("tests/common/mod.rs");
    writeln!(module, "#[path = {common:?}]\npub(crate) mod common;").expect("a string grows");
    for name in names {
        let path = models.join(format!("{name}.rs"));
        writeln!(module, "#[path = {path:?}]\npub(crate) mod {name};").expect("a string grows");
    }
    write(&root.join("mod.rs"), &module);
    Ok(())
}

fn collect(path: &Path, name: &str, files: &mut BTreeMap<String, String>) {
    if path.is_dir() {
        for entry in fs::read_dir(path).expect("a readable folder") {
            let entry = entry.expect("a readable entry");
            let child = entry.file_name().into_string().expect("source files have plain names");
            collect(&entry.path(), &format!("{name}/{child}"), files);
        }
    } else if name.ends_with(".rs") {
        files.insert(name.to_owned(), fs::read_to_string(path).expect("readable source"));
    }
}

/// Leaves a file that is already right alone, so that nothing is built anew for it.
fn write(path: &Path, text: &str) {
    if fs::read_to_string(path).is_ok_and(|present| present == text) {
        return;
    }
    fs::create_dir_all(path.parent().expect("a file stands in a folder")).expect("a writable output folder");
    fs::write(path, text).expect("a writable output folder");
}
