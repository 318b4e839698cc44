//! The others' configurations, each as its own users write it, with one worker.

use std::fmt::Write as _;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;
use bench::peers::Peers;
use bench::secure::Certificate;

/// An nginx that answers without a look at a file, or with one of `/size/BYTES`, and says its number.
pub(crate) fn instance(peers: &Peers, at: &Path, listen: &str, number: u64) -> Result<Command> {
    // Two in one folder don't get in each other's way.
    let at = &at.join(format!("instance-{number}"));
    let root = at.join("www");
    fs::create_dir_all(root.join("size"))?;
    for size in [8 * 1024, 64 * 1024] {
        fs::write(root.join(format!("size/{size}")), vec![b'x'; size])?;
    }
    let small = "x".repeat(96);
    let temp = temp_paths(at, "instance");
    let configuration = format!(
        "daemon off; master_process off; worker_processes 1; error_log stderr crit; pid {at}/instance.pid; \
         worker_rlimit_nofile 20000; events {{ worker_connections 12000; }} \
         http {{ access_log off; keepalive_requests 1000000000; keepalive_timeout 3600; tcp_nodelay on; {temp} \
         server {{ listen {listen} backlog=4096; \
         location /size {{ root {root}; sendfile on; open_file_cache max=10; }} \
         location / {{ default_type text/plain; add_header X-Instance {number}; return 200 '{small}'; }} }} }}",
        at = at.display(),
        root = root.display(),
    );
    nginx_by(peers, at, "instance", &configuration)
}

/// An instance of gRPC: this program again.
pub(crate) fn grpc_instance(listen: &str) -> Result<Command> {
    let mut command = Command::new(std::env::current_exe()?);
    command.arg("grpc").arg(listen);
    Ok(command)
}

fn nginx_by(peers: &Peers, at: &Path, name: &str, configuration: &str) -> Result<Command> {
    let file = at.join(format!("{name}.conf"));
    fs::write(&file, configuration)?;
    let mut command = peers.command("nginx")?;
    command.args(["-e", "stderr", "-p"]).arg(at);
    command.arg("-c").arg(file);
    Ok(command)
}

/// Where nginx would keep what doesn't fit in memory.
fn temp_paths(at: &Path, name: &str) -> String {
    let mut paths = String::new();
    for kind in ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"] {
        // Writing to a string can't fail.
        write!(paths, "{kind}_temp_path {}/{name}-{kind}; ", at.display()).unwrap_or_default();
    }
    paths
}

/// What users speak.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Users {
    Http1,
    /// HTTP/1.1 over TLS.
    Tls,
    /// In clear text, by prior knowledge; the instance speaks HTTP/1.1.
    Http2,
    /// The same, and the instance is one of gRPC.
    Grpc,
}

/// What is behind a proxy, and what its users would have it do.
#[derive(Clone, Debug)]
pub(crate) struct Behind {
    /// With their weights; 0 is for who takes no part.
    pub(crate) instances: Vec<(SocketAddr, u32)>,
    /// How long one of them is waited for, where another may be asked.
    pub(crate) try_timeout_s: u32,
    /// Who is before it, for Envoy, which has to be told.
    pub(crate) users: Users,
    /// Its instances are checked and its weights may change while it runs.
    pub(crate) may_reload: bool,
    /// Where it listens for users over TLS besides, where it can.
    pub(crate) secure: Option<(SocketAddr, Certificate)>,
}

impl Behind {
    /// One instance alone.
    pub(crate) fn one(instance: SocketAddr, users: Users) -> Self {
        Self {
            instances: vec![(instance, 1)],
            try_timeout_s: 60,
            users,
            may_reload: false,
            secure: None,
        }
    }
}

/// The file that nginx reads them from.
pub(crate) fn nginx_upstreams(at: &Path, behind: &Behind) -> Result<PathBuf> {
    let mut text = String::new();
    for (address, weight) in &behind.instances {
        // Writing to a string can't fail.
        match weight {
            0 => writeln!(text, "server {address} down;").unwrap_or_default(),
            _ => writeln!(text, "server {address} weight={weight};").unwrap_or_default(),
        }
    }
    let file = at.join("nginx-upstreams.conf");
    fs::write(&file, text)?;
    Ok(file)
}

pub(crate) fn nginx(
    peers: &Peers,
    at: &Path,
    address: SocketAddr,
    behind: &Behind,
) -> Result<Command> {
    let temp = temp_paths(at, "nginx");
    let secure = behind
        .secure
        .as_ref()
        .map_or_else(String::new, |(listen, of)| {
            let (chain, key) = (of.chain.display(), of.key.display());
            format!("listen {listen} ssl backlog=4096; ssl_certificate {chain}; ssl_certificate_key {key}; ")
        });
    let configuration = format!(
        "daemon off; master_process {master}; worker_processes 1; error_log stderr crit; pid {at}/nginx.pid; \
         worker_rlimit_nofile 20000; events {{ worker_connections 16000; }} \
         http {{ access_log off; keepalive_requests 1000000000; keepalive_timeout 3600; tcp_nodelay on; {temp} \
         upstream u {{ include {upstreams}; \
         keepalive 256; keepalive_requests 1000000000; keepalive_timeout 3600s; }} \
         server {{ listen {address} backlog=4096; {secure}location / {{ proxy_pass http://u; proxy_http_version 1.1; \
         proxy_set_header Connection ''; proxy_set_header Host $host; \
         proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for; \
         proxy_connect_timeout 1s; proxy_read_timeout {timeout}s; proxy_next_upstream error timeout; \
         proxy_next_upstream_tries 2; }} }} }}",
        at = at.display(),
        master = if behind.may_reload { "on" } else { "off" },
        upstreams = nginx_upstreams(at, behind)?.display(),
        timeout = behind.try_timeout_s,
    );
    nginx_by(peers, at, "nginx", &configuration)
}

pub(crate) fn haproxy(
    peers: &Peers,
    at: &Path,
    address: SocketAddr,
    behind: &Behind,
) -> Result<Command> {
    let mut servers = String::new();
    for (number, (upstream, weight)) in (1..).zip(&behind.instances) {
        writeln!(servers, "  server i{number} {upstream} weight {weight}").unwrap_or_default();
    }
    let (socket, checks) = if behind.may_reload {
        let socket = format!(
            "  stats socket {}/haproxy.sock mode 600 level admin\n",
            at.display()
        );
        let checks = " observe layer7 error-limit 10 on-error mark-down";
        (socket, checks)
    } else {
        (String::new(), "")
    };
    let secure = behind
        .secure
        .as_ref()
        .map_or_else(String::new, |(listen, of)| {
            format!(
                "  bind {listen} ssl crt {} backlog 4096\n",
                of.both.display()
            )
        });
    let configuration = format!(
        "global\n  nbthread 1\n  maxconn 9000\n{socket}\
         defaults\n  mode http\n  timeout connect 1s\n  timeout client 3600s\n  timeout server {timeout}s\n\
         \x20 timeout check 500ms\n\
         \x20 timeout http-keep-alive 3600s\n  option http-keep-alive\n  http-reuse always\n  retries 2\n\
         \x20 option redispatch 1\n  option forwardfor\n\
         \x20 retry-on conn-failure empty-response response-timeout\n\
         frontend f\n  bind {address} backlog 4096\n{secure}  default_backend b\n\
         backend b\n  balance roundrobin\n  option httpchk GET /\n\
         \x20 default-server pool-max-conn -1 pool-purge-delay 3600s check inter 1s fall 2 rise 2{checks}\n{servers}",
        timeout = behind.try_timeout_s,
    );
    let file = at.join("haproxy.cfg");
    fs::write(&file, configuration)?;
    let mut command = peers.command("haproxy")?;
    command.arg("-db").arg("-f").arg(file);
    Ok(command)
}

/// What Envoy does where one of several may fail.
const ENVOY_CHECKS: &str = "
    common_lb_config: { healthy_panic_threshold: { value: 0 } }
    outlier_detection: { consecutive_5xx: 5, consecutive_gateway_failure: 5, enforcing_consecutive_gateway_failure: 100,
      interval: 1s, base_ejection_time: 30s, max_ejection_percent: 50, split_external_local_origin_errors: true,
      consecutive_local_origin_failure: 5 }
    health_checks: [ { timeout: 1s, interval: 1s, unhealthy_threshold: 2, healthy_threshold: 2,
      http_health_check: { path: \"/\" } } ]";

/// How Envoy speaks HTTP/2 to an instance.
const ENVOY_HTTP2: &str = "typed_extension_protocol_options: {
      envoy.extensions.upstreams.http.v3.HttpProtocolOptions: {
      \"@type\": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions,
      explicit_http_config: { http2_protocol_options: {} } } }";

pub(crate) fn envoy(
    peers: &Peers,
    at: &Path,
    address: SocketAddr,
    behind: &Behind,
) -> Result<Command> {
    let socket = |address: SocketAddr| {
        format!(
            "{{ socket_address: {{ address: {}, port_value: {} }} }}",
            address.ip(),
            address.port()
        )
    };
    let mut endpoints = String::new();
    for (instance, weight) in behind.instances.iter().filter(|(_, weight)| *weight > 0) {
        let address = socket(*instance);
        write!(
            endpoints,
            "{{ load_balancing_weight: {weight}, endpoint: {{ address: {address} }} }}, "
        )
        .unwrap_or_default();
    }
    let configuration = format!(
        r#"
node: {{ id: bench, cluster: bench }}
static_resources:
  listeners:
  - name: users
    address: {users}
    tcp_backlog_size: 4096
    filter_chains:
    - filters:
      - name: envoy.filters.network.http_connection_manager
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: users
          codec_type: {codec}
          generate_request_id: false
          route_config:
            virtual_hosts:
            - name: all
              domains: ["*"]
              routes:
              - match: {{ prefix: "/" }}
                route:
                  cluster: instance
                  timeout: 60s
                  retry_policy:
                    retry_on: "{retry_on}"
                    num_retries: 2
                    per_try_timeout: {timeout}s
                    retry_host_predicate: [ {{ name: envoy.retry_host_predicates.previous_hosts, typed_config: {{
                      "@type": type.googleapis.com/envoy.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate
                      }} }} ]
                    host_selection_retry_max_attempts: 3
          http_filters:
          - name: envoy.filters.http.router
            typed_config: {{ "@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router }}
  clusters:
  - name: instance
    type: STATIC
    connect_timeout: 1s
    circuit_breakers: {{ thresholds: [
      {{ max_connections: 16000, max_pending_requests: 16000, max_requests: 16000, max_retries: 1000 }} ] }}
    {checks}
    {upstream}
    load_assignment:
      cluster_name: instance
      endpoints: [ {{ lb_endpoints: [ {endpoints} ] }} ]
"#,
        users = socket(address),
        upstream = match behind.users {
            Users::Http1 | Users::Tls | Users::Http2 => "",
            Users::Grpc => ENVOY_HTTP2,
        },
        codec = match behind.users {
            Users::Http1 | Users::Tls => "HTTP1",
            // By what a connection begins with: it is asked by HTTP/1.1 first whether it serves.
            Users::Http2 | Users::Grpc => "AUTO",
        },
        timeout = behind.try_timeout_s,
        retry_on = if behind.may_reload {
            "connect-failure,refused-stream,reset,reset-before-request,gateway-error"
        } else {
            "connect-failure,refused-stream,reset"
        },
        checks = if behind.may_reload {
            ENVOY_CHECKS
        } else {
            "outlier_detection: { consecutive_5xx: 5 }"
        },
    );
    let file = at.join("envoy.yaml");
    fs::write(&file, configuration)?;
    let mut command = peers.command("envoy")?;
    command.args([
        "--concurrency",
        "1",
        "--log-level",
        "error",
        "--disable-hot-restart",
        "-c",
    ]);
    command.arg(file);
    Ok(command)
}
