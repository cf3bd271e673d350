//! Prints verdicts as a table that reads without explanation.

use std::path::Path;
use std::time::Duration;

use comfy_table::{Cell, Color};
use concord_policy::{AcceptRule, Policy, Stage, StopReason};

use super::outcome::Outcome;
use crate::commands::print_line;
use crate::response::{ClassifyResponse, FallbackResponse};
use crate::table::{align_right_from, new_table, number, wrap};

/// Prints a row for each image, and below the table what failed and a summary. The votes are columns of a
/// `wide` table.
pub(super) fn table(task: &str, policy: &Policy, outcomes: &[Outcome], elapsed: Duration, wide: bool) {
    print_line(&format!("{}\n", wrap(&format!("{task}: {}", policy.question()))));
    let models: Vec<&str> =
        if wide { policy.members().map(|member| &**member.model()).collect() } else { vec![] };
    let header =
        ["image", "verdict", "confidence", "stage", "reason"].into_iter().chain(models.iter().copied());
    let mut table = new_table(header.chain(["ms"]), wide);
    let columns = table.column_count();
    for outcome in outcomes {
        let name = short_name(&outcome.file, outcomes.len());
        table.add_row(match &outcome.result {
            Ok(verdict) => verdict_row(name, verdict, policy, &models),
            Err(problem) => {
                let mut row = vec![Cell::new(name), Cell::new("none").fg(Color::Red), Cell::new("")];
                row.extend([Cell::new(""), Cell::new(&problem.detail)]);
                row.resize(columns, Cell::new(""));
                row
            }
        });
    }
    align_right_from(&mut table, columns - 1);
    print_line(&table);
    if !wide {
        for line in outcomes.iter().flat_map(|outcome| failed_votes(outcome, outcomes.len())) {
            print_line(&wrap(&line));
        }
    }
    print_line(&format!("\n{}", wrap(&summary(policy, outcomes, elapsed))));
}

/// Returns a line for each model that gave no vote on an image.
fn failed_votes(outcome: &Outcome, images: usize) -> Vec<String> {
    let Ok(verdict) = &outcome.result else { return Vec::new() };
    let name = short_name(&outcome.file, images);
    let failed = verdict.votes.iter().filter(|vote| vote.label.is_none());
    failed.map(|failed| format!("{name}: {} {}", failed.model, vote(verdict, &failed.model))).collect()
}

/// Returns the file's name where there are few images, and its path where there are many, to tell them apart.
fn short_name(file: &str, images: usize) -> String {
    const FEW: usize = 50;
    let name = Path::new(file).file_name().map(|name| name.to_string_lossy().into_owned());
    name.filter(|_| images <= FEW).unwrap_or_else(|| file.to_owned())
}

fn verdict_row(name: String, verdict: &ClassifyResponse, policy: &Policy, models: &[&str]) -> Vec<Cell> {
    let mut row = vec![
        Cell::new(name),
        Cell::new(&verdict.label),
        number(percent(verdict.confidence)),
        Cell::new(format!("{} of {}", verdict.stage, verdict.stages)),
        Cell::new(stop_reason(verdict, policy)),
    ];
    for model in models {
        row.push(Cell::new(vote(verdict, model)));
    }
    row.push(number(milliseconds(verdict.milliseconds.total)));
    row
}

fn stop_reason(verdict: &ClassifyResponse, policy: &Policy) -> String {
    let stage = verdict.stage.checked_sub(1).and_then(|index| policy.stages().get(index));
    let rule = stage.and_then(Stage::accept);
    // The correctness estimator decided where it could be evaluated, and the confidence otherwise.
    let (what, found, least) = match (rule.and_then(AcceptRule::correctness), verdict.correctness) {
        (Some(least), Some(correctness)) => ("correctness ", correctness, least.get()),
        _ => ("", verdict.confidence, rule.map_or(0.0, |rule| rule.confidence().get())),
    };
    let least_percent = percent(least).replace(".0 %", " %");
    let mut text = match (verdict.reason, rule) {
        (StopReason::Accepted, Some(rule)) if rule.needs_agreement() => {
            format!("all agree, {what}≥ {least_percent}")
        }
        (StopReason::Accepted, Some(_)) => format!("{what}≥ {least_percent}"),
        (_, Some(_)) if found < least => format!("last stage, {what}< {least_percent}"),
        (_, Some(_)) => "last stage, models disagree".to_owned(),
        (_, None) => "last stage".to_owned(),
    };
    if !verdict.complete {
        text.push_str("; an optional vote failed");
    }
    if !verdict.skipped.is_empty() {
        let stages: Vec<String> = verdict.skipped.iter().map(ToString::to_string).collect();
        text.push_str(&format!("; skipped: stage {}", stages.join(", ")));
    }
    for FallbackResponse { part, stage, reason } in &verdict.fallbacks {
        text.push_str(&format!("; no learned {} at stage {stage} ({})", part.name(), reason.name()));
    }
    text
}

fn vote(verdict: &ClassifyResponse, model: &str) -> String {
    let Some(vote) = verdict.votes.iter().find(|vote| vote.model == model) else {
        return "not asked".to_owned();
    };
    match (&vote.label, vote.probability) {
        (Some(label), Some(probability)) => format!("{label} {}", percent(probability)),
        _ => format!("failed: {}", vote.error.as_deref().unwrap_or("unknown")),
    }
}

fn summary(policy: &Policy, outcomes: &[Outcome], elapsed: Duration) -> String {
    let verdicts: Vec<&ClassifyResponse> =
        outcomes.iter().filter_map(|outcome| outcome.result.as_ref().ok()).collect();
    let stages: Vec<String> = (1..=policy.stages().len())
        .map(|stage| {
            let count = verdicts.iter().filter(|verdict| verdict.stage == stage).count();
            format!("stage {stage}: {count}")
        })
        .collect();
    let failed = outcomes.len() - verdicts.len();
    let each = elapsed.as_secs_f64() * 1e3 / outcomes.len().max(1) as f64;
    format!(
        "{} images in {:.2} s, {each:.1} ms each, {failed} failed\ndecided at {}",
        outcomes.len(),
        elapsed.as_secs_f64(),
        stages.join(", ")
    )
}

/// Formats a probability with enough decimals to keep a near certainty from reading as certainty.
fn percent(probability: f64) -> String {
    let percent = probability * 100.0;
    if percent > 99.9 {
        format!("{:.2} %", (percent * 100.0).floor() / 100.0)
    } else {
        format!("{percent:.1} %")
    }
}

/// Formats milliseconds with at least three digits.
fn milliseconds(amount: f64) -> String {
    if amount < 99.95 { format!("{amount:.1}") } else { format!("{amount:.0}") }
}
