//! Known races, each put back by a patch, and the model or scenario that has to find it.
//!
//! What a failure shows is read off its message and nothing else: a promise by its name, or a deadlock, which
//! names none. A header lists everything its bug may show.

/// One bug and one detector that must find it.
#[derive(Debug)]
pub struct Entry<M: 'static> {
    /// The patch's name, also its file's.
    pub id: &'static str,
    /// The model expected to fail, as `file::function`, written down before the first run.
    pub detector: &'static str,
    /// The promise that breaks, as the header has it; see [`is_declared`].
    pub promise: &'static str,
    /// Where the bug comes from.
    pub origin: &'static str,
    /// The detector's file, compiled over the patched source.
    pub models: &'static [M],
    /// Why the patch no longer applies, if it does not.
    pub stale: Option<&'static str>,
}

/// What a failure is called that names no promise.
pub const DEADLOCK: &str = "deadlock";

/// The promise that a failure's message says is broken, `deadlock`, or the message's beginning.
///
/// A check says `PROMISE is broken: WHY`, an assertion of the core `PROMISE: WHY`, both checkers `deadlock`.
pub fn measured(said: &str) -> &str {
    if said.starts_with(DEADLOCK) {
        return DEADLOCK;
    }
    let is_name =
        |word: &str| word.contains('-') && word.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'-');
    let before = |mark| said.split_once(mark).map(|(before, _)| before);
    let named = before(" is broken: ").or_else(|| before(": ")).filter(|name| is_name(name));
    named.unwrap_or_else(|| said.lines().next().unwrap_or_default())
}

/// Whether a header's `promise` line, such as `answer-ends (deadlock) | slot-limit`, lists what was measured.
pub fn is_declared(promise: &str, measured: &str) -> bool {
    promise.split(" | ").any(|one| match one.strip_suffix(" (deadlock)") {
        Some(name) => measured == name || measured == DEADLOCK,
        None => measured == one,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_failure_shows_is_read_off_its_message() {
        assert_eq!(measured("slot-limit is broken: http://a: 2 in flight"), "slot-limit");
        assert_eq!(measured("token-conservation: a flush ends once"), "token-conservation");
        assert_eq!(measured("deadlock! blocked tasks: [main-thread]"), DEADLOCK);
        assert_eq!(measured("nobody is healthy: so what\nsecond line"), "nobody is healthy: so what");
    }

    #[test]
    fn a_deadlock_and_other_promises_count_only_where_the_header_says_so() {
        assert!(is_declared("answer-ends", "answer-ends"));
        assert!(!is_declared("answer-ends", DEADLOCK));
        assert!(!is_declared("answer-ends", "slot-limit"));
        for shown in ["answer-ends", DEADLOCK, "slot-limit"] {
            assert!(is_declared("answer-ends (deadlock) | slot-limit", shown), "{shown}");
        }
        assert!(!is_declared("answer-ends (deadlock) | slot-limit", "ends"));
    }
}
