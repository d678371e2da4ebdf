//! An EC2 that nobody here wrote: moto's server (PyPI), with the metadata of an instance and with faults in front of it.

use std::{
    collections::BTreeMap,
    fs,
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    path::PathBuf,
    process::Command,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use flannel_ebpf_toolchain::moto_dir;
use serde_json::json;
use tempfile::TempDir;

use super::http::{Asked, HttpServer, Reply, pass_on};
use crate::{Netns, command::Daemon, requirements::find, wait::eventually};

/// Of the metadata service, on every instance.
pub const METADATA: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);

const TOKEN: &str = "a-token-of-version-2";

/// moto's server, where setup put it or on PATH.
pub fn moto_server() -> Result<PathBuf> {
    let ours = moto_dir().join("bin/moto_server");
    let found = Some(ours).filter(|path| path.is_file()).or_else(|| find("moto_server"));
    found.context("no moto_server: `cargo xtask setup` installs it")
}

/// Which versions of the metadata service there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MetadataVersions {
    /// Both.
    Both,
    /// 1 only, as on old installations that imitate it.
    First,
    /// 2 only, as on instances that require tokens.
    Second,
}

/// Credentials of the instance's role.
#[derive(Clone, Debug)]
pub struct RoleCredentials {
    /// AccessKeyId.
    pub key: String,
    /// SecretAccessKey.
    pub secret: String,
    /// Expiration, as `2030-01-01T00:00:00Z`.
    pub expires: String,
}

struct State {
    moto: SocketAddr,
    versions: Mutex<MetadataVersions>,
    instance: Mutex<String>,
    role: Mutex<Option<RoleCredentials>>,
    /// Answers that are given in place of moto's, each once: an action, or `*`; a status; EC2's code.
    faults: Mutex<Vec<(String, u16, String)>>,
    /// Requests by their action; of metadata by its path.
    asked: Mutex<BTreeMap<String, usize>>,
    /// Destinations of routes that are shown as leading nowhere: moto has no such state.
    black: Mutex<Vec<String>>,
}

/// A region of Amazon's, as one instance sees it.
pub struct Amazon {
    state: Arc<State>,
    server: HttpServer,
    _moto: Daemon,
    dir: TempDir,
}

impl Amazon {
    /// One on loopback of this namespace.
    pub fn start() -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        Self::serve(listener, Command::new(moto_server()?))
    }

    /// One in `netns`, at the address that metadata has everywhere.
    pub fn start_in(netns: &Netns) -> Result<Self> {
        netns.ip(&format!("addr add {METADATA}/32 dev lo"))?;
        let moto = netns.command(&moto_server()?.to_string_lossy());
        netns.inside(|| Self::serve(TcpListener::bind((METADATA, 80))?, moto))
    }

    fn serve(listener: TcpListener, mut command: Command) -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("flannel-moto-").tempdir()?;
        let moto = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?;
        command.args(["-H", "127.0.0.1", "-p", &moto.port().to_string()]);
        let mut daemon = Daemon::spawn(&mut command, &dir.path().join("log"))?;
        eventually(Duration::from_secs(60), "moto answers", || {
            daemon.check_running()?;
            TcpStream::connect(moto).map(drop).context("not yet")
        })?;
        let state = Arc::new(State {
            moto,
            versions: Mutex::new(MetadataVersions::Both),
            instance: Mutex::default(),
            role: Mutex::default(),
            faults: Mutex::default(),
            asked: Mutex::default(),
            black: Mutex::default(),
        });
        let ours = state.clone();
        let server = HttpServer::start(listener, move |asked| ours.answer(asked))?;
        Ok(Self { state, server, _moto: daemon, dir })
    }

    /// The URL of metadata and API.
    pub fn url(&self) -> String {
        format!("http://{}", self.server.address())
    }

    /// Runs an instance with the address `address` in a network of its own, and says what it is. Metadata is of the
    /// last one.
    pub fn run_instance(&self, address: IpAddr) -> Result<Machine> {
        let vpc = self.id("vpcId", "CreateVpc", &[("CidrBlock", "192.168.0.0/16")])?;
        let subnet =
            self.id("subnetId", "CreateSubnet", &[("VpcId", &vpc), ("CidrBlock", "192.168.0.0/16")])?;
        let machine = self.run_in(&vpc, &subnet, address)?;
        *locked(&self.state.instance) = machine.instance.clone();
        Ok(machine)
    }

    /// Another instance in that network; metadata stays that of the first.
    pub fn run_in(&self, vpc: &str, subnet: &str, address: IpAddr) -> Result<Machine> {
        let address = address.to_string();
        let answer = self.ask(
            "RunInstances",
            &[
                ("ImageId", "ami-12c6146b"),
                ("MinCount", "1"),
                ("MaxCount", "1"),
                ("SubnetId", subnet),
                ("PrivateIpAddress", &address),
            ],
        )?;
        let of = |name: &str| element(&answer, name).with_context(|| format!("no {name}: {answer}"));
        let (instance, interface) = (of("instanceId")?, of("networkInterfaceId")?);
        Ok(Machine { instance, interface, vpc: vpc.to_owned(), subnet: subnet.to_owned() })
    }

    /// Another route table of a VPC.
    pub fn route_table(&self, vpc: &str) -> Result<String> {
        self.id("routeTableId", "CreateRouteTable", &[("VpcId", vpc)])
    }

    /// The main route table of a VPC.
    pub fn main_table(&self, vpc: &str) -> Result<String> {
        let filters = [
            ("Filter.1.Name", "vpc-id"),
            ("Filter.1.Value.1", vpc),
            ("Filter.2.Name", "association.main"),
            ("Filter.2.Value.1", "true"),
        ];
        self.id("routeTableId", "DescribeRouteTables", &filters)
    }

    fn id(&self, name: &str, action: &str, parameters: &[(&str, &str)]) -> Result<String> {
        let answer = self.ask(action, parameters)?;
        element(&answer, name).with_context(|| format!("{action}: no {name}: {answer}"))
    }

    /// Asks moto itself, as its owner.
    pub fn ask(&self, action: &str, parameters: &[(&str, &str)]) -> Result<String> {
        self.ask_service("ec2", "2016-11-15", action, parameters)
    }

    fn ask_service(
        &self,
        service: &str,
        version: &str,
        action: &str,
        parameters: &[(&str, &str)],
    ) -> Result<String> {
        let mut body = format!("Action={action}&Version={version}");
        for (name, value) in parameters {
            let value: String = value.bytes().map(|byte| format!("%{byte:02X}")).collect();
            body.push_str(&format!("&{name}={value}"));
        }
        let scope = format!("AKIAOWNER/20260101/us-east-1/{service}/aws4_request");
        let headers = [
            ("host".to_owned(), self.state.moto.to_string()),
            ("content-type".to_owned(), "application/x-www-form-urlencoded".to_owned()),
            (
                "authorization".to_owned(),
                format!("AWS4-HMAC-SHA256 Credential={scope}, SignedHeaders=host, Signature=0"),
            ),
        ];
        let asked = Asked { method: "POST".into(), path: "/".into(), headers: headers.into(), body };
        let reply = pass_on(self.state.moto, &asked)?;
        ensure!(reply.status < 300, "{action}: {}: {}", reply.status, reply.body);
        Ok(reply.body)
    }

    /// Each route of a table: where to, its interface, its state.
    pub fn routes(&self, table: &str) -> Result<BTreeMap<String, (String, String)>> {
        let answer = self.ask("DescribeRouteTables", &[("RouteTableId.1", table)])?;
        let set = answer.split("<routeSet>").nth(1).and_then(|rest| rest.split("</routeSet>").next());
        let items = set.context("no routes")?.split("<item>").skip(1);
        Ok(items
            .map(|item| {
                let of = |name: &str| element(item, name).unwrap_or_default();
                (of("destinationCidrBlock"), (of("networkInterfaceId"), of("state")))
            })
            .collect())
    }

    /// Has moto check signatures and rights from now on: a user who may do `actions`, and the user's key and secret.
    pub fn require_rights(&self, actions: &[&str]) -> Result<(String, String)> {
        let iam = |action: &str, parameters: &[(&str, &str)]| {
            self.ask_service("iam", "2010-05-08", action, parameters)
        };
        // There already, the second time.
        let _ = iam("CreateUser", &[("UserName", "node")]);
        let policy = json!({
            "Version": "2012-10-17",
            "Statement": [{ "Effect": "Allow", "Action": actions, "Resource": "*" }],
        });
        let policy = policy.to_string();
        iam("PutUserPolicy", &[("UserName", "node"), ("PolicyName", "rights"), ("PolicyDocument", &policy)])?;
        let answer = iam("CreateAccessKey", &[("UserName", "node")])?;
        let of = |name: &str| element(&answer, name).with_context(|| format!("no {name}: {answer}"));
        let pair = (of("AccessKeyId")?, of("SecretAccessKey")?);
        self.reset_auth("0")?;
        Ok(pair)
    }

    /// Ends that.
    pub fn require_nothing(&self) -> Result<()> {
        self.reset_auth("10000000")
    }

    fn reset_auth(&self, count: &str) -> Result<()> {
        let headers = BTreeMap::from([("host".to_owned(), self.state.moto.to_string())]);
        let path = "/moto-api/reset-auth".to_owned();
        let asked = Asked { method: "POST".into(), path, headers, body: count.to_owned() };
        let reply = pass_on(self.state.moto, &asked)?;
        ensure!(reply.status < 300, "reset-auth: {}: {}", reply.status, reply.body);
        Ok(())
    }

    /// Which metadata service there is.
    pub fn set_metadata(&self, versions: MetadataVersions) {
        *locked(&self.state.versions) = versions;
    }

    /// The credentials of the instance's role; none at first.
    pub fn set_role(&self, role: Option<RoleCredentials>) {
        *locked(&self.state.role) = role;
    }

    /// Answers the next request for `action` (`*`: whichever) by an error.
    pub fn fail(&self, action: &str, status: u16, code: &str) {
        locked(&self.state.faults).push((action.to_owned(), status, code.to_owned()));
    }

    /// Shows routes to `to` as leading nowhere, as EC2 does when what they lead to is gone.
    pub fn blacken(&self, to: &str) {
        locked(&self.state.black).push(to.to_owned());
    }

    /// Does `work` in the namespace that it runs in.
    pub fn within<T: Send>(&self, netns: &Netns, work: impl FnOnce(&Self) -> Result<T> + Send) -> Result<T> {
        netns.inside(|| work(self))
    }

    /// How often an action was asked for, or a path of metadata.
    pub fn asked(&self, what: &str) -> usize {
        locked(&self.state.asked).get(what).copied().unwrap_or(0)
    }

    /// What moto wrote.
    pub fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }
}

/// An instance.
#[derive(Clone, Debug)]
pub struct Machine {
    /// `i-...`
    pub instance: String,
    /// `eni-...`
    pub interface: String,
    /// `vpc-...`
    pub vpc: String,
    /// `subnet-...`
    pub subnet: String,
}

impl State {
    fn answer(&self, asked: &Asked) -> Reply {
        let path = asked.path.split('?').next().unwrap_or_default();
        if let Some(path) = path.strip_prefix("/latest/") {
            *locked(&self.asked).entry(path.to_owned()).or_default() += 1;
            return self.metadata(path, asked);
        }
        let action = asked.body.split('&').find_map(|pair| pair.strip_prefix("Action=")).unwrap_or_default();
        *locked(&self.asked).entry(action.to_owned()).or_default() += 1;
        let mut faults = locked(&self.faults);
        if let Some(at) = faults.iter().position(|(of, ..)| of == "*" || of == action) {
            let (_, status, code) = faults.remove(at);
            return Reply::new(
                status,
                format!(
                    "<?xml version=\"1.0\"?><Response><Errors><Error><Code>{code}</Code><Message>by the lab</Message>\
                     </Error></Errors><RequestID>1</RequestID></Response>"
                ),
            );
        }
        drop(faults);
        let mut reply =
            pass_on(self.moto, asked).unwrap_or_else(|error| Reply::new(502, format!("{error:#}")));
        for to in locked(&self.black).iter() {
            let start = format!("<destinationCidrBlock>{to}</destinationCidrBlock>");
            if let Some((before, after)) = reply.body.split_once(&start) {
                let after = after.replacen("<state>active", "<state>blackhole", 1);
                reply.body = format!("{before}{start}{after}");
            }
        }
        reply
    }

    fn metadata(&self, path: &str, asked: &Asked) -> Reply {
        let versions = *locked(&self.versions);
        if path == "api/token" {
            return match (versions, asked.method.as_str()) {
                (MetadataVersions::First, _) => Reply::new(404, "no such thing"),
                (_, "PUT") if asked.headers.contains_key("x-aws-ec2-metadata-token-ttl-seconds") => {
                    Reply::new(200, TOKEN)
                }
                _ => Reply::new(400, "PUT, with a time to live"),
            };
        }
        if path == "container" {
            let credentials = json!({
                "AccessKeyId": "AKIACONTAINER", "SecretAccessKey": "secret", "Token": "session",
                "Expiration": "2100-01-01T00:00:00Z",
            });
            return Reply::new(200, credentials.to_string());
        }
        let token = asked.headers.get("x-aws-ec2-metadata-token").map(String::as_str);
        if token.is_some_and(|token| token != TOKEN)
            || (token.is_none() && versions == MetadataVersions::Second)
        {
            return Reply::new(401, "Unauthorized");
        }
        let role = locked(&self.role);
        match (path, &*role) {
            ("meta-data/instance-id", _) => Reply::new(200, locked(&self.instance).clone()),
            ("meta-data/placement/availability-zone", _) => Reply::new(200, "us-east-1a"),
            ("meta-data/iam/security-credentials/", Some(_)) => Reply::new(200, "node-role"),
            ("meta-data/iam/security-credentials/node-role", Some(role)) => Reply::new(
                200,
                json!({
                    "Code": "Success", "Type": "AWS-HMAC", "AccessKeyId": role.key, "SecretAccessKey": role.secret,
                    "Expiration": role.expires,
                })
                .to_string(),
            ),
            _ => Reply::new(404, "no such thing"),
        }
    }
}

/// The text of the first element `name`.
fn element(xml: &str, name: &str) -> Option<String> {
    let rest = xml.split_once(&format!("<{name}>"))?.1;
    Some(rest.split_once("</")?.0.to_owned())
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
