//! The live screen: drawn anew at each look, gone at the end.

use super::table;
use super::view::View;
use crossterm::event::{Event, KeyCode, KeyEvent, KeyModifiers, poll, read};
use crossterm::terminal::{self, Clear, ClearType};
use crossterm::{cursor, execute, queue};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use sim_node::host::Host;
use std::io::{Write, stdout};
use std::time::{Duration, Instant};

/// Gives the terminal back as it was, also when something fails.
struct Terminal;

impl Terminal {
    fn take() -> std::io::Result<Self> {
        terminal::enable_raw_mode()?;
        let taken = Self;
        execute!(stdout(), terminal::EnterAlternateScreen, cursor::Hide)?;
        Ok(taken)
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // There is nobody left to tell.
        execute!(stdout(), terminal::LeaveAlternateScreen, cursor::Show).ok();
        terminal::disable_raw_mode().ok();
    }
}

/// Longest that a signal waits to be heard.
const PATIENCE: Duration = Duration::from_millis(100);

/// What else asks to end. Taken, lest the terminal stay as it is while the screen is shown.
struct Signals(SignalFd);

impl Signals {
    fn take() -> nix::Result<Self> {
        let signals: SigSet = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP]
            .into_iter()
            .collect();
        signals.thread_block()?;
        SignalFd::with_flags(&signals, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC).map(Self)
    }

    fn came(&self) -> nix::Result<bool> {
        Ok(self.0.read_signal()?.is_some())
    }
}

/// Shows a look each `interval` until `q`, Esc or Ctrl-C.
pub(super) fn run(
    host: &mut Host,
    interval: Duration,
    look: impl Fn(&mut Host) -> Vec<View>,
) -> anyhow::Result<()> {
    let signals = Signals::take()?;
    let _terminal = Terminal::take()?;
    draw(host, "first look …", &[])?;
    loop {
        let next = Instant::now() + interval;
        loop {
            let left = next.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            if poll(left.min(PATIENCE))? && ends(&read()?) {
                return Ok(());
            }
            if signals.came()? {
                return Ok(());
            }
        }
        let views = look(host);
        let untracked = match host.untracked() {
            0 => String::new(),
            n => format!(", {n} without room in the probes"),
        };
        let head = format!(
            "{} cgroups{untracked}; a look each {:.1} s; q ends",
            views.len(),
            interval.as_secs_f64()
        );
        draw(host, &head, &views)?;
    }
}

fn ends(event: &Event) -> bool {
    let Event::Key(KeyEvent {
        code, modifiers, ..
    }) = event
    else {
        return false;
    };
    matches!(code, KeyCode::Char('q') | KeyCode::Esc)
        || (*code == KeyCode::Char('c') && modifiers.contains(KeyModifiers::CONTROL))
}

fn draw(host: &Host, head: &str, views: &[View]) -> anyhow::Result<()> {
    let (columns, rows) = terminal::size()?;
    let lines = usize::from(rows).saturating_sub(host.notes().len() + 3);
    let mut text = vec![head.to_owned()];
    text.extend(host.notes().iter().cloned());
    text.push(String::new());
    text.extend(table::draw(views, Some(lines)).lines().map(str::to_owned));
    let mut out = stdout().lock();
    queue!(out, cursor::MoveTo(0, 0))?;
    for line in text.iter().take(usize::from(rows)) {
        let line: String = line.chars().take(usize::from(columns)).collect();
        queue!(out, Clear(ClearType::CurrentLine))?;
        // Raw mode: a line feed does not return the carriage.
        write!(out, "{line}\r\n")?;
    }
    queue!(out, Clear(ClearType::FromCursorDown))?;
    out.flush()?;
    Ok(())
}
