//! Expands file arguments into the images that they name.

use std::path::{Path, PathBuf};

use walkdir::WalkDir;

/// The extensions by which a folder's files are taken for images; a file that is named itself is always
/// taken.
const EXTENSIONS: [&str; 7] = ["bmp", "gif", "jpeg", "jpg", "jfif", "png", "webp"];

/// One image, or an argument that names none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Input {
    /// The file, as it is shown.
    pub path: PathBuf,
    /// The reason why there is no image.
    pub fault: Option<String>,
}

/// Returns the images in the order of the arguments. A file stands for itself, a folder for all images below
/// it in the order of their names, and anything else is taken for a glob pattern.
pub fn expand(arguments: &[PathBuf]) -> Vec<Input> {
    arguments.iter().flat_map(|argument| expand_one(argument)).collect()
}

fn expand_one(argument: &Path) -> Vec<Input> {
    let fault = |fault: &str| vec![Input { path: argument.to_owned(), fault: Some(fault.to_owned()) }];
    if argument.is_dir() {
        let images = images_below(argument);
        return if images.is_empty() {
            fault("the folder has no images: name a folder or files with some")
        } else {
            images
        };
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

fn images_below(folder: &Path) -> Vec<Input> {
    WalkDir::new(folder)
        .sort_by_file_name()
        .into_iter()
        .filter_map(|entry| match entry {
            Ok(entry) if entry.file_type().is_file() && is_image(entry.path()) => {
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

fn is_image(path: &Path) -> bool {
    let extension = path.extension().map(|extension| extension.to_string_lossy().to_lowercase());
    extension.is_some_and(|extension| EXTENSIONS.contains(&extension.as_str()))
}
