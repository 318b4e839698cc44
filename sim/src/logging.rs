//! Logs go to standard error; `SIM_LOG` filters them (`info` by default).

use std::io::IsTerminal;
use tracing_subscriber::EnvFilter;

/// What is logged unless `SIM_LOG` says otherwise. Pingora's pool of connections has two things to tell: an error for each
/// connection that another thread has not let go of yet, some a second, in whose place a new one is made; and that an
/// instance spoke unasked on an idle connection, which is closed. Requests would pay for the lines, and neither is a
/// fault that anybody has to see to.
const DEFAULT: &str = "info,pingora_core=warn,pingora_core::connectors=off,pingora_proxy=warn";

/// Sets logging up for a role. Records of the `log` facade, as of the kernel's programs, come the
/// same way.
pub(crate) fn init() {
    let filter = EnvFilter::try_from_env("SIM_LOG").unwrap_or_else(|_| EnvFilter::new(DEFAULT));
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
