//! A response stream as lines: finds the records (an NDJSON line, an SSE `data:` line), looks for facts
//! in each and tells where records and events end. Nothing is copied or kept but the scanner's state
//! and the first bytes of a line that the chunks cut. An ordinary token record is dismissed by a few
//! substring searches; only a record that may hold a fact is scanned. Called by `usage`.
//! One record is one line: JSON spread over several `data:` lines of an event is not put together.

use std::sync::LazyLock;

use memchr::memchr;
use memchr::memmem::Finder;

use super::scan::{Facts, Scanner};
use super::sieve::EVENT_MAX;
use super::usage::{Framing, Usage};

/// How much of a cut line is kept: enough for `data: [DONE]` with some spaces and a CR.
const HEAD_MAX: usize = 16;

/// What the records so far said. The last usage wins; the flags only ever rise.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Seen {
    pub usage: Option<Usage>,
    pub complete: bool,
    pub failed: bool,
}

impl Seen {
    /// Takes what one closed record said, by the rules of the stream's family.
    fn absorb(&mut self, facts: &Facts, sse: bool) {
        let (sources, ended) = if sse {
            ([facts.usage, facts.timings], facts.finished)
        } else {
            ([facts.eval, facts.eval], facts.done)
        };
        self.usage = Usage::first_of(&sources).or(self.usage);
        self.complete |= ended;
        self.failed |= facts.error;
    }
}

/// The line reader; see the file's head.
#[derive(Debug)]
pub(super) struct Lines {
    sse: bool,
    seen: Seen,
    /// Reads the line in progress; fresh between lines.
    scanner: Scanner,
    /// The first bytes of the line in progress, for telling what kind of line it is.
    head: [u8; HEAD_MAX],
    /// Bytes of the line in progress; 0 between lines.
    line_len: usize,
    /// Bytes of the event (NDJSON: line) in progress; 0 between events.
    event_len: usize,
    /// The event in progress has a data line that carries usage and no choices.
    usage_line: bool,
    /// It has any other data line.
    other_line: bool,
}

impl Lines {
    /// A reader for `Ndjson` or `Sse`.
    pub(super) fn new(framing: Framing) -> Self {
        Lines {
            sse: framing == Framing::Sse,
            seen: Seen::default(),
            scanner: Scanner::new(),
            head: [0; HEAD_MAX],
            line_len: 0,
            event_len: 0,
            usage_line: false,
            other_line: false,
        }
    }

    pub(super) fn seen(&self) -> &Seen {
        &self.seen
    }

    /// Bytes since the last event (NDJSON: line) ended.
    pub(super) fn open_len(&self) -> usize {
        self.event_len
    }

    /// Whether the event in progress is, so far, nothing but a usage report of holdable size.
    pub(super) fn usage_only(&self) -> bool {
        self.usage_line && !self.other_line && self.event_len <= EVENT_MAX
    }

    /// Reads a chunk; `ended` is told where in it each event ends, and whether that event is nothing
    /// but a usage report.
    pub(super) fn read(&mut self, chunk: &[u8], mut ended: impl FnMut(usize, bool)) {
        // Asked once for all lines of the chunk: mostly the answer is no, and a burst costs one search.
        let mut may_hold = None;
        let mut at = 0;
        while let Some(len) = memchr(b'\n', &chunk[at..]) {
            let line = &chunk[at..at + len];
            at += len + 1;
            self.event_len += len + 1;
            let blank = if self.line_len == 0 {
                let may_hold = *may_hold.get_or_insert_with(|| may_hold_facts(chunk, self.sse));
                self.whole_line(line, may_hold)
            } else {
                self.part_of_line(line);
                self.end_line()
            };
            if blank || !self.sse {
                ended(at, self.usage_only());
                self.event_len = 0;
                self.usage_line = false;
                self.other_line = false;
            }
        }
        if at < chunk.len() {
            self.event_len += chunk.len() - at;
            self.part_of_line(&chunk[at..]);
        }
    }

    /// The stream ended: a last line without its newline counts as a line.
    pub(super) fn end(&mut self) {
        if self.line_len > 0 {
            self.end_line();
        }
    }

    /// A line that lies whole in one chunk, without its newline. Returns whether it is blank.
    fn whole_line(&mut self, line: &[u8], may_hold: bool) -> bool {
        let record = if self.sse {
            match line.strip_prefix(b"data:") {
                Some(record) => record,
                None => return is_blank(line),
            }
        } else {
            line
        };
        if self.sse && is_done_mark(line) {
            self.seen.complete = true;
            self.other_line = true;
        } else if may_hold && may_hold_facts(record, self.sse) {
            self.scanner.push(record);
            self.end_record();
        } else {
            self.other_line = true;
        }
        false
    }

    /// The next bytes of a line that the chunks cut; no newline among them.
    fn part_of_line(&mut self, part: &[u8]) {
        let before = self.line_len;
        if let Some(room) = self.head.get_mut(before..) {
            let len = room.len().min(part.len());
            room[..len].copy_from_slice(&part[..len]);
        }
        self.line_len += part.len();
        if !self.sse {
            self.scanner.push(part);
        } else if self.is_data_line() {
            self.scanner.push(&part["data:".len().saturating_sub(before)..]);
        }
        // What a closed record says is known at once, not only when its newline comes.
        if self.scanner.closed() {
            self.seen.absorb(self.scanner.facts(), self.sse);
        }
    }

    /// Ends a line that went through `part_of_line`. Returns whether it was blank.
    fn end_line(&mut self) -> bool {
        let is_data = self.is_data_line();
        let line = self.head.get(..self.line_len);
        self.line_len = 0;
        if !self.sse {
            self.end_record();
        } else if line.is_some_and(is_done_mark) {
            self.scanner = Scanner::new();
            self.seen.complete = true;
            self.other_line = true;
        } else if is_data {
            self.end_record();
        } else {
            return line.is_some_and(is_blank);
        }
        false
    }

    fn end_record(&mut self) {
        let facts = self.scanner.facts();
        if self.scanner.closed_clean() && facts.has_usage && facts.no_choices {
            self.usage_line = true;
        } else {
            self.other_line = true;
        }
        if self.scanner.closed() {
            self.seen.absorb(facts, self.sse);
        }
        self.scanner = Scanner::new();
    }

    fn is_data_line(&self) -> bool {
        self.line_len >= "data:".len() && self.head.starts_with(b"data:")
    }
}

fn is_blank(line: &[u8]) -> bool {
    matches!(line, b"" | b"\r")
}

/// OpenAI's end of stream: `data: [DONE]`.
fn is_done_mark(line: &[u8]) -> bool {
    line.len() <= HEAD_MAX && line.strip_prefix(b"data:").is_some_and(|rest| rest.trim_ascii() == b"[DONE]")
}

/// A searched-for name, and the first byte of the one value that makes it dull (`false`, `null`).
struct Marker {
    finder: Finder<'static>,
    len: usize,
    dull: u8,
}

impl Marker {
    fn new(quoted: &'static str, dull: u8) -> Self {
        Marker { finder: Finder::new(quoted), len: quoted.len(), dull }
    }

    fn shows_in(&self, text: &[u8]) -> bool {
        let mut rest = text;
        while let Some(found) = self.finder.find(rest) {
            rest = &rest[found + self.len..];
            let value = rest.trim_ascii_start().strip_prefix(b":").map(<[u8]>::trim_ascii_start);
            if value.and_then(|v| v.first()) != Some(&self.dull) {
                return true;
            }
        }
        false
    }
}

/// `(NDJSON, SSE)`: every name whose value can be a fact there. `\u00` is the only other way to write a
/// letter of such a name, and has no dull value.
static MARKERS: LazyLock<(Vec<Marker>, Vec<Marker>)> = LazyLock::new(|| {
    let escaped = || Marker::new("\\u00", 0);
    let ndjson = vec![
        Marker::new("\"done\"", b'f'),
        Marker::new("eval_count\"", b'n'),
        Marker::new("\"error\"", b'n'),
        escaped(),
    ];
    let sse = vec![
        Marker::new("\"finish_reason\"", b'n'),
        Marker::new("\"usage\"", b'n'),
        Marker::new("\"timings\"", b'n'),
        Marker::new("\"error\"", b'n'),
        escaped(),
    ];
    (ndjson, sse)
});

/// Whether scanning `text`, one record or several lines, could find anything. May err on the side of yes, never of no.
fn may_hold_facts(text: &[u8], sse: bool) -> bool {
    let (ndjson, events) = &*MARKERS;
    (if sse { events } else { ndjson }).iter().any(|marker| marker.shows_in(text))
}
