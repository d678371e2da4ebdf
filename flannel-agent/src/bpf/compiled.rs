//! The compiled programs, as this binary holds them: compressed, as they would be a tenth of it otherwise.

use std::{io::Read as _, ops::Deref};

use flate2::read::ZlibDecoder;

const PLAIN: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/flannel-ebpf.o.zlib"));
const TRACE: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/flannel-ebpf-trace.o.zlib"));

/// An object file of programs, at an address that is a multiple of eight, as its headers want.
pub struct Compiled {
    words: Vec<u64>,
    /// Bytes.
    len: usize,
}

impl Compiled {
    /// The programs.
    pub fn programs() -> Self {
        Self::inflate(PLAIN)
    }

    /// The same programs, which tell of packets; `None` where this binary was built around a ready-made object.
    pub(super) fn traced() -> Option<Self> {
        (!TRACE.is_empty()).then(|| Self::inflate(TRACE))
    }

    /// Of what is damaged it makes less than an object, which the loader refuses.
    fn inflate(compressed: &[u8]) -> Self {
        let mut content = Vec::new();
        let _ = ZlibDecoder::new(compressed).read_to_end(&mut content);
        let len = content.len();
        let mut words = vec![0; len.div_ceil(size_of::<u64>())];
        bytemuck::cast_slice_mut(&mut words)[..len].copy_from_slice(&content);
        Self { words, len }
    }
}

impl Deref for Compiled {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &bytemuck::cast_slice(&self.words)[..self.len]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_objects_are_whole_and_aligned() {
        let traced = Compiled::traced().map(|object| object.len());
        let programs = Compiled::programs();
        assert!(programs.starts_with(b"\x7fELF") && programs.as_ptr().addr().is_multiple_of(8));
        assert!(programs.len() > 4 * PLAIN.len() && traced.is_none_or(|len| len > programs.len()));
    }

    #[test]
    fn no_place_of_the_machine_that_built_them_is_in_them() {
        let here = env!("CARGO_MANIFEST_DIR").trim_end_matches("flannel-agent");
        let Some(traced) = Compiled::traced() else { return };
        for object in [Compiled::programs(), traced] {
            let names = |text: &str| object.windows(text.len()).any(|bytes| bytes == text.as_bytes());
            assert!(names("/flannel-ebpf/flannel-common/src/") && !names(here));
        }
    }
}
