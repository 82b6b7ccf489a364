//! Input that somebody has tampered with.
//!
//! `KELSON_FUZZ` says how often each entry of a corpus is changed: a few times in every run of the tests, many times when
//! somebody looks for more.

const SOME: u64 = 40;

/// An endless, repeatable sequence of numbers (xorshift); not from 0.
pub struct Random(pub u64);

impl Random {
    #[must_use]
    #[expect(clippy::should_implement_trait, reason = "an iterator would promise an end")]
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    #[must_use]
    pub fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    /// A place in something of that length.
    fn index(&mut self, length: usize) -> usize {
        usize::try_from(self.below(length.max(1) as u64)).unwrap()
    }
}

/// Hands tampered bytes of a corpus to a check, which says whether they were taken: some must be. `tokens` is what the
/// parser at hand may stumble over.
pub fn fuzz<T>(corpus: &[(Vec<u8>, T)], tokens: &[&[u8]], check: impl Fn(&[u8], &T) -> bool) {
    let rounds = std::env::var("KELSON_FUZZ").ok().and_then(|rounds| rounds.parse().ok()).unwrap_or(SOME);
    let mut taken = 0_u64;
    for (i, (bytes, of)) in corpus.iter().enumerate() {
        for round in 0..rounds {
            let mut random = Random((round * 7919 + i as u64) | 1);
            let other = &corpus[random.index(corpus.len())].0;
            taken += u64::from(check(&tampered(bytes, other, tokens, &mut random), of));
        }
    }
    assert!(taken > 0, "nothing that was tampered with is taken: then nothing is shown");
}

/// A corpus of texts; `times` more of each, as short texts need more tries.
#[must_use]
pub fn texts(times: usize, texts: &[&str]) -> Vec<(Vec<u8>, ())> {
    let corpus: Vec<_> = texts.iter().map(|text| (text.as_bytes().to_vec(), ())).collect();
    std::iter::repeat_n(corpus, times).flatten().collect()
}

/// The bytes with a few changes; `other` is something of the same sort to take parts from.
fn tampered(bytes: &[u8], other: &[u8], tokens: &[&[u8]], random: &mut Random) -> Vec<u8> {
    let mut out = bytes.to_vec();
    for _ in 0..=random.index(4) {
        let at = random.index(out.len() + 1);
        let end = (at + random.index(24)).min(out.len());
        match random.index(6) {
            0 if at < out.len() => out[at] ^= 1 << random.index(8),
            1 => drop(out.splice(at..end, tokens[random.index(tokens.len())].iter().copied())),
            2 => drop(out.drain(at..end)),
            3 => {
                let again = out[at..end].to_vec();
                drop(out.splice(at..at, again));
            }
            4 => {
                let from = random.index(other.len());
                let until = (from + random.index(64)).min(other.len());
                drop(out.splice(at..end, other[from..until].iter().copied()));
            }
            _ => out.truncate(at.max(out.len() / 2)),
        }
    }
    out
}
