//! The configuration file, read together with the environment.

use std::path::{Path, PathBuf};

use crate::config::{Config, ConfigError, Warning};

/// The configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub(super) enum ConfigFileError {
    #[error("cannot read the configuration {}: {error} (name another with --config)", .path.display())]
    Unreadable { path: PathBuf, error: std::io::Error },
    #[error("the configuration {} is wrong:{}", .path.display(), list(.errors))]
    Wrong { path: PathBuf, errors: Vec<ConfigError> },
}

fn list(errors: &[ConfigError]) -> String {
    errors.iter().map(|error| format!("\n  - {error}")).collect()
}

/// Reads and checks `path`, with the environment's overrides.
pub(super) fn read(path: &Path) -> Result<(Config, Vec<Warning>), ConfigFileError> {
    let yaml = std::fs::read_to_string(path)
        .map_err(|error| ConfigFileError::Unreadable { path: path.to_owned(), error })?;
    let environment = |name: &str| std::env::var(name).ok();
    Config::parse(&yaml, &environment)
        .map_err(|errors| ConfigFileError::Wrong { path: path.to_owned(), errors })
}
