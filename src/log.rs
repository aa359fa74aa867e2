//! logfmt lines into the bundle's `log` fifo, which containerd copies into its own log. Never
//! blocks, never kills: the fifo is open in both directions and non-blocking; a line that does not
//! fit is dropped and counted.

use crate::protocol::{Timestamp, inspect::Problem};
use log::{Level, LevelFilter, Log, Metadata, Record};
use rustix::fs::{Mode, OFlags};
use std::{
    collections::VecDeque,
    fmt::Write as _,
    io,
    path::Path,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

/// Longest line, bytes: what a pipe takes in one piece (PIPE_BUF), so that lines never mix.
const MAX_LINE: usize = 4096;

/// Warnings and errors that are kept for whoever asks, and the most characters of one.
const MAX_PROBLEMS: usize = 16;
const MAX_PROBLEM: usize = 256;

static PROBLEMS: Mutex<VecDeque<Problem>> = Mutex::new(VecDeque::new());
static DROPPED: AtomicU64 = AtomicU64::new(0);
static LOGGER: Logfmt = Logfmt;

struct Logfmt;

/// Makes `fifo` our stderr and the logger's sink. Without the fifo (started by hand) stderr stays
/// what it is.
pub fn open(fifo: &Path, debug: bool) -> io::Result<()> {
    let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC;
    match rustix::fs::open(fifo, flags, Mode::empty()) {
        Ok(fd) => rustix::stdio::dup2_stderr(&fd)?,
        Err(rustix::io::Errno::NOENT) => {}
        Err(e) => return Err(e.into()),
    }
    // The first call wins; there is only one.
    let _ = log::set_logger(&LOGGER);
    log::set_max_level(if debug { LevelFilter::Debug } else { LevelFilter::Info });
    Ok(())
}

impl Log for Logfmt {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= log::max_level()
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let level = match record.level() {
            Level::Error => "error",
            Level::Warn => "warning",
            Level::Info => "info",
            Level::Debug | Level::Trace => "debug",
        };
        let now = Timestamp::now();
        if record.level() <= Level::Warn {
            keep(now, level, &record.args().to_string());
        }
        let dropped = DROPPED.swap(0, Ordering::Relaxed);
        let mut text = String::with_capacity(160);
        let _ = write!(text, "{}", record.args());
        let line = line(now, level, &text, dropped);
        if rustix::io::write(rustix::stdio::stderr(), line.as_bytes()).is_err() {
            DROPPED.fetch_add(dropped + 1, Ordering::Relaxed);
        }
    }

    fn flush(&self) {}
}

/// The last warnings and errors, oldest first.
pub fn problems() -> Vec<Problem> {
    PROBLEMS.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect()
}

fn keep(at: Timestamp, level: &str, text: &str) {
    let mut problems = PROBLEMS.lock().unwrap_or_else(PoisonError::into_inner);
    if problems.len() == MAX_PROBLEMS {
        problems.pop_front();
    }
    let text = text.chars().take(MAX_PROBLEM).collect();
    problems.push_back(Problem { at: Some(at), level: level.to_owned(), text });
}

fn line(at: Timestamp, level: &str, text: &str, dropped: u64) -> String {
    let mut line = format!("time=\"{}\" level={level} msg=\"", rfc3339(at));
    for c in text.chars() {
        if line.len() > MAX_LINE - 64 {
            line.push('…');
            break;
        }
        match c {
            '"' | '\\' => {
                line.push('\\');
                line.push(c);
            }
            '\n' => line.push_str("\\n"),
            c if c.is_control() => {
                let _ = write!(line, "\\x{:02x}", u32::from(c));
            }
            c => line.push(c),
        }
    }
    line.push_str("\" shim=cleat");
    if dropped > 0 {
        let _ = write!(line, " lines_dropped={dropped}");
    }
    line.push('\n');
    line
}

/// UTC, nanoseconds, as containerd writes it. Days to date after Howard Hinnant's "days from
/// civil".
pub fn rfc3339(at: Timestamp) -> String {
    let days = at.seconds.div_euclid(86_400);
    let second = at.seconds.rem_euclid(86_400);
    let shifted = days + 719_468;
    let era = shifted.div_euclid(146_097);
    let day_of_era = shifted.rem_euclid(146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_index = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_index + 2) / 5 + 1;
    let month = if month_index < 10 { month_index + 3 } else { month_index - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    format!(
        "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}.{:09}Z",
        second / 3600,
        second / 60 % 60,
        second % 60,
        at.nanos
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_logfmt_and_nothing_breaks_out() {
        let at = Timestamp { seconds: 1_795_536_000, nanos: 5 };
        assert_eq!(
            line(at, "info", "a \"b\"\nc\x1b", 2),
            "time=\"2026-11-24T16:00:00.000000005Z\" level=info msg=\"a \\\"b\\\"\\nc\\x1b\" shim=cleat lines_dropped=2\n"
        );
        assert!(line(at, "info", &"x".repeat(100_000), 0).len() <= MAX_LINE);
    }

    #[test]
    fn dates() {
        for (seconds, text) in
            [(0, "1970-01-01"), (951_782_400, "2000-02-29"), (4_107_542_399, "2100-02-28")]
        {
            assert!(rfc3339(Timestamp { seconds, nanos: 0 }).starts_with(text), "{text}");
        }
    }
}
