//! `concord evaluate`: how good models, fusions and the cascade are on labelled pictures.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Instant;

use actix::Addr;
use bytes::Bytes;
use clap::builder::RangedU64ValueParser;
use concord_actors::policy::{Opinion, Policy};
use concord_actors::{Caller, Classify, Digest, Engine, Router};
use concord_models::cache_folder;
use futures::stream::{self, StreamExt};
use regex::Regex;

use super::classify::{TIME_LIMIT, choose_task, progress_bar, read_at_most};
use super::{EXIT_UNUSABLE, EnsembleArgs, say, warn, with_tasks};
use crate::evaluate::{
    Comparison, Dataset, Judged, Labelling, Resampling, StoredVote, VoteStore, compare, json, print,
};
use crate::telemetry::Sampling;

/// Compare models, fusions and the cascade on labelled pictures.
///
/// Every model is asked about every picture, one after the other; votes are kept on disk, so that a second run, with other
/// weights or thresholds perhaps, asks for none again.
#[derive(Debug, clap::Args)]
#[command(after_help = "Exit status: 0 when all pictures were compared, 1 when some had to be left out,\n\
    2 when nothing could be compared.")]
pub struct EvaluateArgs {
    #[command(flatten)]
    ensemble: EnsembleArgs,
    /// The task, as ensemble.toml names it; may be left out where there is only one
    #[arg(long, short)]
    task: Option<String>,
    /// A folder with a folder of pictures for each label, a tar archive of that (.tar, .tar.gz), or a table (.csv)
    /// with the columns path, label and perhaps group
    #[arg(long, short, value_name = "PATH")]
    data: PathBuf,
    /// What the pictures of a folder show where its name is not the label's; may be repeated
    #[arg(long = "class", value_name = "FOLDER=LABEL", value_parser = named)]
    classes: Vec<(String, String)>,
    /// What the pictures of all other folders show
    #[arg(long, value_name = "LABEL")]
    other: Option<String>,
    /// Pictures whose names agree in this part show the same thing, so that intervals count them together: a regular
    /// expression, of which the first group counts where it has one, for instance '(.*/\d+)_\d+'
    #[arg(long, value_name = "REGEX")]
    group_by: Option<Regex>,
    /// Ask models behind a server too, which may cost money
    #[arg(long)]
    cloud: bool,
    /// Pictures under way at once; more is faster, but milliseconds are then those of a busy machine
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = RangedU64ValueParser::<usize>::new().range(1..=1024))]
    concurrency: usize,
    /// Where votes are kept [default: votes in Concord's cache folder]
    #[arg(long, value_name = "DIR")]
    votes: Option<PathBuf>,
    /// From how many resamples of the data the intervals are
    #[arg(long, value_name = "N", default_value_t = 1000, value_parser = RangedU64ValueParser::<usize>::new().range(10..=100_000))]
    resamples: usize,
    /// Of the resamples
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// Print one JSON object instead of a table
    #[arg(long)]
    json: bool,
}

fn named(argument: &str) -> Result<(String, String), String> {
    let parts = argument.split_once('=').ok_or("must be FOLDER=LABEL")?;
    Ok((parts.0.to_owned(), parts.1.to_owned()))
}

/// Compares, and tells.
pub fn run(args: &EvaluateArgs) -> ExitCode {
    evaluate(args).unwrap_or_else(|message| {
        warn(&message);
        ExitCode::from(EXIT_UNUSABLE)
    })
}

fn evaluate(args: &EvaluateArgs) -> Result<ExitCode, String> {
    let ensemble = args.ensemble.read()?;
    let task = choose_task(&ensemble, args.task.as_deref())?;
    let is_left_out = |model: &str| !args.cloud && ensemble.clouds().contains_key(model);
    let policy = ensemble.tasks()[&task].without(is_left_out);
    let policy =
        policy.ok_or(format!("task {task} asks only models behind servers: add --cloud to ask them"))?;
    let data = Dataset::read(&args.data, &args.labelling(policy.labels()))?;
    let votes = match &args.votes {
        Some(folder) => folder.clone(),
        None => cache_folder()
            .ok_or("there is no home folder to keep votes in: name one with --votes")?
            .join("votes"),
    };
    let tasks = BTreeMap::from([(task.clone(), policy.one_by_one())]);
    with_tasks(&ensemble, &tasks, async |engine| {
        let asking = Asking {
            args,
            task: &task,
            body_bytes_max: ensemble.server().max_body_bytes,
            router: engine.router(),
        };
        let mut stores = asking.stores(engine, &votes)?;
        let known = asking.all_votes(&data, &mut stores).await;
        // Models that are off have not been asked.
        let policy = policy.without(|model| !stores.iter().any(|store| &*store.model == model));
        let policy = policy.ok_or("no model could be asked")?;
        report(args, &policy, &data, &stores, &known)
    })?
}

impl EvaluateArgs {
    fn labelling<'a>(&self, labels: &'a [String]) -> Labelling<'a> {
        Labelling {
            labels,
            named: self.classes.iter().cloned().collect(),
            other: self.other.clone(),
            group_by: self.group_by.clone(),
        }
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
    args: &'a EvaluateArgs,
    task: &'a str,
    body_bytes_max: u64,
    router: Addr<Router>,
}

impl Asking<'_> {
    /// In the order of the policy's members.
    fn stores(&self, engine: &Engine, folder: &std::path::Path) -> Result<Vec<ModelVotes>, String> {
        let plan = engine.plan();
        let planned = plan.task(self.task).ok_or("the task could not be prepared")?;
        let members = planned.policy().members().map(|member| Arc::clone(member.model()));
        let open = |(model, digest): (Arc<str>, Digest)| {
            Ok(ModelVotes { model, store: VoteStore::open(folder, &digest)? })
        };
        members.zip(planned.vote_digests()).map(open).collect()
    }

    /// Asks for the votes that are not known yet, and keeps them.
    async fn all_votes(&self, data: &Dataset, stores: &mut [ModelVotes]) -> Known {
        let progress = progress_bar(data.examples.len());
        let mut known = Known::default();
        let paths = data.examples.iter().map(|example| &example.path);
        let is_missing = |digest: &Digest, stores: &[ModelVotes]| {
            stores.iter().any(|votes| votes.store.get(digest).is_none())
        };
        // Pictures are read here and asked about a few at a time; what is known already is not asked again.
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
                    Ok(opinions) => known.faults.extend(keep(&digest, &opinions, stores)),
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
        known
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
            trace: Sampling::none().request("evaluate", None).trace,
            caller,
        };
        let routed = self.router.send(question).await.map_err(|_| "the router did not answer".to_owned())?;
        Ok(routed.map_err(|error| error.to_string())?.answer.opinions.clone())
    }
}

/// Keeps the votes that there are; gives what the others failed by.
fn keep(image: &Digest, opinions: &[Opinion], stores: &mut [ModelVotes]) -> Vec<String> {
    let mut faults = Vec::new();
    for votes in stores {
        let opinion = opinions.iter().find(|opinion| opinion.model == votes.model);
        let Some(opinion) = opinion else { continue };
        match &opinion.belief {
            Ok(belief) => {
                // Not calibrated: its logarithms are logits again.
                let logits =
                    belief.distribution.probabilities().iter().map(|p| p.max(f64::MIN_POSITIVE).ln() as f32);
                let cost = opinion.cost.preprocess + opinion.cost.model;
                let vote = StoredVote { logits: logits.collect(), milliseconds: cost.as_secs_f64() * 1e3 };
                faults.extend(votes.store.put(image, vote).err());
            }
            Err(failure) => faults.push(format!("{}: {failure}", votes.model)),
        }
    }
    faults
}

fn report(
    args: &EvaluateArgs,
    policy: &Policy,
    data: &Dataset,
    stores: &[ModelVotes],
    known: &Known,
) -> Result<ExitCode, String> {
    let votes_of =
        |digest: &Digest| stores.iter().map(|votes| votes.store.get(digest)).collect::<Option<Vec<_>>>();
    let mut pictures = Vec::new();
    let mut groups = Vec::new();
    for (example, digest) in data.examples.iter().zip(&known.digests) {
        if let Some(votes) = digest.as_ref().and_then(votes_of) {
            pictures.push(Judged { label: example.label, votes });
            groups.push(example.group);
        }
    }
    let left_out = data.examples.len() - pictures.len();
    for fault in known.faults.iter().take(FAULTS_TOLD_MAX) {
        warn(fault);
    }
    if left_out > 0 {
        warn(&format!(
            "{left_out} of {} pictures are left out, which not every model has voted on",
            data.examples.len()
        ));
    }
    let resampling = Resampling::new(&groups, args.resamples, args.seed);
    let comparison: Comparison = compare(policy, &pictures, &resampling).ok_or("no picture has all votes")?;
    if args.json {
        say(&json(&comparison, policy));
    } else {
        let distinct = groups.iter().collect::<BTreeSet<_>>().len();
        say(&format!("{}: {} pictures in {distinct} groups\n", policy.question(), pictures.len()));
        say(&print(&comparison, policy));
    }
    Ok(if left_out == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// So many different faults are told.
const FAULTS_TOLD_MAX: usize = 5;
