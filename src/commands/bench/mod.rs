//! `concord bench`: how long models take by themselves.

mod measure;
mod process;
mod report;
mod subject;
mod together;
mod work;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use concord_models::libtorch::{Stream, allocated_memory, reset_peak_memory};
use concord_models::{DEVICES, Model, device_name, dtype_name, graph_fallbacks};

use self::measure::{Limits, measure};
use self::report::{Loaded, Measured, Report};
use self::subject::{Subject, Variant};
use super::{EXIT_UNUSABLE, EnsembleArgs, contained, warn};

/// Measure models by themselves: latency, throughput, memory and load time.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Every model is loaded, then each thing that it does is run again and again on an input that is on its device already: \
the network alone, a vote on the bench's or the model's own yes/no task, and for writers a text about one image. \
An iteration ends when the device has done its work. Latency is the time that the caller waits; on a GPU device_ms is \
the same between two events of the model's stream.\n\n\
  concord bench                                     all models of ensemble.toml, one image at a time\n\
  concord bench dinov3 --batch 1,8,32 --dtype fp32,bf16\n\
  concord bench --snapshot DIR --architecture siglip2\n\
  concord bench --random dinov3-vitl16 --batch 1,8,32 --json=vitl.json\n  \
concord bench --together random:dinov3-vitl16 random:florence2-large\n\n\
--random needs no snapshot: the weights are made on the device. A name that is none lists the presets.\n\
Exit status: 0 when everything was measured, 1 when something failed or gave values that are no numbers,\n\
2 when nothing could be measured (a faulty configuration, an unknown model or preset).")]
pub struct BenchArgs {
    #[command(flatten)]
    ensemble: EnsembleArgs,
    /// Models of the ensemble; all that run here, where none is named and neither --random nor --snapshot is given
    #[arg(value_name = "MODEL")]
    models: Vec<String>,
    /// A snapshot's folder instead
    #[arg(long, value_name = "DIR", requires = "architecture")]
    snapshot: Option<PathBuf>,
    /// What the snapshot is: dinov3, siglip2, florence2, molmo2 or torchscript
    #[arg(long, value_name = "NAME", requires = "snapshot")]
    architecture: Option<String>,
    /// Published sizes with random weights, for instance dinov3-vitl16; may be repeated
    #[arg(long, value_name = "PRESET")]
    random: Vec<String>,
    /// Two models at once, each on its own thread and stream, and their time as a share of the sum of their times
    /// alone; of the ensemble, or random:PRESET
    #[arg(long, num_args = 2, value_names = ["A", "B"], conflicts_with_all = ["models", "snapshot", "random"])]
    together: Vec<String>,
    /// How many images run together
    #[arg(long, value_name = "N,…", value_delimiter = ',', default_value = "1", value_parser = at_least_one)]
    batch: Vec<usize>,
    /// Number formats: fp32, bf16, fp16, fp8; as configured where absent, bf16 where nothing is configured
    #[arg(long, value_name = "NAME,…", value_delimiter = ',')]
    dtype: Vec<String>,
    #[arg(long, help = format!("Where to compute instead of where it is configured: {DEVICES}"))]
    device: Option<String>,
    /// Whether forwards are replayed from CUDA graphs
    #[arg(long, value_enum, default_value_t = Graphs::On)]
    graphs: Graphs,
    /// So many iterations of each work, whatever time they take
    #[arg(long, value_name = "N", conflicts_with = "seconds", value_parser = at_least_one)]
    iterations: Option<usize>,
    /// For how long each work is repeated, at least five times
    #[arg(long, value_name = "S", default_value_t = 3.0)]
    seconds: f64,
    /// Iterations before those that count
    #[arg(long, value_name = "N", default_value_t = 5)]
    warmup: usize,
    /// How many tokens writers write
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = at_least_one)]
    tokens: usize,
    /// Only works whose name contains this, for instance "decoder"
    #[arg(long, value_name = "TEXT")]
    only: Option<String>,
    /// What random weights follow from
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: i64,
    /// Print JSON instead of a table, or write it to a file beside the table
    #[arg(long, value_name = "FILE", num_args = 0..=1, require_equals = true, default_missing_value = "-")]
    json: Option<PathBuf>,
}

/// `--graphs`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Graphs {
    Off,
    On,
    /// One after the other.
    Both,
}

impl Graphs {
    fn each(self) -> &'static [bool] {
        match self {
            Self::Off => &[false],
            Self::On => &[true],
            Self::Both => &[false, true],
        }
    }
}

fn at_least_one(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(0) => Err("must be at least 1".to_owned()),
        Ok(number) => Ok(number),
        Err(error) => Err(format!("{error}")),
    }
}

/// Measures everything that was asked for.
pub fn run(args: &BenchArgs) -> ExitCode {
    let mut report = Report::default();
    let measured =
        if args.together.is_empty() { each(args, &mut report) } else { together::run(args, &mut report) };
    if let Err(message) = measured {
        warn(&message);
        return ExitCode::from(EXIT_UNUSABLE);
    }
    end(args, report)
}

/// Measures every model by itself.
fn each(args: &BenchArgs, report: &mut Report) -> Result<(), String> {
    let subjects = subject::subjects(args)?;
    for subject in &subjects {
        for variant in subject.variants(args) {
            if let Err(message) = bench_one(args, subject, &variant, report) {
                let name = &subject.name;
                warn(&format!("{name}: {message}"));
                report.failures.push(format!("{name} {}: {message}", variant.options.dtype));
            }
        }
    }
    Ok(())
}

/// Tells what was measured, and whether that was all.
fn end(args: &BenchArgs, mut report: Report) -> ExitCode {
    let fallbacks = graph_fallbacks();
    if fallbacks > 0 {
        report
            .failures
            .push(format!("{fallbacks} forwards ran without the CUDA graph that they should have had"));
    }
    match report.write(args.json.as_deref()) {
        Ok(()) if report.is_complete() => ExitCode::SUCCESS,
        Ok(()) => ExitCode::FAILURE,
        Err(message) => {
            warn(&message);
            ExitCode::FAILURE
        }
    }
}

/// Loads one model in one way and measures all that it does. What fails is a row that says so; the rest goes on.
fn bench_one(
    args: &BenchArgs,
    subject: &Subject,
    variant: &Variant,
    report: &mut Report,
) -> Result<(), String> {
    let say = |text: &str| eprintln!("{} {}: {text}", subject.name, variant.options.dtype);
    say("loading");
    process::reset_host_peak();
    let begun = Instant::now();
    let mut model = subject.load(variant, args.seed)?;
    let load_s = begun.elapsed().as_secs_f64();
    let place = model.loaded().placement;
    let text = |error: &dyn std::fmt::Display| error.to_string();
    let memory = allocated_memory(place.device).map_err(|error| text(&error))?;
    report.models.push(Loaded {
        model: subject.name.clone(),
        architecture: variant.options.architecture.clone(),
        source: subject.source(),
        parameters: model.loaded().parameters,
        dtype: dtype_name(place.kind).to_owned(),
        device: device_name(place.device),
        graphs: variant.options.graphs && place.device.is_cuda(),
        load_s,
        host_peak_bytes: process::host_peak_bytes(),
        device_bytes: memory.map(|memory| memory.allocated),
        device_peak_bytes: memory.map(|memory| memory.peak),
    });
    let stream = Stream::new(place.device).map_err(|error| text(&error))?;
    let _current = stream.enter().map_err(|error| text(&error))?;
    let task = work::prepare(model.as_mut(), &subject.tasks, &say);

    let limits = Limits { iterations: args.iterations, seconds: args.seconds, warmup: args.warmup };
    let model: &dyn Model = model.as_ref();
    for &batch in &args.batch {
        let images = contained(|| work::images(model, batch))?;
        for work in contained(|| work::works(model, &images, task, args.tokens))? {
            if args.only.as_ref().is_some_and(|only| !work.name.contains(only.as_str())) {
                continue;
            }
            say(&format!("batch {batch}: {}", work.name));
            reset_peak_memory(place.device).map_err(|error| text(&error))?;
            let outcome = measure(&stream, &limits, &work, memory.is_some());
            if let Err(message) = &outcome {
                say(&format!("batch {batch}: {}: failed: {message}", work.name));
            }
            let peak = allocated_memory(place.device).ok().flatten();
            report.results.push(Measured {
                model: subject.name.clone(),
                work: work.name,
                batch,
                dtype: dtype_name(place.kind).to_owned(),
                device: device_name(place.device),
                graphs: variant.options.graphs && place.device.is_cuda(),
                peak_device_bytes: peak.map(|memory| memory.peak),
                outcome,
            });
        }
    }
    Ok(())
}
