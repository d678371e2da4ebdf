//! EC2's Query API: a form in, XML out, each request signed.

use std::{
    fmt,
    net::IpAddr,
    time::{Duration, SystemTime},
};

use aws_credential_types::Credentials as Identity;
use aws_sigv4::{
    http_request::{SignableBody, SignableRequest, SigningSettings, sign},
    sign::v4,
};
use http::{Request, header};
use http_body_util::Full;
use hyper::body::Bytes;
use ipnetwork::IpNetwork;
use serde::de::DeserializeOwned;

use super::{
    super::{
        Variable,
        http::{Answer, Attempts, Http, NoAnswer},
    },
    CredentialsError,
    advice::{advice, may_pass, of_session},
    answer::{Changed, Fault, Instances, RouteTables},
    credentials::{Chain, Credentials},
    region::domain,
    tables::{Change, Table},
};

const VERSION: &str = "2016-11-15";
/// A table of a thousand routes takes EC2 a few seconds.
const PATIENCE: Duration = Duration::from_secs(20);

/// Why a request was not done.
#[derive(Debug, thiserror::Error)]
pub enum Ec2Error {
    /// There is nobody to sign as.
    #[error(transparent)]
    Credentials(#[from] CredentialsError),
    /// Nobody answers.
    #[error(
        "EC2 does not answer to {action}: {reason}; is {endpoint} right (AWS_ENDPOINT_URL), and reachable?"
    )]
    NoAnswer {
        /// What was asked.
        action: &'static str,
        /// Whom.
        endpoint: String,
        /// What went wrong.
        reason: NoAnswer,
    },
    /// It refuses.
    #[error("EC2 refuses {action}: {code}: {message}; {advice}")]
    Refused {
        /// What was asked.
        action: &'static str,
        /// EC2's code.
        code: String,
        /// EC2's words.
        message: String,
        /// What to do about it.
        advice: String,
        /// It may do it in a while.
        may_pass: bool,
    },
    /// What it says is not EC2's.
    #[error("the answer to {action} is not EC2's ({reason}): is {endpoint} right (AWS_ENDPOINT_URL)?")]
    Odd {
        /// What was asked.
        action: &'static str,
        /// Whom.
        endpoint: String,
        /// What is odd about it.
        reason: String,
    },
}

impl Ec2Error {
    /// Whether the same may be done in a while.
    pub(super) fn may_pass(&self) -> bool {
        match self {
            Self::Credentials(CredentialsError::Metadata(error)) => error.may_pass(),
            Self::NoAnswer { .. } | Self::Credentials(CredentialsError::NoAnswer { .. }) => true,
            Self::Refused { may_pass, .. } => *may_pass,
            Self::Credentials(_) | Self::Odd { .. } => false,
        }
    }

    /// Whether it is EC2's error of that code.
    pub(super) fn is(&self, wanted: &str) -> bool {
        matches!(self, Self::Refused { code, .. } if code == wanted)
    }
}

/// A network interface of this instance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Interface {
    pub(super) id: String,
    pub(super) subnet: String,
    pub(super) vpc: String,
    pub(super) source_dest_check: bool,
    pub(super) addresses: Vec<IpAddr>,
}

impl fmt::Display for Interface {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let addresses: Vec<String> = self.addresses.iter().map(ToString::to_string).collect();
        write!(f, "{} ({})", self.id, addresses.join(" "))
    }
}

/// The API of one region.
pub(super) struct Ec2 {
    http: Http,
    chain: Chain,
    region: String,
    endpoint: String,
}

impl Ec2 {
    pub(super) fn new(http: Http, chain: Chain, region: &str, variable: &Variable) -> Self {
        let set = |name: &str| variable(name).filter(|value| !value.is_empty());
        let ignored = set("AWS_IGNORE_CONFIGURED_ENDPOINT_URLS").is_some_and(|value| value == "true");
        let given = set("AWS_ENDPOINT_URL_EC2").or_else(|| set("AWS_ENDPOINT_URL")).filter(|_| !ignored);
        let endpoint = given.unwrap_or_else(|| format!("https://ec2.{region}.{}", domain(region)));
        Self { http, chain, region: region.to_owned(), endpoint }
    }

    pub(super) fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// The network interfaces of an instance.
    pub(super) async fn interfaces(&self, instance: &str) -> Result<Vec<Interface>, Ec2Error> {
        let parameters = [("InstanceId.1".to_owned(), instance.to_owned())];
        let answer: Instances = self.call("DescribeInstances", &parameters).await?;
        let instances = answer.reservation_set.item.into_iter().flat_map(|found| found.instances_set.item);
        let interfaces = instances.flat_map(|instance| instance.network_interface_set.item);
        Ok(interfaces
            .map(|found| Interface {
                addresses: found.addresses(),
                id: found.network_interface_id,
                subnet: found.subnet_id,
                vpc: found.vpc_id,
                source_dest_check: found.source_dest_check.unwrap_or(true),
            })
            .collect())
    }

    /// Lets an interface send and get packets of addresses that are not its own.
    pub(super) async fn disable_source_dest_check(&self, interface: &str) -> Result<(), Ec2Error> {
        let parameters = [
            ("NetworkInterfaceId".to_owned(), interface.to_owned()),
            ("SourceDestCheck.Value".to_owned(), "false".to_owned()),
        ];
        let _: Changed = self.call("ModifyNetworkInterfaceAttribute", &parameters).await?;
        Ok(())
    }

    /// Route tables, by lists of values of parameters, and by filters.
    pub(super) async fn tables(
        &self,
        lists: &[(&str, &[String])],
        filters: &[(&str, &str)],
    ) -> Result<Vec<Table>, Ec2Error> {
        let mut parameters = Vec::new();
        for (name, values) in lists {
            parameters.extend((1..).zip(*values).map(|(n, value)| (format!("{name}.{n}"), value.clone())));
        }
        for (n, (name, value)) in (1..).zip(filters) {
            parameters.push((format!("Filter.{n}.Name"), (*name).to_owned()));
            parameters.push((format!("Filter.{n}.Value.1"), (*value).to_owned()));
        }
        let mut tables = Vec::new();
        let mut next: Option<String> = None;
        loop {
            let page = next.take().map(|token| ("NextToken".to_owned(), token));
            let page: Vec<_> = parameters.iter().cloned().chain(page).collect();
            let answer: RouteTables = self.call("DescribeRouteTables", &page).await?;
            tables.extend(answer.route_table_set.item.into_iter().map(Table::from));
            match answer.next_token.filter(|token| !token.is_empty()) {
                Some(token) => next = Some(token),
                None => return Ok(tables),
            }
        }
    }

    /// Changes one route of a table.
    pub(super) async fn change(&self, table: &str, change: &Change, interface: &str) -> Result<(), Ec2Error> {
        let (action, to, leads) = match change {
            Change::Create { to } => ("CreateRoute", to, true),
            Change::Replace { to } => ("ReplaceRoute", to, true),
            Change::Delete { to } => ("DeleteRoute", to, false),
        };
        let destination = match to {
            IpNetwork::V4(_) => "DestinationCidrBlock",
            IpNetwork::V6(_) => "DestinationIpv6CidrBlock",
        };
        let mut parameters =
            vec![("RouteTableId".to_owned(), table.to_owned()), (destination.to_owned(), to.to_string())];
        if leads {
            parameters.push(("NetworkInterfaceId".to_owned(), interface.to_owned()));
        }
        let _: Changed = self.call(action, &parameters).await?;
        Ok(())
    }

    async fn call<T: DeserializeOwned>(
        &self,
        action: &'static str,
        parameters: &[(String, String)],
    ) -> Result<T, Ec2Error> {
        let odd = |reason: String| Ec2Error::Odd { action, endpoint: self.endpoint.clone(), reason };
        let body = form_urlencoded::Serializer::new(String::new())
            .append_pair("Action", action)
            .append_pair("Version", VERSION)
            .extend_pairs(parameters)
            .finish();
        let mut attempts = Attempts::default();
        let mut renewed = false;
        loop {
            let credentials = self.chain.get().await?;
            let request = self.signed(&body, &credentials).map_err(odd)?;
            let answer = match self.http.send(request, PATIENCE).await {
                Ok(answer) => answer,
                Err(_) if attempts.again().await => continue,
                Err(reason) => {
                    return Err(Ec2Error::NoAnswer { action, endpoint: self.endpoint.clone(), reason });
                }
            };
            if answer.status.is_success() {
                return quick_xml::de::from_reader(&answer.body[..])
                    .map_err(|error| odd(format!("{error}: {}", answer.text())));
            }
            let said = Fault::read(&answer.body);
            let code = said.as_ref().map(|said| said.code.as_str()).unwrap_or_default();
            if of_session(code) && !std::mem::replace(&mut renewed, true) {
                self.chain.drop_kept().await;
                continue;
            }
            if (answer.may_pass() || may_pass(code)) && attempts.again().await {
                continue;
            }
            return Err(refused(action, &answer, said.map(|said| (said.code, said.message))));
        }
    }

    fn signed(&self, body: &str, credentials: &Credentials) -> Result<Request<Full<Bytes>>, String> {
        const FORM: &str = "application/x-www-form-urlencoded; charset=utf-8";
        let mut request = Request::post(format!("{}/", self.endpoint.trim_end_matches('/')))
            .header(header::CONTENT_TYPE, FORM)
            .body(Full::from(body.to_owned()))
            .map_err(|error| error.to_string())?;
        let host = request.uri().authority().map(ToString::to_string).ok_or("it has no host")?;
        let host = host.parse().map_err(|error| format!("{host}: {error}"))?;
        request.headers_mut().insert(header::HOST, host);
        let Credentials { key, secret, token, .. } = credentials.clone();
        let identity = Identity::new(key, secret, token, None, "flannel").into();
        let parameters = v4::SigningParams::builder()
            .identity(&identity)
            .region(&self.region)
            .name("ec2")
            .time(SystemTime::now())
            .settings(SigningSettings::default())
            .build()
            .map_err(|error| error.to_string())?
            .into();
        let uri = request.uri().to_string();
        let headers = request.headers().iter();
        let headers = headers.filter_map(|(name, value)| Some((name.as_str(), value.to_str().ok()?)));
        let signable = SignableRequest::new("POST", uri, headers, SignableBody::Bytes(body.as_bytes()))
            .map_err(|error| error.to_string())?;
        let signed = sign(signable, &parameters).map_err(|error| error.to_string())?;
        let (instructions, _) = signed.into_parts();
        instructions.apply_to_request_http1x(&mut request);
        Ok(request)
    }
}

fn refused(action: &'static str, answer: &Answer, said: Option<(String, String)>) -> Ec2Error {
    let (code, message) = said.unwrap_or_else(|| (answer.status.to_string(), answer.text()));
    let (advice, may_pass) = (advice(action, &code), answer.may_pass() || may_pass(&code));
    Ec2Error::Refused { action, code, message, advice, may_pass }
}
