//! The life of a user's connection: whose protocol it speaks, and who serves it next.

use super::buffers::Buffer;
use super::note::Note;
use super::stop::Stop;
use super::via::Via;
use super::watchdog::Watchdog;
use super::{Connection, FastPath, Then};
use crate::clock::monotonic_ns;
use crate::gateway::noting_begin;
use crate::http2;
use crate::limits::Refusal;
use crate::sticky::SessionKey;
use async_trait::async_trait;
use bytes::BytesMut;
use pingora_core::apps::{HttpServerApp, ServerApp};
use pingora_core::protocols::{ALPN, Stream, http::ServerSession};
use pingora_core::server::ShutdownWatch;
use std::sync::Arc;

#[async_trait]
impl ServerApp for FastPath {
    /// Serves the connection in a task of its own: Pingora's has room for a handshake of TLS, three times what all of a
    /// connection takes here, and would keep it for as long as the connection lives.
    async fn process_new(
        self: &Arc<Self>,
        stream: Stream,
        shutdown: &ShutdownWatch,
    ) -> Option<Stream> {
        let (path, shutdown) = (self.clone(), shutdown.clone());
        tokio::spawn(async move { path.carry(stream, &shutdown).await });
        None
    }

    async fn cleanup(&self) {
        self.general.http_cleanup().await;
    }
}

impl FastPath {
    /// Serves a connection to its end; at once, if its user has too many.
    async fn carry(self: &Arc<Self>, mut stream: Stream, shutdown: &ShutdownWatch) -> Option<()> {
        let client = stream.get_socket_digest();
        let client = client.and_then(|digest| Some(digest.peer_addr()?.as_inet()?.ip()));
        let visit = self.workloads.limits.enter(client)?;
        if let Some(door) = &self.door
            && door.is_for(&stream)
        {
            // Boxed, so that connections in the clear are no larger for it.
            stream = Box::pin(door.accept(stream)).await?;
        }
        if matches!(stream.selected_alpn_proto(), Some(ALPN::H2)) {
            self.http2(shutdown).serve(stream).await;
            return None;
        }
        let is_tls = stream.get_ssl().is_some();
        let mut connection = Connection {
            path: self,
            via: Via::of(client, is_tls, &self.forward),
            source: client.map(SessionKey::of_address),
            stop: Stop::new(shutdown, &self.idle),
            watchdog: Watchdog::new(),
            arrived: Buffer::default(),
            since_ns: monotonic_ns(),
            begun_ns: None,
            is_new: true,
            copying: None,
            open: None,
            visit: &visit,
            note: Note::of(client),
        };
        loop {
            match connection.serve(&mut stream).await {
                Then::Cut => return None,
                Then::Http2 => {
                    let Some(stream) = http2::rewound(stream, &connection.arrived) else {
                        self.workloads.outside.http2.ended(http2::End::Protocol);
                        return None;
                    };
                    drop(connection);
                    self.http2(shutdown).serve(stream).await;
                    return None;
                }
                Then::Close => {
                    connection.say_goodbye(&mut stream).await;
                    return None;
                }
                Then::General => {
                    let prefix = BytesMut::from(&*connection.arrived);
                    connection.arrived = Buffer::default();
                    connection.begun_ns = None;
                    let mut session = ServerSession::new_http1(stream);
                    session.set_pipelined_prefix(prefix);
                    session.set_keepalive(Some(self.client_idle_seconds));
                    let general = self.general.process_new_http(session, shutdown);
                    let (reused, begun) = noting_begin(general).await;
                    if !begun && !connection.stop.is_on() {
                        // Pingora has answered it.
                        self.workloads.outside.arrived();
                        self.workloads.outside.refused(Refusal::Malformed);
                    }
                    (stream, _) = reused?.consume();
                    connection.since_ns = monotonic_ns();
                }
            }
        }
    }
}
