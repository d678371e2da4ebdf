//! What the parts of the agent tell of themselves, kept for whoever asks.

use std::sync::{Arc, Mutex, PoisonError};

use super::{
    Question, Questions, VERSION,
    question::NoAnswer,
    snapshot::{Drift, Peers, Rules, Snapshot},
};

/// How things stand. The parts of the agent write to it; the control socket and the metrics read it. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct Standing(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    /// All but the dataplane.
    told: Mutex<Snapshot>,
    /// The reconciler, while there is one.
    reconciler: Mutex<Option<Questions>>,
}

impl Standing {
    /// Writes down what is new.
    pub fn tell(&self, write: impl FnOnce(&mut Snapshot)) {
        write(&mut self.0.told.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// Writes down what is new of the rules that are kept by `kept_by`.
    pub fn tell_rules(&self, kept_by: &str, write: impl FnOnce(&mut Rules)) {
        self.tell(|told| {
            let known = told.rules.iter().position(|rules| rules.kept_by == kept_by);
            let at = known.unwrap_or_else(|| {
                told.rules.push(Rules { kept_by: kept_by.to_owned(), ..Rules::default() });
                told.rules.len() - 1
            });
            write(&mut told.rules[at]);
        });
    }

    /// The agent begins anew: what it had is no more.
    pub(crate) fn begin(&self) {
        self.tell(|told| {
            let (agent, store) = (told.agent.clone(), told.store.clone());
            *told = Snapshot { agent, store, ..Snapshot::default() };
        });
        *self.0.reconciler.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// From now on a reconciler answers.
    pub(crate) fn reconciled_by(&self, questions: Questions) {
        *self.0.reconciler.lock().unwrap_or_else(PoisonError::into_inner) = Some(questions);
    }

    /// What was told, without the dataplane.
    pub fn told(&self) -> Snapshot {
        let told = self.0.told.lock().unwrap_or_else(PoisonError::into_inner).clone();
        Snapshot { version: VERSION, ..told }
    }

    /// How things stand.
    pub async fn snapshot(&self) -> Snapshot {
        let dataplane = match self.questions() {
            Some(questions) => questions.ask(Question::Dataplane).await.map_err(|why| why.to_string()),
            None => Err("the agent has not begun to set up the dataplane".to_owned()),
        };
        let told = self.told();
        match dataplane {
            Ok(dataplane) => Snapshot { dataplane: Some(dataplane), ..told },
            Err(why) => Snapshot { without_dataplane: Some(why), ..told },
        }
    }

    /// The peers; none before the dataplane is set up.
    ///
    /// # Errors
    /// When the reconciler does not answer.
    pub async fn peers(&self) -> Result<Peers, NoAnswer> {
        match self.questions() {
            Some(questions) => questions.ask(Question::Peers).await,
            None => Ok(Peers::default()),
        }
    }

    /// What differs between the plan and the kernel; nothing before the dataplane is set up.
    ///
    /// # Errors
    /// When the reconciler does not answer.
    pub async fn drift(&self) -> Result<Drift, NoAnswer> {
        match self.questions() {
            Some(questions) => questions.ask(Question::Drift).await,
            None => Ok(Drift::default()),
        }
    }

    fn questions(&self) -> Option<Questions> {
        self.0.reconciler.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}
