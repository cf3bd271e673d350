//! The style of all plots: colours, sizes, marks, and legends.

use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};
use plotters::style::{TextStyle, register_font as register};

use super::{Area, DrawError};

/// The font of all text, which is also the name by which a browser finds its own sans-serif font.
pub(super) const FONT: &str = "sans-serif";
/// Sizes in pixels. Plots are drawn at twice the size at which they are shown, because coordinates are whole
/// pixels.
pub(super) const TITLE_SIZE: u32 = 36;
pub(super) const TEXT_SIZE: u32 = 29;
pub(super) const SMALL_SIZE: u32 = 25;
/// The number of characters to which legend entries and names of labels are cut.
const WORDS_MAX: usize = 34;

/// Colours that people with any kind of colour vision can tell apart (Okabe and Ito 2008, "Color Universal
/// Design"); its yellow, too pale for a line on white, is left out.
pub(super) const COLOURS: [RGBColor; 6] = [
    RGBColor(0, 114, 178),
    RGBColor(230, 159, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(86, 180, 233),
    RGBColor(213, 94, 0),
];
pub(super) const BLUE: RGBColor = COLOURS[0];
pub(super) const VERMILLION: RGBColor = COLOURS[5];
pub(super) const INK: RGBColor = RGBColor(40, 40, 40);
pub(super) const GREY: RGBColor = RGBColor(130, 130, 130);
pub(super) const PALE: RGBColor = RGBColor(225, 225, 225);

/// The shape of a mark, so that series never differ in colour only.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mark {
    Circle,
    Ring,
    WideRing,
    Square,
    Diamond,
    Triangle,
    Cross,
    Star,
}

/// The marks of the first, second, … series.
pub(super) fn series(index: usize) -> (RGBColor, Mark) {
    const MARKS: [Mark; 5] = [Mark::Square, Mark::Triangle, Mark::Diamond, Mark::Cross, Mark::Circle];
    (COLOURS[index % COLOURS.len()], MARKS[index % MARKS.len()])
}

/// Registers the embedded font with the library that measures text. It is idempotent.
pub(super) fn register_font() -> Result<(), String> {
    register(FONT, FontStyle::Normal, ttf_noto_sans::REGULAR)
        .map_err(|_| "the embedded font cannot be read".to_owned())
}

/// Returns the text style of this size.
pub(super) fn text(size: u32, colour: &'static RGBColor) -> TextStyle<'static> {
    TextStyle::from((FONT, size).into_font()).color(colour)
}

/// Returns the style with an anchor.
pub(super) fn placed(style: &TextStyle<'static>, across: HPos, down: VPos) -> TextStyle<'static> {
    style.pos(Pos::new(across, down))
}

/// Cuts text to the room of a legend.
pub(super) fn short(words: &str) -> String {
    if words.chars().count() <= WORDS_MAX {
        return words.to_owned();
    }
    let kept: String = words.chars().take(WORDS_MAX - 1).collect();
    format!("{}…", kept.trim_end())
}

/// Returns the width of text in pixels.
pub(super) fn width(words: &str, style: &TextStyle<'_>) -> i32 {
    // Measuring with the embedded font cannot fail.
    style.font.box_size(words).map_or(0, |(width, _)| i32::try_from(width).unwrap_or(i32::MAX))
}

/// Draws a mark around a point of the whole plot.
pub(super) fn mark(area: &Area<'_>, at: (i32, i32), mark: Mark, colour: RGBColor) -> Result<(), DrawError> {
    let (x, y) = at;
    let outline = |corners: &[(i32, i32)]| -> Vec<(i32, i32)> {
        corners.iter().map(|(right, down)| (x + right, y + down)).collect()
    };
    match mark {
        Mark::Circle => area.draw(&Circle::new(at, 10, colour.filled())),
        Mark::Ring => area.draw(&Circle::new(at, 18, colour.stroke_width(4))),
        Mark::WideRing => area.draw(&Circle::new(at, 25, colour.stroke_width(4))),
        Mark::Square => {
            area.draw(&Polygon::new(outline(&[(-10, -10), (10, -10), (10, 10), (-10, 10)]), colour))
        }
        Mark::Diamond => area.draw(&Polygon::new(outline(&[(0, -14), (13, 0), (0, 14), (-13, 0)]), colour)),
        Mark::Triangle => area.draw(&Polygon::new(outline(&[(0, -14), (13, 10), (-13, 10)]), colour)),
        Mark::Cross => {
            let stroke = colour.stroke_width(5);
            area.draw(&PathElement::new(outline(&[(-10, -10), (10, 10)]), stroke))?;
            area.draw(&PathElement::new(outline(&[(-10, 10), (10, -10)]), stroke))
        }
        Mark::Star => area.draw(&Polygon::new(outline(&STAR), colour)),
    }
}

/// The outline of a star: five points on a circle of radius 22, and five between them on one of radius 9.
const STAR: [(i32, i32); 10] =
    [(0, -22), (5, -7), (21, -7), (9, 3), (13, 18), (0, 9), (-13, 18), (-9, 3), (-21, -7), (-5, -7)];

/// The sign of a legend entry.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Sign {
    Mark(Mark, RGBColor),
    Line(RGBColor),
    MarkedLine(Mark, RGBColor),
}

/// The height of an entry.
pub(super) const ENTRY: i32 = 46;
/// The distance from the left edge of an entry to its text.
const SIGN_WIDTH: i32 = 70;

/// Draws entries below each other, from this corner of the plot.
pub(super) fn legend(
    area: &Area<'_>,
    corner: (i32, i32),
    entries: &[(Sign, String)],
) -> Result<(), DrawError> {
    for ((sign, words), row) in entries.iter().zip(0..) {
        let (left, middle) = (corner.0, corner.1 + ENTRY / 2 + row * ENTRY);
        draw_sign(area, (left, middle), *sign)?;
        let style = placed(&text(SMALL_SIZE, &INK), HPos::Left, VPos::Center);
        area.draw_text(&short(words), &style, (left + SIGN_WIDTH, middle))?;
    }
    Ok(())
}

/// Draws entries side by side, in as many rows as they need.
pub(super) fn legend_across(
    area: &Area<'_>,
    corner: (i32, i32),
    entries: &[(Sign, String)],
) -> Result<(), DrawError> {
    let (mut left, mut top) = corner;
    let width = i32::try_from(area.dim_in_pixel().0).unwrap_or(i32::MAX);
    for (sign, words) in entries {
        let style = placed(&text(SMALL_SIZE, &INK), HPos::Left, VPos::Center);
        let words = short(words);
        let needed = SIGN_WIDTH + self::width(&words, &style) + 30;
        if left + needed > width && left > corner.0 {
            (left, top) = (corner.0, top + ENTRY);
        }
        draw_sign(area, (left, top + ENTRY / 2), *sign)?;
        area.draw_text(&words, &style, (left + SIGN_WIDTH, top + ENTRY / 2))?;
        left += needed;
    }
    Ok(())
}

fn draw_sign(area: &Area<'_>, (left, middle): (i32, i32), sign: Sign) -> Result<(), DrawError> {
    let centre = (left + 28, middle);
    let line = |colour: RGBColor| {
        PathElement::new(vec![(left, middle), (left + 56, middle)], colour.stroke_width(4))
    };
    match sign {
        Sign::Mark(shape, colour) => mark(area, centre, shape, colour),
        Sign::Line(colour) => area.draw(&line(colour)),
        Sign::MarkedLine(shape, colour) => {
            area.draw(&line(colour))?;
            mark(area, centre, shape, colour)
        }
    }
}

/// Formats a share as a percentage, with enough decimals to tell apart shares that differ by `step`.
pub(super) fn percent(share: f64, step: f64) -> String {
    let decimals = if step >= 0.01 {
        0
    } else if step >= 0.001 {
        1
    } else {
        2
    };
    format!("{:.decimals$} %", share * 100.0)
}
