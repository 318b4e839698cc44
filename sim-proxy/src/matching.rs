//! Which workload a request is for: by its host, the beginning of its path, and fields that it brings.
//!
//! Of all the workloads' conditions that hold the most specific one decides: an exact host goes before a wildcard, a
//! longer wildcard before a shorter one, any host last; then the longer path; then more fields; then whichever stands
//! first in the configuration.
//!
//! Paths are compared as RFC 3986 (section 6.2.2) says that two are the same: `%61` is `a`, `%2F` is no `/`, and nothing
//! else is changed, `//` neither. A path with a dot segment, in whichever disguise, is nobody's: an instance that
//! resolves it would serve what its path doesn't give out, and every user's program resolves it before it asks.

use std::fmt;

/// Longest host name (RFC 1035, section 3.1), bytes.
const HOST_BYTES_MAX: usize = 253;

/// What is wrong with a condition: what it was about, and what is allowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{part}: {allowed}")]
pub struct Wrong {
    /// `host`, `path` or `header`.
    pub part: &'static str,
    /// What is allowed.
    pub allowed: &'static str,
}

/// What a request must have, all of it, to be a workload's.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Condition {
    host: Host,
    /// Without a slash at its end; empty: any.
    path: Box<[u8]>,
    /// Names in lower case, sorted.
    fields: Box<[(Box<str>, Box<str>)]>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
enum Host {
    /// In lower case.
    Exact(Box<str>),
    /// Whatever ends like this, which begins with a dot.
    Below(Box<str>),
    #[default]
    Any,
}

impl Condition {
    /// A host is a name, or `*.` and a name; without port. A path is met by whatever has its segments first.
    ///
    /// # Errors
    /// What is wrong.
    pub fn new<'a>(
        host: Option<&str>,
        path: Option<&str>,
        fields: impl IntoIterator<Item = (&'a str, &'a str)>,
    ) -> Result<Self, Wrong> {
        let fields = fields.into_iter().map(|(name, value)| field(name, value));
        let mut fields = fields.collect::<Result<Vec<_>, _>>()?;
        fields.sort_unstable();
        if fields.windows(2).any(|pair| pair[0].0 == pair[1].0) {
            return Err(Wrong {
                part: "header",
                allowed: "a name must stand once, in whichever case",
            });
        }
        Ok(Self {
            host: host.map_or(Ok(Host::Any), Host::new)?,
            path: path.map_or(Ok(Box::default()), prefix)?,
            fields: fields.into(),
        })
    }

    /// More specific comes first.
    fn rank(&self) -> impl Ord + use<> {
        let host = match &self.host {
            Host::Exact(_) => (0, 0),
            Host::Below(name) => (1, usize::MAX - name.len()),
            Host::Any => (2, 0),
        };
        let rest = (self.path.len(), self.fields.len());
        (host, std::cmp::Reverse(rest))
    }

    fn holds(&self, host: &[u8], path: &[u8], has: &impl Fn(&str, &[u8]) -> bool) -> bool {
        self.host.is_of(host)
            && is_below(path, &self.path)
            && self
                .fields
                .iter()
                .all(|(name, value)| has(name, value.as_bytes()))
    }
}

impl fmt::Display for Condition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.host {
            Host::Exact(name) => f.write_str(name)?,
            Host::Below(name) => write!(f, "*{name}")?,
            Host::Any => f.write_str("*")?,
        }
        write!(f, "{}/", String::from_utf8_lossy(&self.path))?;
        for (name, value) in &self.fields {
            write!(f, " {name}: {value}")?;
        }
        Ok(())
    }
}

impl Host {
    fn new(text: &str) -> Result<Self, Wrong> {
        let wrong = Wrong {
            part: "host",
            allowed: "must be a name such as \"shop.example\" or \"*.shop.example\", without a port",
        };
        let name = text.strip_prefix("*.").unwrap_or(text);
        let is_label = |label: &str| {
            let good = |byte: u8| byte.is_ascii_alphanumeric() || b"-_".contains(&byte);
            !label.is_empty() && label.bytes().all(good)
        };
        let is_address = || {
            let inner = name
                .strip_prefix('[')
                .and_then(|rest| rest.strip_suffix(']'));
            inner.is_some_and(|inner| inner.parse::<std::net::Ipv6Addr>().is_ok())
        };
        let good = name.len() <= HOST_BYTES_MAX
            && (name.split('.').all(is_label) || name == text && is_address());
        if !good {
            return Err(wrong);
        }
        let name = text.to_ascii_lowercase();
        Ok(match name.strip_prefix('*') {
            Some(below) => Self::Below(below.into()),
            None => Self::Exact(name.into()),
        })
    }

    fn is_of(&self, host: &[u8]) -> bool {
        match self {
            Self::Any => true,
            Self::Exact(name) => host.eq_ignore_ascii_case(name.as_bytes()),
            Self::Below(name) => {
                let at = host.len().saturating_sub(name.len());
                at > 0 && host[at..].eq_ignore_ascii_case(name.as_bytes())
            }
        }
    }
}

/// The host of an authority or of a `Host` field: without port, and without the dot that a full name may end with.
fn host_of(authority: &[u8]) -> &[u8] {
    let port = authority.iter().rposition(|&byte| byte == b':');
    let port = port.filter(|&at| authority[at + 1..].iter().all(u8::is_ascii_digit));
    let host = &authority[..port.unwrap_or(authority.len())];
    host.strip_suffix(b".").unwrap_or(host)
}

fn prefix(text: &str) -> Result<Box<[u8]>, Wrong> {
    let wrong = Wrong {
        part: "path",
        allowed: "must begin with '/' and have neither '?', '#', blanks nor dot segments",
    };
    let bytes = text.as_bytes();
    let bad = |byte: &u8| !byte.is_ascii_graphic() || b"?#\\".contains(byte);
    if !text.starts_with('/') || bytes.iter().any(bad) || has_dot_segment(bytes) {
        return Err(wrong);
    }
    let mut rest = bytes.strip_suffix(b"/").unwrap_or(bytes);
    let mut path = Vec::with_capacity(rest.len());
    while let Some((character, after)) = next(rest) {
        match character {
            Character::Itself(byte) => path.push(byte),
            Character::Encoded(byte) => path.extend_from_slice(format!("%{byte:02X}").as_bytes()),
        }
        rest = after;
    }
    Ok(path.into())
}

fn field(name: &str, value: &str) -> Result<(Box<str>, Box<str>), Wrong> {
    let allowed = match http::HeaderName::from_bytes(name.as_bytes()) {
        Err(_) => "a name must be of a-z, A-Z, 0-9 and !#$%&'*+-.^_`|~",
        Ok(name) if name == http::header::HOST => "must not name the host; give host = \"...\"",
        Ok(_) if value.bytes().any(|byte| !(b' '..=b'~').contains(&byte)) => {
            "a value must be of printable ASCII"
        }
        Ok(_) if value.trim() != value => "a value must not begin or end with a blank",
        Ok(name) => return Ok((name.as_str().into(), value.into())),
    };
    Err(Wrong {
        part: "header",
        allowed,
    })
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Character {
    Itself(u8),
    /// Percent-encoded, and not the same as itself.
    Encoded(u8),
}

/// The next character of a path, and what follows it.
fn next(path: &[u8]) -> Option<(Character, &[u8])> {
    let (&byte, rest) = path.split_first()?;
    let Some(value) = (byte == b'%').then(|| encoded(rest)).flatten() else {
        return Some((Character::Itself(byte), rest));
    };
    let is_unreserved = value.is_ascii_alphanumeric() || b"-._~".contains(&value);
    let character = if is_unreserved {
        Character::Itself(value)
    } else {
        Character::Encoded(value)
    };
    Some((character, &rest[2..]))
}

/// The byte that the two digits behind a `%` stand for.
fn encoded(digits: &[u8]) -> Option<u8> {
    let digit = |at: usize| char::from(*digits.get(at)?).to_digit(16);
    Some((digit(0)? << 4 | digit(1)?) as u8)
}

/// Whether the segments of `prefix` are the first of `path`.
fn is_below(mut path: &[u8], mut prefix: &[u8]) -> bool {
    while let Some((wanted, after)) = next(prefix) {
        match next(path) {
            Some((found, rest)) if found == wanted => path = rest,
            _ => return false,
        }
        prefix = after;
    }
    matches!(path.first(), None | Some(b'/'))
}

/// Whether a segment is `.` or `..` for anybody who decodes before he divides, takes `\` for `/`, or drops what stands
/// behind a `;`.
fn has_dot_segment(path: &[u8]) -> bool {
    // Hardly a path has either, and to see that takes a fraction of the time.
    let begins = |pair: &[u8]| pair[1] == b'.' && matches!(pair[0], b'/' | b'\\');
    if !path.contains(&b'%') && !path.windows(2).any(begins) {
        return false;
    }
    // Dots of the segment so far, if it is nothing else.
    let (mut dots, mut rest) = (None, path);
    let is_one = |dots| matches!(dots, Some(1 | 2));
    while let Some((Character::Itself(byte) | Character::Encoded(byte), after)) = next(rest) {
        rest = after;
        dots = match byte {
            b'/' | b'\\' if is_one(dots) => return true,
            b';' if is_one(dots) => return true,
            b'/' | b'\\' => Some(0),
            b'.' => dots.map(|dots| dots + 1_u32),
            _ => None,
        };
    }
    is_one(dots)
}

/// What was found for a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Found {
    /// Its workload, by its place in the list.
    Workload(usize),
    /// None has a condition that holds.
    None,
    /// Its path has two readings.
    DotSegment,
}

/// The conditions of all workloads.
#[derive(Debug)]
pub(crate) struct Matcher {
    /// The most specific one first, with its workload's place in the list.
    lines: Box<[(Condition, usize)]>,
    /// Where all requests go.
    all: Option<usize>,
    looks_at_paths: bool,
}

impl Matcher {
    /// Of each workload's conditions, of which one must hold; all requests are the workload's that has none.
    pub(crate) fn new<'a>(workloads: impl IntoIterator<Item = &'a [Condition]>) -> Self {
        let mut lines: Vec<(Condition, usize)> = Vec::new();
        for (at, conditions) in workloads.into_iter().enumerate() {
            lines.extend(conditions.iter().map(|condition| (condition.clone(), at)));
            if conditions.is_empty() {
                lines.push((Condition::default(), at));
            }
        }
        lines.sort_by_key(|(condition, _)| condition.rank());
        let all = match lines.first() {
            Some((first, at)) if *first == Condition::default() => Some(*at),
            _ => None,
        };
        Self {
            looks_at_paths: lines.iter().any(|(line, _)| !line.path.is_empty()),
            lines: lines.into(),
            all,
        }
    }

    /// The workload of a request for `path` (with or without a query) of `authority`. `has` tells whether it has a
    /// field with that name, in lower case, and that value.
    #[inline]
    pub(crate) fn find(
        &self,
        authority: &[u8],
        path: &[u8],
        has: impl Fn(&str, &[u8]) -> bool,
    ) -> Found {
        match self.all {
            Some(at) => Found::Workload(at),
            None => self.look(authority, path, &has),
        }
    }

    fn look(&self, authority: &[u8], path: &[u8], has: &impl Fn(&str, &[u8]) -> bool) -> Found {
        let host = host_of(authority);
        let query = path.iter().position(|&byte| byte == b'?');
        let path = &path[..query.unwrap_or(path.len())];
        if self.looks_at_paths && has_dot_segment(path) {
            return Found::DotSegment;
        }
        let mut lines = self.lines.iter();
        lines
            .find(|(condition, _)| condition.holds(host, path, has))
            .map_or(Found::None, |(_, at)| Found::Workload(*at))
    }
}

/// The first condition that two of `workloads` have, and their places; a workload without any has the empty one.
#[must_use]
pub fn shared<'a>(
    workloads: impl IntoIterator<Item = &'a [Condition]>,
) -> Option<(Condition, [usize; 2])> {
    let lines = Matcher::new(workloads).lines;
    let mut pairs = lines.iter().enumerate();
    pairs.find_map(|(at, (condition, first))| {
        let mut later = lines[at + 1..].iter();
        let (_, second) = later.find(|(other, _)| other == condition)?;
        Some((condition.clone(), [*first, *second]))
    })
}

#[cfg(test)]
mod tests;
