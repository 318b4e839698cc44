//! What more than one test does to the kernel, and asks it.

use super::{Actor, Cgroup};
use std::{
    collections::HashSet,
    fs,
    net::{TcpListener, TcpStream},
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    process::Command,
};

pub(crate) fn program_ids() -> HashSet<u32> {
    // One that goes while the list is read gives an error; it isn't there, which is the answer.
    aya::programs::loaded_programs()
        .filter_map(Result::ok)
        .map(|program| program.id())
        .collect()
}

/// Lets an actor in `cgroup` write a file with direct I/O; the file.
pub(crate) fn write_direct_in(cgroup: &Cgroup) -> PathBuf {
    let name = cgroup.path.file_name().unwrap().to_str().unwrap();
    let file = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    let mut actor = Actor::start(cgroup, &format!("write-direct {}", file.display()));
    actor.go();
    actor.done();
    file
}

/// A block device of a file's, as slow as the file.
pub(crate) struct Loop {
    pub(crate) device: PathBuf,
    file: PathBuf,
}

impl Loop {
    pub(crate) fn new(name: &str, bytes: u64) -> Self {
        let name = format!("{name}-{}", std::process::id());
        let file = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
        // Written, so that no block is allocated later.
        fs::write(&file, vec![0; bytes.try_into().unwrap()]).unwrap();
        let mut losetup = Command::new("losetup");
        losetup
            .args(["--find", "--show", "--direct-io=on"])
            .arg(&file);
        let output = losetup.output().unwrap();
        assert!(output.status.success(), "{output:?}");
        let device = String::from_utf8(output.stdout).unwrap().trim().into();
        Self { device, file }
    }

    /// Holds what processes of `cgroup` write to the disk below to so many bytes a second; the cgroup to
    /// join for it, where that isn't the same.
    pub(crate) fn throttle(&self, cgroup: &Cgroup, bytes_per_second: u32) -> Option<Cgroup> {
        let disk = self.disk();
        if let Some(mount) = cgroup1_mount("blkio") {
            let limited = Cgroup::below(&mount, "throttle");
            let file = limited.path.join("blkio.throttle.write_bps_device");
            fs::write(file, format!("{disk} {bytes_per_second}")).unwrap();
            return Some(limited);
        }
        fs::write(
            cgroup.path.join("io.max"),
            format!("{disk} wbps={bytes_per_second}"),
        )
        .unwrap();
        None
    }

    /// Major and minor number of the whole disk below.
    fn disk(&self) -> String {
        let device = fs::metadata(&self.file).unwrap().dev();
        let (major, minor) = (libc::major(device), libc::minor(device));
        let own = PathBuf::from(format!("/sys/dev/block/{major}:{minor}"));
        let disk = if own.join("partition").exists() {
            own.join("..")
        } else {
            own
        };
        fs::read_to_string(disk.join("dev"))
            .unwrap()
            .trim()
            .to_owned()
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        Command::new("losetup")
            .arg("--detach")
            .arg(&self.device)
            .status()
            .ok();
        fs::remove_file(&self.file).ok();
    }
}

/// An actor in `cgroup` that has begun to send `bytes`, and our end.
pub(crate) fn sender(cgroup: &Cgroup, bytes: u64) -> (Actor, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let mut actor = Actor::start(cgroup, &format!("send {port} {bytes}"));
    actor.go();
    let (stream, _) = listener.accept().unwrap();
    (actor, stream)
}

pub(crate) fn cgroup1_mount(controller: &str) -> Option<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    mounts.lines().find_map(|line| {
        let fields: Vec<_> = line.split(' ').collect();
        let here = fields[2] == "cgroup" && fields[3].split(',').any(|option| option == controller);
        here.then(|| PathBuf::from(fields[1]))
    })
}

/// A socket filter that accepts no byte: the segments arrive and are dropped before TCP sees them.
#[allow(unsafe_code, reason = "no safe API attaches a classic socket filter")]
pub(crate) fn drop_all_segments(stream: &TcpStream) {
    use std::os::fd::AsRawFd as _;
    // BPF_RET | BPF_K: return 0.
    let mut filter = [libc::sock_filter {
        code: 6,
        jt: 0,
        jf: 0,
        k: 0,
    }];
    let program = libc::sock_fprog {
        len: 1,
        filter: filter.as_mut_ptr(),
    };
    // SAFETY: the option's value is a `sock_fprog` whose filter outlives the call.
    let result = unsafe {
        libc::setsockopt(
            stream.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_FILTER,
            (&raw const program).cast(),
            size_of_val(&program) as libc::socklen_t,
        )
    };
    assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
}
