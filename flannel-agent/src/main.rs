//! `flannel-agent`: parse, log, run, exit code.

#![deny(clippy::print_stdout, clippy::print_stderr)]

use std::{env, path::Path, process::ExitCode};

use clap::error::ErrorKind;
use flannel_agent::{
    app,
    cli::{Cli, Command},
    cmd,
    telemetry::{self, output::say},
};

fn main() -> ExitCode {
    let cli = match Cli::read(env::args_os(), |name| env::var_os(name)) {
        Ok(cli) => cli,
        Err(error) => {
            // clap prints help on stdout and mistakes on stderr.
            let _ = error.print();
            return match error.kind() {
                ErrorKind::DisplayHelp | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
                    ExitCode::SUCCESS
                }
                _ => ExitCode::from(64),
            };
        }
    };
    if cli.version {
        say(env!("CARGO_PKG_VERSION"));
        return ExitCode::SUCCESS;
    }
    telemetry::log::init(cli.run.v, cli.run.log_format);
    let marks = cli.run.marks();
    let defaults = cli.run.defaults();
    let result = match cli.command {
        Some(Command::Bpf(command)) => cmd::bpf::run(command, &defaults).map(|()| ExitCode::SUCCESS),
        Some(Command::Explain(options)) => cmd::explain::run(options, marks, &defaults),
        Some(Command::Trace(options)) => cmd::trace::run(&options, &defaults),
        Some(Command::Monitor(options)) => cmd::monitor::run(&options, &defaults),
        Some(Command::Top(options)) => cmd::top::run(&options, &defaults),
        Some(Command::Bugreport(options)) => cmd::bugreport::run(&options, &defaults),
        Some(Command::Status(options)) => return looked(cmd::status::run(&options, &defaults)),
        Some(Command::Peers(options)) => return looked(cmd::peers::run(&options, &defaults)),
        Some(Command::Check(options)) => return looked(cmd::check::run(&options, &defaults)),
        Some(Command::Drift(options)) => return looked(cmd::drift::run(&options, &defaults)),
        Some(Command::EtcdMigrate(options)) => {
            app::etcd_migrate(*options, cli.run).map(|()| ExitCode::SUCCESS)
        }
        None => {
            cli.given.log();
            cli.given.log_without_effect(&cli.run);
            app::run(cli.run).map(|()| ExitCode::SUCCESS)
        }
    };
    match result {
        Ok(status) => status,
        Err(error) => {
            complain(&error);
            if error.is::<cmd::CannotLook>() {
                ExitCode::from(cmd::CannotLook::STATUS)
            } else {
                ExitCode::FAILURE
            }
        }
    }
}

/// The exit status of a command that looks.
fn looked(result: anyhow::Result<cmd::Health>) -> ExitCode {
    let health = result.unwrap_or_else(|error| {
        complain(&error);
        cmd::Health::Unseen
    });
    health.into()
}

fn complain(error: &anyhow::Error) {
    // What somebody else wrote into a lease or an answer may be part of it.
    say(format_args!("{}: {}", invoked_name(), telemetry::visible(&format_args!("{error:#}"))));
}

/// `flannel-agent`, or `flanneld` where it is installed under that name.
fn invoked_name() -> String {
    let program = env::args_os().next().unwrap_or_default();
    let name = Path::new(&program).file_name().map(|name| name.to_string_lossy().into_owned());
    name.unwrap_or_else(|| "flannel-agent".to_owned())
}
