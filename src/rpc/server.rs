//! Serves calls: a task a connection, a task a call.

use super::{
    Code, Reply, Status,
    frame::{HEADER, Header, Kind, MAX_MESSAGE, Request, response_frame},
};
use crate::{cancel::CancelToken, sys, tasks};
use prost::Message;
use std::{
    cell::{Cell, RefCell},
    collections::{BTreeMap, VecDeque},
    future::Future,
    io,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, Waker},
    time::Duration,
};
use tokio::{
    net::{UnixListener, UnixStream},
    sync::Notify,
};

/// Connections at once, and no more than a quarter of the open files that we may have. containerd
/// holds one; tools and tests a few more. Beyond that one on which nothing was ever asked gives
/// way, the oldest; where there is none, the new one is closed.
const MAX_CONNECTIONS: usize = 256;
/// So many may be had by the last descriptors.
const FEW_CONNECTIONS: usize = 8;
/// Calls of one connection that are not answered yet. A Wait is one, for as long as its process
/// lives. More are refused.
const MAX_CALLS: usize = 4096;
/// Bytes of answers that wait for a client to read them. One that lets more pile up is cut off.
const MAX_UNREAD: usize = 8 << 20;
/// Bytes read at once.
const CHUNK: usize = 4096;

/// Takes calls.
pub trait Handler {
    /// Handles one call. The future is driven to its end even if the caller hangs up.
    fn handle(&self, call: Call) -> Pin<Box<dyn Future<Output = Reply>>>;
}

/// One call.
pub struct Call {
    /// Full service name.
    pub service: String,
    /// Method name.
    pub method: String,
    /// The encoded request message.
    pub payload: Vec<u8>,
    /// The time that the caller gives it.
    pub timeout: Option<Duration>,
    /// Tells whether anybody still wants the answer.
    pub abandoned: CancelToken,
}

/// What the server has in hand.
#[derive(Default)]
pub struct Load {
    /// Open connections.
    pub connections: Cell<usize>,
    /// Calls without an answer.
    pub calls: Cell<usize>,
    /// Bytes of answers that no client has read.
    pub unread: Cell<usize>,
    /// Connections on which nothing was asked yet, oldest first.
    silent: RefCell<BTreeMap<u64, CancelToken>>,
    /// Connections there have been.
    last: Cell<u64>,
}

/// Accepts connections until the returned future is dropped; connections live on until their
/// clients go.
pub async fn serve(
    listener: impl Into<Rc<UnixListener>>,
    handler: Rc<dyn Handler>,
    load: Rc<Load>,
) {
    let listener = listener.into();
    let mut spare = sys::fd::spare();
    let mut has_failed = false;
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                if admit(stream, &handler, &load) == Admitted::ForAnother {
                    // It goes before the next one comes: its descriptor is wanted.
                    tokio::task::yield_now().await;
                }
                spare = spare.or_else(sys::fd::spare);
                has_failed = false;
            }
            // The last descriptor is containerd's: one that gets no connection takes the shim for
            // dead, and its pod with it.
            Err(e) if e.raw_os_error() == Some(libc::EMFILE) && spare.is_some() => {
                drop(spare.take())
            }
            Err(e) => {
                // Whoever waits in the backlog is served when it passes.
                if !std::mem::replace(&mut has_failed, true) {
                    log::error!("accept: {e}");
                }
                tokio::time::sleep(Duration::from_millis(100)).await;
                spare = spare.or_else(sys::fd::spare);
            }
        }
    }
}

/// What became of a client that has come.
#[derive(PartialEq, Eq)]
enum Admitted {
    Yes,
    /// In the place of one that goes now.
    ForAnother,
    No,
}

/// Only our own user (root) may speak, and not all at once.
fn admit(stream: UnixStream, handler: &Rc<dyn Handler>, load: &Rc<Load>) -> Admitted {
    let own = rustix::process::geteuid().as_raw();
    match stream.peer_cred() {
        Ok(peer) if peer.uid() == own || peer.uid() == 0 => {}
        Ok(peer) => {
            log::warn!("connection refused uid={}", peer.uid());
            return Admitted::No;
        }
        Err(e) => {
            log::warn!("connection refused: peer's credentials: {e}");
            return Admitted::No;
        }
    }
    let (open, most) = (load.connections.get(), MAX_CONNECTIONS.min(sys::fd::quarter()));
    let is_full = open >= most || (open >= FEW_CONNECTIONS && sys::fd::is_one_of_the_last(&stream));
    let mut admitted = Admitted::Yes;
    if is_full {
        let Some((_, silent)) = load.silent.borrow_mut().pop_first() else {
            log::warn!("connection refused: {open} are open");
            return Admitted::No;
        };
        silent.set();
        admitted = Admitted::ForAnother;
    }
    tasks::spawn("connection", converse(stream, Rc::clone(handler), Connected::new(load)));
    admitted
}

/// Serves one connection until its client goes, or is cut off.
pub async fn serve_connection(stream: UnixStream, handler: Rc<dyn Handler>, load: Rc<Load>) {
    converse(stream, handler, Connected::new(&load)).await;
}

async fn converse(stream: UnixStream, handler: Rc<dyn Handler>, connection: Connected) {
    if let Err(e) = Client::new(stream, handler, Rc::clone(&connection.shared)).run().await {
        log::debug!("connection closed: {e}");
    }
}

/// A connection that counts from its admission on, however it ends.
struct Connected {
    load: Rc<Load>,
    shared: Rc<Shared>,
}

impl Connected {
    fn new(load: &Rc<Load>) -> Self {
        add(&load.connections, 1);
        Self { load: Rc::clone(load), shared: Rc::new(Shared::new(Rc::clone(load))) }
    }
}

impl Drop for Connected {
    fn drop(&mut self) {
        self.shared.hung_up();
        subtract(&self.load.connections, 1);
    }
}

fn add(counter: &Cell<usize>, n: usize) {
    counter.set(counter.get() + n);
}

fn subtract(counter: &Cell<usize>, n: usize) {
    counter.set(counter.get() - n);
}

/// What a connection shares with the calls that it began.
struct Shared {
    load: Rc<Load>,
    outbox: RefCell<VecDeque<Vec<u8>>>,
    unread: Cell<usize>,
    closed: Cell<bool>,
    filled: Notify,
    calls: RefCell<Vec<(u32, CancelToken)>>,
    number: u64,
    /// It is to go: it has asked nothing, and others come.
    gives_way: CancelToken,
}

impl Shared {
    fn new(load: Rc<Load>) -> Self {
        let number = load.last.get() + 1;
        load.last.set(number);
        let gives_way = CancelToken::default();
        load.silent.borrow_mut().insert(number, gives_way.clone());
        Self {
            load,
            number,
            gives_way,
            outbox: RefCell::default(),
            unread: Cell::default(),
            closed: Cell::default(),
            filled: Notify::new(),
            calls: RefCell::default(),
        }
    }

    fn answer(&self, stream: u32, reply: Reply) {
        self.calls.borrow_mut().retain(|(id, _)| *id != stream);
        if self.closed.get() {
            return;
        }
        let frame = response_frame(stream, reply);
        add(&self.unread, frame.len());
        add(&self.load.unread, frame.len());
        self.outbox.borrow_mut().push_back(frame);
        self.filled.notify_one();
    }

    /// Something was asked.
    fn has_spoken(&self) {
        self.load.silent.borrow_mut().remove(&self.number);
    }

    fn hung_up(&self) {
        self.has_spoken();
        self.closed.set(true);
        self.outbox.take();
        subtract(&self.load.unread, self.unread.take());
        for (_, abandoned) in self.calls.take() {
            abandoned.set();
        }
    }
}

struct Client {
    stream: UnixStream,
    handler: Rc<dyn Handler>,
    shared: Rc<Shared>,
    /// Read, not yet understood.
    inbox: Vec<u8>,
    /// Bytes of an oversized message that are still to be thrown away.
    discard: usize,
    /// Bytes of the outbox's first frame that are written.
    written: usize,
    last_stream: u32,
}

impl Client {
    fn new(stream: UnixStream, handler: Rc<dyn Handler>, shared: Rc<Shared>) -> Self {
        Self { stream, handler, shared, inbox: Vec::new(), discard: 0, written: 0, last_stream: 0 }
    }

    async fn run(mut self) -> io::Result<()> {
        loop {
            self.write()?;
            if self.shared.unread.get() > MAX_UNREAD {
                return Err(io::Error::other("the client does not read its answers"));
            }
            let wants_to_write = !self.shared.outbox.borrow().is_empty();
            tokio::select! {
                ready = self.stream.readable() => {
                    ready?;
                    if !self.read()? {
                        return Ok(());
                    }
                }
                ready = self.stream.writable(), if wants_to_write => ready?,
                () = self.shared.filled.notified() => {}
                () = self.shared.gives_way.wait() => return Err(io::Error::other("nothing was asked, and others come")),
            }
        }
    }

    /// Writes as much as the socket takes.
    fn write(&mut self) -> io::Result<()> {
        let mut outbox = self.shared.outbox.borrow_mut();
        while let Some(frame) = outbox.front() {
            match self.stream.try_write(&frame[self.written..]) {
                Ok(n) => {
                    self.written += n;
                    subtract(&self.shared.unread, n);
                    subtract(&self.shared.load.unread, n);
                    if self.written == frame.len() {
                        self.written = 0;
                        outbox.pop_front();
                    }
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(e) => return Err(e),
            }
        }
        outbox.shrink_to(0);
        Ok(())
    }

    /// Reads what is there, at most a message's worth. `false`: the client is gone.
    fn read(&mut self) -> io::Result<bool> {
        let mut chunk = [0; CHUNK];
        for _ in 0..MAX_MESSAGE / CHUNK {
            match self.stream.try_read(&mut chunk) {
                Ok(0) => return Ok(false),
                Ok(n) => {
                    self.take(&chunk[..n]);
                    if n < CHUNK {
                        return Ok(true);
                    }
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(true),
                Err(e) => return Err(e),
            }
        }
        Ok(true)
    }

    /// Takes bytes in; begins the calls that are whole.
    fn take(&mut self, bytes: &[u8]) {
        self.inbox.extend_from_slice(bytes);
        loop {
            let thrown = self.discard.min(self.inbox.len());
            self.inbox.drain(..thrown);
            self.discard -= thrown;
            let Some(header) = Header::parse(&self.inbox) else { break };
            if header.length > MAX_MESSAGE {
                let message = format!(
                    "message length {} exceed maximum message size of {MAX_MESSAGE}",
                    header.length
                );
                self.shared
                    .answer(header.stream, Err(Status::new(Code::ResourceExhausted, message)));
                self.last_stream = self.last_stream.max(header.stream);
                self.inbox.drain(..HEADER);
                self.discard = header.length;
                continue;
            }
            let end = HEADER + header.length;
            if self.inbox.len() < end {
                break;
            }
            let frame: Vec<u8> = self.inbox.drain(..end).collect();
            self.begin(header, &frame[HEADER..]);
        }
        if self.inbox.is_empty() {
            self.inbox = Vec::new();
        }
    }

    fn begin(&mut self, header: Header, body: &[u8]) {
        self.shared.has_spoken();
        let refuse = |code, message: String| {
            self.shared.answer(header.stream, Err(Status::new(code, message)))
        };
        if header.stream.is_multiple_of(2) {
            return refuse(
                Code::InvalidArgument,
                "StreamID must be odd for client initiated streams".to_owned(),
            );
        }
        if header.kind != Kind::Request {
            return refuse(Code::InvalidArgument, format!("unexpected message {:?}", header.kind));
        }
        if header.stream <= self.last_stream {
            return refuse(
                Code::InvalidArgument,
                "StreamID cannot be re-used and must increment".to_owned(),
            );
        }
        let request = match Request::decode(body) {
            Ok(request) => request,
            Err(e) => return refuse(Code::InvalidArgument, format!("unmarshal request: {e}")),
        };
        if self.shared.calls.borrow().len() >= MAX_CALLS {
            return refuse(Code::ResourceExhausted, format!("{MAX_CALLS} calls are unanswered"));
        }
        self.last_stream = header.stream;
        let timeout = request.timeout();
        let abandoned = CancelToken::default();
        self.shared.calls.borrow_mut().push((header.stream, abandoned.clone()));
        let Request { service, method, payload, .. } = request;
        let mut answer = self.handler.handle(Call { service, method, payload, timeout, abandoned });
        // Most calls have nothing to wait for, and need no task.
        if let Poll::Ready(reply) = answer.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            return self.shared.answer(header.stream, reply);
        }
        let shared = Rc::clone(&self.shared);
        let call = OpenCall { shared, stream: header.stream, reply: None };
        add(&call.shared.load.calls, 1);
        tasks::spawn("call", async move {
            let mut call = call;
            call.reply = Some(answer.await);
        });
    }
}

/// A call that is answered when it ends, however it does.
struct OpenCall {
    shared: Rc<Shared>,
    stream: u32,
    reply: Option<Reply>,
}

impl Drop for OpenCall {
    fn drop(&mut self) {
        subtract(&self.shared.load.calls, 1);
        let failed = || Err(Status::new(Code::Internal, "the shim failed in this call"));
        self.shared.answer(self.stream, self.reply.take().unwrap_or_else(failed));
    }
}

#[cfg(test)]
#[allow(clippy::disallowed_methods, reason = "tests await their tasks")]
mod tests {
    use super::{super::Connection, *};

    struct Echo;

    impl Handler for Echo {
        fn handle(&self, call: Call) -> Pin<Box<dyn Future<Output = Reply>>> {
            Box::pin(async move {
                match call.method.as_str() {
                    "Echo" => Ok(call.payload),
                    "Never" => {
                        call.abandoned.wait().await;
                        Ok(Vec::new())
                    }
                    _ => Err(Status::new(Code::Unimplemented, "no")),
                }
            })
        }
    }

    fn with_server(test: impl AsyncFnOnce(&std::path::Path)) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("s");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        tokio::task::LocalSet::new().block_on(&runtime, async {
            let listener = UnixListener::bind(&path).unwrap();
            let server = tokio::task::spawn_local(serve(listener, Rc::new(Echo), Rc::default()));
            test(&path).await;
            server.abort();
        });
    }

    #[test]
    fn calls_are_answered_in_any_order_and_sizes() {
        with_server(async |path| {
            let mut client = Connection::connect(path).await.unwrap();
            let never = client.send("s", "Never", &[], None).await.unwrap();
            for size in [0, 1, 4095, 4096, 100_000, 4_000_000] {
                let payload = vec![7; size];
                let stream = client.send("s", "Echo", &payload, None).await.unwrap();
                let (id, reply) = client.receive().await.unwrap();
                assert_eq!((id, reply.unwrap()), (stream, payload));
                assert_ne!(id, never);
            }
        });
    }

    #[test]
    fn oversized_even_and_reused_streams_are_refused_and_the_connection_goes_on() {
        use tokio::io::AsyncWriteExt;
        with_server(async |path| {
            let mut client = Connection::connect(path).await.unwrap();
            let mut oversized = Vec::new();
            let length = MAX_MESSAGE + 1;
            oversized.extend_from_slice(&u32::try_from(length).unwrap().to_be_bytes());
            oversized.extend_from_slice(&[0, 0, 0, 1, 1, 0]);
            oversized.resize(HEADER + length, 0);
            client.raw().write_all(&oversized).await.unwrap();
            assert_eq!(
                client.receive().await.unwrap().1.unwrap_err().code,
                Code::ResourceExhausted as i32
            );
            let request =
                Request { service: "s".into(), method: "Echo".into(), ..Request::default() };
            for (stream, fine) in [(3, true), (4, false), (0, false), (3, false), (9, true)] {
                client
                    .raw()
                    .write_all(&super::super::request_frame(stream, &request))
                    .await
                    .unwrap();
                let (id, reply) = client.receive().await.unwrap();
                assert_eq!((id, reply.is_ok()), (stream, fine));
            }
        });
    }
}
