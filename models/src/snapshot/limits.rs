//! Limits of the sizes that a `config.json` may specify.

use std::ops::RangeInclusive;

/// The largest sizes in `config.json`, well above those of published models: a larger one is a mistake, and
/// memory would be allocated for it before the tensors turn out to be missing.
pub(crate) const LAYERS_MAX: i64 = 1024;
pub(crate) const WIDTH_MAX: i64 = 65_536;
pub(crate) const PATCH_MAX: i64 = 1024;
pub(crate) const VOCABULARY_MAX: i64 = 10_000_000;

/// Checks one size of a configuration.
///
/// # Errors
/// Returns a message that names the size if it is out of range.
pub(crate) fn in_range(name: &str, value: i64, range: RangeInclusive<i64>) -> Result<(), String> {
    if range.contains(&value) {
        return Ok(());
    }
    Err(format!("{name} {value} is out of range: must be from {} to {}", range.start(), range.end()))
}

/// Checks the sizes that every transformer has. The width of a head must be a multiple of `head_multiple`.
///
/// # Errors
/// Returns a message that names the size that is wrong.
pub(crate) fn check_transformer(
    hidden: i64,
    intermediate: i64,
    layers: i64,
    heads: i64,
    eps: f64,
    head_multiple: i64,
) -> Result<(), String> {
    in_range("hidden_size", hidden, 1..=WIDTH_MAX)?;
    in_range("intermediate_size", intermediate, 1..=WIDTH_MAX)?;
    in_range("num_hidden_layers", layers, 1..=LAYERS_MAX)?;
    in_range("num_attention_heads", heads, 1..=hidden)?;
    if hidden % (head_multiple * heads) != 0 {
        let times = if head_multiple == 1 { String::new() } else { format!("{head_multiple} × ") };
        return Err(format!("hidden_size {hidden} is not a multiple of {times}num_attention_heads {heads}"));
    }
    if !(eps > 0.0 && eps.is_finite()) {
        return Err(format!("layer_norm_eps {eps} must be greater than 0"));
    }
    Ok(())
}
