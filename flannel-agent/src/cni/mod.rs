//! The CNI plugin `flannel`: makes a configuration for another plugin, usually `bridge`, out of its own and of what
//! the daemon wrote to `subnet.env`, and has that plugin do the work
//! (CNI specification 1.1.0; what upstream's plugin does stands where the two differ).
//!
//! ```text
//! environment ─▶ Invocation ┐
//! stdin ───────▶ NetConf ───┼─▶ delegate::config ─▶ State (dataDir) ─▶ Plugin::run ─▶ stdout
//! subnet.env ──▶ SubnetEnv ─┘
//! ```
//!
//! It runs once a pod, in the runtime's way: no threads of its own but one to feed a pipe, and nothing of the daemon's.

use std::{
    ffi::OsString,
    io::{Read, Write},
    process::ExitCode,
};

use serde_json::{Map, Value};

pub use delegate::config as delegate_config;
pub use error::{CniError, Code};
pub use netconf::NetConf;
pub use subnet_env::SubnetEnv;
pub use version::SUPPORTED;

use invocation::{Invocation, Verb};
use invoke::{Plugin, render};
use state::{Saved, State};

mod delegate;
mod error;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;
pub mod install;
mod invocation;
mod invoke;
mod netconf;
mod netkit;
mod netns;
mod route;
mod state;
mod subnet_env;
#[cfg(test)]
mod tests;
mod version;

/// The most that is read from standard input, in bytes. Configurations have a few hundred.
const INPUT_LIMIT: u64 = 4 << 20;

/// Runs the plugin: does what `environment` and `stdin` ask for, and writes the answer, or the error, to `stdout`.
pub fn main(
    environment: impl Fn(&str) -> Option<OsString>,
    stdin: &mut impl Read,
    stdout: &mut impl Write,
) -> ExitCode {
    let mut spoken = String::new();
    let (text, code) = match answer(environment, stdin, &mut spoken) {
        Ok(Answer::Nothing) => return ExitCode::SUCCESS,
        Ok(Answer::About) => {
            // For a person who starts it: nothing on stdout, where runtimes read.
            let _ = write!(std::io::stderr(), "{}", version::about());
            return ExitCode::SUCCESS;
        }
        Ok(Answer::Text(text)) => (text, ExitCode::SUCCESS),
        Err(error) => {
            let version = if spoken.is_empty() { version::NEWEST } else { &spoken };
            (error.render(version).into_bytes(), ExitCode::FAILURE)
        }
    };
    match stdout.write_all(&text).and_then(|()| stdout.flush()) {
        Ok(()) => code,
        Err(_) => ExitCode::FAILURE,
    }
}

/// What goes to standard output.
#[derive(Debug, PartialEq)]
enum Answer {
    Nothing,
    About,
    Text(Vec<u8>),
}

/// `spoken` becomes the version of the configuration, once it is known to be one of ours.
fn answer(
    environment: impl Fn(&str) -> Option<OsString>,
    stdin: &mut impl Read,
    spoken: &mut String,
) -> Result<Answer, CniError> {
    let Some(invocation) = Invocation::read(environment)? else { return Ok(Answer::About) };
    if invocation.verb == Verb::Version {
        return Ok(Answer::Text(version::report()));
    }
    let conf = NetConf::parse(&input(stdin)?)?;
    version::check(&conf.cni_version, invocation.verb)?;
    spoken.clone_from(&conf.cni_version);
    let text = match invocation.verb {
        Verb::Add => return add(&invocation, &conf).map(Answer::Text),
        Verb::Del => del(&invocation, &conf),
        // As upstream. The delegate is not asked: `bridge` looks for routes by the gateway they were configured with,
        // and flannel's are configured without, so it finds fault with every pod, and runtimes may restart those.
        Verb::Check if !netkit::is_wanted(&conf.delegate) => Ok(()),
        Verb::Check => check(&invocation, &conf),
        Verb::Status => status(&invocation, &conf),
        Verb::Gc => collect_garbage(&invocation, conf),
        Verb::Version => Ok(()),
    };
    text.map(|()| Answer::Nothing)
}

fn input(stdin: &mut impl Read) -> Result<String, CniError> {
    let mut bytes = Vec::new();
    let read = stdin.take(INPUT_LIMIT + 1).read_to_end(&mut bytes);
    read.map_err(|error| CniError::new(Code::Io, format!("cannot read the network configuration: {error}")))?;
    if bytes.len() as u64 > INPUT_LIMIT {
        return Err(CniError::new(
            Code::Decoding,
            format!("the network configuration on stdin has more than {INPUT_LIMIT} bytes"),
        ));
    }
    String::from_utf8(bytes).map_err(|error| {
        CniError::new(Code::Decoding, format!("the network configuration on stdin is not UTF-8: {error}"))
    })
}

/// ADD. What the delegate is given is kept before it runs, so that DEL finds it whatever becomes of us.
fn add(invocation: &Invocation, conf: &NetConf) -> Result<Vec<u8>, CniError> {
    let config = delegate::config(conf, &SubnetEnv::read(&conf.subnet_file)?)?;
    netns::check_not_ours(invocation)?;
    let plugin = Plugin::find(&config, &invocation.path)?;
    let text = render(&config);
    State::of(conf, &invocation.container).save(&text)?;
    if netkit::is_wanted(&conf.delegate) {
        if let Some(result) = netkit::add(invocation, &config, &text, &conf.cni_version)? {
            return Ok(result);
        }
        let _ = writeln!(
            std::io::stderr(),
            "{}: this kernel has no netkit (Linux 6.7, CONFIG_NETKIT): the pod gets a veth, by the plugin bridge",
            invocation.container
        );
    }
    let result = plugin.run(Verb::Add, &text)?;
    version::complete(result, &conf.cni_version)
}

/// CHECK of a pod whose delegate we are.
fn check(invocation: &Invocation, conf: &NetConf) -> Result<(), CniError> {
    let config = delegate::config(conf, &SubnetEnv::read(&conf.subnet_file)?)?;
    netkit::check(invocation, &config, conf.prev_result.as_ref())
}

/// DEL. Where what ADD kept is gone or damaged, the delegate is asked by what is configured now.
fn del(invocation: &Invocation, conf: &NetConf) -> Result<(), CniError> {
    let state = State::of(conf, &invocation.container);
    match state.load()? {
        Saved::Config(config, text) => {
            Plugin::find(&config, &invocation.path)?.run(Verb::Del, &text)?;
        }
        Saved::Nothing => release(invocation, conf, "no configuration of the delegate was kept", &state),
        Saved::Damaged => release(invocation, conf, "not the JSON of a network configuration", &state),
    }
    state.remove();
    Ok(())
}

/// Gives the container's address back though nobody knows any more how it was got: a crash while the file was written,
/// or a data directory that was emptied. That works as long as the configuration is what it was; where it is not, there
/// is nobody to ask. Of a container that has nothing the delegates find nothing.
fn release(invocation: &Invocation, conf: &NetConf, because: &str, state: &State) {
    let told = SubnetEnv::read(&conf.subnet_file).and_then(|env| {
        // ADD refused it, and the delegate would take the host's own interface away.
        netns::check_not_ours_if_there(invocation)?;
        let config = delegate::config(conf, &env)?;
        Plugin::find(&config, &invocation.path)?.run(Verb::Del, &render(&config))
    });
    let what = told.map_or_else(
        |error| format!("nothing is released: {error}"),
        |_| "released by what is configured now".to_owned(),
    );
    let _ = writeln!(std::io::stderr(), "{}: {because}: {what}", state.path().display());
}

/// STATUS: whether ADD could work now.
fn status(invocation: &Invocation, conf: &NetConf) -> Result<(), CniError> {
    let env = SubnetEnv::read(&conf.subnet_file).map_err(|error| error.with(Code::NotAvailable))?;
    let config = delegate::config(conf, &env)?;
    let plugin = Plugin::find(&config, &invocation.path).map_err(|error| error.with(Code::NotAvailable))?;
    plugin.run(Verb::Status, &render(&config)).map(drop)
}

/// GC: by the delegate, then what we keep of containers that are no longer.
fn collect_garbage(invocation: &Invocation, conf: NetConf) -> Result<(), CniError> {
    let mut config = delegate::config(&conf, &SubnetEnv::read(&conf.subnet_file)?)?;
    let valid = conf.valid_containers()?;
    config.extend(conf.attachments.clone());
    Plugin::find(&config, &invocation.path)?.run(Verb::Gc, &render(&config))?;
    state::forget_all_but(&conf, &valid)
}

fn object(bytes: &[u8]) -> Option<Map<String, Value>> {
    serde_json::from_slice(bytes).ok()
}
