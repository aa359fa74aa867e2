//! Histories at random.

use super::{
    super::*,
    world::{PIPE, World},
};
use crate::io::copy::batching::{BEAT, LONGEST_BEAT};
use proptest::prelude::*;

#[derive(Clone, Debug)]
enum Happens {
    Write(usize),
    Read(usize),
    /// Lines, so many microseconds apart, with a reader that takes them.
    Lines(u8, u64),
    /// So many microseconds pass.
    Pass(u64),
    Pump,
    OthersUseTheSpool(bool),
    /// So much is written and read before each of the next steps.
    Beside(usize, usize),
    Widened,
}

fn happens() -> impl Strategy<Value = Happens> {
    prop_oneof![
        4 => prop_oneof![1..200usize, 1..PIPE, Just(FLOOD), Just(PIPE)].prop_map(Happens::Write),
        4 => prop_oneof![1..200usize, 1..PIPE, Just(PIPE)].prop_map(Happens::Read),
        2 => (1..40u8, 0..1000u64).prop_map(|(lines, apart)| Happens::Lines(lines, apart)),
        3 => prop_oneof![0..1000u64, 0..50_000u64].prop_map(Happens::Pass),
        1 => Just(Happens::Pump),
        1 => any::<bool>().prop_map(Happens::OthersUseTheSpool),
        1 => (0..2 * FLOOD, 0..2 * FLOOD).prop_map(|(put, got)| Happens::Beside(put, got)),
        1 => Just(Happens::Widened),
    ]
}

fn pacings() -> impl Strategy<Value = (bool, bool)> {
    prop_oneof![Just((false, true)), Just((false, false)), Just((true, false))]
}

fn bounds() -> impl Strategy<Value = usize> {
    prop_oneof![Just(0usize), Just(1000), Just(100_000), Just(8 << 20)]
}

/// A copy to which things have happened.
fn worlds() -> impl Strategy<Value = World> {
    (pacings(), bounds(), prop::collection::vec(happens(), 0..60)).prop_map(
        |((is_console, may_splice), bound, history)| {
            // A console has no spool.
            let bound = if is_console { 0 } else { bound };
            let mut world = World::new(Pacing::new(is_console, may_splice, PIPE), bound);
            for happens in history {
                match happens {
                    Happens::Write(bytes) => world.write(bytes),
                    Happens::Read(bytes) => world.read(bytes),
                    Happens::Lines(lines, apart) => {
                        for _ in 0..lines {
                            world.write(100);
                            world.pass(Duration::from_micros(apart));
                            world.read(usize::MAX);
                        }
                    }
                    Happens::Pass(time) => world.pass(Duration::from_micros(time)),
                    Happens::Pump => world.pump(),
                    Happens::OthersUseTheSpool(use_it) => world.others_use_it = use_it,
                    Happens::Beside(put, got) => {
                        world.beside = (put, got, 200);
                        world.write(PIPE);
                        world.pass(PATIENCE * 2);
                        world.beside.2 = 0;
                    }
                    Happens::Widened => {
                        world.pacing.widened(4 * PIPE);
                        world.sink_holds = 4 * PIPE;
                    }
                }
            }
            world
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// Each wait has something that ends it, and no byte is lost, doubled or out of order
    /// (which each read looks at).
    #[test]
    fn a_reader_that_reads_on_gets_all_and_then_the_end(mut world in worlds()) {
        world.others_use_it = false;
        world.close();
        world.read_on(Duration::from_secs(2));
        prop_assert_eq!(world.read, world.written);
        prop_assert_eq!(world.wait, Wait::End);
    }

    #[test]
    fn what_was_there_when_the_source_is_let_go_arrives(mut world in worlds()) {
        world.read_on(Duration::from_millis(30));
        world.write(3000);
        world.let_source_go();
        world.settle();
        world.read_on(Duration::from_secs(1));
        prop_assert_eq!(world.read, world.written);
        prop_assert_eq!(world.wait, Wait::End);
    }

    #[test]
    fn with_a_reader_no_byte_waits_longer_than_a_beat(
        mut world in worlds(),
        sizes in prop::collection::vec((1..2000usize, 0..1500u64), 1..50),
    ) {
        // What it had to do before is done, and pauses are over.
        world.read_on(Duration::from_millis(50));
        for (size, apart) in sizes {
            world.write(size);
            world.pass(LONGEST_BEAT);
            world.read(usize::MAX);
            prop_assert_eq!(world.read, world.written);
            world.pass(Duration::from_micros(apart));
        }
    }

    #[test]
    fn a_writer_waits_no_longer_than_patience_while_the_spool_has_room(mut world in worlds()) {
        world.others_use_it = false;
        // The reader takes what is there, and is away from here on.
        world.read_on(Duration::from_millis(50));
        world.bound = 8 << 20;
        for _ in 0..10 {
            world.write(PIPE);
            world.pass(PATIENCE + LONGEST_BEAT);
        }
        if world.sink.len() == world.sink_holds && !matches!(world.wait, Wait::End) {
            world.write(1);
            prop_assert_eq!(world.pacing.mode(), Mode::Spooling);
            prop_assert_eq!(world.source.len(), 0);
        }
    }

    #[test]
    fn modes_end_with_their_reasons(mut world in worlds()) {
        world.others_use_it = false;
        world.read_on(Duration::from_millis(50));
        // Drained and silent: nothing is spooled, and nothing moves at beats.
        prop_assert!(matches!(world.pacing.mode(), Mode::Lines | Mode::Splice), "{:?}", world);
        prop_assert_eq!(world.wait, Wait::Source);
        // A flood that is over is not spliced for its crumbs.
        world.read_on(Duration::from_millis(200));
        world.write(1);
        prop_assert_eq!(world.pacing.mode(), Mode::Lines);
    }

    #[test]
    fn an_idle_copy_does_not_wake_up(mut world in worlds()) {
        world.read_on(Duration::from_millis(700));
        world.waits_since = world.now;
        world.now += Duration::from_secs(3600);
        prop_assert_eq!(world.wake(), None);
    }

    /// Whatever is seen, in whatever order: nothing panics, and a turn ends.
    #[test]
    fn no_observation_confuses_it(
        pacing in pacings(),
        seen in prop::collection::vec((any_wake(), any_seen()), 0..200),
    ) {
        let mut pacing = Pacing::new(pacing.0, pacing.1, PIPE);
        let mut now = Instant::now();
        pacing.begin(Wake::Other);
        for (wake, seen) in seen {
            if pacing.next() == Step::Stop {
                let wait = pacing.end(now);
                let Wait::Sink { at_most, .. } = wait else { continue };
                prop_assert!(at_most.is_none_or(|most| most <= OTHERS_LOOK));
                now += BEAT;
                pacing.begin(wake);
            } else {
                pacing.saw(seen);
            }
        }
    }
}

fn any_wake() -> impl Strategy<Value = Wake> {
    prop_oneof![
        Just(Wake::Source),
        Just(Wake::Beat),
        Just(Wake::Timeout),
        Just(Wake::Other),
        Just(Wake::Asked),
    ]
}

fn any_seen() -> impl Strategy<Value = Seen> {
    let room = || prop::sample::select(vec![Room::Off, Room::Some, Room::None, Room::UsedByOthers]);
    prop_oneof![
        (0..BUDGET).prop_map(Seen::Copied),
        (1..BUDGET, 0..BUDGET).prop_map(|(bytes, left)| Seen::Spliced { bytes, left }),
        Just(Seen::NoSplice),
        Just(Seen::Again),
        (0..BUDGET, any::<bool>()).prop_map(|(bytes, all)| Seen::Replayed { bytes, all }),
        (0..BUDGET, any::<bool>(), room()).prop_map(|(bytes, kept, room)| Seen::SinkFull {
            bytes,
            kept,
            room
        }),
        (1..BUDGET, room()).prop_map(|(bytes, room)| Seen::Spooled { bytes, room }),
        Just(Seen::SourceEmpty),
        Just(Seen::SourceEnded),
        Just(Seen::Broken),
    ]
}
