//! What commands on labelled pictures share: which pictures, and every model's vote on each.

mod asking;
mod reading;
mod shifts;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::PathBuf;

use clap::builder::RangedU64ValueParser;
use concord_actors::Digest;
use concord_models::cache_folder;
use concord_policy::Policy;

use super::output::progress_bar;
use super::pictures::PictureArgs;
use super::{warn, with_tasks};
use crate::config::Ensemble;
use crate::evaluate::{CostUnit, Dataset, Example, Judged, Prices, StoredVote, Worsening};
use asking::{Asking, Known, ModelVotes};
use reading::Limits;
pub(super) use shifts::ShiftArgs;

/// So many different faults are told.
const FAULTS_TOLD_MAX: usize = 5;
/// So many labels are counted one by one.
const LABELS_TOLD_MAX: usize = 4;

/// Which task and pictures, and how models are asked about them.
#[derive(Debug, clap::Args)]
pub(super) struct LabelledArgs {
    #[command(flatten)]
    pub(super) pictures: PictureArgs,
    /// Only every Nth picture of each label, by the order of their names
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = RangedU64ValueParser::<usize>::new().range(1..=1_000_000))]
    every: usize,
    /// What a model's vote on a picture costs, where that is not to be the milliseconds that were measured; to be repeated
    /// for every model that is asked
    #[arg(long = "price", value_name = "MODEL=AMOUNT", value_parser = priced)]
    prices: Vec<(String, f64)>,
    /// Ask models behind a server too, which may cost money
    #[arg(long)]
    cloud: bool,
    /// Pictures under way at once; more is faster, but milliseconds are then those of a busy machine, and stay with the
    /// votes: another folder of votes measures them anew
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = RangedU64ValueParser::<usize>::new().range(1..=1024))]
    concurrency: usize,
    /// Where votes are kept [default: votes in Concord's cache folder]
    #[arg(long, value_name = "DIR")]
    votes: Option<PathBuf>,
}

fn priced(argument: &str) -> Result<(String, f64), String> {
    let wrong = "must be MODEL=AMOUNT, and the amount 0 or more";
    let (model, amount) = argument.split_once('=').ok_or(wrong)?;
    let amount = amount.parse().ok().filter(|amount: &f64| amount.is_finite() && *amount >= 0.0);
    Ok((model.to_owned(), amount.ok_or(wrong)?))
}

/// Pictures that every model has voted on.
pub(super) struct Voted<'a> {
    pub(super) task: &'a str,
    /// Of the models that could be asked.
    pub(super) policy: &'a Policy,
    pub(super) pictures: Vec<Judged<'a>>,
    /// The same, as they were read.
    pub(super) examples: Vec<&'a Example>,
    pub(super) groups: Vec<usize>,
    /// Of all these pictures, in their order.
    pub(super) digest: Digest,
    /// How many others there are.
    pub(super) left_out: usize,
}

impl LabelledArgs {
    /// What costs are counted in.
    pub(super) fn cost_unit(&self) -> CostUnit {
        if self.prices.is_empty() { CostUnit::Milliseconds } else { CostUnit::Price }
    }

    /// Asks every model about every picture, and about what is made of it to be `worse` in each of these ways, as far as that
    /// has not been done before; then does `work` with the votes on the pictures as they are, and with the others.
    pub(super) fn with_votes<T>(
        &self,
        ensemble: &Ensemble,
        worse: &[Worsening],
        work: impl FnOnce(Voted<'_>, Vec<Voted<'_>>) -> Result<T, String>,
    ) -> Result<T, String> {
        let task = self.pictures.task(ensemble)?;
        let whole = &ensemble.tasks()[&task];
        let policy = whole.without(|model| !self.cloud && ensemble.clouds().contains_key(model));
        let policy =
            policy.ok_or(format!("task {task} asks only models behind servers: add --cloud to ask them"))?;
        let prices = Prices::new(&self.prices, whole, &policy)?;
        let data = self.pictures.read(policy.labels())?.every(self.every);
        let folder = self.votes_folder()?;
        let tasks = BTreeMap::from([(task.clone(), policy.one_by_one())]);
        with_tasks(ensemble, &tasks, async |engine| {
            let asking = Asking {
                task: &task,
                limits: Limits {
                    body_bytes_max: ensemble.server().max_body_bytes,
                    pixels_max: ensemble.server().max_pixels,
                },
                concurrency: self.concurrency,
                router: engine.router(),
                progress: progress_bar(data.examples.len() * (1 + worse.len())),
            };
            let mut stores = asking.stores(engine, &folder)?;
            let as_they_are = asking.all_votes(&data, &Worsening::None, &mut stores).await?;
            let mut made_worse = Vec::new();
            for worsening in worse {
                made_worse.push(asking.all_votes(&data, worsening, &mut stores).await?);
            }
            asking.progress.finish_and_clear();
            // Models that are off have not been asked.
            let policy = policy.without(|model| !stores.iter().any(|store| &*store.model == model));
            let policy = policy.ok_or("no model could be asked")?;
            let prices = prices.map(|prices| prices.of(&policy));
            let voted_on = |known| {
                let votes = Votes { stores: &stores, prices: prices.as_deref(), known };
                voted(&task, &policy, &data, &votes)
            };
            let as_they_are = voted_on(&as_they_are)?;
            let made_worse = made_worse.iter().map(voted_on).collect::<Result<Vec<_>, String>>()?;
            work(as_they_are, made_worse)
        })?
    }

    fn votes_folder(&self) -> Result<PathBuf, String> {
        if let Some(folder) = &self.votes {
            return Ok(folder.clone());
        }
        let cache =
            cache_folder().ok_or("there is no home folder to keep votes in: name one with --votes")?;
        Ok(cache.join("votes"))
    }
}

/// What is known of pictures, and where.
struct Votes<'a, 'b> {
    stores: &'a [ModelVotes],
    prices: Option<&'a [f64]>,
    known: &'b Known,
}

impl<'a> Votes<'a, '_> {
    /// Of every model, if each has voted.
    fn on(&self, digest: &Digest) -> Option<Vec<&'a StoredVote>> {
        self.stores.iter().map(|votes| votes.store.get(digest)).collect()
    }
}

/// The pictures that all have voted on; says which are left out, and why.
fn voted<'a>(
    task: &'a str,
    policy: &'a Policy,
    data: &'a Dataset,
    votes: &Votes<'a, '_>,
) -> Result<Voted<'a>, String> {
    let mut voted = Voted {
        task,
        policy,
        pictures: vec![],
        examples: vec![],
        groups: vec![],
        digest: Digest::of(&[]),
        left_out: 0,
    };
    let mut seen = HashMap::<Digest, (usize, &str)>::new();
    let mut repeated = 0_usize;
    for (example, digests) in data.examples.iter().zip(&votes.known.pictures) {
        let Some((digests, found)) = digests.and_then(|digests| Some((digests, votes.on(&digests.asked)?)))
        else {
            voted.left_out += 1;
            continue;
        };
        // The same picture twice would be in the part that is fitted on and in the part that is judged.
        if let Some((label, name)) = seen.insert(digests.original, (example.label, &example.name)) {
            if label != example.label {
                return Err(format!("{name} and {} are the same picture with two labels", example.name));
            }
            repeated += 1;
            continue;
        }
        voted.pictures.push(Judged { label: example.label, votes: found, prices: votes.prices });
        voted.examples.push(example);
        voted.digest = voted.digest.for_image(&digests.asked);
        voted.groups.push(example.group);
    }
    for fault in votes.known.faults.iter().take(FAULTS_TOLD_MAX) {
        warn(fault);
    }
    let worse = votes.known.worse.as_ref();
    let shift = worse.map_or(String::new(), |name| format!("{name}: "));
    if voted.left_out > 0 {
        let (left_out, all) = (voted.left_out, data.examples.len());
        warn(&format!(
            "{shift}{left_out} of {all} pictures are left out, which not every model has voted on"
        ));
    }
    if repeated > 0 && worse.is_none() {
        warn(&format!("{repeated} pictures are there more than once, and count once"));
    }
    Ok(voted)
}

impl<'a> Voted<'a> {
    /// Puts others behind these, in whose groups they are: the same pictures, made worse.
    pub(super) fn append(&mut self, worse: Voted<'a>) {
        self.pictures.extend(worse.pictures);
        self.examples.extend(worse.examples);
        self.groups.extend(worse.groups);
        self.digest = self.digest.for_image(&worse.digest);
        self.left_out += worse.left_out;
    }

    /// What there is to count: pictures of each label, and groups.
    pub(super) fn describe(&self) -> String {
        let count = |label: usize| self.pictures.iter().filter(|picture| picture.label == label).count();
        let labels = self.policy.labels().iter().enumerate();
        let mut counts: Vec<String> =
            labels.take(LABELS_TOLD_MAX).map(|(label, name)| format!("{} {name}", count(label))).collect();
        if self.policy.labels().len() > LABELS_TOLD_MAX {
            counts.push("…".to_owned());
        }
        let groups = self.groups.iter().collect::<BTreeSet<_>>().len();
        let (question, pictures) = (self.policy.question(), self.pictures.len());
        format!("{question}: {pictures} pictures in {groups} groups ({})", counts.join(", "))
    }
}
