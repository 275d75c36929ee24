//! Worlds worth keeping: plans that once broke a promise, as files that stand on their own when the
//! seeds they came from have lost their meaning.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::plan::Plan;

/// One kept world.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Kept {
    /// The promise it broke when it was kept.
    pub(crate) promise: String,
    /// What was seen then.
    pub(crate) why: String,
    /// The zoo's entry that was put back then, if it was one of them: under its patch it shows the bug again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) zoo: Option<String>,
    pub(crate) plan: Plan,
}

/// The files in `folder`, by name.
pub(crate) fn files(folder: &Path) -> io::Result<Vec<PathBuf>> {
    if !folder.exists() {
        return Ok(Vec::new());
    }
    let mut files = Vec::new();
    for file in fs::read_dir(folder)? {
        let path = file?.path();
        if path.extension().is_some_and(|extension| extension == "json") {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

/// Reads one.
pub(crate) fn read(path: &Path) -> io::Result<Kept> {
    Ok(serde_json::from_slice(&fs::read(path)?)?)
}

/// Writes one; returns where.
pub(crate) fn write(folder: &Path, kept: &Kept) -> io::Result<PathBuf> {
    fs::create_dir_all(folder)?;
    let name = kept.zoo.as_ref().unwrap_or(&kept.promise);
    let path = folder.join(format!("{name}-{}.json", kept.plan.seed));
    let mut text = serde_json::to_vec_pretty(kept)?;
    text.push(b'\n');
    fs::write(&path, text)?;
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run;

    #[test]
    fn every_kept_world_of_the_zoo_names_an_entry_that_the_simulator_looks_for() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let worlds = files(&root.join("corpus")).expect("readable");
        for id in worlds.iter().filter_map(|path| read(path).expect("readable").zoo) {
            let patch = root.join(format!("zoo/{id}.patch"));
            let text = fs::read_to_string(&patch).unwrap_or_else(|why| panic!("{}: {why}", patch.display()));
            assert!(
                text.lines().any(|line| line == "detector: sim"),
                "{id} is not looked for by the simulator"
            );
        }
    }

    #[test]
    fn every_kept_world_keeps_its_promises_now() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus");
        for path in files(&folder).expect("readable") {
            let kept = read(&path).unwrap_or_else(|why| panic!("{}: {why}", path.display()));
            let violation = run::run(&kept.plan, false).violation;
            assert_eq!(violation, None, "{}", path.display());
        }
    }
}
