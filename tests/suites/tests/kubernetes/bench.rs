//! The benchmark on nodes of Kubernetes.

use anyhow::{Context as _, Result, ensure};
use flannel_bench::{Case, Figure, Mode, Options, Scenario, Workload};
use flannel_lab::kubernetes_available;

/// With agents and without, a Service through kube-proxy; and packets take the path that its name says.
#[test]
fn the_benchmark_measures_nodes_of_kubernetes() -> Result<()> {
    if !kubernetes_available()? {
        return Ok(());
    }
    let flow = Case::new(Scenario::KubernetesService, Mode::Flow);
    let stock = Case::new(Scenario::KubernetesService, Mode::KernelRules);
    let nodes = Case::new(Scenario::KubernetesService, Mode::BareRules);
    ensure!(nodes.scenario == Scenario::Kubernetes, "its nodes have kube-proxy's rules: {nodes}");
    ensure!(!Scenario::USUAL.iter().any(|usual| usual.is_of_kubernetes()), "API servers beside every figure");
    let options = Options {
        cases: vec![stock, flow],
        workloads: vec![Workload::UdpPingPong],
        rounds: 1,
        seconds: 1,
        all_or_nothing: true,
    };
    let report = flannel_bench::run(&options, |now| println!("{now}"))?;
    println!("{report}");
    for case in [stock, flow] {
        let found = report.median(case, Figure::UdpPingPong).context("nothing was measured")?;
        ensure!(found > 0.0, "{case}: {found} µs");
    }
    let json = report.to_json();
    let share = json["fast_path_share_of_packets"][flow.to_string()].as_f64();
    // What is to be translated is seen twice: the pod's program leaves it to the host, the overlay's does not. That
    // packets between pods are fast was waited for.
    ensure!(share.is_some_and(|share| share > 0.4), "{share:?} of the packets of {flow} were fast");
    let stocks = |row: &serde_json::Value| row["mode"] == "flow" && row["to_kernel_rules"].is_number();
    ensure!(json["results"].as_array().into_iter().flatten().any(stocks), "no ratio to stock: {json:#}");
    Ok(())
}
