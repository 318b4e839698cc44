//! The probes run with a few capabilities and nothing else of root's, and one that is missing is named.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs::{Permissions, copy, set_permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::unistd::geteuid;
use serde_json::Value;
use sim_tests::demo::settings::Programs;
use sim_tests::world::privilege;

const NOBODY: &str = "65534";

fn missing() -> Option<String> {
    if !geteuid().is_root() {
        return Some("only root can give capabilities".to_owned());
    }
    if std::env::var_os("SIM_EBPF_OBJECT").is_none() {
        return Some("SIM_EBPF_OBJECT does not name the eBPF object".to_owned());
    }
    Programs::locate().err().map(|error| format!("{error:#}"))
}

/// `sim` and its probes where nobody may read them.
fn install(folder: &Path) -> PathBuf {
    set_permissions(folder, Permissions::from_mode(0o755)).unwrap();
    let program = folder.join("sim");
    copy(Programs::locate().unwrap().sim, &program).unwrap();
    let object = folder.join("sim-ebpf.o");
    copy(std::env::var_os("SIM_EBPF_OBJECT").unwrap(), &object).unwrap();
    set_permissions(object, Permissions::from_mode(0o644)).unwrap();
    program
}

/// What nobody with these capabilities senses of the root cgroup, and what `sim sense` complains of.
fn sense(program: &Path, capabilities: &str) -> (Value, String) {
    let given = format!("-all{capabilities}");
    let output = Command::new("setpriv")
        .args(["--reuid", NOBODY, "--regid", NOBODY, "--clear-groups"])
        .args(["--inh-caps", &given, "--ambient-caps", &given])
        .args(["--bounding-set", &given])
        .arg(program)
        .args(["sense", "--once", "--all", "-o", "json"])
        .env_remove("SIM_EBPF_OBJECT")
        .output()
        .unwrap();
    let complaints = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{complaints}");
    let seen: Value = serde_json::from_slice(&output.stdout).unwrap();
    let root = seen.as_array().unwrap().iter().find(|v| v["cgroup"] == "/");
    (root.unwrap().clone(), complaints)
}

#[test]
fn three_capabilities_are_enough_and_a_missing_one_is_named() {
    if !privilege::or_skip("probes with few capabilities", missing()) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let program = install(folder.path());

    let (seen, complaints) = sense(&program, ",+bpf,+perfmon,+net_admin");
    assert_eq!(complaints, "", "nothing is refused");
    assert_eq!(seen["source"], "probes");
    assert!(seen["cpu"]["switches_per_second"].as_f64().unwrap() > 0.0);

    let (seen, complaints) = sense(&program, ",+bpf,+perfmon");
    assert_eq!(seen["source"], "probes", "the others still run");
    assert!(seen["requests"].is_null(), "{seen}");
    assert!(seen["network"]["receive_bytes_per_second"].is_null());
    assert!(seen["network"]["accepts_per_second"].is_f64());
    let lines: Vec<&str> = complaints.lines().collect();
    assert_eq!(lines.len(), 2, "net and http, a line each: {complaints}");
    for line in lines {
        assert!(line.contains("CAP_NET_ADMIN"), "{line}");
        assert!(line.contains("instead"), "{line}");
    }

    let (seen, complaints) = sense(&program, "");
    assert_eq!(seen["source"], "files");
    assert_eq!(complaints.lines().count(), 1, "{complaints}");
    assert!(complaints.contains("CAP_BPF"), "{complaints}");
}
