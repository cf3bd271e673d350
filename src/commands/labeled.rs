//! The part that commands on labeled images share: the arguments, and the collection of every model's vote on
//! each image.

mod collect;
mod read;
mod shift_args;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::PathBuf;

use clap::builder::RangedU64ValueParser;
use concord_actors::Digest;
use concord_models::cache_folder;
use concord_policy::Policy;

use super::dataset_args::DatasetArgs;
use super::output::progress_bar;
use super::{warn, with_tasks};
use crate::config::Ensemble;
use crate::evaluate::{CorruptionPlan, CostUnit, Dataset, Example, LabeledExample, Prices, StoredVote};
use collect::{CollectedImages, ModelVoteStore, VoteCollector};
use read::Limits;
pub(super) use shift_args::ShiftArgs;

/// The number of distinct faults that are printed.
const PRINTED_FAULTS_MAX: usize = 5;
/// The number of labels whose images are counted one by one.
const COUNTED_LABELS_MAX: usize = 4;

/// The arguments that say which images models are asked about, and how.
#[derive(Debug, clap::Args)]
pub(super) struct LabeledArgs {
    #[command(flatten)]
    pub(super) dataset: DatasetArgs,
    /// Take only every Nth image of each label, in the order of their names
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = RangedU64ValueParser::<usize>::new().range(1..=1_000_000))]
    stride: usize,
    /// The price of a model's vote on one image, to count costs in prices instead of measured milliseconds;
    /// repeat it for every model that is asked
    #[arg(long = "price", value_name = "MODEL=AMOUNT", value_parser = priced)]
    prices: Vec<(String, f64)>,
    /// Ask models behind a server too, which may cost money
    #[arg(long)]
    cloud: bool,
    /// The number of images in flight at once; a higher number is faster, but the milliseconds are then those
    /// of a busy machine and are stored with the votes (to measure them again, choose another folder with
    /// --votes)
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = RangedU64ValueParser::<usize>::new().range(1..=1024))]
    concurrency: usize,
    /// The folder that votes are stored in [default: votes in Concord's cache folder]
    #[arg(long, value_name = "DIR")]
    votes: Option<PathBuf>,
}

fn priced(argument: &str) -> Result<(String, f64), String> {
    let wrong = "must be MODEL=AMOUNT, and the amount 0 or more";
    let (model, amount) = argument.split_once('=').ok_or(wrong)?;
    let amount = amount.parse().ok().filter(|amount: &f64| amount.is_finite() && *amount >= 0.0);
    Ok((model.to_owned(), amount.ok_or(wrong)?))
}

/// Images that every model has voted on. The vectors are parallel: an index means the same image in each.
pub(super) struct VotedImages<'a> {
    pub(super) task: &'a str,
    /// The task's policy, restricted to the models that could be asked.
    pub(super) policy: &'a Policy,
    pub(super) images: Vec<LabeledExample<'a>>,
    /// The same images as the data set has them.
    pub(super) examples: Vec<&'a Example>,
    pub(super) groups: Vec<usize>,
    /// The digest of all these images, in their order.
    pub(super) digest: Digest,
    /// The number of images of the data set that are missing here.
    pub(super) left_out: usize,
}

impl LabeledArgs {
    /// Returns the unit that costs are counted in.
    pub(super) fn cost_unit(&self) -> CostUnit {
        if self.prices.is_empty() { CostUnit::Milliseconds } else { CostUnit::Price }
    }

    /// Asks every model about every image, as it is and as each of `corruption_plans` corrupts it, except for
    /// the votes that are already stored; then calls `work` with the votes on the clean images and those on
    /// the corrupted ones.
    ///
    /// # Errors
    /// When the data set or the vote stores cannot be read, no model can be asked, or `work` fails.
    pub(super) fn with_votes<T>(
        &self,
        ensemble: &Ensemble,
        corruption_plans: &[CorruptionPlan],
        work: impl FnOnce(VotedImages<'_>, Vec<VotedImages<'_>>) -> Result<T, String>,
    ) -> Result<T, String> {
        let task = self.dataset.task(ensemble)?;
        let whole = &ensemble.tasks()[&task];
        let policy = whole.without(|model| !self.cloud && ensemble.clouds().contains_key(model));
        let policy =
            policy.ok_or(format!("task {task} asks only models behind servers: add --cloud to ask them"))?;
        let prices = Prices::new(&self.prices, whole, &policy)?;
        let data = self.dataset.read(policy.labels())?.stride(self.stride);
        let folder = self.votes_folder()?;
        let tasks = BTreeMap::from([(task.clone(), policy.one_by_one())]);
        with_tasks(ensemble, &tasks, async |engine| {
            let collector = VoteCollector {
                task: &task,
                limits: Limits {
                    body_bytes_max: ensemble.server().max_body_bytes,
                    image: ensemble.server().image_limits(),
                },
                concurrency: self.concurrency,
                router: engine.router(),
                progress: progress_bar(data.examples.len() * (1 + corruption_plans.len())),
            };
            let mut stores = collector.stores(engine, &folder)?;
            let clean = collector.all_votes(&data, &CorruptionPlan::None, &mut stores).await?;
            let mut corrupted = Vec::new();
            for corruption_plan in corruption_plans {
                corrupted.push(collector.all_votes(&data, corruption_plan, &mut stores).await?);
            }
            collector.progress.finish_and_clear();
            // Models that are off have not been asked.
            let policy = policy.without(|model| !stores.iter().any(|store| &*store.model == model));
            let policy = policy.ok_or("no model could be asked")?;
            let prices = prices.map(|prices| prices.of(&policy));
            let voted_on = |collected| {
                let votes = Votes { stores: &stores, prices: prices.as_deref(), collected };
                voted(&task, &policy, &data, &votes)
            };
            let clean = voted_on(&clean)?;
            let corrupted = corrupted.iter().map(voted_on).collect::<Result<Vec<_>, String>>()?;
            work(clean, corrupted)
        })?
    }

    fn votes_folder(&self) -> Result<PathBuf, String> {
        if let Some(folder) = &self.votes {
            return Ok(folder.clone());
        }
        let cache =
            cache_folder().ok_or("there is no home folder to store votes in: name one with --votes")?;
        Ok(cache.join("votes"))
    }
}

/// The stored votes, and the digests by which they are looked up.
struct Votes<'a, 'b> {
    stores: &'a [ModelVoteStore],
    prices: Option<&'a [f64]>,
    collected: &'b CollectedImages,
}

impl<'a> Votes<'a, '_> {
    /// Returns the vote of every model on an image; `None` if one is missing.
    fn on(&self, digest: &Digest) -> Option<Vec<&'a StoredVote>> {
        self.stores.iter().map(|votes| votes.store.get(digest)).collect()
    }
}

/// Returns the images that every model has voted on, and warns about the others.
///
/// # Errors
/// When the data set has an image twice with two labels.
fn voted<'a>(
    task: &'a str,
    policy: &'a Policy,
    data: &'a Dataset,
    votes: &Votes<'a, '_>,
) -> Result<VotedImages<'a>, String> {
    let mut voted = VotedImages {
        task,
        policy,
        images: vec![],
        examples: vec![],
        groups: vec![],
        digest: Digest::of(&[]),
        left_out: 0,
    };
    let mut seen = HashMap::<Digest, (usize, &str)>::new();
    let mut repeated = 0_usize;
    for (example, digests) in data.examples.iter().zip(&votes.collected.images) {
        let Some((digests, found)) = digests.and_then(|digests| Some((digests, votes.on(&digests.sent)?)))
        else {
            voted.left_out += 1;
            continue;
        };
        // Counted twice, one image could be both in the part that is fitted on and in the part that it is
        // evaluated on.
        if let Some((label, name)) = seen.insert(digests.original, (example.label, &example.name)) {
            if label != example.label {
                return Err(format!("{name} and {} are the same image with two labels", example.name));
            }
            repeated += 1;
            continue;
        }
        voted.images.push(LabeledExample { label: example.label, votes: found, prices: votes.prices });
        voted.examples.push(example);
        voted.digest = voted.digest.for_image(&digests.sent);
        voted.groups.push(example.group);
    }
    for fault in votes.collected.faults.iter().take(PRINTED_FAULTS_MAX) {
        warn(fault);
    }
    let corruption = votes.collected.corruption.as_ref();
    let prefix = corruption.map_or(String::new(), |name| format!("{name}: "));
    if voted.left_out > 0 {
        let (left_out, all) = (voted.left_out, data.examples.len());
        warn(&format!("{prefix}{left_out} of {all} images are left out: not every model has voted on them"));
    }
    if repeated > 0 && corruption.is_none() {
        warn(&format!("{repeated} images are duplicates and are counted once"));
    }
    Ok(voted)
}

impl<'a> VotedImages<'a> {
    /// Appends corrupted copies of these images; a copy is in the group of its original.
    pub(super) fn append(&mut self, corrupted: VotedImages<'a>) {
        self.images.extend(corrupted.images);
        self.examples.extend(corrupted.examples);
        self.groups.extend(corrupted.groups);
        self.digest = self.digest.for_image(&corrupted.digest);
        self.left_out += corrupted.left_out;
    }

    /// Describes the data in two lines: the task's question, and how many images, groups, and images of each
    /// label there are.
    pub(super) fn describe(&self) -> String {
        let count = |label: usize| self.images.iter().filter(|image| image.label == label).count();
        let labels = self.policy.labels().iter().enumerate();
        let mut counts: Vec<String> =
            labels.take(COUNTED_LABELS_MAX).map(|(label, name)| format!("{} {name}", count(label))).collect();
        if self.policy.labels().len() > COUNTED_LABELS_MAX {
            counts.push("…".to_owned());
        }
        let groups = self.groups.iter().collect::<BTreeSet<_>>().len();
        let (question, images) = (self.policy.question(), self.images.len());
        format!("{question}\n{images} images in {groups} groups ({})", counts.join(", "))
    }
}
