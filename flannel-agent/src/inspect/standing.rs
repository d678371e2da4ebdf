//! What of a node's own standing is wrong: by what its agent says, and how full its maps are.

use serde::Serialize;

use super::{
    Maps,
    checks::{Finding, Severity},
};
use crate::control::snapshot::{self, Snapshot};

/// A map is called full from here on, 0 to 1.
const FULL: f64 = 0.9;
/// So many of one kind are named.
const NAMED: usize = 5;

/// What to do about a lease that others write.
const CONTESTED: &str = "other nodes send to whoever wrote last: end the other flanneld or whatever writes it; of a clone of \
                         this node delete the VXLAN device (ip link delete) and the subnet file, and restart its agent";

/// Something that is wrong, and what to do about it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// What, with the evidence.
    pub what: String,
    /// What to do.
    pub remedy: String,
}

impl Problem {
    fn new(what: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { what: what.into(), remedy: remedy.into() }
    }

    /// What a look at the node has found to be wrong.
    pub fn of_finding(found: Finding) -> Option<Self> {
        (found.severity == Severity::Error).then(|| Self::new(found.evidence, found.remedy))
    }
}

/// What is wrong at the time `now`, the worst first.
pub fn problems(told: &Snapshot, maps: Option<&Maps>, now: u64) -> Vec<Problem> {
    let mut found = Vec::new();
    if !told.agent.ready {
        let why = told.agent.not_ready.as_deref().unwrap_or(&told.agent.doing);
        found.push(Problem::new(
            format!("the node is not ready for pods: {why}"),
            "the log says what the agent waits for",
        ));
    }
    if let Some(store) = &told.store
        && let Some(trouble) = &store.trouble
    {
        found.push(Problem::new(
            format!("{}: {trouble}", store.server),
            "forwarding goes on with the leases known; peers that come or move are not seen until it is back",
        ));
    }
    if let Some([what, remedy]) = told.store.as_ref().and_then(|store| store.bad_config.as_ref()) {
        found.push(Problem::new(what, remedy));
    }
    if let Some(expires) = told.lease.as_ref().and_then(|lease| lease.expires)
        && expires <= now
    {
        found.push(Problem::new(
            "our lease has ended and could not be renewed",
            "other nodes drop their routes to this one: bring the store back, and the lease is renewed at once",
        ));
    }
    if let Some(contested) = told.lease.as_ref().and_then(|lease| lease.contested.as_ref()) {
        found.push(Problem::new(contested, CONTESTED));
    }
    of_dataplane(told, &mut found);
    if told.probes.unanswered > 0 {
        let snapshot::Probes { peers, unanswered, .. } = told.probes;
        found.push(Problem::new(
            format!("{unanswered} of {peers} peers that were asked gave no answer"),
            "`flannel-agent peers` names them, `flannel-agent check` says why",
        ));
    }
    if told.probes.hampered > 0 {
        let snapshot::Probes { peers, hampered, .. } = told.probes;
        found.push(Problem::new(
            format!("to {hampered} of {peers} peers that were asked something is wrong on the way"),
            "`flannel-agent peers` says what, `flannel-agent check` what to do",
        ));
    }
    for rules in &told.rules {
        match &rules.error {
            Some(error) => found.push(Problem::new(
                format!("the rules of {} cannot be kept: {error}", rules.kept_by),
                "install or repair that program, or free its lock",
            )),
            None if !rules.in_place && told.agent.doing == "running" => found.push(Problem::new(
                format!("the rules of {} are not in place yet", rules.kept_by),
                "wait, or see the log",
            )),
            None => {}
        }
    }
    for fill in maps.iter().flat_map(|maps| &maps.fill).filter(|fill| fill.ratio() >= FULL) {
        let what = format!("map {} is full: {} of {} entries", fill.map, fill.entries, fill.room);
        found.push(Problem::new(
            what,
            match fill.forgets {
                true => "flows idle longest are forgotten and take the kernel path: raise --flow-table-size",
                false => "what does not fit takes the kernel path: fewer nodes, pods or exemptions",
            },
        ));
    }
    found
}

fn of_dataplane(told: &Snapshot, found: &mut Vec<Problem>) {
    let Some(dataplane) = &told.dataplane else {
        if told.agent.doing == "running"
            && let Some(why) = &told.without_dataplane
        {
            found.push(Problem::new(why, "see what the process waits for, and whether it gets CPU"));
        }
        return;
    };
    if !dataplane.synced && told.agent.doing == "running" {
        found.push(Problem::new(
            "the leases of the other nodes have not been read",
            "no peer is reached that was not before: see the store",
        ));
    }
    for pending in dataplane.pending.iter().take(NAMED) {
        found.push(Problem::new(
            format!("cannot {}: {}", pending.change, pending.error),
            "it is tried again; remove what is in its way",
        ));
    }
    if dataplane.pending_total > NAMED {
        let more = dataplane.pending_total - NAMED;
        found.push(Problem::new(
            format!("{more} more changes failed"),
            "`flannel-agent peers` and `flannel-agent drift` list them",
        ));
    }
    for skipped in dataplane.skipped.iter().filter(|skipped| skipped.fault).take(NAMED) {
        found.push(Problem::new(
            format!(
                "the lease of {} is not followed ({}): {}",
                skipped.lease, skipped.family, skipped.reason
            ),
            skipped.remedy.as_str(),
        ));
    }
    if dataplane.pending_total == 0
        && let Some(error) = &dataplane.last_error
    {
        found.push(Problem::new(error, "it is tried again"));
    }
}
