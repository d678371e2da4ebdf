//! `aws-vpc`: routes in Amazon's VPC.

use std::{net::IpAddr, sync::Arc, time::Duration};

use futures::future::{BoxFuture, ready};

use super::{
    AnyBackend, Backend, BackendError, OptionError, OptionValue, Options, Registered, Start,
    kind::{Kind, Support},
};
use crate::{
    cloud::{self, Kept, Share, aws::AwsRoutes},
    values::{Family, gojson::Object},
};

/// Its line in the table.
pub(super) const KIND: Kind = Kind {
    name: "aws-vpc",
    what: "routes of Amazon's VPC",
    support: Support::Built(|object| Ok(Arc::new(AwsVpcOptions::parse(object)?))),
};

/// Options of the aws-vpc backend.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AwsVpcOptions {
    /// `RouteTableID`: the tables; none for that of the subnet of this node's interface.
    pub route_tables: Vec<String>,
}

impl AwsVpcOptions {
    fn parse(object: &Object<'_>) -> Result<Self, OptionError> {
        const FIELD: &str = "Backend.RouteTableID";
        let Some(raw) = object.raw("RouteTableID") else { return Ok(Self::default()) };
        let expected = "the ID of a route table, as \"rtb-0a1b2c3d\", or a list of such";
        let refuse = || object.refuse("RouteTableID", expected, raw.get());
        let tables = match serde_json::from_str::<serde_json::Value>(raw.get()) {
            Ok(serde_json::Value::Null) => Vec::new(),
            Ok(serde_json::Value::String(one)) if one.is_empty() => Vec::new(),
            Ok(serde_json::Value::String(one)) => vec![one],
            Ok(list @ serde_json::Value::Array(_)) => {
                serde_json::from_value::<Vec<String>>(list).map_err(|_| refuse())?
            }
            _ => return Err(refuse().into()),
        };
        let mut route_tables: Vec<String> = Vec::new();
        for table in tables {
            if !table.starts_with("rtb-") {
                let problem = "is not the ID of a route table: write it as \"rtb-0a1b2c3d\"";
                return Err(OptionError::Value { field: FIELD, value: format!("{table:?}"), problem });
            }
            if !route_tables.contains(&table) {
                route_tables.push(table);
            }
        }
        Ok(Self { route_tables })
    }
}

impl Options for AwsVpcOptions {
    fn kind(&self) -> &'static str {
        KIND.name
    }

    fn values(&self) -> Vec<OptionValue> {
        let tables = Some(self.route_tables.join(",")).filter(|tables| !tables.is_empty());
        vec![OptionValue::unless_unset("Backend.RouteTableID", tables)]
    }

    fn adopt<'a>(&'a self, _: Start<'a>) -> BoxFuture<'a, Result<AnyBackend, BackendError>> {
        Box::pin(ready(Ok(AnyBackend::new(AwsVpc { options: self.clone(), routes: Kept::default() }))))
    }
}

/// Routes in Amazon's VPC: its routers carry packets of pods.
#[derive(Debug)]
pub struct AwsVpc {
    options: AwsVpcOptions,
    routes: Kept<(IpAddr, Vec<Share>), AwsRoutes>,
}

impl AwsVpc {
    async fn ensure(&self, node: &Registered) -> Result<(), BackendError> {
        let address = node.external.address_of(Family::V4).or_else(|| node.external.address_of(Family::V6));
        let Some(address) = address else {
            return Err(BackendError::Other(format!("{} has no address", node.external.name)));
        };
        let shares = cloud::shares(&node.subnets);
        let new = || {
            AwsRoutes::new(self.options.route_tables.clone(), address, shares.clone(), cloud::environment())
        };
        let refused = |error: cloud::aws::AwsError| BackendError::Other(format!("aws-vpc: {error}"));
        let routes = self.routes.of((address, shares.clone()), new).await.map_err(refused)?;
        cloud::settle(&*routes).await.map_err(refused)
    }
}

impl Backend for AwsVpc {
    fn options(&self) -> &dyn Options {
        &self.options
    }

    /// Upstream publishes none.
    fn published(&self) -> &'static str {
        ""
    }

    fn follows_peers(&self) -> bool {
        false
    }

    fn kernel_only(&self) -> Option<&'static str> {
        Some("Amazon's routers carry packets between nodes")
    }

    fn register<'a>(&'a self, node: &'a Registered) -> BoxFuture<'a, Result<(), BackendError>> {
        Box::pin(self.ensure(node))
    }

    fn register_again(&self) -> Option<Duration> {
        Some(cloud::LOOK)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(json: &str) -> Result<Vec<String>, String> {
        let object = Object::parse("Backend.", json).unwrap();
        AwsVpcOptions::parse(&object).map(|options| options.route_tables).map_err(|error| error.to_string())
    }

    #[test]
    fn route_tables_are_one_or_several() {
        assert_eq!(parse("{}"), Ok(Vec::new()));
        assert_eq!(parse(r#"{"RouteTableID":""}"#), Ok(Vec::new()));
        assert_eq!(parse(r#"{"RouteTableID":"rtb-1"}"#), Ok(vec!["rtb-1".to_owned()]));
        assert_eq!(
            parse(r#"{"routetableid":["rtb-1","rtb-2","rtb-1"]}"#),
            Ok(vec!["rtb-1".to_owned(), "rtb-2".to_owned()])
        );
    }

    #[test]
    fn errors_name_the_field() {
        for json in
            [r#"{"RouteTableID":1}"#, r#"{"RouteTableID":["rtb-1",2]}"#, r#"{"RouteTableID":"eni-1"}"#]
        {
            let error = parse(json).unwrap_err();
            assert!(error.starts_with("Backend.RouteTableID: ") && error.contains("rtb-0a1b2c3d"), "{error}");
        }
    }
}
