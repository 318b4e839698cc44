//! What `sim check` says of a configuration that is good.

use rcgen::{CertifiedKey, generate_simple_self_signed};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

/// What is shown to a newcomer.
const EXAMPLE: &str = include_str!("../../docs/example.toml");

/// A certificate for `name` and its key, as `FILE.pem` and `FILE.key`.
fn certificate(folder: &Path, file: &str, name: &str) {
    let names = vec![name.to_owned()];
    let CertifiedKey { cert, signing_key } = generate_simple_self_signed(names).expect("a pair");
    std::fs::write(folder.join(format!("{file}.pem")), cert.pem()).expect("written");
    let key = folder.join(format!("{file}.key"));
    std::fs::write(&key, signing_key.serialize_pem()).expect("written");
    std::fs::set_permissions(&key, PermissionsExt::from_mode(0o600)).expect("own");
}

/// As an operator would have it: certificates beside the file, programs in PATH. Checked from another folder.
#[test]
fn the_example_of_the_documentation_is_good_wherever_sim_is_started_from() {
    let dir = tempfile::tempdir().expect("dir");
    let at = dir.path();
    std::fs::write(at.join("example.toml"), EXAMPLE).expect("written");
    for folder in ["tls", "bin"] {
        std::fs::create_dir(at.join(folder)).expect("made");
    }
    for (file, name) in [
        ("shop.example", "shop.example"),
        ("blog.example", "blog.example"),
        ("internal-ca", "internal"),
        ("proxy", "proxy.internal"),
    ] {
        certificate(&at.join("tls"), file, name);
    }
    for program in ["shop", "prices", "blog"] {
        let program = at.join("bin").join(program);
        std::fs::write(&program, "#!/bin/sh\n").expect("written");
        std::fs::set_permissions(&program, PermissionsExt::from_mode(0o755)).expect("own");
    }
    let output = Command::new(env!("CARGO_BIN_EXE_sim"))
        .args(["check", "--config"])
        .arg(at.join("example.toml"))
        .env("PATH", at.join("bin"))
        .current_dir("/")
        .output()
        .expect("run");
    assert!(output.status.success(), "{output:?}");
    let said = String::from_utf8(output.stdout).expect("text");
    let folder = at.display();
    for line in [
        "  proxy        http://0.0.0.0:80 and https://0.0.0.0:443, split least-request\n".to_owned(),
        "  tls          1.2 or 1.3; who asks for no name that is known gets the first certificate\n".to_owned(),
        format!("  certificate  {folder}/tls/shop.example.pem: for shop.example; "),
        format!("  certificate  {folder}/tls/blog.example.pem: for blog.example; "),
        format!(
            "  instances    at a port of their server's address, in HTTP/1.1 over TLS; they have to prove to be \
             shop.internal by {folder}/tls/internal-ca.pem, and are shown {folder}/tls/proxy.pem\n"
        ),
        format!("  instances    at Unix sockets, {folder}/run/iN.sock, in HTTP/2 in the clear\n"),
        "  instances    at a port of their server's address, in HTTP/1.1 in the clear\n".to_owned(),
        "  requests     shop.example/, *.shop.example/\n".to_owned(),
        "  requests     shop.example/shop.Prices/\n".to_owned(),
        format!("  data         {folder}/data\n"),
    ] {
        assert!(said.contains(&line), "{line}{said}");
    }
}

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
