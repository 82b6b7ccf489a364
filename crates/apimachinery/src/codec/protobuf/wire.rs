//! The wire format: tags, varints, lengths.

use super::super::DecodeError;

pub(super) const VARINT: u32 = 0;
pub(super) const FIXED64: u32 = 1;
pub(super) const LENGTH_DELIMITED: u32 = 2;
const START_GROUP: u32 = 3;
const END_GROUP: u32 = 4;
const FIXED32: u32 = 5;

// === writing ===

pub(super) fn put_varint(out: &mut Vec<u8>, mut n: u64) {
    while n >= 0x80 {
        out.push((n & 0x7f) as u8 | 0x80);
        n >>= 7;
    }
    out.push(n as u8);
}

pub(super) fn put_tag(out: &mut Vec<u8>, number: u32, wire_type: u32) {
    put_varint(out, u64::from(number << 3 | wire_type));
}

/// A field of bytes or text.
pub fn put_bytes(out: &mut Vec<u8>, number: u32, bytes: &[u8]) {
    put_tag(out, number, LENGTH_DELIMITED);
    put_varint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

/// A field that is a number; negative ones take ten bytes, as in Go.
pub fn put_int(out: &mut Vec<u8>, number: u32, n: i64) {
    put_tag(out, number, VARINT);
    put_varint(out, n.cast_unsigned());
}

/// A field that is a floating-point number.
pub fn put_double(out: &mut Vec<u8>, number: u32, n: f64) {
    put_tag(out, number, FIXED64);
    out.extend_from_slice(&n.to_le_bytes());
}

/// A message within a message. Its length is put in front once it is known: most need one byte, which is reserved.
pub fn nested(out: &mut Vec<u8>, number: u32, write: impl FnOnce(&mut Vec<u8>)) {
    put_tag(out, number, LENGTH_DELIMITED);
    let at = out.len();
    out.push(0);
    write(out);
    let length = out.len() - at - 1;
    if length < 0x80 {
        out[at] = length as u8;
    } else {
        let mut head = Vec::with_capacity(5);
        put_varint(&mut head, length as u64);
        out.splice(at..=at, head);
    }
}

// === reading ===

/// The fields of a message, one after the other.
pub(super) struct Reader<'a> {
    rest: &'a [u8],
}

/// The value of a field, by its wire type.
#[derive(Clone, Copy)]
pub(super) enum Wire<'a> {
    Varint(u64),
    Fixed64(u64),
    Bytes(&'a [u8]),
    /// Nothing that Kubernetes' messages use.
    Other,
}

impl<'a> Reader<'a> {
    pub(super) fn new(message: &'a [u8]) -> Self {
        Reader { rest: message }
    }

    pub(super) fn next(&mut self) -> Result<Option<(u32, Wire<'a>)>, DecodeError> {
        if self.rest.is_empty() {
            return Ok(None);
        }
        let tag = self.varint()?;
        let number = u32::try_from(tag >> 3).ok().filter(|n| (1..1 << 29).contains(n));
        let Some(number) = number else {
            return Err(syntax(&format!("proto: illegal tag {} (wire type {})", (tag >> 3) as i32, tag & 7)));
        };
        let wire = match tag as u32 & 7 {
            VARINT => Wire::Varint(self.varint()?),
            FIXED64 => Wire::Fixed64(u64::from_le_bytes(*self.chunk::<8>()?)),
            LENGTH_DELIMITED => {
                let length = usize::try_from(self.varint()?).map_err(|_| invalid_length())?;
                let (bytes, rest) = self.rest.split_at_checked(length).ok_or_else(unexpected_end)?;
                self.rest = rest;
                Wire::Bytes(bytes)
            }
            FIXED32 => {
                self.chunk::<4>()?;
                Wire::Other
            }
            START_GROUP => {
                self.skip_group()?;
                Wire::Other
            }
            END_GROUP => return Err(syntax("proto: unexpected end of group")),
            other => return Err(syntax(&format!("proto: illegal wireType {other}"))),
        };
        Ok(Some((number, wire)))
    }

    /// Groups are long out of use; upstream's decoder skips them wherever they nest.
    fn skip_group(&mut self) -> Result<(), DecodeError> {
        let mut open = 1usize;
        while open > 0 {
            match self.varint()? as u32 & 7 {
                VARINT => drop(self.varint()?),
                FIXED64 => drop(self.chunk::<8>()?),
                LENGTH_DELIMITED => {
                    let length = usize::try_from(self.varint()?).map_err(|_| invalid_length())?;
                    self.rest = self.rest.get(length..).ok_or_else(unexpected_end)?;
                }
                FIXED32 => drop(self.chunk::<4>()?),
                START_GROUP => open += 1,
                END_GROUP => open -= 1,
                other => return Err(syntax(&format!("proto: illegal wireType {other}"))),
            }
        }
        Ok(())
    }

    /// The next of several varints without tags.
    pub(super) fn packed(&mut self) -> Result<Option<u64>, DecodeError> {
        if self.rest.is_empty() { Ok(None) } else { self.varint().map(Some) }
    }

    fn varint(&mut self) -> Result<u64, DecodeError> {
        let mut n = 0u64;
        for shift in (0..64).step_by(7) {
            let (byte, rest) = self.rest.split_first().ok_or_else(unexpected_end)?;
            self.rest = rest;
            n |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(n);
            }
        }
        Err(syntax("proto: integer overflow"))
    }

    fn chunk<const N: usize>(&mut self) -> Result<&'a [u8; N], DecodeError> {
        let (chunk, rest) = self.rest.split_first_chunk::<N>().ok_or_else(unexpected_end)?;
        self.rest = rest;
        Ok(chunk)
    }
}

impl<'a> Wire<'a> {
    pub(super) fn bytes(self) -> Result<&'a [u8], DecodeError> {
        match self {
            Wire::Bytes(bytes) => Ok(bytes),
            _ => Err(wrong_type()),
        }
    }

    /// Go strings may hold any bytes; what is no UTF-8 has no JSON form and is refused.
    pub(super) fn string(self) -> Result<&'a str, DecodeError> {
        std::str::from_utf8(self.bytes()?).map_err(|_| syntax("proto: string field contains invalid UTF-8"))
    }

    pub(super) fn int(self) -> Result<i64, DecodeError> {
        match self {
            Wire::Varint(n) => Ok(n.cast_signed()),
            _ => Err(wrong_type()),
        }
    }

    pub(super) fn double(self) -> Result<f64, DecodeError> {
        match self {
            Wire::Fixed64(bits) => Ok(f64::from_bits(bits)),
            _ => Err(wrong_type()),
        }
    }
}

pub(super) fn syntax(message: &str) -> DecodeError {
    DecodeError::Syntax(message.to_owned())
}

fn unexpected_end() -> DecodeError {
    syntax("unexpected EOF")
}

fn invalid_length() -> DecodeError {
    syntax("proto: negative length found during unmarshaling")
}

fn wrong_type() -> DecodeError {
    syntax("proto: wrong wireType")
}
