//! strongSwan's IKE daemon, charon: started, and told its keys and connections over VICI.

use std::{
    collections::BTreeMap,
    env, fs,
    net::Ipv4Addr,
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use ipnetwork::Ipv4Network;
use rsvici::Client;
use serde::{Deserialize, Serialize};
use tokio::time::{sleep, timeout};
use tracing::info;

use crate::{backend::BackendError, host::privileges::Privileges};

/// Where charon listens, unless it is configured otherwise.
const SOCKET: &str = "/var/run/charon.vici";
/// Its number, by which it tells whether another one runs.
const PID_FILE: &str = "/var/run/charon.pid";
/// Where upstream looks for it, after PATH.
const PLACES: [&str; 4] = [
    "/usr/lib/strongswan/charon",
    "/usr/lib/ipsec/charon",
    "/usr/libexec/strongswan/charon",
    "/usr/libexec/ipsec/charon",
];
/// How long it may take to start, and to answer.
const START: Duration = Duration::from_secs(10);
const PATIENCE: Duration = Duration::from_secs(10);

/// A connection as it is loaded.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Connection {
    pub(super) local: Ipv4Addr,
    pub(super) remote: Ipv4Addr,
    pub(super) local_subnet: Ipv4Network,
    pub(super) remote_subnet: Ipv4Network,
    pub(super) reqid: u32,
    pub(super) encap: bool,
    pub(super) esp_proposal: String,
}

impl Connection {
    /// Upstream's name of it.
    pub(super) fn name(&self) -> String {
        format!("{}-{}-{}-{}", self.local, self.local_subnet, self.remote_subnet, self.remote)
    }

    fn child(&self) -> String {
        format!("{}-{}", self.local_subnet, self.remote_subnet)
    }
}

/// The first and the last parts of a connection's name: the nodes, and their subnets.
pub(super) fn parts(name: &str) -> Option<(Ipv4Addr, Ipv4Network, Ipv4Network, Ipv4Addr)> {
    let mut parts = name.split('-');
    let mut next = || parts.next();
    let (local, local_subnet, remote_subnet, remote) = (next()?, next()?, next()?, next()?);
    let found =
        (local.parse().ok()?, local_subnet.parse().ok()?, remote_subnet.parse().ok()?, remote.parse().ok()?);
    parts.next().is_none().then_some(found)
}

#[derive(Serialize)]
struct LoadShared<'a> {
    id: String,
    #[serde(rename = "type")]
    kind: &'a str,
    data: &'a str,
    owners: Vec<String>,
}

#[derive(Serialize)]
struct Ike {
    version: &'static str,
    local_addrs: Vec<String>,
    remote_addrs: Vec<String>,
    proposals: Vec<&'static str>,
    keyingtries: &'static str,
    dpd_delay: &'static str,
    encap: bool,
    local: Auth,
    remote: Auth,
    children: BTreeMap<String, Child>,
}

#[derive(Serialize)]
struct Auth {
    auth: &'static str,
}

#[derive(Serialize)]
struct Child {
    local_ts: Vec<String>,
    remote_ts: Vec<String>,
    esp_proposals: Vec<String>,
    start_action: &'static str,
    close_action: &'static str,
    dpd_action: &'static str,
    mode: &'static str,
    reqid: String,
    rekey_time: &'static str,
    /// The policies are ours.
    policies: bool,
}

/// How charon took a command.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Outcome {
    success: Option<String>,
    errmsg: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Connections {
    conns: Vec<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct SharedKeys {
    keys: Vec<String>,
}

#[derive(Serialize)]
struct Named {
    name: String,
}

#[derive(Serialize)]
struct WithId {
    id: String,
}

#[derive(Serialize)]
struct Terminate {
    ike: String,
    force: bool,
    timeout: &'static str,
}

/// The daemon's file among these, as upstream looks for it.
fn program() -> Result<PathBuf, BackendError> {
    let in_path =
        env::var_os("PATH").into_iter().flat_map(|path| env::split_paths(&path).collect::<Vec<_>>());
    let places = in_path.map(|directory| directory.join("charon")).chain(PLACES.map(PathBuf::from));
    places.into_iter().find(|path| path.is_file()).ok_or_else(|| {
        BackendError::Other(format!(
            "strongSwan's IKE daemon charon is neither in PATH nor at {}: install it (Debian: strongswan-charon and \
             strongswan-swanctl), or use the wireguard backend",
            PLACES.join(", ")
        ))
    })
}

/// The daemon's file, if it would have its port: without the right to it, it runs and negotiates nothing.
fn startable() -> Result<PathBuf, BackendError> {
    let program = program()?;
    match Privileges::read().and_then(Privileges::missing_for_ike) {
        None => Ok(program),
        Some(missing) => Err(BackendError::Other(format!(
            "charon would not have UDP port 500, since this process starts it without {missing}: give it that \
             (CapabilityBoundingSet={missing} in a drop-in of its unit), or start charon by a service of its own"
        ))),
    }
}

/// Starts charon, unless one listens, and waits until it does. It goes on when this process ends, so that packets do, too.
pub(super) async fn start() -> Result<(), BackendError> {
    // Another one would take over the socket, see that one runs, and end: nobody could talk to the first any more.
    if wait_for_running().await? {
        return Ok(());
    }
    let program = startable()?;
    // One that was killed leaves its socket, and a file that says it runs: to charon any process of that number is one.
    let _ = fs::remove_file(SOCKET);
    let _ = fs::remove_file(PID_FILE);
    let mut command = Command::new(&program);
    command.stdin(Stdio::null()).process_group(0);
    let failed =
        |what: &str| BackendError::Other(format!("{} {what}; its own log says more", program.display()));
    let mut child = command.spawn().map_err(|error| failed(&format!("cannot be started: {error}")))?;
    info!(pid = child.id(), program = %program.display(), "charon started");
    let listens = async {
        while connect().await.is_err() {
            if let Ok(Some(status)) = child.try_wait() {
                return Err(failed(&format!("ended at once: {status}")));
            }
            sleep(Duration::from_millis(100)).await;
        }
        Ok(())
    };
    let started = timeout(START, listens).await.unwrap_or_else(|_| Err(failed("does not listen at VICI")));
    // Reaped whenever it ends.
    std::thread::spawn(move || drop(child.wait()));
    started
}

/// Whether a charon that runs comes to listen; `false` once there is none.
async fn wait_for_running() -> Result<bool, BackendError> {
    let running = || fs::read_to_string(PID_FILE).ok().filter(|pid| is_charon(pid.trim()));
    let comes = async {
        while running().is_some() {
            if connect().await.is_ok() {
                return true;
            }
            sleep(Duration::from_millis(100)).await;
        }
        false
    };
    timeout(START, comes).await.map_err(|_| {
        let pid = running().unwrap_or_default();
        let pid = pid.trim();
        BackendError::Other(format!(
            "charon runs as process {pid} and does not listen at {SOCKET}: another one, such as stock flannel's, was \
             started beside it, or its plugin vici is off; stop it (kill {pid}), and it is started again"
        ))
    })
}

/// Whether the process of that number is a charon of which more is left than how it ended.
fn is_charon(pid: &str) -> bool {
    let Ok(stat) = fs::read_to_string(format!("/proc/{pid}/stat")) else { return false };
    // The name in brackets may have any characters (proc(5)).
    let Some((before, after)) = stat.rsplit_once(") ") else { return false };
    before.ends_with("(charon") && !after.starts_with(['Z', 'X'])
}

/// Whether this node can have charon at all.
pub(super) fn check() -> Result<(), BackendError> {
    if Path::new(SOCKET).exists() { Ok(()) } else { startable().map(drop) }
}

/// A connection to charon.
pub(super) async fn connect() -> Result<Client, BackendError> {
    let connecting = timeout(PATIENCE, rsvici::unix::connect(SOCKET)).await;
    let connected = connecting.map_err(|_| BackendError::Other(format!("{SOCKET} does not answer")))?;
    connected.map_err(|error| BackendError::Other(format!("cannot connect to charon at {SOCKET}: {error}")))
}

async fn ask<T: Serialize, U: serde::de::DeserializeOwned>(
    client: &mut Client,
    command: &str,
    message: T,
) -> Result<U, BackendError> {
    let asked = timeout(PATIENCE, client.request(command, message)).await;
    let answer = asked.map_err(|_| BackendError::Other(format!("charon does not answer {command}")))?;
    answer.map_err(|error| BackendError::Other(format!("charon, asked to {command}: {error}")))
}

async fn tell<T: Serialize>(client: &mut Client, command: &str, message: T) -> Result<(), BackendError> {
    let outcome: Outcome = ask(client, command, message).await?;
    match outcome.success.as_deref() {
        Some("yes") => Ok(()),
        _ => Err(BackendError::Other(format!(
            "charon refused to {command}: {}",
            outcome.errmsg.unwrap_or_else(|| "it gives no reason".to_owned())
        ))),
    }
}

/// The names of the connections that charon has.
pub(super) async fn connections(client: &mut Client) -> Result<Vec<String>, BackendError> {
    Ok(ask::<_, Connections>(client, "get-conns", ()).await?.conns)
}

/// The identities whose keys charon has.
pub(super) async fn keys(client: &mut Client) -> Result<Vec<String>, BackendError> {
    Ok(ask::<_, SharedKeys>(client, "get-shared", ()).await?.keys)
}

/// The name under which the key for a node is loaded.
pub(super) fn key_id(node: Ipv4Addr) -> String {
    format!("flannel-{node}")
}

/// Loads the key for a node, and the connection to it, which is begun.
pub(super) async fn load(
    client: &mut Client,
    connection: &Connection,
    psk: &str,
) -> Result<(), BackendError> {
    for node in [connection.local, connection.remote] {
        let owners = vec![node.to_string()];
        let shared = LoadShared { id: key_id(node), kind: "IKE", data: psk, owners };
        tell(client, "load-shared", shared).await?;
    }
    let child = Child {
        local_ts: vec![connection.local_subnet.to_string()],
        remote_ts: vec![connection.remote_subnet.to_string()],
        esp_proposals: vec![connection.esp_proposal.clone()],
        start_action: "start",
        close_action: "trap",
        dpd_action: "restart",
        mode: "tunnel",
        reqid: connection.reqid.to_string(),
        rekey_time: "1h",
        policies: false,
    };
    let ike = Ike {
        version: "2",
        local_addrs: vec![connection.local.to_string()],
        remote_addrs: vec![connection.remote.to_string()],
        proposals: vec!["aes256-sha256-modp4096"],
        keyingtries: "0",
        dpd_delay: "30s",
        encap: connection.encap,
        local: Auth { auth: "psk" },
        remote: Auth { auth: "psk" },
        children: BTreeMap::from([(connection.child(), child)]),
    };
    tell(client, "load-conn", BTreeMap::from([(connection.name(), ike)])).await
}

/// Ends a connection and what it has negotiated, and forgets the key for its node.
pub(super) async fn unload(client: &mut Client, name: &str) -> Result<(), BackendError> {
    tell(client, "unload-conn", Named { name: name.to_owned() }).await?;
    if let Some((.., remote)) = parts(name) {
        // Another connection to the same node would be loaded with its key again.
        let _ = tell(client, "unload-shared", WithId { id: key_id(remote) }).await;
    }
    // Where nothing has been negotiated there is nothing to end, which is a refusal.
    let _ = tell(client, "terminate", Terminate { ike: name.to_owned(), force: true, timeout: "-1" }).await;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_charon_runs_until_it_ends_and_no_other_process_is_one() {
        let root = tempfile::tempdir().unwrap();
        let program = root.path().join("charon");
        std::os::unix::fs::symlink("/bin/sleep", &program).unwrap();
        for (program, expected) in [(program.as_path(), true), (Path::new("sleep"), false)] {
            let mut child = Command::new(program).arg("60").spawn().unwrap();
            let pid = child.id().to_string();
            assert_eq!(is_charon(&pid), expected);
            child.kill().unwrap();
            // Nobody has asked yet how it ended.
            while is_charon(&pid) {
                std::thread::yield_now();
            }
            child.wait().unwrap();
            assert!(!is_charon(&pid));
        }
    }

    #[test]
    fn a_connection_is_known_by_upstreams_name() {
        let connection = Connection {
            local: Ipv4Addr::new(192, 0, 2, 1),
            remote: Ipv4Addr::new(192, 0, 2, 2),
            local_subnet: "10.244.1.0/24".parse().unwrap(),
            remote_subnet: "10.244.2.0/24".parse().unwrap(),
            reqid: 11,
            encap: false,
            esp_proposal: String::new(),
        };
        assert_eq!(connection.name(), "192.0.2.1-10.244.1.0/24-10.244.2.0/24-192.0.2.2");
        assert_eq!(connection.child(), "10.244.1.0/24-10.244.2.0/24");
        let Connection { local, remote, local_subnet, remote_subnet, .. } = connection;
        assert_eq!(parts(&connection.name()), Some((local, local_subnet, remote_subnet, remote)));
        for other in ["", "office", "a-b-c-d", "192.0.2.1-10.244.1.0/24-10.244.2.0/24-192.0.2.2-more"] {
            assert_eq!(parts(other), None, "{other}");
        }
    }
}
