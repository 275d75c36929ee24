//! One try at one endpoint, up to the first byte of its answer: everything that can still be taken
//! back, because the client has seen nothing yet (`answer-pure`). Called by `flow::infer`.

use bytes::Bytes;
use futures_util::StreamExt;
use http::{HeaderMap, Method, StatusCode, header};

use crate::core::breaker::Verdict;
use crate::core::slots::Slot;
use crate::ports::{ByteStream, UpstreamRequest, UpstreamResponse};
use crate::wire::errors::mask_secrets;
use crate::wire::request::Shape;
use crate::wire::usage::Framing;
use crate::wire::{Family, Kind};

use super::answer::{Answer, AnswerBody, Parts};
use super::deadline::{Elapsed, until};
use super::failure::Failure;
use super::fleet::{Backend, Fleet};
use super::headers;
use super::infer::{Inference, Target};
use super::router::Router;

/// The largest answer that is read whole before it is passed on, in bytes.
const WHOLE_MAX: usize = 16 << 20;

/// One attempt's end, if it was no answer.
pub(super) enum Missed {
    /// The endpoint refused with this answer; it is passed on if nobody does better.
    Refused(Box<Answer>),
    /// There was no answer.
    Failed(Failure),
    /// As before, but asking somebody else would not help.
    Final(Failure),
}

/// What an endpoint had to say first.
enum Begun {
    /// A good answer, with its first bytes.
    Answer { status: StatusCode, headers: HeaderMap, framing: Framing, first: Bytes, rest: ByteStream },
    /// An error answer, whole.
    Refusal(Box<Answer>),
}

impl Router {
    /// Sends the request to one endpoint and waits for the first byte of its answer.
    pub(super) async fn attempt(
        &self,
        fleet: &Fleet,
        request: &Inference,
        target: &Target,
        mut slot: Slot,
    ) -> Result<Answer, Missed> {
        let clock = &self.ports.clock;
        let (endpoint, id) = (target.backend.name.clone(), &request.id);
        let began = clock.now();
        let after = fleet.config.first_byte_timeout;
        slot.wait(began);
        let begun = until(clock.as_ref(), began + after, self.begin(request, target)).await;
        let (verdict, missed) = match begun {
            Ok(Ok(Begun::Answer { status, mut headers, framing, first, rest })) => {
                slot.first_byte(clock.now());
                let streamed = framing != Framing::Json;
                headers::to_client(&mut headers, !streamed);
                let body = AnswerBody::new(Parts {
                    router: self.arc(),
                    slot,
                    endpoint,
                    upstream: rest,
                    first,
                    framing,
                    streamed,
                    hide_usage: request.ask.stream && !request.ask.usage_wanted(),
                    idle_timeout: fleet.config.idle_timeout,
                    id: request.id.clone(),
                });
                return Ok(Answer { status, headers, body });
            }
            Ok(Ok(Begun::Refusal(answer))) => match judgement(answer.status) {
                (Verdict::Sound, _) => {
                    slot.settle(Verdict::Sound, clock.now());
                    return Ok(*answer);
                }
                (verdict, status) => {
                    tracing::warn!(request_id = %id, %endpoint, %status, "endpoint refused");
                    (verdict, Missed::Refused(answer))
                }
            },
            Ok(Err(failure)) => {
                tracing::warn!(request_id = %id, %failure, "no answer");
                (Verdict::Faulty, Missed::Failed(failure))
            }
            Err(Elapsed) => {
                let failure = Failure::FirstByteTimeout { endpoint, after };
                tracing::warn!(request_id = %id, %failure, "no answer");
                (Verdict::Faulty, Missed::Final(failure))
            }
        };
        slot.settle(verdict, clock.now());
        Err(missed)
    }

    /// The answer's head and first bytes; of an error answer, all of it.
    async fn begin(&self, request: &Inference, target: &Target) -> Result<Begun, Failure> {
        let backend = &target.backend;
        let response = self.ports.upstream.send(upstream_request(request, target)).await;
        let response =
            response.map_err(|error| Failure::Upstream { endpoint: backend.name.clone(), error })?;
        if response.status.is_redirection() {
            return Err(Failure::Nonsense { endpoint: backend.name.clone(), what: "a redirection" });
        }
        if !response.status.is_success() {
            return Ok(Begun::Refusal(Box::new(whole(backend, response).await?)));
        }
        let UpstreamResponse { status, headers, body: mut rest } = response;
        let framing = framing(&headers, request);
        let nonsense = |what| Failure::Nonsense { endpoint: backend.name.clone(), what };
        let first = match rest.next().await {
            None => return Err(nonsense("an empty body")),
            Some(Err(error)) => return Err(Failure::Upstream { endpoint: backend.name.clone(), error }),
            Some(Ok(first)) => first,
        };
        if !begins_like(framing, &first) {
            return Err(nonsense("something that is not JSON"));
        }
        Ok(Begun::Answer { status, headers, framing, first, rest })
    }
}

/// What an error status says about the endpoint; only a sound one is an answer.
fn judgement(status: StatusCode) -> (Verdict, StatusCode) {
    let verdict = match status {
        StatusCode::TOO_MANY_REQUESTS => Verdict::Unknown,
        StatusCode::NOT_IMPLEMENTED => Verdict::Sound,
        status if status.is_server_error() => Verdict::Faulty,
        _ => Verdict::Sound,
    };
    (verdict, status)
}

/// A small answer, an error mostly, as a whole: in the endpoint's own words, with its key masked should
/// they repeat it.
pub(super) async fn whole(backend: &Backend, response: UpstreamResponse) -> Result<Answer, Failure> {
    let UpstreamResponse { status, mut headers, body: mut chunks } = response;
    let mut body = Vec::new();
    while let Some(chunk) = chunks.next().await {
        let chunk = chunk.map_err(|error| Failure::Upstream { endpoint: backend.name.clone(), error })?;
        if body.len() + chunk.len() > WHOLE_MAX {
            return Err(Failure::Nonsense { endpoint: backend.name.clone(), what: "more than it should" });
        }
        body.extend_from_slice(&chunk);
    }
    if let Some(key) = &backend.key {
        body = match String::from_utf8(body) {
            Ok(text) => mask_secrets(&text, &[key.expose()]).into_owned().into_bytes(),
            Err(bytes) => bytes.into_bytes(),
        };
    }
    headers::to_client(&mut headers, false);
    Ok(Answer { status, headers, body: AnswerBody::whole(body.into()) })
}

/// The client's request with what has to change for this endpoint.
fn upstream_request(request: &Inference, target: &Target) -> UpstreamRequest {
    let Inference { shape, path, ask, body, .. } = request;
    let backend = &target.backend;
    // An Ollama resolves its own tags; the others want the name as they list it.
    let renamed =
        (backend.kind != Kind::Ollama && target.listed != ask.model).then_some(target.listed.as_str());
    let ask_usage = ask.stream && matches!(shape, Shape::OpenAiChat | Shape::OpenAiCompletion);
    let mut headers = request.headers.clone();
    headers::to_upstream(&mut headers, backend.authorization.as_ref());
    UpstreamRequest {
        method: Method::POST,
        url: backend.url(path),
        headers,
        body: ask.rewrite(body, renamed, ask_usage),
    }
}

/// How the answer is cut into messages: as its content type says, else as the request implies.
fn framing(headers: &HeaderMap, request: &Inference) -> Framing {
    let said = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    said.and_then(Framing::of_content_type).unwrap_or(match (request.ask.stream, request.shape.family()) {
        (false, _) => Framing::Json,
        (true, Family::Ollama) => Framing::Ndjson,
        (true, Family::OpenAi) => Framing::Sse,
    })
}

/// Whether the first bytes can be the beginning of such an answer. A stream of events may begin with
/// any field or a comment (HTML Living Standard, 9.2.6).
fn begins_like(framing: Framing, first: &[u8]) -> bool {
    let first = first.trim_ascii_start();
    let begins = |field: &[u8]| first.starts_with(&field[..field.len().min(first.len())]);
    match framing {
        Framing::Json | Framing::Ndjson => begins(b"{") || begins(b"["),
        Framing::Sse => {
            [&b"data"[..], b"event", b"id", b"retry", b":", b"\xef\xbb\xbf"].into_iter().any(begins)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use crate::core::names::EndpointName;
    use crate::flow::router;
    use crate::ports::UpstreamError;
    use futures_util::{FutureExt, stream};

    fn backend(yaml: &str) -> Fleet {
        let (config, _) = Config::parse(yaml, &|_| None).unwrap();
        let slots = crate::core::slots::Slots::new(router::limits(&config));
        Fleet::new(config, &Fleet::default(), |limits, names: &[EndpointName]| slots.configure(limits, names))
    }

    fn refused(chunks: Vec<Result<Bytes, UpstreamError>>) -> Result<Vec<u8>, Failure> {
        let fleet = backend("endpoints: [http://a]\napi_keys: {\"http://a\": sk-secret}\n");
        let (status, headers) = (StatusCode::UNAUTHORIZED, HeaderMap::new());
        let response = UpstreamResponse { status, headers, body: Box::pin(stream::iter(chunks)) };
        let answer = whole(&fleet.backends[0], response).now_or_never().unwrap()?;
        let chunks: Vec<_> = answer.body.map(|chunk| chunk.unwrap()).collect().now_or_never().unwrap();
        Ok(chunks.concat())
    }

    #[test]
    fn an_endpoints_error_never_shows_its_key_even_cut_in_two() {
        let chunks = vec![Ok(Bytes::from("{\"error\":\"bad key sk-se")), Ok(Bytes::from("cret\"}"))];
        assert_eq!(refused(chunks).unwrap(), b"{\"error\":\"bad key ***\"}");
    }

    #[test]
    fn an_error_that_breaks_off_or_never_ends_is_the_endpoints_failure() {
        let broken = vec![Ok(Bytes::from("{")), Err(UpstreamError::Broken("reset".into()))];
        assert!(matches!(refused(broken), Err(Failure::Upstream { .. })));
        let chunk = Bytes::from(vec![b'x'; 1 << 20]);
        let endless = (0..=WHOLE_MAX >> 20).map(|_| Ok(chunk.clone())).collect();
        assert!(matches!(refused(endless), Err(Failure::Nonsense { .. })));
    }

    #[test]
    fn only_what_the_endpoint_did_wrong_counts_against_it() {
        let table = [
            (400, Verdict::Sound),
            (404, Verdict::Sound),
            (429, Verdict::Unknown),
            (500, Verdict::Faulty),
            (501, Verdict::Sound),
            (503, Verdict::Faulty),
        ];
        for (status, verdict) in table {
            assert_eq!(judgement(StatusCode::from_u16(status).unwrap()).0, verdict, "{status}");
        }
    }

    #[test]
    fn a_first_chunk_shows_whether_it_can_be_such_an_answer() {
        for (framing, first, fits) in [
            (Framing::Json, "{", true),
            (Framing::Json, "  \n", true),
            (Framing::Ndjson, "<html>", false),
            (Framing::Sse, "d", true),
            (Framing::Sse, "data: {}", true),
            (Framing::Sse, ": ping", true),
            (Framing::Sse, "{\"error\"", false),
        ] {
            assert_eq!(begins_like(framing, first.as_bytes()), fits, "{framing:?} {first}");
        }
    }
}
