//! Objects of kinds that only one backend knows: a device that is no VXLAN device, a peer of WireGuard, a connection of
//! a daemon, a command that was run.
//!
//! The backend plans them ([`super::Backend::objects`], [`super::Backend::peer_objects`]) and brings what makes them
//! ([`ObjectDriver`]). In between they are objects of the plan like all others: what is observed and what is planned are
//! compared, what differs is put right, what fails is tried again, and the log has a line for each.

use std::{any::Any, collections::BTreeMap, fmt, sync::Arc};

use futures::future::BoxFuture;
use ipnetwork::IpNetwork;

use super::BackendError;

/// Which of a backend's objects. Those of an earlier stage are made before, and go after, those of a later one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ObjectId {
    /// What it is for.
    pub stage: Stage,
    /// The network it carries, or the pod subnet of the peer it is for.
    pub network: IpNetwork,
}

/// The order of a backend's objects.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// What everything else is on.
    Device,
    /// What a peer's packets need once they are there.
    Peer,
    /// What leads packets there.
    Route,
}

/// What an object is: equal where nothing has to be done, and shown as the log does, to follow "set up" or "remove".
/// Secrets are compared and not shown.
pub trait Object: Any + fmt::Debug + fmt::Display + Send + Sync {
    /// Whether `other` is the same.
    fn same(&self, other: &dyn Object) -> bool;
}

impl<T: Any + Eq + fmt::Debug + fmt::Display + Send + Sync> Object for T {
    fn same(&self, other: &dyn Object) -> bool {
        (other as &dyn Any).downcast_ref::<T>().is_some_and(|other| self == other)
    }
}

/// An object of any backend.
#[derive(Clone)]
pub struct AnyObject(Arc<dyn Object>);

impl AnyObject {
    /// Some object.
    pub fn new(object: impl Object) -> Self {
        Self(Arc::new(object))
    }

    /// The object, if it is a `T`: each backend knows its own.
    pub fn get<T: Object>(&self) -> Option<&T> {
        (&*self.0 as &dyn Any).downcast_ref()
    }
}

impl PartialEq for AnyObject {
    fn eq(&self, other: &Self) -> bool {
        self.0.same(&*other.0)
    }
}

impl Eq for AnyObject {}

impl fmt::Debug for AnyObject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for AnyObject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// Objects of one backend.
pub type Objects = BTreeMap<ObjectId, AnyObject>;

/// What makes, sees and removes the objects of one backend.
pub trait ObjectDriver: Send {
    /// What is there, of an earlier process, too: only what is recognisable as ours. Also called each second, as most
    /// of these give no notice when somebody changes them.
    ///
    /// # Errors
    /// When it cannot be told.
    fn observe(&mut self) -> BoxFuture<'_, Result<Objects, BackendError>>;

    /// Makes an object, or brings the one there is into line. What is there already is no error.
    ///
    /// # Errors
    /// When it is not there afterwards. It is tried again, ever more slowly.
    fn put<'a>(&'a mut self, id: ObjectId, object: &'a AnyObject) -> BoxFuture<'a, Result<(), BackendError>>;

    /// Removes an object that was observed as `object`. What is gone already is no error.
    ///
    /// # Errors
    /// When it is still there afterwards. It is tried again, ever more slowly.
    fn delete<'a>(
        &'a mut self,
        id: ObjectId,
        object: &'a AnyObject,
    ) -> BoxFuture<'a, Result<(), BackendError>>;
}
