//! Identifiers from outside: namespaces, container ids, exec ids. They become parts of paths, so
//! nothing is an [`Id`] until it has been checked.

use serde::{Deserialize, Serialize};
use std::{borrow::Borrow, fmt};

/// Longest identifier, bytes: containerd's own bound (`pkg/identifiers/validate.go`).
pub const MAX_LENGTH: usize = 76;

/// `[A-Za-z0-9]` and, between those, `. _ -`: at most [`MAX_LENGTH`] bytes. So never `..`, `/` or
/// NUL.
///
/// containerd forbids two separators in a row; Docker and CRI make ids that it never sees as
/// identifiers, so this is a little wider: separators may follow each other after a first letter or
/// digit.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Id(Box<str>);

/// Why a text is no [`Id`].
#[derive(Debug, Clone, thiserror::Error, PartialEq, Eq)]
pub enum InvalidId {
    /// Nothing there.
    #[error("identifier must not be empty")]
    Empty,
    /// Over [`MAX_LENGTH`].
    #[error("identifier of {0} bytes is longer than {MAX_LENGTH}")]
    TooLong(usize),
    /// A forbidden character, or a separator first.
    #[error("identifier {0:?} must match [A-Za-z0-9][A-Za-z0-9._-]*")]
    Characters(String),
}

impl Id {
    /// Checks a text.
    pub fn new(text: &str) -> Result<Self, InvalidId> {
        if text.is_empty() {
            return Err(InvalidId::Empty);
        }
        if text.len() > MAX_LENGTH {
            return Err(InvalidId::TooLong(text.len()));
        }
        let separator = |b: u8| matches!(b, b'.' | b'_' | b'-');
        let valid = text.bytes().all(|b| b.is_ascii_alphanumeric() || separator(b));
        if !valid || text.bytes().next().is_some_and(separator) {
            return Err(InvalidId::Characters(text.to_owned()));
        }
        Ok(Self(text.into()))
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Borrow<str> for Id {
    fn borrow(&self) -> &str {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_safe_names_become_ids() {
        for good in ["a", "redis-1", "k8s.io", "0a_b", &"f".repeat(76)] {
            assert_eq!(Id::new(good).unwrap().as_str(), good);
        }
        for bad in ["", ".", "..", "../x", "a/b", "a\0b", "-rf", "a b", "é", &"f".repeat(77)] {
            assert!(Id::new(bad).is_err(), "{bad:?}");
        }
    }
}
