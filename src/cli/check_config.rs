//! `pointsman check-config`: what `serve` would say about the file, and what it would do with it.

use super::{CliError, ConfigArgs, files};

pub(super) fn run(args: &ConfigArgs) -> Result<(), CliError> {
    let (config, warnings) = files::read(&args.config)?;
    for warning in &warnings {
        println!("warning: {warning}");
    }
    for endpoint in &config.endpoints {
        let key = if endpoint.api_key.is_some() { ", with a key" } else { "" };
        println!("endpoint {} ({:?}{key})", endpoint.url, endpoint.kind);
    }
    let slots = config.max_concurrent_connections;
    println!(
        "{} is good: {} endpoint(s), {slots} slot(s) per endpoint and model",
        args.config.display(),
        config.endpoints.len()
    );
    Ok(())
}
