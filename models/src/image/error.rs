//! The reasons why bytes could not be decoded as an image.

/// The supported formats, as the error message lists them.
const FORMAT_NAMES: &str = "JPEG, PNG, WebP, GIF, BMP";

/// A reason why bytes could not be decoded as an image.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// There are no bytes.
    #[error("the image is empty")]
    Empty,
    /// The bytes do not begin with the signature of any supported format.
    #[error("not an image: expected one of {FORMAT_NAMES}")]
    NotAnImage,
    /// The image declares more pixels than the limit allows; nothing of it was decoded.
    #[error("the image is {width} × {height} pixels, more than the limit of {limit} pixels (max_pixels)")]
    TooLarge {
        /// Declared width in pixels.
        width: u32,
        /// Declared height in pixels.
        height: u32,
        /// The limit, in pixels.
        limit: u64,
    },
    /// Decoding the image would take more memory beside its pixels than the limit allows; nothing of it was
    /// decoded.
    #[error(
        "decoding the image takes {needed} bytes beside its pixels, more than the limit of {limit} bytes \
         (max_scratch_bytes)"
    )]
    TooCostly {
        /// The bytes that decoding it would take, by its header.
        needed: u64,
        /// The limit, in bytes.
        limit: u64,
    },
    /// The bytes begin as an image, but its data is broken.
    #[error("a broken {format} image: {message}")]
    Broken {
        /// The name of the format, for instance `PNG`.
        format: &'static str,
        /// The reason, in words.
        message: String,
    },
    /// The caller did not want the image any more while it was being decoded.
    #[error("decoding the image was given up, because nobody waits for it any more")]
    Abandoned,
}
