//! The arguments of `concord bench`.

use std::path::PathBuf;

use concord_models::DEVICES;

use crate::commands::EnsembleArgs;
use crate::table::TableArgs;

/// Measure models by themselves: latency, throughput, memory and load time.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Every model is loaded, then each of its workloads is repeated on an input that is on its device already: \
the network alone, a vote on a yes/no task (one of the model's own, or the bench's), and for generative models a text about one image. \
An iteration ends when the device has finished. Latency is the time that the caller waits; on a GPU, device_ms is \
the time between two events of the model's stream.\n\n\
  concord bench                                     all models of ensemble.toml, one image at a time\n\
  concord bench dinov3 --batch 1,8,32 --dtype fp32,bf16\n\
  concord bench --snapshot DIR --architecture siglip2\n\
  concord bench --random dinov3-vitl16 --batch 1,8,32 --json=vitl.json\n  \
concord bench --together random:dinov3-vitl16 random:florence2-large\n\n\
--random needs no snapshot: the weights are generated on the device. An unknown name lists the presets.\n\
Exit status: 0 when everything was measured, 1 when something failed or returned values that are not finite,\n\
2 when nothing could be measured (a faulty configuration, an unknown model or preset).")]
pub struct BenchArgs {
    #[command(flatten)]
    pub(super) ensemble: EnsembleArgs,
    /// Models of the ensemble; without any, and without --random and --snapshot, all that run on this machine
    #[arg(value_name = "MODEL")]
    pub(super) models: Vec<String>,
    /// The folder of a snapshot, instead of models of the ensemble
    #[arg(long, value_name = "DIR", requires = "architecture")]
    pub(super) snapshot: Option<PathBuf>,
    /// The architecture of the snapshot: dinov3, siglip2, florence2, molmo2 or torchscript
    #[arg(long, value_name = "NAME", requires = "snapshot")]
    pub(super) architecture: Option<String>,
    /// A published model size with random weights, for instance dinov3-vitl16; may be repeated
    #[arg(long, value_name = "PRESET")]
    pub(super) random: Vec<String>,
    /// Run two models at once (of the ensemble, or random:PRESET), each on its own thread and stream, and
    /// compare the time with the sum of their times alone
    #[arg(long, num_args = 2, value_names = ["A", "B"], conflicts_with_all = ["models", "snapshot", "random"])]
    pub(super) together: Vec<String>,
    /// Batch sizes: the number of images that run together
    #[arg(long, value_name = "N,…", value_delimiter = ',', default_value = "1", value_parser = at_least_one)]
    pub(super) batch: Vec<usize>,
    /// Number formats: fp32, bf16, fp16, fp8; by default as configured, and bf16 for models that are not
    /// configured
    #[arg(long, value_name = "NAME,…", value_delimiter = ',')]
    pub(super) dtype: Vec<String>,
    #[arg(long, help = format!("The device, instead of the configured one: {DEVICES}"))]
    pub(super) device: Option<String>,
    /// Whether forward passes are replayed from CUDA graphs
    #[arg(long, value_enum, default_value_t = Graphs::On)]
    pub(super) graphs: Graphs,
    /// The number of iterations of each workload, however long they take
    #[arg(long, value_name = "N", conflicts_with = "seconds", value_parser = at_least_one)]
    pub(super) iterations: Option<usize>,
    /// The time in seconds for which each workload is repeated, at least five times
    #[arg(long, value_name = "S", default_value_t = 3.0)]
    pub(super) seconds: f64,
    /// The number of iterations before the measured ones
    #[arg(long, value_name = "N", default_value_t = 5)]
    pub(super) warmup: usize,
    /// The number of tokens that generative models generate
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = at_least_one)]
    pub(super) tokens: usize,
    /// Measure only workloads whose name contains this, for instance "decoder"
    #[arg(long, value_name = "TEXT")]
    pub(super) only: Option<String>,
    /// The seed of random weights
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(super) seed: i64,
    /// Print JSON instead of a table, or write it to a file beside the table
    #[arg(long, value_name = "FILE", num_args = 0..=1, require_equals = true, default_missing_value = "-")]
    pub(super) json: Option<PathBuf>,
    #[command(flatten)]
    pub(super) table: TableArgs,
}

/// The value of `--graphs`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Graphs {
    Off,
    On,
    /// Without, then with.
    Both,
}

impl Graphs {
    /// Returns the settings to measure with, in order.
    pub(super) fn each(self) -> &'static [bool] {
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
