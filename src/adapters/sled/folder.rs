//! The folder a store lives in: who may open it, in which format it is, how far it had come.
//!
//! It holds `lock` (one process at a time), `STORE` (a few lines of text that every version of
//! this program, older or newer, can read before it touches the database), and the database in
//! `sled/`. An old program refuses a newer format instead of claiming it; a database that has
//! lost what `STORE` says it held is damaged, not empty. [`super`] opens and recovers through here.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::ports::{Revision, Seq};

use super::OpenError;

/// The store format this program writes and knows.
pub(super) const FORMAT: u32 = 1;

/// The first line of every `STORE` file, of every format.
const TITLE: &str = "pointsman store";

/// A store's folder, held: no other process can hold it until this and its clones are dropped.
#[derive(Clone, Debug)]
pub(super) struct Folder {
    path: PathBuf,
    /// Locked for as long as it is open; the operating system unlocks it if the process dies.
    _lock: Arc<File>,
}

/// How far a store has durably come: a lower bound, written when it opens, closes, and now and then.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Mark {
    /// The tip of the log.
    pub(super) tip: Seq,
    /// The next revision to be given out; 0 before the database was first made.
    pub(super) revision: Revision,
}

impl Folder {
    /// Takes the folder for this process, making it if it does not exist.
    pub(super) fn claim(dir: &Path) -> Result<Folder, OpenError> {
        let failed = |error| OpenError::of_io(dir, error);
        fs::create_dir_all(dir).map_err(failed)?;
        // Absolute from here on: the process may change its working directory.
        let path = fs::canonicalize(dir).map_err(failed)?;
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(path.join("lock"))
            .map_err(failed)?;
        match lock.try_lock() {
            Ok(()) => Ok(Folder { path, _lock: Arc::new(lock) }),
            Err(TryLockError::WouldBlock) => Err(OpenError::InUse { path }),
            Err(TryLockError::Error(error)) => Err(failed(error)),
        }
    }

    /// The folder itself.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Where the database is.
    pub(super) fn database(&self) -> PathBuf {
        self.path.join("sled")
    }

    /// Reads how far the store had come, or starts a new one in an empty folder.
    pub(super) fn mark(&self) -> Result<Mark, OpenError> {
        match fs::read(self.path.join("STORE")) {
            Ok(bytes) => self.parse(&bytes),
            Err(error) if error.kind() == ErrorKind::NotFound => {
                self.must_be_empty()?;
                self.write(Mark::default()).map_err(|error| OpenError::of_io(&self.path, error))?;
                Ok(Mark::default())
            }
            Err(error) => Err(OpenError::of_io(&self.path, error)),
        }
    }

    /// Replaces the `STORE` file, whole or not at all, and durably.
    pub(super) fn write(&self, mark: Mark) -> io::Result<()> {
        let fresh = self.path.join("STORE.new");
        let mut file = File::create(&fresh)?;
        file.write_all(render(mark).as_bytes())?;
        file.sync_all()?;
        fs::rename(&fresh, self.path.join("STORE"))?;
        sync_folder(&self.path)
    }

    /// Makes the names of the database's files durable, which syncing the files does not do.
    pub(super) fn sync_names(&self) -> io::Result<()> {
        sync_folder(&self.database())?;
        sync_folder(&self.path)?;
        self.path.parent().map_or(Ok(()), sync_folder)
    }

    /// Renames the folder to `<name>.damaged-<n>` beside it, with the first `n` that is free, and
    /// says where it went. Nothing is deleted or overwritten.
    pub(super) fn set_aside(&self) -> io::Result<PathBuf> {
        let name =
            self.path.file_name().ok_or_else(|| io::Error::other("the root folder cannot be renamed"))?;
        for n in 1..u32::MAX {
            let mut aside = name.to_owned();
            aside.push(format!(".damaged-{n}"));
            let aside = self.path.with_file_name(aside);
            match fs::symlink_metadata(&aside) {
                Ok(_) => continue,
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
            fs::rename(&self.path, &aside)?;
            return Ok(aside);
        }
        Err(io::Error::other("every name for the damaged store is taken"))
    }

    fn parse(&self, bytes: &[u8]) -> Result<Mark, OpenError> {
        let text = std::str::from_utf8(bytes).unwrap_or_default();
        let mut lines = text.lines();
        let titled = lines.next() == Some(TITLE);
        let format = lines.next().and_then(|line| line.strip_prefix("format ")?.parse::<u32>().ok());
        match format {
            Some(found) if titled && found > FORMAT => {
                Err(OpenError::Newer { path: self.path.clone(), found, known: FORMAT })
            }
            _ => read_marks(&mut lines)
                .filter(|mark| render(*mark) == text)
                .ok_or_else(|| self.damaged("its STORE file is not what was written".to_owned())),
        }
    }

    /// The error for a store that is not what was written.
    pub(super) fn damaged(&self, detail: String) -> OpenError {
        OpenError::Damaged { path: self.path.clone(), detail }
    }

    /// Only an empty folder becomes a store: a database without its `STORE` file is damaged, and
    /// anything else belongs to somebody else.
    fn must_be_empty(&self) -> Result<(), OpenError> {
        let entries = fs::read_dir(&self.path).map_err(|error| OpenError::of_io(&self.path, error))?;
        for entry in entries {
            let name = entry.map_err(|error| OpenError::of_io(&self.path, error))?.file_name();
            match name.to_str() {
                Some("lock" | "STORE.new") => {}
                Some("sled") => return Err(self.damaged("its STORE file is missing".to_owned())),
                _ => return Err(OpenError::NotAStore { path: self.path.clone() }),
            }
        }
        Ok(())
    }
}

fn read_marks<'a>(lines: &mut impl Iterator<Item = &'a str>) -> Option<Mark> {
    let mut number = |prefix: &str| lines.next()?.strip_prefix(prefix)?.parse().ok();
    Some(Mark { tip: number("tip ")?, revision: number("revision ")? })
}

/// The `STORE` file. Its last line is a checksum of the others.
fn render(Mark { tip, revision }: Mark) -> String {
    let text = format!("{TITLE}\nformat {FORMAT}\ntip {tip}\nrevision {revision}\n");
    format!("{text}check {:08x}\n", crc32fast::hash(text.as_bytes()))
}

#[cfg(unix)]
fn sync_folder(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

/// Elsewhere a folder cannot be opened as a file, and its entries are the file system's affair.
#[cfg(not(unix))]
fn sync_folder(_path: &Path) -> io::Result<()> {
    Ok(())
}
