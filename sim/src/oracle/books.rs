//! What a store holds, read byte by byte a second way, against what was answered.

use serde::Deserialize;

use pointsman::core::ledger::Balance;

use crate::disk::Disk;
use crate::plan::Plan;
use crate::sometimes::Point;
use crate::world::{Rows, State};

use super::{TOKEN_CONSERVATION, TOKEN_MINUTE};

#[derive(Deserialize)]
struct Minute {
    rows: Vec<Row>,
}

#[derive(Deserialize)]
struct Row {
    endpoint: String,
    model: String,
    input_tokens: u64,
    output_tokens: u64,
}

/// The rows a disk holds.
fn stored(disk: &Disk, plan: &Plan) -> Result<Rows, String> {
    let mut rows = Rows::new();
    for (key, value) in disk.pairs().filter(|(key, _)| key.starts_with("tokens/")) {
        let minute = key.rsplit('/').next().and_then(|text| text.parse::<u64>().ok());
        let minute = minute.ok_or_else(|| format!("the key {key} names no minute"))?;
        let stored: Minute = serde_json::from_slice(value).map_err(|e| format!("{key} is damaged: {e}"))?;
        for row in stored.rows {
            let endpoint = (0..plan.endpoints.len()).find(|e| plan.endpoints[*e].url(*e) == row.endpoint);
            let endpoint = endpoint.ok_or_else(|| format!("{key} has a row for {}", row.endpoint))?;
            let of = &plan.endpoints[endpoint];
            let (model, _) =
                of.number_of(&row.model).ok_or_else(|| format!("{key} has a row for model {}", row.model))?;
            let sum = rows.entry((minute, endpoint, model)).or_default();
            *sum = (sum.0 + row.input_tokens, sum.1 + row.output_tokens);
        }
    }
    Ok(rows)
}

fn sum(rows: &Rows) -> (u64, u64) {
    rows.values().fold((0, 0), |sum, row| (sum.0 + row.0, sum.1 + row.1))
}

fn total(rows: &Rows) -> u64 {
    let (input, output) = sum(rows);
    input + output
}

/// All that was ever answered and not lost in a crash.
fn all(state: &State, instance: usize) -> Rows {
    let of = &state.instances[instance];
    let mut rows = of.base.clone();
    for (key, (input, output)) in &of.recorded {
        let row = rows.entry(*key).or_default();
        *row = (row.0 + input, row.1 + output);
    }
    rows
}

/// A row that holds more than was answered, if there is one.
fn excess(held: &Rows, most: &Rows) -> Option<String> {
    let found = held.iter().find(|(key, row)| {
        let most = most.get(key).copied().unwrap_or_default();
        row.0 > most.0 || row.1 > most.1
    });
    let ((minute, endpoint, model), row) = found?;
    let most = most.get(&(*minute, *endpoint, *model)).copied().unwrap_or_default();
    Some(format!(
        "minute {minute}, endpoint {endpoint}, model {model}: {row:?} tokens are stored, {most:?} were answered"
    ))
}

/// After a crash: at most the unflushed window is lost, and nothing is counted twice. What is left is
/// what the next life begins from.
pub(crate) fn after_crash(
    state: &mut State,
    plan: &Plan,
    now: u64,
    instance: usize,
    before: Option<Balance>,
) {
    let held = match stored(&state.instances[instance].disk, plan) {
        Ok(held) => held,
        Err(why) => return state.break_promise(now, TOKEN_CONSERVATION, why),
    };
    let most = all(state, instance);
    if let Some(why) = excess(&held, &most) {
        let promise = if total(&held) > total(&most) { TOKEN_CONSERVATION } else { TOKEN_MINUTE };
        state.break_promise(now, promise, format!("instance {instance} after a crash: {why}"));
    }
    if let Some(before) = before {
        let least = total(&state.instances[instance].base) + before.stored.total();
        if total(&held) < least {
            let why = format!(
                "instance {instance} after a crash: {} tokens are left, {least} had been stored before",
                total(&held)
            );
            state.break_promise(now, TOKEN_CONSERVATION, why);
        }
        if before.waiting.total() > 0 {
            state.reached(Point::CrashWithTokensWaiting);
        }
    }
    rebase(state, instance, held);
}

/// After a graceful stop that said it stored everything, and at the very end.
pub(crate) fn after_stop(state: &mut State, plan: &Plan, now: u64, instance: usize) {
    let held = match stored(&state.instances[instance].disk, plan) {
        Ok(held) => held,
        Err(why) => return state.break_promise(now, TOKEN_CONSERVATION, why),
    };
    let expected = all(state, instance);
    if held != expected {
        let promise = if sum(&held) == sum(&expected) { TOKEN_MINUTE } else { TOKEN_CONSERVATION };
        let why = excess(&held, &expected).unwrap_or_else(|| {
            format!("{} tokens are stored, {} were answered", total(&held), total(&expected))
        });
        state.break_promise(now, promise, format!("instance {instance} after a graceful stop: {why}"));
    }
    rebase(state, instance, held);
}

fn rebase(state: &mut State, instance: usize, held: Rows) {
    let of = &mut state.instances[instance];
    of.base_sum = sum(&held);
    of.base = held;
    of.recorded = Rows::new();
    of.recorded_sum = (0, 0);
}
