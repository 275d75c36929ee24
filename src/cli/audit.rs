//! `pointsman audit`: what the event log of a stopped router shows of its promises. It reads a copy: the
//! data stays as it is, to the byte.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use serde_json::json;

use crate::adapters::sled::{OpenError, SledStore};
use crate::flow::audit::{AuditError, Report, audit};

use super::{AuditArgs, CliError, serve};

/// The exit code if nothing could be checked, as for any wrong usage.
const UNCHECKED: u8 = 2;

/// Nothing can be checked.
#[derive(Debug, thiserror::Error)]
enum Unchecked {
    #[error("there is no store in {}: name the folder that was --data of a router that ran", .0.display())]
    NoStore(PathBuf),
    #[error("the store {} is so damaged that no event of it can be named ({detail})", path.display())]
    Unreadable { path: PathBuf, detail: String },
    #[error(transparent)]
    Open(#[from] OpenError),
    #[error(transparent)]
    Audit(#[from] AuditError),
    #[error(transparent)]
    Cli(#[from] CliError),
}

pub(super) fn run(args: &AuditArgs) -> ExitCode {
    let report = match report(&args.data) {
        Ok(report) => report,
        Err(why) => {
            let _ = writeln!(io::stderr(), "pointsman: {why}");
            return ExitCode::from(UNCHECKED);
        }
    };
    let text = if args.json { in_json(&report) } else { in_lines(&report) };
    // Who closed the pipe has the exit code still.
    let _ = writeln!(io::stdout(), "{text}");
    if report.broken.is_some() { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

fn report(data: &Path) -> Result<Report, Unchecked> {
    let folder = serve::store_folder(data);
    if !folder.is_dir() {
        // Opening it would make one.
        return Err(Unchecked::NoStore(data.to_owned()));
    }
    let store = SledStore::inspect(&folder).map_err(|error| match error {
        OpenError::Damaged { path, detail } => Unchecked::Unreadable { path, detail },
        other => other.into(),
    })?;
    Ok(serve::runtime()?.block_on(audit(&store))?)
}

fn in_json(report: &Report) -> String {
    let Report { floor, tip, events, requests, lives, crashes, broken, notes } = report;
    let broken = broken.as_ref().map(|finding| {
        let broken = &finding.broken;
        json!({ "seq": finding.seq, "promise": broken.promise.name(), "why": broken.why })
    });
    json!({
        "floor": floor, "tip": tip, "events": events, "requests": requests, "lives": lives, "crashes": crashes,
        "broken": broken, "notes": notes,
    })
    .to_string()
}

fn in_lines(report: &Report) -> String {
    let Report { floor, tip, events, requests, lives, crashes, broken, notes } = report;
    let mut text = format!(
        "events {floor} to {tip}: {events} read, {requests} request(s), {lives} life or lives, {crashes} crash(es)\n"
    );
    for note in notes {
        text += &format!("note: {note}\n");
    }
    match broken {
        Some(finding) => text += &finding.to_string(),
        None => text += "every promise that the log can show holds",
    }
    text
}
