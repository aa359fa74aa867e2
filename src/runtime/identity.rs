//! Which program a runtime is, by its file: what calls itself runc may be a program around it that
//! has work of its own to do when a container starts or goes.

use crate::sys::program::Program;
use rustix::fs::{Mode, OFlags};
use std::{
    fs::Metadata,
    os::{fd::OwnedFd, unix::fs::MetadataExt},
    path::{Path, PathBuf},
};

/// The programs whose part of a container's life we know well enough to do some of it ourselves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Known {
    /// opencontainers/runc.
    Runc,
    /// containers/crun.
    Crun,
}

/// A file, as it is now: device, inode, size, time of the last change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileId([i64; 5]);

impl FileId {
    fn of(stat: &Metadata) -> Self {
        let number = |number: u64| i64::from_ne_bytes(number.to_ne_bytes());
        let (seconds, nanos) = (stat.mtime(), stat.mtime_nsec());
        Self([number(stat.dev()), number(stat.ino()), number(stat.size()), seconds, nanos])
    }
}

/// The file that a runtime's name leads to, as it is now.
pub fn find(runtime: &str) -> Option<(PathBuf, FileId)> {
    let look = |path: PathBuf| {
        let stat = std::fs::metadata(&path).ok().filter(Metadata::is_file)?;
        Some((path, FileId::of(&stat)))
    };
    Program::new(runtime).paths().into_iter().find_map(look)
}

/// The package of runc's `main`, as Go's linker notes it.
const RUNC: &[u8] = b"github.com/opencontainers/runc";

/// An annotation that crun alone knows.
const CRUN: &[u8] = b"run.oci.systemd.subgroup";

/// Which program this file is: a script, or a program of another `main`, is none of them, whomever
/// it calls. It has just been run, so its file system answers.
pub(super) fn known(path: &Path) -> Option<Known> {
    let file = Elf::open(path)?;
    match file.main_package() {
        Some(package) if package == RUNC => Some(Known::Runc),
        Some(_) => None,
        // crun is written in C, which notes no such thing: its name, and a text that a program
        // around it has no use for.
        None => {
            let real = std::fs::canonicalize(path).ok()?;
            (real.file_name()? == "crun" && file.has_constant(CRUN)).then_some(Known::Crun)
        }
    }
}

/// An ELF file of this machine's word size and byte order (elf(5)).
struct Elf(OwnedFd);

/// Where Go's linker notes what a program was built of (Go's debug/buildinfo).
const BUILD_INFO: &[u8] = b".go.buildinfo\0";
const BUILD_MAGIC: &[u8] = b"\xff Go buildinf:";
/// Its head, and the flag in it that says that the texts follow.
const BUILD_HEAD: usize = 32;
const FLAGS: usize = 15;
const INLINE: u8 = 2;
/// As much of it as holds the package.
const BUILD_READ: usize = 1024;
/// Sections, and bytes of their names, that are looked at.
const MAX_SECTIONS: usize = 256;
const MAX_NAMES: usize = 16 << 10;
/// Bytes of constants that are looked through.
const MAX_CONSTANTS: usize = 1 << 20;

impl Elf {
    fn open(path: &Path) -> Option<Self> {
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = Self(rustix::fs::open(path, flags, Mode::empty()).ok()?);
        const CLASS: u8 = if size_of::<usize>() == 8 { 2 } else { 1 };
        const ORDER: u8 = if cfg!(target_endian = "big") { 2 } else { 1 };
        (file.read(0, 6)? == [0x7f, b'E', b'L', b'F', CLASS, ORDER] && CLASS == 2).then_some(file)
    }

    fn read(&self, at: u64, length: usize) -> Option<Vec<u8>> {
        let mut bytes = vec![0; length];
        let read = rustix::io::pread(&self.0, &mut bytes, at).ok()?;
        bytes.truncate(read);
        Some(bytes)
    }

    /// Offset and size of a section. struct elf64_hdr, struct elf64_shdr.
    fn section(&self, wanted: &[u8]) -> Option<(u64, u64)> {
        let head = self.read(0, 64)?;
        let (table, size) = (long(&head, 40)?, usize::from(short(&head, 58)?));
        let (count, names) = (usize::from(short(&head, 60)?), usize::from(short(&head, 62)?));
        if size < 64 || count > MAX_SECTIONS {
            return None;
        }
        let sections = self.read(table, size * count)?;
        let section = |index: usize| sections.get(index * size..(index + 1) * size);
        let place = |section: &[u8]| Some((long(section, 24)?, long(section, 32)?));
        let (names, length) = place(section(names)?)?;
        let names = self.read(names, usize::try_from(length).ok()?.min(MAX_NAMES))?;
        let is_wanted = |section: &&[u8]| {
            let name = word(section, 0).and_then(|at| names.get(usize::try_from(at).ok()?..));
            name.is_some_and(|name| name.starts_with(wanted))
        };
        place((0..count).filter_map(section).find(is_wanted)?)
    }

    /// Whether it has this text among its constants.
    fn has_constant(&self, text: &[u8]) -> bool {
        let Some((at, length)) = self.section(b".rodata\0") else { return false };
        let length = usize::try_from(length).unwrap_or(0).min(MAX_CONSTANTS);
        let constants = self.read(at, length).unwrap_or_default();
        constants.windows(text.len()).any(|window| window == text)
    }

    /// The package of `main` of a Go program; empty if it does not say. `None` of others.
    fn main_package(&self) -> Option<Vec<u8>> {
        let (at, _) = self.section(BUILD_INFO)?;
        let info = self.read(at, BUILD_READ)?;
        Some(package(&info).unwrap_or_default().to_vec())
    }
}

fn package(info: &[u8]) -> Option<&[u8]> {
    let is_inline = info.starts_with(BUILD_MAGIC) && info.get(FLAGS)? & INLINE != 0;
    let (_version, rest) = text(info.get(BUILD_HEAD..).filter(|_| is_inline)?)?;
    // The second text may be longer than what was read.
    let (_, rest) = length(rest)?;
    let start = b"path\t";
    // Sixteen bytes frame it.
    let rest = rest.get(16..)?.strip_prefix(start)?;
    rest.split(|byte| *byte == b'\n').next()
}

/// A text with its length in front, and what follows.
fn text(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, rest) = length(bytes)?;
    rest.split_at_checked(length)
}

/// Go's `binary.Uvarint`, as far as a length goes.
fn length(bytes: &[u8]) -> Option<(usize, &[u8])> {
    let (mut value, mut shift) = (0_usize, 0);
    for (index, byte) in bytes.iter().take(3).enumerate() {
        value |= usize::from(byte & 0x7f) << shift;
        shift += 7;
        if byte & 0x80 == 0 {
            return Some((value, bytes.get(index + 1..)?));
        }
    }
    None
}

fn short(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn long(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_ne_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_go_program_says_what_it_is() {
        let mut info = b"\xff Go buildinf:\x08\x02".to_vec();
        info.resize(BUILD_HEAD, 0);
        info.extend(b"\x06go1.22\xc8\x01");
        info.extend([b'?'; 16]);
        info.extend(b"path\tgithub.com/opencontainers/runc\nmod\tx");
        assert_eq!(package(&info), Some(RUNC));
        assert_eq!(package(&info[..BUILD_HEAD + 5]), None);
        info[FLAGS] = 0;
        assert_eq!(package(&info), None);
        assert_eq!(package(b""), None);
    }

    #[test]
    fn a_program_that_is_not_known_is_none() {
        for path in ["/bin/sh", "/etc/passwd", "/nonesuch", "/"] {
            assert_eq!(known(Path::new(path)), None, "{path}");
        }
        assert!(Elf::open(Path::new("/proc/self/exe")).unwrap().main_package().is_none());
    }

    #[test]
    fn the_name_leads_to_the_file() {
        assert_eq!(find("/bin/sh").map(|found| found.0), Some("/bin/sh".into()));
        assert!(find("sh").is_some() && find("cleat-nonesuch").is_none() && find("/").is_none());
    }
}
