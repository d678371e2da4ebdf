//! What holds the UDP port or VNI of a VXLAN device: the kernel's error is only that it is in use.

use std::{fs, io, path::Path};

use nix::errno::Errno;

use crate::{
    netlink::{Link, LinkKind, Netlink, NetlinkError, Vxlan},
    plan::VxlanDevice,
    values::Family,
};

/// Explains why `wanted` cannot be made or set up, where the kernel's `error` is that something is taken already.
///
/// # Errors
/// When the interfaces cannot be read.
pub(super) async fn explained(
    netlink: &mut Netlink,
    wanted: &VxlanDevice,
    error: NetlinkError,
) -> Result<NetlinkError, NetlinkError> {
    let Some(Errno::EEXIST | Errno::EADDRINUSE) = error.errno() else { return Ok(error) };
    let links = netlink.links().await?;
    if let Some(rival) = same_vni(wanted, &links) {
        return Ok(NetlinkError::Conflict(format!(
            "VNI {} on UDP port {} is taken by device {rival}: delete it (ip link delete {rival}), or configure \
             another VNI or Port",
            wanted.vni, wanted.port
        )));
    }
    if error.errno() == Some(Errno::EEXIST) {
        return Ok(error);
    }
    let port = wanted.port;
    if let Some((rival, how)) = other_kind(wanted, &links) {
        return Ok(NetlinkError::Conflict(format!(
            "UDP port {port} is taken by device {rival}, a VXLAN device of another kind ({how}), which shares it with \
             none of flannel's: delete it (ip link delete {rival}) if it was left by another network plugin, or \
             configure another Backend.Port"
        )));
    }
    let holder = tokio::task::spawn_blocking(move || Holder::of(port)).await.unwrap_or(Holder::Unknown);
    Ok(NetlinkError::Conflict(match holder {
        Holder::Process { pid, command } => format!(
            "UDP port {port} is taken by process {pid} ({command}): stop it, or configure another Backend.Port"
        ),
        Holder::Unknown => format!(
            "UDP port {port} is taken by a socket of the kernel (a tunnel that is not VXLAN: GENEVE, FOU, WireGuard) or \
             of a process that is not seen from here: `ip -d link` and `ss -lunp sport = :{port}` on the host show it. \
             Remove it, or configure another Backend.Port"
        ),
    }))
}

fn same_vni<'a>(wanted: &VxlanDevice, links: &'a [Link]) -> Option<&'a str> {
    let same =
        |vxlan: Vxlan| vxlan.vni == wanted.vni && vxlan.port == wanted.port && !vxlan.reception.external;
    let is_rival =
        |link: &&Link| link.name != wanted.name && matches!(link.kind, LinkKind::Vxlan(vxlan) if same(vxlan));
    links.iter().find(is_rival).map(|link| link.name.as_str())
}

/// A VXLAN device that has the socket of the port, and shares it only with those like it; what it is.
fn other_kind<'a>(wanted: &VxlanDevice, links: &'a [Link]) -> Option<(&'a str, &'static str)> {
    links.iter().filter(|link| link.up && link.name != wanted.name).find_map(|link| {
        let LinkKind::Vxlan(vxlan) = link.kind else { return None };
        let reception = vxlan.reception;
        // One that is not bound to an address has sockets of both families if it is external, else one of IPv4.
        let family = vxlan.local.map_or(Family::V4, Family::of);
        if vxlan.port != wanted.port || !(reception.external || family == wanted.family()) {
            return None;
        }
        let how = if reception.external {
            "external, as of Cilium or Open vSwitch"
        } else if vxlan.gbp != wanted.gbp {
            if vxlan.gbp { "with GBP" } else { "without GBP" }
        } else if reception.extended != [false; 2] {
            "with GPE or a filter of VNIs"
        } else if reception.checksums != [false; 3] {
            "with other checksums"
        } else {
            return None;
        };
        Some((link.name.as_str(), how))
    })
}

/// Who has a UDP port.
#[derive(Debug, PartialEq, Eq)]
enum Holder {
    Process { pid: u32, command: String },
    Unknown,
}

impl Holder {
    fn of(port: u16) -> Self {
        let tables = ["/proc/self/net/udp", "/proc/self/net/udp6"];
        let inodes: Vec<String> = tables
            .iter()
            .filter_map(|table| fs::read_to_string(table).ok())
            .flat_map(|table| inodes(&table, port))
            .map(|inode| format!("socket:[{inode}]"))
            .collect();
        if inodes.is_empty() {
            return Self::Unknown;
        }
        // Processes come and go while they are looked at.
        let Ok(processes) = fs::read_dir("/proc") else { return Self::Unknown };
        for process in processes.flatten() {
            let Some(pid) = process.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else {
                continue;
            };
            if has_one_of(&process.path(), &inodes).unwrap_or(false) {
                let command = fs::read_to_string(process.path().join("comm")).unwrap_or_default();
                return Self::Process { pid, command: command.trim().to_owned() };
            }
        }
        Self::Unknown
    }
}

fn has_one_of(process: &Path, sockets: &[String]) -> io::Result<bool> {
    let mut open =
        fs::read_dir(process.join("fd"))?.flatten().filter_map(|file| fs::read_link(file.path()).ok());
    Ok(open.any(|target| sockets.iter().any(|socket| target.as_os_str() == socket.as_str())))
}

/// The inodes of the sockets bound to `port`, from the text of `/proc/net/udp` or `/proc/net/udp6`.
fn inodes(table: &str, port: u16) -> Vec<u64> {
    let inode = |line: &str| {
        let mut words = line.split_whitespace();
        let (_, bound) = words.nth(1)?.rsplit_once(':')?;
        let same = u16::from_str_radix(bound, 16) == Ok(port);
        same.then(|| words.nth(7)?.parse().ok()).flatten()
    };
    table.lines().skip(1).filter_map(inode).filter(|inode| *inode != 0).collect()
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;

    use super::*;
    use crate::{netlink::Reception, values::Mac};

    fn wanted() -> VxlanDevice {
        VxlanDevice {
            name: "flannel.1".to_owned(),
            vni: 1,
            port: 8472,
            underlay_ifindex: 2,
            local: "192.0.2.1".parse().unwrap(),
            mac: Mac([0x0e, 0, 0, 0, 0, 1]),
            mtu: 1450,
            learning: false,
            gbp: false,
        }
    }

    fn link(name: &str, up: bool, vxlan: Vxlan) -> Link {
        Link { up, carrier: up, ..Link::plain(9, name, LinkKind::Vxlan(vxlan), 1450) }
    }

    #[test]
    fn only_a_device_that_cannot_share_the_port_is_in_the_way() {
        let neighbour = Vxlan { vni: 9, port: 8472, ..Vxlan::default() };
        let reception = Reception { external: true, ..Reception::default() };
        let external = Vxlan { vni: 0, reception, ..neighbour };
        let rival = |links: &[Link]| other_kind(&wanted(), links).map(|(name, _)| name.to_owned());
        let name = |name: &str| Some(name.to_owned());
        assert_eq!(rival(&[link("vx9", true, neighbour), link("flannel.1", true, external)]), None);
        assert_eq!(
            rival(&[link("vx9", true, neighbour), link("cilium_vxlan", true, external)]),
            name("cilium_vxlan")
        );
        assert_eq!(rival(&[link("down", false, external)]), None);
        assert_eq!(rival(&[link("other", true, Vxlan { port: 4789, ..external })]), None);
        assert_eq!(rival(&[link("group", true, Vxlan { gbp: true, ..neighbour })]), name("group"));
        let v6 = Vxlan { local: Some("fd00::1".parse().unwrap()), gbp: true, ..neighbour };
        assert_eq!(rival(&[link("of IPv6", true, v6)]), None, "that is another socket");
        let same = [link("flannel.1", true, neighbour), link("vx1", false, Vxlan { vni: 1, ..neighbour })];
        assert_eq!(same_vni(&wanted(), &same), Some("vx1"));
        assert_eq!(same_vni(&wanted(), &same[..1]), None);
    }

    #[test]
    fn the_process_that_has_a_port_is_found() {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let port = socket.local_addr().unwrap().port();
        let Holder::Process { pid, command } = Holder::of(port) else { panic!("it is not found") };
        assert_eq!(pid, std::process::id());
        assert!(!command.is_empty());
    }

    #[test]
    fn a_table_that_is_none_names_nobody() {
        for table in
            ["", "header", "header\n 1: 0100007F:2118", "header\n 1: x:2118 0 0 0 0 0 0 0 y", "h\n:::::"]
        {
            assert!(inodes(table, 8472).is_empty(), "{table:?}");
        }
    }
}
