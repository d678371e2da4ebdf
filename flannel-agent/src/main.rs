//! `flannel-agent`: parse, log, run, exit code.

use std::{env, process::ExitCode};

use clap::error::ErrorKind;
use flannel_agent::{
    app,
    cli::{Cli, Command},
    cmd, telemetry,
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
        eprintln!("{}", env!("CARGO_PKG_VERSION"));
        return ExitCode::SUCCESS;
    }
    telemetry::log::init(cli.run.v);
    let result = match cli.command {
        Some(Command::Bpf(command)) => cmd::bpf::run(command),
        None => app::run(cli.run),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("flannel-agent: {error:#}");
            ExitCode::FAILURE
        }
    }
}
