//! `mk-docker-opts.sh`: upstream's TestMkDockerOpts, and what else docker hosts rely on, under every shell
//! that is `/bin/sh` somewhere.

use std::{
    fs,
    path::PathBuf,
    process::{Command, Output},
};

use anyhow::{Context as _, Result, bail, ensure};
use flannel_ebpf_toolchain::workspace_root;
use flannel_lab::{command::tool, in_lab, requirements};

/// The subnet file of upstream's test.
const SUBNET_ENV: &str = "FLANNEL_NETWORK=10.1.0.0/16\n\
                          FLANNEL_SUBNET=10.1.74.1/24\n\
                          FLANNEL_MTU=1472\n\
                          FLANNEL_IPMASQ=false\n";

/// What interprets the script: itself by its first line, then Debian's, everyone's and Alpine's.
const SHELLS: [&[&str]; 4] = [&[], &["dash"], &["bash"], &["busybox", "sh"]];

fn script() -> PathBuf {
    workspace_root().join("flannel-agent/packaging/mk-docker-opts.sh")
}

/// One call of the script, and the directory its files are in.
struct Call {
    dir: tempfile::TempDir,
    command: Command,
}

impl Call {
    /// By `shell`, on a file that says `subnet_env`; nothing of the caller's environment counts.
    fn new(shell: &[&str], subnet_env: &str) -> Result<Self> {
        let dir = tempfile::tempdir()?;
        fs::write(dir.path().join("subnet.env"), subnet_env)?;
        let mut command = match shell {
            [] => tool(&script().to_string_lossy()),
            [program, arguments @ ..] => {
                let missing = || format!("no {program}: `cargo xtask setup` installs it");
                let mut command = tool(&requirements::find(program).with_context(missing)?.to_string_lossy());
                command.args(arguments).arg(script());
                command
            }
        };
        for (name, _) in std::env::vars_os() {
            if name != "PATH" {
                command.env_remove(name);
            }
        }
        command.current_dir(dir.path()).args(["-f", "subnet.env", "-d", "docker opts.env"]);
        Ok(Self { dir, command })
    }

    fn args(mut self, args: &[&str]) -> Self {
        self.command.args(args);
        self
    }

    fn env(mut self, name: &str, value: &str) -> Self {
        self.command.env(name, value);
        self
    }

    fn run(&mut self) -> Result<Output> {
        self.command.output().with_context(|| format!("{:?}", self.command))
    }

    /// What it wrote, if anything.
    fn written(&self) -> Option<String> {
        fs::read_to_string(self.dir.path().join("docker opts.env")).ok()
    }

    /// It succeeds silently and writes `expected`.
    fn writes(mut self, expected: &str) -> Result<()> {
        let output = self.run()?;
        ensure!(output.status.success() && output.stderr.is_empty(), "{:?}: {output:?}", self.command);
        let written = self.written().context("nothing was written")?;
        ensure!(written == expected, "{:?} wrote\n{written}instead of\n{expected}", self.command);
        Ok(())
    }

    /// It exits with 1, says `message` on stderr, and writes nothing.
    fn refuses(mut self, message: &str) -> Result<()> {
        let output = self.run()?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.code() == Some(1), "{:?}: {output:?}", self.command);
        ensure!(said.contains(message), "{:?} said {said:?}, not {message:?}", self.command);
        ensure!(self.written().is_none(), "{:?} wrote {:?}", self.command, self.written());
        Ok(())
    }
}

/// `check` under every shell, each time on upstream's subnet file.
fn in_every_shell(check: impl Fn(Call) -> Result<()>) -> Result<()> {
    for shell in SHELLS {
        check(Call::new(shell, SUBNET_ENV)?).with_context(|| format!("by {shell:?}"))?;
    }
    Ok(())
}

#[test]
fn mk_docker_opts_default() -> Result<()> {
    in_every_shell(|call| {
        call.writes(
            "DOCKER_OPT_BIP=\"--bip=10.1.74.1/24\"\n\
             DOCKER_OPT_IPMASQ=\"--ip-masq=true\"\n\
             DOCKER_OPT_MTU=\"--mtu=1472\"\n\
             DOCKER_OPTS=\" --bip=10.1.74.1/24 --ip-masq=true --mtu=1472\"\n",
        )
    })
}

#[test]
fn mk_docker_opts_individual() -> Result<()> {
    in_every_shell(|call| {
        call.args(&["-i"]).writes(
            "DOCKER_OPT_BIP=\"--bip=10.1.74.1/24\"\n\
             DOCKER_OPT_IPMASQ=\"--ip-masq=true\"\n\
             DOCKER_OPT_MTU=\"--mtu=1472\"\n",
        )
    })
}

#[test]
fn mk_docker_opts_combined() -> Result<()> {
    in_every_shell(|call| {
        call.args(&["-c"]).writes("DOCKER_OPTS=\" --bip=10.1.74.1/24 --ip-masq=true --mtu=1472\"\n")
    })
}

#[test]
fn mk_docker_opts_custom_key() -> Result<()> {
    in_every_shell(|call| {
        call.args(&["-k", "CUSTOM_KEY"]).writes(
            "DOCKER_OPT_BIP=\"--bip=10.1.74.1/24\"\n\
             DOCKER_OPT_IPMASQ=\"--ip-masq=true\"\n\
             DOCKER_OPT_MTU=\"--mtu=1472\"\n\
             CUSTOM_KEY=\" --bip=10.1.74.1/24 --ip-masq=true --mtu=1472\"\n",
        )
    })
}

#[test]
fn mk_docker_opts_without_ip_masq() -> Result<()> {
    in_every_shell(|call| {
        call.args(&["-m"]).writes(
            "DOCKER_OPT_BIP=\"--bip=10.1.74.1/24\"\n\
             DOCKER_OPT_MTU=\"--mtu=1472\"\n\
             DOCKER_OPTS=\" --bip=10.1.74.1/24 --mtu=1472\"\n",
        )
    })
}

/// docker masquerades exactly if flannel does not.
#[test]
fn docker_does_not_masquerade_what_flannel_does() -> Result<()> {
    for shell in SHELLS {
        let env = SUBNET_ENV.replace("IPMASQ=false", "IPMASQ=true");
        let call = Call::new(shell, &env)?.args(&["-c"]);
        call.writes("DOCKER_OPTS=\" --bip=10.1.74.1/24 --ip-masq=false --mtu=1472\"\n")?;
        let env = SUBNET_ENV.replace("IPMASQ=false", "IPMASQ=");
        Call::new(shell, &env)?.args(&["-c"]).writes("DOCKER_OPTS=\" --bip=10.1.74.1/24 --mtu=1472\"\n")?;
    }
    Ok(())
}

#[test]
fn invalid_values_are_refused_before_anything_is_written() -> Result<()> {
    for shell in SHELLS {
        for (right, wrong, message) in [
            ("IPMASQ=false", "IPMASQ=perhaps", "Invalid value of FLANNEL_IPMASQ: perhaps"),
            ("10.1.74.1/24", "10.1.74.1", "Invalid value of FLANNEL_SUBNET: 10.1.74.1"),
            ("10.1.74.1/24", "10.1.74/24", "Invalid value of FLANNEL_SUBNET: 10.1.74/24"),
            ("10.1.74.1/24", "10.1.274.1/24", "Invalid value of FLANNEL_SUBNET: 10.1.274.1/24"),
            ("10.1.74.1/24", "10.1.74.1/33", "Invalid value of FLANNEL_SUBNET: 10.1.74.1/33"),
            ("MTU=1472", "MTU=big", "Invalid value of FLANNEL_MTU: big"),
        ] {
            Call::new(shell, &SUBNET_ENV.replace(right, wrong))?.refuses(message)?;
        }
        // What is left out need not be right.
        let env = SUBNET_ENV.replace("IPMASQ=false", "IPMASQ=perhaps");
        let call = Call::new(shell, &env)?.args(&["-c", "-m"]);
        call.writes("DOCKER_OPTS=\" --bip=10.1.74.1/24 --mtu=1472\"\n")?;
    }
    Ok(())
}

#[test]
fn wrong_options_get_the_usage() -> Result<()> {
    in_every_shell(|call| call.args(&["-h"]).refuses("Usage: "))?;
    in_every_shell(|call| call.args(&["-?"]).refuses("Usage: "))?;
    in_every_shell(|call| call.args(&["-x"]).refuses("Usage: "))?;
    in_every_shell(|call| call.args(&["-k"]).refuses("Usage: "))?;
    // The key is read from the environment by name: nothing else may get into that line.
    in_every_shell(|call| call.args(&["-k", "A;reboot"]).refuses("cannot be the name of a variable"))
}

/// What the key holds in the environment stays in front, whatever is in it, and reads back the same.
#[test]
fn existing_options_stay_in_front_and_survive_quoting() -> Result<()> {
    const OWN: &str = r#"--label="a  b" --log-opt=tag='$x \ `id`'"#;
    const EXPECTED: &str = r#"--label="a  b" --log-opt=tag='$x \ `id`'  --bip=10.1.74.1/24 --mtu=1472"#;
    in_every_shell(|call| {
        let mut call = call.args(&["-c", "-m"]).env("DOCKER_OPTS", OWN);
        let output = call.run()?;
        ensure!(output.status.success(), "{output:?}");
        let file = call.dir.path().join("docker opts.env");
        let read =
            tool("sh").args(["-c", r#". "$1" && printf %s "$DOCKER_OPTS""#, "sh"]).arg(&file).output()?;
        let read = String::from_utf8(read.stdout)?;
        ensure!(read == EXPECTED, "reads back as {read}\nfrom {:?}", call.written());
        Ok(())
    })?;
    // Another key: what DOCKER_OPTS holds is not its business.
    in_every_shell(|call| {
        call.args(&["-c", "-m", "-k", "MINE"])
            .env("DOCKER_OPTS", "--debug")
            .env("MINE", "--icc=false")
            .writes("MINE=\"--icc=false  --bip=10.1.74.1/24 --mtu=1472\"\n")
    })
}

/// Options named like ours are passed on; a line of another variable's value is not taken for one.
#[test]
fn further_variables_named_docker_opt_are_passed_on() -> Result<()> {
    in_every_shell(|call| {
        call.args(&["-m"])
            .env("DOCKER_OPT_ZONE", "--label=zone=a b")
            .env("NOTE", "first\nDOCKER_OPT_NONE=second")
            .writes(
                "DOCKER_OPT_BIP=\"--bip=10.1.74.1/24\"\n\
                 DOCKER_OPT_MTU=\"--mtu=1472\"\n\
                 DOCKER_OPT_ZONE=\"--label=zone=a b\"\n\
                 DOCKER_OPTS=\" --bip=10.1.74.1/24 --mtu=1472 --label=zone=a b\"\n",
            )
    })
}

/// Without the file the environment is all there is; an IPv6-only node's file has no subnet for docker.
#[test]
fn values_come_from_the_environment_where_the_file_has_none() -> Result<()> {
    for shell in SHELLS {
        let call = Call::new(shell, SUBNET_ENV)?.args(&["-c", "-f", "absent.env"]);
        call.env("FLANNEL_SUBNET", "10.1.9.1/24").writes("DOCKER_OPTS=\" --bip=10.1.9.1/24\"\n")?;
        Call::new(shell, "FLANNEL_IPV6_SUBNET=fd00:9::1/64\nFLANNEL_MTU=1430\nFLANNEL_IPMASQ=true\n")?
            .args(&["-c"])
            .writes("DOCKER_OPTS=\" --ip-masq=false --mtu=1430\"\n")?;
    }
    Ok(())
}

#[test]
fn a_file_that_cannot_be_written_is_an_error() -> Result<()> {
    in_every_shell(|call| call.args(&["-d", "absent/docker.env"]).refuses("Cannot write absent/docker.env"))
}

/// Where the subnet already lies behind a gateway, docker would cut it off: refused, once everything is
/// written, as upstream does.
#[test]
fn an_existing_route_to_the_subnet_is_refused() -> Result<()> {
    in_lab(|lab| {
        let host = lab.netns("host")?;
        host.ip_batch(
            "link add eth0 type veth peer name other\n\
             addr add 192.168.77.1/24 dev eth0\n\
             link set eth0 up\n\
             route add 10.1.75.0/24 via 192.168.77.2\n\
             route add 110.1.74.0/24 via 192.168.77.2\n\
             route add 10.1.0.0/16 via 192.168.77.2\n",
        )?;
        let inside = |shell: &[&str]| -> Result<(Call, Output)> {
            let mut call = Call::new(shell, SUBNET_ENV)?.args(&["-c"]);
            let mut entered = tool("nsenter");
            entered.arg(format!("--net={}", host.path().display()));
            entered.arg(call.command.get_program()).args(call.command.get_args());
            entered.current_dir(call.dir.path());
            call.command = entered;
            let output = call.run()?;
            Ok((call, output))
        };
        for shell in SHELLS {
            // Neighbours, larger networks and numbers that look alike are no reason.
            let (call, output) = inside(shell)?;
            ensure!(output.status.success(), "{:?}: {output:?}", call.command);

            for route in ["10.1.74.0/24 via 192.168.77.2", "10.1.74.0/24 nexthop via 192.168.77.2"] {
                host.ip(&format!("route add {route}"))?;
                let (call, output) = inside(shell)?;
                host.ip("route del 10.1.74.0/24")?;
                let said = String::from_utf8_lossy(&output.stderr);
                ensure!(output.status.code() == Some(1), "{:?}: {output:?}", call.command);
                ensure!(
                    said.starts_with("Your routing table already contains the subnet: 10.1.74.0/24 "),
                    "said {said:?}"
                );
                let Some(written) = call.written() else { bail!("nothing was written") };
                ensure!(
                    written == "DOCKER_OPTS=\" --bip=10.1.74.1/24 --ip-masq=true --mtu=1472\"\n",
                    "wrote {written:?}"
                );
            }
            // What docker's own bridge or a blackhole of the node's own subnet adds is no gateway.
            host.ip("route add blackhole 10.1.74.0/24")?;
            let (call, output) = inside(shell)?;
            host.ip("route del 10.1.74.0/24")?;
            ensure!(output.status.success(), "{:?}: {output:?}", call.command);
        }
        Ok(())
    })
}
