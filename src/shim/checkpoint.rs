//! Checkpoint and restore, through the runtime and criu.
//!
//! A container that is made from a checkpoint has no process until Start restores it: its pid is 0
//! until then.

use super::{Born, Shim, ShimError};
use crate::{
    bundle::Bundle, container::Event, id::Id, io::ConsoleSocket,
    protocol::options::CheckpointOptions, runtime::CallStdio,
};
use std::{
    path::{Path, PathBuf},
    rc::Rc,
    time::Duration,
};

/// criu's log of a failed checkpoint, in the bundle: upstream's name.
const DUMP_LOG: &str = "criu-dump.log";
/// Most bytes of it that are kept.
const MAX_LOG: u64 = 16 << 20;
/// How long that may take.
const TIDY_DEADLINE: Duration = Duration::from_secs(60);

/// Where a container is restored from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checkpoint {
    /// The directory with criu's image.
    pub image: PathBuf,
    /// The one that it is a difference to.
    pub parent: Option<PathBuf>,
}

impl Checkpoint {
    /// The directory as text.
    pub fn image(&self) -> String {
        self.image.to_string_lossy().into_owned()
    }
}

/// Checkpoint, checked.
#[derive(Debug)]
pub struct SaveState {
    /// The directory for the image.
    pub image: PathBuf,
    /// What criu may save, and what becomes of the container.
    pub options: CheckpointOptions,
}

impl SaveState {
    /// Flags of `runtime checkpoint`.
    fn arguments(&self, work: &str) -> Vec<String> {
        let SaveState { image, options } = self;
        let mut arguments = vec![
            "--image-path".to_owned(),
            image.to_string_lossy().into_owned(),
            "--work-path".to_owned(),
            work.to_owned(),
        ];
        let switches = [
            (options.open_tcp, "--tcp-established"),
            (options.external_unix_sockets, "--ext-unix-sk"),
            (options.terminal, "--shell-job"),
            (options.file_locks, "--file-locks"),
            (!options.exit, "--leave-running"),
        ];
        arguments.extend(switches.iter().filter(|(on, _)| *on).map(|(_, flag)| (*flag).to_owned()));
        if !options.cgroups_mode.is_empty() {
            arguments.extend(["--manage-cgroups-mode".to_owned(), options.cgroups_mode.clone()]);
        }
        for namespace in &options.empty_namespaces {
            arguments.extend(["--empty-ns".to_owned(), namespace.clone()]);
        }
        arguments
    }
}

impl Shim {
    /// Writes the container's state out. It runs on, or ends, as the options say; its exit is told
    /// as any other.
    pub async fn checkpoint(self: &Rc<Self>, id: &Id, save: SaveState) -> Result<(), ShimError> {
        self.apply(id, Event::CheckpointRequested)?;
        let (runtime, bundle) =
            self.with(id, |owned| (owned.runtime.clone(), Bundle::new(&owned.state.bundle)))?;
        let own_work = bundle.join("criu-work");
        let work = match save.options.work_path.as_str() {
            "" => own_work.clone(),
            path => PathBuf::from(path),
        };
        let arguments = save.arguments(&work.to_string_lossy());
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let result = self.runtimes.checkpoint(&runtime, id, &arguments).await;
        let result = match result {
            Ok(()) => Ok(()),
            Err(failure) => {
                let text = failure.to_string();
                let reason = text.lines().next().unwrap_or_default().to_owned();
                Err(ShimError::Checkpoint { reason, log: bundle.join(DUMP_LOG) })
            }
        };
        // Where the client wants criu to work may be a file system that hangs, and a log has
        // megabytes.
        let failed = result.is_err();
        let helper = self.in_helper(|| tidy(&bundle, &work, &own_work, failed));
        let tidied = match helper {
            Ok(helper) => self.end_of(helper, TIDY_DEADLINE).await,
            Err(e) => Err(e.to_string()),
        };
        if let Err(reason) = tidied {
            log::warn!("after a checkpoint container={id}: {reason}");
        }
        result?;
        self.apply(id, Event::Checkpointed { image: save.image.to_string_lossy().into_owned() })
    }

    /// Start of a container that is made from a checkpoint: `runtime restore` gives it its
    /// processes. Returns the init's pid.
    pub(super) async fn restore(self: &Rc<Self>, id: &Id) -> Result<u32, ShimError> {
        let (runtime, options, io, bundle, checkpoint) = self.with(id, |owned| {
            let bundle = Bundle::new(&owned.state.bundle);
            (
                owned.runtime.clone(),
                owned.options.clone(),
                Rc::clone(&owned.io),
                bundle,
                owned.checkpoint.clone(),
            )
        })?;
        let Some(checkpoint) = checkpoint else { return Err(ShimError::NoSuchContainer) };
        io.open(&self.reaper).await?;
        let console = io.is_terminal().then(|| ConsoleSocket::bind(&bundle, "init")).transpose()?;
        let image = checkpoint.image();
        let parent =
            checkpoint.parent.as_deref().map(|parent| parent.to_string_lossy().into_owned());
        let mut arguments = vec!["--image-path", image.as_str()];
        if !options.criu_work_path.is_empty() {
            arguments.extend(["--work-path", &options.criu_work_path]);
        }
        if let Some(parent) = &parent {
            arguments.extend(["--parent-path", parent]);
        }
        if let Some(console) = &console {
            arguments.extend(["--console-socket", console.name()]);
        }
        if options.no_pivot_root {
            arguments.push("--no-pivot");
        }
        let stdio = CallStdio::of(io.pipes_unless_terminal(&options)?);
        let (result, birth) = self.runtimes.restore(&runtime, id, &arguments, stdio).await;
        let restored = result
            .map_err(|failure| ShimError::Runtime {
                context: "OCI runtime restore failed",
                failure,
            })
            .and_then(|()| self.born(id, &bundle, &runtime, &io, console.as_ref()))
            .and_then(|Born { pid, cgroup, oom, keeps_record, .. }| {
                self.with(id, |owned| {
                    (owned.cgroup, owned.oom, owned.keeps_record) = (cgroup, oom, keeps_record);
                })?;
                io.begin();
                self.apply(id, Event::Restored { pid })?;
                Ok(pid)
            });
        if restored.is_err() {
            self.undo_create(&runtime, &bundle, id).await;
        }
        drop(birth);
        restored
    }
}

/// Keeps criu's log of a checkpoint that has failed, and removes its working directory if it is
/// ours.
fn tidy(bundle: &Bundle, work: &Path, own_work: &Path, failed: bool) -> Result<(), String> {
    let log =
        || crate::bundle::read_bounded(&work.join("dump.log"), MAX_LOG).map_err(|e| e.to_string());
    let keep = |log: Vec<u8>| bundle.write(DUMP_LOG, &log, 0o600).map_err(|e| super::chain(&e));
    let kept = if failed { log().and_then(keep) } else { Ok(()) };
    if let Err(e) = std::fs::remove_dir_all(own_work)
        && !crate::bundle::is_absent(&e)
    {
        return Err(format!("criu's work directory remains: {e}"));
    }
    kept.map_err(|e| format!("criu's log is not kept: {e}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_option_is_a_flag() {
        let options = CheckpointOptions {
            exit: false,
            open_tcp: true,
            external_unix_sockets: true,
            terminal: true,
            file_locks: true,
            empty_namespaces: vec!["network".to_owned()],
            cgroups_mode: "soft".to_owned(),
            image_path: "/elsewhere".to_owned(),
            work_path: String::new(),
        };
        let flags = SaveState { image: "/image".into(), options }.arguments("/work");
        let expected = "--image-path /image --work-path /work --tcp-established --ext-unix-sk --shell-job --file-locks --leave-running \
             --manage-cgroups-mode soft --empty-ns network";
        assert_eq!(flags.join(" "), expected);
        let options = CheckpointOptions { exit: true, ..CheckpointOptions::default() };
        let flags = SaveState { image: "/image".into(), options }.arguments("/work");
        assert_eq!(flags.join(" "), "--image-path /image --work-path /work");
    }
}
