use super::*;

const SECOND: Duration = Duration::from_secs(1);
const LINKS: Changed = Changed { links: true, ..NOTHING };
const NOTHING: Changed = Changed {
    overlay: false,
    addresses: false,
    routes: false,
    links: false,
    hooks: false,
    forwarding: false,
    external_up: false,
    overrun: false,
};

/// A schedule whose first pass, of `length`, is over; and the time.
fn after_a_pass(length: Duration) -> (Schedule, Instant) {
    let start = Instant::now();
    let mut schedule = Schedule::new(start);
    assert_eq!(schedule.next_pass(), start);
    let pass = schedule.begin(start);
    assert_eq!(pass.changed, Changed::EVERYTHING);
    schedule.passed(pass, false, None, length, start + length);
    (schedule, start + length)
}

#[test]
fn a_burst_of_events_is_one_pass() {
    let (mut schedule, now) = after_a_pass(Duration::ZERO);
    schedule.heard(LINKS, now);
    schedule.heard(Changed { routes: true, ..NOTHING }, now + SETTLE / 2);
    assert_eq!(schedule.next_pass(), now + SETTLE);
    let pass = schedule.begin(now + SETTLE);
    assert_eq!(pass.changed, Changed { routes: true, ..LINKS });
    schedule.passed(pass, false, None, Duration::ZERO, now + SETTLE);
    assert_eq!(schedule.next_pass(), now + FULL, "nothing is due but the next full pass");
}

#[test]
fn leases_wait_as_long_as_a_pass_takes_and_never_for_its_rest() {
    let (mut schedule, now) = after_a_pass(SECOND);
    schedule.heard(LINKS, now);
    assert_eq!(schedule.next_pass(), now + SECOND * REST, "notices may be as many as somebody makes");
    assert!(!schedule.gathers());
    schedule.leases_changed(now);
    assert!(schedule.gathers());
    assert_eq!(schedule.next_pass(), now + SECOND);
    let pass = schedule.begin(now + SECOND);
    assert_eq!(pass.changed, LINKS, "what was heard is looked at with them");
    assert!(!schedule.gathers());
}

#[test]
fn a_pass_that_waits_for_a_cpu_lets_no_pod_wait() {
    let start = Instant::now();
    let mut schedule = Schedule::new(start);
    let pass = schedule.begin(start);
    let now = start + SECOND * 3;
    schedule.passed(pass, false, None, SECOND / 100, now);
    schedule.heard(LINKS, now);
    assert_eq!(schedule.next_pass(), now + SECOND / 100 * REST);
}

#[test]
fn everything_is_read_again_more_rarely_on_a_large_node() {
    let (schedule, now) = after_a_pass(Duration::ZERO);
    assert_eq!(schedule.next_pass(), now + FULL);
    let (schedule, now) = after_a_pass(SECOND / 4);
    assert_eq!(schedule.next_pass(), now - SECOND / 4 + SECOND * 50);
    let (mut schedule, now) = after_a_pass(SECOND * 9);
    let then = now - SECOND * 9 + LONGEST_FULL;
    assert_eq!(schedule.next_pass(), then);
    assert_eq!(schedule.begin(then).changed, Changed::EVERYTHING);
}

#[test]
fn what_cannot_be_read_is_tried_again_ever_more_rarely() {
    let (mut schedule, mut now) = after_a_pass(Duration::ZERO);
    schedule.heard(LINKS, now);
    let mut waits = Vec::new();
    for _ in 0..6 {
        now = schedule.next_pass();
        let pass = schedule.begin(now);
        schedule.failed(pass, Duration::ZERO, now);
        waits.push(schedule.next_pass() - now);
    }
    assert!(waits.windows(2).all(|pair| pair[0] < pair[1]), "{waits:?}");
    let pass = schedule.begin(schedule.next_pass());
    assert_eq!(pass.changed, Changed::EVERYTHING);
    schedule.passed(pass, false, Some(pass.start + SECOND), Duration::ZERO, pass.start);
    assert_eq!(schedule.next_pass(), pass.start + SECOND, "only what is pending");
}

#[test]
fn a_new_device_and_another_node_do_not_wait() {
    let (mut schedule, now) = after_a_pass(SECOND);
    schedule.heard(LINKS, now);
    let then = schedule.next_pass();
    let pass = schedule.begin(then);
    schedule.passed(pass, true, None, SECOND, then + SECOND);
    assert!(schedule.next_pass() <= then + SECOND);
    let pass = schedule.begin(then + SECOND);
    assert_eq!(pass.changed, Changed::EVERYTHING);
    schedule.passed(pass, false, None, SECOND, then + SECOND * 2);
    schedule.node_changed(then + SECOND * 2);
    assert_eq!(schedule.next_pass(), then + SECOND * 2);
}

#[test]
fn looks_take_a_small_part_of_the_time() {
    let (mut schedule, now) = after_a_pass(SECOND / 10);
    schedule.looked(Duration::from_millis(1), false, now);
    assert_eq!(schedule.next_look(), now + LOOK);
    schedule.looked(Duration::from_millis(15), false, now);
    assert_eq!(schedule.next_look(), now + SECOND * 3);
    schedule.looked(SECOND, false, now);
    assert_eq!(schedule.next_look(), now + LONGEST_LOOK);
    // With the pass that repaired it.
    schedule.looked(SECOND / 10, true, now);
    assert_eq!(schedule.next_look(), now + SECOND * 10);
    schedule.looked(SECOND * 9, true, now);
    assert_eq!(schedule.next_look(), now + FULL);
}

#[test]
fn new_pods_are_looked_for_until_they_have_an_address() {
    let (mut schedule, mut now) = after_a_pass(Duration::ZERO);
    let pods = Pods { links: BTreeSet::from([7]), ..Pods::default() };
    schedule.pods_seen(Some(&pods), 1, now);
    let mut looks = 0;
    while schedule.next_pass() < now + FULL / 2 {
        now = schedule.next_pass();
        let pass = schedule.begin(now);
        assert!(pass.changed.links);
        schedule.pods_seen(Some(&pods), 1, now);
        schedule.passed(pass, false, None, Duration::ZERO, now);
        looks += 1;
    }
    assert_eq!(looks, Unplaced::LOOKS);
    schedule.pods_seen(None, 1, now);
    assert!(schedule.next_pass() > now + SECOND);
}

#[test]
fn the_number_of_peers_is_said_once_the_changes_are_over() {
    let (mut schedule, now) = after_a_pass(Duration::ZERO);
    assert_eq!(schedule.next_total(), None);
    schedule.peers_changed(now);
    schedule.peers_changed(now + SECOND);
    assert_eq!(schedule.next_total(), Some(now + TOTAL));
    schedule.total_said();
    assert_eq!(schedule.next_total(), None);
}
