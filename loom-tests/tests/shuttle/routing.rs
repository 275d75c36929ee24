//! Whole requests through `pointsman::flow`, with clients that leave, backends that fail, reloads,
//! flushes and a stop.

use std::pin::pin;
use std::sync::atomic::{AtomicU32, Ordering::SeqCst};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::future::{Either, select};
use http::HeaderMap;
use loom_tests::portfolio::Scenario;
use shuttle::future::{block_on, spawn};

use super::common::{check, require};
use super::config::{Config, EventLogMode};
use super::core::invariants;
use super::core::slots::Limits;
use super::core::sync::Arc as CoreArc;
use super::flow::flush;
use super::flow::follow::Begin;
use super::flow::infer::Inference;
use super::flow::router::{Ports, Router};
use super::wire::filter::Filter;
use super::wire::request::{Ask, Shape};
use super::world::{Backends, Conduct, Dice, MemoryStore, SharedClock, ShuttleSpawn, TOKENS, dice, pause};

pub(crate) const ALL: &[Scenario] = &[
    Scenario {
        name: "routing::busy_day",
        tasks: 9,
        claim: "five clients, two moody endpoints with one slot each: every request ends, each endpoint gets one at a time, \
                every answer is one answer",
        run: busy_day,
    },
    Scenario {
        name: "routing::clients_leave",
        tasks: 9,
        claim: "clients that leave at any moment leave no slot, no queue entry and no request upstream behind",
        run: clients_leave,
    },
    Scenario {
        name: "routing::stop",
        tasks: 8,
        claim: "a graceful stop with a failing store stores every token of every answer once",
        run: stop,
    },
    Scenario {
        name: "routing::reload",
        tasks: 9,
        claim: "a reload during the rush loses no count and lets nobody past a limit",
        run: reload,
    },
    Scenario {
        name: "routing::taken_out_and_put_back",
        tasks: 8,
        claim: "an endpoint that is taken out and put back is asked for its listing once at a time",
        run: taken_out_and_put_back,
    },
    Scenario {
        name: "routing::minute_of_the_end",
        tasks: 5,
        claim: "tokens are counted in the minute in which their answer ended, whoever holds which lock meanwhile",
        run: minute_of_the_end,
    },
    Scenario {
        name: "routing::follow",
        tasks: 6,
        claim: "readers of the event log get every event once, in order, to the last, whenever they come and however \
                often the store fails",
        run: follow,
    },
];

const YAML: &str = "
endpoints: [http://a:11434, http://b:11434]
max_concurrent_connections: 1
queue_max: 8
queue_timeout_secs: 3
attempts_max: 3
listing_timeout_secs: 100
first_byte_timeout_secs: 300
idle_timeout_secs: 300
wedged_after_secs: 300
breaker_failures: 100
flush_interval_secs: 1
event_log: off
";

fn config() -> Config {
    static CONFIG: OnceLock<Config> = OnceLock::new();
    let parse = || Config::parse(YAML, &|_| None).expect("a valid configuration").0;
    CONFIG.get_or_init(parse).clone()
}

fn limits() -> Limits {
    let config = config();
    let breaker =
        super::core::breaker::Settings { failures: config.breaker_failures, open_for: config.breaker_open };
    Limits { per_model: 1, queue_max: Some(config.queue_max), breaker, wedged_after: config.wedged_after }
}

/// A router in a world of its own.
#[derive(Clone)]
struct Town {
    router: CoreArc<Router>,
    backends: Arc<Backends>,
    store: Arc<MemoryStore>,
    clock: SharedClock,
    answered: Arc<AtomicU32>,
}

impl Town {
    fn new(conduct: Conduct) -> Town {
        Town::with(config(), conduct)
    }

    fn with(config: Config, conduct: Conduct) -> Town {
        let clock = SharedClock::default();
        let backends = Arc::new(Backends::new(conduct, 1, clock.clone()));
        let store = Arc::new(MemoryStore::default());
        let ports = Ports {
            clock: CoreArc::new(clock.clone()),
            entropy: CoreArc::new(Dice),
            spawn: CoreArc::new(ShuttleSpawn),
            upstream: backends.clone(),
            store: store.clone(),
        };
        let router = block_on(Router::start(config, ports)).expect("an empty store can be read");
        Town { router, backends, store, clock, answered: Arc::default() }
    }

    /// A client that reads its answer to the end, unless it is dropped on the way.
    async fn client(self) {
        let body = Bytes::from_static(br#"{"model":"m","messages":[]}"#);
        let ask = Ask::parse(Shape::OllamaChat, &body).expect("a valid request");
        let (shape, path, headers) = (Shape::OllamaChat, "/api/chat", HeaderMap::new());
        let inference =
            Inference { shape, path, headers, body, ask, id: "a request".into(), client_key: None };
        let Ok(mut answer) = self.router.infer(inference).await else { return };
        if !answer.status.is_success() {
            return;
        }
        let mut text = String::new();
        while let Some(Ok(chunk)) = answer.body.next().await {
            text.push_str(std::str::from_utf8(&chunk).expect("the backends speak UTF-8"));
        }
        let mut numbers: Vec<&str> =
            text.split('<').skip(1).filter_map(|rest| rest.split('>').next()).collect();
        numbers.dedup();
        require(numbers.len() == 1, "answer-pure", &format!("one answer has parts of answers {numbers:?}"));
        if text.contains("\"done\":true") {
            self.answered.fetch_add(1, SeqCst);
        }
    }

    /// Looks at everything that must hold at any moment.
    fn look(&self) {
        check(invariants::slots(&self.router.usage().snapshot().slots, &limits()));
        check(invariants::ledger(&self.router.usage().ledger().balance()));
    }

    /// After quiet: nothing is held, and every token that was counted is stored, once.
    fn close(&self) {
        let snapshot = self.router.usage().snapshot();
        check(invariants::slots(&snapshot.slots, &limits()));
        check(invariants::idle(&snapshot.slots));
        self.backends.idle();
        block_on(self.router.flush_all(Duration::from_secs(30))).expect("the store has got over its faults");
        let balance = self.router.usage().ledger().balance();
        check(invariants::ledger(&balance));
        require(balance.waiting.total() == 0, "token-conservation", "tokens wait after the last flush");
        let (totals, _) = block_on(flush::load(self.store.as_ref())).expect("the store can be read");
        let stored: u64 = totals.values().map(|tokens| tokens.total()).sum();
        let recorded = balance.recorded.total();
        require(
            stored == recorded,
            "token-conservation",
            &format!("{recorded} tokens were recorded, the store has {stored}"),
        );
        let (answered, finished) = (self.answered.load(SeqCst), self.backends.finished.load(SeqCst));
        let between = u64::from(answered) * TOKENS..=u64::from(finished) * TOKENS;
        require(
            between.contains(&recorded),
            "token-conservation",
            &format!("{recorded} tokens for {answered} answers read of {finished} given"),
        );
    }
}

fn run_all(tasks: Vec<shuttle::future::JoinHandle<()>>) {
    for task in tasks {
        block_on(task).expect("nobody aborts it");
    }
}

fn watcher(town: &Town) -> shuttle::future::JoinHandle<()> {
    let town = town.clone();
    spawn(async move {
        for _ in 0..4 {
            town.look();
            pause(2).await;
        }
    })
}

fn busy_day() {
    let town = Town::new(Conduct::Moody);
    let mut tasks: Vec<_> = (0..5).map(|_| spawn(town.clone().client())).collect();
    tasks.push(watcher(&town));
    run_all(tasks);
    town.close();
}

fn clients_leave() {
    let conduct = if dice(4) == 0 { Conduct::Silent } else { Conduct::Sound };
    let town = Town::new(conduct);
    let mut tasks: Vec<_> = (0..5)
        .map(|at| {
            let town = town.clone();
            spawn(async move {
                if conduct != Conduct::Silent && at % 2 == 0 {
                    return town.client().await;
                }
                let patience = pin!(pause(dice(24)));
                // Boxed, so that leaving drops everything the request holds at once.
                let client = Box::pin(town.client());
                if let Either::Right(((), client)) = select(client, patience).await {
                    drop(client);
                }
            })
        })
        .collect();
    tasks.push(watcher(&town));
    run_all(tasks);
    town.close();
}

fn stop() {
    let town = Town::new(Conduct::Sound);
    town.store.faults.store(2, SeqCst);
    let mut clients: Vec<_> = (0..3).map(|_| spawn(town.clone().client())).collect();
    clients.push(watcher(&town));
    let router = CoreArc::clone(&town.router);
    let life = spawn(async move {
        let serving = async {
            for client in clients {
                client.await.expect("nobody aborts it");
            }
        };
        let ((), stored) = router.live(serving, Duration::from_secs(30)).await;
        stored.expect("the store has got over its faults");
        let waiting = router.usage().ledger().balance().waiting.total();
        require(waiting == 0, "token-conservation", "tokens wait after the last flush");
    });
    run_all(vec![life]);
    town.close();
}

fn reload() {
    let town = Town::new(Conduct::Sound);
    let mut tasks: Vec<_> = (0..4).map(|_| spawn(town.clone().client())).collect();
    let reloads = town.clone();
    tasks.push(spawn(async move {
        for keep in [1, 2] {
            pause(dice(12)).await;
            let mut config = config();
            config.endpoints.truncate(keep);
            reloads.router.reload(config);
        }
    }));
    tasks.push(watcher(&town));
    run_all(tasks);
    town.close();
}

fn taken_out_and_put_back() {
    let town = Town::new(Conduct::Sound);
    let early: Vec<_> = (0..2).map(|_| spawn(town.clone().client())).collect();
    let reloads = town.clone();
    let mut tasks = vec![spawn(async move {
        pause(1 + dice(3)).await;
        for keep in [1, 2] {
            let mut config = config();
            config.endpoints.truncate(keep);
            reloads.router.reload(config);
        }
        run_both(&reloads).await;
    })];
    tasks.extend(early);
    run_all(tasks);
    town.close();
}

fn minute_of_the_end() {
    let town = Town::new(Conduct::Sound);
    let mut tasks: Vec<_> = (0..3).map(|_| spawn(town.clone().client())).collect();
    let clock = town.clock.clone();
    tasks.push(spawn(async move {
        for _ in 0..3 {
            pause(dice(16)).await;
            clock.0.a_minute_passes();
        }
    }));
    run_all(tasks);
    town.close();
    let ends = town.backends.ends.lock().expect("not poisoned").clone();
    let expected = ends.into_iter().map(|(minute, answers)| (minute, answers * TOKENS)).collect();
    let stored = town.store.minutes();
    let why = format!("tokens by minute are {stored:?}, the answers ended in {expected:?}");
    require(stored == expected, "token-minute", &why);
}

/// Reads from where it begins to the last event there will ever be.
async fn reader(town: Town, begin: Begin) {
    let mut reader = town.router.follow(begin, Filter::default()).await.expect("nothing is trimmed");
    let (mut last, mut done) = (reader.cursor(), false);
    while !done {
        let step = reader.next().await.expect("nothing is trimmed");
        for (seq, event) in &step.events {
            require(*seq == last + 1, "feed-exact", &format!("behind event {last} comes {seq}"));
            let durable = town.store.log.lock().expect("not poisoned").len() as u64;
            require(*seq <= durable, "feed-durable", &format!("event {seq} is given, {durable} are durable"));
            (last, done) = (*seq, event.kind == "instance.left");
        }
        pause(dice(2)).await;
        reader.wrote(&step, step.end);
    }
}

fn follow() {
    // A ring of one, so that readers fall behind it and come back.
    let config = Config { event_log: EventLogMode::Group, event_ring: 1, ..config() };
    let town = Town::with(config.clone(), Conduct::Sound);
    town.store.faults.store(1, SeqCst);
    let writers = [(); 2].map(|()| {
        let (router, config) = (CoreArc::clone(&town.router), config.clone());
        spawn(async move {
            for _ in 0..2 {
                pause(dice(4)).await;
                router.reload(config.clone());
            }
        })
    });
    let mut tasks = vec![spawn(reader(town.clone(), Begin::Kept)), spawn(reader(town.clone(), Begin::Live))];
    let router = CoreArc::clone(&town.router);
    tasks.push(spawn(async move {
        let serving = async {
            for writer in writers {
                writer.await.expect("nobody aborts it");
            }
        };
        let ((), stored) = router.live(serving, Duration::from_secs(30)).await;
        stored.expect("the store has got over its faults");
    }));
    run_all(tasks);
    let kinds = [("instance.joined", 1), ("config.reloaded", 4), ("instance.left", 1)];
    let log = town.store.log.lock().expect("not poisoned").clone();
    for (kind, expected) in kinds {
        let found = log.iter().filter(|record| String::from_utf8_lossy(record).contains(kind)).count();
        require(found == expected, "feed-durable", &format!("{found} times {kind} is in the log"));
    }
}

/// Two clients that come after the reload.
async fn run_both(town: &Town) {
    let clients = [(); 2].map(|()| spawn(town.clone().client()));
    for client in clients {
        client.await.expect("nobody aborts it");
    }
}
