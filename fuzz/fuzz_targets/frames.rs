//! Bytes of a ttrpc client into the server.
#![no_main]
use cleat::rpc::{Call, Handler, Load, Reply, serve_connection};
use std::{future::Future, pin::Pin, rc::Rc};
use tokio::{io::AsyncWriteExt, net::UnixStream, task::LocalSet};

struct Echo;

impl Handler for Echo {
    fn handle(&self, call: Call) -> Pin<Box<dyn Future<Output = Reply>>> {
        cleat::task::check_request(&call.method, &call.payload);
        Box::pin(async move { Ok(call.payload) })
    }
}

thread_local! {
    static LOOP: tokio::runtime::Runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
}

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    LOOP.with(|runtime| {
        LocalSet::new().block_on(runtime, async {
            let (mut ours, theirs) = UnixStream::pair().unwrap();
            let load = Rc::new(Load::default());
            let server =
                tokio::task::spawn_local(serve_connection(theirs, Rc::new(Echo), Rc::clone(&load)));
            // The server may hang up first.
            let _ = ours.write_all(data).await;
            drop(ours);
            server.await.unwrap();
            assert_eq!((load.connections.get(), load.unread.get()), (0, 0));
        });
    });
});
