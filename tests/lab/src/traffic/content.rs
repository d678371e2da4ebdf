//! Bytes that both ends know and no two places share, so that nothing can be lost, doubled, moved or
//! changed unseen.

/// The bytes of one stream, from `position` on: a function of the seed and the place alone.
#[derive(Clone, Debug)]
pub struct Content {
    seed: u64,
    position: u64,
}

impl Content {
    /// The stream that `seed` names, from its start.
    pub fn new(seed: u64) -> Self {
        Self { seed, position: 0 }
    }

    /// Bytes written or checked so far.
    pub fn position(&self) -> u64 {
        self.position
    }

    /// Fills `buffer` with the next bytes.
    pub fn fill(&mut self, buffer: &mut [u8]) {
        // Byte by byte to the next whole word, by words, and what is left.
        let unaligned = (self.position.next_multiple_of(8) - self.position) as usize;
        let (head, rest) = buffer.split_at_mut(unaligned.min(buffer.len()));
        self.fill_bytes(head);
        let (words, tail) = rest.as_chunks_mut::<8>();
        let first = self.position / 8;
        for (index, bytes) in (first..).zip(words.iter_mut()) {
            *bytes = word(self.seed, index).to_le_bytes();
        }
        self.position += 8 * words.len() as u64;
        self.fill_bytes(tail);
    }

    /// Fills `bytes`, all of one word.
    fn fill_bytes(&mut self, bytes: &mut [u8]) {
        let word = word(self.seed, self.position / 8).to_le_bytes();
        let start = (self.position % 8) as usize;
        bytes.copy_from_slice(&word[start..start + bytes.len()]);
        self.position += bytes.len() as u64;
    }

    /// Compares `bytes` with the next of the stream; the place of the first that differs.
    pub fn check(&mut self, bytes: &[u8]) -> Result<(), u64> {
        let start = self.position;
        let mut expected = [0; 4096];
        for (index, chunk) in bytes.chunks(expected.len()).enumerate() {
            let expected = &mut expected[..chunk.len()];
            self.fill(expected);
            if expected != chunk {
                let offset = expected.iter().zip(chunk).position(|(a, b)| a != b).unwrap_or(0);
                return Err(start + (index * 4096 + offset) as u64);
            }
        }
        Ok(())
    }
}

/// The `index`th word of a stream: the finaliser of SplitMix64 over a counter.
fn word(seed: u64, index: u64) -> u64 {
    let mut z = seed.wrapping_add(index.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_the_same_however_it_is_cut() {
        let mut whole = [0; 100];
        Content::new(7).fill(&mut whole);
        let mut pieces = Content::new(7);
        for piece in whole.chunks(13) {
            assert_eq!(pieces.check(piece), Ok(()));
        }
        assert_eq!(pieces.position(), 100);
    }

    #[test]
    fn names_the_place_that_differs() {
        let mut bytes = vec![0; 10_000];
        Content::new(1).fill(&mut bytes);
        bytes[9_001] ^= 1;
        assert_eq!(Content::new(1).check(&bytes), Err(9_001));
    }
}
