//! Replaces a file atomically, and keeps a backup of the old text beside it.

use std::fs::{File, Metadata, OpenOptions};
use std::io::Write as _;
use std::path::{Path, PathBuf};

/// The largest number of backups beside a file. More are a leak rather than backups: somebody should tidy up
/// first.
const BACKUPS_MAX: usize = 1000;

/// Replaces the text `before` of the file at `path` by `after`, and returns the path of the backup of
/// `before`. A concurrent reader, and one after a power failure, reads either text as a whole.
///
/// # Errors
/// When the text of the file is no longer `before`, or it cannot be written; it is unchanged then.
pub(crate) fn write_with_backup(path: &Path, before: &str, after: &str) -> Result<PathBuf, String> {
    let with_context = |error: std::io::Error| format!("{} cannot be written: {error}", path.display());
    // A link is kept: its target is replaced.
    let target = path.canonicalize().map_err(with_context)?;
    let (Some(folder), Some(name)) = (target.parent(), target.file_name()) else {
        return Err(format!("{} is not a file", path.display()));
    };
    let metadata = target.metadata().map_err(with_context)?;
    if metadata.permissions().readonly() {
        // Renaming a file over another ignores the permissions of the other.
        return Err(format!("{} is read-only: make it writable first", path.display()));
    }
    let unchanged = || {
        if std::fs::read(&target).map_err(with_context)? == before.as_bytes() {
            return Ok(());
        }
        Err(format!("{} was changed meanwhile and was not written: run again", path.display()))
    };
    unchanged()?;
    let mut temporary =
        tempfile::Builder::new().prefix(name).suffix(".new").tempfile_in(folder).map_err(with_context)?;
    fill(temporary.as_file_mut(), after, &metadata).map_err(with_context)?;
    let backup = backed_up(&target, before, &metadata)?;
    let replaced =
        unchanged().and_then(|()| temporary.persist(&target).map_err(|error| with_context(error.error)));
    if let Err(message) = replaced {
        // The backup is useless, as the file still has this text. If it cannot be removed, it does no harm.
        let _ = std::fs::remove_file(&backup);
        return Err(message);
    }
    // Makes the new names survive a power failure; not every file system can, and the file has been written
    // by now.
    let _ = File::open(folder).and_then(|folder| folder.sync_all());
    Ok(backup)
}

/// Writes `text` into a new file beside `target`, under the first free name, and returns its path.
fn backed_up(target: &Path, text: &str, metadata: &Metadata) -> Result<PathBuf, String> {
    for number in 0..BACKUPS_MAX {
        let mut path = target.as_os_str().to_owned();
        path.push(if number == 0 { ".bak".to_owned() } else { format!(".bak.{number}") });
        let path = PathBuf::from(path);
        let with_context =
            |error: std::io::Error| format!("backup {} cannot be written: {error}", path.display());
        match OpenOptions::new().write(true).create_new(true).open(&path) {
            Ok(mut file) => {
                if let Err(error) = fill(&mut file, text, metadata) {
                    let _ = std::fs::remove_file(&path); // half of a text is no backup
                    return Err(with_context(error));
                }
                return Ok(path);
            }
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(with_context(error)),
        }
    }
    Err(format!("{} has {BACKUPS_MAX} backups: remove those that are not needed", target.display()))
}

/// Writes `text` to disk, after giving the file the owner and the permissions in `metadata`.
fn fill(file: &mut File, text: &str, metadata: &Metadata) -> std::io::Result<()> {
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt as _;
        // Run by root, the new file would otherwise belong to root and not to the service. Other users may
        // not change owners, and need not.
        let _ = std::os::unix::fs::fchown(&*file, Some(metadata.uid()), Some(metadata.gid()));
    }
    file.set_permissions(metadata.permissions())?;
    file.write_all(text.as_bytes())?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use tempfile::TempDir;

    use super::*;

    /// A folder with `ensemble.toml` in it, which reads "before".
    fn folder_with_file() -> (TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().canonicalize().unwrap().join("ensemble.toml");
        fs::write(&path, "before").unwrap();
        (folder, path)
    }

    fn names(folder: &TempDir) -> Vec<String> {
        let entries = fs::read_dir(folder.path()).unwrap();
        let mut names: Vec<_> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn every_old_text_is_kept() {
        let (folder, path) = folder_with_file();
        for (before, after, backup) in [
            ("before", "second", "ensemble.toml.bak"),
            ("second", "third", "ensemble.toml.bak.1"),
            ("third", "fourth", "ensemble.toml.bak.2"),
        ] {
            let kept = write_with_backup(&path, before, after).unwrap();
            assert_eq!(kept, path.with_file_name(backup));
            assert_eq!(fs::read_to_string(&kept).unwrap(), before);
            assert_eq!(fs::read_to_string(&path).unwrap(), after);
        }
        let expected = ["ensemble.toml", "ensemble.toml.bak", "ensemble.toml.bak.1", "ensemble.toml.bak.2"];
        assert_eq!(names(&folder), expected, "and nothing else is left behind");
    }

    #[test]
    fn a_file_with_too_many_backups_is_left() {
        let (folder, path) = folder_with_file();
        fs::write(path.with_extension("toml.bak"), "").unwrap();
        for number in 1..BACKUPS_MAX {
            fs::write(path.with_extension(format!("toml.bak.{number}")), "").unwrap();
        }
        let error = write_with_backup(&path, "before", "after").unwrap_err();
        assert!(error.contains("has 1000 backups"), "{error}");
        assert_eq!(fs::read_to_string(&path).unwrap(), "before");
        assert_eq!(names(&folder).len(), 1 + BACKUPS_MAX);
    }

    #[test]
    fn a_file_that_was_changed_meanwhile_is_left() {
        let (folder, path) = folder_with_file();
        let error = write_with_backup(&path, "something else", "after").unwrap_err();
        assert!(error.contains("changed meanwhile") && error.contains("run again"), "{error}");
        assert_eq!(fs::read_to_string(&path).unwrap(), "before");
        assert_eq!(names(&folder), ["ensemble.toml"]);
        let error = write_with_backup(&path.with_file_name("no.toml"), "", "").unwrap_err();
        assert!(error.contains("no.toml cannot be written"), "{error}");
    }

    #[cfg(unix)]
    #[test]
    fn permissions_and_links_stay() {
        use std::os::unix::fs::PermissionsExt as _;

        let (folder, path) = folder_with_file();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o7777;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        let elsewhere = tempfile::tempdir().unwrap();
        let link = elsewhere.path().join("link.toml");
        std::os::unix::fs::symlink(&path, &link).unwrap();

        let backup = write_with_backup(&link, "before", "after").unwrap();
        assert_eq!(backup, path.with_file_name("ensemble.toml.bak"), "beside the file, not the link");
        assert_eq!(fs::read_link(&link).unwrap(), path);
        assert_eq!(fs::read_to_string(&path).unwrap(), "after");
        assert_eq!((mode(&path), mode(&backup)), (0o640, 0o640));

        fs::set_permissions(&path, fs::Permissions::from_mode(0o440)).unwrap();
        let error = write_with_backup(&path, "after", "again").unwrap_err();
        assert!(error.contains("read-only"), "{error}");
        assert_eq!(fs::read_to_string(&path).unwrap(), "after");
        assert_eq!(names(&folder), ["ensemble.toml", "ensemble.toml.bak"]);
    }

    #[cfg(unix)]
    #[test]
    fn a_folder_that_cannot_be_written_leaves_the_file() {
        use std::os::unix::fs::PermissionsExt as _;

        let (folder, mut path) = folder_with_file();
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o555)).unwrap();
        if fs::write(folder.path().join("probe"), "").is_ok() {
            path = PathBuf::from("/proc/self/comm"); // root writes anywhere but there
        }
        let before = fs::read_to_string(&path).unwrap();
        let error = write_with_backup(&path, &before, "after").unwrap_err();
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
        assert!(error.contains(&format!("{} cannot be written: ", path.display())), "{error}");
        assert_eq!(fs::read_to_string(&path).unwrap(), before);
    }
}
