//! What must hold of `wire` and `config` for any bytes whatever.
//!
//! One function per target. It takes bytes, and panics where a claim fails; `README.md` lists the claims. The
//! same functions run under libFuzzer (`fuzz_targets/`) and, on stable, under proptest (`tests/stable.rs`).
//! Nothing here knows how the code under test works: each claim is checked against a plainer reader of its
//! own (a full JSON parser, a list of lines) or against the same code on the same bytes cut otherwise.
#![forbid(unsafe_code)]

#[path = "bodies/chunked.rs"]
mod chunked_body;
#[path = "bodies/config.rs"]
mod config_body;
mod cut;
#[path = "bodies/listing.rs"]
mod listing_body;
#[path = "bodies/names.rs"]
mod names_body;
#[path = "bodies/request.rs"]
mod request_body;
#[path = "bodies/tap.rs"]
mod tap_body;

pub use self::chunked_body::chunked;
pub use self::config_body::config;
pub use self::cut::CONTROL_LEN;
pub use self::listing_body::listing;
pub use self::names_body::names;
pub use self::request_body::request;
pub use self::tap_body::tap;

/// One target: what it is called, what it runs, and what an input is made of, so that random ones get past the
/// first branch.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// The name of the binary and of the folder under `seeds/`.
    pub name: &'static str,
    /// The body.
    pub check: fn(&[u8]),
    /// Words of the language it reads, for mutations.
    pub words: &'static [&'static str],
    /// How whole inputs are put together.
    pub grammar: Grammar,
}

/// Whole inputs: records between an opening and a closing, with a joint after each but the last.
#[derive(Clone, Copy, Debug)]
pub struct Grammar {
    /// What comes first.
    pub opens: &'static [&'static str],
    /// The records.
    pub records: &'static [&'static str],
    /// What may stand between two.
    pub joints: &'static [&'static str],
    /// What comes last.
    pub closes: &'static [&'static str],
}

/// Every target there is.
pub const TARGETS: &[Target] = &[
    Target { name: "chunked", check: chunked, words: chunked_body::WORDS, grammar: chunked_body::GRAMMAR },
    Target { name: "config", check: config, words: config_body::WORDS, grammar: config_body::GRAMMAR },
    Target { name: "listing", check: listing, words: listing_body::WORDS, grammar: listing_body::GRAMMAR },
    Target { name: "names", check: names, words: names_body::WORDS, grammar: names_body::GRAMMAR },
    Target { name: "request", check: request, words: request_body::WORDS, grammar: request_body::GRAMMAR },
    Target { name: "tap", check: tap, words: tap_body::WORDS, grammar: tap_body::GRAMMAR },
];

/// The shell of a target: libFuzzer's entry under cargo-fuzz, else a `main` that replays files.
#[cfg(fuzzing)]
#[macro_export]
macro_rules! target {
    ($body:path) => {
        libfuzzer_sys::fuzz_target!(|data: &[u8]| $body(data));
    };
}

/// The shell of a target: libFuzzer's entry under cargo-fuzz, else a `main` that replays files.
#[cfg(not(fuzzing))]
#[macro_export]
macro_rules! target {
    ($body:path) => {
        fn main() -> std::io::Result<()> {
            $crate::replay($body)
        }
    };
}

/// Runs a body once for each file named on the command line: how a crash found elsewhere is looked at.
///
/// # Errors
/// If a file cannot be read.
pub fn replay(check: fn(&[u8])) -> std::io::Result<()> {
    for file in std::env::args_os().skip(1) {
        check(&std::fs::read(&file)?);
        println!("{}: every claim holds", file.display());
    }
    Ok(())
}
