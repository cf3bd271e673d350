//! The arguments that commands on labeled images share: the task and its data set. They ask no model.

use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};

use concord_actors::Digest;
use regex::Regex;

use super::EnsembleArgs;
use super::arguments::{choose_task, read_at_most};
use crate::config::Ensemble;
use crate::evaluate::{Dataset, Example, LabelRules};

/// The arguments that name a task and a labeled data set.
#[derive(Debug, clap::Args)]
pub(super) struct DatasetArgs {
    #[command(flatten)]
    pub(super) ensemble: EnsembleArgs,
    /// The task, as ensemble.toml names it; may be left out where there is only one
    #[arg(long, short)]
    task: Option<String>,
    /// The labeled images: a folder with one subfolder per label, a tar archive of such a folder (.tar,
    /// .tar.gz), or a table (.csv) with the columns path, label and optionally group
    #[arg(long, short, value_name = "PATH")]
    data: PathBuf,
    /// The label of a folder's images, where the folder is not named after it; may be repeated
    #[arg(long = "class", value_name = "FOLDER=LABEL", value_parser = named)]
    classes: Vec<(String, String)>,
    /// The label of the images in all other folders
    #[arg(long, value_name = "LABEL")]
    default_label: Option<String>,
    /// Treat images as one group if this regular expression matches the same text in their names (its first
    /// capture group, if it has one), for instance '(.*/\d+)_\d+'; use it where several images show the same
    /// thing
    #[arg(long, value_name = "REGEX")]
    group_by: Option<Regex>,
}

fn named(argument: &str) -> Result<(String, String), String> {
    let parts = argument.split_once('=').ok_or("must be FOLDER=LABEL")?;
    Ok((parts.0.to_owned(), parts.1.to_owned()))
}

impl DatasetArgs {
    /// Returns the name of the task, which may be left out if there is only one.
    pub(super) fn task(&self, ensemble: &Ensemble) -> Result<String, String> {
        choose_task(ensemble, self.task.as_deref())
    }

    /// Reads the data set for a task with these labels.
    pub(super) fn read(&self, labels: &[String]) -> Result<Dataset, String> {
        let label_rules = LabelRules {
            labels,
            named: self.classes.iter().cloned().collect(),
            default_label: self.default_label.clone(),
            group_by: self.group_by.clone(),
        };
        Dataset::read(&self.data, &label_rules)
    }

    /// Checks that no image of the data set is also in `holdout`, before any model is asked.
    ///
    /// # Errors
    /// When they share an image, or one of them cannot be read.
    pub(super) fn refuse_shared(&self, ensemble: &Ensemble, holdout: &Path) -> Result<(), String> {
        let task = self.task(ensemble)?;
        let (labels, bytes_max) = (ensemble.tasks()[&task].labels(), ensemble.server().max_body_bytes);
        let held_out: HashSet<Digest> =
            digests(holdout, labels, bytes_max)?.into_iter().map(|(digest, _)| digest).collect();
        let own = digests(&self.data, labels, bytes_max)?;
        let shared: Vec<&String> =
            own.iter().filter(|(digest, _)| held_out.contains(digest)).map(|(_, name)| name).collect();
        let Some(first) = shared.first() else { return Ok(()) };
        Err(format!(
            "{} of the images are also in {}, for instance {first}: a result cannot be reported on images that it was \
             fitted on",
            shared.len(),
            holdout.display()
        ))
    }
}

/// Returns the digest and the name of every image of a data set, whatever its label.
fn digests(source: &Path, labels: &[String], bytes_max: u64) -> Result<Vec<(Digest, String)>, String> {
    let default_label = labels.first().cloned();
    let label_rules = LabelRules { labels, named: BTreeMap::new(), default_label, group_by: None };
    let data = Dataset::read(source, &label_rules)?;
    let digest = |example: &Example| Ok((Digest::of(&bytes_of(example, bytes_max)?), example.name.clone()));
    data.examples.iter().map(digest).collect()
}

/// Returns the bytes of an image; the error names it.
pub(super) fn bytes_of(example: &Example, bytes_max: u64) -> Result<Vec<u8>, String> {
    read_at_most(&example.path, bytes_max).map_err(|problem| format!("{}: {}", example.name, problem.detail))
}
