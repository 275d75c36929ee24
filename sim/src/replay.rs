//! One seed again, told as a timeline by actor.

use crate::plan::Plan;
use crate::run::{self, Outcome};
use crate::trace::Line;

/// Lives through a plan again and keeps every line.
pub(crate) fn replay(plan: &Plan) -> Outcome {
    run::run(plan, true)
}

/// One line: time in seconds, actor, text.
pub(crate) fn line(line: &Line) -> String {
    let (seconds, nanos) = (line.at / 1_000_000_000, line.at % 1_000_000_000);
    format!("{seconds:>6}.{:06} {:<12} {}", nanos / 1_000, line.actor, line.text)
}

/// What came of it, in a few lines.
pub(crate) fn summary(plan: &Plan, outcome: &Outcome) -> String {
    let faults: Vec<String> =
        plan.faults.0.iter().map(|(fault, n)| format!("{} {n}", fault.name())).collect();
    let verdict = match &outcome.violation {
        Some(violation) => format!("{} is broken: {}", violation.promise, violation.why),
        None => "every promise held".to_owned(),
    };
    format!(
        "seed {} ({}): {} instances, {} endpoints, {} requests, {} actions; faults per mille: {}\n{} events, {:.1} simulated seconds, hash {:016x}\n{verdict}\n",
        plan.seed,
        plan.scenario,
        plan.instances.len(),
        plan.endpoints.len(),
        plan.requests.len(),
        plan.actions.len(),
        if faults.is_empty() { "none".to_owned() } else { faults.join(", ") },
        outcome.events,
        outcome.nanos as f64 / 1e9,
        outcome.hash,
    )
}
