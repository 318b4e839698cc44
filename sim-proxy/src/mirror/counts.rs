//! What is known of copies, apart from everything that is known of requests.

use super::witness::Seen;
use crate::dial::NoLink;
use crate::exposition::{Kind, Page};
use crate::metrics::histogram;
use sim_core::histogram::{BUCKETS, bucket_of};
use std::sync::atomic::{AtomicU64, Ordering};

/// Why a request that was drawn is not copied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Dropped {
    /// The worker's queue has no room.
    QueueFull,
    /// Its body is too long.
    TooLarge,
    /// Its body didn't come to its end.
    Incomplete,
}

impl Dropped {
    const ALL: [(Self, &'static str); 3] = [
        (Self::QueueFull, "queue_full"),
        (Self::TooLarge, "too_large"),
        (Self::Incomplete, "incomplete"),
    ];
}

/// Why a copy has no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lost {
    /// No connection.
    Connect,
    /// The connection broke, or what came is no HTTP.
    Broken,
    /// Not in time.
    Timeout,
    /// TLS was not agreed on.
    Tls,
}

impl From<NoLink> for Lost {
    fn from(none: NoLink) -> Self {
        match none {
            NoLink::Connect(_) => Self::Connect,
            NoLink::Tls(_) => Self::Tls,
        }
    }
}

impl Lost {
    const ALL: [(Self, &'static str); 4] = [
        (Self::Connect, "connect"),
        (Self::Broken, "broken"),
        (Self::Timeout, "timeout"),
        (Self::Tls, "tls"),
    ];
}

/// Classes of status: 1xx to 5xx.
const CLASSES: [&str; 5] = ["1xx", "2xx", "3xx", "4xx", "5xx"];
const COMPARED: [&str; 3] = ["status", "size", "hash"];

// All Relaxed: each counter is a fact of its own.
/// Counters of copies. They only rise.
#[derive(Debug)]
pub(crate) struct Counts {
    queued: AtomicU64,
    dropped: [AtomicU64; 3],
    lost: [AtomicU64; 4],
    answered: [AtomicU64; 5],
    /// By what is compared: same, different.
    compared: [[AtomicU64; 2]; 3],
    latency: Box<[AtomicU64]>,
}

impl Default for Counts {
    fn default() -> Self {
        Self {
            queued: AtomicU64::default(),
            dropped: Default::default(),
            lost: Default::default(),
            answered: Default::default(),
            compared: Default::default(),
            latency: std::iter::repeat_with(AtomicU64::default)
                .take(BUCKETS)
                .collect(),
        }
    }
}

fn add(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

fn read(counter: &AtomicU64) -> u64 {
    counter.load(Ordering::Relaxed)
}

impl Counts {
    pub(super) fn queued(&self) {
        add(&self.queued);
    }

    pub(super) fn dropped(&self, why: Dropped) {
        add(&self.dropped[why as usize]);
    }

    pub(super) fn lost(&self, why: Lost) {
        add(&self.lost[why as usize]);
    }

    pub(super) fn answered(&self, status: u16, micros: u64) {
        let class = usize::from(status / 100).clamp(1, CLASSES.len()) - 1;
        add(&self.answered[class]);
        if let Some(bucket) = self.latency.get(bucket_of(micros)) {
            add(bucket);
        }
    }

    pub(super) fn compared(&self, expected: &Seen, seen: &Seen) {
        let differ = [
            expected.status != seen.status,
            expected.size != seen.size,
            expected.hash != seen.hash,
        ];
        for (counters, differs) in self.compared.iter().zip(differ) {
            add(&counters[usize::from(differs)]);
        }
    }
}

/// What the metrics page says of copies.
pub(super) fn render(page: &mut Page, counts: &Counts) {
    use Kind::{Counter, Histogram};
    page.family(
        "sim_proxy_mirror_queued_total",
        Counter,
        "Copies of requests that were queued for the mirror.",
    )
    .sample(&[], read(&counts.queued));
    page.family(
        "sim_proxy_mirror_dropped_total",
        Counter,
        "Requests drawn for a copy that got none, by why.",
    );
    for (why, name) in Dropped::ALL {
        page.sample(&[("reason", &name)], read(&counts.dropped[why as usize]));
    }
    page.family(
        "sim_proxy_mirror_failed_total",
        Counter,
        "Copies without an answer, by why.",
    );
    for (why, name) in Lost::ALL {
        page.sample(&[("reason", &name)], read(&counts.lost[why as usize]));
    }
    page.family(
        "sim_proxy_mirror_answers_total",
        Counter,
        "Answers to copies, thrown away, by class of status.",
    );
    for (name, counter) in CLASSES.iter().zip(&counts.answered) {
        page.sample(&[("class", name)], read(counter));
    }
    page.family(
        "sim_proxy_mirror_compared_total",
        Counter,
        "Answers to copies beside what the user got, by what is compared.",
    );
    for (name, [same, different]) in COMPARED.iter().zip(&counts.compared) {
        page.sample(&[("what", name), ("result", &"same")], read(same));
        page.sample(&[("what", name), ("result", &"different")], read(different));
    }
    page.family(
        "sim_proxy_mirror_duration_seconds",
        Histogram,
        "From sending a copy to the end of its answer. The sum is of bucket midpoints, within 1.6 %.",
    );
    let latency: Box<[u64]> = counts.latency.iter().map(read).collect();
    histogram(page, &[], &latency);
}
