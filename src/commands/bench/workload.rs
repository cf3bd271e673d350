//! The workloads of a model: its network alone, a vote, a text.

use std::ops::ControlFlow;

use concord_models::{
    BenchOutput, GenerateRequest, Generated, Model, ModelError, Pixels, RgbImage, TaskId, TaskSpec,
};
use concord_policy::ModelOutput;

use crate::commands::contained;

/// The name of the workload in which a model votes.
pub(super) const VOTE: &str = "classify yes/no";
const TASK: TaskId = TaskId(1);
/// The size of the image that all workloads use; Molmo2 cuts it into a whole view and four crops.
const WIDTH: u32 = 640;
const HEIGHT: u32 = 480;
/// The prompts for generative models that take no questions, and for those that do.
const CAPTION: &str = "<CAPTION>";
const QUESTION: &str = "Is there active road construction in this image?";

/// One workload to measure.
pub(super) struct Workload<'a> {
    pub(super) name: String,
    /// The number of images in one iteration.
    pub(super) images: usize,
    pub(super) run: Box<dyn Fn() -> Result<WorkOutput, ModelError> + 'a>,
}

/// The output of one iteration.
#[derive(Debug)]
pub(super) struct WorkOutput {
    value: Value,
    pub(super) prompt_tokens: Option<usize>,
    pub(super) new_tokens: Option<usize>,
}

#[derive(Debug)]
enum Value {
    Tensor(BenchOutput),
    Votes(Vec<ModelOutput>),
    Text,
}

impl WorkOutput {
    /// Returns whether all values are finite.
    pub(super) fn is_finite(&self) -> Result<bool, ModelError> {
        match &self.value {
            Value::Tensor(output) => output.is_finite(),
            Value::Votes(votes) => {
                Ok(votes.iter().flat_map(|scores| &scores.logits).all(|logit| logit.is_finite()))
            }
            Value::Text => Ok(true),
        }
    }

    fn text(generated: &Generated) -> Self {
        Self {
            value: Value::Text,
            prompt_tokens: Some(generated.prompt_tokens),
            new_tokens: Some(generated.new_tokens),
        }
    }
}

/// Prepares the first of the tasks that the model can vote on.
pub(super) fn prepare(model: &mut dyn Model, tasks: &[TaskSpec], progress: &dyn Fn(&str)) -> Option<TaskId> {
    for task in tasks {
        match contained(|| model.prepare(TASK, task)) {
            Ok(()) => return Some(TASK),
            Err(error) => progress(&format!("does not vote: {error}")),
        }
    }
    None
}

/// Returns the same image `batch` times, preprocessed, on the model's device.
pub(super) fn images(model: &dyn Model, batch: usize) -> Result<Vec<Pixels>, ModelError> {
    let image = RgbImage::from_fn(WIDTH, HEIGHT, |x, y| {
        let byte = |value: u32| u8::try_from(value % 256).unwrap_or(0);
        [byte(x), byte(y), byte(x * y / 64)].into()
    });
    let device = model.info().placement.device;
    (0..batch).map(|_| model.info().preprocessor.apply(&image)?.on(device)).collect()
}

/// Returns all workloads of a model on these images.
pub(super) fn workloads<'a>(
    model: &'a dyn Model,
    images: &'a [Pixels],
    task: Option<TaskId>,
    new_tokens: usize,
) -> Result<Vec<Workload<'a>>, ModelError> {
    let batch: Vec<&Pixels> = images.iter().collect();
    let count = images.len();
    let mut workloads = Vec::new();
    for part in model.bench_targets(&batch, new_tokens)? {
        let name = part.work.clone();
        let run = Box::new(move || {
            let (prompt_tokens, new_tokens) = (part.prompt_tokens, part.new_tokens);
            Ok(WorkOutput { value: Value::Tensor(part.run()?), prompt_tokens, new_tokens })
        });
        workloads.push(Workload { name, images: count, run });
    }
    if let Some(task) = task {
        let run = Box::new(move || {
            let value = Value::Votes(model.classify(task, &batch)?);
            Ok(WorkOutput { value, prompt_tokens: None, new_tokens: None })
        });
        workloads.push(Workload { name: VOTE.to_owned(), images: count, run });
    }
    // Texts are generated about one image at a time.
    if let (Some(generator), [image]) = (model.generator(), images) {
        let prompt = if generator.takes_questions() { QUESTION } else { CAPTION };
        let request = GenerateRequest { prompt: prompt.to_owned(), max_new_tokens: new_tokens };
        let name = match generator.beams() {
            1 => format!("generate {new_tokens} tokens greedy"),
            beams => format!("generate {new_tokens} tokens, {beams} beams"),
        };
        let run = Box::new(move || {
            let generated = generator.generate(image, &request, &mut |_| ControlFlow::Continue(()))?;
            Ok(WorkOutput::text(&generated))
        });
        workloads.push(Workload { name, images: 1, run });
    }
    Ok(workloads)
}
