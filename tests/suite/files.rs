//! Files of others' choosing: stdin from files, logs and fifos on file systems that do not answer,
//! loggers that come back.

use crate::support::{
    self, Direct, Disk, Mute, Rig, add, alive, bundle_beside, delete, fd_count, fifo, kill,
    process, read_all, reader, script, start, text, until, wait,
};
use cleat::protocol::{Empty, task as api};
use std::{
    fs,
    io::{Read, Write},
    path::{Path, PathBuf},
};

/// Reads a fifo to its end while a process ends and is deleted.
fn output_of(direct: &mut Direct, stdout: &Path, id: &str, exec: &str) -> String {
    let mut file = reader(stdout);
    direct.call::<api::PidResponse>("Start", &process(id, exec)).unwrap();
    let reading = std::thread::spawn(move || {
        let mut all = String::new();
        file.read_to_string(&mut all).unwrap();
        all
    });
    let waited: api::WaitResponse = direct.call("Wait", &process(id, exec)).unwrap();
    assert_eq!(waited.exit_status, 0);
    direct.call::<api::DeleteResponse>("Delete", &process(id, exec)).unwrap();
    reading.join().unwrap()
}

/// Stdins that are no fifos, with what `wc -c` makes of them.
fn inputs(rig: &Rig) -> [(PathBuf, &'static str, &'static str); 5] {
    let (small, large) = (rig.dir.join("small"), rig.dir.join("large"));
    std::fs::write(&small, "hello\n").unwrap();
    std::fs::write(&large, vec![b'x'; 3 << 20]).unwrap();
    [
        (small, "wc -c", "6\n"),
        (large, "wc -c", "3145728\n"),
        ("/dev/null".into(), "wc -c", "0\n"),
        ("/dev/zero".into(), "head -c 300000 | wc -c", "300000\n"),
        ("/proc/self/cmdline".into(), "wc -c | grep -qv '^0$' && echo some", "some\n"),
    ]
}

// LinuxKit and EVE start all services so. Defence: `io::file::find`.
#[test]
fn stdin_may_be_a_file_or_a_device() {
    let rig = Rig::new();
    rig.run("a", &["sleep", "1000"]);
    let shim = rig.shim();
    let mut direct = rig.direct("a");
    direct.state("a", "").unwrap();
    let descriptors = fd_count(shim);
    for (number, (stdin, command, expected)) in inputs(&rig).into_iter().enumerate() {
        let (exec, stdout) = (format!("e{number}"), fifo(&rig.dir, &format!("out{number}")));
        add(&mut direct, &exec, command, |request| {
            (request.stdin, request.stdout) = (text(&stdin), text(&stdout));
        });
        assert_eq!(output_of(&mut direct, &stdout, "a", &exec), expected, "{}", stdin.display());

        let bundle = bundle_beside(&rig, |config| {
            config["process"]["args"] = serde_json::json!(["sh", "-c", command]);
        });
        let stdout = fifo(&rig.dir, &format!("out-of-init{number}"));
        let request = api::CreateTaskRequest {
            id: "b".into(),
            bundle: text(&bundle),
            stdin: text(&stdin),
            stdout: text(&stdout),
            stderr: "/dev/null".into(),
            ..api::CreateTaskRequest::default()
        };
        direct.call::<api::PidResponse>("Create", &request).unwrap();
        assert_eq!(output_of(&mut direct, &stdout, "b", ""), expected, "{}", stdin.display());
    }
    until("no descriptor is left", || fd_count(shim) <= descriptors);
    rig.remove("a");
}

#[test]
fn a_stdin_that_is_not_there_is_an_error_and_leaves_nothing() {
    let rig = Rig::new();
    rig.run("a", &["sleep", "1000"]);
    let mut direct = rig.direct("a");
    for (number, stdin) in ["/nowhere/at/all", "/tmp"].into_iter().enumerate() {
        let exec = format!("e{number}");
        add(&mut direct, &exec, "cat", |request| request.stdin = stdin.into());
        let refused = direct.call::<api::PidResponse>("Start", &process("a", &exec));
        assert!(refused.unwrap_err().message.contains(stdin));
        let _ = direct.call::<api::DeleteResponse>("Delete", &process("a", &exec));
    }
    rig.remove("a");
}

// Defence: `io::stdio::Uri`.
#[test]
fn a_stdout_is_a_path_or_a_uri_as_go_reads_it() {
    let rig = Rig::new();
    rig.run("a", &["sleep", "1000"]);
    let mut direct = rig.direct("a");
    let odd = rig.dir.join("a:");
    std::fs::create_dir(&odd).unwrap();
    fifo(&odd, "b");
    // As it is given, with an empty name in it.
    let stdout = PathBuf::from(format!("{}//b", odd.display()));
    add(&mut direct, "fifo", "echo hello", |request| request.stdout = text(&stdout));
    assert_eq!(output_of(&mut direct, &stdout, "a", "fifo"), "hello\n");
    let log = rig.dir.join("log file");
    let escaped = text(&log).replace(' ', "%20");
    let spellings = ["file:", "FILE://", "file://", "File://localhost", "file:"];
    let tails = ["", "", "#fragment", "?query=x", "?a://b"];
    for (number, (spelling, tail)) in spellings.into_iter().zip(tails).enumerate() {
        let exec = format!("e{number}");
        add(&mut direct, &exec, &format!("echo {exec}"), |request| {
            request.stdout = format!("{spelling}{escaped}{tail}");
        });
        start(&mut direct, &exec);
        assert_eq!(wait(&mut direct, &exec), 0);
        delete(&mut direct, &exec);
    }
    assert_eq!(read_all(&log), "e0\ne1\ne2\ne3\ne4\n");
    rig.remove("a");
}

/// Asserts that the shim answers while something hangs.
fn assert_awake(rig: &Rig, what: &str) {
    let mut direct = rig.direct("a");
    for _ in 0..5 {
        direct.state("a", "").unwrap_or_else(|e| panic!("{what}: {}", e.message));
    }
    assert_eq!(direct.exec_to_end("a", &what.replace(' ', "-"), "exit 3"), 3, "{what}");
}

// NFS, FUSE, a disk that is frozen. Defence: `cleat-file` (`io/file/`).
#[test]
fn a_log_on_a_disk_that_hangs_stops_nobody_and_is_whole_when_it_goes_on() {
    let rig = Rig::new();
    let mut disk = Disk::new(&rig.dir);
    rig.run("a", &["sleep", "1000"]);
    let mut direct = rig.direct("a");
    let log = disk.path.join("dir/out.log");
    let line = "echo line $i of some length to be written; i=$((i+1))";
    let writes = format!(
        "i=0; while [ ! -e /stop ]; do {line}; [ $((i%50)) = 0 ] && usleep 1000; done; echo $i >/count"
    );
    add(&mut direct, "e", &writes, |request| request.stdout = format!("file://{}", log.display()));
    start(&mut direct, "e");
    until("something is written", || read_all(&log).lines().count() > 100);
    disk.freeze();
    std::thread::sleep(std::time::Duration::from_millis(500));
    assert_awake(&rig, "a log is written");
    // Another one that is opened there meanwhile.
    add(&mut direct, "f", "echo late", |request| {
        request.stdout = format!("file://{}", disk.path.join("late.log").display());
    });
    let opening = direct.send("Start", &process("a", "f"));
    assert_awake(&rig, "a log is opened");
    std::fs::write(format!("/proc/{}/root/stop", rig.init("a")), "").unwrap();
    let mut other = rig.direct("a");
    assert_eq!(wait(&mut other, "e"), 0);
    disk.thaw();
    let (id, answer) = direct.receive();
    assert_eq!(id, opening);
    if answer.is_ok() {
        assert_eq!(wait(&mut other, "f"), 0);
    }
    let _ = other.call::<api::DeleteResponse>("Delete", &process("a", "f"));
    delete(&mut other, "e");
    let count: usize =
        read_all(format!("/proc/{}/root/count", rig.init("a"))).trim().parse().unwrap();
    let expected: String =
        (0..count).map(|i| format!("line {i} of some length to be written\n")).collect();
    assert!(read_all(&log) == expected, "{} of {} bytes", read_all(&log).len(), expected.len());
    rig.remove("a");
}

#[test]
fn what_is_opened_on_a_file_system_that_does_not_answer_stops_nobody() {
    let rig = Rig::new();
    rig.run("a", &["sleep", "1000"]);
    let shim = rig.shim();
    let mute = Mute::new(&rig.dir);
    let mut direct = rig.direct("a");
    let place = mute.path.join("x");
    type Change = Box<dyn Fn(&mut api::ExecProcessRequest, &str)>;
    let cases: [(&str, Change); 6] = [
        ("stdin", Box::new(|request, path| request.stdin = path.into())),
        ("stdout", Box::new(|request, path| request.stdout = path.into())),
        ("log", Box::new(|request, path| request.stdout = format!("file://{path}"))),
        ("logger", Box::new(|request, path| request.stdout = format!("binary://{path}"))),
        ("logger-v2", Box::new(|request, path| request.stdout = format!("binary-v2://{path}"))),
        (
            "console",
            Box::new(|request, path| {
                (request.stdin, request.stdout, request.terminal) =
                    (path.into(), path.into(), true);
            }),
        ),
    ];
    let mut waiting = Vec::new();
    for (name, change) in &cases {
        add(&mut direct, name, "true", |request| change(request, place.to_str().unwrap()));
        waiting.push(direct.send("Start", &process("a", name)));
        assert_awake(&rig, &format!("opens {name}"));
    }
    // Each is told after a while.
    while !waiting.is_empty() {
        let (id, answer) = direct.receive();
        let status = answer.unwrap_err();
        assert!(status.message.contains("no answer"), "{}", status.message);
        waiting.retain(|waits| *waits != id);
    }
    for (name, _) in &cases {
        delete(&mut direct, name);
    }
    drop(mute);
    until("no helper is left", || crate::support::children(shim).len() <= 1);
    rig.remove("a");
}

// Defence: `local::may_hang` in `Turn::start` and `cleanup::force_delete`. (Go's shim waits in a
// thread for as long as it takes.)
#[test]
fn a_runtime_on_a_file_system_that_does_not_answer_stops_nobody() {
    let rig = Rig::new();
    rig.run("a", &["sleep", "1000"]);
    let mute = Mute::new(&rig.dir);
    let runtime = text(&mute.path.join("runtime"));
    let options =
        cleat::protocol::options::Options { binary_name: runtime.clone(), ..Default::default() };
    let bundle = bundle_beside(&rig, |_| {});
    let request = api::CreateTaskRequest {
        id: "b".into(),
        bundle: text(&bundle),
        options: Some(cleat::protocol::Any::pack("containerd.runc.v1.Options", &options)),
        ..api::CreateTaskRequest::default()
    };
    let mut direct = rig.direct("a");
    let waits = direct.send("Create", &request);
    assert_awake(&rig, "starts a runtime");
    let (id, answer) = direct.receive();
    assert_eq!(id, waits);
    let message = answer.unwrap_err().message;
    assert!(
        message.contains(&runtime) && message.contains("no answer from its file system"),
        "{message}"
    );

    // A container of a dead shim.
    fs::write(bundle.join("options.json"), format!(r#"{{"binary_name":"{runtime}"}}"#)).unwrap();
    fs::write(bundle.join("init.pid"), "4194304").unwrap();
    let begun = std::time::Instant::now();
    let mut action = std::process::Command::new(support::shim_binary());
    action.args(["-namespace", &rig.namespace, "-id", "b", "-address", "/nowhere", "-bundle"]);
    let answered = action.arg(&bundle).arg("delete").current_dir(&bundle).output().unwrap();
    assert!(answered.status.success(), "{answered:?}");
    assert!(begun.elapsed() < std::time::Duration::from_secs(5), "{:?}", begun.elapsed());

    let shim = rig.shim();
    drop(mute);
    until("nobody waits any more", || crate::support::children(shim).len() <= 1);
    rig.remove("a");
}

// Defence: `local::KNOWN` has numbers that no other mount gets, or forgets them soon.
#[test]
fn a_mount_in_the_place_of_a_local_one_is_not_taken_for_it() {
    use cleat::local;
    use rustix::fs::{AtFlags, StatxFlags};
    let rig = Rig::new();
    let place = rig.dir.join("mute");
    // The numbers that mountinfo has, and whether there are others.
    let look = || {
        let (found, _) = local::locate(&place).unwrap().unwrap();
        let kind = local::kind(&found).unwrap();
        let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC;
        let reused = rustix::fs::statx(&found, "", flags, StatxFlags::empty()).unwrap();
        let numbers = (reused.stx_mnt_id, reused.stx_dev_major, reused.stx_dev_minor);
        (local::is_local(&found, &kind), numbers, kind.stx_mnt_id != reused.stx_mnt_id)
    };
    let mut met = 0;
    // Others on this machine mount, too.
    for _ in 0..50 {
        fs::create_dir(&place).unwrap();
        let flags = rustix::mount::MountFlags::empty();
        rustix::mount::mount("cleat-test", &place, "tmpfs", flags, c"").unwrap();
        let (is_local, before, has_unique) = look();
        rustix::mount::unmount(&place, rustix::mount::UnmountFlags::empty()).unwrap();
        assert!(is_local);
        fs::remove_dir(&place).unwrap();
        if !has_unique {
            std::thread::sleep(std::time::Duration::from_millis(250));
        }
        let mute = Mute::new(&rig.dir);
        let (is_local, after, _) = look();
        drop(mute);
        fs::remove_dir(&place).unwrap();
        assert!(!is_local, "{before:?} {after:?}");
        met += usize::from(before == after);
        if met > 2 {
            break;
        }
    }
    eprintln!("the same numbers {met} times");
}

// Defence: `Logger::attend` hears a logger to its end.
#[test]
fn a_logger_that_says_it_is_ready_may_do_so_again() {
    let rig = Rig::new();
    rig.run("a", &["sleep", "1000"]);
    let mut direct = rig.direct("a");
    let out = rig.dir.join("logged");
    let body = format!(
        "echo $$ >> {0}.pids; echo ready >&5; exec 5>&-; while read line <&3; do echo $line >> {0}; done; exit 0",
        out.display()
    );
    let logger = script(&rig, "logger", &body);
    add(
        &mut direct,
        "e",
        "i=0; while [ ! -e /stop ]; do echo $i; i=$((i+1)); usleep 20000; done; echo end",
        |request| {
            request.stdout = format!("binary-v2://{}", logger.display());
        },
    );
    start(&mut direct, "e");
    let pids = || read_all(format!("{}.pids", out.display()));
    for life in 1..=4 {
        until("the logger lives", || pids().lines().count() >= life);
        let lines = read_all(&out).lines().count();
        until("it writes", || read_all(&out).lines().count() > lines + 2);
        if life < 4 {
            kill(pids().lines().last().unwrap().parse().unwrap(), libc::SIGKILL);
        }
    }
    std::fs::write(format!("/proc/{}/root/stop", rig.init("a")), "").unwrap();
    assert_eq!(wait(&mut direct, "e"), 0);
    delete(&mut direct, "e");
    assert!(read_all(&out).ends_with("end\n"));
    assert_eq!(pids().lines().count(), 4, "it died of itself");
    rig.remove("a");
}

/// The helpers that write files for a shim.
fn writers(shim: u32) -> Vec<u32> {
    let is_one =
        |pid: &u32| crate::support::cmdline(*pid).first().is_some_and(|name| name == "cleat-file");
    crate::support::children(shim).into_iter().map(|(pid, _)| pid).filter(is_one).collect()
}

// Ours alone: Go has no such helper.
#[test]
fn a_log_goes_on_when_its_writer_is_killed_and_is_whole_when_the_shim_is() {
    let rig = Rig::new();
    rig.run("a", &["sleep", "1000"]);
    let shim = rig.shim();
    let mut direct = rig.direct("a");
    let log = rig.dir.join("out.log");
    add(&mut direct, "e", "while read line; do echo $line; done", |request| {
        request.stdin = text(&fifo(&rig.dir, "in"));
        request.stdout = format!("file://{}", log.display());
    });
    start(&mut direct, "e");
    let mut input = std::fs::OpenOptions::new().write(true).open(rig.dir.join("in")).unwrap();
    let mut say = |line: &str| {
        writeln!(input, "{line}").unwrap();
        until("it is written", || read_all(&log).ends_with(&format!("{line}\n")));
    };
    say("one");
    let first = writers(shim);
    assert_eq!(first.len(), 1);
    kill(first[0], libc::SIGTERM);
    say("two");
    assert_eq!(writers(shim), first, "a SIGTERM ends nothing that is not written");
    kill(first[0], libc::SIGKILL);
    say("three");
    let second = writers(shim);
    assert_ne!(second, first);
    drop(input);
    kill(rig.init("a"), libc::SIGKILL);
    until("the exec ends", || direct.state("a", "e").is_ok_and(|state| state.exit_status == 137));
    delete(&mut direct, "e");
    until("its writer ends", || !alive(second[0]));
    assert_eq!(read_all(&log), "one\ntwo\nthree\n");
    rig.remove("a");
}

#[test]
fn files_that_are_there_are_appended_to() {
    let rig = Rig::new();
    rig.run("a", &["sleep", "1000"]);
    let mut direct = rig.direct("a");
    let (out, err) = (rig.dir.join("out"), rig.dir.join("err"));
    std::fs::write(&out, "before\n").unwrap();
    std::fs::write(&err, "before\n").unwrap();
    add(&mut direct, "e", "echo to stdout; echo to stderr >&2", |request| {
        (request.stdout, request.stderr) = (text(&out), text(&err));
    });
    start(&mut direct, "e");
    assert_eq!(wait(&mut direct, "e"), 0);
    delete(&mut direct, "e");
    assert_eq!(
        (read_all(&out), read_all(&err)),
        ("before\nto stdout\n".into(), "before\nto stderr\n".into())
    );
    add(&mut direct, "f", "true", |request| request.stdout = text(&rig.dir.join("nowhere")));
    direct.call::<api::PidResponse>("Start", &process("a", "f")).unwrap_err();
    let _ = direct.call::<Empty>("Delete", &process("a", "f"));
    rig.remove("a");
}

// A volume that a pod shares with its log: what it puts in the log's place is written by root on
// the host, if by anybody.
#[test]
fn a_container_cannot_turn_its_log_into_something_else() {
    let rig = Rig::new();
    let logs = rig.dir.join("logs");
    fs::create_dir(&logs).unwrap();
    let mount = format!("type=bind,src={},dst=/logs,options=rbind:rw", logs.display());
    let uri = format!("file://{}/log", logs.display());
    let wait = "while [ ! -e /logs/go ]; do sleep 0.05; done; rm /logs/go";
    let print = "for i in 1 2 3 4 5 6 7 8; do echo evil; sleep 0.1; done";
    let target = rig.dir.join("target");
    let turns = [
        ("ln", format!("ln -s {} /logs/log", target.display())),
        ("fifo", "mkfifo /logs/log".to_owned()),
        ("device", "mknod /logs/log b 7 77".to_owned()),
        ("directory", "mkdir /logs/log".to_owned()),
    ];
    for (name, turn) in turns {
        let script = format!(
            "echo first; {wait}; rm /logs/log; {turn}; {print}; rm -rf /logs/log; sleep 0.3; echo last; sleep 0.3"
        );
        let flags = ["--runtime", support::CLEAT, "--log-uri", &uri, "--mount", &mount];
        rig.ctr(
            [&["run", "-d"], &flags[..], &[support::IMAGE, name, "sh", "-c", &script]].concat(),
        );
        until("it writes", || {
            fs::read_to_string(logs.join("log")).is_ok_and(|text| text.contains("first"))
        });
        fs::write(logs.join("go"), "").unwrap();
        until("it has ended", || rig.status(name).as_deref() == Some("STOPPED"));
        assert!(!target.exists(), "{name}");
        // Its name is free again, and it goes on there.
        until("the last line arrives", || {
            fs::read_to_string(logs.join("log")).is_ok_and(|text| text == "last\n")
        });
        rig.remove(name);
        fs::remove_file(logs.join("log")).unwrap();
    }
}

// The number of a helper that has ended may be another's.
#[test]
fn the_helper_of_a_stdin_ends_with_its_process_and_is_forgotten() {
    let rig = Rig::new();
    rig.run("a", &["sleep", "1000"]);
    let shim = rig.shim();
    let mut direct = rig.direct("a");
    let readers = || {
        let helper = |(pid, _): &(u32, char)| support::cmdline(*pid).contains(&"read".to_owned());
        support::children(shim).iter().filter(|child| helper(child)).count()
    };
    // A terminal that has nothing to say.
    let (_master, slave) = terminal();
    for number in 0..3 {
        let exec = format!("e{number}");
        support::add(&mut direct, &exec, "exit 0", |request| request.stdin = slave.clone());
        support::start(&mut direct, &exec);
        support::wait(&mut direct, &exec);
    }
    until("nobody reads it", || readers() == 0);
    for number in 0..3 {
        support::delete(&mut direct, &format!("e{number}"));
    }
    support::add(&mut direct, "f", "exec sleep 1000", |request| request.stdin = slave.clone());
    support::start(&mut direct, "f");
    until("it is read", || readers() == 1);
    let helper = support::children(shim)
        .into_iter()
        .find(|(pid, _)| support::cmdline(*pid).contains(&"read".to_owned()));
    support::kill(shim, libc::SIGKILL);
    until("nobody reads it", || !support::alive(helper.unwrap().0));
    until("containerd has cleared up", || rig.status("a").is_none());
    rig.ctr(["container", "rm", "a"]);
}

fn terminal() -> (std::os::fd::OwnedFd, String) {
    use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
    let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
    grantpt(&master).unwrap();
    unlockpt(&master).unwrap();
    let name = ptsname(&master, Vec::new()).unwrap().into_string().unwrap();
    (master, name)
}

#[test]
fn a_log_outlives_a_while_in_which_no_process_can_be_started() {
    let rig = Rig::new();
    let log = rig.dir.join("log-of-a");
    let uri = format!("file://{}", log.display());
    let script = "i=0; while :; do echo line $i; i=$((i+1)); sleep 0.05; done";
    rig.ctr([
        "run",
        "-d",
        "--runtime",
        support::CLEAT,
        "--log-uri",
        &uri,
        support::IMAGE,
        "a",
        "sh",
        "-c",
        script,
    ]);
    let shim = rig.shim();
    let lines = || fs::read_to_string(&log).map_or(0, |text| text.lines().count());
    until("it writes", || lines() > 3);
    let limit = |what: &str| {
        let status =
            std::process::Command::new("prlimit").args(["--pid", &shim.to_string(), what]).status();
        assert!(status.unwrap().success());
    };
    limit("--nofile=4:");
    for helper in writers(shim) {
        support::kill(helper, libc::SIGKILL);
    }
    std::thread::sleep(std::time::Duration::from_millis(700));
    limit("--nofile=1024:");
    let before = lines();
    until("it writes again", || lines() > before + 3);
    rig.remove("a");
}
