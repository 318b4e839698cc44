//! The simplest reader there can be, of text that has one reading.

/// A head. Bytes are characters of the same number, so that any are text.
#[derive(Debug)]
pub(super) struct Plain {
    pub(super) line: String,
    /// Names and values, without the blanks around these.
    pub(super) fields: Vec<(String, String)>,
}

impl Plain {
    /// # Panics
    /// Where it isn't lines that end with CR LF, of which the last is empty and each but the first has a colon.
    pub(super) fn of(head: &[u8]) -> Self {
        let head: String = head.iter().copied().map(char::from).collect();
        let head = head.strip_suffix("\r\n\r\n").expect("an empty line");
        let mut lines = head.split("\r\n");
        let line = lines.next().expect("a line").to_owned();
        assert!(!line.contains(['\r', '\n']));
        let field = |line: &str| {
            assert!(!line.is_empty() && !line.contains(['\r', '\n']), "{line:?}");
            let (name, value) = line.split_once(':').expect("a colon");
            assert!(!name.is_empty() && !name.contains([' ', '\t']), "{name:?}");
            (name.to_owned(), value.trim_matches([' ', '\t']).to_owned())
        };
        Self {
            line,
            fields: lines.map(field).collect(),
        }
    }

    pub(super) fn values(&self, wanted: &str) -> Vec<&str> {
        let fields = self.fields.iter();
        let named = fields.filter(|(name, _)| name.eq_ignore_ascii_case(wanted));
        named.map(|(_, value)| &**value).collect()
    }
}

/// Length and data of the chunked body at the start of `bytes`, if it is whole.
pub(super) fn chunked(bytes: &[u8]) -> Option<(usize, Vec<u8>)> {
    let mut rest = bytes;
    let mut data = Vec::new();
    loop {
        let line = take_line(&mut rest)?;
        let size = line.split(|&byte| byte == b';').next()?.trim_ascii_end();
        let size = std::str::from_utf8(size).ok()?;
        if !size.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return None;
        }
        let size = usize::from_str_radix(size, 16).ok()?;
        if size == 0 {
            break;
        }
        data.extend_from_slice(rest.get(..size)?);
        rest = rest.get(size..)?.strip_prefix(b"\r\n")?;
    }
    while !take_line(&mut rest)?.is_empty() {}
    Some((bytes.len() - rest.len(), data))
}

fn take_line<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let end = rest.windows(2).position(|two| two == b"\r\n")?;
    let line = &rest[..end];
    *rest = &rest[end + 2..];
    Some(line)
}
