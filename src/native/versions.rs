//! Which runtimes native execs were compared with, and in what they differ. All others start their
//! execs themselves.
//!
//! A version is added here after `tests/suite/native.rs` has passed with it, and its changes to
//! `runc exec` were read.

/// What a program of this runtime finds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Compared {
    /// It has all CPUs of its cpuset, whatever the shim has (runc 1.2.7, 1.3.1; before, it has the
    /// shim's).
    pub resets_affinity: bool,
    /// A variable that is set twice, and an empty HOME, keep their place in the environment (until
    /// runc 1.2).
    pub keeps_places: bool,
}

const RUNC: [(&str, Compared); 3] = [
    ("1.1.5", Compared { resets_affinity: false, keeps_places: true }),
    ("1.1.15", Compared { resets_affinity: false, keeps_places: true }),
    ("1.3.6", Compared { resets_affinity: true, keeps_places: false }),
];

/// From the first line of `runc --version`. Distributions append to the number; a release candidate
/// is another version.
pub fn compared(output: &str) -> Option<Compared> {
    let version = output.lines().next()?.strip_prefix("runc version ")?;
    let number = version.split_once('+').map_or(version, |(number, _)| number);
    RUNC.iter().find(|(known, _)| *known == number).map(|(_, compared)| *compared)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_compared_is_known() {
        let is_known = |output: &str| compared(output).is_some();
        assert!(is_known("runc version 1.1.5+ds1\ncommit: 1.1.5+ds1-1+deb12u1\nspec: 1.0.2-dev\n"));
        assert!(is_known("runc version 1.3.6"));
        for other in [
            "runc version 1.1.50",
            "runc version 1.3.6-rc.1",
            "runc version 9.9.9",
            "runc version 1.1.5~1",
            "crun version 1.8.1",
            "NVIDIA Container Runtime version 1.17.0\n\nrunc version 1.1.5",
            "runc version",
            "",
        ] {
            assert!(!is_known(other), "{other}");
        }
    }
}
