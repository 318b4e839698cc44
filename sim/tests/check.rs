//! What `sim check` says of a configuration that is good.

use std::process::Command;

#[test]
fn check_says_which_limits_hold_and_what_is_logged() {
    let dir = tempfile::tempdir().expect("dir");
    let config = dir.path().join("sim.toml");
    let text = |limits: &str| {
        format!(
            "[proxy]\nlisten = \"127.0.0.1:1\"\n{limits}[[server]]\nname = \"a\"\ncpus = 1.0\n\
             [[workload]]\nname = \"web\"\ncommand = [\"true\", \"{{port}}\"]\ncpus = 0.5\nhome = \"a\"\n\
             slo = {{ bound_ms = 1 }}\n"
        )
    };
    let said = |limits: &str| {
        std::fs::write(&config, text(limits)).expect("written");
        let output = Command::new(env!("CARGO_BIN_EXE_sim"))
            .args(["check", "--config"])
            .arg(&config)
            .output()
            .expect("run");
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).expect("text")
    };
    let default = said("");
    for line in [
        "  heads        up to 65536 bytes and 100 fields, whole within 10 s\n",
        "  bodies       a piece every 60 s, at 500 bytes a second at least; up to 65536 bytes are kept for another try\n",
        "  users        as many connections as files allow, half of them and any number of requests from one source; \
         closed after 75 s of idleness\n",
        "  answers      begin within 60 s, all tries together; 10000 requests in flight at an instance\n",
        "  access log   none\n",
    ] {
        assert!(default.contains(line), "{line}{default}");
    }
    let given = said(
        "access_log = { path = \"stderr\", sample = 0.5 }\n\
         limits = { connections = 9, connections_per_source = 0, requests_per_second = 5, upstream_concurrency = 0, \
         body_bytes_per_second = 0 }\n",
    );
    for line in [
        "a piece every 60 s, at any rate;",
        "9 connections, any number of them and 5 requests a second, 5 at once, from one source;",
        "all tries together; any number of requests in flight at an instance\n",
        "  access log   50 % of requests and all that fail, to stderr\n",
    ] {
        assert!(given.contains(line), "{line}{given}");
    }
}
