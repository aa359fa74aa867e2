//! `cleat install`: containerd's configuration is the user's.

use super::{cleat, output, stderr, stdout};
use crate::support::{Place, containerd_binary, read_all, shim_binary};
use std::{
    os::unix::fs::{MetadataExt, PermissionsExt, symlink},
    path::{Path, PathBuf},
    process::{Command, Output},
};

/// A configuration in a directory of its own.
struct Node {
    place: Place,
    path: PathBuf,
}

impl Node {
    fn new(name: &str) -> Self {
        let place = Place::new(&format!("install-{name}"));
        Self { path: place.dir.join("config.toml"), place }
    }

    fn with(name: &str, text: &str) -> Self {
        let node = Self::new(name);
        std::fs::write(&node.path, text).unwrap();
        node
    }

    fn flags(&self) -> Vec<String> {
        let words = [
            "install",
            "--config",
            self.path.to_str().unwrap(),
            "--containerd",
            &containerd_binary(),
        ];
        words.map(str::to_owned).to_vec()
    }

    fn try_install(&self, more: &[&str]) -> Output {
        let flags = self.flags();
        output(&[&flags.iter().map(String::as_str).collect::<Vec<_>>()[..], more].concat())
    }

    fn install(&self, more: &[&str]) -> String {
        let output = self.try_install(more);
        assert!(output.status.success(), "{more:?}: {}", stderr(&output));
        stdout(&output)
    }

    fn refuses(&self, more: &[&str]) -> String {
        let before = self.text();
        let output = self.try_install(more);
        assert!(!output.status.success(), "{more:?}: {}", stdout(&output));
        assert_eq!(self.text(), before);
        stderr(&output)
    }

    fn text(&self) -> String {
        read_all(&self.path)
    }

    /// What containerd makes of it.
    fn dump(&self) -> String {
        let output = Command::new(containerd_binary())
            .arg("--config")
            .arg(&self.path)
            .args(["config", "dump"])
            .output();
        stdout(&output.unwrap()).replace('\'', "\"")
    }

    fn files(&self) -> Vec<String> {
        let entries = std::fs::read_dir(&self.place.dir).unwrap();
        let mut names: Vec<String> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }
}

const OWN: &str = "version = 2 # mine\n\n[plugins.\"io.containerd.grpc.v1.cri\".containerd]\n  default_runtime_name = \"runc\" # why\n\n\
    [plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.runc]\nruntime_type = \"io.containerd.runc.v2\"\n\
    [plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.runc.options]\nSystemdCgroup = true\n\
    [plugins.\"io.containerd.grpc.v1.cri\".registry.mirrors]\n[proxy_plugins]\n# the end";

/// As people have them; Debian's is the last.
const FILES: [&str; 5] = [
    OWN,
    "",
    "# nothing but a comment",
    "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\"]\n  sandbox_image = \"x\"",
    "version = 2\n\n[plugins]\n  [plugins.\"io.containerd.grpc.v1.cri\"]\n    [plugins.\"io.containerd.grpc.v1.cri\".cni]\n      bin_dir = \"/usr/lib/cni\"\n",
];

#[test]
fn install_is_seen_by_containerd_and_undone_to_the_byte() {
    for text in FILES {
        let node = Node::with("byte", text);
        let printed = node.install(&["--as-default"]);
        assert!(printed.contains("runtimes.cleat]"), "{printed}");
        assert_eq!(node.text(), text, "printing changes nothing");
        node.install(&["--write"]);
        let once = node.text();
        assert!(once.starts_with(text), "{once}");
        assert!(node.dump().contains("runtime_type = \"io.containerd.cleat.v2\""));
        assert!(
            node.dump().contains("containerd.runtimes.runc]"),
            "containerd 1.x forgets its own: {}",
            node.dump()
        );
        node.install(&["--write"]);
        assert_eq!(node.text(), once, "twice is as once");
        node.install(&["--write", "--as-default"]);
        assert!(node.dump().contains("default_runtime_name = \"cleat\""), "{}", node.text());
        node.install(&["--write", "--no-default"]);
        assert!(node.dump().contains("default_runtime_name = \"runc\""), "{}", node.text());
        node.install(&["--write", "--as-default"]);
        assert_eq!(
            read_all(node.place.dir.join("config.toml.before-cleat")),
            text,
            "the first copy is kept"
        );
        node.install(&["--undo"]);
        assert_eq!(node.text(), text);
        assert_eq!(node.files(), ["config.toml"], "and nothing is beside it");
    }
    // A file that is not there is made, and goes again.
    let node = Node::new("none");
    node.install(&["--write", "--as-default"]);
    assert!(node.dump().contains("default_runtime_name = \"cleat\""));
    node.install(&["--undo"]);
    assert_eq!(node.files(), [] as [&str; 0]);
}

// Only containerd can say whether its CRI plugin starts; `dump` shows what it starts with.
#[test]
fn what_is_printed_works_when_it_is_pasted() {
    for text in &FILES[1..] {
        let node = Node::with("paste", text);
        let printed = node.install(&["--as-default"]);
        std::fs::write(&node.path, format!("{text}\n{printed}")).unwrap();
        let dump = node.dump();
        for line in [
            "default_runtime_name = \"cleat\"",
            "containerd.runtimes.runc]",
            "containerd.runtimes.cleat]",
        ] {
            assert!(dump.contains(line), "{line}: {printed}");
        }
        assert!(node.install(&["--write"]).contains("is there already"));
        node.install(&["--undo"]);
        assert!(
            !node.dump().contains("io.containerd.cleat.v2"),
            "its marks are known again: {}",
            node.text()
        );
    }
}

#[test]
fn settings_made_by_hand_outlive_a_second_install_and_are_kept_at_the_end() {
    let node = Node::with("hand", OWN);
    node.install(&["--write"]);
    let edited = node
        .text()
        .replace(
            "runtime_type = \"io.containerd.cleat.v2\"\n",
            "runtime_type = \"io.containerd.cleat.v2\"\n# mine\nprivileged_without_host_devices = true\n",
        )
        .replace("# mine\n\n", "# mine\nimports = []\n\n");
    std::fs::write(&node.path, &edited).unwrap();
    node.install(&["--write"]);
    assert_eq!(node.text(), edited);
    node.install(&["--write", "--as-default"]);
    assert!(
        node.dump().contains("privileged_without_host_devices = true")
            && node.text().contains("# mine\nprivileged"),
        "{}",
        node.text()
    );
    // The default by hand: not ours any more.
    let by_hand = node.text().replace(
        "default_runtime_name = \"cleat\" # cleat install",
        "default_runtime_name = \"runc\"",
    );
    std::fs::write(&node.path, &by_hand).unwrap();
    let said = node.install(&["--undo"]);
    assert!(said.contains("lines of your own") && said.contains("config.toml.undone"), "{said}");
    assert!(
        read_all(node.place.dir.join("config.toml.undone"))
            .contains("privileged_without_host_devices = true")
    );
    assert!(
        node.text().contains("imports = []")
            && node.text().contains("default_runtime_name = \"runc\""),
        "{}",
        node.text()
    );
    assert!(!node.dump().contains("io.containerd.cleat.v2"));
}

#[test]
fn what_is_not_its_own_is_left_alone() {
    let kata = format!(
        "{}\n[plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.kata]\nruntime_type = \"io.containerd.kata.v2\"\n",
        FILES[4]
    );
    let node = Node::with("kata", &kata);
    assert!(node.refuses(&["--write", "--handler", "kata"]).contains("not cleat's"));
    assert!(node.refuses(&["--write", "--handler", "runc"]).contains("runtime_path"));
    assert!(!node.try_install(&["--handler", "Über"]).status.success());
    // A handler of cleat's by hand, as README.md says.
    let by_hand = kata
        .replace("io.containerd.kata.v2", "io.containerd.cleat.v2")
        .replace("runtimes.kata", "runtimes.cleat");
    let by_hand = format!(
        "{by_hand}[plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.runc]\nruntime_type = \"io.containerd.runc.v2\"\n"
    );
    let node = Node::with("own", &by_hand);
    assert!(node.install(&["--write"]).contains("nothing is to be changed"));
    assert!(node.install(&["--undo"]).contains("by hand"));
    assert_eq!(node.text(), by_hand);
    // A default by hand keeps the handler that it names.
    let node = Node::with("default", FILES[4]);
    node.install(&["--write"]);
    let text = format!(
        "{}[plugins.\"io.containerd.grpc.v1.cri\".containerd]\ndefault_runtime_name = \"cleat\"\n",
        node.text()
    );
    std::fs::write(&node.path, &text).unwrap();
    assert!(node.refuses(&["--undo"]).contains("not by cleat install"));
    assert_eq!(node.text(), text);
    // A file of options with the name that docs/io.md used to give.
    let node = Node::with("options", OWN);
    std::fs::write(node.place.dir.join("cleat.toml"), "Spool = \"64Mi\"\n").unwrap();
    node.install(&["--write"]);
    node.install(&["--undo"]);
    assert_eq!(read_all(node.place.dir.join("cleat.toml")), "Spool = \"64Mi\"\n");
}

#[test]
fn one_of_two_handlers_is_undone_alone() {
    let node = Node::with("two", OWN);
    node.install(&["--write"]);
    node.install(&["--write", "--handler", "second", "--as-default"]);
    node.install(&["--undo"]);
    let dump = node.dump();
    assert!(
        dump.contains("runtimes.second]") && !dump.contains("runtimes.cleat]"),
        "{}",
        node.text()
    );
    for line in dump.lines().filter(|line| line.contains("ConfigPath = \"/")) {
        let path = line.split('"').nth(1).unwrap();
        assert!(read_all(path).contains("SystemdCgroup = true"), "{path}");
    }
    node.install(&["--undo", "--all"]);
    assert_eq!((node.text().as_str(), node.files()), (OWN, vec!["config.toml".to_owned()]));
}

#[test]
fn mode_owner_and_links_stay_and_secrets_are_never_readable() {
    let node = Node::new("secret");
    let real = node.place.dir.join("real/of.toml");
    std::fs::create_dir(real.parent().unwrap()).unwrap();
    std::fs::write(&real, OWN).unwrap();
    std::fs::set_permissions(&real, std::fs::Permissions::from_mode(0o600)).unwrap();
    std::os::unix::fs::chown(&real, Some(5), Some(6)).unwrap();
    symlink("real/of.toml", &node.path).unwrap();
    let watch = |stop: &std::sync::atomic::AtomicBool| {
        let mut seen = Vec::new();
        while !stop.load(std::sync::atomic::Ordering::Relaxed) {
            for entry in std::fs::read_dir(real.parent().unwrap()).unwrap().flatten() {
                let Ok(about) = entry.metadata() else { continue };
                let text = std::fs::read_to_string(entry.path()).unwrap_or_default();
                if about.mode() & 0o077 != 0 && text.contains("# mine") {
                    seen.push(entry.path());
                }
            }
        }
        seen
    };
    let stop = std::sync::atomic::AtomicBool::new(false);
    let seen = std::thread::scope(|scope| {
        let watcher = scope.spawn(|| watch(&stop));
        node.install(&["--write", "--as-default"]);
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        watcher.join().unwrap()
    });
    assert_eq!(seen, [] as [PathBuf; 0]);
    let about = |path: &Path| {
        let about = std::fs::metadata(path).unwrap();
        (about.mode() & 0o7777, about.uid(), about.gid())
    };
    assert!(std::fs::symlink_metadata(&node.path).unwrap().is_symlink());
    assert_eq!(about(&real), (0o600, 5, 6));
    assert_eq!(about(&real.with_file_name("of.toml.before-cleat")), (0o600, 5, 6));
    node.install(&["--undo"]);
    assert_eq!((read_all(&real).as_str(), about(&real)), (OWN, (0o600, 5, 6)));
}

#[test]
fn imported_files_are_where_containerd_looks() {
    let node = Node::new("imports");
    let directory = node.place.dir.join("conf.d");
    std::fs::create_dir(&directory).unwrap();
    std::fs::write(
        &node.path,
        format!("version = 2\nimports = [\"{}/*.toml\"]\n", directory.display()),
    )
    .unwrap();
    let own = "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\"]\n  sandbox_image = \"mine\"\n";
    std::fs::write(directory.join("own.toml"), own).unwrap();
    let main = node.text();
    node.install(&["--write", "--as-default"]);
    let dump = node.dump();
    for line in
        ["default_runtime_name = \"cleat\"", "runtimes.cleat]", "runtimes.runc]", "\"mine\""]
    {
        assert!(dump.contains(line), "{line}: {dump}");
    }
    node.install(&["--write"]);
    node.install(&["--undo"]);
    assert_eq!((node.text(), read_all(directory.join("own.toml")).as_str()), (main, own));
    assert_eq!(std::fs::read_dir(&directory).unwrap().count(), 1);
}

#[test]
fn a_slip_in_the_path_makes_no_file() {
    let place = Place::new("slip");
    let path = place.dir.join("contanerd/config.toml");
    let words = [
        "install",
        "--containerd",
        &containerd_binary(),
        "--write",
        "--config",
        path.to_str().unwrap(),
    ];
    let refused = output(&words);
    assert!(
        !refused.status.success() && stderr(&refused).contains("there is no such directory"),
        "{refused:?}"
    );
    assert!(!path.parent().unwrap().exists());
}

#[test]
fn a_file_that_would_not_do_is_not_put_in_place() {
    // Docker's packages bring this one.
    let node = Node::with("docker", "#disabled\ndisabled_plugins = [\"cri\"]\n");
    let said = node.refuses(&["--write"]);
    assert!(said.contains("disabled_plugins") && said.contains("docker run --runtime"), "{said}");
    assert!(node.install(&[]).contains("# BUT: "));
    let node = Node::with("broken", "version = 2\noom_score = \"x\"\n");
    assert!(node.refuses(&["--write"]).contains("does not accept"));
    let node = Node::with("nothing", "version = \n");
    assert!(node.refuses(&["--write"]).contains("parse"));
}

/// Killed at each of its system calls, it leaves the old file or the new one, whole; and the next
/// run is as if nothing had been.
#[test]
fn a_kill_at_any_moment_leaves_the_old_file_or_the_new() {
    let node = Node::with("kill", OWN);
    node.install(&["--write", "--as-default"]);
    let new = node.text();
    node.install(&["--undo"]);
    let calls = [
        "openat", "write", "fsync", "fchown", "fchmod", "rename", "linkat", "link", "unlink",
        "flock",
    ];
    let mut outcomes = [0, 0];
    for call in calls {
        for number in 1.. {
            let inject = format!("inject={call}:signal=KILL:when={number}");
            let mut command = Command::new("strace");
            command.args(["-o", "/dev/null", "-e", &format!("trace={call}"), "-e", &inject]);
            let cleat = cleat(&[]);
            command.arg(cleat.get_program()).args(node.flags()).args(["--write", "--as-default"]);
            let path = format!(
                "{}:{}",
                shim_binary().parent().unwrap().display(),
                std::env::var("PATH").unwrap()
            );
            let output = command.env("PATH", path).output().unwrap();
            let text = node.text();
            assert!(text == OWN || text == new, "{call} {number}: {text}");
            let kept = node.place.dir.join("config.toml.before-cleat");
            assert!(!kept.exists() || read_all(&kept) == OWN, "{call} {number}");
            outcomes[usize::from(text == new)] += 1;
            if output.status.success() {
                break;
            }
            // Opening, mostly to read, is done a hundred times.
            if call == "openat" && number > 40 {
                break;
            }
            if text == new {
                node.install(&["--undo"]);
                assert_eq!(node.text(), OWN, "{call} {number}");
            }
        }
        // What the killed ones have left is in nobody's way, and goes with the next.
        node.install(&["--write", "--as-default"]);
        assert_eq!(node.text(), new, "{call}");
        node.install(&["--undo"]);
        assert_eq!(
            (node.text().as_str(), node.files()),
            (OWN, vec!["config.toml".to_owned()]),
            "{call}"
        );
    }
    assert!(outcomes[0] > 20 && outcomes[1] > 0, "{outcomes:?}");
}
