//! Seccomp filters: taken from a process that waits (ptrace(2)), given to ourselves (seccomp(2)).
//!
//! What the runtime has made of a profile depends on its libseccomp and on the runtime itself. A
//! filter that was taken back from the kernel is that filter.

use std::{
    io::{self, Read},
    mem::size_of,
};

/// linux/ptrace.h
const PTRACE_SECCOMP_GET_FILTER: i64 = 0x420c;
const PTRACE_SECCOMP_GET_METADATA: i64 = 0x420d;
/// linux/seccomp.h
const SECCOMP_SET_MODE_FILTER: libc::c_ulong = 1;
const SECCOMP_FILTER_FLAG_SPEC_ALLOW: u32 = 4;
/// Most instructions of a filter (linux/bpf_common.h, BPF_MAXINSNS), and filters of a process that
/// are looked at.
const MAX_INSTRUCTIONS: usize = 4096;
const MAX_FILTERS: usize = 64;

/// A filter as the kernel has it.
#[derive(Debug, PartialEq, Eq)]
pub struct Filter {
    /// Flags of seccomp(2).
    flags: u32,
    /// `struct sock_filter` each.
    instructions: Vec<u64>,
}

/// The filters of a process, oldest first. Stops it for a moment: it must be one that waits in a
/// system call which goes on as if nothing had been, and that will run no code of its own
/// meanwhile. To be called in a helper: it waits for the process to stop.
pub fn filters_of(pid: u32) -> io::Result<Vec<Filter>> {
    let pid = libc::pid_t::try_from(pid).map_err(io::Error::other)?;
    trace(i64::from(libc::PTRACE_SEIZE), pid, 0, 0)?;
    trace(i64::from(libc::PTRACE_INTERRUPT), pid, 0, 0)?;
    let mut status = 0;
    // SAFETY: the status is written by the call; a tracee of ours may be waited for.
    if unsafe { libc::waitpid(pid, &raw mut status, libc::__WALL) } != pid
        || !libc::WIFSTOPPED(status)
    {
        return Err(io::Error::other("it does not stop"));
    }
    let mut filters = newest_first(pid);
    // It goes on at our end all the same.
    let _ = trace(i64::from(libc::PTRACE_DETACH), pid, 0, 0);
    if let Ok(filters) = &mut filters {
        filters.reverse();
    }
    filters
}

fn newest_first(pid: libc::pid_t) -> io::Result<Vec<Filter>> {
    let mut filters = Vec::new();
    for number in 0..MAX_FILTERS {
        let count = match trace(PTRACE_SECCOMP_GET_FILTER, pid, number, 0) {
            Err(e) if e.raw_os_error() == Some(libc::ENOENT) => return Ok(filters),
            count => count?,
        };
        let mut instructions = vec![0_u64; count];
        trace(PTRACE_SECCOMP_GET_FILTER, pid, number, instructions.as_mut_ptr().addr())?;
        // struct seccomp_metadata: which filter, its flags.
        let mut metadata = [number as u64, 0];
        trace(
            PTRACE_SECCOMP_GET_METADATA,
            pid,
            size_of_val(&metadata),
            metadata.as_mut_ptr().addr(),
        )?;
        let flags = u32::try_from(metadata[1]).map_err(io::Error::other)?;
        filters.push(Filter { flags, instructions });
    }
    Err(io::Error::other("too many filters"))
}

/// A request whose data, if it is not 0, is the address of memory of the size that the request
/// writes.
fn trace(request: i64, pid: libc::pid_t, address: usize, data: usize) -> io::Result<usize> {
    // SAFETY: by the contract above.
    let result = unsafe { libc::syscall(libc::SYS_ptrace, request, pid, address, data) };
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}

impl Filter {
    /// Not a flag that the kernel tells: without it a filter may turn mitigations of speculation
    /// on.
    pub fn allow_speculation(&mut self) {
        self.flags |= SECCOMP_FILTER_FLAG_SPEC_ALLOW;
    }

    /// From here on it holds for us. Needs CAP_SYS_ADMIN or no_new_privs.
    pub fn load(&self) -> io::Result<()> {
        let length = libc::c_ushort::try_from(self.instructions.len()).map_err(io::Error::other)?;
        let filter = self.instructions.as_ptr().cast::<libc::sock_filter>().cast_mut();
        let program = libc::sock_fprog { len: length, filter };
        let flags = libc::c_ulong::from(self.flags);
        // SAFETY: the program is as long as it says, and lives until the call returns; a
        // sock_filter is 8 bytes.
        let result = unsafe {
            libc::syscall(libc::SYS_seccomp, SECCOMP_SET_MODE_FILTER, flags, &raw const program)
        };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }
}

/// Filters as bytes: for each its flags, its length, its instructions; this machine's byte order.
pub fn encode(filters: &[Filter]) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    for filter in filters {
        bytes.extend(filter.flags.to_ne_bytes());
        let length = u32::try_from(filter.instructions.len()).map_err(io::Error::other)?;
        bytes.extend(length.to_ne_bytes());
        bytes.extend(filter.instructions.iter().flat_map(|instruction| instruction.to_ne_bytes()));
    }
    Ok(bytes)
}

/// Reads what [`encode`] has made.
pub fn read(from: impl Read) -> io::Result<Vec<Filter>> {
    const HEAD: usize = size_of::<u64>();
    let mut bytes = Vec::new();
    let most = MAX_FILTERS * (HEAD + MAX_INSTRUCTIONS * size_of::<u64>());
    from.take(most as u64).read_to_end(&mut bytes)?;
    let mut filters = Vec::new();
    let mut rest = bytes.as_slice();
    while let Some((head, after)) = rest.split_first_chunk::<HEAD>() {
        let [a, b, c, d, e, f, g, h] = *head;
        let count = u32::from_ne_bytes([e, f, g, h]) as usize;
        if count > MAX_INSTRUCTIONS {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let (instructions, next) =
            after.split_at_checked(count * size_of::<u64>()).ok_or(io::ErrorKind::UnexpectedEof)?;
        let (instructions, _) = instructions.as_chunks::<{ size_of::<u64>() }>();
        filters.push(Filter {
            flags: u32::from_ne_bytes([a, b, c, d]),
            instructions: instructions.iter().map(|bytes| u64::from_ne_bytes(*bytes)).collect(),
        });
        rest = next;
    }
    if rest.is_empty() { Ok(filters) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_survive_a_file_and_nothing_else_is_read() {
        let filters = || {
            vec![
                Filter { flags: 2, instructions: vec![u64::MAX, 7] },
                Filter { flags: 0, instructions: vec![1; MAX_INSTRUCTIONS] },
            ]
        };
        let bytes = encode(&filters()).unwrap();
        assert_eq!(read(bytes.as_slice()).unwrap(), filters());
        assert_eq!(read([].as_slice()).unwrap(), []);
        for length in [1, 7, 9, 20, bytes.len() - 1] {
            assert!(read(&bytes[..length]).is_err(), "{length}");
        }
        assert!(read([0xff; 16].as_slice()).is_err());
    }
}
