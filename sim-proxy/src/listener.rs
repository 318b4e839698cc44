//! Listeners bound by us. Pingora binds inside a running service, retries for 30 s and panics;
//! a port in use must be one clean line before anything has started.

use crate::ProxyError;
use async_trait::async_trait;
use pingora_core::server::{ListenFds, RuntimeOpts, ShutdownWatch};
use pingora_core::services::Service;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{IntoRawFd, OwnedFd};

/// Binds `address`; `key` names it in the error.
pub(crate) fn bind(key: &'static str, address: SocketAddr) -> Result<TcpListener, ProxyError> {
    let bound = TcpListener::bind(address).and_then(|listener| {
        listener.set_nonblocking(true)?;
        Ok(listener)
    });
    bound.map_err(|source| ProxyError::Bind {
        key,
        address,
        source,
    })
}

/// A Pingora service on a listener that is bound already, stopped by `stop` rather than by the
/// server: Pingora's own graceful stop sleeps for a fixed time and then cuts what is in flight.
pub(crate) struct Bound<S> {
    pub(crate) service: S,
    /// The address under which `service` knows the listener, and the listener.
    pub(crate) listener: Option<(String, TcpListener)>,
    pub(crate) stop: ShutdownWatch,
}

#[async_trait]
impl<S: Service> Service for Bound<S> {
    async fn start_service(
        &mut self,
        fds: Option<ListenFds>,
        _server_stop: ShutdownWatch,
        listeners_per_fd: usize,
    ) {
        // The table through which a running server hands its listeners to its successor; Pingora
        // takes a listener from there before it binds one.
        if let (Some(fds), Some((address, listener))) = (&fds, self.listener.take()) {
            fds.lock()
                .add(address, OwnedFd::from(listener).into_raw_fd());
        }
        self.service
            .start_service(fds, self.stop.clone(), listeners_per_fd)
            .await;
    }

    fn name(&self) -> &str {
        self.service.name()
    }

    fn threads(&self) -> Option<usize> {
        self.service.threads()
    }

    fn runtime_opts_override(&self, global: &RuntimeOpts) -> Option<RuntimeOpts> {
        self.service.runtime_opts_override(global)
    }

    fn listen_addresses(&self) -> Option<Vec<String>> {
        self.service.listen_addresses()
    }
}
