//! Where a stream is cut into chunks: taken from the last bytes of the input, so that what stands before them
//! reads like what it is, and a mutation of the one is none of the other.

use std::iter;

/// The bytes at the end of the input that say where the rest is cut.
pub const CONTROL_LEN: usize = 8;

/// The input without its last bytes, and up to four places in it, in order. An input too short for both has no
/// places.
pub(crate) fn split(data: &[u8]) -> (&[u8], Vec<usize>) {
    let Some((body, control)) = data.split_last_chunk::<CONTROL_LEN>() else { return (data, Vec::new()) };
    let mut places: Vec<usize> = control
        .chunks_exact(2)
        .map(|pair| usize::from(u16::from_le_bytes([pair[0], pair[1]])) % (body.len() + 1))
        .collect();
    places.sort_unstable();
    (body, places)
}

/// The body, cut at those places; some pieces may be empty.
pub(crate) fn pieces<'a>(body: &'a [u8], places: &[usize]) -> Vec<&'a [u8]> {
    let ends = places.iter().copied().chain(iter::once(body.len()));
    let starts = iter::once(0).chain(places.iter().copied());
    starts.zip(ends).map(|(start, end)| &body[start..end]).collect()
}
