//! Between wire messages and core types.

use crate::v1;
use sim_core::address::{Address, AddressError};
use sim_core::event::{Event, ExitCause, InstanceTraffic, ResourceSample, Source, TrafficSample};
use sim_core::histogram::LatencyHistogram;
use sim_core::name::{InstanceId, NameError, ProxyName, WorkloadName};
use sim_core::table::{Mirror, Share, TableError, Version, WeightTable};
use sim_core::workload::Standby;
use std::time::Duration;

/// A message that says something impossible.
#[derive(Debug, thiserror::Error)]
pub enum ConvertError {
    /// A name with characters that names can't have.
    #[error("{field}: {source}")]
    Name {
        /// Field of the message.
        field: &'static str,
        /// What is allowed.
        source: NameError,
    },
    /// An address that is none.
    #[error("address {0:?}: {1}")]
    Address(String, AddressError),
    /// A field that must be there.
    #[error("{0} is missing")]
    Missing(&'static str),
    /// A number out of its range.
    #[error("{0} is out of range")]
    Range(&'static str),
    /// A standby policy that is none.
    #[error("standby is {0:?}; allowed are \"always\", \"predicted\" and \"none\"")]
    Standby(String),
    /// Shares that make no table.
    #[error(transparent)]
    Table(#[from] TableError),
}

fn address(text: &str) -> Result<Address, ConvertError> {
    text.parse()
        .map_err(|error| ConvertError::Address(text.to_owned(), error))
}

fn workload(name: &str) -> Result<WorkloadName, ConvertError> {
    WorkloadName::new(name).map_err(|source| ConvertError::Name {
        field: "workload",
        source,
    })
}

/// A finite number that is not negative.
fn measure(value: f64, field: &'static str) -> Result<f64, ConvertError> {
    if value.is_finite() && value >= 0.0 {
        Ok(value)
    } else {
        Err(ConvertError::Range(field))
    }
}

impl From<Version> for v1::TableVersion {
    fn from(v: Version) -> Self {
        Self {
            epoch: v.epoch,
            generation: v.generation,
        }
    }
}

impl From<v1::TableVersion> for Version {
    fn from(v: v1::TableVersion) -> Self {
        Self {
            epoch: v.epoch,
            generation: v.generation,
        }
    }
}

impl From<&WeightTable> for v1::RoutingTable {
    fn from(table: &WeightTable) -> Self {
        let share = |s: &Share| v1::Share {
            instance: s.instance.0,
            address: s.address.to_string(),
            weight_bp: u32::from(s.weight_bp),
            ready: s.ready,
        };
        Self {
            workload: table.workload().to_string(),
            version: Some(table.version().into()),
            shares: table.shares().iter().map(share).collect(),
            mirror: table.mirror().map(|mirror| v1::Mirror {
                instance: mirror.instance.0,
                share_bp: u32::from(mirror.share_bp),
            }),
        }
    }
}

impl TryFrom<v1::RoutingTable> for WeightTable {
    type Error = ConvertError;

    fn try_from(table: v1::RoutingTable) -> Result<Self, ConvertError> {
        let share = |s: &v1::Share| {
            Ok(Share {
                instance: InstanceId(s.instance),
                address: address(&s.address)?,
                weight_bp: s
                    .weight_bp
                    .try_into()
                    .map_err(|_| ConvertError::Range("weight_bp"))?,
                ready: s.ready,
            })
        };
        let shares = table
            .shares
            .iter()
            .map(share)
            .collect::<Result<_, ConvertError>>()?;
        let version = table
            .version
            .ok_or(ConvertError::Missing("version"))?
            .into();
        let made = Self::new(workload(&table.workload)?, version, shares)?;
        let Some(mirror) = table.mirror else {
            return Ok(made);
        };
        let share_bp = mirror.share_bp.try_into();
        Ok(made.with_mirror(Mirror {
            instance: InstanceId(mirror.instance),
            share_bp: share_bp.map_err(|_| ConvertError::Range("mirror.share_bp"))?,
        })?)
    }
}

impl From<&InstanceTraffic> for v1::InstanceTraffic {
    fn from(t: &InstanceTraffic) -> Self {
        let (latency_buckets, latency_counts) = t.latency.pairs().unzip();
        Self {
            instance: t.instance.0,
            ok: t.ok,
            failed: t.failed,
            latency_buckets,
            latency_counts,
            in_flight: t.in_flight,
            ejected: t.ejected,
        }
    }
}

impl From<v1::InstanceTraffic> for InstanceTraffic {
    fn from(t: v1::InstanceTraffic) -> Self {
        let pairs = t.latency_buckets.into_iter().zip(t.latency_counts);
        Self {
            instance: InstanceId(t.instance),
            ok: t.ok,
            failed: t.failed,
            latency: LatencyHistogram::from_pairs(pairs),
            in_flight: t.in_flight,
            ejected: t.ejected,
        }
    }
}

/// The wire form of one proxy report.
#[must_use]
pub fn proxy_report(
    proxy: &ProxyName,
    workload: &WorkloadName,
    sample: &TrafficSample,
) -> v1::ProxyReport {
    v1::ProxyReport {
        proxy: proxy.to_string(),
        workload: workload.to_string(),
        window_micros: u64::try_from(sample.window.as_micros()).unwrap_or(u64::MAX),
        arrivals: sample.arrivals,
        applied: Some(sample.applied.into()),
        instances: sample.instances.iter().map(Into::into).collect(),
        listen: String::new(),
    }
}

impl v1::ProxyReport {
    /// The event that this report is to the core.
    ///
    /// # Errors
    /// Where a name is none or the version is missing.
    pub fn into_event(self) -> Result<Event, ConvertError> {
        let proxy = ProxyName::new(&self.proxy).map_err(|source| ConvertError::Name {
            field: "proxy",
            source,
        })?;
        let sample = TrafficSample {
            window: Duration::from_micros(self.window_micros),
            arrivals: self.arrivals,
            applied: self.applied.ok_or(ConvertError::Missing("applied"))?.into(),
            instances: self.instances.into_iter().map(Into::into).collect(),
        };
        Ok(Event::Traffic {
            proxy,
            workload: workload(&self.workload)?,
            sample,
        })
    }
}

/// The wire form of one resource sample.
#[must_use]
pub fn resource_report(instance: InstanceId, sample: &ResourceSample) -> v1::ResourceReport {
    let source = match sample.cpu_source {
        Source::Kernel => v1::SignalSource::Kernel,
        Source::CgroupFiles => v1::SignalSource::CgroupFiles,
        Source::Absent => v1::SignalSource::Absent,
    };
    v1::ResourceReport {
        instance: instance.0,
        window_micros: u64::try_from(sample.window.as_micros()).unwrap_or(u64::MAX),
        cpu_seconds: sample.cpu_seconds,
        cpu_source: source.into(),
        run_queue_seconds: sample.run_queue_seconds,
        throttled_ratio: sample.throttled_ratio,
        memory_bytes: sample.memory_bytes,
        block_bytes: sample.block_bytes,
        block_latency_p95_seconds: sample.block_latency_p95_seconds,
        network_bytes: sample.network_bytes,
        rtt_p50_seconds: sample.rtt_p50_seconds,
    }
}

impl v1::ResourceReport {
    /// The event that this report is to the core.
    ///
    /// # Errors
    /// Where a measure is negative or not finite, or the window is empty.
    pub fn into_event(self) -> Result<Event, ConvertError> {
        if self.window_micros == 0 {
            return Err(ConvertError::Range("window_micros"));
        }
        let cpu_source = match self.cpu_source() {
            v1::SignalSource::Kernel => Source::Kernel,
            v1::SignalSource::CgroupFiles => Source::CgroupFiles,
            v1::SignalSource::Absent => Source::Absent,
        };
        let sample = ResourceSample {
            window: Duration::from_micros(self.window_micros),
            cpu_seconds: measure(self.cpu_seconds, "cpu_seconds")?,
            cpu_source,
            run_queue_seconds: measure(self.run_queue_seconds, "run_queue_seconds")?,
            throttled_ratio: measure(self.throttled_ratio, "throttled_ratio")?.min(1.0),
            memory_bytes: self.memory_bytes,
            block_bytes: self.block_bytes,
            block_latency_p95_seconds: measure(
                self.block_latency_p95_seconds,
                "block_latency_p95_seconds",
            )?,
            network_bytes: self.network_bytes,
            rtt_p50_seconds: measure(self.rtt_p50_seconds, "rtt_p50_seconds")?,
        };
        Ok(Event::Resources {
            instance: InstanceId(self.instance),
            sample,
        })
    }
}

impl v1::InstanceStarted {
    /// The event that this report is to the core.
    ///
    /// # Errors
    /// Where the address is none.
    pub fn to_event(&self) -> Result<Event, ConvertError> {
        let address = address(&self.address)?;
        Ok(Event::Started {
            instance: InstanceId(self.instance),
            address,
        })
    }
}

impl v1::InstanceReady {
    /// The event that this report is to the core.
    #[must_use]
    pub fn to_event(&self) -> Event {
        Event::Ready {
            instance: InstanceId(self.instance),
            create: Duration::from_micros(self.create_micros),
        }
    }
}

impl v1::InstanceExited {
    /// The event that this report is to the core.
    ///
    /// # Errors
    /// Where no cause is given.
    pub fn to_event(&self) -> Result<Event, ConvertError> {
        use v1::instance_exited::Cause;
        let cause = match self.cause.as_ref().ok_or(ConvertError::Missing("cause"))? {
            Cause::Code(code) => ExitCause::Code(*code),
            Cause::Signal(signal) => ExitCause::Signal(*signal),
            Cause::NotStarted(why) => ExitCause::NotStarted(why.clone()),
            Cause::OutOfMemory(limit_bytes) => ExitCause::OutOfMemory(*limit_bytes),
        };
        Ok(Event::Exited {
            instance: InstanceId(self.instance),
            cause,
            expected: self.expected,
        })
    }
}

/// The standby policy that `text` names.
///
/// # Errors
/// Says which words are allowed.
pub fn standby_of(text: &str) -> Result<Standby, ConvertError> {
    match text {
        "always" => Ok(Standby::Always),
        "predicted" => Ok(Standby::Predicted),
        "none" => Ok(Standby::None),
        other => Err(ConvertError::Standby(other.to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_survives_the_wire_and_a_bad_one_does_not_get_past_it() {
        let share = |id: u64, weight_bp| Share {
            instance: InstanceId(id),
            address: match id {
                1 => ([10, 0, 0, 1], 80).into(),
                _ => Address::unix("/run/sim/i2.sock").expect("valid"),
            },
            weight_bp,
            ready: true,
        };
        let table = WeightTable::new(
            WorkloadName::new("web").expect("valid"),
            Version {
                epoch: 3,
                generation: 9,
            },
            vec![share(1, 9_900), share(2, 100)],
        )
        .expect("valid");
        let wire = v1::RoutingTable::from(&table);
        assert_eq!(WeightTable::try_from(wire.clone()).expect("same"), table);
        let mirror = Mirror {
            instance: InstanceId(2),
            share_bp: 500,
        };
        let mirrored = table.with_mirror(mirror).expect("a mirror");
        let mut wire_mirrored = v1::RoutingTable::from(&mirrored);
        assert_eq!(
            WeightTable::try_from(wire_mirrored.clone()).expect("same"),
            mirrored
        );
        wire_mirrored.mirror = Some(v1::Mirror {
            instance: 3,
            share_bp: 500,
        });
        assert!(matches!(
            WeightTable::try_from(wire_mirrored),
            Err(ConvertError::Table(TableError::Mirror(..)))
        ));

        let mut bad = wire.clone();
        bad.shares[0].weight_bp = 70_000;
        assert!(matches!(
            WeightTable::try_from(bad),
            Err(ConvertError::Range("weight_bp"))
        ));
        let mut bad = wire.clone();
        bad.shares[0].address = "unix:nowhere".into();
        assert!(matches!(
            WeightTable::try_from(bad),
            Err(ConvertError::Address(..))
        ));
        let mut bad = wire;
        bad.shares[1].instance = 1;
        assert!(matches!(
            WeightTable::try_from(bad),
            Err(ConvertError::Table(TableError::Duplicate(_)))
        ));
    }

    #[test]
    fn a_sample_that_is_not_a_number_is_refused() {
        let report = v1::ResourceReport {
            instance: 1,
            window_micros: 1_000_000,
            cpu_seconds: f64::NAN,
            ..Default::default()
        };
        assert!(matches!(
            report.into_event(),
            Err(ConvertError::Range("cpu_seconds"))
        ));
    }
}
