//! The output of a model about one image.

use serde::{Deserialize, Serialize};

/// Part of an image, in pixels of the original: x to the right, y down, from the upper left corner.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Region {
    /// What is there.
    pub label: String,
    /// Where.
    #[serde(flatten)]
    pub shape: Shape,
}

/// The outline of a region.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Shape {
    /// Left, top, right, bottom.
    Box([f32; 4]),
    /// Four corners, each x and y.
    Quad([f32; 8]),
}
