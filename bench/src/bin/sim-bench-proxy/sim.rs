//! The whole of SIM (`sim run`): control plane, node with its probes, proxy.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context as _, Result};
use bench::free_address;
use bench::secure::Certificate;
use sim_tests::world::process::Guarded;
use toml::{Table, Value};

use crate::processes::spawn;
use crate::relative::anchor;

/// What SIM says, below its folder.
pub(crate) const LOG: &str = "sim.log";
/// The address of its instance, below its folder, where that is one of ours.
pub(crate) const INSTANCE: &str = "instance.address";

/// Which SIM.
#[derive(Clone, Debug)]
pub(crate) struct Setting {
    /// The program `sim`.
    pub(crate) program: PathBuf,
    /// Its configuration; none is an instance of ours and nothing to move it to.
    pub(crate) config: Option<PathBuf>,
    /// The instance of ours is one of gRPC.
    pub(crate) grpc: bool,
    /// A library that slows its proxy down, and for how long at each `send`.
    pub(crate) planted: Option<(PathBuf, u64)>,
}

impl Setting {
    /// What is built from this tree.
    pub(crate) fn own() -> Result<Self> {
        let program = std::env::var_os("SIM_BIN")
            .context("SIM_BIN is not set; `cargo xtask bench proxy` sets it")?;
        Ok(Self {
            program: program.into(),
            config: None,
            grpc: false,
            planted: None,
        })
    }

    /// What it says of itself.
    pub(crate) fn version(&self) -> String {
        let said = Command::new(&self.program).arg("--version").output();
        said.map_or_else(
            |error| format!("unknown ({error})"),
            |output| String::from_utf8_lossy(&output.stdout).trim().to_owned(),
        )
    }
}

/// Starts it, reached at `address`.
pub(crate) fn start(setting: &Setting, at: &Path, address: SocketAddr) -> Result<Guarded> {
    let text = match &setting.config {
        Some(file) => fs::read_to_string(file).with_context(|| file.display().to_string())?,
        None => one_instance(at, setting.grpc)?,
    };
    let file = at.join("sim.toml");
    let mut table = own_places(&text, at, address, free_address()?)?;
    if let Some(file) = &setting.config {
        anchor(&mut table, file)?;
    }
    stay(&mut table);
    fs::write(&file, table.to_string())?;
    let mut run = Command::new(&setting.program);
    run.arg("run").arg("--config").arg(&file);
    // Its own words would drown those of the benchmark.
    run.stderr(fs::File::create(at.join(LOG))?);
    if let Some((library, ns)) = &setting.planted {
        run.env("LD_PRELOAD", library);
        run.env("SIM_PLANTED_NS", ns.to_string());
    }
    spawn("sim run", run)
}

/// An instance of ours, and nothing to move it to.
fn one_instance(at: &Path, grpc: bool) -> Result<String> {
    Ok(format!(
        "[[server]]\nname = \"one\"\ncpus = 2.0\n{}",
        workload(at, "none", grpc)?
    ))
}

/// A primary of ours, one of gRPC or not, and a shadow that always stands by.
pub(crate) fn two_servers(at: &Path, grpc: bool) -> Result<String> {
    Ok(format!(
        "[[server]]\nname = \"one\"\ncpus = 1.0\n[[server]]\nname = \"two\"\ncpus = 1.0\n{}",
        workload(at, "always", grpc)?
    ))
}

/// This program, as an instance; its port is known when it starts.
fn workload(at: &Path, standby: &str, grpc: bool) -> Result<String> {
    let own = std::env::current_exe()?;
    let mut command = vec![own.to_string_lossy().into_owned()];
    if grpc {
        command.extend(["grpc", "{address}:{port}"].map(str::to_owned));
    } else {
        let folder = at.to_string_lossy().into_owned();
        command.extend(["instance".to_owned(), "{address}:{port}".to_owned(), folder]);
    }
    let variable = |name| std::env::var(name).with_context(|| format!("{name} is not set"));
    let (root, libraries) = (variable("SIM_PEERS")?, variable("SIM_PEERS_LIBRARIES")?);
    let cpus = if standby == "none" { 2.0 } else { 1.0 };
    let protocol = if grpc { "h2" } else { "http1" };
    Ok(format!(
        "[[workload]]\nname = \"echo\"\nhome = \"one\"\nprotocol = \"{protocol}\"\ncpus = {cpus:.1}\nstandby = \"{standby}\"\n\
         command = {command:?}\nenvironment = {{ SIM_PEERS = {root:?}, SIM_PEERS_LIBRARIES = {libraries:?} }}\n\
         slo = {{ bound_ms = 100 }}\n",
    ))
}

/// `text` with folders, cgroup and addresses that no other run has.
pub(crate) fn own_places(
    text: &str,
    at: &Path,
    users: SocketAddr,
    admin: SocketAddr,
) -> Result<Table> {
    // Relaxed: any number that no other run of this process has.
    static RUNS: AtomicU32 = AtomicU32::new(0);
    let run = RUNS.fetch_add(1, Ordering::Relaxed);
    let mut table: Table = text.parse()?;
    let own = std::process::id();
    for (key, value) in [
        ("runtime_dir", at.join("run").display().to_string()),
        ("data_dir", at.join("state").display().to_string()),
        ("cgroup", format!("sim-bench-proxy-{own}-{run}")),
    ] {
        table.insert(key.to_owned(), value.into());
    }
    let proxy = table.entry("proxy").or_insert_with(|| Table::new().into());
    let proxy = proxy.as_table_mut().context("proxy: not a table")?;
    proxy.insert("listen".to_owned(), users.to_string().into());
    proxy.insert("admin".to_owned(), admin.to_string().into());
    if let Some(tls) = proxy.get_mut("tls").and_then(Value::as_table_mut) {
        tls.insert("listen".to_owned(), free_address()?.to_string().into());
    }
    // Two can't write one log, and what is measured must not reach whoever gets copies.
    proxy.remove("access_log");
    proxy.remove("mirror");
    for server in tables(&mut table, "server") {
        // A port of its own that two runs can't share.
        server.remove("metrics");
    }
    Ok(table)
}

/// Its users come over TLS too.
pub(crate) fn serve_over_tls(
    table: &mut Table,
    listen: SocketAddr,
    certificate: &Certificate,
) -> Result<()> {
    let proxy = table.get_mut("proxy").and_then(Value::as_table_mut);
    let files = [("chain", &certificate.chain), ("key", &certificate.key)];
    let files = files.map(|(key, file)| (key.to_owned(), file.display().to_string().into()));
    let tls = [
        ("listen".to_owned(), listen.to_string().into()),
        (
            "certificate".to_owned(),
            Value::Array(vec![Table::from_iter(files).into()]),
        ),
    ];
    let proxy = proxy.context("no table `proxy`")?;
    proxy.insert("tls".to_owned(), Table::from_iter(tls).into());
    Ok(())
}

/// Nothing is moved while it is measured.
fn stay(table: &mut Table) {
    for workload in tables(table, "workload") {
        workload.insert("standby".to_owned(), "none".into());
    }
}

fn tables<'a>(table: &'a mut Table, key: &str) -> impl Iterator<Item = &'a mut Table> {
    let all = table.get_mut(key).and_then(Value::as_array_mut);
    all.into_iter().flatten().filter_map(Value::as_table_mut)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_users_configuration_keeps_all_but_its_places() {
        let text = "data_dir = \"/var/lib/sim\"\n[proxy]\nlisten = \"0.0.0.0:80\"\nthreads = 2\n\
                    access_log = { path = \"/var/log/a\" }\nmirror = { to = \"10.0.0.1:1\" }\ntls = { listen = \"0.0.0.0:443\" }\n\
                    [[server]]\nname = \"a\"\ncpus = 4.0\nmetrics = \"127.0.0.1:9\"\n\
                    [[workload]]\nname = \"web\"\nstandby = \"always\"\n[policy]\nstep_ms = 500\n";
        let [users, admin] = [4_711, 4_712].map(|port| SocketAddr::from(([127, 0, 0, 1], port)));
        let own = |at: &str| {
            let mut table = own_places(text, Path::new(at), users, admin).expect("TOML");
            stay(&mut table);
            table
        };
        let (one, two) = (own("/tmp/a"), own("/tmp/b"));
        assert_eq!(one["data_dir"].as_str(), Some("/tmp/a/state"));
        assert_eq!(one["proxy"]["listen"].as_str(), Some("127.0.0.1:4711"));
        assert_eq!(one["proxy"]["threads"].as_integer(), Some(2));
        assert_ne!(one["proxy"]["tls"]["listen"], two["proxy"]["tls"]["listen"]);
        let own_alone = |key| one["proxy"].get(key).is_none();
        assert!(own_alone("access_log") && own_alone("mirror"));
        assert_eq!(one["policy"]["step_ms"].as_integer(), Some(500));
        assert_eq!(one["server"][0]["cpus"].as_float(), Some(4.0));
        assert!(one["server"][0].get("metrics").is_none());
        assert_eq!(one["workload"][0]["standby"].as_str(), Some("none"));
        assert_ne!(one["cgroup"], two["cgroup"]);
        assert_eq!(one["proxy"]["admin"].as_str(), Some("127.0.0.1:4712"));
    }
}
