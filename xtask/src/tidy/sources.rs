//! Rules on the text of the files themselves.

use super::{Source, Violation};

/// A longer file is asking for a second name.
const LINES_MAX: usize = 600;

/// Files that are longer all the same, with the length they may not pass. Only ever shrinks.
const LINES_RATCHET: &[(&str, usize)] = &[];

/// Words that mark something unfinished; split so that this file has none.
const UNFINISHED: &[&str] = &[concat!("TO", "DO"), concat!("FIX", "ME")];

/// Ways to leave a test out.
const IGNORED: &str = concat!("#[ig", "nore");

/// Folders of the machines this is developed on.
const WORKPLACE: &[&str] = &[concat!("/wo", "rk/")];

/// What the core promises to the compiler.
const CORE_ROOT: &str = "sim-core/src/lib.rs";
const CORE_ATTRIBUTES: &[&str] = &["#![no_std]", "#![forbid(unsafe_code)]"];

/// Checks every file; `hosts` are names that must not be in any.
pub(super) fn check(sources: &[Source], hosts: &[String]) -> Vec<Violation> {
    let mut violations = Vec::new();
    for source in sources {
        if source.path.ends_with(".rs") {
            check_rust(source, &mut violations);
        }
        // Generated, and in a format that is not ours.
        if !source.path.ends_with("Cargo.lock") {
            check_words(source, hosts, &mut violations);
        }
    }
    check_core(sources, &mut violations);
    check_changelog(sources, &mut violations);
    violations
}

fn check_rust(source: &Source, violations: &mut Vec<Violation>) {
    let lines = source.text.lines().count();
    let ratchet = LINES_RATCHET.iter().find(|(path, _)| *path == source.path);
    let limit = ratchet.map_or(LINES_MAX, |(_, limit)| *limit);
    if lines > limit {
        let rule = format!("{lines} lines; allowed are {limit}: split it");
        violations.push(Violation::new(&source.path, rule));
    }
    for (number, line) in numbered(source) {
        if line.contains(IGNORED) {
            let rule = format!("`{IGNORED}`: a test runs, or fails and says why it can't");
            violations.push(at(source, number, &rule));
        }
    }
}

fn check_words(source: &Source, hosts: &[String], violations: &mut Vec<Violation>) {
    for (number, line) in numbered(source) {
        for word in UNFINISHED.iter().filter(|word| has_word(line, word)) {
            violations.push(at(
                source,
                number,
                &format!("`{word}`: finish it or file an issue"),
            ));
        }
        for folder in WORKPLACE.iter().filter(|folder| has_path(line, folder)) {
            let rule = format!("`{folder}` is a folder of one machine; use a path of the checkout");
            violations.push(at(source, number, &rule));
        }
        for host in hosts.iter().filter(|host| line.contains(host.as_str())) {
            let rule = format!("`{host}` is this machine's package registry; name packages only");
            violations.push(at(source, number, &rule));
        }
    }
}

fn check_core(sources: &[Source], violations: &mut Vec<Violation>) {
    let text = text_of(sources, CORE_ROOT).unwrap_or_default();
    for attribute in CORE_ATTRIBUTES {
        if !text.lines().any(|line| line.trim() == *attribute) {
            violations.push(Violation::new(
                CORE_ROOT,
                format!("needs the line {attribute}"),
            ));
        }
    }
}

fn check_changelog(sources: &[Source], violations: &mut Vec<Violation>) {
    let text = text_of(sources, "CHANGELOG.md").unwrap_or_default();
    let is_section = |line: &str| line.starts_with("## ") && line.contains("Unreleased");
    if !text.lines().any(is_section) {
        violations.push(Violation::new(
            "CHANGELOG.md",
            "needs a section `## Unreleased`",
        ));
    }
}

/// A manifest must take the workspace's lints.
pub(super) fn check_lints(path: &str, manifest: &str) -> Option<Violation> {
    let section = manifest.split("[lints]").nth(1).unwrap_or_default();
    let section = section.split("\n[").next().unwrap_or_default();
    let inherits = section
        .lines()
        .any(|line| line.replace(' ', "") == "workspace=true");
    (!inherits).then(|| Violation::new(path, "needs `[lints]` with `workspace = true`"))
}

fn text_of<'sources>(sources: &'sources [Source], path: &str) -> Option<&'sources str> {
    sources
        .iter()
        .find(|source| source.path == path)
        .map(|source| source.text.as_str())
}

fn numbered(source: &Source) -> impl Iterator<Item = (usize, &str)> {
    source
        .text
        .lines()
        .enumerate()
        .map(|(index, line)| (index + 1, line))
}

fn at(source: &Source, line: usize, rule: &str) -> Violation {
    Violation::new(format!("{}:{line}", source.path), rule)
}

/// `word` with no letter, digit or underscore on either side.
fn has_word(line: &str, word: &str) -> bool {
    let is_part = |character: char| character.is_ascii_alphanumeric() || character == '_';
    line.match_indices(word).any(|(index, _)| {
        !line[..index].ends_with(is_part) && !line[index + word.len()..].starts_with(is_part)
    })
}

/// `folder` from the root, not as a part of a longer path.
fn has_path(line: &str, folder: &str) -> bool {
    let is_part =
        |character: char| character.is_ascii_alphanumeric() || "_-.}~*/>)".contains(character);
    line.match_indices(folder)
        .any(|(index, _)| !line[..index].ends_with(is_part))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(path: &str, text: impl Into<String>) -> Source {
        Source {
            path: path.to_owned(),
            text: text.into(),
        }
    }

    fn good() -> Vec<Source> {
        vec![
            source(CORE_ROOT, CORE_ATTRIBUTES.join("\n")),
            source("CHANGELOG.md", "# Changelog\n\n## Unreleased\n"),
        ]
    }

    fn check_with(more: Source, hosts: &[&str]) -> Vec<String> {
        let mut sources = good();
        sources.push(more);
        let hosts: Vec<String> = hosts.iter().map(|host| (*host).to_owned()).collect();
        check(&sources, &hosts)
            .iter()
            .map(ToString::to_string)
            .collect()
    }

    #[test]
    fn a_good_tree_passes() {
        assert_eq!(check(&good(), &[]), []);
    }

    #[test]
    fn a_long_file_is_named_with_what_is_allowed() {
        let at_limit = "x\n".repeat(LINES_MAX);
        assert!(check_with(source("a.rs", at_limit.clone()), &[]).is_empty());
        let found = check_with(source("a.rs", at_limit + "x\n"), &[]);
        assert_eq!(found, ["a.rs: 601 lines; allowed are 600: split it"]);
    }

    #[test]
    fn unfinished_work_is_found_as_a_word_only() {
        let word = UNFINISHED[0];
        assert_eq!(
            check_with(source("a.md", format!("x\n{word}: y")), &[]).len(),
            1
        );
        assert!(check_with(source("a.md", format!("MAS{word} {word}S")), &[]).is_empty());
    }

    #[test]
    fn an_ignored_test_is_found() {
        let found = check_with(source("a.rs", format!("{IGNORED}]")), &[]);
        assert_eq!(found.len(), 1);
    }

    #[test]
    fn a_workplace_folder_is_found_and_a_like_one_is_not() {
        let folder = WORKPLACE[0];
        assert_eq!(
            check_with(source("a.sh", format!("cd {folder}main")), &[]).len(),
            1
        );
        assert!(check_with(source("a.sh", format!("cd ~/net{folder}x")), &[]).is_empty());
    }

    #[test]
    fn a_registry_host_is_found_except_in_the_lock_file() {
        let text = "from packages.example";
        assert_eq!(
            check_with(source("a.toml", text), &["packages.example"]).len(),
            1
        );
        assert!(check_with(source("Cargo.lock", text), &["packages.example"]).is_empty());
    }

    #[test]
    fn the_core_must_forbid_std_and_unsafe() {
        let sources = [source("CHANGELOG.md", "## [Unreleased]\n")];
        assert_eq!(check(&sources, &[]).len(), CORE_ATTRIBUTES.len());
    }

    #[test]
    fn a_manifest_must_take_the_workspace_lints() {
        assert_eq!(check_lints("a", "[lints]\nworkspace = true\n[x]\n"), None);
        assert!(check_lints("a", "[lints]\n\n[x]\nworkspace = true\n").is_some());
        assert!(check_lints("a", "[package]\nname = \"a\"\n").is_some());
    }
}
