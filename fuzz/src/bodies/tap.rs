//! The tap on an answer: what goes through is what came, what it says is what a full parser says, and where
//! the chunks end makes no difference to either.

use bytes::Bytes;
use pointsman::wire::errors::error_line;
use pointsman::wire::usage::{Framing, Tap, Usage};
use serde_json::Value;

use crate::{Grammar, cut};

pub(crate) const WORDS: &[&str] = &[
    "\n",
    "\r\n",
    "\n\n",
    "\r\n\r\n",
    "data:",
    "data: ",
    "data: [DONE]",
    "event: error",
    ": ping",
    "id: 7",
    "\u{feff}",
    "{\"choices\":[],\"usage\":{}}",
    "{\"choices\":[],\"usage\":{\"prompt_tokens\":2,\"completion_tokens\":9}}",
    "{\"choices\":[{\"delta\":{\"content\":\"Hi\"},\"finish_reason\":null}]}",
    "\"finish_reason\":\"stop\"",
    "\"usage\":null",
    "us\\u0061ge",
    "\"timings\":{\"prompt_n\":1,\"predicted_n\":2}",
    "\"done\":true",
    "\"done\":false",
    "\"eval_count\":3",
    "\"prompt_eval_count\":26",
    "\"error\":\"boom\"",
    "\"error\":null",
    "9007199254740993",
    "1e3",
    "{",
    "}",
    "[",
    "]",
    ",",
    ":",
    "\"",
    "\\",
    "\\\"",
    " ",
];

pub(crate) const GRAMMAR: Grammar = Grammar {
    opens: &["", "", "\u{feff}", "\n"],
    records: &[
        "data: {\"id\":\"c1\",\"choices\":[{\"delta\":{\"content\":\"Hi\"},\"finish_reason\":null}]}",
        "data: {\"choices\":[{\"delta\":{},\"finish_reason\":\"stop\"}],\"usage\":null}",
        "data: {\"choices\":[{\"finish_reason\":\"stop\",\"finish_reason\":null}]}",
        "data: {\"choices\":[{\"finish_reason\":\"stop\"}],\"choices\":[{\"finish_reason\":\"\"}]}",
        "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":11,\"completion_tokens\":7}}",
        "data:   { \"choices\" : [ ] , \"usage\" : { \"completion_tokens\" : 9 } }  ",
        "data:{\"choices\":[],\"us\\u0061ge\":{\"prompt_tokens\":3}}",
        "data: {\"choices\":[],\"usage\":{},\"pad\":\"\u{1}\"}",
        "data: {\"choices\":[],\"usage\":{},\"pad\":\"\u{1} and a little more than what can be held back\"}",
        "data: {\"pad\":\"\u{1}\"}",
        "data: {\"choices\":[],\"usage\":null,\"timings\":{\"prompt_n\":1,\"predicted_n\":2}}",
        "data: {\"error\":{\"message\":\"boom\"}}",
        "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":5}",
        "data: [DONE]",
        "data:[DONE] ",
        "data",
        ": ping",
        "event: x\nid: 7",
        "{\"message\":{\"content\":\"Hi \\\"done\\\":true\"},\"done\":false}",
        "{\"done\" : true,\"prompt_eval_count\": 26,\"eval_count\":298}",
        "{\"do\\u006ee\":true}",
        "{\"done\":true,\"done\":[]}",
        "{\"done\":true,\"eval_count\":5",
        "{\"eval_count\":9007199254740992,\"prompt_eval_count\":9007199254740993}",
        "{\"error\":\"boom\"}",
        "{\"error\":null,\"eval_count\":-1}",
        "{\"usage\":{\"prompt_tokens\":8},\"timings\":{\"prompt_n\":4},\"eval_count\":2}",
        "",
    ],
    joints: &["\n\n", "\n\n", "\n", "\n", "\r\n", "\r\n\r\n", ""],
    closes: &["\n\n", "\n", "\r\n\r\n", "", "", "\r"],
};

const FRAMINGS: [Framing; 3] = [Framing::Json, Framing::Ndjson, Framing::Sse];

/// The longest event that may be taken out, in bytes, as the documentation of `Tap` has it.
const HELD_MAX: usize = 64 * 1024;

/// Counts above this are none.
const COUNT_MAX: u64 = 1 << 53;

/// What one answer came to.
#[derive(Debug, PartialEq)]
struct Outcome {
    out: Vec<u8>,
    told: Told,
    mid_line: bool,
}

/// What its records said.
#[derive(Debug, Default, PartialEq)]
struct Told {
    usage: Option<Usage>,
    complete: bool,
    failed: bool,
}

/// Each of these bytes in the input stands for a text of `PAD_LEN` bytes, for events too long to be held.
const PAD: u8 = 1;
const PAD_LEN: usize = HELD_MAX - 90;

/// Lets the input through the tap in every framing, with and without `hide_usage`.
pub fn tap(data: &[u8]) {
    let (body, places) = cut::split(data);
    every_framing(body, &places);
    if (1..4).contains(&body.iter().filter(|byte| **byte == PAD).count()) {
        long_events(body, &places);
    }
}

fn every_framing(body: &[u8], places: &[usize]) {
    let chunk = Bytes::copy_from_slice(body);
    let pieces: Vec<Bytes> =
        cut::pieces(&chunk, places).into_iter().map(|piece| chunk.slice_ref(piece)).collect();
    for framing in FRAMINGS {
        // Line by line too, because one line that no full parser can read hides what the others say.
        for line in chunk.split_inclusive(|byte| *byte == b'\n') {
            if let Some(told) = told(framing, line) {
                assert_eq!(run(framing, false, [chunk.slice_ref(line)]).told, told, "{framing:?}");
            }
        }
        let told = told(framing, body);
        for hide in [false, true] {
            let whole = run(framing, hide, [chunk.clone()]);
            assert_eq!(run(framing, hide, pieces.clone()), whole, "{framing:?} cut at {places:?}");
            if hide || framing == Framing::Sse {
                let bytes = (0..body.len()).map(|at| chunk.slice(at..at + 1));
                assert_eq!(run(framing, hide, bytes), whole, "{framing:?} cut everywhere");
            }

            if hide && framing == Framing::Sse {
                nothing_but_reports_is_missing(body, &whole.out);
            } else {
                assert_eq!(whole.out, body, "{framing:?}: what comes goes on");
            }
            assert_eq!(whole.mid_line, ends_inside(framing, &whole.out), "{framing:?}, hide: {hide}");
            if let Some(told) = &told {
                assert_eq!(whole.told, *told, "{framing:?}");
            }
            breaks_off(framing, hide, &pieces);
        }
    }
}

/// The same, with events about as long as what may be held.
fn long_events(body: &[u8], places: &[usize]) {
    let padding = [b'x'; PAD_LEN];
    let pad = |byte: &u8| if *byte == PAD { padding.to_vec() } else { vec![*byte] };
    let long: Bytes = body.iter().flat_map(pad).collect();
    let place = |place: &usize| place * long.len() / (body.len() + 1);
    let places: Vec<usize> = places.iter().map(place).collect();
    let pieces: Vec<Bytes> =
        cut::pieces(&long, &places).into_iter().map(|piece| long.slice_ref(piece)).collect();
    let whole = run(Framing::Sse, true, [long.clone()]);
    assert_eq!(run(Framing::Sse, true, pieces.clone()), whole, "cut at {places:?}");
    nothing_but_reports_is_missing(&long, &whole.out);
    assert_eq!(whole.mid_line, ends_inside(Framing::Sse, &whole.out));
    breaks_off(Framing::Sse, true, &pieces);
}

fn run(framing: Framing, hide: bool, chunks: impl IntoIterator<Item = Bytes>) -> Outcome {
    let mut tap = Tap::new(framing, hide);
    let mut out = Vec::new();
    for chunk in chunks {
        out.extend_from_slice(&tap.push(chunk));
    }
    out.extend_from_slice(&tap.finish());
    let told = Told { usage: tap.usage(), complete: tap.complete(), failed: tap.failed() };
    Outcome { out, told, mid_line: tap.mid_line() }
}

/// The upstream is cut off after each of the chunks: what the client then reads ends in our error.
fn breaks_off(framing: Framing, hide: bool, chunks: &[Bytes]) {
    const MESSAGE: &str = "the \"backend\"\nis gone";
    let mut tap = Tap::new(framing, hide);
    let mut out = Vec::new();
    for chunk in chunks {
        out.extend_from_slice(&tap.push(chunk.clone()));
        let line = error_line(framing, MESSAGE, tap.mid_line());
        let read = [&out[..], &line].concat();
        let last = match framing {
            Framing::Json => {
                assert!(line.is_empty() && !tap.mid_line(), "a document has no place for an error");
                continue;
            }
            Framing::Ndjson => {
                read.trim_ascii_end().split(|byte| *byte == b'\n').next_back().map(<[u8]>::to_vec)
            }
            Framing::Sse => last_event(&read).filter(|(kind, _)| kind == b"error").map(|(_, data)| data),
        };
        let last: Value =
            serde_json::from_slice(&last.expect("a record")).expect("our record stands by itself");
        let said = last.pointer("/error/message").unwrap_or(&last["error"]);
        assert_eq!(said, MESSAGE, "{framing:?}: the client learns why");
    }
}

/// Type and data of the last event, read as a browser does (HTML Living Standard, 9.2.6).
fn last_event(stream: &[u8]) -> Option<(Vec<u8>, Vec<u8>)> {
    let stream = stream.strip_prefix(b"\xef\xbb\xbf").unwrap_or(stream);
    let (mut last, mut kind, mut data) = (None, Vec::new(), Vec::new());
    for line in lines_at_any_end(stream) {
        let colon = line.iter().position(|byte| *byte == b':').unwrap_or(line.len());
        let value = line.get(colon + 1..).unwrap_or_default();
        let value = value.strip_prefix(b" ").unwrap_or(value);
        match &line[..colon] {
            b"event" => kind = value.to_vec(),
            b"data" => {
                data.extend_from_slice(value);
                data.push(b'\n');
            }
            b"" if line.is_empty() => {
                let event = (std::mem::take(&mut kind), std::mem::take(&mut data));
                if !event.1.is_empty() {
                    last = Some(event);
                }
            }
            _ => {}
        }
    }
    last
}

/// Lines that end in CRLF, LF or CR, without what is after the last end.
fn lines_at_any_end(mut rest: &[u8]) -> Vec<&[u8]> {
    let mut lines = Vec::new();
    while let Some(at) = rest.iter().position(|byte| matches!(byte, b'\n' | b'\r')) {
        lines.push(&rest[..at]);
        let end = if rest[at..].starts_with(b"\r\n") { 2 } else { 1 };
        rest = &rest[at + end..];
    }
    lines
}

/// Whether a stream stops short of the end of a line (NDJSON) or of an event (SSE).
fn ends_inside(framing: Framing, out: &[u8]) -> bool {
    let Some(lines) = out.strip_suffix(b"\n") else { return framing != Framing::Json && !out.is_empty() };
    let last = lines.rsplit(|byte| *byte == b'\n').next().unwrap_or(lines);
    framing == Framing::Sse && !is_blank(last)
}

fn is_blank(line: &[u8]) -> bool {
    matches!(line, b"" | b"\r")
}

/// What the records of an answer say, by a full parser; `None` unless it can read them all.
fn told(framing: Framing, body: &[u8]) -> Option<Told> {
    let mut told = Told::default();
    if framing == Framing::Json {
        absorb(&mut told, framing, &serde_json::from_slice(body).ok()?);
        told.complete = true;
        return Some(told);
    }
    for line in body.split(|byte| *byte == b'\n') {
        let record = match framing {
            Framing::Sse => match line.strip_prefix(b"data:") {
                Some(record) => record,
                None => continue,
            },
            _ => line,
        };
        if framing == Framing::Sse && is_done_mark(record) {
            told.complete = true;
        } else if !record.iter().all(|byte| b" \t\r".contains(byte)) {
            match serde_json::from_slice(record) {
                Ok(record) => absorb(&mut told, framing, &record),
                // Half a record says nothing.
                Err(error) if error.is_eof() => {}
                Err(_) => return None,
            }
        }
    }
    Some(told)
}

/// `[DONE]`, with so many blanks around it as anybody would write.
fn is_done_mark(record: &[u8]) -> bool {
    record.len() <= 11 && record.trim_ascii() == b"[DONE]"
}

fn absorb(told: &mut Told, framing: Framing, record: &Value) {
    let ollama = ["/prompt_eval_count", "/eval_count"];
    let openai = ["/usage/prompt_tokens", "/usage/completion_tokens"];
    let llama = ["/timings/prompt_n", "/timings/predicted_n"];
    let sources = match framing {
        Framing::Json => vec![openai, ollama, llama],
        Framing::Ndjson => vec![ollama],
        Framing::Sse => vec![openai, llama],
    };
    let record = if record.is_object() { record } else { &Value::Null };
    let count = |at| record.pointer(at).and_then(Value::as_u64).filter(|count| *count <= COUNT_MAX);
    let said = sources.into_iter().map(|[input, output]| (count(input), count(output)));
    if let Some((input, output)) = said.into_iter().find(|said| *said != (None, None)) {
        told.usage = Some(Usage { input_tokens: input.unwrap_or(0), output_tokens: output.unwrap_or(0) });
    }
    let mut choices = record["choices"].as_array().into_iter().flatten();
    let finished =
        choices.any(|choice| choice["finish_reason"].as_str().is_some_and(|reason| !reason.is_empty()));
    told.complete |= if framing == Framing::Sse { finished } else { record["done"] == true };
    told.failed |= record["error"].is_string() || record["error"].is_object();
}

/// `out` is the stream without the events that report usage and nothing else. Of an event with broken JSON it
/// is not said on which side it falls.
fn nothing_but_reports_is_missing(body: &[u8], out: &[u8]) {
    let mut rest = out;
    for event in events(body) {
        let text = String::from_utf8_lossy(event);
        let report = is_report(event);
        match rest.strip_prefix(event) {
            Some(after) if report != Some(true) => rest = after,
            _ => assert_ne!(report, Some(false), "an event is missing: {text:?}"),
        }
    }
    assert_eq!(rest, b"", "an event is there that must not be, or was not");
}

/// Events with their blank lines; the last may have none.
fn events(body: &[u8]) -> Vec<&[u8]> {
    let (mut events, mut start, mut at) = (Vec::new(), 0, 0);
    for line in body.split_inclusive(|byte| *byte == b'\n') {
        at += line.len();
        if line.strip_suffix(b"\n").is_some_and(is_blank) {
            events.push(&body[start..at]);
            start = at;
        }
    }
    if start < body.len() {
        events.push(&body[start..]);
    }
    events
}

/// Whether each data line of the event is a usage report; `None` if that cannot be told.
fn is_report(event: &[u8]) -> Option<bool> {
    let mut report = false;
    if event.len() > HELD_MAX {
        return Some(false);
    }
    let mut doubt = false;
    for record in event.split(|byte| *byte == b'\n').filter_map(|line| line.strip_prefix(b"data:")) {
        match serde_json::from_slice::<Value>(record) {
            Ok(value) => {
                let empty = value["choices"].as_array().is_some_and(Vec::is_empty);
                if !(empty && value["usage"].is_object()) {
                    return Some(false);
                }
                report = true;
            }
            Err(error) if could_be_report(record) && !error.is_eof() => doubt = true,
            Err(_) => return Some(false),
        }
    }
    if doubt { None } else { Some(report) }
}

fn could_be_report(record: &[u8]) -> bool {
    let text = String::from_utf8_lossy(record);
    text.contains("\"usage\"") || text.contains("\\u00")
}
