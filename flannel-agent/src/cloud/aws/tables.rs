//! What is to be changed in a route table: a pure function of its routes.

use std::fmt;

use ipnetwork::IpNetwork;

use crate::cloud::Share;

/// A route table.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Table {
    pub(super) id: String,
    pub(super) routes: Vec<Route>,
}

/// A route of it, to a prefix.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Route {
    pub(super) to: IpNetwork,
    /// The interface that packets are sent to, if it is one.
    pub(super) interface: Option<String>,
    /// What they are sent to is gone.
    pub(super) blackhole: bool,
}

/// A step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Change {
    /// A route of ours that is not there.
    Create { to: IpNetwork },
    /// A route to our subnet that leads elsewhere; without a gap between the old and the new.
    Replace { to: IpNetwork },
    /// A route of flannel's that leads nowhere.
    Delete { to: IpNetwork },
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Create { to } => write!(f, "a route to {to}"),
            Self::Replace { to } => write!(f, "the route to {to}, which led elsewhere"),
            Self::Delete { to } => write!(f, "no route to {to}, which led nowhere"),
        }
    }
}

/// The steps to routes for `shares` to our `interface`, ours first. Only inside the cluster's network is anything removed.
pub(super) fn changes(table: &Table, shares: &[Share], interface: &str) -> Vec<Change> {
    let mut changes = Vec::new();
    for Share { subnet, .. } in shares {
        match table.routes.iter().find(|route| route.to == *subnet) {
            None => changes.push(Change::Create { to: *subnet }),
            Some(route) if route.blackhole || route.interface.as_deref() != Some(interface) => {
                changes.push(Change::Replace { to: *subnet });
            }
            Some(_) => {}
        }
    }
    for route in table.routes.iter().filter(|route| route.blackhole) {
        let ours = shares.iter().any(|share| share.subnet == route.to);
        let inside = shares.iter().any(|share| is_inside(route.to, share.network));
        if inside && !ours {
            changes.push(Change::Delete { to: route.to });
        }
    }
    changes
}

fn is_inside(inner: IpNetwork, outer: IpNetwork) -> bool {
    inner.prefix() >= outer.prefix() && outer.contains(inner.network())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn net(text: &str) -> IpNetwork {
        text.parse().unwrap()
    }

    fn route(to: &str, interface: &str, blackhole: bool) -> Route {
        Route { to: net(to), interface: Some(interface.to_owned()), blackhole }
    }

    fn of(routes: Vec<Route>) -> Vec<Change> {
        let table = Table { id: "rtb-1".to_owned(), routes };
        let share = Share { network: net("10.244.0.0/16"), subnet: net("10.244.7.0/24") };
        changes(&table, &[share], "eni-1")
    }

    #[test]
    fn what_is_right_stays() {
        let other = route("10.244.8.0/24", "eni-2", false);
        assert_eq!(of(vec![route("10.244.7.0/24", "eni-1", false), other]), []);
    }

    #[test]
    fn what_is_absent_or_wrong_is_written() {
        let to = net("10.244.7.0/24");
        assert_eq!(of(Vec::new()), [Change::Create { to }]);
        assert_eq!(of(vec![route("10.244.7.0/24", "eni-2", false)]), [Change::Replace { to }]);
        assert_eq!(of(vec![route("10.244.7.0/24", "eni-1", true)]), [Change::Replace { to }]);
        let to_gateway = Route { to, interface: None, blackhole: false };
        assert_eq!(of(vec![to_gateway]), [Change::Replace { to }]);
    }

    #[test]
    fn blackholes_go_only_inside_the_network() {
        let ours = route("10.244.7.0/24", "eni-1", false);
        let inside = route("10.244.9.0/24", "eni-9", true);
        let around = route("10.0.0.0/8", "eni-9", true);
        let beside = route("10.245.9.0/24", "eni-9", true);
        assert_eq!(
            of(vec![ours, inside, around, beside, route("10.244.8.0/24", "eni-8", false)]),
            [Change::Delete { to: net("10.244.9.0/24") }]
        );
    }
}
