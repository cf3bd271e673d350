//! Measures decoding and preprocessing in milliseconds of one CPU thread.

use std::hint::black_box;
use std::time::Instant;

use concord_models::presets::Preset;
use concord_models::{
    DecodedImage, ImageLimits, PreprocessLimits, Preprocessor, Scale, decode, decode_at, jpeg_size,
};

use crate::photographs::twelve_megapixels;
use crate::root;

/// The number of runs of each measurement, alternating with the one that it is compared with; the median
/// counts.
pub(crate) const RUNS: usize = 9;
/// The published sizes: 384 × 384 resized in fp32 and in bytes, 768 × 768, and up to eight crops of 378 ×
/// 378.
const PRESETS: [&str; 4] = ["dinov3-vitl16", "siglip2-so400m-patch14-384", "florence2-large", "molmo2-8b"];

/// Prints the table.
pub(crate) fn report() {
    let jpeg = example();
    let size = jpeg_size(&jpeg, ImageLimits::default()).expect("it is an image").expect("it is a JPEG");
    println!(
        "{} x {} pixels, {:.1} MB; p50 in ms, one CPU thread",
        size[0],
        size[1],
        jpeg.len() as f64 / 1e6
    );
    println!("{:28} {:>5} {:>24} {:>24}", "", "", "decode", "decode and preprocess");
    println!("{:28} {:>5}{}", "model", "scale", "    exact    fast   ratio".repeat(2));
    for name in PRESETS {
        let preprocessor = preprocessor(name);
        let scale = preprocessor.scale(size);
        let decoded =
            |scale| decode_at(&jpeg, ImageLimits::default(), scale, &|| true).expect("it is decoded");
        let limits = PreprocessLimits::default();
        let preprocessed =
            |image: &DecodedImage| preprocessor.apply_decoded(image, &limits).expect("it is preprocessed");
        let mut runs: [Vec<f64>; 4] = Default::default();
        for _ in 0..RUNS {
            for (index, scale) in [Scale::WHOLE, scale].into_iter().enumerate() {
                let started = Instant::now();
                let image = black_box(decoded(scale));
                runs[index].push(started.elapsed().as_secs_f64() * 1e3);
                black_box(preprocessed(&image));
                runs[index + 2].push(started.elapsed().as_secs_f64() * 1e3);
            }
        }
        let [exact, fast, exact_preprocessed, fast_preprocessed] = runs.map(median);
        let columns = |exact: f64, fast: f64| format!("{exact:9.1}{fast:8.1}{:8.2}", fast / exact);
        let eighths = format!("{}/8", scale.eighths());
        println!(
            "{name:28} {eighths:>5}{}{}",
            columns(exact, fast),
            columns(exact_preprocessed, fast_preprocessed)
        );
    }
    scales(&jpeg);
}

/// Returns a photograph of twelve megapixels.
pub(crate) fn example() -> Vec<u8> {
    let file = root().join("assets/rocket.jpg");
    let bytes = std::fs::read(file).expect("the repository has its assets");
    twelve_megapixels(&decode(&bytes, ImageLimits::default()).expect("the example is an image"))
}

/// Prints the time of decoding at each scale.
fn scales(jpeg: &[u8]) {
    let scales = [1, 2, 3, 4, 8].map(|eighths| Scale::covering([8, 8], [eighths, eighths]));
    let measured = scales.map(|scale| {
        let runs = (0..RUNS).map(|_| {
            let started = Instant::now();
            black_box(decode_at(jpeg, ImageLimits::default(), scale, &|| true).expect("it is decoded"));
            started.elapsed().as_secs_f64() * 1e3
        });
        format!("{}/8 {:.1}", scale.eighths(), median(runs.collect()))
    });
    println!("decode at each scale: {}", measured.join(", "));
}

pub(crate) fn preprocessor(preset: &str) -> Preprocessor {
    let folder = tempfile::tempdir().expect("a folder");
    Preset::by_name(preset).expect("the preset exists").write(folder.path()).expect("it is written");
    Preprocessor::of_snapshot(folder.path()).expect("it has a preprocessor")
}

pub(crate) fn median(mut runs: Vec<f64>) -> f64 {
    runs.sort_by(f64::total_cmp);
    runs[runs.len() / 2]
}
