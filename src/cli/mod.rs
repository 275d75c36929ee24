//! The command line: `serve`, `demo`, `check-config`.
#![allow(
    clippy::disallowed_types,
    clippy::disallowed_methods,
    reason = "clock, chance and tokio live out here"
)]

mod check_config;
mod demo;
mod files;
mod instance;
mod logs;
mod serve;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand, ValueEnum};

/// A router in front of many LLM backends.
#[derive(Debug, Parser)]
#[command(name = "pointsman", version, about, max_term_width = 100)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,

    /// How log lines look; RUST_LOG chooses what is logged (default: info)
    #[arg(long, global = true, value_enum, default_value_t = LogFormat::Plain)]
    log_format: LogFormat,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the router
    Serve(ServeArgs),
    /// Run two pretend backends and a router before them, to try pointsman without a model
    Demo(DemoArgs),
    /// Read the configuration, say what is wrong or odd, and start nothing
    CheckConfig(ConfigArgs),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum LogFormat {
    /// One line of text per event
    Plain,
    /// One JSON object per event
    Json,
}

#[derive(Debug, Args)]
struct ConfigArgs {
    /// The configuration file
    #[arg(long, env = "NOMYO_ROUTER_CONFIG_PATH", default_value = "config.yaml")]
    config: PathBuf,
}

#[derive(Debug, Args)]
struct ServeArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// Where to listen
    #[arg(long, default_value = "127.0.0.1:12434")]
    listen: SocketAddr,
    /// Where token counts are kept
    #[arg(long, default_value = "data")]
    data: PathBuf,
    /// If the data is damaged, set it aside and start empty
    #[arg(long)]
    recover: bool,
}

#[derive(Debug, Args)]
struct DemoArgs {
    /// Where the router listens
    #[arg(long, default_value = "127.0.0.1:12434")]
    listen: SocketAddr,
}

/// Runs one command. Failures are one sentence on standard error and exit code 1; wrong usage is 2.
pub fn run() -> ExitCode {
    let cli = Cli::parse();
    logs::start(cli.log_format);
    let done = match cli.command {
        Command::Serve(args) => serve::run(&args),
        Command::Demo(args) => demo::run(&args),
        Command::CheckConfig(args) => check_config::run(&args),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            let _ = std::io::Write::write_fmt(&mut std::io::stderr(), format_args!("pointsman: {failure}\n"));
            ExitCode::FAILURE
        }
    }
}

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
enum CliError {
    #[error(transparent)]
    Config(#[from] files::ConfigFileError),
    #[error(transparent)]
    Instance(#[from] instance::InstanceError),
    #[error("the runtime cannot start: {0}")]
    Runtime(std::io::Error),
    #[error("a pretend backend cannot start: {0}")]
    Pretend(std::io::Error),
    #[error("the signal handlers cannot be set up: {0}")]
    Signals(std::io::Error),
}
