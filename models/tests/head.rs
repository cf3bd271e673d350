//! Tests heads from training to votes: a head has to fit the data that it was trained on.
#![expect(clippy::unwrap_used, reason = "a test stops at what it did not expect")]

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use concord_models::{
    Architecture, FeatureDataset, HeadKind, HeadTraining, Model, ModelError, ModelOptions, OptionTable,
    Pixels, RgbImage, TaskId, TaskSpec, TrainedHead, load_model, train_head,
};
use concord_policy::ModelOutput;

const TASK: TaskId = TaskId(1);
const LABELS: [&str; 3] = ["red", "green", "blue"];
const IMAGES: usize = 30;

/// Returns a copy of the fixture's snapshot that heads may be written into.
fn snapshot() -> tempfile::TempDir {
    let copy = tempfile::tempdir().unwrap();
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/parity/dinov3_vit/snapshot");
    for entry in fs::read_dir(fixture).unwrap() {
        let path = entry.unwrap().path();
        fs::copy(&path, copy.path().join(path.file_name().unwrap())).unwrap();
    }
    copy
}

/// Returns the architecture's own options, as read from a configuration.
fn own(architecture: &str, given: &serde_json::Value) -> OptionTable {
    let (own, faults) = Architecture::by_name(architecture).unwrap().read_options(given.as_object().unwrap());
    assert!(faults.is_empty(), "{faults:?}");
    own
}

fn load(folder: &Path, mc_dropout_passes: usize) -> Box<dyn Model> {
    let options = ModelOptions {
        architecture: "dinov3".to_owned(),
        snapshot: folder.to_owned(),
        device: "cpu".to_owned(),
        own: own("dinov3", &serde_json::json!({ "mc_dropout_passes": mc_dropout_passes })),
        ..ModelOptions::default()
    };
    load_model(&options, Path::new("")).unwrap()
}

/// Returns striped images, each mostly of its label's colour.
fn images(model: &dyn Model) -> Vec<Pixels> {
    let image = |index: usize| {
        RgbImage::from_fn(64, 64, |x, y| {
            let shade = (((x + 3 * y) as usize * (index + 2)) % 97) as u8;
            let mut colour = [shade, shade, shade];
            colour[index % LABELS.len()] = 200 + shade / 2;
            colour.into()
        })
    };
    (0..IMAGES).map(|index| model.info().preprocessor.apply(&image(index)).unwrap()).collect()
}

fn labels() -> Vec<usize> {
    (0..IMAGES).map(|index| index % LABELS.len()).collect()
}

fn training(kind: HeadKind) -> HeadTraining {
    HeadTraining {
        kind,
        labels: LABELS.len(),
        epochs: 40,
        patience: 10,
        learning_rate: 5e-3,
        weight_decay: 0.01,
        dropout: if kind == HeadKind::Mlp { 0.3 } else { 0.0 },
        batch: 8,
        balanced: false,
        seed: 1,
    }
}

/// Returns the features of the images, and a head that was trained on seven tenths of them.
fn trained(model: &dyn Model, kind: HeadKind) -> (FeatureDataset, TrainedHead) {
    let images = images(model);
    let source = model.feature_source().unwrap();
    let features = source.features(&images.iter().collect::<Vec<_>>(), kind.features()).unwrap();
    let shape = source.feature_shape(kind.features());
    let set = FeatureDataset::new(&features.concat(), shape, labels()).unwrap();
    let (training_part, validation): (Vec<usize>, Vec<usize>) = (0..IMAGES).partition(|index| index % 10 < 7);
    let parts = [training_part.as_slice(), &validation];
    let head = train_head(&set, parts, &training(kind), model.info().placement, |_| {}).unwrap();
    (set, head)
}

fn written(head: &TrainedHead, folder: &Path) -> TaskSpec {
    let names = LABELS.map(str::to_owned);
    let file = head.write(folder, "colours", &names, BTreeMap::new()).unwrap();
    TaskSpec {
        task: "colours".to_owned(),
        question: String::new(),
        labels: names.iter().map(|name| (name.clone(), Vec::new())).collect(),
        answers: Vec::new(),
        head: Some(file),
    }
}

fn votes(model: &mut dyn Model, task: &TaskSpec, images: &[&Pixels]) -> Vec<ModelOutput> {
    model.prepare(TASK, task).unwrap();
    model.classify(TASK, images).unwrap()
}

fn assert_close(left: &[f32], right: &[f32], what: &str) {
    assert_eq!(left.len(), right.len(), "{what}");
    for (one, other) in left.iter().zip(right) {
        assert!((one - other).abs() < 1e-4 * (1.0 + other.abs()), "{what}: {left:?} {right:?}");
    }
}

#[test]
fn a_head_says_of_images_what_it_said_of_their_features() {
    for kind in [HeadKind::Linear, HeadKind::LinearCls, HeadKind::Mlp] {
        let folder = snapshot();
        let mut model = load(folder.path(), 0);
        let (set, head) = trained(&*model, kind);
        assert!(head.best.validation_loss < 0.5, "{kind:?} learns nothing: {head:?}");
        let all: Vec<usize> = (0..IMAGES).collect();
        let expected = head.scores(&set, &all, 0).unwrap();
        let task = written(&head, folder.path());
        let images = images(&*model);
        let votes = votes(&mut *model, &task, &images.iter().collect::<Vec<_>>());
        for (vote, expected) in votes.iter().zip(&expected) {
            assert_close(&vote.logits, &expected.logits, kind.name());
            assert_eq!(vote.evidence.uncertainty, None);
        }
    }
}

#[test]
fn passes_with_dropout_are_the_same_for_every_batch() {
    let folder = snapshot();
    let (set, head) = trained(&*load(folder.path(), 0), HeadKind::Mlp);
    let task = written(&head, folder.path());
    let judged = head.scores(&set, &(0..IMAGES).collect::<Vec<_>>(), 64).unwrap();
    let mut model = load(folder.path(), 64);
    let images = images(&*model);
    let together = votes(&mut *model, &task, &images.iter().collect::<Vec<_>>());
    let plain = votes(&mut *load(folder.path(), 0), &task, &images.iter().collect::<Vec<_>>());
    let once = votes(&mut *load(folder.path(), 1), &task, &images.iter().collect::<Vec<_>>());
    let mut most_uncertain = 0.0_f32;
    for (index, image) in images.iter().enumerate() {
        let alone = &model.classify(TASK, &[image]).unwrap()[0];
        let (logits, uncertainty) = (&together[index].logits, together[index].evidence.uncertainty.unwrap());
        assert_close(&alone.logits, logits, "a batch of one");
        assert_close(&[alone.evidence.uncertainty.unwrap()], &[uncertainty], "a batch of one");
        assert_close(&judged[index].logits, logits, "what it was judged by");
        let sum: f32 = logits.iter().map(|logit| logit.exp()).sum();
        assert!((sum - 1.0).abs() < 1e-4, "the logits are logarithms of probabilities: {logits:?}");
        assert!((0.0..=3.0_f32.ln()).contains(&uncertainty), "{uncertainty}");
        assert!(
            together[index].evidence.feature == plain[index].evidence.feature
                && plain[index].evidence.feature.is_some()
        );
        assert_close(&[once[index].evidence.uncertainty.unwrap()], &[0.0], "one pass agrees with itself");
        most_uncertain = most_uncertain.max(uncertainty);
    }
    assert!(most_uncertain > 1e-4, "the passes differ: {most_uncertain}");
}

#[test]
fn heads_without_hidden_layers_or_with_a_strange_rate_have_no_passes() {
    let folder = snapshot();
    let (_, linear) = trained(&*load(folder.path(), 0), HeadKind::Linear);
    let task = written(&linear, folder.path());
    let refusal = |task: &TaskSpec| load(folder.path(), 8).prepare(TASK, task).unwrap_err().to_string();
    assert!(refusal(&task).contains("mc_dropout_passes = 8 needs a head that was trained with dropout"));
    let (_, mlp) = trained(&*load(folder.path(), 0), HeadKind::Mlp);
    let task = written(&mlp, folder.path());
    let path = folder.path().join(task.head.as_ref().unwrap());
    let bytes = fs::read(&path).unwrap();
    // The replacement has the same length, so that the header's offsets stay valid.
    let at = bytes.windows(3).position(|part| part == b"0.3").unwrap();
    fs::write(&path, [&bytes[..at], b"1.0", &bytes[at + 3..]].concat()).unwrap();
    assert!(refusal(&task).contains("names the dropout \"1.0\": must be from 0 to less than 1"));
}

#[test]
fn a_folder_that_cannot_be_written_to_is_named() {
    let folder = snapshot();
    let (_, head) = trained(&*load(folder.path(), 0), HeadKind::LinearCls);
    let error = head.write(Path::new("/proc"), "colours", &LABELS.map(str::to_owned), BTreeMap::new());
    assert!(matches!(error, Err(ModelError::File { .. })), "{error:?}");
    assert!(concord_models::check_head_folder(Path::new("/proc")).is_err());
}
