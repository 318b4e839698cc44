//! Logs go to standard error; `SIM_LOG` filters them (`info` by default).

use std::io::IsTerminal;
use tracing_subscriber::EnvFilter;

/// Sets logging up for a role. Records of the `log` facade, as of the kernel's programs, come the
/// same way.
pub(crate) fn init() {
    let filter = EnvFilter::try_from_env("SIM_LOG")
        .unwrap_or_else(|_| EnvFilter::new("info,pingora_core=warn,pingora_proxy=warn"));
    let colour = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    let built = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(colour)
        .with_target(false)
        .try_init();
    if let Err(error) = built {
        crate::client::complain(&format!("sim: no logging: {error}"));
    }
}
