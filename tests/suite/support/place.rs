//! Bundles and shims without a containerd.

use super::{alive, all_pids, cmdline, kill, shim_binary, until};
use std::{
    fs,
    io::Write,
    path::PathBuf,
    process::{Command, Output, Stdio},
};

/// A directory of bundles; what `start` brings up there ends with it.
pub struct Place {
    pub dir: PathBuf,
}

impl Place {
    pub fn new(name: &str) -> Self {
        let dir = PathBuf::from(format!("/run/cleat-test-{}-{name}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        Self { dir }
    }

    pub fn bundle(&self, id: &str, config: &str) -> PathBuf {
        let bundle = self.dir.join(id);
        fs::create_dir_all(&bundle).unwrap();
        fs::write(bundle.join("config.json"), config).unwrap();
        bundle
    }

    /// The command as containerd runs it. Events go to a socket that is not there.
    pub fn command(&self, id: &str, action: &str) -> Command {
        let mut command = Command::new(shim_binary());
        let address = self.dir.join("c.sock");
        command
            .args(["-namespace", "cleat-test", "-id", id, "-address"])
            .arg(&address)
            .args(["-publish-binary", "/bin/true", action])
            .current_dir(self.dir.join(id))
            .env("TTRPC_ADDRESS", self.dir.join("c.sock.ttrpc"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    pub fn start(&self, id: &str, input: &[u8]) -> Output {
        feed(self.command(id, "start"), input)
    }

    /// `start` of a bundle, run by a shell after `before`. The shell stays its parent.
    pub fn start_after(&self, id: &str, before: &str, flags: &str) -> Command {
        let mut command = Command::new("sh");
        let line = format!(
            "{before}; {} {flags} -namespace cleat-test -id {id} -address {}/c.sock start; exit $?",
            shim_binary().display(),
            self.dir.display()
        );
        command.args(["-c", &line]).current_dir(self.dir.join(id)).stdin(Stdio::null());
        command.env("TTRPC_ADDRESS", self.dir.join("c.sock.ttrpc"));
        command
    }

    pub fn delete(&self, id: &str) -> Output {
        let mut command = Command::new(shim_binary());
        command
            .args(["-namespace", "cleat-test", "-id", id, "-address"])
            .arg(self.dir.join("c.sock"));
        command.arg("-bundle").arg(self.dir.join(id)).arg("delete").stdin(Stdio::null());
        command.current_dir(&self.dir).output().unwrap()
    }

    pub fn daemons(&self) -> Vec<u32> {
        let address = self.dir.join("c.sock").to_string_lossy().into_owned();
        let ours = |pid: &u32| {
            let words = cmdline(*pid);
            words.contains(&address) && words[0] != "sh"
        };
        // `start` does not wait until its child has become the daemon. While it becomes one, it has
        // a program and no arguments.
        let starts = |pid: &u32| {
            let words = cmdline(*pid);
            let becomes =
                words.is_empty() && std::fs::read_link(format!("/proc/{pid}/exe")).is_ok();
            becomes || (ours(pid) && words.contains(&"start".to_owned()))
        };
        until("no start goes on", || !all_pids().iter().any(starts));
        all_pids().into_iter().filter(ours).collect()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let daemons = self.daemons();
        daemons.iter().for_each(|pid| kill(*pid, libc::SIGTERM));
        until("daemons end at SIGTERM", || daemons.iter().all(|pid| !alive(*pid)));
        fs::remove_dir_all(&self.dir).unwrap();
    }
}

/// Runs a command with this on its stdin.
pub fn feed(mut command: Command, input: &[u8]) -> Output {
    let mut child = command.spawn().unwrap();
    // It may refuse before it has read all.
    let _ = child.stdin.take().unwrap().write_all(input);
    child.wait_with_output().unwrap()
}
