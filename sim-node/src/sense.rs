//! From counters to samples: what one instance did in one window.

use crate::cgroup::Usage;
use crate::probes::Sensors;
use sim_core::event::{ResourceSample, Source};
use sim_ebpf::{Counters, Group};
use std::time::{Duration, Instant};

/// Last readings of one instance.
#[derive(Debug)]
pub(crate) struct Readings {
    at: Instant,
    kernel: Option<Counters>,
    files: Option<Usage>,
}

impl Readings {
    pub(crate) fn first(kernel: Option<Counters>, files: Option<Usage>) -> Self {
        Self {
            at: Instant::now(),
            kernel,
            files,
        }
    }

    /// Kills for want of memory up to the last reading.
    pub(crate) fn oom_kills(&self) -> u64 {
        self.files.map_or(0, |f| f.oom_kills)
    }

    /// The sample since the last call, and the readings it ends with.
    pub(crate) fn next(
        &mut self,
        sensors: &Sensors,
        kernel: Option<Counters>,
        files: Option<Usage>,
    ) -> ResourceSample {
        let now = Instant::now();
        let window = now.duration_since(self.at).max(Duration::from_micros(1));
        let spent = match (&kernel, &self.kernel) {
            (Some(now), Some(before)) => Some(now.since(before)),
            _ => None,
        };
        let filed = match (&files, &self.files) {
            (Some(now), Some(before)) => Some(now.since(before)),
            _ => None,
        };
        let sample = sample(
            window,
            sensors.is_active(Group::Cpu),
            spent.as_ref(),
            filed.as_ref(),
        );
        *self = Self {
            at: now,
            kernel,
            // What can't be read for once doesn't begin anew at 0.
            files: files.or(self.files),
        };
        sample
    }
}

fn sample(
    window: Duration,
    kernel_cpu: bool,
    kernel: Option<&Counters>,
    files: Option<&Usage>,
) -> ResourceSample {
    let of_kernel = kernel.filter(|_| kernel_cpu);
    let (cpu_seconds, run_queue_seconds, cpu_source) = match (of_kernel, files) {
        (Some(k), _) => (
            k.on_cpu_ns as f64 / 1e9,
            k.run_queue_delay_ns as f64 / 1e9,
            Source::Kernel,
        ),
        (None, Some(f)) => (
            f.cpu_micros as f64 / 1e6,
            f.cpu_pressure_micros as f64 / 1e6,
            Source::CgroupFiles,
        ),
        (None, None) => (0.0, 0.0, Source::Absent),
    };
    let seconds = window.as_secs_f64();
    let quantile = |h: Option<f64>| h.map_or(0.0, |ns| ns / 1e9);
    ResourceSample {
        window,
        cpu_seconds,
        cpu_source,
        run_queue_seconds,
        throttled_ratio: files.map_or(0.0, |f| {
            (f.throttled_micros as f64 / 1e6 / seconds).clamp(0.0, 1.0)
        }),
        memory_bytes: files.map_or(0, |f| f.memory_bytes),
        block_bytes: kernel.map_or(0, |k| {
            k.block_read_bytes.saturating_add(k.block_write_bytes)
        }),
        block_latency_p95_seconds: quantile(kernel.and_then(|k| k.block_hist.quantile_ns(0.95))),
        network_bytes: kernel.map_or(0, |k| k.net_rx_bytes.saturating_add(k.net_tx_bytes)),
        rtt_p50_seconds: quantile(kernel.and_then(|k| k.rtt_hist.quantile_ns(0.5))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_is_believed_where_it_speaks_and_files_where_it_does_not() {
        let window = Duration::from_secs(1);
        let kernel = Counters {
            on_cpu_ns: 250_000_000,
            ..Counters::default()
        };
        let files = Usage {
            cpu_micros: 240_000,
            throttled_micros: 2_000_000,
            ..Usage::default()
        };
        let both = sample(window, true, Some(&kernel), Some(&files));
        assert_eq!(both.cpu_source, Source::Kernel);
        assert!((both.cpu_seconds - 0.25).abs() < 1e-9);
        assert!(
            (both.throttled_ratio - 1.0).abs() < 1e-9,
            "two CPUs may both be throttled"
        );
        let refused = sample(window, false, Some(&kernel), Some(&files));
        assert_eq!(refused.cpu_source, Source::CgroupFiles);
        assert!((refused.cpu_seconds - 0.24).abs() < 1e-9);
        assert_eq!(sample(window, false, None, None).cpu_source, Source::Absent);
    }

    use proptest::prelude::*;
    use sim_ebpf::Log2Histogram;

    /// Whatever a map may hold.
    fn counters() -> impl Strategy<Value = Counters> {
        let words = any::<[u64; 8]>();
        let buckets = prop::array::uniform32(any::<u64>());
        (words, buckets).prop_map(|(w, buckets)| {
            let histogram = Log2Histogram::from(sim_ebpf::RawHistogram { buckets });
            Counters {
                on_cpu_ns: w[0],
                run_queue_delay_ns: w[1],
                run_queue_hist: histogram,
                block_read_bytes: w[2],
                block_write_bytes: w[3],
                block_hist: histogram,
                net_rx_bytes: w[4],
                net_tx_bytes: w[5],
                rtt_hist: histogram,
                throttled_ns: w[6],
                http_service_ns: w[7],
                ..Counters::default()
            }
        })
    }

    fn usage() -> impl Strategy<Value = Usage> {
        any::<[u64; 4]>().prop_map(|w| Usage {
            cpu_micros: w[0],
            throttled_micros: w[1],
            cpu_pressure_micros: w[2],
            memory_bytes: w[3],
            ..Usage::default()
        })
    }

    proptest! {
        #[test]
        fn any_two_readings_give_a_finite_sample(
            kernel in prop::option::of((counters(), counters())),
            files in prop::option::of((usage(), usage())),
            cpu: bool,
            micros in 1u64..=600_000_000,
        ) {
            let spent = kernel.map(|(now, before)| now.since(&before));
            let filed = files.map(|(now, before)| now.since(&before));
            let window = Duration::from_micros(micros);
            let sample = sample(window, cpu, spent.as_ref(), filed.as_ref());
            for value in [
                sample.cpu_seconds,
                sample.run_queue_seconds,
                sample.block_latency_p95_seconds,
                sample.rtt_p50_seconds,
            ] {
                prop_assert!(value.is_finite() && value >= 0.0, "{sample:?}");
            }
            prop_assert!((0.0..=1.0).contains(&sample.throttled_ratio));
            let known = (cpu && kernel.is_some()) || files.is_some();
            prop_assert_eq!(sample.cpu_source == Source::Absent, !known);
        }
    }
}
