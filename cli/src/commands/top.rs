//! `cleat top`.

use super::ps;
use crate::{
    args::{Sort, Top},
    node::{self, Usage},
    output::{self, Table},
};
use anyhow::{Result, bail};
use crossterm::{
    cursor,
    event::{self, Event, KeyCode, KeyEvent, KeyModifiers},
    execute,
    terminal::{self, ClearType},
};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
};
use std::{
    collections::HashMap,
    io::{IsTerminal, Write},
    process::ExitCode,
    time::{Duration, Instant},
};

/// Shortest time between two looks, seconds.
const SHORTEST: f64 = 0.1;

pub(super) async fn run(command: Top) -> Result<ExitCode> {
    node::check_sight()?;
    if !command.interval.is_finite() || command.interval < SHORTEST {
        bail!("--interval {}: at least {SHORTEST} s", command.interval);
    }
    let interval = Duration::from_secs_f64(command.interval);
    let is_terminal = std::io::stdout().is_terminal() && std::io::stdin().is_terminal();
    let mut view = View { sort: command.sort, filter: command.filter.clone(), ..View::default() };
    let mut before = look().await;
    if command.batch || !is_terminal {
        let mut printed = 0;
        while command.count == 0 || printed < command.count {
            tokio::time::sleep(interval).await;
            let now = look().await;
            output::print(&now.lines(&before, &mut view, usize::MAX, usize::MAX))?;
            before = now;
            printed += 1;
        }
        return Ok(ExitCode::SUCCESS);
    }
    let screen = Screen::enter()?;
    // The first picture comes soon: rates need two looks.
    let mut wait = Duration::from_millis(300);
    let mut now = None;
    let mut printed = 0;
    loop {
        let until = Instant::now() + wait;
        loop {
            if let Some(now) = &now {
                screen.draw(|columns, rows| Look::lines(now, &before, &mut view, columns, rows))?;
            }
            let left = until.saturating_duration_since(Instant::now());
            match wait_for_key(left)? {
                Waited::Gone => return Ok(ExitCode::SUCCESS),
                Waited::Key => {}
                Waited::Nothing if left.is_zero() => break,
                Waited::Nothing => continue,
            }
            if let Event::Key(key) = event::read()?
                && view.press(key)
            {
                return Ok(ExitCode::SUCCESS);
            }
        }
        if let Some(now) = now.take() {
            before = now;
        }
        now = Some(look().await);
        wait = interval;
        printed += 1;
        if command.count > 0 && printed > command.count {
            return Ok(ExitCode::SUCCESS);
        }
    }
}

enum Waited {
    Key,
    /// Until the end of the time, or for a change of the terminal's size.
    Nothing,
    /// The terminal was closed.
    Gone,
}

/// Waits for a key. crossterm would read the end of a terminal that is closed again and again.
fn wait_for_key(limit: Duration) -> Result<Waited> {
    // What was read with an earlier key is not in the terminal any more.
    for limit in [Duration::ZERO, limit] {
        if is_gone_within(limit)? {
            return Ok(Waited::Gone);
        }
        if event::poll(Duration::ZERO)? {
            return Ok(Waited::Key);
        }
    }
    Ok(Waited::Nothing)
}

/// Waits for something to read; whether nothing will ever come.
fn is_gone_within(limit: Duration) -> Result<bool> {
    let stdin = rustix::stdio::stdin();
    let mut asked = [PollFd::new(&stdin, PollFlags::IN)];
    match poll(&mut asked, Some(&Timespec::try_from(limit)?)) {
        Ok(_) | Err(Errno::INTR) => {}
        Err(e) => return Err(e.into()),
    }
    Ok(asked[0].revents().intersects(PollFlags::HUP | PollFlags::ERR | PollFlags::NVAL))
}

/// What of it is shown, and how.
#[derive(Default)]
struct View {
    sort: Sort,
    /// The other way round.
    reversed: bool,
    /// Lines that are scrolled over.
    offset: usize,
    /// Only lines with this text.
    filter: String,
    /// It is being typed.
    typing: bool,
    /// Lines of the table on the screen.
    page: usize,
}

impl View {
    /// Whether it is the end.
    fn press(&mut self, key: KeyEvent) -> bool {
        if key.modifiers.contains(KeyModifiers::CONTROL) && key.code == KeyCode::Char('c') {
            return true;
        }
        if self.typing {
            match key.code {
                KeyCode::Enter => self.typing = false,
                KeyCode::Esc => {
                    self.typing = false;
                    self.filter.clear();
                }
                KeyCode::Backspace => drop(self.filter.pop()),
                KeyCode::Char(c) => self.filter.push(c),
                _ => {}
            }
            self.offset = 0;
            return false;
        }
        let page = self.page.max(1);
        match key.code {
            KeyCode::Char('q') => return true,
            KeyCode::Esc if self.filter.is_empty() => return true,
            KeyCode::Esc => self.filter.clear(),
            KeyCode::Char('/') => self.typing = true,
            KeyCode::Char('c') => self.by(Sort::Cpu),
            KeyCode::Char('m') => self.by(Sort::Memory),
            KeyCode::Char('i') => self.by(Sort::Io),
            KeyCode::Char('s') => self.by(Sort::Shim),
            KeyCode::Char('p') => self.by(Sort::Pid),
            KeyCode::Down | KeyCode::Char('j') => self.offset += 1,
            KeyCode::Up | KeyCode::Char('k') => self.offset = self.offset.saturating_sub(1),
            KeyCode::PageDown | KeyCode::Char(' ') => self.offset += page,
            KeyCode::PageUp => self.offset = self.offset.saturating_sub(page),
            KeyCode::Home => self.offset = 0,
            KeyCode::End => self.offset = usize::MAX / 2,
            _ => {}
        }
        false
    }

    fn by(&mut self, sort: Sort) {
        self.reversed = self.sort == sort && !self.reversed;
        self.sort = sort;
        self.offset = 0;
    }

    /// The line of keys, or what is being typed; of a long text its end.
    fn keys(&self, columns: usize) -> String {
        let around = |before: &str, text: &str, after: &str| {
            let room = columns.saturating_sub(before.chars().count() + after.chars().count());
            let over = text.chars().count().saturating_sub(room);
            let text: String = match over {
                0 => text.to_owned(),
                _ => format!("…{}", text.chars().skip(over + 1).collect::<String>()),
            };
            format!("{before}{text}{after}")
        };
        match (self.typing, self.filter.as_str()) {
            (true, text) => around("/", text, "▏ enter: keep, escape: all"),
            (_, "") => {
                "c CPU  m memory  i I/O  s shim  p pid   ↑↓ scroll  / filter  q quit".to_owned()
            }
            (_, text) => around(
                "only ",
                text,
                "   escape: all  c m i s p: sort  ↑↓ scroll  / filter  q quit",
            ),
        }
    }
}

/// What was seen at a moment.
struct Look {
    at: Instant,
    rows: Vec<Row>,
    shims: usize,
}

struct Row {
    container: String,
    name: String,
    status: &'static str,
    usage: Usage,
    shim: String,
    shim_pid: u32,
    shim_cpu: f64,
    shim_kib: u64,
}

async fn look() -> Look {
    let shims = node::shims().await;
    let at = Instant::now();
    let rows = shims.iter().flat_map(|shim| {
        shim.containers.iter().map(move |container| {
            let name = container.name.as_deref().unwrap_or("-");
            Row {
                container: container.id.clone(),
                name: if shim.pod.is_some() {
                    format!("{} {name}", ps::pod(shim))
                } else {
                    ps::short(&container.id)
                },
                status: container.status,
                usage: container.usage,
                shim: ps::name(shim),
                shim_pid: shim.pid,
                shim_cpu: shim.cpu_seconds,
                shim_kib: shim.memory_kib.private,
            }
        })
    });
    Look { at, rows: rows.collect(), shims: shims.len() }
}

impl Look {
    fn lines(&self, before: &Self, view: &mut View, columns: usize, rows: usize) -> Vec<String> {
        let seconds = self.at.duration_since(before.at).as_secs_f64().max(0.001);
        let old: HashMap<(&str, u32), &Row> =
            before.rows.iter().map(|row| ((row.container.as_str(), row.shim_pid), row)).collect();
        let rate = |now: u64, then: u64| {
            #[expect(clippy::cast_precision_loss, reason = "a rate for people")]
            let difference = now.saturating_sub(then) as f64;
            difference / seconds
        };
        struct Figures<'a> {
            row: &'a Row,
            cpu: f64,
            block: f64,
            stream: f64,
            shim_cpu: f64,
        }
        let mut figures: Vec<Figures<'_>> = self
            .rows
            .iter()
            .map(|row| {
                let then = old.get(&(row.container.as_str(), row.shim_pid));
                let used = then.map_or(row.usage, |then| then.usage);
                Figures {
                    row,
                    cpu: rate(row.usage.cpu_ns, used.cpu_ns) / 1e7,
                    block: rate(row.usage.block_bytes, used.block_bytes),
                    stream: rate(row.usage.stream_bytes, used.stream_bytes),
                    shim_cpu: (row.shim_cpu - then.map_or(row.shim_cpu, |then| then.shim_cpu))
                        / seconds
                        * 100.0,
                }
            })
            .collect();
        figures.sort_by(|a, b| match view.sort {
            Sort::Cpu => b.cpu.total_cmp(&a.cpu),
            Sort::Memory => b.row.usage.memory_bytes.cmp(&a.row.usage.memory_bytes),
            Sort::Io => (b.block + b.stream).total_cmp(&(a.block + a.stream)),
            Sort::Shim => b.row.shim_kib.cmp(&a.row.shim_kib),
            Sort::Pid => a.row.shim_pid.cmp(&b.row.shim_pid),
        });
        if view.reversed {
            figures.reverse();
        }
        let running = self.rows.iter().filter(|row| row.status == "running").count();
        let mut shims: Vec<(u32, u64)> =
            self.rows.iter().map(|row| (row.shim_pid, row.shim_kib)).collect();
        shims.sort_unstable();
        shims.dedup();
        let private = shims.iter().map(|(_, kib)| kib).sum::<u64>() * 1024;
        let text = format!(
            "{} shims with {} private, {} containers, {running} running",
            self.shims,
            output::bytes(private),
            self.rows.len()
        );
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a rate for people, never negative"
        )]
        let per_second = |rate: f64| format!("{}/s", output::bytes(rate as u64));
        let mut table = Table::new(&[
            "CONTAINER",
            "STATUS",
            "CPU %",
            "MEMORY",
            "BLOCK I/O",
            "STREAMS",
            "SHIM",
            "PID",
            "SHIM CPU %",
            "SHIM MEM",
        ]);
        let wanted = view.filter.to_lowercase();
        let is_wanted = |row: &Row| {
            let texts =
                [&row.name, &row.container, &row.shim, row.status, &row.shim_pid.to_string()]
                    .map(str::to_lowercase);
            wanted.is_empty() || texts.iter().any(|text| text.contains(&wanted))
        };
        figures.retain(|figures| is_wanted(figures.row));
        // The two lines above, and the table's head.
        view.page = rows.saturating_sub(3);
        view.offset = view.offset.min(figures.len().saturating_sub(view.page));
        let shown = figures.len().min(view.page);
        let range = match shown < figures.len() {
            true => format!("   {}-{} of {}", view.offset + 1, view.offset + shown, figures.len()),
            false => String::new(),
        };
        let keys = if rows == usize::MAX { String::new() } else { view.keys(columns) };
        for Figures { row, cpu, block, stream, shim_cpu } in
            figures.into_iter().skip(view.offset).take(view.page)
        {
            table.row([
                row.name.clone(),
                row.status.to_owned(),
                format!("{cpu:.1}"),
                output::bytes(row.usage.memory_bytes),
                per_second(block),
                per_second(stream),
                row.shim.clone(),
                row.shim_pid.to_string(),
                format!("{shim_cpu:.1}"),
                output::bytes(row.shim_kib * 1024),
            ]);
        }
        let less_wanted = ["SHIM CPU %", "PID", "SHIM", "STATUS", "STREAMS"];
        let mut lines = vec![text + &range, keys];
        lines.extend(table.fit(columns, &less_wanted).lines());
        lines
    }
}

/// The terminal as ours, and as it was at the end.
struct Screen;

impl Screen {
    fn enter() -> Result<Self> {
        terminal::enable_raw_mode()?;
        let screen = Self;
        execute!(std::io::stdout(), terminal::EnterAlternateScreen, cursor::Hide)?;
        Ok(screen)
    }

    fn draw(&self, lines: impl FnOnce(usize, usize) -> Vec<String>) -> Result<()> {
        // A terminal that does not know its size has none.
        let (columns, rows) = terminal::size()
            .ok()
            .filter(|(columns, rows)| *columns > 0 && *rows > 0)
            .unwrap_or((80, 24));
        let mut out = std::io::stdout().lock();
        execute!(out, cursor::MoveTo(0, 0))?;
        for (number, line) in lines(usize::from(columns), usize::from(rows))
            .iter()
            .take(usize::from(rows))
            .enumerate()
        {
            let line: String = line.chars().take(usize::from(columns)).collect();
            // The head of the table in reverse.
            let line = if number == 2 { format!("\x1b[7m{line}\x1b[0m") } else { line };
            write!(
                out,
                "{line}\x1b[K{}",
                if number + 1 < usize::from(rows) { "\r\n" } else { "" }
            )?;
        }
        execute!(out, terminal::Clear(ClearType::FromCursorDown))?;
        Ok(out.flush()?)
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        let _ = execute!(std::io::stdout(), terminal::LeaveAlternateScreen, cursor::Show);
        let _ = terminal::disable_raw_mode();
    }
}
