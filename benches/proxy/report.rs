//! What the bench prints: a table for people, lines of JSON for programs, and the verdict in its exit code.

use std::fs::File;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};

use crate::contender::Name;
use crate::load::Outcome;
use crate::median::median;
use crate::options::Options;
use crate::traffic::Load;

/// One measured window.
#[derive(Debug, Clone)]
pub(crate) struct Window {
    pub(crate) load: Load,
    pub(crate) name: Name,
    pub(crate) round: usize,
    pub(crate) outcome: Outcome,
}

/// One measurement of idle streams.
#[derive(Debug, Clone)]
pub(crate) struct Idle {
    pub(crate) name: Name,
    pub(crate) streams: u64,
    pub(crate) before_kib: u64,
    pub(crate) after_kib: u64,
    pub(crate) error: Option<String>,
}

impl Idle {
    /// Memory one silent stream holds, in KiB.
    fn per_stream_kib(&self) -> f64 {
        self.after_kib.saturating_sub(self.before_kib) as f64 / self.streams.max(1) as f64
    }
}

/// Everything measured so far.
pub(crate) struct Report {
    windows: Vec<Window>,
    idle: Vec<Idle>,
    file: Option<File>,
    /// Everything printed so far, for the record.
    said: String,
    record: Option<PathBuf>,
}

/// Prints a line and keeps it for the record.
macro_rules! said {
    ($report:expr, $($text:tt)*) => {{
        let line = format!($($text)*);
        println!("{line}");
        $report.said.push_str(&line);
        $report.said.push('\n');
    }};
}

/// Between these two lines of a document stands what the newest recorded run printed.
const RECORD: [&str; 2] =
    ["<!-- begin: cargo bench --bench proxy -->", "<!-- end: cargo bench --bench proxy -->"];

impl Report {
    /// An empty report that begins with the machine's facts.
    pub(crate) fn new(options: &Options, nginx: Option<&Path>) -> io::Result<Report> {
        let file = options.json.as_ref().map(File::create).transpose()?;
        let record = options.record.clone();
        let mut report = Report { windows: Vec::new(), idle: Vec::new(), file, said: String::new(), record };
        let cores = std::thread::available_parallelism().map_or(0, usize::from);
        let version = nginx.map_or_else(|| "not installed".to_owned(), nginx_version);
        let cpu = cpu_model();
        let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        let arguments: Vec<_> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
        let command = format!("cargo bench --bench proxy -- {}", arguments.join(" "));
        said!(report, "{}", command.trim_end_matches(&[' ', '-'][..]));
        said!(
            report,
            "{cores} cores, {cpu}, Linux {}, {version}, {} API",
            kernel.trim(),
            options.style.name()
        );
        said!(
            report,
            "{} round(s) of {:.1} s windows after {:.2} s of warm-up; every answer compared byte for byte\n",
            options.rounds,
            options.window.as_secs_f64(),
            options.warmup.as_secs_f64()
        );
        report.write(json!({
            "kind": "machine", "command": command, "cores": cores, "cpu": cpu, "kernel": kernel.trim(),
            "nginx": version, "style": options.style.name(), "rounds": options.rounds,
            "window_s": options.window.as_secs_f64(), "warmup_s": options.warmup.as_secs_f64(),
        }))?;
        Ok(report)
    }

    /// Adds a window and says that it is done.
    pub(crate) fn window(&mut self, window: Window) -> io::Result<()> {
        let Outcome { seconds, requests, .. } = window.outcome;
        eprintln!(
            "  {:<6} round {} {:<10} {:>9.0} req/s {:>8} CPU us/req",
            window.load.name(),
            window.round + 1,
            window.name.name(),
            requests as f64 / seconds.max(1e-9),
            cpu_text(cpu_per_request(&window)),
        );
        let mut line = json!({
            "kind": "window", "load": window.load.name(), "contender": window.name.name(), "round": window.round,
            "cpu_us_per_request": cpu_per_request(&window),
        });
        merge(&mut line, serde_json::to_value(&window.outcome)?);
        self.windows.push(window);
        self.write(line)
    }

    /// Adds a measurement of idle streams.
    pub(crate) fn idle(&mut self, idle: Idle) -> io::Result<()> {
        eprintln!(
            "  idle   {:<10} {:>6} streams {:>8.1} KiB each",
            idle.name.name(),
            idle.streams,
            idle.per_stream_kib()
        );
        let line = json!({
            "kind": "idle", "contender": idle.name.name(), "streams": idle.streams, "before_kib": idle.before_kib,
            "after_kib": idle.after_kib, "kib_per_stream": idle.per_stream_kib(), "error": idle.error,
        });
        self.idle.push(idle);
        self.write(line)
    }

    /// Prints the tables. Returns how many answers were wrong, and the first one's error.
    pub(crate) fn finish(&mut self) -> io::Result<(u64, Option<String>)> {
        said!(
            self,
            "\n{:<6} {:<10} {:>9} {:>9} {:>9} {:>10} {:>10} {:>10} {:>10} {:>11} {:>6}",
            "load",
            "proxy",
            "req/s",
            "p50 ms",
            "p99 ms",
            "1st p50",
            "1st p99",
            "jit p50",
            "jit p99",
            "CPU us/req",
            "errors"
        );
        for load in Load::ALL {
            for name in Name::ALL {
                self.summary(load, name)?;
            }
        }
        said!(
            self,
            "1st: to the first byte of the body; jit: how far gaps between tokens are from 5 ms. Both in ms.\n"
        );
        for load in Load::ALL {
            for name in Name::ALL {
                self.ratio(load, name)?;
            }
        }
        for idle in &self.idle {
            said!(
                self,
                "idle: {} holds {:.1} KiB per silent stream ({} streams)",
                idle.name.name(),
                idle.per_stream_kib(),
                idle.streams
            );
        }
        let errors = self.windows.iter().map(|window| window.outcome.errors).sum::<u64>()
            + self.idle.iter().filter(|idle| idle.error.is_some()).count() as u64;
        let windows = self.windows.iter().filter_map(|window| window.outcome.error.as_ref());
        let first = windows.chain(self.idle.iter().filter_map(|idle| idle.error.as_ref())).next();
        let outcome = (errors, first.cloned());
        match &self.record {
            Some(document) if errors == 0 => record(document, &self.said)?,
            _ => {}
        }
        Ok(outcome)
    }

    /// The medians over the rounds of one load and proxy.
    fn summary(&mut self, load: Load, name: Name) -> io::Result<()> {
        let windows: Vec<_> =
            self.windows.iter().filter(|row| row.load == load && row.name == name).collect();
        if windows.is_empty() {
            return Ok(());
        }
        let middle =
            |figure: fn(&Outcome) -> f64| median(windows.iter().map(|row| figure(&row.outcome)).collect());
        let rate = middle(|outcome| outcome.requests as f64 / outcome.seconds.max(1e-9));
        let ms = [
            middle(|outcome| f64::from(outcome.p50_us) / 1e3),
            middle(|outcome| f64::from(outcome.p99_us) / 1e3),
            middle(|outcome| f64::from(outcome.first_byte_p50_us) / 1e3),
            middle(|outcome| f64::from(outcome.first_byte_p99_us) / 1e3),
            middle(|outcome| f64::from(outcome.jitter_p50_us) / 1e3),
            middle(|outcome| f64::from(outcome.jitter_p99_us) / 1e3),
        ];
        let jitter = |value: f64| if load == Load::Paced { format!("{value:.2}") } else { "-".to_owned() };
        let cpu = windows.iter().map(|row| cpu_per_request(row)).collect::<Option<Vec<_>>>().map(median);
        let errors: u64 = windows.iter().map(|row| row.outcome.errors).sum();
        said!(
            self,
            "{:<6} {:<10} {:>9.0} {:>9.2} {:>9.2} {:>10.2} {:>10.2} {:>10} {:>10} {:>11} {:>6}",
            load.name(),
            name.name(),
            rate,
            ms[0],
            ms[1],
            ms[2],
            ms[3],
            jitter(ms[4]),
            jitter(ms[5]),
            cpu_text(cpu),
            errors
        );
        let rounds = windows.len();
        self.write(json!({
            "kind": "summary", "load": load.name(), "contender": name.name(), "rounds": rounds,
            "requests_per_s": rate, "p50_ms": ms[0], "p99_ms": ms[1], "first_byte_p50_ms": ms[2],
            "first_byte_p99_ms": ms[3], "jitter_p50_ms": ms[4], "jitter_p99_ms": ms[5],
            "cpu_us_per_request": cpu, "errors": errors,
        }))
    }

    /// CPU per request against nginx in the same round: least, median, most.
    fn ratio(&mut self, load: Load, name: Name) -> io::Result<()> {
        let cpu = |name, round| {
            let row = self.windows.iter().find(|row| (row.load, row.name, row.round) == (load, name, round));
            row.and_then(cpu_per_request).filter(|cpu| *cpu > 0.0)
        };
        if name == Name::Nginx {
            return Ok(());
        }
        let rounds = self.windows.iter().map(|row| row.round + 1).max().unwrap_or(0);
        let mut ratios: Vec<f64> =
            (0..rounds).filter_map(|round| Some(cpu(name, round)? / cpu(Name::Nginx, round)?)).collect();
        ratios.sort_by(f64::total_cmp);
        let (Some(least), Some(most)) = (ratios.first().copied(), ratios.last().copied()) else {
            return Ok(());
        };
        let middle = median(ratios);
        said!(
            self,
            "{}: {} uses {middle:.2}x nginx's CPU per request (rounds from {least:.2}x to {most:.2}x)",
            load.name(),
            name.name()
        );
        self.write(json!({
            "kind": "ratio", "load": load.name(), "contender": name.name(), "against": "nginx",
            "min": least, "median": middle, "max": most,
        }))
    }

    fn write(&mut self, line: Value) -> io::Result<()> {
        match &mut self.file {
            Some(file) => writeln!(file, "{line}"),
            None => Ok(()),
        }
    }
}

/// CPU microseconds per answer's worth of work; `None` without a proxy or without work.
fn cpu_per_request(window: &Window) -> Option<f64> {
    let measured = window.name != Name::Direct && window.outcome.work > 0.0;
    measured.then(|| window.outcome.cpu_us as f64 / window.outcome.work)
}

fn cpu_text(cpu: Option<f64>) -> String {
    cpu.map_or_else(|| "-".to_owned(), |cpu| format!("{cpu:.1}"))
}

fn merge(into: &mut Value, from: Value) {
    if let (Value::Object(into), Value::Object(from)) = (into, from) {
        into.extend(from);
    }
}

/// Puts what was printed into a document, between the two marker lines.
fn record(document: &Path, said: &str) -> io::Result<()> {
    let text = std::fs::read_to_string(document)?;
    let [begin, end] = RECORD;
    let (Some(from), Some(to)) = (text.find(begin), text.find(end)) else {
        let why = format!("{} has no line `{begin}` before a line `{end}`", document.display());
        return Err(io::Error::new(io::ErrorKind::InvalidData, why));
    };
    let (before, after) = (&text[..from + begin.len()], &text[to..]);
    std::fs::write(document, format!("{before}\n```text\n{}\n```\n{after}", said.trim_end()))
}

fn nginx_version(program: &Path) -> String {
    let output = Command::new(program).arg("-v").output();
    output.map_or_else(
        |_| "nginx".to_owned(),
        |output| {
            let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
            said.trim_start_matches("nginx version: ").to_owned()
        },
    )
}

fn cpu_model() -> String {
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("model name"));
    line.map_or_else(
        || "unknown CPU".to_owned(),
        |rest| rest.trim_start_matches(&[' ', '\t', ':'][..]).to_owned(),
    )
}
