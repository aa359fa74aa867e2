//! `cleat metrics`: Prometheus' text format (prometheus.io/docs/instrumenting/exposition_formats).

use super::ps;
use crate::{
    args::Metrics,
    node::{self, Kind, Shim},
    output,
};
use anyhow::{Context, Result, bail};
use std::{
    cell::Cell,
    fmt::Write as _,
    os::unix::fs::FileTypeExt,
    path::Path,
    process::ExitCode,
    rc::Rc,
    time::{Duration, Instant},
};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// How long a client may take to send its request, and to take the answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// Most bytes of a request's head.
const MAX_HEAD: usize = 8 << 10;

/// Most clients at once: whoever is silent holds a place for as long as PATIENCE.
const MAX_CLIENTS: usize = 256;
/// One look at the node serves all who ask meanwhile, and shortly after.
const FRESH: Duration = Duration::from_millis(250);

pub(super) async fn run(command: Metrics) -> Result<ExitCode> {
    node::check_sight()?;
    let Some(address) = command.listen else {
        output::print(&[page().await.trim_end().to_owned()])?;
        return Ok(ExitCode::SUCCESS);
    };
    if !address.starts_with("unix:") && !address.contains(':') {
        bail!("--listen {address}: ADDRESS:PORT or unix:PATH");
    }
    let failed = || format!("listen on {address}");
    let server = Rc::new(Server::default());
    if let Some(path) = address.strip_prefix("unix:") {
        let path = Path::new(path);
        // One that nobody listens on is a former life's.
        let is_socket =
            std::fs::symlink_metadata(path).is_ok_and(|about| about.file_type().is_socket());
        if is_socket && !node::is_listened_to(path) {
            std::fs::remove_file(path).with_context(failed)?;
        }
        let listener = tokio::net::UnixListener::bind(path).with_context(failed)?;
        loop {
            server.take(listener.accept().await.map(|(stream, _)| stream)).await;
        }
    }
    let listener = tokio::net::TcpListener::bind(&address).await.with_context(failed)?;
    loop {
        server.take(listener.accept().await.map(|(stream, _)| stream)).await;
    }
}

#[derive(Default)]
struct Server {
    clients: Cell<usize>,
    page: tokio::sync::Mutex<Option<(Instant, String)>>,
}

impl Server {
    /// Serves a client beside the others. Whoever dawdles is cut off.
    async fn take<S: AsyncRead + AsyncWrite + Unpin + 'static>(
        self: &Rc<Self>,
        stream: std::io::Result<S>,
    ) {
        let stream = match stream {
            Ok(stream) => stream,
            Err(e) => {
                // Out of descriptors, as a rule: the next may succeed, when some client has gone.
                eprintln!("cleat: accept a client of the figures: {e}");
                tokio::time::sleep(Duration::from_millis(100)).await;
                return;
            }
        };
        if self.clients.get() >= MAX_CLIENTS {
            return;
        }
        self.clients.set(self.clients.get() + 1);
        let server = Rc::clone(self);
        tokio::task::spawn_local(async move {
            if let Ok(Err(e)) = tokio::time::timeout(PATIENCE, server.serve(stream)).await {
                eprintln!("cleat: a client of the figures: {e}");
            }
            server.clients.set(server.clients.get() - 1);
        });
    }

    async fn serve(&self, mut stream: impl AsyncRead + AsyncWrite + Unpin) -> std::io::Result<()> {
        let mut head = Vec::new();
        while !head.windows(4).any(|bytes| bytes == b"\r\n\r\n") && head.len() < MAX_HEAD {
            if stream.read_buf(&mut head).await? == 0 {
                return Ok(());
            }
        }
        let head = String::from_utf8_lossy(&head);
        let path =
            head.strip_prefix("GET ").and_then(|rest| rest.split(' ').next()).unwrap_or_default();
        let (status, body) = match (path, node::check_sight()) {
            ("/metrics", Ok(())) => ("200 OK", self.page().await),
            ("/metrics", Err(e)) => ("503 Service Unavailable", format!("{e:#}\n")),
            _ => ("404 Not Found", "the figures are at /metrics\n".to_owned()),
        };
        let answer = format!(
            "HTTP/1.1 {status}\r\nContent-Type: text/plain; version=0.0.4; charset=utf-8\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
            body.len()
        );
        stream.write_all(answer.as_bytes()).await?;
        stream.shutdown().await
    }

    async fn page(&self) -> String {
        let mut kept = self.page.lock().await;
        match &*kept {
            Some((at, text)) if at.elapsed() < FRESH => text.clone(),
            _ => {
                let text = page().await;
                *kept = Some((Instant::now(), text.clone()));
                text
            }
        }
    }
}

async fn page() -> String {
    render(&node::shims().await)
}

/// A family of samples.
struct Family<'a> {
    text: &'a mut String,
    name: &'static str,
}

impl Family<'_> {
    fn sample(&mut self, labels: &[(&str, &str)], value: impl std::fmt::Display) {
        let labels: Vec<String> =
            labels.iter().map(|(name, value)| format!("{name}=\"{}\"", escaped(value))).collect();
        let labels =
            if labels.is_empty() { String::new() } else { format!("{{{}}}", labels.join(",")) };
        let _ = writeln!(self.text, "{}{labels} {value}", self.name);
    }
}

fn escaped(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

fn render(shims: &[Shim]) -> String {
    let mut text = String::new();
    let mut family =
        |name: &'static str, kind: &str, help: &str, each: &dyn Fn(&mut Family<'_>)| {
            let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}");
            each(&mut Family { text: &mut text, name });
        };
    let per_shim = |family: &mut Family<'_>, value: &dyn Fn(&Shim) -> Option<String>| {
        for shim in shims {
            let Some(value) = value(shim) else { continue };
            let pod = shim.pod.as_ref();
            family.sample(
                &[
                    ("pid", &shim.pid.to_string()),
                    ("shim", if shim.kind == Kind::Cleat { "cleat" } else { "other" }),
                    ("containerd_namespace", &shim.namespace),
                    ("id", &shim.id),
                    ("namespace", pod.map_or("", |pod| &pod.namespace)),
                    ("pod", pod.map_or("", |pod| &pod.name)),
                ],
                value,
            );
        }
    };
    let number = |value: u64| Some(value.to_string());
    family("cleat_shims", "gauge", "Shims of this node.", &|family| {
        for (kind, name) in [(Kind::Cleat, "cleat"), (Kind::Other, "other")] {
            family.sample(&[("shim", name)], shims.iter().filter(|shim| shim.kind == kind).count());
        }
    });
    family("cleat_shim_info", "gauge", "Program and version of a shim; always 1.", &|family| {
        for shim in shims {
            family.sample(
                &[
                    ("pid", &shim.pid.to_string()),
                    ("program", &shim.program.to_string_lossy()),
                    ("version", &ps::name(shim)),
                ],
                1,
            );
        }
    });
    family(
        "cleat_shim_answers",
        "gauge",
        "Whether the shim answers within two seconds.",
        &|family| {
            per_shim(family, &|shim| number(u64::from(shim.problem.is_none())));
        },
    );
    family(
        "cleat_shim_containerd_connected",
        "gauge",
        "Whether a client, as a rule containerd, is connected to the shim.",
        &|family| {
            per_shim(family, &|shim| number(u64::from(shim.containerd)));
        },
    );
    family(
        "cleat_shim_bundle_missing",
        "gauge",
        "Whether the bundle directory in which the shim was started is gone.",
        &|family| {
            per_shim(family, &|shim| number(u64::from(shim.bundle_gone)));
        },
    );
    family(
        "cleat_shim_private_memory_bytes",
        "gauge",
        "What the shim costs: its anonymous memory, without the program's file.",
        &|family| {
            per_shim(family, &|shim| number(shim.memory_kib.private * 1024));
        },
    );
    family(
        "cleat_shim_proportional_memory_bytes",
        "gauge",
        "Proportional set size of the shim.",
        &|family| {
            per_shim(family, &|shim| number(shim.memory_kib.pss * 1024));
        },
    );
    family("cleat_shim_threads", "gauge", "Threads of the shim.", &|family| {
        per_shim(family, &|shim| number(shim.threads as u64))
    });
    family("cleat_shim_open_fds", "gauge", "Open descriptors of the shim.", &|family| {
        per_shim(family, &|shim| number(shim.descriptors as u64));
    });
    family("cleat_shim_cpu_seconds_total", "counter", "CPU time of the shim itself.", &|family| {
        per_shim(family, &|shim| Some(shim.cpu_seconds.to_string()));
    });
    family("cleat_shim_age_seconds", "gauge", "Time since the shim was started.", &|family| {
        per_shim(family, &|shim| number(shim.age_seconds))
    });
    family("cleat_shim_containers", "gauge", "Containers of a shim by status.", &|family| {
        for shim in shims {
            let mut statuses: Vec<&str> =
                shim.containers.iter().map(|container| container.status).collect();
            statuses.sort_unstable();
            statuses.dedup();
            for status in statuses {
                let count =
                    shim.containers.iter().filter(|container| container.status == status).count();
                family.sample(&[("pid", &shim.pid.to_string()), ("status", status)], count);
            }
        }
    });
    let own = |shim: &Shim| shim.own.clone();
    let streams = |shim: &Shim, value: &dyn Fn(&cleat::protocol::inspect::Stream) -> u64| {
        let own = shim.own.as_ref()?;
        let processes = own
            .containers
            .iter()
            .flat_map(|container| container.init.iter().chain(&container.execs));
        number(processes.flat_map(|process| &process.streams).map(value).sum())
    };
    family(
        "cleat_shim_events_waiting",
        "gauge",
        "Events that containerd has not acknowledged.",
        &|family| {
            per_shim(family, &|shim| number(own(shim)?.events?.waiting));
        },
    );
    family(
        "cleat_shim_events_oldest_seconds",
        "gauge",
        "How long the oldest of them has been waiting.",
        &|family| {
            per_shim(family, &|shim| Some((own(shim)?.events?.oldest_ms / 1000).to_string()));
        },
    );
    family(
        "cleat_shim_events_acknowledged_total",
        "counter",
        "Events that containerd has acknowledged.",
        &|family| {
            per_shim(family, &|shim| number(own(shim)?.events?.acknowledged));
        },
    );
    family(
        "cleat_shim_events_dropped_total",
        "counter",
        "Derivable events that made room for exits while containerd was away.",
        &|family| {
            per_shim(family, &|shim| number(own(shim)?.events?.dropped));
        },
    );
    family(
        "cleat_shim_spooled_bytes",
        "gauge",
        "Output of containers that is kept because nobody reads it.",
        &|family| {
            per_shim(family, &|shim| streams(shim, &|stream| stream.spooled_bytes));
        },
    );
    family(
        "cleat_shim_stream_bytes",
        "gauge",
        "Bytes moved for the processes that are there now.",
        &|family| {
            per_shim(family, &|shim| streams(shim, &|stream| stream.bytes));
        },
    );
    family(
        "cleat_shim_dropped_bytes",
        "gauge",
        "Output given up, of the processes that are there now.",
        &|family| {
            per_shim(family, &|shim| streams(shim, &|stream| stream.dropped_bytes));
        },
    );
    family(
        "cleat_shim_open_calls",
        "gauge",
        "Calls that the shim has not answered, without Wait.",
        &|family| {
            per_shim(family, &|shim| {
                number(own(shim)?.calls.iter().filter(|call| call.method != "Wait").count() as u64)
            });
        },
    );
    family(
        "cleat_shim_orphans_reaped_total",
        "counter",
        "Processes re-parented to the shim and reaped.",
        &|family| {
            per_shim(family, &|shim| number(own(shim)?.orphans_reaped));
        },
    );
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_cannot_break_out() {
        assert_eq!(escaped("a\"b\\c\nd"), "a\\\"b\\\\c\\nd");
    }

    #[test]
    fn a_node_without_shims_has_its_zeros() {
        assert!(render(&[]).contains("cleat_shims{shim=\"cleat\"} 0\n"));
    }
}
