//! What people read when something fails, and the hint in it: a test for each line of
//! docs/errors.md.

use crate::support::{
    self, CLEAT, Direct, IMAGE, Place, RUNC, Rig, exec_request, process, process_spec, read_all,
};
use cleat::protocol::{
    Any, Empty, Mount,
    options::{GENERIC_OPTIONS_URL, GenericOptions, OPTIONS_URL, Options},
    task as api,
};
use prost::Message;
use std::{
    path::Path,
    process::Command,
    sync::atomic::{AtomicU32, Ordering},
};

/// The hint of the line of docs/errors.md that names this test.
fn hint_of(test: &str) -> String {
    let table = read_all(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/errors.md"));
    let line = table
        .lines()
        .find(|line| line.contains(&format!("| `{test}`")))
        .unwrap_or_else(|| panic!("{test} is not in docs/errors.md"));
    line.split(" | ").nth(1).unwrap().to_owned()
}

/// One line, with the sentence, and at its end the hint.
fn assert_told(text: &str, sentence: &str, test: &str) {
    let text = text.trim();
    assert!(text.contains(sentence), "{text:?} lacks {sentence:?}");
    assert!(text.contains(&format!("; hint: {}", hint_of(test))), "{text:?} lacks the hint");
    assert_eq!(text.lines().count(), 1, "{text:?}");
}

/// `ctr run` that fails, as a user sees it.
fn refused(rig: &Rig, flags: &[&str], command: &[&str]) -> String {
    let output =
        rig.try_ctr([&["run", "--rm", "--null-io"], flags, &[IMAGE, "a"], command].concat());
    assert!(!output.status.success());
    let _ = rig.try_ctr(["container", "delete", "a"]);
    String::from_utf8(output.stderr).unwrap().trim_start_matches("ctr: ").to_owned()
}

#[test]
fn a_missing_runtime() {
    let rig = Rig::new();
    let text = refused(&rig, &["--runtime", RUNC, "--runc-binary", "nonesuch"], &["true"]);
    assert_told(
        &text,
        "exec: \"nonesuch\": executable file not found in $PATH",
        "a_missing_runtime",
    );
}

#[test]
fn a_program_that_is_not_in_the_image() {
    let rig = Rig::new();
    for program in ["/nope", "nope"] {
        let text = refused(&rig, &["--runtime", CLEAT], &[program]);
        assert_told(&text, &format!("exec: \"{program}\""), "a_program_that_is_not_in_the_image");
    }
    // An exec's as well.
    rig.run("a", &["sleep", "1000"]);
    let mut direct = rig.direct("a");
    direct.call::<Empty>("Exec", &exec_request("a", "e", &process_spec(&["/nope"]))).unwrap();
    let refused = direct.call::<api::PidResponse>("Start", &process("a", "e")).unwrap_err();
    assert_told(&refused.message, "OCI runtime exec failed", "a_program_that_is_not_in_the_image");
    rig.remove("a");
}

#[test]
fn a_program_that_may_not_be_executed() {
    let rig = Rig::new();
    let text = refused(&rig, &["--runtime", CLEAT], &["/etc"]);
    assert_told(&text, "permission denied", "a_program_that_may_not_be_executed");
}

#[test]
fn a_volume_that_is_not_there() {
    let rig = Rig::new();
    let text = refused(
        &rig,
        &["--runtime", CLEAT, "--mount", "type=bind,src=/no/such/source,dst=/mnt,options=rbind"],
        &["true"],
    );
    assert_told(&text, "error mounting \"/no/such/source\"", "a_volume_that_is_not_there");
}

/// What Create answers, past containerd.
fn create(change: impl FnOnce(&mut api::CreateTaskRequest)) -> String {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let place = Place::new(&format!("errors-{}", NUMBER.fetch_add(1, Ordering::Relaxed)));
    let config =
        r#"{"ociVersion":"1.0.2","process":{"cwd":"/","args":["true"]},"root":{"path":"rootfs"}}"#;
    let bundle = place.bundle("a", config);
    let (mut direct, mut request) = started(&place, &bundle);
    change(&mut request);
    direct.call::<api::PidResponse>("Create", &request).unwrap_err().message
}

/// A shim for container `a`, and the Create request for it.
fn started(place: &Place, bundle: &Path) -> (Direct, api::CreateTaskRequest) {
    let output = place.start("a", b"");
    let address = String::from_utf8(output.stdout).unwrap();
    let direct = Direct::connect(Path::new(address.strip_prefix("unix://").unwrap()));
    let bundle = bundle.to_string_lossy().into_owned();
    (direct, api::CreateTaskRequest { id: "a".into(), bundle, ..Default::default() })
}

fn mount(kind: &str, source: &str, options: &[&str]) -> Vec<Mount> {
    let options = options.iter().map(|option| (*option).to_owned()).collect();
    vec![Mount { r#type: kind.into(), source: source.into(), target: String::new(), options }]
}

#[test]
fn a_snapshot_that_has_gone() {
    let text =
        create(|request| request.rootfs = mount("bind", "/no/such/snapshot", &["rbind", "rw"]));
    assert_told(
        &text,
        "failed to mount rootfs component: mount source",
        "a_snapshot_that_has_gone",
    );
}

#[test]
fn a_file_system_that_the_kernel_lacks() {
    let text = create(|request| request.rootfs = mount("nonesuchfs", "none", &[]));
    assert_told(&text, "failed to mount rootfs component", "a_file_system_that_the_kernel_lacks");
}

#[test]
fn a_mount_that_needs_a_helper() {
    let text = create(|request| request.rootfs = mount("fuse3.nonesuch", "none", &["ro"]));
    let sentence = "failed to mount rootfs component: mount helper [mount.fuse3 none ";
    assert_told(&text, sentence, "a_mount_that_needs_a_helper");
}

#[test]
fn a_full_disk() {
    let place = Place::new("full");
    let bundle = place.bundle("a", "");
    assert!(
        Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=64k", "cleat-test"])
            .arg(&bundle)
            .status()
            .unwrap()
            .success()
    );
    place.bundle("a", "{}");
    let (mut direct, request) = started(&place, &bundle);
    let _ = std::fs::write(bundle.join("filler"), vec![0; 128 << 10]);
    let text = direct.call::<api::PidResponse>("Create", &request).unwrap_err().message;
    assert!(Command::new("umount").args(["-l"]).arg(&bundle).status().unwrap().success());
    assert_told(&text, "No space left on device", "a_full_disk");
}

#[test]
fn a_scheme_that_nobody_knows() {
    let text = create(|request| request.stdout = "carrier-pigeon:///x".into());
    assert_told(&text, "unknown STDIO scheme carrier-pigeon", "a_scheme_that_nobody_knows");
}

#[test]
fn a_logging_program_that_ends() {
    let text = create(|request| request.stdout = "binary:///bin/false".into());
    assert_told(&text, "wait until ready: logger /bin/false", "a_logging_program_that_ends");
}

#[test]
fn a_fifo_that_has_gone() {
    let text = create(|request| request.stdout = "/run/no-such-fifo".into());
    assert_told(&text, "process I/O: find /run/no-such-fifo", "a_fifo_that_has_gone");
}

fn generic(options: GenericOptions) -> Option<Any> {
    Some(Any { type_url: GENERIC_OPTIONS_URL.into(), value: options.encode_to_vec() })
}

#[test]
fn options_that_are_wrong() {
    let body = b"SystemdCgroup = \"yes\"\n".to_vec();
    let text = create(|request| {
        request.options = generic(GenericOptions { config_body: body, ..Default::default() })
    });
    assert_told(
        &text,
        "runtime option SystemdCgroup is no boolean but a string",
        "options_that_are_wrong",
    );
}

#[test]
fn options_of_another_runtime() {
    let text = create(|request| {
        request.options = Some(Any { type_url: "kata.Options".into(), value: vec![8, 1] })
    });
    assert_told(&text, "unknown options type \"kata.Options\"", "options_of_another_runtime");
}

#[test]
fn options_in_a_file_that_is_not_there() {
    let options = GenericOptions { config_path: "/no/such.toml".into(), ..Default::default() };
    let text = create(|request| request.options = generic(options));
    assert_told(
        &text,
        "read runtime options from /no/such.toml",
        "options_in_a_file_that_is_not_there",
    );
}

#[test]
fn a_shim_cgroup_that_is_not_there() {
    let place = Place::new("shim-cgroup");
    place.bundle("a", "{}");
    let options = Options { shim_cgroup: "/no/such/cgroup".into(), ..Default::default() };
    let input =
        Any { type_url: OPTIONS_URL.into(), value: options.encode_to_vec() }.encode_to_vec();
    let output = place.start("a", &input);
    assert!(!output.status.success() && output.stdout.is_empty());
    let text = String::from_utf8(output.stderr).unwrap();
    assert_told(
        &text,
        "containerd-shim-cleat-v2: join shim cgroup /no/such/cgroup",
        "a_shim_cgroup_that_is_not_there",
    );
}

#[test]
fn a_spool_that_is_no_size() {
    let rig = Rig::new();
    let options = rig.runtime_options("options.toml", "Spool = 'much'");
    let text = refused(&rig, &options.each_ref().map(String::as_str), &["true"]);
    assert!(text.contains("spool \"much\" is not SIZE[,wait|,drop-oldest]"), "{text}");
}

#[test]
fn a_working_directory_that_is_none() {
    let rig = Rig::new();
    rig.run("a", &["sleep", "1000"]);
    let mut spec = process_spec(&["true"]);
    spec["cwd"] = "/etc/passwd".into();
    let mut direct = rig.direct("a");
    direct.call::<Empty>("Exec", &exec_request("a", "e", &spec)).unwrap();
    let refused = direct.call::<api::PidResponse>("Start", &process("a", "e")).unwrap_err();
    assert_told(&refused.message, "chdir to cwd", "a_working_directory_that_is_none");
    rig.remove("a");
}

#[test]
fn a_logging_program_that_is_not_there() {
    let text = create(|request| request.stdout = "binary:///no/such/logger".into());
    assert_told(&text, "start logger /no/such/logger", "a_logging_program_that_is_not_there");
}

#[test]
fn an_output_path_that_is_none() {
    let text = create(|request| request.stdout = "relative/path".into());
    assert_told(&text, "invalid stdout path", "an_output_path_that_is_none");
}

// The deadline of a call that runs no hooks is a minute, so this test takes one.
#[test]
fn a_runtime_that_hangs() {
    let rig = Rig::new();
    let flags = rig.runtime_script("case \" $* \" in *' pause '*) exec sleep 300;; esac");
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    rig.run_with(&flags, "a", &["sleep", "1000"]);
    let output = rig.try_ctr(["task", "pause", "a"]);
    let text = String::from_utf8(output.stderr).unwrap();
    assert_told(&text, "no answer in 60 s, killed", "a_runtime_that_hangs");
    rig.remove("a");
}

#[test]
fn too_many_execs() {
    let rig = Rig::new();
    rig.run("a", &["sleep", "1000"]);
    let mut direct = rig.direct("a");
    let spec = process_spec(&["true"]);
    for number in 0..8192 {
        direct.call::<Empty>("Exec", &exec_request("a", &format!("e{number}"), &spec)).unwrap();
    }
    let refused = direct.call::<Empty>("Exec", &exec_request("a", "one-more", &spec)).unwrap_err();
    assert_told(&refused.message, "more than 8192 execs in the container", "too_many_execs");
    rig.remove("a");
}

/// Start of an exec, after something was taken from the shim.
fn exec_without(take: impl FnOnce(u32), give_back: impl FnOnce(u32)) -> String {
    let rig = Rig::new();
    rig.run("a", &["sleep", "1000"]);
    let mut direct = rig.direct("a");
    direct.call::<Empty>("Exec", &exec_request("a", "e", &process_spec(&["true"]))).unwrap();
    let shim = rig.shim();
    take(shim);
    let refused = direct.call::<api::PidResponse>("Start", &process("a", "e")).unwrap_err();
    give_back(shim);
    rig.remove("a");
    refused.message
}

#[test]
fn out_of_descriptors() {
    let limit = |limit: &'static str| {
        move |shim: u32| {
            let arguments = ["--pid".to_owned(), shim.to_string(), format!("--nofile={limit}")];
            assert!(Command::new("prlimit").args(arguments).status().unwrap().success());
        }
    };
    // The soft limit only: the hard one cannot be raised again everywhere.
    let text = exec_without(limit("5:"), limit("1000:"));
    assert_told(&text, "Too many open files", "out_of_descriptors");
}

#[test]
fn out_of_processes() {
    let place = Place::new("pids");
    let name = place.dir.file_name().unwrap().to_owned();
    let v1 = Path::new("/sys/fs/cgroup/pids");
    let cgroup = if v1.exists() { v1.join(name) } else { Path::new("/sys/fs/cgroup").join(name) };
    std::fs::create_dir(&cgroup).unwrap();
    let before = std::cell::Cell::new(None);
    let text = exec_without(
        |shim| {
            let old = read_all(format!("/proc/{shim}/cgroup"));
            let old = old
                .lines()
                .find(|line| line.contains(":pids:") || line.starts_with("0::"))
                .unwrap();
            let old = old.rsplit(':').next().unwrap().to_owned();
            before.set(Some(old));
            std::fs::write(cgroup.join("cgroup.procs"), shim.to_string()).unwrap();
            std::fs::write(cgroup.join("pids.max"), "1").unwrap();
        },
        |shim| {
            let old = before.take().unwrap();
            let root = cgroup.parent().unwrap();
            std::fs::write(
                root.join(old.trim_start_matches('/')).join("cgroup.procs"),
                shim.to_string(),
            )
            .unwrap();
        },
    );
    support::until("the cgroup is empty", || std::fs::remove_dir(&cgroup).is_ok());
    assert_told(&text, "Resource temporarily unavailable", "out_of_processes");
}

#[test]
fn a_read_only_file_system() {
    let place = Place::new("read-only");
    let bundle = place.bundle("a", "{}");
    let mount = |flags: &[&str]| {
        assert!(Command::new("mount").args(flags).arg(&bundle).status().unwrap().success());
    };
    mount(&["-t", "tmpfs", "cleat-test"]);
    place.bundle("a", "{}");
    let (mut direct, request) = started(&place, &bundle);
    mount(&["-o", "remount,ro"]);
    let text = direct.call::<api::PidResponse>("Create", &request).unwrap_err().message;
    assert!(Command::new("umount").args(["-l"]).arg(&bundle).status().unwrap().success());
    assert_told(&text, "Read-only file system", "a_read_only_file_system");
}

#[test]
fn a_checkpoint_that_fails() {
    let rig = Rig::new();
    let flags = rig
        .runtime_script("case \" $* \" in *' checkpoint '*) echo 'criu failed' >&2; exit 1;; esac");
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    rig.run_with(&flags, "a", &["sleep", "1000"]);
    let path = rig.dir.join("checkpoint").to_string_lossy().into_owned();
    let request = api::CheckpointTaskRequest { id: "a".into(), path, options: None };
    let refused = rig.direct("a").call::<Empty>("Checkpoint", &request).unwrap_err();
    assert_told(&refused.message, "path= ", "a_checkpoint_that_fails");
    rig.remove("a");
}

#[test]
fn a_socket_path_that_is_too_long() {
    let place = Place::new("long");
    place.bundle("a", "{}");
    let socket_dir = format!("/run/{}", "d".repeat(60));
    let params = cleat::protocol::bootstrap::Params {
        instance_id: "a".into(),
        socket_dir,
        ..Default::default()
    };
    let output = place.start("a", &params.encode_to_vec());
    assert!(!output.status.success());
    assert_told(
        &String::from_utf8(output.stderr).unwrap(),
        "is longer than 106 bytes",
        "a_socket_path_that_is_too_long",
    );
}

// The table is true: each test that it names is there, and each test here is in it.
#[test]
fn the_table_and_the_tests_are_the_same() {
    let root = env!("CARGO_MANIFEST_DIR");
    let (table, here) = (
        read_all(format!("{root}/docs/errors.md")),
        read_all(format!("{root}/tests/suite/errors.rs")),
    );
    let units = read_all(format!("{root}/src/remedy.rs"));
    let mut named = Vec::new();
    for line in table.lines().filter(|line| line.starts_with("| `")) {
        let last = line.trim_end_matches(" |").rsplit(" | ").next().unwrap();
        let name = last.split('`').nth(1).unwrap();
        let place = if last.contains("unit test") { &units } else { &here };
        assert!(place.contains(&format!("fn {name}()")), "{name}");
        named.push(name);
    }
    let tests = here.split("#[test]\nfn ").skip(1).map(|rest| rest.split('(').next().unwrap());
    for test in tests.filter(|test| *test != "the_table_and_the_tests_are_the_same") {
        assert!(named.contains(&test), "{test} is not in docs/errors.md");
    }
}
