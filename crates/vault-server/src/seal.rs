//! The SealManager service: parse, call the domain on a worker, convert back.

use crate::{convert::failed, service::run};
use custody_proto::vault::{
    self as wire,
    seal_manager_server::{SealManager, SealManagerServer},
};
use custody_rpc::{server::MESSAGE_LEN_MAX, status::invalid, timestamp::to_wire, workers::Workers};
use custody_vault::{Call, NewSeal, Passphrase, SealType, SealView, ShareText, UnsealKey, Vault, VaultError};
use std::{mem, sync::Arc};
use tonic::{Request, Response, Status};

pub(crate) struct SealService {
    vault: Arc<Vault>,
    workers: Workers,
}

fn seal(s: SealView) -> wire::Seal {
    let (kind, share_count, share_threshold) = match s.seal_type {
        None => (wire::SealType::Unspecified, 0, 0),
        Some(SealType::KeyFile) => (wire::SealType::KeyFile, 0, 0),
        Some(SealType::Hsm { .. }) => (wire::SealType::Hsm, 0, 0),
        Some(SealType::Passphrase { .. }) => (wire::SealType::Passphrase, 0, 0),
        Some(SealType::Shares { number, threshold }) => (wire::SealType::Shares, number, threshold),
    };
    wire::Seal {
        name: s.name,
        r#type: kind.into(),
        sealed: s.sealed,
        generation: s.generation,
        share_count: share_count.into(),
        share_threshold: share_threshold.into(),
        shares_given: u32::try_from(s.shares_given).unwrap_or(u32::MAX),
        create_time: s.create_time.map(to_wire),
    }
}

/// The method asked for. The passphrase leaves the request.
fn method(r: &mut wire::ChangeSealRequest) -> Result<NewSeal, Status> {
    let passphrase = mem::take(&mut r.passphrase);
    let number = |n: u32, field| {
        u8::try_from(n).map_err(|_| invalid(field, "must be 2 to 16, and the threshold 2 to that"))
    };
    let method = match r.r#type() {
        wire::SealType::Passphrase => return Ok(NewSeal::Passphrase(Passphrase::new(passphrase))),
        wire::SealType::Shares => NewSeal::Shares {
            number: number(r.share_count, "share_count")?,
            threshold: number(r.share_threshold, "share_threshold")?,
        },
        wire::SealType::Hsm => NewSeal::Hsm,
        wire::SealType::KeyFile if r.name == "seal" => NewSeal::Default,
        wire::SealType::Unspecified if r.name != "seal" => NewSeal::Default,
        _ => {
            let why = "must be KEY_FILE or HSM (the deployment's), PASSPHRASE or SHARES; unspecified takes a vault's own away";
            return Err(invalid("type", why));
        }
    };
    if passphrase.is_empty() { Ok(method) } else { Err(invalid("passphrase", "goes with type PASSPHRASE")) }
}

impl SealService {
    pub(crate) fn server(vault: Arc<Vault>, workers: Workers) -> SealManagerServer<Self> {
        SealManagerServer::new(Self { vault, workers }).max_decoding_message_size(MESSAGE_LEN_MAX)
    }

    /// Runs a domain call on a worker.
    async fn run<R: Send + 'static, T: Send + 'static>(
        &self,
        request: Request<R>,
        act: impl FnOnce(&Vault, &Call, R) -> Result<T, VaultError> + Send + 'static,
    ) -> Result<Response<T>, Status> {
        let act = move |vault: &Vault, call: &Call, r| act(vault, call, r).map_err(failed);
        run(&self.vault, &self.workers, request, act).await
    }
}

#[tonic::async_trait]
impl SealManager for SealService {
    async fn get_seal(&self, request: Request<wire::GetSealRequest>) -> Result<Response<wire::Seal>, Status> {
        self.run(request, |vault, call, r| vault.get_seal(call, &r.name).map(seal)).await
    }

    async fn seal_vault(
        &self,
        request: Request<wire::SealVaultRequest>,
    ) -> Result<Response<wire::Seal>, Status> {
        self.run(request, |vault, call, r| vault.seal(call, &r.name).map(seal)).await
    }

    async fn unseal_vault(
        &self,
        mut request: Request<wire::UnsealVaultRequest>,
    ) -> Result<Response<wire::Seal>, Status> {
        let key = match request.get_mut().key.take() {
            Some(wire::unseal_vault_request::Key::Passphrase(text)) => {
                UnsealKey::Passphrase(Passphrase::new(text))
            }
            Some(wire::unseal_vault_request::Key::Share(text)) => UnsealKey::Share(ShareText::new(text)),
            None => return Err(invalid("key", "is required: a passphrase or a share")),
        };
        self.run(request, move |vault, call, r| vault.unseal(call, &r.name, &key).map(seal)).await
    }

    async fn change_seal(
        &self,
        mut request: Request<wire::ChangeSealRequest>,
    ) -> Result<Response<wire::ChangeSealResponse>, Status> {
        let method = method(request.get_mut())?;
        self.run(request, move |vault, call, r| {
            let changed = vault.change_seal(call, &r.name, &method)?;
            let shares = changed.shares.iter().map(|share| share.to_string()).collect();
            Ok(wire::ChangeSealResponse { seal: Some(seal(changed.seal)), shares })
        })
        .await
    }

    async fn rotate_root_key(
        &self,
        request: Request<wire::RotateRootKeyRequest>,
    ) -> Result<Response<wire::Seal>, Status> {
        self.run(request, |vault, call, r| vault.rotate_root_key(call, &r.name).map(seal)).await
    }
}
