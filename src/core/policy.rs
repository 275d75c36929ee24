//! Which endpoint gets the next request: a pure function, so that every driver decides alike.
//!
//! The seed router's rules: (3) an endpoint that has the model loaded and a slot free, least used
//! first, at random among equals; (4) else any with a slot free, by total load; (5) else the least
//! used, where the request has to wait; (6) else none. To these, an endpoint whose breaker is open
//! or which is wedged does not count as a candidate. Called by `slots`, under its lock.

/// How one candidate stands at the moment of choice. Candidates all serve the model (rule 2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standing {
    /// Its health lets requests in: breaker closed, or half-open with the probe still to be had.
    pub admitted: bool,
    /// The model is in its memory, by its newest listing.
    pub loaded: bool,
    /// That listing is past its fresh age: believed, but less than a fresh one.
    pub stale: bool,
    /// Requests of this router in flight there for this model.
    pub in_flight: u32,
    /// Requests of this router in flight there for any model.
    pub total: u32,
}

/// What to do with a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Choice {
    /// Reserve a free slot at this candidate.
    Free(usize),
    /// Every admitted candidate is full; this one is the least used.
    Full(usize),
    /// No candidate is admitted, or there is none.
    Nobody,
}

/// Chooses among `candidates` with `limit` slots per endpoint and model. `dice` is 64 uniform bits
/// and breaks ties. Costs two passes over the slice, allocates nothing.
pub fn choose(candidates: &[Standing], limit: u32, dice: u64) -> Choice {
    let Some((best, ties)) = best_of(candidates, limit) else { return Choice::Nobody };
    let pick = usize::try_from(dice % ties).expect("a remainder of a slice's length fits");
    let index = candidates
        .iter()
        .enumerate()
        .filter(|(_, candidate)| rank(candidate, limit) == Some(best))
        .map(|(index, _)| index)
        .nth(pick)
        .expect("as many candidates share the best rank as were counted");
    if best.tier == Tier::Full { Choice::Full(index) } else { Choice::Free(index) }
}

/// Whether this candidate would be given a request now.
pub fn has_room(candidate: &Standing, limit: u32) -> bool {
    candidate.admitted && candidate.in_flight < limit
}

fn best_of(candidates: &[Standing], limit: u32) -> Option<(CandidateRank, u64)> {
    let mut best: Option<(CandidateRank, u64)> = None;
    for rank in candidates.iter().filter_map(|candidate| rank(candidate, limit)) {
        best = match best {
            Some((leader, ties)) if rank == leader => Some((leader, ties + 1)),
            Some((leader, ties)) if rank > leader => Some((leader, ties)),
            _ => Some((rank, 1)),
        };
    }
    best
}

/// The rule a candidate falls under; earlier is better.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Tier {
    LoadedAndFree,
    Free,
    Full,
}

/// What candidates are ordered by; smaller is better. Within rule 3 the model's own use comes
/// first; within rule 4 the total load does.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct CandidateRank {
    tier: Tier,
    first: u32,
    second: u32,
    stale: bool,
}

fn rank(candidate: &Standing, limit: u32) -> Option<CandidateRank> {
    let Standing { admitted, loaded, stale, in_flight, total } = *candidate;
    if !admitted {
        return None;
    }
    Some(match (in_flight < limit, loaded) {
        (true, true) => CandidateRank { tier: Tier::LoadedAndFree, first: in_flight, second: total, stale },
        (true, false) => CandidateRank { tier: Tier::Free, first: total, second: in_flight, stale: false },
        (false, _) => CandidateRank { tier: Tier::Full, first: in_flight, second: total, stale: false },
    })
}

#[cfg(all(test, not(any(feature = "loom", feature = "shuttle"))))]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const IDLE: Standing = Standing { admitted: true, loaded: true, stale: false, in_flight: 0, total: 0 };

    fn standing() -> impl Strategy<Value = Standing> {
        (prop::bool::weighted(0.8), any::<bool>(), any::<bool>(), 0u32..5, 0u32..5).prop_map(
            |(admitted, loaded, stale, in_flight, others)| Standing {
                admitted,
                loaded,
                stale,
                in_flight,
                total: in_flight + others,
            },
        )
    }

    proptest! {
        #[test]
        fn the_six_rules_hold(
            candidates in prop::collection::vec(standing(), 0..12),
            limit in 1u32..5,
            dice: u64,
        ) {
            let admitted = || candidates.iter().filter(|c| c.admitted);
            let free = || admitted().filter(|c| c.in_flight < limit);
            match choose(&candidates, limit, dice) {
                Choice::Nobody => prop_assert_eq!(admitted().count(), 0, "rule 6: nobody only if nobody is admitted"),
                Choice::Full(index) => {
                    let chosen = candidates[index];
                    prop_assert!(chosen.admitted);
                    prop_assert_eq!(free().count(), 0, "rule 5: queue only if no slot is free");
                    prop_assert_eq!(Some(chosen.in_flight), admitted().map(|c| c.in_flight).min(), "rule 5: the least used");
                }
                Choice::Free(index) => {
                    let chosen = candidates[index];
                    prop_assert!(chosen.admitted && chosen.in_flight < limit, "slot-limit");
                    let loaded_and_free = || free().filter(|c| c.loaded);
                    if loaded_and_free().count() > 0 {
                        prop_assert!(chosen.loaded, "rule 3: loaded before not loaded");
                        prop_assert_eq!(Some(chosen.in_flight), loaded_and_free().map(|c| c.in_flight).min(), "rule 3: least used first");
                    } else {
                        prop_assert_eq!(Some(chosen.total), free().map(|c| c.total).min(), "rule 4: by total load");
                    }
                }
            }
        }

        #[test]
        fn every_idle_equal_can_be_drawn_and_evenly(n in 1usize..9) {
            let candidates = vec![IDLE; n];
            let mut drawn = vec![0u32; n];
            for dice in 0..(n as u64 * 10) {
                let Choice::Free(index) = choose(&candidates, 1, dice) else { panic!("all are idle") };
                drawn[index] += 1;
            }
            prop_assert!(drawn.iter().all(|times| *times == 10), "{drawn:?}");
        }
    }

    #[test]
    fn among_equals_a_fresh_listing_beats_a_stale_one() {
        let stale = Standing { stale: true, ..IDLE };
        for dice in 0..4 {
            assert_eq!(choose(&[stale, IDLE, stale], 1, dice), Choice::Free(1));
        }
    }

    #[test]
    fn a_resident_model_on_a_busy_endpoint_still_beats_a_cold_start() {
        let cold = Standing { loaded: false, ..IDLE };
        let warm = Standing { in_flight: 1, total: 3, ..IDLE };
        assert_eq!(choose(&[cold, warm], 2, 0), Choice::Free(1));
    }

    #[test]
    fn an_endpoint_without_admission_is_never_chosen_even_if_idle() {
        let open = Standing { admitted: false, ..IDLE };
        let full = Standing { in_flight: 1, total: 1, ..IDLE };
        assert_eq!(choose(&[open, full], 1, 0), Choice::Full(1));
        assert_eq!(choose(&[open], 1, 0), Choice::Nobody);
    }
}
