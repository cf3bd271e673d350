//! Resamples of a labelled data set, and the intervals that they give a figure.
//!
//! The bootstrap of Efron (1979, "Bootstrap methods: another look at the jackknife") with percentile intervals,
//! drawing whole groups (the cluster bootstrap; Field and Welsh 2007, "Bootstrapping clustered data"): images of
//! one patient, slide or video say nearly the same, and an interval that took them for independent would be too
//! narrow.

use std::collections::HashMap;

use super::random::SplitMix64;

/// The shares of the resampled values that lie below the two ends of a 95 % interval.
const SHARE_BELOW_LOW: f64 = 0.025;
const SHARE_BELOW_HIGH: f64 = 0.975;

/// Which images each resample of one data set holds, and how often.
///
/// It is drawn once, and every answerer is measured on the same resamples: that the data might have been other is
/// then the same for all of them, and their intervals can be compared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Resampling {
    images: usize,
    /// For each resample, how often each image is in it. All are kept (12 MiB for 1,000 of 6,315 images), which
    /// costs less than drawing them again for every answerer.
    resamples: Vec<Vec<u16>>,
}

impl Resampling {
    /// Draws `resamples` times as many groups as there are, with replacement.
    ///
    /// `groups` has each image's group; the numbers need not be dense. Where nothing is grouped, every image is
    /// its own group. The same arguments give the same resamples, on every machine.
    pub(crate) fn new(groups: &[usize], resamples: usize, seed: u64) -> Self {
        let (group_of_image, group_count) = numbered_densely(groups);
        let mut random = SplitMix64::new(seed);
        let draw = |_| {
            let mut times_drawn = vec![0_u16; group_count];
            for _ in 0..group_count {
                let times = &mut times_drawn[random.below(group_count)];
                *times = times.saturating_add(1);
            }
            group_of_image.iter().map(|&group| times_drawn[group]).collect()
        };
        Self { images: groups.len(), resamples: (0..resamples).map(draw).collect() }
    }

    /// How many images the data set has.
    pub(crate) fn images(&self) -> usize {
        self.images
    }

    /// For each resample, how often each image is in it.
    pub(crate) fn weights(&self) -> impl Iterator<Item = &[u16]> {
        self.resamples.iter().map(Vec::as_slice)
    }

    /// The 95 % interval of a figure: `of` computes it where each image counts as often as the weights say.
    ///
    /// Resamples for which it is undefined do not count; both ends are NaN where it is undefined for all.
    pub(crate) fn interval(&self, of: impl Fn(&[u16]) -> Option<f64>) -> (f64, f64) {
        interval(self.weights().filter_map(of))
    }
}

/// The 95 % percentile interval of resampled values; both ends are NaN where there are none.
pub(super) fn interval(values: impl Iterator<Item = f64>) -> (f64, f64) {
    let mut sorted: Vec<f64> = values.collect();
    sorted.sort_by(f64::total_cmp);
    (percentile(&sorted, SHARE_BELOW_LOW), percentile(&sorted, SHARE_BELOW_HIGH))
}

/// Between the two nearest ranks in proportion, as `numpy.percentile` does (type 7 of Hyndman and Fan 1996).
fn percentile(sorted: &[f64], share: f64) -> f64 {
    let Some(last) = sorted.len().checked_sub(1) else { return f64::NAN };
    let rank = share * last as f64;
    let below = sorted[rank.floor() as usize];
    let above = sorted[rank.ceil() as usize];
    below + (above - below) * rank.fract()
}

/// Each image's group as a number below how many groups there are, in the order of their first images.
fn numbered_densely(groups: &[usize]) -> (Vec<usize>, usize) {
    let mut numbers = HashMap::new();
    let mut group_of_image = Vec::with_capacity(groups.len());
    for &group in groups {
        let next = numbers.len();
        group_of_image.push(*numbers.entry(group).or_insert(next));
    }
    (group_of_image, numbers.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Three groups of 3, 1 and 2 images, with gaps between their numbers.
    const GROUPS: [usize; 6] = [7, 7, 100, 2, 2, 7];

    #[test]
    fn a_seed_fixes_the_resamples() {
        let resampling = Resampling::new(&GROUPS, 50, 1);
        assert_eq!(resampling, Resampling::new(&GROUPS, 50, 1));
        assert_ne!(resampling, Resampling::new(&GROUPS, 50, 2));
        assert_eq!((resampling.images(), resampling.weights().count()), (6, 50));
    }

    #[test]
    fn whole_groups_are_drawn_and_as_many_as_there_are() {
        for weights in Resampling::new(&GROUPS, 200, 3).weights() {
            assert!(weights[0] == weights[1] && weights[1] == weights[5], "group 7 in {weights:?}");
            assert_eq!(weights[3], weights[4], "group 2 in {weights:?}");
            assert_eq!(weights[0] + weights[2] + weights[3], 3, "draws in {weights:?}");
        }
    }

    #[test]
    fn every_group_is_drawn_equally_often() {
        let mut times_drawn = [0_u32; 5];
        for weights in Resampling::new(&[0, 1, 2, 3, 4], 10_000, 4).weights() {
            for (times, &weight) in times_drawn.iter_mut().zip(weights) {
                *times += u32::from(weight);
            }
        }
        // Binomial with the mean 10,000 and the standard deviation 89.
        assert!(times_drawn.iter().all(|times| times.abs_diff(10_000) < 450), "{times_drawn:?}");
    }

    #[test]
    fn percentiles_lie_between_ranks() {
        // 2.5 % of the way from rank 0 to rank 4 is rank 0.1; 97.5 % is rank 3.9.
        let (low, high) = interval([50.0, 10.0, 30.0, 20.0, 40.0].into_iter());
        assert!((low - 11.0).abs() < 1e-9 && (high - 49.0).abs() < 1e-9, "{low} to {high}");
        assert_eq!(interval([3.0].into_iter()), (3.0, 3.0));
    }

    #[test]
    fn resamples_without_the_figure_do_not_count() {
        let resampling = Resampling::new(&GROUPS, 100, 5);
        let only_with_image_2 = |weights: &[u16]| (weights[2] > 0).then_some(1.0);
        assert_eq!(resampling.interval(only_with_image_2), (1.0, 1.0));
        let (low, high) = resampling.interval(|_| None);
        assert!(low.is_nan() && high.is_nan());
    }

    #[test]
    fn an_interval_is_as_wide_as_theory_says() {
        // A share of 0.5 among 400: its standard error is sqrt(0.25 / 400) = 0.025, times 1.96 = 0.049.
        let groups: Vec<usize> = (0..400).collect();
        let share_of_even = |weights: &[u16]| {
            let even: u32 = weights.iter().step_by(2).map(|&weight| u32::from(weight)).sum();
            Some(f64::from(even) / 400.0)
        };
        let (low, high) = Resampling::new(&groups, 2000, 6).interval(share_of_even);
        assert!((low - 0.451).abs() < 0.006 && (high - 0.549).abs() < 0.006, "{low} to {high}");
    }

    #[test]
    fn no_images_are_resampled_to_none() {
        assert!(Resampling::new(&[], 3, 7).weights().all(<[u16]>::is_empty));
    }
}
