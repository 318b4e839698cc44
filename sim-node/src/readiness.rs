//! Readiness proof: consecutive good answers of the instance itself.

use anyhow::Context as _;
use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper_util::rt::TokioIo;
use sim_core::address::Address;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::{sleep, timeout};

/// A connection to an instance.
pub trait Io: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

/// A connection that is being secured.
pub type Securing = Pin<Box<dyn Future<Output = io::Result<Box<dyn Io>>> + Send>>;

/// Secures connections to a workload's instances, which speak TLS. How is the business of whoever reads the
/// configuration: the proxy does the same.
pub trait Secure: std::fmt::Debug + Send + Sync {
    /// Shakes hands on a connection that stands.
    fn secure(&self, stream: Box<dyn Io>) -> Securing;
}

/// How readiness is proven.
#[derive(Clone, Debug)]
pub(crate) struct Proof {
    pub(crate) path: String,
    pub(crate) successes: u32,
    pub(crate) interval: Duration,
    pub(crate) timeout: Duration,
    /// None: the instance is asked in the clear.
    pub(crate) secure: Option<Arc<dyn Secure>>,
}

/// Longest wait for one answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);

/// Waits until `address` has answered 2xx often enough in a row.
///
/// # Errors
/// Where the proof wasn't given in time: says what the last try ran into.
pub(crate) async fn prove(address: &Address, proof: &Proof) -> Result<(), String> {
    let mut last = String::from("no answer yet");
    let proving = async {
        let mut good = 0;
        while good < proof.successes {
            match timeout(ANSWER_TIMEOUT, ask(address, proof)).await {
                Ok(Ok(())) => good += 1,
                Ok(Err(error)) => (good, last) = (0, format!("{error:#}")),
                Err(_) => (good, last) = (0, "an answer took too long".into()),
            }
            if good < proof.successes {
                sleep(proof.interval).await;
            }
        }
    };
    if timeout(proof.timeout, proving).await.is_ok() {
        return Ok(());
    }
    let scheme = match proof.secure {
        None => "http",
        Some(_) => "https",
    };
    let path = &proof.path;
    let (asked, given) = match address {
        Address::Inet(address) => (
            format!("{scheme}://{address}{path}"),
            "on the {address} and {port}",
        ),
        Address::Unix(_) => (format!("{scheme}, {path} at {address}"), "at the {socket}"),
    };
    Err(format!(
        "not ready within {:.0} s: {asked}: {last}; it must listen {given} it is given, and answer 2xx there \
         (workload.readiness)",
        proof.timeout.as_secs_f64(),
    ))
}

async fn ask(address: &Address, proof: &Proof) -> anyhow::Result<()> {
    let (mut stream, host): (Box<dyn Io>, _) = match address {
        Address::Inet(address) => {
            let stream = TcpStream::connect(address).await?;
            (Box::new(stream), address.to_string())
        }
        // A socket has no name of a host.
        Address::Unix(path) => {
            let stream = UnixStream::connect(&**path).await?;
            (Box::new(stream), "localhost".to_owned())
        }
    };
    if let Some(secure) = &proof.secure {
        let securing = secure.secure(stream);
        stream = securing.await.context("TLS")?;
    }
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let request = hyper::Request::get(&proof.path)
        .header("host", host)
        .header("user-agent", "sim-node readiness")
        .header("connection", "close")
        .body(Empty::<Bytes>::new())?;
    let exchange = async {
        let response = sender.send_request(request).await?;
        let status = response.status();
        response.into_body().collect().await?;
        anyhow::ensure!(status.is_success(), "answered {}", status.as_u16());
        Ok(())
    };
    tokio::pin!(exchange, connection);
    tokio::select! {
        done = &mut exchange => done,
        ended = &mut connection => {
            ended?;
            // The connection is over; what was read of the answer still has to be looked at.
            exchange.await
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    async fn serve(statuses: Vec<&'static str>) -> Address {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let address = listener.local_addr().expect("address");
        tokio::spawn(async move {
            let mut statuses = statuses.into_iter().cycle();
            loop {
                let (mut stream, _) = listener.accept().await.expect("accept");
                let mut buffer = [0; 1024];
                let read = stream.read(&mut buffer).await.expect("read");
                assert!(read > 0);
                let status = statuses.next().expect("endless");
                let answer =
                    format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
                stream.write_all(answer.as_bytes()).await.expect("write");
            }
        });
        address.into()
    }

    fn proof() -> Proof {
        Proof {
            path: "/".into(),
            successes: 3,
            interval: Duration::from_millis(1),
            timeout: Duration::from_secs(60),
            secure: None,
        }
    }

    #[tokio::test]
    async fn good_answers_in_a_row_are_a_proof() {
        let address = serve(vec!["200 OK"]).await;
        assert_eq!(prove(&address, &proof()).await, Ok(()));
    }

    #[tokio::test]
    async fn good_answers_with_bad_ones_between_are_none() {
        let address = serve(vec!["200 OK", "200 OK", "503 Service Unavailable"]).await;
        let proof = Proof {
            timeout: Duration::from_secs(3),
            ..proof()
        };
        let why = prove(&address, &proof)
            .await
            .expect_err("never three in a row");
        assert!(why.contains("503"), "{why}");
    }
}
