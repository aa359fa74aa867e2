//! Out-of-memory kills of containers: who looks when, and who is told.

use super::Shim;
use crate::{
    cgroups::{Cgroup, Look, OomWatch},
    container::Event,
    id::Id,
    tasks::OwnedTask,
};
use std::{rc::Rc, time::Duration};

/// A container's watch, and the task that waits for its notices; both go with the container.
pub(super) struct OomGuard {
    watch: Rc<OomWatch>,
    _waiting: OwnedTask,
}

impl Shim {
    pub(super) fn arm_oom_watch(self: &Rc<Self>, id: &Id, cgroup: &Cgroup) -> Option<OomGuard> {
        // What has happened beside it is accounted for before it counts.
        for other in self.ids() {
            self.report_oom_kills(&other);
        }
        let watch = match OomWatch::arm(cgroup) {
            Ok(watch) => Rc::new(watch),
            Err(e) => {
                log::warn!("out-of-memory kills cannot be watched container={id}: {e}");
                return None;
            }
        };
        let (shim, id, waiting) = (Rc::downgrade(self), id.clone(), Rc::clone(&watch));
        let wait = async move {
            while waiting.woken().await.is_ok() {
                for pause in waiting.looks() {
                    if *pause > Duration::ZERO {
                        tokio::time::sleep(*pause).await;
                    }
                    let Some(shim) = shim.upgrade() else { return };
                    if shim.report_oom_kills(&id) == Look::Gone {
                        return;
                    }
                }
            }
        };
        Some(OomGuard { watch, _waiting: OwnedTask::spawn("oom watch", wait) })
    }

    fn report_oom_kills(self: &Rc<Self>, id: &Id) -> Look {
        let watch = self.with(id, |owned| owned.oom.as_ref().map(|oom| Rc::clone(&oom.watch)));
        let Ok(Some(watch)) = watch else { return Look::Nothing };
        let look = watch.look();
        if look == Look::Killed {
            let _ = self.apply(id, Event::OomKilled);
        }
        look
    }

    /// Before all else that an exit asks for: systemd removes the scope of a dead container, and
    /// its counters, as soon as it can. `init` is the status of an init.
    pub(super) fn report_oom_kills_at_exit(self: &Rc<Self>, id: &Id, init: Option<u32>) {
        if self.report_oom_kills(id) != Look::Gone || init.is_none_or(|status| status == 0) {
            return;
        }
        let unseen = self.with(id, |owned| {
            owned.oom.as_ref().filter(|_| !owned.is_killed_by_us).map(|oom| Rc::clone(&oom.watch))
        });
        let Ok(Some(watch)) = unseen else { return };
        // What happened beside it is accounted for first.
        for other in self.ids().into_iter().filter(|other| other != id) {
            self.report_oom_kills(&other);
        }
        if watch.was_killed_unseen() {
            let _ = self.apply(id, Event::OomKilled);
        }
    }
}
