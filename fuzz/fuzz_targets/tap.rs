//! `cargo +nightly fuzz run tap`; on stable, `cargo run --bin tap -- FILE...` runs the same body once per file.
#![cfg_attr(fuzzing, no_main)]

pointsman_fuzz::target!(pointsman_fuzz::tap);
