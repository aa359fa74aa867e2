//! `cleat gc`.

use super::{age, output, stderr, succeeds};
use crate::support::{self, Place, Rig, alive, kill, read_all, until};
use serde_json::Value;
use std::{
    os::{fd::AsFd, unix::net::UnixListener},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

#[test]
fn gc_removes_what_is_orphaned_and_nothing_else() {
    let rig = Rig::new();
    rig.run("a", &["sleep", "1000"]);
    let (state, sockets) = (rig.dir.join("state"), rig.dir.join("s"));
    std::fs::create_dir(&sockets).unwrap();
    let flags = ["--state", state.to_str().unwrap(), "--sockets", sockets.to_str().unwrap()];
    let gc = |more: &[&str]| succeeds(&[&["gc"], &flags[..], more].concat());
    assert_eq!(gc(&[]), "nothing is orphaned\n");
    // Sockets: dead and old, dead and young, alive and old.
    let socket = |name: &str| sockets.join(name);
    drop(UnixListener::bind(socket("dead")).unwrap());
    drop(UnixListener::bind(socket("young")).unwrap());
    let _alive = UnixListener::bind(socket("alive")).unwrap();
    age(&socket("dead"));
    age(&socket("alive"));
    // A rootfs whose bundle is gone, and one whose is not.
    let bundle = rig.bundle("ghost");
    std::fs::create_dir_all(bundle.join("rootfs")).unwrap();
    assert!(
        Command::new("mount")
            .args(["-t", "tmpfs", "cleat-test"])
            .arg(bundle.join("rootfs"))
            .status()
            .unwrap()
            .success()
    );
    // runc's state of a container that has ended, and of one that has not.
    let states = state.join("runc/ns");
    let config = |id: &str| {
        let bundle = rig.dir.join(format!("b-{id}"));
        std::fs::create_dir_all(bundle.join("rootfs/bin")).unwrap();
        std::fs::copy("/bin/busybox", bundle.join("rootfs/bin/busybox")).unwrap();
        assert!(Command::new("runc").args(["spec", "-b"]).arg(&bundle).status().unwrap().success());
        let path = bundle.join("config.json");
        let mut spec: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        spec["process"]["terminal"] = false.into();
        spec["process"]["args"] = serde_json::json!(["/bin/busybox", "sleep", "1000"]);
        spec["linux"]["cgroupsPath"] = format!("/{}/{id}", rig.namespace).into();
        std::fs::write(&path, spec.to_string()).unwrap();
        let mut command = Command::new("runc");
        command.arg("--root").arg(&states).args(["run", "-d", "-b"]).arg(&bundle).arg(id);
        assert!(
            command
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .status()
                .unwrap()
                .success()
        );
        let text = std::fs::read(states.join(id).join("state.json")).unwrap();
        let pid =
            serde_json::from_slice::<Value>(&text).unwrap()["init_process_pid"].as_u64().unwrap();
        age(&states.join(id).join("state.json"));
        std::fs::remove_dir_all(&bundle).unwrap();
        u32::try_from(pid).unwrap()
    };
    let (dead, living) = (config("dead"), config("living"));
    kill(dead, libc::SIGKILL);
    until("it has ended", || !alive(dead));
    let dry = gc(&["--dry-run"]);
    let wanted =
        ["/s/dead: nobody listens", "state of dead in", "ghost/rootfs: its bundle is gone"];
    assert!(wanted.iter().all(|text| dry.contains(text)) && dry.lines().count() == 3, "{dry}");
    assert!(socket("dead").exists());
    let done = gc(&[]);
    assert!(
        done.lines().count() == 3 && done.lines().all(|line| line.starts_with("removed ")),
        "{done}"
    );
    assert_eq!(gc(&[]), "nothing is orphaned\n");
    assert!(!socket("dead").exists() && socket("young").exists() && socket("alive").exists());
    assert!(!states.join("dead").exists() && states.join("living").exists() && alive(living));
    assert!(!read_all("/proc/self/mountinfo").contains("ghost/rootfs"));
    assert_eq!(rig.status("a").as_deref(), Some("RUNNING"));
    assert!(
        Command::new("runc")
            .arg("--root")
            .arg(&states)
            .args(["delete", "--force", "living"])
            .status()
            .unwrap()
            .success()
    );
    std::fs::remove_dir_all(rig.bundle("ghost")).unwrap();
    rig.remove("a");
}

#[test]
fn gc_asks_an_orphaned_shim_to_end() {
    let place = Place::new("orphan");
    place.bundle("a", "{}");
    let mut start = place.command("a", "start");
    start.env("CLEAT_UNNEEDED_SECONDS", "0");
    assert!(support::feed(start, b"").status.success());
    let shim = place.daemons()[0];
    let state = place.dir.to_str().unwrap().to_owned();
    let gc = || succeeds(&["gc", "--state", &state, "--sockets", &state]);
    std::fs::remove_dir_all(place.dir.join("a")).unwrap();
    assert_eq!(gc(), "nothing is orphaned\n", "it is young");
    std::thread::sleep(Duration::from_secs(62));
    let done = gc();
    assert!(done.starts_with(&format!("removed shim {shim} (a)")), "{done}");
    assert!(!alive(shim));
}

// Another process of the node may be between its look at a dead socket and its own in that place:
// it has the lock.
#[test]
fn gc_takes_the_lock_that_start_takes() {
    let place = Place::new("gc-lock");
    let directory = place.dir.to_str().unwrap().to_owned();
    let path = place.dir.join("reborn");
    drop(UnixListener::bind(&path).unwrap());
    age(&path);
    let lock = std::fs::File::open(&place.dir).unwrap();
    rustix::fs::flock(lock.as_fd(), rustix::fs::FlockOperation::LockExclusive).unwrap();
    let gc = || output(&["gc", "--state", &directory, "--sockets", &directory]);
    let begun = Instant::now();
    let held = gc();
    assert!(
        super::stdout(&held).contains("holds the lock") && path.exists(),
        "{}",
        super::stdout(&held)
    );
    assert!(begun.elapsed() < Duration::from_secs(20), "and it does not wait for ever");
    // A shim is born there while gc waits.
    let born = std::thread::scope(|scope| {
        let gc = scope.spawn(gc);
        std::thread::sleep(Duration::from_millis(500));
        std::fs::remove_file(&path).unwrap();
        let listener = UnixListener::bind(&path).unwrap();
        rustix::fs::flock(lock.as_fd(), rustix::fs::FlockOperation::Unlock).unwrap();
        gc.join().unwrap();
        listener
    });
    assert!(path.exists(), "the socket of a live shim was removed");
    drop(born);
}

#[test]
fn gc_is_not_held_up_by_a_listener_that_takes_no_connection() {
    let place = Place::new("gc-full");
    let directory = place.dir.to_str().unwrap().to_owned();
    let path = place.dir.join("deaf");
    let listener = UnixListener::bind(&path).unwrap();
    rustix::net::listen(&listener, 0).unwrap();
    let _waiting: Vec<_> = (0..4)
        .map(|_| {
            let socket = rustix::net::socket_with(
                rustix::net::AddressFamily::UNIX,
                rustix::net::SocketType::STREAM,
                rustix::net::SocketFlags::NONBLOCK,
                None,
            )
            .unwrap();
            let _ =
                rustix::net::connect(&socket, &rustix::net::SocketAddrUnix::new(&path).unwrap());
            socket
        })
        .collect();
    age(&path);
    let begun = Instant::now();
    assert_eq!(
        succeeds(&["gc", "--state", &directory, "--sockets", &directory]),
        "nothing is orphaned\n"
    );
    assert!(begun.elapsed() < Duration::from_secs(20) && path.exists());
}

#[test]
fn a_mount_that_is_a_root_elsewhere_is_no_orphan() {
    let place = Place::new("gc-root");
    let directory = place.dir.to_str().unwrap().to_owned();
    let rootfs = place.dir.join("io.containerd.runtime.v2.task/ns/ghost/rootfs");
    std::fs::create_dir_all(&rootfs).unwrap();
    assert!(
        Command::new("mount")
            .args(["-t", "tmpfs", "cleat-test"])
            .arg(&rootfs)
            .status()
            .unwrap()
            .success()
    );
    std::fs::copy("/bin/busybox", rootfs.join("busybox")).unwrap();
    // As a container: in a mount namespace of its own, where this is the root and all else is gone.
    let script = "mount --make-rprivate / && mount --bind \"$0\" \"$0\" && cd \"$0\" && mkdir -p old && pivot_root . old && exec /busybox chroot . /busybox sh -c '/busybox umount -l /old; echo up; exec /busybox sleep 1000'";
    let mut child = Command::new("unshare")
        .args(["-m", "sh", "-c", script])
        .arg(&rootfs)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = [0; 3];
    std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut line).unwrap();
    let gc = || succeeds(&["gc", "--state", &directory, "--sockets", &directory]);
    assert_eq!(gc(), "nothing is orphaned\n");
    assert!(read_all("/proc/self/mountinfo").contains("ghost/rootfs"));
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(gc().contains("removed mount"));
    assert!(!read_all("/proc/self/mountinfo").contains("ghost/rootfs"));
}

#[test]
fn nothing_is_said_of_what_cannot_be_seen() {
    let refused = output(&["gc", "--state", "/nope"]);
    assert!(
        !refused.status.success() && stderr(&refused).contains("/nope"),
        "{}",
        super::stdout(&refused)
    );
    for words in [
        &["ps"][..],
        &["gc"],
        &["metrics"],
        &["events"],
        &["inspect", "1"],
        &["top", "--batch", "--count", "1"],
    ] {
        let cleat = super::cleat(words);
        let output = Command::new("setpriv")
            .args(["--reuid", "65534", "--clear-groups"])
            .arg(cleat.get_program())
            .args(words)
            .output()
            .unwrap();
        assert!(
            !output.status.success()
                && output.stdout.is_empty()
                && stderr(&output).contains("root"),
            "{words:?}: {}",
            stderr(&output)
        );
    }
    let cleat = super::cleat(&[]);
    let output = Command::new("setpriv")
        .args(["--reuid", "65534", "--clear-groups"])
        .arg(cleat.get_program())
        .args(["doctor", "-o", "json"])
        .output()
        .unwrap();
    let all: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(2));
    for what in ["shims", "containers", "orphans"] {
        let check = all.as_array().unwrap().iter().find(|check| check["what"] == what).unwrap();
        assert_eq!(check["state"], "unknown", "{check}");
    }
}
