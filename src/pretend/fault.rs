//! The ways a pretend backend can go wrong, as data.
//!
//! Each entry is something a real backend, or the network before it, has done to a router.
//! `serve` acts them out; tests and `pointsman demo` choose them.

use std::time::Duration;

/// One way to go wrong. A fault hits requests to models (chat, generate, embed and their
/// OpenAI-style twins) and leaves the listings healthy, so that a router keeps choosing the backend;
/// [`Pretend::set_listing_fault`](super::Pretend::set_listing_fault) turns the same table on the listings.
///
/// For an answer that is not streamed, "after n tokens" means after half of the body.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Fault {
    /// Nothing is wrong.
    #[default]
    None,
    /// This status with an error body in the family's form; a 429 also says `Retry-After: 1`.
    Status(u16),
    /// Bytes that are not HTTP, then the connection closes.
    Garbage,
    /// A 200 that calls itself JSON and is not.
    GarbageBody,
    /// A chunked body whose connection closes in the middle of a chunk.
    HalfChunk,
    /// The connection closes after this many tokens, with no end of the body.
    CutAfter(u32),
    /// A clean end of the HTTP body after this many tokens, without the line that says "done".
    EndEarly(u32),
    /// One line (NDJSON line or SSE event) of at least this many bytes before the first token; then all is well.
    HugeLine(usize),
    /// The request is read and never answered.
    Nothing,
    /// A response head, then silence.
    NothingAfterHead,
    /// The connection closes before the first byte of an answer.
    CloseAtOnce,
    /// This many tokens, then silence on an open connection.
    Stall(u32),
    /// This long until the response head; then all is well.
    SlowHeader(Duration),
    /// `/api/tags`, `/api/ps` and `/v1/models` answer 500; requests to models are well.
    ListingFails,
    /// A `Content-Length` larger than the body, whose connection then closes.
    WrongLength,
}

/// Which fault is in force where, and for how many more requests.
#[derive(Debug, Default)]
pub(super) struct Faults {
    asking: Fault,
    /// Requests the `asking` fault still hits; `None` means until it is taken away.
    asking_left: Option<u32>,
    listing: Fault,
}

impl Faults {
    /// Puts `fault` in force for `requests` of them, or for good, and takes away what was there.
    pub(super) fn set(&mut self, fault: Fault, requests: Option<u32>) {
        *self = match fault {
            Fault::ListingFails => Faults { listing: Fault::Status(500), ..Faults::default() },
            _ => Faults { asking: fault, asking_left: requests, listing: Fault::None },
        };
    }

    /// Puts `fault` in force for listings, leaving requests to models as they are.
    pub(super) fn set_listing(&mut self, fault: Fault) {
        self.listing = if fault == Fault::ListingFails { Fault::Status(500) } else { fault };
    }

    /// The fault that hits the request to a model that has just come in; uses up one of a limited number.
    pub(super) fn take_asking(&mut self) -> Fault {
        match &mut self.asking_left {
            Some(0) => Fault::None,
            Some(left) => {
                *left -= 1;
                self.asking
            }
            None => self.asking,
        }
    }

    /// The fault that hits a listing.
    pub(super) fn listing(&self) -> Fault {
        self.listing
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limited_fault_wears_off_and_a_listing_fault_spares_the_models() {
        let mut faults = Faults::default();
        faults.set(Fault::CloseAtOnce, Some(1));
        assert_eq!(faults.take_asking(), Fault::CloseAtOnce);
        assert_eq!(faults.take_asking(), Fault::None);
        faults.set(Fault::ListingFails, None);
        assert_eq!((faults.listing(), faults.take_asking()), (Fault::Status(500), Fault::None));
        faults.set(Fault::None, None);
        assert_eq!(faults.listing(), Fault::None);
    }
}
