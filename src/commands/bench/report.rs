//! What was measured, as tables and as JSON.

use std::path::Path;

use comfy_table::{Cell, CellAlignment, Table, presets};
use serde::Serialize;
use serde_json::{Value, json};

use super::measure::Timing;
use super::together::{Alone, Together};
use crate::commands::say;

/// Everything that one call measured.
#[derive(Debug, Default)]
pub(super) struct Report {
    pub(super) models: Vec<Loaded>,
    pub(super) results: Vec<Measured>,
    /// Two models at once.
    pub(super) together: Vec<Together>,
    /// Models of which nothing could be measured.
    pub(super) failures: Vec<String>,
}

/// A model, and what loading it took.
#[derive(Debug, Serialize)]
pub(super) struct Loaded {
    pub(super) model: String,
    pub(super) architecture: String,
    /// `random`, or the snapshot's folder.
    pub(super) source: String,
    pub(super) parameters: i64,
    pub(super) dtype: String,
    pub(super) device: String,
    pub(super) graphs: bool,
    pub(super) load_s: f64,
    /// Resident in main memory at most, libtorch included.
    pub(super) host_peak_bytes: Option<u64>,
    /// On the GPU after loading, and at most meanwhile; with what earlier models left there.
    pub(super) device_bytes: Option<u64>,
    pub(super) device_peak_bytes: Option<u64>,
}

/// One work of one model, and what came of measuring it.
#[derive(Debug)]
pub(super) struct Measured {
    pub(super) model: String,
    pub(super) work: String,
    pub(super) batch: usize,
    pub(super) dtype: String,
    pub(super) device: String,
    pub(super) graphs: bool,
    /// On the GPU, weights included.
    pub(super) peak_device_bytes: Option<u64>,
    pub(super) outcome: Result<Timing, String>,
}

impl Measured {
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
    /// Whether nothing failed.
    pub(super) fn is_complete(&self) -> bool {
        self.failures.is_empty() && self.results.iter().all(|measured| measured.outcome.is_ok())
    }

    /// JSON to standard output for `-`; otherwise the tables, and JSON to the file where there is one.
    pub(super) fn write(&self, json_to: Option<&Path>) -> Result<(), String> {
        let results: Vec<Value> = self.results.iter().map(Measured::json).collect();
        let json = json!({
            "program": "concord", "version": env!("CARGO_PKG_VERSION"),
            "models": self.models, "results": results, "together": self.together, "failures": self.failures,
        });
        if json_to == Some(Path::new("-")) {
            say(&json);
            return Ok(());
        }
        if self.together.is_empty() {
            say(&self.models_table());
            say(&self.results_table());
        } else {
            say(&self.together_table());
        }
        match json_to {
            Some(path) => std::fs::write(path, format!("{json:#}\n"))
                .map_err(|error| format!("{}: {error}", path.display())),
            None => Ok(()),
        }
    }

    fn models_table(&self) -> Table {
        let mut table = Table::new();
        table.load_preset(presets::UTF8_HORIZONTAL_ONLY).set_header([
            "model",
            "device",
            "dtype",
            "parameters",
            "load",
            "host peak",
            "on the GPU",
        ]);
        for loaded in &self.models {
            table.add_row([
                Cell::new(&loaded.model),
                Cell::new(&loaded.device),
                Cell::new(&loaded.dtype),
                right(format!("{:.1} M", loaded.parameters as f64 / 1e6)),
                right(format!("{:.2} s", loaded.load_s)),
                right(megabytes(loaded.host_peak_bytes)),
                right(megabytes(loaded.device_bytes)),
            ]);
        }
        table
    }

    fn together_table(&self) -> Table {
        let mut table = Table::new();
        let table = table.load_preset(presets::UTF8_HORIZONTAL_ONLY);
        table.set_header(["models", "work", "dtype", "graphs", "batch", "alone", "together", "ratio"]);
        for together in &self.together {
            let lines = |line: fn(&Alone) -> String| together.models.each_ref().map(line).join("\n");
            let alone = |alone: &Alone| format!("{:.3} s: {} times", alone.alone_s, alone.iterations);
            table.add_row([
                Cell::new(lines(|alone| alone.model.clone())),
                Cell::new(lines(|alone| alone.work.clone())),
                Cell::new(&together.dtype),
                Cell::new(if together.graphs { "on" } else { "off" }),
                right(together.batch.to_string()),
                right(lines(alone)),
                right(format!("{:.3} s", together.together_s)),
                right(format!("{:.3}", together.ratio)),
            ]);
        }
        std::mem::take(table)
    }

    fn results_table(&self) -> Table {
        let mut table = Table::new();
        table.load_preset(presets::UTF8_HORIZONTAL_ONLY).set_header([
            "model", "work", "dtype", "graphs", "batch", "p50 ms", "p99 ms", "mean ms", "images/s",
            "peak GPU",
        ]);
        for measured in &self.results {
            let mut row = vec![
                Cell::new(&measured.model),
                Cell::new(&measured.work),
                Cell::new(&measured.dtype),
                Cell::new(if measured.graphs { "on" } else { "off" }),
                right(measured.batch.to_string()),
            ];
            match &measured.outcome {
                Ok(Timing { latency, images_per_s, .. }) => {
                    row.extend([latency.p50, latency.p99, latency.mean].map(|ms| right(format!("{ms:.3}"))));
                    row.push(right(format!("{images_per_s:.1}")));
                    row.push(right(megabytes(measured.peak_device_bytes)));
                }
                Err(message) => row.push(Cell::new(format!("failed: {message}"))),
            }
            table.add_row(row);
        }
        table
    }
}

fn right(text: String) -> Cell {
    Cell::new(text).set_alignment(CellAlignment::Right)
}

fn megabytes(bytes: Option<u64>) -> String {
    bytes.map_or_else(|| "–".to_owned(), |bytes| format!("{:.0} MB", bytes as f64 / 1e6))
}
