//! The machine against a world of numbers.

mod histories;
mod world;

use super::*;
use crate::io::copy::batching::{BEAT, LONGEST_BEAT};
use world::{Ended, PIPE, World};

#[test]
fn lines_that_follow_quickly_are_moved_at_beats_until_they_stop() {
    let mut world = World::pipe();
    assert_eq!(world.pacing.mode(), Mode::Lines);
    for _ in 0..40 {
        world.write(100);
        world.read_on(BEAT);
    }
    assert_eq!((world.pacing.mode(), world.wait), (Mode::Beat, Wait::Beat));
    world.read_on(LONGEST_BEAT * 3);
    assert_eq!((world.pacing.mode(), world.wait), (Mode::Lines, Wait::Source));
    assert_eq!(world.read, world.written);
}

#[test]
fn a_flood_is_spliced_until_little_comes() {
    let mut world = World::pipe();
    world.write(FLOOD - 1);
    assert_eq!(world.pacing.mode(), Mode::Lines);
    world.write(FLOOD);
    assert_eq!(world.pacing.mode(), Mode::Splice);
    world.read(usize::MAX);
    world.write(FLOOD);
    assert_eq!(world.pacing.mode(), Mode::Splice);
    world.write(FLOOD - 1);
    assert_eq!(world.pacing.mode(), Mode::Lines);
}

#[test]
fn little_is_spliced_while_much_is_left() {
    let mut world = World::pipe();
    world.write(FLOOD);
    world.pacing.begin(Wake::Other);
    world.pacing.saw(Seen::Spliced { bytes: 1, left: FLOOD });
    assert_eq!(world.pacing.mode(), Mode::Splice);
    world.pacing.saw(Seen::Spliced { bytes: FLOOD - 1, left: FLOOD - 1 });
    assert_eq!(world.pacing.mode(), Mode::Lines);
}

#[test]
fn what_cannot_be_spliced_is_copied() {
    let mut world = World::new(Pacing::new(false, false, PIPE), 0);
    world.write(PIPE);
    world.read(usize::MAX);
    assert_eq!((world.pacing.mode(), world.read), (Mode::Lines, world.written));
}

#[test]
fn much_that_gathers_in_a_beat_is_spliced_at_beats() {
    let mut world = World::pipe();
    for _ in 0..40 {
        world.write(100);
        world.read_on(BEAT);
    }
    for _ in 0..10 {
        world.write(FLOOD);
        world.read_on(BEAT);
        assert_eq!(world.pacing.mode(), Mode::Beat);
    }
    assert_eq!(world.pacing.transfer, Transfer::Splice);
}

#[test]
fn a_sink_that_stays_full_is_spooled_for_and_then_no_more() {
    let mut world = World::spooled(1 << 20);
    world.write(PIPE);
    world.write(1000);
    assert_eq!(world.wait, Wait::Sink { or_source: false, at_most: Some(PATIENCE) });
    world.pass(PATIENCE - BEAT);
    assert_ne!(world.pacing.mode(), Mode::Spooling);
    world.pass(BEAT);
    assert_eq!(world.pacing.mode(), Mode::Spooling);
    assert_eq!(world.wait, Wait::Sink { or_source: true, at_most: None });
    world.write(5000);
    assert_eq!(world.source.len(), 0);
    world.read(usize::MAX);
    world.read(usize::MAX);
    assert_ne!(world.pacing.mode(), Mode::Spooling);
    assert_eq!((world.read, world.spool.len()), (world.written, 0));
}

#[test]
fn a_spool_for_which_others_leave_no_room_is_looked_at_again() {
    let mut world = World::spooled(1 << 20);
    world.others_use_it = true;
    world.write(PIPE);
    world.write(1000);
    world.pass(PATIENCE);
    assert_eq!(world.wait, Wait::Sink { or_source: false, at_most: Some(OTHERS_LOOK) });
    world.others_use_it = false;
    world.write(PIPE);
    world.pass(OTHERS_LOOK);
    assert_eq!(world.source.len(), 0);
}

#[test]
fn what_is_kept_when_the_source_goes_is_replayed_in_as_many_turns_as_it_needs() {
    let mut world = World::spooled(8 << 20);
    world.write(PIPE);
    world.write(PIPE);
    world.pass(PATIENCE);
    while world.written < 4 * BUDGET as u64 {
        world.write(PIPE);
    }
    world.let_source_go();
    // As if a reader were as fast as the copy.
    world.sink_holds = 64 << 20;
    world.settle();
    assert_eq!((world.wait, world.spool.len()), (Wait::End, 0));
    world.read(usize::MAX);
    assert_eq!(world.read, world.written);
}

#[test]
fn without_a_spool_a_full_sink_is_waited_for() {
    let mut world = World::pipe();
    world.write(PIPE);
    world.write(1000);
    world.pass(PATIENCE * 10);
    assert_eq!(world.wait, Wait::Sink { or_source: false, at_most: None });
    assert_eq!(world.pacing.mode(), Mode::Splice);
}

#[test]
fn a_direct_output_waits_for_its_process_alone() {
    let mut world = World::new(Pacing::direct(), 0);
    world.pump();
    world.pass(Duration::from_secs(10));
    assert_eq!((world.pacing.mode(), world.wait), (Mode::Direct, Wait::LetGo));
    world.let_source_go();
    world.settle();
    assert_eq!(world.wait, Wait::End);
}

#[test]
fn a_console_that_nobody_has_open_is_looked_at_ever_more_seldom_until_its_process_ends() {
    let mut world = World::new(Pacing::new(true, false, PIPE), 0);
    world.write(7);
    world.read(7);
    // Everybody has closed it, but its process lives.
    world.ended = Ended::Closed;
    world.settle();
    assert_eq!(world.wait, Wait::Pause(FIRST_CONSOLE_LOOK));
    world.pass(Duration::from_secs(10));
    assert_eq!(world.wait, Wait::Pause(LONGEST_CONSOLE_LOOK));
    // Somebody has opened it again.
    world.ended = Ended::No;
    world.pass(Duration::from_secs(2));
    assert_eq!(world.wait, Wait::Source);
    world.write(7);
    world.ended = Ended::Closed;
    world.settle();
    world.pass(Duration::from_secs(1));
    world.ended = Ended::No;
    world.close();
    world.read(7);
    assert_eq!((world.wait, world.read), (Wait::End, 14));
}

#[test]
fn a_source_that_is_ready_and_empty_over_and_over_gets_pauses() {
    let mut world = World::pipe();
    for _ in 0..IDLE_TURNS {
        world.wait = world.turn(Wake::Source);
        assert_eq!(world.pacing.pause(), None);
    }
    world.wait = world.turn(Wake::Source);
    assert_eq!(world.pacing.pause(), Some(IDLE_PAUSE));
    world.waits_since = world.now;
    world.write(1);
    world.pass(IDLE_PAUSE);
    assert_eq!((world.pacing.pause(), world.sink.len()), (None, 1));
}

#[test]
fn a_broken_sink_ends_the_copy() {
    for flood in [false, true] {
        let mut world = World::pipe();
        if flood {
            world.write(FLOOD);
            world.read(usize::MAX);
        }
        world.is_broken = true;
        world.write(1);
        assert_eq!(world.wait, Wait::End);
    }
}
