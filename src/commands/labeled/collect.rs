//! Collects every model's vote on each image: asks the router for those that are not stored yet.

use std::collections::{BTreeSet, HashSet};
use std::path::Path;
use std::pin::pin;
use std::sync::Arc;
use std::time::Instant;

use actix::Addr;
use bytes::Bytes;
use concord_actors::{Classify, Digest, Engine, Router};
use concord_policy::FusedVote;
use futures::future::join;
use futures::stream::{self, StreamExt};
use indicatif::ProgressBar;
use tokio_util::sync::CancellationToken;

use super::super::arguments::TIME_LIMIT;
use super::read::{Digests, Limits, LoadedImage, read_all, read_at_once};
use crate::evaluate::{CorruptionPlan, Dataset, StoredVote, VoteStore};
use crate::telemetry::Sampling;

/// The stored votes of one model.
pub(super) struct ModelVoteStore {
    pub(super) model: Arc<str>,
    pub(super) store: VoteStore,
}

/// The images of a data set that models were asked about, after one corruption plan.
pub(super) struct CollectedImages {
    /// The name of the corruption in messages; `None` if the images are clean.
    pub(super) corruption: Option<String>,
    /// The digests of each image, in the order of the data set; `None` if it could not be read.
    pub(super) images: Vec<Option<Digests>>,
    /// The distinct errors, in words.
    pub(super) faults: BTreeSet<String>,
}

/// The router that is asked for votes on a task, and the limits of asking.
pub(super) struct VoteCollector<'a> {
    pub(super) task: &'a str,
    pub(super) limits: Limits,
    /// The number of images in flight at once.
    pub(super) concurrency: usize,
    pub(super) router: Addr<Router>,
    pub(super) progress: ProgressBar,
}

impl VoteCollector<'_> {
    /// Opens the vote store of every model, in the order of the policy's members.
    ///
    /// # Errors
    /// When one cannot be read or written.
    pub(super) fn stores(&self, engine: &Engine, folder: &Path) -> Result<Vec<ModelVoteStore>, String> {
        let plan = engine.plan();
        let planned = plan.task(self.task).ok_or("the task could not be prepared")?;
        let labels = planned.policy().labels().len();
        let members = planned.policy().members().map(|member| Arc::clone(member.model()));
        let open = |(model, digest): (Arc<str>, Digest)| {
            Ok(ModelVoteStore { model, store: VoteStore::open(folder, &digest, labels)? })
        };
        members.zip(planned.vote_digests()).map(open).collect()
    }

    /// Asks about the images on which a vote is not stored yet, and stores the new votes.
    ///
    /// # Errors
    /// When a vote cannot be stored; an image that cannot be read or asked about is a fault of the result.
    pub(super) async fn all_votes(
        &self,
        data: &Dataset,
        corruption_plan: &CorruptionPlan,
        stores: &mut [ModelVoteStore],
    ) -> Result<CollectedImages, String> {
        let mut collected = CollectedImages {
            corruption: corruption_plan.name(),
            images: Vec::new(),
            faults: BTreeSet::new(),
        };
        if let Some(name) = &collected.corruption {
            self.progress.set_message(format!(" ({name})"));
        }
        let chunks = stream::iter(data.examples.chunks(read_at_once(self.concurrency)));
        let mut reading = pin!(chunks.then(|chunk| read_all(chunk, corruption_plan, self.limits)));
        let mut next = reading.next().await;
        while let Some(read) = next {
            let count = read.len();
            let unknown = collected.note(read, stores);
            self.progress.inc((count - unknown.len()) as u64);
            let asking = self.ask_about(unknown, stores, &mut collected.faults);
            next = if self.concurrency == 1 {
                // The duration of a vote is measured and stored: nothing else may run meanwhile.
                asking.await?;
                reading.next().await
            } else {
                let (asked, next) = join(asking, reading.next()).await;
                asked?;
                next
            };
        }
        Ok(collected)
    }

    /// Asks about these images, and stores each answer as it arrives.
    async fn ask_about(
        &self,
        images: Vec<LoadedImage>,
        stores: &mut [ModelVoteStore],
        faults: &mut BTreeSet<String>,
    ) -> Result<(), String> {
        let answers = stream::iter(images)
            .map(|LoadedImage { digests, bytes }| async move { (digests.sent, self.ask(bytes).await) });
        let mut answers = pin!(answers.buffered(self.concurrency));
        while let Some((digest, votes)) = answers.next().await {
            match votes {
                Ok(votes) => faults.extend(keep(&digest, &votes, stores)?),
                Err(fault) => _ = faults.insert(fault),
            }
            self.progress.inc(1);
        }
        Ok(())
    }

    /// Asks every model about an image.
    async fn ask(&self, image: Bytes) -> Result<Vec<FusedVote>, String> {
        let question = Classify {
            task: self.task.to_owned(),
            image,
            deadline: Instant::now() + TIME_LIMIT,
            fresh: true,
            explain: false,
            trace: Sampling::none().request("labeled", None).trace,
            client_left: CancellationToken::new(),
        };
        let routed = self.router.send(question).await.map_err(|_| "the router did not answer".to_owned())?;
        Ok(routed.map_err(|error| error.to_string())?.verdict.votes.clone())
    }
}

impl CollectedImages {
    /// Records images that were read, and returns those on which a vote is missing, without duplicates.
    fn note(
        &mut self,
        read: Vec<Result<LoadedImage, String>>,
        stores: &[ModelVoteStore],
    ) -> Vec<LoadedImage> {
        let mut unknown = Vec::new();
        let mut seen = HashSet::new();
        for read in read {
            match read {
                Ok(image) => {
                    self.images.push(Some(image.digests));
                    let sent = image.digests.sent;
                    let is_missing = stores.iter().any(|votes| votes.store.get(&sent).is_none());
                    if is_missing && seen.insert(sent) {
                        unknown.push(image);
                    }
                }
                Err(fault) => {
                    self.images.push(None);
                    self.faults.insert(fault);
                }
            }
        }
        unknown
    }
}

/// Stores the votes that were not stored yet, and returns the failures of the other models.
///
/// # Errors
/// When a vote cannot be stored: the rest would be asked for in vain.
fn keep(image: &Digest, votes: &[FusedVote], stores: &mut [ModelVoteStore]) -> Result<Vec<String>, String> {
    let mut faults = Vec::new();
    for ModelVoteStore { model, store } in stores {
        let fused = votes.iter().find(|fused| fused.vote.model == *model);
        let Some(FusedVote { vote, .. }) = fused.filter(|_| store.get(image).is_none()) else { continue };
        match &vote.output {
            Ok(output) => store.put(image, StoredVote { output: output.clone(), cost: vote.cost })?,
            Err(failure) => faults.push(format!("{model}: {failure}")),
        }
    }
    Ok(faults)
}
