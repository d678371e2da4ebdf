//! `etcd-migrate`: leases from etcd's v2 store to its v3 store, with every node running.

use anyhow::bail;
use comfy_table::Table;
use serde_json::json;
use tokio::signal::unix::{SignalKind, signal};

use super::{bpf::Output, output::print};
use crate::{
    lease::etcd::{
        EtcdOptions,
        migrate::{Held, Look, Migration, Row, Store},
    },
    values::utc,
};

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Task {
    /// Show both stores.
    Look(Output),
    /// Copy, and keep both in step until the last node has moved.
    KeepInStep,
    /// Remove v2's.
    Finish {
        /// Whatever v2 still has.
        force: bool,
    },
    /// Remove v3's.
    Undo,
}

/// Does it, from the v2 store of the etcd in `options` to its v3 store, or to that of the one at `to`.
///
/// # Errors
/// What cannot be done, with what to do about it.
pub fn run(options: &EtcdOptions, to: Option<&str>, task: Task) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let migration = Migration::connect(options, to)?;
        match task {
            Task::Look(output) => show(&migration.look().await?, output),
            Task::Finish { force } => {
                let leases = migration.finish(force).await?;
                tell(format_args!(
                    "removed the network config and {leases} leases from the v2 store: flannel uses v3 only"
                ))
            }
            Task::Undo => {
                let leases = migration.undo().await?;
                tell(format_args!(
                    "removed the network config and the copies of {leases} leases from the v3 store"
                ))
            }
            Task::KeepInStep => {
                let mut terminate = signal(SignalKind::terminate())?;
                let mut interrupt = signal(SignalKind::interrupt())?;
                tokio::select! {
                    result = migration.run() => result?,
                    _ = terminate.recv() => bail!("{STOPPED}"),
                    _ = interrupt.recv() => bail!("{STOPPED}"),
                }
                tell("every node keeps its lease in v3: `etcd-migrate --finish` removes what is left in v2")
            }
        }
    })
}

const STOPPED: &str =
    "stopped before every node had moved: the stores are not kept in step until etcd-migrate runs again";

fn show(look: &Look, output: Output) -> anyhow::Result<()> {
    match output {
        Output::Table => tell(table(look))?,
        Output::Json => {
            let rows: Vec<_> = look.rows.iter().map(row_json).collect();
            tell(json!({ "keys": rows, "conflicts": look.conflicts }))?;
        }
    }
    if look.conflicts.is_empty() {
        return Ok(());
    }
    bail!("the stores contradict each other: {}", look.conflicts.join(" | "))
}

/// Prints a line, or lines. Who does not read on is no failure.
fn tell(text: impl std::fmt::Display) -> anyhow::Result<()> {
    print(&format!("{text}\n")).map(drop)
}

fn table(look: &Look) -> String {
    let mut table = Table::new();
    table.set_header(["key", "node", "in v2 until", "in v3 until", "node writes", "to do"]);
    for row in &look.rows {
        table.add_row([
            row.name.clone(),
            row.node.map_or_else(|| "-".to_owned(), |node| node.to_string()),
            until(row.stores[0]),
            until(row.stores[1]),
            writes(row).to_owned(),
            row.to_do.to_owned(),
        ]);
    }
    let leases = || look.rows.iter().filter(|row| row.name != "config");
    let moved = leases().filter(|row| row.home == Some(Store::V3)).count();
    format!("{table}\n{moved} of {} leases are kept in v3 by their nodes", leases().count())
}

fn until(held: Held) -> String {
    match held {
        Held::Absent => "-".to_owned(),
        Held::Reserved => "no end".to_owned(),
        Held::Until(end) => utc(end),
    }
}

/// The store that the row's node writes; of a configuration nobody does.
fn writes(row: &Row) -> &'static str {
    match row.home.filter(|_| row.name != "config") {
        Some(store) => store.label(),
        None => "-",
    }
}

fn row_json(row: &Row) -> serde_json::Value {
    let held = |held: Held| match held {
        Held::Absent => json!(null),
        Held::Reserved => json!({ "until": null }),
        Held::Until(end) => json!({ "until": utc(end) }),
    };
    json!({
        "key": row.name, "node": row.node, "v2": held(row.stores[0]), "v3": held(row.stores[1]),
        "writes": row.home.map(Store::label), "toDo": row.to_do,
    })
}
