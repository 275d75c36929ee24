//! Where a follower stands in the log, and whether what it is given next can be next.
//!
//! It checks `feed-exact` from the reader's side: each event names the one given before it on the same
//! connection, so a hole, a repetition or a wrong order shows at once, under a filter too. Called by the
//! feed's client.

use thiserror::Error;

use crate::core::timeline::Seq;

/// What was given cannot come next: the feed has a fault, or something between changes it.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum Disorder {
    /// Something is missing.
    #[error(
        "feed-exact is broken: event {seq} says that {} came before it, but that was {}; events between are missing",
        number(.prev_seq), number(.last)
    )]
    Hole {
        /// What came.
        seq: Seq,
        /// What it says came before it on this connection.
        prev_seq: Option<Seq>,
        /// What came before it.
        last: Option<Seq>,
    },
    /// The feed is not filtered, yet numbers are missing.
    #[error("feed-exact is broken: {seq} came where {expected} is next; events between are missing")]
    Jump {
        /// The event or checkpoint that came.
        seq: Seq,
        /// What must come next.
        expected: Seq,
    },
    /// The same again.
    #[error("feed-exact is broken: event {seq} came a second time")]
    Repeated {
        /// What came.
        seq: Seq,
    },
    /// Something older.
    #[error("feed-exact is broken: {seq} came after everything up to {cursor} had been given")]
    Backwards {
        /// The event or checkpoint that came.
        seq: Seq,
        /// Everything up to here had been given.
        cursor: Seq,
    },
}

fn number(seq: &Option<Seq>) -> String {
    seq.map_or_else(|| "nothing".to_owned(), |seq| format!("event {seq}"))
}

/// The order in which one follower is given events, over all its connections.
#[derive(Clone, Copy, Debug)]
pub(super) struct Order {
    /// Everything up to here was given; unknown before the first, unless the follower began at a number.
    cursor: Option<Seq>,
    /// The last event given, on any connection.
    given: Option<Seq>,
    /// The last event given on this connection.
    last: Option<Seq>,
    /// Every number must come.
    dense: bool,
    /// The cursor is a place in the log: told by the router, or a number other than 0, which stands for all
    /// that is kept.
    placed: bool,
    /// The router told it.
    told: bool,
}

impl Order {
    /// Behind `cursor`; `dense` if nothing is filtered out.
    pub(super) fn new(cursor: Option<Seq>, dense: bool) -> Order {
        let placed = cursor.is_some_and(|cursor| cursor > 0);
        Order { cursor, given: None, last: None, dense, placed, told: false }
    }

    /// Another connection begins behind the cursor.
    pub(super) fn resume(&mut self) {
        self.last = None;
    }

    /// Whether this event can be next.
    pub(super) fn check(&self, seq: Seq, prev_seq: Option<Seq>) -> Result<(), Disorder> {
        if self.given == Some(seq) {
            return Err(Disorder::Repeated { seq });
        }
        if let Some(cursor) = self.cursor.filter(|cursor| seq <= *cursor) {
            return Err(Disorder::Backwards { seq, cursor });
        }
        if prev_seq != self.last {
            return Err(Disorder::Hole { seq, prev_seq, last: self.last });
        }
        match self.expected() {
            Some(expected) if seq != expected => Err(Disorder::Jump { seq, expected }),
            _ => Ok(()),
        }
    }

    /// The event was taken.
    pub(super) fn took(&mut self, seq: Seq) {
        self.took_point(seq);
        self.given = Some(seq);
        self.last = Some(seq);
    }

    /// Whether this checkpoint can be next.
    pub(super) fn check_point(&self, seq: Seq) -> Result<(), Disorder> {
        match (self.cursor, self.expected()) {
            (Some(cursor), _) if seq < cursor => Err(Disorder::Backwards { seq, cursor }),
            (_, Some(expected)) if seq >= expected => Err(Disorder::Jump { seq, expected }),
            _ => Ok(()),
        }
    }

    /// The checkpoint was taken.
    pub(super) fn took_point(&mut self, seq: Seq) {
        self.cursor = Some(seq);
        self.placed = true;
        self.told = true;
    }

    /// The cursor, if the router told it.
    pub(super) fn told(&self) -> Option<Seq> {
        self.cursor.filter(|_| self.told)
    }

    /// Everything up to here was given.
    pub(super) fn cursor(&self) -> Option<Seq> {
        self.cursor
    }

    /// The only number that can come, if only one can.
    fn expected(&self) -> Option<Seq> {
        self.cursor.filter(|_| self.dense && self.placed).map(|cursor| cursor + 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(events: &[Seq], dense: bool) -> Order {
        let mut order = Order::new(Some(0), dense);
        for seq in events {
            order.check(*seq, order.last).unwrap();
            order.took(*seq);
        }
        order
    }

    #[test]
    fn a_filtered_feed_leaves_numbers_out_but_names_the_one_before() {
        let mut order = after(&[3, 9], false);
        assert_eq!(order.check(12, Some(9)), Ok(()));
        assert_eq!(
            order.check(12, Some(10)),
            Err(Disorder::Hole { seq: 12, prev_seq: Some(10), last: Some(9) })
        );
        assert_eq!(order.check(12, None), Err(Disorder::Hole { seq: 12, prev_seq: None, last: Some(9) }));
        assert_eq!(order.check(9, Some(3)), Err(Disorder::Repeated { seq: 9 }));
        assert_eq!(order.check(5, Some(3)), Err(Disorder::Backwards { seq: 5, cursor: 9 }));
        order.took_point(20);
        assert_eq!(order.check(21, Some(9)), Ok(()), "a checkpoint is no event");
        assert_eq!(order.check(20, Some(9)), Err(Disorder::Backwards { seq: 20, cursor: 20 }));
        assert_eq!(order.check_point(20), Ok(()));
        assert_eq!(order.check_point(19), Err(Disorder::Backwards { seq: 19, cursor: 20 }));
        order.resume();
        assert_eq!(order.check(21, None), Ok(()));
        assert_eq!(order.check(21, Some(9)), Err(Disorder::Hole { seq: 21, prev_seq: Some(9), last: None }));
    }

    #[test]
    fn an_unfiltered_feed_leaves_nothing_out_across_connections() {
        let mut order = after(&[4, 5], true);
        assert_eq!(order.check(7, Some(5)), Err(Disorder::Jump { seq: 7, expected: 6 }));
        assert_eq!(order.check_point(6), Err(Disorder::Jump { seq: 6, expected: 6 }));
        assert_eq!(order.check_point(5), Ok(()));
        order.resume();
        assert_eq!(order.check(7, None), Err(Disorder::Jump { seq: 7, expected: 6 }));
        assert_eq!(order.check(5, None), Err(Disorder::Repeated { seq: 5 }));
        assert_eq!(order.check(6, None), Ok(()));
    }
}
