//! Measures the cost of a request apart from its models: deciding, fusing, cache keys, and preprocessing.
//!
//!     make bench-micro

#![expect(clippy::expect_used, reason = "a bench stops at what it did not expect")]

use std::collections::BTreeSet;
use std::hint::black_box;
use std::path::Path;
use std::sync::Arc;

use concord_actors::Digest;
use concord_models::{ImageLimits, ModelOptions, decode, load_model, set_cpu_threads};
use concord_policy::{
    Context, CorrectnessEstimator, Cost, Dense, FusionMethod, ImageFusion, Learned, Network, Policy, Source,
    TaskSection, Vote, decide,
};
use criterion::{Criterion, criterion_group, criterion_main};
use serde_json::{Value, json};

const MODELS: [&str; 4] = ["dinov3", "siglip2", "florence2", "molmo2"];

/// Returns a task with this many labels and four models in three stages, which accepts at none before the
/// last.
fn section(labels: usize, method: FusionMethod) -> Value {
    let labels: Vec<String> = (0..labels).map(|label| format!("label {label}")).collect();
    json!({
        "question": "?", "labels": labels, "fusion": { "method": method.name() },
        "stages": [
            { "models": ["dinov3"], "accept": { "confidence": 1.0 } },
            { "models": ["siglip2", "florence2"], "accept": { "confidence": 1.0, "agreement": true } },
            { "models": ["molmo2"], "accept": { "confidence": 0.5 } },
        ],
    })
}

fn validated(section: Value) -> Policy {
    let section: TaskSection = serde_json::from_value(section).expect("the section has the right types");
    Policy::from_section(&section, &BTreeSet::from(MODELS.map(str::to_owned))).expect("the section is valid")
}

fn policy(labels: usize, method: FusionMethod) -> Policy {
    validated(section(labels, method))
}

fn votes(labels: usize) -> Vec<Vote> {
    let logits = |model: usize| -> Vec<f32> {
        (0..labels).map(|label| ((label * 7 + model) % 11) as f32 * 0.3).collect()
    };
    let vote = |(index, model): (usize, &&str)| Vote {
        model: Arc::from(*model),
        output: Ok(logits(index).into()),
        cost: Cost::default(),
        source: Source::Fresh,
    };
    MODELS.iter().enumerate().map(vote).collect()
}

/// Measures decisions, each of which fuses once for every stage whose rule is checked.
fn decisions(criterion: &mut Criterion) {
    for labels in [2, 43] {
        for method in FusionMethod::FIXED {
            let (policy, votes) = (policy(labels, method), votes(labels));
            criterion.bench_function(&format!("decide/{labels} labels, 4 votes, {method}"), |bencher| {
                bencher.iter(|| decide(black_box(&policy), black_box(&votes), &Context::default()));
            });
        }
        // One stage is a single fusion.
        let (policy, votes) = (policy(labels, FusionMethod::Linear), votes(labels));
        criterion.bench_function(&format!("fuse/{labels} labels, 1 vote"), |bencher| {
            bencher.iter(|| decide(black_box(&policy), black_box(&votes[..1]), &Context::default()));
        });
    }
}

/// Measures a decision by learned networks of the size for a feature of ViT-L: for the weights, and for the
/// correctness estimator of the first stage.
fn learned(criterion: &mut Criterion) {
    const FEATURE: usize = 1024;
    let network = |inputs: usize, outputs: usize| {
        let layer = |inputs: usize, outputs: usize| Dense {
            weight: (0..inputs * outputs).map(|index| (index % 7) as f32 * 0.01 - 0.03).collect(),
            bias: vec![0.0; outputs],
        };
        let layers = vec![layer(inputs, 256), layer(256, outputs)];
        Network::new(vec![0.0; inputs], vec![1.0; inputs], layers).expect("the network fits together")
    };
    let names = MODELS.map(Arc::<str>::from);
    let learned = Learned::new(Arc::clone(&names[0]))
        .with_weights(names.to_vec(), network(FEATURE, ImageFusion::outputs(names.len())))
        .with_estimator(&names[..1], network(FEATURE + CorrectnessEstimator::NUMBERS, 1));
    let mut section = section(2, FusionMethod::Learned);
    section["learned"] = json!("a file");
    section["stages"][0]["accept"]["correctness"] = json!(1.0);
    let policy = validated(section).with_learned(Arc::new(learned));
    let mut votes = votes(2);
    let output = votes[0].output.as_mut().expect("it has voted");
    output.evidence.feature = Some(vec![0.5; FEATURE].into());
    criterion.bench_function(
        "decide/2 labels, 4 votes, learned weights and a correctness estimator",
        |bencher| {
            bencher.iter(|| decide(black_box(&policy), black_box(&votes), &Context::default()));
        },
    );
}

fn keys(criterion: &mut Criterion) {
    let policy = Digest::of(b"a policy");
    for (name, bytes) in [("5 KB", 5 << 10), ("1 MB", 1 << 20)] {
        let image = vec![7; bytes];
        criterion.bench_function(&format!("cache key/{name}"), |bencher| {
            bencher.iter(|| policy.for_image(&Digest::of(black_box(&image))));
        });
    }
}

fn preprocessing(criterion: &mut Criterion) {
    set_cpu_threads(1);
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let photograph =
        |name: &str| std::fs::read(root.join("assets").join(name)).expect("the repository has its assets");
    for name in ["road-work-far.jpg", "rocket.jpg"] {
        let bytes = photograph(name);
        let image = decode(&bytes, ImageLimits::default()).expect("the examples are images");
        let (width, height) = (image.width(), image.height());
        criterion.bench_function(&format!("decode/{name} {width}x{height}"), |bencher| {
            bencher.iter(|| decode(black_box(&bytes), ImageLimits::default()));
        });
        for architecture in ["dinov3", "siglip2"] {
            let options = ModelOptions {
                architecture: architecture.to_owned(),
                snapshot: root.join("models/nano").join(architecture),
                device: "cpu".to_owned(),
                ..ModelOptions::default()
            };
            let model = load_model(&options, root).expect("the nano snapshots load");
            criterion.bench_function(&format!("preprocess/{architecture} {width}x{height}"), |bencher| {
                bencher.iter(|| model.info().preprocessor.apply(black_box(&image)));
            });
        }
    }
}

criterion_group!(benches, decisions, learned, keys, preprocessing);
criterion_main!(benches);
