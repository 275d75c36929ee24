//! Server-sent events, from bytes cut anywhere to messages (HTML Living Standard, 9.2). No I/O.
//!
//! It remembers the line and the message in progress, both within one limit on the bytes of a message.
//! Not kept: the last id across messages (a message has the id it was sent with, or none) and `retry`, for
//! which the feed has words of its own. Called by the feed's client.

use memchr::memchr2;
use thiserror::Error;

/// One message.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Message {
    /// Its `event:`, empty if it has none.
    pub event: String,
    /// Its `id:`.
    pub id: Option<String>,
    /// Its `data:` lines, with a line feed between two.
    pub data: Vec<u8>,
}

/// A message is longer than the limit.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[error("a message of the stream has more than {max} bytes")]
pub struct TooLong {
    /// The limit, in bytes.
    pub max: usize,
}

/// The parser of one stream.
#[derive(Debug)]
pub struct Parser {
    max: usize,
    /// The line in progress, without its end.
    line: Vec<u8>,
    /// Lines of the message in progress that are over, in bytes.
    size: usize,
    message: Message,
    /// It has a `data:` line, perhaps an empty one.
    has_data: bool,
    /// The last byte was a CR, so a LF belongs to the same line end.
    after_cr: bool,
    /// No line has ended yet: a byte order mark may stand here.
    first: bool,
}

impl Parser {
    /// A parser that refuses messages of more than `max` bytes, comments within them included.
    pub fn new(max: usize) -> Parser {
        Parser {
            max,
            line: Vec::new(),
            size: 0,
            message: Message::default(),
            has_data: false,
            after_cr: false,
            first: true,
        }
    }

    /// Reads the next bytes; `out` gets the messages that they complete.
    pub fn push(&mut self, mut bytes: &[u8], out: &mut Vec<Message>) -> Result<(), TooLong> {
        if self.after_cr && !bytes.is_empty() {
            self.after_cr = false;
            bytes = bytes.strip_prefix(b"\n").unwrap_or(bytes);
        }
        while let Some(end) = memchr2(b'\r', b'\n', bytes) {
            self.grow(&bytes[..end])?;
            let is_cr = bytes[end] == b'\r';
            bytes = &bytes[end + 1..];
            if is_cr {
                self.after_cr = bytes.is_empty();
                bytes = bytes.strip_prefix(b"\n").unwrap_or(bytes);
            }
            out.extend(self.end_line());
        }
        self.grow(bytes)
    }

    fn grow(&mut self, part: &[u8]) -> Result<(), TooLong> {
        if self.size + self.line.len() + part.len() > self.max {
            return Err(TooLong { max: self.max });
        }
        self.line.extend_from_slice(part);
        Ok(())
    }

    fn end_line(&mut self) -> Option<Message> {
        let mut line = core::mem::take(&mut self.line);
        self.size += line.len();
        if core::mem::take(&mut self.first) && line.starts_with(b"\xef\xbb\xbf") {
            line.drain(..3);
        }
        let message = if line.is_empty() {
            self.size = 0;
            let message = core::mem::take(&mut self.message);
            core::mem::take(&mut self.has_data).then_some(message)
        } else {
            self.field(&line);
            None
        };
        // Its memory serves the next line.
        line.clear();
        self.line = line;
        message
    }

    fn field(&mut self, line: &[u8]) {
        let colon = line.iter().position(|byte| *byte == b':');
        let (name, value) = line.split_at(colon.unwrap_or(line.len()));
        let value = value.strip_prefix(b":").unwrap_or(value);
        let value = value.strip_prefix(b" ").unwrap_or(value);
        match name {
            b"data" => {
                if core::mem::replace(&mut self.has_data, true) {
                    self.message.data.push(b'\n');
                }
                self.message.data.extend_from_slice(value);
            }
            b"event" => self.message.event = String::from_utf8_lossy(value).into_owned(),
            b"id" if !value.contains(&0) => {
                self.message.id = Some(String::from_utf8_lossy(value).into_owned());
            }
            // A comment (no name), `retry`, or what no one knows.
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parse(pieces: &[&[u8]]) -> Vec<Message> {
        let (mut parser, mut out) = (Parser::new(1 << 16), Vec::new());
        pieces.iter().for_each(|piece| parser.push(piece, &mut out).unwrap());
        out
    }

    fn message(event: &str, id: Option<&str>, data: &str) -> Message {
        Message { event: event.to_owned(), id: id.map(str::to_owned), data: data.into() }
    }

    #[test]
    fn fields_comments_and_line_ends_are_those_of_the_standard() {
        let text = b"\xef\xbb\xbf: hello\nid: 7\ndata: {\"a\":1}\n\n\
            event:checkpoint\r\ndata:one\r\ndata:  two\r\n\r\n\
            : ping\r\rdata\rdata\r\rid: a\0b\nretry: 5\nnonsense\ndata: x: y\n\nevent: only\nid: 9\n\ndata: cut";
        let expected = [
            message("", Some("7"), "{\"a\":1}"),
            message("checkpoint", None, "one\n two"),
            message("", None, "\n"),
            message("", None, "x: y"),
        ];
        assert_eq!(parse(&[text]), expected);
    }

    #[test]
    fn a_cr_at_the_end_of_a_piece_ends_its_line_at_once() {
        assert_eq!(parse(&[b"data: x\r\n\r"]), [message("", None, "x")]);
        assert_eq!(
            parse(&[b"data: x\r", b"", b"\n\r", b"\ndata: y\n\n"]),
            parse(&[b"data: x\n\ndata: y\n\n"])
        );
    }

    #[test]
    fn a_message_beyond_the_limit_is_refused_however_it_is_cut() {
        let mut out = Vec::new();
        let small = |max| Parser::new(max);
        assert_eq!(small(12).push(b"data: 123456\n\n", &mut out), Ok(()));
        assert_eq!(small(11).push(b"data: 123456\n\n", &mut out), Err(TooLong { max: 11 }));
        let mut parser = small(64);
        let ends = (0..100).find(|_| parser.push(b"data: 1\n", &mut out).is_err());
        assert_eq!(ends, Some(9), "lines of one message add up");
        let mut parser = small(64);
        assert!((0..100).all(|_| parser.push(b"data: 1\n\n: ping\n\n", &mut out).is_ok()), "messages do not");
        let mut parser = small(64);
        assert!((0..65).any(|_| parser.push(b":", &mut out).is_err()), "an endless comment is refused too");
    }

    proptest! {
        #[test]
        fn every_cut_gives_the_same_messages(
            parts in proptest::collection::vec(
                prop::sample::select(vec![
                    "data", "id", "event", ":", " ", "\n", "\r", "\r\n", "\n\n", "x", "\u{feff}", "{\"seq\":1}", "ü", ": c\n",
                    "data: a\n", "id: 4\r", "event: error\r\n",
                ]),
                0..40,
            ),
            cuts in proptest::collection::vec(0usize..200, 0..12),
        ) {
            let text = parts.concat().into_bytes();
            let mut at: Vec<usize> = cuts.into_iter().map(|cut| cut.min(text.len())).chain([0, text.len()]).collect();
            at.sort_unstable();
            let pieces: Vec<&[u8]> = at.windows(2).map(|pair| &text[pair[0]..pair[1]]).collect();
            let bytes: Vec<&[u8]> = text.chunks(1).collect();
            prop_assert_eq!(parse(&pieces), parse(&[&text]));
            prop_assert_eq!(parse(&bytes), parse(&[&text]));
        }
    }
}
