//! Names of the hosts that this machine installs packages from. They belong to the machine, not
//! to the repository, so they are read from its settings rather than listed here.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// Hosts that a project may name for other reasons: it links to them.
const COMMON: &[&str] = &["localhost", "github.com", "127.0.0.1"];

/// Hosts in the settings of apt, pip, cargo and npm, and in the variables that override them.
pub(super) fn of_this_machine() -> Vec<String> {
    let mut texts: Vec<String> = settings()
        .into_iter()
        .filter_map(|file| std::fs::read_to_string(file).ok())
        .collect();
    let variables = std::env::vars_os().filter_map(|(name, value)| {
        let name = name.into_string().ok()?;
        let is_ours = [
            "PIP_",
            "CARGO_REGISTR",
            "CARGO_SOURCE",
            "NPM_CONFIG",
            "npm_config",
        ]
        .iter()
        .any(|prefix| name.starts_with(prefix));
        is_ours.then(|| value.into_string().ok()).flatten()
    });
    texts.extend(variables);
    let hosts: BTreeSet<String> = texts.iter().flat_map(|text| in_text(text)).collect();
    hosts.into_iter().collect()
}

fn settings() -> Vec<PathBuf> {
    let mut files = vec![
        PathBuf::from("/etc/apt/sources.list"),
        PathBuf::from("/etc/pip.conf"),
        PathBuf::from("/etc/npmrc"),
    ];
    let lists = std::fs::read_dir("/etc/apt/sources.list.d")
        .into_iter()
        .flatten();
    files.extend(lists.filter_map(|entry| Some(entry.ok()?.path())));
    if let Some(home) = std::env::var_os("HOME") {
        let in_home = [
            ".config/pip/pip.conf",
            ".pip/pip.conf",
            ".cargo/config.toml",
            ".npmrc",
        ];
        files.extend(in_home.map(|file| Path::new(&home).join(file)));
    }
    files
}

/// Hosts of the addresses in a settings file.
fn in_text(text: &str) -> Vec<String> {
    text.split("://")
        .skip(1)
        .filter_map(|rest| {
            let is_end =
                |character: char| character.is_whitespace() || "/\"'?#,]".contains(character);
            let authority = rest.split(is_end).next()?;
            let host = authority.rsplit('@').next()?.split(':').next()?;
            (host.contains('.') && !COMMON.contains(&host)).then(|| host.to_owned())
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_read_from_settings() {
        let text = "URIs: http://packages.example/debian\nindex-url = https://u:p@py.example:8/s\n\
                    [x]\ngit = \"https://github.com/a/b\"\nproxy = http://localhost/\n";
        assert_eq!(in_text(text), ["packages.example", "py.example"]);
        assert!(in_text("no address").is_empty());
    }
}
