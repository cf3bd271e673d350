//! Compares all answering strategies that the stored votes allow, by the same metrics: single models,
//! fusions, the cascade, and baselines.

use std::sync::Arc;

use concord_policy::{Context, Decision, FusionMethod, Member, Policy, Probability, Verdict, Vote, decide};

use super::metrics::{Bootstrap, ClassificationMetrics, Estimate, Prediction, Ranking, argmax, measure};
use super::votes::StoredVote;

/// The least number of errors of the first stage from which the detection of errors is estimated.
pub(crate) const ERRORS_MIN: usize = 50;

/// A labeled image with its votes, in the order of the policy's members.
#[derive(Debug, Clone)]
pub(crate) struct LabeledExample<'a> {
    pub(crate) label: usize,
    pub(crate) votes: Vec<&'a StoredVote>,
    /// The price of each vote; `None` if its cost is its milliseconds.
    pub(crate) prices: Option<&'a [f64]>,
}

impl LabeledExample<'_> {
    /// Returns the cost of this member's vote.
    pub(crate) fn cost(&self, member: usize) -> f64 {
        match self.prices {
            Some(prices) => prices[member],
            None => self.votes[member].milliseconds(),
        }
    }

    /// Returns the votes as a cascade over the models of `whole` takes them; `None` if one is invalid.
    pub(crate) fn policy_votes(&self, whole: &Policy) -> Option<Vec<Vote>> {
        let vote = |(member, vote): (&Member, &&StoredVote)| {
            vote.output.logits(whole.labels().len()).ok()?;
            Some(Vote::known(Arc::clone(member.model()), vote.output.clone()))
        };
        whole.members().zip(&self.votes).map(vote).collect()
    }
}

/// A strategy of answering, with its metrics.
#[derive(Debug, Clone)]
pub(crate) struct Strategy {
    pub(crate) name: String,
    pub(crate) kind: Kind,
    pub(crate) metrics: ClassificationMetrics,
    /// The mean cost per image of the models that it asks.
    pub(crate) cost: Estimate,
}

/// The kind of a strategy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Model,
    Fusion,
    Cascade,
    Baseline,
}

impl Kind {
    /// Returns the name in reports.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Model => "model",
            Self::Fusion => "fusion",
            Self::Cascade => "cascade",
            Self::Baseline => "baseline",
        }
    }
}

/// The quality of a score as a detector of errors.
#[derive(Debug, Clone)]
pub(crate) enum ErrorDetection {
    /// The area under the ROC curve for "the answer is wrong".
    Auroc(Estimate),
    /// There are too few errors to estimate it.
    TooFew { errors: usize },
    /// All answers are errors.
    AllWrong { errors: usize },
}

/// The detection of the first stage's errors.
#[derive(Debug, Clone)]
pub(crate) struct FirstStageErrorDetection {
    pub(crate) by_confidence: ErrorDetection,
    /// `None` if the stage has no correctness estimator, or the correctness estimator could not be read for
    /// every image.
    pub(crate) by_estimator: Option<ErrorDetection>,
}

/// All strategies on the same images.
#[derive(Debug, Clone)]
pub(crate) struct Comparison {
    pub(crate) images: usize,
    pub(crate) strategies: Vec<Strategy>,
    /// The share of the images that each stage of the cascade answered.
    pub(crate) stages: Vec<Estimate>,
    pub(crate) first_stage: FirstStageErrorDetection,
}

/// Compares all strategies that the policy's models allow; `None` if there are no images or a vote is
/// invalid.
pub(crate) fn compare(
    policy: &Policy,
    images: &[LabeledExample<'_>],
    bootstrap: &Bootstrap,
) -> Option<Comparison> {
    let data = EvaluationSet { policy, images, bootstrap };
    let cascade = data.answers(policy);
    let mut strategies = data.models()?;
    let always = always(&strategies);
    let learned =
        policy.learned().filter(|learned| policy.members().all(|member| learned.weighs(member.model())));
    for method in FusionMethod::FIXED.into_iter().chain(learned.map(|_| FusionMethod::Learned)) {
        let name = format!("all, {method}");
        strategies.push(data.fused(&name, Kind::Fusion, &policy.all_at_once(method))?);
    }
    strategies.push(data.cascade(&cascade)?);
    strategies.extend(always);
    strategies.push(data.uniformly()?);
    if policy.stages().len() > 1 {
        strategies.push(data.strategy(
            "random escalation",
            Kind::Baseline,
            &data.random_escalation(&cascade)?,
        )?);
        strategies.push(data.strategy("oracle", Kind::Baseline, &data.oracle()?)?);
    }
    Some(Comparison {
        images: images.len(),
        strategies,
        stages: (0..policy.stages().len()).map(|stage| data.share(&cascade, |last| last == stage)).collect(),
        first_stage: data.first_stage()?,
    })
}

/// The comparison under one corruption: the cascade, every model, their uniform mean, and the detection of
/// errors.
#[derive(Debug, Clone)]
pub(crate) struct ShiftSummary {
    pub(crate) images: usize,
    pub(crate) strategies: Vec<Strategy>,
    /// The share of the images that reach each stage of the cascade.
    pub(crate) reached: Vec<Estimate>,
    pub(crate) first_stage: FirstStageErrorDetection,
}

/// Compares the strategies of a [`ShiftSummary`]; `None` if there are no images or a vote is invalid.
pub(crate) fn summarize_shift(
    policy: &Policy,
    images: &[LabeledExample<'_>],
    bootstrap: &Bootstrap,
) -> Option<ShiftSummary> {
    let data = EvaluationSet { policy, images, bootstrap };
    let cascade = data.answers(policy);
    let mut strategies = vec![data.cascade(&cascade)?];
    strategies.extend(data.models()?);
    strategies.push(data.uniformly()?);
    let reached = (0..policy.stages().len()).map(|stage| data.share(&cascade, |last| last >= stage));
    let (reached, first_stage) = (reached.collect(), data.first_stage()?);
    Some(ShiftSummary { images: images.len(), strategies, reached, first_stage })
}

/// Returns the answer of a policy over models of `whole` for an image; `None` if a vote is invalid.
pub(crate) fn answer(policy: &Policy, whole: &Policy, image: &LabeledExample<'_>) -> Option<Verdict> {
    match decide(policy, &image.policy_votes(whole)?, &Context::default()) {
        Decision::Verdict(verdict) => Some(verdict),
        Decision::Ask { .. } | Decision::Failed(_) => None,
    }
}

/// Returns the baselines that always ask the same model: the cheapest one, and the most accurate one. The
/// models are chosen on the images that they are evaluated on, with hindsight.
fn always(models: &[Strategy]) -> Vec<Strategy> {
    let cost = |model: &&Strategy| model.cost.value;
    let accuracy = |model: &&Strategy| model.metrics.accuracy.value;
    let cheapest = models.iter().min_by(|one, other| cost(one).total_cmp(&cost(other)));
    let strongest = models.iter().max_by(|one, other| accuracy(one).total_cmp(&accuracy(other)));
    let named = |adjective: &str, model: &Strategy| {
        let name = format!("always the {adjective}, {}", model.name);
        Strategy { name, kind: Kind::Baseline, ..model.clone() }
    };
    let cheapest = cheapest.map(|model| named("cheapest", model));
    cheapest.into_iter().chain(strongest.map(|model| named("strongest", model))).collect()
}

/// The probabilities of an image's answer, and its cost.
type Answered = (Vec<f64>, f64);

/// The data of a comparison: the policy, the labeled images, and their resamples.
#[derive(Debug, Clone, Copy)]
struct EvaluationSet<'a> {
    policy: &'a Policy,
    images: &'a [LabeledExample<'a>],
    bootstrap: &'a Bootstrap,
}

impl EvaluationSet<'_> {
    /// Returns the answers of the cascade of a policy over the same models, one for each image.
    fn answers(&self, policy: &Policy) -> Vec<Option<Verdict>> {
        self.images.iter().map(|image| answer(policy, self.policy, image)).collect()
    }

    /// Evaluates each model alone.
    fn models(&self) -> Option<Vec<Strategy>> {
        let model = |(index, member): (usize, &Member)| {
            let alone = self.images.iter().map(|image| {
                let logits = image.votes[index].output.logits(self.policy.labels().len());
                let distribution = logits.ok()?.calibrated(member.calibration());
                Some((distribution.probabilities().to_vec(), image.cost(index)))
            });
            self.strategy(member.model(), Kind::Model, &alone.collect::<Option<Vec<_>>>()?)
        };
        self.policy.members().enumerate().map(model).collect()
    }

    fn cascade(&self, answers: &[Option<Verdict>]) -> Option<Strategy> {
        self.strategy("cascade", Kind::Cascade, &self.with_costs(answers)?)
    }

    fn uniformly(&self) -> Option<Strategy> {
        let uniform = self.policy.with_uniform_weights().all_at_once(FusionMethod::Linear);
        self.fused("all, uniformly", Kind::Baseline, &uniform)
    }

    /// Pairs each answer with the cost of the models that were asked for it.
    fn with_costs(&self, answers: &[Option<Verdict>]) -> Option<Vec<Answered>> {
        let with_cost = |(answer, image): (&Option<Verdict>, &LabeledExample<'_>)| {
            let answer = answer.as_ref()?;
            Some((answer.distribution.probabilities().to_vec(), self.cost(answer, image)))
        };
        answers.iter().zip(self.images).map(with_cost).collect()
    }

    /// Returns the cost of the models that were asked for an answer.
    fn cost(&self, answer: &Verdict, image: &LabeledExample<'_>) -> f64 {
        let is_asked = |member: &Member| answer.votes.iter().any(|fused| fused.vote.model == *member.model());
        let asked = self.policy.members().enumerate().filter(|(_, member)| is_asked(member));
        asked.map(|(index, _)| image.cost(index)).sum()
    }

    fn fused(&self, name: &str, kind: Kind, policy: &Policy) -> Option<Strategy> {
        self.strategy(name, kind, &self.with_costs(&self.answers(policy))?)
    }

    fn strategy(&self, name: &str, kind: Kind, answered: &[Answered]) -> Option<Strategy> {
        let predictions: Vec<Prediction<'_>> = answered
            .iter()
            .zip(self.images)
            .map(|((probabilities, _), image)| Prediction { probabilities, label: image.label })
            .collect();
        let metrics = measure(&predictions, self.policy.labels().len(), self.bootstrap)?;
        let costs: Vec<f64> = answered.iter().map(|(_, cost)| *cost).collect();
        Some(Strategy { name: name.to_owned(), kind, metrics, cost: self.bootstrap.mean(&costs) })
    }

    /// Returns the answers of a random escalation: the first stage alone or all models, at random, in the
    /// proportion that makes the mean cost that of the cascade.
    fn random_escalation(&self, cascade: &[Option<Verdict>]) -> Option<Vec<Answered>> {
        let first = self.with_costs(&self.answers(&self.policy.as_far_as(0)?))?;
        let all = self.with_costs(&self.answers(&self.policy.all_at_once(self.policy.fusion())))?;
        let total = |answers: &[Answered]| answers.iter().map(|(_, cost)| cost).sum::<f64>();
        let (first_cost, all_cost, wanted_cost) =
            (total(&first), total(&all), total(&self.with_costs(cascade)?));
        let share = if all_cost > first_cost {
            ((wanted_cost - first_cost) / (all_cost - first_cost)).clamp(0.0, 1.0)
        } else {
            0.0
        };
        // A low-discrepancy sequence: the fractional parts of multiples of the golden ratio (Weyl's
        // sequence).
        let golden = (5.0_f64.sqrt() - 1.0) / 2.0;
        let random = |index: usize| (index as f64 * golden).fract();
        let pairs = first.into_iter().zip(all).enumerate();
        Some(pairs.map(|(index, (first, all))| if random(index) < share { all } else { first }).collect())
    }

    /// Returns the answers of an oracle: that of the first stage that is right, or else of the last.
    fn oracle(&self) -> Option<Vec<Answered>> {
        let stages = (0..self.policy.stages().len())
            .map(|stage| self.with_costs(&self.answers(&self.policy.as_far_as(stage)?)))
            .collect::<Option<Vec<_>>>()?;
        let last = stages.last()?;
        let right = |index: usize, image: &LabeledExample<'_>| {
            let found =
                stages.iter().map(|stage| &stage[index]).find(|(answer, _)| argmax(answer) == image.label);
            found.unwrap_or(&last[index]).clone()
        };
        Some(self.images.iter().enumerate().map(|(index, image)| right(index, image)).collect())
    }

    /// Estimates the share of the images whose cascade ends at a stage that `is_counted`.
    fn share(&self, cascade: &[Option<Verdict>], is_counted: impl Fn(usize) -> bool) -> Estimate {
        let counts =
            |answer: &Option<Verdict>| answer.as_ref().is_some_and(|answer| is_counted(answer.stage));
        let numbers: Vec<f64> = cascade.iter().map(|answer| f64::from(u8::from(counts(answer)))).collect();
        self.bootstrap.mean(&numbers)
    }

    fn first_stage(&self) -> Option<FirstStageErrorDetection> {
        let first = self.answers(&self.policy.as_far_as(0)?);
        Some(FirstStageErrorDetection {
            by_confidence: self.error_detection(&first, |answer| Some(answer.confidence()))?,
            by_estimator: self.error_detection(&first, |answer| answer.correctness),
        })
    }

    /// Estimates how well a probability that an answer is right detects wrong answers; `None` if it is
    /// missing for an answer.
    fn error_detection(
        &self,
        answers: &[Option<Verdict>],
        probability_right: impl Fn(&Verdict) -> Option<Probability>,
    ) -> Option<ErrorDetection> {
        let doubt_and_error = |(answer, image): (&Option<Verdict>, &LabeledExample<'_>)| {
            let answer = answer.as_ref()?;
            Some((1.0 - probability_right(answer)?.get(), answer.label() != image.label))
        };
        let doubts_and_errors: Vec<(f64, bool)> =
            answers.iter().zip(self.images).map(doubt_and_error).collect::<Option<_>>()?;
        let errors = doubts_and_errors.iter().filter(|(_, is_wrong)| *is_wrong).count();
        if errors < ERRORS_MIN {
            return Some(ErrorDetection::TooFew { errors });
        }
        let count = doubts_and_errors.len();
        let ranking = Ranking::new(doubts_and_errors.into_iter());
        let Some(value) = ranking.auroc(&vec![1; count]) else {
            return Some(ErrorDetection::AllWrong { errors });
        };
        let (low, high) = self.bootstrap.interval(|weights| ranking.auroc(weights));
        Some(ErrorDetection::Auroc(Estimate { value, low, high }))
    }
}

#[cfg(test)]
mod tests;
