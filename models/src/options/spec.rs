//! Describes the options that only some architectures take, and reads their values from a configuration.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde_json::{Map, Value};

/// The version of the format of [`OptionTable::key_material`]; a new version changes the keys of the same
/// options.
const KEY_FORMAT: &[u8] = b"options 1";

/// The description of one option of `[models.NAME]`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct OptionSpec {
    /// The key in the table.
    pub name: &'static str,
    /// The values that it takes, and its default.
    pub kind: OptionKind,
    /// One sentence for the configuration's reference.
    pub doc: &'static str,
}

/// The values that an option takes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum OptionKind {
    /// A truth value.
    Flag {
        /// The value where none is given.
        default: bool,
    },
    /// A whole number.
    Whole {
        /// The smallest one.
        min: u64,
        /// The largest one.
        max: u64,
        /// The value where none is given.
        default: u64,
    },
    /// One of several words.
    Choice {
        /// The kind of word, with an article, for messages: `a mode`.
        what: &'static str,
        /// The words.
        values: &'static [&'static str],
        /// The value where none is given; it may be given even if it is not one of the words.
        default: &'static str,
    },
    /// Three numbers, for red, green and blue.
    Channels {
        /// True if each must be greater than 0.
        positive: bool,
        /// The value where none is given.
        default: [f64; 3],
    },
    /// A file for each task, by the task's name. It is not part of a cache key, because the file's own digest
    /// is.
    TaskFiles,
    /// A table of further options.
    Table(&'static [OptionSpec]),
}

/// The value of an option.
#[derive(Debug, Clone, PartialEq)]
enum OptionValue {
    Flag(bool),
    Whole(u64),
    Text(String),
    Channels([f64; 3]),
    TaskFiles(BTreeMap<String, PathBuf>),
    Table(OptionTable),
}

/// The values of an architecture's own options, by name. An option that is absent has its default.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct OptionTable(BTreeMap<&'static str, OptionValue>);

/// A value that an option does not accept.
#[derive(Debug, Clone, PartialEq)]
pub struct OptionFault {
    /// The keys and indices that lead to the value, from the model's table inwards.
    pub path: Vec<OptionStep>,
    /// The reason why the value is not accepted.
    pub problem: OptionProblem,
}

/// A step from a table or a list to what it contains.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OptionStep {
    /// A key of a table.
    Key(String),
    /// An index of a list, from 0.
    Index(usize),
}

/// A reason why an option does not accept a value.
#[derive(Debug, Clone, PartialEq)]
pub enum OptionProblem {
    /// The value is of another type.
    WrongType {
        /// The value, or its type where it has parts.
        found: String,
        /// The expected type.
        wanted: &'static str,
    },
    /// The number is too small or too large.
    OutOfRange {
        /// The number.
        value: u64,
        /// The smallest allowed number.
        min: u64,
        /// The largest allowed number.
        max: u64,
    },
    /// The word is not one that the option accepts.
    NotOneOf {
        /// The word.
        value: String,
        /// The expected kind of word, with an article.
        what: &'static str,
        /// The words that are allowed.
        allowed: &'static [&'static str],
    },
    /// The table has an unknown key.
    UnknownKey {
        /// The known keys.
        known: Vec<&'static str>,
    },
    /// Any other reason, in words.
    Invalid(String),
}

impl OptionSpec {
    /// Describes an option that is true or false.
    pub const fn flag(name: &'static str, default: bool, doc: &'static str) -> Self {
        Self { name, kind: OptionKind::Flag { default }, doc }
    }

    /// Describes a whole number from `min` to `max`.
    pub const fn whole(name: &'static str, [min, max]: [u64; 2], default: u64, doc: &'static str) -> Self {
        Self { name, kind: OptionKind::Whole { min, max, default }, doc }
    }

    /// Reads one value, and records its faults.
    fn read(&self, value: &Value, faults: &mut Faults<'_>) -> Option<OptionValue> {
        match self.kind {
            OptionKind::Flag { .. } => match value.as_bool() {
                Some(flag) => Some(OptionValue::Flag(flag)),
                None => faults.wrong_type(value, "true or false"),
            },
            OptionKind::Whole { min, max, .. } => match value.as_u64() {
                Some(number) if (min..=max).contains(&number) => Some(OptionValue::Whole(number)),
                Some(value) => faults.add(OptionProblem::OutOfRange { value, min, max }),
                None => faults.wrong_type(value, "a whole number, 0 or more"),
            },
            OptionKind::Choice { what, values, default } => match value.as_str() {
                Some(text) if values.contains(&text) || text == default => {
                    Some(OptionValue::Text(text.to_owned()))
                }
                Some(text) => {
                    faults.add(OptionProblem::NotOneOf { value: text.to_owned(), what, allowed: values })
                }
                None => faults.wrong_type(value, "a text in quotes"),
            },
            OptionKind::Channels { positive, .. } => read_channels(value, positive, faults),
            OptionKind::TaskFiles => {
                let Some(files) = value.as_object() else { return faults.wrong_type(value, "a table") };
                let mut read = BTreeMap::new();
                for (task, file) in files {
                    match file.as_str() {
                        Some(file) => _ = read.insert(task.clone(), PathBuf::from(file)),
                        None => {
                            let step = OptionStep::Key(task.clone());
                            faults.within::<()>(step, |faults| faults.wrong_type(file, "a text in quotes"));
                        }
                    }
                }
                Some(OptionValue::TaskFiles(read))
            }
            OptionKind::Table(specs) => {
                let Some(table) = value.as_object() else { return faults.wrong_type(value, "a table") };
                Some(OptionValue::Table(OptionTable::read_into(specs, table, faults)))
            }
        }
    }
}

fn read_channels(value: &Value, positive: bool, faults: &mut Faults<'_>) -> Option<OptionValue> {
    let Some(list) = value.as_array() else { return faults.wrong_type(value, "a list") };
    let mut numbers = Vec::new();
    for (index, entry) in list.iter().enumerate() {
        match entry.as_f64() {
            Some(number) => numbers.push(number),
            None => {
                faults.within::<()>(OptionStep::Index(index), |faults| faults.wrong_type(entry, "a number"));
            }
        }
    }
    if numbers.len() < list.len() {
        return None;
    }
    let Ok(channels) = <[f64; 3]>::try_from(numbers) else {
        let message = format!("is a list of {}: must be of 3 numbers, for red, green and blue", list.len());
        return faults.add(OptionProblem::Invalid(message));
    };
    if positive && !channels.iter().all(|&number| number > 0.0 && number.is_finite()) {
        return faults.add(OptionProblem::Invalid(format!("{channels:?} must be greater than 0")));
    }
    Some(OptionValue::Channels(channels))
}

impl OptionTable {
    /// Reads the options that `specs` describe from a model's table. All of them have a value afterwards: the
    /// default where none is given or the given one is faulty.
    pub fn read(specs: &[OptionSpec], given: &Map<String, Value>) -> (Self, Vec<OptionFault>) {
        let (mut path, mut all) = (Vec::new(), Vec::new());
        let table = Self::read_into(specs, given, &mut Faults { path: &mut path, all: &mut all });
        (table, all)
    }

    fn read_into(specs: &[OptionSpec], given: &Map<String, Value>, faults: &mut Faults<'_>) -> Self {
        let mut table = BTreeMap::new();
        for spec in specs {
            let value = given.get(spec.name).and_then(|value| {
                faults.within(OptionStep::Key(spec.name.to_owned()), |faults| spec.read(value, faults))
            });
            table.insert(spec.name, value.unwrap_or_else(|| default_of(spec)));
        }
        for key in given.keys().filter(|key| specs.iter().all(|spec| spec.name != **key)) {
            let known = specs.iter().map(|spec| spec.name).collect();
            faults.within(OptionStep::Key(key.clone()), |faults| {
                faults.add::<()>(OptionProblem::UnknownKey { known })
            });
        }
        Self(table)
    }

    /// Returns the value of a flag.
    pub fn flag(&self, spec: &OptionSpec) -> bool {
        matches!(self.value(spec), OptionValue::Flag(true))
    }

    /// Returns a whole number.
    pub fn whole(&self, spec: &OptionSpec) -> u64 {
        if let OptionValue::Whole(number) = self.value(spec) { number } else { 0 }
    }

    /// Returns the chosen word.
    pub fn choice(&self, spec: &OptionSpec) -> String {
        if let OptionValue::Text(text) = self.value(spec) { text } else { String::new() }
    }

    /// Returns the numbers for red, green and blue.
    pub fn channels(&self, spec: &OptionSpec) -> [f64; 3] {
        if let OptionValue::Channels(numbers) = self.value(spec) { numbers } else { [0.0; 3] }
    }

    /// Returns the file of each task.
    pub fn task_files(&self, spec: &OptionSpec) -> BTreeMap<String, PathBuf> {
        if let OptionValue::TaskFiles(files) = self.value(spec) { files } else { BTreeMap::new() }
    }

    /// Returns the options of a nested table.
    pub fn table(&self, spec: &OptionSpec) -> Self {
        if let OptionValue::Table(table) = self.value(spec) { table } else { Self::default() }
    }

    fn value(&self, spec: &OptionSpec) -> OptionValue {
        self.0.get(spec.name).cloned().unwrap_or_else(|| default_of(spec))
    }

    /// Returns the same options, with the files of `spec` taken from `other`.
    pub(super) fn with_files_of(&self, other: &Self, spec: &OptionSpec) -> Self {
        let mut table = self.clone();
        match other.0.get(spec.name) {
            Some(files) => _ = table.0.insert(spec.name, files.clone()),
            None => _ = table.0.remove(spec.name),
        }
        table
    }

    /// Returns the part of a cache key that these options determine: the name and value of each, one after
    /// the other, every part preceded by its length. Equal bytes mean equal options, for all time: the format
    /// has a version.
    pub fn key_material(&self) -> Vec<u8> {
        let mut bytes = KEY_FORMAT.to_vec();
        self.write_key(&mut bytes);
        bytes
    }

    fn write_key(&self, bytes: &mut Vec<u8>) {
        for (name, value) in &self.0 {
            let (tag, content) = match value {
                OptionValue::Flag(flag) => (b'f', vec![u8::from(*flag)]),
                OptionValue::Whole(number) => (b'w', number.to_le_bytes().to_vec()),
                OptionValue::Text(text) => (b't', text.as_bytes().to_vec()),
                OptionValue::Channels(numbers) => {
                    (b'c', numbers.iter().flat_map(|number| number.to_bits().to_le_bytes()).collect())
                }
                OptionValue::TaskFiles(_) => continue,
                OptionValue::Table(table) => {
                    let mut content = Vec::new();
                    table.write_key(&mut content);
                    (b's', content)
                }
            };
            for part in [name.as_bytes(), &[tag], &content] {
                bytes.extend_from_slice(&(part.len() as u64).to_le_bytes());
                bytes.extend_from_slice(part);
            }
        }
    }
}

fn default_of(spec: &OptionSpec) -> OptionValue {
    match spec.kind {
        OptionKind::Flag { default } => OptionValue::Flag(default),
        OptionKind::Whole { default, .. } => OptionValue::Whole(default),
        OptionKind::Choice { default, .. } => OptionValue::Text(default.to_owned()),
        OptionKind::Channels { default, .. } => OptionValue::Channels(default),
        OptionKind::TaskFiles => OptionValue::TaskFiles(BTreeMap::new()),
        OptionKind::Table(specs) => {
            OptionValue::Table(OptionTable(specs.iter().map(|spec| (spec.name, default_of(spec))).collect()))
        }
    }
}

/// The faults so far, and the reader's position.
struct Faults<'a> {
    path: &'a mut Vec<OptionStep>,
    all: &'a mut Vec<OptionFault>,
}

impl Faults<'_> {
    fn within<T>(&mut self, step: OptionStep, read: impl FnOnce(&mut Faults<'_>) -> Option<T>) -> Option<T> {
        self.path.push(step);
        let read = read(self);
        self.path.pop();
        read
    }

    fn add<T>(&mut self, problem: OptionProblem) -> Option<T> {
        self.all.push(OptionFault { path: self.path.clone(), problem });
        None
    }

    fn wrong_type<T>(&mut self, value: &Value, wanted: &'static str) -> Option<T> {
        let found = match value {
            Value::Object(_) => "a table".to_owned(),
            Value::Array(_) => "a list".to_owned(),
            Value::Null => "no value".to_owned(),
            simple => simple.to_string(),
        };
        self.add(OptionProblem::WrongType { found, wanted })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const SPECS: &[OptionSpec] = &[
        OptionSpec::flag("lowercase", true, ""),
        OptionSpec::whole("passes", [0, 256], 8, ""),
        OptionSpec {
            name: "mode",
            kind: OptionKind::Choice { what: "a mode", values: &["fast", "slow"], default: "" },
            doc: "",
        },
        OptionSpec { name: "files", kind: OptionKind::TaskFiles, doc: "" },
        OptionSpec { name: "input", kind: OptionKind::Table(INPUT), doc: "" },
    ];
    const INPUT: &[OptionSpec] = &[
        OptionSpec::whole("height", [1, 64], 16, ""),
        OptionSpec { name: "std", kind: OptionKind::Channels { positive: true, default: [1.0; 3] }, doc: "" },
    ];

    fn read(given: &Value) -> (OptionTable, Vec<OptionFault>) {
        OptionTable::read(SPECS, given.as_object().unwrap())
    }

    #[test]
    fn options_have_the_given_values_or_their_defaults() {
        let (table, faults) =
            read(&json!({ "passes": 3, "files": { "t": "f" }, "input": { "std": [1, 2.5, 3] } }));
        assert_eq!(faults, []);
        assert!(table.flag(&SPECS[0]));
        assert_eq!((table.whole(&SPECS[1]), table.choice(&SPECS[2]).as_str()), (3, ""));
        assert_eq!(table.task_files(&SPECS[3])["t"], PathBuf::from("f"));
        let input = table.table(&SPECS[4]);
        assert_eq!((input.whole(&INPUT[0]), input.channels(&INPUT[1])), (16, [1.0, 2.5, 3.0]));
        // An empty nested table has the same values.
        assert_eq!(OptionTable::default().table(&SPECS[4]).whole(&INPUT[0]), 16);
        assert_eq!(read(&json!({ "mode": "" })), read(&json!({})));
    }

    #[test]
    fn all_faults_are_found_at_once_each_in_its_place() {
        let (_, faults) = read(&json!({
            "lowercase": 1, "passes": 257, "mode": "quick", "files": { "t": 3 },
            "input": { "height": -1, "std": [1, "x"], "widht": 2 },
        }));
        let found: Vec<String> = faults
            .iter()
            .map(|fault| {
                let steps: Vec<String> = fault
                    .path
                    .iter()
                    .map(|step| match step {
                        OptionStep::Key(key) => key.clone(),
                        OptionStep::Index(index) => index.to_string(),
                    })
                    .collect();
                steps.join(".")
            })
            .collect();
        let places = ["lowercase", "passes", "mode", "files.t", "input.height", "input.std.1", "input.widht"];
        assert_eq!(found, places);
        assert_eq!(faults[1].problem, OptionProblem::OutOfRange { value: 257, min: 0, max: 256 });
        assert_eq!(faults[6].problem, OptionProblem::UnknownKey { known: vec!["height", "std"] });
        for (std, message) in [
            (json!([1, 2]), "is a list of 2: must be of 3 numbers, for red, green and blue"),
            (json!([1, 0, 2]), "[1.0, 0.0, 2.0] must be greater than 0"),
        ] {
            let (_, faults) = read(&json!({ "input": { "std": std } }));
            assert_eq!(faults[0].problem, OptionProblem::Invalid(message.to_owned()));
        }
    }

    #[test]
    fn every_value_but_a_tasks_file_is_in_the_key() {
        let key = |given: Value| read(&given).0.key_material();
        let keys: std::collections::BTreeSet<Vec<u8>> = [
            json!({}),
            json!({ "lowercase": false }),
            json!({ "passes": 9 }),
            json!({ "mode": "slow" }),
            json!({ "input": { "height": 17 } }),
            json!({ "input": { "std": [1, 1, 2] } }),
        ]
        .map(key)
        .into();
        assert_eq!(keys.len(), 6);
        assert_eq!(key(json!({ "files": { "t": "f" }, "passes": 8 })), key(json!({})));
    }
}
