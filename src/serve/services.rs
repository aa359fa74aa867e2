//! The services of the daemon, registered in one place.

use crate::{
    protocol,
    rpc::{Call, Reply},
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
pub(super) fn register(shim: &Rc<Shim>) -> Services {
    let task: Rc<dyn Service> = Rc::new(TaskService::new(Rc::clone(shim)));
    protocol::task::SERVICES.into_iter().map(|name| (name, Rc::clone(&task))).collect()
}
