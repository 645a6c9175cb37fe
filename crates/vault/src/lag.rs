//! Changes of role assignments that take their time to count, as in a cloud: for profiles of faults.

use custody_authz::Assignments;
use std::{collections::VecDeque, time::Duration};

/// A change on its way.
struct Pending {
    scope: String,
    /// When it counts, by the monotonic clock.
    at: Duration,
    /// What counts then.
    then: Assignments,
}

/// What counts while changes are on their way.
#[derive(Default)]
pub(crate) struct Lag {
    /// What counted before the first of them.
    before: Option<Assignments>,
    pending: VecDeque<Pending>,
}

impl Lag {
    /// A change is on its way. None overtakes another.
    pub(crate) fn begin(&mut self, scope: &str, before: Assignments, then: &Assignments, at: Duration) {
        if self.pending.is_empty() {
            self.before = Some(before);
        }
        let at = self.pending.back().map_or(at, |last| last.at.max(at));
        self.pending.push_back(Pending { scope: scope.to_owned(), at, then: then.clone() });
    }

    /// What counts now; none where it is what there is.
    pub(crate) fn counts(&self, now: Duration) -> Option<&Assignments> {
        if self.pending.back().is_none_or(|last| last.at <= now) {
            return None;
        }
        let through = self.pending.iter().take_while(|p| p.at <= now).last();
        through.map(|p| &p.then).or(self.before.as_ref())
    }

    /// Forgets what has come through; answers its scopes.
    pub(crate) fn settled(&mut self, now: Duration) -> Vec<String> {
        let mut scopes = Vec::new();
        while self.pending.front().is_some_and(|first| first.at <= now) {
            if let Some(through) = self.pending.pop_front() {
                self.before = Some(through.then);
                scopes.push(through.scope);
            }
        }
        if self.pending.is_empty() {
            self.before = None;
        }
        scopes
    }
}
