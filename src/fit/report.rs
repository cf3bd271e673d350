//! Renders the result of a fit as text.

use comfy_table::{Cell, CellAlignment, Table};
use concord_policy::{Calibration, Policy};

use super::cross_fit::{CascadeMetrics, FOLDS, Fit, FitOptions, Fusion, Part};
use super::learned::Learning;
use super::stage_order::{MOVABLE_MAX, OrderCandidate, StageOrders};
use crate::evaluate::thresholds::Outcome;
use crate::evaluate::{ClassificationMetrics, CostUnit, ERRORS_MIN, Estimate, Objective};
use crate::table;

/// Renders the parts with their gains, and the cascade before and after.
pub(crate) fn print(fit: &Fit, policy: &Policy, options: FitOptions, unit: CostUnit) -> String {
    let mut text = format!(
        "Each part is evaluated in {FOLDS} folds, on images that it was not fitted on, by the change of the mean NLL \
         and its 95 % interval. A part whose NLL does not fall significantly keeps its configured value.\n"
    );
    if fit.calibrations.iter().any(|calibrations| calibrations.vector.is_some()) {
        text.push_str(
            "Vector scaling (the ranges of its scales and of its biases are shown) is compared with the temperature if \
             that is significantly better, or else with the configured calibration.\n",
        );
    }
    text.push('\n');
    let mut table = new_table(["", "configured", "fitted", "change of the NLL", ""]);
    for (member, calibrations) in policy.members().zip(&fit.calibrations) {
        let model = member.model();
        let part = &calibrations.temperature.part;
        table.add_row(row(&format!("temperature of {model}"), part, calibration_in_words));
        if let Some(vector) = &calibrations.vector {
            table.add_row(row(&format!("vector scaling of {model}"), &vector.part, calibration_in_words));
        }
    }
    for part in &fit.fusions {
        table.add_row(row(&format!("fusion, {}", part.fitted.method), part, fusion_in_words));
    }
    text.push_str(&format!("{table}\n\n"));
    if options.learning != Learning::Never {
        text.push_str(&learned_in_words(fit));
    }
    if let Some(objective) = options.objective.filter(|_| fit.first_stage_errors >= ERRORS_MIN) {
        text.push_str(&order_in_words(&fit.orders, policy, objective, unit));
        text.push_str(&thresholds_in_words(fit, policy, objective, unit));
    }
    if fit.first_stage_errors < ERRORS_MIN {
        text.push_str(&format!(
            "Stage 1 makes {} errors on these images. Fitted to fewer than {ERRORS_MIN}, temperatures and thresholds \
             overfit and become overconfident: thresholds stay as they are, and so does the order of stages. Add \
             harder images, and be careful with the temperatures.\n\n",
            fit.first_stage_errors
        ));
    }
    text.push_str("The cascade, evaluated on each fold with the parts that were fitted on the others:\n");
    let cost = format!("{} per image", unit.name());
    let mut table = new_table(["", "accuracy", "MCC", "NLL", "ECE", &cost]);
    for (name, cascade) in [("configured", &fit.before), ("fitted", &fit.after)] {
        table.add_row(cascade_row(name, cascade, unit));
    }
    text.push_str(&format!("{table}\n"));
    text
}

fn learned_in_words(fit: &Fit) -> String {
    let Some(learned) = &fit.learned else {
        return "No model gave a feature with every image: weights and correctness estimators cannot be learned.\n\n"
            .to_owned();
    };
    let mut text = String::new();
    if let Some(part) = &learned.weights {
        let Estimate { value, low, high } = part.change;
        let outcome = learned_outcome(part.is_gain(), part.is_used);
        text.push_str(&format!(
            "Weights and temperatures for each image, by the feature of {}: compared with fixed ones, the NLL of the \
             stages' answers changes by {value:+.5} ({low:+.5} – {high:+.5}): {outcome}.\n",
            learned.backbone
        ));
    } else {
        text.push_str("Weights and temperatures for each image could not be learned: there is too little to learn from.\n");
    }
    for part in &learned.estimators {
        let Estimate { value, low, high } = part.change;
        let (stage, errors) = (part.stage + 1, part.errors);
        if errors < ERRORS_MIN {
            text.push_str(&format!(
                "Correctness estimator of stage {stage}: the stage's {errors} errors are too few to fit one to.\n"
            ));
            continue;
        }
        text.push_str(&format!(
            "Correctness estimator of stage {stage}: detects the stage's {errors} errors with an AUROC of {:.3}, plain confidence with \
             {:.3}: {value:+.3} ({low:+.3} – {high:+.3}): {}.\n",
            part.by_estimator,
            part.by_confidence,
            learned_outcome(part.is_gain(), part.is_used)
        ));
    }
    text.push('\n');
    text
}

fn outcome(is_gain: bool) -> &'static str {
    if is_gain { "significantly better" } else { "not significantly better, not used" }
}

fn learned_outcome(is_gain: bool, is_used: bool) -> &'static str {
    match (is_gain, is_used) {
        (false, true) => "not significantly better, but used as requested",
        (true, false) => "significantly better, but not used: stage 1 makes too few errors to learn from",
        _ => outcome(is_gain),
    }
}

fn new_table<const N: usize>(header: [&str; N]) -> Table {
    let mut table = table::new_table(header, true);
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}

fn row<T>(name: &str, part: &Part<T>, in_words: impl Fn(&T) -> String) -> Vec<Cell> {
    let Estimate { value, low, high } = part.change;
    let outcome = if part.is_gain() { "significantly better" } else { "not significant" };
    vec![
        Cell::new(name),
        Cell::new(in_words(&part.now)),
        Cell::new(in_words(&part.fitted)),
        Cell::new(format!("{value:+.5} ({low:+.5} – {high:+.5})")),
        Cell::new(outcome),
    ]
}

/// Formats a temperature, or the ranges of scales and of biases.
fn calibration_in_words(calibration: &Calibration) -> String {
    match calibration {
        Calibration::Temperature(temperature) => format!("{:.3}", temperature.get()),
        Calibration::Vector(scaling) => {
            let [scale, bias] = [scaling.scale(), scaling.bias()].map(|numbers| {
                let lowest = numbers.iter().copied().fold(f64::INFINITY, f64::min);
                (lowest, numbers.iter().copied().fold(f64::NEG_INFINITY, f64::max))
            });
            format!("× {:.2} – {:.2}, {:+.2} – {:+.2}", scale.0, scale.1, bias.0, bias.1)
        }
    }
}

fn fusion_in_words(fusion: &Fusion) -> String {
    let weights: Vec<String> = fusion.weights.iter().map(|weight| format!("{weight:.2}")).collect();
    format!("{} {}", fusion.method, weights.join(" "))
}

fn order_in_words(orders: &StageOrders, policy: &Policy, objective: Objective, unit: CostUnit) -> String {
    let now: Vec<usize> = (0..policy.stages().len()).collect();
    let now = stages_in_words(policy, &now);
    match orders {
        StageOrders::None => String::new(),
        StageOrders::TooMany { movable } => format!(
            "Order of stages: {now}. {movable} of them could change places, and orders of at most {MOVABLE_MAX} are \
             tried: it stays as it is.\n\n"
        ),
        StageOrders::Unreached => {
            format!("Order of stages: {now}. No other order reaches the goal: it stays as it is.\n\n")
        }
        StageOrders::Best(part) => {
            let best = stages_in_words(policy, &part.order);
            let arrow = if part.is_gain { "becomes" } else { "stays; the best other order is" };
            let compared = compared_in_words(part, objective, unit);
            format!("Order of stages: {now} {arrow} {best}.\n{compared}\n\n")
        }
    }
}

/// Compares the two orders by what the objective optimizes.
fn compared_in_words(part: &OrderCandidate, objective: Objective, unit: CostUnit) -> String {
    let outcome_in_words =
        |of: &Outcome| format!("an accuracy of {:.4} for {}", of.accuracy, unit.rounded_in_words(of.cost));
    let change = match objective {
        Objective::MaxCost(_) => {
            let Estimate { value, low, high } = part.accuracy;
            format!("the accuracy changes by {value:+.4} ({low:+.4} – {high:+.4})")
        }
        Objective::MinAccuracy(_) => {
            let signed = |amount: f64| {
                format!("{}{}", if amount < 0.0 { "-" } else { "+" }, unit.number(amount.abs()))
            };
            let Estimate { value, low, high } = part.cost;
            format!("the cost changes by {} ({} – {})", signed(value), signed(low), signed(high))
        }
    };
    let thresholds =
        if part.now_reaches { "with thresholds for the goal" } else { "which reaches the goal with none" };
    format!(
        "On images that it was not fitted on it has {}; the configured order, {thresholds}, has {}: {change}: {}.",
        outcome_in_words(&part.reordered),
        outcome_in_words(&part.now),
        outcome(part.is_gain)
    )
}

/// Names stages by their models, in this order.
fn stages_in_words(policy: &Policy, order: &[usize]) -> String {
    let stage = |place: &usize| {
        let members = policy.stages()[*place].members().iter();
        members.map(|member| member.model().to_string()).collect::<Vec<_>>().join(" + ")
    };
    order.iter().map(stage).collect::<Vec<_>>().join(" → ")
}

fn thresholds_in_words(fit: &Fit, policy: &Policy, objective: Objective, unit: CostUnit) -> String {
    let wanted = match objective {
        Objective::MaxCost(cost) => format!("at most {} per image", unit.in_words(cost)),
        Objective::MinAccuracy(accuracy) => format!("an accuracy of at least {accuracy}"),
    };
    if policy.stages().len() == 1 {
        return "There is only one stage, which needs no threshold.\n\n".to_owned();
    }
    let Some(confidences) = &fit.confidences else {
        return format!("No thresholds reach {wanted}: they stay as they are.\n\n");
    };
    let mut text = format!("Thresholds for {wanted}:\n");
    for (index, confidence) in confidences.iter().enumerate() {
        let now = policy.stages()[fit.place_of(index)].accept().map(|rule| rule.confidence().get());
        let now = now.map_or("none".to_owned(), |now| now.to_string());
        let fitted = confidence.map_or("none".to_owned(), |confidence| format!("{confidence:.5}"));
        let of_estimator = if fit.has_estimator(index) { " (its correctness estimator)" } else { "" };
        text.push_str(&format!("  stage {}: {now} → {fitted}{of_estimator}\n", index + 1));
    }
    if !objective.is_reached_by(&fit.after.outcome) {
        text.push_str("On images that they were not fitted on they miss it, as the table below shows.\n");
    }
    text.push('\n');
    text
}

fn cascade_row(name: &str, cascade: &CascadeMetrics, unit: CostUnit) -> Vec<Cell> {
    let ClassificationMetrics { accuracy, mcc, nll, ece, .. } = &cascade.metrics;
    let figure =
        |Estimate { value, low, high }: &Estimate| Cell::new(format!("{value:.4} ({low:.4} – {high:.4})"));
    let mut cells = vec![Cell::new(name)];
    cells.extend([accuracy, mcc, nll, ece].map(figure));
    cells.push(Cell::new(unit.number(cascade.outcome.cost)));
    cells
}
