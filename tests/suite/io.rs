//! stdin, stdout, stderr and consoles: every byte, and the end.

use crate::support::{self, CLEAT, Direct, Rig, Terminal, fifo, read_all, reader, text};
use cleat::protocol::{Empty, task as api};
use std::{
    fs::OpenOptions,
    io::{Read, Write},
    path::Path,
    process::Stdio,
};

fn process(exec: &str) -> api::ProcessRequest {
    api::ProcessRequest { id: "a".into(), exec_id: exec.into() }
}

fn pattern(length: usize) -> Vec<u8> {
    (0..=250).cycle().take(length).collect()
}

#[test]
fn stdin_of_an_exec_reaches_its_end() {
    let rig = Rig::new();
    rig.run("a", &["sleep", "1000"]);
    // Not 0 bytes: ctr forgets to say CloseIO if its stdin ends before its Exec is answered.
    for (i, size) in [1, 4096, 65536, 65537, 5 << 20].into_iter().enumerate() {
        let exec = format!("e{i}");
        let mut command = rig.ctr_command(["task", "exec", "--exec-id", &exec, "a", "cat"]);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut stdin = child.stdin.take().unwrap();
        let sent = pattern(size);
        let writer = std::thread::spawn({
            let sent = sent.clone();
            move || stdin.write_all(&sent).unwrap()
        });
        let output = child.wait_with_output().unwrap();
        writer.join().unwrap();
        assert!(output.status.success(), "{size} bytes");
        assert!(output.stdout == sent, "{size} bytes: got {}", output.stdout.len());
    }
    rig.remove("a");
}

#[test]
fn stdin_of_an_init_reaches_its_end() {
    let rig = Rig::new();
    let mut command = rig.foreground(&["--runtime", CLEAT], "a", &["sh", "-c", "cat | wc -c"]);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let writer = std::thread::spawn(move || {
        // Not before ctr is ready to say CloseIO.
        std::thread::sleep(std::time::Duration::from_secs(1));
        stdin.write_all(&pattern(1 << 20)).unwrap();
    });
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), (1 << 20).to_string());
}

/// Adds an exec of `cat` with fifos for stdin and stdout.
fn add_cat(rig: &Rig, direct: &mut Direct, exec: &str) -> (std::path::PathBuf, std::fs::File) {
    let stdin = fifo(&rig.dir, &format!("{exec}-in"));
    let stdout = fifo(&rig.dir, &format!("{exec}-out"));
    let mut request = support::exec_request("a", exec, &support::process_spec(&["cat"]));
    (request.stdin, request.stdout, request.stderr) =
        (text(&stdin), text(&stdout), "/dev/null".into());
    direct.call::<Empty>("Exec", &request).unwrap();
    (stdin, reader(&stdout))
}

// containerd #2439, nerdctl #5042. Defence: `Stdin::is_closed` remembers a CloseIO that came early.
#[test]
fn scar_22_cat_ends_after_close_io_in_every_order() {
    #[derive(Clone, Copy, Debug, PartialEq)]
    enum Step {
        Start,
        Data,
        CloseIo,
    }
    use Step::{CloseIo, Data, Start};
    let rig = Rig::new();
    rig.run("a", &["sleep", "1000"]);
    let mut direct = rig.direct("a");
    let orders = [
        [Start, Data, CloseIo],
        [Start, CloseIo, Data],
        [CloseIo, Start, Data],
        [CloseIo, Data, Start],
        [Data, CloseIo, Start],
        [Data, Start, CloseIo],
    ];
    for (i, order) in orders.into_iter().enumerate() {
        let exec = format!("e{i}");
        let (stdin, mut stdout) = add_cat(&rig, &mut direct, &exec);
        let mut writer = None;
        for step in order {
            match step {
                Start => {
                    direct.call::<api::PidResponse>("Start", &process(&exec)).unwrap();
                }
                CloseIo => {
                    let request =
                        api::CloseIoRequest { id: "a".into(), exec_id: exec.clone(), stdin: true };
                    direct.call::<Empty>("CloseIO", &request).unwrap();
                }
                // As a client does it: the open waits for us.
                Data => {
                    let path = stdin.clone();
                    let open = move || {
                        let mut file = OpenOptions::new().write(true).open(path).unwrap();
                        file.write_all(b"what was said").unwrap();
                    };
                    writer = Some(std::thread::spawn(open));
                    std::thread::sleep(std::time::Duration::from_millis(20));
                }
            }
        }
        writer.unwrap().join().unwrap();
        let waited: api::WaitResponse = direct.call("Wait", &process(&exec)).unwrap();
        assert_eq!(waited.exit_status, 0);
        direct.call::<api::DeleteResponse>("Delete", &process(&exec)).unwrap();
        let mut said = String::new();
        stdout.read_to_string(&mut said).unwrap();
        assert_eq!(said, "what was said", "{order:?}");
    }
    rig.remove("a");
}

#[test]
fn the_last_bytes_arrive_before_delete_returns() {
    let rig = Rig::new();
    rig.run("a", &["sleep", "1000"]);
    let mut direct = rig.direct("a");
    for (number, size) in [1usize, 65_536, 65_537, 3_000_000, 3_000_001].into_iter().enumerate() {
        let words = ["head", "-c", &size.to_string(), "/dev/zero"];
        let stdout = fifo(&rig.dir, &format!("out{number}"));
        let exec = format!("e{number}");
        let mut request = support::exec_request("a", &exec, &support::process_spec(&words));
        (request.stdout, request.stderr) = (text(&stdout), "/dev/null".into());
        direct.call::<Empty>("Exec", &request).unwrap();
        assert_eq!(bytes_until_deleted(&mut direct, &stdout, &support::process("a", &exec)), size);

        let bundle = support::bundle_beside(&rig, |config| {
            config["process"]["args"] = serde_json::json!(words);
        });
        let stdout = fifo(&rig.dir, &format!("out-of-init{number}"));
        let request = api::CreateTaskRequest {
            id: "b".into(),
            bundle: text(&bundle),
            stdout: text(&stdout),
            stderr: "/dev/null".into(),
            ..api::CreateTaskRequest::default()
        };
        direct.call::<api::PidResponse>("Create", &request).unwrap();
        assert_eq!(bytes_until_deleted(&mut direct, &stdout, &support::process("b", "")), size);
    }
    rig.remove("a");
}

/// Starts a process, waits for its end and deletes it: the bytes that came out of its fifo.
fn bytes_until_deleted(direct: &mut Direct, stdout: &Path, process: &api::ProcessRequest) -> usize {
    let mut file = reader(stdout);
    let mut all = Vec::new();
    std::thread::scope(|scope| {
        direct.call::<api::PidResponse>("Start", process).unwrap();
        let reading = scope.spawn(|| file.read_to_end(&mut all).unwrap());
        direct.call::<api::WaitResponse>("Wait", process).unwrap();
        direct.call::<api::DeleteResponse>("Delete", process).unwrap();
        reading.join().unwrap()
    })
}

// moby#35407, kata #6248. Defence: `ProcessIo::size`, `with_console_size`.
#[test]
fn scar_23_a_console_has_the_size_that_was_set_before_the_start() {
    let rig = Rig::new();
    rig.run("a", &["sleep", "1000"]);
    let mut direct = rig.direct("a");
    let stdout = fifo(&rig.dir, "out");
    let stdin = fifo(&rig.dir, "in");
    // youki ignores consoleSize, so there the size comes when the program runs already.
    let wait = if support::oci_runtime() == "youki" { "sleep 0.5; " } else { "" };
    let script = format!("{wait}stty size; read x; stty size; echo got $x");
    let mut spec = support::process_spec(&["sh", "-c", &script]);
    spec["terminal"] = true.into();
    let mut request = support::exec_request("a", "e", &spec);
    (request.stdin, request.stdout, request.terminal) = (text(&stdin), text(&stdout), true);
    direct.call::<Empty>("Exec", &request).unwrap();
    let mut output = reader(&stdout);
    let resize = |width, height| api::ResizePtyRequest {
        id: "a".into(),
        exec_id: "e".into(),
        width,
        height,
    };
    direct.call::<Empty>("ResizePty", &resize(101, 37)).unwrap();
    direct.call::<api::PidResponse>("Start", &process("e")).unwrap();
    let mut seen = String::new();
    let mut read_until = |text: &str| {
        let mut byte = [0];
        while !seen.contains(text) {
            assert_eq!(output.read(&mut byte).unwrap(), 1, "{seen:?}");
            seen.push(byte[0].into());
        }
    };
    read_until("37 101\r\n");
    direct.call::<Empty>("ResizePty", &resize(80, 24)).unwrap();
    let mut input = OpenOptions::new().write(true).open(&stdin).unwrap();
    input.write_all(b"hello\n").unwrap();
    read_until("24 80\r\n");
    read_until("got hello\r\n");
    direct.call::<api::WaitResponse>("Wait", &process("e")).unwrap();
    // After the exit it means nothing, and is no error.
    direct.call::<Empty>("ResizePty", &resize(10, 10)).unwrap();
    direct.call::<api::DeleteResponse>("Delete", &process("e")).unwrap();
    let pty = |pid: u32| {
        std::fs::read_dir(format!("/proc/{pid}/fd"))
            .unwrap()
            .flatten()
            .filter_map(|e| std::fs::read_link(e.path()).ok())
            .filter(|target| target.to_string_lossy().contains("ptmx"))
            .count()
    };
    assert_eq!(pty(rig.shim()), 0);
    rig.remove("a");
}

#[test]
fn a_console_of_an_init_ends_with_it() {
    let rig = Rig::new();
    let script = "tty; echo bye; read go; exit 5";
    let mut terminal =
        Terminal::spawn(rig.foreground(&["-t", "--runtime", CLEAT], "a", &["sh", "-c", script]));
    terminal.read_until("bye");
    terminal.write(b"\n");
    let (text, status) = terminal.end();
    assert!(text.contains("/dev/pts/0") && text.contains("bye"), "{text}");
    assert_eq!(status.code(), Some(5));
}

#[test]
fn a_file_takes_both_outputs() {
    let rig = Rig::new();
    let log = rig.dir.join("new/dir/output.log");
    let uri = format!("file://{}", log.display());
    rig.run_with(&["--runtime", CLEAT], "z", &["sleep", "1000"]);
    let mut direct = rig.direct("z");
    for i in 0..2 {
        let spec = support::process_spec(&["sh", "-c", "echo out; echo err >&2"]);
        let mut request = support::exec_request("z", &format!("e{i}"), &spec);
        request.stdout = uri.clone();
        direct.call::<Empty>("Exec", &request).unwrap();
        let process = api::ProcessRequest { id: "z".into(), exec_id: format!("e{i}") };
        direct.call::<api::PidResponse>("Start", &process).unwrap();
        direct.call::<api::WaitResponse>("Wait", &process).unwrap();
        direct.call::<api::DeleteResponse>("Delete", &process).unwrap();
    }
    assert_eq!(read_all(&log).matches("out\n").count(), 2);
    assert_eq!(read_all(&log).matches("err\n").count(), 2);
    let mut request = support::exec_request("z", "odd", &support::process_spec(&["true"]));
    request.stdout = "gopher://x".into();
    let refused = direct.call::<Empty>("Exec", &request).unwrap_err();
    assert!(refused.message.contains("unknown STDIO scheme gopher"), "{}", refused.message);
    rig.remove("z");
}

// rust-extensions #100, #154. Defence: `ProcessIo::open_sink` opens both directions.
#[test]
fn scar_19_a_reader_that_goes_away_neither_ends_nor_harms_the_writer() {
    let rig = Rig::new();
    rig.run("a", &["sleep", "1000"]);
    let mut direct = rig.direct("a");
    let stdout = fifo(&rig.dir, "out");
    let script = "trap 'echo p >> /pipe' PIPE; i=0; while [ $i -lt 400 ]; do echo line $i; i=$((i+1)); done; echo done > /done";
    let mut request =
        support::exec_request("a", "e", &support::process_spec(&["sh", "-c", script]));
    (request.stdout, request.stderr) = (text(&stdout), "/dev/null".into());
    direct.call::<Empty>("Exec", &request).unwrap();
    let mut first = reader(&stdout);
    direct.call::<api::PidResponse>("Start", &process("e")).unwrap();
    // All of it fits into one page: a pipe may be that small (fs.pipe-user-pages-soft).
    let mut half = vec![0; 1000];
    first.read_exact(&mut half).unwrap();
    drop(first);
    let root = format!("/proc/{}/root", rig.init("a"));
    let mut second = reader(&stdout);
    let waited: api::WaitResponse = direct.call("Wait", &process("e")).unwrap();
    assert_eq!(waited.exit_status, 0);
    assert_eq!(read_all(format!("{root}/done")), "done\n");
    assert_eq!(read_all(format!("{root}/pipe")), "");
    direct.call::<api::DeleteResponse>("Delete", &process("e")).unwrap();
    let mut rest = Vec::new();
    second.read_to_end(&mut rest).unwrap();
    half.extend(rest);
    let all: String = (0..400).map(|i| format!("line {i}\n")).collect();
    let seen = String::from_utf8(half).unwrap();
    let same = seen.bytes().zip(all.bytes()).take_while(|(a, b)| a == b).count();
    assert!(seen == all, "{} of {} bytes, the first {same} as sent", seen.len(), all.len());
    rig.remove("a");
}

// moby#29700, containerd #2823. Defence: `DRAIN_LIMIT`.
#[test]
fn scar_21_a_grandchild_that_keeps_stdout_open_delays_only_its_own_delete() {
    let rig = Rig::new();
    rig.run("a", &["sleep", "1000"]);
    let mut direct = rig.direct("a");
    let stdout = fifo(&rig.dir, "out");
    let mut request = support::exec_request(
        "a",
        "e",
        &support::process_spec(&["sh", "-c", "sleep 1000 & echo ok"]),
    );
    (request.stdout, request.stderr) = (text(&stdout), "/dev/null".into());
    direct.call::<Empty>("Exec", &request).unwrap();
    let _reader = reader(&stdout);
    direct.call::<api::PidResponse>("Start", &process("e")).unwrap();
    direct.call::<api::WaitResponse>("Wait", &process("e")).unwrap();
    let slow = direct.send("Delete", &process("e"));
    let mut other = rig.direct("a");
    assert_eq!(other.exec_to_end("a", "f", "exit 3"), 3);
    // The other exec came and went while this Delete was waiting.
    let (id, answer) = direct.receive();
    assert_eq!(id, slow);
    answer.unwrap();
    rig.remove("a");
}
