//! Input and output.

use super::{add, delete, process, reader, script, start, text, wait};
use crate::support::{self, GROUP, Rig, alive, fifo, kill, read_all, until};
use cleat::{
    protocol::{Empty, task as api},
    rpc::Code,
};
use std::{
    io::{Read, Write},
    os::unix::fs::PermissionsExt,
    process::Command,
    time::{Duration, Instant},
};

/// Lines `0` to `last`, as `seq` writes them.
fn numbers(last: usize) -> String {
    (0..=last).map(|number| format!("{number}\n")).collect()
}

// containerd #9342, #11511. Defence: what a full fifo does not take is kept (`io/copy/spool.rs`),
// up to a bound; beyond it nothing more is read.
#[test]
fn scar_16_a_reader_that_is_away_loses_nothing_and_kills_nobody() {
    let rig = Rig::new();
    rig.run("a", &["sleep", "1000"]);
    let mut direct = rig.direct("a");
    let stdout = fifo(&rig.dir, "out");
    add(&mut direct, "e", "seq 0 60000", |request| request.stdout = text(&stdout));
    let mut first = reader(&stdout);
    start(&mut direct, "e");
    let mut seen = vec![0; 100];
    first.read_exact(&mut seen).unwrap();
    drop(first);
    // Nobody reads: 340 KB do not fit into fifo and pipe, but into the spool.
    assert_eq!(wait(&mut direct, "e"), 0);
    let mut second = reader(&stdout);
    let rest = std::thread::spawn(move || {
        let mut rest = Vec::new();
        second.read_to_end(&mut rest).unwrap();
        rest
    });
    delete(&mut direct, "e");
    seen.extend(rest.join().unwrap());
    assert!(String::from_utf8(seen).unwrap() == numbers(60000));
    rig.remove("a");
}

// The same without a spool, and with one that drops lines.
#[test]
fn scar_16_the_operator_says_what_becomes_of_output_that_nobody_reads() {
    let rig = Rig::new();
    for (id, spool) in [("w", "0"), ("d", "64Ki,drop-oldest")] {
        let options = rig.runtime_options(&format!("{id}.toml"), &format!("Spool = '{spool}'"));
        let group = format!("{GROUP}=a");
        let flags =
            [options.each_ref().map(String::as_str).as_slice(), &["--annotation", &group]].concat();
        rig.run_with(&flags, id, &["sleep", "1000"]);
    }
    let mut direct = rig.direct("w");
    for id in ["w", "d"] {
        let stdout = fifo(&rig.dir, id);
        let mut request = support::exec_request(
            id,
            "e",
            &support::process_spec(&["sh", "-c", "seq 0 200000; exit 3"]),
        );
        (request.stdout, request.stderr) = (text(&stdout), "/dev/null".into());
        direct.call::<Empty>("Exec", &request).unwrap();
        let mut reader = reader(&stdout);
        let pid = direct.call::<api::PidResponse>("Start", &super::process(id, "e")).unwrap().pid;
        let all = |mut reader: std::fs::File| {
            let mut bytes = String::new();
            reader.read_to_string(&mut bytes).unwrap();
            bytes
        };
        let mut first = [0; 1];
        reader.read_exact(&mut first).unwrap();
        std::thread::sleep(Duration::from_secs(1));
        assert_eq!(alive(pid), id == "w", "{id}");
        let rest = std::thread::spawn(move || all(reader));
        let waited: api::WaitResponse = direct.call("Wait", &super::process(id, "e")).unwrap();
        assert_eq!(waited.exit_status, 3);
        direct.call::<api::DeleteResponse>("Delete", &super::process(id, "e")).unwrap();
        let seen = format!("0{}", rest.join().unwrap());
        if id == "w" {
            assert!(seen == numbers(200_000));
        } else {
            let (before, after) = seen.split_once("cleat: ").unwrap();
            let (count, after) = after.split_once(" lines (").unwrap();
            let (_, after) = after.split_once(" dropped\n").unwrap();
            let edges = format!("{:?} | {:?}", &before[before.len() - 30..], &after[..30]);
            let (before, after) = (before.lines().count(), after.lines().count());
            assert_eq!(
                before + count.parse::<usize>().unwrap() + after,
                200_001,
                "{edges} {count}"
            );
            assert!(seen.ends_with("199999\n200000\n"));
        }
    }
    rig.remove("d");
    rig.remove("w");
}

// containerd #12462; podman#19943. Defence: `OnWriteError::Drop`.
#[test]
fn scar_17_a_full_log_disk_neither_stops_the_container_nor_ends_the_log() {
    let rig = Rig::new();
    rig.run("a", &["sleep", "1000"]);
    let logs = rig.dir.join("logs");
    std::fs::create_dir(&logs).unwrap();
    let mounted = Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=1m", "tmpfs"])
        .arg(&logs)
        .status()
        .unwrap();
    assert!(mounted.success());
    let log = logs.join("output.log");
    let mut direct = rig.direct("a");
    let loops = "i=0; while [ ! -e /stop ]; do echo 0123456789012345678901234567890123456789; i=$((i+1)); echo $i > /progress; done; echo the end";
    add(&mut direct, "e", loops, |request| request.stdout = format!("file://{}", log.display()));
    std::fs::write(logs.join("ballast"), vec![0; 900 << 10]).unwrap();
    let pid = start(&mut direct, "e");
    let root = format!("/proc/{}/root", rig.init("a"));
    // The file is empty for a moment with each line.
    let progress = || loop {
        if let Ok(lines) = read_all(format!("{root}/progress")).trim().parse::<u64>() {
            return lines;
        }
    };
    until("the container runs", || !read_all(format!("{root}/progress")).is_empty());
    until("the disk is full", || {
        let stat = rustix::fs::statvfs(&logs).unwrap();
        stat.f_bavail == 0
    });
    let before = progress();
    until("the container goes on", || progress() > before + 2000);
    until("the log says so", || rig.log().contains("output is dropped until writing works"));
    assert!(alive(pid));
    std::fs::remove_file(logs.join("ballast")).unwrap();
    let size = std::fs::metadata(&log).unwrap().len();
    until("the log goes on", || std::fs::metadata(&log).unwrap().len() > size);
    std::fs::write(format!("{root}/stop"), "").unwrap();
    assert_eq!(wait(&mut direct, "e"), 0);
    delete(&mut direct, "e");
    assert!(Command::new("umount").arg(&logs).status().unwrap().success());
    rig.remove("a");
}

// aws/shim-loggers-for-containerd#253. Defence: `Logger::supervise` starts it again on the same
// pipes.
#[test]
fn scar_18_a_logger_that_dies_is_started_again_and_loses_nothing_it_had_not_read() {
    let rig = Rig::new();
    rig.run("a", &["sleep", "1000"]);
    let out = rig.dir.join("logged");
    let logger = script(
        &rig,
        "logger",
        &format!(
            "echo $$ >> {0}.pids; exec 5>&-; while read -r line <&3; do echo \"$line\" >> {0}; done",
            out.display()
        ),
    );
    let mut direct = rig.direct("a");
    let loops =
        "i=0; while [ $i -lt 300 ]; do echo line $i; i=$((i+1)); [ -e /go ] || sleep 0.01; done";
    add(&mut direct, "e", loops, |request| {
        request.stdout = format!("binary://{}", logger.display())
    });
    start(&mut direct, "e");
    let pids = || {
        read_all(format!("{}.pids", out.display()))
            .lines()
            .filter_map(|l| l.parse().ok())
            .collect::<Vec<u32>>()
    };
    until("the first logger logs", || read_all(&out).contains("line 20\n"));
    kill(pids()[0], libc::SIGKILL);
    until("a second logger runs", || pids().len() == 2);
    assert_eq!(wait(&mut direct, "e"), 0);
    delete(&mut direct, "e");
    until("the last line is logged", || read_all(&out).contains("line 299\n"));
    // A shell reads byte by byte: at most the line in hand dies with it.
    let missing = (0..300).filter(|n| !read_all(&out).contains(&format!("line {n}\n"))).count();
    assert!(missing <= 1, "{missing} lines are missing");
    assert!(rig.log().contains("started again"));
    rig.remove("a");
}

#[test]
fn scar_18_a_logger_that_ends_at_once_does_not_stop_the_container() {
    let rig = Rig::new();
    rig.run("a", &["sleep", "1000"]);
    let logger = script(&rig, "logger", "exec 5>&-; sleep 0.2");
    let mut direct = rig.direct("a");
    add(&mut direct, "e", "head -c 3000000 /dev/zero; exit 6", |request| {
        request.stdout = format!("binary://{}", logger.display());
    });
    start(&mut direct, "e");
    assert_eq!(wait(&mut direct, "e"), 6);
    delete(&mut direct, "e");
    until("the log tells", || rig.log().contains("its input is dropped"));
    rig.remove("a");
}

// docker/cli#4338, containerd #7289. Defence: `ProcessIo::process_exited` pumps, `drain` waits for
// the end and for the reader.
#[test]
fn scar_20_every_byte_of_every_size_through_a_slow_reader() {
    let rig = Rig::new();
    rig.run("a", &["sleep", "1000"]);
    let mut direct = rig.direct("a");
    let sizes = [1 << 12, 1 << 16, 1 << 20, 1 << 22]
        .into_iter()
        .flat_map(|size| [size - 1, size, size + 1]);
    for (number, size) in sizes.enumerate() {
        let stdout = fifo(&rig.dir, &format!("out{number}"));
        let exec = format!("e{number}");
        add(&mut direct, &exec, &format!("head -c {size} /dev/zero"), |request| {
            request.stdout = text(&stdout)
        });
        let mut file = reader(&stdout);
        start(&mut direct, &exec);
        let reading = std::thread::spawn(move || {
            let (mut all, mut chunk) = (0, vec![0; 100_000]);
            loop {
                match file.read(&mut chunk).unwrap() {
                    0 => return all,
                    n => all += n,
                }
                std::thread::sleep(Duration::from_millis(5));
            }
        });
        assert_eq!(wait(&mut direct, &exec), 0);
        delete(&mut direct, &exec);
        assert_eq!(reading.join().unwrap(), size);
    }
    rig.remove("a");
}

// Seen with containerd's TestContainerExecLargeOutputWithTTY under load. Defence: `!io.exited` in
// `copy_stdin`, `let_source_go`.
#[test]
fn scar_20_a_consoles_last_words_are_whole_though_its_input_has_ended() {
    let rig = Rig::new();
    rig.run("a", &["sleep", "1000"]);
    let mut direct = rig.direct("a");
    for number in 0..8 {
        let exec = format!("e{number}");
        let (stdin, stdout) =
            (fifo(&rig.dir, &format!("in{number}")), fifo(&rig.dir, &format!("out{number}")));
        add(&mut direct, &exec, "stty -opost; seq 0 40000", |request| {
            (request.stdin, request.stdout) = (text(&stdin), text(&stdout));
            request.terminal = true;
        });
        let mut file = reader(&stdout);
        start(&mut direct, &exec);
        let reading = std::thread::spawn(move || {
            let (mut all, mut chunk) = (Vec::new(), vec![0; 20_000]);
            loop {
                match file.read(&mut chunk).unwrap() {
                    0 => return all,
                    n => all.extend_from_slice(&chunk[..n]),
                }
                std::thread::sleep(Duration::from_millis(3));
            }
        });
        // As a client whose input is empty: it opens, and closes.
        drop(std::fs::OpenOptions::new().write(true).open(&stdin).unwrap());
        assert_eq!(wait(&mut direct, &exec), 0);
        delete(&mut direct, &exec);
        let all = String::from_utf8(reading.join().unwrap()).unwrap();
        assert!(all == numbers(40000), "{} bytes of {}", all.len(), numbers(40000).len());
    }
    rig.remove("a");
}

// containerd's client closes its fifos when Delete returns. Defence: `Outputs::wait_read`.
#[test]
fn scar_20_delete_waits_for_a_reader_that_reads() {
    let rig = Rig::new();
    rig.run("a", &["sleep", "1000"]);
    let mut direct = rig.direct("a");
    let stdout = fifo(&rig.dir, "out");
    add(&mut direct, "e", "head -c 60000 /dev/zero", |request| request.stdout = text(&stdout));
    let mut file = reader(&stdout);
    start(&mut direct, "e");
    let reading = std::thread::spawn(move || {
        let mut all = 0;
        for _ in 0..60 {
            std::thread::sleep(Duration::from_millis(10));
            let mut chunk = [0; 1000];
            file.read_exact(&mut chunk).unwrap();
            all += chunk.len();
        }
        (Instant::now(), all)
    });
    assert_eq!(wait(&mut direct, "e"), 0);
    delete(&mut direct, "e");
    let deleted = Instant::now();
    let (read, all) = reading.join().unwrap();
    assert_eq!(all, 60_000);
    assert!(read < deleted + Duration::from_millis(100), "all was read when Delete returned");
    rig.remove("a");
}

// containerd #4434, runc#2530. Defence: `attach`: output goes to a memfd, sealed at 16 MiB.
#[test]
fn scar_24_a_runtime_that_floods_its_outputs_is_not_stopped_by_them() {
    let rig = Rig::new();
    let flood =
        "head -c 1048576 /dev/zero | tr '\\0' x >&2; head -c 1048576 /dev/zero | tr '\\0' y";
    let flags = rig.runtime_script(&format!(
        "case \"$*\" in *' kill '*|*' pause '*|*' resume '*|*' delete '*) {flood};; esac"
    ));
    rig.run_with(&flags.each_ref().map(String::as_str), "a", &["sleep", "1000"]);
    rig.ctr(["task", "pause", "a"]);
    rig.ctr(["task", "resume", "a"]);
    rig.remove("a");
}

// containerd #4905, #3266. Defence: the log's descriptor does not block, and we keep a reader
// (`log::open`).
#[test]
fn scar_25_a_log_that_nobody_reads_blocks_nothing() {
    let rig = Rig::new();
    rig.run("a", &["sleep", "1000"]);
    let mut direct = rig.direct("a");
    // containerd reads the log; it is at level debug, so each call is logged.
    support::stop(rig.containerd_pid());
    let begun = Instant::now();
    for _ in 0..5000 {
        direct.state("a", "").unwrap();
    }
    assert!(begun.elapsed() < Duration::from_secs(10));
    kill(rig.containerd_pid(), libc::SIGCONT);
    rig.remove("a");
}

// containerd #12490, #12595. Defence: `Logger::start`.
#[test]
fn scar_64_a_loggers_readiness() {
    let rig = Rig::new();
    rig.run("a", &["sleep", "1000"]);
    let mut direct = rig.direct("a");
    let cases = [
        ("closes", "binary", "exec 5>&-; cat <&3 >/dev/null", true),
        ("ends", "binary", "exit 3", false),
        ("says", "binary-v2", "echo >&5; exec 5>&-; cat <&3 >/dev/null", true),
        ("mute", "binary-v2", "exec 5>&-; cat <&3 >/dev/null", false),
        ("hangs", "binary-v2", "exec sleep 1000", false),
    ];
    for (name, scheme, body, good) in cases {
        let logger = script(&rig, name, body);
        add(&mut direct, name, "echo hello", |request| {
            request.stdout = format!("{scheme}://{}", logger.display())
        });
        let started = direct.call::<api::PidResponse>("Start", &process("a", name));
        assert_eq!(started.is_ok(), good, "{name}: {started:?}");
        if let Err(status) = started {
            assert!(status.message.contains("wait until ready: logger"), "{}", status.message);
        } else {
            assert_eq!(wait(&mut direct, name), 0);
        }
        delete(&mut direct, name);
    }
    add(&mut direct, "none", "true", |request| request.stdout = "binary:///nope".into());
    let refused = direct.call::<api::PidResponse>("Start", &process("a", "none")).unwrap_err();
    assert!(refused.message.contains("start logger /nope"), "{}", refused.message);
    delete(&mut direct, "none");
    rig.remove("a");
}

// The logger's environment and arguments, and both of its inputs.
#[test]
fn a_logger_is_told_what_upstream_tells_it() {
    let rig = Rig::new();
    rig.run("a", &["sleep", "1000"]);
    let out = rig.dir.join("told");
    let body = format!(
        "echo \"$@\" $CONTAINER_ID $CONTAINER_NAMESPACE > {0}; exec 5>&-; cat <&3 >> {0}; cat <&4 >> {0}; echo end >> {0}",
        out.display()
    );
    let logger = script(&rig, "logger", &body);
    let mut direct = rig.direct("a");
    add(&mut direct, "e", "echo to stdout; echo to stderr >&2", |request| {
        request.stdout = format!("binary://{}?key=a%20b&flag", logger.display());
    });
    start(&mut direct, "e");
    assert_eq!(wait(&mut direct, "e"), 0);
    delete(&mut direct, "e");
    assert_eq!(
        read_all(&out),
        format!("key a b flag  e {}\nto stdout\nto stderr\nend\n", rig.namespace)
    );
    let refused = direct.call::<Empty>("Exec", &{
        let mut request = support::exec_request("a", "f", &support::process_spec(&["true"]));
        request.stdout = "binary://relative".into();
        request
    });
    assert_eq!(refused.unwrap_err().code, Code::InvalidArgument as i32);
    rig.remove("a");
}

// It waits for more than its input: SIGTERM tells it that there will be none, as upstream's does.
#[test]
fn a_logger_that_stays_hears_sigterm() {
    let rig = Rig::new();
    rig.run("a", &["sleep", "1000"]);
    let told = rig.dir.join("told");
    let body = format!(
        "trap 'echo term > {}; exit' TERM; exec 5>&-; while :; do sleep 0.1; done",
        told.display()
    );
    let logger = script(&rig, "logger", &body);
    let mut direct = rig.direct("a");
    add(&mut direct, "e", "true", |request| {
        request.stdout = format!("binary://{}", logger.display())
    });
    start(&mut direct, "e");
    assert_eq!(wait(&mut direct, "e"), 0);
    delete(&mut direct, "e");
    until("the logger has heard it", || told.exists());
    assert_eq!(read_all(&told), "term\n");
    rig.remove("a");
}

// io_uid and io_gid: a process that opens /dev/stdout again as another user. Defence: `pipe` gives
// the pipe its owner.
#[test]
fn scar_62_a_process_of_another_user_may_open_its_stdout_again() {
    let rig = Rig::new();
    rig.run("a", &["sleep", "1000"]);
    let bundle = support::bundle_beside(&rig, |config| {
        config["process"]["args"] = serde_json::json!(["sh", "-c", "echo hello > /proc/self/fd/1"]);
        config["process"]["user"] = serde_json::json!({"uid": 1000, "gid": 1000});
    });
    let options =
        cleat::protocol::options::Options { io_uid: 1000, io_gid: 1000, ..Default::default() };
    let stdout = fifo(&rig.dir, "out");
    let request = api::CreateTaskRequest {
        id: "b".into(),
        bundle: bundle.to_str().unwrap().into(),
        stdout: text(&stdout),
        stderr: "/dev/null".into(),
        options: Some(cleat::protocol::Any::pack(cleat::protocol::options::OPTIONS_URL, &options)),
        ..api::CreateTaskRequest::default()
    };
    let mut direct = rig.direct("a");
    let mut file = reader(&stdout);
    direct.call::<api::PidResponse>("Create", &request).unwrap();
    direct.call::<api::PidResponse>("Start", &process("b", "")).unwrap();
    let waited: api::WaitResponse = direct.call("Wait", &process("b", "")).unwrap();
    assert_eq!(waited.exit_status, 0);
    direct.call::<api::DeleteResponse>("Delete", &process("b", "")).unwrap();
    let mut said = String::new();
    file.read_to_string(&mut said).unwrap();
    assert_eq!(said, "hello\n");
    rig.remove("a");
}

// moby#35407 and the like: paste, and a size after the exit.
#[test]
fn scar_23_a_paste_of_a_mebibyte_arrives_and_a_late_resize_means_nothing() {
    let rig = Rig::new();
    rig.run("a", &["sleep", "1000"]);
    let mut direct = rig.direct("a");
    let (stdin, stdout) = (fifo(&rig.dir, "in"), fifo(&rig.dir, "out"));
    add(&mut direct, "e", "stty raw -echo; echo ready; head -c 1048576 | wc -c", |request| {
        (request.stdin, request.stdout) = (text(&stdin), text(&stdout));
        request.terminal = true;
    });
    let mut file = reader(&stdout);
    start(&mut direct, "e");
    let mut ready = [0; 5];
    file.read_exact(&mut ready).unwrap();
    let mut paste = std::fs::OpenOptions::new().write(true).open(&stdin).unwrap();
    paste.write_all(&vec![b'x'; 1 << 20]).unwrap();
    assert_eq!(wait(&mut direct, "e"), 0);
    let resize =
        api::ResizePtyRequest { id: "a".into(), exec_id: "e".into(), width: 80, height: 25 };
    direct.call::<Empty>("ResizePty", &resize).unwrap();
    drop(paste);
    delete(&mut direct, "e");
    let mut said = String::new();
    file.read_to_string(&mut said).unwrap();
    assert!(said.contains("1048576"), "{said:?}");
    let mode = std::fs::metadata(&stdin).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    rig.remove("a");
}
