//! Token counts, picked out of an answer in passing: the chunks go on as they came, at once and
//! uncopied. A `Tap` also knows whether the answer reached its protocol's own end, which is how the
//! router tells a finished answer from one that was cut (`answer-ends`), and what to write down
//! (`token-conservation`). Called by the flow that relays a response, once per chunk.

use bytes::Bytes;

use super::lines::Lines;
use super::scan::{Counts, Scanner};
use super::sieve::Sieve;

/// The tokens one answer cost, as the backend counted them. Each at most 2^53.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Usage {
    /// Of the prompt.
    pub input_tokens: u64,
    /// Of the answer.
    pub output_tokens: u64,
}

impl Usage {
    /// The first source that says anything; a count it leaves out is 0.
    pub(super) fn first_of(sources: &[Counts]) -> Option<Usage> {
        let said = sources.iter().find(|c| c.input.is_some() || c.output.is_some())?;
        Some(Usage { input_tokens: said.input.unwrap_or(0), output_tokens: said.output.unwrap_or(0) })
    }
}

/// How a response body is divided into JSON documents.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Framing {
    /// One document.
    Json,
    /// One document per line: Ollama's streams.
    Ndjson,
    /// Server-sent events, one document per `data:` line: OpenAI's streams.
    Sse,
}

impl Framing {
    /// The framing a `Content-Type` announces, whatever its parameters; `None` if it is none of the three.
    pub fn of_content_type(value: &str) -> Option<Framing> {
        let media = value.split(';').next().unwrap_or("").trim();
        [
            ("application/json", Framing::Json),
            ("application/x-ndjson", Framing::Ndjson),
            ("application/ndjson", Framing::Ndjson),
            ("text/event-stream", Framing::Sse),
        ]
        .into_iter()
        .find(|(name, _)| media.eq_ignore_ascii_case(name))
        .map(|(_, framing)| framing)
    }
}

/// Watches one response body go by. Memory is constant (under 1 KiB), but for at most 64 KiB of an
/// incomplete event while usage is hidden.
///
/// Use: [`Tap::push`] each chunk and pass on what it returns; at a clean end pass on [`Tap::finish`].
/// If the upstream was cut, leave `finish` out (what is held is half an event) and ask
/// [`Tap::mid_line`] how to begin the error record.
#[derive(Debug)]
pub struct Tap {
    reader: Reader,
}

#[derive(Debug)]
enum Reader {
    Whole(Scanner),
    Stream(Lines),
    Sifted(Lines, Sieve),
}

impl Tap {
    /// With `hide_usage`, an SSE event whose `choices` is empty and which carries `usage` is taken out of
    /// the stream; other framings have no such event and pass unchanged.
    pub fn new(framing: Framing, hide_usage: bool) -> Tap {
        let reader = match (framing, hide_usage) {
            (Framing::Json, _) => Reader::Whole(Scanner::new()),
            (Framing::Sse, true) => Reader::Sifted(Lines::new(framing), Sieve::default()),
            _ => Reader::Stream(Lines::new(framing)),
        };
        Tap { reader }
    }

    /// Reads a chunk, cut anywhere, and returns what to pass on now: ordinarily the same bytes, uncopied;
    /// with `hide_usage` perhaps fewer, none, or some that were held before.
    pub fn push(&mut self, chunk: Bytes) -> Bytes {
        match &mut self.reader {
            Reader::Whole(scanner) => scanner.push(&chunk),
            Reader::Stream(lines) => lines.read(&chunk, |_, _| {}),
            Reader::Sifted(lines, sieve) => return sieve.push(lines, chunk),
        }
        chunk
    }

    /// The body ended; returns the bytes still held (none without `hide_usage`). Nothing is pushed after.
    pub fn finish(&mut self) -> Bytes {
        match &mut self.reader {
            Reader::Whole(scanner) => scanner.end(),
            Reader::Stream(lines) => lines.end(),
            Reader::Sifted(lines, sieve) => return sieve.finish(lines),
        }
        Bytes::new()
    }

    /// The last usage said so far, never a sum. Sources: Ollama `prompt_eval_count`/`eval_count`, OpenAI
    /// `usage`, and llama.cpp `timings` where that says nothing. Counts that are negative, fractional or
    /// above 2^53 are ignored.
    pub fn usage(&self) -> Option<Usage> {
        match &self.reader {
            Reader::Whole(scanner) => {
                let facts = scanner.facts();
                Usage::first_of(&[facts.usage, facts.eval, facts.timings])
            }
            Reader::Stream(lines) | Reader::Sifted(lines, _) => lines.seen().usage,
        }
    }

    /// Whether the protocol's own end was seen: the closed document; an NDJSON line with `done: true`; SSE
    /// `data: [DONE]` or a chunk with a `finish_reason` (a non-empty string: some servers write `""` for
    /// "not yet").
    pub fn complete(&self) -> bool {
        match &self.reader {
            Reader::Whole(scanner) => scanner.closed(),
            Reader::Stream(lines) | Reader::Sifted(lines, _) => lines.seen().complete,
        }
    }

    /// Whether a record had a top-level `error` that is a string or an object.
    pub fn failed(&self) -> bool {
        match &self.reader {
            Reader::Whole(scanner) => scanner.facts().error,
            Reader::Stream(lines) | Reader::Sifted(lines, _) => lines.seen().failed,
        }
    }

    /// Whether the bytes passed on so far end inside a line (NDJSON) or an event (SSE), so that an error
    /// record needs a line end before it. Never for a whole document, which has no place for one.
    pub fn mid_line(&self) -> bool {
        match &self.reader {
            Reader::Whole(_) => false,
            Reader::Stream(lines) => lines.open_len() > 0,
            Reader::Sifted(_, sieve) => sieve.mid_event(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use proptest::sample::{Index, select};

    /// What one stream came to: the bytes passed on, and what the tap says at the end.
    #[derive(Debug, PartialEq)]
    struct Outcome {
        out: Vec<u8>,
        usage: Option<Usage>,
        complete: bool,
        failed: bool,
    }

    fn run<'a>(framing: Framing, hide: bool, chunks: impl IntoIterator<Item = &'a [u8]>) -> Outcome {
        let mut tap = Tap::new(framing, hide);
        let mut out = Vec::new();
        for chunk in chunks {
            out.extend_from_slice(&tap.push(Bytes::copy_from_slice(chunk)));
        }
        out.extend_from_slice(&tap.finish());
        Outcome { out, usage: tap.usage(), complete: tap.complete(), failed: tap.failed() }
    }

    fn whole(framing: Framing, hide: bool, body: &[u8]) -> Outcome {
        run(framing, hide, [body])
    }

    fn cut_at<'a>(body: &'a [u8], cuts: &[Index]) -> Vec<&'a [u8]> {
        let mut at: Vec<usize> = cuts.iter().map(|cut| cut.index(body.len() + 1)).collect();
        at.extend([0, body.len()]);
        at.sort_unstable();
        at.windows(2).map(|ends| &body[ends[0]..ends[1]]).collect()
    }

    fn used(input_tokens: u64, output_tokens: u64) -> Option<Usage> {
        Some(Usage { input_tokens, output_tokens })
    }

    const TOKEN: &str = r#"data: {"id":"c1","object":"chat.completion.chunk","model":"m","choices":[{"index":0,"delta":{"content":"Hi"},"finish_reason":null}]}"#;
    const LAST: &str =
        r#"data: {"id":"c1","choices":[{"index":0,"delta":{},"finish_reason":"stop"}],"usage":null}"#;
    const USAGE: &str = r#"data: {"id":"c1","choices":[],"usage":{"prompt_tokens":11,"completion_tokens":7,"total_tokens":18}}"#;
    const DONE: &str = "data: [DONE]";

    /// Events with the line end `eol`, each followed by a blank line.
    fn events(lines: &[&str], eol: &str) -> Vec<u8> {
        lines.iter().flat_map(|line| [line, eol, eol]).collect::<String>().into_bytes()
    }

    #[test]
    fn an_openai_stream_yields_its_usage_and_its_end() {
        let body = events(&[TOKEN, LAST, USAGE, DONE], "\n");
        let outcome = whole(Framing::Sse, false, &body);
        assert_eq!(outcome, Outcome { out: body, usage: used(11, 7), complete: true, failed: false });
    }

    #[test]
    fn an_ollama_stream_yields_its_counts_and_its_end() {
        let body = concat!(
            "{\"model\":\"m\",\"message\":{\"content\":\"\\\"done\\\":true\"},\"done\":false}\n",
            "{\"model\":\"m\",\"done\":true,\"prompt_eval_count\":26,\"eval_count\":298}\n"
        );
        let (first, last) = body.split_at(body.find('\n').unwrap() + 1);
        let cut = whole(Framing::Ndjson, false, first.as_bytes());
        assert_eq!((cut.usage, cut.complete), (None, false));
        let outcome = run(Framing::Ndjson, false, [first.as_bytes(), last.as_bytes()]);
        let expected = Outcome { out: body.into(), usage: used(26, 298), complete: true, failed: false };
        assert_eq!(outcome, expected);
    }

    #[test]
    fn a_last_line_without_its_newline_counts() {
        let line = br#"{"done": true, "eval_count": 3}"#;
        let outcome = whole(Framing::Ndjson, false, line);
        assert_eq!((outcome.usage, outcome.complete), (used(0, 3), true));
        assert!(whole(Framing::Sse, true, b"data: [DONE]").complete);
    }

    #[test]
    fn the_end_is_known_before_its_newline_comes() {
        let mut tap = Tap::new(Framing::Ndjson, false);
        tap.push(Bytes::from_static(br#"{"done":true,"eval_count":3}"#));
        assert!(tap.complete());
        assert_eq!(tap.usage(), used(0, 3));
    }

    #[test]
    fn one_document_yields_usage_wherever_the_backend_puts_it() {
        let cases: [(&str, Option<Usage>); 7] = [
            (r#"{"embeddings":[[0.1,-2e-3]],"prompt_eval_count":8}"#, used(8, 0)),
            (r#"{"data":[],"usage":{"prompt_tokens":8,"total_tokens":8}}"#, used(8, 0)),
            (r#"{"choices":[],"timings":{"prompt_n":4,"predicted_n":2}}"#, used(4, 2)),
            (r#"{"timings":{"prompt_n":4},"usage":{"prompt_tokens":5}}"#, used(5, 0)),
            (r#"{"usage":null,"timings":{"prompt_n":4}}"#, used(4, 0)),
            (r#"{"usage":{"prompt_tokens":-5,"completion_tokens":1.5}}"#, None),
            (r#"{"message":{"usage":{"prompt_tokens":5}},"x":"\"eval_count\":5"}"#, None),
        ];
        for (body, usage) in cases {
            let outcome = whole(Framing::Json, true, body.as_bytes());
            assert_eq!((outcome.usage, outcome.complete), (usage, true), "{body}");
            assert_eq!(outcome.out, body.as_bytes());
        }
    }

    #[test]
    fn half_a_document_is_not_complete() {
        assert!(!whole(Framing::Json, false, br#"{"embeddings":[[0.1,"#).complete);
        assert!(!whole(Framing::Json, false, b"").complete);
    }

    #[test]
    fn the_last_usage_wins_and_nothing_is_summed() {
        let body = events(
            &[
                r#"data: {"choices":[{"finish_reason":null}],"usage":{"prompt_tokens":5,"completion_tokens":1}}"#,
                r#"data:{"choices":[{"finish_reason":null}],"usage":{"prompt_tokens":5,"completion_tokens":2}}"#,
                r#"data: {"choices":[{"finish_reason":""}],"usage":null}"#,
            ],
            "\n",
        );
        let outcome = whole(Framing::Sse, true, &body);
        assert_eq!(outcome, Outcome { out: body, usage: used(5, 2), complete: false, failed: false });
    }

    #[test]
    fn an_error_record_is_a_failure_and_a_null_error_is_not() {
        assert!(whole(Framing::Ndjson, false, b"{\"error\":\"out of memory\"}\n").failed);
        assert!(whole(Framing::Sse, false, b"data: {\"error\":{\"message\":\"x\"}}\n\n").failed);
        assert!(!whole(Framing::Ndjson, false, b"{\"error\":null,\"done\":false}\n").failed);
        assert!(!whole(Framing::Sse, false, b"data: {\"choices\":[{\"error\":\"x\"}]}\n\n").failed);
    }

    #[test]
    fn the_hidden_usage_event_goes_with_its_blank_line_and_nothing_else() {
        for eol in ["\n", "\r\n"] {
            let input = events(&[": ping", TOKEN, LAST, USAGE, DONE], eol);
            let expected = events(&[": ping", TOKEN, LAST, DONE], eol);
            let outcome = whole(Framing::Sse, true, &input);
            assert_eq!(outcome.out, expected);
            assert_eq!((outcome.usage, outcome.complete), (used(11, 7), true));
        }
    }

    #[test]
    fn a_usage_event_is_known_by_its_empty_choices_alone() {
        let kept = [
            r#"data: {"choices":[{"delta":{}}],"usage":{"prompt_tokens":1}}"#,
            r#"data: {"choices":[],"usage":null}"#,
            r#"data: {"choices":[],"prompt_filter_results":[{"usage":{}}]}"#,
            r#"data: {"usage":{"prompt_tokens":1}}"#,
            "data: {\"choices\":[],\"usage\":{}}\ndata: [DONE]",
        ];
        for line in kept {
            let body = events(&[line], "\n");
            assert_eq!(whole(Framing::Sse, true, &body).out, body, "{line}");
        }
    }

    #[test]
    fn complete_events_go_on_at_once_and_uncopied() {
        let mut tap = Tap::new(Framing::Sse, true);
        let chunk = Bytes::from(events(&[TOKEN, TOKEN], "\n"));
        let passed = tap.push(chunk.clone());
        assert_eq!(passed, chunk);
        assert_eq!(passed.as_ptr(), chunk.as_ptr());
        assert!(!tap.mid_line());
        let half = tap.push(Bytes::from_static(b"data: {\"choices\":[]"));
        assert!(half.is_empty());
        assert!(!tap.mid_line(), "the client saw none of the half event");
    }

    #[test]
    fn an_event_too_long_for_a_usage_report_is_not_held() {
        let mut tap = Tap::new(Framing::Sse, true);
        let long = format!("data: {{\"choices\":[],\"usage\":{{}},\"x\":\"{}", "x".repeat(70_000));
        assert_eq!(tap.push(Bytes::from(long.clone())).len(), long.len());
        assert!(tap.mid_line());
        assert_eq!(tap.push(Bytes::from_static(b"\"}\n\n")).len(), 4);
        assert!(!tap.mid_line());
        assert_eq!(tap.push(Bytes::from(events(&[USAGE], "\n"))).len(), 0);
    }

    #[test]
    fn the_tap_knows_whether_it_stopped_inside_a_record() {
        for (framing, body, inside) in [
            (Framing::Ndjson, "{\"a\":1}\n", false),
            (Framing::Ndjson, "{\"a\":1}\n{\"b\"", true),
            (Framing::Sse, "data: x\n\n", false),
            (Framing::Sse, "data: x\n", true),
            (Framing::Sse, "data: x", true),
            (Framing::Json, "{\"a\"", false),
        ] {
            let mut tap = Tap::new(framing, false);
            tap.push(Bytes::from_static(body.as_bytes()));
            assert_eq!(tap.mid_line(), inside, "{body}");
        }
    }

    #[test]
    fn an_ordinary_chunk_is_passed_on_uncopied() {
        for (framing, hide) in [(Framing::Json, true), (Framing::Ndjson, true), (Framing::Sse, false)] {
            let chunk = Bytes::from_static(b"{\"a\": \"half of something");
            assert_eq!(Tap::new(framing, hide).push(chunk.clone()).as_ptr(), chunk.as_ptr());
        }
    }

    #[test]
    fn content_types_name_their_framing() {
        let of = Framing::of_content_type;
        assert_eq!(of("text/event-stream; charset=utf-8"), Some(Framing::Sse));
        assert_eq!(of("Application/X-NDJSON"), Some(Framing::Ndjson));
        assert_eq!(of("application/json"), Some(Framing::Json));
        assert_eq!(of("text/html"), None);
    }

    const SSE_LINES: &[&str] = &[
        TOKEN,
        LAST,
        USAGE,
        DONE,
        "data:[DONE]",
        ": ping",
        "event: message\nid: 7",
        "data:",
        "data",
        "retry: 5",
        r#"data:{"choices":[],"usage":{"prompt_tokens":2}}"#,
        r#"data:   { "choices" : [ ] , "usage" : { "completion_tokens" : 9 } }  "#,
        r#"data: {"choices":[],"us\u0061ge":{"prompt_tokens":3}}"#,
        r#"data: {"choices":[],"usage":null,"timings":{"prompt_n":1,"predicted_n":2}}"#,
        r#"data: {"choices":[{"delta":{"content":"\"usage\":{\"prompt_tokens\":1}"},"finish_reason":null}]}"#,
        r#"data: {"choices":[{"finish_reason" : "length"}]}"#,
        r#"data: {"error":{"message":"boom"}}"#,
        r#"data: {"error": null, "choices":[],"usage":{}}"#,
        r#"data: {"choices":[],"usage":{"prompt_tokens":1}"#,
        r#"{"choices":[],"usage":{"prompt_tokens":1}}"#,
        "data: garbage \\u00",
        "",
    ];

    const NDJSON_LINES: &[&str] = &[
        r#"{"model":"m","message":{"role":"assistant","content":"Hi"},"done":false}"#,
        r#"{"model":"m","done" : true,"prompt_eval_count": 26,"eval_count":298}"#,
        r#"{"do\u006ee":true}"#,
        r#"{"message":{"content":"\"done\":true,\"eval_count\":5,"},"done":false,"eval_count":null}"#,
        r#"{"done":false,"prompt_eval_count":4}"#,
        r#"{"error":"boom"}"#,
        r#"{"usage":{"prompt_tokens":1},"done":false}"#,
        r#"{"done":true"#,
        "[DONE]",
        "",
    ];

    fn stream(
        lines: &'static [&'static str],
        eols: &'static [&'static str],
    ) -> impl Strategy<Value = String> {
        proptest::collection::vec((select(lines), select(eols)), 0..12)
            .prop_map(|parts| parts.iter().map(|(line, eol)| format!("{line}{eol}")).collect())
    }

    fn cuts() -> impl Strategy<Value = Vec<Index>> {
        proptest::collection::vec(any::<Index>(), 0..16)
    }

    /// What is left of an SSE stream without its usage events, the slow way: by a full parser.
    fn without_usage_events(body: &[u8]) -> Vec<u8> {
        let is_usage = |line: &str| {
            line.strip_prefix("data:").map(|data| {
                serde_json::from_str::<serde_json::Value>(data).is_ok_and(|v| {
                    v["choices"].as_array().is_some_and(Vec::is_empty) && v["usage"].is_object()
                })
            })
        };
        let text = std::str::from_utf8(body).unwrap();
        let (mut out, mut event) = (String::new(), String::new());
        let mut flush = |event: &mut String| {
            let verdicts: Vec<bool> = event.lines().filter_map(is_usage).collect();
            if verdicts.is_empty() || verdicts.contains(&false) {
                out.push_str(event);
            }
            event.clear();
        };
        for line in text.split_inclusive('\n') {
            event.push_str(line);
            if line == "\n" || line == "\r\n" {
                flush(&mut event);
            }
        }
        flush(&mut event);
        out.into_bytes()
    }

    proptest! {
        #[test]
        fn cutting_an_sse_stream_changes_nothing(
            body in stream(SSE_LINES, &["\n", "\n\n", "\r\n", "\r\n\r\n", "\n\n", ""]),
            cuts in cuts(),
            hide in any::<bool>(),
        ) {
            let body = body.into_bytes();
            let expected = whole(Framing::Sse, hide, &body);
            prop_assert_eq!(&run(Framing::Sse, hide, cut_at(&body, &cuts)), &expected);
            prop_assert_eq!(&run(Framing::Sse, hide, body.chunks(1)), &expected);
            let kept = if hide { without_usage_events(&body) } else { body };
            prop_assert_eq!(expected.out, kept);
        }

        #[test]
        fn cutting_an_ndjson_stream_changes_nothing(
            body in stream(NDJSON_LINES, &["\n", "\r\n", "\n\n", ""]),
            cuts in cuts(),
        ) {
            let body = body.into_bytes();
            let expected = whole(Framing::Ndjson, true, &body);
            prop_assert_eq!(&run(Framing::Ndjson, true, cut_at(&body, &cuts)), &expected);
            prop_assert_eq!(&run(Framing::Ndjson, true, body.chunks(1)), &expected);
            prop_assert_eq!(expected.out, body);
        }

        #[test]
        fn arbitrary_bytes_pass_unchanged_and_never_panic(
            body in proptest::collection::vec(prop_oneof![any::<u8>(), select(&b"\n\r{}[]\":da"[..])], 0..400),
            cuts in cuts(),
        ) {
            for framing in [Framing::Json, Framing::Ndjson, Framing::Sse] {
                for hide in [false, true] {
                    let expected = whole(framing, hide, &body);
                    prop_assert_eq!(&expected.out, &body);
                    prop_assert_eq!(&run(framing, hide, cut_at(&body, &cuts)), &expected);
                }
            }
        }

        #[test]
        fn long_events_come_out_the_same_however_they_are_cut(
            pad in 65_000usize..66_200,
            before in 0usize..3,
            step in 1usize..40_000,
        ) {
            let event = format!("data: {{\"choices\":[],\"usage\":{{}},\"pad\":\"{}\"}}\n\n", "x".repeat(pad));
            let mut body = events(&vec![TOKEN; before], "\n");
            body.extend_from_slice(event.as_bytes());
            body.extend_from_slice(&events(&[USAGE, DONE], "\n"));
            let expected = whole(Framing::Sse, true, &body);
            prop_assert_eq!(&run(Framing::Sse, true, body.chunks(step)), &expected);
            let dropped = events(&[USAGE], "\n").len() + if event.len() <= 64 * 1024 { event.len() } else { 0 };
            prop_assert_eq!(expected.out.len(), body.len() - dropped);
        }
    }
}
