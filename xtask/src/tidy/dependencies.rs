//! Who may depend on whom, checked on what cargo itself resolved.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use anyhow::{Context as _, Result};
use serde_json::Value;

use super::Violation;

/// The workspace packages that each may name as a dependency, of any kind. Data flows one way,
/// and these are its rails: a package without a row is a violation, so that the question is asked.
const ALLOWED: &[(&str, &[&str])] = &[
    // The brain knows nobody.
    ("sim-core", &[]),
    ("sim-ebpf-abi", &[]),
    // It senses; what a workload is, it doesn't know.
    // What its probes and a proxy have in common: a word in shared memory.
    ("sim-life", &["sim-ebpf-abi"]),
    ("sim-ebpf", &["sim-ebpf-abi", "sim-life"]),
    ("sim-api", &["sim-core"]),
    (
        "sim-node",
        &[
            "sim-core",
            "sim-api",
            "sim-ebpf",
            "sim-ebpf-abi",
            "sim-life",
        ],
    ),
    ("sim-proxy", &["sim-core", "sim-api", "sim-life"]),
    // Compiles files of sim-proxy itself, and so needs what they need.
    (
        "sim-proxy-instructions",
        &["sim-core", "sim-ebpf-abi", "sim-life"],
    ),
    ("sim-proxy-models", &["sim-core", "sim-life"]),
    ("sim-control", &["sim-core", "sim-api"]),
    (
        "sim",
        &[
            "sim-core",
            "sim-api",
            "sim-ebpf",
            "sim-node",
            "sim-proxy",
            "sim-control",
        ],
    ),
    // Nothing at run time needs the rest, so no row above names them.
    (
        "sim-tests",
        &[
            "sim-core",
            "sim-api",
            "sim-ebpf",
            "sim-ebpf-abi",
            "sim-node",
            "sim-proxy",
            "sim-control",
            "sim",
        ],
    ),
    (
        "bench",
        &[
            "sim-core",
            "sim-api",
            "sim-ebpf",
            "sim-node",
            "sim-proxy",
            "sim-control",
            "sim-tests",
        ],
    ),
    ("sim-planted", &[]),
    // The forecaster over recorded series, without the rest of the benchmarks.
    ("sim-forecast-traces", &["sim-core"]),
    ("sim-bench-forecast", &["sim-core"]),
    ("xtask", &[]),
];

/// Pairs that must not meet in one dependency tree, however long the way.
const APART: &[(&str, &str)] = &[
    ("sim-proxy", "sim-control"),
    ("sim-control", "sim-proxy"),
    ("sim-node", "sim-control"),
    ("sim-node", "sim-proxy"),
];

/// Workspace packages with the workspace packages they depend on.
pub(super) type Graph = BTreeMap<String, BTreeSet<String>>;

/// A package of the workspace, as cargo describes it.
#[derive(Debug)]
pub(super) struct Package {
    pub(super) name: String,
    pub(super) manifest: PathBuf,
    /// Names of its dependencies of every kind that are folders, not registry packages.
    local_dependencies: BTreeSet<String>,
}

/// Reads the packages from `cargo metadata --no-deps`.
pub(super) fn packages(metadata: &Value) -> Result<Vec<Package>> {
    let packages = metadata["packages"]
        .as_array()
        .context("cargo metadata: no packages")?;
    packages.iter().map(package).collect()
}

fn package(value: &Value) -> Result<Package> {
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let dependencies = value["dependencies"]
        .as_array()
        .context("a package: no dependencies")?;
    let local = dependencies
        .iter()
        .filter(|dependency| dependency["path"].is_string());
    Ok(Package {
        name: text(&value["name"]).context("a package: no name")?,
        manifest: text(&value["manifest_path"])
            .context("a package: no manifest_path")?
            .into(),
        local_dependencies: local
            .filter_map(|dependency| text(&dependency["name"]))
            .collect(),
    })
}

/// The dependencies among the packages; a folder outside the workspace counts as well.
pub(super) fn graph(packages: &[Package]) -> Graph {
    packages
        .iter()
        .map(|package| (package.name.clone(), package.local_dependencies.clone()))
        .collect()
}

/// Checks the graph against the rules of this file.
pub(super) fn check(graph: &Graph) -> Vec<Violation> {
    let mut violations = Vec::new();
    for (package, dependencies) in graph {
        let Some((_, allowed)) = ALLOWED.iter().find(|(name, _)| name == package) else {
            violations.push(Violation::new(
                package,
                "has no dependency rule: add one to xtask/src/tidy/dependencies.rs",
            ));
            continue;
        };
        for dependency in dependencies
            .iter()
            .filter(|name| !allowed.contains(&name.as_str()))
        {
            let allowed = if allowed.is_empty() {
                "none".to_owned()
            } else {
                allowed.join(", ")
            };
            violations.push(Violation::new(
                package,
                format!("must not depend on {dependency}; allowed of our packages: {allowed}"),
            ));
        }
    }
    for (package, other) in APART {
        if reachable(graph, package).contains(other) {
            violations.push(Violation::new(
                *package,
                format!("reaches {other} through its dependencies; they must stay apart"),
            ));
        }
    }
    violations
}

fn reachable<'graph>(graph: &'graph Graph, from: &str) -> BTreeSet<&'graph str> {
    let mut seen = BTreeSet::new();
    let mut waiting: Vec<&str> = graph
        .get(from)
        .into_iter()
        .flatten()
        .map(String::as_str)
        .collect();
    while let Some(package) = waiting.pop() {
        if seen.insert(package) {
            waiting.extend(graph.get(package).into_iter().flatten().map(String::as_str));
        }
    }
    seen
}

/// Lines `crate feature,feature` of what sim-core is built with: none may have the feature that
/// brings in the standard library.
pub(super) fn check_no_std(tree: &str) -> Vec<Violation> {
    // `(*)` marks what was listed before.
    let lines: BTreeSet<&str> = tree
        .lines()
        .map(|line| line.trim_end_matches("(*)").trim_end())
        .collect();
    lines
        .iter()
        .filter_map(|line| {
            let mut words = line.split_whitespace();
            let name = words.next()?;
            words
                .next()?
                .split(',')
                .any(|feature| feature == "std")
                .then(|| {
                    let rule = format!(
                        "builds {name} with its feature `std`; it must stay no_std + alloc \
                     (default-features = false)"
                    );
                    Violation::new("sim-core", rule)
                })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn graph_of(rows: &[(&str, &[&str])]) -> Graph {
        rows.iter()
            .map(|(package, own)| {
                (
                    (*package).to_owned(),
                    own.iter().map(|name| (*name).to_owned()).collect(),
                )
            })
            .collect()
    }

    #[test]
    fn the_design_itself_passes() {
        assert_eq!(check(&graph_of(ALLOWED)), []);
    }

    #[test]
    fn the_core_may_know_nobody() {
        let graph = graph_of(&[("sim-core", &["sim-api"]), ("sim-api", &[])]);
        let violations = check(&graph);
        assert_eq!(
            violations
                .iter()
                .map(ToString::to_string)
                .collect::<Vec<_>>(),
            ["sim-core: must not depend on sim-api; allowed of our packages: none"]
        );
    }

    #[test]
    fn proxy_and_control_are_kept_apart_however_long_the_way() {
        let graph = graph_of(&[
            ("sim-proxy", &["sim-api"]),
            ("sim-api", &["sim-core"]),
            ("sim-core", &["sim-control"]),
            ("sim-control", &[]),
        ]);
        let text: Vec<String> = check(&graph).iter().map(ToString::to_string).collect();
        assert!(
            text.iter()
                .any(|line| line.starts_with("sim-proxy: reaches sim-control"))
        );
    }

    #[test]
    fn nothing_at_run_time_needs_the_tests() {
        for package in ["sim", "sim-node", "sim-proxy", "sim-control"] {
            for outside in ["sim-tests", "bench", "xtask"] {
                assert_eq!(check(&graph_of(&[(package, &[outside])])).len(), 1);
            }
        }
    }

    #[test]
    fn a_package_without_a_rule_is_named() {
        assert_eq!(check(&graph_of(&[("sim-new", &[])])).len(), 1);
    }

    #[test]
    fn the_graph_is_read_from_cargo_metadata() {
        let manifest = |name: &str, own: Value| {
            json!({
                "name": name, "manifest_path": format!("/x/{name}/Cargo.toml"), "dependencies": own,
            })
        };
        let local = |name: &str, kind: Value| json!({"name": name, "kind": kind, "path": "/x"});
        let metadata = json!({"packages": [
            manifest("sim-core", json!([{"name": "libm", "kind": null}])),
            manifest("sim-proxy", json!([local("sim-core", Value::Null)])),
            manifest("sim-control", json!([local("sim-proxy", json!("dev"))])),
        ]});
        let packages = packages(&metadata).unwrap();
        assert_eq!(
            packages[2].manifest,
            PathBuf::from("/x/sim-control/Cargo.toml")
        );
        let violations = check(&graph(&packages));
        let text: Vec<String> = violations.iter().map(ToString::to_string).collect();
        assert_eq!(text.len(), 2, "{text:?}");
        assert!(text[0].starts_with("sim-control: must not depend on sim-proxy"));
        assert!(text[1].starts_with("sim-control: reaches sim-proxy"));
    }

    #[test]
    fn a_std_feature_below_the_core_is_found_once() {
        let tree = "sim_core \nlibm arch,default\nserde alloc,std\nserde alloc,std (*)\n";
        let violations = check_no_std(tree);
        assert_eq!(violations.len(), 1);
        assert!(violations[0].rule.contains("builds serde"));
    }
}
