//! The fuzz targets' bodies on stable: on the seeds, on arbitrary bytes, and on seeds that were mutated the way
//! libFuzzer does it, with words of each target's language.

use core::fmt;
use core::ops::Range;
use std::path::Path;

use pointsman_fuzz::{CONTROL_LEN, Grammar, TARGETS, Target};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{Index, select};
use proptest::test_runner::{Config, TestCaseError, TestRunner};

/// How many inputs of each sort a target gets.
const CASES: u32 = 8000;

/// The longest input, in bytes; mutation stops there.
const LEN_MAX: usize = 4096;

/// An input, printed so that it can be pasted.
#[derive(Clone)]
struct Input(Vec<u8>);

impl fmt::Debug for Input {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "b\"{}\"", self.0.escape_ascii())
    }
}

/// One change to an input.
#[derive(Clone, Debug)]
enum Edit {
    Put(Index, u8),
    Insert(Index, Vec<u8>),
    /// A word takes the place of as many bytes.
    Overwrite(Index, Vec<u8>),
    Remove(Index, usize),
    Repeat(Index, usize, usize),
    Truncate(Index),
    /// The rest of another seed, from some place on.
    Cross(Index, Index, Index),
}

impl Edit {
    fn apply(self, input: &mut Vec<u8>, seeds: &[Vec<u8>]) {
        let place = |index: Index, input: &[u8]| index.index(input.len() + 1);
        match self {
            Edit::Put(at, byte) => {
                if let Some(old) = input.get_mut(at.index(LEN_MAX)) {
                    *old = byte;
                }
            }
            Edit::Insert(at, word) => {
                let at = place(at, input);
                input.splice(at..at, word);
            }
            Edit::Overwrite(at, word) => {
                let at = place(at, input);
                let end = input.len().min(at + word.len());
                input.splice(at..end, word);
            }
            Edit::Remove(at, len) => {
                let at = place(at, input);
                input.drain(at..input.len().min(at + len));
            }
            Edit::Repeat(at, len, times) => {
                let at = place(at, input);
                let piece = input[at..input.len().min(at + len)].repeat(times);
                input.splice(at..at, piece);
            }
            Edit::Truncate(at) => input.truncate(place(at, input)),
            Edit::Cross(at, seed, from) => {
                let other = seed.get(seeds);
                input.truncate(place(at, input));
                input.extend_from_slice(&other[place(from, other)..]);
            }
        }
        input.truncate(LEN_MAX);
    }
}

fn edits(words: &'static [&'static str], count: Range<usize>) -> impl Strategy<Value = Vec<Edit>> {
    let word = move || select(words).prop_map(|word| word.as_bytes().to_vec());
    let edit = prop_oneof![
        1 => (any::<Index>(), any::<u8>()).prop_map(|(at, byte)| Edit::Put(at, byte)),
        3 => (any::<Index>(), word()).prop_map(|(at, word)| Edit::Insert(at, word)),
        3 => (any::<Index>(), word()).prop_map(|(at, word)| Edit::Overwrite(at, word)),
        1 => (any::<Index>(), 1usize..20).prop_map(|(at, len)| Edit::Remove(at, len)),
        1 => (any::<Index>(), 1usize..80, 1usize..4).prop_map(|(at, len, times)| Edit::Repeat(at, len, times)),
        1 => any::<Index>().prop_map(Edit::Truncate),
        1 => any::<[Index; 3]>().prop_map(|[at, seed, from]| Edit::Cross(at, seed, from)),
    ];
    vec(edit, count)
}

fn composed(grammar: Grammar) -> impl Strategy<Value = Vec<u8>> {
    let Grammar { opens, records, joints, closes } = grammar;
    let rest = vec((select(joints), select(records)), 0..6);
    (select(opens), select(records), rest, select(closes)).prop_map(|(open, first, rest, close)| {
        let rest: String = rest.into_iter().flat_map(|(joint, record)| [joint, record]).collect();
        [open, first, &rest, close].concat().into_bytes()
    })
}

fn seeds(target: &Target) -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("seeds").join(target.name);
    let mut files: Vec<_> = folder
        .read_dir()
        .unwrap_or_else(|error| panic!("{}: {error}", folder.display()))
        .map(|entry| entry.expect("the folder can be listed").path())
        .collect();
    // The same order everywhere, so that a failure's numbers mean the same seeds.
    files.sort();
    files.into_iter().map(|file| std::fs::read(file).expect("a seed can be read")).collect()
}

fn run(target: &Target) {
    let seeds = seeds(target);
    assert!(!seeds.is_empty(), "{} has no seeds", target.name);
    seeds.iter().for_each(|seed| (target.check)(seed));

    let words = select(target.words).prop_map(|word| word.as_bytes().to_vec());
    let soup =
        vec(prop_oneof![3 => words, 1 => vec(any::<u8>(), 0..4)], 0..24).prop_map(|parts| parts.concat());
    let arbitrary = prop_oneof![vec(any::<u8>(), 0..300), soup];
    let composed = (composed(target.grammar), edits(target.words, 0..3));
    let mutated = (select(seeds.clone()), edits(target.words, 0..8));
    let edited = move |(mut input, edits): (Vec<u8>, Vec<Edit>)| {
        edits.into_iter().for_each(|edit| edit.apply(&mut input, &seeds));
        input
    };
    for sort in
        [arbitrary.boxed(), composed.prop_map(edited.clone()).boxed(), mutated.prop_map(edited).boxed()]
    {
        let control = prop_oneof![vec(any::<u8>(), CONTROL_LEN), Just(Vec::new())];
        let inputs = (sort, control).prop_map(|(input, control)| Input([input, control].concat()));
        // A runner counts its cases over all its runs, so each sort has its own.
        let mut runner =
            TestRunner::new(Config { cases: CASES, failure_persistence: None, ..Config::default() });
        let ran = runner.run(&inputs, |Input(input)| -> Result<(), TestCaseError> {
            (target.check)(&input);
            Ok(())
        });
        ran.unwrap_or_else(|failure| panic!("{}: {failure}", target.name));
    }
}

macro_rules! targets {
    ($($name:ident),*) => {
        $(
            #[test]
            fn $name() {
                run(TARGETS.iter().find(|target| target.name == stringify!($name)).expect("a known target"));
            }
        )*

        #[test]
        fn every_target_is_run_here() {
            assert_eq!(TARGETS.iter().map(|target| target.name).collect::<Vec<_>>(), [$(stringify!($name)),*]);
        }
    };
}

targets!(chunked, config, listing, names, request, tap);
