//! What the parts of the agent tell of themselves, kept for whoever asks.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, PoisonError},
};

use ipnetwork::IpNetwork;
use tokio::sync::{mpsc, oneshot};

use super::{
    Question, Questions, VERSION,
    question::NoAnswer,
    snapshot::{Drift, Peer, Peers, Probe, Probed, Probes, Rules, Snapshot, Store, TraceMaps, now},
};

/// Seconds for which the outcome of a probe is kept.
const KEPT: u64 = 86400;

/// How things stand. The parts of the agent write to it; the control socket and the metrics read it. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct Standing(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    /// All but the dataplane.
    told: Mutex<Snapshot>,
    /// The reconciler, while there is one.
    reconciler: Mutex<Option<Questions>>,
    /// What the last probe of each peer found.
    probes: Mutex<BTreeMap<IpNetwork, Probe>>,
    /// Who asks the store, while somebody does.
    store: Mutex<Option<StoreWanted>>,
}

/// Takes where to say why the store does not answer, if it does not.
type StoreWanted = mpsc::Sender<oneshot::Sender<Option<String>>>;

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
        let probes = self.probes();
        let unanswered = probes.values().filter(|probe| probe.overlay_rtt_seconds.is_none()).count();
        let answered = probes.values().filter_map(|probe| probe.overlay_rtt_seconds);
        let longest_rtt_seconds = answered.max_by(f64::total_cmp);
        let is_hampered = |probe: &&Probe| probe.overlay_rtt_seconds.is_some() && !probe.found.is_empty();
        let hampered = probes.values().filter(is_hampered).count();
        let times = || probes.values().map(|probe| probe.at);
        let asked = times().min().zip(times().max()).map(|(first, last)| [first, last]);
        let probes = Probes { peers: probes.len(), unanswered, hampered, asked, longest_rtt_seconds };
        Snapshot { version: VERSION, probes, ..told }
    }

    /// How things stand.
    pub async fn snapshot(&self) -> Snapshot {
        let dataplane = match self.questions() {
            Some(questions) => questions.ask(Question::Dataplane).await.map_err(|why| why.to_string()),
            None => Err("the agent has not begun to set up the dataplane".to_owned()),
        };
        let told = self.told();
        match dataplane {
            Ok(mut dataplane) => {
                let unusable = || told.store.iter().flat_map(|store| &store.unusable);
                // A lease of both families is one.
                let leases: BTreeSet<&str> = unusable().map(|skipped| skipped.lease.as_str()).collect();
                dataplane.faults += leases.len();
                dataplane.skipped.extend(unusable().cloned());
                Snapshot { dataplane: Some(dataplane), ..told }
            }
            Err(why) => Snapshot { without_dataplane: Some(why), ..told },
        }
    }

    /// The peers; none before the dataplane is set up.
    ///
    /// # Errors
    /// When the reconciler does not answer.
    pub async fn peers(&self) -> Result<Peers, NoAnswer> {
        match self.questions() {
            Some(questions) => {
                let mut told = questions.ask(Question::Peers).await?;
                let mut probes = self.probes();
                for peer in &mut told.peers {
                    peer.probe = probes.get(&peer.subnet).cloned();
                }
                probes
                    .retain(|subnet, _| told.peers.binary_search_by_key(subnet, |peer| peer.subnet).is_ok());
                drop(probes);
                told.skipped.extend(self.told().store.into_iter().flat_map(|store| store.unusable));
                Ok(told)
            }
            None => Ok(Peers::default()),
        }
    }

    /// `random` peers, chosen by chance, and `silent` of those that did not answer the last time: whoever is back is soon
    /// known to be. What was found of peers that are no more is forgotten.
    ///
    /// # Errors
    /// When the reconciler does not answer.
    pub(crate) async fn sample(&self, random: usize, silent: usize) -> Result<Vec<Peer>, NoAnswer> {
        let Some(questions) = self.questions() else { return Ok(Vec::new()) };
        let silent: Vec<IpNetwork> = {
            let probes = self.probes();
            let unanswered = probes.iter().filter(|(_, probe)| probe.overlay_rtt_seconds.is_none());
            // Those asked longest ago first.
            let mut unanswered: Vec<_> = unanswered.map(|(subnet, probe)| (probe.at, *subnet)).collect();
            unanswered.sort_unstable();
            unanswered.into_iter().map(|(_, subnet)| subnet).take(silent).collect()
        };
        let peers = questions.ask(|answer| Question::Sample(silent.clone(), random, answer)).await?;
        let is_gone =
            |subnet: &IpNetwork| silent.contains(subnet) && peers.iter().all(|peer| peer.subnet != *subnet);
        self.probes().retain(|subnet, _| !is_gone(subnet));
        Ok(peers)
    }

    /// Notes what a probe found of the peer with this subnet, whoever asked it.
    pub(crate) fn probed(&self, subnet: IpNetwork, probe: Probe) {
        let mut probes = self.probes();
        probes.insert(subnet, probe);
        // Peers that have gone are not asked again.
        let oldest = now().saturating_sub(KEPT);
        probes.retain(|_, probe| probe.at >= oldest);
    }

    /// Notes what somebody else than the agent found of peers; what is of no peer, and what is no later than what is known,
    /// is left out.
    ///
    /// # Errors
    /// When the reconciler does not answer, who alone knows the peers.
    pub(crate) async fn all_probed(&self, found: Vec<Probed>) -> Result<(), NoAnswer> {
        let peers = self.peers().await?.peers;
        for Probed { subnet, probe } in found {
            let known = peers.binary_search_by_key(&subnet, |peer| peer.subnet);
            let is_later = |known: &Probe| known.at <= probe.at && probe.at <= now();
            if known.is_ok_and(|at| peers[at].probe.as_ref().is_none_or(is_later)) {
                self.probed(subnet, probe);
            }
        }
        Ok(())
    }

    fn probes(&self) -> std::sync::MutexGuard<'_, BTreeMap<IpNetwork, Probe>> {
        self.0.probes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Those who want to know now whether the store answers: from here on, whoever calls this asks it for them.
    pub(crate) fn stores_wanted(&self) -> mpsc::Receiver<oneshot::Sender<Option<String>>> {
        let (want, wanted) = mpsc::channel(1);
        *self.0.store.lock().unwrap_or_else(PoisonError::into_inner) = Some(want);
        wanted
    }

    /// The store, which is asked now whether it answers; `None` before it is known.
    pub async fn store(&self) -> Option<Store> {
        let want = self.0.store.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let mut silent = None;
        if let Some(want) = want {
            let (answer, answered) = oneshot::channel();
            if want.send(answer).await.is_ok() {
                silent = answered.await.unwrap_or_default();
            }
        }
        let told = self.told().store?;
        Some(Store { trouble: told.trouble.clone().or(silent), ..told })
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

    /// Lets process `by` look at packets, for some seconds more; `None` while the programs for it are being loaded.
    ///
    /// # Errors
    /// Why it cannot.
    pub async fn trace(&self, by: u32) -> Result<Option<TraceMaps>, String> {
        let none = "the agent has not begun to set up the dataplane";
        let questions = self.questions().ok_or_else(|| none.to_owned())?;
        let answer = questions.ask(|answer| Question::Trace(by, answer)).await;
        answer.map_err(|error| error.to_string())?
    }

    fn questions(&self) -> Option<Questions> {
        self.0.reconciler.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}
