//! Pages of a list (AIP-158).

use crate::status::invalid;
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use tonic::Status;

/// Items on a page where none were asked for.
const DEFAULT: usize = 100;
/// Most items on a page; more are coerced down.
const MAX: usize = 1000;

/// The size of a page.
///
/// # Errors
/// Negative.
pub fn size(asked: i32) -> Result<usize, Status> {
    match usize::try_from(asked) {
        Ok(0) => Ok(DEFAULT),
        Ok(n) => Ok(n.min(MAX)),
        Err(_) => Err(invalid("page_size", "must not be negative")),
    }
}

/// The key that a page begins after.
///
/// # Errors
/// The token is none of ours.
pub fn after(token: &str) -> Result<String, Status> {
    let bytes = URL_SAFE_NO_PAD
        .decode(token)
        .map_err(|_| invalid("page_token", "must come from an earlier answer"))?;
    String::from_utf8(bytes).map_err(|_| invalid("page_token", "must come from an earlier answer"))
}

/// The token of a page that begins after a key; empty where there is none.
#[must_use]
pub fn token(after: Option<&str>) -> String {
    after.map(|key| URL_SAFE_NO_PAD.encode(key)).unwrap_or_default()
}

/// Cuts one page out of items that are sorted by `key`, and the token of the next one.
///
/// # Errors
/// As [`size`] and [`after`].
pub fn cut<T>(
    items: Vec<T>,
    page_size: i32,
    page_token: &str,
    key: impl Fn(&T) -> String,
) -> Result<(Vec<T>, String), Status> {
    let (size, after) = (size(page_size)?, after(page_token)?);
    let mut rest = items.into_iter().skip_while(|i| !after.is_empty() && key(i) <= after).peekable();
    let page: Vec<T> = rest.by_ref().take(size).collect();
    let next = if rest.peek().is_some() {
        page.last().map(|i| URL_SAFE_NO_PAD.encode(key(i))).unwrap_or_default()
    } else {
        String::new()
    };
    Ok((page, next))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_cover_a_list_once() {
        let all: Vec<String> = (10..35).map(|i| i.to_string()).collect();
        let (mut seen, mut token) = (Vec::new(), String::new());
        loop {
            let (page, next) = cut(all.clone(), 10, &token, Clone::clone).unwrap();
            seen.extend(page);
            token = next;
            if token.is_empty() {
                break;
            }
        }
        assert_eq!(seen, all);
        assert!(cut(all.clone(), -1, "", Clone::clone).is_err());
        assert!(cut(all, 0, "%", Clone::clone).is_err());
    }
}
