//! Amazon's VPC: a route per node in its route tables, as flannel's aws-vpc backend makes them.

use std::{fmt, net::IpAddr};

use tracing::{info, warn};

use self::{
    credentials::Chain,
    ec2::{Ec2, Interface},
    metadata::Metadata,
    tables::Change,
};
use super::{CloudError, CloudRoutes, Share, Variable, http::Http};
pub use credentials::CredentialsError;
pub use ec2::Ec2Error;
pub use metadata::MetadataError;

mod advice;
mod answer;
mod credentials;
mod ec2;
mod metadata;
mod region;
mod tables;

/// Why routes cannot be kept.
#[derive(Debug, thiserror::Error)]
pub enum AwsError {
    /// This machine's metadata cannot be read.
    #[error(transparent)]
    Metadata(#[from] MetadataError),
    /// The API does not answer, or refuses.
    #[error(transparent)]
    Ec2(#[from] Ec2Error),
    /// No interface of this machine has our address.
    #[error(
        "instance {instance} has no network interface with the address {address}: give the address that EC2 knows, by \
         --iface or --public-ip. It has {found}"
    )]
    NoInterface {
        /// This machine.
        instance: String,
        /// Our address on the external interface.
        address: IpAddr,
        /// What it has instead.
        found: String,
    },
    /// No table was named, and none is associated.
    #[error(
        "subnet {subnet} of VPC {vpc} has no route table, and the VPC no main one: name it by \
         \"Backend\":{{\"Type\":\"aws-vpc\",\"RouteTableID\":\"rtb-...\"}}"
    )]
    NoTable {
        /// Of our interface.
        subnet: String,
        /// Of that subnet.
        vpc: String,
    },
    /// Some of the named tables are not there.
    #[error("RouteTableID: EC2 has no {0}: correct the network config")]
    MissingTable(String),
}

impl CloudError for AwsError {
    fn may_pass(&self) -> bool {
        match self {
            Self::Metadata(error) => error.may_pass(),
            Self::Ec2(error) => error.may_pass(),
            Self::NoInterface { .. } | Self::NoTable { .. } | Self::MissingTable(_) => false,
        }
    }
}

/// The route tables of a VPC, as far as they concern this node.
pub struct AwsRoutes {
    http: Http,
    variable: Variable,
    /// `RouteTableID`; empty for the table of our subnet.
    tables: Vec<String>,
    /// Our address on the external interface.
    address: IpAddr,
    shares: Vec<Share>,
    /// What of the environment was found once.
    found: tokio::sync::Mutex<Option<Found>>,
    /// SourceDestCheck could not be turned off, which was said.
    warned: std::sync::atomic::AtomicBool,
}

/// This machine, as it does not change while it runs.
struct Found {
    ec2: Ec2,
    instance: String,
}

impl fmt::Debug for AwsRoutes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AwsRoutes")
            .field("tables", &self.tables)
            .field("address", &self.address)
            .field("shares", &self.shares)
            .finish_non_exhaustive()
    }
}

impl AwsRoutes {
    /// Routes in `tables` (none: in the one of our subnet) for `shares` to the interface with `address`. Endpoints and
    /// credentials are found as Amazon's tools find them.
    ///
    /// # Errors
    /// When there is no TLS to be had.
    pub fn new(
        tables: Vec<String>,
        address: IpAddr,
        shares: Vec<Share>,
        variable: Variable,
    ) -> Result<Self, AwsError> {
        let http = Http::new().map_err(MetadataError::from)?;
        let warned = std::sync::atomic::AtomicBool::new(false);
        Ok(Self { http, variable, tables, address, shares, found: tokio::sync::Mutex::default(), warned })
    }

    async fn find(&self) -> Result<Found, AwsError> {
        let metadata = Metadata::new(self.http.clone(), &self.variable);
        let region = match (self.variable)("AWS_REGION").or_else(|| (self.variable)("AWS_DEFAULT_REGION")) {
            Some(region) => region,
            None => metadata.region().await?,
        };
        let instance = metadata.get("instance-id").await?;
        let chain = Chain::new(self.http.clone(), metadata, self.variable.clone(), &region);
        let ec2 = Ec2::new(self.http.clone(), chain, &region, &self.variable);
        info!(instance, region, endpoint = ec2.endpoint(), "this node is an instance of EC2");
        Ok(Found { ec2, instance })
    }

    async fn interface(&self, found: &Found) -> Result<Interface, AwsError> {
        let interfaces = found.ec2.interfaces(&found.instance).await?;
        let texts: Vec<String> = interfaces.iter().map(ToString::to_string).collect();
        interfaces.into_iter().find(|interface| interface.addresses.contains(&self.address)).ok_or_else(
            || {
                let found_text = if texts.is_empty() { "none".to_owned() } else { texts.join(", ") };
                AwsError::NoInterface {
                    instance: found.instance.clone(),
                    address: self.address,
                    found: found_text,
                }
            },
        )
    }

    /// Packets of pods have addresses that EC2 does not know: it drops them unless the interface may forward.
    async fn allow_forwarding(&self, ec2: &Ec2, interface: &Interface) -> Option<String> {
        use std::sync::atomic::Ordering;
        if !interface.source_dest_check {
            return None;
        }
        match ec2.disable_source_dest_check(&interface.id).await {
            Ok(()) => {
                self.warned.store(false, Ordering::Relaxed);
                Some(format!("{}: SourceDestCheck is off", interface.id))
            }
            Err(error) => {
                if !self.warned.swap(true, Ordering::Relaxed) {
                    warn!(
                        interface = interface.id, %error,
                        "SourceDestCheck is on, and EC2 drops packets of pods: turn it off, or grant the right"
                    );
                }
                None
            }
        }
    }

    async fn tables(&self, ec2: &Ec2, interface: &Interface) -> Result<Vec<tables::Table>, AwsError> {
        if !self.tables.is_empty() {
            let found = ec2.tables(&[("RouteTableId", &self.tables)], &[]).await?;
            let missing: Vec<&str> = self
                .tables
                .iter()
                .filter(|id| !found.iter().any(|table| table.id == **id))
                .map(String::as_str)
                .collect();
            return match missing.is_empty() {
                true => Ok(found),
                false => Err(AwsError::MissingTable(missing.join(", "))),
            };
        }
        let of_subnet = ec2.tables(&[], &[("association.subnet-id", &interface.subnet)]).await?;
        if !of_subnet.is_empty() {
            return Ok(of_subnet);
        }
        let main = ec2.tables(&[], &[("association.main", "true"), ("vpc-id", &interface.vpc)]).await?;
        match main.is_empty() {
            false => Ok(main),
            true => Err(AwsError::NoTable { subnet: interface.subnet.clone(), vpc: interface.vpc.clone() }),
        }
    }
}

impl CloudRoutes for AwsRoutes {
    type Error = AwsError;

    async fn ensure(&self) -> Result<Vec<String>, AwsError> {
        let mut kept = self.found.lock().await;
        let found = match kept.as_mut() {
            Some(found) => found,
            None => kept.insert(self.find().await?),
        };
        let interface = self.interface(found).await?;
        let mut said: Vec<String> = self.allow_forwarding(&found.ec2, &interface).await.into_iter().collect();
        for table in self.tables(&found.ec2, &interface).await? {
            for change in tables::changes(&table, &self.shares, &interface.id) {
                match (&change, found.ec2.change(&table.id, &change, &interface.id).await) {
                    (_, Ok(())) => said.push(format!("{}: {change}", table.id)),
                    // Another node was faster to remove it.
                    (Change::Delete { .. }, Err(error)) if error.is("InvalidRoute.NotFound") => {}
                    // The answer to an earlier attempt was lost: the next look tells.
                    (Change::Create { .. }, Err(error)) if error.is("RouteAlreadyExists") => {}
                    (Change::Delete { .. }, Err(error)) => {
                        // Of a node that is gone: in nobody's way.
                        warn!(table = table.id, %change, %error, "this route leads nowhere, and stays");
                    }
                    (_, Err(error)) => return Err(error.into()),
                }
            }
        }
        Ok(said)
    }
}
