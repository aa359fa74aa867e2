//! The input of a process: who may still write to it, and when it ends.

use super::{
    StdioError,
    copy::Copy,
    file::{self, FileReader, Found, Purpose},
    pipe::{Ours, pipe},
};
use crate::{exits::Reaper, protocol::inspect};
use std::{
    cell::{Cell, RefCell},
    os::fd::OwnedFd,
    path::Path,
    rc::Rc,
    time::{Duration, Instant},
};

/// How long after its opening a stdin fifo stays open though CloseIO has come already.
const GRACE: Duration = Duration::from_millis(200);

#[derive(Default)]
pub(super) struct Stdin {
    /// Our reading end of the fifo, until the copy takes it.
    source: RefCell<Option<OwnedFd>>,
    /// Our writing end of the fifo: without it the process would see an end whenever a client goes.
    /// CloseIO drops it.
    keeper: RefCell<Option<OwnedFd>>,
    opened: Cell<Option<Instant>>,
    /// CloseIO has come; it may come before the fifo is open.
    is_closed: Cell<bool>,
    reader: Cell<Option<FileReader>>,
    copy: RefCell<Option<Rc<Copy>>>,
}

impl Stdin {
    /// Opens the fifo, so that what a client writes from now on is kept. Clients begin to write
    /// when it opens, and `ctr` knows how to say CloseIO only after Create or Exec: so at Create
    /// for an init, at Start for an exec.
    pub(super) async fn open(&self, path: &Path, reaper: &Rc<Reaper>) -> Result<(), StdioError> {
        match file::find(path, Purpose::Read, reaper).await? {
            Found::Fifo(ends, _) => {
                let mut ends = ends.into_iter();
                self.source.replace(ends.next());
                self.keeper.replace(ends.next());
                self.opened.set(Some(Instant::now()));
            }
            // Its end is there already.
            Found::Nothing | Found::Device(_) => {
                self.source.replace(Some(pipe(0, 0, Ours::Read)?.0));
            }
            Found::File => {
                let (content, reader) = file::read(path, reaper).await?;
                self.source.replace(Some(content));
                self.reader.set(Some(reader));
            }
        }
        Ok(())
    }

    pub(super) fn take_source(&self) -> Option<OwnedFd> {
        self.source.take()
    }

    pub(super) fn set_copy(&self, copy: Rc<Copy>) {
        self.copy.replace(Some(copy));
    }

    /// CloseIO has come. Returns whether for the first time.
    pub(super) fn close(&self) -> bool {
        !self.is_closed.replace(true)
    }

    pub(super) fn is_closed(&self) -> bool {
        self.is_closed.get()
    }

    /// How long our writing end is still to be kept after CloseIO; `None`: it is not open yet. A
    /// client that waited for us to open the fifo gets some time to do the same: else a CloseIO
    /// that overtakes it would cut off what it has to say.
    pub(super) fn grace(&self) -> Option<Duration> {
        self.opened.get().map(|opened| GRACE.saturating_sub(opened.elapsed()))
    }

    /// Drops our writing end: the last client's close is the end.
    pub(super) fn let_end(&self) {
        self.keeper.take();
    }

    /// The process has exited, or is given up: nobody reads any more.
    pub(super) fn shut(&self) {
        self.keeper.take();
        if let Some(copy) = self.copy.take() {
            copy.close();
        }
        self.reader.take();
    }

    pub(super) fn figures(&self) -> Option<inspect::Stream> {
        self.copy.borrow().as_ref().map(|copy| copy.figures())
    }

    pub(super) fn describe(&self) -> Option<String> {
        self.copy.borrow().as_ref().map(|copy| copy.describe())
    }
}
