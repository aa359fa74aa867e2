//! containerd's program and its configuration.

use anyhow::{Context, Result, bail};
use std::{
    path::{Path, PathBuf},
    process::Command,
};
use toml_edit::{DocumentMut, Item, Table};

/// Major and minor version of containerd.
pub(crate) type Version = (u32, u32);

/// `containerd --version`: the number, and the text.
pub(crate) fn version(program: &Path) -> Result<(Version, String)> {
    let output = Command::new(program)
        .arg("--version")
        .output()
        .with_context(|| format!("run {} --version", program.display()))?;
    let text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    let number = text.split_whitespace().nth(2).unwrap_or_default().trim_start_matches('v');
    let mut parts = number.split(|c: char| !c.is_ascii_digit()).map(str::parse);
    match (parts.next(), parts.next()) {
        (Some(Ok(major)), Some(Ok(minor))) => Ok(((major, minor), number.to_owned())),
        _ => bail!("{} --version answers {text:?}", program.display()),
    }
}

/// What containerd makes of a configuration: all values, defaults too.
pub(crate) fn dump(program: &Path, config: &Path) -> Result<DocumentMut> {
    let output = Command::new(program).arg("--config").arg(config).args(["config", "dump"]).output();
    let output = output.with_context(|| format!("run {} config dump", program.display()))?;
    if !output.status.success() {
        bail!(
            "containerd does not accept {}: {}",
            config.display(),
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    String::from_utf8_lossy(&output.stdout).parse().context("parse the output of containerd config dump")
}

/// The CRI plugin's section that has the runtimes, for a file of this version.
pub(crate) fn section(version: i64) -> &'static str {
    if version >= 3 { "io.containerd.cri.v1.runtime" } else { "io.containerd.grpc.v1.cri" }
}

/// `plugins.SECTION.containerd` of a document, whichever section it has.
pub(crate) fn cri(document: &DocumentMut) -> Option<&Item> {
    let plugins = document.get("plugins")?;
    [3, 2].into_iter().find_map(|version| plugins.get(section(version))?.get("containerd"))
}

/// Names and shims of the handlers that are configured.
pub(crate) fn handlers(document: &DocumentMut) -> Vec<(String, String)> {
    let runtimes = cri(document).and_then(|cri| cri.get("runtimes")).and_then(Item::as_table_like);
    let handler = |(name, handler): (&str, &Item)| {
        let text = |key: &str| handler.get(key).and_then(Item::as_str).filter(|text| !text.is_empty());
        (name.to_owned(), text("runtime_path").or(text("runtime_type")).unwrap_or_default().to_owned())
    };
    runtimes.map(|runtimes| runtimes.iter().map(handler).collect()).unwrap_or_default()
}

/// The default handler, if none of this name is configured: the CRI plugin does not start then.
pub(crate) fn missing_default(dump: &DocumentMut) -> Option<String> {
    let default = cri(dump)?.get("default_runtime_name")?.as_str()?;
    (!handlers(dump).iter().any(|(name, _)| name == default)).then(|| default.to_owned())
}

/// A table below a table, made where it is missing.
pub(crate) fn descend<'a>(table: &'a mut Table, name: &str) -> Result<&'a mut Table> {
    let item = table.entry(name).or_insert_with(|| {
        let mut table = Table::new();
        // Without a line of its own: only its children have one.
        table.set_implicit(true);
        Item::Table(table)
    });
    item.as_table_mut().with_context(|| format!("{name} is no table of its own; edit this file by hand"))
}

/// Where a program is: the path itself, or where PATH leads.
pub(crate) fn find_program(name: &Path) -> Option<PathBuf> {
    if name.components().count() > 1 {
        return name.exists().then(|| name.to_owned());
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).map(|directory| directory.join(name)).find(|path| path.is_file())
}
