//! Errors in the words of each family: whole bodies, and the one record that ends a stream that broke
//! (`answer-ends`: never a clean end for a broken answer). Also the masking of secrets, which every
//! upstream message goes through before a client or a log sees it. Called by the routes and the relay.

use std::borrow::Cow;
use std::ops::Range;

use bytes::Bytes;
use serde_json::{Value, json};

use super::Family;
use super::usage::Framing;

/// What stands where a secret was.
const MASK: &str = "***";

/// The JSON body of an error answer.
///
/// `status` is the HTTP status the answer carries; OpenAI's `type` follows from it. `code` is a short
/// word in snake_case for programs (`model_not_found`), shown to OpenAI clients only. `extra` members
/// stand beside `error` at the top; one named `error` is left out.
pub fn error_body(
    family: Family,
    status: u16,
    message: &str,
    code: Option<&str>,
    extra: &[(&str, Value)],
) -> Vec<u8> {
    let error = match family {
        Family::Ollama => Value::from(message),
        Family::OpenAi => openai_error(status, message, code),
    };
    let mut body = format!("{{\"error\":{error}");
    for (name, value) in extra.iter().filter(|(name, _)| *name != "error") {
        body.push_str(&format!(",{}:{value}", Value::from(*name)));
    }
    body.push('}');
    body.into_bytes()
}

/// The record that tells a client its stream broke. `mid_line` says that what it got so far ends inside
/// a record (see `Tap::mid_line`); that record is then ended first. A whole document has no place for
/// such a record: for `Framing::Json` this is empty, and the connection must be cut instead.
pub fn error_line(framing: Framing, message: &str, mid_line: bool) -> Bytes {
    let line = match framing {
        Framing::Json => return Bytes::new(),
        Framing::Ndjson => {
            format!("{}{}\n", if mid_line { "\n" } else { "" }, json!({ "error": message }))
        }
        Framing::Sse => format!(
            "{}event: error\ndata: {}\n\n",
            if mid_line { "\n\n" } else { "" },
            json!({ "error": openai_error(502, message, None) })
        ),
    };
    Bytes::from(line)
}

fn openai_error(status: u16, message: &str, code: Option<&str>) -> Value {
    let kind = match status {
        401 => "authentication_error",
        403 => "permission_error",
        429 => "rate_limit_error",
        500.. => "server_error",
        _ => "invalid_request_error",
    };
    json!({ "message": message, "type": kind, "param": null, "code": code })
}

/// The text with every occurrence of every secret replaced by `***`. Overlapping occurrences become one
/// mask, so no rest of a secret shows. Empty secrets are ignored. Uncopied when nothing is found.
pub fn mask_secrets<'a>(text: &'a str, secrets: &[&str]) -> Cow<'a, str> {
    let mut found: Vec<Range<usize>> = Vec::new();
    for secret in secrets.iter().filter(|secret| !secret.is_empty()) {
        let mut from = 0;
        while let Some(at) = text[from..].find(secret) {
            let start = from + at;
            found.push(start..start + secret.len());
            // The next occurrence may begin inside this one.
            from = start + text[start..].chars().next().map_or(1, char::len_utf8);
        }
    }
    if found.is_empty() {
        return Cow::Borrowed(text);
    }
    found.sort_by_key(|range| range.start);
    let mut out = String::with_capacity(text.len());
    let mut shown_to = 0;
    for range in found {
        if range.start >= shown_to {
            out.push_str(&text[shown_to..range.start]);
            out.push_str(MASK);
        }
        shown_to = shown_to.max(range.end);
    }
    out.push_str(&text[shown_to..]);
    Cow::Owned(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn body(family: Family, status: u16, extra: &[(&str, Value)]) -> String {
        String::from_utf8(error_body(family, status, "no \"m\"", Some("model_not_found"), extra)).unwrap()
    }

    #[test]
    fn each_family_gets_its_own_body() {
        assert_eq!(body(Family::Ollama, 404, &[]), r#"{"error":"no \"m\""}"#);
        let expected = json!({"error": {"message": "no \"m\"", "type": "invalid_request_error",
                                        "param": null, "code": "model_not_found"}});
        assert_eq!(serde_json::from_str::<Value>(&body(Family::OpenAi, 404, &[])).unwrap(), expected);
    }

    #[test]
    fn extra_members_stand_beside_the_error_and_never_replace_it() {
        let extra = [("endpoints", json!(["http://a"])), ("error", json!(1))];
        assert_eq!(body(Family::Ollama, 404, &extra), r#"{"error":"no \"m\"","endpoints":["http://a"]}"#);
    }

    #[test]
    fn the_type_follows_the_status() {
        for (status, kind) in [
            (400, "invalid_request_error"),
            (401, "authentication_error"),
            (403, "permission_error"),
            (404, "invalid_request_error"),
            (413, "invalid_request_error"),
            (422, "invalid_request_error"),
            (429, "rate_limit_error"),
            (500, "server_error"),
            (503, "server_error"),
        ] {
            let error = error_body(Family::OpenAi, status, "m", None, &[]);
            let error: Value = serde_json::from_slice(&error).unwrap();
            assert_eq!(error["error"]["type"], kind, "{status}");
            assert_eq!(error["error"]["code"], Value::Null);
        }
    }

    #[test]
    fn a_broken_stream_ends_in_a_record_of_its_own() {
        assert_eq!(error_line(Framing::Ndjson, "gone", false), "{\"error\":\"gone\"}\n");
        assert_eq!(error_line(Framing::Ndjson, "gone", true), "\n{\"error\":\"gone\"}\n");
        let event = error_line(Framing::Sse, "a\nb", true);
        let event = std::str::from_utf8(&event).unwrap();
        let data = event.strip_prefix("\n\nevent: error\ndata: ").unwrap().strip_suffix("\n\n").unwrap();
        assert!(!data.contains('\n'));
        assert_eq!(serde_json::from_str::<Value>(data).unwrap()["error"]["message"], "a\nb");
        assert!(error_line(Framing::Sse, "gone", false).starts_with(b"event: error\n"));
        assert!(error_line(Framing::Json, "gone", true).is_empty());
    }

    #[test]
    fn secrets_are_masked_wherever_they_stand() {
        assert_eq!(mask_secrets("key sk-1, again sk-1", &["sk-1", ""]), "key ***, again ***");
        assert_eq!(mask_secrets("abcd", &["abc", "bcd"]), "***");
        assert_eq!(mask_secrets("sk-12", &["sk-1", "sk-12"]), "***");
        assert_eq!(mask_secrets("abcd", &["abcd", "b"]), "***");
        assert!(matches!(mask_secrets("nothing here", &["sk-1"]), Cow::Borrowed(_)));
    }

    proptest! {
        #[test]
        fn no_secret_survives(text in "[ab\u{e9}c]{0,30}", secrets in proptest::collection::vec("[ab\u{e9}]{0,3}", 0..3)) {
            let secrets: Vec<&str> = secrets.iter().map(String::as_str).collect();
            let masked = mask_secrets(&text, &secrets).into_owned();
            for secret in secrets.iter().filter(|secret| !secret.is_empty()) {
                prop_assert!(!masked.contains(secret));
            }
        }

        #[test]
        fn error_records_are_always_valid_json(message in "\\PC*|[\n\r\"\\\\]{0,9}", mid_line in any::<bool>()) {
            let line = error_line(Framing::Ndjson, &message, mid_line);
            let value: Value = serde_json::from_slice(&line).unwrap();
            prop_assert_eq!(&value["error"], &Value::from(message.as_str()));
            for family in [Family::Ollama, Family::OpenAi] {
                let body = error_body(family, 500, &message, None, &[(&message, json!(1))]);
                prop_assert!(serde_json::from_slice::<Value>(&body).is_ok());
            }
        }
    }
}
