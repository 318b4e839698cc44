//! The guest's files: a cpio archive that the kernel unpacks into its first file system.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use cpio::newc::{Builder, ModeFileType, trailer};

use crate::context::Context;
use crate::process;

/// An archive that is being written.
pub(super) struct Initramfs<W: Write> {
    out: W,
    folders: BTreeSet<PathBuf>,
    libraries: BTreeSet<PathBuf>,
    entries: u32,
}

impl Initramfs<BufWriter<File>> {
    pub(super) fn create(file: &Path) -> Result<Self> {
        let out = File::create(file).with_context(|| file.display().to_string())?;
        Ok(Self::new(BufWriter::new(out)))
    }
}

impl<W: Write> Initramfs<W> {
    pub(super) fn new(out: W) -> Self {
        Self {
            out,
            folders: BTreeSet::new(),
            libraries: BTreeSet::new(),
            entries: 0,
        }
    }

    /// Adds a file that anyone may read and execute, and the folders it is in.
    pub(super) fn add(&mut self, to: &Path, content: &[u8]) -> Result<()> {
        let to = to.strip_prefix("/").unwrap_or(to);
        let mut folders: Vec<&Path> = to.ancestors().skip(1).collect();
        folders.reverse();
        for folder in folders.into_iter().filter(|path| *path != Path::new("")) {
            if self.folders.insert(folder.to_owned()) {
                self.entry(folder, ModeFileType::Directory, &[])?;
            }
        }
        self.entry(to, ModeFileType::Regular, content)
    }

    /// Adds a copy of a file of this machine.
    pub(super) fn add_copy(&mut self, from: &Path, to: &Path) -> Result<()> {
        let content = std::fs::read(from).with_context(|| from.display().to_string())?;
        self.add(to, &content)
    }

    /// Adds a program of this machine at `to`, and at their own paths the shared libraries that it needs.
    pub(super) fn add_program(&mut self, context: &Context, from: &Path, to: &str) -> Result<()> {
        self.add_copy(from, Path::new(to))?;
        let said = process::output(context.command("ldd").arg(from))?;
        for library in libraries(&said) {
            if self.libraries.insert(library.clone()) {
                self.add_copy(&library, &library)?;
            }
        }
        Ok(())
    }

    pub(super) fn finish(self) -> Result<W> {
        let mut out = trailer(self.out)?;
        out.flush()?;
        Ok(out)
    }

    fn entry(&mut self, path: &Path, kind: ModeFileType, content: &[u8]) -> Result<()> {
        let name = path.to_str().context("a path that is no text")?;
        let size = u32::try_from(content.len()).with_context(|| format!("{name} is too large"))?;
        self.entries += 1;
        let mut writer = Builder::new(name)
            // Equal numbers would be links to one file.
            .ino(self.entries)
            .mode(0o755)
            .set_mode_file_type(kind)
            .write(&mut self.out, size);
        writer.write_all(content)?;
        writer.finish().map(drop).with_context(|| name.to_owned())
    }
}

/// Paths in what `ldd` says; the kernel's own (vdso) has none.
fn libraries(ldd: &str) -> Vec<PathBuf> {
    ldd.lines()
        .filter_map(|line| {
            let found = line.split_once("=> ").map_or(line, |(_, path)| path);
            let path = found.split_whitespace().next()?;
            path.starts_with('/').then(|| PathBuf::from(path))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::*;

    #[test]
    fn folders_come_before_what_is_in_them_and_only_once() {
        let mut archive = Initramfs::new(Vec::new());
        archive.add(Path::new("/init"), b"#!/bin/sh\n").unwrap();
        archive.add(Path::new("/a/b/one"), b"1").unwrap();
        archive.add(Path::new("a/b/two"), b"22").unwrap();
        let bytes = archive.finish().unwrap();
        let mut rest = bytes.as_slice();
        let mut seen = Vec::new();
        let mut numbers = BTreeSet::new();
        loop {
            let mut reader = cpio::newc::Reader::new(rest).unwrap();
            if reader.entry().is_trailer() {
                break;
            }
            let mut content = String::new();
            reader.read_to_string(&mut content).unwrap();
            assert!(numbers.insert(reader.entry().ino()));
            let name = reader.entry().name().to_owned();
            seen.push((name, reader.entry().mode(), content));
            rest = reader.finish().unwrap();
        }
        let expected = [
            ("init", 0o100_755, "#!/bin/sh\n"),
            ("a", 0o040_755, ""),
            ("a/b", 0o040_755, ""),
            ("a/b/one", 0o100_755, "1"),
            ("a/b/two", 0o100_755, "22"),
        ];
        let expected = expected.map(|(name, mode, text)| (name.to_owned(), mode, text.to_owned()));
        assert_eq!(seen, expected);
    }

    #[test]
    fn libraries_are_read_from_ldd() {
        let said = "\tlinux-vdso.so.1 (0x00007ffd)\n\
                    \tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f)\n\
                    \t/lib64/ld-linux-x86-64.so.2 (0x00007f)\n";
        assert_eq!(
            libraries(said),
            [
                PathBuf::from("/lib/x86_64-linux-gnu/libc.so.6"),
                PathBuf::from("/lib64/ld-linux-x86-64.so.2")
            ]
        );
        assert!(libraries("\tstatically linked\n").is_empty());
    }
}
