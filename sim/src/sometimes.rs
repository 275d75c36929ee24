//! Points that a gate's seeds must reach: a state no seed ever visits is a state no seed ever checks.

macro_rules! points {
    ($($point:ident = $name:literal,)+) => {
        /// Something that must happen in some seed.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub(crate) enum Point {
            $($point,)+
        }

        impl Point {
            /// All of them.
            pub(crate) const ALL: &[Point] = &[$(Point::$point,)+];

            /// The sentence in reports.
            pub(crate) const fn name(self) -> &'static str {
                match self {
                    $(Point::$point => $name,)+
                }
            }
        }
    };
}

points! {
    AnsweredWhole = "a client got a whole answer",
    Retried = "a request was tried at a second endpoint",
    RefusalPassedOn = "an endpoint's refusal was passed on",
    Queued = "a request waited for a slot",
    QueueTimedOut = "a request waited for a slot in vain",
    QueueWasFull = "a request found the queue full",
    HandedOver = "a granted slot had not been collected yet",
    Overloaded = "without a queue, an endpoint went above its limit",
    ToldModels = "a client was told which models there are",
    ToldEndpoints = "a client was told which endpoints are there",
    ToldVersion = "a client was told the lowest version",
    LeftBeforeHead = "a client left before the head",
    LeftMidStream = "a client left in mid stream",
    SlowReader = "a client read more slowly than its endpoint wrote",
    CancelledLate = "an endpoint worked on for a client that had left, behind a partition",
    WaitedForAGhost = "a request waited at an endpoint that worked on for somebody who had left",
    TokensOfACancelled = "tokens were counted for a client that had left",
    BrokeOffInWords = "a broken stream ended in an error record",
    BrokeOffByCut = "a broken document was cut",
    UsageHidden = "usage nobody had asked for was taken out of a stream",
    FirstByteTimedOut = "no first byte came in time",
    IdleTimedOut = "a stream fell silent for too long",
    Nonsense = "an endpoint answered with nonsense",
    UpstreamFailed = "an endpoint gave no answer and nobody else could be tried",
    UnknownModel = "a model was unknown",
    NobodyAnswered = "no endpoint could be asked",
    WrongFamily = "a model was there in the other family only",
    AllUnhealthy = "every endpoint for a model was unhealthy",
    BreakerOpened = "a breaker opened",
    BreakerClosed = "a breaker closed again",
    Wedged = "an endpoint was held to be wedged",
    WaiterLeftDuringFetch = "a client left while a listing it waited for was under way",
    FetchTimedOut = "a listing took too long and was given up",
    ListingFailed = "a listing failed",
    RefetchedAfterExpiry = "a listing was fetched again after its expiry",
    GoneSinceListed = "a model was gone since it had been listed",
    Flushed = "a batch was stored",
    FlushRetried = "a flush failed and the batch was stored later",
    FlushCountedOnce = "a flush was repeated after its write had worked",
    MinutesInOneBatch = "one batch held rows of several minutes",
    CrashWithTokensWaiting = "an instance crashed with tokens waiting",
    CrashDuringWrite = "an instance crashed during a write",
    CrashDuringStream = "an instance crashed during a stream",
    StartedFromRows = "an instance started from stored rows",
    DrainedWhole = "a graceful stop let its last answer end",
    DrainCutOff = "a graceful stop cut answers off after its grace",
    ReloadedInFlight = "a configuration was reloaded with requests in flight",
    RemovedInFlight = "an endpoint was removed from the configuration with requests in flight",
    KeyChangedInFlight = "an endpoint's key was changed with requests in flight there",
    KindChangedInFlight = "an endpoint's kind was changed with requests in flight there",
    LoweredBelow = "the limit was lowered below what was in flight",
    WallWentBack = "a wall clock went back",
    TwoInstances = "two instances served clients",
    Logged = "events were made durable",
    LoggedAfterAll = "an append that had failed was found to be carried out",
    LogTrimmed = "events were trimmed",
    Filtered = "a filter left events out",
    FilterChanged = "a subscriber changed its filter in flight",
    Resumed = "a subscriber came back with its last number",
    ReadFromDisk = "a subscriber read events that the ring no longer held",
    SlowSubscriber = "a subscriber took its time over an event",
    CutOverAtACut = "a cutover met a retention cut",
    CutOffForSlowness = "a subscriber was cut off in mid-step and told the last number written",
    Audited = "a log was audited in which nothing ever crashed",
    AuditedACrash = "a log was audited across a crash",
    NotStored = "events were seen that are stored nowhere",
    NumbersGoOn = "numbers went on behind those of a life that stored no events",
    StoredAgain = "events were stored again after a life that stored none",
    ToldGone = "a subscriber was told that its next event is gone",
}
