//! Generated wire types and descriptors, and the codec: not one line of logic or conversion.

pub mod codec;

/// Descriptors of every schema, for reflection.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));

include!(concat!(env!("OUT_DIR"), "/methods.rs"));

/// `google.*`, as declared in `proto/google`.
pub mod google {
    pub mod rpc {
        include!(concat!(env!("OUT_DIR"), "/google.rpc.rs"));
    }
    pub mod longrunning {
        include!(concat!(env!("OUT_DIR"), "/google.longrunning.rs"));
    }
}

/// `custody.*`.
pub mod custody {
    /// Messages with secrets print as their name.
    macro_rules! opaque {
        ($($name:ident),+) => {
            $(impl std::fmt::Debug for $name {
                fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                    f.write_str(concat!(stringify!($name), "(..)"))
                }
            })+
        };
    }
    pub(crate) use opaque;

    pub mod audit {
        pub mod v1 {
            include!(concat!(env!("OUT_DIR"), "/custody.audit.v1.rs"));
        }
    }
    pub mod control {
        pub mod v1 {
            include!(concat!(env!("OUT_DIR"), "/custody.control.v1.rs"));
            super::super::opaque!(CreateClusterRequest);
        }
    }
    pub mod database {
        pub mod v1 {
            include!(concat!(env!("OUT_DIR"), "/custody.database.v1.rs"));
        }
    }
    pub mod identity {
        pub mod v1 {
            include!(concat!(env!("OUT_DIR"), "/custody.identity.v1.rs"));
            super::super::opaque!(CreatePrincipalResponse, IssueTokenRequest, Token);
        }
    }
    pub mod storage {
        pub mod v1 {
            include!(concat!(env!("OUT_DIR"), "/custody.storage.v1.rs"));
            super::super::opaque!(ReadBlocksResponse, WriteBlocksRequest);
        }
    }
    pub mod vault {
        pub mod v1 {
            include!(concat!(env!("OUT_DIR"), "/custody.vault.v1.rs"));
            super::super::opaque!(
                ChangeSealRequest,
                ChangeSealResponse,
                DecryptResponse,
                EncryptRequest,
                GetRandomBytesResponse,
                Holding,
                ImportKeyRequest,
                RenewLeasesRequest,
                UnsealVaultRequest,
                UnwrapKeyResponse,
                WrapKeyRequest
            );
        }
    }
}

pub use custody::{
    audit::v1 as audit, control::v1 as control, database::v1 as database, identity::v1 as identity,
    storage::v1 as storage, vault::v1 as vault,
};
pub use google::longrunning;
