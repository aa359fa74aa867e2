//! config.json and a process spec → a plan, or the reason why the runtime must do it. Nothing has
//! happened yet.
//!
//! The rules are runc's (1.1, 1.2: `utils_linux.go` newProcess, `libcontainer/container_linux.go`
//! newInitConfig, `setns_init_linux.go`).

use super::versions::Compared;
use serde::{Deserialize, Serialize, de::IgnoredAny};

/// What is known beside the two files.
pub struct Known<'a> {
    /// Name or path of the OCI runtime.
    pub binary: &'a str,
    /// What its version is known for.
    pub compared: Option<Compared>,
    /// `--no-pivot`: the mount namespace's root is not the container's.
    pub no_pivot_root: bool,
    /// `--no-new-keyring`: the program would have our session keyring.
    pub no_new_keyring: bool,
    /// Our own soft limit of open files is the hard one. Otherwise what a program of runc's has
    /// depends on the Go version that runc was built with: some raise it and leave it so.
    pub open_files_raised: bool,
    /// The seccomp filters of the init are known.
    pub knows_filters: bool,
    /// The init has our own security label: without a profile in the spec, what runc starts gets
    /// the label that runc has, by a profile of its own perhaps, and what we start gets ours.
    pub labelled_alike: bool,
    /// The init has a mount and a pid namespace that are not ours, and our user namespace.
    pub is_apart: bool,
}

/// All that the helper needs to know. The program's own matters, and nothing of the host: the
/// process's memory is the container's to read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// How many `tasks` files of v1 cgroups it is given, to join them.
    pub tasks: usize,
    /// It is given a v2 cgroup to join.
    pub unified: bool,
    /// Session keyring to join.
    pub keyring: String,
    /// All CPUs that there are.
    pub resets_affinity: bool,
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
    /// The container's seccomp filters are to be loaded.
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

/// config.json. A field that we do not know is a reason to leave all to the runtime: it may be
/// about execs. So is a name in another case, which Go's decoder takes for the same.
#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
#[allow(dead_code, reason = "known to mean nothing to an exec")]
struct Config {
    process: Option<InitProcess>,
    linux: Linux,
    oci_version: IgnoredAny,
    root: IgnoredAny,
    hostname: IgnoredAny,
    domainname: IgnoredAny,
    mounts: IgnoredAny,
    hooks: IgnoredAny,
    annotations: IgnoredAny,
}

/// The container's own process spec. An exec inherits some of it.
#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
#[allow(dead_code, reason = "known to mean nothing to an exec")]
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
    terminal: IgnoredAny,
    console_size: IgnoredAny,
    args: IgnoredAny,
    env: IgnoredAny,
    cwd: IgnoredAny,
    rlimits: IgnoredAny,
    no_new_privileges: IgnoredAny,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
#[allow(dead_code, reason = "known to mean nothing to an exec")]
struct InitUser {
    umask: Option<IgnoredAny>,
    uid: IgnoredAny,
    gid: IgnoredAny,
    additional_gids: IgnoredAny,
    username: IgnoredAny,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
#[allow(dead_code, reason = "known to mean nothing to an exec")]
struct Linux {
    seccomp: Option<Seccomp>,
    intel_rdt: Option<IgnoredAny>,
    personality: Option<IgnoredAny>,
    time_offsets: Option<IgnoredAny>,
    memory_policy: Option<IgnoredAny>,
    namespaces: Vec<Namespace>,
    uid_mappings: Vec<IgnoredAny>,
    gid_mappings: Vec<IgnoredAny>,
    sysctl: IgnoredAny,
    resources: IgnoredAny,
    cgroups_path: IgnoredAny,
    devices: IgnoredAny,
    net_devices: IgnoredAny,
    rootfs_propagation: IgnoredAny,
    masked_paths: IgnoredAny,
    readonly_paths: IgnoredAny,
    mount_label: String,
}

/// The filters themselves are taken from the init.
#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
#[allow(dead_code, reason = "known to mean nothing to an exec")]
struct Seccomp {
    listener_path: String,
    listener_metadata: IgnoredAny,
    default_action: IgnoredAny,
    default_errno_ret: IgnoredAny,
    architectures: IgnoredAny,
    flags: IgnoredAny,
    syscalls: IgnoredAny,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Namespace {
    r#type: String,
    #[serde(default)]
    #[allow(dead_code, reason = "the init's are entered")]
    path: String,
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
pub fn decide(config: &[u8], spec: &[u8], id: &str, known: &Known<'_>) -> Result<Plan, String> {
    let compared =
        known.compared.ok_or("another runtime, or a version of it, than was compared")?;
    let config: Config = serde_json::from_slice(config).map_err(|e| format!("config.json: {e}"))?;
    let spec: Process = serde_json::from_slice(spec).map_err(|e| format!("process spec: {e}"))?;
    let init = config.process.unwrap_or_default();
    let linux = config.linux;
    let name = known.binary.rsplit('/').next().unwrap_or_default();
    let reasons = [
        (name != "runc", "the runtime is not runc"),
        (known.no_pivot_root, "no pivot_root"),
        (known.no_new_keyring, "no keyring of its own"),
        (!known.is_apart, "our own mount or pid namespace, or another user namespace"),
        (spec.terminal, "a terminal"),
        (linux.seccomp.is_some() && !known.knows_filters, "unknown seccomp filters"),
        (
            linux.seccomp.as_ref().is_some_and(|seccomp| !seccomp.listener_path.is_empty()),
            "a seccomp listener",
        ),
        // runc 1.1 then takes none.
        (
            spec.apparmor_profile.is_empty() && !init.apparmor_profile.is_empty(),
            "no AppArmor profile, but the container has one",
        ),
        (
            spec.apparmor_profile.is_empty() && !known.labelled_alike,
            "another security label than ours",
        ),
        (linux.intel_rdt.is_some(), "Intel RDT"),
        (linux.personality.is_some(), "a personality"),
        (linux.time_offsets.is_some(), "time offsets"),
        (linux.memory_policy.is_some(), "a memory policy"),
        (!linux.namespaces.iter().all(|n| is_joined(&n.r#type)), "a user or time namespace"),
        (!(linux.uid_mappings.is_empty() && linux.gid_mappings.is_empty()), "mapped users"),
        (
            ![&spec.selinux_label, &init.selinux_label, &linux.mount_label]
                .iter()
                .all(|label| label.is_empty()),
            "SELinux",
        ),
        (init.scheduler.is_some() || init.io_priority.is_some(), "a scheduler"),
        (init.exec_cpu_affinity.is_some(), "a CPU affinity"),
        // runc 1.1 ignores it.
        (init.user.umask.is_some() || spec.user.umask.is_some(), "a file mode mask"),
        (!spec.user.username.is_empty(), "a user by name"),
        (!are_ids(&spec.user), "a user or group that runc refuses"),
        (spec.args.first().is_none_or(String::is_empty), "no program"),
        (!spec.cwd.starts_with('/'), "a relative working directory"),
        (has_nul(&spec), "a NUL"),
        // runc 1.1 then drops all, later ones keep all.
        (spec.capabilities.is_none() && init.capabilities.is_none(), "no word on capabilities"),
    ];
    if let Some((_, reason)) = reasons.iter().find(|(is_so, _)| *is_so) {
        return Err((*reason).to_owned());
    }
    if !known.open_files_raised && spec.rlimits.iter().all(|limit| limit.r#type != "RLIMIT_NOFILE")
    {
        return Err("a limit of open files that runc may raise".to_owned());
    }
    let capabilities = spec.capabilities.or(init.capabilities).unwrap_or_default();
    Ok(Plan {
        tasks: 0,
        unified: false,
        keyring: format!("_ses.{id}"),
        resets_affinity: compared.resets_affinity,
        oom_score_adj: init.oom_score_adj,
        rlimits: spec.rlimits.iter().map(rlimit).collect::<Result<_, _>>()?,
        uid: spec.user.uid,
        gid: spec.user.gid,
        groups: spec.user.additional_gids,
        capabilities: capability_sets(&capabilities)?,
        seccomp: linux.seccomp.is_some(),
        apparmor: Some(spec.apparmor_profile).filter(|profile| !profile.is_empty()),
        no_new_privileges: spec.no_new_privileges,
        cwd: spec.cwd,
        env: environment(&spec.env, compared)?,
        args: spec.args,
    })
}

fn is_joined(namespace: &str) -> bool {
    matches!(namespace, "pid" | "network" | "ipc" | "uts" | "mount" | "cgroup")
}

/// runc's own bounds.
fn are_ids(user: &User) -> bool {
    user.additional_gids.iter().chain([&user.uid, &user.gid]).all(|id| i32::try_from(*id).is_ok())
}

fn has_nul(spec: &Process) -> bool {
    spec.args.iter().chain(&spec.env).chain([&spec.cwd]).any(|text| text.contains('\0'))
}

fn number_of(table: &[&str], prefix: &str, name: &str) -> Result<u32, String> {
    let known =
        name.strip_prefix(prefix).and_then(|name| table.iter().position(|known| *known == name));
    known.and_then(|at| u32::try_from(at).ok()).ok_or_else(|| format!("unknown {name}"))
}

fn rlimit(limit: &Rlimit) -> Result<(u32, u64, u64), String> {
    number_of(&RLIMITS, "RLIMIT_", &limit.r#type).map(|number| (number, limit.soft, limit.hard))
}

fn capability_sets(sets: &Capabilities) -> Result<[u64; 5], String> {
    let bits = |names: &[String]| {
        names
            .iter()
            .try_fold(0, |bits, name| Ok(bits | 1_u64 << number_of(&CAPABILITIES, "CAP_", name)?))
    };
    let Capabilities { bounding, effective, permitted, inheritable, ambient } = sets;
    let bits: Vec<u64> = [bounding, effective, permitted, inheritable, ambient]
        .map(|set| bits(set))
        .into_iter()
        .collect::<Result<_, String>>()?;
    bits.try_into().map_err(|_| "five sets".to_owned())
}

/// The last value of a name counts, at the place of the first.
fn environment(words: &[String], compared: Compared) -> Result<Vec<(String, String)>, String> {
    let mut env: Vec<(String, String)> = Vec::new();
    for word in words {
        let (name, value) = word
            .split_once('=')
            .filter(|(name, _)| !name.is_empty())
            .ok_or("an odd environment")?;
        match env.iter_mut().find(|(known, _)| known == name) {
            Some(entry) if compared.keeps_places => value.clone_into(&mut entry.1),
            Some(_) => return Err("a variable twice".to_owned()),
            None => env.push((name.to_owned(), value.to_owned())),
        }
    }
    if !compared.keeps_places && env.iter().any(|(name, value)| name == "HOME" && value.is_empty())
    {
        return Err("an empty HOME".to_owned());
    }
    Ok(env)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    const RUNC: Known<'_> = Known {
        binary: "/usr/sbin/runc",
        compared: Some(Compared { resets_affinity: false, keeps_places: true }),
        is_apart: true,
        no_pivot_root: false,
        no_new_keyring: false,
        open_files_raised: true,
        knows_filters: true,
        labelled_alike: true,
    };

    fn with(config: Value, spec: Value, known: &Known<'_>) -> Result<Plan, String> {
        let (config, spec) = (config.to_string(), spec.to_string());
        decide(config.as_bytes(), spec.as_bytes(), "c", known)
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
        assert_eq!(plan.keyring, "_ses.c");
        assert!(!plan.resets_affinity);
    }

    #[test]
    fn a_profile_makes_the_label_and_without_one_the_runtimes_label_counts() {
        let profile =
            |more: Value, runtimes| with(json!({}), spec(more), runtimes).map(|plan| plan.apparmor);
        let elsewhere = Known { labelled_alike: false, ..RUNC };
        assert_eq!(profile(json!({}), &RUNC), Ok(None));
        assert_eq!(profile(json!({"apparmorProfile": "x"}), &elsewhere), Ok(Some("x".to_owned())));
        assert_eq!(profile(json!({}), &elsewhere).unwrap_err(), "another security label than ours");
    }

    #[test]
    fn what_the_helper_cannot_do_goes_to_the_runtime() {
        let plain = || json!({});
        let refused = |config: Value, more: Value| with(config, spec(more), &RUNC).unwrap_err();
        let unknown = Known { knows_filters: false, ..RUNC };
        let filtered = || json!({"linux": {"seccomp": {"defaultAction": "SCMP_ACT_ALLOW"}}});
        assert_eq!(
            with(filtered(), spec(plain()), &unknown).unwrap_err(),
            "unknown seccomp filters"
        );
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
        assert!(
            refused(plain(), json!({"capabilities": {"bounding": ["CAP_FLY"]}}))
                .contains("CAP_FLY")
        );
        assert!(
            refused(plain(), json!({"rlimits": [{"type": "RLIMIT_X", "hard": 1, "soft": 1}]}))
                .contains("RLIMIT_X")
        );
        let low = Known { open_files_raised: false, ..RUNC };
        assert_eq!(
            with(plain(), spec(plain()), &low).unwrap_err(),
            "a limit of open files that runc may raise"
        );
        let limit = json!({"rlimits": [{"type": "RLIMIT_NOFILE", "hard": 9, "soft": 8}]});
        assert!(with(plain(), spec(limit), &low).is_ok());
        let unknown = Known { compared: None, ..RUNC };
        assert!(with(plain(), spec(plain()), &unknown).unwrap_err().contains("compared"));
        let beside_us = Known { is_apart: false, ..RUNC };
        assert!(with(plain(), spec(plain()), &beside_us).unwrap_err().contains("namespace"));
        let ours = Known { no_new_keyring: true, ..RUNC };
        assert_eq!(with(plain(), spec(plain()), &ours).unwrap_err(), "no keyring of its own");
        let crun = Known { binary: "crun", ..RUNC };
        assert_eq!(with(plain(), spec(plain()), &crun).unwrap_err(), "the runtime is not runc");
    }

    // Some change what an exec finds, and a runtime that is newer than us knows of more.
    #[test]
    fn what_is_new_in_a_config_goes_to_the_runtime() {
        let refused = |config: Value| with(config, spec(json!({})), &RUNC).unwrap_err();
        for unknown in [
            json!({"x": 1}),
            json!({"linux": {"x": 1}}),
            json!({"linux": {"MemoryPolicy": {}}}),
            json!({"linux": {"namespaces": [{"type": "pid", "x": 1}]}}),
            json!({"linux": {"seccomp": {"ListenerPath": "/x"}}}),
            json!({"process": {"x": 1}}),
            json!({"process": {"Scheduler": {}}}),
            json!({"process": {"user": {"x": 1}}}),
            json!({"vm": {}}),
        ] {
            assert!(refused(unknown.clone()).contains("unknown field"), "{unknown}");
        }
        assert_eq!(
            refused(json!({"linux": {"memoryPolicy": {"mode": "MPOL_BIND"}}})),
            "a memory policy"
        );
        assert_eq!(refused(json!({"linux": {"uidMappings": [{}]}})), "mapped users");
        assert_eq!(refused(json!({"process": {"ioPriority": {}}})), "a scheduler");
        assert_eq!(refused(json!({"process": {"execCPUAffinity": {}}})), "a CPU affinity");
        // All that containerd and others write today.
        let whole = json!({"ociVersion": "1.3.0", "process": {"terminal": true, "consoleSize": {}, "user": {"uid": 0, "gid": 0, "additionalGids": [1],
            "username": ""}, "args": ["sh"], "env": null, "cwd": "/", "rlimits": null, "noNewPrivileges": true, "capabilities": {}, "oomScoreAdj": 1},
            "root": {"path": "rootfs"}, "hostname": "a", "domainname": "b", "mounts": null, "hooks": null, "annotations": {"a": null},
            "linux": {"sysctl": {}, "resources": {}, "cgroupsPath": "/a", "devices": null, "netDevices": {}, "rootfsPropagation": "slave",
            "maskedPaths": [], "readonlyPaths": [], "namespaces": [{"type": "pid", "path": "/proc/1/ns/pid"}]}});
        assert!(with(whole, spec(json!({})), &RUNC).is_ok());
    }

    #[test]
    fn later_versions_order_an_environment_in_another_way() {
        let later = Known {
            compared: Some(Compared { resets_affinity: true, keeps_places: false }),
            ..RUNC
        };
        let refused = |env: Value| with(json!({}), spec(json!({"env": env})), &later).unwrap_err();
        assert_eq!(refused(json!(["A=1", "A=2"])), "a variable twice");
        assert_eq!(refused(json!(["HOME="])), "an empty HOME");
        let plan = with(json!({}), spec(json!({"env": ["A=1", "HOME=/x"]})), &later).unwrap();
        assert!(plan.resets_affinity && plan.env.len() == 2);
    }

    #[test]
    fn ids_that_runc_refuses_are_its_business() {
        for user in [
            json!({"uid": 1_u32 << 31}),
            json!({"gid": u32::MAX}),
            json!({"additionalGids": [1_u32 << 31]}),
        ] {
            assert!(
                with(json!({}), spec(json!({"user": user})), &RUNC)
                    .unwrap_err()
                    .contains("refuses")
            );
        }
    }
}
