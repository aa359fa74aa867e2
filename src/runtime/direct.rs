//! What of a container's life needs no runtime: it was made by a program that we know, and nothing
//! in its configuration wants that program at its start or its end.
//!
//! Start: the init waits at ROOT/ID/exec.fifo. runc's opens it for writing, writes a byte and goes
//! on (libcontainer/standard_init_linux.go); whoever has read it removes the fifo, whose absence
//! means "started" (libcontainer/container_linux.go, `exec`). crun's has it open for reading and
//! goes on after a byte (libcrun/status.c, `libcrun_status_write_exec_fifo`). Remove: the
//! container's cgroups and its record, and nothing else (libcontainer/state_linux.go, `destroy`;
//! libcrun/container.c).
//!
//! Whatever is not as expected is the runtime's business, in its words.

use super::{Failure, Known, call::LONG};
use crate::{
    bundle::Late,
    cancel::CancelToken,
    cgroups::{Cgroup, is_named},
    id::Id,
    sys,
};
use rustix::{
    fs::{FileType, Mode, OFlags},
    io::Errno,
};
use std::{
    io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    rc::Rc,
};
use tokio::io::Interest;

/// What tells whoever starts the container that it waits.
const FIFO: &str = "exec.fifo";

/// A container that is started and removed without its runtime, as far as that is possible.
#[derive(Clone, Debug)]
pub struct Direct {
    by: Known,
    record: PathBuf,
    starts: bool,
    removes: bool,
    freezes: bool,
}

impl Direct {
    pub(super) fn new(by: Known, record: PathBuf, late: Late, systemd_cgroup: bool) -> Self {
        let is_plain = by != Known::Crun || !late.crun;
        Self {
            by,
            record,
            starts: is_plain && !late.poststart,
            // systemd has to forget a scope that failed: the runtime asks it to.
            removes: is_plain && !late.poststop && !late.intel_rdt && !systemd_cgroup,
            freezes: is_plain,
        }
    }

    /// Lets the init go on to its program. `false`: it did not, and the runtime is to be asked.
    /// `gone` is set when the init has ended.
    pub async fn start(&self, gone: &CancelToken) -> Result<bool, Failure> {
        if !self.starts {
            return Ok(false);
        }
        let fifo = self.record.join(FIFO);
        let started = async {
            match self.by {
                Known::Runc => hear(&fifo, gone).await,
                Known::Crun => say(&fifo).is_ok(),
            }
        };
        match tokio::time::timeout(LONG, started).await {
            Ok(started) => Ok(started),
            Err(_) => Err(Failure::DeadlineExceeded { seconds: LONG.as_secs() }),
        }
    }

    /// Whether the end of the container needs no runtime either.
    pub fn removes(&self) -> bool {
        self.removes
    }

    /// Whether what is done to its cgroup is what the runtime would do. Where the cgroup does not
    /// bear the container's name, others may be in it: us, for one.
    pub fn owns(&self, id: &Id, cgroup: &Cgroup) -> bool {
        let is_its = |path: &Path| is_named(path, id.as_str()) && path.exists();
        self.freezes && cgroup.directory("freezer").is_some_and(is_its)
    }

    /// Removes what the runtime keeps of a container whose processes have ended. May block in the
    /// kernel. An error: it is not as it should be, and the runtime is to do it.
    pub fn remove(&self, id: &Id, cgroup: &Cgroup) -> Result<(), String> {
        let known: &[&str] = match self.by {
            Known::Runc => &["state.json"],
            Known::Crun => &["config.json", "status"],
        };
        let failed = |what: &'static str| move |e: io::Error| format!("{what}: {e}");
        let entries = std::fs::read_dir(&self.record).map_err(failed("read the record"))?;
        for entry in entries {
            let entry = entry.map_err(failed("read the record"))?;
            let is_file = entry.file_type().is_ok_and(|kind| kind.is_file());
            if !is_file || !known.iter().any(|name| entry.file_name() == *name) {
                return Err(format!("the record has {}", entry.path().display()));
            }
        }
        cgroup.remove_tree(id.as_str()).map_err(failed("remove the cgroup"))?;
        // Aside first: of a record that is there in part the runtime can do nothing.
        let aside = self.record.with_file_name(format!(".{id}.deleted"));
        discard(&aside, known);
        std::fs::rename(&self.record, &aside).map_err(failed("remove the record"))?;
        discard(&aside, known);
        Ok(())
    }
}

fn discard(record: &Path, known: &[&str]) {
    for name in known {
        let _ = std::fs::remove_file(record.join(name));
    }
    let _ = std::fs::remove_dir(record);
}

fn open(fifo: &Path, direction: OFlags) -> Option<OwnedFd> {
    let flags = direction | OFlags::NONBLOCK | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let end = rustix::fs::open(fifo, flags, Mode::empty()).ok()?;
    let mode = rustix::fs::fstat(&end).ok()?.st_mode;
    (FileType::from_raw_mode(mode) == FileType::Fifo).then_some(end)
}

/// Reads the byte that runc's init writes. Until then the fifo stays open: its write would fail.
async fn hear(fifo: &Path, gone: &CancelToken) -> bool {
    let Some(end) = open(fifo, OFlags::RDONLY) else { return false };
    let Ok(end) = sys::fd::watch(Rc::new(end), Interest::READABLE) else { return false };
    let mut has_come = false;
    loop {
        match rustix::io::read(end.get_ref(), &mut [0; 1]) {
            Ok(1..) => break,
            // It has come and gone. Before it has come there is nothing to read either.
            Ok(0) if has_come => return false,
            Ok(0) | Err(Errno::AGAIN | Errno::INTR) => {}
            Err(_) => return false,
        }
        tokio::select! {
            ready = end.readable() => {
                let Ok(mut ready) = ready else { return false };
                has_come = true;
                ready.clear_ready();
            }
            () = gone.wait() => return false,
        }
    }
    if let Err(e) = std::fs::remove_file(fifo) {
        log::warn!("remove {}: {e}", fifo.display());
    }
    true
}

/// Writes the byte that crun's init waits for; it has its end open for as long as it lives.
fn say(fifo: &Path) -> Result<(), Errno> {
    let end = open(fifo, OFlags::WRONLY).ok_or(Errno::NXIO)?;
    rustix::fs::unlink(fifo)?;
    rustix::io::write(&end, &[0]).map(drop)
}

#[cfg(test)]
#[allow(clippy::disallowed_methods, reason = "tests may have threads")]
mod tests {
    use super::*;
    use std::{fs::File, io::Write, time::Duration};

    fn place(by: Known) -> (tempfile::TempDir, Direct) {
        let dir = tempfile::tempdir().unwrap();
        rustix::fs::mkfifoat(rustix::fs::CWD, dir.path().join(FIFO), Mode::RUSR | Mode::WUSR)
            .unwrap();
        let direct = Direct::new(by, dir.path().to_owned(), Late::default(), false);
        (dir, direct)
    }

    async fn starts(direct: &Direct) -> bool {
        let gone = CancelToken::default();
        let patience = Duration::from_secs(10);
        tokio::time::timeout(patience, direct.start(&gone)).await.unwrap().unwrap()
    }

    #[tokio::test]
    async fn an_init_of_runc_goes_on_whenever_it_comes() {
        for late in [0, 50] {
            let (dir, direct) = place(Known::Runc);
            let fifo = dir.path().join(FIFO);
            let init = std::thread::spawn(move || {
                std::thread::sleep(Duration::from_millis(late));
                File::options().write(true).open(fifo).unwrap().write_all(b"0").unwrap();
            });
            assert!(starts(&direct).await);
            init.join().unwrap();
            assert!(!dir.path().join(FIFO).exists());
        }
    }

    #[tokio::test]
    async fn an_init_of_runc_that_dies_at_its_fifo_is_the_runtimes_business() {
        let (dir, direct) = place(Known::Runc);
        let fifo = dir.path().join(FIFO);
        let init =
            std::thread::spawn(move || drop(File::options().write(true).open(fifo).unwrap()));
        assert!(!starts(&direct).await);
        init.join().unwrap();
        assert!(dir.path().join(FIFO).exists());
        let gone = CancelToken::default();
        gone.set();
        assert_eq!(direct.start(&gone).await, Ok(false));
    }

    #[tokio::test]
    async fn an_init_of_crun_is_told() {
        let (dir, direct) = place(Known::Crun);
        assert!(!starts(&direct).await, "nobody reads");
        let end = open(&dir.path().join(FIFO), OFlags::RDONLY).unwrap();
        assert!(starts(&direct).await);
        assert_eq!(rustix::io::read(&end, &mut [7; 2]), Ok(1));
        assert!(!dir.path().join(FIFO).exists());
        assert!(!starts(&direct).await, "it was started");
    }

    #[tokio::test]
    async fn what_lies_in_the_place_of_the_fifo_is_not_touched() {
        for by in [Known::Runc, Known::Crun] {
            let (dir, direct) = place(by);
            let fifo = dir.path().join(FIFO);
            std::fs::remove_file(&fifo).unwrap();
            std::fs::write(&fifo, "x").unwrap();
            assert!(!starts(&direct).await);
            std::fs::remove_file(&fifo).unwrap();
            std::os::unix::fs::symlink("/dev/null", &fifo).unwrap();
            assert!(!starts(&direct).await);
            assert!(fifo.is_symlink());
        }
    }

    #[test]
    fn a_record_with_more_in_it_stays() {
        let (dir, direct) = place(Known::Runc);
        let (id, cgroup) = (Id::new("cleat-none").unwrap(), Cgroup::V2("/x/cleat-none".into()));
        std::fs::write(dir.path().join("state.json"), "").unwrap();
        assert!(direct.remove(&id, &cgroup).unwrap_err().contains(FIFO));
        std::fs::remove_file(dir.path().join(FIFO)).unwrap();
        std::fs::create_dir(dir.path().join("more")).unwrap();
        assert!(direct.remove(&id, &cgroup).unwrap_err().contains("more"));
        assert!(dir.path().join("state.json").exists());
        std::fs::remove_dir(dir.path().join("more")).unwrap();
        assert_eq!(direct.remove(&id, &cgroup), Ok(()));
        assert!(!dir.path().exists());
    }

    // The init may have stayed in a cgroup of ours: all that is in it would stand still, or die.
    #[test]
    fn a_cgroup_that_does_not_bear_its_name_is_the_runtimes() {
        let dir = tempfile::tempdir().unwrap();
        let id = Id::new("x").unwrap();
        std::fs::create_dir_all(dir.path().join("x/y")).unwrap();
        let direct = |late| Direct::new(Known::Crun, PathBuf::new(), late, false);
        let at = |path: &str| Cgroup::V2(dir.path().join(path));
        assert!(direct(Late::default()).owns(&id, &at("x")));
        assert!(!direct(Late::default()).owns(&id, &at("x/y")));
        assert!(!direct(Late::default()).owns(&id, &at("z/x")), "it is not there");
        assert!(!direct(Late { crun: true, ..Late::default() }).owns(&id, &at("x")));
        let v1 = |path: &str| Cgroup::V1(vec![("freezer".into(), dir.path().join(path))]);
        assert!(
            direct(Late::default()).owns(&id, &v1("x"))
                && !direct(Late::default()).owns(&id, &v1("x/y"))
        );
    }

    #[test]
    fn what_the_configuration_wants_of_the_runtime_is_the_runtimes() {
        let ways = |by, late, systemd| {
            let direct = Direct::new(by, PathBuf::new(), late, systemd);
            (direct.starts, direct.removes && direct.freezes)
        };
        let none = Late::default();
        assert_eq!(ways(Known::Runc, none, false), (true, true));
        assert_eq!(ways(Known::Runc, none, true), (true, false));
        assert_eq!(ways(Known::Runc, Late { poststart: true, ..none }, false), (false, true));
        assert_eq!(ways(Known::Runc, Late { poststop: true, ..none }, false), (true, false));
        assert_eq!(ways(Known::Runc, Late { intel_rdt: true, ..none }, false), (true, false));
        assert_eq!(ways(Known::Runc, Late { crun: true, ..none }, false), (true, true));
        assert_eq!(ways(Known::Crun, Late { crun: true, ..none }, false), (false, false));
    }
}
