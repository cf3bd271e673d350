//! Compares the work that is left to a device with the CPU's, on every device that there is; and gives up
//! work that is not wanted.

use std::cell::Cell;

use tch::{Device, Kind};

use super::staged::Share;
use super::*;
use crate::libtorch::{Stream, cuda_devices};

fn devices() -> Vec<Device> {
    let gpus = cuda_devices();
    if gpus == 0 {
        eprintln!("skipped on CUDA: no GPU here");
    }
    std::iter::once(Device::Cpu).chain((0..gpus.min(1)).map(Device::Cuda)).collect()
}

fn preprocessor(recipe: Recipe) -> Preprocessor {
    let (mean, std) = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]);
    Preprocessor { recipe, mean, std, rescale: 1.0 / 255.0, device: Device::Cpu }
}

/// Returns recipes of both kinds, with both filters.
fn recipes() -> Vec<Preprocessor> {
    let (height, width) = (96, 128);
    let of = |filter| {
        [Recipe::ResizeFloat { height, width, filter }, Recipe::ResizeBytes { height, width, filter }]
    };
    [Filter::Bilinear, Filter::Bicubic].into_iter().flat_map(of).map(preprocessor).collect()
}

/// Returns an image with hard edges and noise, where rounding and overshooting show most.
pub(super) fn sample_image(width: u32, height: u32) -> RgbImage {
    let mut state: u32 = 1;
    RgbImage::from_fn(width, height, |x, y| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let edge = if (x / 23 + y / 17) % 2 == 0 { 0 } else { 255 };
        let noise = state.to_be_bytes();
        [edge, noise[0], edge / 2 + noise[1] / 3].into()
    })
}

/// Returns the largest difference in levels, and the share of values that differ by half a level or more.
fn difference(preprocessor: &Preprocessor, ours: &Tensor, expected: &Tensor) -> (f64, f64) {
    let std = Tensor::from_slice(&preprocessor.std).to_kind(Kind::Float).view([3, 1, 1]);
    let levels = (ours.to_device(Device::Cpu) - expected).abs() * std * 255.0;
    let share = levels.ge(0.5).to_kind(Kind::Float).mean(None).double_value(&[]);
    (levels.max().double_value(&[]), share)
}

#[test]
fn a_device_preprocesses_an_image_as_the_cpu_does() {
    // Sizes above the target: a photograph, one that has the target's size already, slightly larger ones,
    // ones with a single longer side, and the largest allowed. The smaller ones follow: by a little, by a
    // lot, in one side, and a line.
    let larger = [(640, 427), (128, 96), (131, 99), (128, 400), (1000, 96), (250, 130), (2048, 1536)];
    let smaller = [(127, 95), (20, 15), (64, 400), (1000, 50), (1, 300), (3, 1)];
    let sizes = larger.into_iter().chain(smaller);
    for device in devices() {
        let stream = Stream::new(device).unwrap();
        let _current = stream.enter().unwrap();
        for preprocessor in recipes() {
            for (width, height) in sizes.clone() {
                let image = sample_image(width, height);
                let expected = preprocessor.apply(&image).unwrap().values;
                let staged = preprocessor.stage(&image, [width, height], device).unwrap();
                let ours = staged.on(device).unwrap().values;
                assert_eq!((ours.size(), ours.kind()), (expected.size(), Kind::Float));
                let (levels, share) = difference(&preprocessor, &ours, &expected);
                let what = format!("{device:?} {:?} {width} x {height}", preprocessor.recipe);
                println!("{what}: {levels:.4} levels at most, {:.2} % of the values", share * 100.0);
                let is_float = matches!(preprocessor.recipe, Recipe::ResizeFloat { .. });
                assert!(levels < if is_float { 0.05 } else { 1.01 }, "{what}: {levels} levels");
                assert!(share < 0.02, "{what}: {share} of the values");
            }
        }
    }
}

#[test]
fn a_batch_is_in_the_order_of_its_images_whoever_made_them_ready() {
    for device in devices() {
        let stream = Stream::new(device).unwrap();
        let _current = stream.enter().unwrap();
        for preprocessor in recipes() {
            let samples = [
                sample_image(300, 200),
                sample_image(140, 141),
                sample_image(200, 300),
                sample_image(128, 96),
            ];
            for by_cpu in [&[][..], &[1], &[0, 2, 3], &[0, 1, 2, 3]] {
                let ready = |(index, image): (usize, &RgbImage)| match by_cpu.contains(&index) {
                    true => preprocessor.apply(image).unwrap(),
                    false => preprocessor.stage(image, [1, 1], device).unwrap(),
                };
                let images: Vec<Pixels> = samples.iter().enumerate().map(ready).collect();
                let batch = stack(&images.iter().collect::<Vec<_>>(), device);
                assert_eq!((batch.size(), batch.device()), (vec![4, 3, 96, 128], device));
                for (index, image) in (0..).zip(&samples) {
                    let expected = preprocessor.apply(image).unwrap().values;
                    let (levels, _) = difference(&preprocessor, &batch.get(index), &expected);
                    assert!(levels < 1.01, "{device:?} {by_cpu:?} image {index}: {levels} levels");
                }
            }
        }
    }
}

#[test]
fn what_a_device_should_not_have_stays_with_the_cpu() {
    let fixed = &recipes()[0];
    let stage = |preprocessor: &Preprocessor, width, height| {
        preprocessor.stage(&RgbImage::new(width, height), [width, height], Device::Cpu)
    };
    assert!(stage(fixed, 128 * 16, 96).is_some());
    assert!(stage(fixed, 128 * 16 + 1, 96).is_none(), "too many weights for each pixel");
    assert!(stage(fixed, 0, 0).is_none(), "no image");
    let large = preprocessor(Recipe::ResizeBytes { height: 4096, width: 4096, filter: Filter::Bicubic });
    assert!(stage(&large, 4096, 4096).is_some());
    assert!(stage(&large, 4096, 4097).is_none(), "more bytes than one image may have");
    assert!(stage(&large, 1, 4097).is_none(), "more values between the passes than one image may have");
    assert!(stage(&large, 4097, 1).is_some(), "a wide image has few of them");
    let naflex = Recipe::NaFlex { patch: 16, max_patches: 64, filter: Filter::Bilinear };
    for recipe in [Recipe::Bytes, naflex] {
        assert!(stage(&preprocessor(recipe), 64, 64).is_none());
    }
}

#[test]
fn all_images_together_have_a_limit_that_is_released() {
    let take = || Share::take(48 << 20);
    let shares: Vec<Share> = std::iter::from_fn(take).take(100).collect();
    // Other tests may hold some shares at the same time.
    assert!((8..=16).contains(&shares.len()), "64 MiB each of 1 GiB: {}", shares.len());
    drop(shares);
    assert!(take().is_some());
    assert!(Share::take(u64::MAX / 2).is_none());
}

#[test]
fn work_stops_when_it_is_not_wanted_any_more() {
    let naflex = preprocessor(Recipe::NaFlex { patch: 16, max_patches: 64, filter: Filter::Bilinear });
    let tiling = Tiling { crop: 28, patch: 14, margins: [0, 0], pooling: [2, 2], max_crops: 4 };
    let each = recipes().into_iter().chain([naflex, preprocessor(Recipe::Tiles(tiling))]);
    // Several strips, many lines of the longer side, and one step.
    for preprocessor in each {
        for (width, height) in [(2000, 1500), (1, 400_000), (400_000, 1), (30, 20)] {
            let image = DecodedImage::from(RgbImage::new(width, height));
            let calls = Cell::new(0);
            let steps_until = |last: u32| {
                calls.set(0);
                let is_wanted = || {
                    calls.set(calls.get() + 1);
                    calls.get() <= last
                };
                let limits = PreprocessLimits { is_wanted: &is_wanted, ..PreprocessLimits::default() };
                preprocessor.apply_decoded(&image, &limits)
            };
            steps_until(u32::MAX).unwrap();
            let steps = calls.get();
            for last in [0, steps / 2, steps - 1] {
                let abandoned = steps_until(last);
                assert!(matches!(abandoned, Err(ModelError::Abandoned)), "{:?}", preprocessor.recipe);
                assert_eq!(calls.get(), last + 1, "nothing is done afterwards");
            }
        }
    }
}

#[test]
fn an_image_without_pixels_is_refused() {
    for preprocessor in recipes() {
        assert!(preprocessor.apply(&RgbImage::new(0, 0)).is_err());
        assert!(preprocessor.apply(&RgbImage::new(0, 10)).is_err());
    }
}
