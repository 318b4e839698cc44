//! Relative paths of a user's configuration, which is run from a copy elsewhere: they begin where the file is.

use std::path::Path;

use anyhow::{Context as _, Result};
use toml::{Table, Value};

/// Makes absolute paths of those in `table`, which was read from `file`.
pub(crate) fn anchor(table: &mut Table, file: &Path) -> Result<()> {
    let file = std::path::absolute(file)?;
    let folder = file.parent().context("a file is in a folder")?;
    within(folder, table, &["probes_object"]);
    for server in tables(table.get_mut("server")) {
        within(folder, server, &["netns"]);
    }
    for workload in tables(table.get_mut("workload")) {
        for tls in tables(workload.get_mut("tls")) {
            within(folder, tls, &["ca", "certificate", "key"]);
        }
    }
    for proxy in tables(table.get_mut("proxy")) {
        for tls in tables(proxy.get_mut("tls")) {
            for certificate in tables(tls.get_mut("certificate")) {
                within(folder, certificate, &["chain", "key"]);
            }
        }
    }
    Ok(())
}

/// The table, or those in the list.
fn tables(value: Option<&mut Value>) -> Vec<&mut Table> {
    match value {
        Some(Value::Table(table)) => vec![table],
        Some(Value::Array(all)) => all.iter_mut().filter_map(Value::as_table_mut).collect(),
        _ => vec![],
    }
}

fn within(folder: &Path, table: &mut Table, keys: &[&str]) {
    for key in keys {
        if let Some(Value::String(path)) = table.get_mut(*key) {
            *path = folder.join(&*path).display().to_string();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_path_of_the_example_begins_in_its_folder() {
        let text = include_str!("../../../../docs/example.toml");
        let mut table: Table = text.parse().expect("TOML");
        table.insert("probes_object".to_owned(), "/lib/sim-ebpf.o".into());
        anchor(&mut table, Path::new("/etc/sim/sim.toml")).expect("absolute");
        let text = table.to_string();
        assert!(!text.contains("\"tls/"), "{text}");
        assert_eq!(text.matches("\"/etc/sim/tls/").count(), 7, "{text}");
        assert_eq!(table["probes_object"].as_str(), Some("/lib/sim-ebpf.o"));
    }
}
