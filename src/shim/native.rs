//! Execs without the runtime (`native/`), where the container wants it and it is possible.

use super::Shim;
use crate::{
    bundle::{Bundle, INIT_PID, SECCOMP},
    exits::{BirthGuard, ProcessKey},
    id::Id,
    io::ChildEnds,
    native::{self, Runtimes, filters},
    sys::{self, program::Program},
};
use rustix::pipe::{PipeFlags, pipe_with};
use std::{io, os::fd::OwnedFd, rc::Rc, time::Duration};
use tokio::{io::AsyncReadExt, net::unix::pipe};

/// How long the helper may take: it waits for nothing but a file system that hangs.
const DEADLINE: Duration = Duration::from_secs(10);
/// How long the helper may take that reads the init's seccomp filters: the init waits in a system call, and stops at once.
const KEEP_DEADLINE: Duration = Duration::from_secs(2);
/// Most bytes of its report.
const MAX_REPORT: u64 = 4096;

impl Shim {
    /// Keeps the seccomp filters of an init that waits for its start. Without them the execs are the runtime's.
    pub(super) async fn keep_filters(&self, id: &Id, bundle: &Bundle) {
        let Ok(init) = bundle.pid(INIT_PID) else { return };
        let helper = self.in_helper(|| filters::keep(init, bundle).map_err(|e| super::chain(&e)));
        let kept = match helper {
            Ok(helper) => self.end_of(helper, KEEP_DEADLINE).await,
            Err(e) => Err(e.to_string()),
        };
        if let Err(reason) = kept {
            log::warn!("seccomp filters not kept, execs will not be native container={id}: {reason}");
        }
    }

    /// Starts an exec by the helper. `None`: nothing runs, and the runtime must do it. The guard of the birth is as with the runtime's.
    pub(super) async fn exec_natively(
        self: &Rc<Self>,
        id: &Id,
        exec: &Id,
        spec: &[u8],
        ends: &ChildEnds,
    ) -> Option<(u32, BirthGuard)> {
        if !self.with(id, |owned| owned.native_exec).ok()? {
            return None;
        }
        let birth = self.reaper.birth();
        match self.run_helper(id, spec, ends).await {
            Ok(pid) => Some((pid, birth)),
            Err(reason) => {
                log::debug!("exec by the runtime container={id} exec={exec}: {reason}");
                None
            }
        }
    }

    async fn run_helper(self: &Rc<Self>, id: &Id, spec: &[u8], ends: &ChildEnds) -> Result<u32, String> {
        let failed = |what: &'static str| move |e: io::Error| format!("{what}: {e}");
        let (bundle, runtime, options, cgroup, init) = self
            .with(id, |owned| {
                let state = &owned.state;
                let bundle = Bundle::new(&state.bundle);
                (
                    bundle,
                    owned.runtime.binary().to_owned(),
                    owned.options.clone(),
                    owned.cgroup.clone(),
                    state.init.pid,
                )
            })
            .map_err(|e| e.to_string())?;
        let filters = bundle.open(SECCOMP).ok();
        let runtimes = Runtimes {
            binary: &runtime,
            no_pivot_root: options.no_pivot_root,
            no_new_keyring: options.no_new_keyring,
            knows_filters: filters.is_some(),
            open_files_raised: sys::process::has_all_open_files(),
            labelled_alike: sys::process::is_labelled_as_we_are(init),
        };
        let config = bundle.config_text().map_err(|e| super::chain(&e))?;
        let plan = native::decide(&config, spec, id.as_str(), cgroup.as_deref(), &runtimes)?;
        let filters = filters.filter(|_| plan.seccomp).map(OwnedFd::from);
        let plan = serde_json::to_vec(&plan).map_err(|e| e.to_string())?;
        let key = ProcessKey { container: id.clone(), exec: None };
        let init = self.reaper.pidfd_of(init, &key).ok_or("no pidfd of the init")?;
        let (read, write) = pipe_with(PipeFlags::CLOEXEC).map_err(|e| failed("pipe")(e.into()))?;
        rustix::io::ioctl_fionbio(&read, true).map_err(|e| failed("pipe")(e.into()))?;
        let mut descriptors = vec![
            sys::fd::input(&plan).map_err(failed("keep the plan"))?,
            write,
            init,
            sys::spawn::sealed_self().map_err(failed("copy the binary"))?,
        ];
        descriptors.extend(filters);
        let streams = ends.duplicate().map_err(failed("duplicate the pipes"))?.into_streams();
        let mut program = Program::new(format!("/proc/self/fd/{}", native::descriptors::BINARY));
        program.name(native::NAME).env_clear();
        let (pid, ended) = self
            .reaper
            .turn()
            .await
            .start(&program, streams, &descriptors)
            .await
            .map_err(failed("start the helper"))?;
        drop(descriptors);
        let report = pipe::Receiver::from_owned_fd(read).map_err(failed("read the report"))?;
        let mut text = Vec::new();
        let mut report = report.take(MAX_REPORT);
        // Its end: the helper has ended, and the process has become its program, or has ended too.
        let read = tokio::time::timeout(DEADLINE, report.read_to_end(&mut text)).await;
        let text = String::from_utf8_lossy(&text);
        let line = |mark: char| text.lines().find_map(|line| line.strip_prefix(mark));
        let born: Option<u32> = line('P').and_then(|pid| pid.parse().ok());
        if !matches!(read, Ok(Ok(_))) {
            self.reaper.signal_child(pid, libc::SIGKILL);
            if let Some(born) = born {
                // Our own child, unreaped while the birth goes on: the number is its own.
                let _ = sys::process::signal_child(born, libc::SIGKILL);
            }
            return Err("the helper does not come to an end".to_owned());
        }
        let status = ended.await;
        match (born, line('E')) {
            (Some(pid), None) if status == 0 => Ok(pid),
            (_, Some(reason)) => Err(reason.to_owned()),
            _ => Err(format!("the helper ended with status {status}")),
        }
    }
}
