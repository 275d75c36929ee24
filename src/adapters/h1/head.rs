//! Heads: the request's, as bytes; the answer's, from bytes (RFC 9112).

use http::header::{CONNECTION, CONTENT_LENGTH, HeaderMap, HeaderName, HeaderValue, TRANSFER_ENCODING};
use http::{Method, StatusCode};

use crate::ports::{UpstreamError, UpstreamRequest};

/// The largest head of an answer, in bytes, and the most headers in it.
const HEAD_MAX: usize = 64 * 1024;
const HEADERS_MAX: usize = 128;

/// Bodies up to this many bytes are written together with the head.
const JOINED_MAX: usize = 16 * 1024;

/// How the body ends (RFC 9112, 6.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Framing {
    Length(u64),
    Chunked,
    UntilClose,
}

/// The head of an answer.
#[derive(Debug)]
pub(super) struct Head {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    pub(super) framing: Framing,
    /// The connection may be used again after the body.
    pub(super) reusable: bool,
}

/// Whether this body is part of what [`encode`] returns.
pub(super) fn carries_body(body: &[u8]) -> bool {
    body.len() <= JOINED_MAX
}

/// The request as bytes, with its body if that is small.
pub(super) fn encode(request: &UpstreamRequest, path: &str, authority: &str) -> Vec<u8> {
    let UpstreamRequest { method, headers, body, .. } = request;
    let joined: &[u8] = if carries_body(body) { body } else { &[] };
    let mut out = Vec::with_capacity(256 + headers.len() * 48 + joined.len());
    let mut line = |parts: &[&[u8]]| parts.iter().for_each(|part| out.extend_from_slice(part));
    line(&[
        method.as_str().as_bytes(),
        b" ",
        path.as_bytes(),
        b" HTTP/1.1\r\nhost: ",
        authority.as_bytes(),
        b"\r\n",
    ]);
    for (name, value) in headers {
        line(&[name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"]);
    }
    if !body.is_empty() || method == Method::POST {
        line(&[b"content-length: ", body.len().to_string().as_bytes(), b"\r\n"]);
    }
    line(&[b"\r\n", joined]);
    out
}

/// What has come of a head so far.
#[derive(Debug, Default)]
pub(super) struct Received {
    bytes: Vec<u8>,
}

impl Received {
    /// Nothing has come.
    pub(super) fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Adds `new`; once the head is whole, it and the bytes behind it.
    pub(super) fn parse(&mut self, new: &[u8]) -> Result<Option<(Head, Vec<u8>)>, UpstreamError> {
        // The usual head comes in one piece and is read where it lies.
        if self.bytes.is_empty() {
            let found = parse_final(new)?;
            if found.is_none() {
                self.bytes.extend_from_slice(new);
            }
            return Ok(found);
        }
        self.bytes.extend_from_slice(new);
        match parse_final(&self.bytes)? {
            None if self.bytes.len() > HEAD_MAX => {
                Err(UpstreamError::Protocol(format!("the answer's head is larger than {HEAD_MAX} bytes")))
            }
            found => Ok(found),
        }
    }
}

/// The final head in `bytes`, interim ones (1xx) passed over, and what follows it.
fn parse_final(mut bytes: &[u8]) -> Result<Option<(Head, Vec<u8>)>, UpstreamError> {
    while let Some((head, length)) = parse_one(bytes)? {
        bytes = &bytes[length..];
        if !head.status.is_informational() {
            return Ok(Some((head, bytes.to_vec())));
        }
        if head.status == StatusCode::SWITCHING_PROTOCOLS {
            return Err(UpstreamError::Protocol(
                "the endpoint switched to a protocol nobody asked for".into(),
            ));
        }
    }
    Ok(None)
}

fn parse_one(bytes: &[u8]) -> Result<Option<(Head, usize)>, UpstreamError> {
    let protocol = |why: &dyn core::fmt::Display| UpstreamError::Protocol(why.to_string());
    let mut parsed = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut response = httparse::Response::new(&mut parsed);
    let length = match response.parse(bytes).map_err(|error| protocol(&error))? {
        httparse::Status::Partial => return Ok(None),
        httparse::Status::Complete(length) => length,
    };
    let status = StatusCode::from_u16(response.code.unwrap_or_default()).map_err(|error| protocol(&error))?;
    let mut headers = HeaderMap::with_capacity(response.headers.len());
    for header in response.headers.iter() {
        let name = HeaderName::from_bytes(header.name.as_bytes()).map_err(|error| protocol(&error))?;
        let value = HeaderValue::from_bytes(header.value).map_err(|error| protocol(&error))?;
        headers.append(name, value);
    }
    let framing = framing(status, &headers)?;
    let http_1_1 = response.version == Some(1);
    let ambiguous = headers.contains_key(TRANSFER_ENCODING) && headers.contains_key(CONTENT_LENGTH);
    let reusable = http_1_1 && framing != Framing::UntilClose && !ambiguous && !says_close(&headers);
    Ok(Some((Head { status, headers, framing, reusable }, length)))
}

fn says_close(headers: &HeaderMap) -> bool {
    let values = headers.get_all(CONNECTION).iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).any(|option| option.trim().eq_ignore_ascii_case("close"))
}

fn framing(status: StatusCode, headers: &HeaderMap) -> Result<Framing, UpstreamError> {
    if status.is_informational() || matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED) {
        return Ok(Framing::Length(0));
    }
    let mut codings = headers.get_all(TRANSFER_ENCODING).iter();
    if let Some(coding) = codings.next() {
        let chunked =
            coding.as_bytes().trim_ascii().eq_ignore_ascii_case(b"chunked") && codings.next().is_none();
        return if chunked {
            Ok(Framing::Chunked)
        } else {
            Err(UpstreamError::Protocol("a transfer coding other than chunked".into()))
        };
    }
    let mut lengths = headers.get_all(CONTENT_LENGTH).iter();
    let Some(first) = lengths.next() else { return Ok(Framing::UntilClose) };
    let number = first.to_str().ok().filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()));
    match number.and_then(|text| text.parse().ok()) {
        Some(length) if lengths.all(|other| other == first) => Ok(Framing::Length(length)),
        _ => Err(UpstreamError::Protocol("a content-length that is not one number".into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(bytes: &[u8]) -> Result<Option<(Head, Vec<u8>)>, UpstreamError> {
        Received::default().parse(bytes)
    }

    #[test]
    fn a_head_is_found_wherever_it_is_cut() {
        let bytes = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi";
        for cut in 1..bytes.len() - 2 {
            let mut received = Received::default();
            let early = received.parse(&bytes[..cut]).unwrap();
            let (head, rest) = early.or_else(|| received.parse(&bytes[cut..]).unwrap()).unwrap();
            assert_eq!((head.status.as_u16(), head.framing), (200, Framing::Length(2)), "cut at {cut}");
            assert!(b"hi".starts_with(&rest), "cut at {cut}");
        }
    }

    #[test]
    fn a_body_ends_as_rfc_9112_says() {
        let table: [(&str, Framing, bool); 8] = [
            ("HTTP/1.1 200 OK\r\ncontent-length: 5\r\n", Framing::Length(5), true),
            ("HTTP/1.1 200 OK\r\ncontent-length: 5\r\ncontent-length: 5\r\n", Framing::Length(5), true),
            ("HTTP/1.1 200 OK\r\nTransfer-Encoding: Chunked\r\n", Framing::Chunked, true),
            (
                "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ncontent-length: 5\r\n",
                Framing::Chunked,
                false,
            ),
            ("HTTP/1.1 200 OK\r\n", Framing::UntilClose, false),
            ("HTTP/1.1 204 No Content\r\n", Framing::Length(0), true),
            ("HTTP/1.1 200 OK\r\ncontent-length: 5\r\nconnection: x, Close\r\n", Framing::Length(5), false),
            ("HTTP/1.0 200 OK\r\ncontent-length: 5\r\n", Framing::Length(5), false),
        ];
        for (head, framing, reusable) in table {
            let (parsed, _) = parse(format!("{head}\r\n").as_bytes()).unwrap().unwrap();
            assert_eq!((parsed.framing, parsed.reusable), (framing, reusable), "{head}");
        }
    }

    #[test]
    fn what_is_no_answer_is_refused() {
        for head in [
            "\x00\x01garbage\r\n\r\n",
            "HTTP/1.1 200 OK\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\n",
            "HTTP/1.1 200 OK\r\ncontent-length: +5\r\n\r\n",
            "HTTP/1.1 200 OK\r\ntransfer-encoding: gzip, chunked\r\n\r\n",
            "HTTP/1.1 101 Switching Protocols\r\n\r\n",
        ] {
            assert!(matches!(parse(head.as_bytes()), Err(UpstreamError::Protocol(_))), "{head}");
        }
        let mut received = Received::default();
        let endless =
            received.parse(b"HTTP/1.1 200 OK\r\n").and_then(|_| received.parse(&vec![b'a'; HEAD_MAX]));
        assert!(matches!(endless, Err(UpstreamError::Protocol(_))));
    }

    #[test]
    fn a_request_is_written_as_one_message() {
        let request = UpstreamRequest {
            method: Method::POST,
            url: "http://h:1/api/chat".into(),
            headers: HeaderMap::from_iter([(CONNECTION, HeaderValue::from_static("x"))]),
            body: "{}".into(),
        };
        let bytes = encode(&request, "/api/chat", "h:1");
        let expected = "POST /api/chat HTTP/1.1\r\nhost: h:1\r\nconnection: x\r\ncontent-length: 2\r\n\r\n{}";
        assert_eq!(String::from_utf8(bytes).unwrap(), expected);
    }
}
