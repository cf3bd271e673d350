//! Reads the options of `[models.NAME]` that only some architectures take. It knows no architecture: each
//! describes its own options.

use concord_actors::{Diagnostic, not_one_of};
use concord_models::{Architecture, OptionFault, OptionProblem, OptionSpec, OptionStep, OptionTable};
use concord_policy::PathPart;
use serde_json::{Map, Value};

use super::section::{unknown_key, wrong_type};

/// The options of a model that its architecture describes.
#[derive(Debug, Default)]
pub(super) struct OwnOptions {
    pub(super) table: OptionTable,
    /// The keys that the architecture reads.
    pub(super) keys: Vec<&'static str>,
    /// The faults, with paths that start inside the model's table.
    pub(super) faults: Vec<Diagnostic>,
    /// True if every value is of the right type.
    pub(super) is_intact: bool,
}

impl OwnOptions {
    /// Takes the options of `architectures` out of a model's table, and reads those of its own architecture.
    /// If it names none of them, the values are checked for whichever architecture has such an option.
    pub(super) fn take(model: &mut Value, architectures: &[Architecture]) -> Self {
        let name = model.get("architecture").and_then(Value::as_str).unwrap_or_default().to_owned();
        let architecture = architectures.iter().find(|one| one.name == name);
        let mut all: Vec<OptionSpec> = Vec::new();
        for spec in architectures.iter().flat_map(|one| one.options) {
            if all.iter().all(|known| known.name != spec.name) {
                all.push(*spec);
            }
        }
        let specs = architecture.map_or(&all[..], |one| one.options);
        let mut own = Self { keys: specs.iter().map(|spec| spec.name).collect(), ..Self::default() };
        let mut given = Map::new();
        if let Some(table) = model.as_object_mut() {
            for spec in &all {
                if let Some(value) = table.shift_remove(spec.name) {
                    if own.keys.contains(&spec.name) {
                        given.insert(spec.name.to_owned(), value);
                    } else {
                        let message = misplaced(spec.name, &name, architectures);
                        own.faults.push(Diagnostic::new(vec![spec.name.into()], message));
                    }
                }
            }
        }
        let (table, faults) = OptionTable::read(specs, &given);
        own.table = table;
        own.is_intact = !faults.iter().any(|fault| matches!(fault.problem, OptionProblem::WrongType { .. }));
        own.faults.extend(faults.into_iter().map(fault_of));
        own
    }
}

/// Returns the message for an option that only other architectures take.
fn misplaced(key: &str, architecture: &str, architectures: &[Architecture]) -> String {
    let takes = |one: &&Architecture| one.options.iter().any(|spec| spec.name == key);
    let takers: Vec<&str> = architectures.iter().filter(takes).map(|one| one.name).collect();
    format!("not an option of architecture {architecture}: only {} takes it", takers.join(" or "))
}

fn fault_of(fault: OptionFault) -> Diagnostic {
    let path: Vec<PathPart> = fault
        .path
        .into_iter()
        .map(|step| match step {
            OptionStep::Key(key) => PathPart::Key(key),
            OptionStep::Index(index) => PathPart::Index(index),
        })
        .collect();
    let message = match fault.problem {
        OptionProblem::WrongType { found, wanted } => wrong_type(&found, wanted),
        OptionProblem::OutOfRange { value, min, max } => {
            format!("{value} is out of range: must be from {min} to {max}")
        }
        OptionProblem::NotOneOf { value, what, allowed } => not_one_of(&value, what, allowed.iter().copied()),
        OptionProblem::UnknownKey { known } => match path.last() {
            Some(PathPart::Key(key)) => unknown_key(key, &known),
            _ => unknown_key("", &known),
        },
        OptionProblem::Invalid(message) => message,
    };
    Diagnostic::new(path, message)
}

#[cfg(test)]
mod tests {
    use concord_models::{ModelError, OptionKind};
    use serde_json::json;

    use super::*;

    const SIZE: OptionSpec = OptionSpec::whole("size", [1, 9], 3, "A size.");
    const DEEP: OptionSpec = OptionSpec { name: "deep", kind: OptionKind::Table(&[SIZE]), doc: "A table." };
    const LOUD: OptionSpec = OptionSpec::flag("loud", false, "A flag.");

    /// Architectures that the registry does not have: nothing here depends on those that it has.
    const ARCHITECTURES: [Architecture; 2] = [
        Architecture { name: "one", options: &[SIZE, DEEP], ..NOTHING },
        Architecture { name: "other", options: &[LOUD], ..NOTHING },
    ];
    const NOTHING: Architecture = Architecture {
        name: "",
        model_types: &[],
        capabilities: &[],
        options: &[],
        fp8: &[],
        load: |_, _, _| Err(ModelError::NotPrepared),
    };

    fn take(model: Value) -> (Value, OwnOptions) {
        let mut model = model;
        let own = OwnOptions::take(&mut model, &ARCHITECTURES);
        (model, own)
    }

    #[test]
    fn an_option_of_its_own_is_read_for_its_architecture_and_is_in_the_cache_key() {
        let (rest, own) =
            take(json!({ "architecture": "one", "snapshot": "s", "size": 7, "deep": { "size": 2 } }));
        assert_eq!(rest, json!({ "architecture": "one", "snapshot": "s" }));
        assert!(own.faults.is_empty() && own.is_intact, "{:?}", own.faults);
        assert_eq!((own.table.whole(&SIZE), own.table.table(&DEEP).whole(&SIZE)), (7, 2));
        assert_eq!(own.keys, ["size", "deep"]);
        let (_, default) = take(json!({ "architecture": "one" }));
        assert_eq!(default.table.whole(&SIZE), 3);
        assert_ne!(default.table.key_material(), own.table.key_material());
    }

    #[test]
    fn every_fault_is_reported_at_its_path() {
        let (_, own) = take(json!({
            "architecture": "one", "size": 10, "deep": { "sise": 1, "size": "x" }, "loud": true,
        }));
        let texts: Vec<String> = own.faults.iter().map(Diagnostic::to_string).collect();
        let expected = [
            "loud: not an option of architecture one: only other takes it",
            "size: 10 is out of range: must be from 1 to 9",
            "deep.size: \"x\" is of the wrong type: must be a whole number, 0 or more",
            "deep.sise: unknown key (did you mean \"size\"?): must be one of size",
        ];
        assert_eq!(texts, expected);
        assert!(!own.is_intact);
    }

    #[test]
    fn values_are_checked_even_if_the_architecture_is_unknown() {
        let (_, own) = take(json!({ "architecture": "onne", "size": 0, "loud": true }));
        let texts: Vec<String> = own.faults.iter().map(Diagnostic::to_string).collect();
        assert_eq!(texts, ["size: 0 is out of range: must be from 1 to 9"]);
    }
}
