//! Input and output in bulk, for long, and through every kind of channel: no byte is lost, nothing
//! waits, nothing stays open.
//!
//! `CLEAT_AWAY_SECONDS`: how long readers are away (4).

use crate::support::{
    self, CLEAT, Direct, IMAGE, Rig, add, delete, exec_request, fd_count, fifo, kill, process,
    process_spec, read_all, reader, script, start, text, until, wait,
};
use cleat::protocol::{
    Any, Empty,
    options::{OPTIONS_URL, Options},
    task as api,
};
use std::{
    fs::{File, OpenOptions},
    io::{Read, Write},
    path::Path,
    process::Stdio,
    time::{Duration, Instant},
};

/// Bytes of which no part looks like another (xorshift); its length fits into no buffer's.
fn noise() -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()[3]
    };
    (0..1_000_003).map(|_| next()).collect()
}

fn writer(path: &Path) -> File {
    OpenOptions::new().write(true).open(path).unwrap()
}

fn close_stdin(direct: &mut Direct, exec: &str) {
    let request = api::CloseIoRequest { id: "a".into(), exec_id: exec.into(), stdin: true };
    direct.call::<Empty>("CloseIO", &request).unwrap();
}

fn read_to(file: &mut File, end: &str) -> String {
    let (mut seen, mut byte) = (Vec::new(), [0]);
    while !seen.ends_with(end.as_bytes()) {
        let n = file.read(&mut byte).unwrap();
        assert_eq!(n, 1, "the end came before {end:?}: {:?}", String::from_utf8_lossy(&seen));
        seen.push(byte[0]);
    }
    String::from_utf8_lossy(&seen).into_owned()
}

/// How long readers are away.
pub fn away() -> Duration {
    let seconds =
        std::env::var("CLEAT_AWAY_SECONDS").ok().and_then(|text| text.parse().ok()).unwrap_or(4);
    Duration::from_secs(seconds)
}

/// A script that writes `lines` lines of 10,000 bytes, each with its number, 100 a second, and
/// leaves in /slowest how long the slowest write took, in hundredths of a second.
pub fn megabyte_a_second(lines: u64) -> String {
    format!(
        "line=$(head -c 9993 /dev/zero | tr '\\0' x); slowest=0; i=100000; read last _ < /proc/uptime
         while [ $i -lt {} ]; do
             read before _ < /proc/uptime; echo $i$line; read after _ < /proc/uptime
             took=$(( ${{after%.*}}${{after#*.}} - ${{before%.*}}${{before#*.}} ))
             [ $took -le $slowest ] || slowest=$took
             i=$((i+1)); usleep 9000
         done; echo $slowest > /slowest; while [ ! -e /leave ]; do sleep 0.1; done",
        100_000 + lines
    )
}

/// What is wrong with the lines of [`megabyte_a_second`], if anything.
pub fn complaint<'a>(output: impl Iterator<Item = &'a str>, lines: u64) -> Option<String> {
    let mut expected = 100_000;
    for line in output {
        let number = line.get(..6).and_then(|text| text.parse::<u64>().ok());
        if number != Some(expected) || line.len() != 9999 || !line.ends_with('x') {
            return Some(format!(
                "line {expected} is {:?} of {} bytes",
                line.get(..20),
                line.len()
            ));
        }
        expected += 1;
    }
    (expected != 100_000 + lines).then(|| format!("{} lines of {lines}", expected - 100_000))
}

#[test]
fn a_gibibyte_through_cat_and_back() {
    const LENGTH: usize = 1 << 30;
    let rig = Rig::new();
    rig.run("a", &["sleep", "1000"]);
    let mut direct = rig.direct("a");
    let (stdin, stdout) = (fifo(&rig.dir, "in"), fifo(&rig.dir, "out"));
    add(&mut direct, "e", "exec cat", |request| {
        (request.stdin, request.stdout) = (text(&stdin), text(&stdout))
    });
    let mut output = reader(&stdout);
    start(&mut direct, "e");
    let writing = std::thread::spawn(move || {
        let (noise, mut input, mut left) = (noise(), writer(&stdin), LENGTH);
        while left > 0 {
            let length = left.min(noise.len());
            input.write_all(&noise[..length]).unwrap();
            left -= length;
        }
    });
    let reading = std::thread::spawn(move || {
        let (noise, mut chunk, mut seen) = (noise(), vec![0; 100_000], 0);
        loop {
            let length = match output.read(&mut chunk).unwrap() {
                0 => return seen,
                length => length,
            };
            let (mut at, mut rest) = (seen % noise.len(), &chunk[..length]);
            while !rest.is_empty() {
                let (now, later) = rest.split_at(rest.len().min(noise.len() - at));
                assert!(*now == noise[at..at + now.len()], "other bytes near {seen}");
                (at, rest) = (0, later);
            }
            seen += length;
        }
    });
    writing.join().unwrap();
    close_stdin(&mut direct, "e");
    assert_eq!(wait(&mut direct, "e"), 0);
    delete(&mut direct, "e");
    assert_eq!(reading.join().unwrap(), LENGTH);
    rig.remove("a");
}

#[test]
fn a_client_that_vanishes_and_comes_back_finds_its_streams() {
    let rig = Rig::new();
    rig.run("a", &["sleep", "1000"]);
    let mut direct = rig.direct("a");
    let (stdin, stdout) = (fifo(&rig.dir, "in"), fifo(&rig.dir, "out"));
    let echo = "while read -r line; do echo \"got $line\"; done; echo the end";
    add(&mut direct, "e", echo, |request| {
        (request.stdin, request.stdout) = (text(&stdin), text(&stdout))
    });
    let mut output = reader(&stdout);
    start(&mut direct, "e");
    for round in 0..20 {
        let mut input = writer(&stdin);
        // It goes in the middle of a line.
        input.write_all(format!("first {round}\nsecond ").as_bytes()).unwrap();
        assert_eq!(read_to(&mut output, "\n"), format!("got first {round}\n"));
        drop((input, output));
        std::thread::sleep(Duration::from_millis(20));
        output = reader(&stdout);
        writer(&stdin).write_all(format!("{round}\n").as_bytes()).unwrap();
        assert_eq!(read_to(&mut output, "\n"), format!("got second {round}\n"));
    }
    close_stdin(&mut direct, "e");
    assert_eq!(read_to(&mut output, "\n"), "the end\n");
    assert_eq!(wait(&mut direct, "e"), 0);
    delete(&mut direct, "e");
    rig.remove("a");
}

#[test]
fn a_reader_that_comes_and_goes_under_load_misses_no_byte() {
    const LAST: u64 = 4_000_000;
    let rig = Rig::new();
    rig.run("a", &["sleep", "1000"]);
    let mut direct = rig.direct("a");
    let stdout = fifo(&rig.dir, "out");
    add(&mut direct, "e", &format!("exec seq 1 {LAST}"), |request| request.stdout = text(&stdout));
    let mut output = reader(&stdout);
    start(&mut direct, "e");
    let reading = std::thread::spawn(move || {
        let (mut all, mut chunk) = (Vec::new(), vec![0; 50_000]);
        loop {
            for _ in 0..50 {
                match output.read(&mut chunk).unwrap() {
                    0 => return String::from_utf8(all).unwrap(),
                    length => all.extend_from_slice(&chunk[..length]),
                }
            }
            // Of the bytes that lie in the fifo none is lost: the shim has it open too.
            drop(output);
            std::thread::sleep(Duration::from_millis(5));
            output = reader(&stdout);
        }
    });
    assert_eq!(wait(&mut direct, "e"), 0);
    // What is left waits for the reader to come back, until Delete.
    let all = reading.join().unwrap();
    delete(&mut direct, "e");
    let mut expected = 1..=LAST;
    assert!(all.lines().all(|line| line.parse().ok() == expected.next()));
    assert_eq!(expected.next(), None);
    rig.remove("a");
}

// containerd #9342, #11511. Defence: `io/copy/spool.rs`.
#[test]
fn scar_16_a_container_that_logs_does_not_feel_that_its_reader_stands_still() {
    let lines = away().as_secs() * 100 + 200;
    let rig = Rig::new();
    let options = rig.runtime_options("options.toml", "Spool = '256Mi'\nSpoolTotal = '1Gi'");
    let options = options.each_ref().map(String::as_str);
    let script = megabyte_a_second(lines);
    let mut client = rig
        .ctr_command([&["run"], options.as_slice(), &[IMAGE, "a", "sh", "-c", &script]].concat())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut output = client.stdout.take().unwrap();
    let reading = std::thread::spawn(move || {
        let mut all = String::new();
        output.read_to_string(&mut all).unwrap();
        all
    });
    until("the container runs", || rig.status("a").as_deref() == Some("RUNNING"));
    std::thread::sleep(Duration::from_millis(500));
    // ctr is the reader; `timeout` is its parent.
    let ctr = support::children(client.id())[0].0;
    support::stop(ctr);
    let root = format!("/proc/{}/root", rig.init("a"));
    std::thread::sleep(away());
    kill(ctr, libc::SIGCONT);
    until("the container has written all", || !read_all(format!("{root}/slowest")).is_empty());
    let slowest: u64 = read_all(format!("{root}/slowest")).trim().parse().unwrap();
    std::fs::write(format!("{root}/leave"), "").unwrap();
    client.wait().unwrap();
    assert_eq!(complaint(reading.join().unwrap().lines(), lines), None);
    assert!(slowest <= 5, "a write took {slowest} hundredths of a second");
    rig.ctr(["container", "delete", "a"]);
}

/// Creates a container `b` in the shim of `a` whose stdout is the fifo `out` and that asks for the
/// fifo itself.
fn direct_container(rig: &Rig, direct: &mut Direct, script: &str, stdout: &str) {
    let bundle = support::bundle_beside(rig, |config| {
        config["process"]["args"] = serde_json::json!(["sh", "-c", script]);
    });
    let request = api::CreateTaskRequest {
        id: "b".into(),
        bundle: text(&bundle),
        stdout: stdout.into(),
        options: Some(options(&Options { spool: "direct".into(), ..Options::default() })),
        ..api::CreateTaskRequest::default()
    };
    direct.call::<api::PidResponse>("Create", &request).unwrap();
    direct.call::<api::PidResponse>("Start", &process("b", "")).unwrap();
}

fn options(options: &Options) -> Any {
    Any::pack(OPTIONS_URL, options)
}

/// Bytes of memory that the spools of a shim take.
fn spooled(shim: u32) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let entries = std::fs::read_dir(format!("/proc/{shim}/fd")).unwrap().flatten();
    let is_spool = |entry: &std::fs::DirEntry| {
        std::fs::read_link(entry.path())
            .is_ok_and(|link| link.to_string_lossy().contains("cleat-spool"))
    };
    entries
        .filter(is_spool)
        .filter_map(|entry| std::fs::metadata(entry.path()).ok())
        .map(|file| file.blocks() * 512)
        .sum()
}

/// Starts a container `b` in the shim of `a`, with this annotation and these options, that writes
/// six mebibytes to each of its outputs, which nobody reads; says how much of it is kept, reads it
/// all, and deletes it.
fn kept_of_a_flood(rig: &Rig, direct: &mut Direct, annotation: &str, of_operator: &Options) -> u64 {
    let bundle = support::bundle_beside(rig, |config| {
        let flood = "head -c 6291456 /dev/zero & head -c 6291456 /dev/zero >&2; wait";
        config["process"]["args"] = serde_json::json!(["sh", "-c", flood]);
        config["annotations"] = serde_json::json!({"io.containerd.cleat.spool": annotation});
    });
    let outputs = ["b-out", "b-err"].map(|name| rig.dir.join(name));
    for output in &outputs {
        let _ = std::fs::remove_file(output);
        fifo(&rig.dir, output.file_name().unwrap().to_str().unwrap());
    }
    let request = api::CreateTaskRequest {
        id: "b".into(),
        bundle: text(&bundle),
        stdout: text(&outputs[0]),
        stderr: text(&outputs[1]),
        options: Some(options(of_operator)),
        ..api::CreateTaskRequest::default()
    };
    direct.call::<api::PidResponse>("Create", &request).unwrap();
    direct.call::<api::PidResponse>("Start", &process("b", "")).unwrap();
    let (shim, mut kept) = (rig.shim(), u64::MAX);
    until("no more is kept", || {
        std::thread::sleep(Duration::from_millis(300));
        let before = std::mem::replace(&mut kept, spooled(shim));
        before == kept
    });
    let reading = outputs.map(|output| {
        let mut output = reader(&output);
        std::thread::spawn(move || {
            let mut all = Vec::new();
            output.read_to_end(&mut all).unwrap();
            all.len()
        })
    });
    assert_eq!(end(direct), 0);
    assert_eq!(reading.map(|reading| reading.join().unwrap()), [6_291_456; 2]);
    assert_eq!(spooled(shim), 0);
    kept
}

// The memory is the shim's, not the pod's: what is kept is the operator's to say. Defence:
// `SpoolPolicy::decide`, `USED`.
#[test]
fn a_pod_cannot_make_the_shim_keep_more_than_the_operator_allows() {
    let rig = Rig::new();
    rig.run("a", &["sleep", "1000"]);
    let mut direct = rig.direct("a");
    let of_operator = |spool: &str, total: &str, annotations: &str| Options {
        spool: spool.into(),
        spool_total: total.into(),
        annotations: annotations.into(),
        ..Options::default()
    };
    let mut kept = |annotation: &str, options: &Options| {
        kept_of_a_flood(&rig, &mut direct, annotation, options)
    };
    let slack = 300 << 10;
    // As it comes, an annotation means nothing.
    assert_eq!(kept("0", &of_operator("", "", "")) >> 20, 11);
    assert!(kept("160Mi", &of_operator("1Mi", "", "")) <= (2 << 20) + slack);
    // Listed, it lowers and does not raise.
    assert!(kept("160Mi", &of_operator("1Mi", "", "spool")) <= (2 << 20) + slack);
    assert_eq!(kept("0", &of_operator("1Mi", "", "spool")), 0);
    // All streams of the shim have one bound.
    let bound = kept("160Mi", &of_operator("64Mi", "3Mi", "spool"));
    assert!((2 << 20..=(3 << 20) + slack).contains(&bound), "{bound}");
    rig.remove("a");
}

fn end(direct: &mut Direct) -> u32 {
    let status = direct.call::<api::WaitResponse>("Wait", &process("b", "")).unwrap().exit_status;
    direct.call::<api::DeleteResponse>("Delete", &process("b", "")).unwrap();
    status
}

fn stdout_of(direct: &mut Direct, exec: &str) -> std::path::PathBuf {
    let pid = direct.state("b", exec).unwrap().pid;
    std::fs::read_link(format!("/proc/{pid}/fd/1")).unwrap()
}

#[test]
fn a_container_may_write_into_the_fifo_itself() {
    const LAST: u64 = 1_000_000;
    let rig = Rig::new();
    rig.run("a", &["sleep", "1000"]);
    let mut direct = rig.direct("a");
    let shim = rig.shim();
    direct.state("a", "").unwrap();
    let open = fd_count(shim);
    let stdout = fifo(&rig.dir, "out");
    direct_container(&rig, &mut direct, &format!("seq 1 {LAST}; exit 7"), &text(&stdout));
    assert_eq!(stdout_of(&mut direct, ""), stdout);
    // No reader is there yet, then one comes and goes in the middle: nothing ends, breaks or is
    // lost.
    let mut all = Vec::new();
    let mut chunk = vec![0; 50_000];
    let mut output = reader(&stdout);
    for _ in 0..5 {
        for _ in 0..10 {
            let length = output.read(&mut chunk).unwrap();
            all.extend_from_slice(&chunk[..length]);
        }
        drop(output);
        std::thread::sleep(Duration::from_millis(20));
        output = reader(&stdout);
    }
    let reading = std::thread::spawn(move || {
        output.read_to_end(&mut all).unwrap();
        String::from_utf8(all).unwrap()
    });
    assert_eq!(end(&mut direct), 7);
    let all = reading.join().unwrap();
    let mut expected = 1..=LAST;
    assert!(all.lines().all(|line| line.parse().ok() == expected.next()));
    assert_eq!(expected.next(), None);
    // What is written when nobody is there outlives the container, until it has been read; then
    // there is an end.
    direct_container(&rig, &mut direct, "echo last words", &text(&stdout));
    assert_eq!(direct.call::<api::WaitResponse>("Wait", &process("b", "")).unwrap().exit_status, 0);
    std::thread::sleep(Duration::from_millis(50));
    let mut said = String::new();
    reader(&stdout).read_to_string(&mut said).unwrap();
    assert_eq!(said, "last words\n");
    end(&mut direct);
    // The kernel says late that a cgroup of version 1 has gone, whose OOM kills are watched.
    until("no descriptor is left", || fd_count(shim) <= open);
    rig.remove("a");
}

#[test]
fn execs_files_and_consoles_of_a_direct_container_go_through_the_shim() {
    let rig = Rig::new();
    rig.run("a", &["sleep", "1000"]);
    let mut direct = rig.direct("a");
    let stdout = fifo(&rig.dir, "out");
    direct_container(&rig, &mut direct, "exec sleep 1000", &text(&stdout));
    let other = fifo(&rig.dir, "other");
    let mut request =
        exec_request("b", "e", &process_spec(&["sh", "-c", "echo said; exec sleep 1000"]));
    request.stdout = text(&other);
    direct.call::<Empty>("Exec", &request).unwrap();
    let mut output = reader(&other);
    direct.call::<api::PidResponse>("Start", &process("b", "e")).unwrap();
    assert_eq!(read_to(&mut output, "\n"), "said\n");
    assert!(stdout_of(&mut direct, "e").to_string_lossy().starts_with("pipe:"));
    support::signal(&mut direct, "b", "", 9).unwrap();
    assert_eq!(end(&mut direct), 137);
    let log = format!("file://{}", rig.dir.join("b.log").display());
    direct_container(&rig, &mut direct, "echo logged; exec sleep 1000", &log);
    assert!(stdout_of(&mut direct, "").to_string_lossy().starts_with("pipe:"));
    until("the line is in the file", || read_all(rig.dir.join("b.log")) == "logged\n");
    support::signal(&mut direct, "b", "", 9).unwrap();
    assert_eq!(end(&mut direct), 137);
    rig.remove("a");
}

#[test]
fn options_from_toml_set_the_spool() {
    let rig = Rig::new();
    let options = rig.dir.join("options.toml");
    let run = |spool: &str| {
        std::fs::write(&options, format!("Spool = '{spool}'\n")).unwrap();
        let flags =
            ["--runtime", CLEAT, "--runtime-config-path", options.to_str().unwrap(), IMAGE, "a"];
        rig.try_ctr([&["run", "-d", "--null-io"], flags.as_slice(), &["sleep", "1000"]].concat())
    };
    let refused = run("1Q");
    assert!(
        String::from_utf8_lossy(&refused.stderr).contains("spool \"1Q\" is not SIZE"),
        "{refused:?}"
    );
    rig.ctr(["container", "rm", "a"]);
    assert!(run("0").status.success());
    let mut direct = rig.direct("a");
    let stdout = fifo(&rig.dir, "out");
    add(&mut direct, "e", "head -c 1000000 /dev/zero; echo > /written", |request| {
        request.stdout = text(&stdout)
    });
    let mut output = reader(&stdout);
    start(&mut direct, "e");
    std::thread::sleep(Duration::from_millis(500));
    // Nothing is kept: the writer waits, as it does with Go.
    let written = format!("/proc/{}/root/written", rig.init("a"));
    assert!(!Path::new(&written).exists());
    let reading =
        std::thread::spawn(move || std::io::copy(&mut output, &mut std::io::sink()).unwrap());
    assert_eq!(wait(&mut direct, "e"), 0);
    delete(&mut direct, "e");
    assert_eq!(reading.join().unwrap(), 1_000_000);
    rig.remove("a");
}

#[test]
fn a_console_passes_every_byte_both_ways() {
    let rig = Rig::new();
    rig.run("a", &["sleep", "1000"]);
    let mut direct = rig.direct("a");
    let (stdin, stdout) = (fifo(&rig.dir, "in"), fifo(&rig.dir, "out"));
    let sent = noise()[..300_000].to_vec();
    let program = format!("stty raw -echo; printf 'ready\\n'; head -c {} | tee /copy", sent.len());
    add(&mut direct, "e", &program, |request| {
        (request.stdin, request.stdout, request.terminal) = (text(&stdin), text(&stdout), true);
    });
    let mut output = reader(&stdout);
    start(&mut direct, "e");
    assert_eq!(read_to(&mut output, "ready\n"), "ready\n");
    let writing = std::thread::spawn({
        let sent = sent.clone();
        // The input stays open: an end of input is a ^D on a terminal.
        move || {
            let mut input = writer(&stdin);
            input.write_all(&sent).unwrap();
            input
        }
    });
    let mut seen = vec![0; sent.len()];
    output.read_exact(&mut seen).unwrap();
    drop(writing.join().unwrap());
    assert_eq!(wait(&mut direct, "e"), 0);
    delete(&mut direct, "e");
    assert!(seen == sent && output.read(&mut [0]).unwrap() == 0);
    let copy = std::fs::read(format!("/proc/{}/root/copy", rig.init("a"))).unwrap();
    assert!(copy == sent);
    rig.remove("a");
}

#[test]
fn a_shell_on_a_console_controls_its_jobs() {
    let rig = Rig::new();
    rig.run("a", &["sleep", "1000"]);
    let mut direct = rig.direct("a");
    let (stdin, stdout) = (fifo(&rig.dir, "in"), fifo(&rig.dir, "out"));
    let mut spec = process_spec(&["sh", "-i"]);
    spec["terminal"] = true.into();
    let mut request = exec_request("a", "e", &spec);
    (request.stdin, request.stdout, request.terminal) = (text(&stdin), text(&stdout), true);
    direct.call::<Empty>("Exec", &request).unwrap();
    let mut output = reader(&stdout);
    start(&mut direct, "e");
    let mut input = writer(&stdin);
    // What is echoed does not contain what is waited for.
    let mut say = |bytes: &[u8], answer: &str| {
        input.write_all(bytes).unwrap();
        read_to(&mut output, answer)
    };
    say(b"stty -echo; echo rea''dy\n", "ready\r\n");
    say(b"echo be''gins; sleep 1000\n", "begins\r\n");
    std::thread::sleep(Duration::from_millis(200));
    say(b"\x03echo status $?\n", "status 130\r\n");
    say(b"echo be''gins; sleep 1000\n", "begins\r\n");
    std::thread::sleep(Duration::from_millis(200));
    say(b"\x1a", "Stopped");
    say(b"kill %1; fg; echo status $?\n", "status 143\r\n");
    // ^D ends it.
    say(b"trap 'echo by''e' EXIT\n\x04", "bye\r\n");
    assert_eq!(wait(&mut direct, "e"), 0);
    delete(&mut direct, "e");
    rig.remove("a");
}

#[test]
fn a_console_may_have_a_logger() {
    let rig = Rig::new();
    rig.run("a", &["sleep", "1000"]);
    let logged = rig.dir.join("logged");
    let logger =
        script(&rig, "logger", &format!("exec 5>&-; exec cat <&3 >> {}", logged.display()));
    let mut direct = rig.direct("a");
    add(&mut direct, "e", "tty; stty size; echo hello", |request| {
        (request.stdout, request.terminal) = (format!("binary://{}", logger.display()), true);
    });
    let size = api::ResizePtyRequest { id: "a".into(), exec_id: "e".into(), width: 90, height: 30 };
    direct.call::<Empty>("ResizePty", &size).unwrap();
    start(&mut direct, "e");
    assert_eq!(wait(&mut direct, "e"), 0);
    delete(&mut direct, "e");
    until("all is logged", || read_all(&logged).ends_with("hello\r\n"));
    let text = read_all(&logged);
    assert!(text.starts_with("/dev/pts/0\r\n"), "{text:?}");
    rig.remove("a");
}

#[test]
fn the_log_of_a_container_is_rotated_by_rename_and_by_truncation() {
    let rig = Rig::new();
    let (log, aside) = (rig.dir.join("logs/a.log"), rig.dir.join("logs/a.log.1"));
    std::fs::create_dir(rig.dir.join("logs")).unwrap();
    let uri = format!("file://{}", log.display());
    let count = "i=0; while :; do i=$((i+1)); while [ -e /pause ]; do usleep 10000; done; echo $i; usleep 3000; done";
    rig.ctr(["run", "-d", "--runtime", CLEAT, "--log-uri", &uri, IMAGE, "a", "sh", "-c", count]);
    let pause = format!("/proc/{}/root/pause", rig.init("a"));
    let mut all = String::new();
    for _ in 0..3 {
        until("it has written", || read_all(&log).lines().count() > 20);
        std::fs::rename(&log, &aside).unwrap();
        until("a new file is made", || read_all(&log).lines().count() > 5);
        all += &read_all(&aside);
    }
    // logrotate's copytruncate loses what is written in between: so nothing is.
    std::fs::write(&pause, "").unwrap();
    let mut size = u64::MAX;
    until("it is quiet", || {
        std::thread::sleep(Duration::from_millis(100));
        std::mem::replace(&mut size, std::fs::metadata(&log).unwrap().len()) == size
    });
    std::fs::copy(&log, &aside).unwrap();
    OpenOptions::new().write(true).open(&log).unwrap().set_len(0).unwrap();
    std::fs::remove_file(&pause).unwrap();
    all += &read_all(&aside);
    until("the file begins anew", || read_all(&log).lines().count() > 5);
    rig.ctr(["task", "kill", "-s", "9", "a"]);
    until("the task stops", || rig.status("a").as_deref() == Some("STOPPED"));
    rig.ctr(["task", "delete", "a"]);
    all += &read_all(&log);
    let numbers: Vec<u64> =
        all.lines().map(|line| line.parse().expect("no hole in the file")).collect();
    assert!(numbers.iter().copied().eq(1..=numbers.len() as u64), "no line is missing or twice");
    rig.ctr(["container", "delete", "a"]);
}

#[test]
fn a_thousand_execs_of_every_kind_of_channel_leave_no_descriptor() {
    let rig = Rig::new();
    rig.run("a", &["sleep", "1000"]);
    let mut direct = rig.direct("a");
    let logger = script(&rig, "logger", "exec 5>&-; exec cat <&3 > /dev/null");
    let (logger, log) =
        (format!("binary://{}", logger.display()), format!("file://{}/log", rig.dir.display()));
    let shim = rig.shim();
    let mut round = |number: usize| {
        let exec = format!("e{number}");
        let mut channels = Vec::new();
        let mut channel = |name: &str| {
            let path = fifo(&rig.dir, &format!("{exec}-{name}"));
            channels.push(path.clone());
            text(&path)
        };
        let (kind, mut request) =
            (number % 5, exec_request("a", &exec, &process_spec(&["echo", "hello"])));
        match kind {
            0 => {}
            1 => {
                (request.stdin, request.stdout, request.stderr) =
                    (channel("in"), channel("out"), channel("err"));
            }
            2 => {
                (request.stdin, request.stdout, request.terminal) =
                    (channel("in"), channel("out"), true);
            }
            3 => request.stdout.clone_from(&log),
            _ => request.stdout.clone_from(&logger),
        }
        direct.call::<Empty>("Exec", &request).unwrap();
        let mut outputs: Vec<File> = channels.iter().map(|path| reader(path)).collect();
        start(&mut direct, &exec);
        assert_eq!(wait(&mut direct, &exec), 0);
        if let Some(stdout) = outputs.get_mut(1) {
            assert_eq!(read_to(stdout, "\n").trim_end(), "hello");
        }
        delete(&mut direct, &exec);
        channels.iter().for_each(|path| std::fs::remove_file(path).unwrap());
    };
    (0..10).for_each(&mut round);
    let before = fd_count(shim);
    (10..1010).for_each(&mut round);
    until("all is closed", || fd_count(shim) == before);
    assert_eq!(direct.exec_to_end("a", "last", "exit 7"), 7);
    rig.remove("a");
}

#[test]
fn many_consoles_and_outputs_at_once_end_whole() {
    let rig = Rig::new();
    rig.run("a", &["sleep", "1000"]);
    let mut direct = rig.direct("a");
    let begun = Instant::now();
    let mut readings = Vec::new();
    for number in 0..24 {
        let (exec, stdout) = (format!("e{number}"), fifo(&rig.dir, &format!("out{number}")));
        add(&mut direct, &exec, "stty -opost 2>/dev/null; seq 1 30000", |request| {
            (request.stdout, request.terminal) = (text(&stdout), number % 2 == 0);
        });
        let mut file = reader(&stdout);
        start(&mut direct, &exec);
        readings.push(std::thread::spawn(move || {
            let mut all = String::new();
            file.read_to_string(&mut all).unwrap();
            all
        }));
    }
    for (number, reading) in readings.into_iter().enumerate() {
        let exec = format!("e{number}");
        assert_eq!(wait(&mut direct, &exec), 0);
        direct.call::<api::DeleteResponse>("Delete", &process("a", &exec)).unwrap();
        let all = reading.join().unwrap();
        assert!(
            all.lines().map(str::parse).eq((1..=30_000).map(Ok::<i32, _>)),
            "{exec}: {} bytes",
            all.len()
        );
    }
    assert!(begun.elapsed() < support::LONG);
    rig.remove("a");
}
