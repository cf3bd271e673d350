//! What was fitted, in words.

use comfy_table::{Cell, CellAlignment, Table};
use concord_policy::{Calibration, Policy};

use super::cross::{Cascade, FOLDS, Fit, FitOptions, Fusion, Part};
use super::learned::Learning;
use super::order::{MOVABLE_MAX, OrderPart, Orders};
use crate::evaluate::thresholds::Outcome;
use crate::evaluate::{CostUnit, ERRORS_MIN, Figure, Goal, Measured};
use crate::table;

/// The parts with their gains, and the cascade before and after.
pub(crate) fn print(fit: &Fit, policy: &Policy, options: FitOptions, unit: CostUnit) -> String {
    let mut text = format!(
        "Each is judged on the {FOLDS} parts of the pictures that it was not fitted on: by how much the mean NLL \
         changes, with its 95 % interval. What does not fall for sure stays as it is.\n"
    );
    if fit.calibrations.iter().any(|calibrations| calibrations.vector.is_some()) {
        text.push_str(
            "Vector scaling (between which numbers its scales are, and its biases) is compared with what its model has \
             otherwise: the temperature, if that is better for sure, or what is configured.\n",
        );
    }
    text.push('\n');
    let mut table = new_table(["", "now", "fitted", "change of the NLL", ""]);
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
    if let Some(goal) = options.goal.filter(|_| fit.first_stage_errors >= ERRORS_MIN) {
        text.push_str(&order_in_words(&fit.orders, policy, goal, unit));
        text.push_str(&thresholds_in_words(fit, policy, goal, unit));
    }
    if fit.first_stage_errors < ERRORS_MIN {
        text.push_str(&format!(
            "Stage 1 makes {} errors on these pictures. With fewer than {ERRORS_MIN}, temperatures and thresholds follow \
             chance and become surer than they should be: thresholds stay as they are, and so does the order of \
             stages; add harder pictures, or look twice at what is written.\n\n",
            fit.first_stage_errors
        ));
    }
    text.push_str("The cascade, each part of the pictures with what was fitted on the others:\n");
    let cost = format!("{} a picture", unit.name());
    let mut table = new_table(["", "accuracy", "MCC", "NLL", "ECE", &cost]);
    for (name, cascade) in [("as it is", &fit.before), ("fitted", &fit.after)] {
        table.add_row(cascade_row(name, cascade, unit));
    }
    text.push_str(&format!("{table}\n"));
    text
}

fn learned_in_words(fit: &Fit) -> String {
    let Some(learned) = &fit.learned else {
        return "No model gave a feature with every picture: there is nothing to learn weights and gates on.\n\n".to_owned();
    };
    let mut text = String::new();
    if let Some(part) = &learned.weights {
        let Figure { value, low, high } = part.change;
        let outcome = learned_outcome(part.is_gain(), part.is_used);
        text.push_str(&format!(
            "Weights and temperatures for each image, by the feature of {}: the NLL of the stages' answers changes by \
             {value:+.5} ({low:+.5} – {high:+.5}) beside fixed ones: {outcome}.\n",
            learned.backbone
        ));
    } else {
        text.push_str("Weights and temperatures for each image could not be learned: there is too little to learn from.\n");
    }
    for part in &learned.gates {
        let Figure { value, low, high } = part.change;
        let (stage, errors) = (part.stage + 1, part.errors);
        if errors < ERRORS_MIN {
            text.push_str(&format!(
                "Gate of stage {stage}: its {errors} errors are too few to fit one to.\n"
            ));
            continue;
        }
        text.push_str(&format!(
            "Gate of stage {stage}: foretells its {errors} errors with an AUROC of {:.3}, plain confidence with {:.3}: {value:+.3} \
             ({low:+.3} – {high:+.3}): {}.\n",
            part.by_gate,
            part.by_confidence,
            learned_outcome(part.is_gain(), part.is_used)
        ));
    }
    text.push('\n');
    text
}

fn outcome(is_gain: bool) -> &'static str {
    if is_gain { "better" } else { "no clear gain, and not used" }
}

fn learned_outcome(is_gain: bool, is_used: bool) -> &'static str {
    match (is_gain, is_used) {
        (false, true) => "no clear gain, but used as you asked",
        (true, false) => "better, but not used: stage 1 makes too few errors to learn from",
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
    let Figure { value, low, high } = part.change;
    let outcome = if part.is_gain() { "better" } else { "no clear gain" };
    vec![
        Cell::new(name),
        Cell::new(in_words(&part.now)),
        Cell::new(in_words(&part.fitted)),
        Cell::new(format!("{value:+.5} ({low:+.5} – {high:+.5})")),
        Cell::new(outcome),
    ]
}

/// A temperature, or between which numbers scales and biases are.
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

fn order_in_words(orders: &Orders, policy: &Policy, goal: Goal, unit: CostUnit) -> String {
    let now: Vec<usize> = (0..policy.stages().len()).collect();
    let now = stages_in_words(policy, &now);
    match orders {
        Orders::None => String::new(),
        Orders::TooMany { movable } => format!(
            "Order of stages: {now}. {movable} of them could change places, and other orders are tried of at most \
             {MOVABLE_MAX}: it stays as it is.\n\n"
        ),
        Orders::Unreached => format!("Order of stages: {now}. No other one reaches the goal: it stays.\n\n"),
        Orders::Best(part) => {
            let best = stages_in_words(policy, &part.order);
            let arrow = if part.is_gain { "becomes" } else { "stays; the best other one is" };
            let compared = compared_in_words(part, goal, unit);
            format!("Order of stages: {now} {arrow} {best}.\n{compared}\n\n")
        }
    }
}

/// The two orders beside each other, by what the goal leaves open.
fn compared_in_words(part: &OrderPart, goal: Goal, unit: CostUnit) -> String {
    let outcome_in_words =
        |of: &Outcome| format!("an accuracy of {:.4} for {}", of.accuracy, unit.rounded_in_words(of.cost));
    let change = match goal {
        Goal::MaxCost(_) => {
            let Figure { value, low, high } = part.accuracy;
            format!("the accuracy changes by {value:+.4} ({low:+.4} – {high:+.4})")
        }
        Goal::MinAccuracy(_) => {
            let signed = |amount: f64| {
                format!("{}{}", if amount < 0.0 { "-" } else { "+" }, unit.number(amount.abs()))
            };
            let Figure { value, low, high } = part.cost;
            format!("the cost changes by {} ({} – {})", signed(value), signed(low), signed(high))
        }
    };
    let thresholds = if part.now_reaches {
        "with thresholds for the goal"
    } else {
        "which reaches the goal with no thresholds"
    };
    format!(
        "On pictures that it was not fitted on it comes to {}, the configured one, {thresholds}, to {}: {change}: {}.",
        outcome_in_words(&part.reordered),
        outcome_in_words(&part.now),
        outcome(part.is_gain)
    )
}

/// Stages by their models, in an order.
fn stages_in_words(policy: &Policy, order: &[usize]) -> String {
    let stage = |place: &usize| {
        let members = policy.stages()[*place].members().iter();
        members.map(|member| member.model().to_string()).collect::<Vec<_>>().join(" + ")
    };
    order.iter().map(stage).collect::<Vec<_>>().join(" → ")
}

fn thresholds_in_words(fit: &Fit, policy: &Policy, goal: Goal, unit: CostUnit) -> String {
    let wanted = match goal {
        Goal::MaxCost(cost) => format!("at most {} a picture", unit.in_words(cost)),
        Goal::MinAccuracy(accuracy) => format!("an accuracy of at least {accuracy}"),
    };
    if policy.stages().len() == 1 {
        return "There is one stage, which needs no threshold.\n\n".to_owned();
    }
    let Some(confidences) = &fit.confidences else {
        return format!("No thresholds reach {wanted}: they stay as they are.\n\n");
    };
    let mut text = format!("Thresholds for {wanted}:\n");
    for (index, confidence) in confidences.iter().enumerate() {
        let now = policy.stages()[fit.place_of(index)].accept().map(|rule| rule.confidence().get());
        let now = now.map_or("none".to_owned(), |now| now.to_string());
        let fitted = confidence.map_or("none".to_owned(), |confidence| format!("{confidence:.5}"));
        let of_gate = if fit.gates_stage(index) { " of its gate" } else { "" };
        text.push_str(&format!("  stage {} of those that are asked: {now} → {fitted}{of_gate}\n", index + 1));
    }
    if !goal.is_reached_by(&fit.after.outcome) {
        text.push_str("On pictures that they were not fitted on they miss it, as the table below shows.\n");
    }
    text.push('\n');
    text
}

fn cascade_row(name: &str, cascade: &Cascade, unit: CostUnit) -> Vec<Cell> {
    let Measured { accuracy, mcc, nll, ece, .. } = &cascade.measured;
    let figure =
        |Figure { value, low, high }: &Figure| Cell::new(format!("{value:.4} ({low:.4} – {high:.4})"));
    let mut cells = vec![Cell::new(name)];
    cells.extend([accuracy, mcc, nll, ece].map(figure));
    cells.push(Cell::new(unit.number(cascade.outcome.cost)));
    cells
}
