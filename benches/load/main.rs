//! Measures the cost of the server besides its models, under load on this machine, beside a peer in the same
//! run.
//!
//!     make bench
//!
//! Prints a table, and the same as JSON. The load generator shares the cores with the server. Needs wrk.

#![expect(clippy::expect_used, clippy::panic, reason = "a bench stops at what it did not expect")]

mod arrivals;
mod client;
mod instant;
mod measure;
mod overload;
mod servers;
mod wrk;

use std::time::Duration;

use comfy_table::{ContentArrangement, Table, presets};
use serde_json::{Map, Value};

/// The program's allocator, because two of the measurements run the server in this process.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// One line of the table.
struct Row {
    what: String,
    value: String,
    /// The figure of the same machine in the same run without Concord, or the goal.
    beside: String,
}

/// All measurements.
#[derive(Default)]
struct Report {
    rows: Vec<Row>,
    json: Map<String, Value>,
}

impl Report {
    fn add(&mut self, what: impl Into<String>, key: &str, value: f64, unit: &str, beside: impl Into<String>) {
        let digits = if value >= 100.0 { 0 } else { 3 };
        self.rows.push(Row {
            what: what.into(),
            value: format!("{value:.digits$} {unit}"),
            beside: beside.into(),
        });
        self.json.insert(key.to_owned(), Value::from(value));
    }

    fn print(self) {
        let mut table = Table::new();
        table
            .load_preset(presets::UTF8_HORIZONTAL_ONLY)
            .set_content_arrangement(ContentArrangement::Dynamic)
            .set_width(120)
            .set_header(["what", "measured", "beside"]);
        for row in self.rows {
            table.add_row([row.what, row.value, row.beside]);
        }
        println!("{table}\n{}", Value::Object(self.json));
    }
}

fn main() {
    // Models on the CPU compute on their own threads; more of them would only contend for cores here.
    concord_models::set_cpu_threads(1);
    let mut report = Report::default();
    let arguments: Vec<String> = std::env::args().collect();
    let has = |name: &str| arguments.iter().any(|argument| argument == name);
    if !has("overload") {
        measure::router_latency(&mut report);
    }
    if has("latency") {
        return report.print();
    }
    // `overload 60`: that alone, 60 seconds each.
    let seconds = arguments.iter().find_map(|argument| argument.parse().ok());
    overload::overload(&mut report, seconds.map(Duration::from_secs));
    if has("overload") {
        return report.print();
    }
    measure::cached_verdicts(&mut report);
    measure::nano_models(&mut report);
    report.print();
}
