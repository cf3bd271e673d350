//! Labeled data sets: a folder of folders, a tar archive of such a folder, or a table.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};

use flate2::read::MultiGzDecoder;
use regex::Regex;
use tempfile::TempDir;

use crate::inputs::{Input, expand};

/// The largest number of files, and of bytes, that are unpacked from an archive: one of a few kilobytes can
/// hold any number.
const UNPACKED_FILES_MAX: usize = 10_000_000;
const UNPACKED_BYTES_MAX: u64 = 100 << 30;
/// The first bytes of a gzip file.
const GZIP_MAGIC: [u8; 2] = [0x1f, 0x8b];
/// The number of folders without a label that an error names.
const NAMED_MAX: usize = 8;

/// A labeled data set.
#[derive(Debug)]
pub(crate) struct Dataset {
    /// The images, in the order of their names.
    pub(crate) examples: Vec<Example>,
    /// The folder that an archive was unpacked into; removed on drop.
    _unpacked: Option<TempDir>,
}

/// One labeled image of a data set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Example {
    pub(crate) path: PathBuf,
    /// The path relative to the folder, archive or table, for messages.
    pub(crate) name: String,
    /// The index of the label.
    pub(crate) label: usize,
    /// The number of its group of images that show the same thing; an ungrouped image is a group of its own.
    pub(crate) group: usize,
}

/// The rules by which the names of folders, or the words of a table, become labels and groups.
#[derive(Debug)]
pub(crate) struct LabelRules<'a> {
    pub(crate) labels: &'a [String],
    /// The labels given by `FOLDER=LABEL`, by folder.
    pub(crate) named: BTreeMap<String, String>,
    /// The label of images whose folder's name means no label.
    pub(crate) default_label: Option<String>,
    /// Images are in one group if this matches the same text in their names: its first capture group, if it
    /// has one.
    pub(crate) group_by: Option<Regex>,
}

impl LabelRules<'_> {
    /// Returns the label that a folder's name or a word of a table means: the one in `named`, or the label
    /// that equals it but for a number in front, underscores or hyphens for spaces, and case.
    fn label(&self, word: &str) -> Option<usize> {
        let named = self.named.get(word).map_or(word, String::as_str);
        let index = |wanted: &str| self.labels.iter().position(|label| label == wanted);
        let plain = |text: &str| text.to_lowercase().replace(['_', '-'], " ").trim().to_owned();
        let without_number = named.trim_start_matches(|letter: char| letter.is_ascii_digit());
        index(named)
            .or_else(|| self.labels.iter().position(|label| plain(label) == plain(named)))
            .or_else(|| self.labels.iter().position(|label| plain(label) == plain(without_number)))
            .or_else(|| index(self.default_label.as_deref()?))
    }

    /// Returns the name of an image's group.
    fn group(&self, name: &str) -> String {
        let found = self.group_by.as_ref().and_then(|pattern| pattern.captures(name));
        let part = found
            .and_then(|found| found.get(1).or_else(|| found.get(0)).map(|part| part.as_str().to_owned()));
        part.unwrap_or_else(|| name.to_owned())
    }

    /// Checks that the rules name only existing labels.
    fn check(&self) -> Result<(), String> {
        for label in self.named.values().chain(&self.default_label) {
            if !self.labels.contains(label) {
                return Err(format!("no label {label:?}: there is {}", self.labels.join(", ")));
            }
        }
        Ok(())
    }
}

/// An image with its label and group in words, before they are resolved.
struct Claim {
    path: PathBuf,
    name: String,
    word: String,
    group: Option<String>,
}

impl Dataset {
    /// Reads a data set: a folder with a subfolder for each label, a tar archive of such a folder, plain or
    /// compressed by gzip, or a CSV table with the columns `path`, `label` and optionally `group`, whose
    /// paths are relative to it.
    ///
    /// # Errors
    /// When it cannot be read, has no images, or some of them have no label; the text says what to change.
    pub(crate) fn read(source: &Path, label_rules: &LabelRules<'_>) -> Result<Self, String> {
        label_rules.check()?;
        let with_context = |error: String| format!("{}: {error}", source.display());
        let (claims, unpacked) = if source.is_dir() {
            (claims_of_folder(source).map_err(with_context)?, None)
        } else if source.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("csv")) {
            (claims_of_table(source).map_err(with_context)?, None)
        } else {
            let folder = unpack(source).map_err(with_context)?;
            (claims_of_folder(folder.path()).map_err(with_context)?, Some(folder))
        };
        let examples = resolve(claims, label_rules).map_err(with_context)?;
        Ok(Self { examples, _unpacked: unpacked })
    }

    /// Keeps the first image of each label in the order of names, and every `stride`th after it.
    #[must_use]
    pub(crate) fn stride(mut self, stride: usize) -> Self {
        let mut by_name: Vec<usize> = (0..self.examples.len()).collect();
        by_name.sort_by(|one, other| self.examples[*one].name.cmp(&self.examples[*other].name));
        let mut seen = BTreeMap::<usize, usize>::new();
        let mut is_taken = vec![false; self.examples.len()];
        for index in by_name {
            let count = seen.entry(self.examples[index].label).or_default();
            is_taken[index] = count.is_multiple_of(stride);
            *count += 1;
        }
        let mut taken = is_taken.into_iter();
        self.examples.retain(|_| taken.next().unwrap_or(false));
        self
    }
}

/// Returns every image below a folder, with the name of its parent folder as the word for its label.
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
            return Err(format!(
                "{name} is in no subfolder: there must be a subfolder of images for each label"
            ));
        };
        claims.push(Claim { path, name, word, group: None });
    }
    Ok(claims)
}

/// A row of a CSV table.
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
            row.map_err(|error| format!("{error}; the columns must be path, label and optionally group"))?;
        let (name, group) = (path.display().to_string(), group.filter(|group| !group.is_empty()));
        claims.push(Claim { path: folder.join(path), name, word: label, group });
    }
    Ok(claims)
}

/// Unpacks an archive into a temporary folder; `tar` leaves out entries that would lie outside of it.
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

/// Resolves the labels and groups of all images.
///
/// # Errors
/// When a word means no label, or a rule applies to no image.
fn resolve(claims: Vec<Claim>, label_rules: &LabelRules<'_>) -> Result<Vec<Example>, String> {
    let mut examples = Vec::new();
    let (mut unknown, mut groups) = (BTreeMap::<String, usize>::new(), BTreeMap::<String, usize>::new());
    let kinds: BTreeSet<String> = claims.iter().map(|claim| claim.word.clone()).collect();
    let names: Vec<String> = claims.iter().map(|claim| claim.name.clone()).collect();
    for Claim { path, name, word, group } in claims {
        let Some(label) = label_rules.label(&word) else {
            *unknown.entry(word).or_default() += 1;
            continue;
        };
        let group = group.unwrap_or_else(|| label_rules.group(&name));
        let next = groups.len();
        let group = *groups.entry(group).or_insert(next);
        examples.push(Example { path, name, label, group });
    }
    if let Some(kind) = label_rules.named.keys().find(|kind| !kinds.contains(*kind)) {
        return Err(format!("--class {kind}=…: there are no images of {kind:?}"));
    }
    if label_rules.group_by.as_ref().is_some_and(|pattern| !names.iter().any(|name| pattern.is_match(name))) {
        return Err("--group-by matches no image's name".to_owned());
    }
    if !unknown.is_empty() {
        let named: Vec<&str> = unknown.keys().take(NAMED_MAX).map(String::as_str).collect();
        let more = if unknown.len() > NAMED_MAX { ", …" } else { "" };
        return Err(format!(
            "{} images have {} unknown labels: {}{more}; map each with --class NAME=LABEL, or all of them with \
             --default-label LABEL",
            unknown.values().sum::<usize>(),
            unknown.len(),
            named.join(", ")
        ));
    }
    if examples.is_empty() {
        return Err("no images".to_owned());
    }
    Ok(examples)
}

#[cfg(test)]
mod tests;
