//! `cleat install`.

use crate::{
    args::{CONFIG, Install},
    config::{self, Version},
    install::{
        marks,
        replace::{Candidate, Directory},
    },
    output,
};
use anyhow::{Context, Result, anyhow, bail};
use std::{
    collections::BTreeMap,
    fmt::Write as _,
    fs,
    io::ErrorKind,
    path::{Path, PathBuf},
    process::ExitCode,
};
use toml_edit::{Array, DocumentMut, Item, Value};

const RUNTIME_TYPE: &str = "io.containerd.cleat.v2";
const SHIM: &str = "containerd-shim-cleat-v2";
const DEFAULT: &str = "default_runtime_name";
/// First line of a file of options that is ours.
const OPTIONS_MARK: &str = "# by cleat install: options of the handler";
/// Names of the blocks that are no handler's.
const RUNC: &str = "handler runc, which containerd 1.x forgets once another one is named";
const DEFAULT_BLOCK: &str = "default";
const VERSION: &str = "version";
const NEW_FILE: &str = "new file";

pub(super) fn run(command: Install) -> Result<ExitCode> {
    check_name(&command.handler)?;
    if command.runtime_class {
        let name = &command.handler;
        output::print(&[format!(
            "apiVersion: node.k8s.io/v1\nkind: RuntimeClass\nmetadata:\n  name: {name}\nhandler: {name}"
        )])?;
        return Ok(ExitCode::SUCCESS);
    }
    let files = Files::new(&command)?;
    let said = match (command.undo, command.write) {
        (true, _) => files.undo(&command)?,
        (_, true) => files.write(&command)?,
        _ => files.snippet(&command)?,
    };
    output::print(&said)?;
    Ok(ExitCode::SUCCESS)
}

/// Handlers become labels and RuntimeClasses: DNS labels.
fn check_name(name: &str) -> Result<()> {
    let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    if name.is_empty()
        || name.len() > 63
        || !name.chars().all(fits)
        || name.starts_with('-')
        || name.ends_with('-')
    {
        bail!("--handler {name:?}: small letters, digits and -, at most 63");
    }
    if name == "runc" {
        bail!(
            "--handler runc is containerd's own; to put cleat in its place, set its runtime_path (README.md)"
        );
    }
    Ok(())
}

/// The shim, which containerd must find in its own PATH.
fn shim(command: &Install) -> Result<PathBuf> {
    let wanted = command.shim.clone().unwrap_or_else(|| SHIM.into());
    let found = config::find_program(&wanted).with_context(|| {
        format!(
            "{} is not installed: put it into a directory of containerd's PATH, such as /usr/local/bin",
            wanted.display()
        )
    })?;
    Ok(fs::canonicalize(found)?)
}

/// containerd's configuration as it lies there: the file, and those that it imports.
struct Files {
    /// As it was named; messages have this one.
    named: PathBuf,
    /// Where links lead.
    main: PathBuf,
    program: PathBuf,
    containerd: Version,
    version_text: String,
    /// The main file is there.
    exists: bool,
    document: DocumentMut,
    imports: Vec<(PathBuf, Vec<PathBuf>)>,
    texts: BTreeMap<PathBuf, String>,
}

/// New texts of files; `None`: the file goes.
type Edits = BTreeMap<PathBuf, Option<String>>;

fn read(path: &Path) -> Result<Option<String>> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e).with_context(|| format!("read {}", path.display())),
    }
}

impl Files {
    fn new(command: &Install) -> Result<Self> {
        let named = command.config.clone();
        let main = fs::canonicalize(&named).unwrap_or_else(|_| named.clone());
        let (containerd, version_text) = match config::version(&command.containerd) {
            Ok(found) => found,
            Err(e) if command.write => return Err(e),
            Err(e) if command.undo => {
                return Err(e.context("containerd checks what is undone; --containerd names it"));
            }
            Err(e) => {
                eprintln!("cleat: {e:#}; the snippet is for containerd 2");
                ((2, 0), "2".to_owned())
            }
        };
        let text = read(&main)?;
        let exists = text.is_some();
        let text = text.unwrap_or_default();
        let document: DocumentMut =
            text.parse().with_context(|| format!("parse {}", named.display()))?;
        let imports = config::imports(&document, &named, containerd);
        let mut texts = BTreeMap::from([(main.clone(), text)]);
        for file in imports.iter().flat_map(|(_, files)| files) {
            if let Some(text) = read(file)? {
                texts.insert(file.clone(), text);
            }
        }
        Ok(Self {
            named,
            main,
            program: command.containerd.clone(),
            containerd,
            version_text,
            exists,
            document,
            imports,
            texts,
        })
    }

    fn syntax(&self) -> i64 {
        config::syntax(&self.document, self.containerd)
    }

    /// What containerd makes of it today.
    fn dump(&self) -> Result<DocumentMut> {
        config::dump(&self.program, &self.named)
    }

    /// The lines of a handler.
    fn handler_lines(&self, command: &Install, syntax: i64, systemd: bool) -> String {
        let table = format!(
            "[plugins.{:?}.containerd.runtimes.{}",
            config::section(syntax),
            command.handler
        );
        let mut lines = format!("{table}]\nruntime_type = \"{RUNTIME_TYPE}\"\n");
        if let Some(shim) = &command.shim {
            let _ = writeln!(lines, "runtime_path = {:?}", shim.to_string_lossy());
        }
        if command.pod_annotations {
            lines.push_str("pod_annotations = [\"io.containerd.cleat.*\"]\n");
        }
        if systemd {
            let _ = writeln!(lines, "{table}.options]");
            // containerd 1.x hands on the options of no runtime but runc; it names a file.
            if self.containerd.0 >= 2 {
                lines.push_str("SystemdCgroup = true\n");
            } else {
                let _ = writeln!(
                    lines,
                    "ConfigPath = {:?}",
                    self.options_file(&command.handler).to_string_lossy()
                );
            }
        }
        lines
    }

    fn options_file(&self, handler: &str) -> PathBuf {
        self.main.with_file_name(format!("cleat-install-{handler}.toml"))
    }

    fn default_lines(syntax: i64, handler: &str) -> String {
        format!("[plugins.{:?}.containerd]\n{DEFAULT} = {handler:?}\n", config::section(syntax))
    }

    /// To be put in by hand.
    fn snippet(&self, command: &Install) -> Result<Vec<String>> {
        shim(command)?;
        // containerd 1.x puts the CRI section of an imported file in the place of the main one's:
        // that is the file then.
        let target = match self.containerd.0 {
            0 | 1 => self.targets(&command.handler).swap_remove(0),
            _ => Target { path: self.main.clone(), syntax: self.syntax() },
        };
        let (path, syntax) =
            (if target.path == self.main { &self.named } else { &target.path }, target.syntax);
        let main = self.texts.get(&target.path).cloned().unwrap_or_default();
        let document: DocumentMut = main.parse().unwrap_or_default();
        let mut lines = vec![format!(
            "# for containerd {}, at the end of {}:",
            self.version_text,
            path.display()
        )];
        if let Some(problem) = self.hindrance(&self.document) {
            lines.push(format!("# BUT: {problem}"));
        }
        if document.is_empty() {
            lines.push(format!("version = {syntax}"));
        }
        let dump = self.dump().ok();
        let systemd = command.systemd_cgroup || dump.as_ref().is_some_and(runc_uses_systemd);
        let mut text = String::new();
        let named = config::handlers(&document);
        if named.iter().any(|(name, _)| *name == command.handler) {
            lines.push(format!("# handler {} is there already", command.handler));
        } else {
            text = marks::append(
                &text,
                &format!("handler {}", command.handler),
                &self.handler_lines(command, syntax, systemd),
            );
        }
        if self.containerd < (2, 0) && !named.iter().any(|(name, _)| *name != command.handler) {
            text = marks::append(&text, RUNC, &runc_lines(dump.as_ref(), syntax));
        }
        if command.as_default {
            let keys = ["plugins", config::section(syntax), "containerd"];
            if marks::set(&main, &keys, DEFAULT, &command.handler).is_some() {
                lines.push(text.trim_end().to_owned());
                text = format!(
                    "# and in the table [plugins.{:?}.containerd], which is there already, instead of another line of that name:\n#   {DEFAULT} = {:?}\n",
                    config::section(syntax),
                    command.handler
                );
            } else {
                text = marks::append(
                    &text,
                    DEFAULT_BLOCK,
                    &Self::default_lines(syntax, &command.handler),
                );
            }
        }
        lines.push(text.trim_end().to_owned());
        if systemd && self.containerd.0 < 2 {
            lines.extend([
                String::new(),
                format!("# and in {}:", self.options_file(&command.handler).display()),
                "SystemdCgroup = true".to_owned(),
            ]);
        }
        lines.retain(|line| !line.is_empty());
        Ok(lines)
    }

    /// Why nothing that is put in here would have an effect.
    fn hindrance(&self, document: &DocumentMut) -> Option<String> {
        if config::has_no_cri(document) {
            return Some(format!(
                "{} switches the CRI plugin off (disabled_plugins), as Docker's packages do, and nobody else reads handlers. Docker and ctr need none: \
                 docker run --runtime {RUNTIME_TYPE}; for Kubernetes take \"cri\" out of disabled_plugins",
                self.named.display()
            ));
        }
        let is_version =
            |line: &str| line.split('=').next().is_some_and(|key| key.trim() == "version");
        let text = self.texts.get(&self.main).map_or("", String::as_str);
        if self.document.get("version").is_none() && text.lines().any(is_version) {
            return Some(format!(
                "the line `version` of {} stands below a table, so that containerd takes it for a part of that and reads the file as version 1: put it above all tables",
                self.named.display()
            ));
        }
        if self.containerd.0 >= 2 && self.syntax() < 2 {
            return Some(format!(
                "{} has no `version` line, and containerd 2 reads no handlers from such a file: `containerd config migrate` prints a newer one",
                self.named.display()
            ));
        }
        None
    }

    fn write(mut self, command: &Install) -> Result<Vec<String>> {
        let shim = shim(command)?;
        // A new file is for containerd's own place, or beside something that is there; else it is a
        // slip, and containerd would not read it.
        let directory = self.main.parent().filter(|directory| !directory.as_os_str().is_empty());
        if command.config != Path::new(CONFIG)
            && directory.is_some_and(|directory| !directory.is_dir())
        {
            bail!("--config {}: there is no such directory", self.named.display());
        }
        let mut directories = Directories::default();
        directories.of(&self.main)?;
        // As it is now that nobody else is at it.
        self = Self::new(command)?;
        let before = self.dump()?;
        if let Some(problem) = self.hindrance(&before).or_else(|| self.hindrance(&self.document)) {
            bail!("{problem}");
        }
        let present = config::handler(&before, &command.handler);
        let is_there = present.is_some();
        let kind = present.and_then(|handler| handler.get("runtime_type")?.as_str());
        if is_there && kind != Some(RUNTIME_TYPE) {
            bail!(
                "a handler {:?} is there and is not cleat's; name another one with --handler",
                command.handler
            );
        }
        let mut said = Vec::new();
        if let Some(handler) = present {
            let path = handler.get("runtime_path").and_then(Item::as_str).unwrap_or_default();
            if let Some(wanted) = command.shim.as_ref().filter(|wanted| wanted.as_os_str() != path)
            {
                bail!(
                    "handler {} is there with runtime_path {path:?}, not {:?}: change it by hand, or --undo first",
                    command.handler,
                    wanted.to_string_lossy()
                );
            }
            said.push(format!("handler {} is there already, and stays as it is", command.handler));
        }
        let default = config::default_handler(&before).unwrap_or_default().to_owned();
        let sets_default = command.as_default && default != command.handler;
        let mut edits = Edits::new();
        if command.no_default && default == command.handler {
            edits = self.without_default(&command.handler);
            if edits.is_empty() {
                said.push(format!("{DEFAULT} was not set by cleat install, and stays"));
            } else {
                let mut wanted = config::flat(&before);
                wanted.remove(&default_path(&before));
                self.check(directories.of(&self.main)?, &edits, &wanted, &[default_path(&before)])?;
            }
        }
        // Somebody has named a handler by hand, and containerd 1.x has forgotten its own since.
        let lacks_runc = self.containerd < (2, 0)
            && config::missing_default(&before).is_some_and(|name| name == "runc");
        let systemd = command.systemd_cgroup || runc_uses_systemd(&before);
        let options = (!is_there && systemd && self.containerd.0 < 2)
            .then(|| self.options_file(&command.handler));
        if let Some(path) = &options {
            put_options(directories.of(path)?, path)?;
        }
        if !is_there || sets_default || lacks_runc {
            let attempt = self.add(
                directories.of(&self.main)?,
                command,
                &before,
                is_there,
                systemd,
                sets_default,
            );
            if attempt.is_err()
                && let Some(path) = &options
            {
                let _ = remove_options(directories.of(path)?, path);
            }
            edits = attempt?;
        }
        if edits.is_empty() {
            said.push("nothing is to be changed".to_owned());
            return Ok(said);
        }
        self.put(&mut directories, &edits)?;
        if !is_there {
            let places: Vec<String> = edits.keys().map(|path| path.display().to_string()).collect();
            said.push(format!(
                "handler {} uses {} ({}; checked by containerd {})",
                command.handler,
                shim.display(),
                places.join(", "),
                self.version_text
            ));
        }
        if lacks_runc {
            said.push(
                "handler runc stands beside it now: containerd 1.x had forgotten it".to_owned(),
            );
        }
        if sets_default {
            said.push("new pods without a RuntimeClass use it".to_owned());
        } else if default != command.handler {
            said.push(format!(
                "pods use it by a RuntimeClass: cleat install --runtime-class --handler {} | kubectl apply -f -",
                command.handler
            ));
        } else if command.no_default {
            said.push("new pods without a RuntimeClass use what they used before".to_owned());
        }
        said.push(
            "restart containerd to load it: systemctl restart containerd (pods live on)".to_owned(),
        );
        Ok(said)
    }

    /// The files with the handler, or the default, put in: in the first place where containerd sees
    /// them, and sees all else as before.
    fn add(
        &self,
        directory: &Directory,
        command: &Install,
        before: &DocumentMut,
        is_there: bool,
        systemd: bool,
        sets_default: bool,
    ) -> Result<Edits> {
        let mut wanted = config::flat(before);
        let handler = path_of(before, &format!("runtimes/{}", command.handler));
        let default = default_path(before);
        let mut open = vec![format!("{handler}/")];
        if config::handler(before, "runc").is_none() {
            open.push(path_of(before, "runtimes/runc/"));
        }
        if sets_default {
            wanted.insert(default.clone(), command.handler.clone());
        }
        if !is_there {
            wanted.insert(format!("{handler}/runtime_type"), RUNTIME_TYPE.to_owned());
        }
        let mut last = anyhow!("no place for it");
        for target in self.targets(&command.handler) {
            for keeps_runc in [false, true] {
                let mut edits = Edits::new();
                let old = self.texts.get(&target.path).cloned().unwrap_or_default();
                let syntax = target.syntax;
                let mut text = old.clone();
                if text.is_empty()
                    || (target.path == self.main
                        && self.document.is_empty()
                        && marks::names(&text).is_empty())
                {
                    let name =
                        if target.path != self.main || !self.exists { NEW_FILE } else { VERSION };
                    text = marks::append(&text, name, &format!("version = {syntax}\n"));
                }
                if !is_there {
                    let lines = self.handler_lines(command, syntax, systemd);
                    text = marks::append(&text, &format!("handler {}", command.handler), &lines);
                }
                if keeps_runc && self.containerd < (2, 0) {
                    text = marks::append(&text, RUNC, &runc_lines(Some(before), syntax));
                }
                if sets_default {
                    let path = ["plugins", config::section(syntax), "containerd"];
                    text =
                        marks::set(&text, &path, DEFAULT, &command.handler).unwrap_or_else(|| {
                            marks::append(
                                &text,
                                DEFAULT_BLOCK,
                                &Self::default_lines(syntax, &command.handler),
                            )
                        });
                }
                edits.insert(target.path.clone(), Some(text));
                match self.check(directory, &edits, &wanted, &open) {
                    Ok(()) => return Ok(edits),
                    Err(e) => last = e,
                }
            }
        }
        Err(last.context(format!(
            "{} cannot be edited safely; `cleat install` prints what to put in by hand",
            self.named.display()
        )))
    }

    /// Where something of ours may go, best first.
    fn targets(&self, handler: &str) -> Vec<Target> {
        let mut targets = Vec::new();
        // containerd 2 merges imported files into the main one. 1.x puts their plugin sections in
        // its place, so nothing of ours must stand alone in one.
        if self.containerd.0 >= 2 {
            let directories = self.imports.iter().map(|(pattern, _)| pattern).filter(|pattern| {
                let name = pattern.file_name().unwrap_or_default().to_string_lossy();
                name.matches('*').count() == 1
                    && !name.contains('?')
                    && pattern.parent().is_some_and(Path::is_dir)
            });
            targets.extend(directories.map(|pattern| {
                let name = pattern
                    .file_name()
                    .unwrap_or_default()
                    .to_string_lossy()
                    .replace('*', &format!("cleat-{handler}"));
                Target { path: pattern.with_file_name(name), syntax: self.syntax() }
            }));
        } else {
            let imported = self.imports.iter().flat_map(|(_, files)| files).rev();
            for path in imported {
                let Some(document) =
                    self.texts.get(path).and_then(|text| text.parse::<DocumentMut>().ok())
                else {
                    continue;
                };
                let syntax = config::syntax(&document, self.containerd);
                if document
                    .get("plugins")
                    .and_then(|plugins| plugins.get(config::section(syntax)))
                    .is_some()
                {
                    targets.push(Target { path: path.clone(), syntax });
                }
            }
        }
        targets.push(Target { path: self.main.clone(), syntax: self.syntax() });
        targets
    }

    /// Whether containerd, with these files, would see what is wanted, and all else as before.
    /// `open`: beginnings of paths that may differ.
    fn check(
        &self,
        directory: &Directory,
        edits: &Edits,
        wanted: &BTreeMap<String, String>,
        open: &[String],
    ) -> Result<()> {
        let (dump, _candidates) = self.dump_of(directory, edits)?;
        if let Some(default) = config::missing_default(&dump) {
            bail!(
                "containerd accepts it, but its CRI plugin would not start: no handler {default:?}, which is the default"
            );
        }
        let seen = config::flat(&dump);
        let is_open = |path: &str| open.iter().any(|open| path.starts_with(open));
        for (path, value) in wanted {
            if seen.get(path) != Some(value) {
                let sees = seen
                    .get(path)
                    .map_or_else(|| "nothing".to_owned(), |value| format!("{value:?}"));
                bail!(
                    "containerd accepts it, but sees {sees} as {path}, not {value:?}: does an imported file say otherwise?"
                );
            }
        }
        if let Some((path, value)) =
            seen.iter().find(|(path, _)| !wanted.contains_key(*path) && !is_open(path))
        {
            bail!("containerd accepts it, but sees {path} = {value:?}, which was not there");
        }
        Ok(())
    }

    /// What containerd makes of the files as they would be.
    fn dump_of(
        &self,
        directory: &Directory,
        edits: &Edits,
    ) -> Result<(DocumentMut, Vec<Candidate>)> {
        let text = match edits.get(&self.main) {
            Some(text) => text.clone().unwrap_or_default(),
            None => self.texts[&self.main].clone(),
        };
        let mut document: DocumentMut = text
            .parse()
            .context("what would be written is no TOML; this file must be edited by hand")?;
        let mut candidates = Vec::new();
        let mut imported: Vec<PathBuf> =
            self.imports.iter().flat_map(|(_, files)| files.clone()).collect();
        let new: Vec<&PathBuf> =
            edits.keys().filter(|path| **path != self.main && !imported.contains(path)).collect();
        if let Some(path) = new.first() {
            imported.push((*path).clone());
            // As containerd reads them: pattern by pattern, each one's files by name.
            let at = |path: &Path| {
                self.imports.iter().position(|(pattern, _)| pattern.parent() == path.parent())
            };
            imported.sort_by(|a, b| (at(a), a).cmp(&(at(b), b)));
        }
        if !imported.is_empty() {
            let mut list = Array::new();
            for path in imported {
                match edits.get(&path) {
                    Some(None) => {}
                    Some(Some(text)) => {
                        let candidate = directory.candidate(&path, text)?;
                        list.push(candidate.path().to_string_lossy().into_owned());
                        candidates.push(candidate);
                    }
                    None => list.push(path.to_string_lossy().into_owned()),
                }
            }
            document["imports"] = Item::Value(Value::Array(list));
        }
        let candidate = directory.candidate(&self.main, &document.to_string())?;
        let dump = config::dump(&self.program, candidate.path());
        candidates.push(candidate);
        Ok((dump?, candidates))
    }

    /// Puts files in place, each whole or not at all.
    fn put(&self, directories: &mut Directories, edits: &Edits) -> Result<()> {
        for (path, text) in edits {
            // An imported file may be a link as well.
            let target = fs::canonicalize(path).unwrap_or_else(|_| path.clone());
            let directory = directories.of(&target)?;
            match text {
                Some(text) => {
                    let is_ours =
                        |text: &String| marks::names(text).iter().any(|name| name == NEW_FILE);
                    if self.texts.get(path).is_some_and(|text| !is_ours(text))
                        && (path != &self.main || self.exists)
                    {
                        directory.keep(&target, &kept(&target))?;
                    }
                    directory.put(directory.candidate(&target, text)?, &target)?;
                }
                None => directory.remove(&target)?,
            }
        }
        Ok(())
    }

    /// The files without a default of ours.
    fn without_default(&self, handler: &str) -> Edits {
        let mut edits = Edits::new();
        for (path, text) in &self.texts {
            let mut new = text.clone();
            if let Some(without) = marks::unset(&new, DEFAULT, handler) {
                new = without;
            }
            if let Some(found) = marks::take(&new, DEFAULT_BLOCK)
                && text.contains(&format!("{DEFAULT} = {handler:?}\n"))
            {
                new = found.rest;
            }
            if new != *text {
                edits.insert(path.clone(), Some(new));
            }
        }
        edits
    }

    fn undo(mut self, command: &Install) -> Result<Vec<String>> {
        let mut directories = Directories::default();
        directories.of(&self.main)?;
        self = Self::new(command)?;
        let handlers: Vec<String> = match command.all {
            false => vec![command.handler.clone()],
            true => {
                let names = self.texts.values().flat_map(|text| marks::names(text));
                names
                    .filter_map(|name| Some(name.strip_prefix("handler ")?.to_owned()))
                    .filter(|name| check_name(name).is_ok())
                    .collect()
            }
        };
        let mut edits = Edits::new();
        let mut edited = Vec::new();
        for handler in &handlers {
            let texts = self.texts.clone();
            for (path, text) in self.without_default(handler) {
                self.texts.insert(path.clone(), text.clone().unwrap_or_default());
                edits.insert(path, text);
            }
            for path in texts.keys() {
                if let Some(found) = marks::take(&self.texts[path], &format!("handler {handler}")) {
                    if found.edited {
                        edited.push(path.clone());
                    }
                    self.texts.insert(path.clone(), found.rest.clone());
                    edits.insert(path.clone(), Some(found.rest));
                }
            }
        }
        let left: Vec<String> = self.texts.values().flat_map(|text| marks::names(text)).collect();
        for path in edits.keys().cloned().collect::<Vec<_>>() {
            let text = self.texts[&path].clone();
            if left.iter().any(|name| name.starts_with("handler ") && name != RUNC) {
                continue;
            }
            edits.insert(path.clone(), self.last_of_ours(&path, text));
        }
        if edits.is_empty() {
            let dump = self.dump()?;
            let by_hand = handlers
                .iter()
                .find(|handler| config::handlers(&dump).iter().any(|(name, _)| name == *handler));
            return Ok(vec![match by_hand {
                Some(handler) => format!(
                    "handler {handler} is there, but not by cleat install: take it out of {} by hand",
                    self.named.display()
                ),
                None => format!("{} has nothing of cleat", self.named.display()),
            }]);
        }
        let (dump, candidates) = self.dump_of(directories.of(&self.main)?, &edits)?;
        drop(candidates);
        if let Some(default) = config::missing_default(&dump) {
            bail!(
                "{DEFAULT} is {default:?}, and not by cleat install: set it to another handler first, or containerd's CRI plugin does not start"
            );
        }
        let mut said = Vec::new();
        for path in &edited {
            let copy = free_name(path);
            directories.of(path)?.keep(path, &copy)?;
            said.push(format!(
                "lines of your own between its marks are kept in {}",
                copy.display()
            ));
        }
        self.put(&mut directories, &edits)?;
        // The user's file is as it was: its copy tells nothing.
        for (path, text) in &edits {
            let copy = kept(path);
            if text.is_some() && read(&copy)?.as_ref() == text.as_ref() {
                directories.of(path)?.remove(&copy)?;
            }
        }
        for handler in &handlers {
            let path = self.options_file(handler);
            said.extend(remove_options(directories.of(&path)?, &path)?);
        }
        let hands: Vec<String> = config::handlers(&dump)
            .into_iter()
            .filter(|(_, shim)| shim.contains("cleat"))
            .map(|(name, _)| name)
            .collect();
        match hands.is_empty() {
            true => said.push(format!("{} has nothing of cleat any more", self.named.display())),
            false => said.push(format!("handlers that stay: {}", hands.join(", "))),
        }
        said.push("restart containerd to load it; running pods keep their shims".to_owned());
        Ok(said)
    }

    /// What is left of a file whose last handler of ours has gone.
    fn last_of_ours(&self, path: &Path, text: String) -> Option<String> {
        let mut text = text;
        if let Some(found) = marks::take(&text, RUNC) {
            let document = found.rest.parse::<DocumentMut>().ok();
            // Not while a third handler is there: containerd 1.x would forget its own again.
            if document.is_some_and(|document| config::handlers(&document).is_empty()) {
                text = found.rest;
            }
        }
        for name in [NEW_FILE, VERSION] {
            let Some(found) = marks::take(&text, name) else { continue };
            let rest = found.rest.parse::<DocumentMut>().is_ok_and(|document| document.is_empty());
            if rest && name == NEW_FILE && found.rest.trim().is_empty() {
                return None;
            }
            if rest || path != self.main {
                text = found.rest;
            }
        }
        Some(text)
    }
}

/// A file that something of ours may go into.
struct Target {
    path: PathBuf,
    syntax: i64,
}

fn parent(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// The directories in which something is changed; the lock of each is held to the end.
#[derive(Default)]
struct Directories(Vec<(PathBuf, Directory)>);

impl Directories {
    /// That of a file.
    fn of(&mut self, path: &Path) -> Result<&Directory> {
        let path = fs::canonicalize(parent(path)).unwrap_or_else(|_| parent(path).to_owned());
        let at = match self.0.iter().position(|(held, _)| *held == path) {
            Some(at) => at,
            None => {
                let directory = Directory::lock(&path)?;
                self.0.push((path, directory));
                self.0.len() - 1
            }
        };
        Ok(&self.0[at].1)
    }
}

/// Where the user's own file is kept.
fn kept(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".before-cleat");
    name.into()
}

fn free_name(path: &Path) -> PathBuf {
    let name = |number: u32| {
        let mut name = path.as_os_str().to_owned();
        name.push(match number {
            0 => ".undone".to_owned(),
            _ => format!(".undone-{number}"),
        });
        PathBuf::from(name)
    };
    (0..).map(name).find(|path| path.symlink_metadata().is_err()).unwrap_or_default()
}

/// What the handler `runc` says today, so that the cgroup driver stays what it is.
fn runc_uses_systemd(dump: &DocumentMut) -> bool {
    let of =
        |name: &str| config::handler(dump, name)?.get("options")?.get("SystemdCgroup")?.as_bool();
    of("runc").or_else(|| of(config::default_handler(dump)?)).unwrap_or(false)
}

/// The path of something below the CRI plugin's `containerd`, as [`config::flat`] writes it.
fn path_of(dump: &DocumentMut, below: &str) -> String {
    let section = [3, 2].into_iter().map(config::section).find(|section| {
        dump.get("plugins")
            .and_then(|plugins| plugins.get(section))
            .is_some_and(|section| section.get("containerd").is_some())
    });
    format!("plugins/{}/containerd/{below}", section.unwrap_or_default())
}

fn default_path(dump: &DocumentMut) -> String {
    path_of(dump, DEFAULT)
}

/// Handler `runc` as containerd has it by itself, or had it before it forgot it.
fn runc_lines(before: Option<&DocumentMut>, syntax: i64) -> String {
    let mut lines = format!("[plugins.{:?}.containerd.runtimes.runc]\n", config::section(syntax));
    let Some(before) = before.filter(|before| config::handler(before, "runc").is_some()) else {
        return lines + "runtime_type = \"io.containerd.runc.v2\"\n";
    };
    let runc = path_of(before, "runtimes/runc/");
    for (path, value) in config::flat(before) {
        let Some(key) = path.strip_prefix(&runc).filter(|key| !key.contains('/')) else { continue };
        let is_number = value.parse::<i64>().is_ok() || value == "true" || value.starts_with('[');
        let _ = if is_number {
            writeln!(lines, "{key} = {value}")
        } else {
            writeln!(lines, "{key} = {value:?}")
        };
    }
    lines
}

/// A file of options; one that is there and is not ours stays.
fn put_options(directory: &Directory, path: &Path) -> Result<()> {
    match read(path)? {
        Some(text) if text.starts_with(OPTIONS_MARK) => Ok(()),
        Some(_) => bail!("{} is there, and not by cleat install: move it away", path.display()),
        None => directory.put(
            directory.candidate(path, &format!("{OPTIONS_MARK}\nSystemdCgroup = true\n"))?,
            path,
        ),
    }
}

/// What there is to say about it.
fn remove_options(directory: &Directory, path: &Path) -> Result<Option<String>> {
    match read(path)? {
        Some(text) if text == format!("{OPTIONS_MARK}\nSystemdCgroup = true\n") => {
            directory.remove(path)?;
            Ok(None)
        }
        Some(_) => Ok(Some(format!("{} was changed by hand, and stays", path.display()))),
        None => Ok(None),
    }
}
