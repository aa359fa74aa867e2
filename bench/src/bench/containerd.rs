//! The same through a real containerd, as a user sees it: ctr runs whole lives and execs.

use super::{Measure, Report, Subject, float, milliseconds};
use crate::DriverError;
use std::{
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

const LIFE: Measure = Measure::less("containerd", "ctr run --rm true", "ms");
const EXEC: Measure = Measure::less("containerd", "ctr task exec true", "ms");
const LIVES: Measure = Measure::more("containerd", "ctr run, 8 at a time", "a second");

const IMAGE: &str = "docker.io/library/busybox:latest";
const AT_A_TIME: usize = 8;
const LAP: Duration = Duration::from_secs(4);

/// A containerd of its own; ends with its value.
struct Containerd {
    child: Child,
    directory: PathBuf,
    namespace: String,
}

fn failed(what: &str) -> impl FnOnce(std::io::Error) -> DriverError {
    move |e| DriverError(format!("{what}: {e}"))
}

impl Containerd {
    fn start() -> Result<Self, DriverError> {
        let namespace = format!("cleat-bench-{}-containerd", std::process::id());
        let directory = Path::new("/run").join(&namespace);
        std::fs::create_dir_all(&directory).map_err(failed("make the directory"))?;
        let config = format!(
            "version = 2\nroot = \"{0}/root\"\nstate = \"{0}/state\"\n\
             disabled_plugins = [\"io.containerd.grpc.v1.cri\", \"io.containerd.cri.v1.images\", \"io.containerd.cri.v1.runtime\", \
             \"io.containerd.internal.v1.opt\", \"io.containerd.snapshotter.v1.devmapper\"]\n\
             [grpc]\naddress = \"{0}/c.sock\"\n[ttrpc]\naddress = \"{0}/c.sock.ttrpc\"\n",
            directory.display()
        );
        std::fs::write(directory.join("config.toml"), config)
            .map_err(failed("write config.toml"))?;
        let log = std::fs::File::create(directory.join("log")).map_err(failed("make the log"))?;
        let child = Command::new("containerd")
            .arg("--config")
            .arg(directory.join("config.toml"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .map_err(failed("run containerd"))?;
        let containerd = Self { child, directory, namespace };
        let begun = Instant::now();
        while !containerd.run(&["version"])? {
            if begun.elapsed() > Duration::from_secs(20) {
                return Err(DriverError("containerd does not answer".to_owned()));
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        let image = containerd.directory.join("image.tar");
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/image");
        let made = Command::new(script).arg(&image).status().map_err(failed("make the image"))?;
        if !made.success()
            || !containerd.run(&["image", "import", "--no-unpack", &image.to_string_lossy()])?
        {
            return Err(DriverError("no image".to_owned()));
        }
        Ok(containerd)
    }

    fn ctr(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("ctr");
        command
            .arg("-a")
            .arg(self.directory.join("c.sock"))
            .args(["-n", &self.namespace])
            .args(arguments);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        command
    }

    fn run(&self, arguments: &[&str]) -> Result<bool, DriverError> {
        self.ctr(arguments).status().map(|status| status.success()).map_err(failed("run ctr"))
    }

    fn expect(&self, arguments: &[&str]) -> Result<f64, DriverError> {
        let begun = Instant::now();
        match self.run(arguments)? {
            true => Ok(milliseconds(begun)),
            false => Err(DriverError(format!("ctr {}: failed", arguments.join(" ")))),
        }
    }

    fn life(&self, shim: &str, id: &str) -> Result<f64, DriverError> {
        self.expect(&["run", "--rm", "--null-io", "--runtime", shim, IMAGE, id, "true"])
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        if let Some(pid) =
            i32::try_from(self.child.id()).ok().and_then(rustix::process::Pid::from_raw)
        {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        }
        let _ = self.child.wait();
        let _ = std::fs::remove_dir_all(&self.directory);
        let _ = std::fs::remove_dir(Path::new("/run/containerd/runc").join(&self.namespace));
        for hierarchy in std::fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten() {
            let _ = std::fs::remove_dir(hierarchy.path().join(&self.namespace));
        }
    }
}

pub(super) fn measure(subject: &Subject<'_>, report: &mut Report) -> Result<(), DriverError> {
    let containerd = Containerd::start()?;
    for round in 0..subject.rounds {
        for (number, driver) in subject.turns(round) {
            let shim = &driver.shim().display().to_string();
            let id = format!("l{round}-{number}");
            let life = containerd.life(shim, &id)?;
            containerd.expect(&[
                "run",
                "-d",
                "--null-io",
                "--runtime",
                shim,
                IMAGE,
                &id,
                "sleep",
                "1000",
            ])?;
            let exec = containerd.expect(&["task", "exec", "--exec-id", "e", &id, "true"])?;
            containerd.expect(&["task", "rm", "-f", &id])?;
            containerd.expect(&["container", "rm", &id])?;
            if round > 0 {
                report.add(LIFE, number, life);
                report.add(EXEC, number, exec);
            }
        }
    }
    for round in 0..subject.rounds.clamp(1, 3) {
        for (number, driver) in subject.turns(round) {
            let shim = &driver.shim().display().to_string();
            let begun = Instant::now();
            let worker = |worker: usize| {
                let (mut done, containerd) = (0, &containerd);
                while begun.elapsed() < LAP {
                    containerd.life(shim, &format!("t{round}-{number}-{worker}-{done}"))?;
                    done += 1;
                }
                Ok::<u64, DriverError>(done)
            };
            let done = std::thread::scope(|scope| {
                let workers: Vec<_> =
                    (0..AT_A_TIME).map(|n| scope.spawn(move || worker(n))).collect();
                workers
                    .into_iter()
                    .map(|worker| worker.join().expect("a worker panicked"))
                    .sum::<Result<u64, _>>()
            })?;
            report.add(LIVES, number, float(done) / begun.elapsed().as_secs_f64());
        }
    }
    Ok(())
}
