//! The files that `concord evaluate` writes: a page, and plots.

use std::path::Path;

use super::super::arguments::read_at_most;
use super::super::labeled::VotedImages;
use crate::config::ServerSection;
use crate::evaluate::{Example, Images, Shown, charts, page, samples, sheets};

/// Checks before any model is asked that files can be written there.
///
/// # Errors
/// When there is no such folder, or it cannot be made.
pub(super) fn check(html: Option<&Path>, plots: Option<&Path>) -> Result<(), String> {
    if let Some(html) = html {
        let folder = html.parent().filter(|folder| !folder.as_os_str().is_empty());
        if folder.is_some_and(|folder| !folder.is_dir()) || html.is_dir() {
            return Err(format!("--html {}: name a file in an existing folder", html.display()));
        }
    }
    if let Some(plots) = plots {
        std::fs::create_dir_all(plots).map_err(|error| format!("--plots {}: {error}", plots.display()))?;
    }
    Ok(())
}

/// Writes the requested files.
///
/// # Errors
/// When something cannot be drawn or written.
pub(super) fn write(
    html: Option<&Path>,
    plots: Option<&Path>,
    voted: &VotedImages<'_>,
    shown: &Shown<'_>,
    limits: &ServerSection,
) -> Result<(), String> {
    if html.is_none() && plots.is_none() {
        return Ok(());
    }
    let charts = charts(shown)?;
    if let Some(folder) = plots {
        for plot in charts.iter().map(|chart| &chart.plot) {
            put(&folder.join(format!("{}.svg", plot.name)), plot.svg.as_bytes())?;
            put(&folder.join(format!("{}.png", plot.name)), &plot.png()?)?;
        }
    }
    if let Some(file) = html {
        let read = |example: &Example| {
            read_at_most(&example.path, limits.max_body_bytes).map_err(|problem| problem.detail)
        };
        let images = Images {
            sheets: sheets(shown, &read, limits.image_limits())?,
            samples: samples(shown, &read, limits.image_limits()),
        };
        let page = page(voted.task, &voted.describe(), shown, &charts, &images)?;
        put(file, page.as_bytes())?;
    }
    Ok(())
}

fn put(file: &Path, bytes: &[u8]) -> Result<(), String> {
    std::fs::write(file, bytes).map_err(|error| format!("{}: {error}", file.display()))
}
