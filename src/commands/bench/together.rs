//! Two models at once, each on a thread and stream of its own, beside the same work one after the other.

use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use concord_models::libtorch::Stream;
use concord_models::{Model, device_name};
use serde::Serialize;

use super::BenchArgs;
use super::measure::Limits;
use super::report::Report;
use super::subject::{Subject, Variant, pair};
use super::work::{self, Work};
use crate::commands::{contained, warn};

/// The machine is not as quick from one moment to the next: the middle one of so many rounds counts.
const ROUNDS: usize = 3;
/// Iterations after which it is known how many take as long as is asked for.
const TRIAL: usize = 5;
/// Where models vote, this is what they are for.
const VOTE: &str = "classify yes/no";
/// The one device that has no graphs.
const CPU: &str = "cpu";

/// What was measured of two models.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Together {
    pub(super) batch: usize,
    pub(super) dtype: String,
    pub(super) graphs: bool,
    pub(super) models: [Alone; 2],
    /// From the begin of both until the end of the later one.
    pub(super) together_s: f64,
    /// Of the sum of the times alone.
    pub(super) ratio: f64,
}

/// What one of them did in that time, when it had the device for itself.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Alone {
    pub(super) model: String,
    pub(super) work: String,
    pub(super) device: String,
    pub(super) iterations: usize,
    pub(super) alone_s: f64,
}

/// Measures the two that `--together` names. What fails is in the report; the rest goes on.
pub(super) fn run(args: &BenchArgs, report: &mut Report) -> Result<(), String> {
    let subjects = pair(args)?;
    let [first, second] = &subjects;
    for variants in first.variants(args).into_iter().zip(second.variants(args)) {
        for &batch in &args.batch {
            match measure(args, &subjects, &[variants.0.clone(), variants.1.clone()], batch) {
                Ok(together) => report.together.push(together),
                Err(message) => {
                    let message = format!("{} and {}: {message}", first.name, second.name);
                    warn(&message);
                    report.failures.push(message);
                }
            }
        }
    }
    Ok(())
}

fn measure(
    args: &BenchArgs,
    subjects: &[Subject; 2],
    variants: &[Variant; 2],
    batch: usize,
) -> Result<Together, String> {
    thread::scope(|scope| {
        let start = |index: usize| {
            let (subject, variant) = (&subjects[index], &variants[index]);
            let ((orders, ordered), (done, results)) = (channel(), channel());
            scope.spawn(move || {
                if let Err(message) = follow(args, subject, variant, batch, &ordered, &done) {
                    // Nobody listens where the other one failed.
                    let _unheard = done.send(Err(format!("{}: {message}", subject.name)));
                }
            });
            let lane = Lane { orders, results };
            // One after the other: what the first captures must not be disturbed by the second's loading.
            let few = iterations(args, TRIAL, lane.run(TRIAL)?.took).div_ceil(TRIAL);
            let trial = lane.run(few)?;
            let iterations = iterations(args, few, trial.took);
            Ok::<_, String>(Started { lane, iterations, work: trial.work, device: trial.device })
        };
        let started = [start(0)?, start(1)?];
        let mut rounds = Vec::new();
        for _ in 0..ROUNDS {
            rounds.push(round(&started)?);
        }
        rounds.sort_by(|one, other| one.ratio().total_cmp(&other.ratio()));
        let Round { alone, together } = rounds[ROUNDS / 2];
        let model = |index: usize| Alone {
            model: subjects[index].name.clone(),
            work: started[index].work.clone(),
            device: started[index].device.clone(),
            iterations: started[index].iterations,
            alone_s: alone[index].as_secs_f64(),
        };
        Ok(Together {
            batch,
            dtype: variants[0].options.dtype.clone(),
            graphs: variants[0].options.graphs && started.iter().all(|one| one.device != CPU),
            models: [model(0), model(1)],
            together_s: together.as_secs_f64(),
            ratio: rounds[ROUNDS / 2].ratio(),
        })
    })
}

/// So many that either model takes as long as the other: what one does while the other has ended says nothing.
fn iterations(args: &BenchArgs, ran: usize, took: Duration) -> usize {
    let each = took.as_secs_f64() / ran as f64;
    args.iterations.unwrap_or_else(|| ((args.seconds / each.max(1e-6)) as usize).max(TRIAL))
}

/// Each alone, then both.
#[derive(Debug, Clone, Copy)]
struct Round {
    alone: [Duration; 2],
    together: Duration,
}

impl Round {
    fn ratio(&self) -> f64 {
        self.together.as_secs_f64() / (self.alone[0] + self.alone[1]).as_secs_f64()
    }
}

fn round([first, second]: &[Started; 2]) -> Result<Round, String> {
    let alone = [first.lane.run(first.iterations)?.took, second.lane.run(second.iterations)?.took];
    let begun = Instant::now();
    first.lane.order(first.iterations)?;
    second.lane.order(second.iterations)?;
    first.lane.result()?;
    second.lane.result()?;
    Ok(Round { alone, together: begun.elapsed() })
}

/// A thread with a model, from outside.
struct Lane {
    orders: Sender<usize>,
    results: Receiver<Result<Told, String>>,
}

/// A model that is ready to be measured, and how often its work is done in one round.
struct Started {
    lane: Lane,
    iterations: usize,
    work: String,
    device: String,
}

/// What a thread tells when it has done what was ordered.
struct Told {
    work: String,
    device: String,
    took: Duration,
}

impl Lane {
    fn run(&self, iterations: usize) -> Result<Told, String> {
        self.order(iterations)?;
        self.result()
    }

    fn order(&self, iterations: usize) -> Result<(), String> {
        self.orders.send(iterations).map_err(|_| "its thread has ended".to_owned())
    }

    fn result(&self) -> Result<Told, String> {
        self.results.recv().map_err(|_| "its thread has ended".to_owned())?
    }
}

/// The thread: loads the model, and does what is ordered until nobody orders any more.
fn follow(
    args: &BenchArgs,
    subject: &Subject,
    variant: &Variant,
    batch: usize,
    orders: &Receiver<usize>,
    done: &Sender<Result<Told, String>>,
) -> Result<(), String> {
    let say = |text: &str| eprintln!("{} {}: {text}", subject.name, variant.options.dtype);
    say("loading");
    let mut model = subject.load(variant, args.seed)?;
    let place = model.loaded().placement;
    let stream = Stream::new(place.device).map_err(|error| error.to_string())?;
    let _current = stream.enter().map_err(|error| error.to_string())?;
    let task = work::prepare(model.as_mut(), &subject.tasks, &say);
    let model: &dyn Model = model.as_ref();
    let images = contained(|| work::images(model, batch))?;
    let work = chosen(contained(|| work::works(model, &images, task, args.tokens))?, args.only.as_deref())?;
    say(&format!("batch {batch}: {}", work.name));
    let limits = Limits { iterations: args.iterations, seconds: args.seconds, warmup: args.warmup };
    contained(|| super::measure::warm_up(&stream, &limits, &work))?;
    while let Ok(iterations) = orders.recv() {
        let took = contained(|| {
            let begun = Instant::now();
            for _ in 0..iterations {
                drop((work.run)()?);
                stream.synchronize()?;
            }
            Ok(begun.elapsed())
        })?;
        let told = Told { work: work.name.clone(), device: device_name(place.device), took };
        if done.send(Ok(told)).is_err() {
            break;
        }
    }
    Ok(())
}

/// The one that `--only` names first; otherwise the vote, or what the model does where it does not vote.
fn chosen<'a>(works: Vec<Work<'a>>, only: Option<&str>) -> Result<Work<'a>, String> {
    let wanted = |work: &Work| work.name.contains(only.unwrap_or(VOTE));
    let names: Vec<String> = works.iter().map(|work| work.name.clone()).collect();
    let place = works.iter().position(wanted).or(if only.is_none() { Some(0) } else { None });
    place.and_then(|place| works.into_iter().nth(place)).ok_or_else(|| {
        format!("nothing of {:?} to measure: must be of {}", only.unwrap_or(VOTE), names.join(", "))
    })
}
