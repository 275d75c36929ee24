//! The bytes of an answer, laid out before the first of them is sent.
//!
//! A whole answer is a head and a body. A streamed one is a single buffer of HTTP chunks with marks
//! between them, so that `serve` can send it at a pace, in one burst, or stop anywhere on purpose.

use std::borrow::Cow;
use std::io::Write as _;

/// The end of a chunked body.
pub(super) const LAST_CHUNK: &[u8] = b"0\r\n\r\n";

/// The media types pretend backends use.
pub(super) mod media {
    pub(in super::super) const JSON: &str = "application/json; charset=utf-8";
    pub(in super::super) const NDJSON: &str = "application/x-ndjson";
    pub(in super::super) const EVENTS: &str = "text/event-stream; charset=utf-8";
    pub(in super::super) const TEXT: &str = "text/plain; charset=utf-8";
}

/// How the length of a body is told.
#[derive(Debug, Clone, Copy)]
pub(super) enum Framing {
    /// `Content-Length`.
    Length(usize),
    /// `Transfer-Encoding: chunked`.
    Chunked,
}

/// A response head.
pub(super) fn head(status: u16, media: &str, framing: Framing) -> Vec<u8> {
    let mut head = format!("HTTP/1.1 {status} {}\r\ncontent-type: {media}\r\n", reason(status)).into_bytes();
    match (status, media) {
        (429, _) => head.extend_from_slice(b"retry-after: 1\r\n"),
        (401, _) => head.extend_from_slice(b"www-authenticate: Bearer\r\n"),
        (_, media::EVENTS) => head.extend_from_slice(b"cache-control: no-cache\r\n"),
        _ => {}
    }
    match framing {
        Framing::Length(length) => {
            write!(head, "content-length: {length}\r\n\r\n").expect("a Vec takes every write");
        }
        Framing::Chunked => head.extend_from_slice(b"transfer-encoding: chunked\r\n\r\n"),
    }
    head
}

fn reason(status: u16) -> &'static str {
    const REASONS: [(u16, &str); 10] = [
        (200, "OK"),
        (400, "Bad Request"),
        (401, "Unauthorized"),
        (404, "Not Found"),
        (413, "Payload Too Large"),
        (429, "Too Many Requests"),
        (500, "Internal Server Error"),
        (502, "Bad Gateway"),
        (503, "Service Unavailable"),
        (504, "Gateway Timeout"),
    ];
    REASONS.iter().find(|(code, _)| *code == status).map_or("Pretend", |(_, reason)| reason)
}

/// An answer with all its bytes.
pub(super) enum Reply {
    /// One body with its length.
    Whole(Whole),
    /// A chunked stream.
    Stream(Script),
}

/// An answer that is not streamed.
pub(super) struct Whole {
    pub(super) status: u16,
    pub(super) media: &'static str,
    pub(super) body: Vec<u8>,
}

impl Whole {
    /// A JSON body.
    pub(super) fn json(status: u16, body: &serde_json::Value) -> Whole {
        Whole { status, media: media::JSON, body: body.to_string().into_bytes() }
    }

    /// A line of text.
    pub(super) fn text(status: u16, text: &str) -> Whole {
        Whole { status, media: media::TEXT, body: text.as_bytes().to_vec() }
    }

    /// The head that promises a body of `length` bytes.
    pub(super) fn head(&self, length: usize) -> Vec<u8> {
        head(self.status, self.media, Framing::Length(length))
    }

    /// Head and body.
    pub(super) fn bytes(&self) -> Vec<u8> {
        let mut bytes = self.head(self.body.len());
        bytes.extend_from_slice(&self.body);
        bytes
    }
}

/// The parts a streamed answer is made of, as texts of single frames (an NDJSON line or an SSE event each).
pub(super) struct Shape {
    pub(super) media: &'static str,
    /// Frames before the first token.
    pub(super) opening: Vec<String>,
    /// A token's frame is `before`, the token as a JSON string, `after`.
    pub(super) before: String,
    pub(super) after: String,
    /// Frames after the last token, ending with the one that says "done".
    pub(super) closing: Vec<String>,
}

/// A streamed answer: head and chunks in one buffer.
pub(super) struct Script {
    bytes: Vec<u8>,
    head: usize,
    /// Where the opening ends, then where each token's chunk ends.
    marks: Vec<usize>,
}

impl Script {
    /// Lays out `tokens` in this shape; `huge` adds one line of at least that many bytes before the first.
    pub(super) fn new(shape: &Shape, tokens: &[Cow<'_, str>], huge: Option<usize>) -> Script {
        let mut bytes = head(200, shape.media, Framing::Chunked);
        let head = bytes.len();
        bytes.reserve((shape.before.len() + shape.after.len() + 32) * (tokens.len() + 3) + huge.unwrap_or(0));
        for frame in &shape.opening {
            chunk(&mut bytes, &[frame.as_bytes()]);
        }
        let mut quoted = Vec::new();
        let mut say = |bytes: &mut Vec<u8>, token: &str| {
            quoted.clear();
            serde_json::to_writer(&mut quoted, token).expect("a string is always JSON");
            chunk(bytes, &[shape.before.as_bytes(), &quoted, shape.after.as_bytes()]);
        };
        if let Some(length) = huge {
            say(&mut bytes, &"x".repeat(length));
        }
        let mut marks = vec![bytes.len()];
        for token in tokens {
            say(&mut bytes, token);
            marks.push(bytes.len());
        }
        for frame in &shape.closing {
            chunk(&mut bytes, &[frame.as_bytes()]);
        }
        bytes.extend_from_slice(LAST_CHUNK);
        Script { bytes, head, marks }
    }

    /// Every byte, end included.
    pub(super) fn all(&self) -> &[u8] {
        &self.bytes
    }

    /// The head alone.
    pub(super) fn head(&self) -> &[u8] {
        &self.bytes[..self.head]
    }

    /// How many tokens it has.
    pub(super) fn tokens(&self) -> usize {
        self.marks.len() - 1
    }

    /// From the head to the end of token `count` (clamped).
    pub(super) fn until(&self, count: usize) -> &[u8] {
        &self.bytes[..self.marks[count.min(self.tokens())]]
    }

    /// The chunk of token `index`, counted from 1.
    pub(super) fn token(&self, index: usize) -> &[u8] {
        &self.bytes[self.marks[index - 1]..self.marks[index]]
    }

    /// From the end of the last token on.
    pub(super) fn closing(&self) -> &[u8] {
        &self.bytes[self.marks[self.tokens()]..]
    }
}

fn chunk(bytes: &mut Vec<u8>, parts: &[&[u8]]) {
    let length: usize = parts.iter().map(|part| part.len()).sum();
    write!(bytes, "{length:x}\r\n").expect("a Vec takes every write");
    for part in parts {
        bytes.extend_from_slice(part);
    }
    bytes.extend_from_slice(b"\r\n");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pieces_of_a_script_add_up_to_the_whole() {
        let shape = Shape {
            media: media::NDJSON,
            opening: vec!["open\n".to_owned()],
            before: "<".to_owned(),
            after: ">\n".to_owned(),
            closing: vec!["done\n".to_owned()],
        };
        let script = Script::new(&shape, &["a".into(), "\"b".into()], None);
        let pieces = [script.until(1), script.token(2), script.closing()].concat();
        assert_eq!(pieces, script.all());
        assert!(script.closing().ends_with(b"5\r\ndone\n\r\n0\r\n\r\n"));
        assert_eq!(script.token(2), b"8\r\n<\"\\\"b\">\n\r\n".as_slice());
    }

    #[test]
    fn a_429_says_when_to_come_back() {
        assert!(
            String::from_utf8(head(429, media::JSON, Framing::Length(0))).unwrap().contains("retry-after: 1")
        );
    }
}
