//! Changes of the kernel half, made in the order in which they come.

use std::{
    collections::{BTreeMap, btree_map::Entry},
    net::IpAddr,
};

use super::{
    KernelDatapath,
    requests::{is_gone, request, unreachable_gateway},
};
use crate::{
    datapath::ChangeError,
    netlink::{NetlinkError, Request, protocol::Numbering, route},
    plan::{Change, ObjectKey},
    values::Family,
};

/// Indices of the VXLAN devices, each looked up when the first change needs it.
type Indices = BTreeMap<Family, Result<Option<u32>, NetlinkError>>;

/// How a change is made.
enum Step {
    /// It needs nothing to be done, or cannot be made.
    Settled(Result<(), ChangeError>),
    /// By one request.
    Request(Request),
}

/// Whether a change is one request, and may be in flight together with those before and after it.
fn is_request(change: &Change) -> bool {
    !matches!(change.key(), ObjectKey::Device(_) | ObjectKey::Object(_)) && !change.is_bpf()
}

impl KernelDatapath {
    /// As [`crate::datapath::Datapath::apply`].
    pub(super) async fn apply_in_order(&mut self, changes: &[Change]) -> Vec<Result<(), ChangeError>> {
        let mut results = Vec::with_capacity(changes.len());
        let mut indices = Indices::new();
        for run in changes.chunk_by(|a, b| is_request(a) && is_request(b)) {
            match &run[0] {
                Change::PutDevice(device) => {
                    let put = self.put_device(device).await;
                    // Even if an attribute of the device could not be changed, its peers can be.
                    match &put {
                        Ok(index) => indices.insert(device.family(), Ok(Some(*index))),
                        Err(_) => indices.remove(&device.family()),
                    };
                    results.push(put.map(drop).map_err(ChangeError::from));
                }
                Change::DeleteDevice(family) => {
                    indices.remove(family);
                    results.push(self.delete_device(*family).await.map_err(ChangeError::from));
                }
                Change::PutObject(id, object) => results.push(match &mut self.driver {
                    Some(driver) => driver.put(*id, object).await.map_err(ChangeError::from),
                    None => Err(ChangeError::Unsupported),
                }),
                Change::DeleteObject(id, object) => results.push(match &mut self.driver {
                    Some(driver) => driver.delete(*id, object).await.map_err(ChangeError::from),
                    None => Err(ChangeError::Unsupported),
                }),
                change if change.is_bpf() => results.push(Err(ChangeError::Unsupported)),
                _ => results.extend(self.request_all(run, &mut indices).await),
            }
        }
        results
    }

    /// Makes changes that are one request each, all in flight at once: the kernel takes them in their order.
    async fn request_all(&mut self, run: &[Change], indices: &mut Indices) -> Vec<Result<(), ChangeError>> {
        for family in run.iter().filter_map(Change::device) {
            if let Entry::Vacant(unknown) = indices.entry(family) {
                unknown.insert(self.device_index(family).await);
            }
        }
        let puts = run.iter().filter(|change| matches!(change, Change::PutRoute { .. })).count();
        let numbering = Numbering::of_many(puts);
        let (mut requests, mut results) = (Vec::with_capacity(run.len()), Vec::with_capacity(run.len()));
        for change in run {
            match self.step(change, indices, numbering) {
                Step::Settled(result) => results.push(Some(result)),
                Step::Request(request) => {
                    requests.push(request);
                    results.push(None);
                }
            }
        }
        let answers = self.netlink.transact(&requests).await;
        for (result, answer) in results.iter_mut().filter(|result| result.is_none()).zip(answers) {
            *result = Some(answer.map_err(ChangeError::from));
        }
        let mut results: Vec<_> = results.into_iter().flatten().collect();
        self.delete_spread(run, indices, &mut results).await;
        for (change, result) in run.iter().zip(&mut results) {
            self.settle(change, result);
        }
        results
    }

    fn step(&self, change: &Change, indices: &Indices, numbering: Numbering) -> Step {
        if let Some(request) = self.given_up.request(change) {
            return Step::Request(request);
        }
        match change {
            // A daemon of another network still sends there; the entry is its own now.
            Change::DeleteFdb { mac, public_ip } if self.shared.contains(&(Family::of(*public_ip), *mac)) => {
                return Step::Settled(Ok(()));
            }
            Change::PutDirectRoute { subnet, route } => {
                return Step::Request(route::put_direct(*subnet, *route));
            }
            Change::DeleteDirectRoute { subnet, route } => {
                return Step::Request(route::delete_direct(*subnet, *route));
            }
            _ => {}
        }
        let index = change.device().and_then(|family| indices.get(&family)).cloned().unwrap_or(Ok(None));
        match index.map(|index| index.and_then(|index| request(index, change, numbering))) {
            Ok(Some(request)) => Step::Request(request),
            Ok(None) if change.is_removal() => Step::Settled(Ok(())),
            Ok(None) => Step::Settled(Err(ChangeError::Blocked)),
            Err(error) => Step::Settled(Err(error.into())),
        }
    }

    /// Looks for routes that were to be deleted, and not found as those of a few, as those of many.
    async fn delete_spread(
        &mut self,
        run: &[Change],
        indices: &Indices,
        results: &mut [Result<(), ChangeError>],
    ) {
        let again: Vec<(usize, Request)> = run
            .iter()
            .zip(&*results)
            .enumerate()
            .filter(|(_, (change, result))| {
                matches!(change, Change::DeleteRoute { .. })
                    && matches!(result, Err(ChangeError::Netlink(error)) if is_gone(error))
                    && self.given_up.request(change).is_none()
            })
            .filter_map(|(n, (change, _))| {
                let index = indices.get(&change.device()?)?.as_ref().ok().copied().flatten()?;
                Some((n, request(index, change, Numbering::Spread)?))
            })
            .collect();
        let (numbers, requests): (Vec<usize>, Vec<Request>) = again.into_iter().unzip();
        for (n, answer) in numbers.into_iter().zip(self.netlink.transact(&requests).await) {
            results[n] = answer.map_err(ChangeError::from);
        }
    }

    /// Takes what is gone for removed, explains refusals, and keeps in mind what nobody would know for ours.
    fn settle(&mut self, change: &Change, result: &mut Result<(), ChangeError>) {
        if let Err(ChangeError::Netlink(error)) = result {
            match change {
                change if change.is_removal() && is_gone(error) => *result = Ok(()),
                Change::PutDirectRoute { route, .. } => {
                    *error = unreachable_gateway(*route, error.clone());
                }
                _ => {}
            }
        }
        if matches!(result, Err(ChangeError::Blocked)) {
            return;
        }
        match change {
            Change::PutDirectRoute { subnet, .. } if result.is_ok() => drop(self.direct.insert(*subnet)),
            Change::DeleteDirectRoute { subnet, .. } if result.is_ok() => drop(self.direct.remove(subnet)),
            Change::PutRoute { subnet, .. } => self.note_beyond(subnet.network(), true, result.is_ok()),
            Change::PutNeighbour { address, .. } => self.note_beyond(*address, true, result.is_ok()),
            // The last of a subnet to go.
            Change::DeleteNeighbour(address) => self.note_beyond(*address, false, result.is_ok()),
            _ => {}
        }
    }

    /// Keeps in mind what is put on a device though it is of none of its networks.
    fn note_beyond(&mut self, base: IpAddr, put: bool, done: bool) {
        let taken_in = self.overlays.get(&Family::of(base)).is_none_or(|overlay| overlay.takes_in(base));
        if put && !taken_in {
            self.beyond.insert(base);
        } else if done {
            self.beyond.remove(&base);
        }
    }
}
