//! What the page says of sensing itself.

use super::{Snapshot, seconds};
use prometheus_client::encoding::{DescriptorEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Unit;
use std::fmt::Error;

impl Snapshot {
    /// What sensing itself costs and loses.
    pub(super) fn own(&self, to: &mut DescriptorEncoder<'_>) -> Result<(), Error> {
        let server = ("server", self.server.as_str());
        let programs = &self.cost.programs;
        let counter = MetricType::Counter;
        let mut family = to.encode_descriptor(
            "sim_probe_run",
            "CPU time in each kernel program, measurement included",
            Some(&Unit::Seconds),
            counter,
        )?;
        for program in programs {
            let labels = [server, ("program", program.name.as_str())];
            let mut metric = family.encode_family(&labels)?;
            metric.encode_counter::<NoLabelSet, _, f64>(&seconds(program.run_ns), None)?;
        }
        for (name, help, figure) in [
            ("sim_probe_runs", "Runs of each kernel program", 0),
            (
                "sim_probe_missed_runs",
                "Runs that the kernel skipped; what they would have counted is lost",
                1,
            ),
        ] {
            let mut family = to.encode_descriptor(name, help, None, counter)?;
            for program in programs {
                let labels = [server, ("program", program.name.as_str())];
                let value = [program.run_count, program.missed_count][figure];
                let mut metric = family.encode_family(&labels)?;
                metric.encode_counter::<NoLabelSet, _, f64>(&value, None)?;
            }
        }
        let mut family = to.encode_descriptor(
            "sim_probe_group_active",
            "1 where the kernel programs of a group run, 0 where they are refused or shed",
            None,
            MetricType::Gauge,
        )?;
        for (group, active) in &self.groups {
            let labels = [server, ("group", group)];
            family
                .encode_family(&labels)?
                .encode_gauge(&u32::from(*active))?;
        }
        let mut family = to.encode_descriptor(
            "sim_signal_info",
            "Where a signal comes from, and whether it is exact, sampled, indirect or absent there",
            None,
            MetricType::Gauge,
        )?;
        for signal in &self.signals {
            let labels = [
                server,
                ("signal", signal.name),
                ("source", signal.source),
                ("quality", signal.quality.name()),
            ];
            family.encode_family(&labels)?.encode_gauge(&1_u32)?;
        }
        let mut family = to.encode_descriptor(
            "sim_probe_losses",
            "Facts that the kernel programs had to drop",
            None,
            counter,
        )?;
        let losses = self.losses;
        for (kind, count) in [
            ("run_queue_waits", losses.run_queue_waits),
            ("block_requests", losses.block_requests),
            ("http_requests", losses.http_requests),
            ("neighbours", losses.neighbours),
        ] {
            let labels = [server, ("kind", kind)];
            let mut metric = family.encode_family(&labels)?;
            metric.encode_counter::<NoLabelSet, _, f64>(&count, None)?;
        }
        let mut family = to.encode_descriptor(
            "sim_node_reports_lost",
            "Reports that the control plane did not take",
            None,
            counter,
        )?;
        let labels = [server];
        let mut metric = family.encode_family(&labels)?;
        metric.encode_counter::<NoLabelSet, _, f64>(&self.reports_lost, None)
    }
}
