//! Plots as SVG, and as PNG: numbers in, a picture out. What they show is computed elsewhere.

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

/// A plot.
#[derive(Debug)]
pub(crate) struct Plot {
    /// What its files are called, without their endings.
    pub(crate) name: String,
    /// What it shows, for a heading.
    pub(crate) title: String,
    /// How wide it is, in pixels of a screen: half of what it is drawn with.
    pub(crate) width: u32,
    /// As XML without a declaration, so that it can stand in a page.
    pub(crate) svg: String,
}

impl Plot {
    /// The same in pixels, with the embedded font.
    ///
    /// # Errors
    /// When it cannot be drawn, for which no cause is known.
    pub(crate) fn png(&self) -> Result<Vec<u8>, String> {
        let told = |error: &dyn std::fmt::Display| format!("plot {}: {error}", self.name);
        let tree = usvg::Tree::from_str(&self.svg, options()).map_err(|error| told(&error))?;
        let size = tree.size().to_int_size();
        let mut pixels = Pixmap::new(size.width(), size.height()).ok_or_else(|| told(&"it is too large"))?;
        resvg::render(&tree, Transform::identity(), &mut pixels.as_mut());
        pixels.encode_png().map_err(|error| told(&error))
    }
}

/// With the font that text is measured by.
fn options() -> &'static usvg::Options<'static> {
    static OPTIONS: OnceLock<usvg::Options<'static>> = OnceLock::new();
    OPTIONS.get_or_init(|| {
        let mut fonts = usvg::fontdb::Database::new();
        fonts.load_font_data(ttf_noto_sans::REGULAR.to_vec());
        fonts.set_sans_serif_family("Noto Sans");
        usvg::Options { fontdb: Arc::new(fonts), ..usvg::Options::default() }
    })
}

/// Where one draws.
type Area<'a> = DrawingArea<SVGBackend<'a>, plotters::coord::Shift>;
/// Why a plot could not be drawn.
type DrawError = DrawingAreaErrorKind<std::io::Error>;

/// A plot of so many pixels that `draw` fills.
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

/// With its title, for whoever cannot see it.
fn described(svg: &str, title: &str) -> String {
    let escaped = title.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
    match svg.split_once('>') {
        Some((start, rest)) => format!("{start} role=\"img\">\n<title>{escaped}</title>{rest}"),
        None => svg.to_owned(),
    }
}

#[cfg(test)]
mod tests;
