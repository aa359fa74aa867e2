//! Execs without the runtime: what the program finds is what it finds when runc has started it.

use crate::support::{
    CLEAT, Direct, GROUP, Rig, exec_request, fifo, process_spec, reader, text, until,
};
use cleat::protocol::{Empty, task as api};
use serde_json::{Value, json};
use std::{
    io::Read,
    path::{Path, PathBuf},
    time::Duration,
};

const NATIVE: &str = "io.containerd.cleat.native-exec=true";
/// What the operator says for it to count.
const LISTED: &str = "Annotations = ['native-exec']";

/// A rig whose shims have as many open files as they may: without that, or a limit in the spec, no
/// exec is native.
fn rig() -> Rig {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let maximum = getrlimit(Resource::Nofile).maximum;
    setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }).unwrap();
    Rig::new()
}

/// Flags of a container that asks for native execs, where the operator lets it, with these options
/// besides.
fn asks_for_native(rig: &Rig, options: &str) -> Vec<String> {
    let options = rig.runtime_options("native.toml", &format!("{LISTED}\n{options}\n"));
    options.into_iter().chain(["--annotation", NATIVE].map(str::to_owned)).collect()
}

/// A container whose execs runc refuses, so they must be native; and one beside it whose execs are
/// runc's.
fn pair(rig: &Rig) -> Direct {
    pair_with(rig, &[])
}

/// The same, both made with these flags too.
fn pair_with(rig: &Rig, flags: &[&str]) -> Direct {
    let bin = rig.dir.join("only-native");
    std::fs::create_dir(&bin).unwrap();
    let script =
        "#!/bin/sh\ncase \"$*\" in *' exec '*) echo by runc >&2; exit 1;; esac\nexec runc \"$@\"\n";
    std::fs::write(bin.join("runc"), script).unwrap();
    std::fs::set_permissions(bin.join("runc"), std::os::unix::fs::PermissionsExt::from_mode(0o755))
        .unwrap();
    let group = format!("{GROUP}=pod");
    let native = asks_for_native(rig, &format!("BinaryName = '{}'", text(&bin.join("runc"))));
    let native: Vec<&str> =
        native.iter().map(String::as_str).chain(["--annotation", &group]).collect();
    rig.run_with(&[&native, flags].concat(), "pod", &["sleep", "1000"]);
    let other = ["--runtime", CLEAT, "--annotation", &group];
    rig.run_with(&[&other, flags].concat(), "other", &["sleep", "1000"]);
    let mut direct = rig.direct("pod");
    // The first ones are runc's, until its version is known.
    let mut warm_up = process_spec(&["true"]);
    if let Some(at) = flags.iter().position(|flag| *flag == "--apparmor-profile") {
        warm_up["apparmorProfile"] = flags[at + 1].into();
    }
    until("execs are native", || observe(rig, &mut direct, "pod", &warm_up).is_ok());
    direct
}

/// A container whose execs are native, but where they cannot be, and one beside it whose execs are
/// runc's; both made with these flags too.
fn native_and_other(rig: &Rig, flags: &[&str]) -> Direct {
    let group = format!("{GROUP}=pod");
    let native = asks_for_native(rig, "");
    let native: Vec<&str> = native.iter().map(String::as_str).collect();
    for (id, first) in [("pod", native.as_slice()), ("other", &["--runtime", CLEAT])] {
        rig.run_with(&[first, &["--annotation", &group], flags].concat(), id, &["sleep", "1000"]);
    }
    rig.direct("pod")
}

/// The first execs are runc's, until its version is known: waits for one that is native.
fn until_native(rig: &Rig, direct: &mut Direct, id: &str) {
    until("an exec is native", || {
        let before = rig.log().matches("exec by the runtime").count();
        observe(rig, direct, id, &process_spec(&["true"])).unwrap();
        rig.log().matches("exec by the runtime").count() == before
    });
}

fn unpair(rig: &Rig) {
    rig.remove("other");
    rig.remove("pod");
}

/// Runs an exec; its status and what it wrote, or the error of Start.
fn observe(
    rig: &Rig,
    direct: &mut Direct,
    id: &str,
    spec: &Value,
) -> Result<(u32, String), String> {
    static NUMBER: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
    let exec = format!("e{}", NUMBER.fetch_add(1, std::sync::atomic::Ordering::Relaxed));
    let (stdout, stderr) =
        (fifo(&rig.dir, &format!("{exec}-out")), fifo(&rig.dir, &format!("{exec}-err")));
    let mut request = exec_request(id, &exec, spec);
    (request.stdout, request.stderr) = (text(&stdout), text(&stderr));
    direct.call::<Empty>("Exec", &request).unwrap();
    let process = api::ProcessRequest { id: id.into(), exec_id: exec.clone() };
    let (output, errors) = (reader(&stdout), reader(&stderr));
    let drain = |mut file: std::fs::File| {
        std::thread::spawn(move || {
            let mut all = String::new();
            file.read_to_string(&mut all).unwrap();
            all
        })
    };
    let started = direct.call::<api::PidResponse>("Start", &process);
    let waited = direct.call::<api::WaitResponse>("Wait", &process).unwrap();
    // Not before: a fifo that nobody has open for writing yet is at its end.
    let (output, errors) = (drain(output), drain(errors));
    direct.call::<api::DeleteResponse>("Delete", &process).unwrap();
    let all = output.join().unwrap() + &errors.join().unwrap();
    // Numbers of containers, pipes and processes differ.
    let neutral = all.replace(id, "ID");
    started
        .map(|_| (waited.exit_status, neutral))
        .map_err(|status| status.message.replace(&exec, "EXEC").replace(id, "ID"))
}

/// Runs an exec natively and by runc: what both did.
fn both(rig: &Rig, direct: &mut Direct, name: &str, spec: &Value) -> (u32, String) {
    let native = observe(rig, direct, "pod", spec).unwrap();
    let runcs = observe(rig, direct, "other", spec).unwrap();
    let differing: Vec<(&str, &str)> =
        native.1.lines().zip(runcs.1.lines()).filter(|(ours, theirs)| ours != theirs).collect();
    assert!(differing.is_empty(), "{name}: native, runc: {differing:#?}");
    assert_eq!(native, runcs, "{name}");
    native
}

/// All that a program can learn of its own state.
const LOOK: &str = r#"
    cd /proc/$$ 2>/dev/null; echo status
    names='Umask|Uid|Gid|Groups|SigPnd|SigBlk|SigIgn|SigCgt|ShdPnd|Cap[A-Za-z]*|NoNewPrivs|Seccomp'
    names="$names|Seccomp_filters|Speculation_[A-Za-z_]*|Threads|Cpus_allowed_list"
    names="$names|Mems_allowed_list|CoreDumping|THP_enabled"
    grep -E "^($names):" status
    echo limits; cat limits
    echo cgroup; cat cgroup
    for n in ns/*; do [ "$(readlink $n)" = "$(readlink /proc/1/$n)" ] && echo $n as the init || echo $n ELSEWHERE; done
    echo attr; cat attr/current 2>/dev/null; echo oom; cat oom_score_adj; echo comm; cat comm
    echo session; set -- $(cut -d')' -f2 stat); [ $4 = $$ ] && echo leads its session
    [ $3 = $$ ] && echo leads its group; echo tty $5; echo nice ${17}
    echo fds
    for f in fd/*; do
        case $(readlink $f) in pipe:*) echo $f a pipe;; *) echo $f $(readlink $f);; esac
    done
    echo owner; stat -c '%u %g %a' .; stat -L -c '%u %g %a' fd/0 fd/1 fd/2
    echo keyring; grep -c _ses /proc/keys 2>/dev/null
    echo timerslack; cat timerslack_ns 2>/dev/null
    echo personality; cat personality 2>/dev/null
"#;

fn looking(change: impl FnOnce(&mut Value)) -> Value {
    let mut spec = process_spec(&["sh", "-c", &format!("pwd; env; umask; {LOOK}")]);
    change(&mut spec);
    spec
}

#[test]
fn a_native_exec_is_what_runcs_is() {
    let rig = rig();
    let mut direct = pair(&rig);
    let few = json!(["CAP_KILL", "CAP_CHOWN"]);
    let user = json!({"uid": 1000, "gid": 1001, "additionalGids": [5, 6, 70000]});
    let specs = [
        ("as it comes", looking(|_| {})),
        ("another user", looking(|spec| spec["user"] = user.clone())),
        (
            "a user of /etc/passwd",
            looking(|spec| spec["user"] = json!({"uid": 65534, "gid": 65534})),
        ),
        ("no capabilities", looking(|spec| spec["capabilities"] = json!({}))),
        (
            "few capabilities",
            looking(|spec| {
                spec["capabilities"] = json!({"bounding": few, "effective": few, "permitted": few, "inheritable": few});
            }),
        ),
        (
            "ambient capabilities of a user",
            looking(|spec| {
                spec["user"] = user.clone();
                spec["capabilities"] = json!({"bounding": few, "effective": few, "permitted": few, "inheritable": few, "ambient": few});
            }),
        ),
        ("no new privileges", looking(|spec| spec["noNewPrivileges"] = true.into())),
        (
            "limits",
            looking(|spec| {
                // Not a soft limit of open files below the hard one: whether runc 1.1's Go raises
                // it before or after it was set is a race.
                spec["rlimits"] = json!([{"type": "RLIMIT_NOFILE", "soft": 200, "hard": 200}, {"type": "RLIMIT_CORE", "soft": 0, "hard": 0}]);
            }),
        ),
        ("a directory", looking(|spec| spec["cwd"] = "/tmp".into())),
        (
            "a directory that is the user's alone",
            looking(|spec| {
                spec["args"] =
                    json!(["sh", "-c", "mkdir -m 700 /private; chown 1000 /private; echo made"]);
            }),
        ),
        (
            "that one",
            looking(|spec| {
                spec["cwd"] = "/private".into();
                spec["user"] = user.clone();
            }),
        ),
        (
            "an environment",
            looking(|spec| spec["env"] = json!(["PATH=/sbin:/bin", "A=1", "B=", "HOME=/x"])),
        ),
        ("a path", looking(|spec| spec["args"][0] = "/bin/sh".into())),
        ("a relative path", looking(|spec| spec["args"][0] = "bin/sh".into())),
        ("a status", {
            let mut spec = process_spec(&["sh", "-c", "echo out; echo err >&2; kill -9 $$"]);
            spec["terminal"] = false.into();
            spec
        }),
    ];
    for (name, spec) in specs {
        let native = both(&rig, &mut direct, name, &spec);
        // Only root may look at the init's.
        let is_root = spec["user"]["uid"] == 0 && spec["capabilities"].is_null();
        assert!(!is_root || !native.1.contains("ELSEWHERE"), "{name}: {}", native.1);
    }
    unpair(&rig);
}

// Versions of runc order it in different ways.
#[test]
fn an_odd_environment_is_as_runcs() {
    let rig = rig();
    let mut direct = native_and_other(&rig, &[]);
    until_native(&rig, &mut direct, "pod");
    for env in [
        json!(["PATH=/sbin:/bin", "A=1", "B=", "A=2", "HOME="]),
        json!(["HOME=", "PATH=/bin", "PATH=/sbin:/bin"]),
    ] {
        both(&rig, &mut direct, "an odd environment", &looking(|spec| spec["env"] = env.clone()));
    }
    unpair(&rig);
}

/// Loads an AppArmor profile under which this file cannot be read; removes it in the end.
struct Profile(String);

impl Profile {
    fn load(name: &str, forbidden: &str) -> Self {
        let text = format!(
            "profile {name} flags=(attach_disconnected,mediate_deleted) {{\n network,\n capability,\n file,\n signal,\n ptrace,\n deny {forbidden} r,\n}}\n"
        );
        parse(&["--replace"], &text);
        Self(name.to_owned())
    }
}

impl Drop for Profile {
    fn drop(&mut self) {
        parse(&["--remove"], &format!("profile {} {{}}\n", self.0));
    }
}

fn parse(flags: &[&str], profile: &str) {
    use std::{
        io::Write,
        process::{Command, Stdio},
    };
    let mut parser = Command::new("apparmor_parser");
    let mut parser = parser.arg("--skip-cache").args(flags).stdin(Stdio::piped()).spawn().unwrap();
    parser.stdin.take().unwrap().write_all(profile.as_bytes()).unwrap();
    assert!(parser.wait().unwrap().success(), "{profile}");
}

// Where the kernel has AppArmor: in the virtual machine of scripts/vm.
#[test]
fn an_apparmor_profile_confines_a_native_exec_as_one_of_runcs() {
    if !std::path::Path::new("/sys/kernel/security/apparmor/profiles").exists() {
        return;
    }
    let rig = rig();
    let (first, second) = (
        format!("cleat-test-{}", std::process::id()),
        format!("cleat-test-{}-2", std::process::id()),
    );
    let (_first, _second) =
        (Profile::load(&first, "/etc/group"), Profile::load(&second, "/etc/passwd"));
    let mut direct = pair_with(&rig, &["--apparmor-profile", &first]);
    let tries = |change: &dyn Fn(&mut Value)| {
        looking(|spec| {
            let script = spec["args"][2].as_str().unwrap_or_default();
            spec["args"][2] = format!("cat /etc/group /etc/passwd >/dev/null; {script}").into();
            // Clients take it from the container's.
            spec["apparmorProfile"] = first.clone().into();
            change(spec);
        })
    };
    let user = json!({"uid": 1000, "gid": 1001});
    let specs = [
        ("the container's", tries(&|_| {}), &first, "/etc/group"),
        ("of a user", tries(&|spec| spec["user"] = user.clone()), &first, "/etc/group"),
        (
            "without capabilities",
            tries(&|spec| spec["capabilities"] = json!({})),
            &first,
            "/etc/group",
        ),
        (
            "without new privileges",
            tries(&|spec| spec["noNewPrivileges"] = true.into()),
            &first,
            "/etc/group",
        ),
        (
            "the exec's own",
            tries(&|spec| spec["apparmorProfile"] = second.clone().into()),
            &second,
            "/etc/passwd",
        ),
    ];
    for (name, spec, profile, forbidden) in specs {
        let (_, seen) = both(&rig, &mut direct, name, &spec);
        assert!(seen.contains(&format!("{profile} (enforce)")), "{name}: {seen}");
        assert!(seen.contains(&format!("{forbidden}': Permission denied")), "{name}: {seen}");
    }
    // A profile that is not loaded, and none at all, are runc's business.
    for profile in ["cleat-test-unknown", ""] {
        let mut spec = process_spec(&["true"]);
        spec["apparmorProfile"] = profile.into();
        assert!(observe(&rig, &mut direct, "pod", &spec).is_err(), "{profile:?}: not by runc");
    }
    unpair(&rig);
}

// Kubernetes' RuntimeDefault is such a profile. The filters are compared as the kernel has them,
// instruction by instruction.
#[test]
fn seccomp_filters_are_those_that_runc_loads() {
    let rig = rig();
    let mut direct = pair_with(&rig, &["--seccomp"]);
    let filters = |exec: &str, id: &str, direct: &mut Direct, change: &dyn Fn(&mut Value)| {
        // As the container's own, which has the full set.
        let mut spec = process_spec(&["sleep", "1000"]);
        change(&mut spec);
        direct.call::<Empty>("Exec", &exec_request(id, exec, &spec)).unwrap();
        let process = api::ProcessRequest { id: id.into(), exec_id: exec.into() };
        let pid = direct.call::<api::PidResponse>("Start", &process).unwrap().pid;
        // runc answers while its child is still on its way.
        let comm = || crate::support::read_all(format!("/proc/{pid}/comm"));
        until("the program runs", || comm() == "sleep\n");
        let filters = filters_in_helper(pid);
        direct
            .call::<Empty>(
                "Kill",
                &api::KillRequest { id: id.into(), exec_id: exec.into(), signal: 9, all: false },
            )
            .unwrap();
        direct.call::<api::WaitResponse>("Wait", &process).unwrap();
        direct.call::<api::DeleteResponse>("Delete", &process).unwrap();
        filters
    };
    let user = json!({"uid": 1000, "gid": 1001, "additionalGids": [5]});
    let few = json!(["CAP_KILL", "CAP_CHOWN"]);
    let some = json!({"bounding": few, "effective": few, "permitted": few, "inheritable": few, "ambient": few});
    type Change<'a> = &'a dyn Fn(&mut Value);
    let specs: [(&str, Change<'_>); 6] = [
        ("new privileges", &|spec| spec["noNewPrivileges"] = false.into()),
        ("no new privileges", &|spec| spec["noNewPrivileges"] = true.into()),
        ("a user", &|spec| spec["user"] = user.clone()),
        ("a user, no new privileges", &|spec| {
            spec["user"] = user.clone();
            spec["noNewPrivileges"] = true.into();
        }),
        ("a user with capabilities", &|spec| {
            spec["user"] = user.clone();
            spec["capabilities"] = some.clone();
        }),
        ("no capabilities", &|spec| spec["capabilities"] = json!({})),
    ];
    for (number, (name, change)) in specs.into_iter().enumerate() {
        let looking = looking(|spec| {
            // Refused by the profile, whatever the capabilities are.
            let script = spec["args"][2].as_str().unwrap_or_default();
            spec["args"][2] = format!("unshare -U true; {script}").into();
            change(spec);
        });
        let (_, seen) = both(&rig, &mut direct, name, &looking);
        assert!(seen.contains("unshare: ") && seen.contains("Seccomp:\t2\n"), "{name}: {seen}");
        let exec = format!("f{number}");
        let native = filters(&exec, "pod", &mut direct, change);
        assert!(native == filters_in_helper(rig.init("pod")), "{name}: not the init's");
        let runcs = filters(&exec, "other", &mut direct, change);
        assert!(in_any_order(&native) == in_any_order(&runcs), "{name}: not as runc's");
    }
    // Without a record of the filters the execs are runc's.
    std::fs::remove_file(rig.bundle("pod").join("seccomp")).unwrap();
    assert!(observe(&rig, &mut direct, "pod", &process_spec(&["true"])).is_err(), "not by runc");
    unpair(&rig);
}

/// What filters a process has, as bytes. Traced by a thread of its own, which lets go when it ends.
fn filters_in_helper(pid: u32) -> Vec<u8> {
    let read = move || {
        cleat::sys::seccomp::encode(&cleat::sys::seccomp::filters_of(pid).unwrap()).unwrap()
    };
    std::thread::spawn(read).join().unwrap()
}

/// Instructions without the lengths of their jumps: runc puts the parts for the architectures into
/// the order of a map of Go's, another each time.
fn in_any_order(filters: &[u8]) -> Vec<Vec<u8>> {
    let is_jump_always = |instruction: &[u8]| instruction[0] == 0x05;
    let without_jumps = |instruction: &[u8]| match is_jump_always(instruction) {
        true => instruction[..2].to_vec(),
        false => [&instruction[..2], &instruction[4..]].concat(),
    };
    let mut instructions: Vec<Vec<u8>> = filters.chunks(8).map(without_jumps).collect();
    instructions.sort();
    instructions
}

// What comes after the filters, the helper's way into the container among it, such a profile
// forbids: then nothing has run, and runc does it.
#[test]
fn execs_under_a_strict_profile_are_runcs_and_run_once() {
    let rig = rig();
    let profile = rig.dir.join("profile.json");
    let denied =
        ["setgroups", "setresuid", "capset", "keyctl", "setsid", "fchown", "setns", "unshare"];
    let text = json!({"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86_64"],
        "syscalls": [{"names": denied, "action": "SCMP_ACT_KILL_PROCESS"}]});
    std::fs::write(&profile, text.to_string()).unwrap();
    let profile = ["--seccomp", "--seccomp-profile", profile.to_str().unwrap()];
    let mut direct = native_and_other(&rig, &profile);
    let mut spec = process_spec(&["sh", "-c", "echo in | tee -a /runs; unshare true; echo $?"]);
    spec["noNewPrivileges"] = true.into();
    spec["user"] = json!({"uid": 0, "gid": 0});
    let mut runs = 0;
    until("the helper has tried", || {
        assert!(both(&rig, &mut direct, "strict", &spec).1.starts_with("in\n"));
        runs += 1;
        rig.log().contains("the process has ended")
            || rig.log().contains("the helper ended with status")
    });
    let seen = crate::support::read_all(format!("/proc/{}/root/runs", rig.init("pod")));
    assert_eq!(seen.lines().count(), runs, "each exec has run once");
    unpair(&rig);
}

#[test]
fn what_cannot_be_started_is_refused_in_runcs_words() {
    let rig = rig();
    let mut direct = native_and_other(&rig, &[]);
    until_native(&rig, &mut direct, "pod");
    let with = |key: &str, value: Value| {
        let mut spec = process_spec(&["true"]);
        spec[key] = value;
        spec
    };
    for spec in [
        process_spec(&["/nope"]),
        process_spec(&["nope"]),
        process_spec(&["/etc/passwd"]),
        process_spec(&["/tmp"]),
        with("cwd", "/nope/nope".into()),
        with("cwd", "tmp".into()),
        with("args", json!([])),
    ] {
        let (ours, theirs) =
            (observe(&rig, &mut direct, "pod", &spec), observe(&rig, &mut direct, "other", &spec));
        assert_eq!(ours, theirs, "{spec}");
        // An empty working directory is made; all else is refused.
        assert!(ours.is_err() || spec["cwd"] == "/nope/nope", "{spec}: {ours:?}");
    }
    unpair(&rig);
}

/// Each directory of a container's cgroups that is not a root, with its hierarchy's.
fn cgroups_of(pid: u32) -> Vec<(PathBuf, PathBuf)> {
    let text = crate::support::read_all(format!("/proc/{pid}/cgroup"));
    let directories = text.lines().filter_map(|line| {
        let mut fields = line.splitn(3, ':').skip(1);
        let (controllers, path) = (fields.next()?, fields.next()?.trim_start_matches('/'));
        let name = controllers.strip_prefix("name=").unwrap_or(controllers);
        let root = PathBuf::from("/sys/fs/cgroup").join(name);
        (!path.is_empty() && root.join("cgroup.procs").exists()).then(|| (root.join(path), root))
    });
    let found: Vec<_> = directories.collect();
    assert!(!found.is_empty(), "{text}");
    found
}

// It would run in the shim's own cgroup there: without the limits, or the device filter, of that
// hierarchy.
#[test]
fn without_one_of_its_cgroups_an_exec_is_runcs() {
    let rig = rig();
    let mut direct = pair(&rig);
    let init = rig.init("pod");
    let (directory, root) = cgroups_of(init).swap_remove(0);
    let elsewhere = root.join(format!("cleat-test-{}-moved", std::process::id()));
    let elsewhere = Removed::made(elsewhere);
    let move_to = |directory: &Path| {
        std::fs::write(directory.join("cgroup.procs"), init.to_string()).unwrap()
    };
    move_to(&elsewhere.0);
    let run = |direct: &mut Direct| {
        observe(&rig, direct, "pod", &process_spec(&["cat", "/proc/self/cgroup"]))
    };
    assert!(run(&mut direct).is_err(), "the init was moved");
    std::fs::remove_dir(&directory).unwrap();
    assert!(run(&mut direct).is_err(), "{} is not there", directory.display());
    std::fs::create_dir(&directory).unwrap();
    move_to(&directory);
    assert!(run(&mut direct).is_ok(), "all is as it was");
    unpair(&rig);
}

/// A cgroup that goes with the test, and those in it, who die.
struct Removed(PathBuf);

impl Removed {
    fn made(path: PathBuf) -> Self {
        std::fs::create_dir(&path).unwrap();
        Self(path)
    }
}

impl Drop for Removed {
    fn drop(&mut self) {
        let inside = crate::support::read_all(self.0.join("cgroup.procs"));
        inside
            .lines()
            .filter_map(|line| line.parse().ok())
            .for_each(|pid| crate::support::kill(pid, libc::SIGKILL));
        for _ in 0..200 {
            if std::fs::remove_dir(&self.0).is_ok() {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

/// Freezes or thaws a container behind everybody's back.
fn freeze(pid: u32, frozen: bool) {
    let cgroups = cgroups_of(pid);
    let of_v1 = cgroups
        .iter()
        .map(|(directory, _)| directory.join("freezer.state"))
        .find(|file| file.exists());
    match of_v1 {
        Some(file) => std::fs::write(file, if frozen { "FROZEN" } else { "THAWED" }).unwrap(),
        None => {
            std::fs::write(cgroups[0].0.join("cgroup.freeze"), if frozen { "1" } else { "0" })
                .unwrap();
        }
    }
}

/// Helpers of the shim, and what they have begun.
fn helpers(shim: u32) -> Vec<u32> {
    let is_helper = |pid: &u32| crate::support::cmdline(*pid) == ["cleat-exec"];
    crate::support::children(shim).into_iter().map(|(pid, _)| pid).filter(is_helper).collect()
}

#[test]
fn a_paused_container_is_not_entered() {
    let rig = rig();
    let mut direct = native_and_other(&rig, &[]);
    until_native(&rig, &mut direct, "pod");
    let (shim, init) = (rig.shim(), rig.init("pod"));
    type Change<'a> = &'a dyn Fn(bool);
    let pause = |on: bool| drop(rig.ctr(["task", if on { "pause" } else { "resume" }, "pod"]));
    let hows: [(&str, Change<'_>); 2] = [("pause", &pause), ("freeze", &|on| freeze(init, on))];
    for (how, change) in hows {
        // Added before: a paused container gets no new ones.
        direct.call::<Empty>("Exec", &exec_request("pod", how, &process_spec(&["true"]))).unwrap();
        let process = api::ProcessRequest { id: "pod".into(), exec_id: how.into() };
        change(true);
        let refusal = direct.call::<api::PidResponse>("Start", &process).unwrap_err().message;
        assert!(refusal.contains("paused"), "{how}: {refusal}");
        assert!(helpers(shim).is_empty(), "{how}");
        change(false);
        direct.call::<api::DeleteResponse>("Delete", &process).unwrap();
    }
    until_native(&rig, &mut direct, "pod");
    unpair(&rig);
}

// Wherever the exec is by then: what is killed in a frozen v1 cgroup dies only outside of it.
#[test]
fn a_container_that_is_frozen_at_the_moment_of_entry_keeps_no_helper() {
    let rig = rig();
    let mut direct = native_and_other(&rig, &[]);
    until_native(&rig, &mut direct, "pod");
    let (shim, init) = (rig.shim(), rig.init("pod"));
    for round in 0..48 {
        let freezer = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_micros(250 * round));
            freeze(init, true);
            // Before it is thawed.
            until("no helper is left in the frozen container", || helpers(shim).is_empty());
            freeze(init, false);
        });
        // Whatever becomes of it, there is an answer.
        let _ = observe(&rig, &mut direct, "pod", &process_spec(&["true"]));
        freezer.join().unwrap();
    }
    until_native(&rig, &mut direct, "pod");
    unpair(&rig);
}

#[test]
fn one_copy_of_the_binary_is_enough_for_a_shim() {
    let rig = rig();
    let mut direct = pair(&rig);
    let shim = rig.shim();
    for _ in 0..5 {
        observe(&rig, &mut direct, "pod", &process_spec(&["true"])).unwrap();
    }
    let links = std::fs::read_dir(format!("/proc/{shim}/fd")).unwrap().flatten();
    let targets = links.filter_map(|link| std::fs::read_link(link.path()).ok());
    let copies: Vec<_> =
        targets.filter(|target| text(target).starts_with("/memfd:cleat-exec")).collect();
    assert_eq!(copies.len(), 1, "{copies:?}");
    unpair(&rig);
}

#[test]
fn a_version_that_was_not_compared_starts_its_execs_itself() {
    let rig = rig();
    let bin = rig.dir.join("newer");
    std::fs::create_dir(&bin).unwrap();
    let script = "#!/bin/sh\n[ \"$1\" != --version ] || { echo runc version 9.9.9; exit 0; }\nexec runc \"$@\"\n";
    std::fs::write(bin.join("runc"), script).unwrap();
    std::fs::set_permissions(bin.join("runc"), std::os::unix::fs::PermissionsExt::from_mode(0o755))
        .unwrap();
    let flags = asks_for_native(&rig, &format!("BinaryName = '{}'", text(&bin.join("runc"))));
    rig.run_with(&flags.iter().map(String::as_str).collect::<Vec<_>>(), "a", &["sleep", "1000"]);
    let mut direct = rig.direct("a");
    until("its version is known", || rig.log().contains("was not compared"));
    for _ in 0..3 {
        let before = rig.log().matches("exec by the runtime").count();
        observe(&rig, &mut direct, "a", &process_spec(&["true"])).unwrap();
        assert_eq!(rig.log().matches("exec by the runtime").count(), before + 1);
    }
    rig.remove("a");
}

#[test]
fn the_home_of_a_user_who_may_not_read_passwd_is_found() {
    let rig = rig();
    let mut direct = pair(&rig);
    for id in ["pod", "other"] {
        let passwd = format!("/proc/{}/root/etc/passwd", rig.init(id));
        std::fs::write(
            &passwd,
            "root:x:0:0::/root:/bin/sh\nuser:x:1000:1000::/home/user:/bin/sh\n",
        )
        .unwrap();
        std::fs::set_permissions(&passwd, std::os::unix::fs::PermissionsExt::from_mode(0o600))
            .unwrap();
    }
    let spec = looking(|spec| {
        spec["user"] = json!({"uid": 1000, "gid": 1000});
        spec["capabilities"] = json!({});
    });
    assert!(both(&rig, &mut direct, "a private passwd", &spec).1.contains("\nHOME=/home/user\n"));
    // What runtimes read in ways of their own is theirs.
    std::fs::write(format!("/proc/{}/root/etc/passwd", rig.init("pod")), "odd\n").unwrap();
    assert!(observe(&rig, &mut direct, "pod", &spec).is_err(), "not by runc");
    unpair(&rig);
}

// Later versions of runc give an exec all processors of the container's cpuset, earlier ones the
// shim's.
#[test]
fn an_exec_has_the_processors_that_runc_gives_it() {
    let own = rustix::thread::sched_getaffinity(None).unwrap();
    let first = (0..rustix::thread::CpuSet::MAX_CPU).find(|number| own.is_set(*number)).unwrap();
    let mut one = rustix::thread::CpuSet::new();
    one.set(first);
    rustix::thread::sched_setaffinity(None, &one).unwrap();
    let rig = rig();
    let mut direct = pair(&rig);
    let spec = process_spec(&["grep", "Cpus_allowed_list", "/proc/self/status"]);
    both(&rig, &mut direct, "processors", &spec);
    unpair(&rig);
}

#[test]
fn a_native_exec_dies_with_its_container_and_its_kills_are_told() {
    let rig = rig();
    let flags = asks_for_native(&rig, "");
    let flags: Vec<&str> =
        flags.iter().map(String::as_str).chain(["--memory-limit", "31457280"]).collect();
    rig.run_with(&flags, "a", &["sleep", "1000"]);
    let mut direct = rig.direct("a");
    until_native(&rig, &mut direct, "a");
    let events = rig.events();
    assert_eq!(
        direct.exec_to_end("a", "greedy", "exec dd if=/dev/zero of=/dev/null bs=60M count=1"),
        137
    );
    events.wait_for("oom", 1);
    for number in 0..20 {
        let exec = format!("e{number}");
        let request = exec_request("a", &exec, &process_spec(&["sleep", "1000"]));
        direct.call::<Empty>("Exec", &request).unwrap();
        let process = api::ProcessRequest { id: "a".into(), exec_id: exec };
        direct.call::<api::PidResponse>("Start", &process).unwrap();
    }
    rig.ctr(["task", "kill", "-s", "9", "a"]);
    events.wait_for("exit", 22);
    until("the task stops", || rig.status("a").as_deref() == Some("STOPPED"));
    assert_eq!(
        events.of("a").last().map(String::as_str),
        Some("exit"),
        "the init's exit is the last"
    );
    rig.remove("a");
}

// As with the other annotations: a pod cannot choose for the operator.
#[test]
fn a_container_cannot_choose_native_execs_where_the_operator_does_not_let_it() {
    let rig = rig();
    let wants = |text: &str| format!("io.containerd.cleat.native-exec={text}");
    let cases = [
        ("a", "", "true", false),
        ("b", "Annotations = ['spool', 'direct']", "true", false),
        ("c", "NativeExec = true", "false", true),
        ("d", "NativeExec = true\nAnnotations = ['native-exec']", "false", false),
        ("e", "Annotations = ['spool', 'native-exec']", "true", true),
    ];
    let group = format!("{GROUP}=pod");
    for (id, options, annotation, _) in cases {
        let options = rig.runtime_options(&format!("{id}.toml"), options);
        let flags: Vec<&str> = options.iter().map(String::as_str).collect();
        let annotation = wants(annotation);
        let more = ["--annotation", &group, "--annotation", &annotation];
        rig.run_with(&[&flags, more.as_slice()].concat(), id, &["sleep", "1000"]);
    }
    let mut direct = rig.direct("a");
    let inspected: cleat::protocol::inspect::InspectResponse =
        direct.call_service(cleat::protocol::inspect::SERVICE, "Inspect", &Empty {}).unwrap();
    for (id, options, annotation, is_native) in cases {
        let found = inspected.containers.iter().find(|container| container.id == id).unwrap();
        assert_eq!(found.native_exec, is_native, "{options:?} {annotation}");
    }
    cases.iter().rev().for_each(|(id, ..)| rig.remove(id));
}
