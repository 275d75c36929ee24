//! What an endpoint will answer, decided when the request arrives: every byte, when it comes, where
//! it breaks. Keeps what the oracle needs to know of it: where the message is whole, where its token
//! counts are known, which bytes a client may see.

use core::ops::Range;

use bytes::Bytes;

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
    /// Those that struck.
    pub(crate) struck: Vec<Fault>,
}

impl Dice<'_> {
    /// Whether `fault` strikes this call.
    pub(crate) fn strikes(&mut self, fault: Fault) -> bool {
        let per_mille = self.switches.map_or(0, |switches| switches.per_mille(fault));
        let strikes = per_mille > 0 && self.stream(fault.name()).chance(per_mille);
        if strikes {
            self.struck.push(fault);
        }
        strikes
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
    pub(crate) counts: Option<Counts>,
    /// A usage report that a client which did not ask for it must not see.
    pub(crate) usage_event: Option<Range<usize>>,
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
pub(crate) fn inference(question: &Question<'_>, dice: &mut Dice<'_>) -> Script {
    let endpoint = question.endpoint;
    let pace = &mut dice.stream("pace");
    let mut script = Script {
        connect_ns: pace.within(50, 500) * MICRO,
        head_ns: pace.within(endpoint.first_token_ms.0 * 1_000, endpoint.first_token_ms.1 * 1_000) * MICRO,
        no_head: None,
        status: 200,
        content_type: "application/json",
        bytes: Bytes::new(),
        chunks: Vec::new(),
        finish: Finish::Whole,
        counts: None,
        usage_event: None,
    };
    if !question.loaded {
        script.head_ns += endpoint.load_ms * MILLI;
    }
    if dice.strikes(Fault::Delay) {
        script.head_ns += dice.details(Fault::Delay).millis(1, 6_000).as_nanos() as u64;
    }
    if dice.strikes(Fault::Refuse) {
        script.no_head = Some(NoHead::Refused);
        return script;
    }
    if dice.strikes(Fault::CutBeforeHead) {
        script.no_head = Some(NoHead::Cut);
        return script;
    }
    let refusals = [(Fault::Status500, 500), (Fault::Status429, 429), (Fault::Status400, 400)];
    let refusal = refusals.into_iter().find(|(fault, _)| dice.strikes(*fault)).map(|(_, status)| status);
    if let Some(status) = refusal.or((!question.has).then_some(404)) {
        script.status = status;
        script.bytes = Bytes::from(format!("{{\"error\":\"c{} says {status}\"}}", question.call));
        script.chunks = vec![(0, script.bytes.len())];
        return script;
    }
    if dice.strikes(Fault::Garbage) {
        script.bytes = Bytes::from(format!("<html>c{}</html>", question.call));
        script.chunks = vec![(0, script.bytes.len())];
        return script;
    }
    write(question, dice, pace, &mut script);
    script
}

/// Records of the body: where each ends.
struct Body {
    text: String,
    ends: Vec<usize>,
    /// From here on the message is whole.
    whole_at: usize,
    /// Chunks and breaks fall at or before here, or at the end: within are the counts of a document.
    divisible_to: usize,
}

fn write(question: &Question<'_>, dice: &mut Dice<'_>, pace: &mut Stream, script: &mut Script) {
    let streams = question.stream && !matches!(question.what, Call::OllamaEmbed | Call::OpenAiEmbedding);
    let fails = streams && dice.strikes(Fault::ErrorLine);
    let tokens = if fails { pace.below(question.tokens + 1) } else { question.tokens };
    let ollama = matches!(question.what, Call::OllamaChat | Call::OllamaGenerate | Call::OllamaEmbed);
    let mut body = match (streams, ollama) {
        (true, true) => ndjson(question, tokens, fails, script),
        (true, false) => events(question, tokens, fails, script),
        (false, _) => document(question, ollama, script),
    };
    let bytes = body.text.len();
    let mut stop = bytes;
    if !fails {
        // A break after the whole message is no break, so it comes before.
        let at_most = body.divisible_to.min(body.whole_at - 1) as u64;
        for (fault, finish) in [
            (Fault::CutMidStream, Finish::Cut),
            (Fault::EarlyEnd, Finish::Early),
            (Fault::Stall, Finish::Stall),
        ] {
            if script.finish == Finish::Whole && dice.strikes(fault) {
                script.finish = finish;
                stop = dice.details(fault).within(1, at_most) as usize;
                if fault == Fault::Stall && dice.details(fault).chance(300) {
                    script.no_head = Some(NoHead::Stall);
                }
            }
        }
    }
    if dice.strikes(Fault::Fragment) {
        let chance = &mut dice.details(Fault::Fragment);
        let mut ends: Vec<usize> =
            (0..body.ends.len() + 2).map(|_| chance.within(1, body.divisible_to as u64) as usize).collect();
        ends.push(bytes);
        ends.sort_unstable();
        ends.dedup();
        body.ends = ends;
    }
    body.ends.retain(|end| *end < stop);
    body.ends.push(stop);
    let mut at = 0;
    script.chunks = body
        .ends
        .iter()
        .map(|end| {
            at += pace.within(question.endpoint.gap_ms.0 * 1_000, question.endpoint.gap_ms.1 * 1_000) * MICRO;
            (at, *end)
        })
        .collect();
    script.bytes = Bytes::from(body.text);
    script.bytes.truncate(stop);
}

fn counts_of(question: &Question<'_>) -> (u64, u64) {
    (3 + question.call as u64 % 17, question.tokens)
}

fn ndjson(question: &Question<'_>, tokens: u64, fails: bool, script: &mut Script) -> Body {
    script.content_type = "application/x-ndjson";
    let (call, (input, output)) = (question.call, counts_of(question));
    let mut body = Body { text: String::new(), ends: Vec::new(), whole_at: 0, divisible_to: 0 };
    for token in 0..tokens {
        let text = format!("{{\"model\":\"m\",\"response\":\"c{call} {token}\",\"done\":false}}\n");
        body.text.push_str(&text);
        body.ends.push(body.text.len());
    }
    if fails {
        body.text.push_str(&format!("{{\"error\":\"c{call} ran out of memory\"}}\n"));
    } else {
        body.text.push_str(&format!(
            "{{\"model\":\"m\",\"response\":\"c{call}\",\"done\":true,\"prompt_eval_count\":{input},\"eval_count\":{output}}}\n"
        ));
        body.whole_at = body.text.len() - 1;
        script.counts = Some(Counts { known_at: body.whole_at, input, output });
    }
    body.ends.push(body.text.len());
    body.divisible_to = body.text.len();
    body
}

fn events(question: &Question<'_>, tokens: u64, fails: bool, script: &mut Script) -> Body {
    script.content_type = "text/event-stream";
    let (call, (input, output)) = (question.call, counts_of(question));
    let mut body = Body { text: String::new(), ends: Vec::new(), whole_at: 0, divisible_to: 0 };
    for token in 0..tokens {
        body.text.push_str(&format!(
            "data: {{\"id\":\"c{call}\",\"choices\":[{{\"index\":0,\"delta\":{{\"content\":\"{token} \"}},\"finish_reason\":null}}]}}\n\n"
        ));
        body.ends.push(body.text.len());
    }
    if fails {
        body.text.push_str(&format!("data: {{\"error\":{{\"message\":\"c{call} ran out of memory\"}}}}\n\n"));
        body.ends.push(body.text.len());
        body.divisible_to = body.text.len();
        return body;
    }
    body.text.push_str(&format!(
        "data: {{\"id\":\"c{call}\",\"choices\":[{{\"index\":0,\"delta\":{{}},\"finish_reason\":\"stop\"}}]}}\n\n"
    ));
    body.ends.push(body.text.len());
    // The record is known to be closed at its brace.
    body.whole_at = body.text.len() - 2;
    if question.asks_usage {
        let start = body.text.len();
        body.text.push_str(&format!(
            "data: {{\"id\":\"c{call}\",\"choices\":[],\"usage\":{{\"prompt_tokens\":{input},\"completion_tokens\":{output}}}}}\n\n"
        ));
        body.ends.push(body.text.len());
        script.usage_event = Some(start..body.text.len());
        script.counts = Some(Counts { known_at: body.text.len() - 2, input, output });
    }
    body.text.push_str("data: [DONE]\n\n");
    body.ends.push(body.text.len());
    body.divisible_to = body.text.len();
    body
}

fn document(question: &Question<'_>, ollama: bool, script: &mut Script) -> Body {
    let (call, (input, output)) = (question.call, counts_of(question));
    let mut text =
        format!("{{\"id\":\"c{call}\",\"response\":\"{}\",", "word ".repeat(question.tokens as usize));
    let divisible_to = text.len();
    if ollama {
        text.push_str(&format!("\"done\":true,\"prompt_eval_count\":{input},\"eval_count\":{output}}}"));
    } else {
        text.push_str(&format!("\"usage\":{{\"prompt_tokens\":{input},\"completion_tokens\":{output}}}}}"));
    }
    script.counts = Some(Counts { known_at: text.len(), input, output });
    Body { ends: vec![text.len()], whole_at: text.len(), divisible_to, text }
}

/// An answer to a listing whose good body is `good`.
pub(crate) fn listing(endpoint: &EndpointPlan, call: usize, good: String, dice: &mut Dice<'_>) -> Script {
    let pace = &mut dice.stream("pace");
    let mut script = Script {
        connect_ns: pace.within(50, 500) * MICRO,
        head_ns: pace.within(endpoint.listing_ms.0 * 1_000, endpoint.listing_ms.1 * 1_000) * MICRO,
        no_head: None,
        status: 200,
        content_type: "application/json",
        bytes: Bytes::new(),
        chunks: Vec::new(),
        finish: Finish::Whole,
        counts: None,
        usage_event: None,
    };
    let mut body = good;
    if dice.strikes(Fault::ListingLate) {
        let late = &mut dice.details(Fault::ListingLate);
        if late.chance(400) {
            script.no_head = Some(NoHead::Stall);
        } else {
            script.head_ns += late.millis(100, 6_000).as_nanos() as u64;
        }
    }
    if dice.strikes(Fault::ListingFails) {
        match dice.details(Fault::ListingFails).below(4) {
            0 => script.no_head = Some(NoHead::Refused),
            1 => script.no_head = Some(NoHead::Cut),
            2 => script.finish = Finish::Cut,
            _ => script.status = 500,
        }
    } else if dice.strikes(Fault::ListingGarbage) {
        body = format!("<html>c{call}</html>");
    }
    script.bytes = Bytes::from(body);
    if script.finish == Finish::Cut {
        script.bytes.truncate(script.bytes.len() / 2);
    }
    script.chunks = vec![(0, script.bytes.len())];
    script
}

/// The good body of a listing: of `models`, those that are listed, or that are loaded.
pub(crate) fn listing_body(endpoint: &EndpointPlan, models: &[(bool, bool)], path: &str) -> String {
    let of = |wanted: fn(&(bool, bool)) -> bool| {
        models.iter().enumerate().filter(move |(_, model)| wanted(model)).map(|(number, _)| number)
    };
    let join = |items: Vec<String>| items.join(",");
    let ollama = |number: usize| format!("{{\"name\":\"{0}\",\"model\":\"{0}\"}}", endpoint.listed(number));
    match path {
        "/api/tags" => format!("{{\"models\":[{}]}}", join(of(|m| m.0).map(ollama).collect())),
        "/api/ps" => format!("{{\"models\":[{}]}}", join(of(|m| m.0 && m.1).map(ollama).collect())),
        "/api/version" => "{\"version\":\"0.12.3\"}".to_owned(),
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
