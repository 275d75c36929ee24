//! What clients are told of endpoints, who ask for no model: each model was listed not too long ago, none is
//! left out that is certainly known, one endpoint's failure hides no other (`catalog-age`, `catalog-isolation`).

use pointsman::flow::overview::EndpointStatus;

use crate::plan::{Call, Plan, Speaks};
use crate::script;
use crate::sometimes::Point;
use crate::world::{Instance, Listing, State, World};

use super::calls::EXPIRY;
use super::{CATALOG_AGE, CATALOG_ISOLATION, Judged};

const SECOND: u64 = 1_000_000_000;

/// What is in memory is never told at this age or beyond, and asked anew at half of it at the latest.
const LOADED_EXPIRY: u64 = 60 * SECOND;

/// Nor is whether an endpoint is there.
const STATUS_EXPIRY: u64 = 10 * SECOND;

/// How long it is told that an endpoint is not, and how long a pause may have held back the news of it.
const STATUS_ERROR_EXPIRY: u64 = (5 + 60) * SECOND;

/// It says what the endpoint has in memory.
fn of_memory(listing: &Listing) -> bool {
    match listing.asked_as.speaks {
        Speaks::Ollama => listing.path == "/api/ps",
        Speaks::LlamaServer => listing.path == "/v1/models",
        Speaks::OpenAi => false,
    }
}

/// It says whether the endpoint is there.
fn of_status(listing: &Listing) -> bool {
    listing.path == if listing.asked_as.speaks.tags() { "/api/version" } else { "/v1/models" }
}

/// A client has been told which models there are, or are in memory.
pub(crate) fn models_told(world: &World, client: usize, body: &[u8]) {
    let now = world.now();
    let mut state = world.state.lock();
    state.reached(Point::ToldModels);
    let text = String::from_utf8_lossy(body);
    for model in 0..world.plan.endpoints[0].models.len() {
        if let Err((promise, why)) = told(&state, &world.plan, now, client, model, &text) {
            return state.break_promise(now, promise, format!("client {client} {why}"));
        }
    }
}

fn told(state: &State, plan: &Plan, now: u64, client: usize, model: usize, text: &str) -> Judged {
    let asked = &state.clients[client];
    let (began, of) = (asked.began, &state.instances[asked.instance]);
    let in_memory = asked.asked.call == Call::Ps;
    let expiry = if in_memory { LOADED_EXPIRY } else { EXPIRY };
    let concerns = |listing: &&Listing| {
        if in_memory { of_memory(listing) } else { listing.of_served(listing.endpoint) }
    };
    let has = |listing: &Listing| {
        let said = if in_memory { &listing.loaded } else { &listing.held };
        said.as_ref().is_some_and(|said| said[model])
    };
    let names = |endpoint: usize| text.contains(&format!("\"{}\"", plan.endpoints[endpoint].listed(model)));
    for endpoint in 0..plan.endpoints.len() {
        let own = || of.listings.iter().filter(concerns).filter(|listing| listing.endpoint == endpoint);
        // Endpoints of one kind list a model by the same name: any of them may have said it.
        let lately = |listing: &Listing| {
            listing.ended.is_some() && listing.began + expiry > began && listing.may_be_believed(of, began)
        };
        if names(endpoint) {
            let name = plan.endpoints[endpoint].listed(model);
            let said = of.listings.iter().filter(concerns).any(|listing| {
                plan.endpoints[listing.endpoint].listed(model) == name && lately(listing) && has(listing)
            });
            if !said {
                let why =
                    format!("is told of {name}, which no endpoint has listed for {} s", expiry / SECOND);
                return Err((CATALOG_AGE, why));
            }
        } else if is_certain(of, endpoint, began)
            && own().all(|listing| listing.ended.is_some() && has(listing))
            && own().any(|l| l.ended.is_some_and(|at| at < began) && l.began + expiry / 2 > now)
        {
            let why =
                format!("is not told of model {model}, which endpoint {endpoint} has said in every listing");
            return Err((CATALOG_ISOLATION, why));
        }
    }
    Ok(())
}

/// The endpoint was in the configuration, and asked in one way, for as long as the client waited and before.
fn is_certain(of: &Instance, endpoint: usize, began: u64) -> bool {
    of.endpoints.contains(&endpoint)
        && of.reloads == 0
        && of.arrivals[endpoint] == 0
        && of.turned_at[endpoint].is_none_or(|at| at < began)
}

/// A client has been told which endpoints are there.
pub(crate) fn endpoints_told(world: &World, client: usize, told: &[EndpointStatus]) {
    let now = world.now();
    let mut state = world.state.lock();
    state.reached(Point::ToldEndpoints);
    let began = state.clients[client].began;
    let of = &state.instances[state.clients[client].instance];
    for status in told {
        let endpoint = (0..world.plan.endpoints.len())
            .find(|endpoint| world.plan.endpoints[*endpoint].url(*endpoint) == status.name);
        let Some(endpoint) = endpoint else { continue };
        let own = || {
            let of_it = of.listings.iter().filter(|l| l.endpoint == endpoint && of_status(l));
            of_it.filter(|l| l.may_be_believed(of, began))
        };
        let there = |l: &Listing| l.ended.is_some() && l.held.is_some() && l.began + STATUS_EXPIRY > began;
        // One that is under way may have been waited for in vain, or have been answered while others were not.
        let failed = |l: &Listing| match l.ended {
            None => true,
            Some(at) => at > began || (l.held.is_none() && at + STATUS_ERROR_EXPIRY > began),
        };
        let (said, promise) = match &status.answer {
            Ok(_) => (own().any(there), CATALOG_AGE),
            Err(_) => (own().any(failed), CATALOG_ISOLATION),
        };
        if !said {
            let answer = status.answer.clone();
            let why = format!(
                "client {client} is told of endpoint {endpoint}: {answer:?}, which it was not lately"
            );
            return state.break_promise(now, promise, why);
        }
    }
}

/// A client has been told the lowest version, or that there is none.
pub(crate) fn version_told(world: &World, client: usize, version: Option<&str>) {
    let now = world.now();
    let mut state = world.state.lock();
    let began = state.clients[client].began;
    let of = &state.instances[state.clients[client].instance];
    let Some(version) = version else { return };
    let lately = |endpoint: usize, within: u64, since: u64| {
        of.listings.iter().any(|l| {
            l.endpoint == endpoint
                && l.path == "/api/version"
                && l.ended.is_some()
                && l.held.is_some()
                && l.began + within > since
                && l.may_be_believed(of, began)
        })
    };
    let mut endpoints = 0..world.plan.endpoints.len();
    let said = endpoints.any(|e| script::version(e) == version && lately(e, STATUS_EXPIRY, began));
    // What is fresh to the end was fresh when it was looked at.
    let fresh = |e: usize| {
        let mut own = of.listings.iter().filter(|l| l.endpoint == e && l.path == "/api/version");
        let known = own.next().is_some_and(|l| l.ended.is_some_and(|at| at < began) && l.held.is_some());
        known
            && own.all(|l| l.ended.is_some() && l.held.is_some())
            && lately(e, STATUS_EXPIRY / 2, now)
            && is_certain(of, e, began)
    };
    let lower = of.endpoints.iter().find(|e| *script::version(**e) < *version && fresh(**e)).copied();
    let (promise, why) = match (said, lower) {
        (false, _) => (CATALOG_AGE, "which no endpoint has said lately".to_owned()),
        (true, Some(lower)) => (CATALOG_ISOLATION, format!("and endpoint {lower} has a lower one")),
        (true, None) => return state.reached(Point::ToldVersion),
    };
    state.break_promise(now, promise, format!("client {client} is told of version {version}, {why}"));
}
