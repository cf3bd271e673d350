//! `concord models`: loads the configured models, and lists them.

use std::process::ExitCode;

use comfy_table::Cell;
use concord_policy::Policy;
use serde_json::json;

use super::{EXIT_UNUSABLE, EnsembleArgs, print_line, warn, with_engine};
use crate::config::Ensemble;
use crate::table::{new_table, number};

/// Load the configured models and list them: device, size, memory and tasks.
#[derive(Debug, clap::Args)]
pub struct ModelsArgs {
    #[command(flatten)]
    ensemble: EnsembleArgs,
    /// Print one JSON object per line
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
    let header = [
        "model",
        "architecture",
        "snapshot",
        "device",
        "dtype",
        "parameters",
        "replicas",
        "memory each",
        "tasks",
    ];
    let mut table = new_table(header, true);
    for model in models {
        let (name, options) = (model.name.as_str(), &model.options);
        let memory = model.memory.map(|memory| memory.total());
        let has_member = |policy: &Policy| policy.members().any(|member| member.model().as_ref() == name);
        let tasks: Vec<&str> = ensemble
            .tasks()
            .iter()
            .filter(|(_, policy)| has_member(policy))
            .map(|(task, _)| task.as_str())
            .collect();
        if as_json {
            print_line(&json!({
                "model": name, "architecture": options.architecture, "snapshot": options.snapshot,
                "device": model.device(), "dtype": model.dtype, "parameters": model.parameters,
                "replicas": model.devices, "tasks": tasks, "estimated_bytes": model.memory.map(|memory| json!({
                    "parameters": memory.parameter_bytes, "activations": memory.activation_bytes,
                })),
            }));
            continue;
        }
        table.add_row([
            Cell::new(name),
            Cell::new(&options.architecture),
            Cell::new(options.snapshot.display()),
            Cell::new(model.device()),
            Cell::new(model.dtype),
            number(millions(model.parameters)),
            number(model.devices.len()),
            number(memory.map_or_else(|| "?".to_owned(), megabytes)),
            Cell::new(tasks.join(", ")),
        ]);
    }
    if !as_json {
        print_line(&table);
    }
    Ok(())
}

fn millions(parameters: i64) -> String {
    format!("{:.1} M", parameters as f64 / 1e6)
}

/// Formats an estimate, which is rounded for that reason.
fn megabytes(bytes: u64) -> String {
    format!("{:.0} MB", bytes as f64 / 1e6)
}
