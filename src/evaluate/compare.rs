//! Every way to answer that the votes allow, each by the same measures: single models, fusions, the cascade, and what they
//! are to be compared with.

use std::sync::Arc;

use concord_actors::policy::{
    Answer, Context, Decision, Evidence, FusionMethod, Logits, Member, Policy, Vote, decide,
};

use super::metrics::{Figure, Measured, Ranking, Resampling, Scored, argmax, measure};
use super::votes::StoredVote;

/// Fewer errors of the first stage say nothing about its doubts.
pub(crate) const ERRORS_MIN: usize = 50;

/// What is known of one picture: its label, and the votes in the order of the policy's members.
#[derive(Debug, Clone)]
pub(crate) struct Judged<'a> {
    pub(crate) label: usize,
    pub(crate) votes: Vec<&'a StoredVote>,
}

impl Judged<'_> {
    /// As the cascade of a policy over the models of `whole` hears them; `None` where one is no vote.
    pub(crate) fn heard(&self, whole: &Policy) -> Option<Vec<Vote>> {
        let vote = |(member, vote): (&Member, &&StoredVote)| {
            let logits = Logits::new(vote.logits.clone(), whole.labels().len()).ok()?;
            let feature = vote.feature.as_deref().map(Arc::from);
            let evidence = Evidence { feature, ..Evidence::default() };
            Some(Vote::known(Arc::clone(member.model()), logits, evidence))
        };
        whole.members().zip(&self.votes).map(vote).collect()
    }
}

/// One way to answer, and how good it is.
#[derive(Debug, Clone)]
pub(crate) struct Answerer {
    pub(crate) name: String,
    pub(crate) kind: Kind,
    pub(crate) measured: Measured,
    /// Of the models that it asks, a picture.
    pub(crate) milliseconds: Figure,
}

/// What an answerer is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Model,
    Fusion,
    Cascade,
    Baseline,
}

impl Kind {
    /// As the report calls it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Model => "model",
            Self::Fusion => "fusion",
            Self::Cascade => "cascade",
            Self::Baseline => "baseline",
        }
    }
}

/// How well the confidence of the first stage foretells that it is wrong.
#[derive(Debug, Clone)]
pub(crate) enum Foretold {
    /// The area under the receiver operating characteristic.
    By(Figure),
    /// Too few errors to say.
    TooFew { errors: usize },
}

/// All of them on the same pictures.
#[derive(Debug, Clone)]
pub(crate) struct Comparison {
    pub(crate) pictures: usize,
    pub(crate) answerers: Vec<Answerer>,
    /// The share of the pictures whose answer each stage of the cascade gave.
    pub(crate) stages: Vec<Figure>,
    pub(crate) first_stage_errors: Foretold,
}

/// Compares all ways to answer that the policy's models allow; `None` where there is no picture.
pub(crate) fn compare(
    policy: &Policy,
    pictures: &[Judged<'_>],
    resampling: &Resampling,
) -> Option<Comparison> {
    let work = Work { policy, pictures, resampling };
    let cascade = work.answers(policy);
    let mut answerers = Vec::new();
    for (index, member) in policy.members().enumerate() {
        let alone = pictures.iter().map(|picture| {
            let logits = Logits::new(picture.votes[index].logits.clone(), policy.labels().len());
            let probabilities =
                logits.map(|logits| logits.calibrated(member.temperature()).probabilities().to_vec());
            Some((probabilities.ok()?, picture.votes[index].milliseconds()))
        });
        answerers.push(work.answerer(member.model(), Kind::Model, &alone.collect::<Option<Vec<_>>>()?)?);
    }
    let always = always(&answerers);
    for method in FusionMethod::ALL {
        let name = format!("all, {method}");
        answerers.push(work.fused(&name, Kind::Fusion, &policy.all_at_once(method))?);
    }
    answerers.push(work.answerer("cascade", Kind::Cascade, &work.with_costs(&cascade)?)?);
    answerers.extend(always);
    let uniform = policy.with_uniform_weights().all_at_once(FusionMethod::Linear);
    answerers.push(work.fused("all, uniformly", Kind::Baseline, &uniform)?);
    if policy.stages().len() > 1 {
        answerers.push(work.answerer(
            "random escalation",
            Kind::Baseline,
            &work.random_escalation(&cascade)?,
        )?);
        answerers.push(work.answerer("oracle", Kind::Baseline, &work.oracle()?)?);
    }
    Some(Comparison {
        pictures: pictures.len(),
        answerers,
        stages: work.shares(&cascade),
        first_stage_errors: work.first_stage_errors()?,
    })
}

/// What asking the same model each time would come to: the cheapest, and the one that is right most often. They are chosen
/// by the pictures that they are judged by, as nobody could have chosen them before.
fn always(models: &[Answerer]) -> Vec<Answerer> {
    let cost = |model: &&Answerer| model.milliseconds.value;
    let accuracy = |model: &&Answerer| model.measured.accuracy.value;
    let cheapest = models.iter().min_by(|one, other| cost(one).total_cmp(&cost(other)));
    let strongest = models.iter().max_by(|one, other| accuracy(one).total_cmp(&accuracy(other)));
    let named = |what: &str, model: &Answerer| {
        let name = format!("always the {what}, {}", model.name);
        Answerer { name, kind: Kind::Baseline, ..model.clone() }
    };
    let cheapest = cheapest.map(|model| named("cheapest", model));
    cheapest.into_iter().chain(strongest.map(|model| named("strongest", model))).collect()
}

/// A picture's answer, and its milliseconds.
type Answered = (Vec<f64>, f64);

#[derive(Debug, Clone, Copy)]
struct Work<'a> {
    policy: &'a Policy,
    pictures: &'a [Judged<'a>],
    resampling: &'a Resampling,
}

impl Work<'_> {
    /// What the cascade of a policy over the same models answers for each picture.
    fn answers(&self, policy: &Policy) -> Vec<Option<Answer>> {
        let answer =
            |picture: &Judged<'_>| match decide(policy, &picture.heard(self.policy)?, &Context::default()) {
                Decision::Answer(answer) => Some(answer),
                Decision::Ask { .. } | Decision::Failed(_) => None,
            };
        self.pictures.iter().map(answer).collect()
    }

    /// With what the models that were asked for each answer took.
    fn with_costs(&self, answers: &[Option<Answer>]) -> Option<Vec<Answered>> {
        let members: Vec<&Arc<str>> = self.policy.members().map(Member::model).collect();
        let cost = |answer: &Answer, picture: &Judged<'_>| {
            let asked = |model: &Arc<str>| answer.opinions.iter().any(|opinion| opinion.model == *model);
            let votes = members.iter().zip(&picture.votes).filter(|(model, _)| asked(model));
            votes.map(|(_, vote)| vote.milliseconds()).sum::<f64>()
        };
        let with_cost = |(answer, picture): (&Option<Answer>, &Judged<'_>)| {
            let answer = answer.as_ref()?;
            Some((answer.distribution.probabilities().to_vec(), cost(answer, picture)))
        };
        answers.iter().zip(self.pictures).map(with_cost).collect()
    }

    fn fused(&self, name: &str, kind: Kind, policy: &Policy) -> Option<Answerer> {
        self.answerer(name, kind, &self.with_costs(&self.answers(policy))?)
    }

    fn answerer(&self, name: &str, kind: Kind, answered: &[Answered]) -> Option<Answerer> {
        let scored: Vec<Scored<'_>> = answered
            .iter()
            .zip(self.pictures)
            .map(|((probabilities, _), picture)| Scored { probabilities, label: picture.label })
            .collect();
        let measured = measure(&scored, self.policy.labels().len(), self.resampling)?;
        let costs: Vec<f64> = answered.iter().map(|(_, milliseconds)| *milliseconds).collect();
        Some(Answerer { name: name.to_owned(), kind, measured, milliseconds: self.resampling.mean(&costs) })
    }

    /// The first stage alone, or all models, by lot, so that it costs what the cascade costs.
    fn random_escalation(&self, cascade: &[Option<Answer>]) -> Option<Vec<Answered>> {
        let first = self.with_costs(&self.answers(&self.policy.as_far_as(0)?))?;
        let all = self.with_costs(&self.answers(&self.policy.all_at_once(self.policy.fusion())))?;
        let total = |answers: &[Answered]| answers.iter().map(|(_, milliseconds)| milliseconds).sum::<f64>();
        let (cheap, dear, wanted) = (total(&first), total(&all), total(&self.with_costs(cascade)?));
        let share = if dear > cheap { ((wanted - cheap) / (dear - cheap)).clamp(0.0, 1.0) } else { 0.0 };
        // Lots that are spread evenly: the fractional parts of multiples of the golden ratio (Weyl's sequence).
        let golden = (5.0_f64.sqrt() - 1.0) / 2.0;
        let lot = |index: usize| (index as f64 * golden).fract();
        let chosen = first.into_iter().zip(all).enumerate();
        Some(chosen.map(|(index, (first, all))| if lot(index) < share { all } else { first }).collect())
    }

    /// The first stage whose answer is right, or the last.
    fn oracle(&self) -> Option<Vec<Answered>> {
        let stages = (0..self.policy.stages().len())
            .map(|stage| self.with_costs(&self.answers(&self.policy.as_far_as(stage)?)))
            .collect::<Option<Vec<_>>>()?;
        let last = stages.last()?;
        let right = |index: usize, picture: &Judged<'_>| {
            let found =
                stages.iter().map(|stage| &stage[index]).find(|(answer, _)| argmax(answer) == picture.label);
            found.unwrap_or(&last[index]).clone()
        };
        Some(self.pictures.iter().enumerate().map(|(index, picture)| right(index, picture)).collect())
    }

    fn shares(&self, cascade: &[Option<Answer>]) -> Vec<Figure> {
        let share = |stage: usize| {
            let is_here =
                |answer: &Option<Answer>| answer.as_ref().is_some_and(|answer| answer.stage == stage);
            let numbers: Vec<f64> =
                cascade.iter().map(|answer| f64::from(u8::from(is_here(answer)))).collect();
            self.resampling.mean(&numbers)
        };
        (0..self.policy.stages().len()).map(share).collect()
    }

    fn first_stage_errors(&self) -> Option<Foretold> {
        let first = self.with_costs(&self.answers(&self.policy.as_far_as(0)?))?;
        let is_wrong: Vec<bool> = first
            .iter()
            .zip(self.pictures)
            .map(|((answer, _), picture)| argmax(answer) != picture.label)
            .collect();
        let doubts: Vec<f64> =
            first.iter().map(|(answer, _)| 1.0 - answer.iter().copied().fold(0.0, f64::max)).collect();
        let errors = is_wrong.iter().filter(|wrong| **wrong).count();
        if errors < ERRORS_MIN {
            return Some(Foretold::TooFew { errors });
        }
        let ranking = Ranking::new(doubts.iter().copied().zip(is_wrong));
        let value = ranking.auroc(&vec![1; doubts.len()])?;
        let (low, high) = self.resampling.interval(|weights| ranking.auroc(weights));
        Some(Foretold::By(Figure { value, low, high }))
    }
}

#[cfg(test)]
mod tests;
