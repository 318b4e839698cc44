//! The proxy as users, instances and the control plane see it, over real sockets.

mod access_log;
mod checking;
mod conformance;
mod control;
mod drain;
mod failure;
mod grpc;
mod hedging;
mod holding;
mod http2;
mod instances;
mod limits;
mod mirroring;
mod process;
mod protocol;
mod raw;
mod routing;
mod secure;
mod sessions;
mod telling;
mod tls;
mod upgrade;
mod upstream;
mod websocket;
mod workloads;
mod world;
