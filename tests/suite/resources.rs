//! Limits, figures and out-of-memory kills on either version of cgroups, beside the Go shim of the
//! same machine.
//!
//! `CLEAT_TEST_GO_SHIM`: the Go shim (`containerd-shim-runc-v2` in PATH). `CLEAT_OOM_LIVES`: how
//! many kills must be told (25).

use crate::support::{self, CLEAT, Direct, Rig, kill, process_spec, read_all, until};
use cleat::{
    protocol::{
        Any, Empty,
        options::{OPTIONS_URL, Options},
        stats_v1, stats_v2, task as api,
    },
    rpc::Status,
};
use prost::Message;
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

/// The Go shim, if there is one.
fn go_shim() -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    let named = std::env::var_os("CLEAT_TEST_GO_SHIM").map(PathBuf::from);
    named.or_else(|| {
        std::env::split_paths(&path)
            .map(|dir| dir.join("containerd-shim-runc-v2"))
            .find(|path| path.exists())
    })
}

/// By version 2 of the Task service, which Go's shim has not had since 2.3 under a containerd that
/// has version 3; then by that.
fn call<R: Message + Default>(
    direct: &mut Direct,
    method: &str,
    request: &impl Message,
) -> Result<R, Status> {
    const UNIMPLEMENTED: i32 = 12;
    match direct.call_service(api::SERVICES[0], method, request) {
        Err(status) if status.code == UNIMPLEMENTED => {
            direct.call_service(api::SERVICES[1], method, request)
        }
        result => result,
    }
}

fn stats(direct: &mut Direct, id: &str) -> Any {
    let answer: api::StatsResponse =
        call(direct, "Stats", &api::ContainerRequest { id: id.into() }).unwrap();
    answer.stats.unwrap()
}

fn update(direct: &mut Direct, id: &str, json: &str) -> Result<(), String> {
    let resources = Any {
        type_url: "types.containerd.io/opencontainers/runtime-spec/1/LinuxResources".into(),
        value: json.as_bytes().to_vec(),
    };
    let request = api::UpdateTaskRequest { id: id.into(), resources: Some(resources) };
    call::<Empty>(direct, "Update", &request)
        .map(|_| ())
        .map_err(|status| status.message.replace(id, "ID"))
}

/// Every field of a Metrics message by its path, those of messages in lists by their keys. Panics
/// if the message has a field that we do not know.
fn fields(any: &Any) -> BTreeMap<String, String> {
    let value = any.value.as_slice();
    let (text, known) = if any.type_url == stats_v1::METRICS_URL {
        let metrics = stats_v1::Metrics::decode(value).unwrap();
        (format!("{metrics:#?}"), metrics.encoded_len())
    } else {
        assert_eq!(any.type_url, stats_v2::METRICS_URL);
        let metrics = stats_v2::Metrics::decode(value).unwrap();
        (format!("{metrics:#?}"), metrics.encoded_len())
    };
    assert_eq!(known, value.len(), "a field that we do not know");
    let (mut path, mut found): (Vec<String>, _) = (Vec::new(), BTreeMap::new());
    // Of each open bracket: how many members it has had, if it is a list's.
    let mut numbers: Vec<Option<usize>> = vec![None];
    for line in text.lines() {
        let line = line.trim().trim_end_matches(',');
        if line.ends_with(['{', '(', '[']) && !line.ends_with("[]") {
            let name = match (line.split_once(':'), numbers.last_mut().unwrap()) {
                (Some((name, _)), _) => name.to_owned(),
                (None, None) => String::new(),
                (None, Some(number)) => {
                    *number += 1;
                    number.to_string()
                }
            };
            path.push(name);
            numbers.push(line.ends_with('[').then_some(0));
        } else if line.starts_with(['}', ')', ']']) {
            path.pop();
            numbers.pop();
        } else if let Some((name, value)) = line.split_once(": ") {
            let mut whole: Vec<&str> =
                path.iter().map(String::as_str).filter(|part| !part.is_empty()).collect();
            whole.push(name);
            found.insert(whole.join("."), value.to_owned());
        }
    }
    found
}

/// Fields that must be the same; the others are counters.
fn is_fixed(path: &str) -> bool {
    let name = path.rsplit('.').next().unwrap_or_default();
    let names = [
        "limit",
        "pagesize",
        "device",
        "major",
        "minor",
        "op",
        "oom_kill_disable",
        "under_oom",
        "oom_kill",
        "oom",
        "oom_group_kill",
        "failcnt",
        "usage_limit",
        "swap_limit",
        "hierarchical_memory_limit",
        "periods",
    ];
    names.contains(&name) || path.contains("pids.")
}

fn is_near(ours: &str, theirs: &str) -> bool {
    /// Pages and faults of one runtime call more or less.
    const NOISE: f64 = 600_000.0;
    match (ours.parse::<f64>(), theirs.parse::<f64>()) {
        (Ok(ours), Ok(theirs)) => {
            let (low, high) = (ours.min(theirs), ours.max(theirs));
            high - low <= NOISE || low / high > 0.3
        }
        _ => ours == theirs,
    }
}

#[test]
fn figures_are_those_of_gos_shim_field_by_field() {
    let Some(go) = go_shim() else { return };
    let rig = Rig::new();
    let work = "dd if=/dev/zero of=/file bs=1M count=24 2>/dev/null; cat /file > /dev/null; i=0
         while [ $i -lt 60 ]; do true | cat; i=$((i+1)); done; i=0; while [ $i -lt 150000 ]; do i=$((i+1)); done; echo > /done; exec sleep 1000";
    for (id, runtime) in [("ours", CLEAT), ("gos", go.to_str().unwrap())] {
        rig.run_with(
            &["--runtime", runtime, "--memory-limit", "134217728"],
            id,
            &["sh", "-c", work],
        );
        until("the work is done", || {
            Path::new(&format!("/proc/{}/root/done", rig.init(id))).exists()
        });
    }
    std::thread::sleep(Duration::from_millis(300));
    let ours = fields(&stats(&mut rig.direct("ours"), "ours"));
    let theirs = fields(&stats(&mut rig.direct("gos"), "gos"));
    let mut differences = Vec::new();
    println!("{:60}{:>24}{:>24}", "field", "Go", "cleat");
    for path in ours.keys().chain(theirs.keys()).collect::<std::collections::BTreeSet<_>>() {
        let (a, b) = (ours.get(path), theirs.get(path));
        let show =
            |value: Option<&String>| value.map_or_else(|| "-".to_owned(), |value| value.clone());
        println!("{path:60}{:>24}{:>24}", show(b), show(a));
        // Go's shim of 1.6 knows neither pressure nor what came with it.
        let newer = ["psi", "peak", "max_usage", "burst", "workingset_", "oom_group", "failcnt"];
        let is_newer = newer.iter().any(|new| path.contains(new));
        let same = match (a, b) {
            // How long something waited is a matter of what else ran.
            (Some(_), Some(_)) if path.contains(".psi.") => true,
            (_, None) | (None, Some(_)) if is_newer => b.is_none_or(|b| b == "None"),
            (Some(_), Some(b)) if is_newer && b == "0" => true,
            (Some(a), Some(b)) if is_fixed(path) => a == b,
            (Some(a), Some(b)) => is_near(a, b),
            _ => false,
        };
        if !same {
            differences.push(format!("{path}: Go {}, cleat {}", show(b), show(a)));
        }
    }
    rig.remove("ours");
    rig.remove("gos");
    assert!(differences.is_empty(), "{differences:#?}");
    assert!(ours.len() > 30, "{ours:?}");
}

/// Every kind of limit that the Task API can change; `None` where that version of cgroups has none.
struct Limit {
    json: &'static str,
    v1: Option<(&'static str, &'static str)>,
    v2: Option<(&'static str, &'static str)>,
}

const fn limit(
    json: &'static str,
    v1: (&'static str, &'static str),
    v2: (&'static str, &'static str),
) -> Limit {
    Limit { json, v1: Some(v1), v2: Some(v2) }
}

const LIMITS: &[Limit] = &[
    limit(
        r#"{"memory":{"limit":67108864}}"#,
        ("memory/memory.limit_in_bytes", "67108864"),
        ("memory.max", "67108864"),
    ),
    limit(
        r#"{"memory":{"reservation":33554432}}"#,
        ("memory/memory.soft_limit_in_bytes", "33554432"),
        ("memory.low", "33554432"),
    ),
    limit(
        r#"{"memory":{"limit":50331648,"swap":67108864}}"#,
        ("memory/memory.limit_in_bytes", "50331648"),
        ("memory.max", "50331648"),
    ),
    limit(r#"{"cpu":{"shares":512}}"#, ("cpu/cpu.shares", "512"), ("cpu.weight", "20")),
    limit(
        r#"{"cpu":{"quota":50000,"period":100000}}"#,
        ("cpu/cpu.cfs_quota_us", "50000"),
        ("cpu.max", "50000 100000"),
    ),
    limit(r#"{"cpu":{"cpus":"0","mems":"0"}}"#, ("cpuset/cpuset.cpus", "0"), ("cpuset.cpus", "0")),
    limit(r#"{"pids":{"limit":77}}"#, ("pids/pids.max", "77"), ("pids.max", "77")),
    Limit {
        json: r#"{"unified":{"memory.high":"60000000"}}"#,
        v1: None,
        v2: Some(("memory.high", "59998208")),
    },
];

/// Asked for as well, but what comes of it depends on runtime and kernel: it must be the same as
/// with Go.
const AS_WITH_GO: &[&str] = &[
    r#"{"blockIO":{"weight":200}}"#,
    r#"{"hugepageLimits":[{"pageSize":"2MB","limit":4194304}]}"#,
    r#"{"cpu":{"cpus":"999"}}"#,
    r#"{"unified":{"no.such.file":"1"}}"#,
    r#"{"memory":{"limit":"many"}}"#,
    r#"{}"#,
];

/// A file of a container's cgroup: `CONTROLLER/FILE` on v1, `FILE` on v2.
fn cgroup_file(rig: &Rig, id: &str, name: &str) -> String {
    let path = match name.split_once('/') {
        Some((controller, file)) => {
            format!("/sys/fs/cgroup/{controller}/{}/{id}/{file}", rig.namespace)
        }
        None => format!("/sys/fs/cgroup/{}/{id}/{name}", rig.namespace),
    };
    read_all(path).trim().to_owned()
}

#[test]
fn every_kind_of_limit_is_updated_as_gos_shim_does() {
    let rig = Rig::new();
    let go = go_shim();
    rig.run("ours", &["sleep", "1000"]);
    if let Some(go) = &go {
        rig.run_with(&["--runtime", go.to_str().unwrap()], "gos", &["sleep", "1000"]);
    }
    for Limit { json, v1, v2 } in LIMITS {
        let Some((file, expected)) = (if support::is_unified() { v2 } else { v1 }) else {
            continue;
        };
        update(&mut rig.direct("ours"), "ours", json).unwrap_or_else(|e| panic!("{json}: {e}"));
        assert_eq!(cgroup_file(&rig, "ours", file), *expected, "{json}: {file}");
        if go.is_some() {
            update(&mut rig.direct("gos"), "gos", json)
                .unwrap_or_else(|e| panic!("Go: {json}: {e}"));
            assert_eq!(cgroup_file(&rig, "gos", file), *expected, "Go: {json}: {file}");
        }
    }
    for json in AS_WITH_GO {
        if go.is_none() {
            break;
        }
        let ours = update(&mut rig.direct("ours"), "ours", json);
        let theirs = update(&mut rig.direct("gos"), "gos", json);
        assert_eq!(ours.is_ok(), theirs.is_ok(), "{json}: Go {theirs:?}, cleat {ours:?}");
        let files = if support::is_unified() {
            ["memory.max", "cpuset.cpus", "io.weight", "hugetlb.2MB.max"]
        } else {
            [
                "memory/memory.limit_in_bytes",
                "cpuset/cpuset.cpus",
                "blkio/blkio.weight",
                "hugetlb/hugetlb.2MB.limit_in_bytes",
            ]
        };
        for file in files {
            assert_eq!(
                cgroup_file(&rig, "ours", file),
                cgroup_file(&rig, "gos", file),
                "{json}: {file}"
            );
        }
        if let Err(ours) = ours {
            assert!(!ours.is_empty(), "{json}");
        }
    }
    // The runtime's own words.
    let refused = update(&mut rig.direct("ours"), "ours", r#"{"cpu":{"cpus":"999"}}"#).unwrap_err();
    assert!(refused.contains("cpuset.cpus"), "{refused}");
    rig.remove("ours");
    if go.is_some() {
        rig.remove("gos");
    }
}

/// A container `b` on the mount of `a`, mounted anew: a user namespace must own nothing of the way
/// there.
fn second_container(
    rig: &Rig,
    direct: &mut Direct,
    change: impl FnOnce(&mut serde_json::Value),
) -> u32 {
    let rbind = cleat::protocol::Mount {
        r#type: "bind".into(),
        source: support::text(&rig.bundle("a").join("rootfs")),
        target: String::new(),
        options: vec!["rbind".into()],
    };
    support::second_container(rig, direct, rbind, change)
}

#[test]
fn a_cgroup_namespace_changes_nothing_for_the_shim() {
    let rig = Rig::new();
    rig.run("a", &["sleep", "1000"]);
    let mut direct = rig.direct("a");
    let pid = second_container(&rig, &mut direct, |config| {
        let namespaces = config["linux"]["namespaces"].as_array_mut().unwrap();
        namespaces.retain(|namespace| namespace["type"] != "cgroup");
        namespaces.push(serde_json::json!({"type": "cgroup"}));
    });
    let namespace = |pid: u32| std::fs::read_link(format!("/proc/{pid}/ns/cgroup")).unwrap();
    assert_ne!(namespace(pid), namespace(std::process::id()));
    // runc's last thread may be on its way out.
    until("one process", || fields(&stats(&mut direct, "b"))["pids.current"] == "1");
    let pids: api::PidsResponse =
        direct.call("Pids", &api::ContainerRequest { id: "b".into() }).unwrap();
    assert_eq!(pids.processes[0].pid, pid);
    assert_eq!(direct.exec_to_end("b", "e", "exit 7"), 7);
    update(&mut direct, "b", r#"{"pids":{"limit":77}}"#).unwrap();
    let file = if support::is_unified() { "pids.max" } else { "pids/pids.max" };
    assert_eq!(cgroup_file(&rig, "b", file), "77");
    support::remove_second_container(&mut direct);
    rig.remove("a");
}

#[test]
fn a_container_in_a_user_namespace_has_figures_streams_and_kills() {
    let rig = Rig::new();
    let events = rig.events();
    rig.run("a", &["sleep", "1000"]);
    let mut direct = rig.direct("a");
    let pid = second_container(&rig, &mut direct, |config| {
        config["linux"]["namespaces"]
            .as_array_mut()
            .unwrap()
            .push(serde_json::json!({"type": "user"}));
        let map = serde_json::json!([{"containerID": 0, "hostID": 100_000, "size": 65536}]);
        (config["linux"]["uidMappings"], config["linux"]["gidMappings"]) = (map.clone(), map);
        config["linux"]["resources"]["memory"]["limit"] = (20 << 20).into();
        // sysfs needs a network namespace of the user namespace's own.
        config["mounts"].as_array_mut().unwrap().retain(|mount| mount["type"] != "sysfs");
    });
    assert!(read_all(format!("/proc/{pid}/uid_map")).contains("100000"));
    let stdout = support::fifo(&rig.dir, "out");
    let mut request = support::exec_request(
        "b",
        "e",
        &process_spec(&["sh", "-c", "id -u; echo more > /dev/stderr"]),
    );
    request.stdout = support::text(&stdout);
    direct.call::<Empty>("Exec", &request).unwrap();
    let mut output = support::reader(&stdout);
    let exec = api::ProcessRequest { id: "b".into(), exec_id: "e".into() };
    direct.call::<api::PidResponse>("Start", &exec).unwrap();
    direct.call::<api::WaitResponse>("Wait", &exec).unwrap();
    let mut seen = [0; 2];
    std::io::Read::read_exact(&mut output, &mut seen).unwrap();
    assert_eq!(&seen, b"0\n");
    direct.call::<api::DeleteResponse>("Delete", &exec).unwrap();
    until("one process", || fields(&stats(&mut direct, "b"))["pids.current"] == "1");
    assert_eq!(direct.exec_to_end("b", "greedy", GREEDY), 137);
    events.wait_for("oom", 1);
    support::remove_second_container(&mut direct);
    rig.remove("a");
}

/// Runs into its limit at once.
const GREEDY: &str = "exec dd if=/dev/zero of=/dev/null bs=40M count=1";

#[test]
fn every_out_of_memory_kill_is_told_before_the_exit() {
    let lives =
        std::env::var("CLEAT_OOM_LIVES").ok().and_then(|text| text.parse().ok()).unwrap_or(25);
    let rig = Rig::new();
    let events = rig.events();
    for life in 0..lives {
        let id = format!("a{life}");
        rig.run_with(
            &["--runtime", CLEAT, "--memory-limit", "20971520"],
            &id,
            &["sh", "-c", GREEDY],
        );
        events.wait_for("exit", life + 1);
        let mut told = events.of(&id);
        assert_eq!(told.pop().as_deref(), Some("exit"), "{id}");
        told.sort();
        assert_eq!(told, ["create", "oom", "start"], "{id}");
        rig.remove(&id);
    }
}

#[test]
fn a_childs_kill_is_told_though_the_container_lives() {
    let rig = Rig::new();
    let events = rig.events();
    let script = format!("({GREEDY}); ({GREEDY}); exec sleep 1000");
    rig.run_with(&["--runtime", CLEAT, "--memory-limit", "20971520"], "a", &["sh", "-c", &script]);
    events.wait_for("oom", 2);
    assert_eq!(rig.status("a").as_deref(), Some("RUNNING"));
    rig.remove("a");
    events.wait_for("delete", 1);
    assert_eq!(events.of("a").iter().filter(|topic| *topic == "oom").count(), 2);
}

/// The limit is the pod's, as of a Kubernetes pod whose containers have none of their own.
#[test]
fn a_kill_for_the_pods_limit_is_told() {
    let rig = Rig::new();
    let events = rig.events();
    let (pod, file) = if support::is_unified() {
        (format!("/sys/fs/cgroup/{}/pod", rig.namespace), "memory.max")
    } else {
        (format!("/sys/fs/cgroup/memory/{}/pod", rig.namespace), "memory.limit_in_bytes")
    };
    std::fs::create_dir_all(&pod).unwrap();
    if support::is_unified() {
        for directory in [Path::new(&pod).parent().unwrap(), Path::new(&pod)] {
            std::fs::write(directory.join("cgroup.subtree_control"), "+memory +pids").unwrap();
        }
    }
    std::fs::write(Path::new(&pod).join(file), "20971520").unwrap();
    let parent = format!("/{}/pod/a", rig.namespace);
    let script = format!("sleep 0.2; {GREEDY}");
    rig.run_with(&["--runtime", CLEAT, "--cgroup", &parent], "a", &["sh", "-c", &script]);
    events.wait_for("exit", 1);
    assert_eq!(events.of("a"), ["create", "start", "oom", "exit"]);
    rig.remove("a");
    for hierarchy in std::fs::read_dir("/sys/fs/cgroup").unwrap().flatten() {
        let _ = std::fs::remove_dir(hierarchy.path().join(&rig.namespace).join("pod"));
    }
    let _ = std::fs::remove_dir(&pod);
}

#[test]
fn a_group_that_is_killed_as_a_whole_is_told() {
    if !support::is_unified() {
        return;
    }
    let rig = Rig::new();
    let events = rig.events();
    let script = format!("sleep 1000 & while [ ! -e /go ]; do sleep 0.05; done; {GREEDY}");
    rig.run_with(&["--runtime", CLEAT, "--memory-limit", "20971520"], "a", &["sh", "-c", &script]);
    let init = rig.init("a");
    std::fs::write(format!("/sys/fs/cgroup/{}/a/memory.oom.group", rig.namespace), "1").unwrap();
    std::fs::write(format!("/proc/{init}/root/go"), "").unwrap();
    events.wait_for("exit", 1);
    let told = events.of("a");
    assert_eq!(told.first().map(String::as_str), Some("create"));
    assert!(
        told.contains(&"oom".to_owned()) && told.last().map(String::as_str) == Some("exit"),
        "{told:?}"
    );
    rig.remove("a");
}

// Where systemd runs: `./dev vm`.
#[test]
fn systemd_makes_the_cgroup_and_it_goes_with_the_container() {
    if !Path::new("/run/systemd/private").exists() {
        return;
    }
    let rig = Rig::new();
    let events = rig.events();
    let flags = [
        "--runtime",
        support::RUNC,
        "--runc-systemd-cgroup",
        "--cgroup",
        "system.slice:cleat-test:a",
    ];
    rig.run_with(
        &[flags.as_slice(), &["--memory-limit", "20971520"]].concat(),
        "a",
        &["sleep", "1000"],
    );
    let scope = Path::new("/sys/fs/cgroup/system.slice/cleat-test-a.scope");
    assert!(read_all(format!("/proc/{}/cgroup", rig.init("a"))).contains("cleat-test-a.scope"));
    let mut direct = rig.direct("a");
    until("one process", || fields(&stats(&mut direct, "a"))["pids.current"] == "1");
    assert_eq!(fields(&stats(&mut direct, "a"))["memory.usage_limit"], "20971520");
    assert_eq!(direct.exec_to_end("a", "e", "exit 7"), 7);
    assert_eq!(direct.exec_to_end("a", "greedy", GREEDY), 137);
    events.wait_for("oom", 1);
    update(&mut direct, "a", r#"{"pids":{"limit":77}}"#).unwrap();
    assert_eq!(read_all(scope.join("pids.max")).trim(), "77");
    rig.remove("a");
    until("the scope is gone", || !scope.exists());
    events.wait_for("delete", 1);
    assert_eq!(events.of("a").iter().filter(|topic| *topic == "oom").count(), 1);
}

/// What criu needs may be missing: it cannot read the newest kernels' vDSO, and wants iptables.
fn criu_works() -> bool {
    let check = Command::new("criu").arg("check").output();
    check.is_ok_and(|output| String::from_utf8_lossy(&output.stdout).contains("Looks good"))
}

fn checkpoint(direct: &mut Direct, id: &str, path: &Path, exit: bool) -> Result<Empty, Status> {
    let options = cleat::protocol::options::CheckpointOptions { exit, ..Default::default() };
    let request = api::CheckpointTaskRequest {
        id: id.into(),
        path: path.to_str().unwrap().into(),
        options: Some(Any::pack(cleat::protocol::options::CHECKPOINT_OPTIONS_URL, &options)),
    };
    direct.call("Checkpoint", &request)
}

// containerd #13033, #2406, #9018, #12108. Defence: `shim/checkpoint.rs`.
#[test]
fn scar_61_a_container_is_saved_and_restored() {
    if !criu_works() {
        return;
    }
    let rig = Rig::new();
    let events = rig.events();
    let count = "i=0; while :; do i=$((i+1)); echo $i > /count; sleep 0.05; done";
    let flags = ["--runtime", CLEAT];
    rig.run_with(&flags, "a", &["sh", "-c", count]);
    let counted = |id: &str| {
        read_all(format!("/proc/{}/root/count", rig.init(id))).trim().parse::<u64>().unwrap_or(0)
    };
    until("it counts", || counted("a") > 5);
    let mut direct = rig.direct("a");
    // It runs on.
    let image = rig.dir.join("image-1");
    std::fs::create_dir(&image).unwrap();
    if let Err(status) = checkpoint(&mut direct, "a", &image, false) {
        panic!("{}\n{}", status.message, read_all(rig.bundle("a").join("criu-dump.log")));
    }
    assert!(image.join("inventory.img").exists());
    let before = counted("a");
    until("it counts on", || counted("a") > before);
    // Then ends with the second one: as every exit, this one is told.
    let image = rig.dir.join("image-2");
    std::fs::create_dir(&image).unwrap();
    checkpoint(&mut direct, "a", &image, true).unwrap();
    events.wait_for("exit", 1);
    assert_eq!(rig.status("a").as_deref(), Some("STOPPED"));
    rig.ctr(["task", "delete", "a"]);
    rig.ctr(["container", "delete", "a"]);
    // ctr's own: image made, container made again from it, with its memory.
    rig.run_with(&flags, "b", &["sh", "-c", count]);
    until("it counts", || counted("b") > 5);
    rig.ctr(["container", "checkpoint", "--rw", "--image", "--task", "b", "checkpoint/b:1"]);
    let saved = counted("b");
    rig.remove("b");
    rig.ctr(["container", "restore", "--rw", "--live", "b", "checkpoint/b:1"]);
    until("the restored one counts on", || counted("b") > saved);
    assert_eq!(rig.direct("b").exec_to_end("b", "e", "exit 7"), 7);
    kill(rig.init("b"), libc::SIGKILL);
    until("its end is seen", || rig.status("b").as_deref() == Some("STOPPED"));
    rig.remove("b");
}

// Where criu is missing or fails, its log is kept and named.
#[test]
fn scar_61_a_checkpoint_that_fails_keeps_its_log_and_the_container() {
    let rig = Rig::new();
    let fails = "case \"$*\" in *' checkpoint '*) for word; do [ \"$last\" = --work-path ] && { mkdir -p \"$word\"; echo criu said why > \"$word/dump.log\"; }
         last=$word; done; echo 'criu failed: type NOTIFY errno 0' >&2; echo 'log file: elsewhere' >&2; exit 1;; esac";
    let flags = rig.runtime_script(fails);
    rig.run_with(&flags.each_ref().map(String::as_str), "a", &["sleep", "1000"]);
    let mut direct = rig.direct("a");
    let refused = checkpoint(&mut direct, "a", &rig.dir.join("image"), true).unwrap_err();
    let log = rig.bundle("a").join("criu-dump.log");
    assert!(refused.message.contains(&format!("path= {}", log.display())), "{}", refused.message);
    assert!(refused.message.contains("criu failed"), "{}", refused.message);
    assert_eq!(read_all(&log), "criu said why\n");
    assert!(!rig.bundle("a").join("criu-work").exists());
    assert_eq!(direct.exec_to_end("a", "e", "exit 7"), 7);
    for (path, what) in
        [("image", "checkpoint \"image\""), ("/run/../etc", "checkpoint \"/run/../etc\"")]
    {
        let refused = checkpoint(&mut direct, "a", Path::new(path), true).unwrap_err();
        assert!(refused.message.contains(what), "{}", refused.message);
        assert_eq!(refused.code, cleat::rpc::Code::InvalidArgument as i32);
    }
    rig.remove("a");
}

// Until Start a container that is made from a checkpoint has no process.
#[test]
fn scar_61_a_checkpoint_that_cannot_be_restored_is_created_fails_to_start_and_is_deleted() {
    let rig = Rig::new();
    rig.run("a", &["sleep", "1000"]);
    let bundle = support::bundle_beside(&rig, |_| {});
    let mut direct = rig.direct("a");
    let create = api::CreateTaskRequest {
        id: "b".into(),
        bundle: bundle.to_str().unwrap().into(),
        checkpoint: rig.dir.join("no-image").to_str().unwrap().into(),
        ..api::CreateTaskRequest::default()
    };
    assert_eq!(direct.call::<api::PidResponse>("Create", &create).unwrap().pid, 0);
    let state = direct.state("b", "").unwrap();
    assert_eq!((state.status, state.pid), (api::Status::Created as i32, 0));
    let process = api::ProcessRequest { id: "b".into(), exec_id: String::new() };
    let exec = support::exec_request("b", "e", &process_spec(&["true"]));
    let refused = direct.call::<Empty>("Exec", &exec).unwrap_err();
    assert!(refused.message.contains("cannot exec in a created state"), "{}", refused.message);
    let refused = checkpoint(&mut direct, "b", &rig.dir, true).unwrap_err();
    assert!(
        refused.message.contains("cannot checkpoint a task in created state"),
        "{}",
        refused.message
    );
    let kill = api::KillRequest { id: "b".into(), exec_id: String::new(), signal: 9, all: false };
    assert_eq!(
        direct.call::<Empty>("Kill", &kill).unwrap_err().code,
        cleat::rpc::Code::NotFound as i32
    );
    for _ in 0..2 {
        let refused = direct.call::<api::PidResponse>("Start", &process).unwrap_err();
        assert!(refused.message.contains("OCI runtime restore failed"), "{}", refused.message);
    }
    assert_eq!(direct.call::<api::DeleteResponse>("Delete", &process).unwrap().pid, 0);
    rig.remove("a");
}

// Rootless: a user without any right, in a user namespace of his own, with runc, shim and client in
// it.
#[test]
fn a_user_without_rights_runs_a_container() {
    use std::os::unix::{fs::chown, process::CommandExt};
    const NOBODY: u32 = 65_534;
    let place = tempfile::tempdir_in("/tmp").unwrap();
    let bundle = place.path().join("bundle");
    std::fs::create_dir_all(bundle.join("rootfs/bin")).unwrap();
    for name in ["proc", "sys", "dev"] {
        std::fs::create_dir(bundle.join("rootfs").join(name)).unwrap();
    }
    for (from, to) in [
        (Path::new("/bin/busybox"), "bundle/rootfs/bin/busybox"),
        (&support::shim_binary(), "containerd-shim-cleat-v2"),
        (&support::cli_binary(), "cleat"),
    ] {
        std::fs::copy(from, place.path().join(to)).unwrap();
    }
    for path in [place.path(), &bundle] {
        chown(path, Some(NOBODY), Some(NOBODY)).unwrap();
    }
    let script = "mount -t tmpfs tmpfs /run && cd bundle && runc spec --rootless && \
        PATH=..:$PATH ../cleat run --no-tty . busybox sh -c 'busybox id -u; busybox cat /proc/self/uid_map; exit 3'";
    let mut command = Command::new("unshare");
    command.args(["-U", "-r", "-m", "-p", "-f", "--mount-proc", "sh", "-c", script]);
    command
        .current_dir(place.path())
        .uid(NOBODY)
        .gid(NOBODY)
        .env("HOME", place.path())
        .stdin(Stdio::null());
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(output.status.code(), Some(3), "{text} {}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(text.split_whitespace().collect::<Vec<_>>(), ["0", "0", "0", "1"], "{text}");
}

// The option ShimCgroup: on v1 in every hierarchy that has that path.
#[test]
fn the_shim_lives_in_the_cgroup_that_is_asked_for() {
    let name = format!("/cleat-test-{}-shim", std::process::id());
    let hierarchies: &[&str] = if support::is_unified() { &[""] } else { &["/memory", "/pids"] };
    let directories: Vec<PathBuf> = hierarchies
        .iter()
        .map(|hierarchy| PathBuf::from(format!("/sys/fs/cgroup{hierarchy}{name}")))
        .collect();
    for directory in &directories {
        std::fs::create_dir(directory).unwrap();
    }
    let place = support::Place::new("shim-cgroup-there");
    place.bundle("a", "{}");
    let options = Options { shim_cgroup: name.clone(), ..Default::default() };
    let output = place.start("a", &Any::pack(OPTIONS_URL, &options).encode_to_vec());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let cgroups = read_all(format!("/proc/{}/cgroup", place.daemons()[0]));
    let joined = cgroups.lines().filter(|line| line.ends_with(&format!(":{name}"))).count();
    assert_eq!(joined, directories.len(), "{cgroups}");
    drop(place);
    for directory in &directories {
        until("the cgroup is empty", || std::fs::remove_dir(directory).is_ok());
    }
}
