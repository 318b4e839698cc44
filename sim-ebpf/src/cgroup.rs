//! Finding cgroup2 and naming its cgroups as the kernel programs do.

use std::{
    fs, io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

/// The id by which the kernel knows the cgroup of this cgroup2 directory: its inode number.
///
/// # Errors
/// The directory can't be read.
pub fn cgroup_id(directory: impl AsRef<Path>) -> io::Result<u64> {
    Ok(fs::metadata(directory)?.ino())
}

/// Where cgroup2 is mounted: `/sys/fs/cgroup`, or `/sys/fs/cgroup/unified` where cgroup1 is mounted too.
///
/// # Errors
/// The mount table can't be read, or cgroup2 isn't in it ([`io::ErrorKind::NotFound`]).
pub fn cgroup2_mount() -> io::Result<PathBuf> {
    find_cgroup2(&fs::read_to_string("/proc/self/mounts")?)
        .ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "cgroup2 is not mounted"))
}

/// Whether the `io` controller is on cgroup2, so that the cgroup of a bio is a cgroup2 one.
pub(crate) fn io_on_cgroup2() -> bool {
    let controllers =
        cgroup2_mount().and_then(|root| fs::read_to_string(root.join("cgroup.controllers")));
    controllers.is_ok_and(|list| list.split_whitespace().any(|name| name == "io"))
}

fn find_cgroup2(mounts: &str) -> Option<PathBuf> {
    mounts.lines().find_map(|line| {
        let mut fields = line.split(' ');
        let (_, directory, kind) = (fields.next()?, fields.next()?, fields.next()?);
        // The mount table writes a space in a path as \040. Nobody mounts cgroup2 under such a path.
        (kind == "cgroup2").then(|| PathBuf::from(directory))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cgroup2_is_found_beside_cgroup1_and_alone() {
        let hybrid = "cgroup /sys/fs/cgroup/cpu cgroup rw,cpu 0 0\ncgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\n";
        assert_eq!(find_cgroup2(hybrid), Some("/sys/fs/cgroup/unified".into()));
        assert_eq!(
            find_cgroup2("cgroup2 /sys/fs/cgroup cgroup2 rw,nsdelegate 0 0\n"),
            Some("/sys/fs/cgroup".into())
        );
        assert_eq!(find_cgroup2("tmpfs /sys/fs/cgroup tmpfs ro 0 0\n"), None);
    }
}
