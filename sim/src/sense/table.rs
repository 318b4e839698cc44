//! The table.

use super::bars::{amount, bar, percent, time};
use super::view::{Times, View};
use comfy_table::presets::NOTHING;
use comfy_table::{Cell, CellAlignment, ContentArrangement, Table};
use sim_node::Signal;

const HEADS: [&str; 15] = [
    "CGROUP",
    "CPU %",
    "WAIT p99",
    "10µ-1s",
    "THROTTLED %",
    "NEIGHBOUR %",
    "READ/s",
    "WRITE/s",
    "IO p99",
    "RX/s",
    "TX/s",
    "RTT p50",
    "REQ/s",
    "p99",
    "MEMORY",
];

/// Draws it, at most `lines` cgroups.
pub(crate) fn draw(views: &[View], lines: Option<usize>) -> String {
    let mut table = Table::new();
    table
        .load_preset(NOTHING)
        .set_content_arrangement(ContentArrangement::Disabled)
        .set_header(
            HEADS
                .iter()
                .enumerate()
                .map(|(column, head)| Cell::new(head).set_alignment(alignment(column))),
        );
    for view in views.iter().take(lines.unwrap_or(usize::MAX)) {
        let row = row(view);
        table.add_row(
            row.iter()
                .enumerate()
                .map(|(column, text)| Cell::new(text).set_alignment(alignment(column))),
        );
    }
    table
        .lines()
        .map(|line| line.trim_end().to_owned())
        .collect::<Vec<_>>()
        .join("\n")
}

fn alignment(column: usize) -> CellAlignment {
    // Names and bars to the left, figures to the right.
    if matches!(column, 0 | 3 | 5) {
        CellAlignment::Left
    } else {
        CellAlignment::Right
    }
}

fn row(view: &View) -> [String; HEADS.len()] {
    let neighbour = view
        .cpu
        .neighbours
        .iter()
        .flatten()
        .next()
        .map_or_else(String::new, |n| {
            format!("{} {}", short(&n.cgroup, 20), percent(n.seconds_per_second))
        });
    let delay = view.cpu.run_queue_delay.as_ref();
    let (block, network) = (view.block.as_ref(), &view.network);
    let requests = view.requests.as_ref();
    let known = |value: Option<f64>| value.map_or_else(String::new, amount);
    let p99 = |times: Option<&Times>| time(times.and_then(|t| t.p99_seconds));
    [
        short(&view.cgroup, 36),
        percent(view.cpu.cpus),
        p99(delay),
        delay.map_or_else(String::new, |d| bar(&d.histogram)),
        percent(view.cpu.throttled),
        neighbour,
        known(block.map(|b| b.read_bytes_per_second)),
        known(block.map(|b| b.write_bytes_per_second)),
        p99(block.map(|b| &b.latency)),
        known(network.receive_bytes_per_second),
        known(network.transmit_bytes_per_second),
        time(network.round_trip.as_ref().and_then(|t| t.p50_seconds)),
        known(requests.map(|r| r.per_second)),
        p99(requests.map(|r| &r.service)),
        known(view.memory.working_set_bytes.map(|bytes| bytes as f64)),
    ]
}

/// Where each signal comes from.
pub(crate) fn signals(signals: &[Signal]) -> String {
    let mut table = Table::new();
    table
        .load_preset(NOTHING)
        .set_content_arrangement(ContentArrangement::Disabled)
        .set_header(["SIGNAL", "QUALITY", "SOURCE"]);
    for signal in signals {
        table.add_row([signal.name, signal.quality.name(), signal.source]);
    }
    let lines = table.lines().map(|line| line.trim_end().to_owned());
    lines.collect::<Vec<_>>().join("\n")
}

/// The end of a path tells more than its start.
fn short(path: &str, width: usize) -> String {
    let length = path.chars().count();
    if length <= width {
        return path.to_owned();
    }
    let tail: String = path.chars().skip(length + 1 - width).collect();
    format!("…{tail}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_path_keeps_its_end() {
        assert_eq!(short("/a/b", 10), "/a/b");
        assert_eq!(short("/one/two/three", 8), "…o/three");
        assert_eq!(short("/one/two/three", 8).chars().count(), 8);
    }
}
