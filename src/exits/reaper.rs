//! Reaps children: what is watched goes to its owner, orphans are forgotten.

use super::births::{BirthGuard, Births};
use crate::{
    bundle::read_bounded,
    id::Id,
    local,
    sys::{
        fd,
        process::{self, ExitStatus},
        program::{Program, Streams},
    },
};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
    pipe::{PipeFlags, pipe_with},
};
use std::{
    cell::RefCell,
    collections::{HashMap, VecDeque},
    future::Future,
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::PathBuf,
    rc::Rc,
    time::{Duration, Instant},
};
use tokio::{
    io::Interest,
    sync::{Mutex, MutexGuard, Notify, oneshot},
};

/// Children reaped in one go before the loop gets its turn.
const BATCH: usize = 512;
/// How long we rely on SIGCHLD while an end is expected: a runtime call goes on, a signal was sent,
/// a reaping failed.
const LOOK: Duration = Duration::from_secs(1);

/// How often orphans are looked for in /proc while something is being born: that costs as much as a
/// call.
const ORPHAN_LOOK: Duration = Duration::from_millis(100);

/// How long the file system of a program may take to give it out.
const FILE_PATIENCE: Duration = Duration::from_secs(10);

/// A container's process: its init, or an exec.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ProcessKey {
    /// The container.
    pub container: Id,
    /// The exec; `None` is the init.
    pub exec: Option<Id>,
}

/// A container's process has ended and was reaped.
#[derive(Debug, PartialEq, Eq)]
pub struct Exited {
    /// Whose process.
    pub key: ProcessKey,
    /// Its pid, for the record.
    pub pid: u32,
    /// Exit code, or 128 + signal.
    pub status: ExitStatus,
}

enum Owner {
    Process(ProcessKey),
    /// `true`: it is to end soon.
    Child(oneshot::Sender<ExitStatus>, bool),
}

struct Watched {
    /// `None` on kernels without pidfds, or without a free descriptor: then the pid must do, which
    /// is safe as long as it is unreaped.
    pidfd: Option<OwnedFd>,
    owner: Owner,
}

/// All children that have an owner.
#[derive(Default)]
pub struct Reaper {
    watched: RefCell<HashMap<u32, Watched>>,
    births: Rc<Births>,
    again: Notify,
    /// An end is expected, or was not reaped for an error: we look again though nobody may tell us.
    look_later: std::cell::Cell<bool>,
    orphans: std::cell::Cell<u64>,
    orphans_sought: std::cell::Cell<Option<Instant>>,
    /// Reaped, and not handed out yet.
    exits: RefCell<VecDeque<Exited>>,
    /// Held while a program is started.
    turn: Mutex<()>,
}

/// The right to start one program.
///
/// We stand still until the child has become the program, 10 ms and more on a busy node. In a burst
/// other work goes between any two.
pub struct Turn<'a> {
    reaper: &'a Reaper,
    _held: MutexGuard<'a, ()>,
}

impl Turn<'_> {
    /// Starts a program that dies with us and is to end soon, with these descriptors as 3, 4 …; its
    /// pid, and its exit status.
    pub async fn start(
        self,
        program: &Program,
        streams: Streams,
        more: &[OwnedFd],
    ) -> io::Result<(u32, impl Future<Output = ExitStatus> + use<>)> {
        let told = match local::may_hang(program) {
            false => None,
            true => Some(pipe_with(PipeFlags::CLOEXEC)?),
        };
        let pid = match &told {
            None => program.start(&streams, more)?,
            Some((_, failed)) => program.start_dependent_apart(&streams, more, failed)?,
        };
        // Our copies of a container's ends must not outlive this.
        drop(streams);
        let reaper = self.reaper;
        let ended = self.watched(pid, true).await;
        if let Some((told, failed)) = told {
            drop(failed);
            Box::pin(reaper.becomes_program(pid, told)).await?;
        }
        Ok((pid, ended))
    }

    /// The same for a program that lives as long as its container, and longer than us if need be.
    /// Its streams are /dev/null.
    pub async fn start_lasting(
        self,
        program: &Program,
        more: &[OwnedFd],
    ) -> io::Result<(u32, impl Future<Output = ExitStatus> + use<>)> {
        let pid = program.start_lasting(more)?;
        Ok((pid, self.watched(pid, false).await))
    }

    /// The same for one whose file may lie on a file system that hangs
    /// ([`Program::start_lasting_apart`]).
    pub async fn start_apart(
        self,
        program: &Program,
        more: &[OwnedFd],
        failed: OwnedFd,
    ) -> io::Result<(u32, impl Future<Output = ExitStatus> + use<>)> {
        let pid = program.start_lasting_apart(more, &failed)?;
        drop(failed);
        Ok((pid, self.watched(pid, false).await))
    }

    /// Watches the program. The turn ends when everything else has had its own.
    async fn watched(self, pid: u32, is_brief: bool) -> impl Future<Output = ExitStatus> + use<> {
        let ended = self.reaper.watch(pid, is_brief);
        tokio::task::yield_now().await;
        ended
    }
}

impl Reaper {
    /// Says that a process of ours may be born until the guard is dropped.
    pub fn birth(self: &Rc<Self>) -> BirthGuard {
        self.births.begin()
    }

    /// Waits for the turn to start a program.
    pub async fn turn(&self) -> Turn<'_> {
        Turn { reaper: self, _held: self.turn.lock().await }
    }

    /// How many births go on.
    pub fn births(&self) -> usize {
        self.births.count()
    }

    /// Watches a container's process. It may be dead already; it must not have been reaped.
    pub fn watch_process(&self, pid: u32, key: ProcessKey) -> io::Result<()> {
        let pidfd = match process::pidfd(pid) {
            Ok(pidfd) => pidfd,
            // No descriptor to be had: then the pid must do.
            Err(_) if process::is_child(pid) => None,
            Err(e) => return Err(e),
        };
        self.watched.borrow_mut().insert(pid, Watched { pidfd, owner: Owner::Process(key) });
        // Its SIGCHLD may have come before.
        self.again.notify_one();
        Ok(())
    }

    /// Watches a child that we have just started and that is to end soon; the future is its exit
    /// status.
    pub fn watch_child(&self, pid: u32) -> impl Future<Output = ExitStatus> + use<> {
        self.watch(pid, true)
    }

    /// Waits until a child that was started apart has become its program, or has failed: that comes
    /// through the pipe.
    async fn becomes_program(&self, pid: u32, told: OwnedFd) -> io::Result<()> {
        rustix::io::ioctl_fionbio(&told, true)?;
        let told = fd::watch(Rc::new(told), Interest::READABLE)?;
        let mut number = [0; 4];
        let heard = async {
            loop {
                let mut ready = told.readable().await?;
                match rustix::io::read(told.get_ref(), &mut number) {
                    Ok(0) => return Ok(()),
                    Ok(_) => return Err(io::Error::from_raw_os_error(i32::from_ne_bytes(number))),
                    Err(Errno::AGAIN) => ready.clear_ready(),
                    Err(e) => return Err(e.into()),
                }
            }
        };
        tokio::time::timeout(FILE_PATIENCE, heard).await.unwrap_or_else(|_| {
            self.signal_child(pid, libc::SIGKILL);
            let seconds = FILE_PATIENCE.as_secs();
            Err(io::Error::new(
                io::ErrorKind::TimedOut,
                format!("no answer from its file system in {seconds} s"),
            ))
        })
    }

    fn watch(&self, pid: u32, is_brief: bool) -> impl Future<Output = ExitStatus> + use<> {
        let (sender, receiver) = oneshot::channel();
        // Without a descriptor (EMFILE) the pid of our own unreaped child is as good.
        let pidfd = process::pidfd(pid).ok().flatten();
        self.watched
            .borrow_mut()
            .insert(pid, Watched { pidfd, owner: Owner::Child(sender, is_brief) });
        self.again.notify_one();
        async move { receiver.await.unwrap_or(255) }
    }

    /// Sends a signal to a watched child of ours, never to a container's process: whoever has kept
    /// a number too long must not meet one.
    pub fn signal_child(&self, pid: u32, signal: i32) {
        let is_child = |watched: &Watched| matches!(watched.owner, Owner::Child(..));
        if self.watched.borrow().get(&pid).is_some_and(is_child) {
            let _ = process::signal_child(pid, signal);
        }
    }

    /// Whether a watched child of ours is about to end: it has closed its descriptors, and its exit
    /// will be reaped in a moment.
    pub fn is_ending(&self, pid: u32) -> bool {
        self.watched.borrow().contains_key(&pid)
            && flags(pid).is_none_or(|flags| flags & PF_EXITING != 0)
    }

    /// Sends a signal to a container's process: exactly to it, through its pidfd.
    /// `NotFound` if it is not watched (any more), or dead.
    pub fn signal_process(&self, pid: u32, key: &ProcessKey, signal: i32) -> io::Result<()> {
        let watched = self.watched.borrow();
        let gone = || io::Error::from(io::ErrorKind::NotFound);
        let entry = watched.get(&pid).ok_or_else(gone)?;
        if !matches!(&entry.owner, Owner::Process(owner) if owner == key) {
            return Err(gone());
        }
        let result = match &entry.pidfd {
            Some(pidfd) => process::signal_pidfd(pidfd.as_fd(), signal),
            None => process::signal_child(pid, signal),
        };
        self.look_later.set(true);
        self.again.notify_one();
        result.map_err(|e| if e.raw_os_error() == Some(libc::ESRCH) { gone() } else { e })
    }

    /// The pidfd of a container's process; `None` without one.
    pub fn pidfd_of(&self, pid: u32, key: &ProcessKey) -> Option<OwnedFd> {
        let watched = self.watched.borrow();
        let entry = watched
            .get(&pid)
            .filter(|entry| matches!(&entry.owner, Owner::Process(owner) if owner == key))?;
        entry.pidfd.as_ref()?.try_clone().ok()
    }

    /// Kills what a failed birth has left running: children that nobody watches and that are
    /// younger than it. Not while others are being born: one of theirs it might be. Call it only if
    /// no orphans of the container can come to us.
    pub fn kill_unclaimed(&self, birth: &BirthGuard) {
        if self.births.count() != 1 {
            return log::warn!(
                "what a runtime call without a pid has started cannot be told from others"
            );
        }
        let since = in_ticks(birth.begun());
        for pid in children() {
            if !self.watched.borrow().contains_key(&pid)
                && stat(pid).is_some_and(|(_, started)| started >= since)
                && process::signal_child(pid, libc::SIGKILL).is_ok()
            {
                log::warn!("killed a process that its runtime call did not name pid={pid}");
            }
        }
    }

    /// Children that nobody watches and whose command line has this word: what a runtime call that
    /// was killed has left behind.
    pub fn unclaimed_with(&self, word: &str) -> Vec<u32> {
        let named = |pid: &u32| {
            let bytes = read_bounded(&PathBuf::from(format!("/proc/{pid}/cmdline")), 64 << 10)
                .unwrap_or_default();
            bytes.split(|b| *b == 0).any(|argument| argument == word.as_bytes())
        };
        children()
            .into_iter()
            .filter(|pid| !self.watched.borrow().contains_key(pid))
            .filter(named)
            .collect()
    }

    /// Resolves when [`Reaper::reap`] should be called though no SIGCHLD may come.
    pub async fn wants_reaping(&self) {
        let has_child =
            self.watched.borrow().values().any(|w| matches!(w.owner, Owner::Child(_, true)));
        let expects = self.look_later.take() || has_child;
        tokio::select! {
            () = self.again.notified() => {}
            () = self.births.ended() => {}
            () = tokio::time::sleep(LOOK), if expects => {}
        }
    }

    /// Reaps what has ended. Answers those who wait for children of ours; the exits of containers'
    /// processes come out of [`Reaper::next_exit`]. Orphans are forgotten.
    pub fn reap(&self) {
        match self.births.oldest() {
            None => self.reap_all(),
            Some(oldest) => {
                self.reap_watched();
                if self.orphans_sought.get().is_none_or(|at| at.elapsed() >= ORPHAN_LOOK) {
                    self.reap_old_orphans(oldest);
                    self.orphans_sought.set(Some(Instant::now()));
                } else {
                    self.look_later.set(true);
                }
            }
        }
    }

    /// The exit of a container's process, in the order of the reaping.
    pub fn next_exit(&self) -> Option<Exited> {
        self.exits.borrow_mut().pop_front()
    }

    /// Nothing is being born: whoever is not watched is an orphan.
    fn reap_all(&self) {
        for _ in 0..BATCH {
            match process::reap_any() {
                Ok(Some((pid, status))) => match self.watched.borrow_mut().remove(&pid) {
                    Some(watched) => self.deliver(pid, watched, status),
                    None => self.orphans.set(self.orphans.get() + 1),
                },
                Ok(None) => return,
                Err(e) => {
                    self.look_later.set(true);
                    return log::error!("reap: {e}");
                }
            }
        }
        self.again.notify_one();
    }

    fn reap_watched(&self) {
        let mut watched = self.watched.borrow_mut();
        let ended: Vec<(u32, ExitStatus)> = dead(&watched)
            .into_iter()
            .filter_map(|(pid, pidfd)| {
                let result = match pidfd {
                    Some(pidfd) => process::reap_pidfd(pid, pidfd),
                    None => process::reap_pid(pid),
                };
                match result {
                    Ok(status) => Some((pid, status?)),
                    Err(e) => {
                        log::error!("reap pid={pid}: {e}");
                        self.look_later.set(true);
                        None
                    }
                }
            })
            .collect();
        for (pid, status) in ended {
            if let Some(entry) = watched.remove(&pid) {
                self.deliver(pid, entry, status);
            }
        }
    }

    /// A zombie that was there before the oldest birth began is nobody's child of that birth. Under
    /// steady churn there is always a birth going on, and orphans must not pile up behind it.
    fn reap_old_orphans(&self, oldest_birth: Duration) {
        let limit = in_ticks(oldest_birth);
        let mut reaped = 0;
        // Any number of those that live may come before them.
        for pid in children() {
            if self.watched.borrow().contains_key(&pid) || !process::has_ended(pid) {
                continue;
            }
            if stat(pid).is_some_and(|(_, started)| started < limit)
                && matches!(process::reap_pid(pid), Ok(Some(_)))
            {
                self.orphans.set(self.orphans.get() + 1);
                reaped += 1;
                if reaped == BATCH {
                    self.look_later.set(true);
                    return;
                }
            }
        }
    }

    fn deliver(&self, pid: u32, watched: Watched, status: ExitStatus) {
        match watched.owner {
            Owner::Process(key) => self.exits.borrow_mut().push_back(Exited { key, pid, status }),
            // Whoever asked may have given up at its deadline.
            Owner::Child(sender, _) => drop(sender.send(status)),
        }
    }

    /// How many processes were re-parented to us and reaped.
    pub fn orphans(&self) -> u64 {
        self.orphans.get()
    }

    /// One line a watched process, for the dump.
    pub fn describe(&self) -> Vec<String> {
        let watched = self.watched.borrow();
        let mut lines: Vec<String> = watched
            .iter()
            .map(|(pid, entry)| match &entry.owner {
                Owner::Process(ProcessKey { container, exec: None }) => {
                    format!("watched pid={pid} init of {container}")
                }
                Owner::Process(ProcessKey { container, exec: Some(exec) }) => {
                    format!("watched pid={pid} exec {exec} of {container}")
                }
                Owner::Child(..) => format!("watched pid={pid} runtime call or helper"),
            })
            .collect();
        lines.sort();
        lines.push(format!("births={} orphans_reaped={}", self.births.count(), self.orphans.get()));
        lines
    }
}

/// Those that have ended, or may have. One poll(2) for all: asking each by waitid(2) was an eighth
/// of what an exec costs us.
fn dead(watched: &HashMap<u32, Watched>) -> Vec<(u32, Option<BorrowedFd<'_>>)> {
    let all = watched.iter().map(|(pid, entry)| (*pid, entry.pidfd.as_ref().map(OwnedFd::as_fd)));
    let (polled, mut dead): (Vec<_>, Vec<_>) = all.partition(|(_, pidfd)| pidfd.is_some());
    let mut asked: Vec<PollFd<'_>> = polled
        .iter()
        .filter_map(|(_, pidfd)| Some(PollFd::from_borrowed_fd((*pidfd)?, PollFlags::IN)))
        .collect();
    let answered = poll(&mut asked, Some(&Timespec::default())).is_ok();
    let is_dead = |asked: &PollFd<'_>| !answered || !asked.revents().is_empty();
    dead.extend(
        polled.into_iter().zip(&asked).filter(|(_, asked)| is_dead(asked)).map(|(entry, _)| entry),
    );
    dead
}

/// Pids of our children, dead ones included (/proc/PID/task/TID/children, CONFIG_PROC_CHILDREN).
fn children() -> Vec<u32> {
    let own = std::process::id();
    let path = PathBuf::from(format!("/proc/self/task/{own}/children"));
    let text = read_bounded(&path, 1 << 20).unwrap_or_default();
    String::from_utf8_lossy(&text).split_whitespace().filter_map(|word| word.parse().ok()).collect()
}

/// Time since boot in clock ticks, the unit of start times in /proc.
fn in_ticks(since_boot: Duration) -> u64 {
    let ticks = u128::from(process::clock_ticks());
    u64::try_from(since_boot.as_nanos() * ticks / 1_000_000_000).unwrap_or(0)
}

/// Flag of a process that is on its way out (linux/sched.h).
const PF_EXITING: u64 = 0x4;

/// Kernel flags of a process (proc_pid_stat(5)).
fn flags(pid: u32) -> Option<u64> {
    with_stat(pid, |mut fields| fields.nth(6)?.parse().ok())
}

/// The parent of a process, dead or alive (proc_pid_stat(5)).
pub fn parent_of(pid: u32) -> Option<u32> {
    with_stat(pid, |mut fields| fields.nth(1)?.parse().ok())
}

/// Whether a process is alive: this one, not a later one of the same number, where it is known when
/// it was started (clock ticks since boot).
pub fn is_running(pid: u32, started: Option<u64>) -> bool {
    stat(pid).is_some_and(|(state, since)| {
        !matches!(state, 'Z' | 'X') && started.is_none_or(|started| started == since)
    })
}

/// State letter and start time, in clock ticks since boot, of a process (proc_pid_stat(5)).
fn stat(pid: u32) -> Option<(char, u64)> {
    with_stat(pid, |mut fields| {
        let state = fields.next()?.chars().next()?;
        // starttime is field 22; the state was field 3.
        Some((state, fields.nth(18)?.parse().ok()?))
    })
}

/// Hands over the fields of /proc/PID/stat from the third on, the state.
fn with_stat<T>(
    pid: u32,
    take: impl FnOnce(std::str::SplitWhitespace<'_>) -> Option<T>,
) -> Option<T> {
    let text = read_bounded(&PathBuf::from(format!("/proc/{pid}/stat")), 4096).ok()?;
    let text = String::from_utf8_lossy(&text);
    // The name in parentheses may contain anything; fields are counted from its end.
    take(text.get(text.rfind(')')? + 1..)?.split_whitespace())
}
