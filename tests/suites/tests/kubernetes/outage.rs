//! The API server is away for longer than any of the agent's patience with it, and credentials change meanwhile.

use std::{
    thread::sleep,
    time::{Duration, Instant},
};

use flannel_lab::{in_kubernetes_lab, traffic::Paced};

use super::{
    faults::stock_object,
    installed::{Families, Installed, pod},
    *,
};

/// Longer than all that may be waited for: an answer or a token file's being read again (60 s each), a pause between
/// attempts (10 s), a connection (5 s).
const OUTAGE: Duration = Duration::from_secs(72);
/// Of it, for how long connections are refused; then nobody answers at all.
const REFUSED: Duration = Duration::from_secs(25);

/// Pods talk, pods are made and taken away, an agent restarts, tokens are renewed as kubelet does each hour, and the
/// API server is not there.
#[test]
fn a_long_outage_loses_nothing_and_tokens_change_meanwhile() -> Result<()> {
    in_kubernetes_lab(|lab| {
        let mut site = Installed::start(lab, Families::V4, |_| ())?.with_nodes(lab, 2)?;
        let [a, b] = [site.pod(0, 0)?, site.pod(1, 0)?];
        let old = site.flannel().token(&site.kube.members[0].node)?;
        for member in &site.kube.members {
            // What the old token stands for is gone; the container runs on.
            site.flannel().renew_token(&member.node)?;
        }
        let traffic = [Paced::usual(&a, &b)?, Paced::usual(&b, &site.pod(0, 1)?)?];
        let begun = Instant::now();
        site.kube.api.stop()?;
        for member in &site.kube.members {
            await_log(&member.agent, "Known leases stay in force")?;
        }
        let restarted = &mut site.kube.members[1];
        restarted.agent.kill()?;
        restarted.agent.launch()?;
        let probe = format!("http://{}:8081/healthz", restarted.node.address());
        eventually(CONVERGENCE, "an agent that waits is alive", || {
            restarted.node.netns().run("curl", &["--silent", "--show-error", "--fail", &probe])
        })?;
        for member in &mut site.kube.members {
            let added = pod(&member.node, "pod3")?;
            member.pods.push(added);
        }
        site.await_reachable().context("without an API server")?;
        sleep(REFUSED.saturating_sub(begun.elapsed()));
        site.kube.api.set_silent(true)?;
        sleep(OUTAGE.saturating_sub(begun.elapsed()));
        for member in &mut site.kube.members {
            member.pods.pop().context("the pod made meanwhile")?.remove()?;
            let added = pod(&member.node, "pod4")?;
            member.pods.push(added);
            let said = member.agent.log().matches("Known leases stay in force").count();
            ensure!(said < 20, "{said} lines about one outage:\n{}", member.agent.log());
        }
        site.await_reachable().context("at the end of the outage")?;
        site.kube.api.set_silent(false)?;
        site.kube.api.start()?;

        let refused = site.kube.api.request_as(&old, "GET", "/api/v1/nodes", None)?;
        ensure!(refused.status == 401, "the old token still does: {}", refused.status);
        site.kube.api.create("/api/v1/nodes", &stock_object("late", 100))?;
        for at in 0..2 {
            site.await_ready(at)?;
            let member = &site.kube.members[at];
            await_log(&member.agent, "the API server answers")?;
            await_route(&member.node, &cidr(100), true)?;
            // Writing takes the new token, too.
            let name = member.node.name();
            let good = site.kube.annotations(&name)?;
            site.kube.annotate(&name, &[("backend-data", "nonsense")])?;
            eventually(CONVERGENCE, "its annotations are mended", || {
                let now = site.kube.annotations(&name)?;
                ensure!(now == good, "{now:?}");
                Ok(())
            })?;
        }
        for one in traffic {
            let report = one.stop()?;
            println!("{report}");
            report.check_lossless()?;
        }
        site.join(lab)?;
        site.await_reachable()
    })
}
