//! The Unix socket that control plane, nodes and proxies of one machine meet at.
//!
//! Whoever may open the socket file may speak: it is made with mode 0600, so that is the user
//! that runs SIM, and root.

use std::path::{Path, PathBuf};
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint, Uri};

/// Dials the control plane's socket.
///
/// # Errors
/// Where nothing listens there or the file can't be opened.
pub async fn dial(path: &Path) -> Result<Channel, tonic::transport::Error> {
    let path: PathBuf = path.to_owned();
    // The URI is only a name here: the connector goes to the socket file.
    Endpoint::from_static("http://control.sim")
        .connect_with_connector(tower::service_fn(move |_: Uri| {
            let path = path.clone();
            async move {
                Ok::<_, std::io::Error>(hyper_util::rt::TokioIo::new(
                    UnixStream::connect(path).await?,
                ))
            }
        }))
        .await
}
