//! The command line.

use crate::config::{Config, ConfigError};
use crate::roles::Predecessor;
use crate::{client, launch, logging, roles, sense, supervisor, upgrade};
use clap::{Args, Parser, Subcommand};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Exit code for what the user can mend: configuration, an address in use, a missing file.
pub(crate) const EXIT_USAGE: u8 = 2;

/// Moves a service to a better server before its own saturates.
#[derive(Debug, Parser)]
#[command(name = "sim", version, about, max_term_width = 100)]
pub(crate) struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Run everything that the configuration names: control plane, proxy, and a node per server.
    Run(RoleArgs),
    /// Run the control plane alone.
    Control(RoleArgs),
    /// Run the node of one server alone.
    Node(NodeArgs),
    /// Run the proxy alone.
    Proxy {
        #[command(flatten)]
        role: RoleArgs,
        /// Take over from the proxy that runs with this configuration's runtime_dir: nobody's request fails. Where
        /// `sim run` runs it, ask that instead: `sim upgrade`.
        #[arg(long)]
        take_over: bool,
        /// Take over from the proxy that runs with this configuration's runtime_dir, or be the first where none does.
        #[arg(long, conflicts_with = "take_over")]
        take_over_or_first: bool,
    },
    /// Replace the proxy of a running `sim run` by one from the program and the configuration that are on disk now.
    /// Nobody's request fails, and no connection is refused.
    Upgrade {
        /// Configuration file of the run.
        #[arg(short, long)]
        config: PathBuf,
    },
    /// Check a configuration and say what it means.
    Check {
        /// Configuration file.
        #[arg(short, long)]
        config: PathBuf,
    },
    /// Print what was decided, and why.
    Journal(JournalArgs),
    /// Print the state of workloads, servers and proxies.
    Status(ClientArgs),
    /// Change when a warm shadow stands by.
    Standby {
        #[command(flatten)]
        client: ClientArgs,
        /// Workload.
        workload: String,
        /// `always`, `predicted` or `none`.
        standby: String,
    },
    /// Show what every cgroup of this machine does, live: CPU, waits and who caused them, disk,
    /// network, requests, memory.
    Sense(sense::SenseArgs),
    /// Enter cgroups and become a command: what a node starts instances with.
    #[command(hide = true)]
    Launch {
        /// Directory of a cgroup to enter.
        #[arg(long = "cgroup")]
        cgroups: Vec<PathBuf>,
        /// Be killed when this process is not the parent any more.
        #[arg(long)]
        parent: Option<i32>,
        /// Program and arguments.
        #[arg(last = true, required = true)]
        command: Vec<String>,
    },
}

#[derive(Debug, Args)]
struct RoleArgs {
    /// Configuration file.
    #[arg(short, long)]
    config: PathBuf,
    /// End when this process is not the parent any more.
    #[arg(long, hide = true)]
    parent: Option<i32>,
}

#[derive(Debug, Args)]
struct NodeArgs {
    #[command(flatten)]
    role: RoleArgs,
    /// Which of the configured servers this is.
    #[arg(long)]
    server: String,
}

/// How a tool finds the control plane.
#[derive(Debug, Args)]
pub(crate) struct ClientArgs {
    /// Control plane's socket; /run/sim/control.sock where neither this nor --config is given.
    #[arg(long, conflicts_with = "config")]
    socket: Option<PathBuf>,
    /// Configuration file of the run that is asked.
    #[arg(short, long)]
    config: Option<PathBuf>,
    /// JSON, one value a line.
    #[arg(long)]
    pub(crate) json: bool,
}

impl ClientArgs {
    /// Where the control plane listens.
    pub(crate) fn socket(&self) -> Result<PathBuf, ConfigError> {
        match (&self.socket, &self.config) {
            (Some(socket), _) => Ok(socket.clone()),
            (None, Some(path)) => Ok(Config::read(path)?.control_socket()),
            (None, None) => Ok(PathBuf::from("/run/sim/control.sock")),
        }
    }
}

/// What of the journal is printed.
#[derive(Debug, Args)]
pub(crate) struct JournalArgs {
    #[command(flatten)]
    pub(crate) client: ClientArgs,
    /// First sequence number.
    #[arg(long, default_value_t = 0)]
    pub(crate) from: u64,
    /// Go on with what comes.
    #[arg(short, long)]
    pub(crate) follow: bool,
    /// Below each placement, every server with its score or why it was refused.
    #[arg(short, long)]
    pub(crate) verbose: bool,
}

impl Cli {
    /// Does what was asked for.
    pub(crate) fn run(self) -> ExitCode {
        let result = match self.verb {
            Verb::Launch {
                cgroups,
                parent,
                command,
            } => return launch::run(&cgroups, parent, &command),
            Verb::Sense(args) => sense::run(&args),
            Verb::Check { config } => check(&config),
            Verb::Journal(args) => client::journal(&args),
            Verb::Status(args) => client::status(&args),
            Verb::Standby {
                client,
                workload,
                standby,
            } => client::standby(&client, &workload, &standby),
            Verb::Run(args) => with_config(&args, |config| {
                config.check_machine()?;
                supervisor::run(config)
            }),
            Verb::Control(args) => with_config(&args, roles::control),
            Verb::Node(args) => with_config(&args.role, |config| roles::node(config, &args.server)),
            Verb::Proxy {
                role,
                take_over,
                take_over_or_first,
            } => {
                let predecessor = match (take_over, take_over_or_first) {
                    (true, _) => Predecessor::Running,
                    (_, true) => Predecessor::IfAny,
                    _ => Predecessor::None,
                };
                with_config(&role, |config| roles::proxy(&config, predecessor))
            }
            Verb::Upgrade { config } => upgrade::ask(&config),
        };
        match result {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                client::complain(&format!("sim: {error:#}"));
                let usage = error.downcast_ref::<ConfigError>().is_some()
                    || error.downcast_ref::<roles::CannotStart>().is_some();
                ExitCode::from(if usage { EXIT_USAGE } else { 1 })
            }
        }
    }
}

fn check(path: &Path) -> anyhow::Result<()> {
    let config = Config::read(path)?;
    config.check_files()?;
    client::say(&config.describe());
    for note in config.notes() {
        client::say(&format!("note: {note}"));
    }
    Ok(())
}

fn with_config(
    args: &RoleArgs,
    role: impl FnOnce(Config) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let config = Config::read(&args.config)?;
    logging::init();
    if let Some(parent) = args.parent {
        launch::die_with(parent)?;
    }
    role(config)
}
