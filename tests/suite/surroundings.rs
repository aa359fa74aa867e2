//! What the shim finds around it when it is started: limits, masks, signals, file systems, old
//! kernels, odd runtimes (containers around containerd: nested.rs). In each the same course is run:
//! create, run, exec, terminal, figures, pause, kill, kill for want of memory, delete.
//!
//! With `CLEAT_TEST_SHIM=/usr/bin/containerd-shim-runc-v2` Go's shim runs it; where it does not
//! pass, the test says so.

use crate::support::{
    CLEAT, IMAGE, Rig, Terminal, add, cmdline, fifo, process, read_all, script, shim_binary, text,
    until,
};
use cleat::protocol::{Empty, task as api};
use std::{
    fs,
    os::unix::process::CommandExt,
    path::Path,
    process::{Command, Stdio},
};

// ---- The course ---------------------------------------------------------------------------------

/// Enough for runc and a shell, and less than [`GREEDY`] wants.
const LIMIT: &str = "25165824";
const GREEDY: [&str; 5] = ["dd", "if=/dev/zero", "of=/dev/null", "bs=64M", "count=1"];

/// Everything once, with the rig's shim and Debian's runc.
pub fn course(rig: &Rig) {
    course_with(rig, &["--runtime", CLEAT]);
}

fn course_with(rig: &Rig, flags: &[&str]) {
    let events = rig.events();
    // A whole life with its output and status.
    let mut once = rig.foreground(flags, "once", &["sh", "-c", "echo out; echo err >&2; exit 5"]);
    let output = once.output().unwrap();
    assert_eq!(
        String::from_utf8_lossy(&output.stdout),
        "out\n",
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(String::from_utf8_lossy(&output.stderr).contains("err"), "{output:?}");
    assert_eq!(output.status.code(), Some(5));
    // One that goes on.
    rig.run_with(flags, "a", &["sleep", "1000000"]);
    assert_eq!(rig.status("a").as_deref(), Some("RUNNING"));
    let mut exec =
        rig.ctr_command(["task", "exec", "--exec-id", "e1", "a", "sh", "-c", "cat; exit 7"]);
    let mut exec = exec.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    std::io::Write::write_all(&mut exec.stdin.take().unwrap(), b"typed").unwrap();
    let output = exec.wait_with_output().unwrap();
    assert_eq!((output.stdout.as_slice(), output.status.code()), (b"typed".as_slice(), Some(7)));
    let user = rig.ctr(["task", "exec", "--exec-id", "e2", "--user", "1000", "a", "id", "-u"]);
    assert_eq!(user, "1000\n");
    let mut terminal =
        Terminal::spawn(rig.ctr_command(["task", "exec", "-t", "--exec-id", "e3", "a", "sh"]));
    terminal.write(b"tty; read go; exit 3\n");
    terminal.read_until("/dev/pts/0");
    terminal.write(b"\n");
    assert_eq!(terminal.end().1.code(), Some(3));
    let missing = rig.try_ctr(["task", "exec", "--exec-id", "e4", "a", "/nonesuch"]);
    assert!(!missing.status.success());
    // Looks and interruptions.
    assert!(rig.ctr(["task", "metrics", "a"]).contains("memory"));
    assert!(rig.ctr(["task", "ps", "a"]).lines().count() >= 2);
    rig.ctr(["task", "pause", "a"]);
    assert_eq!(rig.status("a").as_deref(), Some("PAUSED"));
    rig.ctr(["task", "resume", "a"]);
    rig.ctr(["task", "kill", "-s", "9", "a"]);
    events.wait_for("exit", 4);
    rig.remove("a");
    // Out of memory.
    let limited = [flags, &["--memory-limit", LIMIT]].concat();
    let output = rig.foreground(&limited, "greedy", &GREEDY).output().unwrap();
    assert_eq!(output.status.code(), Some(137), "{output:?}");
    events.wait_for("delete", 3);
    let told = |id: &str, topic: &str| events.of(id).iter().any(|line| line == topic);
    assert!(told("greedy", "oom"), "{:?}", events.of("greedy"));
    assert_eq!(events.of("once"), ["create", "start", "exit", "delete"]);
}

/// A rig whose shims are started by a shell after `before`.
fn rig_after(before: &str) -> Rig {
    let rig = Rig::new();
    for name in ["containerd-shim-cleat-v2", "containerd-shim-runc-v2"] {
        fs::remove_file(rig.dir.join("bin").join(name)).unwrap();
        let line = format!("{before}\nexec {} \"$@\"", shim_binary().display());
        script(&rig, &format!("bin/{name}"), &line);
    }
    rig
}

/// A rig whose containerd, with all that it starts, is started by these words.
fn rig_within(words: impl FnOnce(&Path) -> Vec<String>) -> Rig {
    let mut rig = Rig::new();
    rig.end_containerd(libc::SIGTERM);
    let words = words(&rig.dir);
    rig.set_wrapper(&words.iter().map(String::as_str).collect::<Vec<_>>());
    rig.start_containerd();
    rig
}

/// One whose containerd runs in namespaces of its own, after `before`.
fn rig_unshared(flags: &[&str], before: impl FnOnce(&Path) -> String) -> Rig {
    rig_within(|dir| {
        let line = format!("{}\nexec \"$@\"", before(dir));
        let words = [&["unshare"], flags, &["sh", "-e", "-c", &line, "sh"]].concat();
        words.into_iter().map(str::to_owned).collect()
    })
}

/// Runs a command in the namespaces of the rig's containerd.
fn inside(rig: &Rig, line: &str) -> std::process::Output {
    let pid = rig.containerd_pid().to_string();
    Command::new("nsenter").args(["-t", &pid, "-m", "sh", "-e", "-c", line]).output().unwrap()
}

// ---- Limits -------------------------------------------------------------------------------------

/// Forty execs at once, which wait until told: each holds descriptors in the shim.
fn forty_execs(rig: &Rig) {
    rig.run_with(&["--runtime", CLEAT], "many", &["sleep", "1000000"]);
    for number in 0..40 {
        let exec = format!("m{number}");
        rig.ctr(["task", "exec", "-d", "--exec-id", &exec, "many", "sleep", "1000000"]);
    }
    rig.remove("many");
}

/// What a runtime sees as its soft limit of open files.
fn limit_of_a_runtime(rig: &Rig) -> String {
    let seen = rig.dir.join("seen");
    let flags = rig.runtime_script(&format!("ulimit -Sn > {}", seen.display()));
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    rig.run_with(&flags, "limit", &["sleep", "1000000"]);
    rig.remove("limit");
    read_all(seen).trim().to_owned()
}

fn soft_limit(limit: &str) {
    let rig = rig_after(&format!("ulimit -Sn {limit}"));
    course(&rig);
    forty_execs(&rig);
    // Debian's Go shim is built with a Go that keeps it raised.
    if shim_binary().ends_with("containerd-shim-cleat-v2") {
        assert_eq!(limit_of_a_runtime(&rig), limit);
    }
}

#[test]
fn a_soft_limit_of_64_open_files_is_raised_and_given_back() {
    soft_limit("64");
}

#[test]
fn a_soft_limit_of_256_open_files_is_raised_and_given_back() {
    soft_limit("256");
}

#[test]
fn a_soft_limit_of_1024_open_files_is_raised_and_given_back() {
    soft_limit("1024");
}

// A shim that can take no connection is given up by a containerd that is started again, and its
// containers with it. (Go's answers no Start here.)
#[test]
fn a_shim_without_descriptors_is_found_by_the_next_containerd() {
    let mut rig = Rig::new();
    rig.run_with(&["--runtime", CLEAT], "a", &["sleep", "1000000"]);
    let limit =
        Command::new("prlimit").args(["--nofile=64:64", "--pid", &rig.shim().to_string()]).status();
    assert!(limit.unwrap().success());
    let channels = ["in", "out", "err"].map(|name| text(&fifo(&rig.dir, name)));
    let mut direct = rig.direct("a");
    let mut refused = 0;
    for number in 0..30 {
        let exec = format!("m{number}");
        add(&mut direct, &exec, "sleep 1000000", |request| {
            [&mut request.stdin, &mut request.stdout, &mut request.stderr]
                .into_iter()
                .zip(&channels)
                .for_each(|(field, channel)| channel.clone_into(field));
        });
        refused +=
            usize::from(direct.call::<api::PidResponse>("Start", &process("a", &exec)).is_err());
    }
    drop(direct);
    assert!(refused > 0, "the limit was never reached");
    rig.end_containerd(libc::SIGKILL);
    rig.start_containerd();
    assert_eq!(rig.status("a").as_deref(), Some("RUNNING"), "{}", rig.log());
    rig.remove("a");
    until("the shim ends", || rig.shims().is_empty());
}

#[test]
fn a_limit_of_file_sizes() {
    // In blocks of 512 bytes: 8 MiB.
    course(&rig_after("ulimit -f 16384"));
}

#[test]
fn a_limit_of_processes_that_is_reached() {
    course(&rig_after(&format!("{} --nproc=1:1 --pid $$", "prlimit")));
}

#[test]
fn a_mask_that_takes_all_from_others() {
    course(&rig_after("umask 077"));
}

#[test]
fn signals_that_are_ignored_and_blocked() {
    let ignored = "HUP INT QUIT PIPE ALRM TERM USR1 USR2 CHLD CONT TSTP TTIN TTOU WINCH XFSZ";
    let flags: Vec<String> = ignored
        .split(' ')
        .flat_map(|name| [format!("--ignore-signal={name}"), format!("--block-signal={name}")])
        .collect();
    let rig = Rig::new();
    for name in ["containerd-shim-cleat-v2", "containerd-shim-runc-v2"] {
        fs::remove_file(rig.dir.join("bin").join(name)).unwrap();
        let line = format!("exec env {} {} \"$@\"", flags.join(" "), shim_binary().display());
        script(&rig, &format!("bin/{name}"), &line);
    }
    course(&rig);
    // SIGTERM ends a shim without containers... and the container's program has the signals that it
    // was made with.
    rig.run_with(
        &["--runtime", CLEAT],
        "a",
        &["sh", "-c", "trap 'exit 9' TERM; while :; do sleep 0.1; done"],
    );
    let has_trap = |line: &str| {
        let bits = line.strip_prefix("SigCgt:\t").map(|bits| u64::from_str_radix(bits, 16));
        matches!(bits, Some(Ok(bits)) if bits & (1 << (libc::SIGTERM - 1)) != 0)
    };
    // Before it is the shell it is the runtime, which catches each signal.
    let init = rig.init("a");
    let caught = || {
        cmdline(init).first().is_some_and(|word| word == "sh")
            && read_all(format!("/proc/{init}/status")).lines().any(has_trap)
    };
    until("it has its trap", caught);
    let mut direct = rig.direct("a");
    direct
        .call::<Empty>(
            "Kill",
            &api::KillRequest { id: "a".into(), exec_id: String::new(), signal: 15, all: false },
        )
        .unwrap();
    let waited: api::WaitResponse = direct.call("Wait", &process("a", "")).unwrap();
    assert_eq!(waited.exit_status, 9);
    drop(direct);
    rig.remove("a");
}

// ---- File systems -------------------------------------------------------------------------------

/// containerd's state on a file system of its own.
fn rig_with_state_on(options: &str) -> Rig {
    rig_unshared(&["--mount"], |dir| {
        format!(
            "mkdir -p {0}/state; mount -t tmpfs -o {options} cleat-test {0}/state",
            dir.display()
        )
    })
}

#[test]
fn run_is_a_file_system_without_execution() {
    course(&rig_with_state_on("noexec,nosuid,nodev"));
}

/// A run that fails for want of something, which leaves nothing; and another one when there is
/// enough again.
fn fails_and_recovers(rig: &Rig, take: &str, give_back: &str) {
    let bundles = rig.bundle("");
    let state = rig.dir.join("state");
    let line = |text: &str| text.replace("STATE", &state.display().to_string());
    rig.run_with(&["--runtime", CLEAT], "before", &["sleep", "1000000"]);
    let taken = inside(rig, &line(take));
    assert!(taken.status.success(), "{taken:?}");
    let failed =
        rig.try_ctr(["run", "--rm", "--null-io", "--runtime", CLEAT, IMAGE, "full", "true"]);
    assert!(!failed.status.success());
    // What lives goes on.
    assert_eq!(rig.status("before").as_deref(), Some("RUNNING"));
    let _ = rig.try_ctr(["task", "exec", "--exec-id", "e", "before", "true"]);
    assert!(inside(rig, &line(give_back)).status.success());
    let _ = rig.try_ctr(["container", "rm", "full"]);
    rig.remove("before");
    let left = inside(rig, &format!("ls {}", bundles.display()));
    assert_eq!(String::from_utf8_lossy(&left.stdout), "");
    course(rig);
}

#[test]
fn the_state_directory_is_full() {
    let fill = "dd if=/dev/zero of=STATE/filler bs=4k 2> /dev/null || true";
    fails_and_recovers(&rig_with_state_on("size=2m"), fill, "rm STATE/filler");
}

#[test]
fn the_state_directory_has_no_inodes() {
    let fill = "mkdir STATE/filler; n=0; while true > STATE/filler/$n; do n=$((n + 1)); done 2> /dev/null || true";
    fails_and_recovers(&rig_with_state_on("nr_inodes=300"), fill, "rm -r STATE/filler");
}

#[test]
fn the_directory_of_sockets_is_read_only() {
    let rig = rig_unshared(&["--mount"], |_| {
        "mount --bind /run/containerd/s /run/containerd/s; mount -o remount,bind,ro /run/containerd/s"
            .to_owned()
    });
    let failed = rig.try_ctr(["run", "--rm", "--null-io", "--runtime", CLEAT, IMAGE, "a", "true"]);
    assert!(!failed.status.success());
    let words = String::from_utf8_lossy(&failed.stderr).into_owned();
    assert!(words.to_lowercase().contains("read-only file system"), "{words}");
    let _ = rig.try_ctr(["container", "rm", "a"]);
    assert_eq!(rig.shims(), [0; 0]);
    assert!(inside(&rig, "umount /run/containerd/s").status.success());
    course(&rig);
}

#[test]
fn proc_shows_nobody_the_processes_of_others() {
    course(&rig_unshared(&["--mount"], |_| "mount -o remount,hidepid=2 /proc".to_owned()));
}

// ---- The kernel ---------------------------------------------------------------------------------

#[test]
fn memory_files_may_not_be_executed() {
    for value in ["0", "1", "2"] {
        // The setting is each pid namespace's own.
        let rig = rig_unshared(&["--pid", "--fork", "--kill-child", "--mount-proc"], |_| {
            format!("echo {value} > /proc/sys/vm/memfd_noexec")
        });
        course(&rig);
    }
}

#[test]
fn clocks_that_are_not_the_hosts() {
    let flags =
        ["--time", "--monotonic", "-1000", "--boottime", "31536000", "--fork", "--kill-child"];
    course(&rig_unshared(&flags, |_| String::new()));
}

// For shims and runtimes that were started before, the clock of a containerd that is started in
// another namespace has jumped, and the other way round: a process has been started at another
// time.
#[test]
fn a_clock_that_jumps_while_containerd_is_away() {
    let mut rig = Rig::new();
    rig.run_in_group("before", "before", &["sleep", "1000000"]);
    rig.end_containerd(libc::SIGTERM);
    let jump = [
        "unshare",
        "--time",
        "--monotonic",
        "-1000",
        "--boottime",
        "31536000",
        "--fork",
        "--kill-child",
    ];
    rig.set_wrapper(&jump);
    rig.start_containerd();
    let output = rig.ctr(["task", "exec", "--exec-id", "e", "before", "echo", "here"]);
    assert_eq!(output, "here\n");
    // The first shim's group, joined from the other time.
    rig.run_in_group("before", "beside", &["sleep", "1000000"]);
    assert_eq!(rig.shims().len(), 1);
    course(&rig);
    rig.remove("beside");
    rig.remove("before");
}

/// A system call that does not succeed: its number, an argument that must have a value for that,
/// and the error.
struct Taken(libc::c_long, Option<(u32, u64)>, i32);

/// Those of a name in `CLEAT_TEST_WITHOUT`.
fn taken(name: &str) -> Taken {
    match name {
        "pidfd_open" => Taken(libc::SYS_pidfd_open, None, libc::ENOSYS),
        "pidfd_send_signal" => Taken(libc::SYS_pidfd_send_signal, None, libc::ENOSYS),
        // P_PIDFD is 3.
        "waitid-pidfd" => Taken(libc::SYS_waitid, Some((0, 3)), libc::EINVAL),
        "clone3" => Taken(libc::SYS_clone3, None, libc::ENOSYS),
        "close_range" => Taken(libc::SYS_close_range, None, libc::ENOSYS),
        "openat2" => Taken(libc::SYS_openat2, None, libc::ENOSYS),
        "memfd_create" => Taken(libc::SYS_memfd_create, None, libc::ENOSYS),
        "inotify" => Taken(libc::SYS_inotify_init1, None, libc::EMFILE),
        "pipe-size" => Taken(libc::SYS_fcntl, Some((1, 1031)), libc::EPERM),
        "splice" => Taken(libc::SYS_splice, None, libc::EINVAL),
        "notify" => Taken(libc::SYS_fcntl, Some((1, 1026)), libc::EINVAL),
        "ptrace" => Taken(libc::SYS_ptrace, None, libc::EPERM),
        "fsopen" => Taken(libc::SYS_fsopen, None, libc::ENOSYS),
        "open_tree" => Taken(libc::SYS_open_tree, None, libc::ENOSYS),
        "move_mount" => Taken(libc::SYS_move_mount, None, libc::ENOSYS),
        other => panic!("no call {other}"),
    }
}

/// A filter (linux/filter.h) that takes calls away, in the form in which `cleat::sys::seccomp`
/// reads it.
fn filter(calls: &[Taken]) -> Vec<u8> {
    let instruction = |code: u64, if_true: u64, if_false: u64, value: u64| {
        code | if_true << 16 | if_false << 24 | value << 32
    };
    let (load, equal, give) = (0x20, 0x15, 0x06);
    let mut program = Vec::new();
    for Taken(number, argument, error) in calls {
        let number = u64::try_from(*number).unwrap();
        program.push(instruction(load, 0, 0, 0));
        program.push(instruction(equal, 0, if argument.is_some() { 3 } else { 1 }, number));
        if let Some((index, value)) = argument {
            program.push(instruction(load, 0, 0, 16 + 8 * u64::from(*index)));
            program.push(instruction(equal, 0, 1, *value));
        }
        program.push(instruction(give, 0, 0, 0x5_0000 | u64::from(error.unsigned_abs())));
    }
    program.push(instruction(give, 0, 0, 0x7fff_0000));
    let mut bytes = 0_u32.to_ne_bytes().to_vec();
    bytes.extend(u32::try_from(program.len()).unwrap().to_ne_bytes());
    bytes.extend(program.iter().flat_map(|instruction| instruction.to_ne_bytes()));
    bytes
}

/// No test: [`rig_without`] runs it, and it becomes the program of `CLEAT_TEST_COMMAND`.
#[test]
#[ignore = "a program of other tests"]
fn a_program_without_some_calls() {
    let Ok(command) = std::env::var("CLEAT_TEST_COMMAND") else { return };
    let names = std::env::var("CLEAT_TEST_WITHOUT").unwrap();
    let calls: Vec<Taken> = names.split(' ').map(taken).collect();
    for filter in cleat::sys::seccomp::read(filter(&calls).as_slice()).unwrap() {
        filter.load().unwrap();
    }
    let words: Vec<&str> = command.lines().collect();
    let error = Command::new(words[0])
        .args(&words[1..])
        .env_remove("CLEAT_TEST_COMMAND")
        .env_remove("CLEAT_TEST_WITHOUT")
        .exec();
    panic!("{}: {error}", words[0]);
}

/// A rig whose containerd and shims have not got these system calls.
fn rig_without(names: &str) -> Rig {
    let this = std::env::current_exe().unwrap();
    let line = format!(
        "CLEAT_TEST_WITHOUT='{names}' CLEAT_TEST_COMMAND=\"$(printf '%s\\n' \"$@\")\" \
         exec {} --exact surroundings::a_program_without_some_calls --ignored --nocapture",
        this.display()
    );
    rig_within(|_| ["sh", "-c", &line, "sh"].map(str::to_owned).to_vec())
}

fn course_without(names: &str) {
    let rig = rig_without(names);
    let status = read_all(format!("/proc/{}/status", rig.containerd_pid()));
    assert!(status.contains("Seccomp:\t2"), "{status}");
    course(&rig);
    // Several at once, which end in another order.
    rig.run("crowd", &["sleep", "1000000"]);
    let execs: Vec<_> = (0..8)
        .map(|number| {
            let (exec, line) =
                (format!("c{number}"), format!("sleep 0.{}; exit {number}", 9 - number));
            let mut command =
                rig.ctr_command(["task", "exec", "--exec-id", &exec, "crowd", "sh", "-c", &line]);
            command.stdout(Stdio::null()).spawn().unwrap()
        })
        .collect();
    for (number, mut exec) in execs.into_iter().enumerate() {
        assert_eq!(exec.wait().unwrap().code(), i32::try_from(number).ok());
    }
    rig.remove("crowd");
}

#[test]
fn without_pidfds() {
    course_without("pidfd_open pidfd_send_signal waitid-pidfd");
}

#[test]
fn without_waiting_by_pidfd() {
    course_without("waitid-pidfd");
}

#[test]
fn without_pidfd_open() {
    course_without("pidfd_open");
}

#[test]
fn without_clone3() {
    course_without("clone3");
}

#[test]
fn without_close_range() {
    course_without("close_range");
}

#[test]
fn without_openat2() {
    course_without("openat2");
}

#[test]
fn without_the_newer_calls_for_mounts() {
    course_without("fsopen open_tree move_mount");
}

#[test]
fn without_inotify_instances() {
    course_without("inotify");
}

// Also what fs.pipe-user-pages-soft does when it is used up. The kernel counts the pipes of those
// only who have neither CAP_SYS_ADMIN nor CAP_SYS_RESOURCE in the first user namespace (fs/pipe.c,
// `pipe_is_unprivileged_user`): of no shim that can mount there.
#[test]
fn without_larger_pipes_and_splice() {
    course_without("pipe-size splice");
}

#[test]
fn without_directory_notices_and_ptrace() {
    course_without("notify ptrace");
}

// ---- Runtimes -----------------------------------------------------------------------------------

/// The course with a runtime that is a shell script which ends with runc.
fn course_with_runtime(rig: &Rig, before: &str) {
    let flags = rig.runtime_script(before);
    course_with(rig, &flags.each_ref().map(String::as_str));
}

/// For a script: does something to the word after a flag; `$word` is that word.
fn change_word_after(flag: &str, change: &str) -> String {
    format!(
        "count=$#; flag=\nwhile [ $count -gt 0 ]; do word=$1; shift; count=$((count - 1))\n\
         if [ \"$flag\" = {flag} ]; then {change}; fi\nflag=$word; set -- \"$@\" \"$word\"; done"
    )
}

#[test]
fn a_runtime_that_is_a_script() {
    course_with_runtime(&Rig::new(), "PATH=$PATH:/nonesuch");
}

// Go's shim then answers no `ps`: it takes the words for the runtime's answer.
#[test]
fn a_runtime_that_talks() {
    // With a descriptor of its own: its outputs are the container's.
    course_with_runtime(
        &Rig::new(),
        "case \" $* \" in *' create '* | *' exec '*) ;; *) echo warning: noise >&2 ;; esac",
    );
}

#[test]
fn a_runtime_that_names_its_pid_late() {
    let late = change_word_after("--pid-file", "late=$word; word=$word.early");
    let rest = "runc \"$@\"; status=$?; if [ -n \"$late\" ] && [ $status = 0 ]; then sleep 0.2; mv $late.early $late; fi; exit $status";
    course_with_runtime(&Rig::new(), &format!("late=\n{late}\n{rest}"));
}

#[test]
fn a_runtime_whose_records_are_elsewhere() {
    let rig = Rig::new();
    let elsewhere = rig.dir.join("elsewhere");
    course_with_runtime(
        &rig,
        &change_word_after("--root", &format!("word={}", elsewhere.display())),
    );
    let left: Vec<_> =
        fs::read_dir(&elsewhere).unwrap().flatten().map(|entry| entry.path()).collect();
    assert!(left.is_empty(), "{left:?}");
}

// Its errors are on its stderr, in its own form.
#[test]
fn a_runtime_that_ignores_flags_that_it_does_not_know() {
    let ignore = "count=$#; skip=0\n\
         while [ $count -gt 0 ]; do word=$1; shift; count=$((count - 1))\n\
         case $word in --log|--log-format) skip=1; continue ;; esac\n\
         if [ $skip = 1 ]; then skip=0; continue; fi\n\
         case $word in --no-new-keyring|--no-subreaper) ;; *) set -- \"$@\" \"$word\" ;; esac; done";
    course_with_runtime(&Rig::new(), ignore);
}
