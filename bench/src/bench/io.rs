//! How a shim moves what containers write. Loads: bulk (64 KiB writes), lines (100-byte writes), a
//! console, 50 containers of one pod that write lines. The reader takes 32 KiB at a time, as
//! containerd does (io.CopyBuffer).

use super::{Measure, Report, Subject, float};
use crate::{Client, Driver, DriverError, Pod, measure as kernel};
use cleat::protocol::task as api;
use std::{
    io::Read,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    rc::Rc,
    time::Instant,
};

/// Bytes that the writers read at a time.
const READ: u64 = 64 << 10;

type Result<T> = std::result::Result<T, DriverError>;

/// A load: what each container runs, how many there are, and what it moves.
struct Load {
    rate: Measure,
    lines: Measure,
    cpu: Measure,
    /// Of writer, shim, reader and kernel together.
    machine: Measure,
    switches: Measure,
    containers: usize,
    /// Arguments of dd(1): size of a write, number of writes.
    write: u64,
    writes: u64,
    terminal: bool,
}

const LOADS: &[Load] = &[
    Load {
        rate: Measure::more("io", "bulk", "MB/s"),
        lines: Measure::more("io", "bulk", "writes/s"),
        cpu: Measure::less("io", "bulk: shim CPU", "s"),
        machine: Measure::less("io", "bulk: all CPU", "s"),
        switches: Measure::less("io", "bulk: context switches", ""),
        containers: 1,
        write: 64 << 10,
        writes: 24 << 10,
        terminal: false,
    },
    Load {
        rate: Measure::more("io", "lines", "MB/s"),
        lines: Measure::more("io", "lines", "writes/s"),
        cpu: Measure::less("io", "lines: shim CPU", "s"),
        machine: Measure::less("io", "lines: all CPU", "s"),
        switches: Measure::less("io", "lines: context switches", ""),
        containers: 1,
        write: 100,
        writes: 3_000_000,
        terminal: false,
    },
    Load {
        rate: Measure::more("io", "console", "MB/s"),
        lines: Measure::more("io", "console", "writes/s"),
        cpu: Measure::less("io", "console: shim CPU", "s"),
        machine: Measure::less("io", "console: all CPU", "s"),
        switches: Measure::less("io", "console: context switches", ""),
        containers: 1,
        write: 4096,
        writes: 16 << 10,
        terminal: true,
    },
    Load {
        rate: Measure::more("io", "50 chatty", "MB/s"),
        lines: Measure::more("io", "50 chatty", "writes/s"),
        cpu: Measure::less("io", "50 chatty: shim CPU", "s"),
        machine: Measure::less("io", "50 chatty: all CPU", "s"),
        switches: Measure::less("io", "50 chatty: context switches", ""),
        containers: 50,
        write: 100,
        writes: 40_000,
        terminal: false,
    },
];

/// What one run showed.
#[derive(Clone, Copy)]
struct Figures {
    megabytes_per_second: f64,
    writes_per_second: f64,
    cpu: f64,
    machine: f64,
    switches: f64,
    /// Bytes that were written and never arrived.
    lost: u64,
}

/// Each load in turn, the shims taking turns.
pub(super) async fn measure(subject: &Subject<'_>, report: &mut Report) -> Result<()> {
    for load in LOADS {
        for round in 0..subject.rounds.clamp(1, 9) {
            for (shim, driver) in subject.turns(round) {
                let figures = measured(load, driver).await?;
                report.add(load.rate, shim, figures.megabytes_per_second);
                report.add(load.lines, shim, figures.writes_per_second);
                report.add(load.cpu, shim, figures.cpu);
                report.add(load.machine, shim, figures.machine);
                report.add(load.switches, shim, figures.switches);
                if figures.lost > 0 {
                    let text = format!(
                        "{}, {}: {} bytes lost",
                        driver.label, load.rate.name, figures.lost
                    );
                    // Another shim's loss must not keep us from measuring ours.
                    if shim == 0 {
                        return Err(DriverError(text));
                    }
                    println!("{text}");
                }
            }
        }
        report.print_news();
    }
    Ok(())
}

async fn measured(load: &Load, driver: &Rc<Driver>) -> Result<Figures> {
    // One read for many writes: the writer should not be what is measured.
    let whole = load.write * load.writes;
    let block = load.write * (READ / load.write).max(1);
    let script = format!(
        "dd if=/dev/zero ibs={block} obs={} count={} 2>/dev/null",
        load.write,
        whole / block
    );
    let expected = whole / block * block;
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
            let opened =
                std::fs::OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(fifo);
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
    let pid = client.shim_pid(&first).await?;
    let (cpu, switches) = kernel::work(pid);
    let machine = kernel::machine_work();
    let begun = Instant::now();
    for pod in &pods {
        client.process::<api::PidResponse>("Start", &pod.id, "").await?;
    }
    while threads.iter().any(|thread| !thread.is_finished()) {
        tokio::time::sleep(std::time::Duration::from_millis(2)).await;
    }
    let seconds = begun.elapsed().as_secs_f64();
    let (cpu_after, switches_after) = kernel::work(pid);
    let machine_after = kernel::machine_work();
    let readers: Vec<_> =
        threads.into_iter().map(|thread| thread.join().expect("a reader panicked")).collect();
    let received: u64 = readers.iter().map(|(bytes, _)| bytes).sum();
    // The first container's shim is everybody's: it goes last.
    for pod in pods.iter().rev() {
        client.process::<api::WaitResponse>("Wait", &pod.id, "").await?;
        driver.finish(&mut client, pod).await?;
    }
    let whole = expected * load.containers as u64;
    Ok(Figures {
        megabytes_per_second: float(received) / seconds / 1e6,
        writes_per_second: float(received / load.write) / seconds,
        cpu: cpu_after - cpu,
        machine: machine_after - machine,
        switches: float(switches_after - switches),
        lost: whole - received,
    })
}
