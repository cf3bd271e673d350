//! What shall stand at a key, and how it is written.

use std::collections::BTreeMap;

use toml_edit::Value;

use super::{joined, quoted};

/// Digits of a confidence that are kept after the nines it begins with.
const CONFIDENCE_DIGITS: usize = 4;

/// A temperature or weight as it is written: with 4 significant digits, which no set of pictures tells from more, and
/// which a person can read. What is reported about fitted values should be measured with these.
pub(super) fn as_written(value: f64) -> f64 {
    let rounded = format!("{value:.3e}").parse().ok();
    rounded.filter(|rounded: &f64| rounded.is_finite()).unwrap_or(value)
}

/// A confidence as it is written: with 4 digits after the nines it begins with, as its distance from 1 is what it is
/// about, and 0.99996 with 4 digits would be 1, which hardly anything is accepted with.
///
/// The last one is rounded up: who asked that at most so many accepted answers are wrong gets a rule that is a little
/// stricter, never one that lets more through. As the digit after the nines is not a nine, that cannot give 1; and no
/// more can it give 0.
pub(crate) fn confidence_as_written(value: f64) -> f64 {
    let text = value.to_string(); // the fewest digits that say it, and never an exponent
    let Some(digits) = text.strip_prefix("0.") else { return value };
    let nines = digits.bytes().take_while(|&digit| digit == b'9').count();
    let Some((kept, cut)) = digits.split_at_checked(nines + CONFIDENCE_DIGITS) else { return value };
    if cut.is_empty() {
        return value;
    }
    let mut kept = kept.as_bytes().to_vec();
    for digit in kept.iter_mut().rev() {
        if *digit == b'9' {
            *digit = b'0';
        } else {
            *digit += 1;
            break;
        }
    }
    format!("0.{}", String::from_utf8_lossy(&kept)).parse().unwrap_or(value)
}

/// What should be at a key.
pub(super) enum Wanted {
    Number(f64),
    Numbers(Vec<f64>),
    Text(String),
    Entries(Vec<(String, Wanted)>),
}

impl Wanted {
    /// A number for each model, as [`as_written`].
    pub(super) fn numbers(path: &[String], values: &BTreeMap<String, f64>) -> Result<Self, String> {
        let mut entries = Vec::with_capacity(values.len());
        for (model, &value) in values {
            if !(value.is_finite() && value > 0.0) {
                let place = joined(&[path, std::slice::from_ref(model)].concat());
                return Err(format!("{place} cannot be {value}: must be a finite number greater than 0"));
            }
            entries.push((model.clone(), Self::Number(as_written(value))));
        }
        Ok(Self::Entries(entries))
    }

    pub(super) fn is_nothing(&self) -> bool {
        matches!(self, Self::Entries(entries) if entries.iter().all(|(_, wanted)| wanted.is_nothing()))
    }

    /// As it is written after the `=`, in one line.
    pub(super) fn literal(&self) -> String {
        match self {
            Self::Number(number) => Value::from(*number).to_string(),
            Self::Numbers(numbers) => numbers.iter().copied().collect::<Value>().to_string(),
            Self::Text(text) => Value::from(text.as_str()).to_string(),
            Self::Entries(entries) => {
                let entries: Vec<_> = entries
                    .iter()
                    .filter(|(_, wanted)| !wanted.is_nothing())
                    .map(|(key, wanted)| format!("{} = {}", quoted(key), wanted.literal()))
                    .collect();
                format!("{{ {} }}", entries.join(", "))
            }
        }
    }

    /// Whether a person's way of writing it, such as `0.70` or `1`, may stay.
    pub(super) fn is_said_by(&self, value: &Value) -> bool {
        match self {
            Self::Number(number) => {
                let said = value.as_float().or_else(|| value.as_integer().map(|integer| integer as f64));
                said == Some(*number)
            }
            Self::Text(text) => value.as_str() == Some(text),
            Self::Numbers(_) | Self::Entries(_) => false,
        }
    }
}
