//! `cleat doctor`.

use crate::{
    args::{Doctor, Format, Places},
    config, node, orphans,
    output::{self, Table},
};
use anyhow::Result;
use serde::Serialize;
use std::{
    fs,
    os::unix::{fs::PermissionsExt, net::UnixStream},
    path::Path,
    process::{Command, ExitCode},
};

const SHIM: &str = "containerd-shim-cleat-v2";

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
enum State {
    Ok,
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

fn warning(what: &'static str, found: impl Into<String>, remedy: impl Into<String>) -> Check {
    Check { what, state: State::Warning, found: found.into(), remedy: Some(remedy.into()) }
}

fn broken(what: &'static str, found: impl Into<String>, remedy: impl Into<String>) -> Check {
    Check { what, state: State::Broken, found: found.into(), remedy: Some(remedy.into()) }
}

pub(super) async fn run(command: Doctor) -> Result<ExitCode> {
    let places = &command.places;
    let mut checks = vec![root(), kernel(), pidfd(), cgroups(), pipes(), shim()];
    checks.extend(runtimes());
    checks.extend(containerd(places));
    checks.extend(shims(places).await);
    let worst = checks.iter().map(|check| check.state).max().unwrap_or(State::Ok);
    match command.output {
        Format::Json => output::print_json(&checks)?,
        Format::Table => print(&checks)?,
    }
    Ok(ExitCode::from(match worst {
        State::Ok => 0,
        State::Warning => 1,
        State::Broken => 2,
    }))
}

fn print(checks: &[Check]) -> Result<()> {
    let mut table = Table::new(&["STATE", "WHAT", "FOUND"]);
    for check in checks {
        let state = match check.state {
            State::Ok => "ok",
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
            State::Warning => 33,
            State::Broken => 31,
        };
        let (state, rest) = row.split_at(row.find(' ').unwrap_or(0));
        lines.push(format!("{}{rest}", output::coloured(colour, state)));
        lines.extend(check.remedy.iter().map(|remedy| format!("         → {}", output::plain(remedy))));
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
    match rustix::process::pidfd_open(rustix::process::getpid(), rustix::process::PidfdFlags::empty()) {
        Ok(_) => ok("pidfd", "there"),
        Err(e) => {
            warning("pidfd", e.to_string(), "a seccomp filter or an old kernel: exits are matched by number")
        }
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
            true => ok("cgroups", "version 2"),
            false => warning(
                "cgroups",
                format!("version 2 without {}", missing.join(", ")),
                "limits and figures of these are not to be had; enable them on the kernel's command line",
            ),
        };
    }
    match root.join("memory").exists() {
        true => ok("cgroups", if root.join("unified").exists() { "version 1 (hybrid)" } else { "version 1" }),
        false => {
            broken("cgroups", "no memory controller below /sys/fs/cgroup", "mount the cgroup file system")
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

fn shim() -> Check {
    let Some(path) = config::find_program(Path::new(SHIM)) else {
        return broken(
            "shim",
            format!("{SHIM} is not in PATH"),
            "install the package, or copy the binary into /usr/local/bin",
        );
    };
    let found = match Command::new(&path).arg("-v").output() {
        Ok(output) => String::from_utf8_lossy(&output.stdout)
            .lines()
            .find_map(|line| line.trim().strip_prefix("Version:").map(|version| version.trim().to_owned()))
            .unwrap_or_default(),
        Err(e) => {
            return broken(
                "shim",
                format!("{}: {e}", path.display()),
                "the binary does not run on this machine",
            );
        }
    };
    let mode = fs::metadata(&path).map_or(0, |about| about.permissions().mode());
    match mode & 0o022 {
        0 => ok("shim", format!("{} {found}", path.display())),
        _ => warning(
            "shim",
            format!("{} may be written by others than root", path.display()),
            format!("chmod go-w {}", path.display()),
        ),
    }
}

fn runtimes() -> Vec<Check> {
    let version = |name: &str| {
        let output = Command::new(config::find_program(Path::new(name))?).arg("--version").output().ok()?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
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
            let mut numbers =
                text.split(|c: char| !c.is_ascii_digit()).map(|part| part.parse::<u32>().unwrap_or(0));
            let number =
                (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
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

fn containerd(places: &Places) -> Vec<Check> {
    let program = Path::new("containerd");
    let Ok((version, text)) = config::version(program) else {
        return vec![warning(
            "containerd",
            "not in PATH",
            "cleat is of use to containerd, or to `cleat run`",
        )];
    };
    let mut checks = vec![match version {
        (1, 6..) | (2, 0..=3) => ok("containerd", text),
        (1, _) | (0, _) => broken("containerd", text, "1.6 or newer is needed"),
        _ => warning("containerd", text, "newer than any that cleat was tested with (1.6 to 2.3)"),
    }];
    checks.push(match UnixStream::connect(&places.address) {
        Ok(_) => ok("socket", places.address.display().to_string()),
        Err(e) => warning(
            "socket",
            format!("{}: {e}", places.address.display()),
            "is containerd running? systemctl status containerd",
        ),
    });
    if !places.config.exists() {
        checks.push(warning(
            "handler",
            format!("no {}", places.config.display()),
            "for Kubernetes: cleat install --write; ctr and nerdctl need none",
        ));
        return checks;
    }
    checks.push(match config::dump(program, &places.config) {
        Err(e) => broken("handler", format!("{e:#}"), "containerd would not start with this file"),
        Ok(document) => {
            let ours: Vec<String> = config::handlers(&document)
                .into_iter()
                .filter(|(_, shim)| shim.contains("cleat"))
                .map(|(name, _)| name)
                .collect();
            match (config::missing_default(&document), ours.is_empty()) {
                (Some(default), _) => broken(
                    "handler",
                    format!("none has the name of the default, {default}: containerd's CRI plugin does not start"),
                    "containerd 1.6 forgets its own handler once the file names another one: cleat install --write names both",
                ),
                (None, true) => warning(
                    "handler",
                    "none uses cleat",
                    "for Kubernetes: cleat install --write; ctr and nerdctl need none",
                ),
                (None, false) => ok("handler", ours.join(", ")),
            }
        }
    });
    checks
}

async fn shims(places: &Places) -> Vec<Check> {
    let shims = node::shims().await;
    let mut checks = Vec::new();
    let silent: Vec<String> =
        shims.iter().filter(|shim| shim.problem.is_some()).map(|shim| shim.pid.to_string()).collect();
    checks.push(match silent.is_empty() {
        true => ok("shims", format!("{}, all answer", shims.len())),
        false => warning(
            "shims",
            format!("no answer from {}", silent.join(", ")),
            "see `cleat inspect PID`; kill -USR1 PID writes a dump into containerd's log",
        ),
    });
    let alone = shims
        .iter()
        .filter(|shim| !shim.containerd && shim.problem.is_none() && !shim.containers.is_empty())
        .count();
    if alone > 0 {
        checks.push(warning(
            "connection",
            format!("{alone} shims with containers have no client"),
            "containerd is down, or has lost them: start it; it adopts them",
        ));
    }
    let found = orphans::find(places, &shims);
    checks.push(match found.as_slice() {
        [] => ok("orphans", "none"),
        found => {
            let list: Vec<String> = found.iter().take(5).map(ToString::to_string).collect();
            let more = if found.len() > list.len() {
                format!(" and {} more", found.len() - list.len())
            } else {
                String::new()
            };
            warning("orphans", format!("{}{more}", list.join("; ")), "cleat gc --dry-run, then cleat gc")
        }
    });
    checks
}
