//! Consoles that are closed and opened again, and the programs that do so.

use crate::support::{
    self, CLEAT, Rig, Terminal, add, delete, fifo, read_all, reader, start, text, until, wait,
};
use cleat::protocol::task as api;
use std::{
    fs::OpenOptions,
    io::{Read, Write},
};

/// How many descriptors of a console's master a process has: what containerd's own test counts
/// (`lsof | grep ptmx`).
fn masters(pid: u32) -> usize {
    let entries = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().flatten();
    entries
        .filter_map(|entry| std::fs::read_link(entry.path()).ok())
        .filter(|target| target.to_string_lossy().contains("ptmx"))
        .count()
}

/// How often a process has gone to sleep.
fn sleeps(pid: u32) -> u64 {
    let status = read_all(format!("/proc/{pid}/status"));
    let line = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
    line.unwrap().trim().parse().unwrap()
}

/// Closes all of its console, as systemd, getty and the inits do.
const CLOSE: &str = "exec </dev/null >/dev/null 2>&1";

// systemd, sysvinit, busybox init, getty. Defence: `Console::slave`.
#[test]
fn a_console_that_everybody_has_closed_goes_on_when_somebody_opens_it() {
    let rig = Rig::new();
    let script = format!(
        "echo begun; {CLOSE}; touch /closed; while [ ! -e /go ]; do usleep 10000; done; \
         (head -c 100000 /dev/zero | tr '\\0' Z; echo; echo written) >/dev/console; \
         while [ ! -e /go2 ]; do usleep 10000; done; \
         read line </dev/console; echo got $line >/dev/console; exec sh </dev/console >/dev/console 2>&1"
    );
    let mut terminal =
        Terminal::spawn(rig.foreground(&["-t", "--runtime", CLEAT], "a", &["sh", "-c", &script]));
    terminal.read_until("begun");
    let root = format!("/proc/{}/root", rig.init("a"));
    until("it has closed its console", || std::fs::exists(format!("{root}/closed")).unwrap());
    let shim = rig.shim();
    let before = sleeps(shim);
    std::thread::sleep(std::time::Duration::from_secs(2));
    assert!(sleeps(shim) - before < 100, "the shim looks all the time");
    std::fs::write(format!("{root}/go"), "").unwrap();
    terminal.read_until("written");
    // Nobody has it open now either.
    terminal.write(b"typed\n");
    std::thread::sleep(std::time::Duration::from_millis(300));
    std::fs::write(format!("{root}/go2"), "").unwrap();
    terminal.read_until("got typed");
    terminal.write(b"echo $((40+2)); exit 7\n");
    terminal.read_until("42");
    let (shown, status) = terminal.end();
    assert_eq!(status.code(), Some(7), "{shown}");
    assert_eq!(shown.matches('Z').count(), 100_000);
}

#[test]
fn an_execs_console_goes_on_until_the_exec_ends() {
    let rig = Rig::new();
    rig.run("a", &["sleep", "1000"]);
    let mut direct = rig.direct("a");
    let (stdin, stdout) = (fifo(&rig.dir, "in"), fifo(&rig.dir, "out"));
    let script = format!(
        "t=$(tty); {CLOSE}; for i in 1 2 3 4 5; do sleep 0.3; (head -c 5000 /dev/zero | tr '\\0' Z; echo line $i) >$t; done; \
         read x <$t; echo got $x >$t; {CLOSE}; sleep 0.3; exit 5"
    );
    add(&mut direct, "e", &script, |request| {
        (request.stdin, request.stdout, request.terminal) = (text(&stdin), text(&stdout), true);
    });
    let mut output = reader(&stdout);
    start(&mut direct, "e");
    let mut input = OpenOptions::new().write(true).open(&stdin).unwrap();
    input.write_all(b"hello\n").unwrap();
    let reading = std::thread::spawn(move || {
        let mut all = String::new();
        output.read_to_string(&mut all).unwrap();
        all
    });
    assert_eq!(masters(rig.shim()), 1);
    assert_eq!(wait(&mut direct, "e"), 5);
    delete(&mut direct, "e");
    let all = reading.join().unwrap();
    assert_eq!(all.matches('Z').count(), 25_000);
    assert!(all.contains("line 5") && all.contains("got hello"), "{}", &all[all.len() - 200..]);
    // Go's shim closes its own a little later.
    until("the master is closed", || masters(rig.shim()) == 0);
    rig.remove("a");
}

// containerd's TestContainerTTYLeakAfterExit. Defence: `Watched`.
#[test]
fn a_console_is_one_descriptor_of_its_master() {
    let rig = Rig::new();
    let mut terminal = Terminal::spawn(rig.foreground(&["-t", "--runtime", CLEAT], "a", &["sh"]));
    terminal.write(b"echo $((40+2))\n");
    terminal.read_until("42");
    assert_eq!(masters(rig.shim()), 1);
    let mut direct = rig.direct("a");
    let (stdin, stdout) = (fifo(&rig.dir, "in"), fifo(&rig.dir, "out"));
    add(&mut direct, "e", "stty size; read x", |request| {
        (request.stdin, request.stdout, request.terminal) = (text(&stdin), text(&stdout), true);
    });
    let mut output = reader(&stdout);
    start(&mut direct, "e");
    output.read_exact(&mut [0; 3]).unwrap();
    assert_eq!(masters(rig.shim()), 2);
    std::fs::write(&stdin, "\n").unwrap();
    assert_eq!(wait(&mut direct, "e"), 0);
    delete(&mut direct, "e");
    until("the exec's master is closed", || masters(rig.shim()) == 1);
    terminal.write(b"exit\n");
    terminal.end();
}

// The hang-up: whoever sits at a console whose client has gone must not stay.
#[test]
fn a_console_that_is_closed_now_is_hung_up_when_its_input_ends() {
    let rig = Rig::new();
    rig.run("a", &["sleep", "1000"]);
    let mut direct = rig.direct("a");
    let (stdin, stdout) = (fifo(&rig.dir, "in"), fifo(&rig.dir, "out"));
    let script = format!("trap 'exit 9' HUP; echo begun; {CLOSE}; while :; do usleep 10000; done");
    add(&mut direct, "e", &script, |request| {
        (request.stdin, request.stdout, request.terminal) = (text(&stdin), text(&stdout), true);
    });
    let mut output = reader(&stdout);
    start(&mut direct, "e");
    let input = OpenOptions::new().write(true).open(&stdin).unwrap();
    output.read_exact(&mut [0; 5]).unwrap();
    let close = api::CloseIoRequest { id: "a".into(), exec_id: "e".into(), stdin: true };
    direct.call::<cleat::protocol::Empty>("CloseIO", &close).unwrap();
    drop(input);
    assert_eq!(wait(&mut direct, "e"), 9);
    delete(&mut direct, "e");
    rig.remove("a");
}

// A process that outlives the exec keeps the console: the exec ends all the same.
#[test]
fn a_console_ends_with_its_process_whoever_keeps_it() {
    let rig = Rig::new();
    rig.run("a", &["sleep", "1000"]);
    let mut direct = rig.direct("a");
    let (stdin, stdout) = (fifo(&rig.dir, "in"), fifo(&rig.dir, "out"));
    add(&mut direct, "e", "trap '' HUP; sleep 1000 & echo bye", |request| {
        (request.stdin, request.stdout, request.terminal) = (text(&stdin), text(&stdout), true);
    });
    let mut output = reader(&stdout);
    start(&mut direct, "e");
    assert_eq!(wait(&mut direct, "e"), 0);
    let mut all = String::new();
    let reading = std::thread::spawn(move || {
        output.read_to_string(&mut all).unwrap();
        all
    });
    delete(&mut direct, "e");
    assert_eq!(reading.join().unwrap(), "bye\r\n");
    until("the master is closed", || masters(rig.shim()) == 0);
    rig.remove("a");
}

/// A container whose init runs this script on its console.
fn at_console(rig: &Rig, script: &str) -> Terminal {
    Terminal::spawn(rig.foreground(&["-t", "--runtime", CLEAT], "a", &["sh", "-c", script]))
}

#[test]
fn busybox_init_asks_for_a_login_again_and_again() {
    let rig = Rig::new();
    let tab = "::sysinit:/bin/echo booted\\n::respawn:-/bin/sh\\n::ctrlaltdel:/bin/true\\n";
    let script = format!("printf '{tab}' >/etc/inittab; exec init");
    let mut terminal = at_console(&rig, &script);
    terminal.read_until("booted");
    for round in 0..3 {
        terminal.read_until("# ");
        terminal.write(format!("echo round $(({round}+40)); exit\r").as_bytes());
        terminal.read_until(&format!("round {}", round + 40));
    }
    support::kill(rig.init("a"), libc::SIGKILL);
    terminal.end();
}

#[test]
fn getty_opens_the_console_anew_for_each_login() {
    let rig = Rig::new();
    let login = "#!/bin/sh\\necho welcome; exec sh\\n";
    let script = format!(
        "printf '{login}' >/bin/hello; chmod 755 /bin/hello; \
         while [ ! -e /stop ]; do setsid getty -n -l /bin/hello 115200 /dev/console xterm; sleep 0.2; done </dev/null >/dev/null 2>&1"
    );
    // Its controlling terminal is the init's: to take it away needs that.
    let flags = ["-t", "--cap-add", "CAP_SYS_ADMIN", "--runtime", CLEAT];
    let mut terminal = Terminal::spawn(rig.foreground(&flags, "a", &["sh", "-c", &script]));
    for round in 0..3 {
        terminal.read_until("# ");
        terminal.write(format!("echo round $(({round}+40)); tty; exit\r").as_bytes());
        terminal.read_until(&format!("round {}", round + 40));
    }
    terminal.read_until("# ");
    terminal.write(b"touch /stop; exit\r");
    let (shown, status) = terminal.end();
    assert_eq!(status.code(), Some(0), "{shown}");
    assert!(shown.contains("/dev/console"), "{shown}");
}

#[test]
fn job_control_and_su_work_at_a_console() {
    let rig = Rig::new();
    let users = "root:x:0:0:root:/root:/bin/sh\\nu:x:1000:1000::/tmp:/bin/sh\\n";
    let script =
        format!("mkdir -p /root /tmp; printf '{users}' >/etc/passwd; export PS1='$ '; exec sh -i");
    let mut terminal = at_console(&rig, &script);
    terminal.read_until("$ ");
    // ^C ends the job, not the shell.
    terminal.write(b"sleep 1000\r");
    until("the job runs", || !jobs(&rig, "sleep").is_empty());
    terminal.write(&[3]);
    terminal.read_until("^C");
    terminal.write(b"echo status=$?\r");
    terminal.read_until("status=130");
    // ^Z stops it; it goes on in the foreground.
    terminal.write(b"sleep 1001\r");
    until("the job runs", || !jobs(&rig, "sleep").is_empty());
    terminal.write(&[26]);
    terminal.read_until("Stopped");
    terminal.write(b"fg\r");
    until("the job runs", || jobs(&rig, "sleep").contains(&'S'));
    terminal.write(&[3]);
    until("the job has ended", || jobs(&rig, "sleep").is_empty());
    terminal.write(b"su - u -c 'id -u; tty; pwd'\r");
    for shown in ["1000", "/dev/pts/0", "/tmp"] {
        terminal.read_until(shown);
    }
    terminal.write(b"exit 0\r");
    let (shown, status) = terminal.end();
    assert_eq!(status.code(), Some(0), "{shown}");
}

/// States of the processes with this name below the init of `a`.
fn jobs(rig: &Rig, name: &str) -> Vec<char> {
    let is_job = |pid: &u32| support::cmdline(*pid).first().is_some_and(|word| word == name);
    let children = support::children(rig.init("a"));
    children.into_iter().filter(|(pid, _)| is_job(pid)).map(|(_, state)| state).collect()
}

/// Debian as `./dev console` makes it, in which systemd is the init: boots to its login, says
/// nothing for a while, and goes on.
#[test]
#[ignore = "needs a Debian with systemd, which ./dev console makes"]
fn systemd_boots_to_its_login_and_its_console_goes_on_after_silence() {
    let root =
        std::env::var("CLEAT_TEST_DEBIAN").unwrap_or_else(|_| "target/console/root".to_owned());
    let root = std::fs::canonicalize(root).unwrap();
    let seconds = std::env::var("CLEAT_SILENCE_SECONDS").ok().and_then(|text| text.parse().ok());
    let silence = std::time::Duration::from_secs(seconds.unwrap_or(5));
    let rig = Rig::new();
    // A layer of its own above it.
    let [upper, work, merged] = ["upper", "work", "merged"].map(|name| rig.dir.join(name));
    [&upper, &work, &merged].into_iter().for_each(|path| std::fs::create_dir(path).unwrap());
    let layers = format!(
        "lowerdir={},upperdir={},workdir={}",
        root.display(),
        upper.display(),
        work.display()
    );
    let mut mount = std::process::Command::new("mount");
    mount.args(["-t", "overlay", "overlay", "-o", &layers]).arg(&merged);
    assert!(mount.status().unwrap().success());
    std::fs::write(merged.join("etc/machine-id"), "").unwrap();
    // A password that is empty.
    let shadow = read_all(merged.join("etc/shadow")).replacen("root:*:", "root::", 1);
    std::fs::write(merged.join("etc/shadow"), shadow).unwrap();
    let mut command = rig.ctr_within("100000", ["run", "--rm", "-t", "--privileged", "--rootfs"]);
    command.args(["--runtime", CLEAT, "--env", "container=oci"]);
    command.args(["--mount", "type=tmpfs,src=tmpfs,dst=/run,options=mode=755"]);
    command.args(["--mount", "type=bind,src=/sys/fs/cgroup,dst=/sys/fs/cgroup,options=rbind:rw"]);
    command.arg(&merged).args(["a", "/sbin/init"]);
    let mut terminal = Terminal::spawn(command);
    terminal.read_until("login:");
    for round in 0..2 {
        terminal.write(b"root\r");
        terminal.read_until("# ");
        terminal.write(format!("echo round $(({round}+40)); tty\r").as_bytes());
        terminal.read_until(&format!("round {}", round + 40));
        terminal.write(b"script -q -c 'tty; echo typescript $((40+2))' /tmp/t\r");
        terminal.read_until("typescript 42");
        std::thread::sleep(silence);
        terminal.write(b"echo after $((40+3)); su - -c 'echo su $((40+4))'\r");
        terminal.read_until("after 43");
        terminal.read_until("su 44");
        terminal.write(b"exit\r");
        terminal.read_until("login:");
    }
    // Whoever is in the container writes to its console as well.
    rig.ctr([
        "task",
        "exec",
        "--exec-id",
        "e",
        "a",
        "/bin/sh",
        "-c",
        "echo said by another >/dev/console",
    ]);
    terminal.read_until("said by another");
    support::kill(rig.init("a"), libc::SIGKILL);
    terminal.end();
    let unmounted = std::process::Command::new("umount").arg(&merged).status().unwrap();
    assert!(unmounted.success());
}
