//! `subnet.env`: what the CNI plugin reads to set up pods, and what the next start reads to get the same
//! subnet again.

use std::{
    fmt::{Display, Write as _},
    fs::{self, DirBuilder},
    io::{self, Write as _},
    net::{Ipv4Addr, Ipv6Addr},
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
};

use ipnetwork::{IpNetwork, Ipv4Network, Ipv6Network};

use crate::{
    config::{cidr_v4, cidr_v6},
    host::replace::{Beside, Step, directory, replace},
    lease::LeaseSubnet,
};

pub mod lock;

/// What the file says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SubnetFile {
    /// `Network` and our subnet of it; absent on an IPv6-only node.
    pub v4: Option<(Ipv4Network, Ipv4Network)>,
    /// `IPv6Network` and our subnet of it.
    pub v6: Option<(Ipv6Network, Ipv6Network)>,
    /// MTU of pods, in bytes.
    pub mtu: u32,
    /// Whether we masquerade, so that the CNI plugin need not.
    pub ip_masq: bool,
}

/// What becomes of lines in the file that are not flannel's: options of docker, where `mk-docker-opts.sh` is told to
/// write them there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Others {
    /// They stay, behind ours.
    Kept,
    /// They go, as with stock flannel.
    Replaced,
}

/// The variables of the file that are ours.
const OURS: [&str; 6] = [
    "FLANNEL_NETWORK",
    "FLANNEL_SUBNET",
    "FLANNEL_IPV6_NETWORK",
    "FLANNEL_IPV6_SUBNET",
    "FLANNEL_MTU",
    "FLANNEL_IPMASQ",
];

/// The file could not be written.
#[derive(Debug, thiserror::Error)]
#[error("--subnet-file {path}: {doing}: {source}; pods cannot start on this node without it")]
pub struct WriteError {
    path: PathBuf,
    doing: &'static str,
    source: io::Error,
}

impl SubnetFile {
    /// The file's text. Subnets are written as their first host, which the bridge is to have.
    pub fn render(&self) -> String {
        let mut text = String::new();
        let mut line = |name: &str, value: &dyn Display| {
            // Writing to a String does not fail.
            let _ = writeln!(text, "FLANNEL_{name}={value}");
        };
        if let Some((network, subnet)) = self.v4 {
            line("NETWORK", &network);
            let host = Ipv4Addr::from(u32::from(subnet.network()).wrapping_add(1));
            line("SUBNET", &format_args!("{host}/{}", subnet.prefix()));
        }
        if let Some((network, subnet)) = self.v6 {
            line("IPV6_NETWORK", &network);
            let host = Ipv6Addr::from(u128::from(subnet.network()).wrapping_add(1));
            line("IPV6_SUBNET", &format_args!("{host}/{}", subnet.prefix()));
        }
        line("MTU", &self.mtu);
        line("IPMASQ", &self.ip_masq);
        text
    }

    /// Replaces the file, mode 0644, in one step: a reader finds the old text or the new, also after a crash.
    /// A missing directory is made, mode 0755.
    pub fn write(&self, path: &Path, others: Others) -> Result<(), WriteError> {
        let failed = |doing| move |source| WriteError { path: path.to_owned(), doing, source };
        DirBuilder::new()
            .recursive(true)
            .mode(0o755)
            .create(directory(path))
            .map_err(failed("cannot make its directory"))?;
        let kept = match others {
            Others::Kept => lines_of_others(path).map_err(failed("cannot read what others wrote there"))?,
            Others::Replaced => Vec::new(),
        };
        let text = [self.render().into_bytes(), kept].concat();
        let beside = Beside { prefix: ".subnet.env.", suffix: "", mode: Some(0o644) };
        replace(path, beside, |file| file.write_all(&text)).map_err(|(step, source)| {
            let doing = match step {
                Step::Make => "cannot make a file beside it",
                Step::Write => "cannot write a file beside it",
                Step::Replace => "cannot replace it",
                Step::Sync => "cannot sync its directory",
            };
            failed(doing)(source)
        })
    }
}

/// The lines of the file that are not ours, as they are.
fn lines_of_others(path: &Path) -> io::Result<Vec<u8>> {
    let text = match fs::read(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        text => text?,
    };
    let ours = |line: &[u8]| {
        let line = String::from_utf8_lossy(line);
        assignment(&line).is_some_and(|(name, _)| OURS.contains(&name))
    };
    let others = text.split_inclusive(|byte| *byte == b'\n').filter(|line| !ours(line));
    let mut kept: Vec<u8> = others.flatten().copied().collect();
    if kept.last().is_some_and(|last| *last != b'\n') {
        kept.push(b'\n');
    }
    Ok(kept)
}

/// What an earlier run left behind.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Previous {
    /// Our subnet then.
    pub subnet_v4: Option<Ipv4Network>,
    /// Our IPv6 subnet then.
    pub subnet_v6: Option<Ipv6Network>,
    /// `Network` then.
    pub network_v4: Option<Ipv4Network>,
    /// `IPv6Network` then.
    pub network_v6: Option<Ipv6Network>,
    /// What of the file could not be used, and why; one sentence each.
    pub ignored: Vec<String>,
}

impl Previous {
    /// Reads the file. One that is absent, or holds nonsense, is no error: it only has nothing to tell.
    pub fn read(path: &Path) -> Self {
        match fs::read(path) {
            Ok(bytes) => Self::parse(&String::from_utf8_lossy(&bytes)),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Self::default(),
            Err(e) => {
                Self { ignored: vec![format!("{} cannot be read: {e}", path.display())], ..Self::default() }
            }
        }
    }

    /// Reads the file's text.
    pub fn parse(text: &str) -> Self {
        let mut ignored = Vec::new();
        let subnet_v4 = network(text, "FLANNEL_SUBNET", cidr_v4, &mut ignored);
        let subnet_v6 = network(text, "FLANNEL_IPV6_SUBNET", cidr_v6, &mut ignored);
        let network_v4 = network(text, "FLANNEL_NETWORK", cidr_v4, &mut ignored);
        let network_v6 = network(text, "FLANNEL_IPV6_NETWORK", cidr_v6, &mut ignored);
        Self { subnet_v4, subnet_v6, network_v4, network_v6, ignored }
    }

    /// The networks then.
    pub fn networks(&self) -> Vec<IpNetwork> {
        let all = [self.network_v4.map(IpNetwork::V4), self.network_v6.map(IpNetwork::V6)];
        all.into_iter().flatten().collect()
    }

    /// What was leased to us then, if anything.
    pub fn lease(&self) -> Option<LeaseSubnet> {
        let subnet = LeaseSubnet { v4: self.subnet_v4, v6: self.subnet_v6 };
        (subnet.v4.is_some() || subnet.v6.is_some()).then_some(subnet)
    }
}

/// The one network that variable `name` holds. A list of several counts as none, and an entry that is
/// no network is skipped, as upstream does.
fn network<T>(text: &str, name: &str, parse: fn(&str) -> Option<T>, ignored: &mut Vec<String>) -> Option<T> {
    let value = text.lines().filter_map(assignment).rfind(|(key, _)| *key == name)?.1;
    let mut found = Vec::new();
    for entry in value.split(',').map(str::trim) {
        match parse(entry) {
            Some(network) => found.push(network),
            None => ignored.push(format!("{name}={entry} is not a network, as 10.244.1.1/24")),
        }
    }
    if found.len() > 1 {
        ignored.push(format!("{name}={value} is more than one network"));
        return None;
    }
    found.pop()
}

/// `NAME=value` or `NAME: value`, perhaps exported, quoted, or with a comment after it.
pub(crate) fn assignment(line: &str) -> Option<(&str, &str)> {
    let line = line.trim();
    let line = line.strip_prefix("export ").unwrap_or(line);
    if line.starts_with('#') {
        return None;
    }
    let (name, value) = line.split_once('=').or_else(|| line.split_once(':'))?;
    let value = value.trim();
    for quote in ['"', '\''] {
        if let Some((quoted, _)) = value.strip_prefix(quote).and_then(|rest| rest.split_once(quote)) {
            return Some((name.trim(), quoted.trim()));
        }
    }
    let bare = value.split_once(" #").map_or(value, |(bare, _)| bare);
    Some((name.trim(), bare.trim()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use proptest::prelude::*;

    use super::*;

    fn sample() -> SubnetFile {
        SubnetFile {
            v4: Some(("10.244.0.0/16".parse().unwrap(), "10.244.57.0/24".parse().unwrap())),
            v6: None,
            mtu: 1450,
            ip_masq: true,
        }
    }

    #[test]
    fn lines_as_upstream_writes_them() {
        let v4 = "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.57.1/24\n";
        let v6 = "FLANNEL_IPV6_NETWORK=fd00:10::/32\nFLANNEL_IPV6_SUBNET=fd00:10:0:29::1/64\n";
        let rest = "FLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n";
        assert_eq!(sample().render(), format!("{v4}{rest}"));
        let six = Some(("fd00:10::/32".parse().unwrap(), "fd00:10:0:29::/64".parse().unwrap()));
        assert_eq!(SubnetFile { v6: six, ..sample() }.render(), format!("{v4}{v6}{rest}"));
        assert_eq!(SubnetFile { v4: None, v6: six, ..sample() }.render(), format!("{v6}{rest}"));
    }

    #[test]
    fn written_whole_readable_by_all_and_nothing_left_beside() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("run/flannel/subnet.env");
        sample().write(&path, Others::Replaced).unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&path), 0o644);
        SubnetFile { ip_masq: false, ..sample() }.write(&path, Others::Kept).unwrap();
        assert!(fs::read_to_string(&path).unwrap().ends_with("FLANNEL_IPMASQ=false\n"));
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
        assert_eq!(Previous::read(&path).subnet_v4.unwrap().to_string(), "10.244.57.0/24");
    }

    #[test]
    fn what_others_wrote_into_the_file_stays_but_at_the_start() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("subnet.env");
        let others = b"# docker\nDOCKER_OPTS=\" --bip=10.244.57.1/24\n --mtu=1450\"\n\xff=1";
        let old = b"FLANNEL_SUBNET=10.244.57.1/24\nexport FLANNEL_MTU=1400\n";
        fs::write(&path, [&old[..], others].concat()).unwrap();
        for _ in 0..2 {
            sample().write(&path, Others::Kept).unwrap();
            let expected = [sample().render().as_bytes(), others, b"\n"].concat();
            assert_eq!(fs::read(&path).unwrap(), expected);
        }
        sample().write(&path, Others::Replaced).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), sample().render());
    }

    #[test]
    fn a_file_that_cannot_be_written_names_the_flag_and_the_path() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("file"), "").unwrap();
        let error =
            sample().write(&dir.path().join("file/subnet.env"), Others::Replaced).unwrap_err().to_string();
        assert!(
            error.starts_with("--subnet-file ") && error.contains("file/subnet.env: cannot make"),
            "{error}"
        );
        assert!(sample().write(dir.path(), Others::Replaced).is_err());
    }

    #[test]
    fn previous_subnet_quoted_and_commented() {
        for text in [
            "FLANNEL_SUBNET=10.244.57.1/24",
            "# FLANNEL_SUBNET=10.1.1.1/24\n  export FLANNEL_SUBNET = \"10.244.57.1/24\" # ours\r\n",
            "FLANNEL_SUBNET='10.244.57.1/24'",
            "FLANNEL_SUBNET: 10.244.57.1/24",
            "FLANNEL_SUBNET=10.1.1.1/24\nFLANNEL_SUBNET=10.244.57.1/24 # ours",
        ] {
            let previous = Previous::parse(text);
            assert_eq!(previous.subnet_v4.unwrap().to_string(), "10.244.57.0/24", "{text}");
            assert!(previous.ignored.is_empty());
        }
    }

    #[test]
    fn previous_networks_are_read_too() {
        let six = Some(("fd00:10::/32".parse().unwrap(), "fd00:10:0:29::/64".parse().unwrap()));
        let file = SubnetFile { v6: six, ..sample() };
        let previous = Previous::parse(&file.render());
        assert_eq!(previous.network_v4, file.v4.map(|(network, _)| network));
        assert_eq!(previous.network_v6, six.map(|(network, _)| network));
        assert_eq!(previous.subnet_v6, six.map(|(_, subnet)| subnet));
    }

    #[test]
    fn invalid_entries_are_skipped_and_several_are_none() {
        let previous = Previous::parse("FLANNEL_SUBNET=10.244.57.1/24,nonsense");
        assert!(previous.subnet_v4.is_some());
        assert_eq!(previous.ignored, ["FLANNEL_SUBNET=nonsense is not a network, as 10.244.1.1/24"]);
        let previous = Previous::parse("FLANNEL_SUBNET=10.244.57.1/24,10.244.58.1/24");
        assert_eq!(previous.subnet_v4, None);
        assert_eq!(
            previous.ignored,
            ["FLANNEL_SUBNET=10.244.57.1/24,10.244.58.1/24 is more than one network"]
        );
        assert_eq!(Previous::parse("FLANNEL_SUBNET=10.244.57.1").subnet_v4, None);
        assert_eq!(Previous::read(Path::new("/nonexistent/subnet.env")), Previous::default());
        assert_eq!(Previous::read(Path::new("/proc")).ignored.len(), 1);
    }

    proptest! {
        #[test]
        fn reading_never_panics(text in "\\PC{0,80}|(FLANNEL_SUBNET[=: ]['\"# 0-9./,\n]{0,30}){0,3}") {
            let _ = Previous::parse(&text);
        }
    }
}
