use std::sync::{Arc, Mutex};

use super::*;

/// Rules that a test damages, and what was done about it.
#[derive(Clone, Default)]
struct Fake(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    in_place: bool,
    error: Option<&'static str>,
    looks: Vec<Look>,
    repairs: Vec<Instant>,
    others_removed: bool,
    /// Another program that undoes every repair at once.
    undone: bool,
    /// The looks, by number, at which rules of others are found to have changed, so that ours have to.
    changes: Vec<usize>,
}

impl Fake {
    fn with<T>(&self, work: impl FnOnce(&mut State) -> T) -> T {
        work(&mut self.0.lock().unwrap())
    }
}

fn result(error: Option<&str>) -> Result<(), ExecError> {
    let failed = |text: &str| ExecError::Failed { program: "restore".into(), stderr: text.into() };
    error.map_or(Ok(()), |text| Err(failed(text)))
}

impl Firewall for Fake {
    async fn faults(&mut self, look: Look) -> Result<Vec<String>, ExecError> {
        self.with(|state| {
            state.looks.push(look);
            result(state.error)?;
            state.in_place &= !state.changes.contains(&state.looks.len());
            Ok(if state.in_place { Vec::new() } else { vec!["gone".to_owned()] })
        })
    }

    async fn repair(&mut self, _: Look) -> Result<(), ExecError> {
        self.with(|state| {
            result(state.error)?;
            state.repairs.push(Instant::now());
            state.in_place = !state.undone;
            Ok(())
        })
    }

    async fn remove_others(&mut self) {
        self.with(|state| state.others_removed = true);
    }

    fn flows(&self) -> Flows {
        Flows::NotAsked
    }

    fn adapts(&self) -> bool {
        self.with(|state| state.changes.contains(&state.looks.len()))
    }
}

const RESYNC: Duration = Duration::from_secs(5);

fn start(fake: &Fake) -> watch::Receiver<Option<Flows>> {
    let (sender, applied) = watch::channel(None);
    tokio::spawn(Keeper::new(fake.clone(), RESYNC, None).run(sender, std::future::ready(())));
    applied
}

#[tokio::test(start_paused = true)]
async fn rules_come_back_within_a_second_or_so() {
    let fake = Fake::default();
    start(&fake).wait_for(Option::is_some).await.unwrap();
    for damages in 1..=3 {
        sleep(Duration::from_secs(40)).await;
        fake.with(|state| state.in_place = false);
        sleep(POLL + LEAST_REST).await;
        assert!(fake.with(|state| state.in_place));
        assert_eq!(fake.with(|state| state.repairs.len()), 1 + damages);
    }
    assert!(fake.with(|state| state.others_removed));
    assert_eq!(fake.with(|state| state.looks[0]), Look::Start);
    assert!(fake.with(|state| state.looks[2..].iter().all(|look| *look == Look::Resync)));
}

#[tokio::test(start_paused = true)]
async fn rules_that_are_there_are_left_alone() {
    let fake = Fake::default();
    fake.with(|state| state.in_place = true);
    start(&fake).wait_for(Option::is_some).await.unwrap();
    sleep(Duration::from_secs(60)).await;
    assert_eq!(fake.with(|state| state.repairs.len()), 0);
}

#[tokio::test(start_paused = true)]
async fn nothing_is_said_to_be_applied_before_it_is() {
    let fake = Fake::default();
    fake.with(|state| state.error = Some("the lock is held"));
    let mut applied = start(&fake);
    sleep(Duration::from_secs(30)).await;
    assert_eq!(*applied.borrow(), None);
    assert!(!fake.with(|state| state.others_removed));
    let looks = fake.with(|state| state.looks.len());
    assert!((5..=20).contains(&looks), "{looks} tries in half a minute");
    fake.with(|state| state.error = None);
    timeout(LONGEST, applied.wait_for(Option::is_some)).await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn rules_that_follow_those_of_others_were_removed_by_nobody() {
    let fake = Fake::default();
    // The second and third change come while the rules that the one before asked for are looked at again.
    fake.with(|state| state.changes = vec![4, 5, 7]);
    let standing = Standing::default();
    let keeper = Keeper::new(fake.clone(), RESYNC, None).telling(standing.clone(), "iptables");
    let (sender, mut applied) = watch::channel(None);
    tokio::spawn(keeper.run(sender, std::future::ready(())));
    applied.wait_for(Option::is_some).await.unwrap();
    let restored = || standing.told().rules[0].restored;
    sleep(Duration::from_secs(60)).await;
    assert!(fake.with(|state| state.in_place && state.looks.len() > 9 && state.repairs.len() == 4));
    assert_eq!(restored(), 0);
    fake.with(|state| state.in_place = false);
    sleep(POLL + LEAST_REST).await;
    assert_eq!(restored(), 1, "these were");
}

#[tokio::test(start_paused = true)]
async fn a_fight_is_given_up_and_taken_up_again() {
    let fake = Fake::default();
    start(&fake).wait_for(Option::is_some).await.unwrap();
    fake.with(|state| {
        state.in_place = false;
        state.undone = true;
    });
    sleep(Duration::from_secs(600)).await;
    let repairs = fake.with(|state| state.repairs.len());
    assert!((6..=30).contains(&repairs), "{repairs} repairs in ten minutes");
    // The other program is gone: the next repair holds, and then all is as before.
    fake.with(|state| state.undone = false);
    sleep(LONGEST * 2).await;
    assert!(fake.with(|state| state.in_place));
    sleep(LONGEST * 4).await;
    fake.with(|state| state.in_place = false);
    sleep(POLL + LEAST_REST).await;
    assert!(fake.with(|state| state.in_place));
}
