//! What answers cost: the milliseconds that were measured, or prices that were given.

use std::collections::BTreeMap;

use concord_policy::{Member, Policy};

/// What costs are counted in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum CostUnit {
    /// Measured, when the votes were asked for.
    Milliseconds,
    /// Given, in whatever currency.
    Price,
}

impl CostUnit {
    /// At the head of a column.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Milliseconds => "ms",
            Self::Price => "price",
        }
    }

    /// As JSON calls it.
    pub(crate) fn json_name(self) -> &'static str {
        match self {
            Self::Milliseconds => "milliseconds",
            Self::Price => "price",
        }
    }

    /// At an axis.
    pub(crate) fn axis(self) -> &'static str {
        match self {
            Self::Milliseconds => "mean cost of a picture [ms]",
            Self::Price => "mean price of a picture [as given]",
        }
    }

    /// An amount in a sentence.
    pub(crate) fn in_words(self, amount: f64) -> String {
        match self {
            Self::Milliseconds => format!("{amount} ms"),
            Self::Price => format!("a price of {amount}"),
        }
    }

    /// The same of an amount that was computed, with the digits of [`Self::number`].
    pub(crate) fn rounded_in_words(self, amount: f64) -> String {
        match self {
            Self::Milliseconds => format!("{} ms", self.number(amount)),
            Self::Price => format!("a price of {}", self.number(amount)),
        }
    }

    /// An amount in a table: prices may be thousandths or thousands, so that digits count and not decimals.
    pub(crate) fn number(self, amount: f64) -> String {
        /// Of prices.
        const DIGITS: i32 = 4;
        let decimals = match self {
            Self::Milliseconds => 1,
            Self::Price if amount > 0.0 => (DIGITS - 1 - amount.log10().floor() as i32).clamp(0, 12),
            Self::Price => 0,
        };
        format!("{amount:.*}", decimals as usize)
    }
}

/// What each model's vote on a picture costs.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Prices(BTreeMap<String, f64>);

impl Prices {
    /// Of `given` prices; `None` where there are none, and costs are to be milliseconds. `all` are the models of the task,
    /// `asked` those that a price is needed of.
    ///
    /// # Errors
    /// When one is given twice or of a model that there is not, or is missing; in words that say what to change.
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
                "no price of {missing}: give one of every model that is asked, with --price MODEL=AMOUNT, or of none"
            ));
        }
        Ok(Some(Self(prices)))
    }

    /// In the order of a policy's members, all of which have one.
    pub(crate) fn of(&self, policy: &Policy) -> Vec<f64> {
        let price = |member: &Member| self.0.get(&**member.model()).copied().unwrap_or_default();
        policy.members().map(price).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_are_told_with_the_digits_that_they_need() {
        for (unit, amount, told) in [
            (CostUnit::Milliseconds, 6.349, "6.3"),
            (CostUnit::Price, 0.000_512_34, "0.0005123"),
            (CostUnit::Price, 2.5, "2.500"),
            (CostUnit::Price, 12_345.6, "12346"),
            (CostUnit::Price, 0.0, "0"),
        ] {
            assert_eq!(unit.number(amount), told);
        }
    }
}
