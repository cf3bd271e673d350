//! The plot of reliability diagrams: the accuracy of answers of about the same confidence.

use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, VPos};

use super::style::{BLUE, GREY, INK, PALE, SMALL_SIZE, TEXT_SIZE, TITLE_SIZE, VERMILLION, placed, text};
use super::{Area, DrawError, Plot, plot};

/// The width and height of one diagram with the counts below it.
const PANEL: (u32, u32) = (800, 940);
/// The height of the upper part of a diagram.
const DIAGRAM: u32 = 660;

/// A bin of answers of about the same confidence.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct CalibrationBin {
    /// The number of answers.
    pub(crate) count: usize,
    /// Their mean confidence.
    pub(crate) confidence: f64,
    /// The share of them that are right.
    pub(crate) accuracy: f64,
    /// Both ends of the 95 % interval of the accuracy.
    pub(crate) interval: (f64, f64),
}

/// A reliability diagram.
#[derive(Debug, Clone)]
pub(crate) struct Reliability {
    /// The title: what is calibrated, and how.
    pub(crate) title: String,
    /// The expected calibration error.
    pub(crate) ece: f64,
    /// The bins of equal width, in ascending order of confidence; `None` for an empty one.
    pub(crate) bins: Vec<Option<CalibrationBin>>,
}

/// Draws diagrams side by side.
pub(crate) fn reliability(name: &str, title: &str, diagrams: &[Reliability]) -> Result<Plot, String> {
    let columns = u32::try_from(diagrams.len()).unwrap_or(1).max(1);
    plot(name, title, (PANEL.0 * columns, PANEL.1), |area| {
        for (part, diagram) in area.split_evenly((1, diagrams.len().max(1))).iter().zip(diagrams) {
            let (upper, lower) = part.split_vertically(DIAGRAM);
            draw_diagram(&upper, diagram)?;
            draw_counts(&lower, diagram)?;
        }
        Ok(())
    })
}

fn draw_diagram(area: &Area<'_>, diagram: &Reliability) -> Result<(), DrawError> {
    let heading = format!("{}: ECE {:.4}", diagram.title, diagram.ece);
    let middle = i32::try_from(area.dim_in_pixel().0 / 2).unwrap_or(0);
    let style = placed(&text(TITLE_SIZE, &INK), HPos::Center, VPos::Top);
    area.draw_text(&heading, &style, (middle + 50, 14))?;
    let mut chart = ChartBuilder::on(area)
        .margin(24)
        .margin_top(74)
        .margin_right(34)
        .x_label_area_size(14)
        .y_label_area_size(120)
        .build_cartesian_2d(0.0..1.0, 0.0..1.0)?;
    chart
        .configure_mesh()
        .light_line_style(TRANSPARENT)
        .bold_line_style(PALE)
        .axis_style(INK)
        .y_desc("share that is right")
        .x_labels(6)
        .x_label_formatter(&|_| String::new())
        .y_labels(6)
        .y_label_formatter(&|share| format!("{share:.1}"))
        .axis_desc_style(text(TEXT_SIZE, &INK))
        .label_style(text(SMALL_SIZE, &INK))
        .draw()?;
    let width = 1.0 / diagram.bins.len().max(1) as f64;
    let bins = || diagram.bins.iter().enumerate().filter_map(|(index, bin)| Some((index as f64, (*bin)?)));
    // There is no bar where no answer is right.
    chart.draw_series(bins().filter(|(_, bin)| bin.accuracy > 0.0).map(|(index, bin)| {
        Rectangle::new([(index * width, 0.0), ((index + 1.0) * width, bin.accuracy)], BLUE.mix(0.25).filled())
    }))?;
    chart.draw_series(DashedLineSeries::new([(0.0, 0.0), (1.0, 1.0)], 12, 10, GREY.stroke_width(3)))?;
    chart.draw_series(bins().map(|(_, bin)| {
        let (low, high) = bin.interval;
        PathElement::new(vec![(bin.confidence, low), (bin.confidence, high)], VERMILLION.stroke_width(3))
    }))?;
    chart.draw_series(
        bins().map(|(_, bin)| Circle::new((bin.confidence, bin.accuracy), 9, VERMILLION.filled())),
    )?;
    Ok(())
}

/// Draws the counts on a logarithmic axis, because nearly all answers are in the last bin.
fn draw_counts(area: &Area<'_>, diagram: &Reliability) -> Result<(), DrawError> {
    let most = diagram.bins.iter().flatten().map(|bin| bin.count).max().unwrap_or(1) as f64;
    let mut chart = ChartBuilder::on(area)
        .margin(24)
        .margin_top(0)
        .margin_right(34)
        .x_label_area_size(84)
        .y_label_area_size(120)
        .build_cartesian_2d(0.0..1.0, (0.5..most * 2.0).log_scale())?;
    chart
        .configure_mesh()
        .light_line_style(TRANSPARENT)
        .bold_line_style(PALE)
        .axis_style(INK)
        .x_desc("confidence")
        .y_desc("images")
        .x_labels(6)
        .x_label_formatter(&|confidence| format!("{confidence:.1}"))
        .y_labels(4)
        .y_label_formatter(&|count| format!("{count:.0}"))
        .axis_desc_style(text(TEXT_SIZE, &INK))
        .label_style(text(SMALL_SIZE, &INK))
        .draw()?;
    let width = 1.0 / diagram.bins.len().max(1) as f64;
    let counts = diagram.bins.iter().enumerate().filter_map(|(index, bin)| Some((index as f64, (*bin)?)));
    chart.draw_series(counts.map(|(index, bin)| {
        let corners = [(index * width, 0.5), ((index + 1.0) * width, bin.count as f64)];
        let mut bar = Rectangle::new(corners, BLUE.mix(0.7).filled());
        bar.set_margin(0, 0, 2, 2);
        bar
    }))?;
    Ok(())
}
