//! Every model's vote on each picture: those on disk, and the others by asking.

use std::collections::{BTreeSet, HashSet};
use std::path::Path;
use std::pin::pin;
use std::sync::Arc;
use std::time::Instant;

use actix::Addr;
use bytes::Bytes;
use concord_actors::{Caller, Classify, Digest, Engine, Router};
use concord_policy::Opinion;
use futures::future::join;
use futures::stream::{self, StreamExt};
use indicatif::ProgressBar;

use super::super::arguments::TIME_LIMIT;
use super::reading::{Digests, Limits, Picture, read_all, read_at_once};
use crate::evaluate::{Dataset, StoredVote, VoteStore, Worsening};
use crate::telemetry::Sampling;

/// The votes of one model.
pub(super) struct ModelVotes {
    pub(super) model: Arc<str>,
    pub(super) store: VoteStore,
}

/// What is known of the pictures.
pub(super) struct Known {
    /// What they are called where they were made worse.
    pub(super) worse: Option<String>,
    /// Of each, in their order; nothing where it could not be read.
    pub(super) pictures: Vec<Option<Digests>>,
    /// What went wrong, as it was told.
    pub(super) faults: BTreeSet<String>,
}

pub(super) struct Asking<'a> {
    pub(super) task: &'a str,
    pub(super) limits: Limits,
    /// Pictures under way at once.
    pub(super) concurrency: usize,
    pub(super) router: Addr<Router>,
    pub(super) progress: ProgressBar,
}

impl Asking<'_> {
    /// In the order of the policy's members.
    pub(super) fn stores(&self, engine: &Engine, folder: &Path) -> Result<Vec<ModelVotes>, String> {
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
    pub(super) async fn all_votes(
        &self,
        data: &Dataset,
        worsening: &Worsening,
        stores: &mut [ModelVotes],
    ) -> Result<Known, String> {
        let mut known = Known { worse: worsening.name(), pictures: Vec::new(), faults: BTreeSet::new() };
        if let Some(name) = &known.worse {
            self.progress.set_message(format!(" ({name})"));
        }
        let chunks = stream::iter(data.examples.chunks(read_at_once(self.concurrency)));
        let mut reading = pin!(chunks.then(|chunk| read_all(chunk, worsening, self.limits)));
        let mut next = reading.next().await;
        while let Some(read) = next {
            let count = read.len();
            let unknown = known.note(read, stores);
            self.progress.inc((count - unknown.len()) as u64);
            let asking = self.ask_about(unknown, stores, &mut known.faults);
            next = if self.concurrency == 1 {
                // What a vote takes is measured and kept: nothing else is to run meanwhile.
                asking.await?;
                reading.next().await
            } else {
                let (asked, next) = join(asking, reading.next()).await;
                asked?;
                next
            };
        }
        Ok(known)
    }

    /// Asks about these, and keeps each answer when it comes.
    async fn ask_about(
        &self,
        pictures: Vec<Picture>,
        stores: &mut [ModelVotes],
        faults: &mut BTreeSet<String>,
    ) -> Result<(), String> {
        let answers = stream::iter(pictures)
            .map(|Picture { digests, bytes }| async move { (digests.asked, self.ask(bytes).await) });
        let mut answers = pin!(answers.buffered(self.concurrency));
        while let Some((digest, opinions)) = answers.next().await {
            match opinions {
                Ok(opinions) => faults.extend(keep(&digest, &opinions, stores)?),
                Err(fault) => _ = faults.insert(fault),
            }
            self.progress.inc(1);
        }
        Ok(())
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

impl Known {
    /// Notes what was read, and gives the pictures on which a vote is missing: of several that are the same, one.
    fn note(&mut self, read: Vec<Result<Picture, String>>, stores: &[ModelVotes]) -> Vec<Picture> {
        let mut unknown = Vec::new();
        let mut seen = HashSet::new();
        for read in read {
            match read {
                Ok(picture) => {
                    self.pictures.push(Some(picture.digests));
                    let asked = picture.digests.asked;
                    let is_missing = stores.iter().any(|votes| votes.store.get(&asked).is_none());
                    if is_missing && seen.insert(asked) {
                        unknown.push(picture);
                    }
                }
                Err(fault) => {
                    self.pictures.push(None);
                    self.faults.insert(fault);
                }
            }
        }
        unknown
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
