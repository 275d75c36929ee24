//! The command line: `serve`, `demo`, `check-config`, `tail`, `audit`.
#![allow(
    clippy::disallowed_types,
    clippy::disallowed_methods,
    reason = "clock, chance and tokio live out here"
)]

mod audit;
mod check_config;
mod demo;
mod files;
mod instance;
mod logs;
mod open_files;
mod serve;
mod tail;

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
    /// Print a router's events, one JSON object per line, for as long as it runs and beyond
    Tail(TailArgs),
    /// Read the event log of a stopped router and check what was promised: 0 if all holds, 1 if not and then the
    /// first event that shows it is named, 2 if nothing can be checked. Reads a copy (in TMPDIR) and changes nothing
    Audit(AuditArgs),
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
    /// Where token counts and events are kept
    #[arg(long, default_value = "data")]
    data: PathBuf,
    /// If the data is damaged, set it aside and start empty
    #[arg(long)]
    recover: bool,
    /// The data is a backup that was put back: no number that an event was given since is used again
    #[arg(long)]
    restored: bool,
}

#[derive(Debug, Args)]
struct DemoArgs {
    /// Where the router listens
    #[arg(long, default_value = "127.0.0.1:12434")]
    listen: SocketAddr,
}

#[derive(Debug, Args)]
struct TailArgs {
    /// The router
    #[arg(long, default_value = "http://127.0.0.1:12434")]
    url: String,
    /// Begin behind this number (0: with the oldest event kept), or with what is later than this time, RFC
    /// 3339; without it: with what comes from now on
    #[arg(long, value_name = "N|TIME", value_parser = tail::After::parse)]
    after: Option<tail::After>,
    /// Only events of this kind; a `*` may stand at the end, as in `request.*`. Can be repeated
    #[arg(long, value_name = "KIND")]
    kinds: Vec<String>,
    /// Only events of this endpoint, by its URL as configured. Can be repeated
    #[arg(long, value_name = "URL")]
    endpoints: Vec<String>,
    /// Only events of this model. Can be repeated
    #[arg(long, value_name = "MODEL")]
    models: Vec<String>,
    /// Print checkpoints too, as {"checkpoint":N}: with filters, the number to begin behind next time
    #[arg(long)]
    checkpoints: bool,
    /// The router's key
    #[arg(long, env = "NOMYO_ROUTER_API_KEY", hide_env_values = true)]
    api_key: Option<String>,
}

#[derive(Debug, Args)]
struct AuditArgs {
    /// The folder that was `serve`'s --data
    #[arg(long)]
    data: PathBuf,
    /// One JSON object instead of lines
    #[arg(long)]
    json: bool,
}

/// Runs one command. Failures are one sentence on standard error and exit code 1; wrong usage is 2.
pub fn run() -> ExitCode {
    let cli = Cli::parse();
    logs::start(cli.log_format);
    let done = match cli.command {
        Command::Serve(args) => serve::run(&args),
        Command::Demo(args) => demo::run(&args),
        Command::CheckConfig(args) => check_config::run(&args),
        Command::Tail(args) => tail::run(args),
        Command::Audit(args) => return audit::run(&args),
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
    #[error(transparent)]
    FeedSetup(#[from] crate::feed::SetupError),
    #[error(transparent)]
    Feed(Box<crate::feed::FeedError<std::io::Error>>),
}
