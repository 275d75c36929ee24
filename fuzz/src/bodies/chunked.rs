//! The chunked decoder: where the socket's reads end makes no difference, and what was encoded comes back.

use pointsman::wire::chunked::{BadChunk, Chunked};

use crate::{Grammar, cut};

pub(crate) const WORDS: &[&str] = &[
    "\r\n",
    "0\r\n\r\n",
    "\r\n0\r\n",
    "1\r\nx\r\n",
    ";a=\"b\"",
    "A\r\n",
    "ffffffffffffffff",
    "0000",
    "x: y\r\n",
    "\n",
    " ",
];

pub(crate) const GRAMMAR: Grammar = Grammar {
    opens: &[""],
    records: &[
        "5\r\nhello\r\n",
        "1\r\n!\r\n",
        "0\r\n",
        "00A;a=\"b\"\r\n0123456789\r\n",
        "2 \r\n\r\n\r\n",
        "x: y\r\n",
        "3\r\nab",
    ],
    joints: &["", "", "", "\r\n", "\n"],
    closes: &["0\r\n\r\n", "0\r\nx: y\r\nz: w\r\n\r\n", "\r\n", ""],
};

/// What a body came to.
#[derive(Debug, PartialEq)]
struct Decoded {
    payload: Vec<u8>,
    /// Bytes that belong to the body, up to an error.
    used: Result<usize, BadChunk>,
    done: bool,
}

fn decode<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> Decoded {
    let (mut decoder, mut payload, mut used) = (Chunked::default(), Vec::new(), 0);
    for piece in pieces {
        match decoder.decode(piece, &mut payload) {
            Ok(taken) => {
                assert!(
                    taken == piece.len() || decoder.is_done(),
                    "only the end of the body leaves bytes over"
                );
                used += taken;
            }
            Err(error) => return Decoded { payload, used: Err(error), done: false },
        }
    }
    Decoded { payload, used: Ok(used), done: decoder.is_done() }
}

/// Reads the input as a chunked body; then encodes the input and reads that.
pub fn chunked(data: &[u8]) {
    let (body, places) = cut::split(data);
    let whole = decode([body]);
    assert!(whole.payload.len() <= body.len(), "a decoder adds nothing");
    assert_eq!(decode(cut::pieces(body, &places)), whole, "cut at {places:?}");
    assert_eq!(decode(body.chunks(1)), whole, "cut everywhere");
    if let Decoded { used: Ok(used), done: true, .. } = whole {
        assert_eq!(decode([&body[..used]]), whole, "what follows the body has no say in it");
        assert!(!decode([&body[..used - 1]]).done, "the last byte belongs to the body");
    }

    let encoded = encode(body, &places);
    let expected = Decoded { payload: body.to_vec(), used: Ok(encoded.len()), done: true };
    assert_eq!(decode([&encoded[..]]), expected);
    assert_eq!(decode(encoded.chunks(1)), expected);
    assert_eq!(decode(cut::pieces(&encoded, &places)), expected);

    let long = body.repeat(40);
    let encoded = encode(&long, &places);
    assert_eq!(decode(encoded.chunks(1000)), Decoded { payload: long, used: Ok(encoded.len()), done: true });
}

/// The payload in one chunk per piece, with what else RFC 9112 (7.1) allows.
fn encode(payload: &[u8], places: &[usize]) -> Vec<u8> {
    let mut out = Vec::new();
    for (index, piece) in
        cut::pieces(payload, places).into_iter().filter(|piece| !piece.is_empty()).enumerate()
    {
        let extension = ["", ";a", ";a=\"b;c\"", " ; a=b"][index % 4];
        out.extend_from_slice(format!("{:0index$x}{extension}\r\n", piece.len()).as_bytes());
        out.extend_from_slice(piece);
        out.extend_from_slice(b"\r\n");
    }
    out.extend_from_slice(if payload.len().is_multiple_of(2) {
        b"0\r\n\r\n"
    } else {
        b"000;x\r\nName: value\r\n\r\n"
    });
    out
}
