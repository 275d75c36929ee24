//! `cargo +nightly fuzz run listing`; on stable, `cargo run --bin listing -- FILE...` runs the same body once per file.
#![cfg_attr(fuzzing, no_main)]

pointsman_fuzz::target!(pointsman_fuzz::listing);
