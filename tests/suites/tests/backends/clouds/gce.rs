//! gce against a fake of Google's published API.

use anyhow::{Result, ensure};
use flannel_agent::cloud::{CloudError as _, CloudRoutes as _, gce::GceRoutes};
use flannel_lab::{FastPath, PREFIX, cloud::Google, in_lab};

use super::{share, variables};

const OWN: &str = "10.244.7.0/24";
const NAME: &str = "flannel-10-244-7-0-24";

fn routes(google: &Google) -> GceRoutes {
    let (host, url) = (google.metadata_host(), google.url());
    let variables = variables(&[
        ("GCE_METADATA_HOST", host.as_str()),
        ("CLOUDSDK_API_ENDPOINT_OVERRIDES_COMPUTE", url.as_str()),
    ]);
    GceRoutes::new(vec![share(OWN)], variables).unwrap()
}

fn next_hop(google: &Google) -> String {
    google.routes().get(NAME).map(|route| route["nextHopInstance"].to_string()).unwrap_or_default()
}

fn writes(google: &Google) -> usize {
    google.asked().iter().filter(|asked| !asked.starts_with("GET ")).count()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_route_is_made_kept_and_replaced() {
    let google = Google::start().unwrap();
    // Of somebody else, and none of ours.
    google.put_route("flannel-10-244-9-0-24", "10.244.9.0/24", "node9");
    google.slow(2);
    let routes = routes(&google);
    routes.ensure().await.unwrap();
    let route = google.routes().get(NAME).cloned().unwrap();
    assert_eq!((route["destRange"].as_str(), route["priority"].as_u64()), (Some(OWN), Some(1000)));
    assert!(next_hop(&google).ends_with("/zones/europe-west1-b/instances/node1\""), "{route}");
    let polled = google.asked().iter().filter(|asked| asked.contains("operations/")).count();
    assert_eq!(polled, 2, "the operation is waited for");
    assert_eq!(routes.ensure().await.unwrap(), Vec::<String>::new());
    assert_eq!(self::routes(&google).ensure().await.unwrap(), Vec::<String>::new(), "after a restart, too");
    assert_eq!(writes(&google), 1);
    google.slow(0);
    google.put_route(NAME, OWN, "node2");
    routes.ensure().await.unwrap();
    assert!(next_hop(&google).ends_with("/node1\""));
    assert_eq!(writes(&google), 3, "deleted and inserted: there is no other way");
    assert_eq!(google.routes().len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn refusals_say_what_to_do_and_what_passes_is_tried_again() {
    let google = Google::start().unwrap();
    let routes = routes(&google);
    google.fail("GET", 503, "backendError", "Backend Error");
    google.fail("GET", 429, "rateLimitExceeded", "Rate Limit Exceeded");
    google.fail("POST", 403, "rateLimitExceeded", "Rate Limit Exceeded");
    routes.ensure().await.unwrap();
    google.revoke_tokens();
    routes.ensure().await.unwrap();
    google.fail("GET", 403, "insufficientPermissions", "Request had insufficient authentication scopes.");
    let error = routes.ensure().await.unwrap_err();
    assert!(!error.may_pass() && error.to_string().contains("compute-rw"), "{error}");
    google.put_route(NAME, OWN, "node2");
    google.fail("DELETE", 403, "forbidden", "Required 'compute.routes.delete' permission");
    let error = routes.ensure().await.unwrap_err();
    assert!(!error.may_pass() && error.to_string().contains("compute.routes.create"), "{error}");
    assert!(next_hop(&google).ends_with("/node2\""), "the routes are as they were");
    for _ in 0..6 {
        google.fail("GET", 500, "backendError", "Backend Error");
    }
    let error = routes.ensure().await.unwrap_err();
    assert!(error.may_pass(), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_googles_metadata_is_named() {
    let google = Google::start().unwrap();
    let variables = variables(&[("GCE_METADATA_HOST", "127.0.0.1:1")]);
    let error = GceRoutes::new(vec![share(OWN)], variables).unwrap().ensure().await.unwrap_err();
    assert!(error.may_pass() && error.to_string().contains("GCE_METADATA_HOST"), "{error}");
    drop(google);
}

/// The agent as on an instance: metadata where it is on each, nothing said but the endpoint.
#[test]
fn an_agent_on_gce_routes_its_subnet_and_finds_it_right_when_it_starts_again() -> Result<()> {
    in_lab(|lab| {
        let node = lab.node()?;
        let google = Google::start_in(node.netns())?;
        let etcd = lab.etcd()?;
        let config = r#"{"Network":"10.244.0.0/16","Backend":{"Type":"gce"}}"#;
        etcd.put(&format!("{PREFIX}/config"), config)?;
        let mut agent = node.prepared_agent(&etcd, FastPath::All);
        agent.set_variable("CLOUDSDK_API_ENDPOINT_OVERRIDES_COMPUTE", &google.url());
        agent.start_again()?;
        let subnet = node.subnet_env()?.subnet.to_string().replacen(".1/", ".0/", 1);
        let name = format!("flannel-{}", subnet.replace(['.', '/'], "-"));
        let routes = google.routes();
        ensure!(routes.len() == 1 && routes.contains_key(&name), "{routes:?}");
        ensure!(node.subnet_env()?.mtu == 1500, "the interface's MTU is that of pods");
        agent.kill()?;
        agent.start_again()?;
        ensure!(writes(&google) == 1, "a route that is right is written again: {:?}", google.asked());
        Ok(())
    })
}
