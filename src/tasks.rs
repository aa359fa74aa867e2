//! Tasks of the event loop. Each is counted, and none dies unseen: tokio keeps a panic to itself
//! until somebody awaits the task.

use std::{
    cell::Cell,
    future::{Future, poll_fn},
    panic::{AssertUnwindSafe, catch_unwind},
    pin::Pin,
    task::Poll,
    time::Duration,
};
use tokio::task::JoinHandle;

thread_local! {
    static ALIVE: Cell<usize> = const { Cell::new(0) };
    #[cfg(debug_assertions)]
    static TO_FAIL: std::cell::RefCell<Option<String>> = const { std::cell::RefCell::new(None) };
}

/// Pause before a task is begun again; it doubles up to [`LONGEST_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(10);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// How many tasks there are.
pub fn alive() -> usize {
    ALIVE.get()
}

struct Counted;

impl Counted {
    fn new() -> Self {
        ALIVE.set(ALIVE.get() + 1);
        Self
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        ALIVE.set(ALIVE.get() - 1);
    }
}

/// What a task does. In a box: tokio's code for a task, and what is kept for it, is then there
/// once, and a task's state is neither copied over the stack nor kept twice.
type Work = Pin<Box<dyn Future<Output = ()>>>;

/// Starts a task that ends by itself. A panic in it is its end, and is said.
pub fn spawn(name: &'static str, work: impl Future<Output = ()> + 'static) -> JoinHandle<()> {
    spawn_work(name, Box::pin(work))
}

fn spawn_work(name: &'static str, work: Work) -> JoinHandle<()> {
    let counted = Counted::new();
    #[allow(clippy::disallowed_methods, reason = "the one place")]
    tokio::task::spawn_local(async move {
        let _counted = counted;
        if !caught(name, work).await {
            log::error!("task {name:?} died of the panic above");
        }
    })
}

/// Starts a task that the daemon cannot do without: after a panic it is begun again. If it returns,
/// it has ended.
pub fn supervise<F: Future<Output = ()> + 'static>(
    name: &'static str,
    mut begin: impl FnMut() -> F + 'static,
) -> JoinHandle<()> {
    supervise_work(name, Box::new(move || Box::pin(begin())))
}

fn supervise_work(name: &'static str, mut begin: Box<dyn FnMut() -> Work>) -> JoinHandle<()> {
    let counted = Counted::new();
    #[allow(clippy::disallowed_methods, reason = "the other place")]
    tokio::task::spawn_local(async move {
        let _counted = counted;
        let mut pause = FIRST_PAUSE;
        while !caught(name, begin()).await {
            log::error!("task {name:?} died of the panic above, and is begun again");
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    })
}

/// A task that ends with its owner.
#[derive(Debug)]
pub struct OwnedTask(JoinHandle<()>);

impl OwnedTask {
    /// Starts it.
    pub fn spawn(name: &'static str, work: impl Future<Output = ()> + 'static) -> Self {
        Self(spawn(name, work))
    }
}

impl Drop for OwnedTask {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Drives work to its end; `false` if it panicked.
async fn caught(name: &'static str, mut work: Work) -> bool {
    poll_fn(|context| {
        let poll = || {
            fail_point(name);
            work.as_mut().poll(context)
        };
        match catch_unwind(AssertUnwindSafe(poll)) {
            Ok(poll) => poll.map(|()| true),
            Err(_) => Poll::Ready(false),
        }
    })
    .await
}

/// Lets the next who passes the point of this name panic; a task does so each time that it is
/// polled. Not in release builds.
#[cfg(debug_assertions)]
pub fn fail_next(name: &str) {
    TO_FAIL.set(Some(name.to_owned()));
}

/// Where a test may have us fail ([`fail_next`]).
pub fn fail_point(name: &str) {
    #[cfg(debug_assertions)]
    if TO_FAIL.with_borrow(|to_fail| to_fail.as_deref() == Some(name)) {
        TO_FAIL.take();
        panic!("asked for");
    }
    let _ = name;
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::rc::Rc;

    fn local(test: impl Future<Output = ()>) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        tokio::task::LocalSet::new().block_on(&runtime, test);
    }

    #[test]
    fn a_supervised_task_is_begun_again_after_each_panic() {
        local(async {
            let begun = Rc::new(Cell::new(0));
            let counter = Rc::clone(&begun);
            let task = supervise("t", move || {
                counter.set(counter.get() + 1);
                let number = counter.get();
                async move { assert!(number == 3, "not yet") }
            });
            task.await.unwrap();
            assert_eq!((begun.get(), alive()), (3, 0));
        });
    }

    #[test]
    fn tasks_are_counted_however_they_end() {
        local(async {
            let ends = spawn("ends", async {});
            let dies = spawn("dies", async { panic!("asked for") });
            let owned = OwnedTask::spawn("owned", std::future::pending());
            assert_eq!(alive(), 3);
            ends.await.unwrap();
            dies.await.unwrap();
            drop(owned);
            while alive() > 0 {
                tokio::task::yield_now().await;
            }
        });
    }
}
