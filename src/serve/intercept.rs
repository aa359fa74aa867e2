//! What wraps every call, outermost first: log, deadline, panic.

use super::{OpenCalls, idle::Idle, services::Services};
#[cfg(debug_assertions)]
use crate::protocol::task::ContainerRequest;
use crate::{
    cancel::CancelToken,
    rpc::{Call, Code, Handler, Reply, Status},
    tasks,
};
use std::{
    cell::RefCell,
    future::Future,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::Pin,
    rc::Rc,
    time::{Duration, Instant},
};

type Answer = Pin<Box<dyn Future<Output = Reply>>>;

/// What interceptors know of a call.
struct About {
    method: String,
    timeout: Option<Duration>,
    abandoned: CancelToken,
}

/// Wraps the rest of the chain.
type Interceptor = fn(&Rc<About>, Answer) -> Answer;

const CHAIN: [Interceptor; 3] = [log_call, bound_time, catch_panic];

/// Hands calls through the chain to their service.
pub(super) struct Interceptors {
    services: Services,
    idle: Rc<Idle>,
    calls: Rc<OpenCalls>,
}

impl Interceptors {
    pub(super) fn new(services: Services, idle: Rc<Idle>, calls: Rc<OpenCalls>) -> Self {
        Self { services, idle, calls }
    }
}

impl Handler for Interceptors {
    fn handle(&self, call: Call) -> Answer {
        self.idle.disturb();
        let about = Rc::new(About {
            method: call.method.clone(),
            timeout: call.timeout,
            abandoned: call.abandoned.clone(),
        });
        let open = self.calls.begin(&call);
        #[cfg(debug_assertions)]
        if let Some(fault) = fault_for_test(&call) {
            return CHAIN.iter().rev().fold(fault, |inner, wrap| wrap(&about, inner));
        }
        let answer = match self.services.iter().find(|(name, _)| *name == call.service) {
            Some((_, service)) => service.call(call),
            None => {
                let refusal = Status::new(Code::Unimplemented, format!("service {}", call.service));
                Box::pin(async { Err(refusal) })
            }
        };
        let answer: Answer = Box::pin(async move {
            let reply = answer.await;
            drop(open);
            reply
        });
        CHAIN.iter().rev().fold(answer, |inner, wrap| wrap(&about, inner))
    }
}

/// Faults that no client can provoke; not in release builds.
#[cfg(debug_assertions)]
fn fault_for_test(call: &Call) -> Option<Answer> {
    #[allow(clippy::disallowed_methods, reason = "blocks the loop on purpose")]
    let hang = || std::thread::sleep(Duration::from_secs(11));
    match call.method.as_str() {
        "FailNextForTest" => {
            let request: ContainerRequest = prost::Message::decode(call.payload.as_slice()).ok()?;
            tasks::fail_next(&request.id);
            Some(Box::pin(async { Ok(Vec::new()) }))
        }
        "PanicForTest" => Some(Box::pin(async { panic!("asked for") })),
        "HangForTest" => Some(Box::pin(async move {
            hang();
            Ok(Vec::new())
        })),
        _ => None,
    }
}

/// Each call with its duration, at debug; a fault of ours at error.
fn log_call(about: &Rc<About>, inner: Answer) -> Answer {
    let about = Rc::clone(about);
    Box::pin(async move {
        let begun = Instant::now();
        let reply = inner.await;
        let took = begun.elapsed().as_micros();
        match &reply {
            Ok(_) => log::debug!("call method={} us={took}", about.method),
            Err(e) if e.code == Code::Internal as i32 => {
                log::error!("call method={} us={took} error={e}", about.method);
            }
            Err(e) => log::debug!("call method={} us={took} error={e}", about.method),
        }
        reply
    })
}

/// Answers DeadlineExceeded when the caller's time is over. The work goes on: it may be half done.
fn bound_time(about: &Rc<About>, mut inner: Answer) -> Answer {
    let Some(timeout) = about.timeout else { return inner };
    let about = Rc::clone(about);
    Box::pin(async move {
        tokio::select! {
            biased;
            reply = &mut inner => reply,
            () = tokio::time::sleep(timeout) => {
                about.abandoned.set();
                tasks::spawn("rest of a call", async move { drop(inner.await) });
                Err(Status::new(Code::DeadlineExceeded, "context deadline exceeded"))
            }
        }
    })
}

/// A panic in one call is that call's error; the others, and their containers, live on.
fn catch_panic(_about: &Rc<About>, inner: Answer) -> Answer {
    let inner = RefCell::new(inner);
    Box::pin(std::future::poll_fn(move |context| {
        let mut inner = inner.borrow_mut();
        match catch_unwind(AssertUnwindSafe(|| inner.as_mut().poll(context))) {
            Ok(poll) => poll,
            // The hook has logged where.
            Err(_) => std::task::Poll::Ready(Err(Status::new(
                Code::Internal,
                "the shim failed in this call",
            ))),
        }
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(
        interceptor: Interceptor,
        timeout: Option<Duration>,
        inner: Answer,
    ) -> (Reply, Rc<About>) {
        let about =
            Rc::new(About { method: "M".into(), timeout, abandoned: CancelToken::default() });
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let reply = tokio::task::LocalSet::new().block_on(&runtime, interceptor(&about, inner));
        (reply, about)
    }

    #[test]
    fn a_panic_becomes_an_error() {
        let (reply, _) = run(catch_panic, None, Box::pin(async { panic!("boom") }));
        assert_eq!(reply.unwrap_err().code, Code::Internal as i32);
    }

    #[test]
    fn the_callers_time_bounds_the_answer_and_not_the_work() {
        let done = Rc::new(std::cell::Cell::new(false));
        let work = {
            let done = Rc::clone(&done);
            Box::pin(async move {
                tokio::time::sleep(Duration::from_millis(20)).await;
                done.set(true);
                Ok(Vec::new())
            })
        };
        let about = Rc::new(About {
            method: "M".into(),
            timeout: Some(Duration::from_millis(5)),
            abandoned: CancelToken::default(),
        });
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        tokio::task::LocalSet::new().block_on(&runtime, async {
            let reply = bound_time(&about, work).await;
            assert_eq!(reply.unwrap_err().code, Code::DeadlineExceeded as i32);
            about.abandoned.wait().await;
            while !done.get() {
                tokio::task::yield_now().await;
            }
        });
    }
}
