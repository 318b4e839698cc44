//! From the file as written to valid values. Each rule names its key and what is allowed.

use super::addresses::{apart, metrics_apart};
use super::file::{File, ServerTable};
use super::{
    Config, ConfigError, Front, Server, Workload, access_log, check, drain, front, hold, limits,
    mirror, returns, tell, tls, workload,
};
use sim_core::address::Address;
use sim_core::name::{InstanceId, ServerName};
use sim_core::server::ServerSpec;
use std::fmt::Display;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

/// Longest time that any setting may state, in seconds: a year.
const SECONDS_MAX: f64 = 31_536_000.0;

pub(super) struct Rules<'a> {
    path: &'a Path,
}

impl Rules<'_> {
    pub(super) fn broken(&self, key: &str, found: impl Display, allowed: &str) -> ConfigError {
        ConfigError {
            path: self.path.display().to_string(),
            problem: format!("{key} = {found}: {allowed}"),
        }
    }

    pub(super) fn number(
        &self,
        key: &str,
        value: f64,
        good: impl Fn(f64) -> bool,
        allowed: &str,
    ) -> Result<f64, ConfigError> {
        if value.is_finite() && good(value) {
            Ok(value)
        } else {
            Err(self.broken(key, value, &format!("must be {allowed}")))
        }
    }

    pub(super) fn positive(&self, key: &str, value: f64) -> Result<f64, ConfigError> {
        self.number(key, value, |v| v > 0.0, "above 0")
    }

    pub(super) fn seconds(
        &self,
        key: &str,
        value: f64,
        unit: f64,
    ) -> Result<Duration, ConfigError> {
        let good = |v: f64| v > 0.0 && v * unit <= SECONDS_MAX;
        Ok(Duration::from_secs_f64(
            self.number(key, value, good, "above 0, at most a year")? * unit,
        ))
    }

    pub(super) fn parsed<T: std::str::FromStr>(
        &self,
        key: &str,
        text: &str,
        allowed: &str,
    ) -> Result<T, ConfigError> {
        text.parse()
            .map_err(|_| self.broken(key, format!("{text:?}"), allowed))
    }
}

/// Validates the whole; the first broken rule is the error.
pub(super) fn validate(path: &Path, file: File) -> Result<Config, ConfigError> {
    let rules = Rules { path };
    if !is_cgroup_name(&file.cgroup) {
        let found = format!("{:?}", file.cgroup);
        let allowed = "must be a relative path of a-z, A-Z, 0-9, '-', '_', '.', '/'";
        return Err(rules.broken("cgroup", found, allowed));
    }
    if let Err((key, allowed)) = file.policy.validate() {
        let key = format!("policy.{key}");
        let problem = format!("{key}: must be {allowed}");
        return Err(ConfigError {
            path: path.display().to_string(),
            problem,
        });
    }
    let servers = servers(&rules, file.server)?;
    let workloads = workload::all(&rules, file.workload, &servers)?;
    sockets(&rules, &file.runtime_dir, &workloads)?;
    let address = "must be ip:port, such as \"127.0.0.1:8080\"";
    let eject = returns::eject(&rules, &file.proxy)?;
    let hold = match &file.proxy.hold {
        Some(table) => Some(hold::hold(&rules, table)?),
        None => None,
    };
    let front = Front {
        listen: match &file.proxy.listen {
            Some(listen) => Some(rules.parsed("proxy.listen", listen, address)?),
            None => None,
        },
        tls: match file.proxy.tls {
            Some(table) => Some(tls::tls(&rules, table)?),
            None => None,
        },
        admin: rules.parsed("proxy.admin", &file.proxy.admin, address)?,
        threads: file.proxy.threads,
        policy: front::policy(&rules, &file.proxy.policy)?,
        sticky: match file.proxy.sticky {
            Some(table) => Some(front::sticky(&rules, table)?),
            None => None,
        },
        hedge: front::hedge(&rules, &file.proxy.hedge)?,
        eject,
        check: match file.proxy.check {
            Some(table) => Some(check::check(&rules, table)?),
            None => None,
        },
        hold,
        forward: tell::forward(&rules, &file.proxy.trusted_proxies, file.proxy.forwarded)?,
        trace: tell::trace(&rules, file.proxy.trace.as_ref())?,
        mirror: mirror::settings(&rules, &file.proxy.mirror)?,
        stream_grace: drain::stream_grace(&rules, file.proxy.stream_grace_s)?,
        upgrade_drain: Duration::from_secs_f64(rules.number(
            "proxy.upgrade_drain_s",
            file.proxy.upgrade_drain_s,
            |seconds| (1.0..=86_400.0).contains(&seconds),
            "1 to 86400",
        )?),
        limits: limits::limits(&rules, &file.proxy.limits)?,
        access_log: match file.proxy.access_log {
            Some(table) => Some(access_log::access_log(&rules, table)?),
            None => None,
        },
    };
    let taken = apart(&rules, &front)?;
    metrics_apart(&rules, &servers, &taken)?;
    if !(1..=1024).contains(&front.threads) {
        return Err(rules.broken("proxy.threads", front.threads, "must be 1 to 1024"));
    }
    if !front.admin.ip().is_loopback() {
        let allowed = "must be a loopback address: it has no authentication yet";
        return Err(rules.broken("proxy.admin", front.admin, allowed));
    }
    Ok(Config {
        path: path.to_owned(),
        data_dir: file.data_dir,
        runtime_dir: file.runtime_dir,
        cgroup: file.cgroup,
        probes_object: file.probes_object,
        probe_budget_percent: rules.number(
            "probe_budget_percent",
            file.probe_budget_percent,
            |v| (0.0..=100.0).contains(&v),
            "0 to 100",
        )?,
        front,
        servers,
        workloads,
        policy: file.policy,
    })
}

/// The kernel takes no long paths for sockets.
fn sockets(rules: &Rules<'_>, dir: &Path, workloads: &[Workload]) -> Result<(), ConfigError> {
    if !workloads.iter().any(|w| workload::is_at_socket(&w.spec)) {
        return Ok(());
    }
    let longest = format!("{}.sock", InstanceId(u64::MAX));
    let longest = std::path::absolute(dir).map(|dir| dir.join(longest)).ok();
    let text = longest.as_deref().and_then(Path::to_str);
    if text.is_some_and(|text| Address::unix(text).is_ok()) {
        return Ok(());
    }
    let allowed = "must be at most 80 bytes long as an absolute path, without control characters: instances have their {socket} in it";
    Err(rules.broken("runtime_dir", format!("{dir:?}"), allowed))
}

fn is_cgroup_name(name: &str) -> bool {
    let part = |p: &str| {
        !p.is_empty()
            && p != "."
            && p != ".."
            && p.bytes()
                .all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
    };
    name.split('/').all(part)
}

fn servers(rules: &Rules<'_>, tables: Vec<ServerTable>) -> Result<Vec<Server>, ConfigError> {
    if tables.is_empty() {
        let allowed =
            "must be one [[server]] or more, each with a name and its cpus: instances run there";
        return Err(rules.broken("server", "0 tables", allowed));
    }
    let mut servers: Vec<Server> = Vec::new();
    for table in tables {
        let server = validate_server(rules, table)?;
        let name = &server.spec.name;
        if servers.iter().any(|s| s.spec.name == *name) {
            return Err(rules.broken(
                "server.name",
                format!("{:?}", name.as_str()),
                "is used twice; names must differ",
            ));
        }
        servers.push(server);
    }
    Ok(servers)
}

fn validate_server(rules: &Rules<'_>, table: ServerTable) -> Result<Server, ConfigError> {
    let name = ServerName::new(&table.name)
        .map_err(|e| rules.broken("server.name", format!("{:?}", table.name), &e.to_string()))?;
    let of = name.clone();
    let key = |field: &str| format!("server {of}: {field}");
    let spec = ServerSpec {
        address: rules.parsed(&key("address"), &table.address, "must be an IP address")?,
        cpus: rules.number(
            &key("cpus"),
            table.cpus,
            |v| (0.1..=4096.0).contains(&v),
            "0.1 to 4096",
        )?,
        memory_bytes: mebibytes(rules, &key("memory_mib"), table.memory_mib)?,
        price_per_hour: rules.number(
            &key("price_per_hour"),
            table.price_per_hour,
            |v| v >= 0.0,
            "0 or more",
        )?,
        // Unless told otherwise a server shares its fate with no other.
        failure_domain: table.failure_domain.unwrap_or_else(|| name.to_string()),
        name,
    };
    let metrics = match &table.metrics {
        Some(text) => {
            let allowed = "must be ip:port, such as \"127.0.0.1:9902\"";
            let address: SocketAddr = rules.parsed(&key("metrics"), text, allowed)?;
            if !address.ip().is_loopback() {
                let allowed = "must be a loopback address: it has no authentication yet";
                return Err(rules.broken(&key("metrics"), address, allowed));
            }
            Some(address)
        }
        None => None,
    };
    Ok(Server {
        spec,
        netns: table.netns,
        metrics,
    })
}

pub(super) fn mebibytes(rules: &Rules<'_>, key: &str, mib: u64) -> Result<u64, ConfigError> {
    if (1..=1 << 24).contains(&mib) {
        Ok(mib << 20)
    } else {
        Err(rules.broken(key, mib, "must be 1 to 16777216"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::addresses::collide;
    use crate::config::file;

    const GOOD: &str = r#"
[proxy]
listen = "127.0.0.1:8080"

[[server]]
name = "a"
cpus = 1.0

[[workload]]
name = "web"
command = ["true"]
cpus = 0.5
home = "a"
slo = { bound_ms = 100 }
"#;

    fn read(text: &str) -> Result<Config, ConfigError> {
        let path = Path::new("sim.toml");
        validate(path, file::parse(path, text)?)
    }

    #[test]
    fn a_short_configuration_is_enough() {
        let config = read(GOOD).expect("valid");
        assert_eq!(config.servers[0].spec.failure_domain, "a");
        assert_eq!(
            config.workloads[0].spec.slo.bound,
            Duration::from_millis(100)
        );
    }

    /// What is changed, and what the one line must name.
    #[test]
    fn bad_input_is_told_in_one_line_with_file_key_and_what_is_allowed() {
        let cases = [
            (
                "bound_ms = 100",
                "bound_ms = 0",
                "workload.slo.bound_ms = 0: must be above 0",
            ),
            (
                "bound_ms = 100",
                "bound_ms = 1, nonsense = 2",
                "sim.toml:14: workload[0].slo.nonsense: unknown field `nonsense`, expected one of",
            ),
            (
                "cpus = 0.5",
                "cpus = \"many\"",
                "sim.toml:12: workload[0].cpus: invalid type: string \"many\", expected a number",
            ),
            ("cpus = 0.5\n", "", "workload[0]: missing field `cpus`"),
            (
                "command = [\"true\"]",
                "command = 7",
                "workload[0].command: invalid type: integer `7`, expected a list",
            ),
            (
                "home = \"a\"",
                "home = \"b\"",
                "workload.home = \"b\": must be a server's name: a",
            ),
            (
                "cpus = 0.5",
                "cpus = 3.0",
                "workload.cpus = 3: must be 0.1 to 1",
            ),
            (
                "127.0.0.1:8080",
                "8080",
                "proxy.listen = \"8080\": must be ip:port",
            ),
            (
                "cpus = 1.0",
                "cpus = nan",
                "server a: cpus = NaN: must be 0.1 to 4096",
            ),
            ("command = [\"true\"]", "command = []", "workload.command"),
            (
                "command = [\"true\"]",
                "command = [\"true\", \"--port={prot}\"]",
                "workload.command = \"{prot}\": is no placeholder; {port} is",
            ),
            (
                "name = \"web\"",
                "name = \"we b\"",
                "a name is 1 to 63 characters",
            ),
        ];
        for (from, to, expected) in cases {
            let error = read(&GOOD.replacen(from, to, 1)).expect_err(to).to_string();
            assert!(error.contains(expected), "{error}");
            assert!(
                error.starts_with("sim.toml") && !error.contains('\n'),
                "{error}"
            );
        }
        let twice = format!("{GOOD}\n[[server]]\nname = \"a\"\ncpus = 1.0\n");
        let error = read(&twice).expect_err("duplicate").to_string();
        assert!(error.contains("\"a\": is used twice"), "{error}");
        let policy = format!("{GOOD}\n[policy]\nparity_alpha = 2.0\n");
        let error = read(&policy).expect_err("policy").to_string();
        assert!(
            error.contains("policy.parity_alpha: must be between 0 and 1"),
            "{error}"
        );
    }

    /// The names of a table's keys, as the parser lists them where it meets an unknown one.
    fn keys(table: &str) -> Vec<String> {
        let error = read(&format!("{table}\nnonsense_key = 1\n"))
            .expect_err("unknown")
            .to_string();
        let (_, listed) = error.split_once("expected ").expect("a list");
        // Two are not `one of`.
        let listed = listed.trim_start_matches("one of ").replace(" or ", ", ");
        listed
            .split(", ")
            .map(|key| key.trim_matches('`').to_owned())
            .collect()
    }

    #[test]
    fn every_key_is_in_the_reference() {
        let reference = include_str!("../../../docs/configuration.md");
        let server = "[[server]]\nname = \"a\"\ncpus = 1.0";
        let tables = [
            ("", String::new()),
            ("proxy.", "[proxy]\nlisten = \"127.0.0.1:1\"".to_owned()),
            ("proxy.check.", "[proxy.check]\nby = \"tcp\"".to_owned()),
            ("proxy.hedge.", "[proxy.hedge]".to_owned()),
            ("proxy.hold.", "[proxy.hold]".to_owned()),
            ("proxy.trace.", "[proxy.trace]".to_owned()),
            ("proxy.sticky.", "[proxy.sticky]".to_owned()),
            ("proxy.mirror.", "[proxy.mirror]".to_owned()),
            ("proxy.limits.", "[proxy.limits]".to_owned()),
            ("proxy.access_log.", "[proxy.access_log]".to_owned()),
            ("proxy.tls.", "[proxy.tls]".to_owned()),
            (
                "proxy.tls.certificate.",
                "[[proxy.tls.certificate]]".to_owned(),
            ),
            ("server.", server.to_owned()),
            ("workload.", "[[workload]]\nname = \"w\"".to_owned()),
            ("workload.slo.", "[[workload]]\n[workload.slo]".to_owned()),
            (
                "workload.readiness.",
                "[[workload]]\n[workload.readiness]".to_owned(),
            ),
            ("workload.tls.", "[[workload]]\n[workload.tls]".to_owned()),
            (
                "workload.route.",
                "[[workload]]\n[[workload.route]]".to_owned(),
            ),
            ("policy.", "[policy]".to_owned()),
        ];
        for (prefix, table) in &tables {
            for key in keys(table) {
                // The keys of a table have rows of their own.
                let below = format!("{prefix}{key}.");
                if tables.iter().any(|(prefix, _)| *prefix == below) {
                    continue;
                }
                let row = format!("| `{prefix}{key}` |");
                assert!(
                    reference.contains(&row),
                    "docs/configuration.md lacks {row}"
                );
            }
        }
    }

    #[test]
    fn two_nodes_of_one_namespace_serve_metrics_at_two_addresses() {
        let with = |other: &str| {
            let metrics = "cpus = 1.0\nmetrics = \"127.0.0.1:9902\"";
            let second = format!("[[server]]\nname = \"b\"\ncpus = 1.0\n{other}\n");
            read(&format!(
                "{}\n{second}",
                GOOD.replacen("cpus = 1.0", metrics, 1)
            ))
        };
        let error = with("metrics = \"127.0.0.1:9902\"").expect_err("taken");
        let expected =
            "server b: metrics = 127.0.0.1:9902: is taken by server a; give each its own";
        assert!(error.to_string().contains(expected), "{error}");
        with("metrics = \"127.0.0.1:9902\"\nnetns = \"/run/netns/b\"").expect("apart");
        with("metrics = \"127.0.0.1:9903\"").expect("apart");
        let error = with("metrics = \"127.0.0.1:9901\"").expect_err("taken");
        assert!(
            error.to_string().contains("is taken by proxy.admin"),
            "{error}"
        );
        let address = |text: &str| text.parse::<SocketAddr>().expect("address");
        assert!(collide(address("0.0.0.0:1"), address("127.0.0.1:1")));
        assert!(!collide(address("0.0.0.0:1"), address("127.0.0.1:2")));
    }

    #[test]
    fn an_unauthenticated_admin_address_stays_on_loopback() {
        let error = read(&GOOD.replace("[[server]]", "admin = \"0.0.0.0:9901\"\n[[server]]"));
        assert!(
            error
                .expect_err("refused")
                .to_string()
                .contains("proxy.admin")
        );
    }
}
