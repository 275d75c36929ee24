//! `pointsman demo`: pretend backends and a router before them, for a machine without models.

use core::net::{IpAddr, Ipv4Addr, SocketAddr};
use core::time::Duration;

use tokio::signal::unix::{SignalKind, signal};

use crate::adapters::memory::MemoryStore;
use crate::config::Config;
use crate::core::sync::Arc;
use crate::pretend::{Model, Pretend, Profile};

use super::instance::Instance;
use super::{CliError, DemoArgs, serve};

const LOOPBACK: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

pub(super) fn run(args: &DemoArgs) -> Result<(), CliError> {
    serve::runtime()?.block_on(demo(args.listen))
}

async fn demo(listen: SocketAddr) -> Result<(), CliError> {
    let paced =
        |profile: Profile| profile.tokens(24).paced(Duration::from_millis(200), Duration::from_millis(30));
    let ollama = Profile::ollama([Model::new("llama3.2:latest").loaded(), Model::new("qwen3:8b")]);
    let ollama = Pretend::start(paced(ollama), LOOPBACK).map_err(CliError::Pretend)?;
    let openai = Profile::openai([Model::new("gpt-oss-20b")]);
    let openai = Pretend::start(paced(openai), LOOPBACK).map_err(CliError::Pretend)?;

    let yaml = format!(
        "endpoints:\n  - {}\n  - {}\nmax_concurrent_connections: 4\n",
        ollama.endpoint(),
        openai.endpoint()
    );
    let (config, _) = Config::parse(&yaml, &|_| None).expect("the demo's own configuration is good");
    let instance = Instance::start(config, listen, Arc::new(MemoryStore::new())).await?;
    println!("{}", guide(instance.address(), &ollama, &openai));
    let mut terminate = signal(SignalKind::terminate()).map_err(CliError::Signals)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(CliError::Signals)?;
    #[expect(clippy::async_yields_async, reason = "the second future is when to stop waiting: soon")]
    let stop = async {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        // In a demo nobody is sorry for a stream that is cut off.
        tokio::time::sleep(core::time::Duration::from_secs(1))
    };
    Ok(instance.run(stop).await?)
}

/// What to try, to copy.
fn guide(router: SocketAddr, ollama: &Pretend, openai: &Pretend) -> String {
    format!(
        "pointsman listens on http://{router}, before two pretend backends:
  {}  speaks Ollama, serves llama3.2:latest and qwen3:8b
  {}  speaks OpenAI, serves gpt-oss-20b

Try it:
  curl http://{router}/api/chat -d '{{\"model\":\"llama3.2\",\"messages\":[{{\"role\":\"user\",\"content\":\"hello\"}}]}}'
  curl http://{router}/v1/chat/completions -H 'content-type: application/json' -d '{{\"model\":\"gpt-oss-20b\",\"messages\":[{{\"role\":\"user\",\"content\":\"hello\"}}]}}'
  curl http://{router}/api/tags
  curl http://{router}/api/token_counts
  curl -N http://{router}/api/usage-stream
  OLLAMA_HOST={router} ollama run llama3.2

Stop it with Ctrl-C.",
        ollama.endpoint(),
        openai.endpoint()
    )
}
