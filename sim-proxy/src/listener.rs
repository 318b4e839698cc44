//! Listeners bound by us. Pingora binds inside a running service, retries for 30 s and panics;
//! a port in use must be one clean line before anything has started.

use crate::handover::Progress;
use crate::{ProxyConfig, ProxyError};
use async_trait::async_trait;
use pingora_core::server::{ListenFds, RuntimeOpts, ShutdownWatch};
use pingora_core::services::Service;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{IntoRawFd, OwnedFd};
use std::sync::Arc;

/// The listener at `address`: one of the `inherited`, or it is bound. `key` names it in the error.
pub(crate) fn bind(
    key: &'static str,
    address: SocketAddr,
    inherited: &mut Vec<TcpListener>,
) -> Result<TcpListener, ProxyError> {
    let is_it = |listener: &TcpListener| listener.local_addr().is_ok_and(|own| own == address);
    if let Some(at) = inherited.iter().position(is_it) {
        return Ok(inherited.swap_remove(at));
    }
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

/// Binds where users connect, in the clear, over TLS or both; `config` is told the ports.
pub(crate) fn bind_users(
    config: &mut ProxyConfig,
    inherited: &mut Vec<TcpListener>,
) -> Result<Vec<(String, TcpListener)>, ProxyError> {
    let clear = config
        .listen
        .as_mut()
        .map(|listen| ("proxy.listen", listen));
    let tls = config.tls.as_mut();
    let tls = tls.map(|tls| ("proxy.tls.listen", &mut tls.listen));
    let bound = clear.into_iter().chain(tls).map(|(key, address)| {
        let listener = bind(key, *address, inherited)?;
        // Whoever asked for port 0 got another.
        *address = listener.local_addr().unwrap_or(*address);
        Ok((address.to_string(), listener))
    });
    let bound = bound.collect::<Result<Vec<_>, ProxyError>>()?;
    if bound.is_empty() {
        return Err(ProxyError::NoListener);
    }
    Ok(bound)
}

/// A Pingora service on listeners that are bound already, stopped by `stop` rather than by the
/// server: Pingora's own graceful stop sleeps for a fixed time and then cuts what is in flight.
pub(crate) struct Bound<S> {
    pub(crate) service: S,
    /// The address under which `service` knows a listener, and the listener.
    pub(crate) listeners: Vec<(String, TcpListener)>,
    pub(crate) stop: ShutdownWatch,
    pub(crate) progress: Arc<Progress>,
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
        if let Some(fds) = &fds {
            let mut fds = fds.lock();
            for (address, listener) in self.listeners.drain(..) {
                fds.add(address, OwnedFd::from(listener).into_raw_fd());
            }
        }
        // The socket listens already; what is left to do is to accept.
        self.progress
            .listening
            .send_modify(|listening| *listening += 1);
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
