//! Sources that write little and often: from when on, and how long, they are moved at beats.

use std::time::{Duration, Instant};

/// How long bytes gather. tokio's own timers know milliseconds only, in which a fast writer fills
/// its pipe several times.
pub(super) const BEAT: Duration = Duration::from_micros(250);
/// So many copies that wait make the beat one [`BEAT`] longer, as far as [`LONGEST_BEAT`]: the more
/// there are, the more gathers while others run.
const CROWD: u32 = 8;
pub(super) const LONGEST_BEAT: Duration = Duration::from_millis(1);

/// So many small amounts, each less than two beats after the one before, begin batching.
const ENTER: u8 = 16;
/// Beats without a byte, after which it ends.
const SILENT_BEATS: u8 = 2;
/// For so long after its end one small amount begins it again. Where more sources are active than
/// there are processors, each falls silent while others run.
const COOL_DOWN: Duration = Duration::from_millis(100);

/// Length of a beat for which so many copies wait.
pub(super) fn beat_length(copies: u32) -> Duration {
    (BEAT * (copies / CROWD).saturating_add(1)).min(LONGEST_BEAT)
}

#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Batching {
    /// Small amounts in quick succession so far.
    score: u8,
    silent_beats: u8,
    woken: Option<Instant>,
    /// A beat of this batch has brought something.
    active: bool,
    /// When the last active batch ended.
    ended: Option<Instant>,
}

impl Batching {
    pub(super) fn is_on(&self) -> bool {
        self.score >= ENTER
    }

    /// The source has woken the copy, which has moved `bytes`.
    pub(super) fn after_wake(&mut self, bytes: usize, is_small: bool, now: Instant) {
        let since = |earlier: Instant| now.saturating_duration_since(earlier);
        let is_quick = self.woken.replace(now).is_some_and(|woken| since(woken) < 2 * BEAT);
        let cools_down = self.ended.is_some_and(|ended| since(ended) < COOL_DOWN);
        self.score = match (bytes > 0 && is_small, is_quick) {
            (true, _) if cools_down => ENTER,
            (true, true) => self.score.saturating_add(1),
            _ => 0,
        };
        self.silent_beats = 0;
    }

    /// A beat has brought `bytes`. If they are more than half of what the pipe holds, the writer is
    /// faster than the beat, and would have to wait for it.
    pub(super) fn after_beat(&mut self, bytes: usize, pipe: usize, now: Instant) {
        self.silent_beats = if bytes == 0 { self.silent_beats + 1 } else { 0 };
        self.active |= bytes > 0;
        if self.silent_beats >= SILENT_BEATS || bytes > pipe / 2 {
            self.score = 0;
            self.ended = std::mem::take(&mut self.active).then_some(now);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PIPE: usize = 64 << 10;

    /// Wakes for `count` lines, `apart` from each other. Returns the time of the last.
    fn lines(batching: &mut Batching, mut now: Instant, count: u8, apart: Duration) -> Instant {
        for _ in 0..count {
            now += apart;
            batching.after_wake(100, true, now);
        }
        now
    }

    #[test]
    fn quick_lines_begin_it_and_slow_ones_do_not() {
        let mut batching = Batching::default();
        let now = lines(&mut batching, Instant::now(), 100, 2 * BEAT);
        assert!(!batching.is_on());
        let now = lines(&mut batching, now, ENTER - 1, BEAT);
        assert!(!batching.is_on());
        lines(&mut batching, now, 1, BEAT);
        assert!(batching.is_on());
    }

    #[test]
    fn a_large_amount_or_none_begins_it_anew() {
        for (bytes, is_small) in [(0, true), (100_000, false)] {
            let mut batching = Batching::default();
            let now = lines(&mut batching, Instant::now(), ENTER - 1, BEAT);
            batching.after_wake(bytes, is_small, now + BEAT);
            lines(&mut batching, now + BEAT, ENTER - 1, BEAT);
            assert!(!batching.is_on());
        }
    }

    #[test]
    fn silence_ends_it_and_soon_after_one_line_begins_it_again() {
        for (pause, is_on) in [(COOL_DOWN - BEAT, true), (COOL_DOWN, false)] {
            let mut batching = Batching::default();
            let now = lines(&mut batching, Instant::now(), ENTER + 1, BEAT);
            batching.after_beat(500, PIPE, now);
            batching.after_beat(0, PIPE, now);
            assert!(batching.is_on());
            batching.after_beat(0, PIPE, now);
            assert!(!batching.is_on());
            lines(&mut batching, now, 1, pause);
            assert_eq!(batching.is_on(), is_on);
        }
    }

    #[test]
    fn a_batch_in_which_nothing_came_is_not_begun_again() {
        let mut batching = Batching::default();
        let now = lines(&mut batching, Instant::now(), ENTER + 1, BEAT);
        batching.after_beat(0, PIPE, now);
        batching.after_beat(0, PIPE, now);
        lines(&mut batching, now, 1, BEAT * 3);
        assert!(!batching.is_on());
    }

    #[test]
    fn a_writer_that_is_faster_than_the_beat_ends_it() {
        let mut batching = Batching::default();
        let now = lines(&mut batching, Instant::now(), ENTER + 1, BEAT);
        batching.after_beat(PIPE / 2, PIPE, now);
        assert!(batching.is_on());
        batching.after_beat(PIPE / 2 + 1, PIPE, now);
        assert!(!batching.is_on());
    }

    #[test]
    fn a_beat_has_a_longest_length() {
        assert_eq!(beat_length(0), BEAT);
        assert_eq!(beat_length(8), 2 * BEAT);
        assert_eq!(beat_length(24), LONGEST_BEAT);
        assert_eq!(beat_length(u32::MAX), LONGEST_BEAT);
    }
}
