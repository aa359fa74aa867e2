//! docs/troubleshooting.md: each of its symptoms is provoked, and its commands, read out of the
//! page, are run: what looks, and what cures.

use super::{Doctor, age, ps, stdout};
use crate::support::{
    self, CLEAT, Direct, IMAGE, LONG, Rig, alive, cli_binary, containerd_binary, process, read_all,
    shim_binary, text, until,
};
use cleat::protocol::{Empty, task as api};
use serde_json::json;
use std::{
    os::unix::net::UnixListener,
    path::PathBuf,
    process::{Child, Command, Output, Stdio},
};

const PAGE: &str = include_str!("../../../docs/troubleshooting.md");

/// A command block of the page.
struct Block {
    text: String,
    is_cure: bool,
}

/// What stands under one heading. At its end each block has been run.
struct Symptom {
    blocks: std::vec::IntoIter<Block>,
}

/// Headings and what stands under them, the page's beginning without a heading.
fn sections() -> Vec<(&'static str, &'static str)> {
    let mut sections = PAGE.split("\n## ");
    let first = sections.next().map(|text| ("", text));
    first.into_iter().chain(sections.map(|section| section.split_once('\n').unwrap())).collect()
}

fn symptom(heading: &str) -> Symptom {
    let found = sections().into_iter().find(|(name, _)| *name == heading);
    let (_, section) = found.unwrap_or_else(|| panic!("{heading:?} is no heading of the page"));
    let blocks = section.split("\n```sh\n").collect::<Vec<_>>();
    let blocks = blocks.windows(2).map(|pair| Block {
        text: pair[1].split_once("\n```").unwrap().0.to_owned(),
        is_cure: pair[0].ends_with("<!-- cure -->"),
    });
    Symptom { blocks: blocks.collect::<Vec<_>>().into_iter() }
}

impl Symptom {
    fn next(&mut self, is_cure: bool) -> String {
        let block = self.blocks.next().expect("the page has another block");
        assert_eq!(block.is_cure, is_cure, "{}", block.text);
        block.text
    }

    /// Runs the next block, which changes nothing; what it shows.
    fn look(&mut self, node: &mut Node) -> String {
        let text = self.next(false);
        let output = node.run(&text);
        format!("{}{}", stdout(&output), super::stderr(&output))
    }

    /// Runs the next block, which is to end the symptom.
    fn cure(&mut self, node: &mut Node) -> String {
        let text = self.next(true);
        let output = node.run(&text);
        assert!(output.status.success(), "{text}: {output:?}");
        stdout(&output)
    }
}

impl Drop for Symptom {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            let left: Vec<String> = self.blocks.by_ref().map(|block| block.text).collect();
            assert!(left.is_empty(), "not run: {left:?}");
        }
    }
}

/// A rig that to the page's commands is the node: programs of these names act on it.
struct Node {
    rig: Rig,
    /// The page's container `hello`: other tests have one, too.
    hello: String,
}

impl Node {
    fn new(rig: Rig) -> Self {
        let hello = format!("hello-{}", rig.namespace);
        let node = Self { rig, hello };
        std::fs::create_dir(node.path("sbin")).unwrap();
        let (cli, dir) = (cli_binary(), node.rig.dir.display().to_string());
        let places = format!("--state {dir}/state --sockets {dir}/s");
        let daemon = format!("--config {dir}/config.toml --address {dir}/c.sock");
        let install = format!("--containerd {} --config {dir}/config.toml", containerd_binary());
        let cleat = format!(
            "word=$1; shift\ncase $word in\ndoctor) set -- {daemon} {places} \"$@\" ;;\ngc) set -- {places} \"$@\" ;;\n\
             install) set -- {install} \"$@\" ;;\nesac\nexec {} \"$word\" \"$@\"",
            cli.display()
        );
        let ctr = format!(
            "PATH=${{PATH#*:}} exec {} -a {dir}/c.sock -n {} \"$@\"",
            support::ctr_binary(),
            node.rig.namespace
        );
        // containerd is this process's child: it acts, and says so by taking the file away.
        let systemctl = format!(
            "echo \"$*\" > {dir}/systemctl.new\nmv {dir}/systemctl.new {dir}/systemctl\nwhile [ -e {dir}/systemctl ]; do sleep 0.05; done"
        );
        let journalctl = format!("cat {dir}/log");
        for (name, text) in
            [("cleat", cleat), ("ctr", ctr), ("systemctl", systemctl), ("journalctl", journalctl)]
        {
            support::script(&node.rig, &format!("sbin/{name}"), &text);
        }
        node
    }

    fn path(&self, name: &str) -> PathBuf {
        self.rig.dir.join(name)
    }

    /// The page's container, with further flags.
    fn run_hello(&self, flags: &[&str], command: &[&str]) {
        self.rig.run_with(&[&["--runtime", CLEAT], flags].concat(), &self.hello, command);
    }

    fn shim(&self) -> u32 {
        self.rig.shim()
    }

    /// Starts a block of the page. Where it says hello and /tmp it gets what stands for them here.
    fn start(&self, block: &str) -> Child {
        let block = block
            .replace("/tmp/hello", "/tmp/HELLO")
            .replace("hello", &self.hello)
            .replace("/tmp/HELLO", &text(&self.path("hello")));
        let shims = shim_binary().parent().unwrap().display().to_string();
        let path =
            format!("{}:{shims}:{}", self.path("sbin").display(), std::env::var("PATH").unwrap());
        let mut command = Command::new("bash");
        command.args(["-ec", &block]).env("PATH", path).stdin(Stdio::null());
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    }

    fn run(&mut self, block: &str) -> Output {
        let mut child = self.start(block);
        // What it says fits into a pipe.
        until("the block ends", || {
            self.serve();
            child.try_wait().unwrap().is_some()
        });
        child.wait_with_output().unwrap()
    }

    /// What `systemctl` was asked for.
    fn serve(&mut self) {
        let asked = self.path("systemctl");
        let Ok(words) = std::fs::read_to_string(&asked) else { return };
        let starts = match words.trim() {
            "restart containerd" => true,
            "start containerd" => !answers(&self.rig),
            other => panic!("systemctl {other}: not here"),
        };
        if starts {
            self.rig.end_containerd(libc::SIGTERM);
            self.rig.start_containerd();
        }
        std::fs::remove_file(asked).unwrap();
    }

    /// A call of CRI's runtime service as kubelet makes it: the error's sentence, if it fails.
    /// `request` is protobuf.
    fn cri(&self, version: &str, method: &str, request: &[u8]) -> Result<Vec<u8>, String> {
        let (body, headers, answer) =
            (self.path("request"), self.path("headers"), self.path("answer"));
        let length = u32::try_from(request.len()).unwrap().to_be_bytes();
        std::fs::write(&body, [&[0], &length[..], request].concat()).unwrap();
        let mut command = Command::new("curl");
        command.args(["-sS", "-m", "60", "--http2-prior-knowledge", "--unix-socket"]);
        command.arg(self.path("c.sock")).arg("-D").arg(&headers).arg("-o").arg(&answer);
        command.args([
            "-H",
            "content-type: application/grpc",
            "-H",
            "te: trailers",
            "--data-binary",
        ]);
        command.arg(format!("@{}", body.display()));
        command.arg(format!("http://localhost/runtime.{version}.RuntimeService/{method}"));
        let mut said = String::new();
        // An unknown service is refused before the request has been read, and some curls then tell
        // nothing (92).
        until("an answer", || {
            let done = command.output().expect("curl is installed");
            said = read_all(&headers);
            assert!(matches!(done.status.code(), Some(0 | 92)), "{done:?}");
            said.contains("grpc-status: ")
        });
        let field =
            |name: &str| said.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
        match field("grpc-status: ") {
            Some("0") => Ok(std::fs::read(answer).unwrap()),
            _ => Err(field("grpc-message: ").unwrap_or_default().replace("%22", "\"")),
        }
    }
}

fn answers(rig: &Rig) -> bool {
    std::os::unix::net::UnixStream::connect(rig.dir.join("c.sock")).is_ok()
}

/// A field of a message with bytes in it (less than 128 of them), or with a number.
fn field(number: u8, bytes: &[u8]) -> Vec<u8> {
    [&[number << 3 | 2, u8::try_from(bytes.len()).unwrap()], bytes].concat()
}

// A new symptom wants a test.
#[test]
fn each_symptom_of_the_page_is_provoked() {
    let bare = |text: &str| text.split_whitespace().collect::<String>();
    let source = bare(include_str!("troubleshooting.rs"));
    for (heading, section) in sections() {
        let call = format!("symptom({heading:?}");
        assert!(source.contains(&bare(&call)), "no test has {call})");
        assert!(section.contains("\n```sh\n"), "{heading:?} has no command");
    }
}

#[test]
fn the_first_three_change_nothing() {
    let mut node = Node::new(Rig::new());
    node.run_hello(&[], &["sleep", "1000"]);
    let before = json!({ "shim": node.shim(), "init": node.rig.init(&node.hello) });
    let seen = symptom("").look(&mut node);
    assert!(
        seen.contains(&node.hello) && seen.contains("1 running") && seen.contains("pidfd"),
        "{seen}"
    );
    assert_eq!(before, json!({ "shim": node.shim(), "init": node.rig.init(&node.hello) }));
    node.rig.remove(&node.hello.clone());
}

#[test]
fn a_delete_that_hangs() {
    let mut node = Node::new(Rig::new());
    // The first one waits for ever; without a child of its own, which would be left.
    let held = support::fifo(&node.rig.dir, "held");
    let flags = node.rig.runtime_script(&format!(
        "case \" $* \" in *' delete '*) if mkdir {0}/once 2>/dev/null; then read x < {1}; fi;; esac",
        node.rig.dir.display(),
        held.display()
    ));
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    let hello = node.hello.clone();
    node.rig.run_with(&flags, &hello, &["sleep", "1000"]);
    node.rig.ctr(["task", "kill", "-s", "9", &hello]);
    until("it has stopped", || node.rig.status(&hello).as_deref() == Some("STOPPED"));
    let mut deleting =
        node.rig.ctr_command(["task", "delete", &hello]).stderr(Stdio::piped()).spawn().unwrap();
    until("it hangs", || node.path("once").exists());
    let mut page = symptom("A pod stays in Terminating");
    let seen = page.look(&mut node);
    assert!(
        seen.contains("\"Delete\"") && seen.contains(" delete ") && seen.contains(&hello),
        "{seen}"
    );
    assert!(deleting.try_wait().unwrap().is_none());
    page.cure(&mut node);
    until("the call ends", || deleting.try_wait().unwrap().is_some());
    // As kubelet does.
    if node.rig.status(&hello).is_some() {
        node.rig.ctr(["task", "delete", &hello]);
    }
    node.rig.ctr(["container", "delete", &hello]);
}

#[test]
fn a_shim_that_does_not_answer() {
    let mut node = Node::new(Rig::new());
    support::use_debug_build(&node.rig);
    node.run_hello(&[], &["sleep", "1000"]);
    let (hello, shim) = (node.hello.clone(), node.shim());
    let mut page = symptom("`cleat ps` says `does not answer`");
    // A loop that hangs, and is dumped.
    let mut direct = node.rig.direct(&hello);
    direct.send("HangForTest", &process(&hello, ""));
    until("it has dumped", || node.rig.log().contains("watchdog: === END dump"));
    let seen = page.look(&mut node);
    assert!(
        seen.contains("=== BEGIN dump") && seen.contains(&format!("call HangForTest {hello}")),
        "{seen}"
    );
    until("it goes on", || node.rig.direct(&hello).state(&hello, "").is_ok());
    // One that is stopped.
    support::stop(shim);
    let line = |node: &mut Node| {
        let table = stdout(&node.run("cleat ps"));
        table.lines().find(|line| line.starts_with(&shim.to_string())).unwrap().to_owned()
    };
    assert!(line(&mut node).contains("does not answer"), "{}", line(&mut node));
    let said = stdout(&node.run("cleat doctor --only shims || true; cleat inspect hello"));
    assert!(said.contains(&shim.to_string()) && said.matches("stopped").count() >= 2, "{said}");
    page.cure(&mut node);
    assert!(line(&mut node).contains("1 running"), "{}", line(&mut node));
    // One that does answer.
    page.look(&mut node);
    until("it has written what it knows", || {
        node.rig.log().contains(&format!("container {hello}")) && alive(shim)
    });
    node.rig.remove(&hello);
}

#[test]
fn a_containerd_that_is_away() {
    let mut node = Node::new(Rig::new());
    node.run_hello(&[], &["sleep", "1000"]);
    let (hello, shim) = (node.hello.clone(), node.shim());
    node.rig.end_containerd(libc::SIGKILL);
    until("it is seen", || ps(shim)["containerd"] == false);
    let table = stdout(&node.run("cleat ps"));
    assert!(
        table.lines().any(|line| line.starts_with(&shim.to_string()) && line.ends_with("away")),
        "{table}"
    );
    let seen = symptom("`CONTAINERD` is `away`").cure(&mut node);
    assert!(
        seen.lines().any(|line| line.starts_with(&shim.to_string()) && line.ends_with("connected")),
        "{seen}"
    );
    assert_eq!(node.rig.status(&hello).as_deref(), Some("RUNNING"));
    node.rig.remove(&hello);
}

#[test]
fn a_reader_that_does_not_read() {
    let mut node = Node::new(Rig::new());
    let hello = node.hello.clone();
    let out = node.path("out");
    let go = node.path("go");
    let mount = format!("type=bind,src={},dst=/tmp,options=rbind", node.rig.dir.display());
    let script = "while ! [ -e /tmp/go ]; do sleep 0.1; done; seq 3000000; sleep 1000";
    let flags = ["--runtime", CLEAT, "--mount", &mount];
    let mut client = node.rig.foreground(&flags, &hello, &["sh", "-c", script]);
    let mut client = client.stdout(std::fs::File::create(&out).unwrap()).spawn().unwrap();
    until("it runs", || node.rig.status(&hello).as_deref() == Some("RUNNING"));
    // The client is `timeout`, which lives on.
    let ctr = support::children(client.id())[0].0;
    support::stop(ctr);
    std::fs::write(go, "").unwrap();
    let spooled = || {
        let all = super::json(&["inspect", &hello, "-o", "json"]);
        let streams =
            all["processes"][0]["init"]["streams"].as_array().cloned().unwrap_or_default();
        streams.iter().filter_map(|stream| stream["spooled_bytes"].as_u64()).sum::<u64>()
    };
    until("the spool is full", || spooled() > 4 << 20);
    let mut page = symptom("Logs of a container are late, or a container hangs in write");
    let seen = page.look(&mut node);
    assert!(seen.trim().parse::<u32>().unwrap() > 0, "{seen}");
    let seen = page.look(&mut node);
    let row = seen.lines().find(|line| line.trim_start().starts_with(&format!("{ctr} "))).unwrap();
    assert_eq!(row.split_whitespace().nth(1).unwrap().chars().next(), Some('T'), "{seen}");
    page.cure(&mut node);
    until("all is read", || spooled() == 0 && read_all(&out).ends_with("\n3000000\n"));
    assert_eq!(read_all(&out).lines().count(), 3_000_000);
    node.rig.ctr(["task", "kill", "-s", "9", &hello]);
    client.wait().unwrap();
}

#[test]
fn a_ctr_that_shows_less() {
    let mut node = Node::new(Rig::new());
    // Nobody takes what `ctr` prints until the container has gone.
    let mut client = node.rig.foreground(&["--runtime", CLEAT], "less", &["seq", "100000"]);
    let mut client = client.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    // It looks at the task's state after the exit, then closes its fifos.
    until("it closes its fifos", || {
        let log = node.rig.log();
        log.split_once("less InitExited")
            .is_some_and(|(_, after)| after.contains("call method=State"))
    });
    let mut shown = String::new();
    std::io::Read::read_to_string(client.stdout.as_mut().unwrap(), &mut shown).unwrap();
    client.wait().unwrap();
    assert!(!shown.ends_with("\n100000\n"), "ctr has shown all: {} bytes", shown.len());
    symptom("`ctr run` shows less than the container wrote").cure(&mut node);
    assert_eq!(read_all(node.path("hello.log")).lines().count(), 100_000);
}

#[test]
fn what_a_crash_has_left() {
    let mut node = Node::new(Rig::new());
    let socket = node.path("s/dead");
    std::fs::create_dir(node.path("s")).unwrap();
    drop(UnixListener::bind(&socket).unwrap());
    age(&socket);
    let mut page = symptom("Shims are left over");
    assert!(page.look(&mut node).contains("/s/dead: nobody listens") && socket.exists());
    assert!(page.cure(&mut node).contains("removed") && !socket.exists());
    assert!(stdout(&node.run("cleat gc")).contains("nothing is orphaned"));
}

/// A node for pods, which is not told of any handler.
fn node_for_pods() -> Node {
    let rig = Rig::with_config(&containerd_binary(), Some("k8s.io"), |dir| {
        format!(
            "[plugins.\"io.containerd.internal.v1.opt\"]\npath = \"{}/opt\"\n\
             [plugins.\"io.containerd.grpc.v1.cri\"]\nsandbox_image = \"{IMAGE}\"\nrestrict_oom_score_adj = true\n\
             disable_apparmor = true\n",
            dir.display()
        )
    });
    rig.ctr(["image", "import", "--no-unpack", text(&support::image()).as_str()]);
    Node::new(rig)
}

#[test]
fn a_cri_plugin_that_does_not_start() {
    let mut node = node_for_pods();
    if !node.rig.is_older_than_2() {
        // It cannot be provoked: containerd 2 keeps its own handler, as the page says.
        return;
    }
    until("the plugin answers", || node.cri("v1alpha2", "Version", &[]).is_ok());
    // As README.md told once.
    let config = node.path("config.toml");
    let alone = "[plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.cleat]\nruntime_type = \"io.containerd.cleat.v2\"\n";
    std::fs::write(&config, format!("{}{alone}", read_all(&config))).unwrap();
    node.rig.end_containerd(libc::SIGTERM);
    node.rig.start_containerd();
    let refused = node.cri("v1alpha2", "Version", &[]).unwrap_err();
    assert!(refused.contains("unknown service runtime.v1alpha2.RuntimeService"), "{refused}");
    assert!(node.rig.log().contains("no corresponding runtime configured"));
    Doctor::of(&node.rig).is("handler", "broken", "CRI plugin does not start");
    symptom("kubelet says `unknown service runtime.v1alpha2.RuntimeService`").cure(&mut node);
    until("the plugin answers", || node.cri("v1alpha2", "Version", &[]).is_ok());
    assert_eq!(Doctor::of(&node.rig).says("handler")["state"], "ok");
}

/// A pod's sandbox on the handler `cleat`, in the host's network.
fn pod_on_cleat(node: &Node) -> Result<Vec<u8>, String> {
    let metadata = [field(1, b"web-0"), field(2, b"uid"), field(3, b"prod")].concat();
    // NODE.
    let namespaces = field(1, &[1 << 3, 2]);
    let linux = [field(1, CGROUP.as_bytes()), field(2, &namespaces)].concat();
    let config = [field(1, &metadata), field(8, &linux)].concat();
    node.cri("v1", "RunPodSandbox", &[field(1, &config), field(2, b"cleat")].concat())
}

/// The pods' cgroup.
const CGROUP: &str = "/cleat-test-troubleshooting";

#[test]
fn a_handler_that_containerd_does_not_know() {
    let mut node = node_for_pods();
    until("the plugin answers", || node.cri("v1", "Version", &[]).is_ok());
    let refused = pod_on_cleat(&node).unwrap_err();
    assert!(refused.contains("no runtime for \"cleat\" is configured"), "{refused}");
    let mut page = symptom("A pod fails with `no runtime for \"cleat\" is configured`");
    let seen = page.look(&mut node);
    assert!(seen.contains("handler") && seen.contains("cleat install"), "{seen}");
    page.cure(&mut node);
    until("the plugin answers", || node.cri("v1", "Version", &[]).is_ok());
    let answer = pod_on_cleat(&node).unwrap();
    // Behind gRPC's five bytes, in field 1.
    let id = field(1, &answer[7..]);
    let end = ["StopPodSandbox", "RemovePodSandbox"].map(|method| node.cri("v1", method, &id));
    for hierarchy in std::fs::read_dir("/sys/fs/cgroup").unwrap().flatten() {
        let _ = std::fs::remove_dir(hierarchy.path().join(&CGROUP[1..]));
    }
    assert!(end.iter().all(Result::is_ok), "{end:?}");
}

#[test]
fn a_program_that_containerd_does_not_find() {
    let mut node = Node::new(Rig::new());
    let program = node.path("bin/containerd-shim-cleat-v2");
    let moved = node.path("sbin/containerd-shim-cleat-v2");
    let path = format!("{}:{}", node.path("bin").display(), node.path("sbin").display());
    let path = format!("{path}:{}", std::env::var("PATH").unwrap());
    node.rig.set_variable("PATH", &path);
    node.rig.end_containerd(libc::SIGTERM);
    std::fs::rename(&program, node.path("elsewhere")).unwrap();
    node.rig.start_containerd();
    let refused = |node: &Node| {
        let output = node.rig.try_ctr(["run", "--rm", "--runtime", CLEAT, IMAGE, "a", "true"]);
        assert!(!output.status.success());
        let _ = node.rig.try_ctr(["container", "delete", "a"]);
        super::stderr(&output)
    };
    let text = refused(&node);
    assert!(text.contains("runtime \"io.containerd.cleat.v2\" binary not installed"), "{text}");
    let mut page = symptom(
        "A pod fails with `failed to start shim` or `runtime \"io.containerd.cleat.v2\" binary not installed`",
    );
    let seen = page.look(&mut node);
    assert!(seen.contains("containerd-shim-cleat-v2") && !seen.contains("ok "), "{seen}");
    // It is installed, found, and then moved.
    std::fs::rename(node.path("elsewhere"), &program).unwrap();
    node.rig.ctr(["run", "--rm", "--runtime", CLEAT, IMAGE, "a", "true"]);
    std::fs::rename(&program, &moved).unwrap();
    let text = refused(&node);
    assert!(text.contains("failed to start shim"), "{text}");
    page.cure(&mut node);
    node.rig.ctr(["run", "--rm", "--runtime", CLEAT, IMAGE, "a", "true"]);
}

#[test]
fn a_runtime_that_refuses() {
    let mut node = Node::new(Rig::new());
    let mount = ["--mount", "type=bind,src=/no/such/source,dst=/mnt,options=rbind"];
    let flags =
        [&["run", "--rm", "--null-io", "--runtime", CLEAT], &mount[..], &[IMAGE, "a", "true"]]
            .concat();
    let refused = super::stderr(&node.rig.try_ctr(flags));
    let _ = node.rig.try_ctr(["container", "delete", "a"]);
    assert!(refused.contains("OCI runtime create failed"), "{refused}");
    // The same in a bundle.
    let bundle = node.path("hello");
    std::fs::create_dir_all(bundle.join("rootfs/bin")).unwrap();
    std::fs::copy("/bin/busybox", bundle.join("rootfs/bin/busybox")).unwrap();
    assert!(Command::new("runc").args(["spec", "-b"]).arg(&bundle).status().unwrap().success());
    let config = bundle.join("config.json");
    let whole = read_all(&config);
    let mut spec: serde_json::Value = serde_json::from_str(&whole).unwrap();
    let mount = json!({"type": "bind", "source": "/no/such/source", "destination": "/mnt", "options": ["rbind"]});
    spec["mounts"].as_array_mut().unwrap().push(mount);
    std::fs::write(&config, spec.to_string()).unwrap();
    let block = symptom("A pod fails with `OCI runtime create failed`").next(false);
    let failed = node.run(&block);
    let said = super::stderr(&failed);
    let sentence = "error mounting \"/no/such/source\"";
    assert!(
        refused.contains(sentence) && said.contains(sentence) && said.contains("hint: "),
        "{refused}{said}"
    );
    assert_eq!(failed.status.code(), Some(125), "{said}");
    std::fs::write(&config, whole).unwrap();
    let done = node.run(&block);
    assert!(done.status.success() && super::stderr(&done).contains("/tasks/exit"), "{done:?}");
}

#[test]
fn an_out_of_memory_kill() {
    let node = Node::new(Rig::new());
    let go = node.path("go");
    let mount = format!("type=bind,src={},dst=/tmp,options=rbind", node.rig.dir.display());
    let script = "while ! [ -e /tmp/go ]; do sleep 0.1; done; tail /dev/zero";
    let block = symptom("OOMKilled, or not?").next(false);
    // The page's five seconds may pass on a busy machine before all has happened: then once more.
    let seen = (0..5).find_map(|_| {
        let _ = std::fs::remove_file(&go);
        node.run_hello(&["--memory-limit", "33554432", "--mount", &mount], &["sh", "-c", script]);
        let clients = || ps(node.shim())["connections"].as_u64().unwrap();
        let before = clients();
        let mut child = node.start(&block);
        until("it follows", || clients() > before || child.try_wait().unwrap().is_some());
        std::fs::write(&go, "").unwrap();
        let seen = stdout(&child.wait_with_output().unwrap());
        node.rig.remove(&node.hello);
        until("the shim ends", || node.rig.shims().is_empty());
        seen.lines()
            .any(|line| line.contains("/tasks/exit") && line.contains(&node.hello))
            .then_some(seen)
    });
    let seen = seen.expect("an exit is shown");
    let at = |topic: &str| {
        seen.lines()
            .position(|line| line.contains(topic) && line.contains(&node.hello))
            .expect(&seen)
    };
    assert!(at("/tasks/oom") < at("/tasks/exit"), "{seen}");
}

#[test]
fn a_shim_after_a_burst_of_execs() {
    let mut node = Node::new(Rig::new());
    node.run_hello(&[], &["sleep", "1000"]);
    let hello = node.hello.clone();
    let mut direct: Direct = node.rig.direct(&hello);
    for number in 0..100 {
        let exec = format!("e{number}");
        let spec = support::process_spec(&["sleep", "1000"]);
        direct.call::<Empty>("Exec", &support::exec_request(&hello, &exec, &spec)).unwrap();
        direct.call::<api::PidResponse>("Start", &process(&hello, &exec)).unwrap();
    }
    for number in 0..100 {
        let exec = format!("e{number}");
        support::signal(&mut direct, &hello, &exec, 9).unwrap();
        direct.call::<api::WaitResponse>("Wait", &process(&hello, &exec)).unwrap();
        direct.call::<api::DeleteResponse>("Delete", &process(&hello, &exec)).unwrap();
    }
    let block = symptom("Memory of a shim").next(false);
    let mut private = 0;
    support::until_within(LONG, "it is given back", || {
        let seen = stdout(&node.run(&block));
        let json = &seen[seen.find("\n{").unwrap()..];
        let whole: serde_json::Value = serde_json::from_str(json).unwrap();
        private = whole["memory_kib"]["private"].as_u64().unwrap();
        private < 1024
    });
    assert!(private > 50, "{private} KiB");
    node.rig.remove(&hello);
}
