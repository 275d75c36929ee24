//! Open files: each connection is one, and the usual soft limit of 1,024 is less than one address may hold.
//! Raised to the hard limit at start; called by `instance`.

use crate::config::Config;

/// Open files beyond the subscribers': clients with requests, connections to endpoints, the store.
const OTHERS: u64 = 1_000;

/// Raises the soft limit as far as it goes, and says so if that is not far enough.
pub(super) fn raise(config: &Config) {
    match rlimit::increase_nofile_limit(u64::MAX) {
        Ok(limit) => {
            let wanted = wanted(config);
            if limit < wanted {
                tracing::warn!(
                    limit,
                    wanted,
                    "fewer files can be open than `subscribers_max` subscribers and everybody else may need: raise \
                     the hard limit (`ulimit -Hn`, systemd's LimitNOFILE), or lower `subscribers_max`"
                );
            }
        }
        Err(error) => tracing::warn!(%error, "the limit of open files cannot be raised"),
    }
}

fn wanted(config: &Config) -> u64 {
    OTHERS + config.subscribers_max as u64
}
