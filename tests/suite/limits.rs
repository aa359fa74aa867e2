//! The bounds of SECURITY.md ("What a malicious client can try"): each is reached, what is refused
//! says so, and whatever was there before goes on.

use crate::support::{
    Direct, EventLog, Rig, add, alive, fd_count, process, read_all, start, text, until,
};
use cleat::{
    protocol::{
        Any,
        options::{OPTIONS_URL, Options},
        task as api,
    },
    rpc::{Code, MAX_MESSAGE, Request, request_frame},
};
use prost::Message as _;
use std::{
    io::{ErrorKind, Read as _, Write as _},
    os::unix::net::UnixStream,
    process::Command,
};

/// A shim with container `a`, and an exec in it for whose end a client waits.
struct Busy {
    // Before the rig, which looks for whoever is left.
    events: EventLog,
    direct: Direct,
    wait: u32,
    rig: Rig,
}

impl Busy {
    fn new() -> Self {
        let rig = Rig::new();
        rig.run("a", &["sleep", "1000000"]);
        let mut direct = rig.direct("a");
        let events = rig.events();
        add(&mut direct, "before", "sleep 1000000", |_| {});
        start(&mut direct, "before");
        let wait = direct.send("Wait", &process("a", "before"));
        Self { events, direct, wait, rig }
    }

    /// A connection on which nothing is said.
    fn silent(&self) -> UnixStream {
        let address = self.rig.address("a");
        UnixStream::connect(address.strip_prefix("unix://").unwrap()).unwrap()
    }

    /// While a bound is reached: an exit is told to who waits for it and to containerd.
    fn loses_no_exit(&mut self) {
        let kill =
            api::KillRequest { id: "a".into(), exec_id: "before".into(), signal: 9, all: false };
        let kill = self.direct.send("Kill", &kill);
        let (mut killed, mut waited) = (false, None);
        while !killed || waited.is_none() {
            let (stream, answer) = self.direct.receive();
            match answer {
                Ok(_) if stream == kill => killed = true,
                Ok(body) if stream == self.wait => {
                    waited = Some(api::WaitResponse::decode(body.as_slice()).unwrap().exit_status);
                }
                other => panic!("{stream}: {other:?}"),
            }
        }
        assert_eq!(waited, Some(137));
        self.events.wait_for("exit", 1);
    }

    /// For whoever was there, for a new client, for containerd.
    fn goes_on(mut self) {
        assert_eq!(self.direct.exec_to_end("a", "old", "exit 7"), 7);
        assert_eq!(self.rig.direct("a").exec_to_end("a", "new", "exit 8"), 8);
        self.rig.ctr(["task", "exec", "--exec-id", "ctr", "a", "true"]);
        self.rig.run_in_group("a", "b", &["sleep", "1000000"]);
        self.rig.remove("b");
        self.rig.remove("a");
    }
}

/// How many of them the other side has closed, once all are accepted or closed.
fn closed(busy: &Busy, open: &[UnixStream]) -> usize {
    // Who comes after them is answered after them; it has itself taken the place of one.
    busy.rig.direct("a").state("a", "").unwrap();
    open.iter().filter(|stream| is_closed(stream)).count()
}

/// Whether the other side has hung up, behind whatever it has said.
fn is_closed(mut stream: &UnixStream) -> bool {
    stream.set_nonblocking(true).unwrap();
    loop {
        match stream.read(&mut [0; 4096]) {
            Ok(0) => return true,
            Ok(_) => {}
            Err(e) => return e.kind() != ErrorKind::WouldBlock,
        }
    }
}

#[test]
fn of_more_than_256_connections_the_silent_ones_give_way() {
    let mut busy = Busy::new();
    let open: Vec<UnixStream> = (0..300).map(|_| busy.silent()).collect();
    // Two of the 256 are containerd's and the test's own, one is of whoever counts.
    let gone = closed(&busy, &open);
    assert_eq!(gone, 300 + 2 + 1 - 256);
    assert!(open[..gone].iter().all(is_closed), "the oldest of them go");
    busy.loses_no_exit();
    busy.rig.ctr(["task", "exec", "--exec-id", "meanwhile", "a", "true"]);
    drop(open);
    busy.goes_on();
}

#[test]
fn more_than_256_connections_that_ask_something_are_refused() {
    let mut busy = Busy::new();
    let ask = |stream: &mut UnixStream| {
        let request =
            Request { service: "none".into(), method: "None".into(), ..Request::default() };
        stream.write_all(&request_frame(1, &request)).unwrap();
        stream.read_exact(&mut [0; 10]).is_ok()
    };
    let mut open: Vec<UnixStream> = (0..254).map(|_| busy.silent()).collect();
    assert!(open.iter_mut().all(ask));
    let refused = busy.silent();
    until("it is closed", || is_closed(&refused));
    until("the log says why", || busy.rig.log().contains("connection refused: 256 are open"));
    busy.loses_no_exit();
    busy.rig.ctr(["task", "exec", "--exec-id", "meanwhile", "a", "true"]);
    assert!(open.iter().all(|stream| !is_closed(stream)), "who was there stays");
    open.clear();
    until("there is room again", || busy.rig.direct("a").try_state("a").is_some());
    busy.goes_on();
}

#[test]
fn more_than_4096_calls_on_a_connection_are_refused() {
    let mut busy = Busy::new();
    let mut crowd = busy.rig.direct("a");
    let waits: Vec<u32> = (0..4096).map(|_| crowd.send("Wait", &process("a", ""))).collect();
    let refused = crowd.call::<api::StateResponse>("State", &process("a", "")).unwrap_err();
    assert_eq!(refused.code, Code::ResourceExhausted as i32);
    assert_eq!(refused.message, "4096 calls are unanswered");
    // Another connection has its own.
    busy.loses_no_exit();
    busy.rig.ctr(["task", "exec", "--exec-id", "meanwhile", "a", "true"]);
    // Each of them is answered.
    busy.rig.ctr(["task", "kill", "-s", "9", "a"]);
    let mut answered: Vec<u32> = (0..waits.len())
        .map(|_| {
            let (stream, answer) = crowd.receive();
            assert_eq!(
                api::WaitResponse::decode(answer.unwrap().as_slice()).unwrap().exit_status,
                137
            );
            stream
        })
        .collect();
    answered.sort_unstable();
    assert_eq!(answered, waits);
    crowd.state("a", "").unwrap();
    busy.rig.ctr(["task", "delete", "a"]);
    busy.rig.ctr(["container", "delete", "a"]);
}

#[test]
fn who_reads_nothing_is_cut_off_at_8_mib() {
    let mut busy = Busy::new();
    let shim = busy.rig.shim();
    let mut deaf = busy.silent();
    let payload = process("a", "").encode_to_vec();
    let service = api::SERVICES[1].to_owned();
    let request = Request { service, method: "State".into(), payload, ..Request::default() };
    let mut asked = 0;
    let cut_off = (0..).map(|number| request_frame(2 * number + 1, &request)).find_map(|frame| {
        asked += 1;
        deaf.write_all(&frame).err()
    });
    assert!(matches!(cut_off.unwrap().kind(), ErrorKind::BrokenPipe | ErrorKind::ConnectionReset));
    // What the socket holds, and then 8 MiB: not sooner, and not much later.
    let answer = busy.direct.state("a", "").unwrap().encoded_len();
    let unread = asked * answer;
    assert!((6 << 20..24 << 20).contains(&unread), "{asked} answers of {answer} bytes");
    busy.loses_no_exit();
    drop(deaf);
    until("the memory is given back", || {
        let rollup = read_all(format!("/proc/{shim}/smaps_rollup"));
        let line = rollup.lines().find(|line| line.starts_with("Anonymous:")).unwrap_or_default();
        line.split_whitespace()
            .nth(1)
            .and_then(|kib| kib.parse::<u32>().ok())
            .is_some_and(|kib| kib < 1024)
    });
    busy.goes_on();
}

#[test]
fn more_than_4_mib_in_a_message_are_thrown_away() {
    let mut busy = Busy::new();
    let mut large = busy.rig.direct("a");
    let request = api::ProcessRequest { id: "x".repeat(MAX_MESSAGE), exec_id: String::new() };
    let refused = large.call::<api::StateResponse>("State", &request).unwrap_err();
    assert_eq!(refused.code, Code::ResourceExhausted as i32);
    assert!(
        refused.message.contains("exceed maximum message size of 4194304"),
        "{}",
        refused.message
    );
    large.state("a", "").unwrap();
    busy.loses_no_exit();
    busy.goes_on();
}

#[test]
fn more_than_4096_containers_are_refused() {
    let mut busy = Busy::new();
    // Of each Create the runtime says no, in its turn: until then its container counts.
    let options = Options { binary_name: "/bin/false".into(), ..Options::default() };
    let options = Some(Any { type_url: OPTIONS_URL.into(), value: options.encode_to_vec() });
    let create = |id: &str| {
        let bundle = busy.rig.dir.join("crowd").join(id);
        std::fs::create_dir_all(bundle.join("rootfs")).unwrap();
        std::fs::copy(busy.rig.bundle("a").join("config.json"), bundle.join("config.json"))
            .unwrap();
        let bundle = text(&bundle);
        api::CreateTaskRequest {
            id: id.into(),
            bundle,
            options: options.clone(),
            ..Default::default()
        }
    };
    let crowd: Vec<_> = (0..4095).map(|number| create(&format!("c{number}"))).collect();
    let one_more = create("one-more");
    let mut direct = busy.rig.direct("a");
    // `a` is the first; the shim stands still until all requests are there.
    for request in &crowd {
        direct.send("Create", request);
    }
    let refused = busy.rig.direct("a").call::<api::PidResponse>("Create", &one_more).unwrap_err();
    assert_eq!(refused.code, Code::ResourceExhausted as i32);
    assert!(refused.message.starts_with("more than 4096 containers"), "{}", refused.message);
    busy.loses_no_exit();
    for _ in 0..crowd.len() {
        let refused = direct.receive().1.unwrap_err();
        assert!(refused.message.contains("OCI runtime create failed"), "{}", refused.message);
    }
    std::fs::remove_dir_all(busy.rig.dir.join("crowd")).unwrap();
    busy.goes_on();
}

// The descriptors that are kept for whoever must be killed and deleted, and for a containerd that
// comes back, are no silent client's.
#[test]
fn silent_connections_do_not_take_the_last_descriptors() {
    let mut busy = Busy::new();
    let shim = busy.rig.shim();
    let limit =
        Command::new("prlimit").args(["--nofile=256:", "--pid", &shim.to_string()]).status();
    assert!(limit.unwrap().success());
    let open: Vec<UnixStream> = (0..300).map(|_| busy.silent()).collect();
    // A quarter of the limit.
    assert_eq!(closed(&busy, &open), 300 + 2 + 1 - 64);
    assert!(fd_count(shim) < 128, "{}", fd_count(shim));
    busy.loses_no_exit();
    // Who was there before, and containerd.
    assert_eq!(busy.direct.exec_to_end("a", "meanwhile", "exit 9"), 9);
    busy.rig.ctr(["task", "exec", "--exec-id", "meanwhile", "a", "true"]);
    busy.rig.run_in_group("a", "b", &["sleep", "1000000"]);
    busy.rig.remove("b");
    // And one that comes back.
    drop(busy.events);
    busy.rig.end_containerd(libc::SIGKILL);
    busy.rig.start_containerd();
    assert!(alive(shim));
    assert_eq!(busy.rig.status("a").as_deref(), Some("RUNNING"), "{}", busy.rig.log());
    busy.events = busy.rig.events();
    drop(open);
    busy.goes_on();
}
