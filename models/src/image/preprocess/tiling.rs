//! Cuts an image as Molmo2 does: one view of the whole, then overlapping crops of an enlarged or reduced
//! copy, whose patches are pooled into image tokens. Follows transformers' `image_processing_molmo2.py`.

use tch::{TchError, Tensor};

use crate::snapshot::limits::{PATCH_MAX, in_range};

/// The largest side of a crop, in pixels; published models have crops of 378 pixels.
const CROP_MAX: i64 = 2048;
/// The most crops of an image; published models have at most 24.
const CROPS_MAX: i64 = 64;
const POOLING_MAX: i64 = 64;

/// The tiling settings of `preprocessor_config.json`.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Tiling {
    /// The side of a crop, in pixels.
    pub(crate) crop: i64,
    /// The side of a patch, in pixels.
    pub(crate) patch: i64,
    /// The number of patches that a crop shares with its neighbours before and after it: each crop keeps the
    /// patches outside its margins.
    pub(crate) margins: [i64; 2],
    /// The rows and columns of the patches that make one token.
    pub(crate) pooling: [i64; 2],
    /// The most crops, not counting the view of the whole image.
    pub(crate) max_crops: i64,
}

/// The crops and tokens of one image.
#[derive(Debug)]
pub struct Tiles {
    /// The rows and columns of tokens of the whole view, then those of all crops together.
    pub grid: [i64; 4],
    /// The patches of each token, [tokens, pooling], counted through all crops; −1 where there is none.
    pub pooling: Tensor,
}

/// The layout of crops for an image of one size.
#[derive(Debug, PartialEq)]
pub(crate) struct Plan {
    /// The rows and columns of crops.
    tiles: [i64; 2],
    /// The height and width of the copy that is cut.
    pub(crate) canvas: [i64; 2],
}

impl Tiling {
    /// Checks the assumptions of the computation.
    pub(crate) fn check(&self) -> Result<(), String> {
        in_range("patch_size", self.patch, 1..=PATCH_MAX)?;
        in_range("size", self.crop, self.patch..=CROP_MAX)?;
        in_range("max_crops", self.max_crops, 1..=CROPS_MAX)?;
        for side in 0..2 {
            in_range("pooling_size", self.pooling[side], 1..=POOLING_MAX)?;
            in_range("overlap_margins", self.margins[side], 0..=self.crop_patches() - 1)?;
        }
        if self.crop % self.patch != 0 {
            return Err(format!("size {} is not a multiple of patch_size {}", self.crop, self.patch));
        }
        if self.window_patches() < 1 {
            return Err(format!("overlap_margins {:?} leave nothing of a crop", self.margins));
        }
        Ok(())
    }

    fn crop_patches(&self) -> i64 {
        self.crop / self.patch
    }

    /// Returns the distance from one crop to the next, in patches.
    fn window_patches(&self) -> i64 {
        self.crop_patches() - self.margins[0] - self.margins[1]
    }

    pub(crate) fn plan(&self, height: u32, width: u32) -> Plan {
        let margin = (self.margins[0] + self.margins[1]) * self.patch;
        let window = self.window_patches() * self.patch;
        let inner = [i64::from(height) - margin, i64::from(width) - margin];
        let tiles = select_tiles(inner, window, self.max_crops);
        Plan { tiles, canvas: tiles.map(|count| count * window + margin) }
    }

    /// Cuts the whole view and the canvas, each [3, height, width], into patches [1 + crops, patches,
    /// patch·patch·3], with the values of a patch in the order row, column, channel.
    pub(crate) fn patches(&self, plan: &Plan, whole: &Tensor, canvas: &Tensor) -> Result<Tensor, TchError> {
        let (patch, side) = (self.patch, self.crop_patches());
        let step = self.window_patches() * patch;
        let cut = |image: &Tensor, [rows, columns]: [i64; 2]| {
            image
                .f_unfold(1, self.crop, step)?
                .f_unfold(2, self.crop, step)?
                .f_unflatten(-1, [side, patch])?
                .f_unflatten(-3, [side, patch])?
                .f_permute([1, 2, 3, 5, 4, 6, 0])?
                .f_reshape([rows * columns, side * side, patch * patch * 3])
        };
        Tensor::f_cat(&[cut(whole, [1, 1])?, cut(canvas, plan.tiles)?], 0)
    }

    /// Returns all rows and columns of crops that an image may be cut into, if they are no more than `crops`.
    pub(crate) fn layouts(&self, crops: i64) -> Vec<[i64; 2]> {
        candidates(self.max_crops.min(crops))
    }

    /// Returns the shape of the patches of an image that is cut into these rows and columns of crops.
    pub(crate) fn shape(&self, [rows, columns]: [i64; 2]) -> [i64; 3] {
        [1 + rows * columns, self.crop_patches() * self.crop_patches(), self.patch * self.patch * 3]
    }

    /// Returns the tokens of an image that is cut according to `plan`.
    pub(crate) fn tiles(&self, plan: &Plan) -> Result<Tiles, TchError> {
        self.layout_tiles(plan.tiles)
    }

    /// Returns the tokens of an image that is cut into these rows and columns of crops.
    pub(crate) fn layout_tiles(&self, layout: [i64; 2]) -> Result<Tiles, TchError> {
        let side = self.crop_patches();
        let (mut windows, whole) = pool(&in_one_crop(side), self.pooling);
        let first = side * side;
        let (of_crops, crops) = pool(&self.canvas_patches(layout), self.pooling);
        windows.extend(of_crops.iter().map(|&index| if index < 0 { index } else { index + first }));
        let width = self.pooling[0] * self.pooling[1];
        let pooling = Tensor::f_from_slice(&windows)?.f_view([-1, width])?;
        Ok(Tiles { grid: [whole[0], whole[1], crops[0], crops[1]], pooling })
    }

    /// Returns, for each patch of the canvas, its index among those of the crops: where crops overlap, the
    /// patch comes from the crop that does not have it in its margin.
    fn canvas_patches(&self, [rows, columns]: [i64; 2]) -> Vec<Vec<i64>> {
        let side = self.crop_patches();
        let across = self.owners(columns);
        let index = |(tile_row, row): (i64, i64), (tile_column, column): (i64, i64)| {
            (tile_row * columns + tile_column) * side * side + row * side + column
        };
        let line = |down: (i64, i64)| across.iter().map(|&column| index(down, column)).collect();
        self.owners(rows).into_iter().map(line).collect()
    }

    /// Returns, along one axis and for each patch of the canvas, the crop that keeps it and its position in
    /// that crop.
    fn owners(&self, tiles: i64) -> Vec<(i64, i64)> {
        let kept = |tile: i64| {
            let begin = if tile == 0 { 0 } else { self.margins[0] };
            let end = self.crop_patches() - if tile == tiles - 1 { 0 } else { self.margins[1] };
            (begin..end).map(move |patch| (tile, patch))
        };
        (0..tiles).flat_map(kept).collect()
    }
}

fn in_one_crop(side: i64) -> Vec<Vec<i64>> {
    (0..side).map(|row| (row * side..(row + 1) * side).collect()).collect()
}

/// Returns all rows and columns of at most `max_tiles` tiles.
fn candidates(max_tiles: i64) -> Vec<[i64; 2]> {
    (1..=max_tiles).flat_map(|rows| (1..=max_tiles / rows).map(move |columns| [rows, columns])).collect()
}

/// Returns the rows and columns of at most `max_tiles` tiles for an image of this height and width: those
/// that need the least enlargement, or, where all are smaller than the image, the least reduction. Computes
/// in fp32, because rounding decides.
fn select_tiles([height, width]: [i64; 2], side: i64, max_tiles: i64) -> [i64; 2] {
    let mut candidates = candidates(max_tiles);
    candidates.sort_by_key(|&[rows, columns]| (rows * columns, rows));
    let scale = |&[rows, columns]: &[i64; 2]| {
        let along = |tiles: i64, length: i64| (tiles * side) as f32 / length as f32;
        along(rows, height).min(along(columns, width))
    };
    let scales: Vec<f32> = candidates.iter().map(scale).collect();
    let enlarges = scales.iter().any(|&scale| scale >= 1.0);
    // The first of equals wins.
    let mut best = 0;
    for (index, &scale) in scales.iter().enumerate() {
        let better = match enlarges {
            true => scale >= 1.0 && (scales[best] < 1.0 || scale < scales[best]),
            false => scale > scales[best],
        };
        if better {
            best = index;
        }
    }
    candidates[best]
}

/// Groups a grid into windows of rows × columns, padded evenly with −1 on all sides. Returns the windows one
/// after the other, each row by row, and the number of windows down and across.
fn pool(grid: &[Vec<i64>], [rows, columns]: [i64; 2]) -> (Vec<i64>, [i64; 2]) {
    let (height, width) = (grid.len() as i64, grid.first().map_or(0, Vec::len) as i64);
    let counts = [(height + rows - 1) / rows, (width + columns - 1) / columns];
    let (above, before) = ((counts[0] * rows - height) / 2, (counts[1] * columns - width) / 2);
    let at = |row: i64, column: i64| {
        let line = usize::try_from(row - above).ok().and_then(|row| grid.get(row));
        let found = usize::try_from(column - before).ok().and_then(|column| line?.get(column));
        found.copied().unwrap_or(-1)
    };
    let mut windows = Vec::new();
    for down in 0..counts[0] {
        for across in 0..counts[1] {
            for row in 0..rows {
                windows.extend((0..columns).map(|column| at(down * rows + row, across * columns + column)));
            }
        }
    }
    (windows, counts)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PUBLISHED: Tiling = Tiling { crop: 378, patch: 14, margins: [4, 4], pooling: [2, 2], max_crops: 8 };

    /// Heights and widths, with the results of `Molmo2ImageProcessor.get_image_grid_and_crops` of
    /// transformers 5.23.
    const GRIDS: [((u32, u32), [i64; 4]); 11] = [
        ((1, 1), [14, 14, 14, 14]),
        ((100, 2000), [14, 14, 14, 14]),
        ((378, 378), [14, 14, 14, 14]),
        ((112, 300), [14, 14, 14, 14]),
        ((300, 112), [14, 14, 14, 14]),
        ((480, 640), [14, 14, 23, 23]),
        ((640, 480), [14, 14, 23, 23]),
        ((1080, 1920), [14, 14, 23, 42]),
        ((4000, 200), [14, 14, 80, 14]),
        ((777, 1333), [14, 14, 23, 42]),
        ((5000, 5000), [14, 14, 23, 23]),
    ];

    #[test]
    fn grids_are_those_of_the_reference() {
        for ((height, width), grid) in GRIDS {
            let tiles = PUBLISHED.tiles(&PUBLISHED.plan(height, width)).unwrap();
            assert_eq!(tiles.grid, grid, "{height} × {width}");
            assert_eq!(tiles.pooling.size(), [grid[0] * grid[1] + grid[2] * grid[3], 4]);
        }
    }

    #[test]
    fn windows_are_filled_up_on_both_sides() {
        let windows = [[0, 1, 3, 4], [2, -1, 5, -1], [6, 7, -1, -1], [8, -1, -1, -1]];
        assert_eq!(pool(&in_one_crop(3), [2, 2]), (windows.concat(), [2, 2]));
        // Two are missing, one on each side.
        assert_eq!(pool(&[vec![7]], [1, 3]), (vec![-1, 7, -1], [1, 1]));
    }

    #[test]
    fn overlapping_crops_keep_what_is_not_in_the_margin() {
        let tiling = Tiling { crop: 5, patch: 1, margins: [1, 1], pooling: [1, 1], max_crops: 4 };
        assert_eq!(
            tiling.owners(2),
            [(0, 0), (0, 1), (0, 2), (0, 3), (1, 1), (1, 2), (1, 3), (1, 4)],
            "a canvas of 2 · 3 + 2 patches"
        );
        assert_eq!(tiling.canvas_patches([1, 1]), in_one_crop(5));
    }

    #[test]
    fn sizes_that_make_no_sense_are_refused() {
        for broken in [
            Tiling { patch: 0, ..PUBLISHED },
            Tiling { crop: 377, ..PUBLISHED },
            Tiling { margins: [14, 13], ..PUBLISHED },
            Tiling { margins: [-1, 4], ..PUBLISHED },
            Tiling { pooling: [0, 2], ..PUBLISHED },
            Tiling { max_crops: 1_000_000, ..PUBLISHED },
        ] {
            assert!(broken.check().is_err(), "{broken:?}");
        }
        PUBLISHED.check().unwrap();
    }
}
