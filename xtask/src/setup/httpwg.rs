//! httpwg: cases of RFC 9113 that others have written, as a program from the registry of crates.

use std::path::PathBuf;

use anyhow::Result;

use crate::cache::{Stamp, remove_folder, stamp_matches, write_atomically};
use crate::context::Context;
use crate::process;
use crate::progress::Activity;

const PACKAGE: &str = "httpwg-cli";
const VERSION: &str = "0.2.5";
const WHOLE: &str = ".whole";
/// Where it is built, below its folder, for as long as that takes.
const BUILD: &str = "build";

/// Builds the program, unless the cache has it.
pub(super) fn install(context: &Context, activity: &Activity) -> Result<(PathBuf, String)> {
    let _lock = context.cache.lock("httpwg", activity)?;
    let stamp = Stamp::new()
        .add(PACKAGE.as_bytes())
        .add(VERSION.as_bytes())
        .finish();
    let root = context.cache.path("httpwg");
    let cached = stamp_matches(&root.join(WHOLE), &stamp);
    if !cached {
        activity.say("cargo install");
        let log = context.cache.log("httpwg")?;
        context.cache.install("httpwg", |root| {
            let build = root.join(BUILD);
            let mut cargo = context.cargo();
            // Not in the workspace, whose settings are not meant for it.
            cargo.current_dir(root);
            cargo.args(["install", PACKAGE, "--version", VERSION, "--locked"]);
            cargo.arg("--root").arg(root);
            cargo.arg("--target-dir").arg(&build);
            process::run_logged(&mut cargo, &log)?;
            remove_folder(&build)?;
            write_atomically(&root.join(WHOLE), stamp.as_bytes())
        })?;
    }
    let how = if cached { "cached" } else { "built" };
    let verdict = format!("ok ({how} {PACKAGE} {VERSION})");
    Ok((root.join("bin/httpwg"), verdict))
}
