//! config.json and a process spec → a plan, or the reason why the runtime must do it. Nothing has happened yet.
//!
//! The rules are runc's (1.1, 1.2: `utils_linux.go` newProcess, `libcontainer/container_linux.go` newInitConfig, `setns_init_linux.go`).

use crate::cgroups::Cgroup;
use serde::{Deserialize, Serialize, de::IgnoredAny};
use std::path::PathBuf;

/// What is known beside the two files.
pub struct Runtimes<'a> {
    /// Name or path of the OCI runtime.
    pub binary: &'a str,
    /// `--no-pivot`: the mount namespace's root is not the container's.
    pub no_pivot_root: bool,
    /// `--no-new-keyring`.
    pub no_new_keyring: bool,
    /// Our own soft limit of open files is the hard one. Otherwise what a program of runc's has depends on the Go version that runc was
    /// built with: some raise it and leave it so.
    pub open_files_raised: bool,
    /// The seccomp filters of the init are known.
    pub knows_filters: bool,
    /// The init has our own security label: without a profile in the spec, what runc starts gets the label that runc has, by a profile of its own
    /// perhaps, and what we start gets ours.
    pub labelled_alike: bool,
}

/// All that the helper needs to know.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// Directories of cgroups to join.
    pub cgroups: Vec<PathBuf>,
    /// Session keyring to join.
    pub keyring: Option<String>,
    /// oom_score_adj; `None`: as the shim's.
    pub oom_score_adj: Option<i32>,
    /// Resource number, soft, hard.
    pub rlimits: Vec<(u32, u64, u64)>,
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Supplementary groups.
    pub groups: Vec<u32>,
    /// Bounding, effective, permitted, inheritable, ambient, as bits.
    pub capabilities: [u64; 5],
    /// The container's seccomp filters, in [`super::descriptors::FILTERS`], are to be loaded.
    pub seccomp: bool,
    /// AppArmor profile to be in from execve on.
    pub apparmor: Option<String>,
    /// PR_SET_NO_NEW_PRIVS.
    pub no_new_privileges: bool,
    /// Working directory.
    pub cwd: String,
    /// Environment, each name once.
    pub env: Vec<(String, String)>,
    /// Arguments; the first is the program.
    pub args: Vec<String>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Config {
    process: Option<InitProcess>,
    linux: Linux,
}

/// What an exec inherits from the container's own process spec.
#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct InitProcess {
    capabilities: Option<Capabilities>,
    user: InitUser,
    apparmor_profile: String,
    selinux_label: String,
    oom_score_adj: Option<i32>,
    scheduler: Option<IgnoredAny>,
    io_priority: Option<IgnoredAny>,
    #[serde(rename = "execCPUAffinity")]
    exec_cpu_affinity: Option<IgnoredAny>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct InitUser {
    umask: Option<IgnoredAny>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Linux {
    seccomp: Option<Seccomp>,
    intel_rdt: Option<IgnoredAny>,
    personality: Option<IgnoredAny>,
    time_offsets: Option<IgnoredAny>,
    namespaces: Vec<Namespace>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Seccomp {
    #[serde(default)]
    listener_path: String,
}

#[derive(Deserialize)]
struct Namespace {
    r#type: String,
}

/// A field that we do not know is a reason to leave it to the runtime.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Process {
    #[serde(default)]
    terminal: bool,
    #[serde(default)]
    #[allow(dead_code, reason = "means nothing without a terminal")]
    console_size: Option<IgnoredAny>,
    #[serde(default)]
    user: User,
    args: Vec<String>,
    #[serde(default)]
    env: Vec<String>,
    cwd: String,
    #[serde(default)]
    capabilities: Option<Capabilities>,
    #[serde(default)]
    rlimits: Vec<Rlimit>,
    #[serde(default)]
    no_new_privileges: bool,
    #[serde(default)]
    apparmor_profile: String,
    /// runc takes the container's.
    #[serde(default)]
    #[allow(dead_code, reason = "as runc: ignored")]
    oom_score_adj: Option<i32>,
    #[serde(default)]
    selinux_label: String,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct User {
    uid: u32,
    gid: u32,
    umask: Option<IgnoredAny>,
    additional_gids: Vec<u32>,
    username: String,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Capabilities {
    bounding: Vec<String>,
    effective: Vec<String>,
    permitted: Vec<String>,
    inheritable: Vec<String>,
    ambient: Vec<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Rlimit {
    r#type: String,
    hard: u64,
    soft: u64,
}

/// In the order of their numbers (linux/capability.h).
const CAPABILITIES: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

/// In the order of their numbers (asm-generic/resource.h).
const RLIMITS: [&str; 16] = [
    "CPU",
    "FSIZE",
    "DATA",
    "STACK",
    "CORE",
    "RSS",
    "NPROC",
    "NOFILE",
    "MEMLOCK",
    "AS",
    "LOCKS",
    "SIGPENDING",
    "MSGQUEUE",
    "NICE",
    "RTPRIO",
    "RTTIME",
];

/// Decides. `id` is the container's, for its keyring. The error is the reason, for the log.
pub fn decide(
    config: &[u8],
    spec: &[u8],
    id: &str,
    cgroup: Option<&Cgroup>,
    runtimes: &Runtimes<'_>,
) -> Result<Plan, String> {
    let config: Config = serde_json::from_slice(config).map_err(|e| format!("config.json: {e}"))?;
    let spec: Process = serde_json::from_slice(spec).map_err(|e| format!("process spec: {e}"))?;
    let init = config.process.unwrap_or_default();
    let name = runtimes.binary.rsplit('/').next().unwrap_or_default();
    let reasons = [
        (name != "runc", "the runtime is not runc"),
        (runtimes.no_pivot_root, "no pivot_root"),
        (spec.terminal, "a terminal"),
        (config.linux.seccomp.is_some() && !runtimes.knows_filters, "unknown seccomp filters"),
        (
            config.linux.seccomp.as_ref().is_some_and(|seccomp| !seccomp.listener_path.is_empty()),
            "a seccomp listener",
        ),
        // runc 1.1 then takes none.
        (
            spec.apparmor_profile.is_empty() && !init.apparmor_profile.is_empty(),
            "no AppArmor profile, but the container has one",
        ),
        (spec.apparmor_profile.is_empty() && !runtimes.labelled_alike, "another security label than ours"),
        (config.linux.intel_rdt.is_some(), "Intel RDT"),
        (config.linux.personality.is_some(), "a personality"),
        (config.linux.time_offsets.is_some(), "time offsets"),
        (config.linux.namespaces.iter().any(|n| !is_joined(&n.r#type)), "a user or time namespace"),
        (!(spec.selinux_label.is_empty() && init.selinux_label.is_empty()), "SELinux"),
        (init.scheduler.is_some() || init.io_priority.is_some(), "a scheduler"),
        (init.exec_cpu_affinity.is_some(), "a CPU affinity"),
        // runc 1.1 ignores it.
        (init.user.umask.is_some() || spec.user.umask.is_some(), "a file mode mask"),
        (!spec.user.username.is_empty(), "a user by name"),
        (spec.args.first().is_none_or(String::is_empty), "no program"),
        (!spec.cwd.starts_with('/'), "a relative working directory"),
        (cgroup.is_none(), "an unknown cgroup"),
        (has_nul(&spec), "a NUL"),
        // runc 1.1 then drops all, later ones keep all.
        (spec.capabilities.is_none() && init.capabilities.is_none(), "no word on capabilities"),
    ];
    if let Some((_, reason)) = reasons.iter().find(|(is_so, _)| *is_so) {
        return Err((*reason).to_owned());
    }
    if !runtimes.open_files_raised && spec.rlimits.iter().all(|limit| limit.r#type != "RLIMIT_NOFILE") {
        return Err("a limit of open files that runc may raise".to_owned());
    }
    let capabilities = spec.capabilities.or(init.capabilities).unwrap_or_default();
    Ok(Plan {
        cgroups: cgroup.map(Cgroup::directories).unwrap_or_default(),
        keyring: (!runtimes.no_new_keyring).then(|| format!("_ses.{id}")),
        oom_score_adj: init.oom_score_adj,
        rlimits: spec.rlimits.iter().map(rlimit).collect::<Result<_, _>>()?,
        uid: spec.user.uid,
        gid: spec.user.gid,
        groups: spec.user.additional_gids,
        capabilities: capability_sets(&capabilities)?,
        seccomp: config.linux.seccomp.is_some(),
        apparmor: Some(spec.apparmor_profile).filter(|profile| !profile.is_empty()),
        no_new_privileges: spec.no_new_privileges,
        cwd: spec.cwd,
        env: environment(&spec.env)?,
        args: spec.args,
    })
}

fn is_joined(namespace: &str) -> bool {
    matches!(namespace, "pid" | "network" | "ipc" | "uts" | "mount" | "cgroup")
}

fn has_nul(spec: &Process) -> bool {
    spec.args.iter().chain(&spec.env).chain([&spec.cwd]).any(|text| text.contains('\0'))
}

fn number_of(table: &[&str], prefix: &str, name: &str) -> Result<u32, String> {
    let known = name.strip_prefix(prefix).and_then(|name| table.iter().position(|known| *known == name));
    known.and_then(|at| u32::try_from(at).ok()).ok_or_else(|| format!("unknown {name}"))
}

fn rlimit(limit: &Rlimit) -> Result<(u32, u64, u64), String> {
    number_of(&RLIMITS, "RLIMIT_", &limit.r#type).map(|number| (number, limit.soft, limit.hard))
}

fn capability_sets(sets: &Capabilities) -> Result<[u64; 5], String> {
    let bits = |names: &[String]| {
        names.iter().try_fold(0, |bits, name| Ok(bits | 1_u64 << number_of(&CAPABILITIES, "CAP_", name)?))
    };
    let Capabilities { bounding, effective, permitted, inheritable, ambient } = sets;
    let bits: Vec<u64> = [bounding, effective, permitted, inheritable, ambient]
        .map(|set| bits(set))
        .into_iter()
        .collect::<Result<_, String>>()?;
    bits.try_into().map_err(|_| "five sets".to_owned())
}

/// The last value of a name counts, at the place of the first.
fn environment(words: &[String]) -> Result<Vec<(String, String)>, String> {
    let mut env: Vec<(String, String)> = Vec::new();
    for word in words {
        let (name, value) =
            word.split_once('=').filter(|(name, _)| !name.is_empty()).ok_or("an odd environment")?;
        match env.iter_mut().find(|(known, _)| known == name) {
            Some(entry) => value.clone_into(&mut entry.1),
            None => env.push((name.to_owned(), value.to_owned())),
        }
    }
    Ok(env)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    const RUNC: Runtimes<'_> = Runtimes {
        binary: "/usr/sbin/runc",
        no_pivot_root: false,
        no_new_keyring: false,
        open_files_raised: true,
        knows_filters: true,
        labelled_alike: true,
    };

    fn with(config: Value, spec: Value, runtimes: &Runtimes<'_>) -> Result<Plan, String> {
        let (config, spec) = (config.to_string(), spec.to_string());
        decide(config.as_bytes(), spec.as_bytes(), "c", Some(&Cgroup::V2("/sys/fs/cgroup".into())), runtimes)
    }

    fn spec(more: Value) -> Value {
        let mut spec = json!({"args": ["true"], "cwd": "/", "env": ["A=1", "B=2", "A=3"], "user": {"uid": 5, "gid": 6}, "capabilities": {}});
        for (key, value) in more.as_object().unwrap() {
            spec[key] = value.clone();
        }
        spec
    }

    #[test]
    fn what_a_plan_says() {
        let config = json!({"process": {"oomScoreAdj": 7,
                                        "capabilities": {"bounding": ["CAP_CHOWN", "CAP_KILL"]}},
                            "linux": {"namespaces": [{"type": "pid"}, {"type": "mount"}]}});
        let plan = with(
            config.clone(),
            spec(json!({"capabilities": null, "rlimits": [{"type": "RLIMIT_NOFILE", "hard": 9, "soft": 8}]})),
            &RUNC,
        )
        .unwrap();
        assert_eq!(plan.env, [("A".to_owned(), "3".to_owned()), ("B".to_owned(), "2".to_owned())]);
        assert_eq!((plan.uid, plan.gid, plan.oom_score_adj), (5, 6, Some(7)));
        assert_eq!(plan.rlimits, [(7, 8, 9)]);
        assert_eq!(plan.capabilities, [0b10_0001, 0, 0, 0, 0]);
        assert_eq!(plan.keyring.as_deref(), Some("_ses.c"));
    }

    #[test]
    fn a_profile_makes_the_label_and_without_one_the_runtimes_label_counts() {
        let profile = |more: Value, runtimes| with(json!({}), spec(more), runtimes).map(|plan| plan.apparmor);
        let elsewhere = Runtimes { labelled_alike: false, ..RUNC };
        assert_eq!(profile(json!({}), &RUNC), Ok(None));
        assert_eq!(profile(json!({"apparmorProfile": "x"}), &elsewhere), Ok(Some("x".to_owned())));
        assert_eq!(profile(json!({}), &elsewhere).unwrap_err(), "another security label than ours");
    }

    #[test]
    fn what_the_helper_cannot_do_goes_to_the_runtime() {
        let plain = || json!({});
        let refused = |config: Value, more: Value| with(config, spec(more), &RUNC).unwrap_err();
        let unknown = Runtimes { knows_filters: false, ..RUNC };
        let filtered = || json!({"linux": {"seccomp": {"defaultAction": "SCMP_ACT_ALLOW"}}});
        assert_eq!(with(filtered(), spec(plain()), &unknown).unwrap_err(), "unknown seccomp filters");
        assert!(with(filtered(), spec(plain()), &RUNC).unwrap().seccomp);
        assert_eq!(
            refused(json!({"linux": {"seccomp": {"listenerPath": "/x"}}}), plain()),
            "a seccomp listener"
        );
        assert_eq!(refused(plain(), json!({"capabilities": null})), "no word on capabilities");
        assert_eq!(
            refused(json!({"linux": {"namespaces": [{"type": "user"}]}}), plain()),
            "a user or time namespace"
        );
        assert_eq!(
            refused(json!({"process": {"apparmorProfile": "x"}}), plain()),
            "no AppArmor profile, but the container has one"
        );
        assert_eq!(refused(json!({"process": {"scheduler": {}}}), plain()), "a scheduler");
        assert_eq!(refused(plain(), json!({"selinuxLabel": "x"})), "SELinux");
        assert_eq!(refused(plain(), json!({"terminal": true})), "a terminal");
        assert_eq!(refused(plain(), json!({"cwd": "x"})), "a relative working directory");
        assert_eq!(refused(plain(), json!({"args": []})), "no program");
        assert_eq!(refused(plain(), json!({"args": ["a\u{0}b"]})), "a NUL");
        assert_eq!(refused(plain(), json!({"env": ["=x"]})), "an odd environment");
        assert!(refused(plain(), json!({"scheduler": {}})).contains("unknown field"));
        assert!(refused(plain(), json!({"capabilities": {"bounding": ["CAP_FLY"]}})).contains("CAP_FLY"));
        assert!(
            refused(plain(), json!({"rlimits": [{"type": "RLIMIT_X", "hard": 1, "soft": 1}]}))
                .contains("RLIMIT_X")
        );
        let low = Runtimes { open_files_raised: false, ..RUNC };
        assert_eq!(
            with(plain(), spec(plain()), &low).unwrap_err(),
            "a limit of open files that runc may raise"
        );
        let limit = json!({"rlimits": [{"type": "RLIMIT_NOFILE", "hard": 9, "soft": 8}]});
        assert!(with(plain(), spec(limit), &low).is_ok());
        let crun = Runtimes { binary: "crun", ..RUNC };
        assert_eq!(with(plain(), spec(plain()), &crun).unwrap_err(), "the runtime is not runc");
    }
}
