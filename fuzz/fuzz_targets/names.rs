//! `cargo +nightly fuzz run names`; on stable, `cargo run --bin names -- FILE...` runs the same body once per file.
#![cfg_attr(fuzzing, no_main)]

pointsman_fuzz::target!(pointsman_fuzz::names);
