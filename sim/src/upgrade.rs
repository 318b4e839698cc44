//! `sim upgrade`: the proxy of a running `sim run` is relieved by one that is started from the program and the
//! configuration that are on disk now. Nobody's request fails, and no connection is refused; how that is done stands in
//! `sim_proxy`'s `handover`.
//!
//! The supervisor is asked over a socket, or by SIGHUP. It starts the successor itself, since a role ends with its
//! parent, and knows that the successor serves when it is the one that waits for a successor of its own.

use crate::client::say;
use crate::config::Config;
use crate::roles::{CannotStart, block_on};
use std::fs::{self, Permissions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{UnixListener, UnixStream};
use tokio::process::Child;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// How long a successor may take until it serves.
const START_MAX: Duration = Duration::from_secs(60);
/// Between two looks whether it does.
const LOOK: Duration = Duration::from_millis(20);

/// What happens to upgrades.
pub(crate) enum Event {
    /// One is asked for; by whom, if somebody waits to hear of it.
    Asked(Option<UnixStream>),
    /// The successor serves.
    Serves,
    /// It doesn't come to that, and why.
    Failed(String),
    /// A proxy that was relieved has ended.
    Ended(u32, io::Result<ExitStatus>),
}

/// The supervisor's part.
pub(crate) struct Upgrades {
    socket: PathBuf,
    /// Where the proxy that serves waits for a successor.
    handover: PathBuf,
    listener: UnixListener,
    hangup: Signal,
    under_way: Option<UnderWay>,
    /// There was a SIGHUP meanwhile.
    again: bool,
    relieved: Vec<(u32, Child)>,
}

struct UnderWay {
    successor: Child,
    begun: Instant,
    asked_by: Vec<UnixStream>,
}

impl Upgrades {
    /// Begins to listen.
    pub(crate) fn listen(config: &Config) -> io::Result<Self> {
        let socket = config.run_socket();
        // Of a run that was killed: another one that lives has been looked for.
        match fs::remove_file(&socket) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let listener = UnixListener::bind(&socket)?;
        fs::set_permissions(&socket, Permissions::from_mode(0o600))?;
        Ok(Self {
            socket,
            handover: config.handover_socket(),
            listener,
            hangup: signal(SignalKind::hangup())?,
            under_way: None,
            again: false,
            relieved: Vec::new(),
        })
    }

    /// The next event. May be dropped and asked again.
    pub(crate) async fn next(&mut self) -> Event {
        if self.again && self.under_way.is_none() {
            self.again = false;
            return Event::Asked(None);
        }
        tokio::select! {
            asked = asked(&self.listener) => Event::Asked(Some(asked)),
            Some(()) = self.hangup.recv() => Event::Asked(None),
            event = decided(self.under_way.as_mut(), &self.handover) => event,
            event = ended(&mut self.relieved) => event,
        }
    }

    /// True: whoever asks hears of the one that is under way. By SIGHUP nobody hears anything, and its successor may have
    /// read the configuration of before: there is another one after it.
    pub(crate) fn joins(&mut self, asked_by: &mut Option<UnixStream>) -> bool {
        let Some(under_way) = &mut self.under_way else {
            return false;
        };
        self.again |= asked_by.is_none();
        under_way.asked_by.extend(asked_by.take());
        true
    }

    /// A successor was started.
    pub(crate) fn begun(&mut self, successor: Child, asked_by: Option<UnixStream>) {
        self.under_way = Some(UnderWay {
            successor,
            begun: Instant::now(),
            asked_by: asked_by.into_iter().collect(),
        });
    }

    /// The successor that serves, if there is one. `predecessor` only answers what it has accepted, and ends by itself.
    pub(crate) async fn serves(&mut self, predecessor: Option<Child>) -> Option<Child> {
        let under_way = self.under_way.take()?;
        let pid = |child: &Child| child.id().unwrap_or_default();
        let millis = under_way.begun.elapsed().as_millis();
        let (new, old) = (pid(&under_way.successor), predecessor.as_ref().map(pid));
        let old = old.map_or_else(|| "none".to_owned(), |old| old.to_string());
        let text = format!("proxy {new} serves in place of {old}, {millis} ms after its start");
        tracing::info!("{text}");
        for asker in under_way.asked_by {
            answer(Some(asker), "ok", &text).await;
        }
        let predecessor = predecessor.map(|child| (pid(&child), child));
        self.relieved.extend(predecessor);
        Some(under_way.successor)
    }

    /// The successor came to nothing; the proxy that serves goes on.
    pub(crate) async fn failed(&mut self, why: &str) {
        let Some(mut under_way) = self.under_way.take() else {
            return;
        };
        tracing::error!("upgrade failed: {why}; the proxy before serves on");
        for asker in under_way.asked_by {
            answer(
                Some(asker),
                "error",
                &format!("{why}; the proxy before serves on"),
            )
            .await;
        }
        if let Err(error) = under_way.successor.kill().await {
            tracing::debug!("successor: {error}");
        }
    }

    /// What is to be ended with the run.
    pub(crate) fn end(self) -> Vec<Child> {
        if let Err(error) = fs::remove_file(&self.socket) {
            tracing::debug!("{}: {error}", self.socket.display());
        }
        let successor = self.under_way.map(|under_way| under_way.successor);
        let relieved = self.relieved.into_iter().map(|(_, child)| child);
        relieved.chain(successor).collect()
    }
}

/// Tells whoever asked.
pub(crate) async fn answer(asked_by: Option<UnixStream>, word: &str, text: &str) {
    if let Some(mut stream) = asked_by
        && let Err(error) = stream.write_all(format!("{word} {text}").as_bytes()).await
    {
        tracing::debug!("who asked for an upgrade has left: {error}");
    }
}

/// Somebody of the same user, or root.
async fn asked(listener: &UnixListener) -> UnixStream {
    loop {
        let refused = match listener.accept().await {
            Ok((stream, _)) => match stream.peer_cred().map(|peer| peer.uid()) {
                Ok(uid) if uid == 0 || uid == nix::unistd::geteuid().as_raw() => return stream,
                Ok(uid) => format!("user {uid} may not ask for an upgrade"),
                Err(error) => error.to_string(),
            },
            Err(error) => {
                // Without descriptors the next one would fail as soon.
                tokio::time::sleep(LOOK).await;
                error.to_string()
            }
        };
        tracing::warn!("upgrade: {refused}");
    }
}

/// What becomes of the successor.
async fn decided(under_way: Option<&mut UnderWay>, handover: &Path) -> Event {
    let Some(under_way) = under_way else {
        return std::future::pending().await;
    };
    loop {
        if waits_there(under_way.successor.id(), handover).await {
            return Event::Serves;
        }
        if under_way.begun.elapsed() > START_MAX {
            let why = format!("it does not serve within {} s", START_MAX.as_secs());
            return Event::Failed(why);
        }
        tokio::select! {
            status = under_way.successor.wait() => {
                let status = status.map_or_else(|e| e.to_string(), |status| status.to_string());
                return Event::Failed(format!("the new proxy ended ({status})"));
            }
            () = tokio::time::sleep(LOOK) => {}
        }
    }
}

/// Whether it is process `pid` that waits for a successor.
async fn waits_there(pid: Option<u32>, handover: &Path) -> bool {
    let Ok(stream) = UnixStream::connect(handover).await else {
        return false;
    };
    let there = stream.peer_cred().ok().and_then(|peer| peer.pid());
    there.is_some() && there.and_then(|pid| u32::try_from(pid).ok()) == pid
}

/// The first of the relieved that ends.
async fn ended(relieved: &mut Vec<(u32, Child)>) -> Event {
    std::future::poll_fn(|context| {
        for at in 0..relieved.len() {
            let ended = {
                let (_, child) = &mut relieved[at];
                std::pin::pin!(child.wait()).poll(context)
            };
            if let std::task::Poll::Ready(status) = ended {
                let (pid, _) = relieved.swap_remove(at);
                return std::task::Poll::Ready(Event::Ended(pid, status));
            }
        }
        std::task::Poll::Pending
    })
    .await
}

/// `sim upgrade`.
pub(crate) fn ask(config: &Path) -> anyhow::Result<()> {
    let socket = Config::read(config)?.run_socket();
    block_on(async {
        let Ok(mut stream) = UnixStream::connect(&socket).await else {
            let problem = "no `sim run` answers here; is it running with this configuration?";
            return Err(CannotStart(format!("{}: {problem}", socket.display())).into());
        };
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        match answer.split_once(' ') {
            Some(("ok", text)) => say(text),
            Some((_, why)) => anyhow::bail!("{why}"),
            None => anyhow::bail!("`sim run` has ended"),
        }
        Ok(())
    })?
}
