//! Identities. A name is what the operator wrote; an instance id is never used twice.

use alloc::sync::Arc;
use core::fmt;
use serde::{Deserialize, Serialize};

/// Why a name was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NameError;

impl fmt::Display for NameError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a name is 1 to 63 characters of a-z, A-Z, 0-9, '-', '_' or '.'")
    }
}

impl core::error::Error for NameError {}

fn is_valid(name: &str) -> bool {
    (1..=63).contains(&name.len())
        && name
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
        && name != "."
        && name != ".."
}

macro_rules! name {
    ($(#[$doc:meta])* $type:ident) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
        pub struct $type(Arc<str>);

        impl $type {
            /// Takes 1 to 63 characters that are safe in paths, labels and host names.
            ///
            /// # Errors
            /// [`NameError`] says what is allowed.
            pub fn new(name: &str) -> Result<Self, NameError> {
                if is_valid(name) { Ok(Self(Arc::from(name))) } else { Err(NameError) }
            }

            /// The name as written.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: serde::Deserializer<'de>>(de: D) -> Result<Self, D::Error> {
                let text = alloc::string::String::deserialize(de)?;
                Self::new(&text).map_err(serde::de::Error::custom)
            }
        }
    };
}

name!(
    /// Names one service behind one address.
    WorkloadName
);
name!(
    /// Names one machine of the pool.
    ServerName
);
name!(
    /// Names one proxy process.
    ProxyName
);

/// One running copy of a workload on one server. Ids only rise; a restart is a new instance.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct InstanceId(pub u64);

impl fmt::Display for InstanceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "i{}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_would_escape_a_path_or_a_label_are_refused() {
        for bad in ["", ".", "..", "a/b", "a b", "a\"b", &"x".repeat(64)] {
            assert_eq!(WorkloadName::new(bad), Err(NameError), "{bad:?}");
        }
        assert!(WorkloadName::new("web-1.eu_x").is_ok());
    }
}
