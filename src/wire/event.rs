//! Events of the log, as JSON: written once when they happen, read back from the log, and framed for each
//! reader with its number and the number before.
//!
//! What is stored lacks the numbers, because they are only known once the event has its place. An event of
//! a newer program, of a kind unknown here, is read and passed on like any other.

use std::borrow::Cow;

use core::ops::Range;

use bytes::Bytes;
use serde::{Deserialize, Deserializer, Serialize};
use thiserror::Error;

use super::skim::{Skimmed, skim};

/// The longest name of an endpoint or model in an event, in bytes; longer ones are cut. Keeps the ring's
/// memory bounded whatever clients ask for.
const NAME_MAX: usize = 256;

/// What can happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A request for inference was accepted.
    RequestStarted,
    /// It ended, whichever way: exactly once for every start.
    RequestFinished,
    /// An endpoint gave no answer, and another was tried.
    RequestRetried,
    /// An endpoint is used again.
    EndpointUp,
    /// An endpoint failed and is left alone.
    EndpointDown,
    /// An endpoint serves a model it did not serve before.
    ModelAppeared,
    /// An endpoint no longer serves a model.
    ModelGone,
    /// An endpoint has brought a model into memory.
    ModelLoaded,
    /// An endpoint has a model no longer in memory.
    ModelUnloaded,
    /// Another configuration was put in force.
    ConfigReloaded,
    /// A router began to write this log.
    InstanceJoined,
    /// It ended in order. Without this, it crashed.
    InstanceLeft,
    /// The log could not keep up: so many events are missing here.
    LogLost,
}

impl Kind {
    /// All of them.
    pub const ALL: [Kind; 13] = [
        Kind::RequestStarted,
        Kind::RequestFinished,
        Kind::RequestRetried,
        Kind::EndpointUp,
        Kind::EndpointDown,
        Kind::ModelAppeared,
        Kind::ModelGone,
        Kind::ModelLoaded,
        Kind::ModelUnloaded,
        Kind::ConfigReloaded,
        Kind::InstanceJoined,
        Kind::InstanceLeft,
        Kind::LogLost,
    ];

    /// The name in the log.
    pub const fn name(self) -> &'static str {
        match self {
            Kind::RequestStarted => "request.started",
            Kind::RequestFinished => "request.finished",
            Kind::RequestRetried => "request.retried",
            Kind::EndpointUp => "endpoint.up",
            Kind::EndpointDown => "endpoint.down",
            Kind::ModelAppeared => "model.appeared",
            Kind::ModelGone => "model.gone",
            Kind::ModelLoaded => "model.loaded",
            Kind::ModelUnloaded => "model.unloaded",
            Kind::ConfigReloaded => "config.reloaded",
            Kind::InstanceJoined => "instance.joined",
            Kind::InstanceLeft => "instance.left",
            Kind::LogLost => "log.lost",
        }
    }
}

/// The fields of an event; those that its kind does not have are left out.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fields<'a> {
    /// When it happened: wall clock, Unix milliseconds.
    pub time_ms: u64,
    /// The kind's name.
    #[serde(borrow)]
    pub kind: Cow<'a, str>,
    /// The request's name, as in `x-request-id`.
    #[serde(borrow, default, deserialize_with = "in_place", skip_serializing_if = "Option::is_none")]
    pub request_id: Option<Cow<'a, str>>,
    /// The endpoint's URL as configured.
    #[serde(borrow, default, deserialize_with = "in_place", skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<Cow<'a, str>>,
    /// The model: as it is counted where an endpoint is known, else as the client named it.
    #[serde(borrow, default, deserialize_with = "in_place", skip_serializing_if = "Option::is_none")]
    pub model: Option<Cow<'a, str>>,
    /// The model as the client named it, if that is another name.
    #[serde(borrow, default, deserialize_with = "in_place", skip_serializing_if = "Option::is_none")]
    pub asked: Option<Cow<'a, str>>,
    /// Whose request it was: the first 8 hex digits of the SHA-256 of the key it came with.
    #[serde(borrow, default, deserialize_with = "in_place", skip_serializing_if = "Option::is_none")]
    pub client_key: Option<Cow<'a, str>>,
    /// Tokens of the prompt, if the endpoint reported them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub input_tokens: Option<u64>,
    /// Tokens of the answer, if the endpoint reported them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub output_tokens: Option<u64>,
    /// From its start to its end, in milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub duration_ms: Option<u64>,
    /// `answered`, `refused`, `failed` or `cancelled`.
    #[serde(borrow, default, deserialize_with = "in_place", skip_serializing_if = "Option::is_none")]
    pub outcome: Option<Cow<'a, str>>,
    /// Why, in a sentence.
    #[serde(borrow, default, deserialize_with = "in_place", skip_serializing_if = "Option::is_none")]
    pub reason: Option<Cow<'a, str>>,
    /// How many endpoints are configured now.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub endpoints: Option<u64>,
    /// How many events are missing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub events: Option<u64>,
    /// All tokens ever counted, when an instance joins or leaves: so that its life can be audited by itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub total_tokens: Option<u64>,
    /// Slots and places in the queue that were ever given out, when an instance leaves.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub admitted: Option<u64>,
    /// Of these, those given back.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub finished: Option<u64>,
    /// Of these, slots that are still held.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub in_flight: Option<u64>,
    /// Of these, places in the queue that are still taken.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub queued: Option<u64>,
}

/// Takes a string from where it stands, unless its spelling has escapes: of an optional one, serde makes a copy.
fn in_place<'de: 'a, 'a, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Cow<'a, str>>, D::Error> {
    #[derive(Deserialize)]
    struct Text<'a>(#[serde(borrow)] Cow<'a, str>);
    Ok(Option::<Text<'a>>::deserialize(deserializer)?.map(|text| text.0))
}

/// One event: its bytes, and what filters ask of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// When it happened, in Unix milliseconds by the wall clock of that moment.
    pub time_ms: u64,
    /// The kind's name.
    pub kind: Cow<'static, str>,
    endpoint: Option<Name>,
    model: Option<Name>,
    asked: Option<Name>,
    /// One JSON object without numbers.
    pub json: Bytes,
}

/// A name in an event.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Name {
    /// Its place in the JSON, which spells it as it is.
    At { from: u32, to: u32 },
    /// The JSON spells it otherwise.
    Own(Box<str>),
}

/// A record of the log is not an event.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("a record of the event log is damaged: {0}")]
pub struct BadEvent(String);

impl Event {
    /// The event with these fields.
    pub fn new(kind: Kind, mut fields: Fields<'_>) -> Event {
        fields.kind = Cow::Borrowed(kind.name());
        let Fields { endpoint, model, asked, request_id, reason, .. } = &mut fields;
        for name in [endpoint, model, asked, request_id, reason] {
            shorten(name);
        }
        let mut json = Vec::with_capacity(512);
        serde_json::to_writer(&mut json, &fields).expect("numbers and strings always serialise");
        // A copy of just its length: the ring keeps thousands.
        Event::parse(Bytes::copy_from_slice(&json)).expect("an event is read as it was written")
    }

    /// Reads an event that was written by [`Event::new`], here or in another version.
    pub fn parse(json: Bytes) -> Result<Event, BadEvent> {
        let skimmed = if u32::try_from(json.len()).is_ok() { skim(&json) } else { None };
        let Some(Skimmed { time_ms, kind, endpoint, model, asked }) = skimmed else {
            return Event::parse_all(json);
        };
        // Both fit, since all of it does.
        let at = |range: Range<usize>| Name::At { from: range.start as u32, to: range.end as u32 };
        let (endpoint, model, asked) = (endpoint.map(at), model.map(at), asked.map(at));
        Ok(Event { time_ms, kind: kind_name(kind), endpoint, model, asked, json })
    }

    /// The same, however it is written.
    fn parse_all(json: Bytes) -> Result<Event, BadEvent> {
        if json.first() != Some(&b'{') {
            return Err(BadEvent("it is no JSON object".to_owned()));
        }
        let fields = read(&json)?;
        let own = |name: Option<Cow<'_, str>>| name.map(|name| Name::Own(Box::from(&*name)));
        let (endpoint, model, asked) = (own(fields.endpoint), own(fields.model), own(fields.asked));
        let (time_ms, kind) = (fields.time_ms, kind_name(&fields.kind));
        Ok(Event { time_ms, kind, endpoint, model, asked, json })
    }

    /// The endpoint, if it concerns one.
    pub fn endpoint(&self) -> Option<&str> {
        self.name(&self.endpoint)
    }

    /// The model, if it concerns one.
    pub fn model(&self) -> Option<&str> {
        self.name(&self.model)
    }

    /// The model as its client named it, if that is another name.
    pub fn asked(&self) -> Option<&str> {
        self.name(&self.asked)
    }

    fn name<'e>(&'e self, name: &'e Option<Name>) -> Option<&'e str> {
        match name.as_ref()? {
            Name::Own(name) => Some(name),
            Name::At { from, to } => {
                let name = core::str::from_utf8(&self.json[*from as usize..*to as usize]);
                Some(name.expect("what was skimmed is UTF-8"))
            }
        }
    }

    /// All its fields.
    pub fn fields(&self) -> Result<Fields<'_>, BadEvent> {
        read(&self.json)
    }

    /// Writes the event as its reader gets it, with its number and the number of the one before that this
    /// reader was given.
    pub fn frame(&self, seq: u64, prev_seq: Option<u64>, out: &mut Vec<u8>) {
        // Both are numbers, and the rest is an object with at least two fields: this is JSON again.
        out.extend_from_slice(b"{\"seq\":");
        push_number(seq, out);
        out.extend_from_slice(b",\"prev_seq\":");
        match prev_seq {
            Some(prev) => push_number(prev, out),
            None => out.extend_from_slice(b"null"),
        }
        out.push(b',');
        out.extend_from_slice(&self.json[1..]);
    }

    /// How many bytes [`Event::frame`] writes.
    pub fn frame_len(&self, seq: u64, prev_seq: Option<u64>) -> usize {
        let digits = |number: u64| number.checked_ilog10().map_or(1, |log| log as usize + 1);
        let prev = prev_seq.map_or("null".len(), digits);
        "{\"seq\":,\"prev_seq\":,".len() + digits(seq) + prev + self.json.len() - 1
    }
}

/// All of it is UTF-8, or none of it is looked at: cheaper than string by string.
fn read(json: &[u8]) -> Result<Fields<'_>, BadEvent> {
    let text = core::str::from_utf8(json).map_err(|error| BadEvent(error.to_string()))?;
    serde_json::from_str(text).map_err(|error| BadEvent(error.to_string()))
}

/// Writes a number in digits: a frame has up to three, and the formatter takes longer than the rest of it.
pub fn push_number(mut number: u64, out: &mut Vec<u8>) {
    let (mut digits, mut at) = ([0; 20], 20);
    loop {
        at -= 1;
        digits[at] = b'0' + (number % 10) as u8;
        number /= 10;
        if number == 0 {
            break;
        }
    }
    out.extend_from_slice(&digits[at..]);
}

/// A kind's name, kept as it is if nobody knows it here.
fn kind_name(name: &str) -> Cow<'static, str> {
    let known = Kind::ALL.iter().find(|kind| kind.name() == name);
    known.map_or_else(|| Cow::Owned(name.to_owned()), |kind| Cow::Borrowed(kind.name()))
}

fn shorten(name: &mut Option<Cow<'_, str>>) {
    if let Some(name) = name
        && let Cow::Owned(short) = label(name)
    {
        *name = Cow::Owned(short);
    }
}

/// A name as events spell it: whole, or cut if it is very long.
pub fn label(name: &str) -> Cow<'_, str> {
    if name.len() <= NAME_MAX {
        return Cow::Borrowed(name);
    }
    let end = (0..=NAME_MAX).rev().find(|at| name.is_char_boundary(*at)).unwrap_or(0);
    Cow::Owned(format!("{}...", &name[..end]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn finished() -> Event {
        let fields = Fields {
            time_ms: 1_790_000_000_123,
            request_id: Some("r1".into()),
            endpoint: Some("http://a".into()),
            model: Some("m\"q".into()),
            asked: Some("q".into()),
            client_key: Some("01234567".into()),
            input_tokens: Some(3),
            output_tokens: Some(0),
            duration_ms: Some(12),
            outcome: Some("answered".into()),
            ..Fields::default()
        };
        Event::new(Kind::RequestFinished, fields)
    }

    #[test]
    fn an_event_is_read_as_it_was_written() {
        let event = finished();
        assert_eq!(Event::parse(event.json.clone()), Ok(event));
    }

    #[test]
    fn a_frame_is_the_event_with_its_numbers() {
        let mut frame = Vec::new();
        finished().frame(7, None, &mut frame);
        let expected = json!({
            "seq": 7, "prev_seq": null, "time_ms": 1_790_000_000_123u64, "kind": "request.finished", "request_id": "r1",
            "endpoint": "http://a", "model": "m\"q", "input_tokens": 3, "output_tokens": 0, "duration_ms": 12,
            "outcome": "answered", "asked": "q", "client_key": "01234567",
        });
        assert_eq!(serde_json::from_slice::<Value>(&frame).unwrap(), expected);
        let mut second = Vec::new();
        finished().frame(9, Some(7), &mut second);
        assert_eq!(serde_json::from_slice::<Value>(&second).unwrap()["prev_seq"], 7);
    }

    #[test]
    fn the_length_of_a_frame_is_known_before_it_is_written() {
        for (seq, prev) in [(1, None), (9, Some(0)), (10, Some(9)), (1_000, Some(999)), (u64::MAX, None)] {
            let mut frame = Vec::new();
            finished().frame(seq, prev, &mut frame);
            assert_eq!(finished().frame_len(seq, prev), frame.len(), "{seq} {prev:?}");
        }
    }

    #[test]
    fn an_unknown_kind_with_unknown_fields_is_passed_on_whole() {
        let json = Bytes::from_static(br#"{"time_ms":1,"kind":"job.done","job":"j","model":"m"}"#);
        let event = Event::parse(json.clone()).unwrap();
        assert_eq!((event.kind.as_ref(), event.model()), ("job.done", Some("m")));
        assert_eq!(event.json, json);
    }

    #[test]
    fn what_is_no_event_is_refused() {
        for bad in [
            "",
            "[]",
            "{}",
            "{\"kind\":\"x\"}",
            "{\"time_ms\":-1,\"kind\":\"x\"}",
            " {\"time_ms\":1,\"kind\":\"x\"}",
        ] {
            assert!(Event::parse(Bytes::from_static(bad.as_bytes())).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_name_of_any_length_makes_a_short_event() {
        let fields = Fields { model: Some("ü".repeat(5_000).into()), ..Fields::default() };
        let event = Event::new(Kind::RequestStarted, fields);
        assert!(event.json.len() < 2 * NAME_MAX, "{}", event.json.len());
        assert!(event.model().unwrap().ends_with("..."));
    }
}
