//! What a panic said, instead of printing it: a panic in the code under test is a finding.

use std::cell::RefCell;
use std::panic::{PanicHookInfo, set_hook};

std::thread_local! {
    static SAID: RefCell<String> = const { RefCell::new(String::new()) };
}

/// From now on panics are kept for [`take`].
pub(crate) fn keep() {
    set_hook(Box::new(|info: &PanicHookInfo<'_>| {
        let text = info.payload().downcast_ref::<String>().cloned();
        let text = text.or_else(|| info.payload().downcast_ref::<&str>().map(|text| (*text).to_owned()));
        let place = info.location().map(|at| format!(" ({}:{})", file(at.file()), at.line()));
        SAID.with_borrow_mut(|said| {
            *said = format!("{}{}", text.unwrap_or_default(), place.unwrap_or_default());
        });
    }));
}

/// The path from `src` on, the same on every machine.
fn file(path: &str) -> &str {
    path.find("src/").map_or(path, |at| &path[at..])
}

/// What the last panic of this thread said.
pub(crate) fn take() -> String {
    SAID.with_borrow_mut(core::mem::take)
}
