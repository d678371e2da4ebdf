//! `cargo xtask scale` with few nodes.

#![cfg(test)]

use anyhow::Result;
use flannel_bench::scale;

#[test]
fn agents_without_a_kernel_reach_each_other_before_and_after_etcd_restarts() -> Result<()> {
    let options = scale::Options { nodes: vec![5], changes: 2, seconds: 1 };
    let report = scale::run(&options, |_| {})?;
    // What is not reached is an error; here it is that something was measured.
    let json = report.to_json();
    for result in json["results"].as_array().into_iter().flatten() {
        for part in ["start", "changes", "restart"] {
            for cost in ["etcd_cpu_us", "etcd_sent_bytes", "etcd_requests", "agents_cpu_us"] {
                let found = result[part][cost].as_f64();
                assert!(found.is_some_and(|cost| cost > 0.0), "{part}, {cost}: {found:?} of {json:#}");
            }
        }
    }
    assert_eq!(json["results"].as_array().map(Vec::len), Some(1));
    assert_eq!(json["model"].as_array().map(Vec::len), Some(3));
    let text = report.to_string();
    assert!(text.contains("10000 nodes: what gives out first: "), "{text}");
    Ok(())
}
