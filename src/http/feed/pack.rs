//! Events as zstd data, for a WebSocket that asked for `compress=zstd`.
//!
//! A message is two zstd frames, one behind the other, and decompressing both gives the JSON object (RFC 8878,
//! section 3: frames that follow each other are one content). The first is compressed, with a dictionary of
//! what events look like, and the same for every subscriber: it is made once and kept for those who come
//! next. The second holds what only this subscriber is told, the number given before, stored as it is. So a
//! subscriber more costs a copy, not a compression.

use std::io;

use bytes::Bytes;
use zstd::bulk::Compressor;

use crate::core::sync::{Lock, Rank};
use crate::core::timeline::Seq;
use crate::flow::pump::Given;

/// What events look like. Every compressed frame names it by the number within; `GET /api/events/dictionary`
/// gives it to clients. Made by the test `a_dictionary_of_typical_events` below.
pub(super) const DICTIONARY: &[u8] = include_bytes!("events.zdict");

/// zstd's own default. Events are short: a higher one costs more and gains nothing.
const LEVEL: i32 = 3;

/// How many of the newest encodings are kept, by number: those of events that somebody is being given.
const SHARED: usize = 4_096;

/// Makes messages, and keeps the part that subscribers share.
pub(in crate::http) struct Packer {
    state: Lock<State>,
}

struct State {
    compressor: Compressor<'static>,
    /// The shared frame of the event with this number, at the number's place modulo the length.
    shared: Box<[(Seq, Bytes)]>,
}

impl Packer {
    pub(in crate::http) fn new() -> Packer {
        let compressor =
            Compressor::with_dictionary(LEVEL, DICTIONARY).expect("zstd takes its own dictionary");
        let shared = vec![(0, Bytes::new()); SHARED].into();
        Packer { state: Lock::new(Rank::Subscribers, State { compressor, shared }) }
    }

    /// The event as this subscriber is given it.
    ///
    /// # Errors
    ///
    /// When zstd fails, for want of memory.
    pub(super) fn message(&self, given: &Given) -> io::Result<Vec<u8>> {
        let shared = self.shared(given)?;
        let own = match given.prev {
            Some(prev) => format!(",\"prev_seq\":{prev}}}"),
            None => ",\"prev_seq\":null}".to_owned(),
        };
        let mut message = Vec::with_capacity(shared.len() + STORED_HEAD + own.len());
        message.extend_from_slice(&shared);
        store(own.as_bytes(), &mut message);
        Ok(message)
    }

    /// The object without its last brace, compressed: the same bytes for everybody.
    fn shared(&self, given: &Given) -> io::Result<Bytes> {
        let mut state = self.state.lock();
        let place = (given.seq % SHARED as u64) as usize;
        if let (seq, frame) = &state.shared[place]
            && *seq == given.seq
        {
            return Ok(frame.clone());
        }
        let mut object = format!("{{\"seq\":{},", given.seq).into_bytes();
        object.extend_from_slice(&given.event.json[1..given.event.json.len() - 1]);
        // As short as it is: a vector with the room that compressing takes would be kept too.
        let frame = Bytes::from(state.compressor.compress(&object)?.into_boxed_slice());
        state.shared[place] = (given.seq, frame.clone());
        Ok(frame)
    }
}

/// Bytes before what a stored frame holds.
const STORED_HEAD: usize = 9;

/// Writes `content`, at most 255 bytes, as a zstd frame that holds it as it is (RFC 8878, 3.1.1).
fn store(content: &[u8], out: &mut Vec<u8>) {
    let length = u8::try_from(content.len()).expect("a field with one number in it is short");
    // The magic number.
    out.extend_from_slice(&0xFD2F_B528_u32.to_le_bytes());
    // A single segment, whose length is told in one byte; no checksum, no dictionary.
    out.extend_from_slice(&[0b0010_0000, length]);
    // The last block of the frame, raw, and its length.
    out.extend_from_slice(&(1 | u32::from(length) << 3).to_le_bytes()[..3]);
    out.extend_from_slice(content);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::sync::Arc;
    use crate::wire::event::{Event, Fields, Kind};
    use serde_json::Value;
    use zstd::bulk::Decompressor;

    /// The kinds that a busy router writes, with names as they are in the field; the numbers differ by `at`.
    fn typical(at: u64) -> Event {
        let mix = |salt: u64| {
            (at ^ salt).wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(29) ^ at.wrapping_mul(salt)
        };
        let models = ["llama3.2:latest", "qwen3:8b", "nomic-embed-text:latest", "gemma3:12b", "gpt-oss:20b"];
        let hosts = ["http://localhost:11434", "http://10.0.0.12:11434", "http://gpu-1:8080/v1"];
        let model = models[(mix(3) % 5) as usize];
        let endpoint = Some(hosts[(mix(5) % 3) as usize].into());
        let fields = Fields {
            time_ms: 1_790_000_000_000 + mix(7) % 30_000_000_000,
            request_id: Some(format!("{:016x}", mix(11)).into()),
            model: Some(model.into()),
            ..Fields::default()
        };
        match mix(13) % 20 {
            0..9 => Event::new(Kind::RequestStarted, fields),
            9..18 => {
                let outcomes = ["answered", "answered", "answered", "cancelled", "refused", "failed"];
                let outcome = Some(outcomes[(mix(17) % 6) as usize].into());
                let (input_tokens, output_tokens) = (Some(mix(19) % 4_000), Some(mix(23) % 1_000));
                let duration_ms = Some(mix(29) % 60_000);
                let fields = Fields { endpoint, input_tokens, output_tokens, duration_ms, outcome, ..fields };
                Event::new(Kind::RequestFinished, fields)
            }
            18 => {
                let reason = Some("the endpoint cannot be reached".into());
                Event::new(Kind::RequestRetried, Fields { endpoint, reason, ..fields })
            }
            _ => {
                let kinds = [Kind::ModelAppeared, Kind::ModelGone, Kind::ModelLoaded, Kind::ModelUnloaded];
                Event::new(kinds[(mix(31) % 4) as usize], Fields { endpoint, request_id: None, ..fields })
            }
        }
    }

    fn given(seq: Seq, prev: Option<Seq>) -> Given {
        Given { seq, prev, event: Arc::new(typical(seq)) }
    }

    fn unpack(message: &[u8]) -> Value {
        let mut decompressor = Decompressor::with_dictionary(DICTIONARY).unwrap();
        serde_json::from_slice(&decompressor.decompress(message, 1 << 16).unwrap()).unwrap()
    }

    #[test]
    fn a_message_is_the_frame_that_others_get_as_text() {
        let packer = Packer::new();
        for (seq, prev) in
            [(1, None), (2, Some(1)), (9_000_000, Some(8_999_000)), (u64::MAX, Some(u64::MAX - 1))]
        {
            let given = given(seq, prev);
            let mut text = Vec::new();
            given.event.frame(seq, prev, &mut text);
            assert_eq!(
                unpack(&packer.message(&given).unwrap()),
                serde_json::from_slice::<Value>(&text).unwrap()
            );
        }
    }

    #[test]
    fn what_is_shared_is_made_once_and_told_apart_by_its_number() {
        let packer = Packer::new();
        let first = packer.shared(&given(7, None)).unwrap();
        assert_eq!(packer.shared(&given(7, Some(3))).unwrap().as_ptr(), first.as_ptr(), "not made again");
        let same_place = packer.message(&given(7 + SHARED as u64, Some(7))).unwrap();
        assert_eq!(unpack(&same_place)["seq"], 7 + SHARED as u64);
        assert_eq!(
            unpack(&packer.message(&given(7, None)).unwrap())["seq"],
            7,
            "and the other one is made anew"
        );
    }

    #[test]
    fn half_the_bytes_of_a_typical_event_are_saved() {
        let packer = Packer::new();
        let (mut plain, mut packed) = (0, 0);
        // Others than the dictionary was made of.
        for seq in 1_000_000..1_002_000 {
            let given = given(seq, Some(seq - 1));
            plain += given.event.frame_len(given.seq, given.prev);
            packed += packer.message(&given).unwrap().len();
        }
        assert!(packed * 2 < plain, "{packed} of {plain} bytes are left");
    }

    #[test]
    #[ignore = "writes the dictionary anew; clients fetch it again when frames name another one"]
    fn a_dictionary_of_typical_events() {
        let samples: Vec<Vec<u8>> = (1..20_000)
            .map(|seq| {
                let json = typical(seq).json;
                let mut object = format!("{{\"seq\":{seq},").into_bytes();
                object.extend_from_slice(&json[1..json.len() - 1]);
                object
            })
            .collect();
        let dictionary = zstd::dict::from_samples(&samples, 4 << 10).unwrap();
        let file = concat!(env!("CARGO_MANIFEST_DIR"), "/src/http/feed/events.zdict");
        std::fs::write(file, dictionary).unwrap();
    }
}
