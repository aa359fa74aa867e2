//! The OCI runtime format, as far as we read it or hand it on: config.json, the process spec of an
//! exec, the resources of an update.
//!
//! Nothing is refused that Go's shim takes: it decodes these with encoding/json (containerd v2.3.4,
//! `cmd/containerd-shim-runc-v2`: `manager/manager_linux.go` readSpec, `runc/util.go` readSpec,
//! `process/init.go` exec and Update) and hands process specs and resources on as it encodes them
//! again.

use crate::json::{BadJson, Found, Reader, Shape, is_name, rewrite};
use std::collections::BTreeMap;

/// What we know of a config.json. A value of the wrong type counts as absent: the runtime has its
/// own words for it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Spec {
    /// Those that were asked for; null is an empty one.
    pub annotations: BTreeMap<String, String>,
    /// Its annotations are no texts, or it is no object: Go's `start` refuses it.
    pub has_odd_annotations: bool,
    /// `process.apparmorProfile`.
    pub apparmor_profile: String,
    /// `process.selinuxLabel`.
    pub selinux_label: String,
    /// `linux.namespaces`.
    pub namespaces: Vec<Namespace>,
    /// There is a `linux.seccomp`.
    pub has_seccomp: bool,
    /// `linux.cgroupsPath`.
    pub cgroups_path: Option<String>,
    /// There is a `linux.intelRdt`.
    pub has_intel_rdt: bool,
    /// There is a `hooks.poststart`, or what may be one.
    pub has_poststart: bool,
    /// There is a `hooks.poststop`, or what may be one.
    pub has_poststop: bool,
}

/// One of `linux.namespaces`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Namespace {
    /// Its kind.
    pub kind: String,
    /// The one to join; empty for a new one.
    pub path: String,
}

/// Namespaces that are read.
const MAX_NAMESPACES: usize = 1024;

impl Spec {
    /// Reads a config.json to the end of its object; `wants` says which annotations are kept.
    pub fn read(config: &[u8], wants: impl Fn(&str) -> bool) -> Result<Self, BadJson> {
        let mut spec = Self::default();
        let found = Reader::new(config).object(|name, reader| match name {
            _ if is_name(name, "annotations") => spec.read_annotations(reader, &wants),
            _ if is_name(name, "process") => spec.read_process(reader),
            _ if is_name(name, "linux") => spec.read_linux(reader),
            _ if is_name(name, "hooks") => spec.read_hooks(reader),
            _ => reader.skip(),
        })?;
        spec.has_odd_annotations |= found == Found::Other;
        Ok(spec)
    }

    fn read_annotations(
        &mut self,
        reader: &mut Reader,
        wants: impl Fn(&str) -> bool,
    ) -> Result<(), BadJson> {
        let (known, mut is_odd) = (&mut self.annotations, false);
        let found = reader.object(|name, reader| {
            let value = match reader.string()? {
                Found::Value(text) => text,
                Found::Null => String::new(),
                Found::Other => {
                    is_odd = true;
                    return Ok(());
                }
            };
            if wants(name) {
                known.insert(name.to_owned(), value);
            }
            Ok(())
        })?;
        if found == Found::Null {
            known.clear();
        }
        self.has_odd_annotations |= is_odd || found == Found::Other;
        Ok(())
    }

    fn read_process(&mut self, reader: &mut Reader) -> Result<(), BadJson> {
        let (profile, label) = (&mut self.apparmor_profile, &mut self.selinux_label);
        let found = reader.object(|name, reader| match name {
            _ if is_name(name, "apparmorProfile") => read_text(reader, profile),
            _ if is_name(name, "selinuxLabel") => read_text(reader, label),
            _ => reader.skip(),
        })?;
        if found == Found::Null {
            profile.clear();
            label.clear();
        }
        Ok(())
    }

    /// Once named they count, whatever follows: the runtime is asked once too often.
    fn read_hooks(&mut self, reader: &mut Reader) -> Result<(), BadJson> {
        let (poststart, poststop) = (&mut self.has_poststart, &mut self.has_poststop);
        reader.object(|name, reader| {
            let is_some = |reader: &mut Reader| {
                let mut some = false;
                let found = reader.list(|_, reader| {
                    some = true;
                    reader.skip()
                })?;
                Ok(some || found == Found::Other)
            };
            match name {
                _ if is_name(name, "poststart") => *poststart |= is_some(reader)?,
                _ if is_name(name, "poststop") => *poststop |= is_some(reader)?,
                _ => reader.skip()?,
            }
            Ok(())
        })?;
        Ok(())
    }

    fn read_linux(&mut self, reader: &mut Reader) -> Result<(), BadJson> {
        let (namespaces, has_seccomp, cgroups_path) =
            (&mut self.namespaces, &mut self.has_seccomp, &mut self.cgroups_path);
        let has_intel_rdt = &mut self.has_intel_rdt;
        let found = reader.object(|name, reader| match name {
            _ if is_name(name, "namespaces") => read_namespaces(reader, namespaces),
            _ if is_name(name, "seccomp") => {
                *has_seccomp = reader.object(|_, reader| reader.skip())? != Found::Null;
                Ok(())
            }
            _ if is_name(name, "intelRdt") => {
                *has_intel_rdt |= reader.object(|_, reader| reader.skip())? != Found::Null;
                Ok(())
            }
            _ if is_name(name, "cgroupsPath") => {
                let mut text = cgroups_path.take().unwrap_or_default();
                read_text(reader, &mut text)?;
                *cgroups_path = Some(text).filter(|text| !text.is_empty());
                Ok(())
            }
            _ => reader.skip(),
        })?;
        if found == Found::Null {
            namespaces.clear();
            *has_seccomp = false;
            *cgroups_path = None;
        }
        Ok(())
    }
}

/// A second list is read over the first one, item by item, and ends it: so Go does.
fn read_namespaces(reader: &mut Reader, namespaces: &mut Vec<Namespace>) -> Result<(), BadJson> {
    let mut count = 0;
    let found = reader.list(|index, reader| {
        count = index + 1;
        // There are eight kinds; what comes behind as many is for the runtime to refuse.
        if count > MAX_NAMESPACES {
            return reader.skip();
        }
        if namespaces.len() < count {
            namespaces.push(Namespace::default());
        }
        let namespace = &mut namespaces[index];
        reader.object(|name, reader| match name {
            _ if is_name(name, "type") => read_text(reader, &mut namespace.kind),
            _ if is_name(name, "path") => read_text(reader, &mut namespace.path),
            _ => reader.skip(),
        })?;
        Ok(())
    })?;
    if found != Found::Other {
        namespaces.truncate(count);
    }
    Ok(())
}

/// A string; anything else leaves `text` as it was.
fn read_text(reader: &mut Reader, text: &mut String) -> Result<(), BadJson> {
    if let Found::Value(value) = reader.string()? {
        *text = value;
    }
    Ok(())
}

/// A process spec as the runtime gets it, with the request's word on the terminal. `None`: it is no
/// object.
pub fn process(spec: &[u8], terminal: bool) -> Result<Option<Vec<u8>>, BadJson> {
    rewrite(spec, &PROCESS, &[("terminal", terminal.to_string())])
}

/// A process spec of [`process`] with the size of its console.
pub fn with_console_size(spec: &[u8], (width, height): (u16, u16)) -> Vec<u8> {
    let size = format!(r#"{{"height":{height},"width":{width}}}"#);
    rewrite(spec, &PROCESS, &[("consoleSize", size)])
        .ok()
        .flatten()
        .unwrap_or_else(|| spec.to_vec())
}

/// The resources of an Update as the runtime gets them. `None`: no object.
pub fn resources(resources: &[u8]) -> Result<Option<Vec<u8>>, BadJson> {
    rewrite(resources, &RESOURCES, &[])
}

const ANY: Shape = Shape::Any;
const SCALAR: Shape = Shape::Scalar;

/// runtime-spec 1.3, `specs-go/config.go`: Process.
static PROCESS: Shape = Shape::Object(&[
    ("terminal", SCALAR),
    ("consoleSize", Shape::Object(&[("height", SCALAR), ("width", SCALAR)])),
    (
        "user",
        Shape::Part(&[
            ("uid", SCALAR),
            ("gid", SCALAR),
            ("umask", ANY),
            ("additionalGids", ANY),
            ("username", SCALAR),
        ]),
    ),
    ("args", ANY),
    ("commandLine", SCALAR),
    ("env", ANY),
    ("cwd", SCALAR),
    (
        "capabilities",
        Shape::Object(&[
            ("bounding", ANY),
            ("effective", ANY),
            ("inheritable", ANY),
            ("permitted", ANY),
            ("ambient", ANY),
        ]),
    ),
    (
        "rlimits",
        Shape::List(&Shape::Object(&[("type", SCALAR), ("hard", SCALAR), ("soft", SCALAR)])),
    ),
    ("noNewPrivileges", SCALAR),
    ("apparmorProfile", SCALAR),
    ("oomScoreAdj", ANY),
    (
        "scheduler",
        Shape::Object(&[
            ("policy", SCALAR),
            ("nice", SCALAR),
            ("priority", SCALAR),
            ("flags", SCALAR),
            ("runtime", SCALAR),
            ("deadline", SCALAR),
            ("period", SCALAR),
        ]),
    ),
    ("selinuxLabel", SCALAR),
    ("ioPriority", Shape::Object(&[("class", SCALAR), ("priority", SCALAR)])),
    ("execCPUAffinity", Shape::Object(&[("initial", SCALAR), ("final", SCALAR)])),
]);

const DEVICE_RATES: Shape =
    Shape::List(&Shape::Object(&[("major", ANY), ("minor", ANY), ("rate", SCALAR)]));

/// The same: LinuxResources.
static RESOURCES: Shape = Shape::Object(&[
    (
        "devices",
        Shape::List(&Shape::Object(&[
            ("allow", SCALAR),
            ("type", SCALAR),
            ("major", ANY),
            ("minor", ANY),
            ("access", SCALAR),
        ])),
    ),
    (
        "memory",
        Shape::Object(&[
            ("limit", ANY),
            ("reservation", ANY),
            ("swap", ANY),
            ("kernel", ANY),
            ("kernelTCP", ANY),
            ("swappiness", ANY),
            ("disableOOMKiller", ANY),
            ("useHierarchy", ANY),
            ("checkBeforeUpdate", ANY),
        ]),
    ),
    (
        "cpu",
        Shape::Object(&[
            ("shares", ANY),
            ("quota", ANY),
            ("burst", ANY),
            ("period", ANY),
            ("realtimeRuntime", ANY),
            ("realtimePeriod", ANY),
            ("cpus", SCALAR),
            ("mems", SCALAR),
            ("idle", ANY),
        ]),
    ),
    ("pids", Shape::Object(&[("limit", ANY)])),
    (
        "blockIO",
        Shape::Object(&[
            ("weight", ANY),
            ("leafWeight", ANY),
            (
                "weightDevice",
                Shape::List(&Shape::Object(&[
                    ("major", ANY),
                    ("minor", ANY),
                    ("weight", ANY),
                    ("leafWeight", ANY),
                ])),
            ),
            ("throttleReadBpsDevice", DEVICE_RATES),
            ("throttleWriteBpsDevice", DEVICE_RATES),
            ("throttleReadIOPSDevice", DEVICE_RATES),
            ("throttleWriteIOPSDevice", DEVICE_RATES),
        ]),
    ),
    ("hugepageLimits", Shape::List(&Shape::Object(&[("pageSize", SCALAR), ("limit", ANY)]))),
    (
        "network",
        Shape::Object(&[
            ("classID", ANY),
            ("priorities", Shape::List(&Shape::Object(&[("name", SCALAR), ("priority", SCALAR)]))),
        ]),
    ),
    ("rdma", ANY),
    ("unified", ANY),
]);

#[cfg(test)]
mod tests {
    use super::*;

    fn read(config: &str) -> Spec {
        Spec::read(config.as_bytes(), |_| true).unwrap()
    }

    #[test]
    fn null_stands_for_anything() {
        let all = [
            "null",
            r#"{"annotations":null,"process":null,"linux":null}"#,
            r#"{"process":{"apparmorProfile":null,"selinuxLabel":null},"linux":{"namespaces":null,"seccomp":null,"cgroupsPath":null}}"#,
            r#"{"linux":{"cgroupsPath":"/x"},"LINUX":null}"#,
            r#"{"annotations":{"a":"b"},"annotations":null}"#,
        ];
        for config in all {
            assert_eq!(read(config), Spec::default(), "{config}");
        }
        assert_eq!(read(r#"{"annotations":{"a":null}}"#).annotations["a"], "");
        let namespaces =
            read(r#"{"linux":{"namespaces":[null,{"type":"pid","path":null}]}}"#).namespaces;
        assert_eq!(namespaces[1], Namespace { kind: "pid".into(), path: String::new() });
        // A string's null sets nothing.
        assert_eq!(
            read(r#"{"process":{"selinuxLabel":"l","selinuxLabel":null}}"#).selinux_label,
            "l"
        );
    }

    #[test]
    fn the_later_one_counts_and_objects_are_merged() {
        let spec = read(
            r#"{"annotations":{"a":"1","b":"2","a":"3"},"ANNOTATIONS":{"b":"4"},"linux":{"seccomp":{},"cgroupsPath":"/a"},"Linux":{"CgroupsPath":"/b"}}"#,
        );
        assert_eq!(
            spec.annotations,
            BTreeMap::from([("a".into(), "3".into()), ("b".into(), "4".into())])
        );
        assert!(spec.has_seccomp);
        assert_eq!(spec.cgroups_path.as_deref(), Some("/b"));
        let twice = read(
            r#"{"linux":{"namespaces":[{"type":"pid","path":"/x"},{"type":"ipc"}],"namespaces":[{"type":"pid"}]}}"#,
        );
        assert_eq!(twice.namespaces, [Namespace { kind: "pid".into(), path: "/x".into() }]);
    }

    #[test]
    fn what_a_runtime_does_late_is_seen() {
        let late = |config: &str| {
            let spec = read(config);
            (spec.has_poststart, spec.has_poststop, spec.has_intel_rdt)
        };
        let none = r#"{"hooks":{"prestart":[{}],"poststart":[],"poststop":null},"linux":{"intelRdt":null}}"#;
        assert_eq!(late(none), (false, false, false));
        assert_eq!(late(r#"{"Hooks":{"PostStart":[{}]}}"#), (true, false, false));
        assert_eq!(late(r#"{"hooks":{"poststop":[null]},"hooks":null}"#), (false, true, false));
        assert_eq!(late(r#"{"hooks":{"poststop":{}}}"#), (false, true, false));
        assert_eq!(late(r#"{"linux":{"intelRdt":{}}}"#), (false, false, true));
    }

    #[test]
    fn what_follows_the_object_is_not_read() {
        assert_eq!(read(r#"{"annotations":{"a":"b"}} {"annotations":"#).annotations["a"], "b");
    }

    #[test]
    fn other_types_are_nothing_but_annotations_must_be_texts() {
        for config in
            [r#"{"process":7,"linux":[{}]}"#, r#"{"linux":{"namespaces":{},"cgroupsPath":7}}"#]
        {
            assert_eq!(read(config), Spec::default(), "{config}");
        }
        for config in ["[]", "7", r#"{"annotations":7}"#, r#"{"annotations":{"a":7}}"#] {
            assert!(read(config).has_odd_annotations, "{config}");
        }
        assert!(Spec::read(b"{", |_| true).is_err());
    }

    #[test]
    fn a_process_spec_is_written_as_the_format_has_it() {
        let text = |spec: &[u8]| String::from_utf8(process(spec, true).unwrap().unwrap()).unwrap();
        assert_eq!(
            text(br#"{"args":["x"],"terminal":false}"#),
            r#"{"args":["x"],"terminal":true}"#
        );
        assert_eq!(
            text(b"{\"Terminal\":7,\"ARGS\":[\"\xff\"],\"USER\":{\"UID\":1}}"),
            "{\"args\":[\"\u{fffd}\"],\"user\":{\"uid\":1},\"terminal\":true}"
        );
        assert_eq!(text(b"null"), r#"{"terminal":true}"#);
        assert_eq!(process(b"[]", true), Ok(None));
        assert!(process(b"", true).is_err() && process(b"{} {}", true).is_err());
    }

    #[test]
    fn the_console_size_takes_the_place_of_another() {
        let sized = with_console_size(br#"{"ConsoleSize":{"height":1},"args":[]}"#, (80, 24));
        assert_eq!(
            String::from_utf8(sized).unwrap(),
            r#"{"args":[],"consoleSize":{"height":24,"width":80}}"#
        );
    }

    #[test]
    fn resources_keep_their_numbers() {
        let text =
            resources(br#"{"Memory":{"LIMIT":18446744073709551615},"unified":{"Memory.max":"1"}}"#);
        let text = String::from_utf8(text.unwrap().unwrap()).unwrap();
        assert_eq!(
            text,
            r#"{"memory":{"limit":18446744073709551615},"unified":{"Memory.max":"1"}}"#
        );
    }
}
