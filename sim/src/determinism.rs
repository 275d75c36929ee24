//! Does a seed come out the same in another process? And would we notice if it did not?
//!
//! Each seed runs in two processes of their own; their hashes must be equal. The canary mixes the
//! process's number into the hash of one process only: if that is not noticed, nothing would be.

use std::collections::BTreeMap;
use std::env;
use std::process::Command;

use crate::run;
use crate::scenario;
use crate::streams::Seed;

/// Seeds whose hashes differ between two processes.
pub(crate) fn differing(first: u64, count: u64, canary: bool) -> Result<Vec<u64>, String> {
    let (one, other) = (hashes(first, count, false)?, hashes(first, count, canary)?);
    if one.len() as u64 != count || other.len() as u64 != count {
        return Err(format!("{} and {} of {count} hashes came back", one.len(), other.len()));
    }
    Ok(one.iter().filter(|(seed, hash)| other.get(seed) != Some(hash)).map(|(seed, _)| *seed).collect())
}

/// The hashes as another process sees them.
fn hashes(first: u64, count: u64, canary: bool) -> Result<BTreeMap<u64, String>, String> {
    let program = env::current_exe().map_err(|error| error.to_string())?;
    let mut command = Command::new(program);
    command.args(["hashes", &format!("{first}..+{count}")]);
    if canary {
        command.arg("--canary");
    }
    let output = command.output().map_err(|error| error.to_string())?;
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).into_owned());
    }
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let line = |line: &str| {
        let (seed, hash) = line.split_once(' ')?;
        Some((seed.parse().ok()?, hash.to_owned()))
    };
    Ok(text.lines().filter_map(line).collect())
}

/// The hash of one seed in this process.
pub(crate) fn hash(seed: u64) -> u64 {
    run::run(&scenario::plan(Seed(seed), None), false).hash
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_gives_the_same_hash_again_with_lines_or_without() {
        for seed in 0..40 {
            let plan = scenario::plan(Seed(seed), None);
            let (bare, kept) = (run::run(&plan, false), run::run(&plan, true));
            assert_eq!((bare.hash, bare.events), (kept.hash, kept.events), "seed {seed}");
            assert!(!kept.lines.is_empty());
        }
    }

    #[test]
    fn the_hash_of_a_seed_does_not_depend_on_the_thread_or_on_what_ran_before() {
        let here: Vec<u64> = (0..10).map(hash).collect();
        let there = std::thread::scope(|scope| {
            let thread = scope.spawn(|| (0..10).rev().map(hash).collect::<Vec<_>>());
            thread.join().expect("no panic")
        });
        assert_eq!(here, there.into_iter().rev().collect::<Vec<_>>());
    }

    #[test]
    fn seeds_differ() {
        let all: std::collections::BTreeSet<u64> = (0..30).map(hash).collect();
        assert_eq!(all.len(), 30);
    }
}
