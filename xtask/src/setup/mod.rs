//! `setup`: find or install what building, the demo and the tests need.
//!
//! First everything is looked at, then what is missing is installed in as few steps as possible, then
//! everything is looked at again: what the table says at the end has been run, not assumed.

mod apt;
mod install_linker;
mod kubernetes;
mod moto;
mod nextest;
pub(crate) mod private_apt;
mod release;
mod table;
mod toolchain;
mod tools;

use std::{env, path::PathBuf};

use anyhow::Result;
use clap::Args;
use flannel_ebpf_toolchain::{OBJECT_VARIABLE, Toolchain};

use crate::{
    failure::failure,
    host,
    ui::{Step, note, print},
};
use apt::Packages;
pub(crate) use release::sha256;
use toolchain::Plan;
use tools::Survey;

/// Options of `setup`.
#[derive(Args)]
pub(crate) struct Options {
    /// Also build the kube-apiserver and kube-proxy that the tests run, once; about five minutes on two CPUs
    #[arg(long)]
    kubernetes: bool,
}

/// How much is needed, each with all before it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Scope {
    /// What compiling needs.
    Build,
    /// Also the tools of the demo and the tests.
    Lab,
    /// Also what runs the tests.
    Tests,
    /// Also the programs of Kubernetes that the tests run.
    Kubernetes,
}

/// Sets up everything and prints what there is.
pub(crate) fn show(options: &Options) -> Result<()> {
    let scope = if options.kubernetes { Scope::Kubernetes } else { Scope::Tests };
    let (toolchain, survey) = complete(scope)?;
    print(&table::table(toolchain.as_ref(), &survey))
}

/// The runner of the tests, once [`Scope::Tests`] is set up.
pub(crate) fn test_runner() -> Result<PathBuf> {
    let found = nextest::find().map(|found| found.path);
    found.ok_or_else(|| failure("there is no cargo-nextest", "run `cargo xtask setup`"))
}

/// Sets up what another task needs; says nothing when nothing is missing.
pub(crate) fn ensure(scope: Scope) -> Result<()> {
    complete(scope).map(drop)
}

fn complete(scope: Scope) -> Result<(Option<Toolchain>, Survey)> {
    let mut survey = tools::survey(scope);
    // Who brings a ready-made object needs no toolchain; the build verifies the object.
    let ready_made = env::var_os(OBJECT_VARIABLE).is_some_and(|object| !object.is_empty());
    let plan = if ready_made { None } else { Some(toolchain::plan()?) };

    let mut packages = survey.packages();
    packages.extend(plan.iter().flat_map(Plan::packages));
    if scope >= Scope::Tests && moto::find().is_none() {
        packages.extend(moto::missing_packages());
    }
    let kubernetes = match scope {
        Scope::Kubernetes => kubernetes::programs().err(),
        Scope::Build | Scope::Lab | Scope::Tests => None,
    };
    if kubernetes.is_some() {
        packages.extend(kubernetes::packages());
    }
    if !packages.is_empty() {
        install(&packages)?;
        survey = tools::survey(scope);
    }
    let toolchain = plan.map(toolchain::carry_out).transpose()?;
    survey.complete()?;
    if scope >= Scope::Tests {
        if nextest::find().is_none() {
            nextest::install()?;
        }
        survey.found.extend(nextest::find());
        if moto::find().is_none() {
            moto::install()?;
        }
        survey.found.extend(moto::find());
    }
    if kubernetes.is_some() {
        kubernetes::install()?;
    }
    if scope == Scope::Kubernetes {
        survey.found.extend(kubernetes::programs()?);
    }
    Ok((toolchain, survey))
}

/// Installs the packages of those programs that are not here.
pub(crate) fn ensure_programs(programs: &[(&str, &'static str)]) -> Result<()> {
    let mut packages = Packages::default();
    let missing = programs.iter().filter(|(program, _)| host::find_program(program).is_none());
    packages.extend(missing.map(|(_, package)| *package));
    if packages.is_empty() { Ok(()) } else { install(&packages) }
}

/// Installs a package that brings no program.
pub(crate) fn ensure_package(name: &'static str) -> Result<()> {
    let mut packages = Packages::default();
    packages.extend([name]);
    install(&packages)
}

/// Installs packages if we may, and otherwise says how.
fn install(packages: &Packages) -> Result<()> {
    if !host::has_apt() {
        return Err(failure(
            format!("these are missing: {packages}"),
            "install them with your system's package manager; the names are Debian's",
        ));
    }
    let services = packages.services();
    if !host::is_root() {
        let mut remedy = format!("as root:\n  apt-get update\n  {}", packages.command_line());
        if !services.is_empty() {
            let disable =
                format!("\n  systemctl disable --now {}    # the tests start their own", services.join(" "));
            remedy.push_str(&disable);
        }
        remedy.push_str("\nthen again:\n  cargo xtask setup");
        return Err(failure(
            format!("these packages are missing, and only root may install them: {packages}"),
            remedy,
        ));
    }
    let step = Step::start(format!("Installing packages: {packages}"));
    apt::install(&step, packages)?;
    step.done("installed");
    if !services.is_empty() {
        note(&format!(
            "left disabled, because demo and tests start their own: the services {}",
            services.join(", ")
        ));
    }
    Ok(())
}
