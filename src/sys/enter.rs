//! What the helper of a native exec does to itself, where no library has it.

use super::program::pointers;
use rustix::fs::{MemfdFlags, SealFlags};
use std::{
    ffi::CString,
    fs::File,
    io,
    os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd},
};

/// linux/sched.h; too large for the type of libc's other flags.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// Bytes at the beginning of a [`Board`] that belong to whoever has it mapped: two pids, then a
/// text.
pub const BOARD_HEAD: usize = 2048;
/// Where the text begins.
const BOARD_TEXT: usize = 2 * size_of::<u32>();

/// A file in memory that whoever started us reads when we have ended. A process that has neither
/// its descriptor nor its mapping can say nothing there.
pub struct Board {
    start: *mut u8,
    length: usize,
}

/// Where on a [`Board`] the kernel writes a child's pid, before the child runs.
#[derive(Clone, Copy)]
enum Slot {
    Helper = 0,
    Process = 1,
}

impl Board {
    /// Maps it. The descriptor is closed.
    pub fn map(file: OwnedFd) -> io::Result<Self> {
        let length =
            usize::try_from(rustix::fs::fstat(&file)?.st_size).map_err(io::Error::other)?;
        if length < BOARD_HEAD {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let access = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a new mapping, at an address of the kernel's choice, of a file that is open and
        // as long.
        let start = unsafe {
            libc::mmap(std::ptr::null_mut(), length, access, libc::MAP_SHARED, file.as_raw_fd(), 0)
        };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(Self { start: start.cast(), length })
    }

    /// What was written for us.
    pub fn content(&self) -> &[u8] {
        let start = self.start.wrapping_add(BOARD_HEAD);
        // SAFETY: the mapping is that long and lives as long as `self`; its other holder writes
        // nothing, and we only write into the head.
        unsafe { std::slice::from_raw_parts(start, self.length - BOARD_HEAD) }
    }

    /// Leaves a text, as much of it as there is room for.
    pub fn say(&self, text: &str) {
        let length = text.len().min(BOARD_HEAD - BOARD_TEXT);
        let target = self.start.wrapping_add(BOARD_TEXT);
        // SAFETY: within the head, which is mapped; nobody has a reference to it.
        unsafe { std::ptr::copy_nonoverlapping(text.as_ptr(), target, length) };
    }

    /// Children that are born from here on do not have it.
    pub fn hide_from_children(&self) -> io::Result<()> {
        // SAFETY: our own mapping; the advice changes what a child gets, and nothing of ours.
        if unsafe { libc::madvise(self.start.cast(), self.length, libc::MADV_DONTFORK) } < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    }

    fn slot(&self, slot: Slot) -> *mut u32 {
        self.start.cast::<u32>().wrapping_add(slot as usize)
    }

    /// Creates a child whose parent is our own parent (CLONE_PARENT), in the pid namespace that we
    /// have entered, and notes its pid. `true` in the child. To be called with one thread only.
    /// clone(2), since seccomp profiles refuse clone3(2), whose flags they cannot see.
    pub fn clone_process(&self) -> io::Result<bool> {
        if cfg!(target_arch = "s390x") {
            // Another order of arguments.
            return Err(io::ErrorKind::Unsupported.into());
        }
        let flags = libc::CLONE_PARENT | libc::CLONE_PARENT_SETTID | libc::SIGCHLD;
        let pid = self.slot(Slot::Process);
        // SAFETY: without CLONE_VM and with no new stack this is fork(2) with another parent: the
        // child has a copy of everything. The pid is written into our mapping.
        let result = unsafe { libc::syscall(libc::SYS_clone, flags, 0, pid, 0, 0) };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result == 0) }
    }

    /// The same in our own pid namespace, born into a v2 cgroup (clone3(2), CLONE_INTO_CGROUP): a
    /// process that moves there by itself waits for an RCU grace period, some 10 ms.
    pub fn clone_helper(&self, cgroup: BorrowedFd<'_>) -> io::Result<bool> {
        let arguments = CloneArguments {
            // The signal at the child's end is our own, as CLONE_PARENT has it; none may be named.
            flags: libc::CLONE_PARENT as u64 | libc::CLONE_PARENT_SETTID as u64 | CLONE_INTO_CGROUP,
            parent_tid: self.slot(Slot::Helper).addr() as u64,
            cgroup: u64::try_from(cgroup.as_raw_fd()).map_err(io::Error::other)?,
            ..CloneArguments::default()
        };
        let size = size_of::<CloneArguments>();
        // SAFETY: the arguments live until the call returns and are of the size given; the rest as
        // above.
        let result = unsafe { libc::syscall(libc::SYS_clone3, &raw const arguments, size) };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result == 0) }
    }
}

/// `struct clone_args` (linux/sched.h), which libc has for some of its targets only.
#[repr(C)]
#[derive(Default)]
struct CloneArguments {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
    set_tid: u64,
    set_tid_size: u64,
    cgroup: u64,
}

/// What was left on a [`Board`].
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Left {
    /// A second helper.
    pub helper: Option<u32>,
    /// The process.
    pub process: Option<u32>,
    /// The text.
    pub text: String,
}

impl Left {
    /// Reads it through our own descriptor.
    pub fn read(board: BorrowedFd<'_>) -> io::Result<Self> {
        let mut head = [0; BOARD_HEAD];
        let length = rustix::io::pread(board, &mut head, 0)?;
        let (pids, text) =
            head.get(..length).unwrap_or_default().split_at_checked(BOARD_TEXT).unwrap_or_default();
        let (pids, _) = pids.as_chunks::<{ size_of::<u32>() }>();
        let pid = |slot: Slot| {
            pids.get(slot as usize).map(|bytes| u32::from_ne_bytes(*bytes)).filter(|pid| *pid > 0)
        };
        let text = text.split(|byte| *byte == 0).next().unwrap_or_default();
        Ok(Self {
            helper: pid(Slot::Helper),
            process: pid(Slot::Process),
            text: String::from_utf8_lossy(text).into_owned(),
        })
    }
}

/// A sealed copy of our own binary, filled piece by piece: whoever gets hold of it can change
/// nothing, least of all the file that the node runs (CVE-2019-5736).
pub struct SealedSelf {
    copy: OwnedFd,
    binary: File,
    left: usize,
}

/// Bytes that are copied at a time.
const PIECE: usize = 256 << 10;
/// Its mode stays executable (linux/fcntl.h; Linux 6.3).
const F_SEAL_EXEC: u32 = 0x20;

impl SealedSelf {
    /// Nothing is copied yet.
    pub fn begin() -> io::Result<Self> {
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let copy = match rustix::fs::memfd_create(c"cleat-exec", flags | MemfdFlags::EXEC) {
            // Before Linux 6.3.
            Err(rustix::io::Errno::INVAL) => rustix::fs::memfd_create(c"cleat-exec", flags)?,
            result => result?,
        };
        let binary = File::options().read(true).open("/proc/self/exe")?;
        let mut head = vec![0; PIECE.min(4096)];
        let length = rustix::io::pread(&binary, &mut head, 0)?;
        // What a dynamic loader maps are files of the host.
        if !cfg!(debug_assertions) && has_interpreter(head.get(..length).unwrap_or_default()) {
            return Err(io::Error::other("the binary is not static"));
        }
        let left = usize::try_from(binary.metadata()?.len()).map_err(io::Error::other)?;
        Ok(Self { copy, binary, left })
    }

    /// Copies a piece. `true`: there is more.
    pub fn go_on(&mut self) -> io::Result<bool> {
        match rustix::fs::sendfile(&self.copy, &self.binary, None, self.left.min(PIECE))? {
            0 if self.left > 0 => Err(io::ErrorKind::UnexpectedEof.into()),
            sent => {
                self.left = self.left.saturating_sub(sent);
                Ok(self.left > 0)
            }
        }
    }

    /// Seals it.
    pub fn sealed(self) -> io::Result<OwnedFd> {
        let seals = SealFlags::WRITE | SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL;
        match rustix::fs::fcntl_add_seals(
            &self.copy,
            seals | SealFlags::from_bits_retain(F_SEAL_EXEC),
        ) {
            Err(rustix::io::Errno::INVAL) => rustix::fs::fcntl_add_seals(&self.copy, seals)?,
            result => result?,
        }
        Ok(self.copy)
    }
}

/// Whether an ELF binary of this machine asks for a dynamic loader (elf(5), PT_INTERP). `true` if
/// it cannot be seen.
fn has_interpreter(head: &[u8]) -> bool {
    const PT_INTERP: u32 = 3;
    let number = |at: usize, length: usize| -> Option<usize> {
        let bytes = head.get(at..at.checked_add(length)?)?;
        let mut word = [0; size_of::<usize>()];
        if cfg!(target_endian = "big") {
            word.get_mut(size_of::<usize>() - length..)?.copy_from_slice(bytes);
            return Some(usize::from_be_bytes(word));
        }
        word.get_mut(..length)?.copy_from_slice(bytes);
        Some(usize::from_le_bytes(word))
    };
    // struct elf64_hdr: e_phoff, e_phentsize, e_phnum; struct elf64_phdr begins with p_type.
    let types = || {
        let (table, size, count) = (number(32, 8)?, number(54, 2)?, number(56, 2)?);
        (0..count)
            .map(|index| number(table.checked_add(index * size)?, 4))
            .collect::<Option<Vec<_>>>()
    };
    !head.starts_with(b"\x7fELF\x02")
        || types().is_none_or(|types| types.contains(&(PT_INTERP as usize)))
}

/// Ends at once, without destructors or exit handlers.
pub fn end(status: i32) -> ! {
    // SAFETY: _exit takes an integer and does not return.
    unsafe { libc::_exit(status) }
}

/// Joins the session keyring of this name, or makes it (KEYCTL_JOIN_SESSION_KEYRING).
pub fn join_session_keyring(name: &str) -> io::Result<()> {
    let name = CString::new(name)?;
    // SAFETY: the operation reads a string that lives until the call returns.
    let serial = unsafe {
        libc::syscall(libc::SYS_keyctl, libc::KEYCTL_JOIN_SESSION_KEYRING, name.as_ptr())
    };
    if serial < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Takes all processors that the cpuset allows, as far as the kernel lets us
/// (sched_setaffinity(2)).
pub fn use_all_processors() {
    // Of 1,024, as runc does.
    let all = [u8::MAX; 128];
    // SAFETY: the mask lives until the call returns, and is as long as said.
    unsafe { libc::syscall(libc::SYS_sched_setaffinity, 0, size_of_val(&all), all.as_ptr()) };
}

/// setrlimit(2), by the resource's number.
pub fn set_rlimit(resource: u32, soft: u64, hard: u64) -> io::Result<()> {
    // struct rlimit64
    let limit = [soft, hard];
    // SAFETY: `limit` lives until the call returns; nothing is written; an unknown resource is an
    // error.
    let result = unsafe {
        libc::syscall(libc::SYS_prlimit64, 0, resource, limit.as_ptr(), std::ptr::null_mut::<u64>())
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// All signals back to what a program expects: not blocked, not ignored (the standard library
/// ignores SIGPIPE).
pub fn reset_signals() {
    for signal in 1..=libc::SIGRTMAX() {
        // SAFETY: SIG_DFL needs no handler; signals that cannot be changed are an error that means
        // nothing.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
    let _ = super::signals::unblock();
}

/// Closes a descriptor by its number.
pub fn close(number: RawFd) {
    // SAFETY: the helper owns the number by agreement with whoever started it, and uses it no more.
    unsafe { libc::close(number) };
}

/// A program to become, with all that execve(2) wants made before.
pub struct Image {
    path: CString,
    /// Both end with a null pointer.
    argv: Vec<*const libc::c_char>,
    envp: Vec<*const libc::c_char>,
    /// What they point to.
    _words: [Vec<CString>; 2],
}

impl Image {
    /// The words as execve(2) wants them.
    pub fn new(path: &str, arguments: &[String], environment: &[String]) -> io::Result<Self> {
        let strings = |words: &[String]| {
            words.iter().map(|w| CString::new(w.as_str())).collect::<Result<Vec<_>, _>>()
        };
        let words = [strings(arguments)?, strings(environment)?];
        let [argv, envp] = [pointers(&words[0]), pointers(&words[1])];
        Ok(Self { path: CString::new(path)?, argv, envp, _words: words })
    }

    /// execve(2), and no other system call; returns only if it fails.
    pub fn execute(&self) -> io::Error {
        // SAFETY: both lists end with a null pointer, and their strings live as long as `self`.
        unsafe { libc::execve(self.path.as_ptr(), self.argv.as_ptr(), self.envp.as_ptr()) };
        io::Error::last_os_error()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    #[test]
    fn what_is_left_on_a_board_is_read_by_whoever_made_it() {
        let file =
            super::super::fd::input(&[vec![0; BOARD_HEAD], b"content".to_vec()].concat()).unwrap();
        let board = Board::map(file.try_clone().unwrap()).unwrap();
        assert_eq!(board.content(), b"content");
        assert_eq!(Left::read(file.as_fd()).unwrap(), Left::default());
        board.say("because");
        // SAFETY: a slot of this mapping.
        unsafe { board.slot(Slot::Process).write(7) };
        let left = Left { helper: None, process: Some(7), text: "because".to_owned() };
        assert_eq!(Left::read(file.as_fd()).unwrap(), left);
        board.say(&"x".repeat(BOARD_HEAD));
        assert_eq!(Left::read(file.as_fd()).unwrap().text.len(), BOARD_HEAD - BOARD_TEXT);
        assert_eq!(board.content(), b"content");
        assert!(Board::map(super::super::fd::input(b"short").unwrap()).is_err());
    }

    #[test]
    fn a_dynamic_binary_is_told_from_a_static_one() {
        let head = |types: &[u32]| {
            let mut head = vec![0_u8; 64];
            head[..5].copy_from_slice(b"\x7fELF\x02");
            head[32..40].copy_from_slice(&64_u64.to_ne_bytes());
            head[54..56].copy_from_slice(&56_u16.to_ne_bytes());
            head[56..58].copy_from_slice(&u16::try_from(types.len()).unwrap().to_ne_bytes());
            for kind in types {
                head.extend(kind.to_ne_bytes());
                head.extend([0; 52]);
            }
            head
        };
        assert!(!has_interpreter(&head(&[1, 2, 6])));
        assert!(has_interpreter(&head(&[6, 3, 1])));
        assert!(
            has_interpreter(&head(&[1, 1])[..100])
                && has_interpreter(b"#!/bin/sh")
                && has_interpreter(b"")
        );
    }
}
