//! A file replaced in one step: whoever looks finds the old one or the new one, whole, also after a loss of power.

use std::{
    fs::{File, Permissions},
    io,
    os::unix::fs::PermissionsExt as _,
    path::Path,
};

/// The part of the work that failed; what was there is as it was, unless only the last one did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Making a file beside it.
    Make,
    /// Writing that file.
    Write,
    /// Putting it in the place of the other.
    Replace,
    /// Having the file system keep that.
    Sync,
}

/// How the file beside it is named, and what it may be.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Beside {
    /// What its name begins with.
    pub(crate) prefix: &'static str,
    /// What its name ends with.
    pub(crate) suffix: &'static str,
    /// Its mode, whatever the umask of this process; `None` for 0600.
    pub(crate) mode: Option<u32>,
}

/// The directory of `path`.
pub(crate) fn directory(path: &Path) -> &Path {
    match path.parent() {
        Some(directory) if directory != Path::new("") => directory,
        _ => Path::new("."),
    }
}

/// Replaces the file at `path`, or makes it, by what `write` writes.
///
/// # Errors
/// What failed, and how.
pub(crate) fn replace(
    path: &Path,
    beside: Beside,
    write: impl FnOnce(&mut File) -> io::Result<()>,
) -> Result<(), (Step, io::Error)> {
    let at = |step| move |error| (step, error);
    let directory = directory(path);
    let made = tempfile::Builder::new().prefix(beside.prefix).suffix(beside.suffix).tempfile_in(directory);
    let mut file = made.map_err(at(Step::Make))?;
    let written = write(file.as_file_mut());
    let moded = written.and_then(|()| match beside.mode {
        Some(mode) => file.as_file().set_permissions(Permissions::from_mode(mode)),
        None => Ok(()),
    });
    moded.and_then(|()| file.as_file().sync_all()).map_err(at(Step::Write))?;
    file.persist(path).map_err(|failed| (Step::Replace, failed.error))?;
    File::open(directory).and_then(|directory| directory.sync_all()).map_err(at(Step::Sync))
}

#[cfg(test)]
mod tests {
    use std::{fs, io::Write as _};

    use super::*;

    const BESIDE: Beside = Beside { prefix: ".new-", suffix: ".tmp", mode: Some(0o640) };

    #[test]
    fn the_old_file_stays_until_the_new_one_is_whole() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("file");
        let files = || fs::read_dir(root.path()).unwrap().count();
        replace(&path, BESIDE, |file| file.write_all(b"one")).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o640);
        let half = |file: &mut File| {
            file.write_all(b"tw")?;
            Err(io::Error::other("no room"))
        };
        assert_eq!(replace(&path, BESIDE, half).unwrap_err().0, Step::Write);
        assert_eq!((fs::read(&path).unwrap(), files()), (b"one".to_vec(), 1));
        replace(&path, Beside { mode: None, ..BESIDE }, |file| file.write_all(b"two")).unwrap();
        assert_eq!((fs::read(&path).unwrap(), files()), (b"two".to_vec(), 1));
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn each_step_that_fails_is_named() {
        let root = tempfile::tempdir().unwrap();
        let step = |path: &str| replace(&root.path().join(path), BESIDE, |_| Ok(())).unwrap_err().0;
        assert_eq!(step("missing/file"), Step::Make);
        fs::create_dir(root.path().join("directory")).unwrap();
        assert_eq!(step("directory"), Step::Replace);
        assert_eq!(directory(Path::new("file")), Path::new("."));
    }
}
