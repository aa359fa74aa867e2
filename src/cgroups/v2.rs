//! Figures of cgroup v2, every field that containerd/cgroups fills (`cgroup2/manager.go`,
//! `cgroup2/utils.go`). Kernel documentation: admin-guide/cgroup-v2.rst.

use super::files::{Files, pairs, rdma};
use crate::protocol::stats_v2::{
    CpuStat, HugetlbStat, IoEntry, IoStat, MemoryEvents, MemoryStat, Metrics, PidsStat, PsiData,
    PsiStats,
};
use std::{path::Path, sync::OnceLock};

/// Reads all figures; what the kernel does not offer is zero or left out. `max` is the largest
/// number, as upstream has it.
pub(super) fn metrics(directory: &Path) -> Metrics {
    let files = &Files::of(directory);
    let file = |name: &str| files.number(name).unwrap_or(0);
    Metrics {
        pids: Some(PidsStat { current: file("pids.current"), limit: file("pids.max") }),
        cpu: Some(cpu(files)),
        memory: Some(memory(files)),
        rdma: Some(rdma(files)),
        io: Some(IoStat { usage: io(files), psi: pressure(files, "io.pressure") }),
        hugetlb: hugetlb(files),
        memory_events: memory_events(files),
    }
}

fn cpu(files: &Files) -> CpuStat {
    let Some(figures) = files.text("cpu.stat") else { return CpuStat::default() };
    let stat = pairs(&figures);
    let get = |key: &str| stat.get(key).copied().unwrap_or(0);
    CpuStat {
        usage_usec: get("usage_usec"),
        user_usec: get("user_usec"),
        system_usec: get("system_usec"),
        nr_periods: get("nr_periods"),
        nr_throttled: get("nr_throttled"),
        throttled_usec: get("throttled_usec"),
        psi: pressure(files, "cpu.pressure"),
        nr_bursts: get("nr_bursts"),
        burst_usec: get("burst_usec"),
    }
}

fn memory(files: &Files) -> MemoryStat {
    let Some(figures) = files.text("memory.stat") else { return MemoryStat::default() };
    let stat = pairs(&figures);
    let get = |key: &str| stat.get(key).copied().unwrap_or(0);
    let file = |name: &str| files.number(name).unwrap_or(0);
    MemoryStat {
        anon: get("anon"),
        file: get("file"),
        kernel_stack: get("kernel_stack"),
        slab: get("slab"),
        sock: get("sock"),
        shmem: get("shmem"),
        file_mapped: get("file_mapped"),
        file_dirty: get("file_dirty"),
        file_writeback: get("file_writeback"),
        anon_thp: get("anon_thp"),
        inactive_anon: get("inactive_anon"),
        active_anon: get("active_anon"),
        inactive_file: get("inactive_file"),
        active_file: get("active_file"),
        unevictable: get("unevictable"),
        slab_reclaimable: get("slab_reclaimable"),
        slab_unreclaimable: get("slab_unreclaimable"),
        pgfault: get("pgfault"),
        pgmajfault: get("pgmajfault"),
        workingset_refault: get("workingset_refault"),
        workingset_activate: get("workingset_activate"),
        workingset_nodereclaim: get("workingset_nodereclaim"),
        pgrefill: get("pgrefill"),
        pgscan: get("pgscan"),
        pgsteal: get("pgsteal"),
        pgactivate: get("pgactivate"),
        pgdeactivate: get("pgdeactivate"),
        pglazyfree: get("pglazyfree"),
        pglazyfreed: get("pglazyfreed"),
        thp_fault_alloc: get("thp_fault_alloc"),
        thp_collapse_alloc: get("thp_collapse_alloc"),
        workingset_refault_anon: get("workingset_refault_anon"),
        workingset_refault_file: get("workingset_refault_file"),
        workingset_activate_anon: get("workingset_activate_anon"),
        workingset_activate_file: get("workingset_activate_file"),
        usage: file("memory.current"),
        usage_limit: file("memory.max"),
        swap_usage: file("memory.swap.current"),
        swap_limit: file("memory.swap.max"),
        max_usage: file("memory.peak"),
        swap_max_usage: file("memory.swap.peak"),
        psi: pressure(files, "memory.pressure"),
    }
}

fn memory_events(files: &Files) -> Option<MemoryEvents> {
    let figures = files.text("memory.events")?;
    let stat = pairs(&figures);
    let get = |key: &str| stat.get(key).copied().unwrap_or(0);
    Some(MemoryEvents {
        low: get("low"),
        high: get("high"),
        max: get("max"),
        oom: get("oom"),
        oom_kill: get("oom_kill"),
        oom_group_kill: get("oom_group_kill"),
    })
}

/// `some avg10=0.00 avg60=0.00 avg300=0.00 total=0`, and the same with `full`. `None` where the
/// kernel keeps no pressure (psi=0).
fn pressure(files: &Files, file: &str) -> Option<PsiStats> {
    let text = files.text(file)?;
    let line = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '))?;
        let mut data = PsiData::default();
        for (key, value) in line.split_whitespace().filter_map(|word| word.split_once('=')) {
            match key {
                "avg10" => data.avg10 = value.parse().ok()?,
                "avg60" => data.avg60 = value.parse().ok()?,
                "avg300" => data.avg300 = value.parse().ok()?,
                "total" => data.total = value.parse().ok()?,
                _ => {}
            }
        }
        Some(data)
    };
    Some(PsiStats { some: line("some"), full: line("full") })
}

/// `MAJOR:MINOR rbytes=… wbytes=… rios=… wios=… dbytes=…`; a device without figures is left out.
fn io(files: &Files) -> Vec<IoEntry> {
    let entry = |line: &str| {
        let (device, figures) = line.split_once(' ')?;
        let (major, minor) = device.split_once(':')?;
        let mut entry = IoEntry {
            major: major.parse().ok()?,
            minor: minor.parse().ok()?,
            ..IoEntry::default()
        };
        for (key, value) in figures.split(' ').filter_map(|word| word.split_once('=')) {
            let Ok(value) = value.parse() else { continue };
            match key {
                "rbytes" => entry.rbytes = value,
                "wbytes" => entry.wbytes = value,
                "rios" => entry.rios = value,
                "wios" => entry.wios = value,
                _ => {}
            }
        }
        Some(entry)
    };
    files.text("io.stat").map_or_else(Vec::new, |text| text.lines().filter_map(entry).collect())
}

/// One entry a page size that the kernel has, whether the controller is on or not.
fn hugetlb(files: &Files) -> Vec<HugetlbStat> {
    let stat = |kib: u64| {
        let pagesize = match kib {
            _ if kib >= 1 << 20 => format!("{}GB", kib >> 20),
            _ if kib >= 1 << 10 => format!("{}MB", kib >> 10),
            _ => format!("{kib}KB"),
        };
        let file = |name: &str| files.number(&format!("hugetlb.{pagesize}.{name}")).unwrap_or(0);
        let events = files.text(&format!("hugetlb.{pagesize}.events"));
        HugetlbStat {
            current: file("current"),
            max: file("max"),
            failcnt: events.and_then(|events| pairs(&events).get("max").copied()).unwrap_or(0),
            pagesize,
        }
    };
    page_sizes().iter().copied().map(stat).collect()
}

/// Sizes of huge pages in KiB. They do not change while the kernel runs.
fn page_sizes() -> &'static [u64] {
    static SIZES: OnceLock<Vec<u64>> = OnceLock::new();
    SIZES.get_or_init(|| {
        let Ok(entries) = std::fs::read_dir("/sys/kernel/mm/hugepages") else { return Vec::new() };
        let kib = |entry: std::fs::DirEntry| {
            entry
                .file_name()
                .to_str()?
                .strip_prefix("hugepages-")?
                .strip_suffix("kB")?
                .parse::<u64>()
                .ok()
        };
        let mut sizes: Vec<u64> = entries.flatten().filter_map(kib).collect();
        sizes.sort_unstable();
        sizes
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn odd_files_cost_their_own_fields_only() {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in [
            ("cpu.stat", "usage_usec 7\nuser_usec 5\nnew_key 1\nbroken\n"),
            ("cpu.pressure", "some avg10=1.50 avg60=0.25 avg300=0.00 total=99\nfull avg10=x\n"),
            ("memory.stat", "anon 11\nworkingset_refault_anon 3\nfile\n"),
            ("memory.current", "100\n"),
            ("memory.max", "max\n"),
            ("memory.events", "low 0\nmax 4\noom_kill 2\n"),
            (
                "io.stat",
                "8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=5 new=6\n8:16\n253:0 rbytes=x\n",
            ),
            ("pids.current", ""),
            ("rdma.current", "mlx5_0 hca_handle=2 hca_object=max\n"),
        ] {
            std::fs::write(dir.path().join(name), text).unwrap();
        }
        let m = metrics(dir.path());
        let cpu = m.cpu.unwrap();
        assert_eq!((cpu.usage_usec, cpu.user_usec, cpu.system_usec), (7, 5, 0));
        let psi = cpu.psi.unwrap();
        assert_eq!((psi.some.unwrap().total, psi.some.unwrap().avg10, psi.full), (99, 1.5, None));
        let memory = m.memory.unwrap();
        assert_eq!((memory.anon, memory.workingset_refault_anon, memory.file), (11, 3, 0));
        assert_eq!((memory.usage, memory.usage_limit, memory.swap_limit), (100, u64::MAX, 0));
        assert_eq!(m.memory_events.unwrap().oom_kill, 2);
        let io = m.io.unwrap().usage;
        assert_eq!(io[0], IoEntry { major: 8, minor: 0, rbytes: 1, wbytes: 2, rios: 3, wios: 4 });
        assert_eq!(io.len(), 2);
        assert_eq!(m.pids.unwrap().current, 0);
        assert_eq!(m.rdma.unwrap().current[0].hca_objects, u32::MAX);
    }
}
