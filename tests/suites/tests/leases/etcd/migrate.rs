//! Leases moved from etcd's v2 store to its v3 store by `flannel-agent etcd-migrate`, with every node running.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    process::{Child, Command, Output, Stdio},
    sync::atomic::{AtomicUsize, Ordering},
    thread,
    time::Instant,
};

use anyhow::{Context as _, Result, ensure};
use flannel_lab::{
    CONVERGENCE, Cluster, FastPath, agent_binary,
    command::Daemon,
    eventually, in_lab,
    traffic::{Paced, every_kind_both_ways},
};

use super::{v2::start, *};

const CONFIG: &str = r#"{"Network":"10.3.0.0/16"}"#;

fn config_key() -> String {
    format!("{PREFIX}/config")
}

fn migrate(endpoint: &str, words: &[&str]) -> Command {
    let mut command = Command::new(agent_binary().unwrap());
    command.arg("etcd-migrate").arg(format!("--etcd-endpoints={endpoint}")).args(words);
    command
}

fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// Killed when dropped.
struct Running(Child);

impl Running {
    fn start(etcd: &Etcd) -> Self {
        let errors =
            std::fs::File::options().create(true).append(true).open(etcd.path("migrate.log")).unwrap();
        let mut command = migrate(&etcd.endpoint(), &[]);
        Self(command.stdout(Stdio::null()).stderr(errors).spawn().unwrap())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A cluster of flannel 0.11: what its nodes write has no `PublicIPv6`.
fn cluster_in_v2(nodes: u8) -> Etcd {
    let etcd = start();
    etcd.ctl_v2(&["mk", &config_key(), CONFIG]).unwrap();
    (1..=nodes).for_each(|number| lease_in_v2(&etcd, number, 86_400));
    etcd
}

fn value(number: u8) -> String {
    format!(
        r#"{{"PublicIP":"192.0.2.{number}","BackendType":"vxlan","BackendData":{{"VtepMAC":"0e:00:00:00:00:{number:02x}"}}}}"#
    )
}

fn name(number: u8) -> String {
    key(&format!("10.3.{number}.0-24"))
}

fn lease_in_v2(etcd: &Etcd, number: u8, ttl: u32) {
    etcd.ctl_v2(&["set", "--ttl", &ttl.to_string(), &name(number), &value(number)]).unwrap();
}

fn in_v2(etcd: &Etcd, key: &str) -> Option<String> {
    etcd.ctl_v2(&["get", key]).ok()
}

fn in_v3(etcd: &Etcd, key: &str) -> Option<String> {
    etcd.get(key).unwrap()
}

fn await_that(what: &str, is: impl Fn() -> bool) {
    let begun = Instant::now();
    while !is() {
        assert!(begun.elapsed() < SOON, "not {what}");
        thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_dry_run_shows_all_there_is_and_writes_nothing() {
    let etcd = cluster_in_v2(2);
    etcd.ctl_v2(&["set", &name(9), &value(9)]).unwrap();
    etcd.ctl_v2(&["set", &key("10.3.8.0-24"), "{damaged"]).unwrap();
    let output = migrate(&etcd.endpoint(), &["--dry-run"]).output().unwrap();
    assert!(output.status.success(), "{}", said(&output));
    let text = said(&output);
    for part in ["10.3.1.0/24", "192.0.2.1", "copy to v3", "no end", "leave it", "config", "0 of 4 leases"] {
        assert!(text.contains(part), "{part}: {text}");
    }
    assert!(etcd.keys("/").unwrap().is_empty(), "nothing is written");
    // What a node took in v3 by mistake, and one that never was in v2.
    etcd.put(&key("10.3.1.0-24"), &value(7)).unwrap();
    etcd.put(&key("10.3.66.0-24"), &value(2)).unwrap();
    etcd.put(&config_key(), r#"{"Network":"10.4.0.0/16"}"#).unwrap();
    for words in [&["--dry-run", "-o", "json"][..], &[]] {
        let output = migrate(&etcd.endpoint(), words).output().unwrap();
        let text = said(&output);
        assert!(!output.status.success(), "{text}");
        for part in [
            "10.3.1.0/24 is leased to 192.0.2.1 in v2 and to 192.0.2.7 in v3",
            "node 192.0.2.2 holds 10.3.2.0/24 in v2 and 10.3.66.0/24 in v3",
            "the network configs of v2 and v3 differ",
        ] {
            assert!(text.contains(part), "{part}: {text}");
        }
    }
    assert_eq!(etcd.keys("/").unwrap().len(), 3, "nothing is written");
    // What to type is what it says.
    let text = said(&migrate(&etcd.endpoint(), &["--dry-run"]).output().unwrap());
    for key in [key("10.3.1.0-24"), key("10.3.66.0-24"), config_key()] {
        let command = format!("ETCDCTL_API=3 etcdctl --endpoints={} del {key}", etcd.endpoint());
        assert!(text.contains(&command), "{command}: {text}");
        assert!(Command::new("sh").args(["-c", &command]).status().unwrap().success());
    }
    let output = migrate(&etcd.endpoint(), &["--dry-run"]).output().unwrap();
    assert!(output.status.success(), "{}", said(&output));
}

/// Between the command and etcd: after so many pieces of what it asks, it is killed, and nothing more gets through.
struct Killer {
    address: SocketAddr,
    passed: Arc<AtomicUsize>,
}

impl Killer {
    fn after(pieces: usize, etcd: &Etcd, child: Arc<Mutex<Option<Child>>>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (address, target) = (listener.local_addr().unwrap(), etcd.address());
        let passed = Arc::new(AtomicUsize::new(0));
        let count = passed.clone();
        thread::spawn(move || {
            for here in listener.incoming().flatten() {
                let there = TcpStream::connect(target).unwrap();
                let (mut back, mut here_again) = (there.try_clone().unwrap(), here.try_clone().unwrap());
                thread::spawn(move || io::copy(&mut back, &mut here_again));
                let (mut here, mut there) = (here, there);
                let (count, child) = (count.clone(), child.clone());
                thread::spawn(move || {
                    let mut piece = vec![0; 65_536];
                    while let Ok(read @ 1..) = here.read(&mut piece) {
                        if count.fetch_add(1, Ordering::SeqCst) >= pieces {
                            if let Some(child) = child.lock().unwrap().as_mut() {
                                let _ = child.kill();
                            }
                            return;
                        }
                        if there.write_all(&piece[..read]).is_err() {
                            return;
                        }
                    }
                });
            }
        });
        Self { address, passed }
    }

    /// Runs the command until it is killed, ends, or is `done`; whether it was killed.
    fn run(pieces: usize, etcd: &Etcd, words: &[&str], done: impl Fn() -> bool) -> bool {
        let child = Arc::new(Mutex::new(None));
        let killer = Self::after(pieces, etcd, child.clone());
        let mut command = migrate(&format!("http://{}", killer.address), words);
        let spawned = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        *child.lock().unwrap() = Some(spawned);
        let begun = Instant::now();
        loop {
            let ended = child.lock().unwrap().as_mut().unwrap().try_wait().unwrap().is_some();
            if ended || (killer.passed.load(Ordering::SeqCst) <= pieces && done()) {
                let mut child = child.lock().unwrap().take().unwrap();
                let _ = child.kill();
                let _ = child.wait();
                return killer.passed.load(Ordering::SeqCst) > pieces;
            }
            assert!(begun.elapsed() < SOON, "neither killed nor done after {pieces} pieces");
            thread::sleep(Duration::from_millis(30));
        }
    }
}

#[test]
fn killed_at_each_step_it_goes_on_where_it_was() {
    let etcd = cluster_in_v2(2);
    let copied = || in_v3(&etcd, &config_key()).is_some();
    let leases = || etcd.ctl(&["get", "--prefix", "--print-value-only", &key("")]).unwrap();
    let both = [value(1), value(2)].join("\n");
    let mut steps = 0;
    loop {
        etcd.ctl(&["del", "--prefix", PREFIX]).unwrap();
        let killed = Killer::run(steps, &etcd, &[], copied);
        assert!(!copied() || leases() == both, "the config is there before the leases, after {steps} pieces");
        // And again, with nobody in the way.
        let running = Running::start(&etcd);
        await_that("copied", copied);
        drop(running);
        assert_eq!(leases(), both, "after {steps} pieces");
        if !killed {
            break;
        }
        steps += 1;
    }
    assert!(steps > 10, "{steps} steps");
    for number in [1, 2] {
        assert_eq!(in_v2(&etcd, &name(number)), Some(value(number)));
        let ttl = etcd.ttl(&name(number)).unwrap().unwrap();
        assert!((86_000..=86_400).contains(&ttl), "{ttl}");
    }
    // Their nodes move; then what v2 has is removed, killed at each step of that, too.
    let running = Running::start(&etcd);
    for number in [1, 2] {
        etcd.put_for(86_400, &name(number), &node(number).to_json()).unwrap();
        await_that("in v2", || in_v2(&etcd, &name(number)) == Some(node(number).to_json()));
    }
    drop(running);
    let mut steps = 0;
    while Killer::run(steps, &etcd, &["--finish"], || false) {
        steps += 1;
        assert_eq!(leases(), [node(1).to_json(), node(2).to_json()].join("\n"), "after {steps} pieces");
    }
    assert!(steps > 5, "{steps} steps");
    assert!(etcd.ctl_v2(&["ls", &format!("{PREFIX}/subnets")]).unwrap().is_empty());
    assert!(in_v2(&etcd, &config_key()).is_none());
    assert_eq!(etcd.keys("/").unwrap(), [config_key(), name(1), name(2)], "no note is left");
    assert!(etcd.ttl(&name(1)).unwrap().unwrap() > 86_000);
}

#[test]
fn what_becomes_of_a_lease_in_one_store_becomes_of_it_in_the_other() {
    let etcd = cluster_in_v2(3);
    etcd.ctl_v2(&["set", &name(9), &value(9)]).unwrap();
    let mut running = Running::start(&etcd);
    await_that("copied", || in_v3(&etcd, &config_key()).is_some());
    assert_eq!(etcd.ttl(&name(9)).unwrap(), None, "a reservation stays one");
    // Renewed, with another MAC, and new in v2.
    etcd.ctl_v2(&["set", "--ttl", "86400", &name(1), &node(1).to_json()]).unwrap();
    lease_in_v2(&etcd, 4, 50_000);
    await_that("renewed in v3", || in_v3(&etcd, &name(1)) == Some(node(1).to_json()));
    await_that("new in v3", || in_v3(&etcd, &name(4)) == Some(value(4)));
    let ttl = etcd.ttl(&name(4)).unwrap().unwrap();
    assert!((49_900..=50_000).contains(&ttl), "{ttl}");
    // A node that starts in v3, and one that moves there.
    etcd.put_for(40_000, &name(5), &node(5).to_json()).unwrap();
    etcd.put_for(86_400, &name(2), &node(2).to_json()).unwrap();
    await_that("new in v2", || in_v2(&etcd, &name(5)) == Some(node(5).to_json()));
    await_that("moved in v2", || in_v2(&etcd, &name(2)) == Some(node(2).to_json()));
    let ttl = etcd.ttl_v2(&name(5)).unwrap();
    assert!((39_900..=40_000).contains(&ttl), "{ttl}");
    // Of a node that is in v2, a copy that somebody deletes comes back; and the other way round.
    etcd.delete(&name(3)).unwrap();
    etcd.ctl_v2(&["rm", &name(5)]).unwrap();
    await_that("back in v3", || in_v3(&etcd, &name(3)) == Some(value(3)));
    await_that("back in v2", || in_v2(&etcd, &name(5)) == Some(node(5).to_json()));
    // What ends where its node writes it ends in both.
    etcd.ctl_v2(&["rm", &name(4)]).unwrap();
    etcd.delete(&name(5)).unwrap();
    await_that("gone from v3", || in_v3(&etcd, &name(4)).is_none());
    await_that("gone from v2", || in_v2(&etcd, &name(5)).is_none());
    lease_in_v2(&etcd, 6, 5);
    etcd.put_for(5, &name(7), &node(7).to_json()).unwrap();
    await_that("in v3 for a while", || in_v3(&etcd, &name(6)).is_some());
    await_that("in v2 for a while", || in_v2(&etcd, &name(7)).is_some());
    await_that("expired", || {
        let stores = |number| (in_v2(&etcd, &name(number)), in_v3(&etcd, &name(number)));
        [6, 7].map(stores).iter().all(|both| *both == (None, None))
    });
    // Two nodes with one subnet: both are left, and it is said.
    let log = || std::fs::read_to_string(etcd.path("migrate.log")).unwrap();
    running.0.kill().unwrap();
    lease_in_v2(&etcd, 10, 86_400);
    etcd.put_for(86_400, &name(10), &node(11).to_json()).unwrap();
    etcd.ctl_v2(&["set", &key("10.3.12.0-24"), "{damaged"]).unwrap();
    let _running = Running::start(&etcd);
    await_that("named", || {
        log().contains("10.3.10.0/24 is leased to 192.0.2.10 in v2 and to 192.0.2.11 in v3")
    });
    await_that("named", || log().contains("cannot be read as a lease"));
    assert_eq!(
        (in_v2(&etcd, &name(10)), in_v3(&etcd, &name(10))),
        (Some(value(10)), Some(node(11).to_json()))
    );
    assert!(in_v3(&etcd, &key("10.3.12.0-24")).is_none(), "no node has to read it");
    etcd.ctl_v2(&["rm", &name(10)]).unwrap();
    await_that("resolved", || in_v2(&etcd, &name(10)) == Some(node(11).to_json()));
    // The configuration, too.
    etcd.put(&config_key(), r#"{"Network":"10.3.0.0/16","SubnetLen":25}"#).unwrap();
    await_that("in v2", || in_v2(&etcd, &config_key()).is_some_and(|config| config.contains("25")));
}

#[test]
fn it_is_neither_finished_nor_undone_too_early() {
    let etcd = cluster_in_v2(2);
    let run = |words: &[&str]| migrate(&etcd.endpoint(), words).output().unwrap();
    let output = run(&["--finish"]);
    assert!(
        !output.status.success() && said(&output).contains("v3 lacks 10.3.1.0/24 (192.0.2.1)"),
        "{}",
        said(&output)
    );
    let running = Running::start(&etcd);
    await_that("copied", || in_v3(&etcd, &config_key()).is_some());
    drop(running);
    let output = run(&["--finish"]);
    assert!(
        !output.status.success() && said(&output).contains("keep their leases in v2"),
        "{}",
        said(&output)
    );
    let output = run(&["--undo"]);
    assert!(output.status.success(), "{}", said(&output));
    assert!(etcd.keys("/").unwrap().is_empty(), "as before");
    assert_eq!(in_v2(&etcd, &name(1)), Some(value(1)));
    // One has moved: it has to come back first.
    let running = Running::start(&etcd);
    await_that("copied", || in_v3(&etcd, &config_key()).is_some());
    etcd.put_for(86_400, &name(1), &node(1).to_json()).unwrap();
    await_that("moved", || in_v2(&etcd, &name(1)) == Some(node(1).to_json()));
    drop(running);
    let output = run(&["--undo"]);
    assert!(
        !output.status.success() && said(&output).contains("10.3.1.0/24 (192.0.2.1)"),
        "{}",
        said(&output)
    );
    let output = run(&["--finish", "--force"]);
    assert!(output.status.success() && said(&output).contains("2 leases"), "{}", said(&output));
    let output = run(&["--dry-run"]);
    assert!(said(&output).contains("the v2 store has no /coreos.com/network/config"), "{}", said(&output));
}

/// Two agents and a node of flannel 0.11 in v2; they move to v3 one after the other, as the page says, with the command
/// killed between, and nobody loses a packet.
#[test]
fn nodes_move_to_v3_one_at_a_time() -> Result<()> {
    in_lab(|lab| {
        let mut cluster = Cluster::start_v2(lab, 2, FastPath::All)?;
        let old_node = lab.node()?;
        let mut old = old_node.stock()?;
        old.publish_v2(&cluster.etcd)?;
        old.sync_v2(&cluster.etcd)?;
        let old_pod = old_node.pod("pod1")?;
        cluster.await_reachable(&[old_pod.endpoint()])?;
        let endpoint = cluster.etcd.endpoint().to_owned();
        let netns = cluster.members[0].node.netns().clone();
        let log = lab.dir().join("migrate.log");
        let command = |words: &[&str]| -> Result<Command> {
            let mut command = netns.command(&agent_binary()?.to_string_lossy());
            command.arg("etcd-migrate").arg(format!("--etcd-endpoints={endpoint}")).args(words);
            Ok(command)
        };
        let first = command(&["--dry-run"])?.output()?;
        ensure!(first.status.success(), "{}", said(&first));
        let pods = (cluster.members[0].pod()?, cluster.members[1].pod()?);
        let between = Paced::usual(&pods.0, &pods.1)?;
        let to_old = Paced::usual(&pods.1, &old_pod.endpoint())?;
        let mut daemon = Daemon::spawn(&mut command(&[])?, &log)?;
        let copied = |etcd: &flannel_lab::Etcd| etcd.leases().map(|leases| leases.len() == 3);
        eventually(CONVERGENCE, "leases are copied", || {
            ensure!(copied(&cluster.etcd)?, "not all");
            ensure!(
                cluster.etcd.ctl(&["get", "--print-value-only", &config_key()])?.contains("Network"),
                "no config"
            );
            Ok(())
        })?;
        for index in 0..2 {
            let member = &mut cluster.members[index];
            let subnet = member.node.subnet_env()?.subnet;
            member.agent.kill()?;
            daemon.kill()?;
            member.agent.set_flag("etcd-api", "v3");
            member.agent.start_again()?;
            ensure!(member.node.subnet_env()?.subnet == subnet, "another subnet");
            daemon = Daemon::spawn(&mut command(&[])?, &log)?;
        }
        // A node that joins, and the old one follows as 0.11 does.
        let joined = cluster.join(lab, FastPath::All)?.node.subnet_env()?.subnet;
        eventually(CONVERGENCE, "the newcomer is in v2", || {
            ensure!(cluster.etcd.leases_v2()?.contains_key(&joined), "not yet");
            Ok(())
        })?;
        old.sync_v2(&cluster.etcd)?;
        cluster.await_reachable(&[old_pod.endpoint()])?;
        every_kind_both_ways(&cluster.members[2].pod()?, &old_pod.endpoint())?;
        let early = command(&["--dry-run"])?.output()?;
        ensure!(said(&early).contains("3 of 4 leases are kept in v3"), "{}", said(&early));
        ensure!(
            daemon.wait(Duration::from_millis(300))?.is_none(),
            "it ended before the last node has moved"
        );
        // The last one gets a flannel that knows v3.
        old.publish(&cluster.etcd)?;
        let ended = daemon.wait(CONVERGENCE)?.context("it goes on after the last node has moved")?;
        ensure!(ended.success(), "{}", daemon.log());
        let last = command(&["--finish"])?.output()?;
        ensure!(last.status.success(), "{}", said(&last));
        ensure!(cluster.etcd.leases_v2()?.is_empty(), "leases are left in v2");
        cluster.await_reachable(&[old_pod.endpoint()])?;
        between.stop()?.check_lossless()?;
        to_old.stop()?.check_lossless()
    })
}
