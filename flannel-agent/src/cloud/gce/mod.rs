//! Google's cloud: a route per node in its network, as flannel's gce backend makes them.

use std::fmt;

use ipnetwork::IpNetwork;
use tokio::sync::Mutex;
use tracing::{info, warn};

use self::{
    compute::{Compute, NewRoute},
    metadata::Metadata,
    tokens::Tokens,
};
use super::{CloudError, CloudRoutes, Share, Variable, http::Http};
pub use compute::ComputeError;
pub use metadata::MetadataError;
pub use tokens::TokenError;

mod compute;
mod key;
mod metadata;
mod tokens;

/// As upstream's routes have it: others can be preferred by a lower one.
const PRIORITY: u32 = 1000;

/// Why routes cannot be kept.
#[derive(Debug, thiserror::Error)]
pub enum GceError {
    /// This machine's metadata cannot be read.
    #[error(transparent)]
    Metadata(#[from] MetadataError),
    /// The API does not answer, or refuses.
    #[error(transparent)]
    Compute(#[from] ComputeError),
}

impl CloudError for GceError {
    fn may_pass(&self) -> bool {
        match self {
            Self::Metadata(error) => error.may_pass(),
            Self::Compute(error) => error.may_pass(),
        }
    }
}

/// The routes of a network, as far as they concern this node.
pub struct GceRoutes {
    http: Http,
    variable: Variable,
    shares: Vec<Share>,
    /// What was found once.
    found: Mutex<Option<Found>>,
}

/// This machine, as it does not change while it runs.
struct Found {
    compute: Compute,
    /// The URL by which the API names our network.
    network: String,
    /// And this instance.
    instance: String,
}

impl fmt::Debug for GceRoutes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GceRoutes").field("shares", &self.shares).finish_non_exhaustive()
    }
}

impl GceRoutes {
    /// Routes for `shares` to this instance.
    ///
    /// # Errors
    /// When there is no TLS to be had.
    pub fn new(shares: Vec<Share>, variable: Variable) -> Result<Self, GceError> {
        let http = Http::new().map_err(MetadataError::from)?;
        Ok(Self { http, variable, shares, found: Mutex::default() })
    }

    async fn find(&self) -> Result<Found, GceError> {
        let metadata = Metadata::new(self.http.clone(), &self.variable);
        let last = |path: String| path.rsplit('/').next().unwrap_or_default().to_owned();
        let network = last(metadata.get("instance/network-interfaces/0/network").await?);
        let project = metadata.get("project/project-id").await?;
        let zone = last(metadata.get("instance/zone").await?);
        let host = metadata.get("instance/hostname").await?;
        let name = host.split('.').next().unwrap_or_default().to_owned();
        let tokens = Tokens::new(self.http.clone(), metadata, self.variable.clone());
        let compute = Compute::new(self.http.clone(), tokens, &project, &self.variable);
        let network = compute.network(&network).await?;
        let instance = compute.instance(&zone, &name).await?;
        if !instance.can_ip_forward {
            warn!(
                instance = name,
                "this instance may not forward packets, and the cloud drops those of pods: create it with --can-ip-forward"
            );
        }
        info!(project, zone, instance = name, network = network.name, "this node is an instance of GCE");
        Ok(Found { compute, network: network.self_link, instance: instance.self_link })
    }
}

/// The name of the route to `subnet`, as upstream has it: `flannel-10-1-2-0-24`.
fn name_of(subnet: IpNetwork) -> String {
    format!("flannel-{subnet}").replace(['.', '/', ':'], "-")
}

/// Whether two URLs name one thing: the host and the version of the API may be written otherwise.
fn same(a: &str, b: &str) -> bool {
    let from_project = |url: &str| url.find("/projects/").map(|at| url.split_at(at).1.to_owned());
    a == b || from_project(a).is_some_and(|a| Some(a) == from_project(b))
}

impl CloudRoutes for GceRoutes {
    type Error = GceError;

    async fn ensure(&self) -> Result<Vec<String>, GceError> {
        let mut kept = self.found.lock().await;
        let found = match kept.as_mut() {
            Some(found) => found,
            None => kept.insert(self.find().await?),
        };
        let mut said = Vec::new();
        for Share { subnet, .. } in &self.shares {
            let name = name_of(*subnet);
            if let Some(route) = found.compute.route(&name).await? {
                let ours = route.next_hop_instance.is_some_and(|hop| same(&hop, &found.instance));
                if ours && route.dest_range == subnet.to_string() && same(&route.network, &found.network) {
                    continue;
                }
                // There is no other way: a route of this API cannot be changed.
                found.compute.delete_route(&name).await?;
                said.push(format!("no route {name} to elsewhere"));
            }
            let route = NewRoute {
                name: &name,
                description: "made by flannel",
                network: &found.network,
                dest_range: subnet.to_string(),
                priority: PRIORITY,
                next_hop_instance: &found.instance,
            };
            found.compute.insert_route(&route).await?;
            said.push(format!("a route {name}"));
        }
        Ok(said)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn routes_are_named_as_upstreams() {
        assert_eq!(name_of("10.1.2.0/24".parse().unwrap()), "flannel-10-1-2-0-24");
    }

    #[test]
    fn urls_of_one_thing() {
        let of = |start: &str| format!("{start}/projects/p/zones/z/instances/i");
        assert!(same(
            &of("https://www.googleapis.com/compute/v1"),
            &of("https://compute.googleapis.com/compute/v1")
        ));
        assert!(!same(&of("https://a"), "https://a/projects/p/zones/z/instances/j"));
        assert!(!same("x", "y"));
    }
}
