//! The table.

use super::bars::{amount, bar, percent, time};
use super::view::View;
use comfy_table::presets::NOTHING;
use comfy_table::{Cell, CellAlignment, ContentArrangement, Table};

const HEADS: [&str; 15] = [
    "CGROUP",
    "CPU %",
    "WAIT p99",
    "10µ-1s",
    "THROTTLED %",
    "NEIGHBOUR",
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
    let neighbour = view.cpu.neighbours.first().map_or_else(String::new, |n| {
        format!("{} {}", short(&n.cgroup, 20), time(Some(n.seconds)))
    });
    [
        short(&view.cgroup, 36),
        percent(view.cpu.cpus),
        time(view.cpu.run_queue_delay.p99_seconds),
        bar(&view.cpu.run_queue_delay.histogram),
        percent(view.cpu.throttled),
        neighbour,
        amount(view.block.read_bytes_per_second),
        amount(view.block.write_bytes_per_second),
        time(view.block.latency.p99_seconds),
        amount(view.network.receive_bytes_per_second),
        amount(view.network.transmit_bytes_per_second),
        time(view.network.round_trip.p50_seconds),
        amount(view.requests.per_second),
        time(view.requests.service.p99_seconds),
        amount(view.memory.working_set_bytes as f64),
    ]
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
