//! When a request is overdue: what the request path has of it.

pub(crate) use moment::Overdue;

#[rustfmt::skip]
#[path = "../../src/overdue/moment.rs"]
mod moment;
