//! The plot of the confidences of right and of wrong answers.

use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, VPos};

use super::style::{BLUE, INK, PALE, SMALL_SIZE, TEXT_SIZE, TITLE_SIZE, VERMILLION, placed, text};
use super::{Area, DrawError, Plot, plot};

/// A histogram of right and wrong answers by their confidence.
#[derive(Debug, Clone)]
pub(crate) struct Histogram {
    /// The lowest possible confidence; the highest is 1.
    pub(crate) low: f64,
    /// The numbers of right and of wrong answers, in bins of equal width.
    pub(crate) bins: Vec<[usize; 2]>,
}

/// Draws right answers above wrong ones, with the same axis.
pub(crate) fn histogram(name: &str, title: &str, data: &Histogram) -> Result<Plot, String> {
    plot(name, title, (1640, 1000), |area| {
        let (upper, lower) = area.split_vertically(460);
        let most = data.bins.iter().flatten().copied().max().unwrap_or(1).max(1);
        let total = |kind: usize| data.bins.iter().map(|bin| bin[kind]).sum::<usize>();
        let heading = |kind: usize, what: &str| format!("{} {what} answers", total(kind));
        draw(&upper, data, most, (0, BLUE, &heading(0, "right")))?;
        draw(&lower, data, most, (1, VERMILLION, &heading(1, "wrong")))
    })
}

fn draw(
    area: &Area<'_>,
    data: &Histogram,
    most: usize,
    (kind, colour, heading): (usize, RGBColor, &str),
) -> Result<(), DrawError> {
    let is_last = kind == 1;
    let style = placed(&text(TITLE_SIZE, &INK), HPos::Left, VPos::Top);
    area.draw_text(heading, &style, (150, 6))?;
    let mut chart = ChartBuilder::on(area)
        .margin(24)
        .margin_top(60)
        .margin_bottom(if is_last { 24 } else { 0 })
        .margin_right(34)
        .x_label_area_size(if is_last { 84 } else { 14 })
        .y_label_area_size(126)
        .build_cartesian_2d(data.low..1.0, (0.5..most as f64 * 1.5).log_scale())?;
    chart
        .configure_mesh()
        .light_line_style(TRANSPARENT)
        .bold_line_style(PALE)
        .axis_style(INK)
        .x_desc(if is_last { "confidence of the cascade" } else { "" })
        .y_desc("images")
        .x_labels(11)
        .x_label_formatter(&|confidence| if is_last { format!("{confidence:.2}") } else { String::new() })
        .y_labels(5)
        .y_label_formatter(&|count| format!("{count:.0}"))
        .axis_desc_style(text(TEXT_SIZE, &INK))
        .label_style(text(SMALL_SIZE, &INK))
        .draw()?;
    let width = (1.0 - data.low) / data.bins.len().max(1) as f64;
    let bars = data.bins.iter().enumerate().filter(|(_, bin)| bin[kind] > 0);
    chart.draw_series(bars.map(|(index, bin)| {
        let left = data.low + index as f64 * width;
        let mut bar = Rectangle::new([(left, 0.5), (left + width, bin[kind] as f64)], colour.filled());
        bar.set_margin(0, 0, 2, 2);
        bar
    }))?;
    Ok(())
}
