//! The API server is there, and nobody hears of it: connections stay, and nothing comes by them, for longer than a
//! watch is believed that says nothing.
//!
//! Most of it is waiting, so it begins first: `.config/nextest.toml`.

use std::{
    thread::sleep,
    time::{Duration, Instant},
};

use flannel_lab::{in_kubernetes_lab, traffic::Paced};

use super::{
    faults::stock_object,
    installed::{Families, Installed},
    *,
};

/// After so long every watch has had a bookmark, which the API server sends each minute: only then does an agent know
/// that silence means something.
const BOOKMARK: Duration = Duration::from_secs(70);
/// When silence is noticed at the latest: 150 s after the last bookmark, which came at the latest when silence began.
const NOTICED: Duration = Duration::from_secs(150 + 15);
/// For how long it stays silent beyond that: attempts to connect fail, with the longest pauses between them.
const BEYOND: Duration = Duration::from_secs(20);
/// How long the way back may take: the longest pause (10 s), an attempt that began just before (5 s), and a slow machine.
const RETURN: Duration = Duration::from_secs(40);

const GOES_ON: &str = "Known leases stay in force";

#[test]
fn a_server_that_falls_silent_is_noticed_and_followed_again() -> Result<()> {
    in_kubernetes_lab(|lab| {
        let mut site = Installed::start(lab, Families::V4, |_| ())?.with_nodes(lab, 2)?;
        site.kube.api.create("/api/v1/nodes", &stock_object("leaving", 101))?;
        for member in &site.kube.members {
            await_route(&member.node, &cidr(101), true)?;
        }
        let [a, b] = [site.pod(0, 0)?, site.pod(1, 0)?];
        let traffic = [Paced::usual(&a, &b)?, Paced::usual(&b, &site.pod(0, 1)?)?];
        sleep(BOOKMARK);
        let before: Vec<usize> = site.kube.members.iter().map(|member| member.agent.log().len()).collect();
        let since = |at: usize, member: &Member| member.agent.log().split_off(before[at]);
        for member in &site.kube.members {
            ensure!(!member.agent.log().contains(GOES_ON), "before it is silent: {}", member.agent.log());
        }

        let begun = Instant::now();
        site.kube.api.set_silent(true)?;
        // Of which nobody can know.
        site.kube.api.create("/api/v1/nodes", &stock_object("late", 100))?;
        site.kube.api.delete("/api/v1/nodes/leaving")?;
        for (at, member) in site.kube.members.iter().enumerate() {
            let left = NOTICED.saturating_sub(begun.elapsed());
            eventually(left, "the silence is noticed", || {
                let log = since(at, member);
                ensure!(log.contains("the watch has fallen silent") && log.contains(GOES_ON), "{log}");
                Ok(())
            })?;
        }
        println!("noticed {:?} after silence began", begun.elapsed());
        sleep(BEYOND);
        for (at, member) in site.kube.members.iter_mut().enumerate() {
            member.agent.check_running()?;
            let routes = member.node.netns().ip("route show")?;
            let [late, leaving] = [100, 101].map(|number| routes.contains(&cidr(number)));
            ensure!(!late && leaving, "not what was known when silence began:\n{routes}");
            let log = since(at, member);
            let (lines, said) = (log.lines().count(), log.matches(GOES_ON).count());
            println!(
                "{lines} lines about {:?} of silence, {said} of them that forwarding goes on",
                begun.elapsed()
            );
            ensure!(lines < 20, "{lines} lines about one silence:\n{log}");
        }
        site.await_reachable().context("at the end of the silence")?;

        site.kube.api.set_silent(false)?;
        let returned = Instant::now();
        for at in 0..2 {
            let node = &site.kube.members[at].node;
            eventually(RETURN, "what happened meanwhile is followed", || {
                let routes = node.netns().ip("route show")?;
                let [late, leaving] = [100, 101].map(|number| routes.contains(&cidr(number)));
                ensure!(late && !leaving, "{routes}");
                Ok(())
            })?;
            println!("{} followed {:?} after the return", node.name(), returned.elapsed());
            await_log(&site.kube.members[at].agent, "the API server answers again")?;
        }
        // What happens from now on is told at once.
        site.kube.api.delete("/api/v1/nodes/late")?;
        for at in 0..2 {
            await_route(&site.kube.members[at].node, &cidr(100), false)?;
            site.await_ready(at)?;
        }
        for one in traffic {
            let before = one.received();
            eventually(CONVERGENCE, "traffic goes on", || {
                let now = one.received();
                ensure!(now.0 > before.0 && now.1 > before.1, "{before:?}, then {now:?}");
                Ok(())
            })?;
            let report = one.stop()?;
            println!("{report}");
            report.check_lossless()?;
        }
        Ok(())
    })
}
