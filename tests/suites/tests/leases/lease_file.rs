//! Leases in a file, with neither etcd nor Kubernetes.

use std::{fs, path::PathBuf, time::Duration};

use anyhow::{Context as _, Result, ensure};
use flannel_common::reason::{Direction, Reason};
use flannel_lab::{
    AgentOptions, FastPath, Lab, Member,
    counters::Counters,
    eventually, in_lab,
    traffic::{Endpoint, every_kind_both_ways, reachability},
};

const PATIENCE: Duration = Duration::from_secs(30);

/// The file, with these nodes (and, of each, further fields) in it.
struct Nodes {
    path: PathBuf,
}

impl Nodes {
    fn text(nodes: &[(u8, &str)]) -> String {
        let entries = nodes.iter().map(|(number, further)| {
            format!(
                "- {{ name: node{number}, publicIP: 192.168.77.{number}, subnet: 10.244.{number}.0/24{further} }}\n"
            )
        });
        let network = "network:\n  Network: 10.244.0.0/16\n  Backend: { Type: vxlan }\nnodes:\n";
        network.to_owned() + &entries.collect::<String>()
    }

    /// As an operator should: whole, beside it, and then renamed.
    fn write(&self, nodes: &[(u8, &str)]) -> Result<()> {
        let beside = self.path.with_extension("new");
        fs::write(&beside, Self::text(nodes))?;
        fs::rename(beside, &self.path).context("rename")
    }

    fn start(&self, lab: &Lab, fast_path: FastPath) -> Result<Member> {
        let node = lab.node()?;
        let agent = node.agent_from_file(&self.path, AgentOptions::from(fast_path))?;
        let pods = vec![node.pod("pod1")?];
        Ok(Member { pods, agent, node })
    }
}

fn await_reachable(members: &[&Member]) -> Result<()> {
    let pods = members.iter().map(|member| member.pod()).collect::<Result<Vec<Endpoint>>>()?;
    eventually(PATIENCE, "everyone reaches everyone", || reachability(&pods).check_complete())
}

fn device_mac(member: &Member) -> Result<String> {
    let text = member.node.netns().ip("-o link show flannel.1")?;
    let mut words = text.split_whitespace().skip_while(|word| *word != "link/ether");
    words.nth(1).map(str::to_owned).context("no MAC")
}

/// Three nodes that know each other by the file alone; one that is taken out of it and comes back, one that gets
/// another MAC and another subnet, and content that cannot be used.
#[test]
fn nodes_of_a_file_make_a_cluster_and_follow_it() -> Result<()> {
    in_lab(|lab| {
        let file = Nodes { path: lab.dir().join("nodes.yaml") };
        let all = [(1, ""), (2, ", mac: '0e:00:00:00:00:02'"), (3, "")];
        file.write(&all)?;
        let a = file.start(lab, FastPath::All)?;
        let b = file.start(lab, FastPath::All)?;
        let c = file.start(lab, FastPath::Off)?;
        await_reachable(&[&a, &b, &c])?;
        ensure!(a.node.subnet_env()?.subnet.to_string() == "10.244.1.0/24", "{:?}", a.node.subnet_env()?);
        ensure!(device_mac(&a)? == "0e:04:0a:f4:01:00", "a has {}", device_mac(&a)?);
        ensure!(device_mac(&b)? == "0e:00:00:00:00:02", "b has {}", device_mac(&b)?);
        eventually(PATIENCE, "packets take the fast path", || {
            let before = Counters::read(&a.node.bpffs())?;
            every_kind_both_ways(&a.pod()?, &b.pod()?)?;
            let counted = Counters::read(&a.node.bpffs())?.since(&before);
            ensure!(counted.get(Direction::Egress, Reason::EncapPod).packets > 0, "{counted}");
            Ok(())
        })?;

        // What cannot be used, and what is written half: nothing changes.
        let routes = || a.node.netns().ip("route show dev flannel.1");
        let before = routes()?;
        let whole = Nodes::text(&all);
        for (garbage, part) in [
            ("", "cannot be used"),
            ("network: [", "cannot be used"),
            (&whole[..whole.len() - 20], "cannot be used"),
        ] {
            let said = a.agent.log().matches(part).count();
            fs::write(&file.path, garbage)?;
            eventually(PATIENCE, "the agent says what is wrong", || {
                ensure!(a.agent.log().matches(part).count() > said, "{}", a.agent.log());
                Ok(())
            })?;
            ensure!(routes()? == before, "{garbage:?} changed the routes");
            fs::write(&file.path, &whole)?;
            eventually(PATIENCE, "the agent reads it again", || {
                let log = a.agent.log();
                ensure!(log.rfind("lease file read") > log.rfind(part), "{log}");
                Ok(())
            })?;
        }
        await_reachable(&[&a, &b, &c])?;

        // A node goes, and comes back.
        file.write(&all[..2])?;
        eventually(PATIENCE, "the route to the node that is gone is gone", || {
            let routes = routes()?;
            ensure!(!routes.contains("10.244.3.0/24"), "{routes}");
            Ok(())
        })?;
        await_reachable(&[&a, &b])?;
        eventually(PATIENCE, "the node says that it is gone", || {
            ensure!(c.agent.log().contains("not in the lease file any more"), "{}", c.agent.log());
            Ok(())
        })?;
        file.write(&all)?;
        await_reachable(&[&a, &b, &c])?;

        // Another MAC: the device gets it, and peers learn it from the file.
        file.write(&[(1, ", mac: '0e:00:00:00:00:11'"), all[1], all[2]])?;
        eventually(PATIENCE, "the device has the MAC of the file", || {
            ensure!(device_mac(&a)? == "0e:00:00:00:00:11", "{}", device_mac(&a)?);
            Ok(())
        })?;
        await_reachable(&[&a, &b, &c])
    })
}

/// A restart takes the device that is there, and gives it the MAC that follows from the file.
#[test]
fn a_device_that_is_there_gets_the_mac_of_the_file() -> Result<()> {
    in_lab(|lab| {
        let file = Nodes { path: lab.dir().join("nodes.yaml") };
        file.write(&[(1, ""), (2, "")])?;
        let mut a = file.start(lab, FastPath::Flow)?;
        let b = file.start(lab, FastPath::Flow)?;
        await_reachable(&[&a, &b])?;
        a.agent.kill()?;
        a.node.netns().ip("link set flannel.1 address 0e:11:22:33:44:55")?;
        a.agent.start_again()?;
        await_reachable(&[&a, &b])?;
        ensure!(device_mac(&a)? == "0e:04:0a:f4:01:00", "{}", device_mac(&a)?);
        Ok(())
    })
}
