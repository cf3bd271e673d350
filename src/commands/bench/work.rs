//! What a model is made to do.

use std::ops::ControlFlow;

use concord_models::{
    GenerateRequest, Generated, Model, ModelError, PartOutput, Pixels, RgbImage, Scores, TaskId, TaskLabels,
};

use crate::commands::contained;

const TASK: TaskId = TaskId(1);
/// Of the picture that everything is done with; Molmo2 cuts it into a whole view and four crops.
const WIDTH: u32 = 640;
const HEIGHT: u32 = 480;
/// For writers that are not asked questions, and for those that are.
const CAPTION: &str = "<CAPTION>";
const QUESTION: &str = "Is there active road construction in this image?";

/// One thing to measure.
pub(super) struct Work<'a> {
    pub(super) name: String,
    /// How many images go through.
    pub(super) images: usize,
    pub(super) run: Box<dyn Fn() -> Result<Done, ModelError> + 'a>,
}

/// What came of it.
#[derive(Debug)]
pub(super) struct Done {
    value: Value,
    pub(super) prompt_tokens: Option<usize>,
    pub(super) new_tokens: Option<usize>,
}

#[derive(Debug)]
enum Value {
    Tensor(PartOutput),
    Votes(Vec<Scores>),
    Text,
}

impl Done {
    /// Whether all values are numbers.
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

/// Makes ready the first of the tasks that the model can be asked.
pub(super) fn prepare(model: &mut dyn Model, tasks: &[TaskLabels], say: &dyn Fn(&str)) -> Option<TaskId> {
    for task in tasks {
        match contained(|| model.prepare(TASK, task)) {
            Ok(()) => return Some(TASK),
            Err(error) => say(&format!("not asked to vote: {error}")),
        }
    }
    None
}

/// The same picture so many times, on the model's device.
pub(super) fn images(model: &dyn Model, batch: usize) -> Result<Vec<Pixels>, ModelError> {
    let picture = RgbImage::from_fn(WIDTH, HEIGHT, |x, y| {
        let byte = |value: u32| u8::try_from(value % 256).unwrap_or(0);
        [byte(x), byte(y), byte(x * y / 64)].into()
    });
    let device = model.loaded().placement.device;
    (0..batch).map(|_| model.loaded().preprocessor.apply(&picture)?.on(device)).collect()
}

/// All that a model does with these images.
pub(super) fn works<'a>(
    model: &'a dyn Model,
    images: &'a [Pixels],
    task: Option<TaskId>,
    new_tokens: usize,
) -> Result<Vec<Work<'a>>, ModelError> {
    let batch: Vec<&Pixels> = images.iter().collect();
    let count = images.len();
    let mut works = Vec::new();
    for part in model.parts(&batch, new_tokens)? {
        let name = part.work.clone();
        let run = Box::new(move || {
            let (prompt_tokens, new_tokens) = (part.prompt_tokens, part.new_tokens);
            Ok(Done { value: Value::Tensor(part.run()?), prompt_tokens, new_tokens })
        });
        works.push(Work { name, images: count, run });
    }
    if let Some(task) = task {
        let run = Box::new(move || {
            let value = Value::Votes(model.classify(task, &batch)?);
            Ok(Done { value, prompt_tokens: None, new_tokens: None })
        });
        works.push(Work { name: "classify yes/no".to_owned(), images: count, run });
    }
    // Texts are written about one image at a time.
    if let (Some(generator), [image]) = (model.generator(), images) {
        let prompt = if generator.takes_questions() { QUESTION } else { CAPTION };
        let request = GenerateRequest { prompt: prompt.to_owned(), max_new_tokens: new_tokens };
        let name = match generator.beams() {
            1 => format!("generate {new_tokens} tokens greedy"),
            beams => format!("generate {new_tokens} tokens, {beams} beams"),
        };
        let run = Box::new(move || {
            let generated = generator.generate(image, &request, &mut |_| ControlFlow::Continue(()))?;
            Ok(Done::text(&generated))
        });
        works.push(Work { name, images: 1, run });
    }
    Ok(works)
}
