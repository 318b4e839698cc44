//! Records that the kernel programs log (rare events only), handed on to `tracing`.

use log::{Level, Log, Metadata, Record};

/// Target of all events that come from the kernel side.
pub(crate) const TARGET: &str = "sim_ebpf::kernel";

/// A [`Log`] of our own rather than the global one, so that no bridge need be installed.
pub(crate) struct ToTracing;

impl Log for ToTracing {
    fn enabled(&self, _metadata: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &Record<'_>) {
        let message = record.args();
        match record.level() {
            Level::Error => tracing::error!(target: TARGET, "{message}"),
            Level::Warn => tracing::warn!(target: TARGET, "{message}"),
            Level::Info => tracing::info!(target: TARGET, "{message}"),
            Level::Debug => tracing::debug!(target: TARGET, "{message}"),
            Level::Trace => tracing::trace!(target: TARGET, "{message}"),
        }
    }

    fn flush(&self) {}
}
