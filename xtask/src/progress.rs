//! One line per step, and a sign of life while a step is long.

use std::io::Write;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Result;

/// How often a log without a terminal hears that a step still runs.
const LINE_EVERY: Duration = Duration::from_secs(20);
const TICK_EVERY: Duration = Duration::from_millis(250);

/// What a step is doing now; cheap to clone into the work.
#[derive(Clone, Default)]
pub(crate) struct Activity(Arc<Mutex<String>>);

impl Activity {
    pub(crate) fn say(&self, what: impl Into<String>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = what.into();
    }

    fn get(&self) -> String {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

/// A numbered row of steps, such as `setup: [2/4] eBPF toolchain … ok (cached) 0.1 s`.
pub(crate) struct Steps {
    prefix: &'static str,
    total: usize,
    started: usize,
}

impl Steps {
    pub(crate) fn new(prefix: &'static str, total: usize) -> Self {
        Self {
            prefix,
            total,
            started: 0,
        }
    }

    /// The line of the next step, for work that prints its own progress under it.
    pub(crate) fn heading(&mut self, name: &str) -> String {
        self.started += 1;
        format!("{}: [{}/{}] {name}", self.prefix, self.started, self.total)
    }

    /// Runs a quiet step; the work returns its value and how it went, such as `ok (cached)`.
    pub(crate) fn run<T>(
        &mut self,
        name: &str,
        work: impl FnOnce(&Activity) -> Result<(T, String)>,
    ) -> Result<T> {
        let heading = self.heading(name);
        let begin = Instant::now();
        let activity = Activity::default();
        let (stop, stopped) = channel();
        let result = std::thread::scope(|scope| {
            let activity = &activity;
            let heading = &heading;
            scope.spawn(move || show_life(heading, begin, activity, &stopped));
            // Dropped when the work ends, also by a panic: the ticker then stops.
            let _stop: Sender<()> = stop;
            work(activity)
        });
        let elapsed = seconds(begin.elapsed());
        match result {
            Ok((value, verdict)) => {
                println!("{heading} … {verdict} {elapsed}");
                Ok(value)
            }
            Err(error) => {
                println!("{heading} … FAILED {elapsed}");
                Err(error.context(name.to_owned()))
            }
        }
    }
}

fn show_life(heading: &str, begin: Instant, activity: &Activity, stopped: &Receiver<()>) {
    let terminal = crate::context::is_terminal();
    let pause = if terminal { TICK_EVERY } else { LINE_EVERY };
    while let Err(RecvTimeoutError::Timeout) = stopped.recv_timeout(pause) {
        let line = format!(
            "{heading} … {} {}",
            seconds(begin.elapsed()),
            activity.get()
        );
        if terminal {
            print!("\r\x1b[K{}", line.trim_end());
            // A terminal that went away will end the run by itself.
            std::io::stdout().flush().unwrap_or_default();
        } else {
            println!("{}", line.trim_end());
        }
    }
    if terminal {
        print!("\r\x1b[K");
    }
}

/// `0.1 s`, `12 s`, `3 min 20 s`.
pub(crate) fn seconds(elapsed: Duration) -> String {
    let whole = elapsed.as_secs();
    if whole >= 60 {
        format!("{} min {} s", whole / 60, whole % 60)
    } else if whole >= 10 {
        format!("{whole} s")
    } else {
        format!("{:.1} s", elapsed.as_secs_f64())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn elapsed_time_is_readable_at_every_scale() {
        assert_eq!(seconds(Duration::from_millis(140)), "0.1 s");
        assert_eq!(seconds(Duration::from_secs(12)), "12 s");
        assert_eq!(seconds(Duration::from_secs(200)), "3 min 20 s");
    }

    #[test]
    fn a_failed_step_is_named_in_its_error() {
        let mut steps = Steps::new("test", 1);
        let error = steps.run("digging", |_| -> Result<((), String)> {
            anyhow::bail!("rock")
        });
        assert_eq!(format!("{:#}", error.unwrap_err()), "digging: rock");
    }
}
