//! File arguments → the pictures that they mean.

use std::path::{Path, PathBuf};

use walkdir::WalkDir;

/// What a folder's files must end in to be taken for pictures; a file that is named itself is always taken.
const EXTENSIONS: [&str; 7] = ["bmp", "gif", "jpeg", "jpg", "jfif", "png", "webp"];

/// One picture, or an argument that means none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Input {
    /// The file as it is to be named.
    pub path: PathBuf,
    /// Why there is no picture.
    pub fault: Option<String>,
}

/// The pictures in the order of the arguments: a file is itself, a folder all pictures below it by name,
/// and what is neither is taken for a glob pattern.
pub fn expand(arguments: &[PathBuf]) -> Vec<Input> {
    arguments.iter().flat_map(|argument| expand_one(argument)).collect()
}

fn expand_one(argument: &Path) -> Vec<Input> {
    let fault = |fault: &str| vec![Input { path: argument.to_owned(), fault: Some(fault.to_owned()) }];
    if argument.is_dir() {
        let pictures = pictures_below(argument);
        return if pictures.is_empty() { fault("the folder has no pictures") } else { pictures };
    }
    let text = argument.to_string_lossy();
    if argument.exists() || !text.contains(['*', '?', '[']) {
        return vec![Input { path: argument.to_owned(), fault: None }];
    }
    match glob::glob(&text) {
        Err(error) => fault(&format!("not a pattern: {error}")),
        Ok(paths) => {
            let matching: Vec<Input> = paths
                .flatten()
                .filter(|path| path.is_file())
                .map(|path| Input { path, fault: None })
                .collect();
            if matching.is_empty() { fault("the pattern matches no file") } else { matching }
        }
    }
}

fn pictures_below(folder: &Path) -> Vec<Input> {
    WalkDir::new(folder)
        .sort_by_file_name()
        .into_iter()
        .filter_map(|entry| match entry {
            Ok(entry) if entry.file_type().is_file() && is_picture(entry.path()) => {
                Some(Input { path: entry.into_path(), fault: None })
            }
            Ok(_) => None,
            Err(error) => {
                let path = error.path().unwrap_or(folder).to_owned();
                Some(Input { path, fault: Some(error.to_string()) })
            }
        })
        .collect()
}

fn is_picture(path: &Path) -> bool {
    let extension = path.extension().map(|extension| extension.to_string_lossy().to_lowercase());
    extension.is_some_and(|extension| EXTENSIONS.contains(&extension.as_str()))
}
