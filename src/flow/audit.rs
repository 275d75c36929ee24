//! The event log read from its floor to its tip, and what it shows of the promises: `pointsman audit`, and
//! the simulator's last word on a store.
//!
//! What can be seen: every number has a record that can be read (`feed-durable`); the latest time never falls,
//! so a reader who begins at a time misses nothing (`feed-exact`); within the life of one instance every end has
//! its start (`admitted-adds-up`) and, if it left in order, every start its end (`answer-ends`) and no slot was
//! held, and none of the requests that ended at an endpoint was without one (`slot-conservation`); its
//! tokens, by the events, are those that were counted and stored (`token-conservation`). What cannot: a request
//! that was open in a crash, tokens and events of a crash's last moments, a life in which events were
//! refused for want of room, requests that began before the floor. Those are said in the notes.

use core::fmt;

use std::collections::BTreeMap;

use thiserror::Error;

use crate::core::invariants::{Broken, Promise};
use crate::core::ledger::{Tokens, Totals};
use crate::ports::{Seq, Store, StoreError};
use crate::wire::event::{Fields, Kind, label};

use super::flush::{self, LoadError};
use super::log::{Record, WAITING_MAX};
use super::numbers::Numbers;

/// Records read at once.
const PAGE: usize = 1_024;

/// What a log shows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// The oldest number that is kept.
    pub floor: Seq,
    /// The newest.
    pub tip: Seq,
    /// Events that were read.
    pub events: u64,
    /// Of these, requests that began.
    pub requests: u64,
    /// Lives of an instance, those cut by the floor included.
    pub lives: u64,
    /// Of these, lives that did not end in order.
    pub crashes: u64,
    /// The first event at which a promise is broken.
    pub broken: Option<Finding>,
    /// What could not be checked, or is worth knowing: a sentence each.
    pub notes: Vec<String>,
}

/// A broken promise, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// The event at which it shows.
    pub seq: Seq,
    /// Which promise, and what was seen instead.
    pub broken: Broken,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "event {}: {}", self.seq, self.broken)
    }
}

/// The store could not be read to its end.
#[derive(Debug, Error)]
pub enum AuditError {
    /// The log.
    #[error("the event log cannot be read: {0}")]
    Log(#[from] StoreError),
    /// The token counts.
    #[error("the stored token counts cannot be read: {0}")]
    Tokens(#[from] LoadError),
}

/// Audits a store to which nobody writes meanwhile.
pub async fn audit(store: &dyn Store) -> Result<Report, AuditError> {
    let (numbers, _) = Numbers::load(store).await?;
    let log = numbers.stored(store);
    let bounds = log.bounds().await?;
    let mut audit = Audit::new(bounds.floor);
    let mut next = bounds.floor;
    let mut page = PAGE;
    while next <= bounds.tip {
        match log.read(next, page.min((bounds.tip - next + 1) as usize)).await {
            Ok(records) if records.is_empty() => {
                audit.unreadable(next, "it is missing");
                next += 1;
            }
            Ok(records) => {
                for record in &records {
                    match Record::decode(record) {
                        Ok(Record { latest_ms, event }) => match event.fields() {
                            Ok(fields) => audit.event(next, latest_ms, &fields),
                            Err(error) => audit.unreadable(next, &error.to_string()),
                        },
                        Err(error) => audit.unreadable(next, &error.to_string()),
                    }
                    next += 1;
                }
                page = PAGE;
            }
            // One of these records is damaged: find out which.
            Err(StoreError::Corrupt(_)) if page > 1 => page = 1,
            Err(error @ StoreError::Corrupt(_)) => {
                audit.unreadable(next, &error.to_string());
                next += 1;
            }
            Err(error) => return Err(error.into()),
        }
    }
    let (totals, _) = flush::load(store).await?;
    Ok(audit.end(bounds.tip, &totals))
}

/// The audit as a state machine: events go in, in the order of their numbers, and a report comes out.
#[derive(Debug)]
pub struct Audit {
    report: Report,
    next: Seq,
    latest_ms: Option<u64>,
    life: Option<Life>,
    /// Tokens of all finished requests by endpoint and model as events name them, and the last such event.
    logged: BTreeMap<(Box<str>, Box<str>), (Tokens, Seq)>,
    /// What the store must hold now, so far as the lives before tell.
    books: Books,
    /// Nothing is missing: what was logged must be what is stored, row for row.
    complete: bool,
    doubts: Doubts,
}

/// The stored tokens, by the instances that wrote them.
#[derive(Clone, Copy, Debug)]
enum Books {
    /// Nobody said.
    Unknown,
    /// Exactly these, by an instance that left in order.
    Exactly(u64),
    /// At least these; the instance that crashed has logged so many more.
    AtLeast(u64, u64),
}

/// What could not be checked, counted.
#[derive(Debug, Default)]
struct Doubts {
    /// Ends of requests that began before the floor.
    before_floor: u64,
    /// Requests that were open when their instance crashed.
    cut: u64,
    /// Events that the log had no room for, and lives in which that happened.
    lost: u64,
    lossy: u64,
    /// Ends without a start, in a crash that may have kept the word about refused events.
    maybe_lost: u64,
    /// Logged tokens that a crash kept from the store, and crashes where that can be told.
    unstored: u64,
    /// Tokens that were counted in lives without a log, or whose events a crash took.
    unlogged: u64,
    /// Instances that left before they could store every token.
    unflushed: u64,
    /// Lives that do not say how many tokens were counted.
    silent: u64,
}

/// One instance, from its joining on.
#[derive(Debug)]
struct Life {
    /// Its first event is in the log.
    whole: bool,
    events: u64,
    /// All tokens counted before it.
    before: Option<u64>,
    /// Its own, by its events.
    tokens: u64,
    /// Requests that ended at an endpoint: each held a slot.
    placed: u64,
    /// Started and not finished, by name: clients may give one name to several requests.
    open: BTreeMap<Box<str>, u32>,
    /// When it left, and how many tokens had been counted then.
    left: Option<(Seq, Option<u64>)>,
    /// It said that its last token counts could not be stored.
    unflushed: bool,
    /// Events of it are missing.
    lossy: bool,
    /// What looks wrong, unless events turn out to be missing. With how many events came before.
    suspicion: Option<(Finding, u64)>,
}

impl Life {
    fn new(whole: bool, before: Option<u64>) -> Life {
        Life {
            whole,
            events: 0,
            before,
            tokens: 0,
            placed: 0,
            open: BTreeMap::new(),
            left: None,
            unflushed: false,
            lossy: false,
            suspicion: None,
        }
    }

    fn suspect(&mut self, seq: Seq, promise: Promise, why: String) {
        let events = self.events;
        self.suspicion.get_or_insert((Finding { seq, broken: Broken { promise, why } }, events));
    }

    fn open_requests(&self) -> u64 {
        self.open.values().map(|count| u64::from(*count)).sum()
    }
}

/// What is wrong with the slots of a life whose instance has left, if it says how many there were.
fn slots(life: &Life, left: &Fields<'_>) -> Option<(Promise, String)> {
    let (admitted, finished) = (left.admitted?, left.finished?);
    let (in_flight, queued) = (left.in_flight.unwrap_or(0), left.queued.unwrap_or(0));
    if in_flight > 0 || queued > 0 {
        let why = format!(
            "its instance left in order, but {in_flight} slot(s) were held and {queued} waited for one"
        );
        return Some((Promise::SlotConservation, why));
    }
    if admitted != finished {
        let why =
            format!("{admitted} slots and places in the queue were given out, but {finished} given back");
        return Some((Promise::AdmittedAddsUp, why));
    }
    (life.whole && life.placed > admitted).then(|| {
        let why = format!(
            "{} requests ended at an endpoint, but only {admitted} slots were given out",
            life.placed
        );
        (Promise::SlotConservation, why)
    })
}

impl Audit {
    /// Of a log that begins with number `floor`.
    pub fn new(floor: Seq) -> Audit {
        Audit {
            report: Report { floor, ..Report::default() },
            next: floor,
            latest_ms: None,
            life: None,
            logged: BTreeMap::new(),
            books: Books::Unknown,
            complete: floor == 1,
            doubts: Doubts::default(),
        }
    }

    /// The record with this number is not there, or makes no sense.
    pub fn unreadable(&mut self, seq: Seq, why: &str) {
        self.number(seq);
        self.broken(seq, Promise::FeedDurable, format!("it was logged, but cannot be read: {why}"));
        self.latest_ms = None;
        self.complete = false;
        self.life().lossy = true;
    }

    /// The event with this number, and the latest time that was stored with it.
    pub fn event(&mut self, seq: Seq, latest_ms: u64, fields: &Fields<'_>) {
        self.number(seq);
        self.time(seq, latest_ms, fields.time_ms);
        self.report.events += 1;
        let is = |kind: Kind| fields.kind == kind.name();
        if is(Kind::InstanceJoined) {
            self.joined(seq, fields.total_tokens);
        }
        self.life().events += 1;
        if is(Kind::RequestStarted) {
            self.started(seq, fields);
        } else if is(Kind::RequestFinished) {
            self.finished(seq, fields);
        } else if is(Kind::LogLost) {
            self.doubts.lost = self.doubts.lost.saturating_add(fields.events.unwrap_or(1));
            self.complete = false;
            self.life().lossy = true;
        } else if is(Kind::InstanceLeft) {
            self.left(seq, fields);
        }
    }

    fn number(&mut self, seq: Seq) {
        if seq != self.next {
            let why = format!("it stands where {} must stand: numbers have no gaps", self.next);
            self.broken(seq, Promise::FeedDurable, why);
            self.complete = false;
            self.life().lossy = true;
        }
        self.next = seq + 1;
    }

    fn time(&mut self, seq: Seq, latest_ms: u64, time_ms: u64) {
        let before = self.latest_ms.replace(latest_ms);
        let least = before.unwrap_or(0).max(time_ms);
        let exact = before.is_none_or(|before| latest_ms == before.max(time_ms));
        if latest_ms < least || !exact {
            let why = format!(
                "it happened at {time_ms} ms, the latest before it at {}, but the latest with it is said to be {latest_ms}",
                before.map_or_else(|| "an unknown time".to_owned(), |before| format!("{before} ms"))
            );
            self.broken(seq, Promise::FeedExact, why);
        }
    }

    fn joined(&mut self, seq: Seq, before: Option<u64>) {
        self.close();
        match before {
            Some(stored) => self.compare(seq, stored),
            None => self.complete = false,
        }
        if seq == self.report.floor {
            // What came before the log's first event was not logged.
            self.complete &= before == Some(0);
        }
        self.life = Some(self.life_that(true, before));
    }

    fn started(&mut self, seq: Seq, fields: &Fields<'_>) {
        self.report.requests += 1;
        let id = fields.request_id.as_deref().unwrap_or_default();
        let life = self.life();
        *life.open.entry(id.into()).or_default() += 1;
        if let Some((left, _)) = life.left {
            let why = format!("request '{id}' begins after its instance left at {left}");
            life.suspect(seq, Promise::AdmittedAddsUp, why);
        }
    }

    fn finished(&mut self, seq: Seq, fields: &Fields<'_>) {
        let tokens =
            Tokens { input: fields.input_tokens.unwrap_or(0), output: fields.output_tokens.unwrap_or(0) };
        if fields.input_tokens.is_some() || fields.output_tokens.is_some() {
            let name = |name: &Option<std::borrow::Cow<'_, str>>| name.as_deref().unwrap_or_default().into();
            let (sum, last) = self.logged.entry((name(&fields.endpoint), name(&fields.model))).or_default();
            *sum += tokens;
            *last = seq;
        }
        let id = fields.request_id.as_deref().unwrap_or_default();
        let life = self.life();
        life.tokens = life.tokens.saturating_add(tokens.total());
        life.placed += u64::from(fields.endpoint.is_some());
        if let Some(count) = life.open.get_mut(id) {
            *count -= 1;
            if *count == 0 {
                life.open.remove(id);
            }
        } else if life.whole {
            let why = format!("request '{id}' ends, but none of that name had begun, or it had ended before");
            life.suspect(seq, Promise::AdmittedAddsUp, why);
        } else {
            self.doubts.before_floor += 1;
        }
    }

    fn left(&mut self, seq: Seq, fields: &Fields<'_>) {
        let life = self.life();
        let open = life.open_requests();
        if open > 0 {
            let one = life.open.keys().next().map_or("", |id| id);
            let why = format!("its instance left in order, but {open} request(s) had no end: '{one}' is one");
            life.suspect(seq, Promise::AnswerEnds, why);
        }
        if let Some((promise, why)) = slots(life, fields) {
            life.suspect(seq, promise, why);
        }
        life.left = Some((seq, fields.total_tokens));
        life.unflushed = fields.reason.is_some();
        if let (Some(before), Some(after), true) = (life.before, fields.total_tokens, life.whole) {
            let logged = life.tokens;
            if before.saturating_add(logged) != after {
                let counted = after.saturating_sub(before);
                let why = format!(
                    "in its instance's life {counted} tokens were counted, but by its events they are {logged}"
                );
                life.suspect(seq, Promise::TokenConservation, why);
            }
        }
    }

    /// The life that the log is in.
    fn life(&mut self) -> &mut Life {
        if self.life.is_none() {
            // Not its first event, unless it is the log's.
            let life = self.life_that(self.report.floor == 1, None);
            self.complete = false;
            self.life = Some(life);
        }
        self.life.as_mut().expect("there is one by now")
    }

    fn life_that(&mut self, whole: bool, before: Option<u64>) -> Life {
        self.report.lives += 1;
        Life::new(whole, before)
    }

    /// A life is over: now it is known whether anything of it is missing.
    fn close(&mut self) {
        let Some(life) = self.life.take() else { return };
        let crashed = life.left.is_none();
        let doubts = &mut self.doubts;
        doubts.lossy += u64::from(life.lossy);
        doubts.unflushed += u64::from(life.unflushed);
        doubts.silent += u64::from(life.before.is_none() && life.whole);
        self.complete &= !crashed && !life.unflushed;
        if crashed {
            self.report.crashes += 1;
            doubts.cut += life.open_requests();
        }
        self.books = match (life.left, life.before) {
            (Some((_, Some(after))), _) if !life.unflushed => Books::Exactly(after),
            (_, Some(before)) => Books::AtLeast(before, if life.lossy { 0 } else { life.tokens }),
            (_, None) => Books::Unknown,
        };
        match life.suspicion {
            Some(_) if life.lossy => {}
            // Events are refused only behind so many others, and that is said only behind them.
            Some((_, events)) if crashed && events > WAITING_MAX as u64 => doubts.maybe_lost += 1,
            Some((finding, _)) => self.found(finding),
            None => {}
        }
    }

    /// The store holds so many tokens, seen at `seq`.
    fn compare(&mut self, seq: Seq, stored: u64) {
        match self.books {
            Books::Unknown => {}
            Books::Exactly(counted) if stored < counted => {
                let why = format!(
                    "{counted} tokens had been stored when the last instance left, now they are {stored}"
                );
                self.broken(seq, Promise::TokenConservation, why);
            }
            Books::Exactly(counted) => {
                self.doubts.unlogged = self.doubts.unlogged.saturating_add(stored - counted);
                self.complete &= stored == counted;
            }
            Books::AtLeast(counted, _) if stored < counted => {
                let why = format!(
                    "{counted} tokens had been stored before the last instance joined, now they are {stored}"
                );
                self.broken(seq, Promise::TokenConservation, why);
            }
            Books::AtLeast(counted, logged) => {
                let gained = stored - counted;
                self.doubts.unstored = self.doubts.unstored.saturating_add(logged.saturating_sub(gained));
                self.doubts.unlogged = self.doubts.unlogged.saturating_add(gained.saturating_sub(logged));
            }
        }
    }

    /// The log is read; the store holds these tokens.
    pub fn end(mut self, tip: Seq, stored: &Totals) -> Report {
        self.report.tip = tip;
        if self.next != tip + 1 {
            let why = format!("the log should go on to {tip}, but ends with {}", self.next - 1);
            self.broken(self.next, Promise::FeedDurable, why);
        }
        self.close();
        let total = stored.values().fold(0, |sum: u64, tokens| sum.saturating_add(tokens.total()));
        self.compare(tip, total);
        if self.complete && self.report.events > 0 && self.report.broken.is_none() {
            self.rows(tip, stored);
        }
        self.report.notes = self.notes();
        self.report
    }

    /// Nothing is missing, so the rows must agree one by one.
    fn rows(&mut self, tip: Seq, stored: &Totals) {
        let mut rows: BTreeMap<(Box<str>, Box<str>), Tokens> = BTreeMap::new();
        for ((endpoint, model), tokens) in stored {
            let name = |name: &str| Box::from(&*label(name));
            *rows.entry((name(endpoint.as_str()), name(model.as_str()))).or_default() += *tokens;
        }
        let logged = core::mem::take(&mut self.logged);
        let (nothing, zero) = ((Tokens::default(), tip), Tokens::default());
        let keys = logged.keys().chain(rows.keys().filter(|key| !logged.contains_key(*key)));
        for key in keys {
            let (sum, last) = logged.get(key).unwrap_or(&nothing);
            let row = rows.get(key).unwrap_or(&zero);
            if sum != row {
                let (endpoint, model) = key;
                let why = format!(
                    "of {model} at {endpoint} {} + {} tokens are stored, but by the events up to here they are {} + {}",
                    row.input, row.output, sum.input, sum.output
                );
                self.broken(*last, Promise::TokenConservation, why);
            }
        }
    }

    fn broken(&mut self, seq: Seq, promise: Promise, why: String) {
        self.found(Finding { seq, broken: Broken { promise, why } });
    }

    /// The first event counts: what follows from it may be broken only because of it.
    fn found(&mut self, finding: Finding) {
        if self.report.broken.as_ref().is_none_or(|first| finding.seq < first.seq) {
            self.report.broken = Some(finding);
        }
    }

    fn notes(&self) -> Vec<String> {
        let (report, doubts) = (&self.report, &self.doubts);
        let table = [
            (u64::from(report.events == 0), "the log holds no event: nothing could be checked"),
            (
                report.floor.saturating_sub(1),
                "number(s) before the oldest event are no longer kept, or were skipped: what they would show was not checked",
            ),
            (doubts.before_floor, "request(s) ended that began before the oldest event kept"),
            (
                doubts.cut,
                "request(s) were under way in a crash: whether they held or gave back a slot cannot be seen",
            ),
            (doubts.lost, "event(s) were refused because the log could not keep up"),
            (
                doubts.lossy,
                "life or lives with missing events: starts, ends and tokens were not compared there",
            ),
            (
                doubts.maybe_lost,
                "crashed life or lives may lack a start for want of room; not counted as broken",
            ),
            (
                doubts.unstored,
                "token(s) were logged in a crash or a failed last flush and are not stored: the unflushed window",
            ),
            (
                doubts.unlogged,
                "token(s) are stored without an event: logging was off, or a crash took the event",
            ),
            (doubts.unflushed, "instance(s) left before they could store every token, and said so"),
            (doubts.silent, "life or lives do not say how many tokens were counted before them"),
        ];
        let said = table.iter().filter(|(count, _)| *count > 0);
        let mut notes: Vec<String> = said
            .map(|(count, note)| match note.strip_prefix("the log ") {
                Some(_) => (*note).to_owned(),
                None => format!("{count} {note}"),
            })
            .collect();
        if !self.complete && report.events > 0 {
            let what =
                "what is stored was compared with the events life by life, not for each endpoint and model";
            notes.push(what.to_owned());
        }
        notes
    }
}

#[cfg(test)]
#[path = "audit_tests.rs"]
mod tests;
