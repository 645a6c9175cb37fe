//! Statements: a line that says what is stated, and one of JSON with what.

use serde::{Serialize, de::DeserializeOwned};

/// Something that is stated and signed.
pub trait Statement: Serialize + DeserializeOwned {
    /// The first line: no signature over one kind of statement can be taken for another's.
    const TYPE: &'static str;

    /// The text that is signed.
    ///
    /// # Errors
    /// It has no JSON: our own mistake.
    fn text(&self) -> Result<String, StatementError> {
        let json = serde_json::to_string(self).map_err(|_| StatementError(Self::TYPE))?;
        Ok(format!("{}\n{json}\n", Self::TYPE))
    }

    /// What a text that was signed states.
    ///
    /// # Errors
    /// It is of another kind, or malformed.
    fn of_text(text: &str) -> Result<Self, StatementError> {
        let bad = || StatementError(Self::TYPE);
        let (first, rest) = text.split_once('\n').ok_or_else(bad)?;
        let json = rest.strip_suffix('\n').filter(|json| first == Self::TYPE && !json.contains('\n'));
        serde_json::from_str(json.ok_or_else(bad)?).map_err(|_| bad())
    }
}

/// A text that does not state what it should.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a {0}")]
pub struct StatementError(pub(crate) &'static str);
