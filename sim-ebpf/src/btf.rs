//! Where a member lies in a struct of the running kernel, from its BTF.
//!
//! A reader of our own because it needs one question answered: the crates that read BTF are either
//! private to a loader (aya-obj keeps struct members to itself) or under a licence that a statically
//! linked program can't carry along (btf-rs, LGPL). Format: the kernel's `Documentation/bpf/btf.rst`.
//!
//! Every access is checked: any bytes give an offset or an error, never a panic. Member chains are
//! bounded, since malformed BTF can refer to itself.

use std::collections::HashMap;

const MAGIC: u16 = 0xeb9f;
/// Anonymous members, typedefs and qualifiers nest no deeper than this in any real kernel.
const DEPTH_MAX: u32 = 16;

const KIND_INT: u32 = 1;
const KIND_ARRAY: u32 = 3;
const KIND_STRUCT: u32 = 4;
const KIND_UNION: u32 = 5;
const KIND_ENUM: u32 = 6;
const KIND_TYPEDEF: u32 = 8;
const KIND_VOLATILE: u32 = 9;
const KIND_CONST: u32 = 10;
const KIND_RESTRICT: u32 = 11;
const KIND_FUNC_PROTO: u32 = 13;
const KIND_VAR: u32 = 14;
const KIND_DATASEC: u32 = 15;
const KIND_DECL_TAG: u32 = 17;
const KIND_TYPE_TAG: u32 = 18;
const KIND_ENUM64: u32 = 19;
const KIND_LAST: u32 = KIND_ENUM64;

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum BtfError {
    #[error("the BTF is malformed: {0}")]
    Malformed(&'static str),
    #[error("the kernel has no struct {0}")]
    NoStruct(String),
    #[error("the kernel's struct {0} has no member {1}")]
    NoMember(String, String),
}

/// An indexed BTF blob.
#[derive(Debug)]
pub(crate) struct Btf {
    bytes: Vec<u8>,
    /// Where the record of each type id starts; id 0 is `void` and has none.
    records: Vec<usize>,
    /// Type id of each named struct that is defined (not only declared).
    structs: HashMap<String, u32>,
    strings: (usize, usize),
}

/// Head of a type record.
#[derive(Clone, Copy)]
struct Record {
    kind: u32,
    /// Number of members, values or parameters.
    length: u32,
    /// Whether member offsets also carry a bit-field size.
    bitfields: bool,
    name: u32,
    /// Size or referred type, depending on the kind.
    reference: u32,
    /// Where the kind's own data starts.
    data: usize,
}

impl Btf {
    pub(crate) fn parse(bytes: Vec<u8>) -> Result<Self, BtfError> {
        let truncated = || BtfError::Malformed("header");
        let magic = bytes
            .get(..2)
            .and_then(|b| b.try_into().ok())
            .map(u16::from_le_bytes);
        if magic != Some(MAGIC) {
            return Err(BtfError::Malformed("magic"));
        }
        let word = |at| word(&bytes, at).ok_or_else(truncated);
        let header = word(4)? as usize;
        let section = |offset: u32, length: u32| -> Option<(usize, usize)> {
            let start = header.checked_add(offset as usize)?;
            let end = start.checked_add(length as usize)?;
            (end <= bytes.len()).then_some((start, end))
        };
        let types = section(word(8)?, word(12)?).ok_or(BtfError::Malformed("type section"))?;
        let strings = section(word(16)?, word(20)?).ok_or(BtfError::Malformed("string section"))?;
        let mut this = Self {
            bytes,
            records: vec![0],
            structs: HashMap::new(),
            strings,
        };
        this.index(types)?;
        Ok(this)
    }

    /// Byte offset of `path` (member names joined by dots, embedded structs only) in struct `name`.
    pub(crate) fn offset(&self, name: &str, path: &str) -> Result<u32, BtfError> {
        let mut id = *self
            .structs
            .get(name)
            .ok_or_else(|| BtfError::NoStruct(name.to_owned()))?;
        let mut bits = 0_u32;
        for member in path.split('.') {
            let found = self.member(id, member, DEPTH_MAX)?;
            let (offset, kind) =
                found.ok_or_else(|| BtfError::NoMember(name.to_owned(), path.to_owned()))?;
            bits = bits
                .checked_add(offset)
                .ok_or(BtfError::Malformed("member offset"))?;
            id = kind;
        }
        if bits.is_multiple_of(8) {
            Ok(bits / 8)
        } else {
            Err(BtfError::Malformed("a bit field has no byte offset"))
        }
    }

    fn index(&mut self, (start, end): (usize, usize)) -> Result<(), BtfError> {
        let mut at = start;
        while at < end {
            let record = self.record_at(at)?;
            let id = u32::try_from(self.records.len())
                .map_err(|_| BtfError::Malformed("too many types"))?;
            self.records.push(at);
            if record.kind == KIND_STRUCT
                && let Some(name) = self.string(record.name).filter(|name| !name.is_empty())
            {
                let name = name.to_owned();
                self.structs.entry(name).or_insert(id);
            }
            let each = match record.kind {
                KIND_STRUCT | KIND_UNION | KIND_DATASEC | KIND_ENUM64 => 12,
                KIND_ENUM | KIND_FUNC_PROTO => 8,
                _ => 0,
            };
            let once = match record.kind {
                KIND_INT | KIND_VAR | KIND_DECL_TAG => 4,
                KIND_ARRAY => 12,
                kind if kind > KIND_LAST => {
                    return Err(BtfError::Malformed("unknown kind of type"));
                }
                _ => 0,
            };
            at = record.data + once + each * record.length as usize;
        }
        Ok(())
    }

    fn record_at(&self, at: usize) -> Result<Record, BtfError> {
        let word =
            |offset| word(&self.bytes, at + offset).ok_or(BtfError::Malformed("type record"));
        let (name, info, reference) = (word(0)?, word(4)?, word(8)?);
        Ok(Record {
            kind: info >> 24 & 0x1f,
            length: info & 0xffff,
            bitfields: info >> 31 == 1,
            name,
            reference,
            data: at + 12,
        })
    }

    fn record(&self, id: u32) -> Result<Option<Record>, BtfError> {
        match self.records.get(id as usize) {
            None => Err(BtfError::Malformed("type id")),
            Some(_) if id == 0 => Ok(None),
            Some(&at) => self.record_at(at).map(Some),
        }
    }

    /// Bit offset and type of a member, looked for in anonymous structs and unions too.
    fn member(&self, id: u32, name: &str, depth: u32) -> Result<Option<(u32, u32)>, BtfError> {
        let Some(depth) = depth.checked_sub(1) else {
            return Err(BtfError::Malformed("nesting"));
        };
        let Some(record) = self.record(id)? else {
            return Ok(None);
        };
        match record.kind {
            KIND_TYPEDEF | KIND_VOLATILE | KIND_CONST | KIND_RESTRICT | KIND_TYPE_TAG => {
                return self.member(record.reference, name, depth);
            }
            KIND_STRUCT | KIND_UNION => {}
            _ => return Ok(None),
        }
        for index in 0..record.length as usize {
            let word = |offset| {
                word(&self.bytes, record.data + 12 * index + offset)
                    .ok_or(BtfError::Malformed("member"))
            };
            let (member, kind, offset) = (word(0)?, word(4)?, word(8)?);
            let offset = if record.bitfields {
                offset & 0x00ff_ffff
            } else {
                offset
            };
            match self.string(member) {
                Some(found) if found == name => return Ok(Some((offset, kind))),
                Some("") => {
                    if let Some((inner, kind)) = self.member(kind, name, depth)? {
                        let sum = offset
                            .checked_add(inner)
                            .ok_or(BtfError::Malformed("member offset"))?;
                        return Ok(Some((sum, kind)));
                    }
                }
                _ => {}
            }
        }
        Ok(None)
    }

    fn string(&self, offset: u32) -> Option<&str> {
        let (start, end) = self.strings;
        let rest = self.bytes.get(start.checked_add(offset as usize)?..end)?;
        let length = rest.iter().position(|&byte| byte == 0)?;
        std::str::from_utf8(&rest[..length]).ok()
    }
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    let four = bytes.get(at..at.checked_add(4)?)?;
    four.try_into().ok().map(u32::from_le_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `struct outer { int a; struct { int b; struct inner c; }; }; struct inner { int x; int y:3; }`
    fn blob() -> Vec<u8> {
        let strings = b"\0int\0outer\0inner\0a\0b\0c\0x\0y\0";
        let name = |s: &str| {
            let needle = format!("\0{s}\0");
            strings
                .windows(needle.len())
                .position(|w| w == needle.as_bytes())
                .unwrap() as u32
                + 1
        };
        let kind = |kind: u32, length: u32, bitfields: bool| {
            kind << 24 | length | u32::from(bitfields) << 31
        };
        let words = [
            // 1: int
            [name("int"), kind(KIND_INT, 0, false), 4].as_slice(),
            &[32],
            // 2: struct inner
            &[name("inner"), kind(KIND_STRUCT, 2, true), 8],
            &[name("x"), 1, 0, name("y"), 1, 3 << 24 | 33],
            // 3: anonymous struct
            &[0, kind(KIND_STRUCT, 2, false), 12],
            &[name("b"), 1, 0, name("c"), 2, 32],
            // 4: struct outer
            &[name("outer"), kind(KIND_STRUCT, 2, false), 16],
            &[name("a"), 1, 0, 0, 3, 32],
        ]
        .concat();
        let types: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        let mut bytes = Vec::from(MAGIC.to_le_bytes());
        bytes.extend([1, 0]);
        for word in [
            24,
            0,
            types.len() as u32,
            types.len() as u32,
            strings.len() as u32,
        ] {
            bytes.extend(word.to_le_bytes());
        }
        bytes.extend(types);
        bytes.extend(strings);
        bytes
    }

    #[test]
    fn members_are_found_through_anonymous_and_embedded_structs() {
        let btf = Btf::parse(blob()).unwrap();
        assert_eq!(btf.offset("outer", "a"), Ok(0));
        assert_eq!(btf.offset("outer", "b"), Ok(4));
        assert_eq!(btf.offset("outer", "c.x"), Ok(8));
        assert_eq!(
            btf.offset("outer", "z"),
            Err(BtfError::NoMember("outer".into(), "z".into()))
        );
        assert_eq!(
            btf.offset("other", "a"),
            Err(BtfError::NoStruct("other".into()))
        );
        assert!(
            matches!(btf.offset("inner", "y"), Err(BtfError::Malformed(_))),
            "a bit field"
        );
    }

    #[test]
    fn damaged_bytes_never_panic() {
        let good = blob();
        for length in 0..good.len() {
            exercise(good[..length].to_vec());
        }
        for at in 0..good.len() {
            for value in [0, 1, 4, 5, 0x7f, 0xff] {
                let mut bytes = good.clone();
                bytes[at] = value;
                exercise(bytes);
            }
        }
    }

    fn exercise(bytes: Vec<u8>) {
        if let Ok(btf) = Btf::parse(bytes) {
            for path in ["a", "c.x", "nothing"] {
                // Any answer will do; getting one is the test.
                btf.offset("outer", path).ok();
            }
        }
    }
}
