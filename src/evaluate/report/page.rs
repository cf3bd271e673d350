//! Renders the report as one self-contained page.

use minijinja::{Environment, context};

use super::charts::{Chart, Shown};
use super::contact_sheets::{Sample, Sheet};
use super::{ReportCell, header, row, stages_in_words};
use crate::evaluate::plot::Plot;
use crate::evaluate::shift;

const TEMPLATE: &str = include_str!("page.html");
/// The largest page that is written. A few plots of some hundred kilobytes each, and some 130 thumbnails of
/// at most 43 kB, are less.
const PAGE_BYTES_MAX: usize = 24 << 20;

/// The images that a page shows.
#[derive(Debug)]
pub(crate) struct Images {
    pub(crate) sheets: Vec<Sheet>,
    /// One image under each corruption.
    pub(crate) samples: Vec<Sample>,
}

/// Renders the page as HTML with everything inside: tables, plots as SVG, thumbnails as `data:` URLs.
///
/// # Errors
/// When the page would be too large.
pub(crate) fn page(
    task: &str,
    described: &str,
    shown: &Shown<'_>,
    charts: &[Chart],
    images: &Images,
) -> Result<String, String> {
    let rows: Vec<Vec<ReportCell>> =
        shown.comparison.strategies.iter().map(|strategy| row(strategy, shown.policy, shown.unit)).collect();
    let charts: Vec<_> = charts
        .iter()
        .map(|Chart { plot: Plot { name, title, width, svg }, caption }| context! { name, title, width, svg, caption })
        .collect();
    let (shift_header, shift_rows) = shift::rows(shown.shift_results, shown.policy, shown.unit);
    let mut environment = Environment::new();
    // The file extension makes the engine escape whatever is filled in.
    environment.add_template("page.html", TEMPLATE).map_err(|error| error.to_string())?;
    let template = environment.get_template("page.html").map_err(|error| error.to_string())?;
    let page = template.render(context! {
        task,
        described,
        version => env!("CARGO_PKG_VERSION"),
        header => header(shown.unit),
        rows,
        unit => shown.unit.name(),
        stages => stages_in_words(shown.comparison, shown.policy),
        charts,
        sheets => images.sheets,
        samples => images.samples,
        shift_header,
        shift_rows,
    });
    let page = page.map_err(|error| format!("the report cannot be written: {error}"))?;
    if page.len() > PAGE_BYTES_MAX {
        return Err(format!("the report would have {} bytes, more than {PAGE_BYTES_MAX}", page.len()));
    }
    Ok(page)
}
