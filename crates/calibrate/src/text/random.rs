//! A small seeded generator, so that the choice of windows never depends on another crate's version.

/// SplitMix64: Steele, Lea, Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014, figure 16.
pub struct SplitMix64(u64);

impl SplitMix64 {
    /// A stream of its own for each `(seed, stream)`.
    pub fn new(seed: u64, stream: u64) -> Self {
        let mut first = Self(seed);
        Self(first.next().wrapping_add(Self(stream).next()))
    }

    /// The next 64 bits.
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A whole number in `0..bound`, `bound` above 0; the bias is below bound / 2^64.
    pub fn below(&mut self, bound: usize) -> usize {
        ((u128::from(self.next()) * bound as u128) >> 64) as usize
    }

    /// A number in [0, 1).
    pub fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_stream_is_splitmix64() {
        // The first two outputs of the published recurrence from state 0.
        let mut generator = SplitMix64(0);
        assert_eq!(generator.next(), 0xe220_a839_7b1d_cdaf);
        assert_eq!(generator.next(), 0x6e78_9e6a_a1b9_65f4);
    }

    #[test]
    fn every_value_below_the_bound_is_drawn_about_equally_often() {
        let mut generator = SplitMix64::new(7, 0);
        let mut seen = [0usize; 5];
        for _ in 0..10_000 {
            seen[generator.below(5)] += 1;
        }
        assert!(seen.iter().all(|n| (1800..2200).contains(n)), "{seen:?}");
    }

    #[test]
    fn streams_of_one_seed_differ() {
        let first = |stream| SplitMix64::new(3, stream).next();
        assert_ne!(first(0), first(1));
        assert_ne!(first(1), first(2));
    }
}
