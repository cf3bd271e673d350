//! Presets: snapshots without weights, which are the configurations of published models and tiny ones,
//! written into a folder; knows architectures by their names only.
//!
//! With [`load_random`](crate::load_random) they become models to benchmark, whose answers mean nothing.

mod florence2;
mod molmo2;
mod random;
mod vision;
mod words;

use std::fs;
use std::path::{Path, PathBuf};

pub use self::random::{random_name, snapshot_folder};
use crate::{ModelError, TaskSpec};

/// The files of a snapshot: name and content.
type Files = Vec<(&'static str, Vec<u8>)>;

/// A built-in configuration.
#[derive(Debug, Clone, Copy)]
pub struct Preset {
    /// The name by which the preset is requested.
    pub name: &'static str,
    /// The preset's architecture, one of [`ARCHITECTURES`](crate::ARCHITECTURES).
    pub architecture: &'static str,
    files: fn() -> Result<Files, ModelError>,
}

const fn preset(
    name: &'static str,
    architecture: &'static str,
    files: fn() -> Result<Files, ModelError>,
) -> Preset {
    Preset { name, architecture, files }
}

/// All presets.
pub const PRESETS: &[Preset] = &[
    preset("dinov3-vits16", "dinov3", || vision::dinov3(&vision::VIT_S)),
    preset("dinov3-vitb16", "dinov3", || vision::dinov3(&vision::VIT_B)),
    preset("dinov3-vitl16", "dinov3", || vision::dinov3(&vision::VIT_L)),
    preset("siglip2-so400m-patch14-384", "siglip2", || Ok(vision::siglip2(&vision::SO400M, 256_000))),
    preset("florence2-base", "florence2", || Ok(florence2::files(&florence2::BASE))),
    preset("florence2-large", "florence2", || Ok(florence2::files(&florence2::LARGE))),
    preset("molmo2-4b", "molmo2", || Ok(molmo2::files(&molmo2::SIZE_4B))),
    preset("molmo2-8b", "molmo2", || Ok(molmo2::files(&molmo2::SIZE_8B))),
    preset("dinov3-tiny", "dinov3", || vision::dinov3(&vision::VIT_TINY)),
    preset("siglip2-tiny", "siglip2", || Ok(vision::siglip2(&vision::SIGLIP_TINY, 512))),
    preset("florence2-tiny", "florence2", || Ok(florence2::files(&florence2::TINY))),
    preset("molmo2-tiny", "molmo2", || Ok(molmo2::files(&molmo2::TINY))),
];

/// The question to the models, in words that their tokenizers know.
const QUESTION: &str = "Is there active road construction in this image?";
/// The labels, each with its prompt for contrastive models.
const LABELS: [(&str, &str); 2] =
    [("no road work", "a photo without road work"), ("road work", "a photo of road work")];
/// The answers of generative models, in the order of the labels.
const ANSWERS: [&str; 2] = ["NO", "YES"];
/// The head's file of the backbones, which need a head for each task.
const HEAD: &str = "head.roadwork.safetensors";

impl Preset {
    /// Returns the preset with that name.
    pub fn by_name(name: &str) -> Option<&'static Self> {
        PRESETS.iter().find(|preset| preset.name == name)
    }

    /// Writes the preset's files into an existing folder.
    ///
    /// # Errors
    /// Returns an error if a file cannot be written.
    pub fn write(&self, folder: &Path) -> Result<(), ModelError> {
        for (name, content) in (self.files)()? {
            let path = folder.join(name);
            fs::write(&path, content).map_err(|source| ModelError::file(&path, source))?;
        }
        Ok(())
    }

    /// Returns a task that the preset's model can answer.
    pub fn task(&self) -> TaskSpec {
        task(Some(PathBuf::from(HEAD)))
    }
}

/// Returns the yes/no question of the presets, for any model; backbones answer it with a head of two labels.
pub fn task(head: Option<PathBuf>) -> TaskSpec {
    TaskSpec {
        task: "roadwork".to_owned(),
        question: QUESTION.to_owned(),
        labels: LABELS.map(|(label, prompt)| (label.to_owned(), vec![prompt.to_owned()])).to_vec(),
        answers: ANSWERS.map(str::to_owned).to_vec(),
        head,
    }
}

/// Returns a JSON file.
fn json(name: &'static str, value: &serde_json::Value) -> (&'static str, Vec<u8>) {
    (name, value.to_string().into_bytes())
}
