//! Reading the same small files of the kernel's again and again.
//!
//! A read of a cgroup's file costs more in finding it by its path than in the reading. So an instance's
//! files are kept open: one system call each and tick. Never more than half of the descriptors that this
//! process may have; what is beyond that is opened each time.

use nix::sys::resource::{Resource, getrlimit};
use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

/// Enough for all but `memory.stat` of kernels to come.
const BUFFER_BYTES: usize = 4096;

/// Of a file whose cgroup is gone.
const ENODEV: i32 = nix::errno::Errno::ENODEV as i32;
/// Of a pressure file where pressure is not accounted for.
const EOPNOTSUPP: i32 = nix::errno::Errno::EOPNOTSUPP as i32;

/// Files kept open by this process.
static KEPT: AtomicU64 = AtomicU64::new(0);

/// Files of one cgroup, or of many in turn.
#[derive(Debug, Default)]
pub struct StatFiles {
    /// `None` for one that isn't there: a cgroup's files come and go with its controllers, which are set
    /// before an instance starts.
    kept: Option<HashMap<PathBuf, Option<File>>>,
    buffer: Vec<u8>,
}

impl StatFiles {
    /// Opens each file each time: for whoever reads more cgroups than there are descriptors.
    #[must_use]
    pub fn opened_anew() -> Self {
        Self::default()
    }

    /// Keeps the files open.
    #[must_use]
    pub fn kept_open() -> Self {
        Self {
            kept: Some(HashMap::new()),
            buffer: Vec::new(),
        }
    }

    /// Content of the file; empty where there is none, or where its cgroup is gone.
    ///
    /// # Errors
    /// It is there and can't be read, as when descriptors have run out: that is not the same as 0.
    pub(crate) fn read(&mut self, path: &Path) -> io::Result<&str> {
        let length = match self.fill(path) {
            Ok(length) => length,
            Err(error) if is_gone(&error) => 0,
            Err(error) => return Err(error),
        };
        let bytes = self.buffer.get(..length).unwrap_or_default();
        std::str::from_utf8(bytes)
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
    }

    fn fill(&mut self, path: &Path) -> io::Result<usize> {
        let Some(kept) = &mut self.kept else {
            return read_whole(&File::open(path)?, &mut self.buffer);
        };
        if let Some(file) = kept.get(path) {
            let file = file.as_ref().ok_or(io::ErrorKind::NotFound)?;
            return read_whole(file, &mut self.buffer);
        }
        match File::open(path) {
            Ok(file) => {
                let length = read_whole(&file, &mut self.buffer);
                // Relaxed: a count, by which nothing else is ordered.
                if KEPT.fetch_add(1, Ordering::Relaxed) < kept_max() {
                    kept.insert(path.to_owned(), Some(file));
                } else {
                    KEPT.fetch_sub(1, Ordering::Relaxed);
                }
                length
            }
            Err(error) => {
                if error.kind() == io::ErrorKind::NotFound {
                    kept.insert(path.to_owned(), None);
                }
                Err(error)
            }
        }
    }
}

impl Drop for StatFiles {
    fn drop(&mut self) {
        let open = |kept: &HashMap<_, Option<File>>| kept.values().flatten().count();
        let count = self.kept.as_ref().map_or(0, open) as u64;
        // Relaxed: a count, by which nothing else is ordered.
        KEPT.fetch_sub(count, Ordering::Relaxed);
    }
}

/// No such file, or one whose cgroup or feature is not there (any more).
fn is_gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound
        || matches!(error.raw_os_error(), Some(ENODEV | EOPNOTSUPP))
}

/// The kernel writes a cgroup's file in one go: a read that doesn't fill the buffer has all of it.
fn read_whole(file: &File, buffer: &mut Vec<u8>) -> io::Result<usize> {
    if buffer.is_empty() {
        buffer.resize(BUFFER_BYTES, 0);
    }
    let mut length = 0;
    loop {
        let room = buffer.get_mut(length..).unwrap_or_default();
        let room_bytes = room.len();
        let read = file.read_at(room, length as u64)?;
        length += read;
        if read < room_bytes {
            return Ok(length);
        }
        buffer.resize(buffer.len() * 2, 0);
    }
}

fn kept_max() -> u64 {
    static MAX: OnceLock<u64> = OnceLock::new();
    *MAX.get_or_init(|| getrlimit(Resource::RLIMIT_NOFILE).map_or(0, |(soft, _)| soft / 2))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn a_file_is_read_anew_each_time_however_long_it_gets() {
        let dir = tempfile::tempdir().expect("dir");
        let (path, missing) = (dir.path().join("stat"), dir.path().join("none"));
        for mut files in [StatFiles::kept_open(), StatFiles::opened_anew()] {
            fs::write(&path, "usage 1\n").expect("written");
            assert_eq!(files.read(&path).expect("read"), "usage 1\n");
            assert_eq!(files.read(&missing).expect("read"), "");
            assert_eq!(files.read(&missing).expect("read"), "");
            let long = "x".repeat(3 * BUFFER_BYTES);
            fs::write(&path, &long).expect("written");
            assert_eq!(files.read(&path).expect("read"), long);
            fs::write(&path, "short").expect("written");
            assert_eq!(files.read(&path).expect("read"), "short");
        }
    }

    #[test]
    fn what_is_there_and_cannot_be_read_is_an_error_and_not_empty() {
        let dir = tempfile::tempdir().expect("dir");
        for mut files in [StatFiles::kept_open(), StatFiles::opened_anew()] {
            // A directory opens, and doesn't read.
            assert!(files.read(dir.path()).is_err());
        }
    }

    #[test]
    fn kept_files_are_counted_and_given_back() {
        let dir = tempfile::tempdir().expect("dir");
        let mut files = StatFiles::kept_open();
        for name in ["a", "b"] {
            fs::write(dir.path().join(name), name).expect("written");
            files.read(&dir.path().join(name)).expect("read");
        }
        let kept = files.kept.as_ref().expect("kept");
        assert_eq!(kept.values().flatten().count(), 2);
        assert!(KEPT.load(Ordering::Relaxed) >= 2);
    }
}
