//! `cargo +nightly fuzz run config`; on stable, `cargo run --bin config -- FILE...` runs the same body once per file.
#![cfg_attr(fuzzing, no_main)]

pointsman_fuzz::target!(pointsman_fuzz::config);
