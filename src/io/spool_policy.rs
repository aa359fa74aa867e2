//! How much of an output is kept for a reader that is away: the operator's bounds, and what a
//! container may choose within them.
//!
//! The bounds are in the runtime's options: `Spool` for a stream, `SpoolTotal` for all of a shim,
//! since the memory is not the pod's. A container's annotation `io.containerd.cleat.spool` counts
//! if the operator lists it in `Annotations`, and may lower what he allows. Or the container is to
//! write into the fifo itself.

use std::str::FromStr;

/// Bytes kept for each stream unless the operator says otherwise.
const DEFAULT_BOUND: u64 = 8 << 20;
/// Largest bound, bytes: more is a mistake, or an attempt on the node's memory.
const MAX_BOUND: u64 = 1 << 30;
/// Bytes kept for all streams of a shim unless the operator says otherwise.
const DEFAULT_TOTAL: u64 = 32 << 20;

/// What to do when the bound is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WhenFull {
    /// Read no more: the container waits, nothing is lost.
    Wait,
    /// Drop the oldest lines and say in their place how many.
    DropOldest,
}

/// How much of a stream is kept for a reader that is away, and what then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SpoolPolicy {
    /// Bytes; 0: nothing is spooled.
    pub bound: u64,
    /// What happens beyond the bound.
    pub when_full: WhenFull,
    /// The container gets the fifo itself where that is safe; then nothing is spooled, and the
    /// bound is for where it is not.
    pub direct: bool,
    /// Bytes that all streams of the shim may keep together, as far as this one is concerned.
    pub total: u64,
}

impl SpoolPolicy {
    pub(crate) const OFF: Self = {
        let (when_full, total) = (WhenFull::Wait, DEFAULT_TOTAL);
        Self { bound: 0, when_full, direct: false, total }
    };

    /// The same through the shim.
    pub(crate) fn through_the_shim(self) -> Self {
        Self { direct: false, ..self }
    }

    /// What the operator's options say, lowered by a container's annotation if he lists it. Empty
    /// texts are the defaults.
    pub(crate) fn decide(
        spool: &str,
        total: &str,
        listed: &str,
        annotation: Option<&str>,
    ) -> Result<Self, BadPolicy> {
        let mut policy = match spool {
            "" => Self::default(),
            text => text.parse()?,
        };
        // What he allows a stream, he allows all of them, unless he says less.
        policy.total = match total {
            "" => policy.total.max(policy.bound),
            text => size(text).ok_or_else(|| BadPolicy(brief(text)))?,
        };
        let is_listed = |name| listed.split(',').any(|word| word.trim() == name);
        let Some(text) = annotation.filter(|_| is_listed("spool") || is_listed("direct")) else {
            return Ok(policy);
        };
        let wanted: Self = text.parse()?;
        Ok(match wanted.direct {
            true => Self { direct: policy.direct || is_listed("direct"), ..policy },
            false if !is_listed("spool") => policy,
            false => Self {
                bound: wanted.bound.min(policy.bound),
                direct: false,
                when_full: wanted.when_full,
                ..policy
            },
        })
    }
}

impl Default for SpoolPolicy {
    fn default() -> Self {
        Self { bound: DEFAULT_BOUND, ..Self::OFF }
    }
}

/// A text that is no policy.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "spool {0:?} is not SIZE[,wait|,drop-oldest], SIZE in bytes, Ki, Mi or Gi, at most 1Gi, \
     nor direct"
)]
pub struct BadPolicy(String);

impl FromStr for SpoolPolicy {
    type Err = BadPolicy;

    /// `8Mi`, `65536`, `0`, `64Mi,drop-oldest`, `direct`.
    fn from_str(text: &str) -> Result<Self, BadPolicy> {
        if text == "direct" {
            return Ok(Self { direct: true, ..Self::default() });
        }
        let bad = || BadPolicy(brief(text));
        let (bytes, when_full) = match text.split_once(',') {
            None => (text, WhenFull::Wait),
            Some((bytes, "wait")) => (bytes, WhenFull::Wait),
            Some((bytes, "drop-oldest")) => (bytes, WhenFull::DropOldest),
            Some(_) => return Err(bad()),
        };
        Ok(Self { bound: size(bytes).ok_or_else(bad)?, when_full, ..Self::OFF })
    }
}

fn brief(text: &str) -> String {
    text.chars().take(40).collect()
}

/// Bytes, Ki, Mi or Gi, at most [`MAX_BOUND`].
fn size(text: &str) -> Option<u64> {
    let units = [("Ki", 10), ("Mi", 20), ("Gi", 30)];
    let unit = units.iter().find_map(|(unit, shift)| Some((text.strip_suffix(unit)?, *shift)));
    let (digits, shift) = unit.unwrap_or((text, 0));
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    digits.parse::<u64>().ok()?.checked_mul(1 << shift).filter(|bytes| *bytes <= MAX_BOUND)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn policies() {
        let policy = |text: &str| text.parse::<SpoolPolicy>();
        assert_eq!(policy("0").unwrap(), SpoolPolicy::OFF);
        assert_eq!(policy("8Mi").unwrap(), SpoolPolicy::default());
        let drops = SpoolPolicy { when_full: WhenFull::DropOldest, ..SpoolPolicy::default() };
        let wanted = SpoolPolicy { bound: 64 << 10, ..drops };
        assert_eq!(policy("64Ki,drop-oldest").unwrap(), wanted);
        assert_eq!(policy("1Gi,wait").unwrap().bound, 1 << 30);
        assert_eq!(policy("direct").unwrap().through_the_shim(), SpoolPolicy::default());
        for bad in [
            "direct,wait",
            "1Mi,direct",
            "",
            "8M",
            "-1",
            "+1",
            "2Gi",
            "1Mi,x",
            "99999999999999999999",
            "Mi",
            "1Mi,",
            " 1",
        ] {
            assert!(policy(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_container_may_only_lower_what_the_operator_allows() {
        let decide = SpoolPolicy::decide;
        assert_eq!(decide("", "", "", None).unwrap(), SpoolPolicy::default());
        assert_eq!(decide("", "", "", Some("1Gi")).unwrap(), SpoolPolicy::default());
        assert_eq!(decide("", "", "other", Some("much")).unwrap(), SpoolPolicy::default());
        assert!(decide("", "", "spool", Some("much")).is_err());
        assert!(decide("", "much", "", None).is_err());
        assert_eq!(decide("64Ki", "", "spool", Some("1Gi")).unwrap().bound, 64 << 10);
        assert_eq!(decide("64Ki", "", "spool", Some("1Ki")).unwrap().bound, 1 << 10);
        assert_eq!(decide("64Ki", "", "spool", Some("0")).unwrap().bound, 0);
        assert_eq!(decide("64Mi", "", "spool", Some("1Ki")).unwrap().total, 64 << 20);
        let lowered = decide("64Ki", "2Mi", "a, spool", Some("1Ki,drop-oldest")).unwrap();
        assert_eq!(lowered.total, 2 << 20);
        for (spool, listed, annotation, direct) in [
            ("", "spool", "direct", false),
            ("", "direct", "direct", true),
            ("direct", "spool", "direct", true),
            ("direct", "spool", "1Mi", false),
            ("direct", "direct", "1Mi", true),
            ("direct", "", "1Mi", true),
        ] {
            let policy = decide(spool, "", listed, Some(annotation)).unwrap();
            assert_eq!(policy.direct, direct, "{spool} {listed} {annotation}");
        }
    }
}
