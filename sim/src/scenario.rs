//! Plans from seeds: each scenario is a way to write one, `mixed` the way that mixes all others.
//!
//! Swarm: each seed turns a random subset of the faults on, each at a random rate, because a world in
//! which everything always fails never gets far enough to show the interesting failures.

use crate::faults::{Fault, Switches};
use crate::plan::{
    Action, ActionPlan, BeginPlan, Call, EndpointPlan, InstancePlan, LogSettings, Plan, RequestPlan,
    Settings, Speaks, SubscriberPlan, Way,
};
use crate::streams::{Seed, Stream};

/// Answers that fail.
const ANSWERS: &[Fault] = {
    use Fault::*;
    &[
        Refuse,
        Delay,
        CutBeforeHead,
        CutMidStream,
        Stall,
        EarlyEnd,
        ErrorLine,
        Status500,
        Status429,
        Status400,
        Garbage,
        BadLine,
    ]
};

/// What is odd in an answer and no reason for a request to fail.
const MANNERS: &[Fault] = {
    use Fault::*;
    &[Fragment, InvalidUtf8, CrLf, Comments, DoneTwice, AfterDone, OddUsage, UnendedLine]
};

/// Listings that fail.
const LISTINGS: &[Fault] = &[Fault::ListingFails, Fault::ListingLate, Fault::ListingGarbage];

/// What does not get through.
const WAYS: &[Fault] = {
    use Fault::*;
    &[Partition, PartitionRequests, PartitionAnswers, ClientPartition, CancelLost]
};

/// What becomes of endpoints.
const ENDPOINTS: &[Fault] = &[Fault::EndpointVanishes, Fault::EndpointDown, Fault::ModelChurn];

/// Wall clocks.
const CLOCKS: &[Fault] = &[Fault::WallStep, Fault::WallSkew, Fault::ClockDrift];

/// Stores that fail.
const STORES: &[Fault] = &[Fault::StoreFails, Fault::StoreAmbiguous, Fault::StoreSlow, Fault::DiskFull];

/// Instances that end and begin anew.
const LIVES: &[Fault] = &[Fault::Crash, Fault::LostWrites, Fault::TornWrite, Fault::Restart];

/// A way to write plans.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scenario {
    /// No faults at all: whatever is not answered is a bug.
    Calm,
    /// Endpoints and connections fail.
    Network,
    /// Many clients at once, few slots, impatient.
    Storm,
    /// Twenty minutes with few requests: listings get stale and expire, models come and go.
    Ages,
    /// Stores fail, instances crash and restart.
    Ledger,
    /// The operator changes the configuration under load.
    Reload,
    /// Nobody waits: the least used endpoint is overloaded instead, as in the seed router.
    Overload,
    /// Anything may go wrong together with anything else.
    Everything,
    /// What happens is logged and followed: by slow, leaving and picky subscribers, through crashes and
    /// trims.
    Feed,
}

impl Scenario {
    /// All of them, with how often `mixed` takes each.
    const ALL: [(Scenario, &'static str, u64); 9] = [
        (Scenario::Calm, "calm", 1),
        (Scenario::Network, "network", 5),
        (Scenario::Storm, "storm", 3),
        (Scenario::Ages, "ages", 2),
        (Scenario::Ledger, "ledger", 4),
        (Scenario::Reload, "reload", 3),
        (Scenario::Overload, "overload", 1),
        (Scenario::Feed, "feed", 4),
        (Scenario::Everything, "everything", 4),
    ];

    /// The name on the command line.
    pub(crate) fn name(self) -> &'static str {
        Self::ALL.iter().find(|(scenario, _, _)| *scenario == self).map_or("mixed", |(_, name, _)| name)
    }

    /// The names there are, for messages.
    pub(crate) fn names() -> String {
        let names: Vec<&str> = Self::ALL.iter().map(|(_, name, _)| *name).collect();
        format!("mixed, {}", names.join(", "))
    }

    /// The scenario of this name; `Some(None)` is `mixed`.
    pub(crate) fn find(name: &str) -> Option<Option<Scenario>> {
        if name == "mixed" {
            return Some(None);
        }
        Self::ALL.iter().find(|(_, known, _)| *known == name).map(|(scenario, _, _)| Some(*scenario))
    }

    fn of_seed(seed: Seed) -> Scenario {
        let total = Self::ALL.iter().map(|(_, _, weight)| weight).sum();
        let mut left = seed.stream("scenario").below(total);
        for (scenario, _, weight) in Self::ALL {
            if left < weight {
                return scenario;
            }
            left -= weight;
        }
        Scenario::Calm
    }

    /// Faults it may turn on, in the order in which all are named.
    fn faults(self) -> Vec<Fault> {
        use Fault::*;
        let groups: &[&[Fault]] = match self {
            Scenario::Calm => &[MANNERS, &[SlowClient]],
            Scenario::Network => &[ANSWERS, MANNERS, LISTINGS, WAYS, ENDPOINTS, CLOCKS, &[Pause, SlowClient]],
            Scenario::Storm => &[
                &[Refuse, Delay, CutBeforeHead, CutMidStream, Stall, Status500, Status429, Fragment],
                &[PartitionRequests, ClientPartition, CancelLost, Pause, SlowClient],
            ],
            Scenario::Ages => &[LISTINGS, ENDPOINTS, CLOCKS, &[Delay, Partition, PartitionAnswers]],
            Scenario::Ledger => &[
                STORES,
                LIVES,
                CLOCKS,
                &[Pause, CutMidStream, Fragment, ErrorLine, OddUsage, DoneTwice, SlowClient],
            ],
            Scenario::Reload => &[
                &[Fault::Reload, Restart, Crash, LostWrites, Refuse, CutMidStream, Delay],
                &[ListingFails, ListingLate, ModelChurn, StoreSlow, EndpointDown, SlowClient],
            ],
            Scenario::Overload => &[&[Delay, CutMidStream, Fragment, SlowClient]],
            Scenario::Feed => &[
                STORES,
                LIVES,
                CLOCKS,
                LISTINGS,
                &[Refuse, CutMidStream, Stall, EarlyEnd, ErrorLine, Partition, ClientPartition],
                &[EndpointDown, ModelChurn, Pause, SlowClient, SlowSubscriber, Fault::Reload],
            ],
            Scenario::Everything => &[Fault::ALL],
        };
        let is_on = |fault: &&Fault| groups.iter().any(|group| group.contains(*fault));
        Fault::ALL.iter().filter(is_on).copied().collect()
    }

    /// Of a thousand worlds, in how many there is an event log.
    fn logs_per_mille(self) -> u64 {
        match self {
            Scenario::Feed => 1_000,
            Scenario::Everything => 500,
            _ => 100,
        }
    }

    /// How long clients and faults go on, in milliseconds.
    fn duration(self, chance: &mut Stream) -> u64 {
        match self {
            Scenario::Ages => chance.within(700_000, 1_500_000),
            Scenario::Storm | Scenario::Overload => chance.within(5_000, 20_000),
            _ => chance.pick(&[10_000, 30_000, 90_000, 150_000]),
        }
    }
}

/// The plan of `seed`, in the scenario given or the one the seed itself picks.
pub(crate) fn plan(seed: Seed, scenario: Option<Scenario>) -> Plan {
    let scenario = scenario.unwrap_or_else(|| Scenario::of_seed(seed));
    let chance = &mut seed.stream("plan");
    let duration_ms = scenario.duration(chance);
    let faults = switches(seed, scenario);
    let models = chance.within(1, 3) as usize;
    let endpoints = endpoints(&mut seed.stream("endpoints"), scenario, models);
    let count = if scenario == Scenario::Ages { 1 } else { chance.pick(&[1, 1, 1, 2, 3]) };
    let settings = settings(&mut seed.stream("settings"), scenario, duration_ms);
    let instances = (0..count)
        .map(|_| InstancePlan { wall_offset_ms: 0, drift_ppm: 0, endpoints: (0..endpoints.len()).collect() })
        .collect();
    let mut plan = Plan {
        seed: seed.0,
        scenario: scenario.name().to_owned(),
        duration_ms,
        endpoints,
        instances,
        settings,
        requests: Vec::new(),
        actions: Vec::new(),
        subscribers: Vec::new(),
        faults,
    };
    plan.requests = requests(&mut seed.stream("requests"), scenario, &plan, models);
    plan.actions = actions(seed, &plan, models);
    if plan.settings.log.is_some() {
        plan.subscribers = subscribers(&mut seed.stream("subscribers"), &plan);
    }
    clocks(seed, &mut plan);
    slow_consumers(seed, &mut plan);
    plan
}

/// How far wall clocks are off, and how fast they run.
fn clocks(seed: Seed, plan: &mut Plan) {
    let (skew, drift) = (Fault::WallSkew, Fault::ClockDrift);
    for (index, instance) in plan.instances.iter_mut().enumerate() {
        if plan.faults.is_on(skew) {
            let chance = &mut seed.stream_of(skew.name(), &[index as u64]);
            instance.wall_offset_ms = chance.within(0, 120_000) as i64 - 60_000;
        }
        if plan.faults.is_on(drift) {
            let chance = &mut seed.stream_of(drift.name(), &[index as u64]);
            let by = chance.pick(&[50, 500, 50_000]);
            instance.drift_ppm = if chance.chance(500) { by } else { -by };
        }
    }
}

/// Who rests, and for how long.
fn slow_consumers(seed: Seed, plan: &mut Plan) {
    let (slow, per_mille) = (Fault::SlowClient, plan.faults.per_mille(Fault::SlowClient));
    for request in &mut plan.requests {
        let chance = &mut seed.stream_of(slow.name(), &[request.id]);
        request.rests_us = if chance.chance(per_mille) { chance.within(1_000, 700_000) } else { 0 };
    }
    let (slow, per_mille) = (Fault::SlowSubscriber, plan.faults.per_mille(Fault::SlowSubscriber));
    for (number, subscriber) in plan.subscribers.iter_mut().enumerate() {
        let chance = &mut seed.stream_of(slow.name(), &[number as u64]);
        subscriber.rests_us = if chance.chance(per_mille) { chance.within(1_000, 400_000) } else { 0 };
    }
}

fn subscribers(chance: &mut Stream, plan: &Plan) -> Vec<SubscriberPlan> {
    let kinds = |chance: &mut Stream| -> Vec<String> {
        let some: &[&str] = chance.pick(&[
            &[][..],
            &["request.finished"],
            &["request.*"],
            &["model.*", "endpoint.*"],
            &["config.reloaded", "instance.*"],
        ]);
        some.iter().map(|kind| (*kind).to_owned()).collect()
    };
    (0..chance.within(1, 5))
        .map(|_| SubscriberPlan {
            at_us: chance.below(plan.duration_ms * 900),
            instance: chance.below(plan.instances.len() as u64) as usize,
            begin: match chance.below(4) {
                0 => BeginPlan::Live,
                1 | 2 => BeginPlan::Since { back_ms: chance.below(plan.duration_ms) },
                _ => BeginPlan::All,
            },
            kinds: kinds(chance),
            rests_us: 0,
            leaves_after: chance.chance(400).then(|| chance.within(1, 30)),
            cut_after: chance.chance(400).then(|| chance.within(1, 30)),
            changes_after: chance.chance(300).then(|| chance.within(1, 20)),
            then: kinds(chance),
            over_socket: chance.chance(500),
            message_bytes_max: chance.chance(100).then(|| chance.within(120, 260) as usize),
        })
        .collect()
}

fn switches(seed: Seed, scenario: Scenario) -> Switches {
    let chance = &mut seed.stream("switches");
    // Some worlds have few faults, others many.
    let on_per_mille = chance.pick(&[150, 300, 500]);
    let on = scenario.faults().into_iter().filter(|_| chance.chance(on_per_mille)).collect::<Vec<_>>();
    let mut rate = |fault: Fault| match fault {
        // What a crash does to the disk has few chances.
        Fault::LostWrites | Fault::TornWrite => chance.pick(&[300, 600, 900]),
        _ => chance.pick(&[30, 100, 250, 600]),
    };
    Switches(on.into_iter().map(|fault| (fault, rate(fault))).collect())
}

fn endpoints(chance: &mut Stream, scenario: Scenario, models: usize) -> Vec<EndpointPlan> {
    let count = chance.within(1, 4);
    let uniform = scenario == Scenario::Overload;
    (0..count)
        .map(|_| {
            let speaks = chance.pick(&[Speaks::Ollama, Speaks::Ollama, Speaks::OpenAi, Speaks::LlamaServer]);
            let first = chance.pick(&[(1, 20), (20, 200), (200, 900)]);
            let listing = if uniform { (1, 10) } else { chance.pick(&[(1, 10), (10, 100), (200, 900)]) };
            EndpointPlan {
                speaks: if uniform { Speaks::Ollama } else { speaks },
                models: (0..models)
                    .map(|number| (uniform || number == 0 || chance.chance(650), chance.chance(500)))
                    .collect(),
                first_token_ms: first,
                gap_ms: chance.pick(&[(0, 1), (1, 20), (20, 100)]),
                load_ms: chance.pick(&[0, 100, 1_000]),
                listing_ms: listing,
            }
        })
        .collect()
}

fn settings(chance: &mut Stream, scenario: Scenario, duration_ms: u64) -> Settings {
    let storm = scenario == Scenario::Storm;
    let flush = if duration_ms > 200_000 { (20_000, 60_000) } else { (1_000, 10_000) };
    Settings {
        limit: chance.pick(&[1, 1, 2, 3]),
        queue: scenario != Scenario::Overload && (storm || chance.chance(850)),
        queue_max: if storm { chance.within(1, 12) as usize } else { chance.pick(&[2, 8, 100]) },
        queue_timeout_ms: chance.within(500, 15_000),
        attempts_max: chance.within(1, 4) as u32,
        first_byte_timeout_ms: chance.within(3_000, 15_000),
        idle_timeout_ms: chance.within(2_000, 15_000),
        listing_timeout_ms: chance.within(1_000, 5_000),
        flush_interval_ms: chance.within(flush.0, flush.1),
        breaker_failures: chance.within(1, 4) as u32,
        breaker_open_ms: chance.within(1_000, 10_000),
        wedged_after_ms: chance.within(2_500, 20_000),
        drain_grace_ms: chance.within(500, 10_000),
        log: chance.chance(scenario.logs_per_mille()).then(|| LogSettings {
            each: chance.chance(250),
            ring: chance.pick(&[16, 16, 40, 400]),
            max_age_ms: chance.pick(&[2_000, 5_000, 20_000, 60_000, 3_600_000]),
            none: chance.chance(200),
            switches: chance.chance(300),
            stall_ms: chance.pick(&[300, 3_000, 30_000]),
            per_ip_limit: chance.pick(&[0, 100, 400, 5_000]),
        }),
    }
}

fn requests(chance: &mut Stream, scenario: Scenario, plan: &Plan, models: usize) -> Vec<RequestPlan> {
    let count = match scenario {
        Scenario::Storm => chance.within(50, 150),
        Scenario::Ages => chance.within(25, 80),
        _ => chance.within(30, 110),
    };
    let impatient = chance.pick(&[0, 50, 200, 500]);
    let overviews = chance.pick(&[0, 30, 150]);
    // Bursts around a few moments, or spread evenly.
    let duration_us = plan.duration_ms * 1_000;
    let bursts: Vec<u64> = (0..chance.within(0, 4)).map(|_| chance.below(duration_us)).collect();
    let burst_us = if scenario == Scenario::Storm { 300_000 } else { 2_000_000 };
    let mut requests: Vec<RequestPlan> = (0..count)
        .map(|id| {
            let at_us = if bursts.is_empty() || chance.chance(300) {
                chance.below(duration_us)
            } else {
                (chance.pick(&bursts) + chance.below(burst_us)).min(duration_us - 1)
            };
            let leaves = chance.chance(impatient);
            let by_chunks = chance.chance(400);
            let horizon = chance.pick(&[30, 300, 3_000, 15_000]);
            RequestPlan {
                id,
                at_us,
                instance: chance.below(plan.instances.len() as u64) as usize,
                call: call(chance, overviews),
                model: if chance.chance(20) { models } else { chance.below(models as u64) as usize },
                tagged: chance.chance(200),
                stream: chance.chance(750),
                wants_usage: chance.chance(300),
                leaves_after_us: (leaves && !by_chunks).then(|| chance.within(1, horizon * 1_000)),
                leaves_after_chunks: (leaves && by_chunks).then(|| chance.below(9) as u32),
                rests_us: 0,
                tokens: chance.pick(&[1, 3, 8, 8, 16]),
            }
        })
        .collect();
    requests.sort_by_key(|request| (request.at_us, request.id));
    requests
}

fn call(chance: &mut Stream, overviews: u64) -> Call {
    if chance.chance(overviews) {
        return chance.pick(&[
            Call::Show,
            Call::Tags,
            Call::Ps,
            Call::Models,
            Call::Version,
            Call::Endpoints,
        ]);
    }
    chance.pick(&[
        Call::OpenAiChat,
        Call::OpenAiChat,
        Call::OpenAiChat,
        Call::OpenAiChat,
        Call::OpenAiCompletion,
        Call::OpenAiCompletion,
        Call::OpenAiEmbedding,
        Call::OllamaChat,
        Call::OllamaChat,
        Call::OllamaGenerate,
        Call::OllamaEmbed,
    ])
}

fn actions(seed: Seed, plan: &Plan, models: usize) -> Vec<ActionPlan> {
    let duration_us = plan.duration_ms * 1_000;
    let mut actions = Vec::new();
    for (fault, per_mille) in &plan.faults.0 {
        let chance = &mut seed.stream(&format!("{} at", fault.name()));
        // A rate of 600 in a thousand makes up to seven of a kind.
        let times = chance.within(1, 1 + per_mille / 100);
        for _ in 0..times {
            let at_us = chance.below(duration_us);
            let Some(what) = action(chance, *fault, plan, models, duration_us - at_us) else { break };
            actions.push(ActionPlan { at_us, what });
        }
    }
    actions.sort_by_key(|action| action.at_us);
    actions
}

fn action(chance: &mut Stream, fault: Fault, plan: &Plan, models: usize, left_us: u64) -> Option<Action> {
    let instance = chance.below(plan.instances.len() as u64) as usize;
    let endpoint = chance.below(plan.endpoints.len() as u64) as usize;
    let model = chance.below(models as u64) as usize;
    let for_us = (chance.pick(&[100, 2_000, 20_000]) * chance.within(1, 2_000)).min(left_us);
    Some(match fault {
        Fault::Partition => Action::Partition { instance, endpoint, for_us, way: Way::Both },
        Fault::PartitionRequests => Action::Partition { instance, endpoint, for_us, way: Way::Requests },
        Fault::PartitionAnswers => Action::Partition { instance, endpoint, for_us, way: Way::Answers },
        Fault::ClientPartition => Action::ClientPartition { instance, for_us },
        Fault::EndpointVanishes => Action::Vanish { endpoint, for_us },
        Fault::EndpointDown => Action::Down { endpoint, for_us },
        Fault::ModelChurn if chance.chance(500) => {
            Action::Serve { endpoint, model, listed: chance.chance(500) }
        }
        Fault::ModelChurn => Action::Load { endpoint, model, loaded: chance.chance(500) },
        Fault::DiskFull => Action::DiskFull { instance, for_us },
        Fault::Crash => {
            let in_write = plan.faults.is_on(Fault::LostWrites) || plan.faults.is_on(Fault::TornWrite);
            let writes = if in_write { chance.pick(&[0, 1, 2, 2]) } else { 0 };
            Action::Crash { instance, down_us: chance.within(1_000, 5_000_000), writes }
        }
        Fault::Restart => Action::Restart { instance, down_us: chance.within(1_000, 5_000_000) },
        Fault::Pause => Action::Pause { instance, for_us },
        Fault::WallStep => {
            let by = chance.pick(&[500, 30_000, 90_000, 3_600_000]) * chance.within(1, 3);
            let back = chance.chance(600);
            Action::WallStep { instance, by_ms: if back { -(by as i64) } else { by as i64 } }
        }
        Fault::Reload => {
            let endpoints = (0..plan.endpoints.len()).filter(|_| chance.chance(700)).collect::<Vec<_>>();
            let endpoints = if endpoints.is_empty() { vec![endpoint] } else { endpoints };
            let (limit, queue) = (chance.pick(&[1, 2, 3]), chance.chance(850));
            // Every other one is about who is asked only, not how.
            let per_mille = chance.pick(&[0, 400]);
            let keys = plan
                .endpoints
                .iter()
                .map(|_| if chance.chance(per_mille) { chance.pick(&[1, 2]) } else { 0 });
            let keys = keys.collect();
            let llamas = (0..plan.endpoints.len()).filter(|_| chance.chance(per_mille / 2)).collect();
            Action::Reload { instance, endpoints, limit, queue, keys, llamas }
        }
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_writes_the_same_plan_every_time() {
        for seed in 0..50 {
            assert_eq!(plan(Seed(seed), None), plan(Seed(seed), None));
        }
    }

    #[test]
    fn every_scenario_has_a_name_that_finds_it() {
        for (scenario, name, _) in Scenario::ALL {
            assert_eq!(Scenario::find(name), Some(Some(scenario)));
        }
        assert_eq!(Scenario::find("mixed"), Some(None));
        assert_eq!(Scenario::find("other"), None);
    }

    #[test]
    fn a_plan_survives_being_written_and_read() {
        let before = plan(Seed(11), Some(Scenario::Reload));
        let text = serde_json::to_string(&before).expect("a plan is data");
        assert_eq!(serde_json::from_str::<Plan>(&text).expect("as written"), before);
    }
}
