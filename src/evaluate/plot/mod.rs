//! Draws plots as SVG and as PNG from numbers that are computed elsewhere; knows no policy and no vote.

mod confusion;
mod histogram;
mod panels;
mod reliability;
mod style;
mod tradeoff;

use std::sync::{Arc, OnceLock};

use plotters::prelude::*;
use resvg::tiny_skia::{Pixmap, Transform};
use resvg::usvg;

pub(crate) use confusion::{Confusion, confusion};
pub(crate) use histogram::{Histogram, histogram};
pub(crate) use panels::{Line, Panel, panels};
pub(crate) use reliability::{CalibrationBin, Reliability, reliability};
pub(crate) use tradeoff::{Point, Role, Tradeoff, tradeoff};

/// A drawn plot.
#[derive(Debug)]
pub(crate) struct Plot {
    /// The name of its files, without the extension.
    pub(crate) name: String,
    /// The heading.
    pub(crate) title: String,
    /// The width in pixels of a screen: half of the width that it is drawn with.
    pub(crate) width: u32,
    /// The SVG as XML without a declaration, so that it can be embedded in a page.
    pub(crate) svg: String,
}

impl Plot {
    /// Renders the plot as a PNG, with the embedded font.
    ///
    /// # Errors
    /// When it cannot be rendered, for which no cause is known.
    pub(crate) fn png(&self) -> Result<Vec<u8>, String> {
        let with_context = |error: &dyn std::fmt::Display| format!("plot {}: {error}", self.name);
        let tree = usvg::Tree::from_str(&self.svg, options()).map_err(|error| with_context(&error))?;
        let size = tree.size().to_int_size();
        let mut pixels =
            Pixmap::new(size.width(), size.height()).ok_or_else(|| with_context(&"it is too large"))?;
        resvg::render(&tree, Transform::identity(), &mut pixels.as_mut());
        pixels.encode_png().map_err(|error| with_context(&error))
    }
}

/// Returns render options with the font by which text is measured.
fn options() -> &'static usvg::Options<'static> {
    static OPTIONS: OnceLock<usvg::Options<'static>> = OnceLock::new();
    OPTIONS.get_or_init(|| {
        let mut fonts = usvg::fontdb::Database::new();
        fonts.load_font_data(ttf_noto_sans::REGULAR.to_vec());
        fonts.set_sans_serif_family("Noto Sans");
        usvg::Options { fontdb: Arc::new(fonts), ..usvg::Options::default() }
    })
}

/// The area that is drawn on.
type Area<'a> = DrawingArea<SVGBackend<'a>, plotters::coord::Shift>;
/// The error of a plot that could not be drawn.
type DrawError = DrawingAreaErrorKind<std::io::Error>;

/// Returns a plot of this size in pixels, drawn by `draw`.
fn plot(
    name: &str,
    title: &str,
    size: (u32, u32),
    draw: impl FnOnce(&Area<'_>) -> Result<(), DrawError>,
) -> Result<Plot, String> {
    style::register_font()?;
    let mut svg = String::new();
    let drawn = (|| {
        let area = SVGBackend::with_string(&mut svg, size).into_drawing_area();
        area.fill(&WHITE)?;
        draw(&area)?;
        area.present()
    })();
    drawn.map_err(|error| format!("plot {name}: {error}"))?;
    let svg = described(&svg, title);
    Ok(Plot { name: name.to_owned(), title: title.to_owned(), width: size.0 / 2, svg })
}

/// Adds the title to an SVG, for screen readers.
fn described(svg: &str, title: &str) -> String {
    let escaped = title.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
    match svg.split_once('>') {
        Some((start, rest)) => format!("{start} role=\"img\">\n<title>{escaped}</title>{rest}"),
        None => svg.to_owned(),
    }
}

#[cfg(test)]
mod tests;
