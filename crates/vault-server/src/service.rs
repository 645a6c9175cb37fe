//! The KeyVault service: parse, call the domain on a worker, convert back.

use crate::convert::{self, failed};
use custody_proto::vault::{
    self as wire,
    key_vault_server::{KeyVault, KeyVaultServer},
};
use custody_rpc::{
    CallContext,
    compute::Compute,
    correlation::AUDIT_SEQUENCE,
    page::{self, cut},
    server::MESSAGE_LEN_MAX,
    status::invalid,
    workers::Workers,
};
use custody_types::{Clock as _, Protection, SignatureAlgorithm, SystemClock, WrapAlgorithm};
use custody_vault::{
    Admission, Batch, Call, Event, EventType, IfExists, Material, Particulars, Place, Recorded, Vault,
    VaultParameters,
    gate::{Operation, Withheld, op},
};
use std::{pin::Pin, sync::Arc, time::Duration};
use tokio::sync::broadcast::{self, error::RecvError};
use tokio_stream::Stream;
use tonic::{Request, Response, Status, metadata::MetadataValue};

pub(crate) struct KeyVaultService {
    vault: Arc<Vault>,
    events: broadcast::Sender<Event>,
    workers: Workers,
    compute: Compute<Batch>,
}

/// A watch ends after this time and is begun anew by its client, with a fresh token.
const WATCH_TIME_MAX: Duration = Duration::from_secs(240);

impl KeyVaultService {
    pub(crate) fn server(
        vault: Arc<Vault>,
        events: broadcast::Sender<Event>,
        workers: Workers,
        compute: Compute<Batch>,
    ) -> KeyVaultServer<Self> {
        KeyVaultServer::new(Self { vault, events, workers, compute })
            .max_decoding_message_size(MESSAGE_LEN_MAX)
    }

    /// Runs a domain call on a worker.
    async fn run<R, T: Send + 'static>(
        &self,
        request: Request<R>,
        act: impl FnOnce(&Vault, &Call, R) -> Result<T, Status> + Send + 'static,
    ) -> Result<Response<T>, Status>
    where
        R: Send + 'static,
    {
        run(&self.vault, &self.workers, request, act).await
    }

    /// Uses a key: admitted by the gate in this task, done where computing holds nobody up.
    async fn compute<Op: Operation + 'static, T: Send + 'static>(
        &self,
        call: Call,
        name: &str,
        act: impl AsyncFnOnce(Admission<Op>, &Batch) -> Withheld<T> + Send + 'static,
    ) -> Result<Response<T>, Status> {
        let (caller, recorded) = (call.caller.principal.clone(), call.recorded.clone());
        let done = async {
            let admission = self.vault.admit::<Op>(call, name).await.map_err(failed)?;
            let place = admission.place();
            let act = async move |batch: &Batch| Ok(act(admission, batch).await);
            let done = match place {
                Place::Here => Batch::alone(act),
                Place::Wait => self.workers.run(|| Batch::alone(act)).await,
                Place::Compute => self.compute.run(&caller, act).await,
            }?;
            done.release().await.map_err(failed)
        };
        told(done.await, &recorded)
    }
}

/// Runs a domain call on a worker; the answer says where the trail has it.
pub(crate) async fn run<R: Send + 'static, T: Send + 'static>(
    vault: &Arc<Vault>,
    workers: &Workers,
    request: Request<R>,
    act: impl FnOnce(&Vault, &Call, R) -> Result<T, Status> + Send + 'static,
) -> Result<Response<T>, Status> {
    let (call, request) = taken(request)?;
    let (vault, recorded) = (vault.clone(), call.recorded.clone());
    told(workers.run(move || act(&vault, &call, request)).await, &recorded)
}

/// A request with who makes it.
fn taken<R>(request: Request<R>) -> Result<(Call, R), Status> {
    let context = CallContext::of(&request)?;
    Ok((Call::new(context.caller, context.correlation_id), request.into_inner()))
}

/// An answer that says under which number the trail has the call, also where it is a refusal: with a proof of inclusion, the
/// caller can show later that it was recorded.
fn told<T>(done: Result<T, Status>, recorded: &Recorded) -> Result<Response<T>, Status> {
    let sequence = recorded.sequence().map(MetadataValue::from);
    match done {
        Ok(answer) => {
            let mut answer = Response::new(answer);
            sequence.map(|n| answer.metadata_mut().insert(AUDIT_SEQUENCE, n));
            Ok(answer)
        }
        Err(mut refused) => {
            sequence.map(|n| refused.metadata_mut().insert(AUDIT_SEQUENCE, n));
            Err(refused)
        }
    }
}

fn algorithm(name: &str) -> Result<WrapAlgorithm, Status> {
    name.parse().map_err(|e| invalid("algorithm", e))
}

fn signature_algorithm(name: &str) -> Result<SignatureAlgorithm, Status> {
    name.parse().map_err(|e| invalid("algorithm", e))
}

#[tonic::async_trait]
impl KeyVault for KeyVaultService {
    type WatchKeysStream = Pin<Box<dyn Stream<Item = Result<wire::KeyEvent, Status>> + Send>>;

    async fn create_vault(
        &self,
        request: Request<wire::CreateVaultRequest>,
    ) -> Result<Response<wire::Vault>, Status> {
        self.run(request, |vault, call, r| {
            let given = r.vault.unwrap_or_default();
            let days = u32::try_from(given.soft_delete_retention_days).map_err(|_| {
                invalid("vault.soft_delete_retention_days", "must be 7 to 90 days, or 0 for 90")
            })?;
            let parameters = VaultParameters {
                retention_days: days,
                purge_protection: given.purge_protection,
                approvals: convert::approval_policy(given.approval_policy)?,
            };
            vault.create_vault(call, &r.vault_id, parameters).map(convert::vault).map_err(failed)
        })
        .await
    }

    async fn get_vault(
        &self,
        request: Request<wire::GetVaultRequest>,
    ) -> Result<Response<wire::Vault>, Status> {
        self.run(request, |vault, call, r| vault.get_vault(call, &r.name).map(convert::vault).map_err(failed))
            .await
    }

    async fn list_vaults(
        &self,
        request: Request<wire::ListVaultsRequest>,
    ) -> Result<Response<wire::ListVaultsResponse>, Status> {
        self.run(request, |vault, call, r| {
            let all = vault.list_vaults(call).map_err(failed)?;
            let (page, next_page_token) = cut(all, r.page_size, &r.page_token, |v| v.name.to_string())?;
            Ok(wire::ListVaultsResponse {
                vaults: page.into_iter().map(convert::vault).collect(),
                next_page_token,
            })
        })
        .await
    }

    async fn update_vault(
        &self,
        request: Request<wire::UpdateVaultRequest>,
    ) -> Result<Response<wire::Vault>, Status> {
        self.run(request, |vault, call, r| {
            let given = r.vault.ok_or_else(|| invalid("vault", "is required"))?;
            let change = convert::vault_change(&given, r.update_mask.as_ref())?;
            vault.update_vault(call, &given.name, change).map(convert::vault).map_err(failed)
        })
        .await
    }

    async fn create_key(
        &self,
        request: Request<wire::CreateKeyRequest>,
    ) -> Result<Response<wire::Key>, Status> {
        self.run(request, |vault, call, r| {
            let (kind, protection) = convert::key_type(&r.key_type, r.key_size_bits, &r.curve)?;
            let particulars = Particulars {
                attributes: convert::attributes_from(r.attributes.as_ref())?,
                key_ops: convert::key_ops(&r.key_ops)?,
                tags: r.tags.into_iter().collect(),
                protection,
            };
            let material = Material::Generate(kind);
            vault
                .create_key(call, &r.parent, &r.key_id, material, particulars, IfExists::Refuse)
                .map(convert::key)
                .map_err(failed)
        })
        .await
    }

    async fn import_key(
        &self,
        request: Request<wire::ImportKeyRequest>,
    ) -> Result<Response<wire::Key>, Status> {
        self.run(request, |vault, call, r| {
            let particulars = Particulars {
                attributes: convert::attributes_from(r.attributes.as_ref())?,
                key_ops: convert::key_ops(&r.key_ops)?,
                tags: r.tags.into_iter().collect(),
                protection: if r.hsm { Protection::Hsm } else { Protection::Software },
            };
            let material = match (r.private_key.is_empty(), r.byok.is_empty()) {
                (true, false) => Material::Transfer { file: r.byok, declared: None },
                (_, true) => Material::Import(r.private_key.into()),
                (false, false) => return Err(invalid("byok", "and private_key exclude each other")),
            };
            vault
                .create_key(call, &r.parent, &r.key_id, material, particulars, IfExists::Refuse)
                .map(convert::key)
                .map_err(failed)
        })
        .await
    }

    async fn get_key(&self, request: Request<wire::GetKeyRequest>) -> Result<Response<wire::Key>, Status> {
        let (call, r) = taken(request)?;
        let key = self.vault.get_key_in_task(&call, &r.name).await.map_err(failed);
        told(key.map(convert::key), &call.recorded)
    }

    async fn list_keys(
        &self,
        request: Request<wire::ListKeysRequest>,
    ) -> Result<Response<wire::ListKeysResponse>, Status> {
        self.run(request, |vault, call, r| {
            let (after, max) = (page::after(&r.page_token)?, page::size(r.page_size)? + 1);
            let all = vault.list_keys(call, &r.parent, r.show_deleted, &after, max).map_err(failed)?;
            let (page, next_page_token) = cut(all, r.page_size, &r.page_token, |k| k.name.to_string())?;
            Ok(wire::ListKeysResponse { keys: page.into_iter().map(convert::key).collect(), next_page_token })
        })
        .await
    }

    async fn update_key(
        &self,
        request: Request<wire::UpdateKeyRequest>,
    ) -> Result<Response<wire::Key>, Status> {
        self.run(request, |vault, call, r| {
            let change = convert::change(r.attributes.as_ref(), r.update_mask.as_ref(), &r.key_ops, r.tags)?;
            vault.update_key(call, &r.name, change).map(convert::key).map_err(failed)
        })
        .await
    }

    async fn delete_key(
        &self,
        request: Request<wire::DeleteKeyRequest>,
    ) -> Result<Response<wire::Key>, Status> {
        self.run(request, |vault, call, r| vault.delete_key(call, &r.name).map(convert::key).map_err(failed))
            .await
    }

    async fn undelete_key(
        &self,
        request: Request<wire::UndeleteKeyRequest>,
    ) -> Result<Response<wire::Key>, Status> {
        self.run(request, |vault, call, r| {
            vault.undelete_key(call, &r.name).map(convert::key).map_err(failed)
        })
        .await
    }

    async fn purge_key(&self, request: Request<wire::PurgeKeyRequest>) -> Result<Response<()>, Status> {
        self.run(request, |vault, call, r| vault.purge_key(call, &r.name, r.crypto_shred).map_err(failed))
            .await
    }

    async fn rotate_key(
        &self,
        request: Request<wire::RotateKeyRequest>,
    ) -> Result<Response<wire::Key>, Status> {
        self.run(request, |vault, call, r| vault.rotate_key(call, &r.name).map(convert::key).map_err(failed))
            .await
    }

    async fn get_key_version(
        &self,
        request: Request<wire::GetKeyVersionRequest>,
    ) -> Result<Response<wire::KeyVersion>, Status> {
        self.run(request, |vault, call, r| {
            vault.get_key_version(call, &r.name).map(convert::version).map_err(failed)
        })
        .await
    }

    async fn list_key_versions(
        &self,
        request: Request<wire::ListKeyVersionsRequest>,
    ) -> Result<Response<wire::ListKeyVersionsResponse>, Status> {
        self.run(request, |vault, call, r| {
            let all = vault.list_key_versions(call, &r.parent).map_err(failed)?;
            let numbered: Vec<_> = all.into_iter().enumerate().collect();
            let (page, next_page_token) =
                cut(numbered, r.page_size, &r.page_token, |(i, _)| format!("{i:08}"))?;
            let key_versions = page.into_iter().map(|(_, v)| convert::version(v)).collect();
            Ok(wire::ListKeyVersionsResponse { key_versions, next_page_token })
        })
        .await
    }

    async fn update_key_version(
        &self,
        request: Request<wire::UpdateKeyVersionRequest>,
    ) -> Result<Response<wire::KeyVersion>, Status> {
        self.run(request, |vault, call, r| {
            let change = convert::change(r.attributes.as_ref(), r.update_mask.as_ref(), &r.key_ops, r.tags)?;
            vault.update_key_version(call, &r.name, change).map(convert::version).map_err(failed)
        })
        .await
    }

    async fn wrap_key(
        &self,
        request: Request<wire::WrapKeyRequest>,
    ) -> Result<Response<wire::WrapKeyResponse>, Status> {
        let (call, r) = taken(request)?;
        let algorithm = algorithm(&r.algorithm)?;
        let plain = zeroize(r.plaintext);
        let done =
            self.compute::<op::WrapKey, _>(call, &r.name, async move |a, _| a.protect(algorithm, &plain));
        Ok(done.await?.map(convert::wrapped))
    }

    async fn unwrap_key(
        &self,
        request: Request<wire::UnwrapKeyRequest>,
    ) -> Result<Response<wire::UnwrapKeyResponse>, Status> {
        let (call, r) = taken(request)?;
        let algorithm = algorithm(&r.algorithm)?;
        let act = async move |a: Admission<op::UnwrapKey>, batch: &Batch| {
            a.unprotect(batch, algorithm, &r.ciphertext).await
        };
        let opened = self.compute(call, &r.name, act).await?;
        Ok(opened.map(|opened| wire::UnwrapKeyResponse { plaintext: opened.plain.to_vec() }))
    }

    async fn rewrap_key(
        &self,
        request: Request<wire::RewrapKeyRequest>,
    ) -> Result<Response<wire::WrapKeyResponse>, Status> {
        self.run(request, |vault, call, r| {
            let done = vault.rewrap_key(call, &r.name, algorithm(&r.algorithm)?, &r.ciphertext, &r.target);
            done.map(convert::wrapped).map_err(failed)
        })
        .await
    }

    async fn encrypt(
        &self,
        request: Request<wire::EncryptRequest>,
    ) -> Result<Response<wire::EncryptResponse>, Status> {
        let (call, r) = taken(request)?;
        let algorithm = algorithm(&r.algorithm)?;
        let plain = zeroize(r.plaintext);
        let done = self
            .compute::<op::Encrypt, _>(call, &r.name, async move |a, _| a.protect(algorithm, &plain))
            .await?;
        Ok(done.map(|done| wire::EncryptResponse {
            key_version: done.key_version.to_string(),
            algorithm: done.algorithm.to_string(),
            ciphertext: done.ciphertext,
        }))
    }

    async fn decrypt(
        &self,
        request: Request<wire::DecryptRequest>,
    ) -> Result<Response<wire::DecryptResponse>, Status> {
        let (call, r) = taken(request)?;
        let algorithm = algorithm(&r.algorithm)?;
        let act = async move |a: Admission<op::Decrypt>, batch: &Batch| {
            a.unprotect(batch, algorithm, &r.ciphertext).await
        };
        let opened = self.compute(call, &r.name, act).await?;
        Ok(opened.map(|opened| wire::DecryptResponse { plaintext: opened.plain.to_vec() }))
    }

    async fn sign(
        &self,
        request: Request<wire::SignRequest>,
    ) -> Result<Response<wire::SignResponse>, Status> {
        let (call, r) = taken(request)?;
        let algorithm = signature_algorithm(&r.algorithm)?;
        let act =
            async move |a: Admission<op::Sign>, batch: &Batch| a.sign(batch, algorithm, &r.digest).await;
        let done = self.compute(call, &r.name, act).await?;
        Ok(done
            .map(|(version, signature)| wire::SignResponse { key_version: version.to_string(), signature }))
    }

    async fn verify(
        &self,
        request: Request<wire::VerifyRequest>,
    ) -> Result<Response<wire::VerifyResponse>, Status> {
        let (call, r) = taken(request)?;
        let algorithm = signature_algorithm(&r.algorithm)?;
        let act =
            async move |a: Admission<op::Verify>, _: &Batch| a.verify(algorithm, &r.digest, &r.signature);
        let done = self.compute(call, &r.name, act).await?;
        Ok(done.map(|(version, valid)| wire::VerifyResponse { key_version: version.to_string(), valid }))
    }

    async fn backup_key(
        &self,
        request: Request<wire::BackupKeyRequest>,
    ) -> Result<Response<wire::BackupKeyResponse>, Status> {
        self.run(request, |vault, call, r| {
            let backup = vault.backup_key(call, &r.name).map_err(failed)?;
            Ok(wire::BackupKeyResponse { backup })
        })
        .await
    }

    async fn restore_key(
        &self,
        request: Request<wire::RestoreKeyRequest>,
    ) -> Result<Response<wire::Key>, Status> {
        self.run(request, |vault, call, r| {
            vault.restore_key(call, &r.parent, &r.backup).map(convert::key).map_err(failed)
        })
        .await
    }

    async fn get_rotation_policy(
        &self,
        request: Request<wire::GetRotationPolicyRequest>,
    ) -> Result<Response<wire::RotationPolicy>, Status> {
        self.run(request, |vault, call, r| {
            let key = convert::policy_key(&r.name)?;
            vault.get_rotation_policy(call, key.as_str()).map(convert::rotation_policy).map_err(failed)
        })
        .await
    }

    async fn update_rotation_policy(
        &self,
        request: Request<wire::UpdateRotationPolicyRequest>,
    ) -> Result<Response<wire::RotationPolicy>, Status> {
        self.run(request, |vault, call, r| {
            let given = r.rotation_policy.ok_or_else(|| invalid("rotation_policy", "is required"))?;
            let policy = convert::rotation_policy_from(given)?;
            vault.set_rotation_policy(call, policy).map(convert::rotation_policy).map_err(failed)
        })
        .await
    }

    async fn get_random_bytes(
        &self,
        request: Request<wire::GetRandomBytesRequest>,
    ) -> Result<Response<wire::GetRandomBytesResponse>, Status> {
        self.run(request, |vault, call, r| {
            let value = vault.random_bytes(call, &r.parent, usize::try_from(r.count).unwrap_or(0));
            Ok(wire::GetRandomBytesResponse { value: value.map_err(failed)?.to_vec() })
        })
        .await
    }

    async fn watch_keys(
        &self,
        request: Request<wire::WatchKeysRequest>,
    ) -> Result<Response<Self::WatchKeysStream>, Status> {
        // Subscribed before the check, so that nothing between the two is missed.
        let mut events = self.events.subscribe();
        let parent = request.get_ref().parent.clone();
        self.run(request, |vault, call, r| vault.authorize_watch(call, &r.parent).map_err(failed)).await?;
        let (sender, receiver) = tokio::sync::mpsc::channel(64);
        let started = convert::notice(wire::KeyEventType::Started, &parent, SystemClock.now());
        tokio::spawn(tokio::time::timeout(WATCH_TIME_MAX, async move {
            let mut next = started;
            while sender.send(Ok(next)).await.is_ok() {
                next = loop {
                    let received = tokio::select! {
                        received = events.recv() => received,
                        () = sender.closed() => return,
                    };
                    match received {
                        // What holders answer is no change of a key: it would have every holder ask again.
                        Ok(event) if event.kind == EventType::RevocationChanged => {}
                        Ok(event) if in_vault(&event.resource, &parent) => break convert::event(event),
                        Ok(_) => {}
                        Err(RecvError::Lagged(_)) => {
                            break convert::notice(wire::KeyEventType::Lagged, &parent, SystemClock.now());
                        }
                        Err(RecvError::Closed) => return,
                    }
                };
            }
        }));
        Ok(Response::new(Box::pin(tokio_stream::wrappers::ReceiverStream::new(receiver))))
    }
}

fn in_vault(resource: &str, vault: &str) -> bool {
    resource.strip_prefix(vault).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// Key material that came in a message: erased when done with.
fn zeroize(bytes: Vec<u8>) -> impl std::ops::Deref<Target = Vec<u8>> {
    custody_vault::Erased::new(bytes)
}
