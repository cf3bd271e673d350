//! `concord bench`: measures models by themselves, without the actors and the cascade.

mod args;
mod bench_model;
mod measure;
mod process;
mod report;
mod together;
mod workload;

use std::process::ExitCode;
use std::time::Instant;

use concord_models::libtorch::{Stream, allocated_memory, reset_peak_memory};
use concord_models::{Model, device_name, dtype_name, graph_fallbacks};

use self::bench_model::{BenchModel, Variant};
use self::measure::{Limits, measure};
use self::report::{LoadedReport, Measurement, Report};
use super::{EXIT_UNUSABLE, contained, warn};
pub use args::BenchArgs;

/// Measures what the arguments name, and prints the report.
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

/// Measures every model by itself, in each of its variants.
fn each(args: &BenchArgs, report: &mut Report) -> Result<(), String> {
    let models = bench_model::bench_models(args)?;
    for bench_model in &models {
        for variant in bench_model.variants(args) {
            if let Err(message) = bench_one(args, bench_model, &variant, report) {
                let name = &bench_model.name;
                warn(&format!("{name}: {message}"));
                report.failures.push(format!("{name} {}: {message}", variant.options.dtype));
            }
        }
    }
    Ok(())
}

/// Writes the report; the exit status says whether everything was measured.
fn end(args: &BenchArgs, mut report: Report) -> ExitCode {
    let fallbacks = graph_fallbacks();
    if fallbacks > 0 {
        report.failures.push(format!("{fallbacks} forward passes ran without their CUDA graph"));
    }
    match report.write(args.json.as_deref(), args.table.wide) {
        Ok(()) if report.is_complete() => ExitCode::SUCCESS,
        Ok(()) => ExitCode::FAILURE,
        Err(message) => {
            warn(&message);
            ExitCode::FAILURE
        }
    }
}

/// Loads one variant of a model and measures its workloads. A workload that fails is a row that says so; the
/// others are still measured.
fn bench_one(
    args: &BenchArgs,
    bench_model: &BenchModel,
    variant: &Variant,
    report: &mut Report,
) -> Result<(), String> {
    let progress = |text: &str| eprintln!("{} {}: {text}", bench_model.name, variant.options.dtype);
    progress("loading");
    process::reset_host_peak();
    let begun = Instant::now();
    let mut model = bench_model.load(variant, args.seed)?;
    let load_s = begun.elapsed().as_secs_f64();
    let placement = model.info().placement;
    let text = |error: &dyn std::fmt::Display| error.to_string();
    let memory = allocated_memory(placement.device).map_err(|error| text(&error))?;
    report.models.push(LoadedReport {
        model: bench_model.name.clone(),
        architecture: variant.options.architecture.clone(),
        source: bench_model.source(),
        parameters: model.info().parameters,
        dtype: dtype_name(placement.kind).to_owned(),
        device: device_name(placement.device),
        graphs: variant.options.graphs && placement.device.is_cuda(),
        load_s,
        host_peak_bytes: process::host_peak_bytes(),
        device_bytes: memory.map(|memory| memory.allocated),
        device_peak_bytes: memory.map(|memory| memory.peak),
    });
    let stream = Stream::new(placement.device).map_err(|error| text(&error))?;
    let _current = stream.enter().map_err(|error| text(&error))?;
    let task = workload::prepare(model.as_mut(), &bench_model.tasks, &progress);

    let limits = Limits { iterations: args.iterations, seconds: args.seconds, warmup: args.warmup };
    let model: &dyn Model = model.as_ref();
    for &batch in &args.batch {
        let images = contained(|| workload::images(model, batch))?;
        for workload in contained(|| workload::workloads(model, &images, task, args.tokens))? {
            if args.only.as_ref().is_some_and(|only| !workload.name.contains(only.as_str())) {
                continue;
            }
            progress(&format!("batch {batch}: {}", workload.name));
            reset_peak_memory(placement.device).map_err(|error| text(&error))?;
            let outcome = measure(&stream, &limits, &workload, memory.is_some());
            if let Err(message) = &outcome {
                progress(&format!("batch {batch}: {}: failed: {message}", workload.name));
            }
            let peak = allocated_memory(placement.device).ok().flatten();
            report.results.push(Measurement {
                model: bench_model.name.clone(),
                work: workload.name,
                batch,
                dtype: dtype_name(placement.kind).to_owned(),
                device: device_name(placement.device),
                graphs: variant.options.graphs && placement.device.is_cuda(),
                peak_device_bytes: peak.map(|memory| memory.peak),
                outcome,
            });
        }
    }
    Ok(())
}
