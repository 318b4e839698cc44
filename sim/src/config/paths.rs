//! Relative paths: the file's folder is where they begin, wherever SIM was started from. A service manager starts it
//! from `/`, and all roles have to find the same files.

use super::file::File;
use std::path::{Path, PathBuf};

/// Makes every path in `file`, which was read from `path`, an absolute one. (Of a workload's command only the kernel
/// knows what is one.)
pub(super) fn anchor(file: &mut File, path: &Path) {
    let whole = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let folder = whole.parent().unwrap_or(Path::new("/"));
    for own in all(file) {
        *own = folder.join(&*own);
    }
}

fn all(file: &mut File) -> impl Iterator<Item = &mut PathBuf> {
    let certificates = file
        .proxy
        .tls
        .iter_mut()
        .flat_map(|tls| &mut tls.certificate);
    let certificates = certificates.flat_map(|one| [&mut one.chain, &mut one.key]);
    let instances = file.workload.iter_mut().filter_map(|one| one.tls.as_mut());
    let instances = instances.flat_map(|tls| {
        let own = tls.certificate.iter_mut().chain(&mut tls.key);
        std::iter::once(&mut tls.ca).chain(own)
    });
    let namespaces = file.server.iter_mut().filter_map(|one| one.netns.as_mut());
    [&mut file.data_dir, &mut file.runtime_dir]
        .into_iter()
        .chain(&mut file.probes_object)
        .chain(namespaces)
        .chain(certificates)
        .chain(instances)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::file::parse;

    #[test]
    fn every_path_begins_in_the_folder_of_the_file_unless_it_is_absolute() {
        let text = r#"
data_dir = "data"
probes_object = "ebpf/sim.o"
[proxy.tls]
listen = "127.0.0.1:1"
[[proxy.tls.certificate]]
chain = "chain.pem"
key = "/keys/key.pem"
[[server]]
name = "a"
cpus = 1.0
netns = "netns/a"
[[workload]]
name = "web"
command = ["./web"]
cpus = 0.5
home = "a"
slo = { bound_ms = 100 }
tls = { ca = "ca.pem", server_name = "web", certificate = "../own.pem", key = "own.key" }
"#;
        let path = Path::new("/etc/sim/sim.toml");
        let mut file = parse(path, text).expect("good");
        anchor(&mut file, path);
        let paths: Vec<_> = all(&mut file)
            .map(|own| own.display().to_string())
            .collect();
        assert_eq!(
            paths,
            [
                "/etc/sim/data",
                "/run/sim",
                "/etc/sim/ebpf/sim.o",
                "/etc/sim/netns/a",
                "/etc/sim/chain.pem",
                "/keys/key.pem",
                "/etc/sim/ca.pem",
                "/etc/sim/../own.pem",
                "/etc/sim/own.key",
            ]
        );
        assert_eq!(file.workload[0].command, ["./web"]);
        let mut file = parse(Path::new("sim.toml"), text).expect("good");
        anchor(&mut file, Path::new("sim.toml"));
        let here = std::env::current_dir().expect("there");
        assert_eq!(file.data_dir, here.join("data"));
    }
}
