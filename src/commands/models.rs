//! `concord models`: which models the configuration names, and whether they load.

use std::process::ExitCode;

use comfy_table::{Cell, CellAlignment, Table, presets};
use concord_actors::policy::Policy;
use concord_models::{device_name, dtype_name};
use serde_json::json;

use super::{EXIT_UNUSABLE, EnsembleArgs, say, warn, with_engine};
use crate::config::Ensemble;

/// List the configured models, loaded: where they are, how large, for which tasks.
#[derive(Debug, clap::Args)]
pub struct ModelsArgs {
    #[command(flatten)]
    ensemble: EnsembleArgs,
    /// Print one JSON object a line
    #[arg(long)]
    json: bool,
}

/// Loads all models and lists them.
pub fn run(args: &ModelsArgs) -> ExitCode {
    let listed = args.ensemble.read().and_then(|ensemble| list(&ensemble, args.json));
    match listed {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            warn(&message);
            ExitCode::from(EXIT_UNUSABLE)
        }
    }
}

fn list(ensemble: &Ensemble, as_json: bool) -> Result<(), String> {
    let models = with_engine(ensemble, None, async |engine| engine.models())?;
    let mut table = Table::new();
    table.load_preset(presets::UTF8_HORIZONTAL_ONLY).set_header([
        "model",
        "architecture",
        "snapshot",
        "device",
        "dtype",
        "parameters",
        "tasks",
    ]);
    for model in models {
        let (name, options, place) = (model.name.as_str(), &model.options, model.placement);
        let asked = |policy: &Policy| policy.members().any(|member| member.model().as_ref() == name);
        let tasks: Vec<&str> = ensemble
            .tasks()
            .iter()
            .filter(|(_, policy)| asked(policy))
            .map(|(task, _)| task.as_str())
            .collect();
        if as_json {
            say(&json!({
                "model": name, "architecture": options.architecture, "snapshot": options.snapshot,
                "device": device_name(place.device), "dtype": dtype_name(place.kind),
                "parameters": model.parameters, "tasks": tasks,
            }));
            continue;
        }
        table.add_row([
            Cell::new(name),
            Cell::new(&options.architecture),
            Cell::new(options.snapshot.display()),
            Cell::new(device_name(place.device)),
            Cell::new(dtype_name(place.kind)),
            Cell::new(millions(model.parameters)).set_alignment(CellAlignment::Right),
            Cell::new(tasks.join(", ")),
        ]);
    }
    if !as_json {
        say(&table);
    }
    Ok(())
}

fn millions(parameters: i64) -> String {
    format!("{:.1} M", parameters as f64 / 1e6)
}
