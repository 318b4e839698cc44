//! Settings of active checks, see [`crate::check`].

use std::time::Duration;

/// What instances are asked, and what follows from it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CheckSettings {
    /// What is asked.
    pub kind: CheckKind,
    /// Time between two checks of an instance, a tenth more or less.
    pub interval: Duration,
    /// How long an answer may take.
    pub timeout: Duration,
    /// So many that are passed in a row bring an instance back.
    pub rise: u32,
    /// So many that fail in a row take it out.
    pub fall: u32,
}

/// How an instance is asked, in clear text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CheckKind {
    /// For a connection. A process that is stopped still passes: its kernel accepts.
    Tcp,
    /// By a GET over HTTP/1.1.
    Http {
        /// Of this path.
        path: Box<str>,
        /// That has to be answered with this status.
        status: u16,
    },
    /// By `grpc.health.v1.Health/Check`, which has to say `SERVING`.
    Grpc {
        /// Of this service; empty: of all.
        service: Box<str>,
    },
}

impl CheckKind {
    /// It proves that the instance answers requests.
    #[must_use]
    pub fn is_answered(&self) -> bool {
        !matches!(self, Self::Tcp)
    }
}
