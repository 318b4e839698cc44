//! What is wrong with workloads, each and together.

use super::{assert_refused, good};

#[test]
fn what_is_wrong_with_sockets_of_instances_is_named() {
    let dir = tempfile::tempdir().expect("dir");
    let good = good(dir.path());
    let at = |arguments: &str| good.replace("\"60\"", arguments);
    let run = dir.path().join("run").display().to_string();
    let cases = [
        (
            at("\"{socket}\", \"{port}\""),
            vec!["workload.command = \"{socket}\"", "with {port}"],
        ),
        (
            at("\"unix:{socket}\", \"--host={address}\""),
            vec!["workload.command = \"{socket}\"", "with {address}"],
        ),
        (
            at("\"{sockets}\""),
            vec!["workload.command = \"{sockets}\"", "{socket} is"],
        ),
        (
            at("\"{socket}\"").replace(&run, &format!("{run}/{}", "a".repeat(80))),
            vec!["runtime_dir = ", "at most 80 bytes"],
        ),
        (
            good.replace(
                "[[server]]",
                "mirror = { to = \"unix:run/a.sock\", percent = 1.0 }\n[[server]]",
            ),
            vec![
                "proxy.mirror.to = \"unix:run/a.sock\"",
                "unix: and an absolute path",
            ],
        ),
    ];
    for (text, expected) in cases {
        assert_refused(&text, dir.path(), &expected);
    }
}

#[test]
fn what_is_wrong_with_tls_to_instances_is_named() {
    let dir = tempfile::tempdir().expect("dir");
    let good = good(dir.path());
    let tls = |keys: &str| good.replace("slo =", &format!("tls = {{ {keys} }}\nslo ="));
    std::fs::write(dir.path().join("no.pem"), "nothing").expect("written");
    let there = dir.path().join("no.pem").display().to_string();
    let name = "server_name = \"web.internal\"";
    let cases = [
        (tls(name), vec!["workload[0].tls: missing field `ca`"]),
        (
            tls("ca = \"a.pem\""),
            vec!["workload[0].tls: missing field `server_name`"],
        ),
        (
            tls("ca = \"a.pem\", server_name = \"\""),
            vec![
                "workload.tls.server_name = \"\"",
                "\"web.internal\", or an IP address",
            ],
        ),
        (
            tls("ca = \"a.pem\", server_name = \"10.0.0.1:443\""),
            vec!["workload.tls.server_name = \"10.0.0.1:443\"", "IP address"],
        ),
        (
            tls(&format!("ca = \"a.pem\", {name}, insecure = true")),
            vec!["workload[0].tls.insecure: unknown field"],
        ),
        (
            tls(&format!("ca = \"a.pem\", {name}, key = \"a.key\"")),
            vec![
                "workload.tls.key = \"/",
                "/a.key\": must come",
                "with workload.tls.certificate",
            ],
        ),
        (
            tls(&format!("ca = \"a.pem\", {name}, certificate = \"a.pem\"")),
            vec![
                "workload.tls.certificate = \"/",
                "/a.pem\": must come",
                "with workload.tls.key",
            ],
        ),
        (
            tls(&format!("ca = \"/no/such.pem\", {name}")),
            vec!["workload web: tls.ca: /no/such.pem: can't be read"],
        ),
        (
            tls(&format!("ca = \"{there}\", {name}")),
            vec!["workload web: tls.ca: ", "holds no PEM certificate"],
        ),
    ];
    for (text, expected) in cases {
        assert_refused(&text, dir.path(), &expected);
    }
}

#[test]
fn workloads_that_get_in_each_other_s_way_are_named() {
    let dir = tempfile::tempdir().expect("dir");
    let good = good(dir.path());
    let with = |cpus: &str, route: &str| {
        format!(
            "{good}\n[[workload]]\nname = \"api\"\ncommand = [\"sleep\", \"60\"]\ncpus = {cpus}\n\
             memory_mib = 64\nhome = \"a\"\nslo = {{ bound_ms = 100 }}\n{route}\n"
        )
        .replace("cpus = 0.5\nhome", "cpus = 0.5\nmemory_mib = 64\nhome")
    };
    let cases = [
        (
            with("0.5", ""),
            vec![
                "workload.route = */",
                "workloads web and api",
                "at most one none",
            ],
        ),
        (
            with("0.5", "route = [{ path = \"/a\" }, { path = \"/%61/\" }]"),
            vec!["workload.route = */a/", "stands twice for workload api"],
        ),
        (
            with("0.5", "route = [{}, { host = \"shop.example:80\" }]"),
            vec![
                "\"api\"",
                "workload.route[1].host = \"shop.example:80\"",
                "without a port",
            ],
        ),
        (
            with("0.5", "route = [{ path = \"/a/../b\" }]"),
            vec![
                "workload.route[0].path = \"/a/../b\"",
                "must begin with '/'",
            ],
        ),
        (
            with("0.5", "route = [{ header = { Host = \"a\" } }]"),
            vec!["workload.route[0].header", "must not name the host"],
        ),
        (
            with("0.5", "route = [{ hots = \"a\" }]"),
            vec!["workload[1].route[0].hots", "`host`"],
        ),
        (
            with("0.6", "route = [{ path = \"/a\" }]"),
            vec!["\"api\"", "workload.cpus = 0.6", "at most 0.5", "home"],
        ),
        (
            with("0.5", "route = [{ path = \"/a\" }]").replace("\"api\"", "\"web\""),
            vec!["workload.name", "\"web\"", "twice"],
        ),
        (
            good[..good.find("[[workload]]").expect("there")].to_owned(),
            vec!["workload = 0 tables", "one [[workload]] or more"],
        ),
    ];
    for (text, expected) in cases {
        assert_refused(&text, dir.path(), &expected);
    }
}
