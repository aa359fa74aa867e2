//! A container that attacks what enters it. A spy with CAP_SYS_PTRACE and CAP_DAC_READ_SEARCH looks
//! at, follows, traces, stops, kills and feeds each process that appears beside it, while execs
//! come, native and by runc: nothing of the host may be readable, no exec may run outside of the
//! container's cgroups, none twice, and each call is answered.
//!
//! The spy is this very test binary, run inside the container ([`attack`]). `CLEAT_HOSTILE_EXECS`:
//! how many execs it sees (the long form: 10000).

use crate::support::{
    CLEAT, Direct, GROUP, Rig, all_pids, children, cmdline, exec_request, kill, process_spec,
    read_all, text, until,
};
use cleat::protocol::{Empty, task as api};
use serde_json::json;
use std::{
    collections::{BTreeSet, HashSet},
    fs::{self, File, OpenOptions},
    io::{Read, Seek, SeekFrom, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    process::{Child, Command},
    time::Duration,
};

const NATIVE: &str = "io.containerd.cleat.native-exec=true";
/// What the spy has, and each exec.
const CAPABILITIES: [&str; 2] = ["CAP_SYS_PTRACE", "CAP_DAC_READ_SEARCH"];
const CAPABILITY_BITS: u64 = 1 << 19 | 1 << 2;
/// A word in the environment of containerd, and so of the shim.
const MARK: &str = "cleat-host-mark-7c1d";
/// A word in a file of the host that only root may read.
const SECRET: &str = "cleat-host-secret-91fe";

fn execs() -> usize {
    std::env::var("CLEAT_HOSTILE_EXECS").ok().and_then(|text| text.parse().ok()).unwrap_or(100)
}

// ---- The spy, inside the container
// ------------------------------------------------------------------------------------

/// Not a test: what the spy runs.
#[test]
#[ignore = "the spy of the others"]
fn attack() {
    let Ok(mode) = std::env::var("CLEAT_ATTACK") else { return };
    let secret = std::env::var("CLEAT_ATTACK_SECRET").unwrap();
    let mut spy = Spy {
        mode,
        secret: secret.trim_start_matches('/').to_owned(),
        namespaces: namespaces(std::process::id()),
        noted: Vec::new(),
        told: HashSet::new(),
        held: Vec::new(),
        out: OpenOptions::new().append(true).create(true).open("/findings").unwrap(),
    };
    let (own, mut known) = (std::process::id(), BTreeSet::new());
    known.extend(all_pids());
    spy.tell("ready");
    while !Path::new("/stop").exists() {
        match spy.mode.as_str() {
            "crowd" => crowd(),
            "greed" => greed(),
            _ => {}
        }
        let now: BTreeSet<u32> = all_pids().into_iter().collect();
        for pid in now.difference(&known).filter(|pid| **pid != own) {
            spy.attack(*pid);
        }
        known = now;
    }
}

/// As many threads as there may be, for a moment.
fn crowd() {
    let leave = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let spawn = || {
        let leave = std::sync::Arc::clone(&leave);
        std::thread::Builder::new().spawn(move || {
            while !leave.load(std::sync::atomic::Ordering::Relaxed) {
                std::thread::park_timeout(Duration::from_millis(5));
            }
        })
    };
    let threads: Vec<_> = std::iter::from_fn(|| spawn().ok()).collect();
    std::thread::sleep(Duration::from_millis(10));
    leave.store(true, std::sync::atomic::Ordering::Relaxed);
    threads.into_iter().for_each(|thread| thread.join().unwrap());
}

/// As much memory as there may be, for a moment. It may cost the spy its life.
fn greed() {
    let mut taken = vec![1_u8; GREED];
    std::hint::black_box(&mut taken);
    std::thread::sleep(Duration::from_millis(5));
}

/// A little less than the container may have.
const GREED: usize = 26 << 20;

/// linux/sched.h
const PF_EXITING: u64 = 0x4;

/// proc_pid_stat(5)
fn flags(pid: u32) -> Option<u64> {
    let stat = read_all(format!("/proc/{pid}/stat"));
    stat.rsplit_once(')')?.1.split_whitespace().nth(6)?.parse().ok()
}

struct Spy {
    mode: String,
    secret: String,
    namespaces: Vec<Option<PathBuf>>,
    /// Of this round.
    noted: Vec<String>,
    told: HashSet<String>,
    /// What it has opened and does not let go.
    held: Vec<File>,
    out: File,
}

fn namespaces(pid: u32) -> Vec<Option<PathBuf>> {
    let kinds = ["mnt", "pid", "net", "ipc", "uts", "cgroup", "user", "time"];
    kinds.iter().map(|kind| fs::read_link(format!("/proc/{pid}/ns/{kind}")).ok()).collect()
}

impl Spy {
    fn note(&mut self, finding: String) {
        self.noted.push(finding);
    }

    fn tell(&mut self, finding: &str) {
        if self.told.insert(finding.to_owned()) {
            writeln!(self.out, "{finding}").unwrap();
        }
    }

    /// From its birth until it is the program or has gone.
    fn attack(&mut self, pid: u32) {
        match self.mode.as_str() {
            "kill" => return kill(pid, libc::SIGKILL),
            "stop" => {
                kill(pid, libc::SIGSTOP);
                std::thread::sleep(Duration::from_millis(5));
                return kill(pid, libc::SIGCONT);
            }
            _ => {}
        }
        let exe = || fs::read_link(format!("/proc/{pid}/exe")).ok().map(|exe| text(&exe));
        for round in 0..1000 {
            let Some(before) = exe().filter(|exe| !exe.ends_with("busybox")) else { return };
            self.note(format!("exe {before}"));
            match self.mode.as_str() {
                // Held where it is, seized, looked at, let go.
                "seize" => {
                    kill(pid, libc::SIGSTOP);
                    drop(cleat::sys::seccomp::filters_of(pid));
                }
                "forge" => self.forge(pid),
                _ => {}
            }
            self.look(pid);
            if round == 0 {
                self.look_into_memory(pid);
            }
            if self.mode == "seize" {
                kill(pid, libc::SIGCONT);
            }
            // Of a program, or of one who is dying, it means nothing.
            let is_dying = flags(pid).is_none_or(|flags| flags & PF_EXITING != 0);
            let noted = std::mem::take(&mut self.noted);
            if !is_dying && exe().as_ref() == Some(&before) {
                noted.iter().for_each(|finding| self.tell(finding));
            }
        }
    }

    fn look(&mut self, pid: u32) {
        for number in 0..24 {
            let path = format!("/proc/{pid}/fd/{number}");
            let Ok(target) = fs::read_link(&path) else { continue };
            let target = target.to_string_lossy().into_owned();
            self.note(format!("fd {}", target.split(":[").next().unwrap()));
            self.follow(&path);
        }
        for name in ["cwd", "root"] {
            self.follow(&format!("/proc/{pid}/{name}"));
        }
        let status = read_all(format!("/proc/{pid}/status"));
        let mask = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name))?;
            u64::from_str_radix(line.trim(), 16).ok()
        };
        for set in ["CapEff:", "CapPrm:", "CapInh:", "CapBnd:", "CapAmb:"] {
            match mask(set) {
                Some(bits) if bits & !CAPABILITY_BITS != 0 => {
                    self.note(format!("capabilities {set} {bits:x}"))
                }
                _ => {}
            }
        }
        let cgroup = read_all(format!("/proc/{pid}/cgroup"));
        // Ours anew: a hierarchy may have been mounted meanwhile.
        if !cgroup.is_empty() && cgroup != read_all("/proc/self/cgroup") {
            self.note(format!("outside {}", cgroup.replace('\n', " ")));
        }
        if self
            .namespaces
            .iter()
            .zip(namespaces(pid))
            .any(|(own, theirs)| theirs.is_some() && *own != theirs)
        {
            self.note("another namespace".to_owned());
        }
        if read_all(format!("/proc/{pid}/environ")).contains(MARK) {
            self.note("environment of the host".to_owned());
        }
    }

    /// Outwards, as far as it goes.
    fn follow(&mut self, from: &str) {
        let up = "../".repeat(24);
        for path in [format!("{from}/{}", self.secret), format!("{from}/{up}{}", self.secret)] {
            if fs::read_to_string(path).is_ok_and(|text| text.contains(SECRET)) {
                self.tell(&format!(
                    "SECRET by {}",
                    from.split('/').skip(3).collect::<Vec<_>>().join("/")
                ));
            }
        }
    }

    fn look_into_memory(&mut self, pid: u32) {
        let maps = read_all(format!("/proc/{pid}/maps"));
        let Ok(mut memory) = File::open(format!("/proc/{pid}/mem")) else { return };
        let host = format!("/{}", Path::new(&self.secret).parent().unwrap().display());
        for line in maps.lines() {
            let words: Vec<&str> = line.split_whitespace().collect();
            if let Some(path) = words.get(5) {
                self.note(format!("map {path}"));
            }
            let Some((from, to)) = words[0].split_once('-') else { continue };
            let number = |text: &str| u64::from_str_radix(text, 16).unwrap();
            let length = (number(to) - number(from)).min(4 << 20);
            if !words[1].starts_with("rw") || memory.seek(SeekFrom::Start(number(from))).is_err() {
                continue;
            }
            let mut bytes = Vec::new();
            let _ = (&mut memory).take(length).read_to_end(&mut bytes);
            let has =
                |word: &str| bytes.windows(word.len()).any(|window| window == word.as_bytes());
            if has(MARK) || has(&host) {
                self.note("memory has words of the host".to_owned());
            }
        }
    }

    /// Opens its pipes, takes what is in them, says what it should say, and keeps them.
    fn forge(&mut self, pid: u32) {
        for number in 3..8 {
            let path = format!("/proc/{pid}/fd/{number}");
            let open =
                |options: &mut OpenOptions| options.custom_flags(libc::O_NONBLOCK).open(&path);
            if let Ok(mut pipe) = open(OpenOptions::new().read(true)) {
                let _ = pipe.read(&mut [0; 64]);
                self.held.push(pipe);
            }
            if let Ok(mut pipe) = open(OpenOptions::new().write(true)) {
                // What older versions took for the pid of the exec.
                let _ = pipe.write(b"P1\n");
                self.held.push(pipe);
            }
        }
        if self.held.len() > 64 {
            self.held.clear();
        }
    }
}

// ---- The host
// -------------------------------------------------------------------------------------------------

/// A container, a spy in it, and all that is known of both.
struct Siege {
    rig: Rig,
    direct: Direct,
    shim: u32,
    init: u32,
    number: usize,
}

fn spec(arguments: &[&str]) -> serde_json::Value {
    let mut spec = process_spec(arguments);
    spec["capabilities"] =
        json!({"bounding": CAPABILITIES, "effective": CAPABILITIES, "permitted": CAPABILITIES});
    spec
}

/// The files that this binary consists of, mounted into the container: the flags, and the command
/// that runs it there.
fn mounts() -> (Vec<String>, Vec<String>) {
    let maps = read_all("/proc/self/maps");
    let mut files: BTreeSet<&str> =
        maps.lines().filter_map(|line| line.split_whitespace().nth(5)).collect();
    files.retain(|file| file.contains(".so"));
    let own = text(&std::env::current_exe().unwrap());
    let mut command = Vec::new();
    if let Some(loader) = files.iter().find(|file| file.contains("/ld-")) {
        let name = Path::new(loader).file_name().unwrap().to_string_lossy();
        command.extend([format!("/spy/{name}"), "--library-path".to_owned(), "/spy".to_owned()]);
    }
    command.extend(
        ["/spy/spy", "hostile::attack", "--exact", "--ignored", "--nocapture"].map(str::to_owned),
    );
    let mut flags = Vec::new();
    let names = files
        .iter()
        .map(|file| (Path::new(file).file_name().unwrap().to_string_lossy().into_owned(), *file));
    for (name, file) in names.chain([("spy".to_owned(), &*own)]) {
        flags.push("--mount".to_owned());
        flags.push(format!("type=bind,src={file},dst=/spy/{name},options=rbind:ro"));
    }
    (flags, command)
}

/// It lets go of the shim when it is killed.
struct Tracer(Child);

impl Drop for Tracer {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Siege {
    fn begin(mode: &str, is_native: bool, more: &[&str]) -> Self {
        use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
        let maximum = getrlimit(Resource::Nofile).maximum;
        setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }).unwrap();
        let mut rig = Rig::new();
        rig.end_containerd(libc::SIGKILL);
        rig.set_variable("CLEAT_TEST_MARK", MARK);
        rig.start_containerd();
        let secret = rig.dir.join("secret");
        OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&secret)
            .unwrap()
            .write_all(SECRET.as_bytes())
            .unwrap();
        let (mounts, command) = mounts();
        let group = format!("{GROUP}=pod");
        let options = rig.runtime_options("native.toml", "Annotations = ['native-exec']");
        let mut flags = vec!["--annotation", &group];
        if is_native {
            flags.extend(options.iter().map(String::as_str).chain(["--annotation", NATIVE]));
        } else {
            flags.extend(["--runtime", CLEAT]);
        }
        flags.extend(mounts.iter().map(String::as_str));
        flags.extend(more);
        rig.run_with(&flags, "pod", &["sleep", "100000"]);
        let mut siege = Self {
            direct: rig.direct("pod"),
            shim: rig.shim(),
            init: rig.init("pod"),
            rig,
            number: 0,
        };
        if is_native {
            until("an exec is native", || {
                let before = siege.rig.log().matches("exec by the runtime").count();
                let _ = siege.exec("exit 0");
                siege.rig.log().matches("exec by the runtime").count() == before
            });
        }
        if mode == "none" {
            return siege;
        }
        let command: Vec<&str> = command.iter().map(String::as_str).collect();
        let mut spy = spec(&command);
        let variables =
            [format!("CLEAT_ATTACK={mode}"), format!("CLEAT_ATTACK_SECRET={}", text(&secret))];
        spy["env"].as_array_mut().unwrap().extend(variables.map(Into::into));
        siege.direct.call::<Empty>("Exec", &exec_request("pod", "spy", &spy)).unwrap();
        let process = api::ProcessRequest { id: "pod".into(), exec_id: "spy".into() };
        siege.direct.call::<api::PidResponse>("Start", &process).unwrap();
        until("the spy looks", || siege.findings().contains("ready"));
        siege
    }

    fn inside(&self, file: &str) -> String {
        format!("/proc/{}/root/{file}", self.init)
    }

    fn findings(&self) -> BTreeSet<String> {
        read_all(self.inside("findings")).lines().map(str::to_owned).collect()
    }

    /// One exec to its end; what its Start answered. It notes that it ran, and whether in the
    /// init's cgroups.
    fn exec(&mut self, script: &str) -> Result<u32, String> {
        self.number += 1;
        let exec = format!("e{}", self.number);
        let note = format!(
            "echo {exec} >> /runs; cmp -s /proc/self/cgroup /proc/1/cgroup || echo {exec} >> /outside; {script}"
        );
        self.direct
            .call::<Empty>("Exec", &exec_request("pod", &exec, &spec(&["sh", "-c", &note])))
            .unwrap();
        let process = api::ProcessRequest { id: "pod".into(), exec_id: exec };
        let started = self.direct.call::<api::PidResponse>("Start", &process);
        if let Ok(started) = &started {
            let of = |pid: u32| fs::read_link(format!("/proc/{pid}/ns/pid")).ok();
            let theirs = of(started.pid);
            assert!(
                theirs.is_none() || theirs == of(self.init),
                "{} is not the container's",
                started.pid
            );
        }
        let waited: api::WaitResponse = self.direct.call("Wait", &process).unwrap();
        self.direct.call::<api::DeleteResponse>("Delete", &process).unwrap();
        started.map(|_| waited.exit_status).map_err(|status| status.message)
    }

    /// Ends the spy; what it has found.
    fn end_spy(&mut self) -> BTreeSet<String> {
        fs::write(self.inside("stop"), "").unwrap();
        let process = api::ProcessRequest { id: "pod".into(), exec_id: "spy".into() };
        self.direct.call::<api::WaitResponse>("Wait", &process).unwrap();
        self.direct.call::<api::DeleteResponse>("Delete", &process).unwrap();
        self.findings()
    }

    /// What holds whatever the spy does; then the container goes.
    fn end(self) {
        let runs = read_all(self.inside("runs"));
        let mut seen = HashSet::new();
        let twice: Vec<&str> = runs.lines().filter(|run| !seen.insert(*run)).collect();
        assert!(twice.is_empty(), "ran twice: {twice:?}");
        let outside = read_all(self.inside("outside"));
        assert!(outside.is_empty(), "outside of the container's cgroups: {outside}");
        self.direct_state();
        let ours = || {
            children(self.shim)
                .into_iter()
                .map(|(pid, _)| pid)
                .filter(|pid| *pid != self.init)
                .collect::<Vec<_>>()
        };
        until("no helper and no process is left", || ours().is_empty());
        let Self { rig, .. } = self;
        rig.remove("pod");
    }

    /// From here on, what the shim starts takes some time for each of these system calls.
    fn slow_down(&self, calls: &str) -> Tracer {
        let mut strace = Command::new("strace");
        strace.args(["-f", "-q", "-o", "/dev/null", "-p", &self.shim.to_string()]);
        strace.args(["-e", &format!("inject={calls}:delay_enter=30000")]);
        let strace = Tracer(strace.spawn().unwrap());
        let is_traced =
            || !read_all(format!("/proc/{}/status", self.shim)).contains("TracerPid:\t0");
        until("the shim is traced", is_traced);
        strace
    }

    /// What was seen of runc's own helper would be taken for ours.
    fn all_were_native(&self) {
        let log = self.rig.log();
        let by_runc = |line: &&str| line.contains("exec by the runtime");
        let reasons: Vec<&str> = log.lines().filter(by_runc).collect();
        let warming_up = reasons
            .iter()
            .take_while(|line| line.contains("compared") || line.contains("no copy"))
            .count();
        assert_eq!(reasons.len(), warming_up, "{:?}", reasons.last());
    }

    fn direct_state(&self) {
        let mut direct = self.rig.direct("pod");
        assert_eq!(direct.state("pod", "").unwrap().pid, self.init);
    }
}

/// What may be seen of a process before it is the program: the sealed copy of the helper, pipes.
fn is_harmless(finding: &str) -> bool {
    let is_library = |path: &str| cfg!(debug_assertions) && path.contains(".so");
    match finding.split_once(' ') {
        None => finding == "ready",
        Some(("exe", path)) => path.starts_with("/memfd:cleat-exec"),
        Some(("fd", target)) => matches!(target, "pipe" | "/dev/null"),
        Some(("map", path)) => {
            path.starts_with("/memfd:cleat-exec") || path.starts_with('[') || is_library(path)
        }
        Some(_) => false,
    }
}

// CVE-2019-5736, CVE-2024-21626, and descriptors of ours. Defence: `native/enter.rs`.
#[test]
fn nothing_of_the_host_is_seen_in_a_native_exec() {
    let mut siege = Siege::begin("look", true, &[]);
    for _ in 0..execs() {
        assert_eq!(siege.exec("exit 7"), Ok(7));
    }
    // Most of them are too quick to be seen. These are not: they wait before they are the program.
    let slow = siege.slow_down("execve,execveat");
    for _ in 0..execs().min(20) {
        assert_eq!(siege.exec("exit 7"), Ok(7));
    }
    drop(slow);
    siege.all_were_native();
    let findings = siege.end_spy();
    let odd: Vec<&String> = findings.iter().filter(|finding| !is_harmless(finding)).collect();
    assert!(odd.is_empty(), "{odd:#?}");
    assert!(
        findings.iter().any(|finding| finding.starts_with("exe /memfd:cleat-exec")),
        "nothing was seen: {findings:?}"
    );
    siege.end();
}

// runc's own helper is seen for longer, with all capabilities and words of the host in its memory;
// no way leads outwards from it.
#[test]
fn nothing_of_the_host_is_open_in_an_exec_by_runc() {
    let mut siege = Siege::begin("look", false, &[]);
    for _ in 0..execs().min(2000) / 3 {
        assert_eq!(siege.exec("exit 7"), Ok(7));
    }
    let findings = siege.end_spy();
    assert!(!findings.iter().any(|finding| finding.starts_with("SECRET")), "{findings:#?}");
    siege.end();
}

#[test]
fn a_process_that_is_seized_has_no_more_than_its_program() {
    let mut siege = Siege::begin("seize", true, &[]);
    for _ in 0..execs().min(2000) / 3 {
        assert_eq!(siege.exec("exit 7"), Ok(7));
    }
    let findings = siege.end_spy();
    let odd: Vec<&String> = findings.iter().filter(|finding| !is_harmless(finding)).collect();
    assert!(odd.is_empty(), "{odd:#?}");
    siege.end();
}

#[test]
fn what_is_killed_or_stopped_on_its_way_runs_once_or_not_at_all() {
    for mode in ["kill", "stop"] {
        let mut siege = Siege::begin(mode, true, &[]);
        for _ in 0..execs() / 2 {
            let _ = siege.exec("exit 7");
        }
        siege.end_spy();
        siege.end();
    }
}

// Whoever kills it, the container's out-of-memory killer or an administrator: what it has begun
// does not run beside what the runtime then does.
#[test]
fn an_exec_whose_helper_is_killed_runs_once() {
    let mut siege = Siege::begin("none", true, &[]);
    let (shim, init) = (siege.shim, siege.init);
    let pid_namespace = |pid: u32| fs::read_link(format!("/proc/{pid}/ns/pid")).ok();
    let (of_host, stop) =
        (pid_namespace(shim), std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false)));
    let killer = std::thread::spawn({
        let stop = std::sync::Arc::clone(&stop);
        move || {
            let mut killed = 0;
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                let children = read_all(format!("/proc/{shim}/task/{shim}/children"));
                let born = |pid: &u32| *pid != init && cmdline(*pid) == ["cleat-exec"];
                let helpers: Vec<u32> = children
                    .split_whitespace()
                    .filter_map(|pid| pid.parse().ok())
                    .filter(born)
                    .collect();
                // With its child there: the one that has nothing to do any more.
                if let [helper, .., _] = helpers[..]
                    && pid_namespace(helper) == of_host
                {
                    kill(helper, libc::SIGKILL);
                    killed += 1;
                }
            }
            killed
        }
    });
    for _ in 0..execs() {
        assert_eq!(siege.exec("exit 7"), Ok(7));
    }
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    assert!(killer.join().unwrap() > 0, "no helper was killed");
    siege.end();
}

// Older versions believed what came through a pipe that the container could open: any pid.
#[test]
fn a_pipe_that_the_container_feeds_and_holds_betrays_nobody() {
    let mut siege = Siege::begin("forge", true, &[]);
    for _ in 0..execs().min(1000) / 2 {
        let _ = siege.exec("exit 7");
    }
    siege.end_spy();
    siege.end();
}

// The helper is counted among the container's own from before it enters: where there is no room for
// it, nothing runs.
#[test]
fn a_container_that_is_full_at_the_moment_of_entry_has_no_exec_beside_its_limits() {
    let mut siege = Siege::begin("crowd", true, &[]);
    let cgroups = read_all(format!("/proc/{}/cgroup", siege.init));
    let path = |name: &str| {
        let line = cgroups.lines().find_map(|line| line.split_once(&format!(":{name}:")));
        line.map(|(_, path)| {
            Path::new("/sys/fs/cgroup").join(name).join(path.trim_start_matches('/'))
        })
    };
    let limit = path("pids")
        .or_else(|| path(""))
        .map(|path| path.join("pids.max"))
        .filter(|file| file.exists());
    // Where there is a controller for it.
    if let Some(limit) = limit {
        fs::write(limit, "12").unwrap();
        let mut ran = 0;
        for _ in 0..execs() / 2 {
            ran += usize::from(siege.exec("exit 7") == Ok(7));
        }
        println!("{ran} ran");
    }
    siege.end_spy();
    siege.end();
}

#[test]
fn an_exec_into_a_container_without_memory_runs_once_or_not_at_all() {
    let has_controller = read_all("/sys/fs/cgroup/cgroup.controllers").contains("memory");
    if !has_controller && !Path::new("/sys/fs/cgroup/memory").exists() {
        return;
    }
    let mut siege = Siege::begin("greed", true, &["--memory-limit", "33554432"]);
    for _ in 0..execs() / 2 {
        let _ = siege.exec("exit 7");
    }
    siege.end_spy();
    siege.end();
}
