//! Whose a lock or a port is, for messages: who finds it taken is to know what to stop.

use std::{
    fs::{self, File},
    net::{IpAddr, SocketAddr},
    os::{linux::fs::MetadataExt as _, unix::fs::MetadataExt as _},
    path::Path,
};

use nix::sys::stat::{major, minor};

use crate::values::shorten;

/// Longest command line in a message, in characters.
const SHOWN: usize = 200;
/// State of a listening socket in /proc/net/tcp (include/net/tcp_states.h, `TCP_LISTEN`).
const LISTENING: &str = "0A";

/// The process that holds the flock(2) of `file`; `None` where the kernel does not show it, as one in another PID
/// namespace.
pub fn of_lock(file: &File) -> Option<u32> {
    let metadata = file.metadata().ok()?;
    let (device, inode) = (metadata.st_dev(), metadata.ino());
    in_locks(
        &fs::read_to_string("/proc/locks").ok()?,
        &format!("{:02x}:{:02x}:{inode}", major(device), minor(device)),
    )
}

/// `1: FLOCK  ADVISORY  WRITE 4711 08:01:1234 0 EOF`: the process that has `object`, not one that waits for it.
fn in_locks(table: &str, object: &str) -> Option<u32> {
    table.lines().find_map(|line| match line.split_whitespace().collect::<Vec<_>>()[..] {
        [_, "FLOCK", _, _, pid, held, ..] if held == object => pid.parse().ok().filter(|pid| *pid > 0),
        _ => None,
    })
}

/// The process that listens where a bind to `address` (TCP) finds it in use; `None` where the kernel does not tell us.
pub fn of_port(address: SocketAddr) -> Option<u32> {
    let inode = ["/proc/net/tcp", "/proc/net/tcp6"]
        .into_iter()
        .find_map(|table| in_sockets(&fs::read_to_string(table).ok()?, address))?;
    let socket = format!("socket:[{inode}]");
    let processes = fs::read_dir("/proc").ok()?.flatten();
    processes.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok()).find(|pid| {
        let files = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
        files.filter_map(|file| fs::read_link(file.path()).ok()).any(|target| target == Path::new(&socket))
    })
}

/// Inode of the socket that listens at the port of `address`, and at its address or at all.
fn in_sockets(table: &str, address: SocketAddr) -> Option<u64> {
    table.lines().skip(1).find_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let (ip, port) = fields.get(1)?.split_once(':')?;
        let at = read_address(ip)?;
        let same = at == address.ip() || at.is_unspecified() || address.ip().is_unspecified();
        let ours = u16::from_str_radix(port, 16).ok()? == address.port() && same;
        (ours && *fields.get(3)? == LISTENING).then(|| fields.get(9)?.parse().ok())?
    })
}

/// Words of 32 bits in hexadecimal, each in the machine's byte order (net/ipv4/tcp_ipv4.c, `get_openreq4`).
fn read_address(text: &str) -> Option<IpAddr> {
    let words = text
        .as_bytes()
        .chunks(8)
        .map(|word| u32::from_str_radix(std::str::from_utf8(word).ok()?, 16).ok().map(u32::to_ne_bytes));
    let bytes = words.collect::<Option<Vec<_>>>()?.concat();
    let v4 = <[u8; 4]>::try_from(bytes.as_slice()).map(IpAddr::from);
    v4.or_else(|_| <[u8; 16]>::try_from(bytes.as_slice()).map(IpAddr::from)).ok().map(|ip| ip.to_canonical())
}

/// `process 4711 (/usr/bin/flanneld --ip-masq)`, without secrets; without the command line where it cannot be read.
pub fn describe(pid: u32) -> String {
    let words = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let shown = shorten(&command_line(&words), SHOWN);
    if shown.is_empty() { format!("process {pid}") } else { format!("process {pid} ({shown})") }
}

/// The words of a command line, each of which ends with a NUL.
fn command_line(words: &[u8]) -> String {
    let mut shown = Vec::new();
    let mut secret = false;
    for word in words.split(|byte| *byte == 0) {
        let word = String::from_utf8_lossy(word);
        match word.split_once('=') {
            _ if secret => shown.push("<hidden>".to_owned()),
            Some((name, _)) if is_secret(name) => shown.push(format!("{name}=<hidden>")),
            _ => shown.push(word.escape_debug().to_string()),
        }
        secret = !secret && is_secret(&word);
    }
    shown.join(" ").trim().to_owned()
}

fn is_secret(flag: &str) -> bool {
    flag.trim_start_matches('-').to_ascii_lowercase().ends_with("password")
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn the_holder_of_a_lock_is_told_from_one_that_waits() {
        let table = "1: FLOCK  ADVISORY  WRITE 47 08:01:12 0 EOF\n\
                     2: FLOCK  ADVISORY  WRITE 48 08:01:123 0 EOF\n\
                     2: -> FLOCK  ADVISORY  WRITE 49 08:01:124 0 EOF\n\
                     3: POSIX  ADVISORY  WRITE 50 08:01:125 0 EOF\n";
        assert_eq!(in_locks(table, "08:01:123"), Some(48));
        assert_eq!(in_locks(table, "08:01:124"), None);
        assert_eq!(in_locks(table, "08:01:125"), None);
        let file = tempfile::tempfile().unwrap();
        assert_eq!(of_lock(&file), None);
        file.lock().unwrap();
        assert_eq!(of_lock(&file), Some(std::process::id()));
    }

    #[test]
    fn who_listens_is_found_by_any_address_that_excludes_another() {
        for (held, wanted) in [
            ("127.0.0.1:0", "127.0.0.1"),
            ("127.0.0.1:0", "0.0.0.0"),
            ("0.0.0.0:0", "127.0.0.1"),
            ("[::]:0", "127.0.0.1"),
        ] {
            let listener = TcpListener::bind(held).unwrap();
            let port = listener.local_addr().unwrap().port();
            let address = SocketAddr::new(wanted.parse().unwrap(), port);
            assert_eq!(of_port(address), Some(std::process::id()), "{held} {wanted}");
            drop(listener);
            assert_eq!(of_port(address), None);
        }
        assert_eq!(
            in_sockets(
                "head\n 0: 0100007F:2117 00000000:0000 0A\n 1: x\n\n",
                "127.0.0.1:8471".parse().unwrap()
            ),
            None
        );
    }

    #[test]
    fn a_command_line_is_shown_without_secrets() {
        assert_eq!(command_line(b"/bin/sh\0-c\0exec a\nb\0"), "/bin/sh -c exec a\\nb");
        for words in ["flanneld\0--etcd-password=x y\0-v\x002\0", "flanneld\0-etcd-password\0x y\0-v\x002\0"]
        {
            let shown = command_line(words.as_bytes());
            assert!(
                !shown.contains("x y") && shown.ends_with("<hidden> -v 2")
                    || shown.contains("=<hidden> -v 2"),
                "{shown}"
            );
        }
        assert_eq!(describe(u32::MAX), format!("process {}", u32::MAX));
        assert!(describe(std::process::id()).contains(" ("));
    }
}
