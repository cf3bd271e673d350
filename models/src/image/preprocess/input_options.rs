//! How a configuration describes the input of a module that comes without a preprocessor.

use serde::Deserialize;

/// What a module may give, as the configuration calls it.
pub const OUTPUTS: [&str; 2] = ["logits", "probabilities"];

/// `input = { … }` of a torchscript model: what is made of an image. Red, green and blue in the range 0–1, resized with
/// antialiasing, less `mean`, divided by `std`: [batch, 3, height, width].
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default)]
pub struct InputOptions {
    /// In pixels.
    pub height: i64,
    /// In pixels.
    pub width: i64,
    /// `bilinear` or `bicubic`.
    pub filter: String,
    /// Of red, green and blue.
    pub mean: [f64; 3],
    /// Of red, green and blue.
    pub std: [f64; 3],
}

/// What the models of torchvision take.
impl Default for InputOptions {
    fn default() -> Self {
        Self {
            height: 224,
            width: 224,
            filter: "bilinear".to_owned(),
            mean: [0.485, 0.456, 0.406],
            std: [0.229, 0.224, 0.225],
        }
    }
}
