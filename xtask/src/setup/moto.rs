//! moto's server, an EC2 for the tests of routes in Amazon's cloud: one that is here, else from PyPI, in an environment of
//! its own.

use std::{path::PathBuf, process::Command};

use anyhow::Result;
use flannel_ebpf_toolchain::{MOTO_VERSION, find_in_path, moto_dir};

use super::tools::{Found, run};
use crate::{failure::failure, ui::Step};

/// Debian's packages that bring Python and its environments.
const PACKAGES: [&str; 2] = ["python3", "python3-venv"];

/// Those that are missing.
pub(super) fn missing_packages() -> impl Iterator<Item = &'static str> {
    let tried = Command::new("python3").args(["-c", "import ensurepip, venv"]).output();
    let works = tried.is_ok_and(|output| output.status.success());
    PACKAGES.into_iter().filter(move |_| !works)
}

/// One that works: in our cache, or on PATH.
pub(super) fn find() -> Option<Found> {
    let all = [cached()].into_iter().chain(find_in_path("moto_server"));
    all.filter(|path| path.is_file()).find_map(|path| {
        run("moto_server", path, &["--help"]).ok().map(|found| Found { version: "moto".to_owned(), ..found })
    })
}

/// Installs one into our cache.
pub(super) fn install() -> Result<()> {
    let step = Step::start(format!("Installing moto {MOTO_VERSION} from PyPI"));
    let python = |error: anyhow::Error| {
        failure(
            format!("cannot install moto: {error:#}"),
            "put a moto_server on PATH: pip install 'moto[ec2,server]'",
        )
    };
    let mut environment = Command::new("python3");
    step.run(environment.args(["-m", "venv"]).arg(moto_dir())).map_err(python)?;
    let mut pip = Command::new(moto_dir().join("bin/pip"));
    // Its extra "server" brings what all of Amazon's services need, 300 MB: these two are what serves.
    let package = format!("moto[ec2,iam]=={MOTO_VERSION}");
    let packages = ["install", "--quiet", "--disable-pip-version-check", &package, "flask", "flask-cors"];
    step.run(pip.args(packages)).map_err(python)?;
    step.done(&cached().display().to_string());
    match find() {
        Some(_) => Ok(()),
        None => {
            Err(failure(format!("{} does not work", cached().display()), "run it with --help to see why"))
        }
    }
}

fn cached() -> PathBuf {
    moto_dir().join("bin/moto_server")
}
