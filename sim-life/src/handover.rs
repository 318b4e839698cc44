//! How a node hands its array over: a Unix socket that gives whoever connects a descriptor.
//!
//! The connection then stays open, and its end tells the reader that the node is gone and the flags
//! stand still. Only the node's own user, and root, are given one; the descriptor can't write.

use crate::{LifeFlags, descriptors};
use nix::sys::socket::MsgFlags;
use std::{
    fs, io,
    os::{
        fd::{AsFd as _, AsRawFd as _, OwnedFd},
        unix::{
            fs::PermissionsExt as _,
            net::{UnixListener, UnixStream},
        },
    },
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

/// How long a reader waits for the descriptor.
const PATIENCE: Duration = Duration::from_secs(2);

/// A node's side. Removes its socket when dropped.
#[derive(Debug)]
pub struct Offer {
    path: PathBuf,
    listener: UnixListener,
    array: OwnedFd,
    readers: Vec<UnixStream>,
}

impl Offer {
    /// Listens at `path`, mode 0600, for readers of `array`. What stands there is removed.
    ///
    /// # Errors
    /// The path can't be used.
    pub fn new(path: &Path, array: OwnedFd) -> io::Result<Self> {
        match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let listener = UnixListener::bind(path)?;
        fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
        listener.set_nonblocking(true)?;
        Ok(Self {
            path: path.to_owned(),
            listener,
            array,
            readers: Vec::new(),
        })
    }

    /// Where readers come in: nonblocking, the same socket.
    ///
    /// # Errors
    /// No descriptor is to be had.
    pub fn listener(&self) -> io::Result<UnixListener> {
        self.listener.try_clone()
    }

    /// Gives whoever came in a descriptor.
    ///
    /// # Errors
    /// It is of another user, or gone already.
    pub fn give(&mut self, reader: UnixStream) -> io::Result<()> {
        self.readers.retain(is_open);
        descriptors::check_peer(&reader)?;
        reader.set_nonblocking(true)?;
        descriptors::send(&reader, b"L", &[self.array.as_fd()])?;
        self.readers.push(reader);
        Ok(())
    }
}

impl Drop for Offer {
    fn drop(&mut self) {
        // Gone already, or about to be with its directory.
        fs::remove_file(&self.path).ok();
    }
}

/// What a node gave.
#[derive(Debug)]
pub struct Taken {
    /// Its flags.
    pub flags: Arc<LifeFlags>,
    node: UnixStream,
}

impl Taken {
    /// Whether the node is still there: without it the flags stand still.
    #[must_use]
    pub fn is_open(&self) -> bool {
        is_open(&self.node)
    }
}

/// Takes the flags that a node offers at `path`.
///
/// # Errors
/// Nobody offers any there, in time, or what comes is something else.
pub fn take(path: &Path) -> io::Result<Taken> {
    let node = UnixStream::connect(path)?;
    node.set_read_timeout(Some(PATIENCE))?;
    let array = receive(&node)?;
    node.set_nonblocking(true)?;
    Ok(Taken {
        flags: Arc::new(LifeFlags::from_descriptor(&array)?),
        node,
    })
}

fn receive(node: &UnixStream) -> io::Result<OwnedFd> {
    let (_, received) = descriptors::receive(node, &mut [0])?;
    let last = received.into_iter().next_back();
    last.ok_or_else(|| io::Error::other("the node gave no descriptor"))
}

/// The other side has not gone.
fn is_open(stream: &UnixStream) -> bool {
    let mut byte = [0];
    match nix::sys::socket::recv(
        stream.as_raw_fd(),
        &mut byte,
        MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT,
    ) {
        Ok(0) => false,
        Ok(_) => true,
        Err(error) => error == nix::errno::Errno::EAGAIN,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reader_gets_the_descriptor_and_hears_of_the_end() {
        let dir = tempfile::tempdir().expect("dir");
        let path = dir.path().join("life.sock");
        let file = fs::File::open("/dev/null").expect("a file");
        let mut offer = Offer::new(&path, file.into()).expect("a socket");
        let reader = UnixStream::connect(&path).expect("connected");
        let (came, _) = offer.listener().expect("a socket").accept().expect("in");
        offer.give(came).expect("given");
        let got = receive(&reader).expect("a descriptor");
        let link = fs::read_link(format!("/proc/self/fd/{}", got.as_raw_fd())).expect("open");
        assert_eq!(link, Path::new("/dev/null"));
        assert!(is_open(&reader));
        drop(offer);
        assert!(!is_open(&reader) && !path.exists());
        let error = take(&path).expect_err("nobody is there");
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn what_is_no_array_of_flags_is_refused() {
        let dir = tempfile::tempdir().expect("dir");
        let path = dir.path().join("life.sock");
        let file = fs::File::open("/dev/null").expect("a file");
        let mut offer = Offer::new(&path, file.into()).expect("a socket");
        let taking = std::thread::spawn({
            let path = path.clone();
            move || take(&path).map(drop)
        });
        let listener = offer.listener().expect("a socket");
        listener.set_nonblocking(false).expect("blocking");
        let (came, _) = listener.accept().expect("in");
        offer.give(came).expect("given");
        let error = taking.join().expect("joined").expect_err("no array");
        assert!(error.to_string().contains("no array"), "{error}");
    }
}
