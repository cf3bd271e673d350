//! The tasks of `Florence2Processor` in transformers' `processing_florence2.py`, and the prompts for them.

use crate::ModelError;

/// The way that the answer to a task is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Answer {
    /// Text alone. Masks are polygons, which are no [`concord_policy::Shape`], so they stay text too.
    Text,
    /// Phrases, each with the boxes after it.
    Boxes,
    /// The same, except that some phrases are not about things.
    Grounding,
    /// Boxes without phrases.
    Proposals,
    /// Texts, each with the four corners after it.
    Quads,
}

/// A task that the model was trained for.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Task {
    /// The task token, which names it.
    pub(super) token: &'static str,
    /// The question to the model; [`INPUT`] stands for the text after the token.
    prompt: &'static str,
    /// The way that its answer is read.
    pub(super) answer: Answer,
}

/// The placeholder for the text after the token.
const INPUT: &str = "{input}";

/// The task in which labels are scored as captions.
pub(super) const CAPTION: &str = "<CAPTION>";
/// The task that searches for phrases.
pub(super) const DETECTION: &str = "<OPEN_VOCABULARY_DETECTION>";

const fn task(token: &'static str, prompt: &'static str, answer: Answer) -> Task {
    Task { token, prompt, answer }
}

const TASKS: [Task; 15] = [
    task("<OCR>", "What is the text in the image?", Answer::Text),
    task("<OCR_WITH_REGION>", "What is the text in the image, with regions?", Answer::Quads),
    task(CAPTION, "What does the image describe?", Answer::Text),
    task("<DETAILED_CAPTION>", "Describe in detail what is shown in the image.", Answer::Text),
    task("<MORE_DETAILED_CAPTION>", "Describe with a paragraph what is shown in the image.", Answer::Text),
    task("<OD>", "Locate the objects with category name in the image.", Answer::Boxes),
    task(
        "<DENSE_REGION_CAPTION>",
        "Locate the objects in the image, with their descriptions.",
        Answer::Boxes,
    ),
    task("<REGION_PROPOSAL>", "Locate the region proposals in the image.", Answer::Proposals),
    task("<CAPTION_TO_PHRASE_GROUNDING>", "Locate the phrases in the caption: {input}", Answer::Grounding),
    task("<REFERRING_EXPRESSION_SEGMENTATION>", "Locate {input} in the image with mask", Answer::Text),
    task("<REGION_TO_SEGMENTATION>", "What is the polygon mask of region {input}", Answer::Text),
    task(DETECTION, "Locate {input} in the image.", Answer::Boxes),
    task("<REGION_TO_CATEGORY>", "What is the region {input}?", Answer::Text),
    task("<REGION_TO_DESCRIPTION>", "What does the region {input} describe?", Answer::Text),
    task("<REGION_TO_OCR>", "What text is in the region {input}?", Answer::Text),
];

/// Returns the task that a prompt begins with, and the question to the model.
///
/// # Errors
/// Fails when the prompt begins with no task token, or with one that needs a text and has none, or the other
/// way round.
pub(super) fn parse(prompt: &str) -> Result<(&'static Task, String), ModelError> {
    let prompt = prompt.trim();
    let Some(task) = TASKS.iter().find(|task| prompt.starts_with(task.token)) else {
        let tokens: Vec<&str> = TASKS.iter().map(|task| task.token).collect();
        return Err(ModelError::Unsupported(format!(
            "the prompt must begin with a task token: one of {}",
            tokens.join(", ")
        )));
    };
    let input = prompt[task.token.len()..].trim();
    match (task.prompt.contains(INPUT), input.is_empty()) {
        (true, true) => Err(ModelError::Unsupported(format!("{} needs a text after it", task.token))),
        (false, false) => Err(ModelError::Unsupported(format!("{} takes no text after it", task.token))),
        _ => Ok((task, task.prompt.replacen(INPUT, input, 1))),
    }
}

#[cfg(test)]
mod tests {
    use super::{TASKS, parse};

    #[test]
    fn a_task_is_asked_with_its_text_or_without() {
        for (prompt, question) in [
            ("<OCR>", "What is the text in the image?"),
            ("<OCR_WITH_REGION>", "What is the text in the image, with regions?"),
            ("<OPEN_VOCABULARY_DETECTION> a red car ", "Locate a red car in the image."),
            (
                "<REGION_TO_OCR><loc_1><loc_2><loc_3><loc_4>",
                "What text is in the region <loc_1><loc_2><loc_3><loc_4>?",
            ),
            ("<CAPTION_TO_PHRASE_GROUNDING>{input}", "Locate the phrases in the caption: {input}"),
        ] {
            assert_eq!(parse(prompt).unwrap().1, question);
        }
        for (prompt, fault) in [
            ("what is this?", "must begin with a task token"),
            ("<CAPTION> of a car", "<CAPTION> takes no text"),
            ("<REGION_TO_CATEGORY>  ", "<REGION_TO_CATEGORY> needs a text"),
        ] {
            let message = parse(prompt).unwrap_err().to_string();
            assert!(message.contains(fault), "{message}");
        }
    }

    #[test]
    fn no_task_token_begins_another() {
        for task in &TASKS {
            assert_eq!(TASKS.iter().filter(|other| task.token.starts_with(other.token)).count(), 1);
        }
    }
}
