//! Each kind of damage is found, at the event where it shows, under its promise; and what is no damage is not.

use std::borrow::Cow;

use super::*;

/// One event at a time of its own, the log's number in seconds.
#[derive(Clone)]
struct Line {
    kind: Kind,
    id: &'static str,
    total: Option<u64>,
    tokens: u64,
    lost: bool,
    /// Admitted, finished, in flight and queued.
    slots: Option<[u64; 4]>,
}

fn line(kind: Kind, id: &'static str) -> Line {
    Line { kind, id, total: None, tokens: 0, lost: false, slots: None }
}

fn join(total: u64) -> Line {
    Line { total: Some(total), ..line(Kind::InstanceJoined, "") }
}

fn leave(total: u64) -> Line {
    Line { total: Some(total), ..line(Kind::InstanceLeft, "") }
}

/// It left with these slots admitted, finished, in flight and queued.
fn leave_with(total: u64, slots: [u64; 4]) -> Line {
    Line { slots: Some(slots), ..leave(total) }
}

/// It left, but could not store its last counts.
fn leave_unflushed(total: u64) -> Line {
    Line { lost: true, ..leave(total) }
}

fn start(id: &'static str) -> Line {
    line(Kind::RequestStarted, id)
}

fn finish(id: &'static str, tokens: u64) -> Line {
    Line { tokens, ..line(Kind::RequestFinished, id) }
}

fn lost() -> Line {
    line(Kind::LogLost, "")
}

fn fields(line: &Line, time_ms: u64) -> Fields<'static> {
    let request = !line.id.is_empty();
    let finished = line.kind == Kind::RequestFinished;
    Fields {
        time_ms,
        kind: Cow::Borrowed(line.kind.name()),
        request_id: request.then(|| line.id.into()),
        endpoint: finished.then(|| "http://a".into()),
        model: request.then(|| "m".into()),
        input_tokens: finished.then_some(line.tokens),
        output_tokens: finished.then_some(0),
        reason: line.lost.then(|| "the disk is full".into()),
        total_tokens: line.total,
        events: (line.kind == Kind::LogLost).then_some(7),
        admitted: line.slots.map(|[admitted, ..]| admitted),
        finished: line.slots.map(|[_, finished, ..]| finished),
        in_flight: line.slots.map(|[_, _, in_flight, _]| in_flight),
        queued: line.slots.map(|[.., queued]| queued),
        ..Fields::default()
    }
}

fn stored(tokens: u64) -> Totals {
    Totals::from([(("http://a".into(), "m".into()), Tokens { input: tokens, output: 0 })])
}

/// What it is, the log, the tokens in the store, and what must be found.
type Damage = (&'static str, Vec<Line>, u64, (Seq, Promise));

/// What a log of these lines from `floor` on shows, with so many tokens in the store.
fn show(floor: Seq, lines: &[Line], tokens: u64) -> Report {
    let mut audit = Audit::new(floor);
    for (seq, line) in (floor..).zip(lines) {
        audit.event(seq, seq * 1_000, &fields(line, seq * 1_000));
    }
    audit.end(floor + lines.len() as Seq - 1, &stored(tokens))
}

fn broken(report: &Report) -> Option<(Seq, Promise)> {
    report.broken.as_ref().map(|finding| (finding.seq, finding.broken.promise))
}

#[test]
fn lives_that_end_in_order_show_that_all_holds() {
    let lines = [
        join(0),
        start("a"),
        start("b"),
        finish("b", 5),
        finish("a", 7),
        leave(12),
        join(12),
        start("a"),
        start("a"),
        finish("a", 1),
        finish("a", 2),
        leave(15),
    ];
    let report = show(1, &lines, 15);
    let expected = Report { floor: 1, tip: 12, events: 12, requests: 4, lives: 2, ..Report::default() };
    assert_eq!(report, expected);
}

#[test]
fn every_kind_of_damage_is_found_at_its_event_and_named() {
    use Promise::{AdmittedAddsUp, AnswerEnds, TokenConservation};
    let whole = [join(0), start("a"), finish("a", 5), leave(5)];
    assert_eq!(broken(&show(1, &whole, 5)), None);
    assert_eq!(broken(&show(1, &whole, 4)), Some((4, TokenConservation)), "stored tokens vanish");
    let table: [Damage; 10] = [
        ("no end", vec![join(0), start("a"), leave(0)], 0, (3, AnswerEnds)),
        ("no start", vec![join(0), finish("a", 5), leave(5)], 5, (2, AdmittedAddsUp)),
        (
            "two ends",
            vec![join(0), start("a"), finish("a", 5), finish("a", 0), leave(5)],
            5,
            (4, AdmittedAddsUp),
        ),
        (
            "an end in another life",
            vec![join(0), start("a"), join(0), finish("a", 5), leave(5)],
            5,
            (4, AdmittedAddsUp),
        ),
        ("an end after it left", vec![join(0), start("a"), leave(0), finish("a", 0)], 0, (3, AnswerEnds)),
        (
            "a start after it left",
            vec![join(0), leave(0), start("a"), finish("a", 0)],
            0,
            (3, AdmittedAddsUp),
        ),
        (
            "counted without an event",
            vec![join(0), start("a"), finish("a", 5), leave(6)],
            6,
            (4, TokenConservation),
        ),
        (
            "an event not counted",
            vec![join(0), start("a"), finish("a", 5), leave(4)],
            4,
            (4, TokenConservation),
        ),
        (
            "stored tokens vanish between two lives",
            [&whole[..], &[join(3), leave(3)]].concat(),
            3,
            (5, TokenConservation),
        ),
        (
            "a crash takes what was stored before",
            vec![join(9), start("a"), join(8), leave(8)],
            8,
            (3, TokenConservation),
        ),
    ];
    for (what, lines, tokens, expected) in table {
        let report = show(1, &lines, tokens);
        assert_eq!(broken(&report), Some(expected), "{what}: {report:?}");
        let later = [&lines[..], &[join(tokens), finish("z", 0), leave(tokens)]].concat();
        assert_eq!(
            show(1, &later, tokens).broken.map(|f| f.seq),
            Some(expected.0),
            "{what}: the first is named"
        );
    }
}

#[test]
fn slots_that_were_not_given_back_are_found_and_those_that_must_have_been_there() {
    use Promise::{AdmittedAddsUp, SlotConservation};
    let life = |slots| show(1, &[join(0), start("a"), finish("a", 5), leave_with(5, slots)], 5);
    for (slots, expected) in [
        ([1, 1, 0, 0], None),
        // Others waited in vain.
        ([9, 9, 0, 0], None),
        ([2, 1, 1, 0], Some((4, SlotConservation))),
        ([2, 1, 0, 1], Some((4, SlotConservation))),
        ([2, 1, 0, 0], Some((4, AdmittedAddsUp))),
        ([0, 0, 0, 0], Some((4, SlotConservation))),
    ] {
        assert_eq!(broken(&life(slots)), expected, "{slots:?}");
    }
}

#[test]
fn tokens_under_another_name_are_found_though_the_sum_agrees() {
    let mut audit = Audit::new(1);
    for (seq, line) in (1..).zip(&[join(0), start("a"), finish("a", 5), leave(5)]) {
        audit.event(seq, 9, &fields(line, 9));
    }
    let elsewhere = Totals::from([(("http://b".into(), "m".into()), Tokens { input: 5, output: 0 })]);
    assert_eq!(broken(&audit.end(4, &elsewhere)), Some((3, Promise::TokenConservation)));
}

#[test]
fn a_crash_ends_all_its_requests_and_may_lose_tokens_or_events_but_says_so() {
    let lines =
        [join(0), start("a"), finish("a", 5), start("b"), join(3), leave(3), join(7), leave(7), join(7)];
    let report = show(1, &lines, 7);
    assert_eq!((broken(&report), report.lives, report.crashes), (None, 4, 2));
    let notes = report.notes.join("\n");
    for said in
        ["1 request(s) were under way in a crash", "2 token(s) were logged", "4 token(s) are stored without"]
    {
        assert!(notes.contains(said), "{said}: {notes}");
    }
}

#[test]
fn what_began_before_the_floor_may_end() {
    let report = show(40, &[finish("a", 5), start("b"), finish("b", 1), leave(90), join(90), leave(90)], 90);
    assert_eq!((broken(&report), report.lives, report.crashes), (None, 2, 0));
    assert!(
        report.notes.iter().any(|note| note.starts_with("1 request(s) ended that began before")),
        "{report:?}"
    );
    let report = show(40, &[start("b"), leave(90)], 90);
    assert_eq!(broken(&report), Some((41, Promise::AnswerEnds)), "its own requests must end all the same");
}

#[test]
fn a_life_with_lost_events_is_not_accused_before_or_after_and_the_next_one_is_checked_again() {
    let lines = [
        join(0),
        finish("x", 2),
        start("a"),
        leave(5),
        lost(),
        join(5),
        start("a"),
        finish("a", 1),
        leave(6),
    ];
    let report = show(1, &lines, 6);
    assert_eq!(broken(&report), None);
    assert!(report.notes.iter().any(|note| note.starts_with("7 event(s) were refused")), "{report:?}");
    let next = [&lines[..5], &[join(5), finish("a", 1), leave(6)]].concat();
    assert_eq!(broken(&show(1, &next, 6)), Some((7, Promise::AdmittedAddsUp)));
}

#[test]
fn a_last_flush_that_failed_and_said_so_may_lose_tokens() {
    let lines = [join(0), start("a"), finish("a", 5), leave_unflushed(5), join(0), leave(0)];
    let report = show(1, &lines, 0);
    assert_eq!((broken(&report), report.crashes), (None, 0));
    assert!(report.notes.iter().any(|note| note.contains("could store every token")), "{report:?}");
}

#[test]
fn tokens_counted_while_nothing_was_logged_are_noted_not_accused() {
    for (lines, tokens) in [
        (vec![join(100), start("a"), finish("a", 5), leave(105)], 105),
        (vec![join(0), leave(0), join(8), leave(8)], 8),
        (vec![join(0), leave(0)], 8),
    ] {
        let report = show(1, &lines, tokens);
        assert_eq!(broken(&report), None, "{report:?}");
        assert!(!report.notes.is_empty());
    }
}

#[test]
fn a_latest_time_that_falls_or_lags_is_found_and_a_clock_that_steps_back_is_not() {
    let times = |pairs: &[(u64, u64)]| {
        let mut audit = Audit::new(1);
        for (seq, (time_ms, latest_ms)) in (1..).zip(pairs) {
            let line = if seq == 1 { join(0) } else { line(Kind::EndpointUp, "") };
            audit.event(seq, *latest_ms, &fields(&line, *time_ms));
        }
        broken(&audit.end(pairs.len() as Seq, &Totals::new()))
    };
    assert_eq!(times(&[(5, 5), (3, 5), (9, 9)]), None);
    assert_eq!(times(&[(5, 5), (3, 4)]), Some((2, Promise::FeedExact)));
    assert_eq!(times(&[(5, 5), (7, 6)]), Some((2, Promise::FeedExact)));
    assert_eq!(times(&[(5, 5), (6, 8)]), Some((2, Promise::FeedExact)));
    assert_eq!(times(&[(5, 4)]), Some((1, Promise::FeedExact)));
    assert_eq!(times(&[(5, 8), (6, 8)]), None, "before the floor it was later");
}

#[test]
fn numbers_that_are_missing_or_come_twice_are_found() {
    for (numbers, tip, at) in [(vec![1, 3], 3, 3), (vec![1, 1], 1, 1), (vec![1, 2], 4, 3)] {
        let mut audit = Audit::new(1);
        numbers.iter().for_each(|seq| audit.event(*seq, 9, &fields(&join(0), 9)));
        assert_eq!(broken(&audit.end(tip, &Totals::new())), Some((at, Promise::FeedDurable)), "{numbers:?}");
    }
}
