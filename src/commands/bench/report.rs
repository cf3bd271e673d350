//! The report of one call, as tables and as JSON.

use std::path::Path;

use comfy_table::{Cell, Table};
use serde::Serialize;
use serde_json::{Value, json};

use super::measure::Timing;
use crate::commands::print_line;
use crate::table::{align_right_from, new_table, number};

/// The measurements of one call.
#[derive(Debug, Default)]
pub(super) struct Report {
    pub(super) models: Vec<LoadedReport>,
    pub(super) results: Vec<Measurement>,
    /// Pairs of models that ran at once.
    pub(super) together: Vec<PairRun>,
    /// Models that could not be measured, and why.
    pub(super) failures: Vec<String>,
}

/// A loaded model, and the time and memory that loading it took.
#[derive(Debug, Serialize)]
pub(super) struct LoadedReport {
    pub(super) model: String,
    pub(super) architecture: String,
    /// `random`, or the folder of the snapshot.
    pub(super) source: String,
    pub(super) parameters: i64,
    pub(super) dtype: String,
    pub(super) device: String,
    pub(super) graphs: bool,
    pub(super) load_s: f64,
    /// The peak of resident main memory, libtorch included.
    pub(super) host_peak_bytes: Option<u64>,
    /// Memory of the GPU after loading, and the peak while loading, with what earlier models left there.
    pub(super) device_bytes: Option<u64>,
    pub(super) device_peak_bytes: Option<u64>,
}

/// One workload of one model, and its times or its failure.
#[derive(Debug)]
pub(super) struct Measurement {
    pub(super) model: String,
    pub(super) work: String,
    pub(super) batch: usize,
    pub(super) dtype: String,
    pub(super) device: String,
    pub(super) graphs: bool,
    /// The peak of GPU memory, weights included.
    pub(super) peak_device_bytes: Option<u64>,
    pub(super) outcome: Result<Timing, String>,
}

/// The measurement of two models that run at once.
#[derive(Debug, Clone, Serialize)]
pub(super) struct PairRun {
    pub(super) batch: usize,
    pub(super) dtype: String,
    pub(super) graphs: bool,
    pub(super) models: [SoloRun; 2],
    /// The time from the start of both until the end of the later one.
    pub(super) together_s: f64,
    /// That time as a share of the sum of the times alone.
    pub(super) ratio: f64,
}

/// The same iterations of one of the two models, while it had the device for itself.
#[derive(Debug, Clone, Serialize)]
pub(super) struct SoloRun {
    pub(super) model: String,
    pub(super) work: String,
    pub(super) device: String,
    pub(super) iterations: usize,
    pub(super) alone_s: f64,
}

impl Measurement {
    fn json(&self) -> Value {
        let timing = self.outcome.as_ref().ok();
        json!({
            "model": self.model, "work": self.work, "batch": self.batch, "dtype": self.dtype,
            "device": self.device, "graphs": self.graphs,
            "iterations": timing.map(|timing| timing.iterations),
            "latency_ms": timing.map(|timing| timing.latency),
            "device_ms": timing.and_then(|timing| timing.device),
            "images_per_s": timing.map(|timing| timing.images_per_s),
            "prompt_tokens": timing.and_then(|timing| timing.prompt_tokens),
            "new_tokens": timing.and_then(|timing| timing.new_tokens),
            "peak_device_bytes": self.peak_device_bytes,
            "error": self.outcome.as_ref().err(),
        })
    }
}

impl Report {
    /// Returns whether nothing failed.
    pub(super) fn is_complete(&self) -> bool {
        self.failures.is_empty() && self.results.iter().all(|measured| measured.outcome.is_ok())
    }

    /// Prints the tables, with all columns if `wide`, and writes JSON to a file if one is named; for `-`,
    /// prints only JSON.
    ///
    /// # Errors
    /// Returns the reason if the file cannot be written.
    pub(super) fn write(&self, json_to: Option<&Path>, wide: bool) -> Result<(), String> {
        let results: Vec<Value> = self.results.iter().map(Measurement::json).collect();
        let json = json!({
            "program": "concord", "version": env!("CARGO_PKG_VERSION"),
            "models": self.models, "results": results, "together": self.together, "failures": self.failures,
        });
        if json_to == Some(Path::new("-")) {
            print_line(&json);
            return Ok(());
        }
        if self.together.is_empty() {
            print_line(&format!("{}\n", self.models_table(wide)));
            print_line(&self.results_table(wide));
        } else {
            print_line(&self.together_table(wide));
        }
        match json_to {
            Some(path) => std::fs::write(path, format!("{json:#}\n"))
                .map_err(|error| format!("{}: {error}", path.display())),
            None => Ok(()),
        }
    }

    fn models_table(&self, wide: bool) -> Table {
        let header = ["model", "device", "dtype", "parameters", "load", "host peak", "on the GPU"];
        let mut table = new_table(header, wide);
        for loaded in &self.models {
            table.add_row([
                Cell::new(&loaded.model),
                Cell::new(&loaded.device),
                Cell::new(&loaded.dtype),
                number(format!("{:.1} M", loaded.parameters as f64 / 1e6)),
                number(format!("{:.2} s", loaded.load_s)),
                number(megabytes(loaded.host_peak_bytes)),
                number(megabytes(loaded.device_bytes)),
            ]);
        }
        align_right_from(&mut table, 3);
        table
    }

    fn together_table(&self, wide: bool) -> Table {
        let mut header = vec!["models", "work", "batch", "alone", "together", "ratio"];
        if wide {
            header.extend(["dtype", "graphs"]);
        }
        let mut table = new_table(header, wide);
        for together in &self.together {
            let lines = |line: fn(&SoloRun) -> String| together.models.each_ref().map(line).join("\n");
            let mut row = vec![
                Cell::new(lines(|alone| alone.model.clone())),
                Cell::new(lines(|alone| alone.work.clone())),
                number(together.batch),
                number(lines(|alone| format!("{} × {:.3} s", alone.iterations, alone.alone_s))),
                number(format!("{:.3} s", together.together_s)),
                number(format!("{:.3}", together.ratio)),
            ];
            if wide {
                row.extend([Cell::new(&together.dtype), Cell::new(on_or_off(together.graphs))]);
            }
            table.add_row(row);
        }
        table
    }

    fn results_table(&self, wide: bool) -> Table {
        let mut header = vec!["model", "work", "dtype", "graphs", "batch", "p50 ms", "images/s"];
        if wide {
            header.extend(["p99 ms", "mean ms", "peak GPU"]);
        }
        let mut table = new_table(header, wide);
        for measured in &self.results {
            let mut row = vec![
                Cell::new(&measured.model),
                Cell::new(&measured.work),
                Cell::new(&measured.dtype),
                Cell::new(on_or_off(measured.graphs)),
                number(measured.batch),
            ];
            match &measured.outcome {
                Ok(Timing { latency, images_per_s, .. }) => {
                    row.extend([number(format!("{:.3}", latency.p50)), number(format!("{images_per_s:.1}"))]);
                    if wide {
                        row.extend([latency.p99, latency.mean].map(|ms| number(format!("{ms:.3}"))));
                        row.push(number(megabytes(measured.peak_device_bytes)));
                    }
                }
                Err(message) => row.push(Cell::new(format!("failed: {message}"))),
            }
            table.add_row(row);
        }
        align_right_from(&mut table, 4);
        table
    }
}

fn on_or_off(is_on: bool) -> &'static str {
    if is_on { "on" } else { "off" }
}

fn megabytes(bytes: Option<u64>) -> String {
    bytes.map_or_else(|| "–".to_owned(), |bytes| format!("{:.0} MB", bytes as f64 / 1e6))
}
