//! The cache folder outside the checkout: locked while it changes, and never seen half-made.
//!
//! A folder in it is made under a `.partial` name and renamed when whole, so an interrupted run
//! leaves only something that the next one, holding the lock, throws away.

use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};

use crate::progress::Activity;

/// `$SIM_CACHE_DIR`, else `$XDG_CACHE_HOME/sim`, else `~/.cache/sim`.
pub(crate) struct Cache {
    root: PathBuf,
}

/// Held while a part of the cache changes; the kernel frees it with the process.
pub(crate) struct Lock {
    _file: File,
}

impl Cache {
    pub(crate) fn locate() -> Result<Self> {
        let variable = |name| std::env::var_os(name).filter(|value| !value.is_empty());
        let root = if let Some(own) = variable("SIM_CACHE_DIR") {
            PathBuf::from(own)
        } else if let Some(caches) = variable("XDG_CACHE_HOME") {
            Path::new(&caches).join("sim")
        } else if let Some(home) = variable("HOME") {
            Path::new(&home).join(".cache/sim")
        } else {
            bail!("none of SIM_CACHE_DIR, XDG_CACHE_HOME and HOME is set: no place for the cache")
        };
        let root = std::path::absolute(root).context("cache folder")?;
        Ok(Self { root })
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    /// Log of the long child processes of the part called `name`.
    pub(crate) fn log(&self, name: &str) -> Result<PathBuf> {
        let folder = self.path("logs");
        std::fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
        Ok(folder.join(format!("{name}.log")))
    }

    /// Waits for other runs that work on the part called `name`.
    pub(crate) fn lock(&self, name: &str, activity: &Activity) -> Result<Lock> {
        std::fs::create_dir_all(&self.root)
            .with_context(|| format!("cache folder {}", self.root.display()))?;
        let path = self.path(&format!("{name}.lock"));
        let file = File::create(&path).with_context(|| path.display().to_string())?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                activity.say("waiting for another run of xtask");
                file.lock().with_context(|| path.display().to_string())?;
            }
            Err(TryLockError::Error(error)) => {
                return Err(error).with_context(|| path.display().to_string());
            }
        }
        Ok(Lock { _file: file })
    }

    /// Makes the folder `name` by `make`, whole or not at all; replaces an old one. The lock of
    /// the part it belongs to is held by the caller.
    pub(crate) fn install(
        &self,
        name: &str,
        make: impl FnOnce(&Path) -> Result<()>,
    ) -> Result<PathBuf> {
        let whole = self.path(name);
        let partial = self.path(&format!("{name}.partial"));
        remove_folder(&partial)?;
        std::fs::create_dir_all(&partial).with_context(|| partial.display().to_string())?;
        make(&partial)?;
        remove_folder(&whole)?;
        std::fs::rename(&partial, &whole).with_context(|| whole.display().to_string())?;
        Ok(whole)
    }
}

/// Removes a folder with all in it; one that isn't there is fine.
pub(crate) fn remove_folder(path: &Path) -> Result<()> {
    match std::fs::remove_dir_all(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

/// A digest of inputs: equal inputs, equal stamp. FNV-1a, 64 bits: it guards against forgotten
/// rebuilds, not against an adversary.
pub(crate) struct Stamp(u64);

impl Stamp {
    pub(crate) fn new() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }

    /// Adds one part; the boundary between parts counts.
    pub(crate) fn add(mut self, part: &[u8]) -> Self {
        let length = (part.len() as u64).to_le_bytes();
        for byte in part.iter().chain(&length) {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
        self
    }

    /// Adds every file below `folder` by relative path and content, but no build products.
    pub(crate) fn add_folder(mut self, folder: &Path) -> Result<Self> {
        let mut files = Vec::new();
        collect_files(folder, &mut files)?;
        files.sort();
        for file in files {
            let content = std::fs::read(&file).with_context(|| file.display().to_string())?;
            let relative = file.strip_prefix(folder).unwrap_or(&file);
            self = self
                .add(relative.as_os_str().as_encoded_bytes())
                .add(&content);
        }
        Ok(self)
    }

    pub(crate) fn finish(&self) -> String {
        format!("{:016x}", self.0)
    }
}

fn collect_files(folder: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    let entries = std::fs::read_dir(folder).with_context(|| folder.display().to_string())?;
    for entry in entries {
        let entry = entry?;
        let kind = entry.file_type()?;
        if kind.is_dir() && entry.file_name() != "target" {
            collect_files(&entry.path(), files)?;
        } else if kind.is_file() {
            files.push(entry.path());
        }
    }
    Ok(())
}

/// True when the file holds exactly this stamp.
pub(crate) fn stamp_matches(file: &Path, stamp: &str) -> bool {
    std::fs::read_to_string(file).is_ok_and(|content| content.trim_end() == stamp)
}

/// Writes a file so that a reader sees the old content or the new, never a part.
pub(crate) fn write_atomically(file: &Path, content: &[u8]) -> Result<()> {
    let folder = file.parent().unwrap_or(Path::new("."));
    std::fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
    let mut name = file.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}.partial", std::process::id()));
    let partial = folder.join(name);
    std::fs::write(&partial, content).with_context(|| partial.display().to_string())?;
    std::fs::rename(&partial, file).with_context(|| file.display().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(name: &str) -> PathBuf {
        let folder = std::env::temp_dir().join(format!("xtask-{name}-{}", std::process::id()));
        remove_folder(&folder).unwrap();
        std::fs::create_dir_all(&folder).unwrap();
        folder
    }

    #[test]
    fn a_stamp_tells_parts_apart() {
        let stamp = |parts: &[&str]| {
            let add = |stamp: Stamp, part: &&str| stamp.add(part.as_bytes());
            parts.iter().fold(Stamp::new(), add).finish()
        };
        assert_eq!(stamp(&["a", "b"]), stamp(&["a", "b"]));
        assert_ne!(stamp(&["ab"]), stamp(&["a", "b"]));
        assert_ne!(stamp(&["a", "b"]), stamp(&["b", "a"]));
    }

    #[test]
    fn a_folder_stamp_sees_names_and_contents_and_no_build_products() {
        let folder = folder("stamp");
        let stamp = || Stamp::new().add_folder(&folder).unwrap().finish();
        std::fs::write(folder.join("a.rs"), "1").unwrap();
        let first = stamp();
        std::fs::create_dir(folder.join("target")).unwrap();
        std::fs::write(folder.join("target/x"), "x").unwrap();
        assert_eq!(stamp(), first);
        std::fs::write(folder.join("a.rs"), "2").unwrap();
        assert_ne!(stamp(), first);
        std::fs::write(folder.join("a.rs"), "1").unwrap();
        std::fs::rename(folder.join("a.rs"), folder.join("b.rs")).unwrap();
        assert_ne!(stamp(), first);
        remove_folder(&folder).unwrap();
    }

    #[test]
    fn an_interrupted_install_leaves_the_old_folder_and_the_next_one_succeeds() {
        let cache = Cache {
            root: folder("install"),
        };
        let old = cache
            .install("part", |path| Ok(std::fs::write(path.join("v"), "old")?))
            .unwrap();
        let failed = cache.install("part", |path| {
            std::fs::write(path.join("v"), "half")?;
            bail!("interrupted")
        });
        assert!(failed.is_err());
        assert_eq!(std::fs::read_to_string(old.join("v")).unwrap(), "old");
        cache
            .install("part", |path| {
                assert_eq!(std::fs::read_dir(path)?.count(), 0);
                Ok(std::fs::write(path.join("v"), "new")?)
            })
            .unwrap();
        assert_eq!(std::fs::read_to_string(old.join("v")).unwrap(), "new");
        remove_folder(&cache.root).unwrap();
    }

    #[test]
    fn a_stamp_file_matches_only_its_own_stamp() {
        let folder = folder("file");
        let file = folder.join("stamp");
        assert!(!stamp_matches(&file, "1"));
        write_atomically(&file, b"1\n").unwrap();
        assert!(stamp_matches(&file, "1"));
        assert!(!stamp_matches(&file, "2"));
        remove_folder(&folder).unwrap();
    }
}
