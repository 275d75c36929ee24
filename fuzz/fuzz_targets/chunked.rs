//! `cargo +nightly fuzz run chunked`; on stable, `cargo run --bin chunked -- FILE...` runs the same body once per file.
#![cfg_attr(fuzzing, no_main)]

pointsman_fuzz::target!(pointsman_fuzz::chunked);
