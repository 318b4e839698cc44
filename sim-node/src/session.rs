//! The node's session to the control plane: dialled again and again, for as long as the node is.

use sim_api::v1::control_plane_client::ControlPlaneClient;
use sim_api::v1::{NodeCommand, NodeReport};
use std::path::PathBuf;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;

/// Reports on their way. Full means control has stalled; the session is then dropped, since the
/// next one begins with the whole truth.
const QUEUE: usize = 1024;
const PAUSE_FIRST: Duration = Duration::from_millis(50);
const PAUSE_MAX: Duration = Duration::from_secs(2);

/// What the session tells the agent.
pub(crate) enum Link {
    /// Control can be told; the first report must be the hello.
    Up(mpsc::Sender<NodeReport>),
    /// Control commands.
    Command(Box<NodeCommand>),
    /// Control can't be told any more.
    Down,
}

/// Keeps a session up until the agent is gone.
pub(crate) async fn keep(socket: PathBuf, agent: mpsc::Sender<Link>) {
    let mut pause = PAUSE_FIRST;
    let mut said = false;
    while !agent.is_closed() {
        match once(&socket, &agent).await {
            Ok(()) => {
                tracing::warn!("control has ended the session; instances run on");
                (pause, said) = (PAUSE_FIRST, false);
            }
            Err(error) => {
                if !said {
                    tracing::warn!("no control at {}: {error}; trying on", socket.display());
                    said = true;
                }
                pause = (pause * 2).min(PAUSE_MAX);
            }
        }
        if agent.send(Link::Down).await.is_err() {
            return;
        }
        tokio::time::sleep(pause).await;
    }
}

async fn once(socket: &std::path::Path, agent: &mpsc::Sender<Link>) -> anyhow::Result<()> {
    let mut client = ControlPlaneClient::new(sim_api::socket::dial(socket).await?);
    let (reports, queue) = mpsc::channel(QUEUE);
    // The hello must be on its way before control answers, so the agent is told first.
    agent.send(Link::Up(reports)).await?;
    let mut commands = client.node(ReceiverStream::new(queue)).await?.into_inner();
    while let Some(command) = commands.next().await {
        match command {
            Ok(command) => agent.send(Link::Command(Box::new(command))).await?,
            Err(status) => {
                tracing::debug!("session ended: {status}");
                break;
            }
        }
    }
    Ok(())
}
