//! Runs two models at once, each on a thread and stream of its own, and the same work one after the other.

use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use concord_models::libtorch::Stream;
use concord_models::{Model, device_name};

use super::args::BenchArgs;
use super::bench_model::{BenchModel, Variant, pair};
use super::measure::{Limits, warm_up};
use super::report::{PairRun, Report, SoloRun};
use super::workload::{self, VOTE, Workload};
use crate::commands::{contained, warn};

/// The number of rounds, of which the median counts: a machine's speed varies from one moment to the next.
const ROUNDS: usize = 3;
/// The number of iterations from which the number for a round is estimated.
const TRIAL: usize = 5;
/// The only device without CUDA graphs.
const CPU: &str = "cpu";

/// Measures the two models that `--together` names. Failures are entered into the report; the other variants
/// are still measured.
pub(super) fn run(args: &BenchArgs, report: &mut Report) -> Result<(), String> {
    let bench_models = pair(args)?;
    let [first, second] = &bench_models;
    for variants in first.variants(args).into_iter().zip(second.variants(args)) {
        for &batch in &args.batch {
            match measure(args, &bench_models, &[variants.0.clone(), variants.1.clone()], batch) {
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
    bench_models: &[BenchModel; 2],
    variants: &[Variant; 2],
    batch: usize,
) -> Result<PairRun, String> {
    thread::scope(|scope| {
        let start = |index: usize| {
            let (bench_model, variant) = (&bench_models[index], &variants[index]);
            let ((requests, requested), (done, results)) = (channel(), channel());
            scope.spawn(move || {
                if let Err(message) = run_lane(args, bench_model, variant, batch, &requested, &done) {
                    // Nobody receives it where the other model failed.
                    let _unreceived = done.send(Err(format!("{}: {message}", bench_model.name)));
                }
            });
            let lane = Lane { requests, results };
            // One after the other: the loading of the second must not disturb the graph capture of the first.
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
        let model = |index: usize| SoloRun {
            model: bench_models[index].name.clone(),
            work: started[index].work.clone(),
            device: started[index].device.clone(),
            iterations: started[index].iterations,
            alone_s: alone[index].as_secs_f64(),
        };
        Ok(PairRun {
            batch,
            dtype: variants[0].options.dtype.clone(),
            graphs: variants[0].options.graphs && started.iter().all(|one| one.device != CPU),
            models: [model(0), model(1)],
            together_s: together.as_secs_f64(),
            ratio: rounds[ROUNDS / 2].ratio(),
        })
    })
}

/// Returns the number of iterations that take `--seconds`. Both models have to take equally long: what one
/// does after the other has ended says nothing.
fn iterations(args: &BenchArgs, ran: usize, took: Duration) -> usize {
    let each = took.as_secs_f64() / ran as f64;
    args.iterations.unwrap_or_else(|| ((args.seconds / each.max(1e-6)) as usize).max(TRIAL))
}

/// The times of both models in one round: each alone, then both at once.
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
    first.lane.request(first.iterations)?;
    second.lane.request(second.iterations)?;
    first.lane.result()?;
    second.lane.result()?;
    Ok(Round { alone, together: begun.elapsed() })
}

/// The channels to a thread that has a model and runs iterations on request.
struct Lane {
    requests: Sender<usize>,
    results: Receiver<Result<LaneReport, String>>,
}

/// A model that is ready to be measured, and its number of iterations in a round.
struct Started {
    lane: Lane,
    iterations: usize,
    work: String,
    device: String,
}

/// The report of a thread that has run the requested iterations.
struct LaneReport {
    work: String,
    device: String,
    took: Duration,
}

impl Lane {
    fn run(&self, iterations: usize) -> Result<LaneReport, String> {
        self.request(iterations)?;
        self.result()
    }

    fn request(&self, iterations: usize) -> Result<(), String> {
        self.requests.send(iterations).map_err(|_| "its thread has ended".to_owned())
    }

    fn result(&self) -> Result<LaneReport, String> {
        self.results.recv().map_err(|_| "its thread has ended".to_owned())?
    }
}

/// Runs on the thread: loads the model, and runs iterations until its channel is closed.
fn run_lane(
    args: &BenchArgs,
    bench_model: &BenchModel,
    variant: &Variant,
    batch: usize,
    requests: &Receiver<usize>,
    done: &Sender<Result<LaneReport, String>>,
) -> Result<(), String> {
    let progress = |text: &str| eprintln!("{} {}: {text}", bench_model.name, variant.options.dtype);
    progress("loading");
    let mut model = bench_model.load(variant, args.seed)?;
    let placement = model.info().placement;
    let stream = Stream::new(placement.device).map_err(|error| error.to_string())?;
    let _current = stream.enter().map_err(|error| error.to_string())?;
    let task = workload::prepare(model.as_mut(), &bench_model.tasks, &progress);
    let model: &dyn Model = model.as_ref();
    let images = contained(|| workload::images(model, batch))?;
    let workloads = contained(|| workload::workloads(model, &images, task, args.tokens))?;
    let workload = chosen(workloads, args.only.as_deref())?;
    progress(&format!("batch {batch}: {}", workload.name));
    let limits = Limits { iterations: args.iterations, seconds: args.seconds, warmup: args.warmup };
    contained(|| warm_up(&stream, &limits, &workload))?;
    while let Ok(iterations) = requests.recv() {
        let took = contained(|| {
            let begun = Instant::now();
            for _ in 0..iterations {
                drop((workload.run)()?);
                stream.synchronize()?;
            }
            Ok(begun.elapsed())
        })?;
        let report = LaneReport { work: workload.name.clone(), device: device_name(placement.device), took };
        if done.send(Ok(report)).is_err() {
            break;
        }
    }
    Ok(())
}

/// Returns the first workload whose name contains `--only`; without it the vote, or the first workload of a
/// model that does not vote.
fn chosen<'a>(workloads: Vec<Workload<'a>>, only: Option<&str>) -> Result<Workload<'a>, String> {
    let names: Vec<String> = workloads.iter().map(|workload| workload.name.clone()).collect();
    let found = names.iter().position(|name| name.contains(only.unwrap_or(VOTE)));
    let index = found.or(if only.is_none() { Some(0) } else { None });
    index.and_then(|index| workloads.into_iter().nth(index)).ok_or_else(|| {
        format!("no workload is called {:?}: must be one of {}", only.unwrap_or(VOTE), names.join(", "))
    })
}
