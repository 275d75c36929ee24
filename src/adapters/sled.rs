//! The store on disk, over sled 0.34: a log and a key-value map that survive a crash.
//!
//! It keeps the contract of [`Store`] by what sled alone does not give: a checksum and a format
//! version in every row, a flush that reaches the disk before anybody is told `Ok`, no value in
//! sled's unsynced side files, a folder that one process holds, and a clear word when something is
//! damaged (`token-conservation`, `feed-durable`). `main` opens it and hands it to the flows.
//!
//! What it cannot see: damage to the newest bytes of sled's file looks to sled like a write that a
//! crash cut off. The `STORE` file's mark catches that for everything durable when the store was
//! last opened or closed, and for all but the last thousand or so writes since; not for the rest.

mod engine;
mod folder;
mod record;
#[cfg(test)]
mod tests;

use std::any::Any;
use std::fmt;
use std::io::{self, ErrorKind};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use thiserror::Error;
use tokio::sync::Semaphore;

use self::engine::Engine;
use self::folder::{Copy, Folder, Mark};
use crate::ports::{Bounds, BoxFuture, Revision, Seq, Store, StoreError, Versioned};

/// Reads of the log under way at once.
const READS_MAX: usize = 4;

/// A durable [`Store`] in a folder of its own.
///
/// Its futures must run on a tokio runtime: the work is done on its blocking threads, and goes on
/// to its end there when a future is dropped. Keys have at most 384 bytes. Dropping the store
/// blocks for a last flush and gives the folder back.
pub struct SledStore {
    /// Shared with the operations under way, which outlive a dropped future.
    engine: Arc<Engine>,
    /// Reads of the log that may be under way at once: however many readers come from the disk, an append finds
    /// a thread, and few before it (`feed-independent`).
    reads: Arc<Semaphore>,
    /// Read once, when it was opened.
    used_before: Seq,
    /// What is read is a copy: removed after the engine has let go of it.
    _copy: Option<Copy>,
}

/// Why a store cannot be opened: each a sentence that says what to do.
#[derive(Debug, Error)]
pub enum OpenError {
    /// Another process holds the folder, or another part of this one.
    #[error(
        "the store {} is in use by another pointsman; stop that one or give this one another folder",
        path.display()
    )]
    InUse {
        /// The store's folder.
        path: PathBuf,
    },
    /// The files are not what was written.
    #[error(
        "the store {} is damaged ({detail}); start with --recover to set its files aside and begin with an empty store",
        path.display()
    )]
    Damaged {
        /// The store's folder.
        path: PathBuf,
        /// What was found.
        detail: String,
    },
    /// A newer program wrote it; this one leaves it as it is.
    #[error(
        "the store {} has format {found}, and this version of pointsman knows formats up to {known}; \
         run the newer version, or give this one another folder",
        path.display()
    )]
    Newer {
        /// The store's folder.
        path: PathBuf,
        /// The format of the store.
        found: u32,
        /// The newest format that this program knows.
        known: u32,
    },
    /// The folder is somebody else's.
    #[error("the folder {} holds other files and no store; name an empty or a new folder", path.display())]
    NotAStore {
        /// The folder.
        path: PathBuf,
    },
    /// There is a file where the folder should be.
    #[error("{} is not a folder; name an empty or a new folder for the store", path.display())]
    NotAFolder {
        /// What was named as the folder.
        path: PathBuf,
    },
    /// The operating system says no.
    #[error("no permission to read and write the store {}; let this user own the folder", path.display())]
    Denied {
        /// The store's folder.
        path: PathBuf,
    },
    /// The disk says no.
    #[error("the store {} cannot be opened: {detail}", path.display())]
    Disk {
        /// The store's folder.
        path: PathBuf,
        /// What the operating system said.
        detail: String,
    },
}

impl OpenError {
    /// The same of another folder: who opens a copy speaks of what was copied.
    fn at(mut self, dir: &Path) -> OpenError {
        let (OpenError::InUse { path }
        | OpenError::Damaged { path, .. }
        | OpenError::Newer { path, .. }
        | OpenError::NotAStore { path }
        | OpenError::NotAFolder { path }
        | OpenError::Denied { path }
        | OpenError::Disk { path, .. }) = &mut self;
        dir.clone_into(path);
        self
    }

    fn of_io(path: &Path, error: io::Error) -> OpenError {
        let path = path.to_owned();
        match error.kind() {
            ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem => OpenError::Denied { path },
            ErrorKind::NotADirectory | ErrorKind::AlreadyExists => OpenError::NotAFolder { path },
            _ => OpenError::Disk { path, detail: error.to_string() },
        }
    }
}

impl SledStore {
    /// Opens the store in `dir`, or makes an empty one there. Blocks.
    ///
    /// # Errors
    ///
    /// See [`OpenError`]. The folder's files are left as they are, except that a damaged one may
    /// be touched by sled's own recovery.
    pub fn open(dir: &Path) -> Result<SledStore, OpenError> {
        Self::open_held(Folder::claim(dir)?)
    }

    /// Sets a damaged store aside: renames the folder to `<name>.damaged-<n>` beside it and says
    /// where it went. `None` if the store opens, or there is none. Nothing is deleted. The store that takes its
    /// place must go on behind [`SledStore::used_before`]. Blocks.
    ///
    /// # Errors
    ///
    /// When the store cannot be opened for any other reason than damage, or not be renamed; the
    /// folder then stays where it is.
    pub fn recover(dir: &Path) -> io::Result<Option<PathBuf>> {
        if !dir.try_exists()? {
            return Ok(None);
        }
        // Held from the look until the new name, so that nobody opens it in between.
        let folder = Folder::claim(dir).map_err(io::Error::other)?;
        match Self::open_held(folder.clone()) {
            Ok(_) => Ok(None),
            Err(OpenError::Damaged { .. }) => {
                // First: should a crash come in between, more numbers were skipped than had to be.
                folder.skip_numbers()?;
                folder.set_aside().map(Some)
            }
            Err(other) => Err(io::Error::other(other)),
        }
    }

    /// Says that the store in `dir` is a backup that was put back: what was written after it was made is not
    /// there, and its numbers must not be used again. Blocks.
    ///
    /// # Errors
    ///
    /// When the folder cannot be held, or nothing be written beside it.
    pub fn restored(dir: &Path) -> io::Result<()> {
        Folder::claim(dir).map_err(io::Error::other)?.skip_numbers()
    }

    /// Numbers up to here may have been given to records of stores that stood in this place before; 0: none.
    pub fn used_before(&self) -> Seq {
        self.used_before
    }

    /// Opens a copy of the store in `dir`, to be read: not a byte changes there, and what is missing or damaged
    /// shows as [`StoreError::Corrupt`] when it is read. Blocks.
    ///
    /// # Errors
    ///
    /// See [`OpenError`]: damage that leaves no database to read is one.
    pub fn inspect(dir: &Path) -> Result<SledStore, OpenError> {
        let (folder, copy) = Folder::copy(dir)?;
        let opened = Self::held(folder, Engine::inspect);
        let store = opened.map_err(|error| error.at(dir))?;
        Ok(SledStore { _copy: Some(copy), ..store })
    }

    fn open_held(folder: Folder) -> Result<SledStore, OpenError> {
        Self::held(folder, Engine::open)
    }

    /// sled panics on some damage: that is an answer too.
    fn held(
        folder: Folder,
        open: fn(Folder, Mark) -> Result<Engine, OpenError>,
    ) -> Result<SledStore, OpenError> {
        let mark = folder.mark()?;
        let used_before = folder.used_before().map_err(|error| OpenError::of_io(folder.path(), error))?;
        let opened = catch_unwind(AssertUnwindSafe(|| open(folder.clone(), mark)));
        let engine = opened.unwrap_or_else(|panic| Err(folder.damaged(words_of(&*panic).to_owned())))?;
        Ok(SledStore {
            engine: Arc::new(engine),
            reads: Arc::new(Semaphore::new(READS_MAX)),
            used_before,
            _copy: None,
        })
    }

    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Engine) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let engine = Arc::clone(&self.engine);
        match tokio::task::spawn_blocking(move || work(&engine)).await {
            Ok(done) => done,
            Err(error) => Err(match error.try_into_panic() {
                Ok(panic) => StoreError::Corrupt(format!("the database broke off: {}", words_of(&*panic))),
                Err(_) => StoreError::Unavailable("the program is stopping".to_owned()),
            }),
        }
    }
}

/// What a panic said.
fn words_of(panic: &(dyn Any + Send)) -> &str {
    let owned = panic.downcast_ref::<String>().map(String::as_str);
    owned.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("its files make no sense")
}

impl fmt::Debug for SledStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SledStore").finish_non_exhaustive()
    }
}

impl Store for SledStore {
    fn append(&self, at: Seq, records: Vec<Bytes>) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(self.blocking(move |engine| engine.append(at, records)))
    }

    fn read(&self, from: Seq, max: usize) -> BoxFuture<'_, Result<Vec<Bytes>, StoreError>> {
        Box::pin(async move {
            let turn = Arc::clone(&self.reads).acquire_owned().await;
            let turn = turn.map_err(|closed| StoreError::Unavailable(closed.to_string()))?;
            self.blocking(move |engine| {
                // A reader that has left gives its turn back only when the work is done.
                let _turn = turn;
                engine.read(from, max)
            })
            .await
        })
    }

    fn bounds(&self) -> BoxFuture<'_, Result<Bounds, StoreError>> {
        Box::pin(self.blocking(Engine::bounds))
    }

    fn trim(&self, floor: Seq) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(self.blocking(move |engine| engine.trim(floor)))
    }

    fn get<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<Option<Versioned>, StoreError>> {
        let key = key.to_owned();
        Box::pin(self.blocking(move |engine| engine.get(&key)))
    }

    fn put<'a>(
        &'a self,
        key: &'a str,
        expected: Option<Revision>,
        value: Bytes,
    ) -> BoxFuture<'a, Result<Revision, StoreError>> {
        let key = key.to_owned();
        Box::pin(self.blocking(move |engine| engine.put(&key, expected, value)))
    }

    fn delete<'a>(&'a self, key: &'a str, expected: Revision) -> BoxFuture<'a, Result<(), StoreError>> {
        let key = key.to_owned();
        Box::pin(self.blocking(move |engine| engine.delete(&key, expected)))
    }

    fn scan<'a>(
        &'a self,
        prefix: &'a str,
        after: Option<&'a str>,
        max: usize,
    ) -> BoxFuture<'a, Result<Vec<(String, Versioned)>, StoreError>> {
        let (prefix, after) = (prefix.to_owned(), after.map(str::to_owned));
        Box::pin(self.blocking(move |engine| engine.scan(&prefix, after.as_deref(), max)))
    }
}
