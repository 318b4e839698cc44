//! The least proxy that `pingora-proxy` makes: one upstream, nothing else said. SIM is compared with it to show what a
//! path of its own is worth.

use std::net::SocketAddr;

use async_trait::async_trait;
use clap::Parser;
use pingora_core::server::Server;
use pingora_core::server::configuration::ServerConf;
use pingora_core::upstreams::peer::HttpPeer;
use pingora_error::Result;
use pingora_proxy::{ProxyHttp, Session, http_proxy_service};

#[derive(Parser)]
struct Arguments {
    /// Where users connect
    listen: SocketAddr,
    /// Where the instance is
    upstream: SocketAddr,
}

struct Naive {
    upstream: SocketAddr,
}

#[async_trait]
impl ProxyHttp for Naive {
    type CTX = ();

    fn new_ctx(&self) -> Self::CTX {}

    async fn upstream_peer(&self, _: &mut Session, (): &mut ()) -> Result<Box<HttpPeer>> {
        Ok(Box::new(HttpPeer::new(self.upstream, false, String::new())))
    }
}

fn main() {
    let arguments = Arguments::parse();
    let configuration = ServerConf {
        threads: 1,
        ..ServerConf::default()
    };
    let mut server = Server::new_with_opt_and_conf(None, configuration);
    server.bootstrap();
    let naive = Naive {
        upstream: arguments.upstream,
    };
    let mut service = http_proxy_service(&server.configuration, naive);
    service.add_tcp(&arguments.listen.to_string());
    server.add_service(service);
    server.run_forever();
}
