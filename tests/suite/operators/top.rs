//! `cleat top` on a terminal of 80 columns and 24 rows.

use super::cleat;
use crate::support::{CLEAT, Rig, Terminal, until};

const DOWN: &[u8] = b"\x1b[B";
const UP: &[u8] = b"\x1b[A";
const PAGE_DOWN: &[u8] = b"\x1b[6~";
const PAGE_UP: &[u8] = b"\x1b[5~";
const HOME: &[u8] = b"\x1b[H";
const END: &[u8] = b"\x1b[F";
/// Lines of the table that fit below two lines and its head.
const PAGE: usize = 21;

/// A screen of it, without colours: the last that is whole.
fn screen(seen: &str) -> Option<Vec<String>> {
    let (whole, _) = seen.rsplit_once("\x1b[J")?;
    let (_, last) = whole.rsplit_once("\x1b[1;1H")?;
    let plain = |line: &str| {
        ["\x1b[7m", "\x1b[0m", "\x1b[K"].iter().fold(line.to_owned(), |l, c| l.replace(c, ""))
    };
    let lines: Vec<String> = last.split("\r\n").map(plain).collect();
    assert!(lines.len() <= 24 && lines.iter().all(|line| line.chars().count() <= 80), "{lines:#?}");
    Some(lines)
}

struct Top {
    terminal: Terminal,
    prefix: String,
}

impl Top {
    fn new(prefix: &str, more: &[&str]) -> Self {
        let words = [&["top", "--interval", "0.5"], more].concat();
        Self { terminal: Terminal::spawn(cleat(&words)), prefix: prefix.to_owned() }
    }

    /// Types, and waits until the screen is as wanted; what is asked has all lines and the rows'
    /// names.
    fn shows(
        &mut self,
        keys: &[u8],
        what: &str,
        holds: impl Fn(&[String], &[String]) -> bool,
    ) -> Vec<String> {
        let from = self.terminal.shown().len();
        self.terminal.write(keys);
        loop {
            self.terminal.read_more();
            let seen = &self.terminal.shown()[from..];
            let Some(lines) = screen(seen) else { continue };
            let rows: Vec<String> = lines
                .iter()
                .skip(3)
                .filter_map(|line| line.split_whitespace().next().map(str::to_owned))
                .collect();
            if holds(&lines, &rows) {
                return lines;
            }
            assert!(seen.matches("\x1b[1;1H").count() < 300, "{what}: {lines:#?}");
        }
    }

    /// The same, of the numbers of our containers.
    fn rows(
        &mut self,
        keys: &[u8],
        what: &str,
        wanted: impl IntoIterator<Item = usize>,
    ) -> Vec<String> {
        let wanted: Vec<String> =
            wanted.into_iter().map(|number| format!("{}{number:02}", self.prefix)).collect();
        self.shows(keys, what, |_, rows| rows == wanted)
    }
}

#[test]
fn top_scrolls_filters_and_shows_its_keys_in_80_columns() {
    let rig = Rig::new();
    // Ids are shown up to their twelfth character.
    let prefix = format!("t{}-", std::process::id());
    let first = format!("{prefix}00");
    let all = 26;
    rig.run(&first, &["sleep", "1000"]);
    for number in 1..all {
        rig.run_in_group(&first, &format!("{prefix}{number:02}"), &["sleep", "1000"]);
    }
    let mut top = Top::new(&prefix, &["--sort", "pid", "--filter", &prefix]);
    let lines = top.rows(b"", "the first page", 0..PAGE);
    let is_whole = |keys: &str| {
        ["c", "m", "i", "s", "p", "scroll", "/ filter", "q quit"]
            .iter()
            .all(|key| keys.contains(key))
    };
    assert!(lines[0].contains(&format!("1-{PAGE} of {all}")), "{lines:#?}");
    assert!(is_whole(&lines[1]) && lines[1].contains(&prefix), "{}", lines[1]);
    assert!(
        lines[2].contains("CONTAINER") && lines[2].contains("CPU %") && lines[2].contains("MEMORY")
    );
    let lines = top.rows(DOWN, "a line down", 1..=PAGE);
    assert!(lines[0].contains(&format!("2-{} of {all}", PAGE + 1)), "{lines:#?}");
    top.rows(b"j", "another", 2..PAGE + 2);
    top.rows(UP, "a line up", 1..=PAGE);
    top.rows(b"k", "another", 0..PAGE);
    top.rows(UP, "there is no line above", 0..PAGE);
    top.rows(PAGE_DOWN, "a page down, as far as there is something", all - PAGE..all);
    top.rows(DOWN, "there is no line below", all - PAGE..all);
    top.rows(PAGE_UP, "a page up", 0..PAGE);
    top.rows(END, "the end", all - PAGE..all);
    // It is where it was, not somewhere below.
    top.rows(UP, "a line up from the end", all - PAGE - 1..all - 1);
    top.rows(HOME, "the beginning", 0..PAGE);
    top.rows(b" ", "a page down", all - PAGE..all);
    // The other way round, from its beginning.
    top.rows(b"p", "the last first", (all - PAGE..all).rev());
    top.rows(b"p", "the first first", 0..PAGE);
    // All that is on this machine.
    let lines =
        top.shows(b"\x1b", "the filter is taken back", |lines, _| !lines[1].contains(&prefix));
    assert!(is_whole(&lines[1]) && lines[1].starts_with("c CPU"), "{}", lines[1]);
    // As it is typed; q is a letter.
    let lines = top.shows(b"/", "what is typed", |lines, _| lines[1].starts_with('/'));
    assert!(lines[1].contains("enter") && lines[1].contains("escape"), "{}", lines[1]);
    top.shows(b"qx", "nothing has it", |lines, rows| {
        lines[1].starts_with("/qx") && rows.is_empty()
    });
    let wanted = format!("\x7f\x7f{}1", prefix.to_uppercase());
    top.rows(wanted.as_bytes(), "those with it, in whichever case", 10..20);
    let lines = top.rows(b"\r", "they stay", 10..20);
    assert!(is_whole(&lines[1]) && lines[1].starts_with("only"), "{}", lines[1]);
    // However much was typed, the keys are there.
    let lines =
        top.shows(format!("/{}\r", "x".repeat(100)).as_bytes(), "a long one", |lines, rows| {
            lines[1].starts_with("only") && rows.is_empty()
        });
    assert!(is_whole(&lines[1]), "{}", lines[1]);
    top.shows(b"\x1b", "none again", |lines, _| lines[1].starts_with("c CPU"));
    top.terminal.write(b"\x1b");
    let (seen, status) = top.terminal.end();
    assert!(
        status.success() && seen.ends_with("\x1b[?1049l\x1b[?25h"),
        "the screen was not given back"
    );
    for number in (0..all).rev() {
        rig.remove(&format!("{prefix}{number:02}"));
    }
}

#[test]
fn top_sorts_by_each_of_its_keys() {
    let rig = Rig::new();
    let prefix = format!("t{}-", std::process::id());
    let id = |number: usize| format!("{prefix}{number:02}");
    rig.run(&id(0), &["sh", "-c", "while :; do :; done"]);
    // 32 MiB in its memory.
    rig.run(&id(1), &["sh", "-c", "head -c 33554432 /dev/zero | tail -c 33554432 | sleep 1000"]);
    rig.run_with(&["--runtime", CLEAT], &id(2), &["sleep", "1000"]);
    let mut top = Top::new(&prefix, &["--filter", &prefix]);
    let is_first = |number: usize| {
        let id = id(number);
        move |_: &[String], rows: &[String]| rows.len() == 3 && rows[0] == id
    };
    let is_last = |number: usize| {
        let id = id(number);
        move |_: &[String], rows: &[String]| rows.len() == 3 && rows[2] == id
    };
    top.shows(b"", "who computes is first", is_first(0));
    top.shows(b"m", "then who has memory", is_first(1));
    top.shows(b"m", "who has least", is_last(1));
    top.shows(b"c", "CPU again", is_first(0));
    top.shows(b"c", "the other way round", is_last(0));
    // Shims were started in this order, and pids do not wrap around here within a test's time.
    let mut pids = [0, 1, 2].map(|number| {
        let shims = rig.shims().into_iter();
        let of = |pid: &u32| crate::support::cmdline(*pid).contains(&id(number));
        (shims.clone().find(of).unwrap(), number)
    });
    pids.sort_unstable();
    let ordered = pids.map(|(_, number)| number);
    top.rows(b"p", "by pid", ordered);
    top.rows(b"p", "from the greatest", ordered.into_iter().rev());
    for key in [b"i", b"s"] {
        top.shows(key, "three", |_, rows| rows.len() == 3);
    }
    // Control-C ends it, too.
    top.terminal.write(b"\x03");
    let (_, status) = top.terminal.end();
    assert!(status.success());
    for number in 0..3 {
        rig.remove(&id(number));
    }
}

#[test]
fn it_ends_with_its_terminal() {
    let mut terminal = Terminal::spawn(cleat(&["top", "--interval", "60"]));
    terminal.read_until("\x1b[J");
    let mut top = terminal.hang_up();
    until("it has ended", || top.try_wait().unwrap().is_some());
}
