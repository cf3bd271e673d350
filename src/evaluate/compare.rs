//! Every way to answer that the votes allow, each by the same measures: single models, fusions, the cascade, and what they
//! are to be compared with.

use std::sync::Arc;

use concord_policy::{
    Answer, Context, Decision, Evidence, FusionMethod, Logits, Member, Policy, Probability, Vote, decide,
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
    /// What each vote costs, where it is not its milliseconds.
    pub(crate) prices: Option<&'a [f64]>,
}

impl Judged<'_> {
    /// What the vote of this member costs.
    pub(crate) fn cost(&self, member: usize) -> f64 {
        match self.prices {
            Some(prices) => prices[member],
            None => self.votes[member].milliseconds(),
        }
    }

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
    pub(crate) cost: Figure,
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

/// How well the doubts of the first stage foretell that it is wrong.
#[derive(Debug, Clone)]
pub(crate) enum Foretold {
    /// The area under the receiver operating characteristic.
    By(Figure),
    /// Too few errors to say.
    TooFew { errors: usize },
    /// All answers are errors.
    NoneRight { errors: usize },
}

/// How well it is foretold that the first stage is wrong.
#[derive(Debug, Clone)]
pub(crate) struct Foretelling {
    pub(crate) by_confidence: Foretold,
    /// Where it asks a gate and that could be read for every picture.
    pub(crate) by_gate: Option<Foretold>,
}

/// All of them on the same pictures.
#[derive(Debug, Clone)]
pub(crate) struct Comparison {
    pub(crate) pictures: usize,
    pub(crate) answerers: Vec<Answerer>,
    /// The share of the pictures whose answer each stage of the cascade gave.
    pub(crate) stages: Vec<Figure>,
    pub(crate) first_stage: Foretelling,
}

/// Compares all ways to answer that the policy's models allow; `None` where there is no picture.
pub(crate) fn compare(
    policy: &Policy,
    pictures: &[Judged<'_>],
    resampling: &Resampling,
) -> Option<Comparison> {
    let work = Work { policy, pictures, resampling };
    let cascade = work.answers(policy);
    let mut answerers = work.models()?;
    let always = always(&answerers);
    let learned =
        policy.learned().filter(|learned| policy.members().all(|member| learned.weighs(member.model())));
    for method in FusionMethod::FIXED.into_iter().chain(learned.map(|_| FusionMethod::Learned)) {
        let name = format!("all, {method}");
        answerers.push(work.fused(&name, Kind::Fusion, &policy.all_at_once(method))?);
    }
    answerers.push(work.cascade(&cascade)?);
    answerers.extend(always);
    answerers.push(work.uniformly()?);
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
        stages: (0..policy.stages().len()).map(|stage| work.share(&cascade, |last| last == stage)).collect(),
        first_stage: work.first_stage()?,
    })
}

/// The same in short: the cascade, every model, their uniform mean, and how well errors are foretold.
#[derive(Debug, Clone)]
pub(crate) struct Brief {
    pub(crate) pictures: usize,
    pub(crate) answerers: Vec<Answerer>,
    /// The share of the pictures that gets to each stage of the cascade.
    pub(crate) reached: Vec<Figure>,
    pub(crate) first_stage: Foretelling,
}

/// What is compared where pictures are made worse; `None` where there is no picture.
pub(crate) fn compare_in_brief(
    policy: &Policy,
    pictures: &[Judged<'_>],
    resampling: &Resampling,
) -> Option<Brief> {
    let work = Work { policy, pictures, resampling };
    let cascade = work.answers(policy);
    let mut answerers = vec![work.cascade(&cascade)?];
    answerers.extend(work.models()?);
    answerers.push(work.uniformly()?);
    let reached = (0..policy.stages().len()).map(|stage| work.share(&cascade, |last| last >= stage));
    let (reached, first_stage) = (reached.collect(), work.first_stage()?);
    Some(Brief { pictures: pictures.len(), answerers, reached, first_stage })
}

/// What a policy over models of `whole` answers for a picture.
pub(crate) fn answer(policy: &Policy, whole: &Policy, picture: &Judged<'_>) -> Option<Answer> {
    match decide(policy, &picture.heard(whole)?, &Context::default()) {
        Decision::Answer(answer) => Some(answer),
        Decision::Ask { .. } | Decision::Failed(_) => None,
    }
}

/// What asking the same model each time would come to: the cheapest, and the one that is right most often. They are chosen
/// by the pictures that they are judged by, as nobody could have chosen them before.
fn always(models: &[Answerer]) -> Vec<Answerer> {
    let cost = |model: &&Answerer| model.cost.value;
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

/// A picture's answer, and its cost.
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
        self.pictures.iter().map(|picture| answer(policy, self.policy, picture)).collect()
    }

    /// Each model alone.
    fn models(&self) -> Option<Vec<Answerer>> {
        let model = |(index, member): (usize, &Member)| {
            let alone = self.pictures.iter().map(|picture| {
                let logits = Logits::new(picture.votes[index].logits.clone(), self.policy.labels().len());
                let distribution = logits.ok()?.calibrated(member.calibration());
                Some((distribution.probabilities().to_vec(), picture.cost(index)))
            });
            self.answerer(member.model(), Kind::Model, &alone.collect::<Option<Vec<_>>>()?)
        };
        self.policy.members().enumerate().map(model).collect()
    }

    fn cascade(&self, answers: &[Option<Answer>]) -> Option<Answerer> {
        self.answerer("cascade", Kind::Cascade, &self.with_costs(answers)?)
    }

    fn uniformly(&self) -> Option<Answerer> {
        let uniform = self.policy.with_uniform_weights().all_at_once(FusionMethod::Linear);
        self.fused("all, uniformly", Kind::Baseline, &uniform)
    }

    /// With what the models that were asked for each answer took.
    fn with_costs(&self, answers: &[Option<Answer>]) -> Option<Vec<Answered>> {
        let members: Vec<&Arc<str>> = self.policy.members().map(Member::model).collect();
        let cost = |answer: &Answer, picture: &Judged<'_>| {
            let asked = |model: &Arc<str>| answer.opinions.iter().any(|opinion| opinion.model == *model);
            let asked = members.iter().enumerate().filter(|(_, model)| asked(model));
            asked.map(|(member, _)| picture.cost(member)).sum::<f64>()
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
        let costs: Vec<f64> = answered.iter().map(|(_, cost)| *cost).collect();
        Some(Answerer { name: name.to_owned(), kind, measured, cost: self.resampling.mean(&costs) })
    }

    /// The first stage alone, or all models, by lot, so that it costs what the cascade costs.
    fn random_escalation(&self, cascade: &[Option<Answer>]) -> Option<Vec<Answered>> {
        let first = self.with_costs(&self.answers(&self.policy.as_far_as(0)?))?;
        let all = self.with_costs(&self.answers(&self.policy.all_at_once(self.policy.fusion())))?;
        let total = |answers: &[Answered]| answers.iter().map(|(_, cost)| cost).sum::<f64>();
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

    /// Of the pictures whose last stage is such a one.
    fn share(&self, cascade: &[Option<Answer>], is_counted: impl Fn(usize) -> bool) -> Figure {
        let counts = |answer: &Option<Answer>| answer.as_ref().is_some_and(|answer| is_counted(answer.stage));
        let numbers: Vec<f64> = cascade.iter().map(|answer| f64::from(u8::from(counts(answer)))).collect();
        self.resampling.mean(&numbers)
    }

    fn first_stage(&self) -> Option<Foretelling> {
        let first = self.answers(&self.policy.as_far_as(0)?);
        Some(Foretelling {
            by_confidence: self.foretold(&first, |answer| Some(answer.confidence()))?,
            by_gate: self.foretold(&first, |answer| answer.gate),
        })
    }

    /// How well the errors of answers are foretold by how likely they are to be right; `None` where that is not known of each.
    fn foretold(
        &self,
        answers: &[Option<Answer>],
        likelihood: impl Fn(&Answer) -> Option<Probability>,
    ) -> Option<Foretold> {
        let doubt_and_error = |(answer, picture): (&Option<Answer>, &Judged<'_>)| {
            let answer = answer.as_ref()?;
            Some((1.0 - likelihood(answer)?.get(), answer.label() != picture.label))
        };
        let doubts_and_errors: Vec<(f64, bool)> =
            answers.iter().zip(self.pictures).map(doubt_and_error).collect::<Option<_>>()?;
        let errors = doubts_and_errors.iter().filter(|(_, is_wrong)| *is_wrong).count();
        if errors < ERRORS_MIN {
            return Some(Foretold::TooFew { errors });
        }
        let count = doubts_and_errors.len();
        let ranking = Ranking::new(doubts_and_errors.into_iter());
        let Some(value) = ranking.auroc(&vec![1; count]) else {
            return Some(Foretold::NoneRight { errors });
        };
        let (low, high) = self.resampling.interval(|weights| ranking.auroc(weights));
        Some(Foretold::By(Figure { value, low, high }))
    }
}

#[cfg(test)]
mod tests;
