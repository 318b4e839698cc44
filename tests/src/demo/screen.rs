//! What is shown while it happens: plain lines, and on a terminal one live line under them.

use std::io::{IsTerminal as _, Write as _};

use sim_core::journal::{Candidate, Kind, Record};

/// Standard output, as far as this program is concerned.
#[derive(Debug)]
pub struct Screen {
    live: bool,
    colour: bool,
    shows_live: bool,
}

impl Screen {
    /// A live line only where someone watches and did not decline; colours likewise, and not
    /// under `NO_COLOR`.
    #[must_use]
    pub fn new(headless: bool) -> Self {
        let live = std::io::stdout().is_terminal() && !headless;
        let no_color = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        Self {
            live,
            colour: live && !no_color,
            shows_live: false,
        }
    }

    /// A line that stays.
    pub fn line(&mut self, text: &str) {
        self.clear();
        self.put(&format!("{text}\n"));
    }

    /// A line about one stage of the preparation.
    pub fn stage(&mut self, name: &str, text: &str) {
        self.line(&format!(
            "  {} {text}",
            self.painted("1", &format!("{name:<9}"))
        ));
    }

    /// A decision, with its reason and, where servers were compared, with their scores.
    pub fn record(&mut self, seconds: f64, record: &Record) {
        let kind = self.painted(colour_of(record.kind), &format!("{:<12}", record.kind));
        self.line(&format!("{seconds:>7.1} s  {kind} {}", record.reason));
        if matches!(record.kind, Kind::Placement | Kind::NoPlacement) {
            let candidates = record.report.as_ref().map(|r| r.candidates.as_slice());
            for candidate in candidates.unwrap_or_default() {
                self.line(&format!("{:>23}{}", "", described(candidate)));
            }
        }
    }

    /// Replaces the live line.
    pub fn live(&mut self, text: &str) {
        if self.live {
            self.clear();
            let shown = self.painted("2", text);
            self.put(&shown);
            self.shows_live = true;
        }
    }

    fn painted(&self, code: &str, text: &str) -> String {
        if self.colour {
            format!("\x1b[{code}m{text}\x1b[0m")
        } else {
            text.to_owned()
        }
    }

    fn clear(&mut self) {
        if std::mem::take(&mut self.shows_live) {
            self.put("\r\x1b[K");
        }
    }

    /// A reader that left is no reason to stop: the verdict is the exit code.
    fn put(&self, text: &str) {
        let mut out = std::io::stdout().lock();
        out.write_all(text.as_bytes())
            .and_then(|()| out.flush())
            .ok();
    }
}

fn described(candidate: &Candidate) -> String {
    match candidate.score {
        Some(score) => format!(
            "{}  score {score:.3}, {:.2} CPU, {:.0} % used at the horizon: {}",
            candidate.server,
            candidate.cpus,
            candidate.utilisation * 100.0,
            candidate.why
        ),
        None => format!("{}  refused: {}", candidate.server, candidate.why),
    }
}

fn colour_of(kind: Kind) -> &'static str {
    match kind {
        Kind::Trigger | Kind::StepBack | Kind::Frozen => "33",
        Kind::Died | Kind::Failover | Kind::Abort | Kind::Refused | Kind::NoPlacement => "31",
        Kind::Reclaimed | Kind::Parity | Kind::StandbyWarm => "32",
        _ => "36",
    }
}
