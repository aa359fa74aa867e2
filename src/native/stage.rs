//! How far a process has come that was to become a program, by the kernel's word: what it says
//! itself may be somebody else's.

use crate::bundle::read_bounded;
use std::path::Path;

/// How far it has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// It is still ours.
    Before,
    /// It has ended, and has never been a program.
    Never,
    /// It is, or was, a program.
    Program,
}

/// linux/sched.h: cleared by execve(2), and by nothing else.
const PF_FORKNOEXEC: u64 = 0x40;

/// Of a child of ours that has not been reaped. What cannot be told counts as a program: it is not
/// run again.
pub fn of(pid: u32) -> Stage {
    let text = read_bounded(Path::new(&format!("/proc/{pid}/stat")), 4096).unwrap_or_default();
    parse(&String::from_utf8_lossy(&text)).unwrap_or(Stage::Program)
}

/// proc_pid_stat(5).
fn parse(text: &str) -> Option<Stage> {
    let (_, fields) = text.rsplit_once(')')?;
    let mut fields = fields.split_whitespace();
    let (state, flags) = (fields.next()?, fields.nth(5)?.parse::<u64>().ok()?);
    Some(match (flags & PF_FORKNOEXEC, state) {
        (0, _) => Stage::Program,
        (_, "Z" | "X") => Stage::Never,
        _ => Stage::Before,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn by_what_stat_says() {
        let stat = |state: char, flags: u64| format!("7 (a) b) {state} 1 2 3 0 -1 {flags} 9 9\n");
        assert_eq!(parse(&stat('S', 0x40_0040)), Some(Stage::Before));
        assert_eq!(parse(&stat('Z', 0x40_0044)), Some(Stage::Never));
        assert_eq!(parse(&stat('Z', 0x40_0104)), Some(Stage::Program));
        assert_eq!(parse(&stat('R', 0x40_0000)), Some(Stage::Program));
        assert_eq!(parse("7 (a) Z 1 2 3"), None);
        assert_eq!(of(std::process::id()), Stage::Program);
        assert_eq!(of(u32::MAX), Stage::Program);
    }
}
