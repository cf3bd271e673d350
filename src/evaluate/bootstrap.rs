//! Bootstrap resamples of a labeled data set, and the intervals of metrics that they give.
//!
//! The bootstrap of Efron (1979, "Bootstrap methods: another look at the jackknife") with percentile
//! intervals, drawing whole groups (the cluster bootstrap; Field and Welsh 2007, "Bootstrapping clustered
//! data"): images of one patient, slide or video are nearly the same, and an interval that took them for
//! independent would be too narrow.

use std::collections::HashMap;

use super::rng::Rng;

/// The shares of the resampled values below the two ends of a 95 % interval.
const SHARE_BELOW_LOW: f64 = 0.025;
const SHARE_BELOW_HIGH: f64 = 0.975;

/// The resamples of one data set.
///
/// They are drawn once, and every strategy is evaluated on the same ones: the sampling error is then the same
/// for all of them, and their intervals can be compared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Bootstrap {
    images: usize,
    /// The number of times that each image is in each resample. All are kept (12 MiB for 1,000 of 6,315
    /// images), which costs less than drawing them again for every strategy.
    resamples: Vec<Vec<u16>>,
}

impl Bootstrap {
    /// Draws `resamples` resamples, each of as many groups as there are, with replacement.
    ///
    /// `groups` has each image's group; the numbers need not be dense. An ungrouped image is a group of its
    /// own. The same arguments give the same resamples, on every machine.
    pub(crate) fn new(groups: &[usize], resamples: usize, seed: u64) -> Self {
        let (group_of_image, group_count) = numbered_densely(groups);
        let mut random = Rng::new(seed);
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

    /// Returns the number of images in the data set.
    pub(crate) fn images(&self) -> usize {
        self.images
    }

    /// Returns the weights of each resample: the number of times that each image is in it.
    pub(crate) fn weights(&self) -> impl Iterator<Item = &[u16]> {
        self.resamples.iter().map(Vec::as_slice)
    }

    /// Returns the 95 % interval of a metric, which `of` computes from the images' weights.
    ///
    /// Resamples in which it is undefined are left out; both ends are NaN if it is undefined in all.
    pub(crate) fn interval(&self, of: impl Fn(&[u16]) -> Option<f64>) -> (f64, f64) {
        interval(self.weights().filter_map(of))
    }
}

/// Returns the 95 % percentile interval of resampled values; both ends are NaN if there are none.
pub(super) fn interval(values: impl Iterator<Item = f64>) -> (f64, f64) {
    let mut sorted: Vec<f64> = values.collect();
    sorted.sort_by(f64::total_cmp);
    (percentile(&sorted, SHARE_BELOW_LOW), percentile(&sorted, SHARE_BELOW_HIGH))
}

/// Interpolates linearly between the two nearest ranks, as `numpy.percentile` does (type 7 of Hyndman and Fan
/// 1996).
fn percentile(sorted: &[f64], share: f64) -> f64 {
    let Some(last) = sorted.len().checked_sub(1) else { return f64::NAN };
    let rank = share * last as f64;
    let below = sorted[rank.floor() as usize];
    let above = sorted[rank.ceil() as usize];
    below + (above - below) * rank.fract()
}

/// Renumbers the groups from 0 in the order of their first images, and returns each image's group and the
/// number of groups.
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
        let bootstrap = Bootstrap::new(&GROUPS, 50, 1);
        assert_eq!(bootstrap, Bootstrap::new(&GROUPS, 50, 1));
        assert_ne!(bootstrap, Bootstrap::new(&GROUPS, 50, 2));
        assert_eq!((bootstrap.images(), bootstrap.weights().count()), (6, 50));
    }

    #[test]
    fn whole_groups_are_drawn_and_as_many_as_there_are() {
        for weights in Bootstrap::new(&GROUPS, 200, 3).weights() {
            assert!(weights[0] == weights[1] && weights[1] == weights[5], "group 7 in {weights:?}");
            assert_eq!(weights[3], weights[4], "group 2 in {weights:?}");
            assert_eq!(weights[0] + weights[2] + weights[3], 3, "draws in {weights:?}");
        }
    }

    #[test]
    fn every_group_is_drawn_equally_often() {
        let mut times_drawn = [0_u32; 5];
        for weights in Bootstrap::new(&[0, 1, 2, 3, 4], 10_000, 4).weights() {
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
    fn resamples_without_the_metric_are_left_out() {
        let bootstrap = Bootstrap::new(&GROUPS, 100, 5);
        let only_with_image_2 = |weights: &[u16]| (weights[2] > 0).then_some(1.0);
        assert_eq!(bootstrap.interval(only_with_image_2), (1.0, 1.0));
        let (low, high) = bootstrap.interval(|_| None);
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
        let (low, high) = Bootstrap::new(&groups, 2000, 6).interval(share_of_even);
        assert!((low - 0.451).abs() < 0.006 && (high - 0.549).abs() < 0.006, "{low} to {high}");
    }

    #[test]
    fn no_images_are_resampled_to_none() {
        assert!(Bootstrap::new(&[], 3, 7).weights().all(<[u16]>::is_empty));
    }
}
