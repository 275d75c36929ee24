//! `/metrics`: what happened (counted here) and what is (read from the state at each scrape, so that
//! the exported numbers cannot drift from it: `admitted-adds-up`).

use core::fmt;
use core::time::Duration;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::{ConstCounter, Counter};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

use crate::core::names::EndpointName;
use crate::core::sync::{Arc, Contention, contention};
use crate::core::time::Instant;
use crate::flow::router::Router;
use crate::flow::seats::Seats;
use crate::ports::Clock;

use super::lobby::Lobby;

/// Bounds of the histograms in seconds: from a cached embedding to a long answer.
const SECONDS: [f64; 12] = [0.001, 0.005, 0.025, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 30.0, 120.0, 600.0];

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Ended {
    route: &'static str,
    outcome: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Why {
    reason: &'static str,
}

/// Everything `/metrics` shows.
pub(super) struct Metrics {
    registry: Registry,
    requests: Family<Ended, Counter>,
    duration: Histogram,
    first_byte: Histogram,
    refused: Family<Why, Counter>,
    clock: Arc<dyn Clock>,
}

impl Metrics {
    pub(super) fn new(router: Arc<Router>, seats: Arc<Seats>, lobby: Arc<Lobby>) -> Metrics {
        let mut registry = Registry::with_prefix("pointsman");
        let requests = Family::default();
        let (duration, first_byte) = (Histogram::new(SECONDS), Histogram::new(SECONDS));
        registry.register("requests", "Inference requests ended, by route and outcome", requests.clone());
        registry.register_with_unit(
            "request_duration",
            "From the request's head to the last byte of its answer",
            Unit::Seconds,
            duration.clone(),
        );
        registry.register_with_unit(
            "first_byte",
            "From the request's head to the first byte of its answer",
            Unit::Seconds,
            first_byte.clone(),
        );
        let refused = Family::default();
        let help = "Subscribers refused, by reason: full, address, origin, bad, gone, future, off, failed";
        registry.register("subscribers_refused", help, refused.clone());
        let clock = Arc::clone(&router.ports().clock);
        registry.register_collector(Box::new(State { router, seats, lobby }));
        Metrics { registry, requests, duration, first_byte, refused, clock }
    }

    /// A request begins; how it ends is counted once, whatever happens to it.
    pub(super) fn begin(self: &Arc<Self>, route: &'static str) -> Running {
        let clock = Arc::clone(&self.clock);
        Running { metrics: Arc::clone(self), route, began: clock.now(), clock, counted: false }
    }

    fn ended(&self, route: &'static str, outcome: &'static str, took: Duration) {
        self.requests.get_or_create(&Ended { route, outcome }).inc();
        self.duration.observe(took.as_secs_f64());
    }

    /// Somebody wanted to subscribe and may not.
    pub(super) fn refused(&self, reason: &'static str) {
        self.refused.get_or_create(&Why { reason }).inc();
    }

    /// The OpenMetrics text.
    pub(super) fn encode(&self) -> String {
        let mut text = String::new();
        encode(&mut text, &self.registry).expect("writing to a string does not fail");
        text
    }
}

/// A request under way. Dropped before it has ended otherwise, it counts as cancelled.
pub(super) struct Running {
    metrics: Arc<Metrics>,
    clock: Arc<dyn Clock>,
    route: &'static str,
    began: Instant,
    counted: bool,
}

impl Running {
    /// Its answer begins.
    pub(super) fn first_byte(&self) {
        self.metrics.first_byte.observe(self.took().as_secs_f64());
    }

    /// How long it has been under way.
    pub(super) fn took(&self) -> Duration {
        self.clock.now().since(self.began)
    }

    /// It has ended like this.
    pub(super) fn end(mut self, outcome: &'static str) {
        self.counted = true;
        self.metrics.ended(self.route, outcome, self.took());
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if !self.counted {
            self.metrics.ended(self.route, "cancelled", self.took());
        }
    }
}

/// The state, read when it is scraped.
struct State {
    router: Arc<Router>,
    seats: Arc<Seats>,
    lobby: Arc<Lobby>,
}

impl fmt::Debug for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("State")
    }
}

/// One labelled value.
type Row<V> = (Vec<(&'static str, String)>, V);

/// Writes one metric with all its rows.
fn write<V: EncodeMetric>(
    encoder: &mut DescriptorEncoder<'_>,
    (name, help, kind): (&str, &str, MetricType),
    rows: impl IntoIterator<Item = Row<V>>,
) -> fmt::Result {
    let mut metric = encoder.encode_descriptor(name, help, None, kind)?;
    for (labels, value) in rows {
        let labels: Vec<(&str, &str)> = labels.iter().map(|(name, value)| (*name, value.as_str())).collect();
        if labels.is_empty() {
            // As a family of one it would be written with empty braces.
            return value.encode(metric);
        }
        value.encode(metric.encode_family(&labels.as_slice())?)?;
    }
    Ok(())
}

impl Collector for State {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        // First: it tells the slots the time.
        let ups = self.router.ups();
        let snapshot = self.router.usage().snapshot();
        let slots = &snapshot.slots;
        let configured = || slots.endpoints.iter().filter(|endpoint| endpoint.enabled);
        let of = |endpoint: &EndpointName| vec![("endpoint", endpoint.to_string())];
        let gauge = |value: i64| ConstGauge::new(value);
        let counter = |value: u64| ConstCounter::new(value);
        let encoder = &mut encoder;

        let in_flight = slots.endpoints.iter().flat_map(|endpoint| {
            endpoint.in_flight.iter().map(move |(model, count)| {
                let labels = vec![("endpoint", endpoint.name.to_string()), ("model", model.to_string())];
                (labels, gauge(i64::from(*count)))
            })
        });
        write(encoder, ("in_flight", "Requests in flight", MetricType::Gauge), in_flight)?;
        let queued = [(vec![], gauge(slots.queued as i64))];
        write(encoder, ("queued", "Requests waiting for a slot", MetricType::Gauge), queued)?;
        let up = ups.iter().map(|(endpoint, up)| (of(endpoint), gauge(i64::from(*up))));
        let help = "1 while the endpoint answers, its breaker is closed and it is not wedged";
        write(encoder, ("endpoint_up", help, MetricType::Gauge), up)?;
        let wedged = configured().map(|endpoint| (of(&endpoint.name), gauge(i64::from(endpoint.wedged))));
        let help = "1 while requests wait at the endpoint and no byte moves";
        write(encoder, ("endpoint_wedged", help, MetricType::Gauge), wedged)?;

        let admitted = [(vec![], counter(slots.admitted))];
        let help = "Reservations admitted, to a slot or to the queue";
        write(encoder, ("slots_admitted", help, MetricType::Counter), admitted)?;
        let finished = [(vec![], counter(slots.finished))];
        let help = "Reservations ended: admitted = queued + in flight + finished";
        write(encoder, ("slots_finished", help, MetricType::Counter), finished)?;
        let tokens = snapshot.tokens.iter().flat_map(|((endpoint, model), tokens)| {
            [("input", tokens.input), ("output", tokens.output)].map(|(direction, count)| {
                let mut labels = of(endpoint);
                labels.extend([("model", model.to_string()), ("direction", direction.to_owned())]);
                (labels, counter(count))
            })
        });
        write(encoder, ("tokens", "Tokens, those of earlier runs included", MetricType::Counter), tokens)?;

        let waiting = self.router.usage().ledger().balance().waiting.total();
        let waiting = [(vec![], gauge(i64::try_from(waiting).unwrap_or(i64::MAX)))];
        let help = "Tokens counted and not yet durable: what a crash now would lose";
        write(encoder, ("tokens_waiting", help, MetricType::Gauge), waiting)?;

        let subscribers = [(vec![], gauge(self.seats.taken() as i64))];
        write(encoder, ("subscribers", "Subscribers to the event log", MetricType::Gauge), subscribers)?;
        let delivered = [(vec![], counter(self.seats.delivered()))];
        let help = "Events written to subscribers";
        write(encoder, ("events_delivered", help, MetricType::Counter), delivered)?;
        let cut_off = self.seats.cut_off();
        let by_reason =
            |(reason, count): (&'static str, u64)| (vec![("reason", reason.to_owned())], counter(count));
        let help = "Subscribers cut off, by reason: stalled, lagging, gone, failed";
        write(
            encoder,
            ("subscribers_cut_off", help, MetricType::Counter),
            cut_off.into_iter().map(by_reason),
        )?;
        let held = [(vec![], ConstCounter::new(self.seats.held().as_secs_f64()))];
        let help = "Seconds that subscribers waited for their addresses' rates, all together";
        write(encoder, ("subscribers_held_seconds", help, MetricType::Counter), held)?;
        let refused = [(vec![], counter(self.lobby.refused()))];
        let help = "Connections refused to addresses with too many idle ones";
        write(encoder, ("connections_refused", help, MetricType::Counter), refused)?;
        let (log, number) = (self.router.log(), |count: u64| gauge(i64::try_from(count).unwrap_or(i64::MAX)));
        let waiting = [(vec![], gauge(log.waiting() as i64))];
        write(encoder, ("events_waiting", "Events that are not durable yet", MetricType::Gauge), waiting)?;
        let lost = [(vec![], counter(log.lost()))];
        let help = "Events that were not logged, because too many waited to be durable";
        write(encoder, ("events_lost", help, MetricType::Counter), lost)?;
        let failed = [(vec![], counter(log.failed()))];
        let help = "Attempts to make events durable that failed; they are tried again";
        write(encoder, ("events_append_failed", help, MetricType::Counter), failed)?;
        let bounds = log.bounds();
        let floor = [(vec![], number(bounds.floor))];
        write(encoder, ("log_floor", "The oldest event that is kept", MetricType::Gauge), floor)?;
        let tip = [(vec![], number(bounds.tip))];
        write(encoder, ("log_tip", "The newest event that is durable", MetricType::Gauge), tip)?;

        let locks = contention();
        let named = |lock: &Contention| vec![("lock", lock.lock.to_owned())];
        let contended = locks.iter().map(|lock| (named(lock), counter(lock.contended)));
        let help = "Acquisitions that found the lock taken";
        write(encoder, ("lock_contended", help, MetricType::Counter), contended)?;
        let waited = locks.iter().map(|lock| (named(lock), counter(lock.waited_nanos)));
        let help = "Nanoseconds spent waiting for the lock";
        write(encoder, ("lock_waited_nanoseconds", help, MetricType::Counter), waited)
    }
}
