//! Every model's vote on each picture: those on disk, and the others by asking.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use actix::Addr;
use bytes::Bytes;
use concord_actors::policy::Opinion;
use concord_actors::{Caller, Classify, Digest, Engine, Router};
use futures::stream::{self, StreamExt};
use indicatif::ProgressBar;

use super::super::classify::{TIME_LIMIT, read_at_most};
use crate::evaluate::{Corruption, Dataset, Example, StoredVote, VoteStore};
use crate::telemetry::Sampling;

/// The votes of one model.
pub(super) struct ModelVotes {
    pub(super) model: Arc<str>,
    pub(super) store: VoteStore,
}

/// What is known of the pictures.
pub(super) struct Known {
    /// How they were made worse, if they were.
    pub(super) corruption: Option<Corruption>,
    /// Of each, in their order; nothing where it could not be read.
    pub(super) pictures: Vec<Option<Digests>>,
    /// What went wrong, as it was told.
    pub(super) faults: BTreeSet<String>,
}

/// Of one picture.
#[derive(Clone, Copy)]
pub(super) struct Digests {
    /// As it was read.
    pub(super) original: Digest,
    /// As models were asked about it: made worse, perhaps.
    pub(super) asked: Digest,
}

pub(super) struct Asking<'a> {
    pub(super) task: &'a str,
    pub(super) body_bytes_max: u64,
    pub(super) pixels_max: u64,
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
        corruption: Option<Corruption>,
        stores: &mut [ModelVotes],
    ) -> Result<Known, String> {
        let mut known = Known { corruption, pictures: Vec::new(), faults: BTreeSet::new() };
        if let Some(corruption) = corruption {
            self.progress.set_message(format!(" ({})", corruption.name()));
        }
        let is_missing = |digest: &Digest, stores: &[ModelVotes]| {
            stores.iter().any(|votes| votes.store.get(digest).is_none())
        };
        // Pictures are read here and asked about a few at a time.
        for chunk in data.examples.chunks(self.concurrency) {
            let read: Vec<Result<(Digests, Bytes), String>> =
                chunk.iter().map(|example| self.read(example, corruption)).collect();
            let wanted =
                read.iter().flatten().filter(|(digests, _)| is_missing(&digests.asked, stores)).cloned();
            let asked: Vec<_> = stream::iter(wanted.collect::<Vec<_>>())
                .map(|(digests, bytes)| async move { (digests.asked, self.ask(bytes).await) })
                .buffered(self.concurrency)
                .collect()
                .await;
            for (digest, opinions) in asked {
                match opinions {
                    Ok(opinions) => known.faults.extend(keep(&digest, &opinions, stores)?),
                    Err(fault) => _ = known.faults.insert(fault),
                }
            }
            for read in read {
                known.pictures.push(read.as_ref().ok().map(|(digests, _)| *digests));
                known.faults.extend(read.err());
            }
            self.progress.inc(chunk.len() as u64);
        }
        Ok(known)
    }

    /// A picture's file, made worse where that is wanted.
    fn read(&self, example: &Example, corruption: Option<Corruption>) -> Result<(Digests, Bytes), String> {
        let path = &example.path;
        let file = read_at_most(path, self.body_bytes_max);
        let file = file.map_err(|problem| format!("{}: {}", path.display(), problem.detail))?;
        let original = Digest::of(&file);
        let Some(corruption) = corruption else {
            return Ok((Digests { original, asked: original }, Bytes::from(file)));
        };
        let worse = corruption.apply(&file, self.pixels_max);
        let worse = worse.map_err(|fault| format!("{}: {fault}", path.display()))?;
        Ok((Digests { original, asked: Digest::of(&worse) }, Bytes::from(worse)))
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
