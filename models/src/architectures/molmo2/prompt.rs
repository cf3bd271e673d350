//! The chat template, the tokens of images, and the way back from tokens to text, as in transformers'
//! `processing_molmo2.py`.

use std::path::PathBuf;

use minijinja::{Environment, context};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokenizers::Tokenizer;

use super::config::Config;
use crate::ModelError;
use crate::snapshot::folder::Snapshot;
use crate::snapshot::tokenizer;

const TEMPLATE_FILE: &str = "chat_template.jinja";
const TOKENIZER_CONFIG: &str = "tokenizer_config.json";
const PROCESSOR_CONFIG: &str = "processor_config.json";
/// The marker that the template writes for an image.
const IMAGE: &str = "<|image|>";
/// The tokens that attend to each other in both directions, besides those of [`ImageTokens`].
const FRAME_TOKENS: [&str; 3] = ["<frame_start>", "<frame_end>", "<im_low>"];

/// The part of `processor_config.json` that is used.
#[derive(Debug, Deserialize)]
struct Layout {
    #[serde(default = "yes")]
    image_use_col_tokens: bool,
    /// The same for the view of the whole image; that of the crops where it is absent.
    use_single_crop_col_tokens: Option<bool>,
    #[serde(default = "yes")]
    use_single_crop_start_token: bool,
}

fn yes() -> bool {
    true
}

/// The ids of the tokens that make up an image.
#[derive(Debug)]
struct ImageTokens {
    patch: i64,
    column: i64,
    start: i64,
    whole_start: i64,
    end: i64,
    /// All tokens that attend to each other in both directions.
    all: Vec<i64>,
}

/// The ids of a prompt, cut where its images belong.
#[derive(Debug)]
pub(super) struct Prompt {
    parts: Vec<Vec<i64>>,
}

/// A builder of prompts from questions and images, which also decodes the generated tokens.
#[derive(Debug)]
pub(super) struct Prompter {
    tokenizer: Tokenizer,
    tokenizer_path: PathBuf,
    templates: Environment<'static>,
    template: String,
    template_path: PathBuf,
    /// The text that every prompt begins with.
    begin: String,
    layout: Layout,
    tokens: ImageTokens,
    /// The tokens that a question must not contain: they would be read as the end of a turn, or as an image.
    special: Vec<String>,
}

impl Prompter {
    pub(super) fn load(snapshot: &Snapshot, config: &Config) -> Result<Self, ModelError> {
        let (tokenizer, tokenizer_path) = tokenizer::open(snapshot)?;
        let malformed = |message: String| ModelError::malformed(&tokenizer_path, message);
        let tokens = ImageTokens::find(&tokenizer).map_err(malformed)?;
        let rows = config.text_config.table_rows();
        if tokens.patch != config.image_patch_id {
            let (patch, expected) = (tokens.patch, config.image_patch_id);
            return Err(malformed(format!("<im_patch> is {patch}, but image_patch_id {expected}")));
        }
        // A table that is larger than the tokenizer has rows that are never read; a smaller one would fail
        // later.
        let largest = tokenizer.get_vocab(true).into_values().max().map_or(0, i64::from);
        if largest >= rows {
            return Err(malformed(format!("gives ids up to {largest}, but the embeddings have {rows} rows")));
        }
        let special = tokenizer.get_added_tokens_decoder().into_values();
        let special = special.filter(|token| token.special).map(|token| token.content).collect();
        let (template, template_path) = load_template(snapshot)?;
        Ok(Self {
            begin: begin_token(snapshot)?,
            layout: snapshot.json(PROCESSOR_CONFIG)?,
            tokens,
            special,
            templates: environment(),
            template,
            template_path,
            tokenizer,
            tokenizer_path,
        })
    }

    /// Returns the prompt of a question about this number of images.
    ///
    /// # Errors
    /// Fails when the question contains a special token, or the template cannot be rendered or writes another
    /// number of images.
    pub(super) fn prompt(&self, question: &str, images: usize) -> Result<Prompt, ModelError> {
        self.refuse_special(question)?;
        let text = self.render(question, images)?;
        let text = if text.starts_with(&self.begin) { text } else { format!("{}{text}", self.begin) };
        let parts: Vec<Vec<i64>> =
            text.split(IMAGE).map(|part| self.encode(part)).collect::<Result<_, _>>()?;
        if parts.len() != images + 1 {
            let message = format!("writes {IMAGE} {} times for {images} images", parts.len() - 1);
            return Err(ModelError::malformed(&self.template_path, message));
        }
        Ok(Prompt { parts })
    }

    fn refuse_special(&self, text: &str) -> Result<(), ModelError> {
        match self.special.iter().find(|token| text.contains(token.as_str())) {
            Some(token) => {
                Err(ModelError::Unsupported(format!("a prompt must not contain the token {token}")))
            }
            None => Ok(()),
        }
    }

    fn render(&self, question: &str, images: usize) -> Result<String, ModelError> {
        #[derive(Serialize)]
        struct Content<'a> {
            r#type: &'static str,
            #[serde(skip_serializing_if = "Option::is_none")]
            text: Option<&'a str>,
        }
        let mut content: Vec<Content> =
            (0..images).map(|_| Content { r#type: "image", text: None }).collect();
        content.push(Content { r#type: "text", text: Some(question) });
        let values = context! {
            messages => [context! { role => "user", content => content }],
            add_generation_prompt => true,
            bos_token => self.begin,
        };
        self.templates
            .render_str(&self.template, values)
            .map_err(|error| ModelError::malformed(&self.template_path, format!("{error:#}")))
    }

    /// Returns the ids of a text, with nothing added.
    pub(super) fn encode(&self, text: &str) -> Result<Vec<i64>, ModelError> {
        let encoding = self
            .tokenizer
            .encode(text, false)
            .map_err(|error| ModelError::malformed(&self.tokenizer_path, error))?;
        Ok(encoding.get_ids().iter().map(|&id| i64::from(id)).collect())
    }

    /// Returns the text of ids, without special tokens.
    pub(super) fn decode(&self, ids: &[i64]) -> Result<String, ModelError> {
        let ids: Vec<u32> = ids.iter().filter_map(|&id| u32::try_from(id).ok()).collect();
        self.tokenizer.decode(&ids, true).map_err(|error| ModelError::malformed(&self.tokenizer_path, error))
    }

    /// Returns the ids of a prompt about images of these grids (see [`Tiles`](crate::Tiles)).
    pub(super) fn lay_out(&self, prompt: &Prompt, grids: &[[i64; 4]]) -> Vec<i64> {
        let mut ids = Vec::new();
        for (index, part) in prompt.parts.iter().enumerate() {
            ids.extend(part);
            if let Some(grid) = grids.get(index) {
                self.extend_with_image(&mut ids, *grid);
            }
        }
        ids
    }

    /// Appends the ids of an image: the view of the whole, then the crops, each between a start and an end
    /// token and row by row.
    pub(super) fn extend_with_image(
        &self,
        ids: &mut Vec<i64>,
        [whole_rows, whole_columns, rows, columns]: [i64; 4],
    ) {
        let (layout, tokens) = (&self.layout, &self.tokens);
        let mut view = |start: i64, rows: i64, columns: i64, ends_rows: bool| {
            ids.push(start);
            for _ in 0..rows {
                ids.extend((0..columns).map(|_| tokens.patch));
                ids.extend(ends_rows.then_some(tokens.column));
            }
            ids.push(tokens.end);
        };
        let start = if layout.use_single_crop_start_token { tokens.whole_start } else { tokens.start };
        let whole_ends_rows = layout.use_single_crop_col_tokens.unwrap_or(layout.image_use_col_tokens);
        view(start, whole_rows, whole_columns, whole_ends_rows);
        view(tokens.start, rows, columns, layout.image_use_col_tokens);
    }

    /// Returns whether a token is a patch of an image, which the image features are added to.
    pub(super) fn is_patch(&self, id: i64) -> bool {
        id == self.tokens.patch
    }

    /// Returns whether a token attends to all other tokens of images, not only to those before it.
    pub(super) fn is_image(&self, id: i64) -> bool {
        self.tokens.all.contains(&id)
    }

    /// Returns the tokens that end a text: those of `generation_config.json`, otherwise the tokenizer's own.
    pub(super) fn ends(&self, snapshot: &Snapshot) -> Result<Vec<i64>, ModelError> {
        #[derive(Deserialize)]
        struct Generation {
            eos_token_id: Option<Value>,
        }
        const FILE: &str = "generation_config.json";
        let ends = match snapshot.path(FILE).exists() {
            true => snapshot.json::<Generation>(FILE)?.eos_token_id,
            false => None,
        };
        match ends {
            Some(Value::Array(ends)) => Ok(ends.iter().filter_map(Value::as_i64).collect()),
            Some(end) => Ok(end.as_i64().into_iter().collect()),
            None => {
                let end = special_token(snapshot, "eos_token")?;
                Ok(end.and_then(|end| self.tokenizer.token_to_id(&end)).map(i64::from).into_iter().collect())
            }
        }
    }
}

impl ImageTokens {
    fn find(tokenizer: &Tokenizer) -> Result<Self, String> {
        let id = |token: &str| {
            tokenizer.token_to_id(token).map(i64::from).ok_or_else(|| format!("has no token {token}"))
        };
        let (patch, column) = (id("<im_patch>")?, id("<im_col>")?);
        let (start, whole_start, end) = (id("<im_start>")?, id("<low_res_im_start>")?, id("<im_end>")?);
        let mut all = vec![patch, column, start, whole_start, end];
        all.extend(FRAME_TOKENS.iter().filter_map(|token| id(token).ok()));
        Ok(Self { patch, column, start, whole_start, end, all })
    }
}

/// Returns a Jinja environment as transformers sets it up for chat templates; published ones call methods of
/// Python's strings.
fn environment() -> Environment<'static> {
    let mut templates = Environment::new();
    templates.set_trim_blocks(true);
    templates.set_lstrip_blocks(true);
    templates.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    templates.add_function("raise_exception", |message: String| -> Result<String, minijinja::Error> {
        Err(minijinja::Error::new(minijinja::ErrorKind::InvalidOperation, message))
    });
    templates
}

/// Reads the chat template: a file of its own, formerly an entry of `tokenizer_config.json`.
fn load_template(snapshot: &Snapshot) -> Result<(String, PathBuf), ModelError> {
    #[derive(Deserialize)]
    struct TokenizerConfig {
        chat_template: String,
    }
    let path = snapshot.path(TEMPLATE_FILE);
    if path.exists() {
        let text = std::fs::read_to_string(&path).map_err(|source| ModelError::file(&path, source))?;
        return Ok((text, path));
    }
    let config: TokenizerConfig = snapshot.json(TOKENIZER_CONFIG)?;
    Ok((config.chat_template, snapshot.path(TOKENIZER_CONFIG)))
}

/// Returns the token that prompts begin with; the published templates leave it to the processor.
fn begin_token(snapshot: &Snapshot) -> Result<String, ModelError> {
    let begin = special_token(snapshot, "bos_token")?;
    let begin = if begin.is_some() { begin } else { special_token(snapshot, "eos_token")? };
    begin.ok_or_else(|| {
        ModelError::malformed(&snapshot.path(TOKENIZER_CONFIG), "has no bos_token or eos_token")
    })
}

/// Returns an entry of `tokenizer_config.json` that is a token's text, or an object with it.
fn special_token(snapshot: &Snapshot, name: &str) -> Result<Option<String>, ModelError> {
    let config: Value = snapshot.json(TOKENIZER_CONFIG)?;
    let token = config.get(name);
    Ok(token.and_then(|token| token.get("content").unwrap_or(token).as_str()).map(str::to_owned))
}
