//! Pseudorandom numbers that are the same in every run, on every machine.

/// The increment of the state of `splitmix64`: 2^64 divided by the golden ratio, made odd.
const SPLITMIX64_STEP: u64 = 0x9e37_79b9_7f4a_7c15;

/// Returns the output of the generator `splitmix64` (Steele, Lea and Flood 2014, "Fast splittable
/// pseudorandom number generators") for a state; no two states have the same output.
pub(crate) fn splitmix64(state: u64) -> u64 {
    let mut mixed = state.wrapping_add(SPLITMIX64_STEP);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

/// The generator of Steele, Lea and Flood (2014, "Fast splittable pseudorandom number generators"), with the
/// constants of Vigna's `splitmix64.c`. Being a few lines of our own, it never changes, so that a report can
/// be reproduced.
pub(super) struct Rng {
    state: u64,
}

impl Rng {
    /// Returns a generator whose sequence is determined by the seed.
    pub(super) fn new(seed: u64) -> Self {
        Self { state: seed }
    }

    fn next(&mut self) -> u64 {
        let number = splitmix64(self.state);
        self.state = self.state.wrapping_add(SPLITMIX64_STEP);
        number
    }

    /// Returns a number below `bound` by one multiplication (Lemire 2019, arXiv 1805.10941), without the
    /// rejections: the bias that they would correct is less than `bound` / 2^64.
    pub(super) fn below(&mut self, bound: usize) -> usize {
        ((u128::from(self.next()) * bound as u128) >> 64) as usize
    }

    /// Returns a number from 0 to just below 1, in steps of 2^-53.
    pub(super) fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// Returns two independent numbers from the normal distribution (Box and Muller 1958, "A note on the
    /// generation of random normal deviates").
    pub(super) fn normal_pair(&mut self) -> (f64, f64) {
        // 1 - x is never 0, which has no logarithm.
        let radius = (-2.0 * (1.0 - self.unit()).ln()).sqrt();
        let angle = std::f64::consts::TAU * self.unit();
        (radius * angle.cos(), radius * angle.sin())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_generator_gives_the_published_numbers() {
        // The first outputs of Vigna's splitmix64.c for the seed 1234567.
        let mut random = Rng::new(1_234_567);
        assert_eq!([random.next(), random.next()], [6_457_827_717_110_365_317, 3_203_168_211_198_807_973]);
    }

    #[test]
    fn normal_numbers_have_mean_0_and_deviation_1() {
        let mut random = Rng::new(1);
        let numbers: Vec<f64> = (0..50_000).flat_map(|_| <[f64; 2]>::from(random.normal_pair())).collect();
        let count = numbers.len() as f64;
        let mean = numbers.iter().sum::<f64>() / count;
        let variance = numbers.iter().map(|number| (number - mean).powi(2)).sum::<f64>() / count;
        // Their standard errors are 0.003 and 0.0045.
        assert!(mean.abs() < 0.013 && (variance - 1.0).abs() < 0.018, "{mean} and {variance}");
    }
}
