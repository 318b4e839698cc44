//! Where lines go.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

/// Where lines go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Destination {
    /// The process's standard output.
    Stdout,
    /// Its standard error.
    Stderr,
    /// A file, which is appended to. It is made with mode 0640, as it tells who asked for what.
    File(PathBuf),
}

impl Destination {
    /// Its name.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        match self {
            Self::Stdout => "stdout".into(),
            Self::Stderr => "stderr".into(),
            Self::File(path) => path.clone(),
        }
    }
}

/// The same, open.
#[derive(Debug)]
pub(super) enum Output {
    Stdout,
    Stderr,
    File {
        path: PathBuf,
        file: File,
        /// Device and number: what tells a file from another of its name.
        id: (u64, u64),
    },
}

impl Output {
    pub(super) fn open(to: &Destination) -> io::Result<Self> {
        match to {
            Destination::Stdout => Ok(Self::Stdout),
            Destination::Stderr => Ok(Self::Stderr),
            Destination::File(path) => {
                let file = open(path)?;
                let metadata = file.metadata()?;
                Ok(Self::File {
                    path: path.clone(),
                    id: (metadata.dev(), metadata.ino()),
                    file,
                })
            }
        }
    }

    pub(super) fn write(&mut self, lines: &[u8]) -> io::Result<()> {
        match self {
            Self::Stdout => {
                let mut stdout = io::stdout().lock();
                stdout.write_all(lines)?;
                stdout.flush()
            }
            Self::Stderr => io::stderr().lock().write_all(lines),
            Self::File { file, .. } => file.write_all(lines),
        }
    }

    /// Opens the file of its name again, if that is another one or none by now, or if `anyway`.
    pub(super) fn follow(&mut self, anyway: bool) -> io::Result<()> {
        let Self::File { path, id, .. } = self else {
            return Ok(());
        };
        let same = std::fs::metadata(&*path).is_ok_and(|now| (now.dev(), now.ino()) == *id);
        if same && !anyway {
            return Ok(());
        }
        let to = Destination::File(path.clone());
        *self = Self::open(&to)?;
        Ok(())
    }
}

fn open(path: &Path) -> io::Result<File> {
    // To open the writing end alone would wait for a reader.
    let is_pipe = std::fs::metadata(path).is_ok_and(|found| found.file_type().is_fifo());
    OpenOptions::new()
        .append(true)
        .read(is_pipe)
        .create(!is_pipe)
        .mode(0o640)
        .open(path)
}
