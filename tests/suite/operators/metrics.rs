//! `cleat metrics`.

use super::{Follower, cleat, output, stderr, stdout, succeeds};
use crate::support::{Rig, until};
use std::{
    io::{Read, Write},
    os::unix::net::{UnixListener, UnixStream},
    path::Path,
    process::{Command, Output},
    time::{Duration, Instant},
};

#[test]
fn metrics_are_prometheus_text_and_served_over_a_socket() {
    let rig = Rig::new();
    rig.run("a", &["sleep", "1000"]);
    let pid = rig.shim().to_string();
    let refused = output(&["metrics", "--listen", "9477"]);
    assert!(stderr(&refused).contains("ADDRESS:PORT or unix:PATH"), "{refused:?}");
    let text = succeeds(&["metrics"]);
    let mut families = Vec::new();
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            families.push(rest.split(' ').next().unwrap());
        } else if !line.starts_with('#') {
            let (name, value) = line.rsplit_once(' ').unwrap();
            assert!(value.parse::<f64>().is_ok(), "{line}");
            assert_eq!(name.split('{').next(), families.last().copied(), "{line}");
        }
    }
    assert!(
        families.len() > 15 && families.iter().all(|name| name.starts_with("cleat_")),
        "{families:?}"
    );
    assert!(
        text.contains(&format!("cleat_shim_containers{{pid=\"{pid}\",status=\"running\"}} 1")),
        "{text}"
    );
    let socket = rig.dir.join("metrics.sock");
    // A dead one from a former life is in the way.
    drop(UnixListener::bind(&socket).unwrap());
    let _server = Follower::new(&["metrics", "--listen", &format!("unix:{}", socket.display())]);
    let get = |path: &str| {
        let mut stream = UnixStream::connect(&socket).ok()?;
        stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: node\r\n\r\n").as_bytes()).ok()?;
        let mut text = String::new();
        stream.read_to_string(&mut text).ok()?;
        Some(text)
    };
    until("it serves", || get("/metrics").is_some());
    let answer = get("/metrics").unwrap();
    assert!(
        answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.contains(&format!("pid=\"{pid}\"")),
        "{answer}"
    );
    assert!(get("/").unwrap().starts_with("HTTP/1.1 404"));
    rig.remove("a");
}

/// What packaging/systemd/cleat-metrics.service gives it: a mount namespace of its own, and few
/// capabilities.
fn confined(capabilities: &str) -> Output {
    let cleat = cleat(&["metrics"]);
    let bounding = format!("--bounding-set=-all,{capabilities}");
    Command::new("unshare")
        .args(["-m", "setpriv", &bounding, "--inh-caps=-all", "--no-new-privs"])
        .arg(cleat.get_program())
        .arg("metrics")
        .output()
        .unwrap()
}

#[test]
fn metrics_see_the_node_from_a_mount_namespace_of_their_own() {
    let rig = Rig::new();
    rig.run("a", &["sleep", "1000"]);
    let pid = rig.shim();
    let unit = crate::support::read_all(concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/packaging/systemd/cleat-metrics.service"
    ));
    assert!(
        unit.contains("CapabilityBoundingSet=CAP_SYS_PTRACE CAP_DAC_READ_SEARCH")
            && unit.contains("ProtectHome=yes")
    );
    let seen = confined("+sys_ptrace,+dac_read_search");
    assert!(
        stdout(&seen).contains(&format!("cleat_shim_answers{{pid=\"{pid}\"")),
        "{}{}",
        stdout(&seen),
        stderr(&seen)
    );
    // Where the node cannot be seen there are no zeros.
    let blind = confined("+dac_read_search");
    assert!(
        !blind.status.success()
            && blind.stdout.is_empty()
            && stderr(&blind).contains("CAP_SYS_PTRACE"),
        "{}",
        stdout(&blind)
    );
    rig.remove("a");
}

#[test]
fn silent_clients_delay_nobody() {
    let rig = Rig::new();
    let socket = rig.dir.join("metrics.sock");
    let _server = Follower::new(&["metrics", "--listen", &format!("unix:{}", socket.display())]);
    until("it serves", || UnixStream::connect(&socket).is_ok());
    let silent: Vec<UnixStream> = (0..100).map(|_| UnixStream::connect(&socket).unwrap()).collect();
    let begun = Instant::now();
    let threads: Vec<_> = (0..20)
        .map(|_| {
            let socket = socket.clone();
            std::thread::spawn(move || scrape(&socket))
        })
        .collect();
    for thread in threads {
        assert!(thread.join().unwrap().starts_with("HTTP/1.1 200 OK"));
    }
    // One after the other, each silent one would have had its ten seconds.
    assert!(begun.elapsed() < Duration::from_secs(60));
    drop(silent);
}

fn scrape(socket: &Path) -> String {
    let mut stream = UnixStream::connect(socket).unwrap();
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: node\r\n\r\n").unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    text
}
