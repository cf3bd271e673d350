//! What commands on labelled pictures share before any model is asked: which task, and which pictures.

use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};

use concord_actors::Digest;
use regex::Regex;

use super::EnsembleArgs;
use super::arguments::{choose_task, read_at_most};
use crate::config::Ensemble;
use crate::evaluate::{Dataset, Example, Labelling};

/// Which task, and pictures of which is known what they show.
#[derive(Debug, clap::Args)]
pub(super) struct PictureArgs {
    #[command(flatten)]
    pub(super) ensemble: EnsembleArgs,
    /// The task, as ensemble.toml names it; may be left out where there is only one
    #[arg(long, short)]
    task: Option<String>,
    /// A folder with a folder of pictures for each label, a tar archive of that (.tar, .tar.gz), or a table (.csv)
    /// with the columns path, label and perhaps group
    #[arg(long, short, value_name = "PATH")]
    data: PathBuf,
    /// What the pictures of a folder show where its name is not the label's; may be repeated
    #[arg(long = "class", value_name = "FOLDER=LABEL", value_parser = named)]
    classes: Vec<(String, String)>,
    /// What the pictures of all other folders show
    #[arg(long, value_name = "LABEL")]
    other: Option<String>,
    /// Pictures whose names agree in this part show the same thing, and are counted together: a regular expression, of
    /// which the first group counts where it has one, for instance '(.*/\d+)_\d+'
    #[arg(long, value_name = "REGEX")]
    group_by: Option<Regex>,
}

fn named(argument: &str) -> Result<(String, String), String> {
    let parts = argument.split_once('=').ok_or("must be FOLDER=LABEL")?;
    Ok((parts.0.to_owned(), parts.1.to_owned()))
}

impl PictureArgs {
    /// The task that is meant.
    pub(super) fn task(&self, ensemble: &Ensemble) -> Result<String, String> {
        choose_task(ensemble, self.task.as_deref())
    }

    /// The pictures, for a task of these labels.
    pub(super) fn read(&self, labels: &[String]) -> Result<Dataset, String> {
        let labelling = Labelling {
            labels,
            named: self.classes.iter().cloned().collect(),
            other: self.other.clone(),
            group_by: self.group_by.clone(),
        };
        Dataset::read(&self.data, &labelling)
    }

    /// Refuses pictures that are among those of `other` as well, before any model is asked.
    pub(super) fn refuse_shared(&self, ensemble: &Ensemble, other: &Path) -> Result<(), String> {
        let task = self.task(ensemble)?;
        let labels = ensemble.tasks()[&task].labels();
        let digests = |source: &Path| {
            // What they show does not matter here.
            let other = labels.first().cloned();
            let labelling = Labelling { labels, named: BTreeMap::new(), other, group_by: None };
            let data = Dataset::read(source, &labelling)?;
            let digest = |example: &Example| {
                let bytes = bytes_of(example, ensemble.server().max_body_bytes)?;
                Ok((Digest::of(&bytes), example.name.clone()))
            };
            data.examples.iter().map(digest).collect::<Result<Vec<_>, String>>()
        };
        let reported: HashSet<Digest> = digests(other)?.into_iter().map(|(digest, _)| digest).collect();
        let own = digests(&self.data)?;
        let shared: Vec<&String> =
            own.iter().filter(|(digest, _)| reported.contains(digest)).map(|(_, name)| name).collect();
        match shared.first() {
            None => Ok(()),
            Some(first) => Err(format!(
                "{} of the pictures are in {} too, {first} for one: what is fitted on them cannot be judged by them",
                shared.len(),
                other.display()
            )),
        }
    }
}

/// A picture's bytes; the fault names it.
pub(super) fn bytes_of(example: &Example, bytes_max: u64) -> Result<Vec<u8>, String> {
    read_at_most(&example.path, bytes_max).map_err(|problem| format!("{}: {}", example.name, problem.detail))
}
