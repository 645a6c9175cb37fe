//! Which operation a request asks for. Clients write paths in many ways: `//` where a version is left out, a slash at
//! the end, percent-encoded names of parameters.

use crate::error::RestError;
use http::{Method, Uri};
use percent_encoding::percent_decode_str;
use std::collections::HashMap;

/// A use of a key's private or public half.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Use {
    Decrypt,
    Encrypt,
    Sign,
    Unwrap,
    Verify,
    Wrap,
}

/// An operation with the names in its path. An empty version means the current one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Route {
    Attestation { key: String, version: String },
    Backup { key: String },
    Create { key: String },
    Delete { key: String },
    Get { key: String, version: String },
    GetDeleted { key: String },
    Import { key: String },
    List,
    ListDeleted,
    ListVersions { key: String },
    Purge { key: String },
    RandomBytes,
    Recover { key: String },
    Release { key: String, version: String },
    Restore,
    Rotate { key: String },
    RotationPolicy { key: String },
    SetRotationPolicy { key: String },
    Update { key: String, version: String },
    Use { key: String, version: String, operation: Use },
}

/// Azure's object names: 1 to 127 of letters, digits and `-`, without regard to case.
fn name(text: &str) -> Result<String, RestError> {
    let good =
        (1..=127).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
    if good {
        Ok(text.to_ascii_lowercase())
    } else {
        Err(RestError::bad_parameter("the key's name in the path must match ^[0-9a-zA-Z-]{1,127}$"))
    }
}

fn version(text: &str) -> Result<String, RestError> {
    let good = text.len() == 32 && text.bytes().all(|b| b.is_ascii_hexdigit());
    if good {
        Ok(text.to_ascii_lowercase())
    } else {
        Err(RestError::bad_parameter("the key's version in the path must be 32 hexadecimal digits"))
    }
}

fn operation(text: &str) -> Option<Use> {
    Some(match text.to_ascii_lowercase().as_str() {
        "decrypt" => Use::Decrypt,
        "encrypt" => Use::Encrypt,
        "sign" => Use::Sign,
        "unwrapkey" => Use::Unwrap,
        "verify" => Use::Verify,
        "wrapkey" => Use::Wrap,
        _ => return None,
    })
}

impl Route {
    /// The route of a method and a path.
    pub(crate) fn of(method: &Method, path: &str) -> Result<Self, RestError> {
        let segments: Vec<&str> = path.split('/').filter(|s| !s.is_empty()).collect();
        let lower: Vec<String> = segments.iter().map(|s| s.to_ascii_lowercase()).collect();
        let lower: Vec<&str> = lower.iter().map(String::as_str).collect();
        match (lower.as_slice(), method) {
            (["keys"], &Method::GET) => Ok(Self::List),
            (["keys", "restore"], &Method::POST) => Ok(Self::Restore),
            (["keys", key], _) => Self::of_key(method, name(key)?),
            (["keys", key, "versions"], &Method::GET) => Ok(Self::ListVersions { key: name(key)? }),
            (["keys", key, "create"], &Method::POST) => Ok(Self::Create { key: name(key)? }),
            (["keys", key, "backup"], &Method::POST) => Ok(Self::Backup { key: name(key)? }),
            (["rng"], &Method::POST) => Ok(Self::RandomBytes),
            (["keys", key, "rotationpolicy"], &Method::GET) => Ok(Self::RotationPolicy { key: name(key)? }),
            (["keys", key, "rotationpolicy"], &Method::PUT) => {
                Ok(Self::SetRotationPolicy { key: name(key)? })
            }
            (["keys", key, "rotate"], &Method::POST) => Ok(Self::Rotate { key: name(key)? }),
            (["keys", key, "release"], &Method::POST) => {
                Ok(Self::Release { key: name(key)?, version: String::new() })
            }
            (["keys", key, "attestation"], &Method::GET) => {
                Ok(Self::Attestation { key: name(key)?, version: String::new() })
            }
            (["keys", key, last], &Method::POST) => {
                let operation = operation(last).ok_or_else(RestError::no_such_route)?;
                Ok(Self::Use { key: name(key)?, version: String::new(), operation })
            }
            (["keys", key, v], &Method::GET) => Ok(Self::Get { key: name(key)?, version: version(v)? }),
            (["keys", key, v], &Method::PATCH) => Ok(Self::Update { key: name(key)?, version: version(v)? }),
            (["keys", key, v, "release"], &Method::POST) => {
                Ok(Self::Release { key: name(key)?, version: version(v)? })
            }
            (["keys", key, v, "attestation"], &Method::GET) => {
                Ok(Self::Attestation { key: name(key)?, version: version(v)? })
            }
            (["keys", key, v, last], &Method::POST) => {
                let operation = operation(last).ok_or_else(RestError::no_such_route)?;
                Ok(Self::Use { key: name(key)?, version: version(v)?, operation })
            }
            (["deletedkeys"], &Method::GET) => Ok(Self::ListDeleted),
            (["deletedkeys", key], &Method::GET) => Ok(Self::GetDeleted { key: name(key)? }),
            (["deletedkeys", key], &Method::DELETE) => Ok(Self::Purge { key: name(key)? }),
            (["deletedkeys", key, "recover"], &Method::POST) => Ok(Self::Recover { key: name(key)? }),
            (["keys" | "deletedkeys", ..], _) if segments.len() <= 2 => Err(RestError::not_allowed()),
            _ => Err(RestError::no_such_route()),
        }
    }

    fn of_key(method: &Method, key: String) -> Result<Self, RestError> {
        let version = String::new();
        match *method {
            Method::GET => Ok(Self::Get { key, version }),
            Method::PUT => Ok(Self::Import { key }),
            Method::PATCH => Ok(Self::Update { key, version }),
            Method::DELETE => Ok(Self::Delete { key }),
            _ => Err(RestError::not_allowed()),
        }
    }
}

/// The parameters after `?`, names and values decoded. A parameter that is given twice counts once, the first time.
pub(crate) fn parameters(uri: &Uri) -> HashMap<String, String> {
    let decode = |text: &str| percent_decode_str(&text.replace('+', " ")).decode_utf8_lossy().into_owned();
    let mut found = HashMap::new();
    for pair in uri.query().unwrap_or_default().split('&').filter(|p| !p.is_empty()) {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        found.entry(decode(name).to_ascii_lowercase()).or_insert_with(|| decode(value));
    }
    found
}

/// Every stable version from 7.1 on, and any preview of a form that Azure uses.
pub(crate) fn check_api_version(parameters: &HashMap<String, String>) -> Result<(), RestError> {
    let given = parameters.get("api-version").map(String::as_str).unwrap_or_default();
    if given.is_empty() {
        return Err(RestError::bad_parameter(
            "the query parameter `api-version` is required; use 7.4 or 2025-07-01",
        ));
    }
    let (number, preview) = given.split_once('-').map_or((given, ""), |(n, rest)| (n, rest));
    let good = if let Some((major, minor)) = number.split_once('.') {
        let (major, minor): (Result<u32, _>, Result<u32, _>) = (major.parse(), minor.parse());
        matches!((major, minor), (Ok(7), Ok(minor)) if minor >= 1)
            && (preview.is_empty() || preview.starts_with("preview"))
    } else {
        let date: Vec<&str> = given.splitn(4, '-').collect();
        let digits = |text: Option<&&str>, len: usize| {
            text.is_some_and(|t| t.len() == len && t.bytes().all(|b| b.is_ascii_digit()))
        };
        digits(date.first(), 4)
            && date.first().is_some_and(|year| *year >= "2025")
            && digits(date.get(1), 2)
            && digits(date.get(2), 2)
            && date.get(3).is_none_or(|rest| rest.starts_with("preview"))
    };
    if good {
        Ok(())
    } else {
        let shown: String = given.chars().take(40).collect();
        Err(RestError::bad_parameter(format!(
            "the api-version `{shown}` is not served; use 7.1 to 7.6 or 2025-07-01"
        )))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(method: Method, path: &str) -> Option<Route> {
        Route::of(&method, path).ok()
    }

    #[test]
    fn paths_as_clients_write_them() {
        let v = "0123456789abcdef0123456789abcdef";
        let key = || "my-key1".to_owned();
        let current = |operation| Some(Route::Use { key: key(), version: String::new(), operation });
        assert_eq!(of(Method::POST, "/keys/My-Key1//wrapkey"), current(Use::Wrap));
        assert_eq!(of(Method::POST, "/keys/my-key1/unwrapKey"), current(Use::Unwrap));
        assert_eq!(
            of(Method::POST, &format!("/keys/my-key1/{v}/sign")),
            Some(Route::Use { key: key(), version: v.into(), operation: Use::Sign })
        );
        assert_eq!(
            of(Method::GET, "/keys/my-key1/"),
            Some(Route::Get { key: key(), version: String::new() })
        );
        assert_eq!(of(Method::GET, "/keys/my-key1/versions"), Some(Route::ListVersions { key: key() }));
        assert_eq!(of(Method::POST, "/keys/restore"), Some(Route::Restore));
        assert_eq!(of(Method::POST, "/rng"), Some(Route::RandomBytes));
        assert_eq!(
            of(Method::GET, "/keys/my-key1/rotationPolicy"),
            Some(Route::RotationPolicy { key: key() })
        );
        assert_eq!(of(Method::DELETE, "/deletedkeys/my-key1"), Some(Route::Purge { key: key() }));
        for (method, path) in [
            (Method::GET, "/"),
            (Method::GET, "/secrets"),
            (Method::GET, "/keys/a_b"),
            (Method::POST, "/keys/a/frobnicate"),
            (Method::GET, "/keys/a/123"),
            (Method::TRACE, "/keys/a"),
            (Method::POST, "/keys/a/0/1/2"),
        ] {
            assert_eq!(of(method, path), None, "{path}");
        }
    }

    #[test]
    fn versions_of_the_api() {
        let check = |query: &str| {
            let uri: Uri = format!("/keys?{query}").parse().unwrap();
            check_api_version(&parameters(&uri)).is_ok()
        };
        for good in ["7.1", "7.4", "7.6-preview.2", "2025-07-01", "2026-03-01-preview", "7.6"] {
            assert!(check(&format!("api-version={good}")), "{good}");
            assert!(check(&format!("api%2Dversion={good}&maxresults=3")), "{good}");
        }
        for bad in ["", "7.0", "2016-10-01", "8.1", "latest", "7.1-beta", "2025-7-1"] {
            assert!(!check(&format!("api-version={bad}")), "{bad}");
        }
        assert!(!check("version=7.4"));
    }
}
