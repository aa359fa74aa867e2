//! containerd in a container: what it sees of cgroups is a part, and may be called otherwise than
//! it is.

use crate::support::{self, Rig, add, is_unified, process, start, until, wait};
use cleat::protocol::{Empty, task as api};
use std::{
    fs,
    path::{Path, PathBuf},
};

const ROOT: &str = "/sys/fs/cgroup";

/// Cgroups of a container that is to have a containerd inside: one in each hierarchy, removed with
/// this.
struct Outer(Vec<PathBuf>);

impl Outer {
    fn new(name: &str) -> Self {
        let made: Vec<PathBuf> = if is_unified() {
            vec![Path::new(ROOT).join(name)]
        } else {
            let hierarchies = fs::read_dir(ROOT).unwrap().flatten().map(|entry| entry.path());
            let real =
                hierarchies.filter(|path| path.join("cgroup.procs").exists() && !path.is_symlink());
            real.map(|path| path.join(name)).collect()
        };
        for path in &made {
            // On v2 a cgroup with processes has no controllers for others.
            fs::create_dir_all(path.join("init")).unwrap();
            // Without these nobody can live in a cpuset.
            for directory in [path.clone(), path.join("init")] {
                for file in ["cpuset.cpus", "cpuset.mems"] {
                    if let Ok(text) = fs::read_to_string(directory.parent().unwrap().join(file)) {
                        let _ = fs::write(directory.join(file), text);
                    }
                }
            }
        }
        Self(made)
    }

    /// Shell commands that bring a process in, and let it see nothing else.
    fn enter(&self) -> String {
        let one = |path: &PathBuf| {
            let mount = if is_unified() { Path::new(ROOT) } else { path.parent().unwrap() };
            let (own, mount) = (path.display(), mount.display());
            format!("echo $$ > {own}/init/cgroup.procs && mount --bind {own} {mount}")
        };
        self.0.iter().map(one).collect::<Vec<_>>().join(" && ")
    }
}

impl Drop for Outer {
    fn drop(&mut self) {
        for path in &self.0 {
            until("nobody is left inside", || remove_tree(path));
        }
    }
}

fn remove_tree(path: &PathBuf) -> bool {
    for entry in fs::read_dir(path).into_iter().flatten().flatten() {
        if entry.path().is_dir() {
            remove_tree(&entry.path());
        }
    }
    fs::remove_dir(path).is_ok() || !path.exists()
}

// docker:dind, kind and k3d with the host's cgroup namespace, and each hierarchy bound.
#[test]
fn containerd_in_a_container_with_the_hosts_cgroup_namespace() {
    let name = format!("cleat-test-outer-{}", std::process::id());
    let outer = Outer::new(&name);
    {
        let mut rig = Rig::new();
        rig.end_containerd(libc::SIGTERM);
        let inside =
            format!("mount --make-rprivate / && {} && exec containerd \"$@\"", outer.enter());
        let wrapper = support::script(
            &rig,
            "nested",
            &format!("exec unshare -m sh -ec '{inside}' sh \"$@\""),
        );
        rig.set_containerd(wrapper.to_str().unwrap());
        rig.start_containerd();
        crate::surroundings::course(&rig);
        let events = rig.events();
        let flags = ["--runtime", support::CLEAT, "--memory-limit", "31457280"];
        rig.run_with(&flags, "a", &["sleep", "1000"]);
        let mut direct = rig.direct("a");
        let id = api::ContainerRequest { id: "a".into() };

        let metrics = rig.ctr(["task", "metrics", "a"]);
        let usage = metrics.lines().find_map(|line| {
            line.strip_prefix("memory.usage_in_bytes").or(line.strip_prefix("memory.usage "))
        });
        assert!(usage.is_some_and(|value| value.trim() != "0"), "{metrics}");
        let pids: api::PidsResponse = direct.call("Pids", &id).unwrap();
        assert_eq!(pids.processes.iter().map(|p| p.pid).collect::<Vec<_>>(), [rig.init("a")]);

        add(&mut direct, "e", "exec dd if=/dev/zero of=/dev/null bs=64M count=1", |_| {});
        start(&mut direct, "e");
        assert_eq!(wait(&mut direct, "e"), 137);
        events.wait_for("oom", 1);

        // A frozen container that is killed thaws, dies, and can be deleted.
        direct.call::<Empty>("Pause", &id).unwrap();
        support::signal(&mut direct, "a", "", 9).unwrap();
        assert_eq!(wait(&mut direct, ""), 137);
        direct.call::<api::DeleteResponse>("Delete", &process("a", "e")).unwrap();
        rig.remove("a");
    }
}
