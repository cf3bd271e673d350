//! What commands on labelled pictures share: which pictures, and every model's vote on each.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use actix::Addr;
use bytes::Bytes;
use clap::builder::RangedU64ValueParser;
use concord_actors::policy::{Opinion, Policy};
use concord_actors::{Caller, Classify, Digest, Engine, Router};
use concord_models::cache_folder;
use futures::stream::{self, StreamExt};

use super::classify::{TIME_LIMIT, progress_bar, read_at_most};
use super::pictures::PictureArgs;
use super::{warn, with_tasks};
use crate::config::Ensemble;
use crate::evaluate::{Dataset, Judged, StoredVote, VoteStore};
use crate::telemetry::Sampling;

/// So many different faults are told.
const FAULTS_TOLD_MAX: usize = 5;
/// So many labels are counted one by one.
const LABELS_TOLD_MAX: usize = 4;

/// Which task and pictures, and how models are asked about them.
#[derive(Debug, clap::Args)]
pub(super) struct LabelledArgs {
    #[command(flatten)]
    pub(super) pictures: PictureArgs,
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

/// Pictures that every model has voted on.
pub(super) struct Voted<'a> {
    pub(super) task: &'a str,
    /// Of the models that could be asked.
    pub(super) policy: &'a Policy,
    pub(super) pictures: Vec<Judged<'a>>,
    pub(super) groups: Vec<usize>,
    /// How many others there are.
    pub(super) left_out: usize,
}

impl LabelledArgs {
    /// Asks every model about every picture, as far as that has not been done before, and does `work` with the votes.
    pub(super) fn with_votes<T>(
        &self,
        ensemble: &Ensemble,
        work: impl FnOnce(&Voted<'_>) -> Result<T, String>,
    ) -> Result<T, String> {
        let task = self.pictures.task(ensemble)?;
        let is_left_out = |model: &str| !self.cloud && ensemble.clouds().contains_key(model);
        let policy = ensemble.tasks()[&task].without(is_left_out);
        let policy =
            policy.ok_or(format!("task {task} asks only models behind servers: add --cloud to ask them"))?;
        let data = self.pictures.read(policy.labels())?;
        let folder = match &self.votes {
            Some(folder) => folder.clone(),
            None => {
                let cache = cache_folder()
                    .ok_or("there is no home folder to keep votes in: name one with --votes")?;
                cache.join("votes")
            }
        };
        let tasks = BTreeMap::from([(task.clone(), policy.one_by_one())]);
        with_tasks(ensemble, &tasks, async |engine| {
            let body_bytes_max = ensemble.server().max_body_bytes;
            let asking = Asking { args: self, task: &task, body_bytes_max, router: engine.router() };
            let mut stores = asking.stores(engine, &folder)?;
            let known = asking.all_votes(&data, &mut stores).await?;
            // Models that are off have not been asked.
            let policy = policy.without(|model| !stores.iter().any(|store| &*store.model == model));
            let policy = policy.ok_or("no model could be asked")?;
            work(&voted(&task, &policy, &data, &stores, &known)?)
        })?
    }
}

/// The votes of one model.
struct ModelVotes {
    model: Arc<str>,
    store: VoteStore,
}

/// What is known of the pictures.
#[derive(Default)]
struct Known {
    /// The digest of each, in their order; nothing where it could not be read.
    digests: Vec<Option<Digest>>,
    /// What went wrong, as it was told.
    faults: BTreeSet<String>,
}

struct Asking<'a> {
    args: &'a LabelledArgs,
    task: &'a str,
    body_bytes_max: u64,
    router: Addr<Router>,
}

impl Asking<'_> {
    /// In the order of the policy's members.
    fn stores(&self, engine: &Engine, folder: &Path) -> Result<Vec<ModelVotes>, String> {
        let plan = engine.plan();
        let planned = plan.task(self.task).ok_or("the task could not be prepared")?;
        let labels = planned.policy().labels().len();
        let members = planned.policy().members().map(|member| Arc::clone(member.model()));
        let open = |(model, digest): (Arc<str>, Digest)| {
            Ok(ModelVotes { model, store: VoteStore::open(folder, &digest, labels)? })
        };
        members.zip(planned.vote_digests()).map(open).collect()
    }

    /// Asks about the pictures on which a vote is not known yet, and keeps what is new. It ends where that is impossible.
    async fn all_votes(&self, data: &Dataset, stores: &mut [ModelVotes]) -> Result<Known, String> {
        let progress = progress_bar(data.examples.len());
        let mut known = Known::default();
        let paths = data.examples.iter().map(|example| &example.path);
        let is_missing = |digest: &Digest, stores: &[ModelVotes]| {
            stores.iter().any(|votes| votes.store.get(digest).is_none())
        };
        // Pictures are read here and asked about a few at a time.
        for chunk in paths.collect::<Vec<_>>().chunks(self.args.concurrency) {
            let read = chunk.iter().map(|path| {
                let bytes = read_at_most(path, self.body_bytes_max);
                bytes
                    .map(|bytes| (Digest::of(&bytes), Bytes::from(bytes)))
                    .map_err(|problem| format!("{}: {}", path.display(), problem.detail))
            });
            let read: Vec<Result<(Digest, Bytes), String>> = read.collect();
            let wanted = read.iter().flatten().filter(|(digest, _)| is_missing(digest, stores)).cloned();
            let asked: Vec<_> = stream::iter(wanted.collect::<Vec<_>>())
                .map(|(digest, bytes)| async move { (digest, self.ask(bytes).await) })
                .buffered(self.args.concurrency)
                .collect()
                .await;
            for (digest, opinions) in asked {
                match opinions {
                    Ok(opinions) => known.faults.extend(keep(&digest, &opinions, stores)?),
                    Err(fault) => _ = known.faults.insert(fault),
                }
            }
            for read in read {
                known.digests.push(read.as_ref().ok().map(|(digest, _)| *digest));
                known.faults.extend(read.err());
            }
            progress.inc(chunk.len() as u64);
        }
        progress.finish_and_clear();
        Ok(known)
    }

    /// What every model says about a picture.
    async fn ask(&self, image: Bytes) -> Result<Vec<Opinion>, String> {
        let (caller, _presence) = Caller::new();
        let question = Classify {
            task: self.task.to_owned(),
            image,
            deadline: Instant::now() + TIME_LIMIT,
            fresh: true,
            explain: false,
            trace: Sampling::none().request("labelled", None).trace,
            caller,
        };
        let routed = self.router.send(question).await.map_err(|_| "the router did not answer".to_owned())?;
        Ok(routed.map_err(|error| error.to_string())?.answer.opinions.clone())
    }
}

/// Keeps the votes that were not known; gives what the others failed by.
///
/// # Errors
/// When they cannot be kept: the rest would be asked for in vain.
fn keep(image: &Digest, opinions: &[Opinion], stores: &mut [ModelVotes]) -> Result<Vec<String>, String> {
    let mut faults = Vec::new();
    for votes in stores {
        let opinion = opinions.iter().find(|opinion| opinion.model == votes.model);
        let Some(opinion) = opinion.filter(|_| votes.store.get(image).is_none()) else { continue };
        match &opinion.belief {
            Ok(belief) => {
                // Not calibrated: its logarithms are logits again.
                let logits =
                    belief.distribution.probabilities().iter().map(|p| p.max(f64::MIN_POSITIVE).ln() as f32);
                let cost = opinion.cost.preprocess + opinion.cost.model;
                let microseconds = u64::try_from(cost.as_micros()).unwrap_or(u64::MAX);
                let feature = opinion.evidence.feature.as_ref().map(|feature| feature.to_vec());
                let vote = StoredVote { logits: logits.collect(), feature, microseconds };
                votes.store.put(image, vote)?;
            }
            Err(failure) => faults.push(format!("{}: {failure}", votes.model)),
        }
    }
    Ok(faults)
}

/// The pictures that all have voted on; says which are left out, and why.
fn voted<'a>(
    task: &'a str,
    policy: &'a Policy,
    data: &'a Dataset,
    stores: &'a [ModelVotes],
    known: &Known,
) -> Result<Voted<'a>, String> {
    let votes_of =
        |digest: &Digest| stores.iter().map(|votes| votes.store.get(digest)).collect::<Option<Vec<_>>>();
    let mut voted = Voted { task, policy, pictures: vec![], groups: vec![], left_out: 0 };
    let mut seen = HashMap::<Digest, (usize, &str)>::new();
    let mut repeated = 0_usize;
    for (example, digest) in data.examples.iter().zip(&known.digests) {
        let Some((digest, votes)) = digest.and_then(|digest| Some((digest, votes_of(&digest)?))) else {
            voted.left_out += 1;
            continue;
        };
        // The same picture twice would be in the part that is fitted on and in the part that is judged.
        if let Some((label, name)) = seen.insert(digest, (example.label, &example.name)) {
            if label != example.label {
                return Err(format!("{name} and {} are the same picture with two labels", example.name));
            }
            repeated += 1;
            continue;
        }
        voted.pictures.push(Judged { label: example.label, votes });
        voted.groups.push(example.group);
    }
    for fault in known.faults.iter().take(FAULTS_TOLD_MAX) {
        warn(fault);
    }
    if voted.left_out > 0 {
        let (left_out, all) = (voted.left_out, data.examples.len());
        warn(&format!("{left_out} of {all} pictures are left out, which not every model has voted on"));
    }
    if repeated > 0 {
        warn(&format!("{repeated} pictures are there more than once, and count once"));
    }
    Ok(voted)
}

impl Voted<'_> {
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
        format!("{question}: {pictures} pictures in {groups} groups ({})\n", counts.join(", "))
    }
}
