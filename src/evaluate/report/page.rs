//! The report as one page, which needs nothing but itself.

use minijinja::{Environment, context};

use super::charts::{Chart, Shown};
use super::sheets::{Sample, Sheet};
use super::{Told, header, row, stages_in_words};
use crate::evaluate::plot::Plot;
use crate::evaluate::shift;

const TEMPLATE: &str = include_str!("page.html");
/// A page of more bytes is not written: a few plots of some hundred kilobytes each, and some 130 thumbnails of at most 43, are less.
const PAGE_BYTES_MAX: usize = 24 << 20;

/// What a page shows of the pictures themselves.
#[derive(Debug)]
pub(crate) struct Pictures {
    pub(crate) sheets: Vec<Sheet>,
    /// One, as each shift makes it.
    pub(crate) samples: Vec<Sample>,
}

/// HTML with everything inside: tables, plots as SVG, thumbnails as `data:` addresses.
///
/// # Errors
/// When it would be too large.
pub(crate) fn page(
    task: &str,
    described: &str,
    shown: &Shown<'_>,
    charts: &[Chart],
    pictures: &Pictures,
) -> Result<String, String> {
    let rows: Vec<Vec<Told>> =
        shown.comparison.answerers.iter().map(|answerer| row(answerer, shown.policy, shown.unit)).collect();
    let charts: Vec<_> = charts
        .iter()
        .map(|Chart { plot: Plot { name, title, width, svg }, caption }| context! { name, title, width, svg, caption })
        .collect();
    let (shift_header, shift_rows) = shift::rows(shown.shifted, shown.policy, shown.unit);
    let mut environment = Environment::new();
    // Its name ends so that whatever is filled in is escaped.
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
        sheets => pictures.sheets,
        samples => pictures.samples,
        shift_header,
        shift_rows,
    });
    let page = page.map_err(|error| format!("the report cannot be written: {error}"))?;
    if page.len() > PAGE_BYTES_MAX {
        return Err(format!("the report would have {} bytes, more than {PAGE_BYTES_MAX}", page.len()));
    }
    Ok(page)
}
