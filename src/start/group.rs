//! config.json's annotations → the group that shares a shim.

use crate::{
    bundle::{Bundle, BundleError},
    id::Id,
};

/// Annotations that name a group; the first that is there wins.
const LABELS: [&str; 2] = ["io.containerd.runc.v2.group", "io.kubernetes.cri.sandbox-id"];

/// The group of the container in `bundle`; its own id where no annotation says otherwise. The text
/// goes into a hash, never into a path.
pub(super) fn of(bundle: &Bundle, id: &Id) -> Result<String, BundleError> {
    let mut annotations = bundle.annotations()?;
    Ok(LABELS.iter().find_map(|label| annotations.remove(*label)).unwrap_or_else(|| id.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn group(config: &str) -> String {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("config.json"), config).unwrap();
        of(&Bundle::new(dir.path()), &Id::new("me").unwrap()).unwrap()
    }

    #[test]
    fn first_label_wins_and_the_id_is_the_fallback() {
        assert_eq!(group("{}"), "me");
        assert_eq!(group(r#"{"annotations":{"io.kubernetes.cri.sandbox-id":"pod"}}"#), "pod");
        assert_eq!(
            group(
                r#"{"annotations":{"io.kubernetes.cri.sandbox-id":"pod","io.containerd.runc.v2.group":"g"},"process":{"args":["x"]}}"#
            ),
            "g"
        );
    }
}
