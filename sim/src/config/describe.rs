//! A configuration in words: what it means with every default filled in, and what looks odd in it.

use super::workload::is_at_socket;
use super::{Config, Workload, access_log};
use sim_core::workload::WorkloadSpec;
use sim_proxy::config::Protocol;
use sim_proxy::matching::Condition;
use sim_proxy::tls::{Certificates, InstanceTlsSettings, TlsVersion};
use std::time::SystemTime;

impl Config {
    /// Every value that matters, defaults included, a line each.
    pub(crate) fn describe(&self) -> String {
        let mut lines = vec![format!("{}: valid", self.path.display())];
        let mut line = |name: &str, text: String| lines.push(format!("  {name:<12} {text}"));
        for Workload {
            spec: w,
            conditions,
            protocol,
            tls,
        } in &self.workloads
        {
            line(
                "workload",
                format!(
                    "{}, first on {} with {:.2} CPUs and {} MiB of memory, standby '{}'",
                    w.name,
                    w.home,
                    w.cpus,
                    w.memory_bytes >> 20,
                    w.standby
                ),
            );
            line("command", w.command.join(" "));
            line(
                "ready when",
                format!(
                    "{} answers 2xx {} times in a row, within {:.0} s",
                    w.readiness.path,
                    w.readiness.successes,
                    w.readiness.timeout.as_secs_f64()
                ),
            );
            line(
                "objective",
                format!(
                    "{:.4} % of requests within {:.0} ms, at most {:.4} % failed, over {:.0} s",
                    w.slo.quantile * 100.0,
                    w.slo.bound.as_secs_f64() * 1e3,
                    w.slo.error_budget * 100.0,
                    w.slo.window.as_secs_f64()
                ),
            );
            let place = if is_at_socket(w) {
                format!(
                    "at Unix sockets, {}",
                    self.runtime_dir.join("iN.sock").display()
                )
            } else {
                "at a port of their server's address".to_owned()
            };
            line(
                "instances",
                format!("{place}, in {}", spoken(*protocol, tls.as_ref())),
            );
            line("requests", requests(conditions, self.workloads.len() == 1));
        }
        let sticky = self.front.sticky.as_ref();
        let sticky = sticky.map_or(String::new(), |sticky| format!(", sessions by {sticky}"));
        line(
            "proxy",
            format!("{}, split {}{sticky}", self.front.urls(), self.front.policy),
        );
        if let Some(tls) = &self.front.tls {
            let oldest = match tls.version_min {
                TlsVersion::V12 => "1.2 or 1.3",
                TlsVersion::V13 => "1.3",
            };
            let others = if tls.strict_sni {
                "no connection"
            } else {
                "the first certificate"
            };
            line(
                "tls",
                format!("{oldest}; who asks for no name that is known gets {others}"),
            );
            let certificates = Certificates::read(tls);
            let certificates = certificates.map(|all| all.describe(tls, SystemTime::now()));
            for certificate in certificates.unwrap_or_default() {
                line("certificate", certificate);
            }
        }
        let mirror = &self.front.mirror;
        if let Some(to) = &mirror.fixed {
            let of = if mirror.unsafe_methods {
                "all requests"
            } else {
                "GET, HEAD and OPTIONS"
            };
            let compared = if mirror.compare {
                ", answers compared"
            } else {
                ""
            };
            let percent = f64::from(to.share_bp) / 100.0;
            let text = format!("{percent} % of {of} to {}{compared}", to.address);
            line("mirror", text);
        }
        for (subject, words) in self.front.limits.words() {
            line(subject, words);
        }
        let log = self.front.access_log.as_ref();
        line(
            "access log",
            log.map_or("none".to_owned(), access_log::words),
        );
        line("metrics", format!("http://{}/metrics", self.front.admin));
        for server in &self.servers {
            let spec = &server.spec;
            let netns = server.netns.as_ref();
            if let Some(metrics) = server.metrics {
                line(
                    "metrics",
                    format!("http://{metrics}/metrics of {}", spec.name),
                );
            }
            let place = netns.map_or(String::new(), |path| format!(", in {}", path.display()));
            line(
                "server",
                format!(
                    "{} at {}: {:.2} CPUs, {} MiB, {} an hour, failure domain {}{place}",
                    spec.name,
                    spec.address,
                    spec.cpus,
                    spec.memory_bytes >> 20,
                    spec.price_per_hour,
                    spec.failure_domain
                ),
            );
        }
        line("data", self.data_dir.display().to_string());
        line("socket", self.control_socket().display().to_string());
        lines.join("\n")
    }

    /// What is allowed but rarely meant.
    pub(crate) fn notes(&self) -> Vec<String> {
        let mut notes = Vec::new();
        if self.front.mirror.unsafe_methods {
            notes.push(
                "proxy.mirror.unsafe_methods: what a copied request does is done twice, unless the service knows Sim-Mirror"
                    .into(),
            );
        }
        for Workload { spec, tls, .. } in &self.workloads {
            commands(spec, &mut notes);
            notes.extend(tls.as_ref().and_then(|tls| tls.note(&spec.name)));
        }
        if let [only] = self.servers.as_slice() {
            notes.push(format!(
                "server {} is the only one: a shadow can only start beside its primary",
                only.spec.name
            ));
        }
        if let Some(tls) = &self.front.tls
            && let Ok(certificates) = Certificates::read(tls)
        {
            notes.extend(certificates.notes(tls, SystemTime::now()));
        }
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        for server in &self.servers {
            if server.netns.is_none() && server.spec.cpus > cores as f64 {
                notes.push(format!(
                    "server {}: cpus = {}, but this machine has {cores}",
                    server.spec.name, server.spec.cpus
                ));
            }
        }
        notes
    }
}

fn commands(workload: &WorkloadSpec, notes: &mut Vec<String>) {
    let values = workload.environment.iter().map(|(_, value)| value);
    let texts: Vec<&String> = workload.command.iter().chain(values).collect();
    let told = |text: &&String| text.contains("{port}") || text.contains("{socket}");
    if !texts.iter().any(told) {
        notes.push(
            "workload.command has no {port}: the service must listen on the one in its variable PORT"
                .into(),
        );
    }
    for name in texts.iter().flat_map(|text| placeholders(text)) {
        if !["address", "port", "socket"].contains(&name) {
            notes.push(format!(
                "workload.command: {{{name}}} is handed over as it is; only {{address}}, {{port}} and {{socket}} are replaced"
            ));
        }
    }
}

/// How instances are spoken to.
fn spoken(protocol: Protocol, tls: Option<&InstanceTlsSettings>) -> String {
    let version = match protocol {
        Protocol::Http1 => "HTTP/1.1",
        Protocol::Http2 => "HTTP/2",
    };
    let Some(tls) = tls else {
        return format!("{version} in the clear");
    };
    let shown = tls.identity.as_ref().map_or("nothing".into(), |own| {
        own.certificate.display().to_string()
    });
    format!(
        "{version} over TLS; they have to prove to be {} by {}, and are shown {shown}",
        tls.server_name,
        tls.ca.display()
    )
}

/// Which requests are a workload's.
fn requests(conditions: &[Condition], alone: bool) -> String {
    if alone && conditions.is_empty() {
        return "all".into();
    }
    if conditions.is_empty() {
        return "all that are no other workload's".into();
    }
    let conditions: Vec<String> = conditions.iter().map(ToString::to_string).collect();
    conditions.join(", ")
}

/// Names in braces, as `{port}` is one.
pub(super) fn placeholders(text: &str) -> impl Iterator<Item = &str> {
    text.split('{').skip(1).filter_map(|rest| {
        let (name, _) = rest.split_once('}')?;
        let good = !name.is_empty() && name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_');
        good.then_some(name)
    })
}

#[cfg(test)]
mod tests {
    use super::placeholders;

    #[test]
    fn names_in_braces_are_placeholders_and_other_braces_are_not() {
        let found = |text| placeholders(text).collect::<Vec<_>>();
        assert_eq!(found("--listen={address}:{prt}"), ["address", "prt"]);
        assert_eq!(found("{\"a\": {}} {A} {1}"), Vec::<&str>::new());
    }
}
