//! Who is calling.

use crate::Duty;

/// An authenticated caller. Only the transport makes one, from a verified token; the domain trusts it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    /// The principal or managed identity, as a resource name.
    pub principal: String,
    /// Its one duty.
    pub duty: Duty,
    /// `jti` of the token, so that an audit record can be tied to its issue.
    pub token_id: String,
    /// The peer's address, where the transport knows it.
    pub address: String,
}
