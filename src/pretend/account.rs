//! What an answer tells about itself: its model, its time, its tokens and what they took.
//!
//! Made once per request by `serve`; `ollama` and `openai` write it in their own words.

use std::time::Duration;

use super::profile::Profile;
use super::stamp::Stamp;

/// The facts of one answer.
pub(super) struct Account<'a> {
    /// The model as the client called it.
    pub(super) model: &'a str,
    /// A number no other answer of this backend has.
    pub(super) serial: u64,
    /// When the answer was begun.
    pub(super) created: Stamp,
    pub(super) input_tokens: u32,
    pub(super) output_tokens: u32,
    /// Whether the client's limit ended the answer, rather than the model.
    pub(super) limited: bool,
    pub(super) load: Duration,
    pub(super) prompt: Duration,
    pub(super) eval: Duration,
}

impl Account<'_> {
    /// `stop` or `length`, in either family.
    pub(super) fn finish_reason(&self) -> &'static str {
        if self.limited { "length" } else { "stop" }
    }
}

/// How long `tokens` take at this profile's pace, once the first is there.
pub(super) fn eval_time(profile: &Profile, tokens: u32) -> Duration {
    if profile.chunks_in_one_burst { Duration::ZERO } else { profile.token_gap * tokens.saturating_sub(1) }
}

/// A duration as the servers report it: nanoseconds, never zero for work that was done.
pub(super) fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX).max(1)
}
