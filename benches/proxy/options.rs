//! The bench's command line.

use std::path::PathBuf;
use std::time::Duration;

use crate::contender::Name;
use crate::traffic::{Load, Style};

/// What `--help` says.
pub(crate) const HELP: &str = "\
A load bench: pointsman next to nginx as a plain proxy, in the same run.

cargo bench --bench proxy -- [OPTIONS]

  --quick              one short round of everything (about 15 s instead of 60)
  --secs S             length of a measured window in seconds
  --rounds N           windows per load and proxy, interleaved
  --only LOAD          json, burst, paced or idle; may be given more than once
  --contenders LIST    of direct, nginx, pointsman, separated by commas
  --style STYLE        openai (/v1/chat/completions) or ollama (/api/chat)
  --streams N          idle streams to hold open
  --json FILE          also write every figure as lines of JSON
  --record FILE        put what is printed into this document, between its marker lines
  --router PATH        another pointsman binary
";

/// What to run.
#[derive(Debug, Clone)]
pub(crate) struct Options {
    pub(crate) window: Duration,
    pub(crate) warmup: Duration,
    pub(crate) rounds: usize,
    pub(crate) loads: Vec<Load>,
    /// `None` for all that can be run here.
    pub(crate) contenders: Option<Vec<Name>>,
    pub(crate) style: Style,
    pub(crate) streams: usize,
    pub(crate) json: Option<PathBuf>,
    pub(crate) record: Option<PathBuf>,
    pub(crate) router: PathBuf,
}

impl Options {
    /// Reads the arguments. The error is what is wrong with them; `None` asks for help.
    pub(crate) fn parse(args: &[String]) -> Result<Option<Options>, String> {
        let mut options = Options {
            window: Duration::from_secs(2),
            warmup: Duration::from_millis(500),
            rounds: 3,
            loads: Vec::new(),
            contenders: None,
            style: Style::OpenAi,
            streams: 1000,
            json: None,
            record: None,
            router: PathBuf::from(env!("CARGO_BIN_EXE_pointsman")),
        };
        let mut secs = None;
        let mut rounds = None;
        let mut rest = args.iter();
        while let Some(arg) = rest.next() {
            let mut value = || rest.next().ok_or_else(|| format!("{arg} needs a value"));
            match arg.as_str() {
                // What cargo adds.
                "--bench" => {}
                "--help" | "-h" => return Ok(None),
                "--quick" => {
                    options.window = Duration::from_millis(1000);
                    options.warmup = Duration::from_millis(350);
                    options.rounds = 1;
                }
                "--secs" => secs = Some(number(arg, value()?, 0.1, 600.0)?),
                "--rounds" => rounds = Some(number(arg, value()?, 1.0, 1000.0)? as usize),
                "--streams" => options.streams = number(arg, value()?, 1.0, 20_000.0)? as usize,
                "--only" => options.loads.push(one_of(arg, value()?, &Load::ALL, Load::name)?),
                "--style" => {
                    options.style = one_of(arg, value()?, &[Style::OpenAi, Style::Ollama], Style::name)?
                }
                "--contenders" => {
                    let names = value()?.split(',').map(|name| one_of(arg, name, &Name::ALL, Name::name));
                    options.contenders = Some(names.collect::<Result<_, _>>()?);
                }
                "--json" => options.json = Some(PathBuf::from(value()?)),
                "--record" => options.record = Some(PathBuf::from(value()?)),
                "--router" => options.router = PathBuf::from(value()?),
                _ => return Err(format!("there is no option {arg}")),
            }
        }
        options.window = secs.map_or(options.window, Duration::from_secs_f64);
        options.rounds = rounds.unwrap_or(options.rounds);
        if options.loads.is_empty() {
            options.loads = Load::ALL.to_vec();
        }
        Ok(Some(options))
    }
}

fn number(option: &str, text: &str, least: f64, most: f64) -> Result<f64, String> {
    let value = text.parse().ok().filter(|value| (least..=most).contains(value));
    value.ok_or_else(|| format!("{option} takes a number from {least} to {most}, not {text}"))
}

fn one_of<T: Copy>(option: &str, text: &str, all: &[T], name: fn(T) -> &'static str) -> Result<T, String> {
    let found = all.iter().copied().find(|item| name(*item) == text);
    found.ok_or_else(|| {
        let names: Vec<_> = all.iter().map(|item| name(*item)).collect();
        format!("{option} takes one of {}, not {text}", names.join(", "))
    })
}
