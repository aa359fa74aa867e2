//! Text between marks in a file of the user's.
//!
//! ```text
//! # >>> cleat install: handler cleat [9d3f…]
//! [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.cleat]
//! runtime_type = "io.containerd.cleat.v2"
//! # <<< cleat install: handler cleat
//! ```
//!
//! The number is that of the lines between, so that edits by hand are seen. A single key in a table
//! of the user's carries its mark on its own line, and the line that it has replaced stands before
//! it as a comment.

use toml_edit::DocumentMut;

const BEGIN: &str = "# >>> cleat install: ";
const END: &str = "# <<< cleat install: ";
/// The user's last line had no end, and is to have none again.
const NO_NEWLINE: &str = " (no newline before)";
/// At the end of a line that is ours.
const OURS: &str = " # cleat install";
/// Before a line that is the user's, and sleeps while ours is there.
const BEFORE: &str = "# cleat install, before: ";

/// What a file's lines hash to (FNV-1a): tells whether they are as they were written.
fn number(text: &str) -> String {
    let hash = text.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    format!("{hash:016x}")
}

/// A block of ours, to be put at the end of a file or printed.
pub(crate) fn block(name: &str, body: &str) -> String {
    format!("{BEGIN}{name} [{}]\n{body}{END}{name}\n", number(body))
}

/// The text with a block at its end.
pub(crate) fn append(text: &str, name: &str, body: &str) -> String {
    let block = block(name, body);
    if text.is_empty() || text.ends_with('\n') {
        return format!("{text}{block}");
    }
    let (first, rest) = block.split_once('\n').unwrap_or((&block, ""));
    format!("{text}\n{first}{NO_NEWLINE}\n{rest}")
}

/// Names of the blocks in a text.
pub(crate) fn names(text: &str) -> Vec<String> {
    let name = |line: &str| Some(line.strip_prefix(BEGIN)?.split(" [").next()?.to_owned());
    text.lines().filter_map(name).collect()
}

/// A block's place in a text, and its lines.
pub(crate) struct Found {
    /// The text without it.
    pub(crate) rest: String,
    /// It is not as we wrote it.
    pub(crate) edited: bool,
}

/// Takes a block out; `None` if it is not there, or has no end.
pub(crate) fn take(text: &str, name: &str) -> Option<Found> {
    let lines: Vec<&str> = text.split_inclusive('\n').collect();
    let begin = format!("{BEGIN}{name} [");
    let first = lines.iter().position(|line| line.starts_with(&begin))?;
    let end = format!("{END}{name}");
    let last = first + lines[first..].iter().position(|line| line.trim_end() == end)?;
    let body: String = lines[first + 1..last].concat();
    let mut before: String = lines[..first].concat();
    let mut after = lines[last + 1..].concat();
    if lines[first].trim_end().ends_with(NO_NEWLINE) {
        if after.is_empty() {
            before.pop();
        } else if after.starts_with(BEGIN)
            && let Some((head, rest)) = after.split_once('\n')
        {
            // The next block stands after that line now.
            after = format!("{head}{NO_NEWLINE}\n{rest}");
        }
    }
    let said = lines[first].split('[').nth(1).and_then(|rest| rest.split(']').next());
    Some(Found { rest: before + &after, edited: said != Some(number(&body).as_str()) })
}

fn line_of(key: &str, value: &str) -> String {
    format!("{key} = {value:?}")
}

/// Sets a key of an explicit table `path` to a text; `None` if the file has no such table of its
/// own.
pub(crate) fn set(text: &str, path: &[&str], key: &str, value: &str) -> Option<String> {
    let ours = format!("{}{OURS}", line_of(key, value));
    let mut lines: Vec<String> = text.split_inclusive('\n').map(str::to_owned).collect();
    let head = lines.iter().position(|line| is_head(line, path))?;
    let end = lines[head + 1..]
        .iter()
        .position(|line| line.trim_start().starts_with('['))
        .map_or(lines.len(), |length| head + 1 + length);
    let is_key = |line: &String| {
        line.trim_start().strip_prefix(key).is_some_and(|rest| rest.trim_start().starts_with('='))
    };
    match (head + 1..end).find(|at| is_key(&lines[*at])) {
        Some(at) => {
            // A key of ours for another handler: its own line before stays what it is.
            let indent: String = lines[at].chars().take_while(|c| c.is_whitespace()).collect();
            let newline = if lines[at].ends_with('\n') { "\n" } else { "" };
            if lines[at].trim_end().ends_with(OURS) {
                lines[at] = format!("{indent}{ours}{newline}");
            } else {
                let line = lines[at].trim_end_matches('\n').to_owned();
                lines[at] = format!("{BEFORE}{line}\n{indent}{ours}{newline}");
            }
        }
        None => {
            let newline = lines[head].ends_with('\n');
            if newline {
                lines.insert(head + 1, format!("{ours}\n"));
            } else {
                lines[head].push('\n');
                lines.insert(head + 1, ours);
            }
        }
    }
    Some(lines.concat())
}

/// Takes the key back, if the line is ours and has this value: what stood there before comes back.
pub(crate) fn unset(text: &str, key: &str, value: &str) -> Option<String> {
    let ours = format!("{}{OURS}", line_of(key, value));
    let mut lines: Vec<String> = text.split_inclusive('\n').map(str::to_owned).collect();
    let at = lines.iter().position(|line| line.trim() == ours)?;
    let had_newline = lines[at].ends_with('\n');
    lines.remove(at);
    if at > 0
        && let Some(line) = lines[at - 1].strip_prefix(BEFORE)
    {
        let line = line.trim_end_matches('\n');
        lines[at - 1] = format!("{line}{}", if had_newline { "\n" } else { "" });
    } else if !had_newline && at > 0 {
        let trimmed = lines[at - 1].trim_end_matches('\n').to_owned();
        lines[at - 1] = trimmed;
    }
    Some(lines.concat())
}

/// Whether a line is the head of the table with this path.
fn is_head(line: &str, path: &[&str]) -> bool {
    let line = line.trim();
    if !line.starts_with('[') || line.starts_with("[[") {
        return false;
    }
    let Ok(document) = line.parse::<DocumentMut>() else { return false };
    let mut table = document.as_table();
    for name in path {
        match table.get(name).and_then(|item| item.as_table()) {
            Some(next) => table = next,
            None => return false,
        }
    }
    table.is_empty()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "version = 2 # mine\n[plugins.'x'.containerd] # keep\n  default_runtime_name = \"runc\" # why\n[proxy_plugins]\n";
    const PATH: [&str; 3] = ["plugins", "x", "containerd"];

    #[test]
    fn a_block_comes_out_to_the_byte() {
        for text in ["", "a = 1", "a = 1\n", "# only\n\n\n", TEXT] {
            let with = append(&append(text, "runc", "[r]\n"), "handler a", "[x]\ny = 1\n");
            assert_eq!(names(&with), ["runc", "handler a"]);
            let found = take(&with, "handler a").unwrap();
            assert!(!found.edited);
            let found = take(&found.rest, "runc").unwrap();
            assert_eq!((found.rest.as_str(), found.edited), (text, false));
            let found = take(&with, "runc").unwrap();
            assert_eq!(take(&found.rest, "handler a").unwrap().rest, text);
            let edited = with.replace("y = 1\n", "y = 1\nz = 2\n");
            assert!(take(&edited, "handler a").unwrap().edited);
        }
        assert!(
            take("# >>> cleat install: handler a [0]\n", "handler a").is_none(),
            "it has no end"
        );
    }

    #[test]
    fn a_key_comes_out_to_the_byte() {
        let without = TEXT.replace("  default_runtime_name = \"runc\" # why\n", "");
        for text in [
            TEXT,
            &without,
            "[plugins.x.containerd]",
            "[plugins.x.containerd]\n  default_runtime_name='k'",
        ] {
            let with = set(text, &PATH, "default_runtime_name", "cleat").unwrap();
            let document: DocumentMut = with.parse().unwrap();
            assert_eq!(
                document["plugins"]["x"]["containerd"]["default_runtime_name"].as_str(),
                Some("cleat"),
                "{with}"
            );
            let other = set(&with, &PATH, "default_runtime_name", "other").unwrap();
            assert!(unset(&other, "default_runtime_name", "cleat").is_none());
            assert_eq!(unset(&other, "default_runtime_name", "other").unwrap(), text);
            assert_eq!(unset(&with, "default_runtime_name", "cleat").unwrap(), text);
        }
        assert!(
            set("[plugins.x.containerd.runtimes]\n", &PATH, "default_runtime_name", "cleat")
                .is_none()
        );
        // By hand, since: not ours any more.
        let with = set(TEXT, &PATH, "default_runtime_name", "cleat").unwrap();
        assert!(
            unset(&with.replace("\"cleat\"", "\"kata\""), "default_runtime_name", "cleat")
                .is_none()
        );
    }
}
