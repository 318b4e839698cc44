//! Which failed attempts may be made again (RFC 9110, section 9.2.2).
//!
//! Before a connection stands nothing has been sent, so any request may. After that only a
//! request with an idempotent method may, whose body can be replayed, and of whose answer the
//! user has seen nothing. A proxy must not repeat others even if the broken connection had been
//! idle: that the instance closed it is no proof that it did not act.

use crate::counters::RetryReason;
use crate::dial;
use crate::health::Failure;
use crate::tls::instances::{is_refused as is_refused_tls, is_said_to_be_refused};
use pingora_error::{Error, ErrorType};
use sim_core::address::Address;

/// An error from the instance's side: what it says about the instance and why to try another.
pub(crate) fn judge(error: &Error, reused: bool) -> (Option<Failure>, RetryReason) {
    use ErrorType as E;
    if is_refused(error) {
        return (None, RetryReason::Refused);
    }
    let (failure, reason) = match error.etype() {
        E::ReadTimedout | E::WriteTimedout => (Failure::BadAnswer, RetryReason::Timeout),
        E::InvalidHTTPHeader | E::H1Error => (Failure::BadAnswer, RetryReason::Malformed),
        _ if is_tls(error) || !reused && is_tls_refused(error) => {
            (Failure::Connect, RetryReason::Tls)
        }
        _ => (failure_of_reset(reused), RetryReason::Reset),
    };
    (Some(failure), reason)
}

/// Whether the instance says that it did nothing with a request: it refused the stream, or took leave before it
/// (RFC 9113, section 8.7).
fn is_refused(error: &Error) -> bool {
    let error = error.root_cause().downcast_ref::<h2::Error>();
    error.is_some_and(|error| {
        let refused = error.is_reset() && error.reason() == Some(h2::Reason::REFUSED_STREAM);
        error.is_remote() && (refused || error.is_go_away())
    })
}

/// Whether the instance takes no certificate of ours: with TLS 1.3 that is heard of after the handshake.
fn is_tls_refused(error: &Error) -> bool {
    let cause = error.root_cause();
    // Of such an error h2 keeps the words alone.
    if let Some(error) = cause.downcast_ref::<h2::Error>() {
        return error.get_io().is_some_and(is_said_to_be_refused);
    }
    let error = cause.downcast_ref::<std::io::Error>();
    error.is_some_and(is_refused_tls)
}

/// Whether there is a connection, but no TLS.
pub(crate) fn is_tls(error: &Error) -> bool {
    use ErrorType as E;
    matches!(
        error.etype(),
        E::TLSHandshakeFailure | E::TLSHandshakeTimedout | E::InvalidCert
    ) || error.etype() == &E::HandshakeError && is_tls_refused(error)
}

/// Whether nothing was sent since an idle connection of HTTP/2 turned out to be gone.
pub(crate) fn is_stale(error: &Error) -> bool {
    error.etype() == &ErrorType::H2Error
}

/// What a broken connection says about its instance. One that had served before may have met the instance's
/// keep-alive timer.
pub(crate) fn failure_of_reset(reused: bool) -> Failure {
    if reused {
        Failure::StaleReset
    } else {
        Failure::Connect
    }
}

/// Whether a request that got no answer may be sent again. `repeatable`: it may be answered twice; `reused`: the
/// connection had served before; `elsewhere`: there is another instance.
pub(crate) fn may_go_again(
    reason: RetryReason,
    repeatable: bool,
    reused: bool,
    elsewhere: bool,
) -> bool {
    match reason {
        // Nothing was sent, so any request may go elsewhere; to try the same again is pointless.
        RetryReason::Connect => elsewhere,
        // It has not been acted on; whoever is about to leave may be back by another connection.
        RetryReason::Refused => repeatable,
        // With nothing else to be had, a fresh connection to the same instance may still do what a stale one
        // couldn't.
        RetryReason::Reset => repeatable && (elsewhere || reused),
        RetryReason::Timeout
        | RetryReason::Malformed
        | RetryReason::Down
        | RetryReason::Hedge
        | RetryReason::Tls
        | RetryReason::Late => repeatable && elsewhere,
    }
}

/// True where failing to connect to `address` is the instance's failure, as [`dial::is_instance_at_fault`] has it.
pub(crate) fn is_instance_at_fault(error: &Error, address: &Address) -> bool {
    use ErrorType as E;
    let says = matches!(
        error.etype(),
        E::ConnectRefused
            | E::ConnectTimedout
            | E::ConnectNoRoute
            | E::ConnectError
            // Of HTTP/2, on a connection that stands.
            | E::HandshakeError
    );
    let cause = error.root_cause().downcast_ref();
    says || is_tls(error) || cause.is_some_and(|cause| dial::is_instance_at_fault(cause, address))
}

/// State of a request that got no answer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Exchange {
    pub(crate) idempotent: bool,
    /// More of the body was sent than is kept for a replay.
    pub(crate) body_lost: bool,
    /// The user has seen a part of the answer.
    pub(crate) answer_begun: bool,
}

impl Exchange {
    /// True where it may be sent again. `untouched`: nobody has acted on it.
    pub(crate) fn is_repeatable(self, untouched: bool) -> bool {
        (self.idempotent || untouched) && !self.body_lost && !self.answer_begun
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_idempotent_unanswered_replayable_requests_are_repeated() {
        for bits in 0..8 {
            let [idempotent, body_lost, answer_begun] = [1, 2, 4].map(|bit| bits & bit != 0);
            let repeatable = Exchange {
                idempotent,
                body_lost,
                answer_begun,
            };
            assert_eq!(repeatable.is_repeatable(false), bits == 1);
            assert_eq!(repeatable.is_repeatable(true), bits < 2);
        }
    }

    #[test]
    fn a_request_goes_again_where_that_may_help_and_harms_nobody() {
        use RetryReason as R;
        for (reason, _) in R::ALL {
            for bits in 0..8 {
                let [repeatable, reused, elsewhere] = [1, 2, 4].map(|bit| bits & bit != 0);
                let expected = match (reason, repeatable, reused, elsewhere) {
                    (R::Connect, _, _, elsewhere) => elsewhere,
                    (R::Refused, repeatable, ..) => repeatable,
                    (_, false, ..) => false,
                    (R::Reset, true, true, _) => true,
                    (_, true, _, elsewhere) => elsewhere,
                };
                let goes = may_go_again(reason, repeatable, reused, elsewhere);
                assert_eq!(goes, expected, "{reason:?} {bits:b}");
            }
        }
    }

    #[test]
    fn exhausted_local_ports_are_not_the_instances_fault() {
        let address = ([127, 0, 0, 1], 80).into();
        let at_fault = |etype| is_instance_at_fault(&Error::new(etype), &address);
        assert!(!at_fault(ErrorType::BindError));
        assert!(!at_fault(ErrorType::InternalError));
        assert!(at_fault(ErrorType::ConnectRefused));
        // A socket that is another user's, on the other hand, is.
        let denied = || {
            let cause = std::io::Error::from(std::io::ErrorKind::PermissionDenied);
            Error::because(ErrorType::InternalError, "connecting", cause)
        };
        assert!(!is_instance_at_fault(&denied(), &address));
        let socket = Address::unix("/run/a.sock").expect("valid");
        assert!(is_instance_at_fault(&denied(), &socket));
    }

    #[test]
    fn one_reset_of_a_reused_connection_weighs_less_than_one_of_a_new_one() {
        let closed = Error::new(ErrorType::ConnectionClosed);
        assert_eq!(judge(&closed, true).0, Some(Failure::StaleReset));
        assert_eq!(judge(&closed, false).0, Some(Failure::Connect));
    }
}
