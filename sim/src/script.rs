//! What an endpoint will answer, decided when the request arrives: every byte, when it comes, where
//! it breaks. Keeps what the oracle needs to know of it: where the message is whole, where its token
//! counts are known, which bytes a client may see.
//!
//! What is odd about a body passes like any other byte of it. Nonsense between records says nothing; a count
//! that is no whole number up to 2^53 is not said; the newest counts win, also those behind the end.

use core::fmt;
use core::ops::Range;
use std::io::Write as _;

use bytes::Bytes;
use pointsman::wire::event::push_number;

use crate::faults::{Fault, Switches};
use crate::plan::{Call, EndpointPlan, Speaks};
use crate::streams::{Seed, Stream};

/// The faults that may strike one call, each from a stream of its own.
pub(crate) struct Dice<'a> {
    pub(crate) seed: Seed,
    /// What tells this call from all others, whatever else happens.
    pub(crate) key: [u64; 4],
    /// `None` once the faults have stopped.
    pub(crate) switches: Option<&'a Switches>,
}

impl Dice<'_> {
    /// Whether `fault` strikes this call. It counts once it acts.
    pub(crate) fn strikes(&self, fault: Fault) -> bool {
        let per_mille = self.switches.map_or(0, |switches| switches.per_mille(fault));
        per_mille > 0 && self.stream(fault.name()).chance(per_mille)
    }

    /// How it goes, if it strikes.
    fn struck(&self, fault: Fault) -> Option<Stream> {
        self.strikes(fault).then(|| self.details(fault))
    }

    /// A stream of this call.
    pub(crate) fn stream(&self, name: &str) -> Stream {
        self.seed.stream_of(name, &self.key)
    }

    /// How a fault goes, once it has struck.
    fn details(&self, fault: Fault) -> Stream {
        self.seed.stream_of(fault.name(), &[self.key[0], self.key[1], self.key[2], self.key[3], 1])
    }
}

/// When a fault that struck acts, and counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Acts {
    /// When a connection is wanted.
    Connect,
    /// When the head is due.
    Head,
    /// Once the router has so many bytes.
    Byte(usize),
    /// When the body ends, in whatever manner.
    End,
}

/// How a body ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Finish {
    /// As it should.
    Whole,
    /// Cleanly, as far as the connection goes, but its message is not whole.
    Early,
    /// The connection breaks.
    Cut,
    /// Never.
    Stall,
}

/// Token counts within an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Counts {
    /// They are known once so many bytes have come.
    pub(crate) known_at: usize,
    pub(crate) input: u64,
    pub(crate) output: u64,
}

/// Why there is no head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NoHead {
    /// The connection is refused.
    Refused,
    /// The connection breaks.
    Cut,
    /// Nothing ever comes.
    Stall,
}

/// One answer.
#[derive(Clone, Debug)]
pub(crate) struct Script {
    pub(crate) connect_ns: u64,
    /// From the arrival of the request to the head.
    pub(crate) head_ns: u64,
    pub(crate) no_head: Option<NoHead>,
    pub(crate) status: u16,
    pub(crate) content_type: &'static str,
    pub(crate) bytes: Bytes,
    /// When, after the head, the bytes up to where have come.
    pub(crate) chunks: Vec<(u64, usize)>,
    pub(crate) finish: Finish,
    /// Once so many bytes have come it is known that the message is whole, if it ever is.
    pub(crate) complete_at: Option<usize>,
    /// In the order in which they are known; the newest counts.
    pub(crate) counts: Vec<Counts>,
    /// Usage reports that a client which did not ask for them must not see.
    pub(crate) hidden: Vec<Range<usize>>,
    /// The faults that struck it.
    pub(crate) acts: Vec<(Fault, Acts)>,
}

impl Script {
    fn new(connect_ns: u64, head_ns: u64) -> Script {
        Script {
            connect_ns,
            head_ns,
            no_head: None,
            status: 200,
            content_type: "application/json",
            bytes: Bytes::new(),
            chunks: Vec::new(),
            finish: Finish::Whole,
            complete_at: None,
            counts: Vec::new(),
            hidden: Vec::new(),
            acts: Vec::new(),
        }
    }

    /// When its last byte comes, counted from the arrival of the request.
    pub(crate) fn lasts_ns(&self) -> u64 {
        self.head_ns + self.chunks.last().map_or(0, |(at, _)| *at)
    }
}

/// What was asked.
pub(crate) struct Question<'a> {
    pub(crate) endpoint: &'a EndpointPlan,
    /// Numbers the call; every body carries it, so that no two answers are alike.
    pub(crate) call: usize,
    pub(crate) what: Call,
    pub(crate) stream: bool,
    /// The request that arrived asks for usage.
    pub(crate) asks_usage: bool,
    pub(crate) tokens: u64,
    /// The endpoint has the model; it has it in memory.
    pub(crate) has: bool,
    pub(crate) loaded: bool,
}

const MICRO: u64 = 1_000;
const MILLI: u64 = 1_000_000;

/// An answer to an inference.
pub(crate) fn inference(question: &Question<'_>, dice: &Dice<'_>) -> Script {
    let endpoint = question.endpoint;
    let pace = &mut dice.stream("pace");
    let connect_ns = pace.within(50, 500) * MICRO;
    let head_ns = pace.within(endpoint.first_token_ms.0 * 1_000, endpoint.first_token_ms.1 * 1_000) * MICRO;
    let mut script = Script::new(connect_ns, head_ns);
    if !question.loaded {
        script.head_ns += endpoint.load_ms * MILLI;
    }
    if let Some(mut late) = dice.struck(Fault::Delay) {
        script.head_ns += late.millis(1, 6_000).as_nanos() as u64;
        script.acts.push((Fault::Delay, Acts::Head));
    }
    if dice.strikes(Fault::Refuse) {
        script.no_head = Some(NoHead::Refused);
        script.acts.push((Fault::Refuse, Acts::Connect));
        return script;
    }
    if dice.strikes(Fault::CutBeforeHead) {
        script.no_head = Some(NoHead::Cut);
        script.acts.push((Fault::CutBeforeHead, Acts::Head));
        return script;
    }
    let refusals = [(Fault::Status500, 500), (Fault::Status429, 429), (Fault::Status400, 400)];
    let refusal = refusals.into_iter().find(|(fault, _)| dice.strikes(*fault));
    if let Some((fault, _)) = refusal {
        script.acts.push((fault, Acts::Head));
    }
    if let Some(status) = refusal.map(|(_, status)| status).or((!question.has).then_some(404)) {
        script.status = status;
        script.bytes = Bytes::from(format!("{{\"error\":\"c{} says {status}\"}}", question.call));
        script.chunks = vec![(0, script.bytes.len())];
        return script;
    }
    if dice.strikes(Fault::Garbage) {
        script.bytes = Bytes::from(format!("<html>c{}</html>", question.call));
        script.chunks = vec![(0, script.bytes.len())];
        script.acts.push((Fault::Garbage, Acts::Byte(1)));
        return script;
    }
    write(question, dice, pace, &mut script);
    script
}

fn write(question: &Question<'_>, dice: &Dice<'_>, pace: &mut Stream, script: &mut Script) {
    let streams = question.stream && !matches!(question.what, Call::OllamaEmbed | Call::OpenAiEmbedding);
    let fails = streams && dice.strikes(Fault::ErrorLine);
    let tokens = if fails { pace.below(question.tokens + 1) } else { question.tokens };
    let ollama = matches!(question.what, Call::OllamaChat | Call::OllamaGenerate | Call::OllamaEmbed);
    let mut writing = Writing::new(question, dice, script, streams, fails, tokens);
    match (streams, ollama) {
        (true, true) => writing.ndjson(),
        (true, false) => writing.events(),
        (false, _) => writing.document(ollama),
    }
    let Body { text, mut ends, whole_at, complete_at, divisible_to } = writing.body;
    let bytes = text.len();
    let mut stop = bytes;
    if !fails {
        // A break after the whole message is no break, so it comes before.
        let at_most = divisible_to.min(whole_at.unwrap_or(bytes) - 1) as u64;
        for (fault, finish) in [
            (Fault::CutMidStream, Finish::Cut),
            (Fault::EarlyEnd, Finish::Early),
            (Fault::Stall, Finish::Stall),
        ] {
            if script.finish != Finish::Whole {
                break;
            }
            let Some(mut details) = dice.struck(fault) else { continue };
            script.finish = finish;
            stop = details.within(1, at_most) as usize;
            if fault == Fault::Stall && dice.details(fault).chance(300) {
                script.no_head = Some(NoHead::Stall);
            }
            let at_head = script.no_head.is_some();
            script.acts.push((fault, if at_head { Acts::Head } else { Acts::End }));
        }
        if script.finish == Finish::Whole && whole_at.is_none() {
            script.finish = Finish::Early;
        }
    }
    if let Some(mut chance) = dice.struck(Fault::Fragment) {
        ends = (0..ends.len() + 2).map(|_| chance.within(1, divisible_to as u64) as usize).collect();
        ends.push(bytes);
        ends.sort_unstable();
        ends.dedup();
        script.acts.push((Fault::Fragment, Acts::Byte(1)));
    }
    ends.retain(|end| *end < stop);
    ends.push(stop);
    let mut at = 0;
    script.chunks = ends
        .iter()
        .map(|end| {
            at += pace.within(question.endpoint.gap_ms.0 * 1_000, question.endpoint.gap_ms.1 * 1_000) * MICRO;
            (at, *end)
        })
        .collect();
    script.bytes = Bytes::from(text);
    script.bytes.truncate(stop);
    script.complete_at = complete_at.filter(|at| *at <= stop);
}

/// Records of the body: where each ends.
struct Body {
    text: Vec<u8>,
    ends: Vec<usize>,
    /// From here on the message is whole, if it ever is.
    whole_at: Option<usize>,
    /// A reader knows so from here on: a record is over at its brace, a mark with its line.
    complete_at: Option<usize>,
    /// Chunks and breaks fall at or before here, or at the end: within are the counts of a document.
    divisible_to: usize,
}

/// A body being written, and what is odd about its manner.
struct Writing<'a> {
    question: &'a Question<'a>,
    script: &'a mut Script,
    body: Body,
    tokens: u64,
    fails: bool,
    eol: &'static str,
    comments: Option<Stream>,
    /// The bad line comes before this token; in the last record's place if that is one too many.
    bad: Option<(u64, Stream)>,
    /// The record of this token is not UTF-8.
    glyph: Option<u64>,
    twice: bool,
    after: Option<Stream>,
    odd: Option<Stream>,
    unended: Option<Stream>,
}

impl<'a> Writing<'a> {
    fn new(
        question: &'a Question<'a>,
        dice: &Dice<'_>,
        script: &'a mut Script,
        streams: bool,
        fails: bool,
        tokens: u64,
    ) -> Writing<'a> {
        let of_streams = |fault| if streams { dice.struck(fault) } else { None };
        // Nonsense before the first record would be no answer at all.
        let bad = of_streams(Fault::BadLine).filter(|_| tokens > 0);
        let bad = bad.map(|mut chance| (chance.within(1, tokens + u64::from(!fails)), chance));
        Writing {
            question,
            script,
            body: Body {
                text: Vec::with_capacity(512),
                ends: Vec::with_capacity(16),
                whole_at: None,
                complete_at: None,
                divisible_to: 0,
            },
            tokens,
            fails,
            eol: if dice.strikes(Fault::CrLf) { "\r\n" } else { "\n" },
            comments: of_streams(Fault::Comments),
            bad,
            glyph: dice.struck(Fault::InvalidUtf8).map(|mut chance| chance.within(0, tokens)),
            twice: streams && !fails && dice.strikes(Fault::DoneTwice),
            after: dice.struck(Fault::AfterDone).filter(|_| !fails),
            odd: dice.struck(Fault::OddUsage).filter(|_| !fails),
            unended: of_streams(Fault::UnendedLine),
        }
    }

    /// The fault acts with the byte just written.
    fn acts(&mut self, fault: Fault) {
        self.script.acts.push((fault, Acts::Byte(self.body.text.len())));
    }

    fn push(&mut self, text: &str) {
        self.body.text.extend_from_slice(text.as_bytes());
    }

    fn number(&mut self, number: u64) {
        push_number(number, &mut self.body.text);
    }

    fn write(&mut self, text: fmt::Arguments<'_>) {
        self.body.text.write_fmt(text).expect("a vector takes everything");
    }

    /// A line, or the end of one.
    fn line(&mut self, text: &str) {
        self.push(text);
        self.push(self.eol);
    }

    /// A place where a chunk may end.
    fn end(&mut self) {
        self.body.ends.push(self.body.text.len());
    }

    /// The bytes in a string that make it no UTF-8, if they belong to this token.
    fn glyph(&mut self, token: u64) {
        if self.glyph == Some(token) {
            self.body.text.extend_from_slice(b"\xff\xc3");
            self.acts(Fault::InvalidUtf8);
        }
    }

    /// Whether the bad line comes now.
    fn goes_bad(&mut self, token: u64) -> Option<u64> {
        let (at, chance) = self.bad.as_mut()?;
        (*at == token).then(|| chance.below(6))
    }

    /// The counts as they are written, and what they come to.
    fn counts(&mut self, more: u64) -> ([String; 2], Option<(u64, u64)>) {
        let good = (3 + self.question.call as u64 % 17 + more, self.question.tokens + more);
        let Some(odd) = self.odd.as_mut() else {
            return ([good.0.to_string(), good.1.to_string()], Some(good));
        };
        let mut count = |good: u64| match odd.below(10) {
            0 => ("null".to_owned(), None),
            1 => (format!("\"{good}\""), None),
            2 => (format!("-{good}"), None),
            3 => (format!("{good}.5"), None),
            4 => (format!("{good}e1"), None),
            5 => ("9007199254740993".to_owned(), None),
            6 => ("9".repeat(40), None),
            7 => (format!("[{good}]"), None),
            // The largest that counts.
            8 => ("9007199254740992".to_owned(), Some(1 << 53)),
            _ => (good.to_string(), Some(good)),
        };
        let ((input, said_in), (output, said_out)) = (count(good.0), count(good.1));
        let said =
            (said_in.is_some() || said_out.is_some()).then(|| (said_in.unwrap_or(0), said_out.unwrap_or(0)));
        ([input, output], said)
    }

    /// The record just closed said so many tokens.
    fn said(&mut self, counts: Option<(u64, u64)>) {
        let known_at = self.body.text.len();
        if let Some((input, output)) = counts {
            self.script.counts.push(Counts { known_at, input, output });
        }
        if self.odd.is_some() {
            self.acts(Fault::OddUsage);
        }
    }

    /// The record just closed makes the message whole.
    fn whole(&mut self) {
        let len = self.body.text.len();
        self.body.whole_at.get_or_insert(len);
        self.body.complete_at.get_or_insert(len);
    }

    /// The end of the whole body.
    fn close(&mut self) {
        if let Some(chance) = self.unended.as_mut() {
            let (times, ended) = (chance.within(1, 2), self.body.text.len());
            for _ in 0..times {
                let text = &mut self.body.text;
                let keep = text.strip_suffix(self.eol.as_bytes()).map_or(text.len(), <[u8]>::len);
                text.truncate(keep);
            }
            if self.body.text.len() < ended {
                self.acts(Fault::UnendedLine);
            }
        }
        let len = self.body.text.len();
        for (_, acts) in &mut self.script.acts {
            if let Acts::Byte(at) = acts {
                *at = (*at).min(len);
            }
        }
        self.body.ends.retain(|end| *end < len);
        self.end();
        self.body.divisible_to = len;
        if self.eol == "\r\n" {
            self.script.acts.push((Fault::CrLf, Acts::Byte(len)));
        }
    }
}

/// Newline-delimited JSON.
impl Writing<'_> {
    fn ndjson(&mut self) {
        self.script.content_type = "application/x-ndjson";
        let call = self.question.call;
        for token in 0..self.tokens {
            if let Some(kind) = self.goes_bad(token) {
                self.bad_line(kind);
            }
            self.blank_line();
            self.push("{\"model\":\"m\",\"response\":\"c");
            self.number(call as u64);
            self.push(" ");
            self.number(token);
            self.glyph(token);
            self.line("\",\"done\":false}");
            self.end();
        }
        self.blank_line();
        if self.fails {
            self.line(&format!("{{\"error\":\"c{call} ran out of memory\"}}"));
            self.acts(Fault::ErrorLine);
            return self.close();
        }
        match (self.goes_bad(self.tokens), self.goes_bad(self.tokens + 1)) {
            (Some(kind), _) => {
                self.bad_line(kind);
                self.last_record(0);
            }
            (None, Some(kind)) => self.bad_line(kind),
            (None, None) => self.last_record(0),
        }
        if self.body.whole_at.is_some() && self.twice {
            self.last_record(4);
            self.acts(Fault::DoneTwice);
        }
        if let Some(kind) = self.after.as_mut().map(|chance| chance.below(4)) {
            match kind {
                0 => self.line(&format!("{{\"model\":\"m\",\"response\":\"c{call} more\",\"done\":false}}")),
                1 => self.line(&format!("c{call} more")),
                2 => self.write(format_args!("{{\"model\":\"m\",\"response\":\"c{call} mo")),
                _ => self.line(""),
            }
            self.acts(Fault::AfterDone);
        }
        self.close();
    }

    fn last_record(&mut self, more: u64) {
        let call = self.question.call;
        let ([input, output], said) = self.counts(more);
        self.write(format_args!("{{\"model\":\"m\",\"response\":\"c{call}"));
        if more == 0 {
            self.glyph(self.tokens);
        }
        self.write(format_args!("\",\"done\":true,\"prompt_eval_count\":{input},\"eval_count\":{output}}}"));
        self.whole();
        self.said(said);
        self.line("");
        self.end();
    }

    fn blank_line(&mut self) {
        if self.comments.as_mut().is_some_and(|chance| chance.chance(300)) {
            self.line("");
            self.end();
            self.acts(Fault::Comments);
        }
    }

    fn bad_line(&mut self, kind: u64) {
        let call = self.question.call;
        self.line(&match kind {
            0 => format!("{{\"model\":\"m\",\"response\":\"c{call}\",\"done\":tr"),
            1 => "{\"done\":true,\"prompt_eval_count\":7,\"eval_count\":9999".to_owned(),
            2 => format!("c{call} <html>"),
            3 => "}{\"done\":true}".to_owned(),
            4 => "\"done\":true,\"eval_count\":9999}".to_owned(),
            _ => format!("[{{\"done\":true,\"eval_count\":9999}},\"c{call}\"]"),
        });
        self.end();
        self.acts(Fault::BadLine);
    }
}

/// Server-sent events.
impl Writing<'_> {
    fn events(&mut self) {
        self.script.content_type = "text/event-stream";
        let call = self.question.call;
        for token in 0..self.tokens {
            if let Some(kind) = self.goes_bad(token) {
                self.bad_event(kind);
            }
            self.token_event(token);
        }
        if self.fails {
            self.event(&format!("{{\"error\":{{\"message\":\"c{call} ran out of memory\"}}}}"));
            self.acts(Fault::ErrorLine);
            return self.close();
        }
        let last = self.goes_bad(self.tokens + 1);
        if let Some(kind) = self.goes_bad(self.tokens).or(last) {
            self.bad_event(kind);
        }
        if last.is_none() {
            self.begin_event();
            self.write(format_args!(
                "data: {{\"id\":\"c{call}\",\"choices\":[{{\"index\":0,\"delta\":{{\"content\":\""
            ));
            self.glyph(self.tokens);
            self.push("\"},\"finish_reason\":\"stop\"}]}");
            self.whole();
            self.end_event();
        }
        if self.question.asks_usage {
            self.usage_event(0);
            if self.twice {
                self.usage_event(4);
            }
        }
        self.done_event();
        if self.twice {
            self.done_event();
            self.acts(Fault::DoneTwice);
        }
        if let Some(kind) = self.after.as_mut().map(|chance| chance.below(5)) {
            match kind {
                0 => self.token_event(self.tokens + 1),
                1 => self.line(&format!("c{call} more")),
                2 => self
                    .write(format_args!("data: {{\"id\":\"c{call}\",\"choices\":[],\"usage\":{{\"prompt_")),
                3 if self.question.asks_usage => self.usage_event(8),
                _ => self.line(&format!(": c{call}")),
            }
            self.acts(Fault::AfterDone);
        }
        self.close();
        // What is hidden may end without its blank line.
        let len = self.body.text.len();
        self.script.hidden.iter_mut().for_each(|hidden| hidden.end = hidden.end.min(len));
    }

    /// Where the event begins, and what stands in it before its data.
    fn begin_event(&mut self) -> usize {
        let start = self.body.text.len();
        let Some(kind) = self.comments.as_mut().map(|chance| chance.below(8)) else { return start };
        let call = self.question.call;
        match kind {
            0 => self.line(": keep-alive"),
            1 => self.line("event: message"),
            2 => {
                self.line(&format!(": c{call}"));
                self.line("");
                self.end();
            }
            3 => self.line("id: 7"),
            _ => return start,
        }
        self.acts(Fault::Comments);
        if kind == 2 { self.body.text.len() } else { start }
    }

    fn end_event(&mut self) {
        self.line("");
        self.line("");
        self.end();
    }

    fn event(&mut self, data: &str) {
        self.begin_event();
        self.push("data: ");
        self.push(data);
        self.end_event();
    }

    fn token_event(&mut self, token: u64) {
        let call = self.question.call;
        self.begin_event();
        self.push("data: {\"id\":\"c");
        self.number(call as u64);
        self.push("\",\"choices\":[{\"index\":0,\"delta\":{\"content\":\"");
        self.number(token);
        self.push(" ");
        self.glyph(token);
        self.push("\"},\"finish_reason\":null}]}");
        self.end_event();
    }

    fn done_event(&mut self) {
        self.begin_event();
        self.push("data: [DONE]");
        self.body.whole_at.get_or_insert(self.body.text.len());
        self.body.complete_at.get_or_insert(self.body.text.len() + self.eol.len());
        self.end_event();
    }

    fn usage_event(&mut self, more: u64) {
        let call = self.question.call;
        let start = self.begin_event();
        let none = self.odd.as_mut().map(|odd| odd.below(8)).filter(|kind| *kind < 4);
        let ([input, output], said) = self.counts(more);
        let (usage, said) = match none {
            Some(0) => ("null".to_owned(), None),
            Some(1) => ("\"none\"".to_owned(), None),
            Some(2) => ("[]".to_owned(), None),
            Some(_) => ("{}".to_owned(), None),
            None => (format!("{{\"prompt_tokens\":{input},\"completion_tokens\":{output}}}"), said),
        };
        self.write(format_args!("data: {{\"id\":\"c{call}\",\"choices\":[],\"usage\":{usage}}}"));
        self.said(said);
        self.end_event();
        // Without an object it is no usage report, and passes like any other event.
        if usage.starts_with('{') {
            self.script.hidden.push(start..self.body.text.len());
        }
    }

    fn bad_event(&mut self, kind: u64) {
        let call = self.question.call;
        self.push(&match kind {
            0 => format!("data: {{\"id\":\"c{call}\",\"choices\":[{{\"finish_reason\":\"stop\""),
            1 => {
                "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":1,\"completion_tokens\":9999}".to_owned()
            }
            2 => format!("c{call} <html>"),
            3 => "data: }{".to_owned(),
            4 => "data: [DONE".to_owned(),
            _ => "data: {\"choices\":[],\"usage\":{\"completion_tokens\":5}}".to_owned(),
        });
        if kind == 5 {
            // What a record says is known at its brace; with more behind it, it is no usage report.
            let known_at = self.body.text.len();
            self.script.counts.push(Counts { known_at, input: 0, output: 5 });
            self.push(" and more");
        }
        self.end_event();
        self.acts(Fault::BadLine);
    }
}

/// One document.
impl Writing<'_> {
    fn document(&mut self, ollama: bool) {
        let (call, eol) = (self.question.call, self.eol);
        let words = "word ".repeat(self.question.tokens as usize);
        self.write(format_args!("{{\"id\":\"c{call}\",{eol}\"response\":\"{words}"));
        let glyph = self.glyph;
        self.glyph(glyph.unwrap_or(0));
        self.write(format_args!("\",{eol}"));
        self.body.divisible_to = self.body.text.len();
        let ([input, output], said) = self.counts(0);
        self.push(&if ollama {
            format!("\"done\":true,\"prompt_eval_count\":{input},\"eval_count\":{output}}}")
        } else {
            format!("\"usage\":{{\"prompt_tokens\":{input},\"completion_tokens\":{output}}}}}")
        });
        self.whole();
        self.said(said);
        if self.after.is_some() {
            self.write(format_args!("{eol}c{call} more"));
            self.acts(Fault::AfterDone);
        }
        if eol == "\r\n" {
            self.acts(Fault::CrLf);
        }
        self.end();
    }
}

/// An answer to a listing whose good body is `good`.
pub(crate) fn listing(endpoint: &EndpointPlan, call: usize, good: String, dice: &Dice<'_>) -> Script {
    let pace = &mut dice.stream("pace");
    let connect_ns = pace.within(50, 500) * MICRO;
    let head_ns = pace.within(endpoint.listing_ms.0 * 1_000, endpoint.listing_ms.1 * 1_000) * MICRO;
    let mut script = Script::new(connect_ns, head_ns);
    let mut body = good;
    if let Some(mut late) = dice.struck(Fault::ListingLate) {
        if late.chance(400) {
            script.no_head = Some(NoHead::Stall);
        } else {
            script.head_ns += late.millis(100, 6_000).as_nanos() as u64;
        }
        script.acts.push((Fault::ListingLate, Acts::Head));
    }
    if let Some(mut how) = dice.struck(Fault::ListingFails) {
        let acts = match how.below(4) {
            0 => {
                script.no_head = Some(NoHead::Refused);
                Acts::Connect
            }
            1 => {
                script.no_head = Some(NoHead::Cut);
                Acts::Head
            }
            2 => {
                script.finish = Finish::Cut;
                Acts::End
            }
            _ => {
                script.status = 500;
                Acts::Head
            }
        };
        script.acts.push((Fault::ListingFails, acts));
    } else if dice.strikes(Fault::ListingGarbage) {
        body = format!("<html>c{call}</html>");
        script.acts.push((Fault::ListingGarbage, Acts::Byte(1)));
    }
    script.bytes = Bytes::from(body);
    if script.finish == Finish::Cut {
        script.bytes.truncate(script.bytes.len() / 2);
    }
    script.chunks = vec![(0, script.bytes.len())];
    script
}

/// The version of endpoint `number`; not all are of one age.
pub(crate) fn version(number: usize) -> String {
    format!("0.12.{}", 9 - number)
}

/// The good body of a listing of endpoint `number`: of `models`, those that are listed, or that are loaded.
pub(crate) fn listing_body(
    endpoint: &EndpointPlan,
    number: usize,
    models: &[(bool, bool)],
    path: &str,
) -> String {
    let of = |wanted: fn(&(bool, bool)) -> bool| {
        models.iter().enumerate().filter(move |(_, model)| wanted(model)).map(|(number, _)| number)
    };
    let join = |items: Vec<String>| items.join(",");
    let ollama = |number: usize| format!("{{\"name\":\"{0}\",\"model\":\"{0}\"}}", endpoint.listed(number));
    match path {
        "/api/tags" => format!("{{\"models\":[{}]}}", join(of(|m| m.0).map(ollama).collect())),
        "/api/ps" => format!("{{\"models\":[{}]}}", join(of(|m| m.0 && m.1).map(ollama).collect())),
        "/api/version" => format!("{{\"version\":\"{}\"}}", version(number)),
        _ => {
            let item = |number: usize| {
                let status = match (endpoint.speaks, models[number].1) {
                    (Speaks::LlamaServer, true) => ",\"status\":{\"value\":\"loaded\"}",
                    (Speaks::LlamaServer, false) => ",\"status\":{\"value\":\"unloaded\"}",
                    _ => "",
                };
                format!("{{\"id\":\"{}\"{status}}}", endpoint.listed(number))
            };
            format!("{{\"object\":\"list\",\"data\":[{}]}}", join(of(|m| m.0).map(item).collect()))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    /// The bytes, with a mark in place of each that is no text.
    fn text(script: &Script) -> String {
        script.bytes.iter().map(|byte| if byte.is_ascii() { char::from(*byte) } else { '?' }).collect()
    }

    /// What a full parser reads in a record, and where that is over: bytes may follow that belong to no record.
    fn record(text: &str) -> Option<(Value, usize)> {
        let mut values = serde_json::Deserializer::from_str(text).into_iter();
        let value = values.next()?.ok()?;
        Some((value, values.byte_offset()))
    }

    fn count(value: &Value) -> Option<u64> {
        value.as_u64().filter(|count| *count <= 1 << 53)
    }

    fn said(record: &Value, names: [&str; 2]) -> Option<(u64, u64)> {
        let [input, output] = names.map(|name| record.get(name).and_then(count));
        (input.is_some() || output.is_some()).then(|| (input.unwrap_or(0), output.unwrap_or(0)))
    }

    /// What a body read slowly and whole comes to.
    #[derive(Default)]
    struct Read {
        counts: Option<(u64, u64)>,
        /// From which byte on its end is known.
        complete_at: Option<usize>,
        /// It ends with a mark whose line does not.
        ends_in_mark: bool,
        reports: Vec<String>,
    }

    fn read(script: &Script, streams: bool) -> Read {
        const OLLAMA: [&str; 2] = ["prompt_eval_count", "eval_count"];
        const OPENAI: [&str; 2] = ["prompt_tokens", "completion_tokens"];
        let text = text(script);
        let mut read = Read::default();
        if !streams {
            let (document, len) = record(&text).expect("a document");
            let usage = document.get("usage").and_then(|usage| said(usage, OPENAI));
            read.counts = usage.or(said(&document, OLLAMA));
            read.complete_at = Some(len);
            return read;
        }
        let sse = script.content_type == "text/event-stream";
        let mut at = 0;
        for line in text.split_inclusive('\n') {
            let (start, end) = (at, at + line.len());
            at = end;
            let bare = line.trim_end_matches(['\r', '\n']);
            let data = if sse { bare.strip_prefix("data: ") } else { Some(bare) };
            if sse && data == Some("[DONE]") {
                read.ends_in_mark = !line.ends_with('\n');
                read.complete_at = read.complete_at.or((!read.ends_in_mark).then_some(end));
            }
            let Some((data, (record, len))) = data.and_then(|data| Some((data, record(data)?))) else {
                continue;
            };
            if !record.is_object() {
                continue;
            }
            let closes = start + bare.len() - data.len() + len;
            let done =
                if sse { record["choices"][0]["finish_reason"].is_string() } else { record["done"] == true };
            read.complete_at = read.complete_at.or(done.then_some(closes));
            if !sse {
                read.counts = said(&record, OLLAMA).or(read.counts);
                continue;
            }
            read.counts = record.get("usage").and_then(|usage| said(usage, OPENAI)).or(read.counts);
            let alone = serde_json::from_str::<Value>(data).is_ok();
            if alone && record["choices"].as_array().is_some_and(Vec::is_empty) && record["usage"].is_object()
            {
                read.reports.push(data.to_owned());
            }
        }
        read
    }

    #[test]
    fn what_a_script_says_of_its_body_is_what_a_full_parser_reads_in_it() {
        use Fault::*;
        let manners =
            [BadLine, InvalidUtf8, CrLf, Comments, DoneTwice, AfterDone, OddUsage, UnendedLine, ErrorLine];
        let endpoint = EndpointPlan {
            speaks: Speaks::OpenAi,
            models: vec![(true, true)],
            first_token_ms: (1, 2),
            gap_ms: (0, 1),
            load_ms: 0,
            listing_ms: (1, 2),
        };
        let mut acted = std::collections::BTreeSet::new();
        for seed in 0..4_000 {
            let pick = &mut Seed(seed).stream("test");
            let switches = Switches(manners.iter().map(|fault| (*fault, pick.pick(&[0, 300]))).collect());
            let what =
                pick.pick(&[Call::OllamaChat, Call::OpenAiChat, Call::OllamaEmbed, Call::OpenAiEmbedding]);
            let streams = matches!(what, Call::OllamaChat | Call::OpenAiChat) && pick.chance(800);
            let question = Question {
                endpoint: &endpoint,
                call: seed as usize,
                what,
                stream: streams,
                asks_usage: pick.chance(700),
                tokens: pick.within(1, 4),
                has: true,
                loaded: true,
            };
            let dice = Dice { seed: Seed(seed), key: [1; 4], switches: Some(&switches) };
            let script = inference(&question, &dice);
            let read = read(&script, streams);
            let text = text(&script);
            let last = script.counts.last().map(|counts| (counts.input, counts.output));
            assert_eq!(last, read.counts, "seed {seed}: {text}");
            assert_eq!(script.complete_at, read.complete_at, "seed {seed}: {text}");
            let fails = script.acts.iter().any(|(fault, _)| *fault == ErrorLine);
            let ends = read.complete_at.is_some() || read.ends_in_mark || fails;
            assert_eq!(script.finish == Finish::Whole, ends, "seed {seed}: {text}");
            let hidden = script.hidden.iter().map(|hidden| {
                let lines = text[hidden.clone()].lines().filter_map(|line| line.strip_prefix("data: "));
                lines.collect::<String>()
            });
            assert_eq!(hidden.collect::<Vec<_>>(), read.reports, "seed {seed}: {text}");
            acted.extend(script.acts.iter().map(|(fault, _)| fault.name()));
            let within = |acts: &Acts| !matches!(acts, Acts::Byte(at) if *at > script.bytes.len());
            assert!(script.acts.iter().all(|(_, acts)| within(acts)), "seed {seed}: {:?}", script.acts);
        }
        assert_eq!(acted.len(), manners.len(), "{acted:?}");
    }
}
