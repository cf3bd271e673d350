use image::Rgb;

use super::super::{CorruptionPlan, assigned, one_of};
use super::*;

/// An image with edges and colours, as a PNG.
fn image(width: u32, height: u32) -> (RgbImage, Vec<u8>) {
    let pixels = RgbImage::from_fn(width, height, |x, y| {
        let is_light = (x / 5 + y / 7) % 2 == 0;
        if is_light { Rgb([230, 180, (x * 3 % 256) as u8]) } else { Rgb([20, 60, 40]) }
    });
    let mut file = Vec::new();
    encode(&pixels, PngEncoder::new(Cursor::new(&mut file))).unwrap();
    (pixels, file)
}

fn corrupted(shift: CorruptionKind, severity: u8, file: &[u8]) -> Vec<u8> {
    Corruption { kind: shift, severity: Severity::new(severity).unwrap() }
        .apply(file, ImageLimits::default())
        .unwrap()
}

/// Returns the mean absolute difference of samples.
fn distance(one: &RgbImage, other: &RgbImage) -> f64 {
    let differences = one.iter().zip(other.iter()).map(|(one, other)| f64::from(one.abs_diff(*other)));
    differences.sum::<f64>() / one.len() as f64
}

#[test]
fn each_severity_changes_an_image_more() {
    let (pixels, file) = image(64, 48);
    for shift in CorruptionKind::ALL {
        let mut before = 0.0;
        for severity in 1..=Severity::MAX {
            let worse = decode(&corrupted(shift, severity, &file), ImageLimits::default()).unwrap();
            assert_eq!(worse.dimensions(), (64, 48), "{shift:?}");
            let now = distance(&pixels, &worse);
            assert!(now > before, "{shift:?} {severity}: {now} after {before}");
            before = now;
        }
        assert!(before > 4.0, "{shift:?} is seen at its strongest: {before}");
    }
}

#[test]
fn random_numbers_depend_only_on_image_kind_and_severity() {
    let (_, file) = image(40, 40);
    let (_, other) = image(40, 41);
    for shift in CorruptionKind::ALL {
        assert_eq!(corrupted(shift, 3, &file), corrupted(shift, 3, &file), "{shift:?}");
    }
    let noise =
        |severity| Corruption { kind: CorruptionKind::Noise, severity: Severity::new(severity).unwrap() };
    let first = |corruption: Corruption, file: &[u8]| corruption.random(file).below(usize::MAX);
    assert_ne!(first(noise(1), &file), first(noise(2), &file));
    assert_ne!(first(noise(1), &file), first(noise(1), &other));
    let rain = Corruption { kind: CorruptionKind::Rain, ..noise(1) };
    assert_ne!(first(noise(1), &file), first(rain, &file));
}

#[test]
fn images_of_any_size_can_be_corrupted() {
    for (width, height) in [(1, 1), (1, 30), (3, 2), (400, 3)] {
        let (_, file) = image(width, height);
        for shift in CorruptionKind::ALL {
            for severity in [1, 5] {
                let worse = decode(&corrupted(shift, severity, &file), ImageLimits::default()).unwrap();
                assert_eq!(worse.dimensions(), (width, height), "{shift:?}");
            }
        }
    }
}

#[test]
fn no_image_and_an_image_that_is_too_large_are_errors() {
    let blur = Corruption { kind: CorruptionKind::Blur, severity: Severity::new(1).unwrap() };
    let limits = ImageLimits::with_max_pixels(1000);
    assert!(blur.apply(b"no image", limits).unwrap_err().contains("not an image"));
    assert!(blur.apply(&image(40, 40).1, limits).unwrap_err().contains("more than the limit of 1000 pixels"));
}

#[test]
fn severities_are_numbers_or_ranges() {
    for (text, numbers) in [("3", vec![3]), ("1..5", vec![1, 2, 3, 4, 5]), ("2..=3", vec![2, 3])] {
        let range: SeverityRange = text.parse().unwrap();
        assert_eq!(range.severities().map(Severity::get).collect::<Vec<_>>(), numbers, "{text}");
    }
    for text in ["0", "6", "3..2", "a", "", "1.."] {
        assert!(text.parse::<SeverityRange>().is_err(), "{text:?}");
    }
}

#[test]
fn each_corruption_is_tried_once() {
    let shifts = ["rain", "all", "blur"].map(|name| name.parse().unwrap());
    let severities = ["4..5", "1", "5"].map(|range| range.parse().unwrap());
    let found = corruptions(&shifts, &severities);
    assert_eq!(found.len(), 18, "six shifts at 1, 4 and 5");
    assert_eq!(found[..3].iter().map(|one| one.name()).collect::<Vec<_>>(), ["rain 1", "rain 4", "rain 5"]);
    assert!("snow".parse::<CorruptionKinds>().unwrap_err().contains("must be one of blur, noise"));
}

#[test]
fn corruptions_are_dealt_to_files_alike_and_always_the_same() {
    let shifts = ["blur", "noise", "dark"].map(|name| name.parse().unwrap());
    let all = corruptions(&shifts, &["1..2".parse().unwrap()]);
    let files: Vec<Digest> = (0_u32..6000).map(|index| Digest::of(&index.to_le_bytes())).collect();
    let once = |corruptions: &[Corruption]| assigned(corruptions, 1).remove(0);
    let dealt_once = once(&all);
    let reversed = once(&all.iter().rev().copied().collect::<Vec<_>>());
    let mut counts = vec![0; all.len()];
    for file in &files {
        let corruption = dealt_once.of(file).unwrap();
        assert_eq!(reversed.of(file), Some(corruption), "in whatever order");
        counts[all.iter().position(|one| *one == corruption).unwrap()] += 1;
    }
    // The standard deviation of each is 29.
    assert!(counts.iter().all(|count| (880..1120).contains(count)), "{counts:?} of 6000");
    let fewer = once(&all[1..]);
    for file in &files {
        let (before, after) = (fewer.of(file), dealt_once.of(file));
        assert!(after == before || after == Some(all[0]), "with one more the others stay");
    }
    let rounds = assigned(&all, 30);
    assert_eq!(rounds.len(), all.len(), "no more than there are");
    let mut of_one: Vec<String> = rounds.iter().map(|round| round.of(&files[0]).unwrap().name()).collect();
    of_one.sort();
    of_one.dedup();
    assert_eq!(of_one.len(), all.len(), "each of them once");
}

#[test]
fn corruption_plans_are_named_after_their_corruption() {
    let all = corruptions(&["all".parse().unwrap()], &["1..5".parse().unwrap()]);
    assert_eq!(one_of(&all[..1]), "blur 1");
    assert_eq!(one_of(&all[..2]), "one of blur 1, blur 2");
    assert_eq!(one_of(&all), "one of 30 corruptions");
    let file = Digest::of(b"a file");
    for (corruption_plan, corruption, name) in [
        (CorruptionPlan::None, None, None),
        (CorruptionPlan::Same(all[3]), Some(all[3]), Some("blur 4")),
        (assigned(&all[4..5], 1).remove(0), Some(all[4]), Some("corrupted")),
    ] {
        assert_eq!(corruption_plan.of(&file), corruption);
        assert_eq!(corruption_plan.name().as_deref(), name);
    }
}
