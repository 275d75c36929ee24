//! wire: what the bytes mean. No sockets, no clock, no tasks: slices come in, facts and slices go out.
//!
//! * [`request`] what the router must know of a request body, and the few splices it makes in one
//! * [`names`]   when a listed model answers to an asked name
//! * [`listing`] what endpoints list, and the unions the router shows
//! * [`usage`]   token counts and the end of an answer, seen in passing (over `scan`, `lines`, `sieve`)
//! * [`chunked`] the chunked transfer coding, taken off
//! * [`event`]   events of the log, as their readers get them (over `skim`); [`filter`] which of them one wants
//! * [`dates`]   dates as both families, and readers of the log, write them
//! * [`errors`]  error bodies and error records as each family of clients expects them

pub mod chunked;
pub mod dates;
pub mod errors;
pub mod event;
pub mod filter;
mod lines;
pub mod listing;
pub mod names;
pub mod request;
mod scan;
mod sieve;
mod skim;
pub mod usage;

/// The API family a client speaks: it decides the shape of bodies, streams and errors.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Family {
    /// `/api/*`: NDJSON streams, `{"error": "..."}`.
    Ollama,
    /// `/v1/*`: SSE streams, `{"error": {...}}`.
    OpenAi,
}

/// What an endpoint is. An [`Kind::Ollama`] endpoint speaks both families, the others only OpenAI's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// An Ollama server: lists models at `/api/tags`, those in memory at `/api/ps`.
    Ollama,
    /// llama.cpp's server: OpenAI-style, with a load status on each listed model.
    LlamaServer,
    /// Any other OpenAI-compatible service.
    OpenAi,
}
