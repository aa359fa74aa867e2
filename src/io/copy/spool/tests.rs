use super::*;
use proptest::prelude::*;

/// Size of the scratch buffer.
const CHUNK: usize = 64 << 10;

#[test]
fn all_streams_together_keep_no_more_than_the_total() {
    let mut scratch = vec![0; CHUNK];
    let waits = SpoolPolicy { total: 1 << 20, ..SpoolPolicy::default() };
    let drops = SpoolPolicy { when_full: WhenFull::DropOldest, ..waits };
    let mut spools: Vec<Spool> = (0..4).map(|_| Spool::new(waits)).collect();
    let mut kept = [0; 4];
    for _ in 0..100 {
        for (spool, kept) in spools.iter_mut().zip(&mut kept) {
            let size = spool.room().min(10_000);
            spool.append(&vec![b'x'; size], &mut scratch);
            *kept += size;
        }
    }
    assert_eq!(kept.iter().sum::<usize>(), 1 << 20);
    assert_eq!(USED.get(), 1 << 20);
    // One that must not wait goes on all the same.
    let mut lively = Spool::new(drops);
    for number in 0..10_000 {
        assert!(lively.room() > 0);
        lively.append(format!("line {number}\n").as_bytes(), &mut scratch);
        assert!(lively.len() <= FLOOR + 64, "{}", lively.len());
        assert!(USED.get() <= (1 << 20) + FLOOR + PUNCH + 8192, "{}", USED.get());
    }
    assert!(drain(&mut lively, &mut scratch).ends_with(b"line 9999\n"));
    // What was read is free for others.
    assert_eq!(drain(&mut spools[0], &mut scratch).len(), kept[0]);
    assert_eq!(spools[1].room(), kept[0]);
    spools[2].clear();
    assert_eq!(spools[1].room(), kept[0] + kept[2]);
    drop(spools);
    assert_eq!(USED.get(), 0);
}

fn drop_oldest(bound: u64) -> SpoolPolicy {
    SpoolPolicy { bound, when_full: WhenFull::DropOldest, ..SpoolPolicy::default() }
}

fn drain(spool: &mut Spool, scratch: &mut [u8]) -> Vec<u8> {
    let mut out = Vec::new();
    spool
        .replay(scratch, |bytes| {
            out.extend_from_slice(bytes);
            Some(bytes.len())
        })
        .unwrap();
    assert!(spool.is_empty());
    out
}

#[test]
fn the_oldest_lines_go_and_are_counted() {
    let mut scratch = vec![0; CHUNK];
    let mut spool = Spool::new(drop_oldest(100));
    spool.keep(b"half ");
    for number in 0..100 {
        spool.append(format!("line {number}\n").as_bytes(), &mut scratch);
    }
    let text = String::from_utf8(drain(&mut spool, &mut scratch)).unwrap();
    assert!(text.starts_with("half line 0\ncleat: "), "{text}");
    assert!(text.ends_with("line 98\nline 99\n"), "{text}");
    let kept = text.lines().filter(|line| line.starts_with("line ")).count();
    assert!(text.contains(&format!("cleat: {} lines (", 99 - kept)), "{text}");
    assert!(spool.dropped() > 600);
}

#[test]
fn a_gap_that_ends_within_a_line_adds_no_empty_one() {
    let mut scratch = vec![0; CHUNK];
    let mut spool = Spool::new(drop_oldest(100));
    spool.keep(&[b"y".repeat(98), b"\n".to_vec()].concat());
    spool.append(b"half of ", &mut scratch);
    spool.append(b"a line\nanother\n", &mut scratch);
    let text = String::from_utf8(drain(&mut spool, &mut scratch)).unwrap();
    assert!(!text.contains("\n\n") && text.ends_with("\nanother\n"), "{text}");
}

#[test]
fn a_line_without_end_is_dropped_in_pieces() {
    let mut scratch = vec![0; CHUNK];
    let mut spool = Spool::new(drop_oldest(1000));
    for _ in 0..1000 {
        spool.append(&[b'x'; 500], &mut scratch);
    }
    assert!(spool.len() < 3 * CHUNK as u64);
    let out = drain(&mut spool, &mut scratch);
    assert!(out.ends_with(&[b'x'; 500]));
}

/// The byte at a place of the test's data.
fn byte(place: u64) -> u8 {
    u8::try_from(place % 251).unwrap()
}

proptest! {
    #[test]
    fn what_is_not_dropped_comes_out_in_order(
        steps in prop::collection::vec((any::<bool>(), 1usize..5000), 1..200),
    ) {
        let mut scratch = vec![0; 1000];
        let mut spool = Spool::new(SpoolPolicy { bound: 1 << 20, ..SpoolPolicy::default() });
        let (mut put, mut got) = (0u64, Vec::new());
        for (write, size) in steps {
            if write {
                let size = size.min(spool.room());
                let bytes: Vec<u8> = (put..put + size as u64).map(byte).collect();
                spool.append(&bytes, &mut scratch);
                put += size as u64;
            } else {
                let mut left = size;
                spool.replay(&mut scratch, |bytes| {
                    let n = bytes.len().min(left);
                    left -= n;
                    got.extend_from_slice(&bytes[..n]);
                    Some(n)
                }).unwrap();
            }
            prop_assert_eq!(spool.len(), put - got.len() as u64);
        }
        got.extend(drain(&mut spool, &mut scratch));
        prop_assert_eq!(got.len() as u64, put);
        prop_assert!(got.iter().enumerate().all(|(n, b)| *b == byte(n as u64)));
    }
}
