//! Volumes as NBD exports.

use crate::{managed::Managed, node::Node};
use custody_nbd::{Export, ExportError, Exports};
use custody_node::{Volume, VolumeError};
use std::sync::Arc;

pub(crate) struct NodeExports(pub(crate) Arc<Node>);

struct VolumeExport(Arc<Managed>);

impl Exports for NodeExports {
    fn open(&self, name: &str) -> Option<Arc<dyn Export>> {
        let managed = self.0.volume(&format!("volumes/{name}")).ok()?;
        managed.volume()?;
        Some(Arc::new(VolumeExport(managed)))
    }

    fn names(&self) -> Vec<String> {
        self.0.volumes().iter().map(|m| m.name.id().to_owned()).collect()
    }
}

impl VolumeExport {
    /// The volume for one request: none after revocation, also on connections that were open before.
    fn volume(&self) -> Result<Arc<Volume>, ExportError> {
        self.0.volume().ok_or(ExportError::Failed)
    }

    fn done(&self, done: Result<(), VolumeError>) -> Result<(), ExportError> {
        done.map_err(|e| match e {
            VolumeError::OutOfRange { .. } => ExportError::Invalid,
            VolumeError::NoSpace => ExportError::NoSpace,
            other => {
                tracing::error!(volume = %self.0.name, error = %other, "request failed");
                ExportError::Failed
            }
        })
    }
}

impl Export for VolumeExport {
    fn size_bytes(&self) -> u64 {
        self.0.size_bytes()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> Result<(), ExportError> {
        self.done(self.volume()?.read_at(offset, out))
    }

    fn write(&self, offset: u64, data: &mut [u8]) -> Result<(), ExportError> {
        self.done(self.volume()?.write_in_place(offset, data))
    }

    fn zero(&self, offset: u64, len: u64) -> Result<(), ExportError> {
        self.done(self.volume()?.zero_at(offset, len))
    }

    fn allocation(
        &self,
        offset: u64,
        len: u64,
        visit: &mut dyn FnMut(u64, bool) -> bool,
    ) -> Result<(), ExportError> {
        self.done(self.volume()?.allocation(offset, len, visit))
    }

    fn cache(&self, offset: u64, len: u64) -> Result<(), ExportError> {
        self.done(self.volume()?.prefetch(offset, len))
    }

    fn flush(&self) -> Result<(), ExportError> {
        // What lives as long as the process needs no disk flush.
        if self.0.protector().key.is_empty() {
            return self.volume().map(drop);
        }
        self.done(self.volume()?.flush())
    }
}
