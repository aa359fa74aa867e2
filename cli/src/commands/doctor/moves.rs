//! What a move into a cgroup costs on this node: the kernel waits for an RCU grace period before it
//! (kernel/cgroup/cgroup.c, `cgroup_attach_lock`), unless the hierarchy favours such changes.

use std::{
    fs, io,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

/// Moves that are timed.
const MOVES: usize = 5;
/// Between two of them: the kernel lets one that comes soon after another pass.
const REST: Duration = Duration::from_millis(100);

/// For the line of the hierarchy that is mounted at `root`; empty where it cannot be measured.
pub(super) fn cost(root: &Path) -> String {
    match median(root) {
        Ok(time) => format!(": a move takes {:.1} ms", time.as_secs_f64() * 1000.0),
        Err(_) => String::new(),
    }
}

/// A cgroup of our own and a process in it; both go again.
struct Place(PathBuf, Child);

impl Place {
    fn new(root: &Path) -> io::Result<Self> {
        let path = root.join(format!("cleat-doctor-{}", std::process::id()));
        // It ends with its stdin: with us.
        let mut idle = Command::new("cat");
        let idle =
            idle.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
        let place = Self(path, idle);
        fs::create_dir(&place.0)?;
        Ok(place)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = self.1.kill();
        let _ = self.1.wait();
        let _ = fs::remove_dir(&self.0);
    }
}

fn median(root: &Path) -> io::Result<Duration> {
    let place = Place::new(root)?;
    let pid = place.1.id().to_string();
    let mut times = Vec::new();
    for number in 0..MOVES {
        std::thread::sleep(REST);
        // There and back: where it came from is the root, or our own.
        let to = if number % 2 == 0 { place.0.clone() } else { root.to_owned() };
        let begun = Instant::now();
        fs::write(to.join("cgroup.procs"), &pid)?;
        times.push(begun.elapsed());
    }
    times.sort();
    Ok(times[MOVES / 2])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_it_cannot_be_measured_nothing_is_said() {
        assert_eq!(cost(Path::new("/nonesuch")), "");
    }
}
