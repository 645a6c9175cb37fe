//! What this node stores that opens with a key version only, and what the vault knows of it (`docs/design/0012-lineage.md`).
//!
//! One task tells the vault, one call at a time: what is about to be stored before it is, and what is stored no more after it is
//! gone. Now and then it compares all that there is with all that the vault knows.

use crate::backup::is_in;
use custody_clients::{AccessError, Endpoint, Lineage as Client, TokenSource};
use custody_proto::vault::{
    Dependent, DependentKind, ListReportedDependentsRequest, ReportDependentsRequest,
};
use custody_rpc::status::reason;
use custody_types::{KeyName, KeyVersionName};
use parking_lot::Mutex;
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};
use tokio::{
    sync::{Notify, oneshot},
    task::JoinHandle,
    time::Instant,
};
use tonic::{Code, Status};

/// Dependents of one call.
const TOLD_MAX: usize = 1000;
/// How long the task waits for others to go with the first.
const GATHER: Duration = Duration::from_millis(2);
/// Between looks at all that there is.
const COMPARE_EVERY: Duration = Duration::from_secs(86_400);
/// Between tries.
const PAUSE: std::ops::RangeInclusive<Duration> = Duration::from_millis(100)..=Duration::from_secs(30);

/// What a dependent is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Facts {
    pub(crate) kind: DependentKind,
    /// What an increment adds to.
    pub(crate) base: String,
    /// Whether it stays with its version.
    pub(crate) pinned: bool,
}

impl Facts {
    pub(crate) fn of(kind: DependentKind) -> Self {
        Self { kind, base: String::new(), pinned: false }
    }
}

/// What, and the version that it opens with.
pub(crate) type Place = (String, KeyVersionName);

/// All that there is.
pub(crate) type Inventory = BTreeMap<Place, Facts>;

struct Entry {
    facts: Facts,
    /// Whether it is stored, or about to be.
    stored: bool,
    /// When it was last changed here, by the count of changes.
    changed: u64,
}

type Told = oneshot::Sender<Result<(), AccessError>>;

#[derive(Default)]
struct State {
    here: BTreeMap<String, BTreeMap<KeyVersionName, Entry>>,
    /// What the vault is to be told of: that it is here, or that it is not.
    dirty: BTreeSet<Place>,
    /// What it is being told of.
    telling: BTreeSet<Place>,
    /// Who waits until the vault was told.
    waiting: BTreeMap<Place, Vec<Told>>,
    changes: u64,
    /// While all that there is is looked at: what was removed meanwhile.
    removed: Option<BTreeSet<Place>>,
    /// Whether `here` is all that there is.
    whole: bool,
    /// Whether the vault was told that it knows all.
    complete: bool,
    /// The number of the last report; none before it is known what the vault knows.
    sequence: Option<u64>,
}

/// A handle on the task.
#[derive(Clone, Default)]
pub(crate) struct Dependents {
    state: Arc<Mutex<State>>,
    wake: Arc<Notify>,
    told: Arc<Notify>,
}

/// Something that the vault knows of and that is about to be stored. Dropped before it is, it is taken back.
pub(crate) struct Declared {
    dependents: Dependents,
    place: Place,
}

impl Declared {
    /// It is stored.
    pub(crate) fn stored(self) {
        self.dependents.state.lock().stored(&self.place);
    }
}

impl Drop for Declared {
    fn drop(&mut self) {
        let mut state = self.dependents.state.lock();
        if state.entry(&self.place).is_some_and(|entry| !entry.stored) {
            state.remove(&self.place);
            self.dependents.wake.notify_one();
        }
    }
}

impl State {
    fn entry(&mut self, (resource, version): &Place) -> Option<&mut Entry> {
        self.here.get_mut(resource)?.get_mut(version)
    }

    fn remove(&mut self, place: &Place) {
        let (resource, version) = place;
        self.changes += 1;
        if let Some(of) = self.here.get_mut(resource) {
            of.remove(version);
            if of.is_empty() {
                self.here.remove(resource);
            }
        }
        if let Some(removed) = &mut self.removed {
            removed.insert(place.clone());
        }
        self.dirty.insert(place.clone());
    }

    fn put(&mut self, place: Place, facts: Facts, stored: bool) {
        self.changes += 1;
        if let Some(removed) = &mut self.removed {
            removed.remove(&place);
        }
        let stored = stored || self.entry(&place).is_some_and(|entry| entry.stored);
        let entry = Entry { facts, stored, changed: self.changes };
        self.here.entry(place.0.clone()).or_default().insert(place.1.clone(), entry);
        self.dirty.insert(place);
    }

    /// What was about to be stored is.
    fn stored(&mut self, place: &Place) {
        let now = self.changes + 1;
        if let Some(entry) = self.entry(place).filter(|entry| !entry.stored) {
            // A change as any other: whoever looks at all that there is may have looked before it.
            (entry.stored, entry.changed) = (true, now);
            self.changes = now;
        }
    }

    fn all(&self) -> impl Iterator<Item = (Place, &Entry)> {
        let of = |(resource, versions): (&String, _)| {
            let resource = resource.clone();
            let versions: &BTreeMap<KeyVersionName, Entry> = versions;
            versions.iter().map(move |(version, entry)| ((resource.clone(), version.clone()), entry))
        };
        self.here.iter().flat_map(of)
    }

    /// Takes in all that there is, as it was found since the count of changes was `began`, and what the vault knew then.
    fn take(&mut self, found: Inventory, knew: &Inventory, began: u64) {
        let removed = self.removed.take().unwrap_or_default();
        let old = |e: &Entry| e.stored && e.changed <= began;
        let gone: Vec<Place> = self
            .all()
            .filter(|(place, e)| old(e) && !found.contains_key(place))
            .map(|(place, _)| place)
            .collect();
        gone.iter().for_each(|place| self.remove(place));
        for (place, facts) in found {
            let newer = self.entry(&place).is_some_and(|entry| entry.changed > began || entry.facts == facts);
            if !newer && !removed.contains(&place) {
                self.put(place, facts, true);
            }
        }
        let unknown =
            self.all().filter(|(place, e)| knew.get(place) != Some(&e.facts)).map(|(place, _)| place);
        let unknown: Vec<Place> = unknown.collect();
        let too_much =
            knew.keys().filter(|place| !self.here.get(&place.0).is_some_and(|of| of.contains_key(&place.1)));
        let too_much: Vec<Place> = too_much.cloned().collect();
        self.dirty.extend(unknown.into_iter().chain(too_much));
        self.whole = true;
        self.complete = false;
    }
}

/// What goes into one call.
struct Report {
    request: ReportDependentsRequest,
    places: Vec<Place>,
    waiting: BTreeMap<Place, Vec<Told>>,
}

impl Dependents {
    /// Starts telling a vault, as the principal of the certificate. `look` finds all that there is; it blocks.
    pub(crate) fn start(&self, vault: &Endpoint, identity: &Endpoint, look: Look) {
        let tokens = TokenSource::workload(identity.clone(), "", "custody-vault");
        let client = Client::new(vault.authenticated(tokens));
        tokio::spawn(tell(self.clone(), client, look));
    }

    /// Has the vault know of something before it is stored; returns when it does.
    pub(crate) async fn declare(
        &self,
        resource: &str,
        version: &KeyVersionName,
        facts: Facts,
    ) -> Result<Declared, AccessError> {
        let place = (resource.to_owned(), version.clone());
        let (told, answer) = oneshot::channel();
        let declared = {
            let mut state = self.state.lock();
            state.put(place.clone(), facts, false);
            state.waiting.entry(place.clone()).or_default().push(told);
            Declared { dependents: self.clone(), place }
        };
        self.wake.notify_one();
        let ended = || AccessError::Unreachable("this node ends".to_owned());
        answer.await.map_err(|_| ended())??;
        Ok(declared)
    }

    /// What of a resource is stored now, in place of what was. What is about to be stays so.
    pub(crate) fn set(&self, resource: &str, now: BTreeMap<KeyVersionName, Facts>) {
        let mut state = self.state.lock();
        let there = state.here.get(resource).into_iter().flatten();
        let gone = there.filter(|(version, entry)| entry.stored && !now.contains_key(*version));
        let gone: Vec<Place> = gone.map(|(version, _)| (resource.to_owned(), version.clone())).collect();
        gone.iter().for_each(|place| state.remove(place));
        for (version, facts) in now {
            let place = (resource.to_owned(), version);
            match state.entry(&place) {
                Some(entry) if entry.facts == facts => state.stored(&place),
                _ => state.put(place, facts, true),
            }
        }
        drop(state);
        self.wake.notify_one();
    }

    /// A resource is gone, or all below a folder of them.
    pub(crate) fn gone(&self, resource: &str) {
        let mut state = self.state.lock();
        let gone: Vec<Place> =
            state.all().map(|(place, _)| place).filter(|place| is_in(&place.0, resource)).collect();
        gone.iter().for_each(|place| state.remove(place));
        drop(state);
        self.wake.notify_one();
    }

    /// Waits until the vault knows of all that has changed so far. Answers whether it does; not if that takes too long.
    pub(crate) async fn told(&self, limit: Duration) -> bool {
        let until = Instant::now() + limit;
        let mut untold = {
            let state = self.state.lock();
            state.dirty.union(&state.telling).cloned().collect::<BTreeSet<_>>()
        };
        loop {
            let told = self.told.notified();
            {
                let state = self.state.lock();
                untold.retain(|place| state.dirty.contains(place) || state.telling.contains(place));
            }
            if untold.is_empty() {
                return true;
            }
            if tokio::time::timeout_at(until, told).await.is_err() {
                return false;
            }
        }
    }

    /// What is stored under a key.
    pub(crate) fn of_key(&self, key: &KeyName) -> Inventory {
        let state = self.state.lock();
        let of = state.all().filter(|((_, version), entry)| entry.stored && version.key() == *key);
        of.map(|(place, entry)| (place, entry.facts.clone())).collect()
    }

    /// Takes what is to be told now.
    fn next(&self) -> Option<Report> {
        let mut state = self.state.lock();
        let state = &mut *state;
        let places: Vec<Place> = state.dirty.iter().take(TOLD_MAX).cloned().collect();
        places.iter().for_each(|place| _ = state.dirty.remove(place));
        state.telling.extend(places.iter().cloned());
        let complete = state.whole && !state.complete && state.dirty.is_empty();
        if places.is_empty() && !complete {
            return None;
        }
        let sequence = state.sequence.unwrap_or_default() + 1;
        state.sequence = Some(sequence);
        let mut request =
            ReportDependentsRequest { complete, sequence, ..ReportDependentsRequest::default() };
        let mut waiting = BTreeMap::new();
        for place in &places {
            let dependent = Dependent {
                resource: place.0.clone(),
                key_version: place.1.to_string(),
                ..Dependent::default()
            };
            match state.entry(place) {
                Some(Entry { facts, .. }) => request.dependents.push(Dependent {
                    kind: facts.kind.into(),
                    base: facts.base.clone(),
                    pinned: facts.pinned,
                    ..dependent
                }),
                None => request.removed.push(dependent),
            }
            if let Some(told) = state.waiting.remove(place) {
                waiting.insert(place.clone(), told);
            }
        }
        Some(Report { request, places, waiting })
    }

    /// Takes the vault's answer in.
    fn answered(&self, report: Report, answer: Result<Vec<String>, Status>) -> Result<(), Status> {
        let mut state = self.state.lock();
        state.telling.clear();
        let unknown = match answer {
            Ok(unknown) => unknown,
            Err(e) => {
                // It may have been done all the same, so all of it is told again. What waits is not kept waiting.
                state.dirty.extend(report.places);
                if e.code() == Code::InvalidArgument {
                    state.sequence = None;
                }
                drop(state);
                refuse(report.waiting, &e);
                return Err(e);
            }
        };
        state.complete |= report.request.complete;
        drop(state);
        self.told.notify_waiters();
        for (place, waiting) in report.waiting {
            let name = place.1.as_str();
            let destroyed = unknown.iter().any(|u| u == name).then(|| AccessError::Refused {
                reason: "KEY_DESTROYED".to_owned(),
                message: format!("key version `{name}` is DESTROYED: nothing can be stored under it"),
                status: "FAILED_PRECONDITION".to_owned(),
            });
            waiting.into_iter().for_each(|told| _ = told.send(destroyed.clone().map_or(Ok(()), Err)));
        }
        if !unknown.is_empty() {
            let why = "what is here under these key versions cannot be opened any more: they are destroyed";
            tracing::error!(custody.key.versions = ?unknown, "{why}");
        }
        Ok(())
    }

    /// Nobody is kept waiting for a vault that is away.
    fn refuse_all(&self, e: &Status) {
        let waiting = std::mem::take(&mut self.state.lock().waiting);
        refuse(waiting, e);
    }
}

fn refuse(waiting: BTreeMap<Place, Vec<Told>>, e: &Status) {
    let why = AccessError::new(e.code(), reason(e), e.message().to_owned());
    waiting.into_values().flatten().for_each(|told| _ = told.send(Err(why.clone())));
}

/// Finds all that there is. Blocks.
pub(crate) type Look = Arc<dyn Fn() -> Result<Inventory, Status> + Send + Sync>;

/// A look at all that there is, under way.
struct Looking {
    found: JoinHandle<Result<Inventory, Status>>,
    /// What the vault knew when it began.
    knew: Inventory,
    began: u64,
}

/// The task.
struct Teller {
    dependents: Dependents,
    client: Client,
    look: Look,
    looking: Option<Looking>,
    look_at: Instant,
}

/// Tells the vault what changes, and compares now and then.
async fn tell(dependents: Dependents, client: Client, look: Look) {
    let mut teller = Teller { dependents, client, look, looking: None, look_at: Instant::now() };
    let mut pause = *PAUSE.start();
    loop {
        let idle = teller.looking.is_none();
        let found = async {
            match &mut teller.looking {
                Some(looking) => (&mut looking.found).await,
                None => std::future::pending().await,
            }
        };
        let found = tokio::select! {
            () = teller.dependents.wake.notified() => {
                tokio::time::sleep(GATHER).await;
                None
            }
            found = found => Some(found.unwrap_or_else(|_| Err(custody_rpc::status::internal()))),
            () = tokio::time::sleep_until(teller.look_at), if idle => None,
        };
        match teller.turn(found).await {
            Ok(()) => pause = *PAUSE.start(),
            Err(e) => {
                tracing::warn!(
                    error = e.message(),
                    "the vault does not know all of what depends on its keys yet"
                );
                teller.dependents.refuse_all(&e);
                // What is asked meanwhile is tried at once.
                tokio::select! {
                    () = tokio::time::sleep(pause) => {}
                    () = teller.dependents.wake.notified() => {}
                }
                pause = (pause * 2).min(*PAUSE.end());
                teller.dependents.wake.notify_one();
            }
        }
    }
}

impl Teller {
    async fn turn(&mut self, found: Option<Result<Inventory, Status>>) -> Result<(), Status> {
        let unlisted = self.dependents.state.lock().sequence.is_none();
        let due = self.looking.is_none() && Instant::now() >= self.look_at;
        let looked = if found.is_some() { self.looking.take() } else { None };
        let looked_in_vain = match (looked, found) {
            (Some(looking), Some(Ok(found))) => {
                self.dependents.state.lock().take(found, &looking.knew, looking.began);
                self.look_at = Instant::now() + COMPARE_EVERY;
                None
            }
            (_, Some(Err(e))) => {
                self.dependents.state.lock().removed = None;
                Some(e)
            }
            _ => None,
        };
        if unlisted || due {
            let (knew, last) = list(&mut self.client).await?;
            let began = {
                let mut state = self.dependents.state.lock();
                state.sequence = Some(state.sequence.unwrap_or_default().max(last));
                state.removed = Some(BTreeSet::new());
                state.changes
            };
            let look = self.look.clone();
            let found = tokio::task::spawn_blocking(move || look());
            self.looking = Some(Looking { found, knew, began });
        }
        while let Some(report) = self.dependents.next() {
            let answer = self.client.report_dependents(report.request.clone()).await;
            let answer = answer.map(|answer| answer.into_inner().unknown_key_versions);
            self.dependents.answered(report, answer)?;
        }
        looked_in_vain.map_or(Ok(()), Err)
    }
}

/// All that the vault knows, and the number of the last report that it took.
async fn list(client: &mut Client) -> Result<(Inventory, u64), Status> {
    let (mut knew, mut page_token, mut last) = (Inventory::new(), String::new(), 0);
    loop {
        let request = ListReportedDependentsRequest { page_size: 1000, page_token };
        let page = client.list_reported_dependents(request).await?.into_inner();
        last = page.last_sequence.max(last);
        for d in page.dependents {
            let facts = Facts { kind: d.kind(), base: d.base.clone(), pinned: d.pinned };
            if let Ok(version) = d.key_version.parse() {
                knew.insert((d.resource, version), facts);
            }
        }
        page_token = page.next_page_token;
        if page_token.is_empty() {
            return Ok((knew, last));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(resource: &str, version: u8) -> Place {
        (resource.to_owned(), format!("vaults/v/keys/k/versions/{version:032x}").parse().unwrap())
    }

    fn facts() -> Facts {
        Facts::of(DependentKind::Volume)
    }

    fn told(dependents: &Dependents) -> (Vec<String>, Vec<String>) {
        let names = |all: &[Dependent]| all.iter().map(|d| d.resource.clone()).collect();
        let report = dependents.next();
        report.map(|r| (names(&r.request.dependents), names(&r.request.removed))).unwrap_or_default()
    }

    /// Begins to look at all that there is; ends with what was found.
    fn look(dependents: &Dependents, meanwhile: impl FnOnce(), found: &[&str], knew: &[&str]) {
        let began = {
            let mut state = dependents.state.lock();
            state.removed = Some(BTreeSet::new());
            state.changes
        };
        meanwhile();
        let all = |names: &[&str]| names.iter().map(|name| (place(name, 1), facts())).collect();
        dependents.state.lock().take(all(found), &all(knew), began);
    }

    fn here(dependents: &Dependents) -> Vec<String> {
        dependents.state.lock().all().map(|((resource, _), _)| resource).collect()
    }

    #[test]
    fn what_changes_while_all_is_looked_at_is_as_it_is_and_not_as_it_was() {
        let dependents = Dependents::default();
        let one = || [(place("", 1).1, facts())].into();
        dependents.set("volumes/old", one());
        dependents.set("volumes/going", one());
        let pending = |name: &str| {
            dependents.state.lock().put(place(name, 1), facts(), false);
            Declared { dependents: dependents.clone(), place: place(name, 1) }
        };
        // Declared before the look, stored while it goes on, after it had looked there.
        let (stored, given_up) = (pending("volumes/stored"), pending("volumes/given-up"));
        let still = pending("volumes/still-pending");
        let meanwhile = || {
            stored.stored();
            drop(given_up);
            dependents.gone("volumes/going");
            dependents.set("volumes/new", one());
        };
        look(&dependents, meanwhile, &["volumes/going", "volumes/found"], &["volumes/lost"]);
        let now = ["volumes/found", "volumes/new", "volumes/still-pending", "volumes/stored"];
        assert_eq!(here(&dependents), now, "what was not found and did not change is gone");
        let (added, removed) = told(&dependents);
        assert_eq!(added, now);
        assert_eq!(removed, ["volumes/given-up", "volumes/going", "volumes/lost", "volumes/old"]);
        assert_eq!(told(&dependents), Default::default(), "once");
        drop(still);
        assert_eq!(told(&dependents).1, ["volumes/still-pending"]);
    }

    #[tokio::test]
    async fn who_waits_until_the_vault_knows_waits_for_its_answer_and_for_nothing_later() {
        let dependents = Dependents::default();
        let set = |name: &str| dependents.set(name, [(place("", 1).1, facts())].into());
        assert!(dependents.told(Duration::ZERO).await, "nothing is to be told");
        set("volumes/a");
        assert!(!dependents.told(Duration::ZERO).await);
        let mut told = std::pin::pin!(dependents.told(Duration::from_secs(60)));
        assert!(futures_util::poll!(&mut told).is_pending());
        let report = dependents.next().unwrap();
        assert!(futures_util::poll!(&mut told).is_pending(), "it is being told");
        dependents.answered(report, Err(Status::unavailable("away"))).unwrap_err();
        assert!(futures_util::poll!(&mut told).is_pending(), "it was not heard");
        let report = dependents.next().unwrap();
        set("volumes/b");
        dependents.answered(report, Ok(Vec::new())).unwrap();
        assert!(told.await);
        assert!(!dependents.told(Duration::ZERO).await, "the other is yet to be told");
    }

    #[test]
    fn what_the_vault_may_not_have_heard_is_said_again() {
        let dependents = Dependents::default();
        dependents.set("volumes/a", [(place("", 1).1, facts())].into());
        let report = dependents.next().unwrap();
        dependents.answered(report, Err(Status::unavailable("away"))).unwrap_err();
        dependents.gone("volumes/a");
        assert_eq!(told(&dependents), (vec![], vec!["volumes/a".to_owned()]));
    }

    #[test]
    fn a_folder_goes_with_all_below_it_and_nothing_beside_it() {
        let dependents = Dependents::default();
        for name in ["backups/b/coordinator", "backups/b/worker-1", "backups/b-2", "backups/c"] {
            dependents.set(name, [(place("", 1).1, facts())].into());
        }
        dependents.gone("backups/b");
        assert_eq!(here(&dependents), ["backups/b-2", "backups/c"]);
    }
}
