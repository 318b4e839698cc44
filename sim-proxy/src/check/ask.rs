//! One check: a connection of its own, one question, one answer.

use crate::config::{CheckKind, Protocol};
use crate::dial::{Link, NoLink, dial};
use crate::dispatch::Dispatch;
use crate::tls::instances::Alpn;
use bytes::{BufMut, Bytes, BytesMut};
use prost::Message;
use sim_core::address::Address;
use std::borrow::Cow;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// More of an answer's head isn't read, bytes.
const HEAD_BYTES_MAX: usize = 16 * 1_024;
/// Nor of a message.
const MESSAGE_BYTES_MAX: usize = 16 * 1_024;
const SERVING: i32 = 1;

/// Why a check failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failed {
    #[error("{0}")]
    NoLink(#[from] NoLink),
    #[error("{0}")]
    Io(#[from] std::io::Error),
    #[error("{0}")]
    Http2(#[from] h2::Error),
    #[error("no proper answer")]
    Malformed,
    #[error("status {0}")]
    Status(u16),
    #[error("it says that it serves not: {0}")]
    NotServing(i32),
}

/// `grpc.health.v1.HealthCheckRequest`.
#[derive(Clone, PartialEq, Message)]
struct Question {
    #[prost(string, tag = "1")]
    service: String,
}

/// `grpc.health.v1.HealthCheckResponse`.
#[derive(Clone, PartialEq, Message)]
struct Answer {
    #[prost(int32, tag = "1")]
    status: i32,
}

/// Asks the instance of a workload at `address` once.
pub(super) async fn ask(
    kind: &CheckKind,
    address: &Address,
    dispatch: &Dispatch,
) -> Result<(), Failed> {
    let alpn = match (kind, dispatch.protocol) {
        (CheckKind::Http { .. }, _) | (CheckKind::Tcp, Protocol::Http1) => Alpn::Http1,
        (CheckKind::Grpc { .. }, _) | (CheckKind::Tcp, Protocol::Http2) => Alpn::Http2,
    };
    let link = dial(address, dispatch.tls.as_deref(), alpn).await?;
    let host = &*host_of(address);
    match kind {
        CheckKind::Tcp => Ok(()),
        CheckKind::Http { path, status } => http(link, host, path, *status).await,
        CheckKind::Grpc { service } => grpc(link, host, service).await,
    }
}

/// Whom a question names: a socket has no name of a host.
fn host_of(address: &Address) -> Cow<'static, str> {
    match address {
        Address::Inet(address) => address.to_string().into(),
        Address::Unix(_) => "localhost".into(),
    }
}

async fn http(mut link: Link, host: &str, path: &str, wanted: u16) -> Result<(), Failed> {
    let request = format!(
        "GET {path} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: sim-proxy\r\nConnection: close\r\n\r\n"
    );
    link.write_all(request.as_bytes()).await?;
    // TLS may keep the end of it back.
    link.flush().await?;
    let mut head = BytesMut::new();
    loop {
        if link.read_buf(&mut head).await? == 0 || head.len() > HEAD_BYTES_MAX {
            return Err(Failed::Malformed);
        }
        let mut fields = [httparse::EMPTY_HEADER; 100];
        let mut answer = httparse::Response::new(&mut fields);
        match answer.parse(&head) {
            Ok(httparse::Status::Partial) => {}
            Ok(httparse::Status::Complete(_)) => {
                let status = answer.code.ok_or(Failed::Malformed)?;
                return if status == wanted {
                    Ok(())
                } else {
                    Err(Failed::Status(status))
                };
            }
            Err(_) => return Err(Failed::Malformed),
        }
    }
}

async fn grpc(link: Link, host: &str, service: &str) -> Result<(), Failed> {
    let scheme = if link.material() == 0 {
        "http"
    } else {
        "https"
    };
    let (requests, connection) = h2::client::handshake(link).await?;
    // Dropped with the check, and with it what drives it.
    let mut connection = std::pin::pin!(connection);
    let call = call(requests, scheme, host, service);
    tokio::select! {
        biased;
        answered = call => answered,
        ended = &mut connection => Err(ended.err().map_or(Failed::Malformed, Failed::Http2)),
    }
}

async fn call(
    requests: h2::client::SendRequest<Bytes>,
    scheme: &str,
    host: &str,
    service: &str,
) -> Result<(), Failed> {
    let request = http::Request::post(format!("{scheme}://{host}/grpc.health.v1.Health/Check"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .header("user-agent", "sim-proxy")
        .body(())
        .map_err(|_| Failed::Malformed)?;
    let (answer, mut sending) = requests.ready().await?.send_request(request, false)?;
    let question = Question {
        service: service.to_owned(),
    };
    let mut message = BytesMut::new();
    message.put_u8(0);
    message.put_u32(question.encoded_len() as u32);
    message.extend_from_slice(&question.encode_to_vec());
    sending.send_data(message.freeze(), true)?;
    let answer = answer.await?;
    if answer.status() != http::StatusCode::OK {
        return Err(Failed::Status(answer.status().as_u16()));
    }
    let mut body = answer.into_body();
    let mut message = BytesMut::new();
    while let Some(data) = body.data().await {
        let data = data?;
        body.flow_control().release_capacity(data.len())?;
        message.extend_from_slice(&data);
        if message.len() > MESSAGE_BYTES_MAX {
            return Err(Failed::Malformed);
        }
    }
    // Without a message it has refused the call, and says why in its trailers.
    let message = message.get(5..).ok_or(Failed::Malformed)?;
    let answer = Answer::decode(message).map_err(|_| Failed::Malformed)?;
    if answer.status == SERVING {
        Ok(())
    } else {
        Err(Failed::NotServing(answer.status))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::ProxyConfig;
    use crate::workloads::Workloads;
    use std::net::SocketAddr;
    use tokio::net::TcpListener;

    /// Asks one that speaks in the clear.
    async fn ask_plain(kind: &CheckKind, address: SocketAddr) -> Result<(), Failed> {
        let any = ([127, 0, 0, 1], 0).into();
        let name = sim_core::name::ProxyName::new("p").expect("valid");
        let workload = sim_core::name::WorkloadName::new("web").expect("valid");
        let workloads = vec![workload.into()];
        let config = ProxyConfig::new(name, workloads, any, any, "/nonexistent".into());
        let workloads = Workloads::new(&config, &[]);
        ask(kind, &address.into(), workloads.at(0).expect("there")).await
    }

    fn http_check(status: u16) -> CheckKind {
        CheckKind::Http {
            path: "/health".into(),
            status,
        }
    }

    /// Answers one connection with `answer`, and gives what was asked.
    async fn answering(answer: &'static str) -> (SocketAddr, tokio::task::JoinHandle<String>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("bound");
        let served = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.expect("accepted");
            let mut asked = Vec::new();
            while !asked.ends_with(b"\r\n\r\n") {
                stream.read_buf(&mut asked).await.expect("a request");
            }
            stream.write_all(answer.as_bytes()).await.expect("sent");
            String::from_utf8(asked).expect("text")
        });
        (address, served)
    }

    #[tokio::test]
    async fn a_status_that_is_not_the_one_is_a_failure() {
        let (address, served) = answering("HTTP/1.1 204 No Content\r\nX: 1\r\n\r\n").await;
        ask_plain(&http_check(204), address).await.expect("healthy");
        let asked = served.await.expect("served");
        assert!(asked.starts_with("GET /health HTTP/1.1\r\n"), "{asked}");
        for (answer, said) in [
            ("HTTP/1.1 503 Busy\r\n\r\n", "status 503"),
            ("SMTP ready\r\n\r\n", "no proper answer"),
            ("", "no proper answer"),
        ] {
            let (address, _served) = answering(answer).await;
            let failed = ask_plain(&http_check(200), address)
                .await
                .expect_err("sick");
            assert_eq!(failed.to_string(), said);
        }
    }

    /// A server that says `status` for each service but `nobody`, which it doesn't know.
    async fn health(status: u8) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("bound");
        tokio::spawn(async move {
            let (stream, _) = listener.accept().await.expect("accepted");
            let mut calls = h2::server::handshake(stream).await.expect("HTTP/2");
            while let Some(call) = calls.accept().await {
                let Ok((mut request, mut respond)) = call else {
                    return;
                };
                assert_eq!(request.uri().path(), "/grpc.health.v1.Health/Check");
                let asked = request.body_mut().data().await.expect("a message");
                let known = !asked.expect("whole").ends_with(b"nobody");
                let answer = http::Response::builder().header("content-type", "application/grpc");
                let answer = answer.body(()).expect("valid");
                let mut sending = respond.send_response(answer, false).expect("open");
                if known {
                    let message = Bytes::from(vec![0, 0, 0, 0, 2, 8, status]);
                    sending.send_data(message, false).expect("open");
                }
                let mut trailers = http::HeaderMap::new();
                let code = if known { "0" } else { "5" };
                trailers.insert("grpc-status", code.parse().expect("valid"));
                sending.send_trailers(trailers).expect("open");
            }
        });
        address
    }

    #[tokio::test]
    async fn a_service_of_grpc_has_to_say_that_it_serves() {
        let check = |service: &str| CheckKind::Grpc {
            service: service.into(),
        };
        ask_plain(&check(""), health(1).await)
            .await
            .expect("healthy");
        let failed = ask_plain(&check("web"), health(2).await).await;
        assert!(matches!(failed, Err(Failed::NotServing(2))), "{failed:?}");
        let failed = ask_plain(&check("nobody"), health(1).await).await;
        assert!(matches!(failed, Err(Failed::Malformed)), "{failed:?}");
    }
}
