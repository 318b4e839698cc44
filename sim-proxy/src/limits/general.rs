//! Limits on the general path, where Pingora has none that fits.

use pingora_core::upstreams::peer::PeerOptions;
use pingora_error::{Error, ErrorType};
use std::time::Duration;

/// Least time that is given to another try.
const LEFT_MIN: Duration = Duration::from_millis(1);

/// Waits no longer for an answer than there is time `left`. Pingora has one time-out for the head and for each piece
/// behind it.
pub(crate) fn hurry(options: &mut PeerOptions, left: Duration) {
    let at_most = |limit: &mut Option<Duration>| {
        *limit = Some(limit.map_or(left, |limit| limit.min(left)).max(LEFT_MIN));
    };
    at_most(&mut options.connection_timeout);
    at_most(&mut options.total_connection_timeout);
    at_most(&mut options.read_timeout);
}

/// A time-out was reached.
pub(crate) fn reached(error: &Error) -> bool {
    use ErrorType as E;
    matches!(
        error.etype(),
        E::ConnectTimedout | E::ReadTimedout | E::WriteTimedout
    )
}
