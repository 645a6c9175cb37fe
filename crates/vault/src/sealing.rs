//! Sealing and unsealing, and changing what does it: for the deployment, and for a vault by its owner.

use crate::{
    Call, EventType, Vault, VaultError,
    dependents::Dependents,
    gate::{Permit, op},
    leases::Register,
    root_key::{INTEGRITY, SIGNER, SIGNING, new_signer},
    seal::{
        Made, Means, NewSeal, OWN, Passphrase, SEALS, SYSTEM, SealError, SealRecord, SealType, Share,
        SystemSeal, VaultKeys, VaultSeal, combine, load_key_file,
    },
};
use custody_envelope::{SealingKey, random};
use custody_proof::SigningKey;
use custody_store::Batch;
use custody_types::{Permission, UnixMillis, VaultName};
use std::{
    collections::BTreeMap,
    fmt,
    path::PathBuf,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};
use zeroize::Zeroizing;

/// Time in which all shares must be given.
const ATTEMPT_TIME: Duration = Duration::from_secs(600);
/// How long a start brings vaults into memory before it serves: enough for some 20,000 keys. It is cut short where there are
/// many more.
const START_TIME: Duration = Duration::from_millis(500);

/// Where what the seal needs lies.
#[derive(Clone, Debug)]
pub struct SealSettings {
    /// The file of the default seal; made with the store.
    pub key_file: PathBuf,
    /// The file that holds the number of the store's last commit; best on another disk.
    pub anchor: PathBuf,
    /// The commit to go on from although the anchor knows of a later one.
    pub accept_commit: Option<u64>,
}

/// What a seal is opened with.
#[derive(Debug)]
pub enum UnsealKey {
    /// A passphrase.
    Passphrase(Passphrase),
    /// One officer's share.
    Share(ShareText),
}

/// The text of a share: erased on drop, never shown.
pub struct ShareText(Zeroizing<String>);

impl ShareText {
    /// Takes one in.
    #[must_use]
    pub fn new(text: String) -> Self {
        Self(Zeroizing::new(text))
    }
}

impl fmt::Debug for ShareText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ShareText(..)")
    }
}

/// A seal as it is shown.
#[derive(Clone, Debug)]
pub struct SealView {
    /// `seal`, or `vaults/{vault}/seal`.
    pub name: String,
    /// What opens it; none for a vault that has no seal of its own.
    pub seal_type: Option<SealType>,
    /// Whether it is closed now.
    pub sealed: bool,
    /// Which root key, or which key of the vault, seals now.
    pub generation: u32,
    /// Shares that were given and wait for others.
    pub shares_given: usize,
    /// When it was made or last changed.
    pub create_time: Option<UnixMillis>,
}

/// A seal that was changed, with the texts for its officers. They are shown once and stored nowhere.
pub struct NewShares {
    /// How it is sealed now.
    pub seal: SealView,
    /// One for each officer.
    pub shares: Vec<Zeroizing<String>>,
}

impl fmt::Debug for NewShares {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NewShares").field("seal", &self.seal).finish_non_exhaustive()
    }
}

/// Which seal.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Target {
    System,
    Vault(VaultName),
}

impl Target {
    fn parse(name: &str) -> Result<Self, VaultError> {
        if name == "seal" {
            return Ok(Self::System);
        }
        let vault = name.strip_suffix("/seal").and_then(|vault| vault.parse().ok());
        let why = "must be `seal` for the deployment's, or `vaults/VAULT/seal`";
        vault.map(Self::Vault).ok_or_else(|| VaultError::invalid("name", why))
    }
}

/// Shares that wait for others.
struct Attempt {
    seal: String,
    given: Vec<(String, Share)>,
    until: UnixMillis,
}

/// Shares given so far, by seal.
#[derive(Default)]
pub(crate) struct Attempts(BTreeMap<Target, Attempt>);

impl Vault {
    /// Whether the whole deployment is sealed: the gate lets nothing pass.
    #[must_use]
    pub fn is_sealed(&self) -> bool {
        self.gate.is_sealed()
    }

    /// Why nothing is done while the deployment is sealed: that it has yet to be unsealed is an outage, that an officer has sealed
    /// it is an answer.
    pub(crate) fn sealed_error(&self) -> VaultError {
        if self.sealed_by_officer.load(Ordering::Acquire) {
            VaultError::VaultSealed("the deployment".to_owned())
        } else {
            VaultError::Sealed
        }
    }

    /// What the gate's refusal means to a holder of leases.
    #[must_use]
    pub fn lease_refusal(&self, refused: VaultError) -> VaultError {
        if matches!(refused, VaultError::Sealed) { self.sealed_error() } else { refused }
    }

    /// Makes the root key of a new store, under the default seal.
    pub(crate) fn initialise(&self) -> Result<(), VaultError> {
        let root = SealingKey::generate()?;
        let mut integrity = Zeroizing::new([0; 32]);
        random(&mut *integrity)?;
        let made = self.make_seal(SYSTEM, &root, &NewSeal::Default)?;
        let (signer, signing) = new_signer(&root)?;
        let system = SystemSeal {
            seal: made.record,
            generation: 1,
            integrity: root.seal(INTEGRITY, &*integrity)?,
            signing,
        };
        let mut batch = Batch::new();
        batch.put(SEALS, SYSTEM, &system);
        self.store.begin_integrity(&integrity, &self.seal_settings.anchor, batch)?;
        self.keyring.set_root(root, Arc::new(made.seal_key), signer);
        self.gate.set_sealed(false);
        Ok(())
    }

    /// Opens the deployment where its seal needs nobody: its key lies in a file, or in the HSM. An HSM that is away may
    /// come back; until then it stays sealed.
    pub(crate) fn open_by_itself(&self) -> Result<(), VaultError> {
        let seal = self.system()?.seal;
        let key = match &seal.seal_type {
            SealType::KeyFile => load_key_file(&self.seal_settings.key_file, false)?,
            SealType::Hsm { .. } => match seal.key_of_hsm(self.options.token.as_ref()) {
                Err(SealError::Hsm(e)) => {
                    tracing::error!(error = %e, "the vault stays sealed until the HSM is back");
                    return Ok(());
                }
                key => key?,
            },
            SealType::Passphrase { .. } | SealType::Shares { .. } => return Ok(()),
        };
        self.open_system(key)
    }

    /// Whether the store was ever sealed.
    pub(crate) fn has_seal(&self) -> Result<bool, VaultError> {
        Ok(self.store.get::<SystemSeal>(SEALS, SYSTEM)?.is_some())
    }

    pub(crate) fn system(&self) -> Result<SystemSeal, VaultError> {
        self.store.get(SEALS, SYSTEM)?.ok_or(VaultError::StoreRefused(custody_store::StoreError::Altered))
    }

    pub(crate) fn vault_seal(&self, vault: &VaultName) -> Result<VaultSeal, VaultError> {
        Ok(self.store.get(SEALS, vault.as_str())?.unwrap_or_default())
    }

    fn make_seal(&self, place: &str, key: &SealingKey, method: &NewSeal) -> Result<Made, VaultError> {
        // The HSM is the operator's: a vault's own seal is not opened by it.
        let token = self.options.token.as_ref().filter(|_| place == SYSTEM);
        let means = Means { key_file: &self.seal_settings.key_file, token };
        Ok(SealRecord::make(place, key, method, &means, self.now())?)
    }

    /// Opens the root key, checks the store with it, and lets calls pass.
    fn open_system(&self, seal_key: SealingKey) -> Result<(), VaultError> {
        let _one_at_a_time = self.changes.lock();
        let mut system = self.system()?;
        let root = system.seal.open(SYSTEM, &seal_key)?;
        let integrity = root.open(INTEGRITY, &system.integrity).map_err(|_| SealError::WrongKey)?;
        let integrity: &[u8; 32] = integrity.as_slice().try_into().map_err(|_| SealError::WrongKey)?;
        let (anchor, accepted) = (&self.seal_settings.anchor, self.seal_settings.accept_commit);
        self.store.check_integrity(integrity, anchor, accepted)?;
        let seals = self.store.scan::<VaultSeal>(SEALS, "vaults/")?;
        for (name, seal) in seals.into_iter().filter(|(_, seal)| seal.own.is_none()) {
            let name: VaultName = name.parse()?;
            let generations = seal.open(&name, None, &root)?;
            self.keyring.put(&name, VaultKeys { generations, own: None });
        }
        let signer = if system.signing.is_empty() {
            let (signer, signing) = new_signer(&root)?;
            system.signing = signing;
            let mut batch = Batch::new();
            batch.put(SEALS, SYSTEM, &system);
            self.store.commit(batch)?;
            signer
        } else {
            let seed = root.open(SIGNING, &system.signing).map_err(|_| SealError::WrongKey)?;
            Arc::new(SigningKey::from_seed(SIGNER, &seed).map_err(|_| VaultError::Backend)?)
        };
        self.keyring.set_root(root, Arc::new(seal_key), signer);
        if self.catalog.read().vaults.is_empty() {
            // What was read once is what the store holds: nobody else writes to it while this process has it.
            self.loader.begin()?;
            *self.dependents.lock() = Dependents::load(&self.store)?;
            *self.leases.lock() = Register::load(&self.store, self.clock.monotonic(), self.now())?;
        }
        // A vault that stands for a cloud's begins whole: changes of roles that take their time are not to miss any.
        let time = self.options.start_time.unwrap_or(START_TIME);
        self.loader.start(self.options.faults.is_none().then_some(time))?;
        self.gate.set_sealed(false);
        self.sealed_by_officer.store(false, Ordering::Release);
        // What ended access may have been the last thing that this process's predecessor did.
        let opened = self.end_leases("STARTED", None);
        self.save_revocations(opened);
        Ok(())
    }

    /// The deployment's seal. Anyone may know how it is opened, and whether it is.
    ///
    /// # Errors
    /// The store failed.
    pub fn system_seal(&self) -> Result<SealView, VaultError> {
        let system = self.system()?;
        Ok(SealView {
            name: "seal".to_owned(),
            seal_type: Some(system.seal.seal_type),
            sealed: self.is_sealed(),
            generation: system.generation,
            shares_given: self.shares_given(&Target::System),
            create_time: Some(system.seal.create_time),
        })
    }

    /// A seal, by its name: `seal`, or `vaults/{vault}/seal`.
    ///
    /// # Errors
    /// Not allowed, or there is no such vault.
    pub fn get_seal(&self, call: &Call, name: &str) -> Result<SealView, VaultError> {
        match Target::parse(name)? {
            Target::System => self.system_seal(),
            Target::Vault(vault) => self.gate.run::<op::GetSeal, _>(call, vault.as_str(), |_| {
                self.catalog.read().vault(&vault)?;
                self.view_seal(&vault)
            }),
        }
    }

    fn view_seal(&self, vault: &VaultName) -> Result<SealView, VaultError> {
        let stored = self.vault_seal(vault)?;
        Ok(SealView {
            name: format!("{vault}/seal"),
            sealed: self.keyring.is_sealed(vault),
            generation: stored.keys.keys().next_back().copied().unwrap_or_default(),
            shares_given: self.shares_given(&Target::Vault(vault.clone())),
            create_time: stored.own.as_ref().map(|own| own.create_time),
            seal_type: stored.own.map(|own| own.seal_type),
        })
    }

    fn shares_given(&self, target: &Target) -> usize {
        self.attempts.lock().0.get(target).filter(|a| self.now() < a.until).map_or(0, |a| a.given.len())
    }

    /// Unseals, or adds a share to those given.
    ///
    /// # Errors
    /// Not allowed; it is not sealed; the key is wrong, and then all shares are to be given again; the deployment's store
    /// is not as it was left.
    pub fn unseal(&self, call: &Call, name: &str, key: &UnsealKey) -> Result<SealView, VaultError> {
        match Target::parse(name)? {
            Target::System => self.gate.run::<op::Unseal, _>(call, "seal", |_| {
                if !self.is_sealed() {
                    return Err(not_sealed("seal"));
                }
                let record = self.system()?.seal;
                if let Some(seal_key) = self.seal_key(call, &Target::System, &record, key)? {
                    self.open_system(seal_key)?;
                    self.tell(EventType::Unsealed, "seal");
                }
                self.system_seal()
            }),
            Target::Vault(vault) => self.gate.run::<op::UnsealVault, _>(call, vault.as_str(), |_| {
                self.catalog.read().vault(&vault)?;
                let stored = self.vault_seal(&vault)?;
                let Some(record) = stored.own.as_ref().filter(|_| self.keyring.is_sealed(&vault)) else {
                    return Err(not_sealed(vault.as_str()));
                };
                if let Some(seal_key) = self.seal_key(call, &Target::Vault(vault.clone()), record, key)? {
                    self.open_vault(&vault, seal_key)?;
                    self.tell(EventType::Unsealed, vault.as_str());
                }
                self.view_seal(&vault)
            }),
        }
    }

    fn open_vault(&self, vault: &VaultName, seal_key: SealingKey) -> Result<(), VaultError> {
        // No key comes into the memory of a deployment that is being sealed, nor under a root key that is being replaced.
        let _one_at_a_time = self.changes.lock();
        let stored = self.vault_seal(vault)?;
        let record = stored.own.as_ref().ok_or_else(|| not_sealed(vault.as_str()))?;
        let own = record.open(&format!("{OWN} {vault}"), &seal_key)?;
        let (root, _) = self.keyring.root()?;
        let generations = stored.open(vault, Some(&own), &root)?;
        let own = Some((Arc::new(own), Arc::new(seal_key)));
        self.keyring.put(vault, VaultKeys { generations, own });
        Ok(())
    }

    /// The key of a seal, once enough was given. A passphrase is tried here, one at a time.
    fn seal_key(
        &self,
        call: &Call,
        target: &Target,
        record: &SealRecord,
        key: &UnsealKey,
    ) -> Result<Option<SealingKey>, VaultError> {
        let mut attempts = self.attempts.lock();
        let text = match (key, &record.seal_type) {
            (UnsealKey::Passphrase(passphrase), SealType::Passphrase { .. }) => {
                return Ok(Some(record.key_of_passphrase(passphrase)?));
            }
            (UnsealKey::Share(text), SealType::Shares { .. }) => text,
            _ => return Err(SealError::OtherType.into()),
        };
        let SealType::Shares { threshold, .. } = record.seal_type else { return Ok(None) };
        let share = Share::parse(&text.0)?;
        if hex::encode(share.seal) != record.id {
            return Err(SealError::OtherSeal.into());
        }
        let now = self.now();
        attempts.0.retain(|_, a| now < a.until);
        let new = || Attempt { seal: record.id.clone(), given: Vec::new(), until: now.plus(ATTEMPT_TIME) };
        let attempt = attempts.0.entry(target.clone()).or_insert_with(new);
        if attempt.seal != record.id {
            *attempt = new();
        }
        if attempt.given.iter().any(|(_, given)| given.index == share.index) {
            return Err(SealError::ShareGiven.into());
        }
        if attempt.given.iter().any(|(officer, _)| *officer == call.caller.principal) {
            return Err(SealError::OfficerGave.into());
        }
        attempt.given.push((call.caller.principal.clone(), share));
        if attempt.given.len() < usize::from(threshold) {
            return Ok(None);
        }
        let given = attempts.0.remove(target).map(|a| a.given).unwrap_or_default();
        let shares: Vec<Share> = given.into_iter().map(|(_, share)| share).collect();
        Ok(Some(combine(&shares)?))
    }

    /// Seals: what is above the private halves, and they themselves, leave the memory. A vault must have a seal of its
    /// own; the deployment's default seal opens by itself at the next start.
    ///
    /// # Errors
    /// Not allowed, or it has nothing that could open it again.
    pub fn seal(&self, call: &Call, name: &str) -> Result<SealView, VaultError> {
        match Target::parse(name)? {
            Target::System => self.gate.run::<op::Seal, _>(call, "seal", |_| {
                if matches!(self.system()?.seal.seal_type, SealType::KeyFile | SealType::Hsm { .. }) {
                    let why = "is opened by the key file or the HSM alone; change it to a passphrase or shares first";
                    return Err(VaultError::Precondition { name: "seal".to_owned(), why });
                }
                self.gate.set_sealed(true);
                self.sealed_by_officer.store(true, Ordering::Release);
                let _one_at_a_time = self.changes.lock();
                if let Err(e) = self.save_uses() {
                    tracing::warn!(error = %e, "the last counts of uses are lost; sealed all the same");
                }
                // What waits for answers is on disk before the store takes nothing any more.
                let opened = self.end_leases(EventType::Sealed.name(), None);
                self.announce(EventType::Sealed, "seal");
                self.save_revocations(opened);
                self.store.lock();
                self.keyring.clear();
                self.catalog.write().forget_private("");
                self.system_seal()
            }),
            Target::Vault(vault) => self.gate.run::<op::SealVault, _>(call, vault.as_str(), |_| {
                self.catalog.read().vault(&vault)?;
                if self.vault_seal(&vault)?.own.is_none() {
                    let why = "has no seal of its own; give it one first (`custody vault change-seal`)";
                    return Err(VaultError::Precondition { name: vault.to_string(), why });
                }
                let _one_at_a_time = self.changes.lock();
                self.keyring.forget(&vault);
                self.catalog.write().forget_private(&format!("{vault}/"));
                self.tell(EventType::Sealed, vault.as_str());
                self.view_seal(&vault)
            }),
        }
    }

    /// Changes what a seal is opened with. The deployment's root key is made anew with it, so that the old passphrase or
    /// shares open nothing that is written from now on. Of a vault it needs a second officer.
    ///
    /// # Errors
    /// Not allowed; it is sealed; the passphrase or the numbers are out of bounds; a second officer has to agree.
    pub fn change_seal(&self, call: &Call, name: &str, method: &NewSeal) -> Result<NewShares, VaultError> {
        match Target::parse(name)? {
            Target::System => self.gate.run::<op::ChangeSeal, _>(call, "seal", |_| {
                let root = SealingKey::generate()?;
                let before = self.system()?.seal;
                let made = self.make_seal(SYSTEM, &root, method)?;
                let done = self.replace_root(root, made.record.clone(), Arc::new(made.seal_key));
                let over = if done.is_ok() { before } else { made.record };
                if let Err(e) = over.forget(self.options.token.as_ref()) {
                    tracing::warn!(error = %e, "the key of a seal that is over is left in the HSM");
                }
                done?;
                Ok(NewShares { seal: self.system_seal()?, shares: made.shares })
            }),
            Target::Vault(vault) => self
                .gate
                .run(call, vault.as_str(), |permit| self.do_change_vault_seal(&permit, call, &vault, method)),
        }
    }

    fn do_change_vault_seal(
        &self,
        _: &Permit<op::ChangeVaultSeal>,
        call: &Call,
        vault: &VaultName,
        method: &NewSeal,
    ) -> Result<NewShares, VaultError> {
        self.catalog.read().vault(vault)?;
        let (own, shares) = if matches!(method, NewSeal::Default) {
            (None, Vec::new())
        } else {
            let own = SealingKey::generate()?;
            let made = self.make_seal(&format!("{OWN} {vault}"), &own, method)?;
            (Some((made.record, own, made.seal_key)), made.shares)
        };
        let to = match method {
            NewSeal::Default | NewSeal::Hsm => "the deployment's".to_owned(),
            NewSeal::Passphrase(_) => "a passphrase".to_owned(),
            NewSeal::Shares { number, threshold } => format!("{threshold} of {number} shares"),
        };
        let action = format!("change the seal of {vault} to {to}");
        let _one_at_a_time = self.changes.lock();
        let held = self.keyring.vault(vault)?;
        let agreed = self.second_officer(call, Permission::VaultSeal, vault, vault.as_str(), action)?;
        let (root, _) = self.keyring.root()?;
        let mut stored = VaultSeal { own: own.as_ref().map(|(r, ..)| r.clone()), ..VaultSeal::default() };
        for (generation, key) in &held.generations {
            stored.put(vault, *generation, key, own.as_ref().map(|(_, own, _)| own), &root)?;
        }
        let mut batch = Batch::new();
        batch.put(SEALS, vault.as_str(), &stored);
        self.commit_approved(batch, agreed, |_| ())?;
        let own = own.map(|(_, own, seal_key)| (Arc::new(own), Arc::new(seal_key)));
        self.keyring.put(vault, VaultKeys { generations: held.generations, own });
        Ok(NewShares { seal: self.view_seal(vault)?, shares })
    }

    /// Makes a new root key, or a new key of a vault, and seals what lies below it anew. Calls go on meanwhile.
    ///
    /// # Errors
    /// Not allowed, or it is sealed.
    pub fn rotate_root_key(&self, call: &Call, name: &str) -> Result<SealView, VaultError> {
        match Target::parse(name)? {
            Target::System => self.gate.run::<op::RotateRootKey, _>(call, "seal", |_| {
                let (_, seal_key) = self.keyring.root()?;
                let root = SealingKey::generate()?;
                let record = self.system()?.seal.around(SYSTEM, &root, &seal_key)?;
                self.replace_root(root, record, seal_key)?;
                self.system_seal()
            }),
            Target::Vault(vault) => self.gate.run::<op::RotateVaultKey, _>(call, vault.as_str(), |_| {
                self.add_vault_key(&vault)?;
                self.reseal(&vault)?;
                self.view_seal(&vault)
            }),
        }
    }
}

fn not_sealed(name: &str) -> VaultError {
    VaultError::Precondition { name: name.to_owned(), why: "is not sealed" }
}

impl fmt::Debug for Attempts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Attempts(..)")
    }
}
