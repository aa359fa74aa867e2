//! Figures of cgroup v1, every field that containerd/cgroups fills (`cgroup1/*.go`).
//! Kernel documentation: admin-guide/cgroup-v1.

use super::{
    Cgroup,
    files::{Files, pairs, rdma},
};
use crate::{
    bundle::read_bounded,
    protocol::stats_v1::{
        BlkioEntry, BlkioStat, CpuStat, CpuUsage, HugetlbStat, MemoryEntry, MemoryOomControl,
        MemoryStat, Metrics, PidsStat, Throttle,
    },
    sys::process::clock_ticks,
};
use std::{cell::LazyCell, collections::HashMap, path::Path};

const NANOSECONDS: u64 = 1_000_000_000;

/// Reads all figures; what the kernel does not offer is left out.
pub(super) fn metrics(cgroup: &Cgroup) -> Metrics {
    let directory = |controller| cgroup.directory(controller);
    let files = |controller| directory(controller).map(Files::of);
    let memory_files = files("memory");
    Metrics {
        hugetlb: directory("hugetlb").map(hugetlb).unwrap_or_default(),
        pids: files("pids").as_ref().and_then(pids),
        cpu: Some(CpuStat {
            usage: Some(files("cpuacct").as_ref().map(cpu_usage).unwrap_or_default()),
            throttling: Some(files("cpu").as_ref().map(throttling).unwrap_or_default()),
        }),
        memory: memory_files.as_ref().and_then(memory),
        blkio: files("blkio").as_ref().map(blkio),
        rdma: files("rdma").filter(|files| files.has("rdma.current")).as_ref().map(rdma),
        memory_oom_control: memory_files.as_ref().and_then(oom_control),
    }
}

fn pids(files: &Files) -> Option<PidsStat> {
    Some(PidsStat {
        current: files.number("pids.current")?,
        limit: files.number("pids.max").filter(|limit| *limit != u64::MAX).unwrap_or(0),
    })
}

fn cpu_usage(files: &Files) -> CpuUsage {
    let figures = files.text("cpuacct.stat").unwrap_or_default();
    let stat = pairs(&figures);
    let nanoseconds =
        |key: &str| stat.get(key).copied().unwrap_or(0).saturating_mul(NANOSECONDS) / clock_ticks();
    let per_cpu = files.text("cpuacct.usage_percpu").unwrap_or_default();
    CpuUsage {
        total: files.number("cpuacct.usage").unwrap_or(0),
        kernel: nanoseconds("system"),
        user: nanoseconds("user"),
        per_cpu: per_cpu.split_whitespace().filter_map(|word| word.parse().ok()).collect(),
    }
}

fn throttling(files: &Files) -> Throttle {
    let figures = files.text("cpu.stat").unwrap_or_default();
    let stat = pairs(&figures);
    let get = |key: &str| stat.get(key).copied().unwrap_or(0);
    Throttle {
        periods: get("nr_periods"),
        throttled_periods: get("nr_throttled"),
        throttled_time: get("throttled_time"),
    }
}

fn memory(files: &Files) -> Option<MemoryStat> {
    let figures = files.text("memory.stat")?;
    let stat = pairs(&figures);
    let get = |key: &str| stat.get(key).copied().unwrap_or(0);
    let entry = |prefix: &str| {
        let get = |name: &str| files.number(&format!("{prefix}.{name}"));
        Some(MemoryEntry {
            usage: get("usage_in_bytes")?,
            limit: get("limit_in_bytes").unwrap_or(0),
            max: get("max_usage_in_bytes").unwrap_or(0),
            failcnt: get("failcnt").unwrap_or(0),
        })
    };
    Some(MemoryStat {
        cache: get("cache"),
        rss: get("rss"),
        rss_huge: get("rss_huge"),
        mapped_file: get("mapped_file"),
        dirty: get("dirty"),
        writeback: get("writeback"),
        pgpgin: get("pgpgin"),
        pgpgout: get("pgpgout"),
        pgfault: get("pgfault"),
        pgmajfault: get("pgmajfault"),
        inactive_anon: get("inactive_anon"),
        active_anon: get("active_anon"),
        inactive_file: get("inactive_file"),
        active_file: get("active_file"),
        unevictable: get("unevictable"),
        hierarchical_memory_limit: get("hierarchical_memory_limit"),
        hierarchical_swap_limit: get("hierarchical_memsw_limit"),
        total_cache: get("total_cache"),
        total_rss: get("total_rss"),
        total_rss_huge: get("total_rss_huge"),
        total_mapped_file: get("total_mapped_file"),
        total_dirty: get("total_dirty"),
        total_writeback: get("total_writeback"),
        total_pgpgin: get("total_pgpgin"),
        total_pgpgout: get("total_pgpgout"),
        total_pgfault: get("total_pgfault"),
        total_pgmajfault: get("total_pgmajfault"),
        total_inactive_anon: get("total_inactive_anon"),
        total_active_anon: get("total_active_anon"),
        total_inactive_file: get("total_inactive_file"),
        total_active_file: get("total_active_file"),
        total_unevictable: get("total_unevictable"),
        usage: Some(entry("memory").unwrap_or_default()),
        swap: Some(entry("memory.memsw").unwrap_or_default()),
        kernel: Some(entry("memory.kmem").unwrap_or_default()),
        kernel_tcp: Some(entry("memory.kmem.tcp").unwrap_or_default()),
    })
}

fn oom_control(files: &Files) -> Option<MemoryOomControl> {
    let figures = files.text("memory.oom_control")?;
    let stat = pairs(&figures);
    let get = |key: &str| stat.get(key).copied().unwrap_or(0);
    Some(MemoryOomControl {
        oom_kill_disable: get("oom_kill_disable"),
        under_oom: get("under_oom"),
        oom_kill: get("oom_kill"),
    })
}

fn hugetlb(directory: &Path) -> Vec<HugetlbStat> {
    let Ok(entries) = std::fs::read_dir(directory) else { return Vec::new() };
    let mut sizes: Vec<String> = entries
        .flatten()
        .filter_map(|entry| {
            let name = entry.file_name().into_string().ok()?;
            let size = name.strip_prefix("hugetlb.")?.strip_suffix(".usage_in_bytes")?;
            (!size.contains('.')).then(|| size.to_owned())
        })
        .collect();
    sizes.sort();
    let files = Files::of(directory);
    let get = |size: &str, name: &str| files.number(&format!("hugetlb.{size}.{name}")).unwrap_or(0);
    sizes
        .into_iter()
        .map(|pagesize| HugetlbStat {
            usage: get(&pagesize, "usage_in_bytes"),
            max: get(&pagesize, "max_usage_in_bytes"),
            failcnt: get(&pagesize, "failcnt"),
            pagesize,
        })
        .collect()
}

/// From the CFQ scheduler's files where the kernel has them (before 5.0) and they say something,
/// else from the throttle's.
fn blkio(files: &Files) -> BlkioStat {
    let devices = LazyCell::new(devices);
    let name_of = |number: (u64, u64)| devices.get(&number).cloned().unwrap_or_default();
    let entries = |name: &str| -> Vec<BlkioEntry> {
        let Some(text) = files.text(&format!("blkio.{name}")) else { return Vec::new() };
        text.lines().filter_map(|line| blkio_entry(line, &name_of)).collect()
    };
    let cfq = BlkioStat {
        io_service_bytes_recursive: entries("io_service_bytes_recursive"),
        io_serviced_recursive: entries("io_serviced_recursive"),
        io_queued_recursive: entries("io_queued_recursive"),
        io_service_time_recursive: entries("io_service_time_recursive"),
        io_wait_time_recursive: entries("io_wait_time_recursive"),
        io_merged_recursive: entries("io_merged_recursive"),
        io_time_recursive: entries("time_recursive"),
        sectors_recursive: entries("sectors_recursive"),
    };
    if cfq != BlkioStat::default() {
        return cfq;
    }
    BlkioStat {
        io_service_bytes_recursive: entries("throttle.io_service_bytes"),
        io_serviced_recursive: entries("throttle.io_serviced"),
        ..BlkioStat::default()
    }
}

/// `MAJOR:MINOR OPERATION VALUE`, or without an operation; the line of the total has no device.
fn blkio_entry(line: &str, name_of: &impl Fn((u64, u64)) -> String) -> Option<BlkioEntry> {
    let mut words = line.split([' ', ':']).filter(|word| !word.is_empty());
    let major = words.next()?.parse().ok()?;
    let minor = words.next()?.parse().ok()?;
    let first = words.next()?;
    let (op, value) = words.next().map_or(("", first), |value| (first, value));
    Some(BlkioEntry {
        op: op.to_owned(),
        device: name_of((major, minor)),
        major,
        minor,
        value: value.parse().ok()?,
    })
}

fn devices() -> HashMap<(u64, u64), String> {
    let text = read_bounded(Path::new("/proc/partitions"), 1 << 20).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let device = |line: &str| {
        let mut words = line.split_whitespace();
        let number = (words.next()?.parse().ok()?, words.next()?.parse().ok()?);
        Some((number, format!("/dev/{}", words.nth(1)?)))
    };
    text.lines().filter_map(device).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cgroup(files: &[(&str, &str)]) -> (tempfile::TempDir, Cgroup) {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in files {
            std::fs::write(dir.path().join(name), text).unwrap();
        }
        let paths = ["memory", "pids", "cpu", "cpuacct", "blkio"];
        let cgroup =
            Cgroup::V1(paths.iter().map(|c| ((*c).into(), dir.path().to_owned())).collect());
        (dir, cgroup)
    }

    #[test]
    fn odd_files_cost_their_own_fields_only() {
        let (_dir, cgroup) = cgroup(&[
            ("memory.stat", "cache 5\nnew_key 7\nbroken\nrss x\ntotal_rss 9\n"),
            ("memory.usage_in_bytes", "100\n"),
            ("memory.limit_in_bytes", "9223372036854771712\n"),
            ("memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 3\n"),
            ("pids.current", "4\n"),
            ("pids.max", "max\n"),
            ("cpuacct.usage", ""),
            ("cpuacct.stat", "user 100\nsystem 50\n"),
            ("blkio.throttle.io_serviced", "8:0 Read 3\n8:0 Total 3\nTotal 3\n"),
        ]);
        let m = metrics(&cgroup);
        let memory = m.memory.unwrap();
        assert_eq!((memory.cache, memory.rss, memory.total_rss), (5, 0, 9));
        assert_eq!(memory.usage.unwrap().usage, 100);
        assert_eq!(memory.swap.unwrap().usage, 0);
        assert_eq!(m.memory_oom_control.unwrap().oom_kill, 3);
        assert_eq!(m.pids.unwrap(), PidsStat { current: 4, limit: 0 });
        let usage = m.cpu.unwrap().usage.unwrap();
        assert_eq!((usage.total, usage.user), (0, 100 * NANOSECONDS / clock_ticks()));
        assert_eq!(m.blkio.unwrap().io_serviced_recursive.len(), 2);
    }
}
