//! config.json, process specs, options and resources, mutated, for Go's shim of Debian and for
//! ours: whatever Go starts, we start. What we refuse and Go does not has a reason in [`REASONS`].
//!
//! `CLEAT_TEST_SHIM` is the binary under test, `CLEAT_DECODER_MUTATIONS` how many are tried of each
//! kind (none: only the fixed ones), `CLEAT_DECODER_SEED` another order of them.
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    missing_docs,
    reason = "tests may block, and end at the first surprise"
)]

use cleat::protocol::{
    Any, Empty,
    options::{OPTIONS_URL, Options},
    task as api,
};
use cleat_bench::{Annotations, Client, Driver, Pod};
use prost::Message;
use serde_json::Value;
use std::{
    fmt::Write as _,
    path::{Path, PathBuf},
    rc::Rc,
    time::Duration,
};

/// Debian's.
const GO: &str = "/usr/bin/containerd-shim-runc-v2";
/// What a program of the mutated container ends with.
const STATUS: u32 = 7;
/// Words in our refusals that Go's shim does not have, and why we keep them.
const REASONS: [(&str, &str); 3] = [
    ("is not SIZE", "an annotation of our own: who writes it wants to hear that it is wrong"),
    ("larger than 16 MiB", "containerd's own messages end there: a larger one cannot come from it"),
    (
        "data is not UTF-8 encoded",
        "Go's shims refuse it since 1.7, whose protobuf library checks it",
    ),
];

fn shim() -> PathBuf {
    std::env::var_os("CLEAT_TEST_SHIM")
        .expect("CLEAT_TEST_SHIM names the shim; ./dev test sets it")
        .into()
}

/// What became of a text: how a program ended, or who refused it with which words.
type Outcome = Result<u32, String>;

/// Both shims, a pod of each, and what was seen.
struct Both {
    sides: [Rc<Driver>; 2],
    started: usize,
    refused: usize,
    taken_by_us_alone: usize,
    faults: Vec<String>,
}

impl Both {
    fn judge(&mut self, what: &str, text: &[u8], [ours, go]: [Outcome; 2]) {
        match (&ours, &go) {
            (Ok(ours), Ok(go)) if ours == go => self.started += 1,
            (Ok(_), Err(_)) => self.taken_by_us_alone += 1,
            (Err(_), Err(_)) => self.refused += 1,
            (Err(words), Ok(_)) if REASONS.iter().any(|(reason, _)| words.contains(reason)) => {
                self.refused += 1;
            }
            _ => self.faults.push(format!(
                "{what}: ours {ours:?}, Go's {go:?}: {}",
                shown(&String::from_utf8_lossy(text))
            )),
        }
    }
}

fn shown(text: &str) -> String {
    let short: String = text.chars().take(3000).collect();
    if short.len() < text.len() { format!("{short}… ({} bytes)", text.len()) } else { short }
}

/// Leaves nothing, however a test ends.
struct Tidy([Rc<Driver>; 2]);

impl Drop for Tidy {
    fn drop(&mut self) {
        self.0.iter().for_each(|side| side.tidy());
    }
}

fn with_both<F: Future<Output = Both>>(test: impl FnOnce(Both) -> F) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    tokio::task::LocalSet::new().block_on(&runtime, async {
        let ours = Driver::new("ours", &shim(), &Annotations::new()).await.unwrap();
        let go = Driver::new("go", Path::new(GO), &Annotations::new()).await.unwrap();
        let sides = [ours, go];
        let _tidy = Tidy(sides.clone());
        let both = Both {
            sides: sides.clone(),
            started: 0,
            refused: 0,
            taken_by_us_alone: 0,
            faults: Vec::new(),
        };
        let both = test(both).await;
        let mut left = Vec::new();
        for side in sides {
            left.extend(side.leftovers_after(Duration::from_secs(20)).await);
        }
        println!(
            "started by both {}, refused by both {}, taken by ours alone {}",
            both.started, both.refused, both.taken_by_us_alone
        );
        assert!(both.faults.is_empty(), "{}", both.faults.join("\n"));
        assert!(left.is_empty(), "{left:#?}");
        assert!(both.started > 0, "nothing was started at all");
    });
}

/// A whole life with this text as its config.json.
async fn life(driver: &Rc<Driver>, config: &[u8], options: Option<Any>) -> Outcome {
    let id = driver.fresh("c");
    let bundle = driver.bundle(&id, &id, &[]).await.unwrap();
    std::fs::write(bundle.join("config.json"), config).unwrap();
    let outcome = match driver.start(&id, &bundle).await {
        Err(e) => Err(e.to_string()),
        Ok(socket) => {
            let (_, mut client) = driver.adopt(&id, bundle.clone(), socket).await.unwrap();
            let mut request = driver.create_request(&id, &bundle);
            request.options = options;
            let outcome = run(&mut client, &id, &request).await;
            client.shutdown(&id).await;
            outcome
        }
    };
    // Go's fails where Create has.
    let _ = driver.delete(&id, &bundle).await;
    driver.discard(&id, &bundle).await.unwrap();
    outcome
}

async fn run(client: &mut Client, id: &str, request: &api::CreateTaskRequest) -> Outcome {
    client.call::<api::PidResponse>("Create", request).await.map_err(|e| e.to_string())?;
    let started =
        client.process::<api::PidResponse>("Start", id, "").await.map_err(|e| e.to_string());
    let waited = match &started {
        Ok(_) => {
            client.process::<api::WaitResponse>("Wait", id, "").await.map_err(|e| e.to_string())
        }
        Err(e) => Err(e.clone()),
    };
    client.process::<api::DeleteResponse>("Delete", id, "").await.map_err(|e| e.to_string())?;
    waited.map(|waited| waited.exit_status)
}

/// An exec in a pod that runs, with this text as its process spec.
async fn exec(driver: &Rc<Driver>, pod: &Pod, client: &mut Client, spec: &[u8]) -> Outcome {
    let exec = driver.fresh("e");
    let any = Any {
        type_url: "types.containerd.io/opencontainers/runtime-spec/1/Process".into(),
        value: spec.to_vec(),
    };
    let request = api::ExecProcessRequest {
        id: pod.id.clone(),
        exec_id: exec.clone(),
        spec: Some(any),
        ..api::ExecProcessRequest::default()
    };
    client.call::<Empty>("Exec", &request).await.map_err(|e| e.to_string())?;
    let started = client.process::<api::PidResponse>("Start", &pod.id, &exec).await;
    let outcome = match started {
        Ok(_) => {
            let waited = client.process::<api::WaitResponse>("Wait", &pod.id, &exec).await;
            waited.map(|waited| waited.exit_status).map_err(|e| e.to_string())
        }
        Err(e) => Err(e.to_string()),
    };
    let _ = client.process::<api::DeleteResponse>("Delete", &pod.id, &exec).await;
    outcome
}

/// The config.json of a container that ends with [`STATUS`], as text; its group is its own.
async fn config_of(driver: &Rc<Driver>) -> Value {
    let id = driver.fresh("model");
    let bundle = driver.bundle(&id, "g", &["sh", "-c", &format!("exit {STATUS}")]).await.unwrap();
    let mut config: Value =
        serde_json::from_slice(&std::fs::read(bundle.join("config.json")).unwrap()).unwrap();
    driver.discard(&id, &bundle).await.unwrap();
    config["annotations"] =
        serde_json::json!({"org.example/é": "x", "io.containerd.cleat.spool": "64Ki", "n": "1"});
    config["process"]["apparmorProfile"] = "".into();
    config["process"]["selinuxLabel"] = "".into();
    config["process"]["rlimits"] =
        serde_json::json!([{"type": "RLIMIT_CORE", "hard": 0, "soft": 0}]);
    config["linux"]["namespaces"][0]["path"] = "".into();
    config["linux"]["seccomp"] = serde_json::json!({"defaultAction": "SCMP_ACT_ALLOW"});
    config["linux"].as_object_mut().unwrap().remove("cgroupsPath");
    config
}

fn process_of(config: &Value) -> Value {
    config["process"].clone()
}

async fn judge_config(both: &mut Both, config: &[u8]) {
    let outcomes =
        tokio::join!(life(&both.sides[0], config, None), life(&both.sides[1], config, None));
    both.judge("config.json", config, outcomes.into());
}

/// Both pods, for execs and updates.
struct Pods {
    pods: Vec<Pod>,
    clients: Vec<Client>,
}

impl Pods {
    async fn new(both: &Both) -> Self {
        let (mut pods, mut clients) = (Vec::new(), Vec::new());
        for side in &both.sides {
            let (pod, client) =
                side.running(&side.fresh("pod"), &["sleep", "1000000"]).await.unwrap();
            pods.push(pod);
            clients.push(client);
        }
        Self { pods, clients }
    }

    async fn judge_exec(&mut self, both: &mut Both, what: &str, spec: &[u8]) {
        let [ours, go] = &mut self.clients[..] else { unreachable!() };
        let outcomes = tokio::join!(
            exec(&both.sides[0], &self.pods[0], ours, spec),
            exec(&both.sides[1], &self.pods[1], go, spec)
        );
        both.judge(what, spec, outcomes.into());
    }

    async fn judge_update(&mut self, both: &mut Both, what: &str, resources: &[u8]) {
        let mut outcomes = Vec::new();
        for (pod, client) in self.pods.iter().zip(&mut self.clients) {
            let request = api::UpdateTaskRequest {
                id: pod.id.clone(),
                resources: Some(Any { type_url: String::new(), value: resources.to_vec() }),
            };
            let answer = client.call::<Empty>("Update", &request).await;
            outcomes.push(answer.map(|_| 0).map_err(|e| e.to_string()));
        }
        both.judge(what, resources, outcomes.try_into().unwrap());
    }

    async fn end(mut self, both: &Both) {
        for ((side, pod), client) in both.sides.iter().zip(&self.pods).zip(&mut self.clients) {
            side.end(client, pod).await.unwrap();
        }
    }
}

// ---- Mutations ----------------------------------------------------------------------------------

/// Numbers that look random and are the same each time (xorshift).
struct Dice(u64);

impl Dice {
    fn up_to(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % bound as u64).unwrap()
    }
}

/// What is done to one value of a text, or to the member that it belongs to.
const CHANGES: usize = 24;

/// Writes a value as JSON; some of its values are changed.
struct Mutant {
    /// Which value, in the order of writing, and what is done to it.
    changes: Vec<(usize, usize)>,
    count: usize,
    out: Vec<u8>,
}

impl Mutant {
    fn of(value: &Value, changes: Vec<(usize, usize)>) -> Vec<u8> {
        let mut mutant = Self { changes, count: 0, out: Vec::new() };
        mutant.value(value, None);
        mutant.out
    }

    fn random(value: &Value, dice: &mut Dice) -> Vec<u8> {
        let values = count(value);
        let changes = 1 + dice.up_to(3);
        let changes = (0..changes).map(|_| (dice.up_to(values), dice.up_to(CHANGES))).collect();
        let mut text = Self::of(value, changes);
        match dice.up_to(40) {
            0 => text.extend_from_slice(b" trailing"),
            1 => text.extend_from_slice(b"{}"),
            2 => text.truncate(text.len() - 1),
            3 => text.splice(0..0, *b"\xef\xbb\xbf").for_each(drop),
            4 => text.splice(0..0, *b" \t\r\n").for_each(drop),
            5 => {
                let at = dice.up_to(text.len());
                text[at] = u8::try_from(dice.up_to(256)).unwrap();
            }
            _ => {}
        }
        text
    }

    fn put(&mut self, text: &str) {
        self.out.extend_from_slice(text.as_bytes());
    }

    fn name(&mut self, name: &str) {
        self.put(&Value::from(name).to_string());
        self.put(":");
    }

    /// A value, with the name that it has in an object.
    fn value(&mut self, value: &Value, name: Option<&str>) {
        let this = self.count;
        self.count += 1;
        let change = self.changes.iter().find(|(at, _)| *at == this).map(|(_, change)| *change);
        let nested = |levels: usize| ["[".repeat(levels), "]".repeat(levels)].concat();
        // Further members before this one.
        if let Some(name) = name {
            let shouted = name.to_uppercase();
            let folded = name.replacen('s', "\u{17f}", 1).replacen('k', "\u{212a}", 1);
            let before = match change {
                Some(0) => Some((name, "null".to_owned())),
                Some(1) => Some((name, value.to_string())),
                Some(2) => Some((shouted.as_str(), "null".to_owned())),
                Some(3) => Some(("unknown", "null".to_owned())),
                Some(4) => Some(("unknown", nested(200))),
                Some(5) => Some(("unknown", nested(9_900))),
                Some(6) => Some(("unknown", "-0.0e+999999".to_owned())),
                Some(7) => Some(("unknown", "\"\\ud800 \\udfff\\u0000\"".to_owned())),
                Some(8) => Some((name, "{}".to_owned())),
                Some(9) => Some(("", "123456789012345678901234567890".to_owned())),
                _ => None,
            };
            if let Some((name, value)) = before {
                self.name(name);
                self.put(&value);
                self.put(",");
            }
            match change {
                Some(10) => self.name(&shouted),
                Some(11) => self.name(&folded),
                Some(12) => {
                    let mut escaped = String::new();
                    name.encode_utf16().for_each(|unit| write!(escaped, "\\u{unit:04X}").unwrap());
                    self.put(&format!("\"{escaped}\" : "));
                }
                Some(13) => {
                    self.out.extend_from_slice(b"\"\xff\": 1 ,\n");
                    self.name(name);
                }
                _ => self.name(name),
            }
        }
        match change {
            Some(14) => self.put("null"),
            Some(15) => self.put("[]"),
            Some(16) => self.put("{}"),
            Some(17) => self.put("\"7\""),
            Some(18) => self.put("7"),
            Some(19) if value.is_string() => self.out.extend_from_slice(b"\"\xff\xe2\x82\""),
            Some(19) => self.put("1.0"),
            Some(20) => self.put("\"\\ud800x\""),
            Some(21) => self.put(&nested(10_100)),
            _ => self.plain(value),
        }
        match (change, name) {
            (Some(22), Some(name)) => {
                self.put(",");
                self.name(name);
                self.put("null");
            }
            (Some(23), Some(name)) => {
                self.put(" , ");
                self.name(&name.to_uppercase());
                self.put(&value.to_string());
            }
            _ => {}
        }
    }

    fn plain(&mut self, value: &Value) {
        match value {
            Value::Object(members) => {
                self.put("{");
                for (index, (name, value)) in members.iter().enumerate() {
                    self.put(if index == 0 { "" } else { "," });
                    self.value(value, Some(name));
                }
                self.put("}");
            }
            Value::Array(items) => {
                self.put("[");
                for (index, value) in items.iter().enumerate() {
                    self.put(if index == 0 { "" } else { "," });
                    self.value(value, None);
                }
                self.put("]");
            }
            scalar => self.put(&scalar.to_string()),
        }
    }
}

fn count(value: &Value) -> usize {
    1 + match value {
        Value::Object(members) => members.values().map(count).sum(),
        Value::Array(items) => items.iter().map(count).sum(),
        _ => 0,
    }
}

fn mutations() -> (usize, Dice) {
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().unwrap());
    let seed = number("CLEAT_DECODER_SEED").unwrap_or(0x9e37_79b9);
    println!("CLEAT_DECODER_SEED={seed}");
    (usize::try_from(number("CLEAT_DECODER_MUTATIONS").unwrap_or(0)).unwrap(), Dice(seed.max(1)))
}

// ---- Tests --------------------------------------------------------------------------------------

/// The number of a value in the order of writing, by its path.
fn at(value: &Value, path: &[&str]) -> usize {
    let Some((first, rest)) = path.split_first() else { return 0 };
    let mut before = 1;
    match value {
        Value::Object(members) => {
            for (name, value) in members {
                if name == first {
                    return before + at(value, rest);
                }
                before += count(value);
            }
        }
        Value::Array(items) => {
            let index: usize = first.parse().unwrap();
            return before
                + items[..index].iter().map(count).sum::<usize>()
                + at(&items[index], rest);
        }
        _ => {}
    }
    panic!("{first} is not there")
}

#[test]
fn config_json_is_read_as_go_reads_it() {
    with_both(|mut both| async move {
        let model = config_of(&both.sides[0]).await;
        let paths: [&[&str]; 9] = [
            &["annotations"],
            &["annotations", "n"],
            &["annotations", "org.example/é"],
            &["process"],
            &["process", "apparmorProfile"],
            &["process", "selinuxLabel"],
            &["linux"],
            &["linux", "namespaces"],
            &["linux", "namespaces", "0", "path"],
        ];
        // Each kind of change in its turn, at each of the places that the shim reads.
        let mut texts: Vec<Vec<u8>> = Vec::new();
        for (index, path) in paths.iter().enumerate() {
            for change in [14, [0, 2, 5, 7, 8, 10, 11, 13, 22][index]] {
                texts.push(Mutant::of(&model, vec![(at(&model, path), change)]));
            }
        }
        texts.push([model.to_string().as_bytes(), b" and more"].concat());
        texts.push([b"\xef\xbb\xbf", model.to_string().as_bytes()].concat());
        for text in ["", "null", "[]", "{", r#"{"annotations":7}"#] {
            texts.push(text.into());
        }
        let (number, mut dice) = mutations();
        texts.extend((0..number).map(|_| Mutant::random(&model, &mut dice)));
        for text in texts {
            judge_config(&mut both, &text).await;
        }
        both
    });
}

#[test]
fn a_process_spec_is_read_as_go_reads_it() {
    with_both(|mut both| async move {
        let model = process_of(&config_of(&both.sides[0]).await);
        let mut pods = Pods::new(&both).await;
        let mut texts: Vec<Vec<u8>> = Vec::new();
        let paths: [&[&str]; 6] = [
            &["args"],
            &["env", "0"],
            &["user"],
            &["capabilities"],
            &["rlimits"],
            &["selinuxLabel"],
        ];
        for (index, path) in paths.iter().enumerate() {
            let changes = [[10, 23], [19, 20], [0, 11], [14, 10], [14, 1], [5, 22]][index];
            texts
                .extend(changes.map(|change| Mutant::of(&model, vec![(at(&model, path), change)])));
        }
        texts.push(Mutant::of(&model, vec![(at(&model, &["cwd"]), 6)]));
        texts.push(Mutant::of(&model, vec![(at(&model, &["cwd"]), 13)]));
        for text in [
            "",
            "null",
            "[]",
            r#"{"terminal":7,"args":["true"],"cwd":"/"}"#,
            r#"{"args":["true"],"cwd":"/"} x"#,
        ] {
            texts.push(text.into());
        }
        let (number, mut dice) = mutations();
        texts.extend((0..number).map(|_| Mutant::random(&model, &mut dice)));
        for text in texts {
            pods.judge_exec(&mut both, "process spec", &text).await;
        }
        pods.end(&both).await;
        both
    });
}

#[test]
fn resources_are_read_as_go_reads_them() {
    with_both(|mut both| async move {
        let mut pods = Pods::new(&both).await;
        let model = serde_json::json!({
            "memory": {"limit": 1 << 28, "swap": null}, "cpu": {"shares": 512, "quota": 20_000, "period": 100_000}, "pids": {"limit": 100}, "devices": null,
        });
        let mut texts: Vec<Vec<u8>> = (0..CHANGES)
            .map(|change| Mutant::of(&model, vec![(at(&model, &["memory", "limit"]), change)]))
            .collect();
        texts.push("null".into());
        let (number, mut dice) = mutations();
        texts.extend((0..number).map(|_| Mutant::random(&model, &mut dice)));
        for text in texts {
            pods.judge_update(&mut both, "resources", &text).await;
        }
        pods.end(&both).await;
        both
    });
}

#[test]
fn options_are_read_as_go_reads_them() {
    with_both(|mut both| async move {
        let config = config_of(&both.sides[0]).await.to_string().into_bytes();
        let options = Options { no_new_keyring: true, ..Options::default() }.encode_to_vec();
        let any = |type_url: &str, value: &[u8]| {
            Some(Any { type_url: type_url.into(), value: value.to_vec() })
        };
        let unknown = [options.as_slice(), &[0xfa, 0x3f, 3, b'x', b'y', b'z']].concat();
        let twice = [[0x32, 1, b'x'].as_slice(), &[0x32, 4], b"runc"].concat();
        let cases = [
            any(OPTIONS_URL, &options),
            any(OPTIONS_URL, &[]),
            any("", &[]),
            any("nonesuch", &[]),
            any("nonesuch", &[8, 1]),
            any(&format!("type.googleapis.com/{OPTIONS_URL}"), &options),
            any(OPTIONS_URL, &unknown),
            any(OPTIONS_URL, &twice),
            any(OPTIONS_URL, &[0xff]),
            any(OPTIONS_URL, &[0x3a, 2, 0xff, 0xfe]),
            // A boolean and a number that are longer than they need to be.
            any(OPTIONS_URL, &[0x08, 0x81, 0x00, 0x20, 0x80, 0x80, 0x00]),
        ];
        for options in cases {
            let text = options.as_ref().map(Message::encode_to_vec).unwrap_or_default();
            let outcomes = tokio::join!(
                life(&both.sides[0], &config, options.clone()),
                life(&both.sides[1], &config, options)
            );
            both.judge("options", &text, outcomes.into());
        }
        both
    });
}
