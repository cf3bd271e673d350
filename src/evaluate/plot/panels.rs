//! The plot of the same lines under several conditions: a panel for each condition, all with the same axes.

use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, VPos};

use super::style::{COLOURS, Mark};
use super::style::{
    ENTRY, INK, PALE, SMALL_SIZE, Sign, TEXT_SIZE, TITLE_SIZE, VERMILLION, legend_across, mark, placed,
    series, text,
};
use super::{Area, DrawError, Plot, plot};

/// The number of panels in a row.
const COLUMNS: usize = 3;
/// The width and height of a panel.
const PANEL: (u32, u32) = (640, 500);

/// A panel: one condition.
#[derive(Debug, Clone)]
pub(crate) struct Panel {
    pub(crate) title: String,
    pub(crate) lines: Vec<Line>,
}

/// A series; lines at the same index of their panels have the same style.
#[derive(Debug, Clone)]
pub(crate) struct Line {
    pub(crate) name: String,
    /// True if the plot is about this series.
    pub(crate) is_main: bool,
    pub(crate) points: Vec<(f64, f64)>,
}

/// Draws panels in rows, below a legend.
pub(crate) fn panels(
    name: &str,
    title: &str,
    (across, up): (&str, &str),
    panels: &[Panel],
) -> Result<Plot, String> {
    let columns = panels.len().clamp(1, COLUMNS);
    let rows = panels.len().div_ceil(columns).max(1);
    let entries: Vec<(Sign, String)> = panels.first().map_or(vec![], |panel| {
        let entry = |(index, line): (usize, &Line)| {
            let (colour, shape) = look(line, index);
            (Sign::MarkedLine(shape, colour), line.name.clone())
        };
        panel.lines.iter().enumerate().map(entry).collect()
    });
    // Room for a line per entry of the legend, since their widths are not known yet.
    let width = PANEL.0.max(640) * u32::try_from(columns).unwrap_or(1);
    let lines_of_legend = entries.len().div_ceil(columns);
    let height_of_legend = ENTRY as u32 * u32::try_from(lines_of_legend).unwrap_or(1) + 24;
    let height = height_of_legend + PANEL.1 * u32::try_from(rows).unwrap_or(1);
    let values = || panels.iter().flat_map(|panel| &panel.lines).flat_map(|line| &line.points);
    let range = |of: fn(&(f64, f64)) -> f64| {
        let low = values().map(of).fold(f64::INFINITY, f64::min);
        let high = values().map(of).fold(f64::NEG_INFINITY, f64::max);
        let room = ((high - low) * 0.06).max(0.002);
        if low.is_finite() { (low - room)..(high + room) } else { 0.0..1.0 }
    };
    plot(name, title, (width, height), |area| {
        let (upper, lower) = area.split_vertically(height_of_legend);
        legend_across(&upper, (130, 14), &entries)?;
        let parts = lower.split_evenly((rows, columns));
        for (index, (part, panel)) in parts.iter().zip(panels).enumerate() {
            let descriptions = (
                if index + columns >= panels.len() { across } else { "" },
                if index % columns == 0 { up } else { "" },
            );
            draw(area, part, panel, [range(|(x, _)| *x), range(|(_, y)| *y)], descriptions)?;
        }
        Ok(())
    })
}

fn look(line: &Line, index: usize) -> (RGBColor, Mark) {
    let (_, shape) = series(index);
    // The last colour is that of the main series.
    if line.is_main { (VERMILLION, Mark::Circle) } else { (COLOURS[index % (COLOURS.len() - 1)], shape) }
}

fn draw(
    whole: &Area<'_>,
    area: &Area<'_>,
    panel: &Panel,
    [across, up]: [std::ops::Range<f64>; 2],
    (across_name, up_name): (&str, &str),
) -> Result<(), DrawError> {
    let style = placed(&text(TITLE_SIZE, &INK), HPos::Left, VPos::Top);
    area.draw_text(&panel.title, &style, (140, 4))?;
    let mut chart = ChartBuilder::on(area)
        .margin(20)
        .margin_top(56)
        .x_label_area_size(84)
        .y_label_area_size(116)
        .build_cartesian_2d(across, up)?;
    chart
        .configure_mesh()
        .light_line_style(TRANSPARENT)
        .bold_line_style(PALE)
        .axis_style(INK)
        .x_desc(across_name)
        .y_desc(up_name)
        .x_labels(7)
        .x_label_formatter(&|severity| format!("{severity:.0}"))
        .y_labels(6)
        .y_label_formatter(&|value| format!("{value:.2}"))
        .axis_desc_style(text(TEXT_SIZE, &INK))
        .label_style(text(SMALL_SIZE, &INK))
        .draw()?;
    for (index, line) in panel.lines.iter().enumerate().rev() {
        let (colour, shape) = look(line, index);
        let width = if line.is_main { 6 } else { 3 };
        if line.points.len() > 1 {
            chart.draw_series(LineSeries::new(line.points.iter().copied(), colour.stroke_width(width)))?;
        }
        for point in &line.points {
            mark(whole, chart.backend_coord(point), shape, colour)?;
        }
    }
    Ok(())
}
