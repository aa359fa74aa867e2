//! The engine on real pipes and terminals.
#![allow(clippy::disallowed_methods, reason = "tests await their tasks")]

use super::{
    Copy, OnWriteError, Watched,
    pacing::{FIRST_CONSOLE_LOOK, Mode, PATIENCE},
};
use crate::{io::SpoolPolicy, sys};
use rustix::pipe::{PipeFlags, pipe_with};
use std::{
    os::fd::{AsFd, OwnedFd},
    rc::Rc,
    time::Duration,
};

fn local(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    tokio::task::LocalSet::new().block_on(&runtime, test);
}

fn pipe() -> (OwnedFd, OwnedFd) {
    pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK).unwrap()
}

fn copy(source: OwnedFd, sink: OwnedFd, on_error: OnWriteError, policy: SpoolPolicy) -> Rc<Copy> {
    Copy::new("test", Watched::source(source), Watched::sink(sink), on_error, policy).unwrap()
}

/// The byte at a place of the test's data.
fn byte(place: usize) -> u8 {
    u8::try_from(place % 251).unwrap()
}

/// Reads, while the copies go on, until so many bytes are there.
async fn read_until(reader: &OwnedFd, got: &mut Vec<u8>, total: usize) {
    let mut buffer = vec![0u8; 10_000];
    while got.len() < total {
        match rustix::io::read(reader, &mut buffer) {
            Ok(n) => got.extend_from_slice(&buffer[..n]),
            Err(_) => tokio::task::yield_now().await,
        }
    }
}

#[test]
fn a_console_whose_other_side_cannot_be_kept_goes_on_until_its_process_ends() {
    use rustix::pty::{OpenptFlags, openpt, unlockpt};
    local(async {
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let master = openpt(flags).unwrap();
        unlockpt(&master).unwrap();
        rustix::io::ioctl_fionbio(&master, true).unwrap();
        let open = |master: &OwnedFd| sys::pty::open_slave(master.as_fd()).unwrap();
        let console = Watched::both(master);
        let (reader, sink) = pipe();
        let sink = Watched::sink(sink);
        let (source, policy) = (Rc::clone(&console), SpoolPolicy::OFF);
        let copy = Copy::new("console", source, sink, OnWriteError::Drop, policy).unwrap();
        let task = tokio::task::spawn_local(Rc::clone(&copy).run());
        let mut got = Vec::new();
        for round in 0..3 {
            let slave = open(console.fd());
            rustix::io::write(&slave, format!("round {round}").as_bytes()).unwrap();
            drop(slave);
            tokio::time::sleep(FIRST_CONSOLE_LOOK * 3).await;
            read_until(&reader, &mut got, 7 * (round + 1)).await;
            assert!(!copy.has_ended());
        }
        assert_eq!(got, b"round 0round 1round 2");
        copy.expect_end();
        task.await.unwrap();
        assert!(copy.has_ended());
    });
}

#[test]
fn a_full_sink_loses_nothing() {
    local(async {
        let (source, feed) = pipe();
        let (reader, sink) = pipe();
        let copy = copy(source, sink, OnWriteError::End, SpoolPolicy::OFF);
        let task = tokio::task::spawn_local(Rc::clone(&copy).run());
        let total = 1 << 20;
        let (mut sent, mut got) = (0usize, Vec::new());
        let mut feed = Some(feed);
        let mut buffer = vec![0u8; 4096];
        while got.len() < total {
            if let Some(open) = &feed {
                let chunk: Vec<u8> = (sent..(sent + 1000).min(total)).map(byte).collect();
                if let Ok(n) = rustix::io::write(open, &chunk) {
                    sent += n;
                }
                if sent == total {
                    feed = None;
                }
            }
            tokio::task::yield_now().await;
            // A slow reader: half of what is written a round.
            if let Ok(n) = rustix::io::read(&reader, &mut buffer[..500]) {
                got.extend_from_slice(&buffer[..n]);
            }
        }
        task.await.unwrap();
        assert!(got.iter().enumerate().all(|(i, b)| *b == byte(i)));
        assert!(copy.has_ended());
    });
}

#[test]
fn a_reader_that_left_ends_a_stdin_copy() {
    local(async {
        let (source, feed) = pipe();
        let (reader, sink) = pipe();
        let copy = copy(source, sink, OnWriteError::End, SpoolPolicy::OFF);
        drop(reader);
        rustix::io::write(&feed, b"x").unwrap();
        copy.run().await;
    });
}

#[test]
fn a_flood_is_spliced_and_small_writes_merge_again() {
    local(async {
        let (source, feed) = pipe();
        let (reader, sink) = pipe();
        let copy = copy(source, sink, OnWriteError::Drop, SpoolPolicy::OFF);
        let (mut sent, mut got) = (0usize, Vec::new());
        let mut buffer = vec![0u8; 256 << 10];
        for size in [64 << 10, 64 << 10, 100, 100, 30_000, 7] {
            let chunk: Vec<u8> = (sent..sent + size).map(byte).collect();
            assert_eq!(rustix::io::write(&feed, &chunk).unwrap(), size);
            sent += size;
            while copy.pump() {}
            let n = rustix::io::read(&reader, &mut buffer).unwrap();
            got.extend_from_slice(&buffer[..n]);
            assert_eq!(got.len(), sent, "{size}");
        }
        assert!(copy.is_wide());
        assert_eq!(copy.mode(), Mode::Lines);
        assert!(got.iter().enumerate().all(|(i, b)| *b == byte(i)));
    });
}

#[test]
fn a_reader_that_is_away_finds_all_in_order() {
    local(async {
        for chunk in [100, 64 << 10] {
            let (source, feed) = pipe();
            let (reader, sink) = pipe();
            let policy = SpoolPolicy { bound: 1 << 20, ..SpoolPolicy::default() };
            let copy = copy(source, sink, OnWriteError::Drop, policy);
            let task = tokio::task::spawn_local(Rc::clone(&copy).run());
            let mut sent = 0;
            // More than the two pipes hold, less than they and the spool do.
            while sent < 1 << 20 {
                let bytes: Vec<u8> = (sent..sent + chunk).map(byte).collect();
                match rustix::io::write(&feed, &bytes) {
                    Ok(n) => sent += n,
                    Err(_) => tokio::time::sleep(Duration::from_millis(1)).await,
                }
            }
            tokio::time::sleep(PATIENCE * 2).await;
            assert!(copy.position().1, "{}", copy.describe());
            drop(feed);
            let mut got = Vec::new();
            read_until(&reader, &mut got, sent).await;
            task.await.unwrap();
            assert!(got.iter().enumerate().all(|(i, b)| *b == byte(i)));
        }
    });
}

#[test]
fn beyond_the_bound_the_writer_waits_and_loses_nothing() {
    local(async {
        let (source, feed) = pipe();
        let (reader, sink) = pipe();
        let policy = SpoolPolicy { bound: 100_000, ..SpoolPolicy::default() };
        let copy = copy(source, sink, OnWriteError::Drop, policy);
        let task = tokio::task::spawn_local(Rc::clone(&copy).run());
        let (mut sent, mut got, mut buffer) = (0usize, Vec::new(), vec![0u8; 5000]);
        let mut blocked = 0;
        while blocked < 100 {
            let bytes: Vec<u8> = (sent..sent + 1000).map(byte).collect();
            match rustix::io::write(&feed, &bytes) {
                Ok(n) => (sent, blocked) = (sent + n, 0),
                Err(_) => {
                    blocked += 1;
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
            }
        }
        assert!(copy.figures().spooled_bytes <= 100_000);
        // Then on and on, with a reader that is as fast.
        while got.len() < 1 << 20 {
            let bytes: Vec<u8> = (sent..sent + 1000).map(byte).collect();
            if let Ok(n) = rustix::io::write(&feed, &bytes) {
                sent += n;
            }
            tokio::task::yield_now().await;
            if let Ok(n) = rustix::io::read(&reader, &mut buffer) {
                got.extend_from_slice(&buffer[..n]);
            }
        }
        drop(feed);
        read_until(&reader, &mut got, sent).await;
        task.await.unwrap();
        assert!(got.iter().enumerate().all(|(i, b)| *b == byte(i)));
    });
}

#[test]
fn write_errors_of_a_file_do_not_end_the_copy() {
    local(async {
        let (source, feed) = pipe();
        let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
        let copy = copy(source, full.into(), OnWriteError::Drop, SpoolPolicy::OFF);
        rustix::io::write(&feed, b"lost").unwrap();
        assert!(!copy.pump());
        assert_eq!(copy.figures().dropped_bytes, 4);
        assert!(!copy.has_ended());
    });
}
