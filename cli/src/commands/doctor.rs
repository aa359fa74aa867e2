//! `cleat doctor`.

mod daemon;
mod moves;
mod shims;

use crate::{
    args::{Doctor, Format},
    config, node,
    output::{self, Table},
};
use anyhow::Result;
use serde::Serialize;
use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::Path,
    process::{Command, ExitCode},
};

const SHIM: &str = "containerd-shim-cleat-v2";

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
enum State {
    Ok,
    /// It could not be looked at.
    Unknown,
    Warning,
    Broken,
}

#[derive(Debug, Serialize)]
struct Check {
    what: &'static str,
    state: State,
    found: String,
    /// What to do about it.
    remedy: Option<String>,
}

fn ok(what: &'static str, found: impl Into<String>) -> Check {
    Check { what, state: State::Ok, found: found.into(), remedy: None }
}

/// All is well, and could be better.
fn advice(what: &'static str, found: impl Into<String>, remedy: impl Into<String>) -> Check {
    Check { what, state: State::Ok, found: found.into(), remedy: Some(remedy.into()) }
}

fn unknown(what: &'static str, found: impl Into<String>, remedy: impl Into<String>) -> Check {
    Check { what, state: State::Unknown, found: found.into(), remedy: Some(remedy.into()) }
}

fn warning(what: &'static str, found: impl Into<String>, remedy: impl Into<String>) -> Check {
    Check { what, state: State::Warning, found: found.into(), remedy: Some(remedy.into()) }
}

fn broken(what: &'static str, found: impl Into<String>, remedy: impl Into<String>) -> Check {
    Check { what, state: State::Broken, found: found.into(), remedy: Some(remedy.into()) }
}

pub(super) async fn run(command: Doctor) -> Result<ExitCode> {
    let places = &command.places;
    let daemon = daemon::Daemon::ask(places).await;
    let mut checks = vec![
        root(),
        kernel(),
        pidfd(),
        cgroups(),
        pipes(),
        inotify(),
        shim(daemon.path.as_deref()),
    ];
    checks.extend(runtimes());
    checks.extend(daemon.checks(places));
    match node::check_sight() {
        Ok(()) => checks.extend(shims::checks(places).await),
        Err(e) => checks.extend(
            ["shims", "containers", "orphans"]
                .map(|what| unknown(what, format!("{e:#}"), "nothing is said of these")),
        ),
    }
    if let Some(unknown) =
        command.only.iter().find(|only| !checks.iter().any(|check| check.what == **only))
    {
        let names: Vec<&str> = checks.iter().map(|check| check.what).collect();
        anyhow::bail!("--only {unknown}: the checks are {}", names.join(", "));
    }
    checks.retain(|check| {
        command.only.is_empty() || command.only.iter().any(|only| only == check.what)
    });
    let worst = checks.iter().map(|check| check.state).max().unwrap_or(State::Ok);
    match command.output {
        Format::Json => output::print_json(&checks)?,
        Format::Table => print(&checks)?,
    }
    Ok(ExitCode::from(match worst {
        State::Ok => 0,
        State::Unknown | State::Warning => 1,
        State::Broken => 2,
    }))
}

fn print(checks: &[Check]) -> Result<()> {
    let mut table = Table::new(&["STATE", "WHAT", "FOUND"]);
    for check in checks {
        let state = match check.state {
            State::Ok => "ok",
            State::Unknown => "unknown",
            State::Warning => "warning",
            State::Broken => "broken",
        };
        table.row([state.to_owned(), check.what.to_owned(), check.found.clone()]);
    }
    let rows = table.lines();
    let mut lines = vec![rows[0].clone()];
    for (row, check) in rows[1..].iter().zip(checks) {
        let colour = match check.state {
            State::Ok => 32,
            State::Unknown | State::Warning => 33,
            State::Broken => 31,
        };
        let (state, rest) = row.split_at(row.find(' ').unwrap_or(0));
        lines.push(format!("{}{rest}", output::coloured(colour, state)));
        lines.extend(
            check.remedy.iter().map(|remedy| format!("         → {}", output::plain(remedy))),
        );
    }
    output::print(&lines)
}

fn root() -> Check {
    match rustix::process::geteuid().is_root() {
        true => ok("user", "root"),
        false => broken("user", "not root", "shims belong to root: run it with sudo"),
    }
}

fn kernel() -> Check {
    let name = rustix::system::uname();
    let release = name.release().to_string_lossy().into_owned();
    let mut numbers =
        release.split(|c: char| !c.is_ascii_digit()).map(|part| part.parse::<u32>().unwrap_or(0));
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    match version {
        (5.., 3..) | (6.., _) => ok("kernel", release),
        (4, 14..) | (5, _) => warning(
            "kernel",
            release,
            "before Linux 5.3 there are no pidfds: exits are matched by number, as the Go shim does",
        ),
        _ => broken("kernel", release, "Linux 4.14 or newer is needed, 5.3 or newer recommended"),
    }
}

fn pidfd() -> Check {
    match rustix::process::pidfd_open(
        rustix::process::getpid(),
        rustix::process::PidfdFlags::empty(),
    ) {
        Ok(_) => ok("pidfd", "there"),
        Err(e) => warning(
            "pidfd",
            e.to_string(),
            "a seccomp filter or an old kernel: exits are matched by number",
        ),
    }
}

fn cgroups() -> Check {
    let root = Path::new("/sys/fs/cgroup");
    if root.join("cgroup.controllers").exists() {
        let controllers = fs::read_to_string(root.join("cgroup.controllers")).unwrap_or_default();
        let missing: Vec<&str> = ["cpu", "memory", "pids", "io"]
            .into_iter()
            .filter(|name| !controllers.split_whitespace().any(|c| c == *name))
            .collect();
        return match missing.is_empty() {
            true if !has_favordynmods() => advice(
                "cgroups",
                format!("version 2 without favordynmods{}", moves::cost(root)),
                "each container and each exec of the runtime waits for it once: mount -o \
                 remount,favordynmods /sys/fs/cgroup (Linux 6.0; see docs/performance.md)",
            ),
            true => ok("cgroups", "version 2"),
            false => warning(
                "cgroups",
                format!("version 2 without {}", missing.join(", ")),
                "limits and figures of these are not to be had; enable them on the kernel's command line",
            ),
        };
    }
    match root.join("memory").exists() {
        true => ok(
            "cgroups",
            if root.join("unified").exists() { "version 1 (hybrid)" } else { "version 1" },
        ),
        false => broken(
            "cgroups",
            "no memory controller below /sys/fs/cgroup",
            "mount the cgroup file system",
        ),
    }
}

fn has_favordynmods() -> bool {
    let text = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    text.lines().any(|line| line.contains(" - cgroup2 ") && line.contains("favordynmods"))
}

/// Instances of inotify that root has left: kubelet, systemd and containerd fail without.
fn inotify() -> Check {
    const FEW: usize = 16;
    let most = fs::read_to_string("/proc/sys/fs/inotify/max_user_instances").unwrap_or_default();
    let Ok(most) = most.trim().parse::<usize>() else { return ok("inotify", "not in this kernel") };
    if !rustix::process::geteuid().is_root() {
        return unknown("inotify", "root's descriptors cannot be seen", "run it with sudo");
    }
    let mut used = 0;
    let mut by: Vec<(usize, String)> = Vec::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        if entry.metadata().map_or(1, |about| std::os::unix::fs::MetadataExt::uid(&about)) != 0 {
            continue;
        }
        let links = fs::read_dir(entry.path().join("fd")).into_iter().flatten().flatten();
        let count = links
            .filter(|link| {
                fs::read_link(link.path())
                    .is_ok_and(|target| target.as_os_str() == "anon_inode:inotify")
            })
            .count();
        used += count;
        if count > 0 {
            let name = fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
            by.push((count, format!("{} ({pid})", name.trim())));
        }
    }
    by.sort_by(|a, b| b.cmp(a));
    match most.saturating_sub(used) {
        FEW.. => ok("inotify", format!("{used} of root's {most} instances in use")),
        left => {
            let who: Vec<String> =
                by.iter().take(3).map(|(count, name)| format!("{name} has {count}")).collect();
            warning(
                "inotify",
                format!("{left} of root's {most} instances left: {}", who.join(", ")),
                "kubelet, systemd and containerd need some: sysctl fs.inotify.max_user_instances=8192",
            )
        }
    }
}

fn pipes() -> Check {
    let read = |name: &str| {
        fs::read_to_string(format!("/proc/sys/fs/{name}"))
            .unwrap_or_default()
            .trim()
            .parse::<u64>()
            .unwrap_or(0)
    };
    let most = read("pipe-max-size");
    match most {
        262_144.. => ok("pipes", format!("up to {}", output::bytes(most))),
        _ => warning(
            "pipes",
            format!("up to {}", output::bytes(most)),
            "bulk output is slower below 256 KiB: sysctl fs.pipe-max-size=1048576",
        ),
    }
}

/// The program, found and run as containerd would. `path`: containerd's PATH, if that is known.
fn shim(path: Option<&std::ffi::OsStr>) -> Check {
    let name = Path::new(SHIM);
    let found = match path {
        Some(path) => config::find_program_in(name, path),
        None => config::find_program(name),
    };
    let Some(found) = found else {
        return match path.and(config::find_program(name)) {
            Some(elsewhere) => broken(
                "shim",
                format!("{} is not in containerd's PATH", elsewhere.display()),
                "put it into /usr/local/bin or /usr/bin, or add its directory to the PATH of containerd's service",
            ),
            None => broken(
                "shim",
                format!(
                    "{SHIM} is not in {}PATH",
                    if path.is_some() { "containerd's " } else { "" }
                ),
                "install the package, or copy the binary into /usr/local/bin",
            ),
        };
    };
    let version = match config::output(Command::new(&found).arg("-v")) {
        Ok((status, stdout, _)) if status.success() => {
            let line = stdout.lines().find_map(|line| {
                line.trim().strip_prefix("Version:").map(|text| text.trim().to_owned())
            });
            line.filter(|version| !version.is_empty())
                .ok_or_else(|| "-v tells no version".to_owned())
        }
        Ok((status, _, stderr)) => Err(format!("-v ends with {status}: {}", stderr.trim())),
        Err(e) => Err(format!("{e:#}")),
    };
    let version = match version {
        Ok(version) => version,
        Err(e) => {
            return broken(
                "shim",
                format!("{}: {e}", found.display()),
                "the program does not run on this machine: install it again",
            );
        }
    };
    let mode = fs::metadata(&found).map_or(0, |about| about.permissions().mode());
    match mode & 0o022 {
        0 => ok("shim", format!("{} {version}", found.display())),
        _ => warning(
            "shim",
            format!("{} may be written by others than root", found.display()),
            format!("chmod go-w {}", found.display()),
        ),
    }
}

fn runtimes() -> Vec<Check> {
    let version = |name: &str| {
        let (_, text, _) =
            config::output(Command::new(config::find_program(Path::new(name))?).arg("--version"))
                .ok()?;
        let first = text.lines().next()?;
        Some(first.rsplit(' ').next()?.to_owned())
    };
    let mut checks = Vec::new();
    match version("runc") {
        None => checks.push(warning(
            "runc",
            "not installed",
            "install runc, or name another runtime with the handler's option BinaryName",
        )),
        Some(text) => {
            let mut numbers = text
                .split(|c: char| !c.is_ascii_digit())
                .map(|part| part.parse::<u32>().unwrap_or(0));
            let number = (
                numbers.next().unwrap_or(0),
                numbers.next().unwrap_or(0),
                numbers.next().unwrap_or(0),
            );
            // Distributions mend old versions without a new number, which they mark.
            let is_mended = text.contains("ds") || text.contains("ubuntu") || text.contains('~');
            checks.push(match number < (1, 1, 12) && !is_mended {
                true => warning("runc", &text, "before 1.1.12 descriptors leak into containers (CVE-2024-21626), unless the distribution has mended it: update runc"),
                false => ok("runc", text),
            });
        }
    }
    checks.extend(version("crun").map(|text| ok("crun", text)));
    checks
}
