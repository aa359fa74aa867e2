//! Scars that need a driver in the place of containerd: its own event server, its own log reader,
//! its own pid space. `CLEAT_TEST_SHIM` is the binary under test.
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    missing_docs,
    reason = "tests may block, and end at the first surprise"
)]

use cleat::protocol::{
    Any,
    options::{OPTIONS_URL, Options},
    task as api,
};
use cleat_bench::{Client, Driver, Verdict};
use std::{
    path::PathBuf,
    process::Command,
    rc::Rc,
    time::{Duration, Instant},
};

fn shim() -> PathBuf {
    std::env::var_os("CLEAT_TEST_SHIM")
        .expect("CLEAT_TEST_SHIM names the shim; ./dev test sets it")
        .into()
}

/// Runs a test on a driver; nothing may be left at its end.
fn with_driver<F: Future<Output = ()>>(test: impl FnOnce(Rc<Driver>) -> F) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    tokio::task::LocalSet::new().block_on(&runtime, async {
        let driver = Driver::new("test", &shim(), &cleat_bench::Annotations::new()).await.unwrap();
        test(Rc::clone(&driver)).await;
        let left = driver.leftovers_after(Duration::from_secs(20)).await;
        driver.tidy();
        assert!(left.is_empty(), "{left:#?}");
    });
}

async fn exec(client: &mut Client, id: &str, exec: &str, code: u32) {
    client.exec(id, exec, &["sh", "-c", &format!("exit {code}")], "").await.unwrap();
    client.process::<api::PidResponse>("Start", id, exec).await.unwrap();
    let waited: api::WaitResponse = client.process("Wait", id, exec).await.unwrap();
    assert_eq!(waited.exit_status, code);
    client.process::<api::DeleteResponse>("Delete", id, exec).await.unwrap();
}

// containerd #13049, runc #4045. Defence: pidfds, opened before anything can reap
// (`Reaper::watch_process`).
#[test]
fn scar_07_reused_pids_mix_up_no_exits() {
    // A pid namespace with 1,200 numbers: each is used again within seconds. Its pid 1 is the
    // shell, which reaps.
    let script = "echo 1200 > /proc/sys/kernel/pid_max && \"$@\"; exit $?";
    let output = Command::new("unshare")
        .args(["--pid", "--fork", "--mount-proc", "--kill-child", "sh", "-c", script, "sh"])
        .arg(env!("CARGO_BIN_EXE_soak"))
        .arg("0.25")
        .arg(format!("shim={}", shim().display()))
        .args(["--lives", "0"])
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    if String::from_utf8_lossy(&output.stderr).contains("Invalid argument") {
        // Before Linux 6.14 pid_max is one for all.
        return;
    }
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
}

// containerd #4784, #12400. Defence: `Publisher::send_head`: the head stays until it is
// acknowledged, nothing overtakes it.
#[test]
fn scar_54_a_server_that_refuses_every_third_event_gets_each_once_and_in_order() {
    with_driver(|driver| async move {
        driver.ledger.refuse_every(3);
        let id = driver.fresh("a");
        let (pod, mut client) = driver.running(&id, &["sleep", "1000"]).await.unwrap();
        for number in 0..20 {
            exec(&mut client, &id, &format!("e{number}"), number).await;
        }
        driver.end(&mut client, &pod).await.unwrap();
        let deadline = Instant::now() + Duration::from_secs(30);
        while !driver.ledger.has(&id, "delete") && Instant::now() < deadline {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        for number in 0..20 {
            assert_eq!(
                driver.ledger.settle_exec(&id, &format!("e{number}"), number),
                Verdict::default()
            );
        }
        assert_eq!(driver.ledger.settle(&id, 137), Verdict::default());
    });
}

// containerd-shim-spin #17. Defence: calls are logged at debug, only faults above.
#[test]
fn scar_63_a_thousand_execs_leave_less_than_a_kilobyte_of_log() {
    with_driver(|driver| async move {
        let id = driver.fresh("a");
        let (pod, mut client) = driver.running(&id, &["sleep", "1000"]).await.unwrap();
        for number in 0..1000 {
            exec(&mut client, &id, &format!("e{number}"), number % 200).await;
        }
        assert!(driver.log_bytes() <= 1024, "{} bytes", driver.log_bytes());
        driver.end(&mut client, &pod).await.unwrap();
    });
}

// Contract: 100 ms. Defence: no runtime call is awaited under a borrow.
#[test]
fn everything_answers_within_100_ms_while_the_runtime_hangs() {
    with_driver(|driver| async move {
        // A runtime that sleeps in exec as long as a file is there.
        let (runtime, stop) = (driver.directory().join("runtime"), driver.directory().join("stop"));
        let script = format!(
            "#!/bin/sh\ncase \"$*\" in *' exec '*) while [ -e {} ]; do sleep 0.1; done;; esac\nexec runc \"$@\"\n",
            stop.display()
        );
        std::fs::write(&runtime, script).unwrap();
        std::fs::set_permissions(&runtime, std::os::unix::fs::PermissionsExt::from_mode(0o755))
            .unwrap();
        std::fs::write(&stop, "").unwrap();
        let id = driver.fresh("a");
        let (pod, mut client) = driver.pod(&id, &["sleep", "1000"]).await.unwrap();
        let mut create = driver.create_request(&id, &pod.bundle);
        let options = Options { binary_name: runtime.display().to_string(), ..Options::default() };
        create.options = Some(Any::pack(OPTIONS_URL, &options));
        client.call::<api::PidResponse>("Create", &create).await.unwrap();
        client.process::<api::PidResponse>("Start", &id, "").await.unwrap();
        client.exec(&id, "hung", &["true"], "").await.unwrap();
        let start = api::ProcessRequest { id: id.clone(), exec_id: "hung".to_owned() };
        let call = client.send("Start", &start).await.unwrap();
        let mut other = Client::connect(&pod.socket).await.unwrap();
        let container = api::ContainerRequest { id: id.clone() };
        let mut times = Vec::new();
        for number in 0..400 {
            let begun = Instant::now();
            match number % 4 {
                0 => drop(other.process::<api::StateResponse>("State", &id, "").await.unwrap()),
                1 => drop(other.call::<api::StatsResponse>("Stats", &container).await.unwrap()),
                2 => drop(other.call::<api::PidsResponse>("Pids", &container).await.unwrap()),
                _ => drop(other.kill(&id, "", 0).await),
            }
            times.push(begun.elapsed());
        }
        times.sort();
        // A machine that is busy with other tests delays one or the other.
        let almost_all = times[times.len() * 99 / 100];
        assert!(almost_all < Duration::from_millis(100), "{almost_all:?}");
        std::fs::remove_file(&stop).unwrap();
        client.answer::<api::PidResponse>("Start", call).await.unwrap();
        client.process::<api::WaitResponse>("Wait", &id, "hung").await.unwrap();
        client.process::<api::DeleteResponse>("Delete", &id, "hung").await.unwrap();
        driver.end(&mut client, &pod).await.unwrap();
    });
}

// Each test that docs/regressions.md names is there, and each test with a number is named.
#[test]
fn the_list_of_regressions_and_the_tests_are_the_same() {
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/..");
    let list = std::fs::read_to_string(format!("{root}/docs/regressions.md")).unwrap();
    let mut directories: Vec<PathBuf> = ["tests/suite", "bench/tests", "src", "cli/src"]
        .map(|name| format!("{root}/{name}").into())
        .into();
    let mut sources = Vec::new();
    while let Some(directory) = directories.pop() {
        for entry in std::fs::read_dir(directory).unwrap().flatten().map(|entry| entry.path()) {
            match entry.extension() {
                Some(extension) if extension == "rs" => {
                    sources.push(std::fs::read_to_string(entry).unwrap())
                }
                _ if entry.is_dir() => directories.push(entry),
                _ => {}
            }
        }
    }
    let is_there = |name: &str| sources.iter().any(|text| text.contains(&format!("fn {name}()")));
    for line in list.lines().filter(|line| line.starts_with("| ") && !line.starts_with("| |")) {
        let tests = line.split(" | ").nth(2).unwrap();
        for word in tests.split('`').skip(1).step_by(2).filter(|word| !word.starts_with("./dev")) {
            let name = word.rsplit("::").next().unwrap();
            assert!(is_there(name), "{name} is named and is not there");
        }
    }
    for text in &sources {
        let names = text.split("\nfn scar_").skip(1).filter_map(|rest| rest.split('(').next());
        for name in names {
            assert!(
                list.contains(&format!("scar_{name}`")),
                "scar_{name} is not in docs/regressions.md"
            );
        }
    }
    for number in 1..=74 {
        assert!(list.contains(&format!("\n| {number} | ")), "{number}");
    }
    for number in 1..=43 {
        assert!(list.contains(&format!("\n| F{number} | ")), "F{number}");
    }
}
