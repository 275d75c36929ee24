//! Does a seed come out the same in another process? And would we notice if it did not?
//!
//! Each seed runs in two processes of their own; their hashes must be equal. The canary lets the routers of
//! one process draw from the process's number, as from a hash map's seed: a world in which that decides
//! nothing comes out the same, but if no world of several differed, no leak would ever be noticed.

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

/// Worlds that the canary sings in.
pub(crate) const CANARIES: u64 = 20;

/// The hash of one seed in this process, with `noise` in its routers' chance; see [`run::run_with`].
pub(crate) fn hash(seed: u64, noise: u64) -> u64 {
    run::run_with(&scenario::plan(Seed(seed), None), false, noise).hash
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
        let here: Vec<u64> = (0..10).map(|seed| hash(seed, 0)).collect();
        let there = std::thread::scope(|scope| {
            let thread = scope.spawn(|| (0..10).rev().map(|seed| hash(seed, 0)).collect::<Vec<_>>());
            thread.join().expect("no panic")
        });
        assert_eq!(here, there.into_iter().rev().collect::<Vec<_>>());
    }

    #[test]
    fn seeds_differ() {
        let all: std::collections::BTreeSet<u64> = (0..30).map(|seed| hash(seed, 0)).collect();
        assert_eq!(all.len(), 30);
    }

    #[test]
    fn chance_from_outside_shows_in_the_hash_and_only_through_the_world() {
        let differing =
            (0..CANARIES).filter(|seed| hash(*seed, 0) != hash(*seed, 0x1234_5678)).count() as u64;
        assert!(differing > 0, "what a process's number decides is not seen");
        assert!(differing < CANARIES, "the noise is seen where it decides nothing: it is not in the world");
    }
}
