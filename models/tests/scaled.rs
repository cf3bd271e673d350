//! Tests the input of a model from an image that was decoded at a smaller scale: nothing but the pixel values
//! differs.
#![expect(clippy::unwrap_used, reason = "a test stops at what it did not expect")]

use std::fs;
use std::path::Path;

use concord_models::{
    ImageLimits, Model, ModelOptions, Pixels, PreprocessLimits, Scale, decode_at, jpeg_size, load_model,
};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn model(architecture: &str, snapshot: &str) -> Box<dyn Model> {
    let options = ModelOptions {
        architecture: architecture.to_owned(),
        snapshot: snapshot.into(),
        device: "cpu".to_owned(),
        ..ModelOptions::default()
    };
    load_model(&options, root()).unwrap()
}

/// Decodes a photograph of 640 × 427 for a model. Returns the scale that the model chooses, and its input at
/// full size and at that scale.
fn both(model: &dyn Model) -> (Scale, Pixels, Pixels) {
    let bytes = fs::read(root().join("../assets/rocket.jpg")).unwrap();
    let preprocessor = &model.info().preprocessor;
    let scale = preprocessor.scale(jpeg_size(&bytes, ImageLimits::default()).unwrap().unwrap());
    let at = |scale| {
        preprocessor
            .apply_decoded(
                &decode_at(&bytes, ImageLimits::default(), scale, &|| true).unwrap(),
                &PreprocessLimits::default(),
            )
            .unwrap()
    };
    (scale, at(Scale::WHOLE), at(scale))
}

#[test]
fn every_recipe_gives_the_same_shape_and_place_and_nearly_the_same_values() {
    for (architecture, snapshot, eighths) in [
        // The target is 64 × 64: 427 · 2/8 is 107, and half of that would be too small.
        ("dinov3", "nano/dinov3", 2),
        ("siglip2", "nano/siglip2", 2),
        ("florence2", "nano/florence2", 2),
        // Patches and tiles follow the image's proportions.
        ("siglip2", "tests/fixtures/parity/siglip2_naflex/snapshot", 0),
        ("molmo2", "nano/molmo2", 0),
    ] {
        let model = model(architecture, snapshot);
        let (scale, exact, fast) = both(&*model);
        println!("{snapshot}: {}/8, {:?}", scale.eighths(), exact.values.size());
        assert!(eighths == 0 || scale.eighths() == eighths, "{snapshot}: {}/8", scale.eighths());
        assert!(scale < Scale::WHOLE, "{snapshot}: nothing is saved");
        assert_eq!(exact.values.size(), fast.values.size(), "{snapshot}");
        assert_eq!((exact.grid(), exact.image_size), (fast.grid(), fast.image_size), "{snapshot}");
        assert_eq!(fast.image_size, [640, 427], "{snapshot}: boxes are of the full-size image");
        let grids = [&exact, &fast].map(|pixels| pixels.tiles().map(|tiles| tiles.grid));
        assert_eq!(grids[0], grids[1], "{snapshot}");
        let distance = (&exact.values - &fast.values).abs().mean(None).double_value(&[]);
        assert!(distance < 0.1, "{snapshot}: {distance} on average, of pixels of deviation 1");
    }
}
