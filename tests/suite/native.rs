//! Execs without the runtime: what the program finds is what it finds when runc has started it.

use crate::support::{
    CLEAT, Direct, GROUP, RUNC, Rig, exec_request, fifo, process_spec, reader, text, until,
};
use cleat::protocol::{Empty, task as api};
use serde_json::{Value, json};
use std::io::Read;

const NATIVE: &str = "io.containerd.cleat.native-exec=true";

/// A rig whose shims have as many open files as they may: without that, or a limit in the spec, no exec is native.
fn rig() -> Rig {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let maximum = getrlimit(Resource::Nofile).maximum;
    setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }).unwrap();
    Rig::new()
}

/// A container whose execs runc refuses, so they must be native; and one beside it whose execs are runc's.
fn pair(rig: &Rig) -> Direct {
    pair_with(rig, &[])
}

/// The same, both made with these flags too.
fn pair_with(rig: &Rig, flags: &[&str]) -> Direct {
    let bin = rig.dir.join("only-native");
    std::fs::create_dir(&bin).unwrap();
    let script = "#!/bin/sh\ncase \"$*\" in *' exec '*) echo by runc >&2; exit 1;; esac\nexec runc \"$@\"\n";
    std::fs::write(bin.join("runc"), script).unwrap();
    std::fs::set_permissions(bin.join("runc"), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let group = format!("{GROUP}=pod");
    let runc = text(&bin.join("runc"));
    let native = ["--runtime", RUNC, "--runc-binary", &runc, "--annotation", &group, "--annotation", NATIVE];
    rig.run_with(&[&native, flags].concat(), "pod", &["sleep", "1000"]);
    let other = ["--runtime", CLEAT, "--annotation", &group];
    rig.run_with(&[&other, flags].concat(), "other", &["sleep", "1000"]);
    rig.direct("pod")
}

fn unpair(rig: &Rig) {
    rig.remove("other");
    rig.remove("pod");
}

/// Runs an exec; its status and what it wrote, or the error of Start.
fn observe(rig: &Rig, direct: &mut Direct, id: &str, spec: &Value) -> Result<(u32, String), String> {
    static NUMBER: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
    let exec = format!("e{}", NUMBER.fetch_add(1, std::sync::atomic::Ordering::Relaxed));
    let (stdout, stderr) = (fifo(&rig.dir, &format!("{exec}-out")), fifo(&rig.dir, &format!("{exec}-err")));
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
    cd /proc/$$ 2>/dev/null; echo status; grep -E '^(Umask|Uid|Gid|Groups|SigPnd|SigBlk|SigIgn|SigCgt|ShdPnd|Cap[A-Za-z]*|NoNewPrivs|Seccomp|Seccomp_filters|Speculation_[A-Za-z_]*|Threads|Cpus_allowed_list|Mems_allowed_list|CoreDumping|THP_enabled):' status
    echo limits; cat limits
    echo cgroup; cat cgroup
    for n in ns/*; do [ "$(readlink $n)" = "$(readlink /proc/1/$n)" ] && echo $n as the init || echo $n ELSEWHERE; done
    echo attr; cat attr/current 2>/dev/null; echo oom; cat oom_score_adj; echo comm; cat comm
    echo session; set -- $(cut -d')' -f2 stat); [ $4 = $$ ] && echo leads its session; [ $3 = $$ ] && echo leads its group; echo tty $5; echo nice ${17}
    echo fds; for f in fd/*; do case $(readlink $f) in pipe:*) echo $f a pipe;; *) echo $f $(readlink $f);; esac; done
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
        ("a user of /etc/passwd", looking(|spec| spec["user"] = json!({"uid": 65534, "gid": 65534}))),
        ("no capabilities", looking(|spec| spec["capabilities"] = json!({}))),
        (
            "few capabilities",
            looking(|spec| {
                spec["capabilities"] =
                    json!({"bounding": few, "effective": few, "permitted": few, "inheritable": few});
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
                // Not a soft limit of open files below the hard one: whether runc 1.1's Go raises it before or after it was set is a race.
                spec["rlimits"] = json!([{"type": "RLIMIT_NOFILE", "soft": 200, "hard": 200}, {"type": "RLIMIT_CORE", "soft": 0, "hard": 0}]);
            }),
        ),
        ("a directory", looking(|spec| spec["cwd"] = "/tmp".into())),
        (
            "a directory that is the user's alone",
            looking(|spec| {
                spec["args"] = json!(["sh", "-c", "mkdir -m 700 /private; chown 1000 /private; echo made"]);
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
            looking(|spec| spec["env"] = json!(["PATH=/sbin:/bin", "A=1", "B=", "A=2", "HOME="])),
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
    let (first, second) =
        (format!("cleat-test-{}", std::process::id()), format!("cleat-test-{}-2", std::process::id()));
    let (_first, _second) = (Profile::load(&first, "/etc/group"), Profile::load(&second, "/etc/passwd"));
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
        ("without capabilities", tries(&|spec| spec["capabilities"] = json!({})), &first, "/etc/group"),
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

// Kubernetes' RuntimeDefault is such a profile. The filters are compared as the kernel has them, instruction by instruction.
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
    let some =
        json!({"bounding": few, "effective": few, "permitted": few, "inheritable": few, "ambient": few});
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
    let read = move || cleat::sys::seccomp::encode(&cleat::sys::seccomp::filters_of(pid).unwrap()).unwrap();
    std::thread::spawn(read).join().unwrap()
}

/// Instructions without the lengths of their jumps: runc puts the parts for the architectures into the order of a map of Go's, another each time.
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

// With no_new_privs a filter is loaded last: what the helper does on its way is not its business.
#[test]
fn a_strict_profile_is_no_obstacle() {
    let rig = rig();
    let profile = rig.dir.join("profile.json");
    let denied = ["setgroups", "setresuid", "capset", "keyctl", "setsid", "fchown", "setns", "unshare"];
    let text = json!({"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86_64"],
        "syscalls": [{"names": denied, "action": "SCMP_ACT_KILL_PROCESS"}]});
    std::fs::write(&profile, text.to_string()).unwrap();
    let mut direct = pair_with(&rig, &["--seccomp", "--seccomp-profile", profile.to_str().unwrap()]);
    let mut spec = process_spec(&["sh", "-c", "echo in; unshare true; echo $?"]);
    spec["noNewPrivileges"] = true.into();
    spec["user"] = json!({"uid": 1000, "gid": 1000});
    assert!(both(&rig, &mut direct, "strict", &spec).1.starts_with("in\n"));
    unpair(&rig);
}

#[test]
fn what_cannot_be_started_is_refused_in_runcs_words() {
    let rig = rig();
    let group = format!("{GROUP}=pod");
    for (id, native) in [("pod", true), ("other", false)] {
        let mut flags = vec!["--runtime", CLEAT, "--annotation", &group];
        if native {
            flags.extend(["--annotation", NATIVE]);
        }
        rig.run_with(&flags, id, &["sleep", "1000"]);
    }
    let mut direct = rig.direct("pod");
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

// CVE-2019-5736, CVE-2024-21626, and descriptors of ours. Defence: `sealed_self`, `enter_container`, `prepare`.
#[test]
fn a_container_gets_hold_of_nothing_of_ours() {
    let rig = rig();
    let mut direct = pair(&rig);
    // It looks at whatever appears beside it.
    let watch = "while [ ! -e /stop ]; do for p in /proc/[0-9]*; do e=$(readlink $p/exe) || continue; case $e in */busybox|'') ;; *) echo $e >> /seen;; esac; \
         for f in $p/fd/*; do t=$(readlink $f); case $t in /dev/null|pipe:*|/proc*|'') ;; *) echo $f $t >> /seen;; esac; done; done; done 2>/dev/null";
    let watching = exec_request("pod", "watch", &process_spec(&["sh", "-c", watch]));
    direct.call::<Empty>("Exec", &watching).unwrap();
    let process = api::ProcessRequest { id: "pod".into(), exec_id: "watch".into() };
    direct.call::<api::PidResponse>("Start", &process).unwrap();
    for number in 0..100 {
        assert_eq!(direct.exec_to_end("pod", &format!("x{number}"), "exit 7"), 7);
    }
    let root = format!("/proc/{}/root", rig.init("pod"));
    std::fs::write(format!("{root}/stop"), "").unwrap();
    direct.call::<api::WaitResponse>("Wait", &process).unwrap();
    direct.call::<api::DeleteResponse>("Delete", &process).unwrap();
    // Before it becomes the program a process of ours may be seen; then it runs from the sealed copy, never from the node's file.
    let seen = crate::support::read_all(format!("{root}/seen"));
    let odd: Vec<&str> = seen.lines().filter(|line| !line.contains("memfd:cleat-exec")).collect();
    assert!(odd.is_empty(), "{odd:#?}");
    unpair(&rig);
}

#[test]
fn a_native_exec_dies_with_its_container_and_its_kills_are_told() {
    let rig = rig();
    let events = rig.events();
    let flags = ["--runtime", CLEAT, "--annotation", NATIVE, "--memory-limit", "31457280"];
    rig.run_with(&flags, "a", &["sleep", "1000"]);
    let mut direct = rig.direct("a");
    assert_eq!(direct.exec_to_end("a", "greedy", "exec dd if=/dev/zero of=/dev/null bs=60M count=1"), 137);
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
    assert_eq!(events.of("a").last().map(String::as_str), Some("exit"), "the init's exit is the last");
    rig.remove("a");
}
