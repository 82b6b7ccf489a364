//! Compression of answers, at the level that costs least.

use std::io::Write;

use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;

pub(crate) struct Gzip(GzEncoder<Vec<u8>>);

impl Gzip {
    pub(crate) fn new() -> Self {
        Gzip(GzEncoder::new(Vec::new(), Compression::fast()))
    }

    pub(crate) fn write(&mut self, bytes: &[u8]) {
        // Writing to a vector cannot fail.
        let _ = self.0.write_all(bytes);
    }

    /// What has been compressed so far and not been taken.
    pub(crate) fn take(&mut self) -> Bytes {
        std::mem::take(self.0.get_mut()).into()
    }

    pub(crate) fn finish(self) -> Bytes {
        self.0.finish().unwrap_or_default().into()
    }
}
