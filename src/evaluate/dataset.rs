//! Labelled pictures: a folder of folders, a tar archive of such, or a table.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};

use flate2::read::MultiGzDecoder;
use regex::Regex;
use tempfile::TempDir;

use crate::inputs::{Input, expand};

/// So many files of an archive are unpacked at most, and so many bytes: an archive of a few kilobytes can hold any number.
const UNPACKED_FILES_MAX: usize = 10_000_000;
const UNPACKED_BYTES_MAX: u64 = 100 << 30;
/// What a gzip file begins with.
const GZIP_MAGIC: [u8; 2] = [0x1f, 0x8b];
/// So many folders are named where they mean no label.
const NAMED_MAX: usize = 8;

/// Pictures of which is known what they show.
#[derive(Debug)]
pub(crate) struct Dataset {
    /// In the order of their names.
    pub(crate) examples: Vec<Example>,
    /// Where an archive was unpacked; removed on drop.
    _unpacked: Option<TempDir>,
}

/// One of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Example {
    pub(crate) path: PathBuf,
    /// As it is called in messages: relative to the folder, archive or table.
    pub(crate) name: String,
    /// The index of the label.
    pub(crate) label: usize,
    /// The number of its group: pictures that show the same thing. One of its own where nothing says which.
    pub(crate) group: usize,
}

/// How names of folders, or the words of a table, become labels and groups.
#[derive(Debug)]
pub(crate) struct Labelling<'a> {
    pub(crate) labels: &'a [String],
    /// `FOLDER=LABEL` by the folder.
    pub(crate) named: BTreeMap<String, String>,
    /// What is shown where the name means no label.
    pub(crate) other: Option<String>,
    /// Names that agree in what this finds, its first group where it has one, are of one group.
    pub(crate) group_by: Option<Regex>,
}

impl Labelling<'_> {
    /// The label that a folder's name or a word of a table means: it is `named`, is a label, or is one but for a number
    /// before it, underscores for spaces, and capitals.
    fn label(&self, word: &str) -> Option<usize> {
        let named = self.named.get(word).map_or(word, String::as_str);
        let index = |wanted: &str| self.labels.iter().position(|label| label == wanted);
        let plain = |text: &str| text.to_lowercase().replace(['_', '-'], " ").trim().to_owned();
        let without_number = named.trim_start_matches(|letter: char| letter.is_ascii_digit());
        index(named)
            .or_else(|| self.labels.iter().position(|label| plain(label) == plain(named)))
            .or_else(|| self.labels.iter().position(|label| plain(label) == plain(without_number)))
            .or_else(|| index(self.other.as_deref()?))
    }

    /// What a picture's group is called.
    fn group(&self, name: &str) -> String {
        let found = self.group_by.as_ref().and_then(|pattern| pattern.captures(name));
        let part = found
            .and_then(|found| found.get(1).or_else(|| found.get(0)).map(|part| part.as_str().to_owned()));
        part.unwrap_or_else(|| name.to_owned())
    }

    /// Whether all that was asked for names labels that there are.
    fn check(&self) -> Result<(), String> {
        for label in self.named.values().chain(&self.other) {
            if !self.labels.contains(label) {
                return Err(format!("no label {label:?}: there is {}", self.labels.join(", ")));
            }
        }
        Ok(())
    }
}

/// A picture with what is said of it, before that is understood.
struct Claim {
    path: PathBuf,
    name: String,
    word: String,
    group: Option<String>,
}

impl Dataset {
    /// Reads what `source` is: a folder with a folder for each label, a tar archive of that, perhaps compressed by gzip, or a
    /// table with the columns `path`, `label` and perhaps `group`, whose paths are relative to it.
    ///
    /// # Errors
    /// When it cannot be read, has no pictures, or some of them have no label; in words that say what to change.
    pub(crate) fn read(source: &Path, labelling: &Labelling<'_>) -> Result<Self, String> {
        labelling.check()?;
        let told = |error: String| format!("{}: {error}", source.display());
        let (claims, unpacked) = if source.is_dir() {
            (claims_of_folder(source).map_err(told)?, None)
        } else if source.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("csv")) {
            (claims_of_table(source).map_err(told)?, None)
        } else {
            let folder = unpack(source).map_err(told)?;
            (claims_of_folder(folder.path()).map_err(told)?, Some(folder))
        };
        let examples = understood(claims, labelling).map_err(told)?;
        Ok(Self { examples, _unpacked: unpacked })
    }

    /// Of each label the first picture by the order of names, and every `step`th after it.
    #[must_use]
    pub(crate) fn every(mut self, step: usize) -> Self {
        let mut by_name: Vec<usize> = (0..self.examples.len()).collect();
        by_name.sort_by(|one, other| self.examples[*one].name.cmp(&self.examples[*other].name));
        let mut seen = BTreeMap::<usize, usize>::new();
        let mut is_taken = vec![false; self.examples.len()];
        for index in by_name {
            let count = seen.entry(self.examples[index].label).or_default();
            is_taken[index] = count.is_multiple_of(step);
            *count += 1;
        }
        let mut taken = is_taken.into_iter();
        self.examples.retain(|_| taken.next().unwrap_or(false));
        self
    }
}

/// Every picture below a folder, said to be what the folder that it is in is called.
fn claims_of_folder(folder: &Path) -> Result<Vec<Claim>, String> {
    let mut claims = Vec::new();
    for Input { path, fault } in expand(&[folder.to_owned()]) {
        if let Some(fault) = fault {
            return Err(fault);
        }
        let within = path.strip_prefix(folder).unwrap_or(&path).to_owned();
        let parent =
            within.parent().and_then(Path::file_name).map(|name| name.to_string_lossy().into_owned());
        let name = within.display().to_string();
        let Some(word) = parent else {
            return Err(format!("{name} is in no folder: pictures are to be in a folder for each label"));
        };
        claims.push(Claim { path, name, word, group: None });
    }
    Ok(claims)
}

/// A row of a table.
#[derive(Debug, serde::Deserialize)]
struct Row {
    path: PathBuf,
    label: String,
    #[serde(default)]
    group: Option<String>,
}

fn claims_of_table(table: &Path) -> Result<Vec<Claim>, String> {
    let folder = table.parent().unwrap_or(Path::new(""));
    let mut reader = csv::Reader::from_path(table).map_err(|error| error.to_string())?;
    let mut claims = Vec::new();
    for row in reader.deserialize::<Row>() {
        let Row { path, label, group } =
            row.map_err(|error| format!("{error}; wanted are the columns path, label, and perhaps group"))?;
        let (name, group) = (path.display().to_string(), group.filter(|group| !group.is_empty()));
        claims.push(Claim { path: folder.join(path), name, word: label, group });
    }
    Ok(claims)
}

/// Into a temporary folder. Whatever would lie outside of it is left out by `tar`.
fn unpack(archive: &Path) -> Result<TempDir, String> {
    let folder =
        tempfile::Builder::new().prefix("concord-data-").tempdir().map_err(|error| error.to_string())?;
    let mut reader = BufReader::new(File::open(archive).map_err(|error| error.to_string())?);
    let magic = std::io::BufRead::fill_buf(&mut reader).map_err(|error| error.to_string())?;
    let is_compressed = magic.starts_with(&GZIP_MAGIC);
    let bytes: Box<dyn Read> =
        if is_compressed { Box::new(MultiGzDecoder::new(reader)) } else { Box::new(reader) };
    let neither = |error: std::io::Error| format!("neither a folder, nor a .csv, nor a tar archive: {error}");
    let mut left = UNPACKED_BYTES_MAX;
    for (count, entry) in tar::Archive::new(bytes).entries().map_err(neither)?.enumerate() {
        let mut entry = entry.map_err(neither)?;
        if !entry.header().entry_type().is_file() {
            continue;
        }
        left = left.checked_sub(entry.size()).filter(|_| count < UNPACKED_FILES_MAX).ok_or_else(|| {
            format!("more than {UNPACKED_FILES_MAX} files or {UNPACKED_BYTES_MAX} bytes: unpack it and name the folder")
        })?;
        let _unpacked_or_outside = entry.unpack_in(folder.path()).map_err(|error| error.to_string())?;
    }
    Ok(folder)
}

/// Labels and groups of all, or which words mean none.
fn understood(claims: Vec<Claim>, labelling: &Labelling<'_>) -> Result<Vec<Example>, String> {
    let mut examples = Vec::new();
    let (mut unknown, mut groups) = (BTreeMap::<String, usize>::new(), BTreeMap::<String, usize>::new());
    let kinds: BTreeSet<String> = claims.iter().map(|claim| claim.word.clone()).collect();
    let names: Vec<String> = claims.iter().map(|claim| claim.name.clone()).collect();
    for Claim { path, name, word, group } in claims {
        let Some(label) = labelling.label(&word) else {
            *unknown.entry(word).or_default() += 1;
            continue;
        };
        let group = group.unwrap_or_else(|| labelling.group(&name));
        let next = groups.len();
        let group = *groups.entry(group).or_insert(next);
        examples.push(Example { path, name, label, group });
    }
    if let Some(kind) = labelling.named.keys().find(|kind| !kinds.contains(*kind)) {
        return Err(format!("--class {kind}=…: there are no pictures of {kind:?}"));
    }
    if labelling.group_by.as_ref().is_some_and(|pattern| !names.iter().any(|name| pattern.is_match(name))) {
        return Err("--group-by finds its part in no picture's name".to_owned());
    }
    if !unknown.is_empty() {
        let named: Vec<&str> = unknown.keys().take(NAMED_MAX).map(String::as_str).collect();
        let more = if unknown.len() > NAMED_MAX { ", …" } else { "" };
        return Err(format!(
            "{} pictures of {} kinds that mean no label: {}{more}; say what they show with --class KIND=LABEL, or of all \
             of them with --other LABEL",
            unknown.values().sum::<usize>(),
            unknown.len(),
            named.join(", ")
        ));
    }
    if examples.is_empty() {
        return Err("no pictures".to_owned());
    }
    Ok(examples)
}

#[cfg(test)]
mod tests;
