//! The folder a store lives in: who may open it, in which format it is, how far it had come.
//!
//! It holds `lock` (one process at a time), `STORE` (a few lines of text that every version of
//! this program, older or newer, can read before it touches the database), and the database in
//! `sled/`. An old program refuses a newer format instead of claiming it; a database that has
//! lost what `STORE` says it held is damaged, not empty. [`super`] opens and recovers through here.
//!
//! Beside it, in `<name>.numbers`, stands how far the numbers of stores that stood here before may have gone:
//! whatever takes their place goes on behind them (`feed-durable`). It outlives every one of those stores.

use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

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

/// The first word of every `.numbers` file.
const NUMBERS: &str = "used";

/// How many numbers a store is given for its life, should the clock be of no use: half a year at a million a
/// second, and five hundred stores before JavaScript could no longer count them.
const NUMBERS_OF_A_LIFE: Seq = 1 << 44;

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

    /// Copies the store in `dir` for somebody who must change nothing there: sled writes wherever it opens. Nobody
    /// who holds the folder may be at work meanwhile.
    pub(super) fn copy(dir: &Path) -> Result<(Folder, Copy), OpenError> {
        let failed = |error| OpenError::of_io(dir, error);
        let path = fs::canonicalize(dir).map_err(failed)?;
        // A backup may have none, and then nobody holds it.
        let lock = match File::open(path.join("lock")) {
            Ok(lock) => Some(lock),
            Err(error) if error.kind() == ErrorKind::NotFound => None,
            Err(error) => return Err(failed(error)),
        };
        match lock.as_ref().map(File::try_lock) {
            None | Some(Ok(())) => {}
            Some(Err(TryLockError::WouldBlock)) => return Err(OpenError::InUse { path }),
            Some(Err(TryLockError::Error(error))) => return Err(failed(error)),
        }
        let copy = Copy::new().map_err(failed)?;
        copy_folder(&path, &copy.path).map_err(|error| OpenError::Disk {
            path: path.clone(),
            detail: format!(
                "it cannot be copied to {} (TMPDIR names another place): {error}",
                copy.path.display()
            ),
        })?;
        Ok((Folder::claim(&copy.path)?, copy))
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
        for n in 1..u32::MAX {
            let aside = self.beside(&format!("damaged-{n}"))?;
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

    /// Numbers up to here may have been given to records of stores that stood here before; 0: none.
    pub(super) fn used_before(&self) -> io::Result<Seq> {
        let path = self.beside("numbers")?;
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(0),
            Err(error) => return Err(error),
        };
        let first = text.lines().next().unwrap_or_default();
        let used = first.strip_prefix(NUMBERS).and_then(|rest| rest.trim().parse().ok());
        used.filter(|used| numbers(*used) == text).ok_or_else(|| {
            let path = path.display();
            io::Error::other(format!(
                "{path} is not what was written; start with --restored to write it anew"
            ))
        })
    }

    /// Makes it durable that numbers may have been used so far that nothing before can have come there.
    ///
    /// Nobody knows how far a damaged store had come, or one that a backup takes the place of. But none gives
    /// out a million numbers a second for long: so its numbers lie below the microseconds since 1970. Should the
    /// clock have been set back, they lie below what was used before it began, and those of one life.
    pub(super) fn skip_numbers(&self) -> io::Result<()> {
        let micros = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_micros();
        let micros = Seq::try_from(micros).unwrap_or(0);
        let used = self.used_before().unwrap_or(0).saturating_add(NUMBERS_OF_A_LIFE).max(micros);
        let fresh = self.beside("numbers.new")?;
        let mut file = File::create(&fresh)?;
        file.write_all(numbers(used).as_bytes())?;
        file.sync_all()?;
        fs::rename(&fresh, self.beside("numbers")?)?;
        self.path.parent().map_or(Ok(()), sync_folder)
    }

    /// The file beside the folder that has its name and this ending.
    fn beside(&self, ending: &str) -> io::Result<PathBuf> {
        let mut name = self.name()?.to_owned();
        name.push(".");
        name.push(ending);
        Ok(self.path.with_file_name(name))
    }

    fn name(&self) -> io::Result<&OsStr> {
        self.path.file_name().ok_or_else(|| io::Error::other("the root folder cannot be a store"))
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

/// A folder for a while: removed when dropped.
#[derive(Debug)]
pub(super) struct Copy {
    path: PathBuf,
}

impl Copy {
    fn new() -> io::Result<Copy> {
        let name = |n| format!("pointsman-audit-{}-{n}", std::process::id());
        for n in 0..u32::MAX {
            let path = std::env::temp_dir().join(name(n));
            match private_folder(&path) {
                Ok(()) => return Ok(Copy { path }),
                Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
                Err(error) => return Err(error),
            }
        }
        Err(io::Error::other("every name for a copy is taken"))
    }
}

impl Drop for Copy {
    fn drop(&mut self) {
        // Best effort: it is in a place for files that nobody needs.
        let _ = fs::remove_dir_all(&self.path);
    }
}

fn copy_folder(from: &Path, to: &Path) -> io::Result<()> {
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let to = to.join(entry.file_name());
        let kind = entry.file_type()?;
        if kind.is_dir() {
            fs::create_dir(&to)?;
            copy_folder(&entry.path(), &to)?;
        } else if kind.is_file() && entry.file_name() != "lock" {
            // Its bytes alone: what may not be written there may be here.
            io::copy(&mut File::open(entry.path())?, &mut File::create_new(&to)?)?;
        }
    }
    Ok(())
}

#[cfg(unix)]
fn private_folder(path: &Path) -> io::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    fs::DirBuilder::new().mode(0o700).create(path)
}

#[cfg(not(unix))]
fn private_folder(path: &Path) -> io::Result<()> {
    fs::create_dir(path)
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

/// The `.numbers` file, with a checksum.
fn numbers(used: Seq) -> String {
    let text = format!("{NUMBERS} {used}\n");
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
