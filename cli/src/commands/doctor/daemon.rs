//! What doctor asks containerd itself.

use super::{Check, advice, broken, ok, unknown, warning};
use crate::{
    args::Places,
    config,
    grpc::{
        Containerd, PluginsRequest, PluginsResponse, StatusRequest, StatusResponse, VersionResponse,
    },
};
use anyhow::Result;
use cleat::protocol::Empty;
use serde_json::Value;
use std::{
    ffi::OsString,
    fs,
    os::unix::ffi::OsStringExt,
    path::PathBuf,
    time::{Duration, Instant},
};

/// Fewest open files that a node of 200 pods wants of containerd.
const FEW_FILES: u64 = 16_384;
const TYPE: &str = "io.containerd.cleat.v2";
/// How long the CRI plugin may take to answer after a start, and how often it is asked.
const CRI_STARTS: Duration = Duration::from_secs(10);
const AGAIN: Duration = Duration::from_millis(200);

/// The containerd that runs.
pub(super) struct Daemon {
    /// What it says of itself, or why it does not.
    version: Result<Option<VersionResponse>>,
    pid: Option<u32>,
    /// Its program, which reads the configuration as it does.
    program: PathBuf,
    /// PATH of its process, where it looks for shims.
    pub(super) path: Option<OsString>,
    /// The CRI plugin's failure; `None`: there is no such plugin.
    plugin: Option<Option<String>>,
    /// What the CRI plugin runs with.
    running: Option<Value>,
}

impl Daemon {
    pub(super) async fn ask(places: &Places) -> Self {
        let containerd = Containerd { address: &places.address };
        let version = containerd
            .ask::<VersionResponse>(
                "/containerd.services.version.v1.Version/Version",
                "",
                &Empty {},
            )
            .await;
        let pid = containerd.pid().await.ok().flatten();
        let path = pid.and_then(path_of);
        let program = pid.and_then(program_of).unwrap_or_else(|| "containerd".into());
        let mut daemon = Self { version, pid, program, path, plugin: None, running: None };
        if daemon.version.is_err() {
            return daemon;
        }
        let filters = PluginsRequest { filters: vec!["id==cri".into(), "id==runtime".into()] };
        let plugins = containerd
            .ask::<PluginsResponse>(
                "/containerd.services.introspection.v1.Introspection/Plugins",
                "",
                &filters,
            )
            .await
            .ok()
            .flatten();
        // 1.x has one plugin, 2.x two; the failure of either is the CRI's.
        let plugins = plugins.map(|answer| answer.plugins).unwrap_or_default();
        let cri: Vec<_> = plugins
            .into_iter()
            .filter(|plugin| {
                ["io.containerd.grpc.v1", "io.containerd.cri.v1"].contains(&plugin.kind.as_str())
            })
            .collect();
        if !cri.is_empty() {
            daemon.plugin = Some(
                cri.into_iter().find_map(|plugin| plugin.failure).map(|failure| failure.message),
            );
        }
        // After a start the plugin is there before it answers: it takes up its pods first.
        let end = Instant::now() + CRI_STARTS;
        loop {
            let status = containerd
                .ask::<StatusResponse>(
                    "/runtime.v1.RuntimeService/Status",
                    "k8s.io",
                    &StatusRequest { verbose: true },
                )
                .await
                .ok()
                .flatten();
            daemon.running =
                status.and_then(|status| serde_json::from_str(status.info.get("config")?).ok());
            if daemon.running.is_some() || daemon.plugin != Some(None) || Instant::now() > end {
                break;
            }
            tokio::time::sleep(AGAIN).await;
        }
        daemon
    }

    pub(super) fn checks(&self, places: &Places) -> Vec<Check> {
        let mut checks = vec![self.program()];
        checks.push(self.socket(places));
        checks.extend(self.files());
        checks.push(self.handler(places));
        checks
    }

    /// The program on disk, beside the one that runs.
    fn program(&self) -> Check {
        let running = self
            .version
            .as_ref()
            .ok()
            .and_then(Option::as_ref)
            .map(|answer| answer.version.clone());
        let text = match (config::version(&self.program), &running) {
            (Ok((_, text)), Some(running)) if !same(&text, running) => {
                return warning(
                    "containerd",
                    format!("{running} runs, {text} is installed"),
                    "it was upgraded since it started: systemctl restart containerd (pods live on)",
                );
            }
            (_, Some(running)) => running.clone(),
            (Ok((_, text)), None) => text,
            (Err(_), None) => {
                return warning(
                    "containerd",
                    "not in PATH",
                    "cleat is of use to containerd, or to `cleat run`",
                );
            }
        };
        match config::parse_version(&text) {
            Some((1, 6..) | (2, 0..=3)) => ok("containerd", text),
            Some((0 | 1, _)) => broken("containerd", text, "1.6 or newer is needed"),
            _ => warning(
                "containerd",
                text,
                "newer than any that cleat was tested with (1.6 to 2.3)",
            ),
        }
    }

    fn socket(&self, places: &Places) -> Check {
        let address = places.address.display();
        match &self.version {
            Ok(Some(_)) => ok("socket", format!("{address} answers")),
            Ok(None) => warning(
                "socket",
                format!("{address} refuses to tell its version"),
                "is it containerd's? --address names another one",
            ),
            Err(e) if is_refusal_of_rights(e) => {
                unknown("socket", format!("{address}: {e:#}"), "run it with sudo")
            }
            Err(e)
                if e.to_string().starts_with("no answer")
                    || e.to_string().contains("takes no connection") =>
            {
                broken(
                    "socket",
                    format!("{address}: {e:#}"),
                    "containerd is stopped or hangs (ps -o stat shows T or D): pods run on, but none starts or ends; restart it",
                )
            }
            Err(e) => warning(
                "socket",
                format!("{address}: {e:#}"),
                "is containerd running? systemctl status containerd; --address names another socket",
            ),
        }
    }

    /// Its limit of open files, which shims inherit.
    fn files(&self) -> Option<Check> {
        let text = fs::read_to_string(format!("/proc/{}/limits", self.pid?)).ok()?;
        let line = text.lines().find_map(|line| line.strip_prefix("Max open files"))?;
        let mut numbers =
            line.split_whitespace().map(|word| word.parse::<u64>().unwrap_or(u64::MAX));
        let (soft, hard) = (numbers.next()?, numbers.next()?);
        let name = |number: u64| {
            if number == u64::MAX { "unlimited".to_owned() } else { number.to_string() }
        };
        let found = format!("containerd may open {} (at most {})", name(soft), name(hard));
        Some(match (soft, hard) {
            (FEW_FILES.., _) => ok("files", found),
            (_, FEW_FILES..) => advice(
                "files",
                found,
                "its soft limit is low: LimitNOFILE=1048576 in containerd's service, then restart it",
            ),
            _ => warning(
                "files",
                found,
                "many pods or execs will fail (Too many open files): LimitNOFILE=1048576 in containerd's service, then restart it",
            ),
        })
    }

    /// The handlers that the running containerd has, and those that it would have.
    fn handler(&self, places: &Places) -> Check {
        let dump = config::dump(&self.program, &places.config);
        let in_file = match &dump {
            Ok(document) => {
                if let Some(default) =
                    config::missing_default(document).filter(|_| !config::has_no_cri(document))
                {
                    return broken(
                        "handler",
                        format!(
                            "none has the name of the default, {default}: containerd's CRI plugin does not start"
                        ),
                        "containerd 1.x forgets its own handler once the file names another one: name both: cleat install prints them, --write puts in what is missing",
                    );
                }
                let ours = config::handlers(document)
                    .into_iter()
                    .filter(|(_, shim)| shim.contains("cleat"));
                ours.map(|(name, _)| name).collect()
            }
            Err(e) if is_refusal_of_rights(e) => {
                return unknown("handler", format!("{e:#}"), "run it with sudo");
            }
            Err(e) if config::find_program(&self.program).is_some() => {
                return broken(
                    "handler",
                    format!("{e:#}"),
                    "containerd would not start with this file",
                );
            }
            Err(_) => Vec::new(),
        };
        if in_file.is_empty()
            && dump.as_ref().is_ok_and(|dump| !config::has_no_cri(dump))
            && names_us(places)
        {
            return warning(
                "handler",
                format!(
                    "{} names {TYPE} where this containerd does not look for it",
                    places.config.display()
                ),
                "below a section of another containerd's, or above the line `version`, which then is none: take it out; cleat install prints what goes to the end of the file",
            );
        }
        if let Some(Some(failure)) = &self.plugin {
            let failure: String = failure.chars().take(160).collect();
            return match dump.as_ref().is_ok_and(config::has_no_cri) {
                true => ok("handler", "containerd's CRI plugin is switched off: no pods here"),
                false => warning(
                    "handler",
                    format!("containerd's CRI plugin has not started: {failure}"),
                    "no pod can start; without Kubernetes that is no harm. containerd's log has the rest",
                ),
            };
        }
        let Some(running) = &self.running else {
            return match (&self.version, in_file.as_slice()) {
                (Ok(_), []) => ok("handler", "none for pods; ctr, nerdctl and Docker need none"),
                (Ok(_), names) => warning(
                    "handler",
                    format!("{} in the file, but the CRI plugin tells nothing", names.join(", ")),
                    "is it switched off (disabled_plugins)? systemctl restart containerd",
                ),
                (Err(_), names) => unknown(
                    "handler",
                    match names {
                        [] => "none in the file".to_owned(),
                        names => format!("{} in the file", names.join(", ")),
                    },
                    "what the running containerd has cannot be asked",
                ),
            };
        };
        let known = |name: &String| {
            let handler = &running["containerd"]["runtimes"][name];
            [&handler["runtimeType"], &handler["runtimePath"]]
                .iter()
                .any(|field| field.as_str().is_some_and(|text| text.contains("cleat")))
        };
        let runtimes = running["containerd"]["runtimes"].as_object();
        let ours: Vec<String> = runtimes
            .into_iter()
            .flat_map(|runtimes| runtimes.keys().cloned())
            .filter(known)
            .collect();
        let missing: Vec<String> =
            in_file.iter().filter(|name| !ours.contains(name)).cloned().collect();
        let gone: Vec<String> =
            ours.iter().filter(|name| !in_file.contains(name)).cloned().collect();
        let default = running["containerd"]["defaultRuntimeName"].as_str().unwrap_or_default();
        let wanted = dump.as_ref().ok().and_then(config::default_handler).unwrap_or_default();
        let restart = "it was not restarted since: systemctl restart containerd (pods live on)";
        if dump.as_ref().is_ok_and(config::has_no_cri) {
            return warning(
                "handler",
                "the file switches the CRI plugin off (disabled_plugins), which runs still",
                restart,
            );
        }
        if !missing.is_empty() {
            return warning(
                "handler",
                format!(
                    "{} in the file, but the running containerd does not know it",
                    missing.join(", ")
                ),
                restart,
            );
        }
        if !gone.is_empty() && dump.is_ok() {
            return warning(
                "handler",
                format!("the running containerd has {}, the file has not", gone.join(", ")),
                restart,
            );
        }
        if dump.is_ok() && default != wanted {
            return warning(
                "handler",
                format!("the running containerd's default is {default:?}, the file's {wanted:?}"),
                restart,
            );
        }
        match ours.is_empty() {
            true => ok(
                "handler",
                "none for pods (cleat install makes one); ctr, nerdctl and Docker need none",
            ),
            false => {
                ok("handler", format!("{} ({TYPE}); the default is {default}", ours.join(", ")))
            }
        }
    }
}

/// Whether a line of the file that is no comment has our runtime's type.
fn names_us(places: &Places) -> bool {
    let text = fs::read_to_string(&places.config).unwrap_or_default();
    text.lines().any(|line| line.split('#').next().is_some_and(|line| line.contains(TYPE)))
}

fn same(program: &str, running: &str) -> bool {
    // `v2.1.9`, `2.1.9+unknown`, `1.6.20~ds1`.
    let plain = |text: &str| text.trim_start_matches('v').to_owned();
    plain(program) == plain(running)
}

fn is_refusal_of_rights(error: &anyhow::Error) -> bool {
    error
        .chain()
        .filter_map(|cause| cause.downcast_ref::<std::io::Error>())
        .any(|e| e.kind() == std::io::ErrorKind::PermissionDenied)
        || format!("{error:#}").contains("permission denied")
}

/// Where its program lies; one that was replaced is another by now.
fn program_of(pid: u32) -> Option<PathBuf> {
    let path = fs::read_link(format!("/proc/{pid}/exe")).ok()?;
    let path = path.to_str()?;
    Some(path.strip_suffix(" (deleted)").unwrap_or(path).into())
}

/// PATH in the environment of a process.
fn path_of(pid: u32) -> Option<OsString> {
    let environment = fs::read(format!("/proc/{pid}/environ")).ok()?;
    let path =
        environment.split(|b| *b == 0).find_map(|variable| variable.strip_prefix(b"PATH="))?;
    Some(OsString::from_vec(path.to_vec()))
}
