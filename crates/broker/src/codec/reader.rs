//! Reading the standard's data representations (MQTT 1.5) from a packet's body.

use super::CodecError;

/// What is left of a packet's body.
#[derive(Debug, Clone, Copy)]
pub(super) struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    pub(super) fn new(body: &'a [u8]) -> Self {
        Reader(body)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    pub(super) fn rest(self) -> &'a [u8] {
        self.0
    }

    pub(super) fn bytes(&mut self, count: usize) -> Result<&'a [u8], CodecError> {
        let (head, tail) = self.0.split_at_checked(count).ok_or(CodecError::Malformed("packet ends too early"))?;
        self.0 = tail;
        Ok(head)
    }

    pub(super) fn u8(&mut self) -> Result<u8, CodecError> {
        Ok(self.bytes(1)?[0])
    }

    pub(super) fn u16(&mut self) -> Result<u16, CodecError> {
        let bytes = self.bytes(2)?;
        Ok(u16::from_be_bytes([bytes[0], bytes[1]]))
    }

    pub(super) fn u32(&mut self) -> Result<u32, CodecError> {
        let bytes = self.bytes(4)?;
        Ok(u32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
    }

    /// Binary data with its length before it (MQTT 5 1.5.6).
    pub(super) fn binary(&mut self) -> Result<&'a [u8], CodecError> {
        let length = self.u16()?;
        self.bytes(usize::from(length))
    }

    /// A UTF-8 string (MQTT 1.5.3 / 5 1.5.4): well formed and without U+0000.
    pub(super) fn text(&mut self) -> Result<&'a str, CodecError> {
        let text = std::str::from_utf8(self.binary()?).map_err(|_| CodecError::Malformed("string is not UTF-8"))?;
        if text.contains('\0') { Err(CodecError::Malformed("string contains U+0000")) } else { Ok(text) }
    }

    /// A packet identifier, which is never 0 (MQTT 2.3.1).
    pub(super) fn packet_id(&mut self) -> Result<u16, CodecError> {
        match self.u16()? {
            0 => Err(CodecError::Protocol("packet identifier is 0")),
            id => Ok(id),
        }
    }

    /// A variable byte integer (MQTT 5 1.5.5).
    pub(super) fn variable(&mut self) -> Result<u32, CodecError> {
        let malformed = CodecError::Malformed("variable byte integer");
        match variable(self.0, malformed)? {
            Some((value, length)) => {
                self.0 = &self.0[length..];
                Ok(value)
            }
            None => Err(malformed),
        }
    }
}

/// A variable byte integer at the start of `bytes` and its length, or `None` if it is not complete yet.
pub(super) fn variable(bytes: &[u8], malformed: CodecError) -> Result<Option<(u32, usize)>, CodecError> {
    let mut value = 0;
    for (index, byte) in bytes.iter().take(4).enumerate() {
        value |= u32::from(byte & 0x7f) << (7 * index);
        if byte & 0x80 == 0 {
            // MQTT 5 1.5.5: the fewest bytes possible must be used.
            return if index > 0 && *byte == 0 { Err(malformed) } else { Ok(Some((value, index + 1))) };
        }
    }
    if bytes.len() >= 4 { Err(malformed) } else { Ok(None) }
}
