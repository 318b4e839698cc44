//! docs/metrics.md says what a proxy exports, and nothing else.

use crate::process::{ACCESS_LOG, HEDGE_QUANTILE, INSTANCE_TLS};
use crate::secure::{Authority, NAME, Way};
use crate::upstream::Upstream;
use crate::world::{World, table};
use std::collections::{BTreeMap, BTreeSet};
use tempfile::TempDir;

const REFERENCE: &str = include_str!("../../../docs/metrics.md");
/// Between two looks at the page.
const REQUESTS: usize = 50;
/// Many minutes.
const LOOKS_MAX: usize = 10_000;

/// What there is to say of a family of samples.
#[derive(Debug, Default, PartialEq, Eq)]
struct Family {
    kind: String,
    labels: BTreeSet<String>,
}

/// As the page has them.
fn exported(page: &str) -> BTreeMap<String, Family> {
    let mut families = BTreeMap::<String, Family>::new();
    let mut name = String::new();
    for line in page.lines() {
        if let Some(head) = line.strip_prefix("# TYPE ") {
            let (of, kind) = head.split_once(' ').expect("a type");
            name = of.to_owned();
            families.entry(name.clone()).or_default().kind = kind.to_owned();
        } else if let Some((_, labels)) = line.split_once('{') {
            let (labels, _) = labels.rsplit_once('}').expect("closed");
            let labels = labels
                .split("\",")
                .filter_map(|label| label.split_once('='));
            // That of a bucket is the type's own.
            let labels = labels
                .map(|(label, _)| label)
                .filter(|label| *label != "le");
            let family = families.get_mut(&name).expect("begun");
            family.labels.extend(labels.map(str::to_owned));
        }
    }
    families
}

/// As the tables have them.
fn documented() -> BTreeMap<String, Family> {
    let rows = REFERENCE
        .lines()
        .filter_map(|line| line.strip_prefix("| `sim_"));
    let family = |row: &str| {
        let cells: Vec<_> = row.split(" | ").collect();
        let [name, kind, labels, unit, meaning] = cells[..] else {
            panic!("five cells: {row}");
        };
        assert!(!unit.is_empty() && meaning.len() > " |".len(), "{row}");
        let name = format!("sim_{}", name.trim_end_matches('`'));
        let seconds = name.ends_with("_seconds");
        assert_eq!(unit == "seconds", seconds, "the unit of {name}");
        let labels = labels.split(", ").filter(|label| *label != "none");
        let labels = labels.map(|label| label.trim_matches('`').to_owned());
        let family = Family {
            kind: kind.to_owned(),
            labels: labels.collect(),
        };
        (name, family)
    };
    rows.map(family).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_metric_is_in_the_reference_with_its_type_and_labels() {
    let (directory, authority) = (TempDir::new().expect("a directory"), Authority::new());
    let log = directory.path().join("access.log");
    let own = authority.sign("proxy", &["proxy.example"]);
    let shown = format!(
        "{},{NAME},{},{}",
        authority.file().display(),
        own.chain.display(),
        own.key.display()
    );
    let settings = [
        (ACCESS_LOG, log.to_str().expect("text")),
        (INSTANCE_TLS, &*shown),
        (HEDGE_QUANTILE, "0.99"),
    ];
    let (world, mut control) = World::start_by(Way::tls(), &settings);
    let files = authority.sign("web", &[NAME]);
    let tls = Authority::server(&files, Some(&authority), &[b"http/1.1"]);
    let up = Upstream::start_secured("i1", tls).await;
    let only = [(1, up.address, 10_000, true)];
    control.publish(&table(1, 1, &only)).await;
    let user = world.client();
    // Quantiles are taken once a second of what came since the look before.
    let quantiles = [
        "sim_proxy_latency_seconds",
        "sim_proxy_overdue_after_seconds",
    ];
    let mut page = String::new();
    for _ in 0..LOOKS_MAX {
        for _ in 0..REQUESTS {
            assert_eq!(user.get("/").await.1, "i1");
        }
        page = world.metrics_page().await;
        let has = |name: &&str| page.contains(&format!("\n{name}{{"));
        if quantiles.iter().all(has) {
            break;
        }
    }
    let (exported, documented) = (exported(&page), documented());
    for (name, family) in &exported {
        assert_eq!(
            documented.get(name),
            Some(family),
            "docs/metrics.md: {name}"
        );
    }
    let gone = documented.keys().find(|name| !exported.contains_key(*name));
    assert_eq!(gone, None, "docs/metrics.md has what no proxy exports");
}
