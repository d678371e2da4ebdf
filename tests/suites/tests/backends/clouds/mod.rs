//! Clouds whose routers carry packets between nodes: a route for each node's subnet, by the cloud's API.
#![expect(clippy::unwrap_used, reason = "a failure in a function of a test is the test's failure")]

use std::{collections::BTreeMap, sync::Arc};

use flannel_agent::cloud::{Share, Variable};

mod aws;
mod gce;

/// What a node of 10.244.0.0/16 wants.
fn share(subnet: &str) -> Share {
    Share { network: "10.244.0.0/16".parse().unwrap(), subnet: subnet.parse().unwrap() }
}

fn variables(all: &[(&str, &str)]) -> Variable {
    let all: BTreeMap<String, String> =
        all.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    Arc::new(move |name| all.get(name).cloned())
}
