//! What this process may do, for messages that name what is missing: the kernel only says no.

use std::fs;

use nix::sys::{
    prctl,
    resource::{Resource, getrlimit, setrlimit},
};

/// The effective capabilities, a bit each (include/uapi/linux/capability.h).
#[derive(Clone, Copy, Debug)]
pub struct Privileges(u64);

const NET_BIND_SERVICE: (u32, &str) = (10, "CAP_NET_BIND_SERVICE");
const NET_ADMIN: (u32, &str) = (12, "CAP_NET_ADMIN");
const SYS_ADMIN: (u32, &str) = (21, "CAP_SYS_ADMIN");
const PERFMON: (u32, &str) = (38, "CAP_PERFMON");
const BPF: (u32, &str) = (39, "CAP_BPF");

impl Privileges {
    /// Those of this process; `None` where the kernel does not tell.
    pub fn read() -> Option<Self> {
        Self::parse(&fs::read_to_string("/proc/self/status").ok()?)
    }

    fn parse(status: &str) -> Option<Self> {
        let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
        u64::from_str_radix(line.trim(), 16).ok().map(Self)
    }

    fn has(self, (bit, _): (u32, &str)) -> bool {
        self.0 & (1 << bit) != 0
    }

    /// What is missing to set up devices, routes and rules.
    pub fn missing_for_network(self) -> Option<&'static str> {
        (!self.has(NET_ADMIN)).then_some(NET_ADMIN.1)
    }

    /// What is missing for a port below 1024, as IKE has one: a process that this one starts has no more than it has.
    pub fn missing_for_ike(self) -> Option<&'static str> {
        (!self.has(NET_BIND_SERVICE)).then_some(NET_BIND_SERVICE.1)
    }

    /// What is missing to load and attach the programs.
    pub fn missing_for_bpf(self) -> Vec<&'static str> {
        let wanted = [NET_ADMIN, BPF, PERFMON].into_iter();
        let missing = wanted.filter(|one| !self.has(*one));
        // CAP_SYS_ADMIN takes in the two that came out of it with Linux 5.8.
        missing.filter(|one| *one == NET_ADMIN || !self.has(SYS_ADMIN)).map(|(_, name)| name).collect()
    }
}

/// Lets this process have as many files open as it may, as every Go program does: a look at the programs opens a link
/// a pod, and service managers start with room for 1024. Where the kernel refuses, it stays as it was.
pub fn raise_file_limit() {
    if let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE)
        && soft < hard
    {
        let _ = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
    }
}

/// How many files this process may have open: without an end where the kernel does not tell.
pub fn file_limit() -> u64 {
    getrlimit(Resource::RLIMIT_NOFILE).map_or(u64::MAX, |(soft, _)| soft)
}

/// What to do about too few.
pub fn too_few_files() -> String {
    format!(
        "this process may have {} files open: let it have {FILES} or more (LimitNOFILE= of its unit, `ulimit -n`, \
         --ulimit nofile= of its container)",
        file_limit()
    )
}

/// Enough for programs, maps and connections, and for the links of some hundred pods.
const FILES: u64 = 1024;
/// With fewer than these it would run out of them while packets depend on it.
pub const FEWEST_FILES: u64 = 128;

/// Has the kernel write no image of this process when it is killed or fails: the key and the password of etcd are in it.
/// The limit is for what dumps to a file; a program that cores are piped to is not bound by it (fs/coredump.c), but only
/// by whether the process may be dumped. Root may still trace it.
pub fn refuse_core_dumps() {
    // Neither fails: to give up a right takes none.
    let _ = setrlimit(Resource::RLIMIT_CORE, 0, 0);
    let _ = prctl::set_dumpable(false);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_has_a_name() {
        let of =
            |bits: u64| Privileges::parse(&format!("Name:\tx\nCapEff:\t{bits:016x}\nCapBnd:\t0\n")).unwrap();
        let all = of(u64::MAX);
        assert_eq!((all.missing_for_network(), all.missing_for_bpf()), (None, vec![]));
        assert_eq!(all.missing_for_ike(), None);
        assert_eq!(of(1 << 12).missing_for_ike(), Some("CAP_NET_BIND_SERVICE"));
        let none = of(0);
        assert_eq!(none.missing_for_network(), Some("CAP_NET_ADMIN"));
        assert_eq!(none.missing_for_bpf(), ["CAP_NET_ADMIN", "CAP_BPF", "CAP_PERFMON"]);
        assert_eq!(of(1 << 12 | 1 << 39).missing_for_bpf(), ["CAP_PERFMON"]);
        assert_eq!(of(1 << 12 | 1 << 21).missing_for_bpf(), [] as [&str; 0]);
        assert!(Privileges::parse("Name:\tx\n").is_none());
    }

    #[test]
    fn as_many_files_as_may_be() {
        let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
        setrlimit(Resource::RLIMIT_NOFILE, 256.min(hard), hard).unwrap();
        raise_file_limit();
        assert_eq!(getrlimit(Resource::RLIMIT_NOFILE).unwrap(), (hard, hard));
    }

    #[test]
    fn no_core_is_dumped_to_a_file_nor_to_a_program() {
        refuse_core_dumps();
        assert_eq!(getrlimit(Resource::RLIMIT_CORE).unwrap(), (0, 0));
        assert_eq!(prctl::get_dumpable(), Ok(false));
    }
}
