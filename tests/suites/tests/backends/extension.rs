//! The extension backend: what upstream's documentation does by commands, here by both ways of calling them.

use std::{fs, time::Duration};

use anyhow::{Context as _, Result, ensure};
use flannel_lab::{CONVERGENCE, Cluster, Etcd, FastPath, Lab, Member, PREFIX, eventually, in_lab};
use serde_json::json;

const CONFIG: &str = r#"{"Type":"extension","SubnetAddCommand":"ip route add $SUBNET via $PUBLIC_IP","SubnetRemoveCommand":"ip route delete $SUBNET"}"#;

fn configured(lab: &Lab, backend: &str) -> Result<Etcd> {
    let etcd = lab.etcd()?;
    let config = format!(
        r#"{{"Network":"10.244.0.0/16","SubnetMin":"10.244.16.0","SubnetMax":"10.244.63.0","Backend":{backend}}}"#
    );
    etcd.put(&format!("{PREFIX}/config"), &config)?;
    Ok(etcd)
}

#[test]
fn routes_made_by_commands_carry_traffic_and_go_with_their_peer() -> Result<()> {
    in_lab(|lab| {
        let etcd = configured(lab, CONFIG)?;
        let members = (0..2)
            .map(|_| Member::start(lab.node()?, &etcd, FastPath::All, 1))
            .collect::<Result<Vec<_>>>()?;
        let cluster = Cluster { members, etcd };
        cluster.await_reachable(&[])?;
        let [first, second] = &cluster.members[..] else { unreachable!("two were started") };
        ensure!(first.node.subnet_env()?.mtu == 1500, "the MTU is not that of the interface");
        let log = first.agent.log();
        ensure!(log.contains("packets travel as the commands of the extension backend have it"), "{log}");
        let subnet = second.node.subnet_env()?.subnet;
        let lease = &cluster.etcd.leases()?[&second.node.subnet_env()?.subnet];
        let published =
            json!({"PublicIP": second.node.address(), "PublicIPv6": null, "BackendType": "extension"});
        ensure!(*lease == published, "{lease}");

        // A peer that moves is removed and added; one whose lease ends is removed.
        let route = |text: &str, there: bool| {
            eventually(CONVERGENCE, text, || {
                let routes = first.node.netns().ip("route show")?;
                ensure!(routes.contains(text) == there, "{routes}");
                Ok(())
            })
        };
        let other = "10.244.190.0/24".parse()?;
        let at = |address: &str| {
            format!(r#"{{"PublicIP":"{address}","PublicIPv6":null,"BackendType":"extension"}}"#)
        };
        cluster.etcd.put_lease(other, &at("192.168.77.190"))?;
        route("10.244.190.0/24 via 192.168.77.190", true)?;
        cluster.etcd.put_lease(other, &at("192.168.77.191"))?;
        route("10.244.190.0/24 via 192.168.77.191", true)?;
        cluster.etcd.delete_lease(other)?;
        route("10.244.190.0/24", false)?;
        route(&subnet.to_string(), true)
    })
}

#[test]
fn a_shell_hands_on_what_a_command_says_and_how_it_ends() -> Result<()> {
    in_lab(|lab| {
        let etcd = configured(
            lab,
            r#"{"Type":"extension",
                "PreStartupCommand":"echo \"key of $WHO\"; echo working >&2",
                "PostStartupCommand":"echo \"$NETWORK $SUBNET $PUBLIC_IP\" > $OUT/post",
                "SubnetAddCommand":"read data; echo \"$SUBNET $PUBLIC_IP $data\" >> $OUT/added; test \"$SUBNET\" != 10.244.190.0/24 || { echo no such place; exit 7; }",
                "SubnetRemoveCommand":"echo $SUBNET >> $OUT/removed"}"#,
        )?;
        let nodes = [lab.node()?, lab.node()?];
        let mut agents = Vec::new();
        for node in &nodes {
            let mut agent = node.prepared_agent(&etcd, FastPath::Off);
            agent.set_variable("OUT", &node.dir().to_string_lossy());
            agent.set_variable("WHO", &node.name());
            agent.start_again()?;
            agents.push(agent);
        }
        let said = |name: &str, line: &str| {
            eventually(CONVERGENCE, line, || {
                let text = fs::read_to_string(nodes[0].dir().join(name)).context(name.to_owned())?;
                ensure!(text.lines().any(|found| found == line), "{text}");
                Ok(())
            })
        };
        let [own, other] = [&nodes[0], &nodes[1]].map(|node| node.subnet_env().map(|env| env.subnet));
        let (own, other) = (own?, other?);
        said("post", &format!("10.244.0.0/16 {own} {}", nodes[0].address()))?;
        let data = format!("key of {}", nodes[1].name());
        said("added", &format!("{other} {} {data}", nodes[1].address()))?;
        ensure!(etcd.leases()?[&other]["BackendData"] == json!(data), "{:?}", etcd.leases()?);

        let attrs = |data: &str| {
            format!(
                r#"{{"PublicIP":"192.168.77.190","PublicIPv6":null,"BackendType":"extension","BackendData":{data}}}"#
            )
        };
        let logged = |words: &str| {
            eventually(CONVERGENCE, words, || {
                let log = agents[0].log();
                ensure!(log.contains(words), "{log}");
                Ok(())
            })
        };
        etcd.put_lease("10.244.191.0/24".parse()?, &attrs(r#"{"a":1}"#))?;
        logged("BackendData: expected a string, found")?;
        let failing = r#"{"PublicIP":"192.168.77.199","PublicIPv6":null,"BackendType":"extension"}"#;
        etcd.put_lease("10.244.190.0/24".parse()?, failing)?;
        logged("exit status 7; it said: no such place")?;
        // It is tried again, for as long as its lease lasts.
        eventually(CONVERGENCE, "another try", || {
            let text = fs::read_to_string(nodes[0].dir().join("added"))?;
            ensure!(text.lines().filter(|line| line.starts_with("10.244.190.0/24")).count() > 2, "{text}");
            Ok(())
        })?;
        let third = "10.244.192.0/24".parse()?;
        etcd.put_lease(third, &attrs(r#""key of a third""#))?;
        said("added", "10.244.192.0/24 192.168.77.190 key of a third")?;
        etcd.delete_lease(third)?;
        said("removed", "10.244.192.0/24")
    })
}

#[test]
fn a_command_before_the_lease_that_fails_ends_the_start() -> Result<()> {
    in_lab(|lab| {
        let etcd = configured(lab, r#"{"Type":"extension","PreStartupCommand":"/no/such/program now"}"#)?;
        let node = lab.node()?;
        let mut agent = node.prepared_agent(&etcd, FastPath::Off);
        agent.launch()?;
        let status = agent.wait_for_end(Duration::from_secs(20))?;
        let log = agent.log();
        ensure!(status.code() == Some(1), "{status}\n{log}");
        ensure!(
            log.contains("PreStartupCommand (/no/such/program now) cannot be run: No such file"),
            "{log}"
        );
        ensure!(etcd.leases()?.is_empty(), "a subnet was taken");
        Ok(())
    })
}
