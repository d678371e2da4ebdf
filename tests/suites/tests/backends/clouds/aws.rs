//! aws-vpc against an EC2 that nobody here wrote: moto's.

use std::{net::IpAddr, time::Duration};

use anyhow::{Context as _, Result, ensure};
use flannel_agent::cloud::{CloudError as _, CloudRoutes as _, aws::AwsRoutes};
use flannel_lab::{
    AgentOptions, FastPath, PREFIX,
    cloud::{Amazon, Machine, MetadataVersions, RoleCredentials},
    eventually, in_lab,
};

use super::{share, variables};

const OWN: &str = "10.244.7.0/24";

fn address() -> IpAddr {
    "192.168.77.1".parse().unwrap()
}

fn region() -> (Amazon, Machine) {
    let amazon = Amazon::start().unwrap();
    let machine = amazon.run_instance(address()).unwrap();
    (amazon, machine)
}

/// As the agent has it, with the variables that Amazon's own tools read.
fn routes(amazon: &Amazon, tables: &[&str], more: &[(&str, &str)]) -> AwsRoutes {
    let url = amazon.url();
    let own = [("AWS_ENDPOINT_URL", url.as_str()), ("AWS_EC2_METADATA_SERVICE_ENDPOINT", url.as_str())];
    let tables = tables.iter().map(|table| (*table).to_owned()).collect();
    let variables = variables(&[&own[..], more].concat());
    AwsRoutes::new(tables, address(), vec![share(OWN)], variables).unwrap()
}

const KEYS: [(&str, &str); 2] = [("AWS_ACCESS_KEY_ID", "AKIAEXAMPLE"), ("AWS_SECRET_ACCESS_KEY", "secret")];

fn leads_to(amazon: &Amazon, table: &str, subnet: &str) -> Option<String> {
    amazon.routes(table).unwrap().get(subnet).map(|(interface, _)| interface.clone())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_route_is_made_kept_and_replaced_in_place() {
    let (amazon, machine) = region();
    let table = amazon.main_table(&machine.vpc).unwrap();
    let routes = routes(&amazon, &[], &KEYS);
    let said = routes.ensure().await.unwrap();
    assert_eq!(said.len(), 2, "{said:?}");
    assert_eq!(leads_to(&amazon, &table, OWN), Some(machine.interface.clone()));
    let instances = amazon.ask("DescribeInstances", &[("InstanceId.1", &machine.instance)]).unwrap();
    assert!(instances.contains("<sourceDestCheck>false"), "{instances}");
    // What is right stays: nothing is written.
    assert_eq!(routes.ensure().await.unwrap(), Vec::<String>::new());
    // Another instance's, from before this node had the subnet.
    let other = amazon.run_in(&machine.vpc, &machine.subnet, "192.168.77.2".parse().unwrap()).unwrap();
    let to = [("RouteTableId", table.as_str()), ("DestinationCidrBlock", OWN)];
    let to_other = [&to[..], &[("NetworkInterfaceId", other.interface.as_str())]].concat();
    amazon.ask("ReplaceRoute", &to_other).unwrap();
    assert_eq!(routes.ensure().await.unwrap().len(), 1);
    assert_eq!(leads_to(&amazon, &table, OWN), Some(machine.interface.clone()));
    // And one that somebody deleted.
    amazon.ask("DeleteRoute", &to).unwrap();
    routes.ensure().await.unwrap();
    assert_eq!(leads_to(&amazon, &table, OWN), Some(machine.interface.clone()));
    let asked = |action| amazon.asked(action);
    assert_eq!(
        (asked("CreateRoute"), asked("ReplaceRoute"), asked("DeleteRoute")),
        (2, 1, 0),
        "by this node"
    );
    assert_eq!(asked("ModifyNetworkInterfaceAttribute"), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn several_tables_are_kept_and_blackholes_removed_inside_the_network_only() {
    let (amazon, machine) = region();
    let (one, two) = (amazon.route_table(&machine.vpc).unwrap(), amazon.route_table(&machine.vpc).unwrap());
    let gone = amazon.run_in(&machine.vpc, &machine.subnet, "192.168.77.2".parse().unwrap()).unwrap();
    for to in ["10.244.9.0/24", "10.245.9.0/24", "10.244.10.0/24"] {
        let parameters = [
            ("RouteTableId", one.as_str()),
            ("DestinationCidrBlock", to),
            ("NetworkInterfaceId", gone.interface.as_str()),
        ];
        amazon.ask("CreateRoute", &parameters).unwrap();
    }
    amazon.blacken("10.244.9.0/24");
    amazon.blacken("10.245.9.0/24");
    let routes = routes(&amazon, &[&one, &two], &KEYS);
    routes.ensure().await.unwrap();
    for table in [&one, &two] {
        assert_eq!(leads_to(&amazon, table, OWN), Some(machine.interface.clone()), "{table}");
    }
    let left: Vec<String> = amazon.routes(&one).unwrap().into_keys().collect();
    assert_eq!(left, ["10.244.10.0/24", OWN, "10.245.9.0/24", "192.168.0.0/16"]);
    assert_eq!(
        leads_to(&amazon, &amazon.main_table(&machine.vpc).unwrap(), OWN),
        None,
        "no other is touched"
    );
    let wrong = self::routes(&amazon, &["rtb-0000000000000000"], &KEYS).ensure().await.unwrap_err();
    assert!(!wrong.may_pass() && wrong.to_string().contains("RouteTableID"), "{wrong}");
}

/// moto checks signature and rights from `require_rights` on.
#[tokio::test(flavor = "multi_thread")]
async fn requests_are_signed_and_missing_rights_are_named() {
    let (amazon, machine) = region();
    let table = amazon.main_table(&machine.vpc).unwrap();
    let (key, secret) = amazon.require_rights(&["ec2:Describe*"]).unwrap();
    let keys = [("AWS_ACCESS_KEY_ID", key.as_str()), ("AWS_SECRET_ACCESS_KEY", secret.as_str())];
    let error = routes(&amazon, &[], &keys).ensure().await.unwrap_err();
    let text = error.to_string();
    assert!(text.contains("CreateRoute") && text.contains("grant ec2:CreateRoute"), "{text}");
    assert!(!error.may_pass(), "somebody has to grant it");
    let wrong = [keys[0], ("AWS_SECRET_ACCESS_KEY", "another")];
    let error = routes(&amazon, &[], &wrong).ensure().await.unwrap_err().to_string();
    assert!(error.contains("DescribeInstances") && error.contains("AWS_"), "{error}");
    amazon.require_nothing().unwrap();
    assert_eq!(leads_to(&amazon, &table, OWN), None, "the routes are as they were");
    let (key, secret) = amazon.require_rights(&["ec2:*"]).unwrap();
    let keys = [("AWS_ACCESS_KEY_ID", key.as_str()), ("AWS_SECRET_ACCESS_KEY", secret.as_str())];
    routes(&amazon, &[], &keys).ensure().await.unwrap();
    amazon.require_nothing().unwrap();
    assert_eq!(leads_to(&amazon, &table, OWN), Some(machine.interface));
}

#[tokio::test(flavor = "multi_thread")]
async fn throttling_and_failures_pass_and_the_routes_stay() {
    let (amazon, machine) = region();
    let table = amazon.main_table(&machine.vpc).unwrap();
    amazon.fail("DescribeInstances", 503, "RequestLimitExceeded");
    amazon.fail("DescribeRouteTables", 500, "InternalError");
    amazon.fail("DescribeRouteTables", 400, "Throttling");
    amazon.fail("CreateRoute", 503, "Unavailable");
    // A right that is missing here is only warned of.
    amazon.fail("ModifyNetworkInterfaceAttribute", 403, "UnauthorizedOperation");
    let routes = routes(&amazon, &[], &KEYS);
    routes.ensure().await.unwrap();
    assert_eq!(leads_to(&amazon, &table, OWN), Some(machine.interface.clone()));
    assert_eq!((amazon.asked("DescribeInstances"), amazon.asked("CreateRoute")), (2, 2));
    for _ in 0..6 {
        amazon.fail("DescribeRouteTables", 503, "RequestLimitExceeded");
    }
    let error = routes.ensure().await.unwrap_err();
    assert!(error.may_pass() && error.to_string().contains("RequestLimitExceeded"), "{error}");
    assert_eq!(leads_to(&amazon, &table, OWN), Some(machine.interface));
    for (code, word, times) in [
        ("RouteLimitExceeded", "quota", 1),
        // Once more, as other credentials might do.
        ("RequestExpired", "clock", 2),
        ("ExpiredToken", "AWS_SESSION_TOKEN", 2),
    ] {
        (0..times).for_each(|_| amazon.fail("DescribeInstances", 400, code));
        let error = routes.ensure().await.unwrap_err();
        assert!(!error.may_pass() && error.to_string().contains(word), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn either_version_of_metadata_serves_and_credentials_of_the_role_are_renewed() {
    let (amazon, _machine) = region();
    let role = |key: &str| RoleCredentials {
        key: key.to_owned(),
        secret: "secret".to_owned(),
        expires: "2100-01-01T00:00:00Z".to_owned(),
    };
    let error = routes(&amazon, &[], &[]).ensure().await.unwrap_err().to_string();
    assert!(error.contains("no AWS credentials: attach an IAM role"), "{error}");
    amazon.set_role(Some(role("AKIAONE")));
    for versions in [MetadataVersions::First, MetadataVersions::Second, MetadataVersions::Both] {
        amazon.set_metadata(versions);
        routes(&amazon, &[], &[]).ensure().await.unwrap();
    }
    let of_role = "meta-data/iam/security-credentials/node-role";
    let before = amazon.asked(of_role);
    let routes = routes(&amazon, &[], &[]);
    routes.ensure().await.unwrap();
    routes.ensure().await.unwrap();
    assert_eq!(amazon.asked(of_role), before + 1, "they are kept");
    amazon.fail("DescribeInstances", 400, "ExpiredToken");
    routes.ensure().await.unwrap();
    assert_eq!(amazon.asked(of_role), before + 2, "and looked for again when they are refused");
    // Near their end they are replaced before they are refused.
    let soon = RoleCredentials { expires: "2020-01-01T00:00:00Z".to_owned(), ..role("AKIATWO") };
    amazon.set_role(Some(soon));
    amazon.fail("DescribeInstances", 400, "ExpiredToken");
    routes.ensure().await.unwrap();
    let asked = amazon.asked(of_role);
    routes.ensure().await.unwrap();
    assert!(amazon.asked(of_role) > asked);
}

#[tokio::test(flavor = "multi_thread")]
async fn credentials_are_found_where_amazons_tools_look() {
    let (amazon, _machine) = region();
    let directory = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| {
        let path = directory.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    };
    let profiles =
        write("credentials", "[node]\naws_access_key_id = AKIAFILE\naws_secret_access_key = secret\n");
    let token = write("token", "a.web.token");
    let container = format!("{}/latest/container", amazon.url());
    let url = amazon.url();
    for variables in [
        &[("AWS_SHARED_CREDENTIALS_FILE", profiles.as_str()), ("AWS_PROFILE", "node")][..],
        &[
            ("AWS_WEB_IDENTITY_TOKEN_FILE", token.as_str()),
            ("AWS_ROLE_ARN", "arn:aws:iam::123456789012:role/node"),
            ("AWS_ENDPOINT_URL_STS", url.as_str()),
        ],
        &[("AWS_CONTAINER_CREDENTIALS_FULL_URI", container.as_str())],
    ] {
        routes(&amazon, &[], variables).ensure().await.unwrap();
    }
    assert_eq!((amazon.asked("AssumeRoleWithWebIdentity"), amazon.asked("container")), (1, 1));
    let absent = [("AWS_SHARED_CREDENTIALS_FILE", profiles.as_str()), ("AWS_PROFILE", "other")];
    let error = routes(&amazon, &[], &absent).ensure().await.unwrap_err().to_string();
    assert!(error.contains("[other]") && error.contains(&profiles), "{error}");
    // Whoever has them may be back in a while; what is not there is somebody's to put there.
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let silent = format!("http://{nobody}/");
    for (variables, may_pass) in [
        (&[("AWS_CONTAINER_CREDENTIALS_FULL_URI", silent.as_str())][..], true),
        (
            &[
                ("AWS_WEB_IDENTITY_TOKEN_FILE", token.as_str()),
                ("AWS_ROLE_ARN", "arn:aws:iam::123456789012:role/node"),
                ("AWS_ENDPOINT_URL_STS", silent.as_str()),
            ],
            true,
        ),
        (&[("AWS_WEB_IDENTITY_TOKEN_FILE", "/nonexistent"), ("AWS_ROLE_ARN", "x")], false),
    ] {
        let error = routes(&amazon, &[], variables).ensure().await.unwrap_err();
        assert_eq!(error.may_pass(), may_pass, "{error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_that_ec2_does_not_know_is_named() {
    let (amazon, machine) = region();
    let url = amazon.url();
    let variables = variables(&[
        ("AWS_ENDPOINT_URL_EC2", &url),
        ("AWS_EC2_METADATA_SERVICE_ENDPOINT", &url),
        KEYS[0],
        KEYS[1],
    ]);
    let other = "192.168.77.9".parse().unwrap();
    let routes = AwsRoutes::new(Vec::new(), other, vec![share(OWN)], variables).unwrap();
    let error = routes.ensure().await.unwrap_err().to_string();
    for part in
        [machine.instance.as_str(), "192.168.77.9", machine.interface.as_str(), "192.168.77.1", "--iface"]
    {
        assert!(error.contains(part), "{error}");
    }
}

/// The agent as on an instance: metadata where it is on each, nothing said but the endpoint.
#[test]
fn an_agent_on_ec2_routes_its_subnet_and_finds_it_right_when_it_starts_again() -> Result<()> {
    in_lab(|lab| {
        let node = lab.node()?;
        let amazon = Amazon::start_in(node.netns())?;
        let machine = amazon.within(node.netns(), |amazon| amazon.run_instance(node.address().into()))?;
        amazon.set_role(Some(RoleCredentials {
            key: "AKIAROLE".to_owned(),
            secret: "secret".to_owned(),
            expires: "2100-01-01T00:00:00Z".to_owned(),
        }));
        let etcd = lab.etcd()?;
        let config = r#"{"Network":"10.244.0.0/16","Backend":{"Type":"aws-vpc"}}"#;
        etcd.put(&format!("{PREFIX}/config"), config)?;
        let mut agent = node.prepared_agent(&etcd, AgentOptions::from(FastPath::All));
        agent.set_variable("AWS_ENDPOINT_URL", &amazon.url());
        agent.start_again()?;
        let subnet = node.subnet_env()?.subnet.to_string().replacen(".1/", ".0/", 1);
        let table = amazon.within(node.netns(), |amazon| amazon.main_table(&machine.vpc))?;
        let leads = || -> Result<String> {
            let routes = amazon.within(node.netns(), |amazon| amazon.routes(&table))?;
            Ok(routes.get(&subnet).with_context(|| format!("no route to {subnet}: {routes:?}"))?.0.clone())
        };
        ensure!(leads()? == machine.interface, "{}", leads()?);
        ensure!(node.subnet_env()?.mtu == 1500, "the interface's MTU is that of pods");
        ensure!(etcd.leases()?.values().all(|lease| lease["BackendType"].is_null()), "as upstream's");
        agent.kill()?;
        agent.start_again()?;
        ensure!(leads()? == machine.interface);
        let written = ["CreateRoute", "ReplaceRoute", "DeleteRoute"].map(|action| amazon.asked(action));
        ensure!(written == [1, 0, 0], "a route that is right is written again: {written:?}");
        // A right that is missing ends the start, and says what to do.
        agent.terminate()?;
        amazon.fail("DescribeInstances", 403, "UnauthorizedOperation");
        agent.launch()?;
        let ended = agent.wait_for_end(Duration::from_secs(30))?;
        ensure!(!ended.success());
        eventually(Duration::from_secs(5), "the log says what to grant", || {
            ensure!(agent.log().contains("grant ec2:DescribeInstances"), "{}", agent.log());
            Ok(())
        })
    })
}
