//! The plot of cost and accuracy.

use plotters::coord::combinators::BindKeyPoints;
use plotters::coord::ranged1d::{AsRangedCoord, ValueFormatter};
use plotters::prelude::*;

use super::style::{
    BLUE, COLOURS, INK, Mark, PALE, SMALL_SIZE, Sign, TEXT_SIZE, VERMILLION, legend, mark, percent, text,
};
use super::{Area, DrawError, Plot, plot};

/// The largest ratio of costs on a linear axis; above it the axis is logarithmic.
const LINEAR_RATIO_MAX: f64 = 4.0;

/// The role of a point, which decides its mark.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    Model,
    Fusion,
    Cascade,
    /// A baseline that always asks the same model: a ring around the point of that model.
    Choice,
    Baseline,
}

/// A strategy of answering.
#[derive(Debug, Clone)]
pub(crate) struct Point {
    pub(crate) name: String,
    pub(crate) role: Role,
    pub(crate) cost: f64,
    pub(crate) accuracy: f64,
    /// Both ends of the accuracy's 95 % interval.
    pub(crate) interval: (f64, f64),
}

/// The data of the plot.
#[derive(Debug, Clone)]
pub(crate) struct Tradeoff<'a> {
    pub(crate) points: &'a [Point],
    /// The cost and accuracy of the cascade with other thresholds, the cheapest first.
    pub(crate) curve: &'a [(f64, f64)],
    /// The label of the cost axis.
    pub(crate) unit: &'a str,
}

/// Draws the plot, with the legend beside it.
pub(crate) fn tradeoff(data: &Tradeoff<'_>) -> Result<Plot, String> {
    plot("accuracy_cost", "Accuracy and cost", (1640, 960), |area| {
        let costs =
            || data.points.iter().map(|point| point.cost).chain(data.curve.iter().map(|(cost, _)| *cost));
        let (low, high) = (costs().fold(f64::INFINITY, f64::min), costs().fold(0.0, f64::max));
        if low > 0.0 && high / low > LINEAR_RATIO_MAX {
            let (low, high) = (low / 1.15, high * 1.15);
            draw(area, data, (low..high).log_scale().with_key_points(ticks(low, high)))
        } else {
            let room = ((high - low) * 0.06).max(high * 0.02).max(f64::MIN_POSITIVE);
            draw(area, data, (low - room).max(0.0)..high + room)
        }
    })
}

fn draw<X>(area: &Area<'_>, data: &Tradeoff<'_>, costs: X) -> Result<(), DrawError>
where
    X: AsRangedCoord<Value = f64>,
    X::CoordDescType: ValueFormatter<f64>,
{
    let (left, _) = area.split_horizontally(1130);
    let range = accuracies(data);
    let step = (range.end - range.start) / 8.0;
    let mut chart = ChartBuilder::on(&left)
        .margin(24)
        .margin_right(34)
        .x_label_area_size(84)
        .y_label_area_size(138)
        .build_cartesian_2d(costs, range)?;
    chart
        .configure_mesh()
        .light_line_style(TRANSPARENT)
        .bold_line_style(PALE)
        .axis_style(INK)
        .x_desc(data.unit)
        .y_desc("accuracy")
        .x_labels(8)
        .y_labels(8)
        .x_label_formatter(&|cost| number(*cost))
        .y_label_formatter(&|accuracy| percent(*accuracy, step))
        .axis_desc_style(text(TEXT_SIZE, &INK))
        .label_style(text(SMALL_SIZE, &INK))
        .draw()?;
    let mut entries = Vec::new();
    // A single point is no line: a cascade of one stage, or one that other thresholds only make worse.
    if data.curve.len() > 1 {
        chart.draw_series(LineSeries::new(data.curve.iter().copied(), BLUE.stroke_width(4)))?;
        entries.push((Sign::Line(BLUE), "cascade, other thresholds".to_owned()));
    }
    let mut marks = Vec::new();
    for (point, (shape, colour)) in data.points.iter().zip(looks(data.points)) {
        let at = chart.backend_coord(&(point.cost, point.accuracy));
        if point.role == Role::Cascade {
            let ends =
                [point.interval.0, point.interval.1].map(|end| chart.backend_coord(&(point.cost, end)));
            area.draw(&PathElement::new(ends.to_vec(), colour.stroke_width(3)))?;
        }
        marks.push((at, shape, colour));
        entries.push((Sign::Mark(shape, colour), point.name.clone()));
    }
    // The configured policy is drawn on top.
    marks.sort_by_key(|(_, shape, _)| *shape == Mark::Star);
    for (at, shape, colour) in marks {
        mark(area, at, shape, colour)?;
    }
    legend(area, (1150, 24), &entries)
}

/// Returns round numbers for a logarithmic axis: the longer it is, the fewer per decade.
fn ticks(low: f64, high: f64) -> Vec<f64> {
    let decades = low.log10().floor() as i32..=high.log10().ceil() as i32;
    let steps: &[f64] = match (high / low).log10() {
        short if short < 1.2 => &[1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0],
        medium if medium < 3.0 => &[1.0, 2.0, 5.0],
        _ => &[1.0],
    };
    let all = decades.flat_map(|decade| steps.iter().map(move |step| step * 10_f64.powi(decade)));
    all.filter(|tick| (low..=high).contains(tick)).collect()
}

/// Formats a number with as many digits as a round number needs.
fn number(value: f64) -> String {
    let digits_wanted = 3.0 - value.abs().max(f64::MIN_POSITIVE).log10().ceil();
    let text = format!("{value:.*}", digits_wanted.clamp(0.0, 12.0) as usize);
    if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_owned() } else { text }
}

/// Returns the range of the accuracy axis, with a margin, within the possible values.
fn accuracies(data: &Tradeoff<'_>) -> std::ops::Range<f64> {
    let all = || {
        let points = data.points.iter().flat_map(|point| match point.role {
            Role::Cascade => vec![point.accuracy, point.interval.0, point.interval.1],
            _ => vec![point.accuracy],
        });
        points.chain(data.curve.iter().map(|(_, accuracy)| *accuracy)).filter(|accuracy| accuracy.is_finite())
    };
    let (low, high) = (all().fold(1.0, f64::min), all().fold(0.0, f64::max));
    // A range that is not empty if all are the same.
    let room = ((high - low) * 0.08).max(0.0005);
    (low - room).max(0.0)..(high + room).min(1.0 + room / 2.0)
}

/// Returns the mark and colour of each point: models and fusions differ by colour, baselines by shape.
fn looks(points: &[Point]) -> impl Iterator<Item = (Mark, RGBColor)> {
    const RINGS: [Mark; 2] = [Mark::Ring, Mark::WideRing];
    const BASELINES: [Mark; 3] = [Mark::Triangle, Mark::Diamond, Mark::Cross];
    let index_of =
        |index: usize| points[..index].iter().filter(|earlier| earlier.role == points[index].role).count();
    // The last colour is the cascade's.
    let colour = |index: usize| COLOURS[index % (COLOURS.len() - 1)];
    points.iter().enumerate().map(move |(place, point)| {
        let index = index_of(place);
        match point.role {
            Role::Model => (Mark::Circle, colour(index)),
            Role::Fusion => (Mark::Square, colour(index)),
            Role::Cascade => (Mark::Star, VERMILLION),
            Role::Choice => (RINGS[index % RINGS.len()], INK),
            Role::Baseline => (BASELINES[index % BASELINES.len()], INK),
        }
    })
}
