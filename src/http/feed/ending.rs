//! The last word on a stream: why it ends, as an object that both encodings write.

use serde_json::{Value, json};

use crate::core::timeline::Seq;
use crate::flow::pump::{Ending, RETRY_AFTER};

/// The object, and its number; `None` at an end without a fault.
pub(super) fn object(ending: &Ending) -> Option<(Seq, Value)> {
    match ending {
        Ending::Stopping => None,
        Ending::TooSlow { last_seq, tip, .. } => {
            let retry_after_ms = RETRY_AFTER.as_millis() as u64;
            let object = json!({
                "error": "ConsumerTooSlow", "last_seq": last_seq, "tip": tip, "retry_after_ms": retry_after_ms,
            });
            Some((*last_seq, object))
        }
        Ending::Gone { last_seq, floor } => {
            Some((*last_seq, json!({ "error": "Gone", "last_seq": last_seq, "floor": floor })))
        }
        Ending::Failed { last_seq, error } => {
            Some((*last_seq, json!({ "error": error.to_string(), "last_seq": last_seq })))
        }
    }
}
