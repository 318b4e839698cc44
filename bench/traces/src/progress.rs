//! A bar on a terminal, a line now and then in a log.

use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

const WIDTH: usize = 30;
const DRAW_EVERY: Duration = Duration::from_millis(200);
const LINE_EVERY: Duration = Duration::from_secs(10);

pub(crate) struct Progress {
    total: usize,
    done: usize,
    begin: Instant,
    drawn: Instant,
    is_terminal: bool,
}

impl Progress {
    pub(crate) fn new(total: usize) -> Self {
        let now = Instant::now();
        Self {
            total: total.max(1),
            done: 0,
            begin: now,
            drawn: now,
            is_terminal: std::io::stderr().is_terminal(),
        }
    }

    /// So much more is done, the latest part of it being `what`.
    pub(crate) fn add(&mut self, count: usize, what: &str) {
        self.done += count;
        let pause = if self.is_terminal {
            DRAW_EVERY
        } else {
            LINE_EVERY
        };
        if self.drawn.elapsed() >= pause {
            self.drawn = Instant::now();
            self.draw(what);
        }
    }

    fn draw(&self, what: &str) {
        let part = self.done as f64 / self.total as f64;
        let elapsed = self.begin.elapsed().as_secs_f64();
        let left = elapsed * (1.0 - part) / part.max(1e-9);
        let full = (part * WIDTH as f64) as usize;
        let bar = format!(
            "{}{}",
            "#".repeat(full.min(WIDTH)),
            ".".repeat(WIDTH.saturating_sub(full))
        );
        let text = format!(
            "[{bar}] {:3.0} % {elapsed:4.0} s, {left:.0} s left, {what}",
            100.0 * part
        );
        if self.is_terminal {
            eprint!("\r\x1b[K{text}");
            // A terminal that went away ends the run by itself.
            std::io::stderr().flush().unwrap_or_default();
        } else {
            eprintln!("{text}");
        }
    }

    /// Wipes the bar.
    pub(crate) fn end(&self) -> Duration {
        if self.is_terminal {
            eprint!("\r\x1b[K");
        }
        self.begin.elapsed()
    }
}
