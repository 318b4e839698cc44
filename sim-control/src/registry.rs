//! Who is connected, and what is known of them beside what the core needs.

use sim_api::v1;
use sim_core::name::{ProxyName, ServerName};
use std::collections::BTreeMap;
use tokio::sync::mpsc;
use tonic::Status;

/// Stream of commands to a node.
pub(crate) type NodeLink = mpsc::Sender<Result<v1::NodeCommand, Status>>;
/// Stream of tables to a proxy.
pub(crate) type ProxyLink = mpsc::Sender<Result<v1::RoutingTable, Status>>;

/// One server's node.
#[derive(Debug, Default)]
pub(crate) struct Node {
    /// Session number and stream, while connected. A late end of an old session must not end the
    /// new one.
    pub(crate) link: Option<(u64, NodeLink)>,
    pub(crate) probes: v1::ProbeReport,
    pub(crate) instances: BTreeMap<u64, v1::RunningInstance>,
}

/// One proxy's session for one workload.
#[derive(Debug)]
pub(crate) struct Proxy {
    pub(crate) session: u64,
    pub(crate) listen: String,
    pub(crate) link: ProxyLink,
}

/// Everyone.
#[derive(Debug, Default)]
pub(crate) struct Registry {
    pub(crate) nodes: BTreeMap<ServerName, Node>,
    /// By name and workload.
    pub(crate) proxies: BTreeMap<(ProxyName, String), Proxy>,
}

/// Instances that ended are remembered for so many, so that tools can ask when they died.
const ENDED_KEPT: usize = 16;

impl Registry {
    pub(crate) fn send_node(&mut self, server: &ServerName, command: v1::node_command::Command) {
        let Some(node) = self.nodes.get_mut(server) else {
            return;
        };
        // Without a session nothing is lost: the core asks again when the node is back.
        let Some((_, link)) = &node.link else { return };
        let command = v1::NodeCommand {
            command: Some(command),
        };
        if link.try_send(Ok(command)).is_err() {
            tracing::warn!("node {server} does not read its commands: session dropped");
            node.link = None;
        }
    }

    pub(crate) fn publish(&mut self, table: &v1::RoutingTable) {
        self.proxies.retain(|(name, workload), proxy| {
            if *workload != table.workload {
                return true;
            }
            let sent = proxy.link.try_send(Ok(table.clone())).is_ok();
            if !sent {
                tracing::warn!("proxy {name} does not read its tables: session dropped");
            }
            sent
        });
    }

    /// Whether any session of `proxy` is up.
    pub(crate) fn has_proxy(&self, proxy: &ProxyName) -> bool {
        self.proxies.keys().any(|(name, _)| name == proxy)
    }

    pub(crate) fn instance(
        &mut self,
        server: &ServerName,
        id: u64,
    ) -> Option<&mut v1::RunningInstance> {
        self.nodes.get_mut(server)?.instances.get_mut(&id)
    }

    /// Forgets the oldest of those that ended.
    pub(crate) fn forget_ended(&mut self, server: &ServerName) {
        let Some(node) = self.nodes.get_mut(server) else {
            return;
        };
        let ended: Vec<u64> = node
            .instances
            .iter()
            .filter(|(_, i)| i.pid == 0)
            .map(|(&id, _)| id)
            .collect();
        for id in ended.iter().take(ended.len().saturating_sub(ENDED_KEPT)) {
            node.instances.remove(id);
        }
    }
}
