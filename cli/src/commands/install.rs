//! `cleat install`.

use crate::{
    args::Install,
    config::{self, Version},
    output,
};
use anyhow::{Context, Result, bail};
use std::{
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
};
use toml_edit::{DocumentMut, Item, Table, value};

const RUNTIME_TYPE: &str = "io.containerd.cleat.v2";
const SHIM: &str = "containerd-shim-cleat-v2";
/// Stands before a default_runtime_name of ours, with what stood there before.
const BEFORE: &str = "# before cleat: ";
/// Stands before a handler `runc` of ours.
const RUNC_IS_OURS: &str =
    "\n# by cleat install: containerd 1.6 forgets its own handler once the file names another one\n";

pub(super) fn run(command: Install) -> Result<ExitCode> {
    check_name(&command.handler)?;
    if command.runtime_class {
        let name = &command.handler;
        output::print(&[format!(
            "apiVersion: node.k8s.io/v1\nkind: RuntimeClass\nmetadata:\n  name: {name}\nhandler: {name}"
        )])?;
        return Ok(ExitCode::SUCCESS);
    }
    if command.undo {
        return undo(&command);
    }
    let shim = shim(&command)?;
    let (version, text) = match config::version(&command.containerd) {
        Ok(version) => version,
        Err(e) if command.write => return Err(e),
        Err(e) => {
            eprintln!("cleat: {e:#}; the snippet is for containerd 2");
            ((2, 0), "2".to_owned())
        }
    };
    let present = read(&command.config);
    let wants_runc = present.as_ref().is_ok_and(|present| would_forget_runc(present, &command, version));
    let mut document = if command.write { present? } else { DocumentMut::new() };
    let wants_systemd = command.systemd_cgroup || runc_uses_systemd(&command);
    edit(&mut document, &command, version, wants_systemd)?;
    if wants_runc {
        keep_runc(&mut document)?;
    }
    let options = (wants_systemd && version.0 < 2).then(|| options_file(&command.config));
    if !command.write {
        let mut lines = vec![
            format!("# for containerd {text}, in {}:", command.config.display()),
            document.to_string().trim().to_owned(),
        ];
        if let Some(path) = options {
            lines.extend([
                String::new(),
                format!("# and in {}:", path.display()),
                "SystemdCgroup = true".to_owned(),
            ]);
        }
        output::print(&lines)?;
        return Ok(ExitCode::SUCCESS);
    }
    if let Some(path) = &options {
        fs::write(path, "# by cleat install: options of the handler\nSystemdCgroup = true\n")
            .with_context(|| format!("write {}", path.display()))?;
    }
    replace(&command, &document, Some(&command.handler))?;
    output::print(&[
        format!(
            "handler {} uses {} ({} was checked with containerd {text})",
            command.handler,
            shim.display(),
            command.config.display()
        ),
        match command.as_default {
            true => "new pods without a RuntimeClass use it".to_owned(),
            false => format!(
                "pods use it by a RuntimeClass: cleat install --runtime-class --handler {} | kubectl apply -f -",
                command.handler
            ),
        },
        "restart containerd to load it: systemctl restart containerd (pods live on)".to_owned(),
    ])?;
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

fn read(path: &Path) -> Result<DocumentMut> {
    match fs::read_to_string(path) {
        Ok(text) => text.parse().with_context(|| format!("parse {}", path.display())),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(DocumentMut::new()),
        Err(e) => Err(e).with_context(|| format!("read {}", path.display())),
    }
}

/// What the handler `runc` says today, so that the cgroup driver stays what it is.
fn runc_uses_systemd(command: &Install) -> bool {
    let dump = config::dump(&command.containerd, &command.config).ok();
    let of_runc = |dump: &DocumentMut| {
        config::cri(dump)?.get("runtimes")?.get("runc")?.get("options")?.get("SystemdCgroup")?.as_bool()
    };
    dump.as_ref().and_then(of_runc).unwrap_or(false)
}

fn options_file(config: &Path) -> PathBuf {
    config.with_file_name("cleat.toml")
}

fn edit(document: &mut DocumentMut, command: &Install, containerd: Version, systemd: bool) -> Result<()> {
    if document.is_empty() {
        document.insert("version", value(if containerd.0 >= 2 { 3 } else { 2 }));
    }
    let version = document.get("version").and_then(Item::as_integer).unwrap_or(1);
    if version < 2 {
        bail!("{} is of version 1: `containerd config migrate` makes a newer one", command.config.display());
    }
    let plugin = config::descend(document.as_table_mut(), "plugins")?;
    let plugin = config::descend(plugin, config::section(version))?;
    let cri = config::descend(plugin, "containerd")?;
    if command.as_default {
        set_default(cri, &command.handler);
    }
    let runtimes = config::descend(cri, "runtimes")?;
    if runtimes.get(&command.handler).is_some_and(|handler| !is_ours(handler)) {
        bail!("a handler {:?} is there and is not cleat's; name another one with --handler", command.handler);
    }
    let mut handler = Table::new();
    handler.insert("runtime_type", value(RUNTIME_TYPE));
    if let Some(shim) = &command.shim {
        handler.insert("runtime_path", value(shim.to_string_lossy().into_owned()));
    }
    handler.insert("pod_annotations", value(toml_edit::Array::from_iter(["io.containerd.cleat.*"])));
    if systemd {
        let mut options = Table::new();
        if containerd.0 >= 2 {
            options.insert("SystemdCgroup", value(true));
        } else {
            // containerd 1.x hands on the options of no runtime but runc; it names a file.
            options.insert("ConfigPath", value(options_file(&command.config).to_string_lossy().into_owned()));
        }
        handler.insert("options", Item::Table(options));
    }
    runtimes.insert(&command.handler, Item::Table(handler));
    Ok(())
}

/// containerd 1.6 has a handler `runc` of its own, which is also its default, only while the file names no handler at all: with another one alone the
/// CRI plugin does not start (pkg/cri/config/config.go: ValidatePluginConfig).
fn would_forget_runc(present: &DocumentMut, command: &Install, containerd: Version) -> bool {
    let named = config::handlers(present);
    containerd < (1, 7) && named.iter().all(|(name, _)| *name == command.handler)
}

fn keep_runc(document: &mut DocumentMut) -> Result<()> {
    let plugin = config::descend(document.as_table_mut(), "plugins")?;
    let cri = config::descend(config::descend(plugin, config::section(2))?, "containerd")?;
    let mut runc = Table::new();
    runc.decor_mut().set_prefix(RUNC_IS_OURS);
    runc.insert("runtime_type", value("io.containerd.runc.v2"));
    config::descend(cri, "runtimes")?.insert("runc", Item::Table(runc));
    Ok(())
}

fn is_our_runc(handler: &Item) -> bool {
    let prefix = handler.as_table().and_then(|table| table.decor().prefix()?.as_str());
    prefix.is_some_and(|prefix| prefix.trim() == RUNC_IS_OURS.trim())
}

fn is_ours(handler: &Item) -> bool {
    handler.get("runtime_type").and_then(Item::as_str) == Some(RUNTIME_TYPE)
}

fn set_default(cri: &mut Table, handler: &str) {
    const KEY: &str = "default_runtime_name";
    let before = cri.get(KEY).and_then(Item::as_str).unwrap_or_default().to_owned();
    if before == handler {
        return;
    }
    cri.insert(KEY, value(handler));
    if let Some(mut key) = cri.key_mut(KEY) {
        key.leaf_decor_mut().set_prefix(format!("{BEFORE}{before}\n"));
    }
}

fn undo(command: &Install) -> Result<ExitCode> {
    let mut document = read(&command.config)?;
    let version = document.get("version").and_then(Item::as_integer).unwrap_or(1);
    let plugin = config::descend(document.as_table_mut(), "plugins")?;
    let cri = config::descend(config::descend(plugin, config::section(version))?, "containerd")?;
    let mut changed = false;
    let default = cri.get("default_runtime_name").and_then(Item::as_str);
    if default == Some(&command.handler) {
        let prefix = cri
            .key("default_runtime_name")
            .and_then(|key| key.leaf_decor().prefix()?.as_str().map(str::to_owned));
        let before =
            prefix.unwrap_or_default().lines().find_map(|line| line.strip_prefix(BEFORE).map(str::to_owned));
        cri.remove("default_runtime_name");
        if let Some(before) = before.filter(|before| !before.is_empty()) {
            cri.insert("default_runtime_name", value(before));
        }
        changed = true;
    }
    let runtimes = config::descend(cri, "runtimes")?;
    if runtimes.get(&command.handler).is_some_and(is_ours) {
        runtimes.remove(&command.handler);
        changed = true;
    }
    // Not while a third handler is there.
    if changed && runtimes.len() == 1 && runtimes.get("runc").is_some_and(is_our_runc) {
        runtimes.remove("runc");
    }
    if !changed {
        output::print(&[format!("{} has nothing of cleat", command.config.display())])?;
        return Ok(ExitCode::SUCCESS);
    }
    prune(document.as_table_mut());
    replace(command, &document, None)?;
    let _ = fs::remove_file(options_file(&command.config));
    output::print(&[
        format!("{} has nothing of cleat any more", command.config.display()),
        "restart containerd to load it; running pods keep their shims".to_owned(),
    ])?;
    Ok(ExitCode::SUCCESS)
}

/// Removes tables in which nothing is left. containerd takes a missing one for an empty one.
fn prune(table: &mut Table) {
    let empty: Vec<String> = table
        .iter_mut()
        .filter_map(|(key, item)| {
            let child = item.as_table_mut()?;
            prune(child);
            child.is_empty().then(|| key.get().to_owned())
        })
        .collect();
    for key in empty {
        table.remove(&key);
    }
}

/// Puts the new file in the place of the old one, if containerd accepts it and, where a handler is wanted, knows it.
fn replace(command: &Install, document: &DocumentMut, handler: Option<&str>) -> Result<()> {
    let path = &command.config;
    let directory = path.parent().context("the configuration has no directory")?;
    fs::create_dir_all(directory).with_context(|| format!("make {}", directory.display()))?;
    let candidate = path.with_extension("toml.cleat");
    let attempt = || -> Result<()> {
        fs::write(&candidate, document.to_string())
            .with_context(|| format!("write {}", candidate.display()))?;
        let dump = config::dump(&command.containerd, &candidate)?;
        if let Some(handler) = handler
            && !config::handlers(&dump).iter().any(|(name, _)| name == handler)
        {
            bail!(
                "containerd accepts the file but does not see the handler: is its CRI plugin disabled (disabled_plugins)?"
            );
        }
        if let Some(default) = config::missing_default(&dump) {
            bail!(
                "containerd accepts the file but its CRI plugin would not start: no handler {default:?}, which is the default"
            );
        }
        if path.exists() {
            let kept = path.with_extension("toml.before-cleat");
            fs::copy(path, &kept).with_context(|| format!("keep a copy in {}", kept.display()))?;
            fs::set_permissions(&candidate, fs::metadata(path)?.permissions())?;
        }
        fs::rename(&candidate, path).with_context(|| format!("replace {}", path.display()))
    };
    attempt().inspect_err(|_| {
        let _ = fs::remove_file(&candidate);
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::{Arguments, Command};
    use clap::Parser;

    fn install(words: &[&str]) -> Install {
        let Command::Install(install) =
            Arguments::parse_from([&["cleat", "install"], words].concat()).command
        else {
            panic!()
        };
        install
    }

    #[test]
    fn what_was_there_stays_and_comes_back() {
        let before = "version = 3 # mine\n\n[plugins.'io.containerd.cri.v1.runtime'.containerd]\ndefault_runtime_name = \"runc\"\n\n\
            [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc] # keep\nruntime_type = \"io.containerd.runc.v2\"\n";
        let mut document: DocumentMut = before.parse().unwrap();
        edit(&mut document, &install(&["--as-default"]), (2, 1), true).unwrap();
        let text = document.to_string();
        assert!(
            text.contains("# mine")
                && text.contains("# keep")
                && text.contains("# before cleat: runc\ndefault_runtime_name = \"cleat\""),
            "{text}"
        );
        assert!(text.contains("[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.cleat.options]\nSystemdCgroup = true"), "{text}");
        // Twice is as once.
        let mut again: DocumentMut = text.parse().unwrap();
        edit(&mut again, &install(&["--as-default"]), (2, 1), true).unwrap();
        assert_eq!(again.to_string(), text);
    }

    #[test]
    fn containerd_1_6_keeps_its_own_handler() {
        let before = "version = 2\n[plugins.'io.containerd.grpc.v1.cri']\nsandbox_image = 'x'\n";
        let mut document: DocumentMut = before.parse().unwrap();
        let command = install(&[]);
        assert!(!would_forget_runc(&document, &command, (1, 7)));
        assert!(would_forget_runc(&document, &command, (1, 6)));
        edit(&mut document, &command, (1, 6), false).unwrap();
        keep_runc(&mut document).unwrap();
        let text = document.to_string();
        // As it is read from the file again.
        let document: DocumentMut = text.parse().unwrap();
        assert_eq!(config::handlers(&document).len(), 2, "{text}");
        let runtimes = config::cri(&document).unwrap().get("runtimes").unwrap();
        assert!(is_our_runc(runtimes.get("runc").unwrap()), "{text}");
        assert!(!would_forget_runc(&document, &command, (1, 6)));
    }

    #[test]
    fn foreign_handlers_and_old_files_are_left_alone() {
        let mut document: DocumentMut =
            "version = 2\n[plugins.'io.containerd.grpc.v1.cri'.containerd.runtimes.kata]\nruntime_type = 'io.containerd.kata.v2'\n".parse().unwrap();
        assert!(edit(&mut document, &install(&["--handler", "kata"]), (1, 7), false).is_err());
        let mut document: DocumentMut = "[plugins.cri]\n".parse().unwrap();
        assert!(edit(&mut document, &install(&[]), (1, 7), false).is_err());
        assert!(check_name("Über").is_err());
    }
}
