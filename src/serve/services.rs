//! The services of the daemon, registered in one place.

use super::OpenCalls;
use crate::{
    inspect::InspectService,
    protocol,
    rpc::{Call, Load, Reply},
    shim::Shim,
    task::TaskService,
};
use std::{future::Future, pin::Pin, rc::Rc};

/// A ttrpc service: takes calls of its methods.
pub trait Service {
    /// Handles one call. The future is driven to its end whatever becomes of the caller.
    fn call(&self, call: Call) -> Pin<Box<dyn Future<Output = Reply>>>;
}

/// Service name → service.
pub(super) type Services = Vec<(&'static str, Rc<dyn Service>)>;

/// All services.
pub(super) fn register(shim: &Rc<Shim>, load: &Rc<Load>, calls: &Rc<OpenCalls>) -> Services {
    let task: Rc<dyn Service> = Rc::new(TaskService::new(Rc::clone(shim)));
    let inspect: Rc<dyn Service> = Rc::new(InspectService {
        shim: Rc::clone(shim),
        load: Rc::clone(load),
        calls: Rc::clone(calls),
    });
    let task = protocol::task::SERVICES.into_iter().map(|name| (name, Rc::clone(&task)));
    task.chain([(protocol::inspect::SERVICE, inspect)]).collect()
}
