//! The command line and environment that both runners share.

use std::env;
use std::num::NonZero;
use std::path::PathBuf;
use std::thread::available_parallelism;

/// What one run is asked to do.
#[derive(Debug)]
pub struct Options {
    /// Only what contains one of these; everything if empty.
    pub filters: Vec<String>,
    /// `--list`: say what there is, run nothing.
    pub list: bool,
    /// `--one KEY`: this process explores one thing and answers with one JSON line.
    pub one: Option<String>,
    /// `--seed N` and `--scheduler NAME`, to replay a random run.
    pub seed: Option<u64>,
    /// See `seed`.
    pub scheduler: Option<String>,
    /// `--trace N`: shows what happens in the N-th iteration.
    pub trace: Option<u64>,
    /// `FULL=1`: the nightly form.
    pub full: bool,
    /// `TABLES=write`: rewrites the committed counts and the README's table.
    pub write_tables: bool,
    /// `JOBS=N`: processes at a time; as many as there are cores if unset.
    pub jobs: usize,
    /// The file that gets JSON lines.
    pub report: Option<PathBuf>,
}

impl Options {
    /// Reads them; `report` names the environment variable for the JSON lines.
    pub fn read(report: &str) -> Options {
        let number = |text: Option<String>| text.and_then(|text| text.parse().ok());
        let mut options = Options {
            filters: Vec::new(),
            list: false,
            one: None,
            seed: None,
            scheduler: None,
            trace: None,
            full: env::var("FULL").is_ok_and(|full| full == "1"),
            write_tables: env::var("TABLES").is_ok_and(|tables| tables == "write"),
            jobs: env::var("JOBS")
                .ok()
                .and_then(|jobs| jobs.parse().ok())
                .unwrap_or_else(|| available_parallelism().map_or(1, NonZero::get)),
            report: env::var_os(report).map(PathBuf::from),
        };
        let mut arguments = env::args().skip(1);
        while let Some(argument) = arguments.next() {
            match argument.as_str() {
                "--list" => options.list = true,
                "--one" => options.one = arguments.next(),
                "--seed" => options.seed = number(arguments.next()),
                "--scheduler" => options.scheduler = arguments.next(),
                "--trace" => options.trace = number(arguments.next()),
                // Flags of the standard test harness, which this is not.
                flag if flag.starts_with('-') => {}
                filter => options.filters.push(filter.to_owned()),
            }
        }
        options
    }

    /// Whether this name was asked for.
    pub fn wants(&self, name: &str) -> bool {
        self.filters.is_empty() || self.filters.iter().any(|filter| name.contains(filter.as_str()))
    }
}
