//! The daemon: inherits the listener, serves, drains, ends. One thread; nothing in its loop blocks.

mod calls;
mod dump;
mod idle;
mod intercept;
mod services;
mod unneeded;

pub use calls::OpenCalls;
pub use services::Service;

use crate::{
    args::Common,
    events::{EventQueue, Publisher},
    exits::Reaper,
    rpc::{self, Load},
    shim::Shim,
    sys, tasks,
};
use std::{
    io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    rc::Rc,
    time::Duration,
};
use tokio::{
    net::UnixListener,
    signal::unix::{SignalKind, signal},
    task::LocalSet,
};

/// Where `start` leaves the listener.
const LISTENER: i32 = 3;
/// How long events may take to be acknowledged when the shim is asked to end.
const FLUSH_AFTER_SHUTDOWN: Duration = Duration::from_secs(30);
/// The same after SIGTERM: the host may be going down, and waits.
const FLUSH_AFTER_SIGNAL: Duration = Duration::from_millis(1500);
/// How long the last answers may take to be read.
const FLUSH_ANSWERS: Duration = Duration::from_secs(1);

/// Why the daemon could not serve.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// No listener.
    #[error("inherit the listening socket")]
    Listener(#[source] io::Error),
    /// The log fifo.
    #[error("open the log")]
    Log(#[source] io::Error),
    /// The kernel refused something at the beginning.
    #[error("{0}")]
    Setup(&'static str, #[source] io::Error),
}

/// Runs the daemon to its end.
pub fn run(common: &Common) -> Result<(), ServeError> {
    sys::fd::close_from(LISTENER + 1);
    let listener = match &common.socket {
        None => sys::fd::inherited(LISTENER).map_err(ServeError::Listener)?,
        Some(path) => {
            std::os::unix::net::UnixListener::bind(path).map_err(ServeError::Listener)?.into()
        }
    };
    sys::malloc::tune();
    crate::log::open(Path::new("log"), common.debug).map_err(ServeError::Log)?;
    std::panic::set_hook(Box::new(|panic| log::error!("panic: {panic}")));
    sys::signals::survive_harmless();
    sys::process::give_up_privileges();
    sys::process::raise_open_files();
    sys::watchdog::watch();
    sys::process::become_subreaper().map_err(|e| ServeError::Setup("become a subreaper", e))?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .enable_time()
        .on_thread_unpark(sys::watchdog::turns)
        .on_thread_park(sys::watchdog::sleeps)
        .build()
        .map_err(|e| ServeError::Setup("make the event loop", e))?;
    // In a box: it is as deep as the stack of a shim at rest.
    LocalSet::new().block_on(&runtime, Box::pin(serve(common, listener)))
}

async fn serve(common: &Common, listener: OwnedFd) -> Result<(), ServeError> {
    let setup = |what| move |e| ServeError::Setup(what, e);
    let listener: std::os::unix::net::UnixListener = listener.into();
    listener.set_nonblocking(true).map_err(ServeError::Listener)?;
    let listener = UnixListener::from_std(listener).map_err(ServeError::Listener)?;
    let socket = listener.local_addr().ok().and_then(|a| a.as_pathname().map(Path::to_owned));
    let mut terminated = signal(SignalKind::terminate()).map_err(setup("watch SIGTERM"))?;
    let mut interrupted = signal(SignalKind::interrupt()).map_err(setup("watch SIGINT"))?;

    let events = Rc::new(EventQueue::new(common.namespace.as_str()));
    let reaper = Rc::new(Reaper::default());
    let shim = Shim::new(common.namespace.clone(), Rc::clone(&reaper), Rc::clone(&events));
    let load = Rc::new(Load::default());
    let idle = Rc::new(idle::Idle::default());
    let calls = Rc::new(OpenCalls::default());
    let services = services::register(&shim, &load, &calls);
    let handler: Rc<dyn rpc::Handler> =
        Rc::new(intercept::Interceptors::new(services, Rc::clone(&idle), calls));

    reap(&reaper, &shim).map_err(setup("watch SIGCHLD"))?;
    dump::on_signal(&shim, &load).map_err(setup("watch SIGUSR1"))?;
    sys::signals::unblock().map_err(setup("unblock signals"))?;
    tasks::supervise("idle", move || Rc::clone(&idle).run());
    match std::env::var("TTRPC_ADDRESS") {
        Ok(address) if !address.is_empty() => {
            let events = Rc::clone(&events);
            tasks::supervise("publisher", move || {
                Publisher::new(&address, Rc::clone(&events)).run()
            });
        }
        _ => log::warn!("TTRPC_ADDRESS is not set: events stay here"),
    }
    let (listener, accepted) = (Rc::new(listener), Rc::clone(&load));
    let server = tasks::supervise("server", move || {
        rpc::serve(Rc::clone(&listener), Rc::clone(&handler), Rc::clone(&accepted))
    });
    log::debug!("shim serves namespace={} id={}", common.namespace, common.id);

    let flush = tokio::select! {
        () = shim.until_unneeded() => FLUSH_AFTER_SHUTDOWN,
        () = unneeded::wait(&shim, &load) => FLUSH_AFTER_SHUTDOWN,
        _ = terminated.recv() => FLUSH_AFTER_SIGNAL,
        _ = interrupted.recv() => FLUSH_AFTER_SIGNAL,
    };
    shim.end();
    // The socket goes first: a containerd that comes back must not find a file behind which nobody
    // answers.
    remove_socket(socket);
    server.abort();
    let _ = tokio::time::timeout(FLUSH_ANSWERS, answers_read(&load)).await;
    if tokio::time::timeout(flush, events.wait_empty()).await.is_err() {
        log::error!("ends with events that containerd never took waiting={}", events.len());
    }
    log::debug!("shim ends namespace={} id={}", common.namespace, common.id);
    Ok(())
}

/// Reaps whenever a child has ended.
fn reap(reaper: &Rc<Reaper>, shim: &Rc<Shim>) -> io::Result<()> {
    // From now on; the task, whenever it is begun, listens for itself.
    let listening = signal(SignalKind::child())?;
    let (reaper, shim) = (Rc::clone(reaper), Rc::clone(shim));
    tasks::supervise("reaper", move || {
        let _ = &listening;
        reap_for_ever(Rc::clone(&reaper), Rc::clone(&shim))
    });
    Ok(())
}

async fn reap_for_ever(reaper: Rc<Reaper>, shim: Rc<Shim>) {
    let mut child_ended =
        signal(SignalKind::child()).inspect_err(|e| log::error!("watch SIGCHLD: {e}")).ok();
    loop {
        // First, for what has ended before we listened.
        reaper.reap();
        while let Some(exited) = reaper.next_exit() {
            shim.process_exited(exited);
        }
        tokio::select! {
            Some(_) = async { child_ended.as_mut()?.recv().await } => {}
            () = reaper.wants_reaping() => {}
        }
    }
}

async fn answers_read(load: &Load) {
    /// The Shutdown that ends us is being answered while we look.
    const GLANCE: Duration = Duration::from_millis(1);
    tokio::time::sleep(GLANCE).await;
    while load.unread.get() > 0 {
        tokio::time::sleep(GLANCE).await;
    }
}

fn remove_socket(path: Option<PathBuf>) {
    if let Some(path) = path
        && let Err(e) = std::fs::remove_file(&path)
    {
        log::warn!("remove {}: {e}", path.display());
    }
}
