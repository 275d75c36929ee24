//! `cargo +nightly fuzz run request`; on stable, `cargo run --bin request -- FILE...` runs the same body once per file.
#![cfg_attr(fuzzing, no_main)]

pointsman_fuzz::target!(pointsman_fuzz::request);
