//! `sim sense`: what every cgroup of this machine does, live. Useful alone: it needs no
//! configuration, starts nothing and changes nothing.

mod bars;
mod screen;
mod table;
mod view;

use crate::client::say;
use crate::config::installed_object;
use crate::roles::{CannotStart, own_program};
use clap::{Args, ValueEnum};
use sim_node::Signal;
use sim_node::host::Host;
use std::io::IsTerminal;
use std::path::PathBuf;
use std::time::Duration;
use view::{Known, View};

/// How the figures are printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Output {
    /// A table for people.
    Table,
    /// One JSON array a look.
    Json,
}

/// What to look at, and how.
#[derive(Debug, Args)]
pub(crate) struct SenseArgs {
    /// Time between two looks, in milliseconds.
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u64).range(100..=600_000))]
    interval_ms: u64,
    /// One look, over one interval, and the end.
    #[arg(long)]
    once: bool,
    /// Where each signal comes from on this machine, how good it is there, and the end.
    #[arg(long, conflicts_with_all = ["once", "all", "filter", "interval_ms"])]
    signals: bool,
    /// How to print.
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    output: Output,
    /// Also cgroups that did nothing.
    #[arg(long)]
    all: bool,
    /// Only cgroups whose path contains this.
    #[arg(long, value_name = "TEXT")]
    filter: Option<String>,
    /// Object file of the kernel probes, where it is not beside the program.
    #[arg(long, value_name = "FILE")]
    object: Option<PathBuf>,
}

pub(crate) fn run(args: &SenseArgs) -> anyhow::Result<()> {
    let object = match &args.object {
        Some(path) => {
            std::fs::File::open(path)
                .map_err(|e| CannotStart(format!("--object {}: {e}", path.display())))?;
            Some(path.clone())
        }
        None => installed_object(&own_program()?),
    };
    let mut host = Host::open(object.as_deref()).map_err(|e| CannotStart(e.to_string()))?;
    let live = !args.once
        && !args.signals
        && args.output == Output::Table
        && std::io::stdout().is_terminal();
    let interval = Duration::from_millis(args.interval_ms);
    if live {
        return screen::run(&mut host, interval, |host| args.look(host));
    }
    for note in host.notes() {
        crate::client::complain(&format!("sim sense: {note}"));
    }
    if args.signals {
        let signals = host.signals();
        match args.output {
            Output::Table => say(&table::signals(&signals)),
            Output::Json => say(&serde_json::to_string(&json_of(&signals))?),
        }
        return Ok(());
    }
    loop {
        std::thread::sleep(interval);
        let views = args.look(&mut host);
        match args.output {
            Output::Table => say(&table::draw(&views, None)),
            Output::Json => say(&serde_json::to_string(&views)?),
        }
        if args.once {
            return Ok(());
        }
    }
}

fn json_of(signals: &[Signal]) -> serde_json::Value {
    let one = |signal: &Signal| {
        let source = (!signal.source.is_empty()).then_some(signal.source);
        serde_json::json!({
            "signal": signal.name,
            "quality": signal.quality.name(),
            "source": source,
        })
    };
    signals.iter().map(one).collect()
}

impl SenseArgs {
    /// The busiest first.
    fn look(&self, host: &mut Host) -> Vec<View> {
        let wanted = |view: &View| {
            (self.all || !view.is_idle())
                && self.filter.as_ref().is_none_or(|f| view.cgroup.contains(f))
        };
        let readings = host.look();
        let known = Known {
            active: |group| host.is_active(group),
            pressure: host.has_pressure(),
        };
        let view = |reading| View::of(reading, &known);
        let mut views: Vec<View> = readings.iter().map(view).filter(wanted).collect();
        views.sort_by(|a, b| {
            b.cpu
                .cpus
                .total_cmp(&a.cpu.cpus)
                .then(a.cgroup.cmp(&b.cgroup))
        });
        views
    }
}
