//! Starts programs. The child borrows our memory until it has become the program, and we stand
//! still meanwhile (clone(2), CLONE_VM | CLONE_VFORK): a fork copies the page tables, and every
//! page that we write after it.

use rustix::{
    fs::{Mode, OFlags},
    io::Errno,
    process::{Pid, Signal},
};
use std::{
    ffi::{CString, OsStr, OsString},
    io,
    os::{
        fd::{AsRawFd, OwnedFd, RawFd},
        unix::ffi::{OsStrExt, OsStringExt},
    },
    path::{Path, PathBuf},
};

/// Bytes of the child's stack: system calls, and copies of a few numbers.
const STACK: usize = 32 << 10;
/// Where a program without a path is looked for if PATH is not set (execvp(3)).
const DEFAULT_PATH: &[u8] = b"/bin:/usr/bin";

/// Stdin, stdout and stderr; `None` is /dev/null.
pub type Streams = [Option<OwnedFd>; 3];

/// A program to be run.
pub struct Program {
    path: OsString,
    arguments: Vec<OsString>,
    environment: Vec<(OsString, OsString)>,
    directory: Option<PathBuf>,
}

impl Program {
    /// A path, or a name that is looked for in PATH; with our environment.
    pub fn new(path: impl Into<OsString>) -> Self {
        let path = path.into();
        let environment = std::env::vars_os().collect();
        Self { arguments: vec![path.clone()], path, environment, directory: None }
    }

    /// The path or name.
    pub fn path(&self) -> &Path {
        Path::new(&self.path)
    }

    /// What the program finds as its own name.
    pub fn name(&mut self, name: &str) -> &mut Self {
        self.arguments[0] = name.into();
        self
    }

    /// One more argument.
    pub fn arg(&mut self, argument: impl AsRef<OsStr>) -> &mut Self {
        self.arguments.push(argument.as_ref().to_owned());
        self
    }

    /// More arguments.
    pub fn args(&mut self, arguments: impl IntoIterator<Item = impl AsRef<OsStr>>) -> &mut Self {
        self.arguments.extend(arguments.into_iter().map(|argument| argument.as_ref().to_owned()));
        self
    }

    /// Sets a variable.
    pub fn env(&mut self, name: &str, value: impl AsRef<OsStr>) -> &mut Self {
        self.env_remove(name);
        self.environment.push((name.into(), value.as_ref().to_owned()));
        self
    }

    /// Removes a variable.
    pub fn env_remove(&mut self, name: &str) -> &mut Self {
        self.environment.retain(|(known, _)| known != name);
        self
    }

    /// Removes all variables.
    pub fn env_clear(&mut self) -> &mut Self {
        self.environment.clear();
        self
    }

    /// Where it runs.
    pub fn current_dir(&mut self, directory: &Path) -> &mut Self {
        self.directory = Some(directory.to_owned());
        self
    }

    /// Starts it, to die with us (PR_SET_PDEATHSIG KILL), with these descriptors as 3, 4 … Returns
    /// its pid; nobody but the reaper waits for it.
    pub fn start(&self, streams: &Streams, more: &[OwnedFd]) -> io::Result<u32> {
        self.start_as(Bond::Dependent, streams, more)
    }

    /// Starts it, to outlive us, in a process group of its own, with /dev/null for its streams.
    pub fn start_lasting(&self, more: &[OwnedFd]) -> io::Result<u32> {
        self.start_as(Bond::Lasting, &[None, None, None], more)
    }

    /// Like [`Program::start_lasting`], but we do not stand still until it has become the program,
    /// whose file system may hang. Why it did not comes through `failed`: an error number, four
    /// bytes; that closes without a word when it has.
    pub fn start_lasting_apart(&self, more: &[OwnedFd], failed: &OwnedFd) -> io::Result<u32> {
        self.start_apart(Bond::Lasting, &[None, None, None], more, failed)
    }

    /// The same as [`Program::start`] is to [`Program::start_lasting`].
    pub fn start_dependent_apart(
        &self,
        streams: &Streams,
        more: &[OwnedFd],
        failed: &OwnedFd,
    ) -> io::Result<u32> {
        self.start_apart(Bond::Dependent, streams, more, failed)
    }

    fn start_apart(
        &self,
        bond: Bond,
        streams: &Streams,
        more: &[OwnedFd],
        failed: &OwnedFd,
    ) -> io::Result<u32> {
        // Out of the way of the descriptors that it is born with.
        let failed = rustix::io::fcntl_dupfd_cloexec(failed, super::spawn::BEYOND)?;
        self.become_with(bond, streams, more, |becoming| {
            becoming.failed = Some(failed.as_raw_fd());
            let before = super::signals::block()?;
            let child = super::spawn::forked(|| {
                let Err(error) = become_program(becoming);
                let number = error.raw_os_error().to_ne_bytes();
                for place in [Some(failed.as_raw_fd()), becoming.told_at()].into_iter().flatten() {
                    // SAFETY: the buffer is valid for its length; one of the two numbers is the
                    // pipe, the other may be closed.
                    unsafe { libc::write(place, number.as_ptr().cast(), number.len()) };
                }
                127
            });
            super::signals::restore(&before);
            child
        })
    }

    fn start_as(&self, bond: Bond, streams: &Streams, more: &[OwnedFd]) -> io::Result<u32> {
        self.become_with(bond, streams, more, borrow)
    }

    fn become_with(
        &self,
        bond: Bond,
        streams: &Streams,
        more: &[OwnedFd],
        begin: impl FnOnce(&mut Becoming<'_>) -> io::Result<u32>,
    ) -> io::Result<u32> {
        let nulls = [OFlags::RDONLY, OFlags::WRONLY, OFlags::WRONLY];
        let null = |(stream, access): (&Option<OwnedFd>, OFlags)| match stream {
            Some(_) => Ok(None),
            None => {
                rustix::fs::open("/dev/null", access | OFlags::CLOEXEC, Mode::empty()).map(Some)
            }
        };
        let nulls: Vec<Option<OwnedFd>> =
            streams.iter().zip(nulls).map(null).collect::<Result<_, _>>()?;
        let streams = streams
            .iter()
            .zip(&nulls)
            .filter_map(|(stream, null)| stream.as_ref().or(null.as_ref()));
        let sources: Vec<RawFd> = streams.chain(more).map(AsRawFd::as_raw_fd).collect();
        let directory = self
            .directory
            .as_ref()
            .map(|path| c_string(path.as_os_str().as_bytes()))
            .transpose()?;
        let paths = self.candidates()?;
        let arguments: Vec<CString> = self
            .arguments
            .iter()
            .map(|word| c_string(word.as_bytes()))
            .collect::<io::Result<_>>()?;
        let variable = |(name, value): &(OsString, OsString)| {
            c_string([name.as_bytes(), b"=", value.as_bytes()].concat())
        };
        let environment: Vec<CString> =
            self.environment.iter().map(variable).collect::<io::Result<_>>()?;
        let (argv, envp) = (pointers(&arguments), pointers(&environment));
        begin(&mut Becoming {
            paths: &paths,
            argv: &argv,
            envp: &envp,
            directory: directory.as_ref(),
            sources: &sources,
            failed: None,
            bond,
            parent: rustix::process::getpid(),
            error: 0,
        })
    }

    /// The paths that its file may have, in the order in which they are tried.
    pub fn paths(&self) -> Vec<PathBuf> {
        let path = |path: CString| PathBuf::from(OsString::from_vec(path.into_bytes()));
        self.candidates().unwrap_or_default().into_iter().map(path).collect()
    }

    /// Whether it is there to be started.
    pub fn is_installed(&self) -> bool {
        let is_there = |path: &CString| Path::new(OsStr::from_bytes(path.as_bytes())).exists();
        self.candidates().is_ok_and(|paths| paths.iter().any(is_there))
    }

    /// The paths that it may have.
    fn candidates(&self) -> io::Result<Vec<CString>> {
        if self.path.as_bytes().contains(&b'/') {
            return Ok(vec![c_string(self.path.as_bytes())?]);
        }
        let path = self.environment.iter().find(|(name, _)| name == "PATH");
        let path = path.map_or(DEFAULT_PATH, |(_, value)| value.as_bytes());
        // What is relative would be so to the bundle.
        let directories =
            path.split(|byte| *byte == b':').filter(|directory| directory.starts_with(b"/"));
        let candidate = |directory: &[u8]| {
            c_string(
                Path::new(OsStr::from_bytes(directory))
                    .join(&self.path)
                    .into_os_string()
                    .into_vec(),
            )
        };
        directories.map(candidate).collect()
    }
}

/// The form that execve(2) wants a list in. It lives no longer than the words.
pub(super) fn pointers(words: &[CString]) -> Vec<*const libc::c_char> {
    words.iter().map(|word| word.as_ptr()).chain([std::ptr::null()]).collect()
}

fn c_string(bytes: impl Into<Vec<u8>>) -> io::Result<CString> {
    CString::new(bytes).map_err(Into::into)
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Bond {
    Dependent,
    Lasting,
}

/// All that the child needs, made before: it shares our memory, and must not allocate or free.
struct Becoming<'a> {
    paths: &'a [CString],
    /// Both end with a null pointer.
    argv: &'a [*const libc::c_char],
    envp: &'a [*const libc::c_char],
    directory: Option<&'a CString>,
    /// For descriptors 0, 1, 2 …
    sources: &'a [RawFd],
    /// Where a child that is not waited for says why it failed. It keeps this one and its sources,
    /// and nothing else of ours: it may hang.
    failed: Option<RawFd>,
    bond: Bond,
    parent: Pid,
    /// The child's answer: why it did not become the program.
    error: libc::c_int,
}

impl Becoming<'_> {
    /// Where `failed` lies when the sources are in place.
    fn told_at(&self) -> Option<RawFd> {
        self.failed.and_then(|_| RawFd::try_from(self.sources.len()).ok())
    }
}

/// Runs the child until it has become the program, or has failed.
fn borrow(becoming: &mut Becoming<'_>) -> io::Result<u32> {
    let (access, kind) = (
        libc::PROT_READ | libc::PROT_WRITE,
        libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_STACK,
    );
    // A handler of ours in the child would write into the event loop.
    let before = super::signals::block()?;
    // SAFETY: a new mapping, at an address of the kernel's choice.
    let stack = unsafe { libc::mmap(std::ptr::null_mut(), STACK, access, kind, -1, 0) };
    if stack == libc::MAP_FAILED {
        let failure = io::Error::last_os_error();
        super::signals::restore(&before);
        return Err(failure);
    }
    let flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::SIGCHLD;
    // Stacks grow downwards.
    let top = stack.cast::<u8>().wrapping_add(STACK).cast();
    // SAFETY: the child has this stack to itself; it uses `becoming` and what that borrows only
    // until this call returns, since we are suspended; it makes system calls and nothing else.
    let pid = unsafe { libc::clone(child, top, flags, std::ptr::from_mut(becoming).cast()) };
    let failure = io::Error::last_os_error();
    super::signals::restore(&before);
    // SAFETY: our own mapping; the child has a memory of its own, or has ended.
    unsafe { libc::munmap(stack, STACK) };
    let Ok(pid) = u32::try_from(pid) else { return Err(failure) };
    if becoming.error == 0 {
        return Ok(pid);
    }
    // It has ended.
    let _ = rustix::io::retry_on_intr(|| {
        rustix::process::waitpid(
            Pid::from_raw(pid.cast_signed()),
            rustix::process::WaitOptions::empty(),
        )
    });
    Err(io::Error::from_raw_os_error(becoming.error))
}

extern "C" fn child(becoming: *mut libc::c_void) -> libc::c_int {
    // SAFETY: `borrow` passes a Becoming, and stands still while we use it.
    let becoming = unsafe { &mut *becoming.cast::<Becoming<'_>>() };
    let Err(error) = become_program(becoming);
    becoming.error = error.raw_os_error();
    // SAFETY: _exit runs nothing of ours.
    unsafe { libc::_exit(127) }
}

fn become_program(becoming: &Becoming<'_>) -> Result<std::convert::Infallible, Errno> {
    super::signals::forget_handlers();
    match becoming.bond {
        Bond::Lasting => rustix::process::setpgid(None, None)?,
        Bond::Dependent => {
            // What becomes a container's inherits it.
            super::process::restore_umask();
            rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
            // We may have died before the call above.
            if rustix::process::getppid() != Some(becoming.parent) {
                return Err(Errno::SRCH);
            }
        }
    }
    super::spawn::place(becoming.sources, 0).map_err(errno)?;
    if let (Some(failed), Some(told_at)) = (becoming.failed, becoming.told_at()) {
        // SAFETY: dup3 takes integers; in the child no owner of the number is left.
        if unsafe { libc::dup3(failed, told_at, libc::O_CLOEXEC) } < 0 {
            return Err(errno(io::Error::last_os_error()));
        }
        super::fd::close_from(told_at + 1);
    }
    super::process::restore_open_files();
    if let Some(directory) = becoming.directory {
        rustix::process::chdir(directory.as_c_str())?;
    }
    super::signals::unblock().map_err(errno)?;
    let mut refusal = Errno::NOENT;
    for path in becoming.paths {
        // SAFETY: the path is a C string, both lists end with a null pointer; all live until we are
        // another program.
        unsafe { libc::execve(path.as_ptr(), becoming.argv.as_ptr(), becoming.envp.as_ptr()) };
        match errno(io::Error::last_os_error()) {
            Errno::NOENT | Errno::NOTDIR => {}
            Errno::ACCESS => refusal = Errno::ACCESS,
            error => return Err(error),
        }
    }
    Err(refusal)
}

/// Of a system call that failed.
fn errno(error: io::Error) -> Errno {
    Errno::from_io_error(&error).unwrap_or(Errno::INVAL)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::process::{WaitOptions, waitpid};
    use std::io::Read;

    fn output(program: &Program, more: &[OwnedFd]) -> (String, Option<i32>) {
        let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
        let streams = [None, Some(write), None];
        let pid = program.start(&streams, more).unwrap();
        drop(streams);
        let mut text = String::new();
        std::fs::File::from(read).read_to_string(&mut text).unwrap();
        let (_, status) =
            waitpid(Pid::from_raw(pid.cast_signed()), WaitOptions::empty()).unwrap().unwrap();
        (text, status.exit_status())
    }

    fn shell(script: &str) -> Program {
        let mut program = Program::new("sh");
        program.args(["-c", script]);
        program
    }

    #[test]
    fn a_program_has_what_it_was_given() {
        let mut program = shell(
            "echo $0 $X $PWD; grep SigBlk /proc/self/status; readlink /proc/self/fd/0 /proc/self/fd/2; exit 3",
        );
        program.arg("zero").env("X", "1").env("X", "2").current_dir(Path::new("/proc"));
        let (text, status) = output(&program, &[]);
        assert_eq!(text, "zero 2 /proc\nSigBlk:\t0000000000000000\n/dev/null\n/dev/null\n");
        assert_eq!(status, Some(3));
    }

    #[test]
    fn descriptors_keep_their_order_whatever_their_numbers_are() {
        let from_64_on = |text: &str| {
            let file = super::super::fd::input(text.as_bytes()).unwrap();
            rustix::io::fcntl_dupfd_cloexec(&file, 64).unwrap()
        };
        let mut files = ["a", "b", "c", "d"].map(from_64_on);
        files.reverse();
        assert_eq!(output(&shell("cat <&3; cat <&4; cat <&5; cat <&6"), &files).0, "dcba");
    }

    #[test]
    fn a_program_that_is_not_waited_for_keeps_nothing_else_and_says_why_it_failed() {
        let (ours, theirs) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
        let (told, failed) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
        let pid = shell("ls /proc/self/fd >&3").start_lasting_apart(&[theirs], &failed).unwrap();
        drop(failed);
        let read = |pipe: OwnedFd| {
            let mut bytes = Vec::new();
            std::fs::File::from(pipe).read_to_end(&mut bytes).unwrap();
            bytes
        };
        assert_eq!(read(told), b"");
        // 4 is the directory that ls reads.
        assert_eq!(String::from_utf8(read(ours)).unwrap(), "0\n1\n2\n3\n4\n");
        let reap =
            |pid: u32| waitpid(Pid::from_raw(pid.cast_signed()), WaitOptions::empty()).unwrap();
        reap(pid);
        let (told, failed) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
        let pid = Program::new("/cleat-is-not-there").start_lasting_apart(&[], &failed).unwrap();
        drop(failed);
        assert_eq!(read(told), libc::ENOENT.to_ne_bytes());
        reap(pid);
    }

    #[test]
    fn what_cannot_be_run_says_why_and_leaves_no_child() {
        let start = |program: &Program| program.start(&[None, None, None], &[]).unwrap_err().kind();
        assert_eq!(start(&Program::new("cleat-is-not-there")), io::ErrorKind::NotFound);
        assert_eq!(start(&Program::new("/etc/passwd")), io::ErrorKind::PermissionDenied);
        assert_eq!(
            start(shell("true").current_dir(Path::new("/cleat-is-not-there"))),
            io::ErrorKind::NotFound
        );
        assert_eq!(start(shell("true").arg("a\0b")), io::ErrorKind::InvalidInput);
        let own = std::fs::read_to_string("/proc/thread-self/children").unwrap_or_default();
        assert_eq!(own, "");
    }
}
