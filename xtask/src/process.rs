//! Children: logged, watched or shown.

use std::fs::OpenOptions;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

/// How much of a failed child's log is shown.
const TAIL_LINES: usize = 40;

/// The command line as a person would type it.
pub(crate) fn describe(command: &Command) -> String {
    let mut line = Path::new(command.get_program())
        .file_name()
        .unwrap_or(command.get_program())
        .to_string_lossy()
        .into_owned();
    for argument in command.get_args() {
        line.push(' ');
        line.push_str(&argument.to_string_lossy());
    }
    line
}

/// Runs a child that shows its own output, and fails where it fails.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| describe(command))?;
    success(status, command)
}

/// Runs a child whose output goes to a log; the end of the log is part of the error.
pub(crate) fn run_logged(command: &mut Command, log: &Path) -> Result<()> {
    let open = || -> std::io::Result<std::fs::File> {
        let mut file = OpenOptions::new().create(true).append(true).open(log)?;
        writeln!(file, "$ {}", describe(command))?;
        Ok(file)
    };
    let file = open().with_context(|| log.display().to_string())?;
    let second = file.try_clone().context("log")?;
    let begin = file.metadata().map_or(0, |metadata| metadata.len());
    command.stdin(Stdio::null()).stdout(file).stderr(second);
    let status = command.status().with_context(|| describe(command))?;
    success(status, command).with_context(|| tail(log, begin))
}

fn tail(log: &Path, begin: u64) -> String {
    let text = std::fs::read(log).unwrap_or_default();
    let own = text
        .get(usize::try_from(begin).unwrap_or(0)..)
        .unwrap_or_default();
    let text = String::from_utf8_lossy(own);
    let lines: Vec<&str> = text.lines().collect();
    let shown = &lines[lines.len().saturating_sub(TAIL_LINES)..];
    format!("{}\n(the whole log: {})", shown.join("\n"), log.display())
}

/// Standard output of a short child, or why there is none.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| describe(command))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        let last = said
            .lines()
            .rfind(|line| !line.trim().is_empty())
            .unwrap_or("no output");
        bail!("{}: {last}", describe(command));
    }
    String::from_utf8(output.stdout).with_context(|| describe(command))
}

/// Runs a child, shows its output as it comes, and returns what `pick` makes of its lines; each of
/// the two streams is given a clone of it.
pub(crate) fn run_and_pick<T: Send>(
    command: &mut Command,
    pick: impl FnMut(&str) -> Option<T> + Clone + Send,
) -> Result<(ExitStatus, Vec<T>)> {
    let mut child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| describe(command))?;
    let picked = Mutex::new(Vec::new());
    let (mut of_own, mut of_errors) = (pick.clone(), pick);
    let stdout = child.stdout.take().context("stdout")?;
    let stderr = child.stderr.take().context("stderr")?;
    std::thread::scope(|scope| {
        let errors =
            scope.spawn(|| pass_on(stderr, &mut std::io::stderr(), &mut of_errors, &picked));
        let own = pass_on(stdout, &mut std::io::stdout(), &mut of_own, &picked);
        match errors.join() {
            Ok(result) => own.and(result),
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
    .with_context(|| describe(command))?;
    let status = child.wait().with_context(|| describe(command))?;
    Ok((
        status,
        picked.into_inner().unwrap_or_else(PoisonError::into_inner),
    ))
}

fn pass_on<T>(
    from: impl Read,
    to: &mut impl Write,
    pick: &mut impl FnMut(&str) -> Option<T>,
    picked: &Mutex<Vec<T>>,
) -> std::io::Result<()> {
    let mut from = BufReader::new(from);
    let mut line = Vec::new();
    while from.read_until(b'\n', &mut line)? > 0 {
        to.write_all(&line)?;
        to.flush()?;
        let text = String::from_utf8_lossy(&line);
        if let Some(found) = pick(text.trim()) {
            picked
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .push(found);
        }
        line.clear();
    }
    Ok(())
}

/// Runs a child that must end in time; one that doesn't is asked to stop, then killed.
pub(crate) fn run_within(
    command: &mut Command,
    limit: Duration,
    grace: Duration,
) -> Result<ExitStatus> {
    let mut child = command.spawn().with_context(|| describe(command))?;
    if let Some(status) = wait_for(&mut child, limit)? {
        return Ok(status);
    }
    let process = child.id().to_string();
    run(Command::new("kill").args(["-TERM", &process]))?;
    if wait_for(&mut child, grace)?.is_none() {
        child.kill().context("kill")?;
        child.wait().context("wait")?;
    }
    bail!(
        "{}: not done after {}",
        describe(command),
        crate::progress::seconds(limit)
    )
}

/// Runs a child that must end in time, and gives each line of its output to `hear` as it comes; one that doesn't
/// end is killed. Where this process is killed, it is the child's own affair to notice.
pub(crate) fn run_lines_within(
    command: &mut Command,
    limit: Duration,
    mut hear: impl FnMut(&str),
) -> Result<ExitStatus> {
    let deadline = Instant::now() + limit;
    let mut child = Killed(
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| describe(command))?,
    );
    let mut stdout = BufReader::new(child.0.stdout.take().context("stdout")?);
    let (send, lines) = channel();
    // Not a scoped one: it reads until the child's output ends, which on every way out of here it has.
    std::thread::spawn(move || {
        let mut line = Vec::new();
        while stdout
            .read_until(b'\n', &mut line)
            .is_ok_and(|count| count > 0)
        {
            let text = String::from_utf8_lossy(&line).trim_end().to_owned();
            if send.send(text).is_err() {
                break;
            }
            line.clear();
        }
    });
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        match lines.recv_timeout(left) {
            Ok(line) => hear(&line),
            Err(RecvTimeoutError::Disconnected) => break,
            Err(RecvTimeoutError::Timeout) => bail!(
                "{}: not done after {}",
                describe(command),
                crate::progress::seconds(limit)
            ),
        }
    }
    child.0.wait().with_context(|| describe(command))
}

/// A child that is gone when this is.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        // One that has ended can't be killed, and is fine.
        if self.0.kill().is_ok() {
            self.0.wait().ok();
        }
    }
}

fn wait_for(child: &mut Child, limit: Duration) -> Result<Option<ExitStatus>> {
    let begin = Instant::now();
    loop {
        if let Some(status) = child.try_wait().context("wait")? {
            return Ok(Some(status));
        }
        if begin.elapsed() >= limit {
            return Ok(None);
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// An error that names the command and how it ended.
pub(crate) fn success(status: ExitStatus, command: &Command) -> Result<()> {
    if !status.success() {
        bail!("{}: {status}", describe(command));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn a_failure_names_the_command_and_its_last_words() {
        let error = output(&mut shell("echo first >&2; echo last >&2; exit 3")).unwrap_err();
        assert!(format!("{error:#}").ends_with("last"), "{error:#}");
    }

    #[test]
    fn wanted_lines_are_picked_from_both_streams() {
        let script = "echo 'WANTED one'; echo other; echo 'WANTED two' >&2";
        let pick = |line: &str| line.contains("WANTED").then(|| line.to_owned());
        let (status, mut lines) = run_and_pick(&mut shell(script), pick).unwrap();
        lines.sort();
        assert!(status.success());
        assert_eq!(lines, ["WANTED one", "WANTED two"]);
    }

    #[test]
    fn a_child_past_its_limit_is_stopped_and_reported() {
        let mut endless = Command::new("sleep");
        endless.arg("60");
        let error = run_within(
            &mut endless,
            Duration::from_millis(50),
            Duration::from_secs(5),
        );
        assert!(format!("{:#}", error.unwrap_err()).contains("not done after"));
    }

    #[test]
    fn lines_are_heard_as_they_come_and_a_child_past_its_limit_is_killed() {
        let mut heard = Vec::new();
        let mut hear = |line: &str| heard.push(line.to_owned());
        let limit = Duration::from_secs(60);
        let mut short = shell("echo one; printf two");
        let status = run_lines_within(&mut short, limit, &mut hear).unwrap();
        assert!(status.success());
        let mut endless = shell("echo $$; exec sleep 60");
        let error = run_lines_within(&mut endless, Duration::from_millis(500), &mut hear);
        assert!(format!("{:#}", error.unwrap_err()).contains("not done after"));
        assert_eq!(heard[..2], ["one", "two"]);
        assert!(!Path::new("/proc").join(&heard[2]).exists());
    }
}
