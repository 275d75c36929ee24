//! The chunked transfer coding of HTTP/1.1, taken off in passing (RFC 9112, 7.1).
//!
//! A decoder is fed whatever the socket gave and hands on the payload of all chunks in it as one
//! piece, so that a burst of small chunks costs its reader one wake-up. Called by the plain HTTP
//! adapter.

use thiserror::Error;

/// The longest chunk-size line and the longest trailer section, in bytes. Extensions and trailers
/// are read over, not kept.
const LINE_MAX: u32 = 16 * 1024;

/// Where in the coding the next byte stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// In the size of a chunk; whether it has a digit yet.
    Size {
        any: bool,
    },
    /// After the size, in what may follow it on the line.
    Extension,
    /// After the carriage return that ends the size line.
    SizeEnd,
    /// In the data.
    Data,
    /// After the data, before its carriage return, and before its line feed.
    DataEnd,
    DataEndLf,
    /// At the beginning of a trailer line, in one, and after the carriage return of the empty one.
    TrailerStart,
    Trailer,
    LastLf,
    /// After the last byte.
    Done,
}

/// Takes the chunked coding off one body.
#[derive(Debug)]
pub struct Chunked {
    state: State,
    /// Of the size being read, then of the data still to come.
    left: u64,
    /// Bytes of the size line or trailer section so far.
    line: u32,
}

/// The body is not in the chunked coding.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum BadChunk {
    /// A size line is not one.
    #[error("a chunk's size is not a hexadecimal number below 2^64")]
    Size,
    /// A line end is missing.
    #[error("a chunk does not end where its size says")]
    End,
    /// A size line or the trailers go on for too long.
    #[error("a chunk's size line or the trailers are longer than {LINE_MAX} bytes")]
    Long,
}

impl Default for Chunked {
    fn default() -> Self {
        Chunked { state: State::Size { any: false }, left: 0, line: 0 }
    }
}

impl Chunked {
    /// Whether the last byte of the body has been seen.
    pub fn is_done(&self) -> bool {
        self.state == State::Done
    }

    /// Appends the payload in `bytes` to `payload`. Returns how many bytes belong to this body: all of
    /// them, unless the body ends among them.
    pub fn decode(&mut self, bytes: &[u8], payload: &mut Vec<u8>) -> Result<usize, BadChunk> {
        let mut at = 0;
        while at < bytes.len() && self.state != State::Done {
            if self.state == State::Data {
                let here = usize::try_from(self.left).unwrap_or(usize::MAX).min(bytes.len() - at);
                payload.extend_from_slice(&bytes[at..at + here]);
                at += here;
                self.left -= here as u64;
                if self.left == 0 {
                    self.state = State::DataEnd;
                }
                continue;
            }
            self.step(bytes[at])?;
            at += 1;
        }
        Ok(at)
    }

    /// One byte of the coding itself.
    fn step(&mut self, byte: u8) -> Result<(), BadChunk> {
        self.line += 1;
        if self.line > LINE_MAX {
            return Err(BadChunk::Long);
        }
        self.state = match (self.state, byte) {
            (State::Size { any: true }, b'\r') => State::SizeEnd,
            (State::Size { any: true }, b';' | b' ' | b'\t') => State::Extension,
            (State::Size { .. }, digit) => {
                let digit = char::from(digit).to_digit(16).ok_or(BadChunk::Size)?;
                self.left = self.left.checked_mul(16).ok_or(BadChunk::Size)? | u64::from(digit);
                State::Size { any: true }
            }
            (State::Extension, b'\r') => State::SizeEnd,
            (State::Extension, b'\n') => return Err(BadChunk::Size),
            (State::Extension, _) => State::Extension,
            (State::SizeEnd, b'\n') if self.left == 0 => State::TrailerStart,
            (State::SizeEnd, b'\n') => State::Data,
            (State::SizeEnd, _) => return Err(BadChunk::Size),
            (State::DataEnd, b'\r') => State::DataEndLf,
            (State::DataEndLf, b'\n') => State::Size { any: false },
            (State::TrailerStart, b'\r') => State::LastLf,
            (State::Trailer, b'\n') => State::TrailerStart,
            (State::TrailerStart | State::Trailer, _) => State::Trailer,
            (State::LastLf, b'\n') => State::Done,
            (State::DataEnd | State::DataEndLf | State::LastLf, _) => return Err(BadChunk::End),
            (State::Data | State::Done, _) => unreachable!("data is copied, and nothing follows the end"),
        };
        if matches!(self.state, State::Data | State::Size { any: false }) {
            self.line = 0;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn decode(pieces: &[&[u8]]) -> Result<(Vec<u8>, usize, bool), BadChunk> {
        let (mut decoder, mut payload, mut used) = (Chunked::default(), Vec::new(), 0);
        for piece in pieces {
            used += decoder.decode(piece, &mut payload)?;
        }
        Ok((payload, used, decoder.is_done()))
    }

    #[test]
    fn chunks_extensions_and_trailers_are_taken_off() {
        let body = b"5;a=\"b\"\r\nhello\r\n1 \r\n!\r\n0\r\nx: y\r\nz: w\r\n\r\nNEXT";
        assert_eq!(decode(&[body]), Ok((b"hello!".to_vec(), body.len() - 4, true)));
    }

    #[test]
    fn a_body_that_stops_early_is_not_done() {
        for end in 0..b"5\r\nhello\r\n0\r\n\r\n".len() {
            let (_, _, done) = decode(&[&b"5\r\nhello\r\n0\r\n\r\n"[..end]]).unwrap();
            assert!(!done, "after {end} bytes");
        }
    }

    #[test]
    fn what_is_no_chunk_is_refused() {
        for (body, why) in [
            (&b"\r\n"[..], BadChunk::Size),
            (b"x\r\n", BadChunk::Size),
            (b"-1\r\n", BadChunk::Size),
            (b"5\n", BadChunk::Size),
            (b"5;\n", BadChunk::Size),
            (b"fffffffffffffffff\r\n", BadChunk::Size),
            (b"2\r\nabc", BadChunk::End),
            (b"2\r\nab\rX", BadChunk::End),
            (b"0\r\n\rX", BadChunk::End),
        ] {
            assert_eq!(decode(&[body]), Err(why), "{:?}", String::from_utf8_lossy(body));
        }
        let endless = [b"1;".to_vec(), vec![b'x'; LINE_MAX as usize]].concat();
        assert_eq!(decode(&[&endless]), Err(BadChunk::Long));
    }

    proptest! {
        #[test]
        fn any_chunking_cut_anywhere_gives_the_payload_back(
            chunks in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..40), 0..8),
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..6),
        ) {
            let mut body = Vec::new();
            for chunk in &chunks {
                body.extend(format!("{:X}\r\n", chunk.len()).bytes());
                body.extend(chunk);
                body.extend(b"\r\n");
            }
            body.extend(b"0\r\n\r\n");
            let mut ends: Vec<usize> = cuts.iter().map(|cut| cut.index(body.len())).collect();
            ends.push(body.len());
            ends.sort_unstable();
            let mut start = 0;
            let pieces: Vec<&[u8]> = ends.iter().map(|end| { let piece = &body[start..*end]; start = *end; piece }).collect();
            prop_assert_eq!(decode(&pieces), Ok((chunks.concat(), body.len(), true)));
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = decode(&[&bytes]);
        }
    }
}
