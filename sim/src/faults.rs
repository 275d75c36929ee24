//! What can go wrong: every fault by name, each with a switch of its own in the plan and a stream of
//! its own in every call it may strike.

use serde::{Deserialize, Serialize};

macro_rules! faults {
    ($($(#[$doc:meta])* $fault:ident = $name:literal,)+) => {
        /// A fault.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(rename_all = "kebab-case")]
        pub(crate) enum Fault {
            $($(#[$doc])* $fault,)+
        }

        impl Fault {
            /// All of them.
            pub(crate) const ALL: &[Fault] = &[$(Fault::$fault,)+];

            /// The name in reports, and of its streams.
            pub(crate) const fn name(self) -> &'static str {
                match self {
                    $(Fault::$fault => $name,)+
                }
            }
        }
    };
}

faults! {
    /// The endpoint refuses a connection.
    Refuse = "refuse",
    /// Connection, head or chunk takes up to seconds longer.
    Delay = "delay",
    /// The connection breaks before the head.
    CutBeforeHead = "cut-before-head",
    /// The connection breaks within the body.
    CutMidStream = "cut-mid-stream",
    /// From some byte on nothing comes, and the connection stays open.
    Stall = "stall",
    /// The body ends cleanly, but before its message is whole.
    EarlyEnd = "early-end",
    /// The endpoint says in its stream that it failed.
    ErrorLine = "error-line",
    /// Status 500.
    Status500 = "status-500",
    /// Status 429.
    Status429 = "status-429",
    /// Status 400, the client's own mistake.
    Status400 = "status-400",
    /// A body that is not JSON.
    Garbage = "garbage",
    /// Chunks cut anywhere, several messages in one.
    Fragment = "fragment",
    /// A line that is no record stands between good ones, or in the last one's place.
    BadLine = "bad-line",
    /// A string in a record is not UTF-8.
    InvalidUtf8 = "invalid-utf8",
    /// Lines end in CR and LF.
    CrLf = "crlf",
    /// Comments and other fields between and before events; blank lines between records.
    Comments = "comments",
    /// The record that ends the stream comes twice, the second time with other counts.
    DoneTwice = "done-twice",
    /// Bytes after the record that ends the stream, or behind a document.
    AfterDone = "after-done",
    /// Token counts that are null, strings, negative, fractions, or more than can be.
    OddUsage = "odd-usage",
    /// The last line has no end.
    UnendedLine = "unended-line",
    /// A listing refused, broken or answered with status 500.
    ListingFails = "listing-fails",
    /// A listing that comes late or never.
    ListingLate = "listing-late",
    /// A listing that is not JSON.
    ListingGarbage = "listing-garbage",
    /// Nothing passes between an instance and an endpoint for a while.
    Partition = "partition",
    /// What an instance sends does not reach an endpoint for a while; what that sends comes through.
    PartitionRequests = "partition-requests",
    /// What an endpoint sends does not reach an instance for a while; what that sends comes through.
    PartitionAnswers = "partition-answers",
    /// Nothing passes between an instance and its clients and subscribers for a while.
    ClientPartition = "client-partition",
    /// The endpoint never hears that a call was dropped, and works on to its end.
    CancelLost = "cancel-lost",
    /// An endpoint is gone for a while without a word: connections to it stay half open.
    EndpointVanishes = "endpoint-vanishes",
    /// An endpoint is down for a while; streams under way break.
    EndpointDown = "endpoint-down",
    /// Models are removed, pulled, unloaded and loaded.
    ModelChurn = "model-churn",
    /// The store fails and does nothing.
    StoreFails = "store-fails",
    /// The store fails after it has written.
    StoreAmbiguous = "store-ambiguous",
    /// The store takes up to seconds.
    StoreSlow = "store-slow",
    /// The store takes no writes for a while.
    DiskFull = "disk-full",
    /// An instance crashes. By itself that loses nothing that was written.
    Crash = "crash",
    /// A crash takes what was written and not synced.
    LostWrites = "lost-writes",
    /// A crash leaves the first of the writes that were not synced, and takes the rest.
    TornWrite = "torn-write",
    /// An instance is stopped gracefully and started again.
    Restart = "restart",
    /// An instance stands still for a while, as in a long collection of garbage.
    Pause = "pause",
    /// An instance's wall clock jumps.
    WallStep = "wall-step",
    /// The instances' wall clocks are apart from the beginning.
    WallSkew = "wall-skew",
    /// An instance's wall clock runs fast or slow.
    ClockDrift = "clock-drift",
    /// A client rests after each chunk.
    SlowClient = "slow-client",
    /// A subscriber rests before each event.
    SlowSubscriber = "slow-subscriber",
    /// The operator puts another configuration in force.
    Reload = "reload",
}

impl Fault {
    /// It is no reason for a request to fail.
    pub(crate) const fn is_harmless(self) -> bool {
        use Fault::*;
        matches!(
            self,
            Fragment
                | InvalidUtf8
                | CrLf
                | Comments
                | DoneTwice
                | AfterDone
                | OddUsage
                | UnendedLine
                | WallSkew
                | ClockDrift
                | SlowClient
                | SlowSubscriber
        )
    }
}

/// How often each fault strikes, in a thousand chances it gets; a fault that is absent is off.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Switches(pub(crate) Vec<(Fault, u64)>);

impl Switches {
    /// How often in a thousand.
    pub(crate) fn per_mille(&self, fault: Fault) -> u64 {
        self.0.iter().find(|(on, _)| *on == fault).map_or(0, |(_, per_mille)| *per_mille)
    }

    /// Whether it is on at all.
    pub(crate) fn is_on(&self, fault: Fault) -> bool {
        self.per_mille(fault) > 0
    }
}
