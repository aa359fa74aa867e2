//! What doctor asks the shims.

use super::{Check, advice, ok, warning};
use crate::{
    args::{self, Places},
    commands::ps,
    node::{self, Kind, Shim},
    orphans, output, process,
    run_place::{self, NAMESPACE},
};
use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

/// A call that takes longer hangs, as a rule in the runtime.
const LONG_CALL: Duration = Duration::from_secs(30);
/// Events are acknowledged within milliseconds.
const LONG_EVENT: Duration = Duration::from_secs(10);
/// A bundle is there before its shim.
const YOUNG: Duration = Duration::from_secs(10);
/// Of descriptors, in hundredths.
const MOST_FILES: usize = 80;

pub(super) async fn checks(places: &Places) -> Vec<Check> {
    let mut shims = node::shims().await;
    if places.state != Path::new(args::STATE) {
        shims.retain(|shim| shim.bundle.starts_with(&places.state));
    }
    let mut checks = vec![answers(&shims), versions(&shims)];
    checks.extend(connection(&shims));
    checks.push(without_shim(places, &shims));
    checks.push(calls(&shims));
    checks.push(events(&shims));
    checks.push(spools(&shims));
    checks.extend(files(&shims));
    checks.push(left(&shims));
    checks.push(orphaned(places, &shims));
    checks
}

/// The first few of a list.
fn few(list: &[String]) -> String {
    const FEW: usize = 5;
    let more = list.len().saturating_sub(FEW);
    let first = list[..list.len().min(FEW)].join("; ");
    if more > 0 { format!("{first} and {more} more") } else { first }
}

fn name(shim: &Shim) -> String {
    format!("{} (shim {})", ps::pod(shim), shim.pid)
}

fn answers(shims: &[Shim]) -> Check {
    let silent = shims.iter().filter(|shim| shim.problem.is_some());
    let silent: Vec<String> =
        silent.map(|shim| format!("{}, {}", name(shim), process::standing(shim.pid))).collect();
    match silent.is_empty() {
        true => ok("shims", format!("{}, all answer", shims.len())),
        false => warning(
            "shims",
            format!("no answer from {}", few(&silent)),
            "docs/troubleshooting.md: containerd's log has a dump of a loop that hangs, ten seconds after it began (grep watchdog)",
        ),
    }
}

fn versions(shims: &[Shim]) -> Check {
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    for shim in shims {
        *counts.entry(ps::name(shim)).or_default() += 1;
    }
    let list: Vec<String> =
        counts.iter().map(|(name, count)| format!("{count} × {name}")).collect();
    let old = shims.iter().filter(|shim| shim.kind == Kind::Cleat && shim.program_replaced).count();
    match (list.is_empty(), old) {
        (true, _) => ok("versions", "no shim runs"),
        (_, 0) => ok("versions", list.join(", ")),
        (_, old) => advice(
            "versions",
            format!("{}; {old} run a program that was replaced since", list.join(", ")),
            "they keep it until their pods end, which is no harm",
        ),
    }
}

fn connection(shims: &[Shim]) -> Option<Check> {
    let alone = shims.iter().filter(|shim| {
        !shim.containerd
            && shim.problem.is_none()
            && !shim.containers.is_empty()
            && shim.namespace != NAMESPACE
    });
    let alone: Vec<String> = alone.map(name).collect();
    (!alone.is_empty()).then(|| {
        warning(
            "connection",
            format!("{} with containers have no client: {}", alone.len(), few(&alone)),
            "containerd is down, or has lost them: start it; it adopts them",
        )
    })
}

/// Bundles that no shim has: a container whose shim is dead, and that nobody has cleared up.
fn without_shim(places: &Places, shims: &[Shim]) -> Check {
    let tasks = places.state.join("io.containerd.runtime.v2.task");
    let directories = |path: PathBuf| fs::read_dir(path).into_iter().flatten().flatten();
    let mut lost = Vec::new();
    for namespace in directories(tasks) {
        for bundle in directories(namespace.path()) {
            let Ok(id) = bundle.file_name().into_string() else { continue };
            let is_old = bundle
                .metadata()
                .and_then(|about| about.modified())
                .is_ok_and(|at| at.elapsed().is_ok_and(|age| age > YOUNG));
            let is_known = shims.iter().any(|shim| {
                (namespace.file_name() == shim.namespace.as_str()
                    && shim.containers.iter().any(|container| container.id == id))
                    || (shim.problem.is_some()
                        && shim.socket.is_some()
                        && shim.socket == node::address_of(&bundle.path()))
                    || shim.bundle == bundle.path()
            });
            let has_listener = node::address_of(&bundle.path())
                .is_some_and(|socket| cleat::start::is_alive(&socket));
            if is_old && !is_known && !has_listener && bundle.path().join("config.json").exists() {
                lost.push(format!("{}/{id}", namespace.file_name().to_string_lossy()));
            }
        }
    }
    lost.sort();
    match lost.is_empty() {
        true => ok("containers", "each has a shim"),
        false => warning(
            "containers",
            format!("without a shim: {}", few(&lost)),
            "their shims have died, and containerd has not cleared up: restart containerd, which does; see dmesg for an OOM kill",
        ),
    }
}

fn calls(shims: &[Shim]) -> Check {
    let mut open = Vec::new();
    for (shim, own) in shims.iter().filter_map(|shim| Some((shim, shim.own.as_ref()?))) {
        for call in own
            .calls
            .iter()
            .filter(|call| call.method != "Wait" && u128::from(call.age_ms) > LONG_CALL.as_millis())
        {
            open.push(format!(
                "{} of {} in {} for {}",
                call.method,
                ps::short(&call.id),
                name(shim),
                output::age(call.age_ms / 1000)
            ));
        }
    }
    match open.is_empty() {
        true => ok("calls", "none is open for more than 30 s"),
        false => warning(
            "calls",
            few(&open),
            "the OCI runtime hangs, as a rule: ps --ppid SHIM shows it, cleat inspect SHIM the rest; it is killed at its deadline",
        ),
    }
}

fn events(shims: &[Shim]) -> Check {
    let waiting = shims.iter().filter_map(|shim| {
        let events = shim.own.as_ref()?.events?;
        let is_long = events.waiting > 0 && u128::from(events.oldest_ms) > LONG_EVENT.as_millis();
        is_long.then(|| {
            format!(
                "{} of {} for {}",
                events.waiting,
                name(shim),
                output::age(events.oldest_ms / 1000)
            )
        })
    });
    let waiting: Vec<String> = waiting.collect();
    match waiting.is_empty() {
        true => ok("events", "none waits"),
        false => warning(
            "events",
            few(&waiting),
            "containerd takes no events: is it stopped or down? None is lost; kubelet learns of exits late",
        ),
    }
}

fn spools(shims: &[Shim]) -> Check {
    let kept = shims.iter().filter_map(|shim| {
        let own = shim.own.as_ref()?;
        let processes = own
            .containers
            .iter()
            .flat_map(|container| container.init.iter().chain(&container.execs));
        let bytes: u64 =
            processes.flat_map(|process| &process.streams).map(|stream| stream.spooled_bytes).sum();
        (bytes > 0).then(|| format!("{} of {}", output::bytes(bytes), name(shim)))
    });
    let kept: Vec<String> = kept.collect();
    match kept.is_empty() {
        true => ok("spools", "empty"),
        false => warning(
            "spools",
            few(&kept),
            "nobody reads these outputs: is containerd, ctr or the logging program stopped? Up to 8 MiB a stream nothing is lost",
        ),
    }
}

/// Shims that are close to their limit of descriptors.
fn files(shims: &[Shim]) -> Option<Check> {
    let limit = |pid: u32| {
        let text = fs::read_to_string(format!("/proc/{pid}/limits")).ok()?;
        text.lines()
            .find_map(|line| line.strip_prefix("Max open files"))?
            .split_whitespace()
            .next()?
            .parse::<usize>()
            .ok()
    };
    let full = shims.iter().filter_map(|shim| {
        let limit = limit(shim.pid)?;
        (shim.descriptors * 100 > limit * MOST_FILES)
            .then(|| format!("{} has {} of {limit}", name(shim), shim.descriptors))
    });
    let full: Vec<String> = full.collect();
    (!full.is_empty()).then(|| {
        warning(
            "descriptors",
            few(&full),
            "execs will fail soon: delete execs that have ended, raise LimitNOFILE of containerd's service",
        )
    })
}

fn left(shims: &[Shim]) -> Check {
    let left: Vec<String> =
        run_place::left(shims).into_iter().filter(|left| left.lives).map(|left| left.id).collect();
    match left.is_empty() {
        true => ok("run", "no container of a killed `cleat run`"),
        false => warning(
            "run",
            format!("containers of a killed `cleat run`: {}", few(&left)),
            "cleat run --remove --id ID ends one",
        ),
    }
}

fn orphaned(places: &Places, shims: &[Shim]) -> Check {
    let found: Vec<String> = orphans::find(places, shims).iter().map(ToString::to_string).collect();
    match found.is_empty() {
        true => ok("orphans", "none"),
        false => warning("orphans", few(&found), "cleat gc --dry-run, then cleat gc"),
    }
}
