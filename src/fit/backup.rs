//! A file replaced as a whole, with the old text kept beside it.

use std::fs::{File, Metadata, OpenOptions};
use std::io::Write as _;
use std::path::{Path, PathBuf};

/// Old texts that are kept beside a file. More of them are no backup but a leak: somebody should tidy up first.
const BACKUPS_MAX: usize = 1000;

/// Writes `after` into the file at `path`, which reads `before`, and returns where `before` is kept. Whoever reads the
/// file meanwhile, or after a power failure, reads one of them as a whole.
///
/// # Errors
/// When the file does not read `before` any more, or cannot be written; then it is as it was.
pub(crate) fn write_with_backup(path: &Path, before: &str, after: &str) -> Result<PathBuf, String> {
    let told = |error: std::io::Error| format!("{} cannot be written: {error}", path.display());
    // A link stays one: what it points to is replaced.
    let target = path.canonicalize().map_err(told)?;
    let (Some(folder), Some(name)) = (target.parent(), target.file_name()) else {
        return Err(format!("{} is not a file", path.display()));
    };
    let metadata = target.metadata().map_err(told)?;
    if metadata.permissions().readonly() {
        // A file that is renamed over another does not ask whether that may be written.
        return Err(format!("{} is read-only: make it writable first", path.display()));
    }
    let unchanged = || {
        if std::fs::read(&target).map_err(told)? == before.as_bytes() {
            return Ok(());
        }
        Err(format!("{} was changed meanwhile and is left as it is: run again", path.display()))
    };
    unchanged()?;
    let mut temporary =
        tempfile::Builder::new().prefix(name).suffix(".new").tempfile_in(folder).map_err(told)?;
    fill(temporary.as_file_mut(), after, &metadata).map_err(told)?;
    let backup = backed_up(&target, before, &metadata)?;
    let replaced = unchanged().and_then(|()| temporary.persist(&target).map_err(|error| told(error.error)));
    if let Err(message) = replaced {
        // Of no use: the file still has this text. Where it stays nevertheless, it does no harm.
        let _ = std::fs::remove_file(&backup);
        return Err(message);
    }
    // That the names survive a power failure as well; not every file system can, and the file is written by now.
    let _ = File::open(folder).and_then(|folder| folder.sync_all());
    Ok(backup)
}

/// A new file beside `target` with what it reads, under the first name that is free.
fn backed_up(target: &Path, text: &str, metadata: &Metadata) -> Result<PathBuf, String> {
    for number in 0..BACKUPS_MAX {
        let mut path = target.as_os_str().to_owned();
        path.push(if number == 0 { ".bak".to_owned() } else { format!(".bak.{number}") });
        let path = PathBuf::from(path);
        let told = |error: std::io::Error| format!("backup {} cannot be written: {error}", path.display());
        match OpenOptions::new().write(true).create_new(true).open(&path) {
            Ok(mut file) => {
                if let Err(error) = fill(&mut file, text, metadata) {
                    let _ = std::fs::remove_file(&path); // half of a text is no backup
                    return Err(told(error));
                }
                return Ok(path);
            }
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(told(error)),
        }
    }
    Err(format!("{} has {BACKUPS_MAX} backups: remove those that nobody needs", target.display()))
}

/// Writes `text` to the disk, after making the file one for the same people as that of `metadata`.
fn fill(file: &mut File, text: &str, metadata: &Metadata) -> std::io::Result<()> {
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt as _;
        // Root would take a service's file away from it. Others may not give files away, and need not.
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
        let told = write_with_backup(&path, "before", "after").unwrap_err();
        assert!(told.contains("has 1000 backups"), "{told}");
        assert_eq!(fs::read_to_string(&path).unwrap(), "before");
        assert_eq!(names(&folder).len(), 1 + BACKUPS_MAX);
    }

    #[test]
    fn a_file_that_was_changed_meanwhile_is_left() {
        let (folder, path) = folder_with_file();
        let told = write_with_backup(&path, "something else", "after").unwrap_err();
        assert!(told.contains("changed meanwhile") && told.contains("run again"), "{told}");
        assert_eq!(fs::read_to_string(&path).unwrap(), "before");
        assert_eq!(names(&folder), ["ensemble.toml"]);
        let told = write_with_backup(&path.with_file_name("no.toml"), "", "").unwrap_err();
        assert!(told.contains("no.toml cannot be written"), "{told}");
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
        let told = write_with_backup(&path, "after", "again").unwrap_err();
        assert!(told.contains("read-only"), "{told}");
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
        let told = write_with_backup(&path, &before, "after").unwrap_err();
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
        assert!(told.contains(&format!("{} cannot be written: ", path.display())), "{told}");
        assert_eq!(fs::read_to_string(&path).unwrap(), before);
    }
}
