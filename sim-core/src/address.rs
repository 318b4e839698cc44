//! Where an instance listens.

use alloc::string::{String, ToString};
use alloc::sync::Arc;
use core::fmt;
use core::net::{IpAddr, SocketAddr, SocketAddrV4, SocketAddrV6};
use core::str::FromStr;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// What stands before the path of a socket.
const UNIX: &str = "unix:";
/// Longest path of a socket, bytes: what Linux takes, less the byte that ends it (unix(7)).
const PATH_BYTES_MAX: usize = 107;

/// An address and a port, or the path of a Unix socket.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Address {
    /// TCP.
    Inet(SocketAddr),
    /// A Unix socket, by a path as [`Address::unix`] takes it.
    Unix(Arc<str>),
}

/// Why a text is no address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AddressError;

impl fmt::Display for AddressError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "an address is ip:port, or unix: and an absolute path of at most {PATH_BYTES_MAX} bytes without control characters"
        )
    }
}

impl core::error::Error for AddressError {}

impl Address {
    /// The Unix socket at `path`, which is absolute: each process has a directory of its own.
    ///
    /// # Errors
    /// [`AddressError`] says what is allowed.
    pub fn unix(path: &str) -> Result<Self, AddressError> {
        let good = path.starts_with('/')
            && !path.ends_with('/')
            && path.len() <= PATH_BYTES_MAX
            && !path.chars().any(char::is_control);
        good.then(|| Self::Unix(path.into())).ok_or(AddressError)
    }

    /// The address and port, if it has one.
    #[must_use]
    pub fn as_inet(&self) -> Option<SocketAddr> {
        match self {
            Self::Inet(address) => Some(*address),
            Self::Unix(_) => None,
        }
    }
}

impl From<SocketAddr> for Address {
    fn from(address: SocketAddr) -> Self {
        Self::Inet(address)
    }
}

impl<I: Into<IpAddr>> From<(I, u16)> for Address {
    fn from(pieces: (I, u16)) -> Self {
        Self::Inet(pieces.into())
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Inet(address) => address.fmt(f),
            Self::Unix(path) => write!(f, "{UNIX}{path}"),
        }
    }
}

impl FromStr for Address {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        match text.strip_prefix(UNIX) {
            Some(path) => Self::unix(path),
            None => text.parse().map(Self::Inet).map_err(|_| AddressError),
        }
    }
}

/// In bytes: the first two are what serde makes of a [`SocketAddr`], so that snapshots from before there were Unix
/// sockets are read as they were written.
#[derive(Serialize, Deserialize)]
enum Stored {
    V4(SocketAddrV4),
    V6(SocketAddrV6),
    Unix(String),
}

impl Serialize for Address {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if serializer.is_human_readable() {
            return serializer.collect_str(self);
        }
        let stored = match self {
            Self::Inet(SocketAddr::V4(address)) => Stored::V4(*address),
            Self::Inet(SocketAddr::V6(address)) => Stored::V6(*address),
            Self::Unix(path) => Stored::Unix(path.to_string()),
        };
        stored.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Address {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        use serde::de::Error as _;
        if deserializer.is_human_readable() {
            let text = String::deserialize(deserializer)?;
            return text.parse().map_err(D::Error::custom);
        }
        match Stored::deserialize(deserializer)? {
            Stored::V4(address) => Ok(Self::Inet(address.into())),
            Stored::V6(address) => Ok(Self::Inet(address.into())),
            Stored::Unix(path) => Self::unix(&path).map_err(D::Error::custom),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec::Vec;

    #[test]
    fn text_is_read_as_it_is_written_and_what_is_no_address_is_refused() {
        for text in ["10.0.0.1:80", "[::1]:8080", "unix:/run/sim/i7.sock"] {
            let address: Address = text.parse().expect(text);
            assert_eq!(address.to_string(), text);
            let json = serde_json::to_string(&address).expect("text");
            assert_eq!(json, alloc::format!("\"{text}\""));
            assert_eq!(
                serde_json::from_str::<Address>(&json).expect("same"),
                address
            );
        }
        let long = alloc::format!("unix:/{}", "a".repeat(107));
        for bad in [
            "",
            "10.0.0.1",
            "localhost:80",
            "/run/a.sock",
            "unix:",
            "unix:a.sock",
            "unix:/",
            "unix:/run/",
            "unix:/a\0b",
            "unix:/a\nb",
            &long,
        ] {
            assert_eq!(bad.parse::<Address>(), Err(AddressError), "{bad:?}");
        }
        assert!(long[..112].parse::<Address>().is_ok());
    }

    #[test]
    fn bytes_of_before_there_were_unix_sockets_are_read_and_written_the_same() {
        for text in ["10.0.0.1:80", "[2001:db8::1]:65535"] {
            let before: SocketAddr = text.parse().expect(text);
            let bytes: Vec<u8> = postcard::to_allocvec(&before).expect("bytes");
            let address: Address = postcard::from_bytes(&bytes).expect("the same");
            assert_eq!(address, before.into());
            assert_eq!(postcard::to_allocvec(&address).expect("bytes"), bytes);
        }
        let unix = Address::unix("/run/a.sock").expect("valid");
        let bytes = postcard::to_allocvec(&unix).expect("bytes");
        assert_eq!(postcard::from_bytes::<Address>(&bytes), Ok(unix));
    }
}
