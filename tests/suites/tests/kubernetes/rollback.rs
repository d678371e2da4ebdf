//! A node of flannel becomes one of ours and one of flannel again, by the commands that
//! `flannel-agent/packaging/kubernetes/README.md` gives.

use flannel_lab::{Chain, SubnetEnv, in_kubernetes_lab, traffic::Paced};

use super::{
    installed::{Families, Installed, pod},
    *,
};

/// The commands of that chapter, in blocks, without their comments.
fn documented() -> Result<Vec<Vec<String>>> {
    let text = fs::read_to_string(manifest::directory().join("README.md"))?;
    let (_, chapter) = text.split_once("\n## From flannel to this, and back\n").context("the chapter")?;
    let chapter = chapter.split("\n## ").next().unwrap_or_default();
    let block = |block: &str| {
        let lines = block.split("```").next().unwrap_or_default().lines();
        lines.map(|line| line.split(" #").next().unwrap_or_default().trim().to_owned()).collect()
    };
    Ok(chapter.split("```sh\n").skip(1).map(block).collect())
}

struct Changing {
    node: Node,
    /// Ours; otherwise flannel runs, of which nothing acts unless asked to.
    agent: Option<Agent>,
    /// As somebody saved it.
    config: Option<Value>,
}

impl Changing {
    /// Does what `kubectl` would, and what follows in the cluster.
    fn command(&mut self, site: &Installed, command: &str) -> Result<()> {
        let map = format!("/api/v1/namespaces/{NAMESPACE}/configmaps/kube-flannel-cfg");
        let api = &site.kube.api;
        match command {
            "kubectl -n kube-flannel get configmap kube-flannel-cfg -o yaml >kube-flannel-cfg.yml" => {
                self.config = Some(api.get(&map)?["data"].take());
                Ok(())
            }
            "kubectl apply -f kube-flannel.yml" => {
                let mut objects = manifest::objects()?;
                let config = objects.iter_mut().find(|object| object["kind"] == "ConfigMap");
                config.context("a ConfigMap")?["data"]["net-conf.json"] =
                    self.config.as_ref().context("nothing was saved")?["net-conf.json"].clone();
                api.apply(&objects)
            }
            "kubectl apply -f flannels-own-kube-flannel.yml" => api.apply(&manifest::flannels()?),
            "kubectl -n kube-flannel rollout status daemonset/kube-flannel-ds" => self.roll_out(site),
            other => anyhow::bail!("the documentation has a command that is not tested: {other}"),
        }
    }

    /// Ends what runs and starts what the DaemonSet names now.
    fn roll_out(&mut self, site: &Installed) -> Result<()> {
        let set = format!("/apis/apps/v1/namespaces/{NAMESPACE}/daemonsets/{DAEMON_SET}");
        let set = site.kube.api.get(&set)?;
        let image = set["spec"]["template"]["spec"]["containers"][0]["image"].as_str().context("an image")?;
        if let Some(mut agent) = self.agent.take() {
            let status = agent.terminate()?;
            ensure!(status.success(), "SIGTERM ended the agent with {status}");
            site.flannel().delete_pod(&self.node)?;
        }
        if !image.contains("flannel-io/") {
            self.agent = Some(site.flannel().start_pod(&self.node)?);
            return Ok(());
        }
        Chain::install(&self.node)?;
        let mut stock = self.node.stock_with(site.kube.peer(&self.node.name())?)?;
        site.kube.annotate_as(&self.node.name(), stock.own())?;
        let peers = site.kube.members.iter().map(|member| site.kube.peer(&member.node.name()));
        peers.into_iter().try_for_each(|peer| stock.add_peer(peer?))
    }

    /// What both daemons leave as it is: device, address, file, and by the annotations MAC and node.
    fn identity(&self, site: &Installed) -> Result<String> {
        let link = self.node.netns().ip("-o link show dev flannel.1")?;
        let index = link.split(':').next().unwrap_or_default();
        let address = self.node.netns().ip("-4 -br addr show dev flannel.1")?;
        let annotations = site.kube.annotations(&self.node.name())?;
        Ok(format!("{index} {} {:?} {annotations:?}", address.trim(), self.node.subnet_env()?))
    }
}

#[test]
fn a_node_goes_from_flannel_to_ours_and_back_by_the_documented_commands() -> Result<()> {
    let documented = documented()?;
    ensure!(documented.len() == 2 && documented.iter().all(|block| block.len() >= 2), "{documented:?}");
    in_kubernetes_lab(|lab| {
        let mut site = Installed::start(lab, Families::V4, |_| ())?.with_nodes(lab, 2)?;
        let (node, mut stock) = site.join_stock(lab)?;
        SubnetEnv { ip_masq: true, ..node.subnet_env()? }.write(&node.subnet_file())?;
        node.load_flannel_rules()?;
        for member in &site.kube.members {
            stock.add_peer(site.kube.peer(&member.node.name())?)?;
        }
        site.kube.api.apply(&manifest::flannels()?)?;
        Chain::install(&node)?;
        let first = pod(&node, "pod1")?;
        let others = [first.endpoint()];
        site.kube.await_reachable(&others)?;
        let mut changing = Changing { node, agent: None, config: None };
        let before = changing.identity(&site)?;
        let bystanders = [site.kube.members[0].pod()?, site.kube.members[1].pod()?];

        let mut pods = vec![first];
        for (block, name) in documented.iter().zip(["pod2", "pod3"]) {
            let traffic = [
                Paced::usual(&bystanders[0], &bystanders[1])?,
                Paced::usual(&pods[0].endpoint(), &bystanders[0])?,
                Paced::usual(&changing.node.overlay_endpoint()?, &bystanders[1])?,
            ];
            for command in block {
                changing.command(&site, command).with_context(|| command.clone())?;
            }
            ensure!(changing.agent.is_some() == (name == "pod2"), "the other daemon runs");
            // Made by the plugin that came with the daemon, beside what the other's made.
            pods.push(pod(&changing.node, name)?);
            let endpoints: Vec<Endpoint> = pods.iter().map(Pod::endpoint).collect();
            site.kube.await_reachable(&endpoints)?;
            for one in traffic {
                let report = one.stop()?;
                println!("{}: {report}", block[block.len() - 2]);
                report.check_lossless()?;
            }
            let after = changing.identity(&site)?;
            ensure!(before == after, "before {before}\nafter {}\n{after}", block.join("; "));
        }
        ensure!(changing.agent.is_none(), "flannel is not back");
        // One daemon's plugin takes away what the other's made.
        pods.into_iter().try_for_each(Pod::remove)
    })
}
