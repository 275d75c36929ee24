//! What the bench prints: a table of what was measured beside its target, and into a document if asked.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use crate::paired::Change;

/// Between these two lines of a document stands what the newest recorded run printed.
const RECORD: [&str; 2] =
    ["<!-- begin: cargo bench --bench feed -->", "<!-- end: cargo bench --bench feed -->"];

/// A target.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Bound {
    Most(f64),
    Least(f64),
}

/// Everything said so far.
pub(crate) struct Report {
    said: String,
    notes: Vec<String>,
    record: Option<PathBuf>,
}

impl Report {
    /// Begins with the machine's facts.
    pub(crate) fn new(record: Option<PathBuf>, window: Duration, rounds: usize) -> Report {
        let mut report = Report { said: String::new(), notes: Vec::new(), record };
        let arguments: Vec<_> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
        let command = format!("cargo bench --bench feed -- {}", arguments.join(" "));
        report.say(command.trim_end_matches(&[' ', '-'][..]));
        let cores = std::thread::available_parallelism().map_or(0, usize::from);
        let cpu = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let cpu = cpu.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or("unknown CPU");
        let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        let cpu = cpu.trim_start_matches(&[' ', '\t', ':'][..]);
        report.say(&format!("{cores} cores, {cpu}, Linux {}", kernel.trim()));
        let secs = window.as_secs_f64();
        report.say(&format!("windows of {secs:.1} s, {rounds} round(s); medians of rounds\n"));
        let (part, what, measured, target) = ("part", "what", "measured", "target");
        report.say(&format!("{part:<8} {what:<56} {measured:>12} {:<9} {target:>11}", ""));
        report
    }

    /// A measured value, and whether it meets its target.
    pub(crate) fn row(&mut self, part: &str, what: &str, value: f64, unit: &str, target: Option<Bound>) {
        let (target, verdict) = match target {
            None => (String::new(), ""),
            Some(Bound::Most(most)) => (format!("<= {}", short(most)), verdict(value <= most)),
            Some(Bound::Least(least)) => (format!(">= {}", short(least)), verdict(value >= least)),
        };
        let line = format!("{part:<8} {what:<56} {:>12} {unit:<9} {target:>11} {verdict}", short(value));
        self.say(line.trim_end());
    }

    /// A change that is met only if its whole interval is, and missed only if none of it is.
    pub(crate) fn change(&mut self, part: &str, what: &str, change: Change, most: f64) {
        let verdict = match change {
            Change { most: worst, .. } if worst <= most => "met",
            Change { least: best, .. } if best > most => "missed",
            _ => "not resolved",
        };
        let (value, target) = (short(change.middle), format!("<= {}", short(most)));
        self.say(&format!("{part:<8} {what:<56} {value:>12} {:<9} {target:>11} {verdict}", "%"));
    }

    /// A sentence for below the table.
    pub(crate) fn note(&mut self, note: String) {
        self.notes.push(note);
    }

    /// Prints the notes and writes the record; nothing wrong is recorded.
    pub(crate) fn finish(mut self, is_right: bool) -> io::Result<()> {
        self.say("");
        for note in std::mem::take(&mut self.notes) {
            self.say(&note);
        }
        let Some(document) = self.record.filter(|_| is_right) else { return Ok(()) };
        let text = std::fs::read_to_string(&document)?;
        let [begin, end] = RECORD;
        let (Some(from), Some(to)) = (text.find(begin), text.find(end)) else {
            let why = format!("{} has no line `{begin}` before a line `{end}`", document.display());
            return Err(io::Error::new(io::ErrorKind::InvalidData, why));
        };
        let (before, after) = (&text[..from + begin.len()], &text[to..]);
        std::fs::write(document, format!("{before}\n```text\n{}\n```\n{after}", self.said.trim_end()))
    }

    fn say(&mut self, line: &str) {
        println!("{line}");
        self.said.push_str(line);
        self.said.push('\n');
    }
}

fn verdict(is_met: bool) -> &'static str {
    if is_met { "met" } else { "missed" }
}

fn short(value: f64) -> String {
    if value.fract() == 0.0 || value.abs() >= 1000.0 { format!("{value:.0}") } else { format!("{value:.2}") }
}

/// The value below which this share of all values lies; zero of nothing.
pub(crate) fn quantile(values: &mut [u32], share: f64) -> f64 {
    values.sort_unstable();
    let at = (values.len() as f64 * share) as usize;
    values.get(at.min(values.len().saturating_sub(1))).copied().map_or(0.0, f64::from)
}
