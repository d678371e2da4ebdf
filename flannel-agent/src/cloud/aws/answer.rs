//! What EC2 and STS answer, XML, and credentials as others write them, too.

use std::net::IpAddr;

use serde::Deserialize;

use super::tables::{Route, Table};

/// A list of EC2's: `<xSet><item>...</item></xSet>`.
#[derive(Debug, Deserialize)]
#[serde(default)]
pub(super) struct Set<T> {
    pub(super) item: Vec<T>,
}

impl<T> Default for Set<T> {
    fn default() -> Self {
        Self { item: Vec::new() }
    }
}

/// Of `DescribeInstances`.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct Instances {
    pub(super) reservation_set: Set<Reservation>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct Reservation {
    pub(super) instances_set: Set<Instance>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct Instance {
    pub(super) network_interface_set: Set<NetworkInterface>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct NetworkInterface {
    pub(super) network_interface_id: String,
    pub(super) subnet_id: String,
    pub(super) vpc_id: String,
    pub(super) source_dest_check: Option<bool>,
    private_ip_address: Option<IpAddr>,
    private_ip_addresses_set: Set<PrivateAddress>,
    ipv6_addresses_set: Set<Ipv6Address>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct PrivateAddress {
    private_ip_address: Option<IpAddr>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Ipv6Address {
    ipv6_address: Option<IpAddr>,
}

impl NetworkInterface {
    /// All its addresses, the primary one first.
    pub(super) fn addresses(&self) -> Vec<IpAddr> {
        let more = self.private_ip_addresses_set.item.iter().filter_map(|address| address.private_ip_address);
        let v6 = self.ipv6_addresses_set.item.iter().filter_map(|address| address.ipv6_address);
        let mut all: Vec<IpAddr> = Vec::new();
        for address in self.private_ip_address.into_iter().chain(more).chain(v6) {
            if !all.contains(&address) {
                all.push(address);
            }
        }
        all
    }
}

/// Of `DescribeRouteTables`.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct RouteTables {
    pub(super) route_table_set: Set<RouteTable>,
    pub(super) next_token: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct RouteTable {
    route_table_id: String,
    route_set: Set<RawRoute>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct RawRoute {
    destination_cidr_block: Option<String>,
    destination_ipv6_cidr_block: Option<String>,
    network_interface_id: Option<String>,
    state: Option<String>,
}

impl From<RouteTable> for Table {
    fn from(table: RouteTable) -> Self {
        // A route to a list of prefixes is none of ours.
        let route = |raw: RawRoute| {
            let to = raw.destination_cidr_block.or(raw.destination_ipv6_cidr_block)?;
            Some(Route {
                to: to.parse().ok()?,
                interface: raw.network_interface_id.filter(|id| !id.is_empty()),
                blackhole: raw.state.as_deref() == Some("blackhole"),
            })
        };
        Self {
            id: table.route_table_id,
            routes: table.route_set.item.into_iter().filter_map(route).collect(),
        }
    }
}

/// Of whatever changes something.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Changed {
    #[serde(rename = "return")]
    pub(super) done: Option<bool>,
}

/// Of `AssumeRoleWithWebIdentity`.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct AssumedRole {
    #[serde(rename = "AssumeRoleWithWebIdentityResult")]
    pub(super) result: AssumedRoleResult,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct AssumedRoleResult {
    #[serde(rename = "Credentials")]
    pub(super) credentials: Wire,
}

/// As metadata, containers' endpoints and STS write them.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub(super) struct Wire {
    pub(super) access_key_id: String,
    pub(super) secret_access_key: String,
    #[serde(alias = "SessionToken")]
    pub(super) token: Option<String>,
    pub(super) expiration: Option<String>,
    /// Of metadata: anything but `Success` is an error.
    pub(super) code: Option<String>,
    pub(super) message: Option<String>,
}

/// An error: of EC2 `<Response><Errors><Error>`, of STS `<ErrorResponse><Error>`.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub(super) struct Fault {
    errors: Faults,
    error: Option<Refusal>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
struct Faults {
    error: Vec<Refusal>,
}

/// What it says.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(default, rename_all = "PascalCase")]
pub(super) struct Refusal {
    pub(super) code: String,
    pub(super) message: String,
}

impl Fault {
    /// The error in `body`, if it is one.
    pub(super) fn read(body: &[u8]) -> Option<Refusal> {
        let fault: Self = quick_xml::de::from_reader(body).ok()?;
        fault.errors.error.into_iter().next().or(fault.error).filter(|said| !said.code.is_empty())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn instances_and_tables() {
        let xml = br#"<?xml version="1.0" encoding="UTF-8"?>
            <DescribeInstancesResponse xmlns="http://ec2.amazonaws.com/doc/2016-11-15/"><requestId>1</requestId>
            <reservationSet><item><reservationId>r-1</reservationId><instancesSet><item><instanceId>i-1</instanceId>
            <networkInterfaceSet><item><networkInterfaceId>eni-1</networkInterfaceId><subnetId>subnet-1</subnetId>
            <vpcId>vpc-1</vpcId><sourceDestCheck>true</sourceDestCheck><privateIpAddress>10.0.0.5</privateIpAddress>
            <privateIpAddressesSet><item><privateIpAddress>10.0.0.5</privateIpAddress><primary>true</primary></item>
            <item><privateIpAddress>10.0.0.6</privateIpAddress></item></privateIpAddressesSet>
            <ipv6AddressesSet><item><ipv6Address>2001:db8::5</ipv6Address></item></ipv6AddressesSet></item>
            </networkInterfaceSet></item></instancesSet></item></reservationSet></DescribeInstancesResponse>"#;
        let instances: Instances = quick_xml::de::from_reader(&xml[..]).unwrap();
        let interface =
            &instances.reservation_set.item[0].instances_set.item[0].network_interface_set.item[0];
        assert_eq!(
            (interface.network_interface_id.as_str(), interface.source_dest_check),
            ("eni-1", Some(true))
        );
        let expected: Vec<IpAddr> =
            ["10.0.0.5", "10.0.0.6", "2001:db8::5"].iter().map(|text| text.parse().unwrap()).collect();
        assert_eq!(interface.addresses(), expected);

        let xml = br#"<DescribeRouteTablesResponse><routeTableSet><item><routeTableId>rtb-1</routeTableId><routeSet>
            <item><destinationCidrBlock>10.0.0.0/16</destinationCidrBlock><gatewayId>local</gatewayId>
            <state>active</state><origin>CreateRouteTable</origin></item>
            <item><destinationCidrBlock>10.244.7.0/24</destinationCidrBlock><instanceId>i-2</instanceId>
            <networkInterfaceId>eni-2</networkInterfaceId><state>blackhole</state></item>
            <item><destinationIpv6CidrBlock>fd00::/64</destinationIpv6CidrBlock>
            <networkInterfaceId>eni-3</networkInterfaceId><state>active</state></item>
            <item><destinationPrefixListId>pl-1</destinationPrefixListId><gatewayId>vpce-1</gatewayId></item>
            </routeSet></item></routeTableSet></DescribeRouteTablesResponse>"#;
        let tables: RouteTables = quick_xml::de::from_reader(&xml[..]).unwrap();
        let tables: Vec<Table> = tables.route_table_set.item.into_iter().map(Table::from).collect();
        assert_eq!(tables[0].routes.len(), 3);
        assert!(tables[0].routes[1].blackhole && tables[0].routes[0].interface.is_none());
    }

    #[test]
    fn faults_of_ec2_and_sts() {
        for xml in [
            "<Response><Errors><Error><Code>UnauthorizedOperation</Code><Message>no</Message></Error></Errors>\
             <RequestID>1</RequestID></Response>",
            "<ErrorResponse><Error><Type>Sender</Type><Code>UnauthorizedOperation</Code><Message>no</Message></Error>\
             </ErrorResponse>",
        ] {
            let said = Fault::read(xml.as_bytes()).unwrap();
            assert_eq!((said.code.as_str(), said.message.as_str()), ("UnauthorizedOperation", "no"));
        }
        assert_eq!(Fault::read(b"<html>busy</html>"), None);
    }

    proptest! {
        #[test]
        fn never_panics(text in "\\PC{0,80}|(<|>|/|item|Errors|Error|Code|[a-z0-9]){0,30}") {
            let _ = Fault::read(text.as_bytes());
            let _ = quick_xml::de::from_reader::<_, Instances>(text.as_bytes());
            let _ = quick_xml::de::from_reader::<_, RouteTables>(text.as_bytes());
        }
    }
}
