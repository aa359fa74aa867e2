//! `io ROUNDS [LOAD...] LABEL=SHIM...`: how a shim moves what containers write, shim beside shim, alternating. The first shim's figures are divided by each
//! other's. Loads: bulk (64 KiB writes), lines (100-byte writes), a console, 50 containers of one pod that write lines. The reader takes
//! 32 KiB at a time, as containerd does (io.CopyBuffer).

use cleat::protocol::task as api;
use cleat_bench::{Client, Driver, DriverError, Pod, measure};
use std::{
    io::Read,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    rc::Rc,
    time::Instant,
};

type Result<T> = std::result::Result<T, DriverError>;

/// A load: what each container runs, how many there are, and what it moves.
struct Load {
    name: &'static str,
    containers: usize,
    /// Arguments of dd(1): size of a write, number of writes.
    write: u64,
    writes: u64,
    terminal: bool,
}

const LOADS: &[Load] = &[
    Load { name: "bulk", containers: 1, write: 64 << 10, writes: 24 << 10, terminal: false },
    Load { name: "lines", containers: 1, write: 100, writes: 3_000_000, terminal: false },
    Load { name: "console", containers: 1, write: 4096, writes: 16 << 10, terminal: true },
    Load { name: "chatty", containers: 50, write: 100, writes: 40_000, terminal: false },
];

/// What one run showed.
#[derive(Clone, Copy)]
struct Figures {
    megabytes_per_second: f64,
    writes_per_second: f64,
    cpu: f64,
    switches: f64,
}

fn main() {
    let mut arguments = std::env::args().skip(1).peekable();
    let rounds: usize = arguments.next().and_then(|text| text.parse().ok()).unwrap_or(0);
    let mut only = Vec::new();
    while let Some(name) = arguments.next_if(|word| !word.contains('=')) {
        only.push(name);
    }
    let shims: Vec<(String, PathBuf)> = arguments
        .filter_map(|a| a.split_once('=').map(|(label, path)| (label.to_owned(), PathBuf::from(path))))
        .collect();
    if rounds == 0 || shims.is_empty() {
        eprintln!("usage: io ROUNDS [LOAD...] LABEL=SHIM...");
        std::process::exit(2);
    }
    println!(
        "{:8} {:>8} {:>9} {:>11} {:>9} {:>10} | of the first, divided by this one's: rate, CPU, switches",
        "load", "shim", "MB/s", "writes/s", "CPU s", "switches"
    );
    for load in LOADS.iter().filter(|load| only.is_empty() || only.iter().any(|name| name == load.name)) {
        if let Err(e) = compare(load, rounds, &shims) {
            eprintln!("io: {}: {e}", load.name);
            std::process::exit(1);
        }
    }
}

fn compare(load: &Load, rounds: usize, shims: &[(String, PathBuf)]) -> Result<()> {
    let mut all: Vec<Vec<Figures>> = vec![Vec::new(); shims.len()];
    for _ in 0..rounds {
        for ((label, path), figures) in shims.iter().zip(&mut all) {
            figures.push(run(load, label, path)?);
        }
    }
    let median = |figures: &[Figures], of: fn(&Figures) -> f64| {
        let mut values: Vec<f64> = figures.iter().map(of).collect();
        values.sort_by(f64::total_cmp);
        values[values.len() / 2]
    };
    let of: [fn(&Figures) -> f64; 4] =
        [|f| f.megabytes_per_second, |f| f.writes_per_second, |f| f.cpu, |f| f.switches];
    let medians: Vec<[f64; 4]> = all.iter().map(|figures| of.map(|of| median(figures, of))).collect();
    for ((label, _), m) in shims.iter().zip(&medians) {
        let first = &medians[0];
        println!(
            "{:8} {label:>8} {:>9.0} {:>11.0} {:>9.3} {:>10.0} | {:>5.2} {:>5.2} {:>5.2}",
            load.name,
            m[0],
            m[1],
            m[2],
            m[3],
            first[0] / m[0],
            first[2] / m[2],
            first[3] / m[3]
        );
    }
    Ok(())
}

fn run(load: &Load, label: &str, shim: &Path) -> Result<Figures> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|e| DriverError(e.to_string()))?;
    tokio::task::LocalSet::new().block_on(&runtime, async {
        let driver = Driver::new(label, shim).await?;
        let figures = measured(load, &driver).await;
        driver.tidy();
        figures
    })
}

async fn measured(load: &Load, driver: &Rc<Driver>) -> Result<Figures> {
    let script = format!("dd if=/dev/zero bs={} count={} 2>/dev/null", load.write, load.writes);
    let first = driver.fresh("io");
    let mut silent = Vec::new();
    let mut socket = PathBuf::new();
    let mut members = Vec::new();
    for number in 0..load.containers {
        let id = if number == 0 { first.clone() } else { driver.fresh("io") };
        let bundle = driver.bundle(&id, &first, &["sh", "-c", &script]).await?;
        socket = driver.start(&id, &bundle).await?;
        if load.terminal {
            driver.with_terminal(&bundle)?;
        }
        let stdout = driver.fifo(&bundle, "stdout")?;
        let mut create = driver.create_request(&id, &bundle);
        create.stdout = stdout.display().to_string();
        create.terminal = load.terminal;
        let open = |fifo: &Path| {
            let opened = std::fs::OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(fifo);
            opened.map_err(|e| DriverError(format!("open the fifo: {e}")))
        };
        let reader = open(&stdout)?;
        if !load.terminal {
            let stderr = driver.fifo(&bundle, "stderr")?;
            create.stderr = stderr.display().to_string();
            silent.push(open(&stderr)?);
        }
        let mut client = Client::connect(&socket).await?;
        client.call::<api::PidResponse>("Create", &create).await?;
        let flags = rustix::fs::fcntl_getfl(&reader).map_err(|e| DriverError(e.to_string()))?;
        rustix::fs::fcntl_setfl(&reader, flags - rustix::fs::OFlags::NONBLOCK)
            .map_err(|e| DriverError(e.to_string()))?;
        members.push((Pod { id, bundle, socket: socket.clone() }, reader));
    }
    let pid = *driver.shims().first().ok_or_else(|| DriverError("no shim".to_owned()))?;
    let expected = load.write * load.writes;
    let (mut threads, mut pods) = (Vec::new(), Vec::new());
    for (pod, mut reader) in members {
        pods.push(pod);
        threads.push(std::thread::spawn(move || {
            let mut buffer = vec![0; 32 << 10];
            let mut left = expected;
            while left > 0 {
                match reader.read(&mut buffer) {
                    Ok(0) | Err(_) => break,
                    Ok(n) => left = left.saturating_sub(n as u64),
                }
            }
            // Open until the container is deleted, as a client's.
            (expected - left, reader)
        }));
    }
    let mut client = Client::connect(&socket).await?;
    let before = measure::work(pid);
    let begun = Instant::now();
    for pod in &pods {
        client.process::<api::PidResponse>("Start", &pod.id, "").await?;
    }
    while threads.iter().any(|thread| !thread.is_finished()) {
        tokio::time::sleep(std::time::Duration::from_millis(2)).await;
    }
    let seconds = begun.elapsed().as_secs_f64();
    let after = measure::work(pid);
    let readers: Vec<_> =
        threads.into_iter().map(|thread| thread.join().expect("a reader panicked")).collect();
    let received: u64 = readers.iter().map(|(bytes, _)| bytes).sum();
    // The first container's shim is everybody's: it goes last.
    for pod in pods.iter().rev() {
        client.process::<api::WaitResponse>("Wait", &pod.id, "").await?;
        driver.finish(&mut client, pod).await?;
    }
    let whole = expected * load.containers as u64;
    if received != whole {
        return Err(DriverError(format!("{received} of {whole} bytes arrived")));
    }
    Ok(Figures {
        megabytes_per_second: float(received) / seconds / 1e6,
        writes_per_second: float(load.writes * load.containers as u64) / seconds,
        cpu: after.0 - before.0,
        switches: float(after.1 - before.1),
    })
}

#[expect(clippy::cast_precision_loss, reason = "figures for a table")]
fn float(n: u64) -> f64 {
    n as f64
}
