//! placeholder
#![forbid(unsafe_code)]
pub mod core;
pub mod ports;
