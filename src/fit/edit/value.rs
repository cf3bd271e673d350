//! The new values of keys, and the way they are written.

use std::collections::BTreeMap;

use toml_edit::Value;

use super::{joined, quoted};

/// The number of digits of a confidence that are kept after its leading nines.
const CONFIDENCE_DIGITS: usize = 4;

/// Rounds a temperature or weight as it is written: to 4 significant digits, which a person can read, and
/// which no set of images can tell from more. Reported metrics should be computed with rounded values.
pub(super) fn as_written(value: f64) -> f64 {
    let rounded = format!("{value:.3e}").parse().ok();
    rounded.filter(|rounded: &f64| rounded.is_finite()).unwrap_or(value)
}

/// Rounds a confidence as it is written: to 4 digits after its leading nines, because its distance from 1 is
/// what matters, and 0.99996 with 4 digits would be 1, which hardly any answer reaches.
///
/// The last digit is rounded up, so that the rule is never less strict than the one that was fitted. As the
/// digit after the nines is not a nine, the result cannot be 1; nor can it be 0.
pub(crate) fn confidence_as_written(value: f64) -> f64 {
    let text = value.to_string(); // the shortest exact digits, and never an exponent
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

/// The new value of a key.
pub(super) enum NewValue {
    Number(f64),
    Numbers(Vec<f64>),
    Text(String),
    Entries(Vec<(String, NewValue)>),
}

impl NewValue {
    /// Returns entries with a number for each model, rounded by [`as_written`].
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

    pub(super) fn is_empty(&self) -> bool {
        matches!(self, Self::Entries(entries) if entries.iter().all(|(_, value)| value.is_empty()))
    }

    /// Returns the value as it is written after the `=`, in one line.
    pub(super) fn literal(&self) -> String {
        match self {
            Self::Number(number) => Value::from(*number).to_string(),
            Self::Numbers(numbers) => numbers.iter().copied().collect::<Value>().to_string(),
            Self::Text(text) => Value::from(text.as_str()).to_string(),
            Self::Entries(entries) => {
                let entries: Vec<_> = entries
                    .iter()
                    .filter(|(_, value)| !value.is_empty())
                    .map(|(key, value)| format!("{} = {}", quoted(key), value.literal()))
                    .collect();
                format!("{{ {} }}", entries.join(", "))
            }
        }
    }

    /// Returns whether `value` is equal, however it is written: a person's `0.70` or `1` may stay.
    pub(super) fn equals(&self, value: &Value) -> bool {
        match self {
            Self::Number(number) => {
                let old = value.as_float().or_else(|| value.as_integer().map(|integer| integer as f64));
                old == Some(*number)
            }
            Self::Text(text) => value.as_str() == Some(text),
            Self::Numbers(_) | Self::Entries(_) => false,
        }
    }
}
