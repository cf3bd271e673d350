use image::Rgb;

use super::*;

/// A picture with edges and colours, as a PNG.
fn picture(width: u32, height: u32) -> (RgbImage, Vec<u8>) {
    let pixels = RgbImage::from_fn(width, height, |x, y| {
        let is_light = (x / 5 + y / 7) % 2 == 0;
        if is_light { Rgb([230, 180, (x * 3 % 256) as u8]) } else { Rgb([20, 60, 40]) }
    });
    let mut file = Vec::new();
    written(&pixels, PngEncoder::new(Cursor::new(&mut file))).unwrap();
    (pixels, file)
}

fn corrupted(shift: Shift, severity: u8, file: &[u8]) -> Vec<u8> {
    Corruption { shift, severity: Severity::new(severity).unwrap() }.apply(file, 1_000_000).unwrap()
}

/// By how much samples differ, in the mean.
fn distance(one: &RgbImage, other: &RgbImage) -> f64 {
    let differences = one.iter().zip(other.iter()).map(|(one, other)| f64::from(one.abs_diff(*other)));
    differences.sum::<f64>() / one.len() as f64
}

#[test]
fn each_severity_takes_a_picture_further_from_what_it_was() {
    let (pixels, file) = picture(64, 48);
    for shift in Shift::ALL {
        let mut before = 0.0;
        for severity in 1..=Severity::MAX {
            let worse = decode(&corrupted(shift, severity, &file), 1_000_000).unwrap();
            assert_eq!(worse.dimensions(), (64, 48), "{shift:?}");
            let now = distance(&pixels, &worse);
            assert!(now > before, "{shift:?} {severity}: {now} after {before}");
            before = now;
        }
        assert!(before > 4.0, "{shift:?} is seen at its strongest: {before}");
    }
}

#[test]
fn chance_depends_on_the_picture_the_shift_and_the_severity_alone() {
    let (_, file) = picture(40, 40);
    let (_, other) = picture(40, 41);
    for shift in Shift::ALL {
        assert_eq!(corrupted(shift, 3, &file), corrupted(shift, 3, &file), "{shift:?}");
    }
    let noise = |severity| Corruption { shift: Shift::Noise, severity: Severity::new(severity).unwrap() };
    let first = |corruption: Corruption, file: &[u8]| corruption.random(file).below(usize::MAX);
    assert_ne!(first(noise(1), &file), first(noise(2), &file));
    assert_ne!(first(noise(1), &file), first(noise(1), &other));
    let rain = Corruption { shift: Shift::Rain, ..noise(1) };
    assert_ne!(first(noise(1), &file), first(rain, &file));
}

#[test]
fn pictures_of_any_size_can_be_corrupted() {
    for (width, height) in [(1, 1), (1, 30), (3, 2), (400, 3)] {
        let (_, file) = picture(width, height);
        for shift in Shift::ALL {
            for severity in [1, 5] {
                let worse = decode(&corrupted(shift, severity, &file), 1_000_000).unwrap();
                assert_eq!(worse.dimensions(), (width, height), "{shift:?}");
            }
        }
    }
}

#[test]
fn what_is_no_picture_or_too_large_is_told() {
    let blur = Corruption { shift: Shift::Blur, severity: Severity::new(1).unwrap() };
    assert!(blur.apply(b"no picture", 1000).unwrap_err().contains("not an image"));
    assert!(blur.apply(&picture(40, 40).1, 1000).unwrap_err().contains("more than the limit of 1000 pixels"));
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
    assert!("snow".parse::<Shifts>().unwrap_err().contains("must be one of blur, noise"));
}

#[test]
fn corruptions_are_dealt_to_files_alike_and_always_the_same() {
    let shifts = ["blur", "noise", "dark"].map(|name| name.parse().unwrap());
    let all = corruptions(&shifts, &["1..2".parse().unwrap()]);
    let files: Vec<Digest> = (0_u32..6000).map(|index| Digest::of(&index.to_le_bytes())).collect();
    let once = |corruptions: &[Corruption]| dealt(corruptions, 1).remove(0);
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
    let rounds = dealt(&all, 30);
    assert_eq!(rounds.len(), all.len(), "no more than there are");
    let mut of_one: Vec<String> = rounds.iter().map(|round| round.of(&files[0]).unwrap().name()).collect();
    of_one.sort();
    of_one.dedup();
    assert_eq!(of_one.len(), all.len(), "each of them once");
}

#[test]
fn pictures_are_called_by_how_they_are_made_worse() {
    let all = corruptions(&["all".parse().unwrap()], &["1..5".parse().unwrap()]);
    assert_eq!(one_of(&all[..1]), "blur 1");
    assert_eq!(one_of(&all[..2]), "one of blur 1, blur 2");
    assert_eq!(one_of(&all), "one of 30 corruptions");
    let file = Digest::of(b"a file");
    for (worsening, corruption, name) in [
        (Worsening::None, None, None),
        (Worsening::Same(all[3]), Some(all[3]), Some("blur 4")),
        (dealt(&all[4..5], 1).remove(0), Some(all[4]), Some("made worse")),
    ] {
        assert_eq!(worsening.of(&file), corruption);
        assert_eq!(worsening.name().as_deref(), name);
    }
}
