//! The plot of a confusion matrix.

use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, VPos};

use super::style::{
    BLUE, INK, PALE, SMALL_SIZE, TEXT_SIZE, VERMILLION, placed, register_font, short, text, width,
};
use super::{Area, DrawError, Plot, plot};

/// The side of all cells together, in pixels, unless a cell would be too large or too small.
const CELLS: u32 = 1600;
/// The smallest cell, which just has room for its number.
const CELL_MIN: u32 = 36;
const CELL_MAX: u32 = 220;
/// The smallest size of names.
const NAME_MIN: u32 = 22;
/// The least intensity of a cell that is not 0.
const PALEST: f64 = 0.12;
/// The padding around names.
const GAP: i32 = 18;
/// The room for the title of an axis, and for the text above the cells.
const TITLE_HEIGHT: i32 = 60;

/// A confusion matrix.
#[derive(Debug, Clone)]
pub(crate) struct Confusion {
    pub(crate) labels: Vec<String>,
    /// The counts, with a row for each true label and a column for each answer.
    pub(crate) counts: Vec<Vec<usize>>,
}

/// The layout of the plot.
struct Layout {
    cell: i32,
    /// The side of all cells together.
    cells: i32,
    /// The distance of the cells from the left edge.
    left: i32,
    /// The height of the part below the cells.
    below: i32,
    name_size: u32,
    number_size: u32,
    /// True if the names below the cells are rotated, because they are wider than a cell.
    upright: bool,
}

impl Layout {
    fn of(data: &Confusion) -> Self {
        let count = u32::try_from(data.labels.len()).unwrap_or(u32::MAX).max(1);
        let cell = (CELLS / count).clamp(CELL_MIN, CELL_MAX);
        let name_size = (cell * 2 / 3).clamp(NAME_MIN, SMALL_SIZE);
        let style = text(name_size, &INK);
        let longest = data.labels.iter().map(|label| width(&short(label), &style)).max().unwrap_or(0);
        let most = data.counts.iter().flatten().max().copied().unwrap_or(0);
        let digits = most.to_string().len().max(2) as u32;
        let cell_width = cell as i32;
        let upright = longest + GAP > cell_width;
        Self {
            cell: cell_width,
            cells: cell_width * count as i32,
            left: TITLE_HEIGHT + longest + 2 * GAP,
            below: TITLE_HEIGHT + 2 * GAP + if upright { longest } else { name_size as i32 },
            name_size,
            number_size: (cell * 8 / 5 / digits).clamp(12, 40),
            upright,
        }
    }
}

/// Draws the matrix, each row coloured by its shares.
pub(crate) fn confusion(name: &str, title: &str, data: &Confusion) -> Result<Plot, String> {
    register_font()?;
    let layout = Layout::of(data);
    let size = (layout.left + layout.cells + 40, TITLE_HEIGHT + layout.cells + layout.below);
    plot(name, title, (size.0 as u32, size.1 as u32), |area| {
        draw_frame(area, &layout)?;
        draw_names(area, data, &layout)?;
        for (row, counts) in data.counts.iter().enumerate() {
            let total = counts.iter().sum::<usize>().max(1) as f64;
            for (column, &count) in counts.iter().enumerate().filter(|(_, count)| **count > 0) {
                draw_cell(area, &layout, (row, column), (count, count as f64 / total))?;
            }
        }
        Ok(())
    })
}

fn draw_frame(area: &Area<'_>, layout: &Layout) -> Result<(), DrawError> {
    let Layout { cell, cells, left, below, .. } = *layout;
    let (top, title) = (TITLE_HEIGHT, text(TEXT_SIZE, &INK));
    let answer = placed(&title, HPos::Center, VPos::Bottom);
    area.draw_text("answer", &answer, (left + cells / 2, top + cells + below - 12))?;
    let truth = placed(&title.transform(FontTransform::Rotate270), HPos::Center, VPos::Top);
    area.draw_text("truth", &truth, (10, top + cells / 2))?;
    let key = placed(&text(SMALL_SIZE, &INK), HPos::Left, VPos::Top);
    area.draw_text("images; the darker, the larger the share of the true label", &key, (10, 14))?;
    for line in 0..=cells / cell {
        let (x, y) = (left + line * cell, top + line * cell);
        area.draw(&PathElement::new(vec![(x, top), (x, top + cells)], PALE))?;
        area.draw(&PathElement::new(vec![(left, y), (left + cells, y)], PALE))?;
    }
    Ok(())
}

fn draw_names(area: &Area<'_>, data: &Confusion, layout: &Layout) -> Result<(), DrawError> {
    let Layout { cell, cells, left, .. } = *layout;
    let style = text(layout.name_size, &INK);
    let of_column = if layout.upright {
        placed(&style.transform(FontTransform::Rotate270), HPos::Right, VPos::Center)
    } else {
        placed(&style, HPos::Center, VPos::Top)
    };
    let of_row = placed(&style, HPos::Right, VPos::Center);
    for (label, index) in data.labels.iter().zip(0..) {
        let middle = index * cell + cell / 2;
        area.draw_text(&short(label), &of_row, (left - GAP, TITLE_HEIGHT + middle))?;
        area.draw_text(&short(label), &of_column, (left + middle, TITLE_HEIGHT + cells + GAP))?;
    }
    Ok(())
}

/// Returns the colour of a cell: blue for right answers, vermillion for wrong ones, with the square root of
/// the share as its intensity, so that rare ones are visible.
fn draw_cell(
    area: &Area<'_>,
    layout: &Layout,
    (row, column): (usize, usize),
    (count, share): (usize, f64),
) -> Result<(), DrawError> {
    let colour = if row == column { BLUE } else { VERMILLION };
    let x = layout.left + column as i32 * layout.cell;
    let y = TITLE_HEIGHT + row as i32 * layout.cell;
    let strength = share.sqrt().max(PALEST);
    let corners = [(x + 1, y + 1), (x + layout.cell - 1, y + layout.cell - 1)];
    area.draw(&Rectangle::new(corners, colour.mix(strength).filled()))?;
    let ink: &RGBColor = if strength > 0.6 { &WHITE } else { &INK };
    let style = placed(&text(layout.number_size, ink), HPos::Center, VPos::Center);
    area.draw_text(&count.to_string(), &style, (x + layout.cell / 2, y + layout.cell / 2))
}
