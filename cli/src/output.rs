//! Text for people: tables, units, colours.

use std::io::{IsTerminal, Write};

/// Columns that are as wide as their widest cell, two spaces between.
pub(crate) struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    pub(crate) fn new(head: &[&str]) -> Self {
        Self { rows: vec![head.iter().map(|cell| (*cell).to_owned()).collect()] }
    }

    pub(crate) fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.rows.push(cells.into_iter().map(|cell| plain(&cell)).collect());
    }

    fn widths(&self) -> Vec<usize> {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let width = |column: usize| {
            let cells = self.rows.iter().filter_map(|row| row.get(column));
            cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
        };
        (0..columns).map(width).collect()
    }

    /// Makes it as narrow as a screen: the columns named go, one after the other, until it fits;
    /// then the widest is cut.
    pub(crate) fn fit(mut self, screen: usize, less_wanted: &[&str]) -> Self {
        const GAP: usize = 2;
        /// Narrower than this nothing can be read.
        const NARROWEST: usize = 6;
        let whole =
            |widths: &[usize]| widths.iter().sum::<usize>() + GAP * widths.len().saturating_sub(1);
        for name in less_wanted {
            if whole(&self.widths()) <= screen {
                return self;
            }
            if let Some(column) = self.rows[0].iter().position(|head| head == name) {
                for row in self.rows.iter_mut().filter(|row| row.len() > column) {
                    row.remove(column);
                }
            }
        }
        loop {
            let widths = self.widths();
            let excess = whole(&widths).saturating_sub(screen);
            let Some((column, widest)) =
                widths.iter().copied().enumerate().max_by_key(|(_, width)| *width)
            else {
                return self;
            };
            if excess == 0 || widest <= NARROWEST {
                return self;
            }
            let second = widths.iter().copied().filter(|width| *width < widest).max().unwrap_or(0);
            let wanted = (widest - excess.min(widest)).max(second.min(widest - 1)).max(NARROWEST);
            for cell in self.rows.iter_mut().filter_map(|row| row.get_mut(column)) {
                if cell.chars().count() > wanted {
                    *cell = cell.chars().take(wanted - 1).chain(['…']).collect();
                }
            }
        }
    }

    pub(crate) fn lines(&self) -> Vec<String> {
        let widths = self.widths();
        let line = |row: &Vec<String>| {
            let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}"));
            cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
        };
        self.rows.iter().map(line).collect()
    }
}

/// Columns of the terminal on stdout; of anything else, as many as there are.
pub(crate) fn screen() -> usize {
    if !std::io::stdout().is_terminal() {
        return usize::MAX;
    }
    let size =
        rustix::termios::tcgetwinsize(std::io::stdout()).map(|size| usize::from(size.ws_col));
    size.ok().filter(|columns| *columns > 0).unwrap_or(80)
}

/// Writes lines; a broken pipe is the caller's to know.
pub(crate) fn print(lines: &[String]) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    for line in lines {
        writeln!(out, "{line}")?;
    }
    Ok(out.flush()?)
}

/// A value as JSON, in several lines.
pub(crate) fn print_json(value: &impl serde::Serialize) -> anyhow::Result<()> {
    print(&[serde_json::to_string_pretty(value)?])
}

/// Without what could steer a terminal: names come from config.json files, which are written by
/// whoever makes containers.
pub(crate) fn plain(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}

/// Whether to use colours.
pub(crate) fn has_colours() -> bool {
    std::io::stdout().is_terminal()
        && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

/// A colour's text, or the text alone.
pub(crate) fn coloured(code: u8, text: &str) -> String {
    if has_colours() { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
}

/// `1.5 MiB`.
pub(crate) fn bytes(count: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    if count < 1024 {
        return format!("{count} B");
    }
    let mut tenths = u128::from(count) * 10 / 1024;
    let mut unit = 0;
    while tenths >= 10_240 && unit + 1 < UNITS.len() {
        tenths /= 1024;
        unit += 1;
    }
    match tenths {
        0..100 => format!("{}.{} {}", tenths / 10, tenths % 10, UNITS[unit]),
        _ => format!("{} {}", tenths / 10, UNITS[unit]),
    }
}

/// `3d4h`, `12m`, `5s`: the two largest units.
pub(crate) fn age(seconds: u64) -> String {
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{}m{}s", seconds / 60, seconds % 60),
        3600..86_400 => format!("{}h{}m", seconds / 3600, seconds / 60 % 60),
        _ => format!("{}d{}h", seconds / 86_400, seconds / 3600 % 24),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units() {
        assert_eq!(
            [0, 1023, 1024, 1536, 10 << 20, 3 << 40].map(bytes),
            ["0 B", "1023 B", "1.0 KiB", "1.5 KiB", "10 MiB", "3.0 TiB"]
        );
        assert_eq!([5, 65, 3700, 90_000].map(age), ["5s", "1m5s", "1h1m", "1d1h"]);
    }

    #[test]
    fn a_table_fits_the_screen() {
        let mut table = Table::new(&["PID", "POD", "FDS", "AGE"]);
        table.row([
            "4711".into(),
            "namespace/a-pod-with-quite-a-long-name".into(),
            "12".into(),
            "3d4h".into(),
        ]);
        let lines = table.fit(30, &["FDS", "PSS"]).lines();
        assert_eq!(lines, ["PID   POD                 AGE", "4711  namespace/a-pod-w…  3d4h"]);
        let mut table = Table::new(&["A", "B"]);
        table.row(["x".into(), "y".into()]);
        assert_eq!(table.fit(80, &["A"]).lines(), ["A  B", "x  y"]);
    }

    #[test]
    fn nothing_steers_the_terminal() {
        let mut table = Table::new(&["A", "B"]);
        table.row(["\x1b[2Jx".to_owned(), "y\n".to_owned()]);
        assert_eq!(table.lines(), ["A      B", "?[2Jx  y?"]);
    }
}
