//! `concord parity`: compares this implementation's tensors with those of the reference implementation.

use std::path::PathBuf;
use std::process::ExitCode;

use comfy_table::{Cell, CellAlignment, Table, presets};
use concord_models::parity::{Comparison, Unit, check};

use super::{print_line, warn};

/// Compare this implementation with Hugging Face transformers, tensor by tensor.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "A folder holds a snapshot, images and the tensors that transformers computed from them,\n\
    as models/tests/reference/make_parity_fixtures.py writes it. A folder of such folders may be given too.\n\
    Exit status: 0 when all tensors agree, 1 when one does not or a folder cannot be read."
)]
pub struct ParityArgs {
    /// Fixture folders, or folders of fixture folders
    #[arg(required = true, value_name = "DIR")]
    folders: Vec<PathBuf>,
    /// The device: auto, cpu, cuda or cuda:N
    #[arg(long, default_value = "auto")]
    device: String,
    /// Print only the tensors outside their tolerance, or else the one nearest to it
    #[arg(long)]
    brief: bool,
}

/// Checks every folder, and prints a table for each.
pub fn run(args: &ParityArgs) -> ExitCode {
    let mut all_agree = true;
    for folder in args.folders.iter().flat_map(fixtures_in) {
        match check(&folder, &args.device) {
            Ok(comparisons) => {
                all_agree &= comparisons.iter().all(Comparison::passes);
                print_comparisons(&folder.display().to_string(), &comparisons, args.brief);
            }
            Err(error) => {
                all_agree = false;
                warn(&format!("{}: {error}", folder.display()));
            }
        }
    }
    if all_agree { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Returns the folder itself if it is a fixture, or else the fixtures directly inside it.
fn fixtures_in(folder: &PathBuf) -> Vec<PathBuf> {
    if folder.join("meta.json").exists() {
        return vec![folder.clone()];
    }
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    let mut inside: Vec<PathBuf> = entries.filter(|path| path.join("meta.json").exists()).collect();
    inside.sort();
    // A folder without fixtures is tried as one: the error names the missing file.
    if inside.is_empty() { vec![folder.clone()] } else { inside }
}

fn print_comparisons(title: &str, comparisons: &[Comparison], brief: bool) {
    let passed = comparisons.iter().filter(|comparison| comparison.passes()).count();
    let verdict = if passed == comparisons.len() { "agrees" } else { "DIFFERS" };
    print_line(&format!(
        "{title}: {verdict}, {passed} of {} comparisons within tolerance",
        comparisons.len()
    ));
    let mut shown: Vec<&Comparison> = comparisons.iter().collect();
    if brief {
        shown.retain(|comparison| !comparison.passes());
        if shown.is_empty() {
            shown.extend(comparisons.iter().max_by(|a, b| nearness(a).total_cmp(&nearness(b))));
        }
    }
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_header(["tensor", "max error", "tolerance", "unit", ""]);
    for comparison in shown {
        let mark = match (&comparison.fault, comparison.passes()) {
            (Some(fault), _) => fault.as_str(),
            (None, true) => "ok",
            (None, false) => "MISS",
        };
        let number = |value: f64| Cell::new(format!("{value:.3e}")).set_alignment(CellAlignment::Right);
        table.add_row([
            Cell::new(format!("  {}", comparison.tensor)),
            number(comparison.error),
            number(comparison.tolerance),
            Cell::new(unit_name(comparison.unit)),
            Cell::new(mark),
        ]);
    }
    print_line(&format!("{table}\n"));
}

/// Returns the error as a share of the tolerance.
fn nearness(comparison: &Comparison) -> f64 {
    if comparison.tolerance > 0.0 { comparison.error / comparison.tolerance } else { 0.0 }
}

fn unit_name(unit: Unit) -> &'static str {
    match unit {
        Unit::Value => "",
        Unit::PixelStep => "8-bit steps",
        Unit::PixelPercent => "% of values",
        Unit::Entries => "entries",
    }
}
