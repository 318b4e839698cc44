//! Flags.

use std::path::PathBuf;

use clap::Parser;

use super::run::Options;
use super::verdict::Mode;

/// Moves a real service before it saturates, then kills it under load
#[derive(Clone, Debug, Parser)]
#[command(
    name = "sim-demo",
    bin_name = "cargo xtask demo",
    version,
    after_help = "Exit code: 0 every promise was kept; 1 not; 3 only the tail during the move was not \
                  as promised, and the machine was seen to become slower then; 2 wrong use; 130 stopped"
)]
pub struct Arguments {
    /// What the demand is drawn from
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Plain lines only
    #[arg(long)]
    pub headless: bool,
    /// Constant load: nothing may move
    #[arg(long, conflicts_with_all = ["reactive", "compare"])]
    pub flat: bool,
    /// Without the forecast: the reactive floor alone decides
    #[arg(long, conflicts_with = "compare")]
    pub reactive: bool,
    /// With the forecast, then without it, side by side
    #[arg(long)]
    pub compare: bool,
    /// Also write the figures to this file
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Keep the log of `sim run` in this file
    #[arg(long, value_name = "FILE")]
    pub log: Option<PathBuf>,
    /// Take the capacity as given instead of measuring it, in requests a second
    #[arg(long, hide = true, value_name = "RPS")]
    pub capacity: Option<f64>,
    /// Name of the cgroup and of the temporary folder
    #[arg(long, hide = true, default_value = "sim-demo")]
    pub name: String,
}

impl Arguments {
    /// What one run needs to know.
    #[must_use]
    pub fn options(&self) -> Options {
        let mode = match (self.flat, self.reactive) {
            (true, _) => Mode::Flat,
            (_, true) => Mode::Reactive,
            _ => Mode::Forecast,
        };
        Options {
            seed: self.seed,
            mode,
            capacity_rps: self.capacity,
            name: self.name.clone(),
            log: self.log.clone(),
        }
    }

    /// The arguments that both runs of a comparison share.
    #[must_use]
    pub fn for_one_run(&self) -> Vec<String> {
        let mut arguments = vec![
            format!("--seed={}", self.seed),
            format!("--name={}", self.name),
        ];
        if self.headless {
            arguments.push("--headless".to_owned());
        }
        arguments
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    #[test]
    fn flags_name_the_mode() {
        Arguments::command().debug_assert();
        let mode = |flags: &[&str]| {
            let all = [&["sim-demo"], flags].concat();
            Arguments::try_parse_from(all).map(|arguments| arguments.options().mode)
        };
        assert_eq!(mode(&[]).unwrap(), Mode::Forecast);
        assert_eq!(mode(&["--reactive"]).unwrap(), Mode::Reactive);
        assert_eq!(mode(&["--flat"]).unwrap(), Mode::Flat);
        assert!(mode(&["--flat", "--reactive"]).is_err());
    }
}
