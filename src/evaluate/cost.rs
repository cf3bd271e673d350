//! The costs of answers: measured milliseconds, or given prices.

use std::collections::BTreeMap;

use concord_policy::{Member, Policy};

/// The unit of costs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum CostUnit {
    /// Milliseconds, measured when the models were asked.
    Milliseconds,
    /// Given prices, in any currency.
    Price,
}

impl CostUnit {
    /// Returns the heading of a column of costs.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Milliseconds => "ms",
            Self::Price => "price",
        }
    }

    /// Returns the name of the field in JSON.
    pub(crate) fn json_name(self) -> &'static str {
        match self {
            Self::Milliseconds => "milliseconds",
            Self::Price => "price",
        }
    }

    /// Returns the label of an axis.
    pub(crate) fn axis(self) -> &'static str {
        match self {
            Self::Milliseconds => "mean cost of an image [ms]",
            Self::Price => "mean price of an image [as given]",
        }
    }

    /// Formats an amount for a sentence.
    pub(crate) fn in_words(self, amount: f64) -> String {
        match self {
            Self::Milliseconds => format!("{amount} ms"),
            Self::Price => format!("a price of {amount}"),
        }
    }

    /// Formats a computed amount for a sentence, with the digits of [`Self::number`].
    pub(crate) fn rounded_in_words(self, amount: f64) -> String {
        match self {
            Self::Milliseconds => format!("{} ms", self.number(amount)),
            Self::Price => format!("a price of {}", self.number(amount)),
        }
    }

    /// Formats an amount for a table. Prices may be thousandths or thousands, so they have a number of
    /// significant digits rather than of decimals.
    pub(crate) fn number(self, amount: f64) -> String {
        /// The significant digits of prices.
        const DIGITS: i32 = 4;
        let decimals = match self {
            Self::Milliseconds => 1,
            Self::Price if amount > 0.0 => (DIGITS - 1 - amount.log10().floor() as i32).clamp(0, 12),
            Self::Price => 0,
        };
        format!("{amount:.*}", decimals as usize)
    }
}

/// The price of each model's vote on an image.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Prices(BTreeMap<String, f64>);

impl Prices {
    /// Checks the `given` prices; `None` if there are none, and costs are milliseconds. `all` has all models
    /// of the task, `asked` those that need a price.
    ///
    /// # Errors
    /// When a price is given twice or for an unknown model, or is missing; in words that say what to change.
    pub(crate) fn new(given: &[(String, f64)], all: &Policy, asked: &Policy) -> Result<Option<Self>, String> {
        if given.is_empty() {
            return Ok(None);
        }
        let names = |policy: &Policy| -> Vec<String> {
            policy.members().map(|member| member.model().to_string()).collect()
        };
        let mut prices = BTreeMap::new();
        for (model, price) in given {
            if !names(all).contains(model) {
                let known = names(all).join(", ");
                return Err(format!("--price {model}=…: the task asks no model {model:?}: there is {known}"));
            }
            if prices.insert(model.clone(), *price).is_some() {
                return Err(format!("--price {model}=… is given twice"));
            }
        }
        let missing: Vec<String> =
            names(asked).into_iter().filter(|model| !prices.contains_key(model)).collect();
        if !missing.is_empty() {
            let missing = missing.join(", ");
            return Err(format!(
                "no price for {missing}: give one for every model that is asked, with --price MODEL=AMOUNT, or for none"
            ));
        }
        Ok(Some(Self(prices)))
    }

    /// Returns the prices of a policy's members, in their order.
    pub(crate) fn of(&self, policy: &Policy) -> Vec<f64> {
        let price = |member: &Member| self.0.get(&**member.model()).copied().unwrap_or_default();
        policy.members().map(price).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_are_formatted_with_the_digits_that_they_need() {
        for (unit, amount, expected) in [
            (CostUnit::Milliseconds, 6.349, "6.3"),
            (CostUnit::Price, 0.000_512_34, "0.0005123"),
            (CostUnit::Price, 2.5, "2.500"),
            (CostUnit::Price, 12_345.6, "12346"),
            (CostUnit::Price, 0.0, "0"),
        ] {
            assert_eq!(unit.number(amount), expected);
        }
    }
}
