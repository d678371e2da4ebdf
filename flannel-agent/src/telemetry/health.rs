//! Whether the node is ready for pods.

use tokio::sync::watch;

/// Whether the rules are in place, the subnet file is written, and this node's own dataplane is in place. Clones share it.
#[derive(Clone, Debug)]
pub struct Readiness(watch::Sender<State>);

#[derive(Clone, Debug, PartialEq, Eq)]
enum State {
    /// Not ready yet.
    Starting,
    Ready,
    /// Not ready any more, for this reason.
    Failed(String),
}

impl Readiness {
    /// Not ready yet.
    pub fn new() -> Self {
        Self(watch::Sender::new(State::Starting))
    }

    /// From now on, ready.
    pub fn set(&self) {
        self.0.send_replace(State::Ready);
    }

    /// Not ready any more; whether that is news. Before it is ready for the first time nothing changes.
    pub fn fail(&self, because: &str) -> bool {
        self.0.send_if_modified(|state| {
            let news = *state == State::Ready;
            if *state != State::Starting {
                *state = State::Failed(because.to_owned());
            }
            news
        })
    }

    /// Ready again; whether that is news.
    pub fn recover(&self) -> bool {
        self.0.send_if_modified(|state| {
            let news = matches!(state, State::Failed(_));
            if news {
                *state = State::Ready;
            }
            news
        })
    }

    /// Whether it is ready.
    pub fn is_set(&self) -> bool {
        *self.0.borrow() == State::Ready
    }

    /// Why it is not ready any more.
    pub fn failure(&self) -> Option<String> {
        match &*self.0.borrow() {
            State::Failed(because) => Some(because.clone()),
            State::Starting | State::Ready => None,
        }
    }
}

impl Default for Readiness {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_that_was_never_ready_does_not_fail_and_one_that_failed_recovers_once() {
        let readiness = Readiness::new();
        assert!(!readiness.fail("x") && !readiness.recover() && !readiness.is_set());
        assert_eq!(readiness.failure(), None);
        readiness.set();
        assert!(readiness.fail("x") && !readiness.fail("y") && !readiness.is_set());
        assert_eq!(readiness.failure().as_deref(), Some("y"));
        assert!(readiness.recover() && !readiness.recover() && readiness.is_set());
    }
}
