//! containerd's program and its configuration.

use anyhow::{Context, Result, bail};
use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};
use toml_edit::{DocumentMut, Item, TableLike, Value};

/// Major and minor version of containerd.
pub(crate) type Version = (u32, u32);

/// How long a program may take to say what it is asked.
const PATIENCE: Duration = Duration::from_secs(20);

/// Output of a program that is killed if it does not end in time. Its status, stdout, stderr.
pub(crate) fn output(command: &mut Command) -> Result<(std::process::ExitStatus, String, String)> {
    let name = command.get_program().to_string_lossy().into_owned();
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("run {name}"))?;
    let read = |stream: Option<Box<dyn std::io::Read + Send>>| {
        std::thread::spawn(move || {
            let mut text = Vec::new();
            if let Some(mut stream) = stream {
                let _ = stream.read_to_end(&mut text);
            }
            String::from_utf8_lossy(&text).into_owned()
        })
    };
    let stdout = read(child.stdout.take().map(|stream| Box::new(stream) as _));
    let stderr = read(child.stderr.take().map(|stream| Box::new(stream) as _));
    let end = Instant::now() + PATIENCE;
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if Instant::now() > end {
            // Not waited for: what hangs in the kernel does not even die.
            let _ = child.kill();
            bail!("{name}: no answer within {} s", PATIENCE.as_secs());
        }
        std::thread::sleep(Duration::from_millis(2));
    };
    Ok((status, stdout.join().unwrap_or_default(), stderr.join().unwrap_or_default()))
}

/// `containerd --version`: the number, and the text.
pub(crate) fn version(program: &Path) -> Result<(Version, String)> {
    let (_, text, _) = output(Command::new(program).arg("--version"))?;
    let text = text.trim();
    let number = text.split_whitespace().nth(2).unwrap_or_default().trim_start_matches('v');
    match parse_version(number) {
        Some(version) => Ok((version, number.to_owned())),
        None => bail!("{} --version answers {text:?}", program.display()),
    }
}

/// `2.1.9+unknown` → (2, 1).
pub(crate) fn parse_version(number: &str) -> Option<Version> {
    let mut parts =
        number.trim_start_matches('v').split(|c: char| !c.is_ascii_digit()).map(str::parse);
    match (parts.next(), parts.next()) {
        (Some(Ok(major)), Some(Ok(minor))) => Some((major, minor)),
        _ => None,
    }
}

/// What containerd makes of a configuration: all values, defaults too. Of one that is not there:
/// the defaults.
pub(crate) fn dump(program: &Path, config: &Path) -> Result<DocumentMut> {
    let mut command = Command::new(program);
    // As its service does: 1.6 looks there for imports with wildcards.
    let config = std::path::absolute(config)?;
    command.current_dir("/");
    if config.exists() {
        command.arg("--config").arg(&config).args(["config", "dump"]);
    } else {
        command.args(["config", "default"]);
    }
    let (status, stdout, stderr) = output(&mut command)?;
    if !status.success() {
        bail!("containerd does not accept {}: {}", config.display(), stderr.trim());
    }
    stdout.parse().context("parse the output of containerd config dump")
}

/// The CRI plugin's section that has the runtimes, for a file of this version.
pub(crate) fn section(version: i64) -> &'static str {
    match version {
        3.. => "io.containerd.cri.v1.runtime",
        2 => "io.containerd.grpc.v1.cri",
        _ => "cri",
    }
}

/// `plugins.SECTION.containerd` of a document, whichever section it has.
pub(crate) fn cri(document: &DocumentMut) -> Option<&Item> {
    let plugins = document.get("plugins")?;
    [3, 2, 1].into_iter().find_map(|version| plugins.get(section(version))?.get("containerd"))
}

/// Version of a file's syntax: a file that says none has 1, an empty one the newest.
pub(crate) fn syntax(document: &DocumentMut, containerd: Version) -> i64 {
    let newest = if containerd.0 >= 2 { 3 } else { 2 };
    let said = document.get("version").and_then(Item::as_integer);
    said.unwrap_or(if document.is_empty() { newest } else { 1 })
}

/// Whether the CRI plugin is switched off, so that nobody reads handlers.
pub(crate) fn has_no_cri(document: &DocumentMut) -> bool {
    const NAMES: [&str; 4] = [
        "cri",
        "io.containerd.grpc.v1.cri",
        "io.containerd.cri.v1.runtime",
        "io.containerd.cri.v1.images",
    ];
    let disabled = document.get("disabled_plugins").and_then(Item::as_array);
    disabled
        .is_some_and(|list| list.iter().filter_map(Value::as_str).any(|name| NAMES.contains(&name)))
}

/// Names of the handlers that are configured, with the shim of each: its path, or its type.
pub(crate) fn handlers(document: &DocumentMut) -> Vec<(String, String)> {
    let runtimes = cri(document).and_then(|cri| cri.get("runtimes")).and_then(Item::as_table_like);
    let handler = |(name, handler): (&str, &Item)| {
        let text =
            |key: &str| handler.get(key).and_then(Item::as_str).filter(|text| !text.is_empty());
        (
            name.to_owned(),
            text("runtime_path").or(text("runtime_type")).unwrap_or_default().to_owned(),
        )
    };
    runtimes.map(|runtimes| runtimes.iter().map(handler).collect()).unwrap_or_default()
}

/// A handler's table.
pub(crate) fn handler<'a>(document: &'a DocumentMut, name: &str) -> Option<&'a dyn TableLike> {
    cri(document)?.get("runtimes")?.get(name)?.as_table_like()
}

/// The default handler's name.
pub(crate) fn default_handler(dump: &DocumentMut) -> Option<&str> {
    cri(dump)?.get("default_runtime_name")?.as_str()
}

/// The default handler, if none of this name is configured: the CRI plugin does not start then.
pub(crate) fn missing_default(dump: &DocumentMut) -> Option<String> {
    let default = default_handler(dump)?;
    (!handlers(dump).iter().any(|(name, _)| name == default)).then(|| default.to_owned())
}

/// The patterns of `imports`, and the files to which they lead today, in containerd's order.
/// `config` is the file that has them.
pub(crate) fn imports(
    document: &DocumentMut,
    config: &Path,
    containerd: Version,
) -> Vec<(PathBuf, Vec<PathBuf>)> {
    let config = std::path::absolute(config).unwrap_or_else(|_| config.to_owned());
    let directory = config.parent().unwrap_or(Path::new("/"));
    let patterns = document.get("imports").and_then(Item::as_array);
    let patterns = patterns.into_iter().flatten().filter_map(Value::as_str);
    patterns
        .map(|pattern| {
            // containerd 1.6 looks from where it runs.
            let is_strange = containerd < (1, 7) && pattern.contains('*');
            let pattern = if is_strange { Path::new("/") } else { directory }.join(pattern);
            let files = expand(&pattern);
            (pattern, files)
        })
        .collect()
}

/// Files that a pattern with wildcards in its last part matches, sorted.
fn expand(pattern: &Path) -> Vec<PathBuf> {
    let (Some(directory), Some(name)) =
        (pattern.parent(), pattern.file_name().and_then(|name| name.to_str()))
    else {
        return Vec::new();
    };
    if !name.contains(['*', '?']) {
        return if pattern.exists() { vec![pattern.to_owned()] } else { Vec::new() };
    }
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let mut files: Vec<PathBuf> = entries
        .filter(|entry| entry.file_name().to_str().is_some_and(|file| matches(name, file)))
        .map(|entry| entry.path())
        .collect();
    files.sort();
    files
}

/// Whether a name fits a pattern with `*` and `?`.
fn matches(pattern: &str, name: &str) -> bool {
    let mut letters = pattern.chars();
    match letters.next() {
        None => name.is_empty(),
        Some('*') => {
            let rest = letters.as_str();
            name.char_indices()
                .map(|(at, _)| at)
                .chain([name.len()])
                .any(|at| matches(rest, &name[at..]))
        }
        Some(letter) => {
            let mut of_name = name.chars();
            of_name.next().is_some_and(|c| {
                (letter == '?' || letter == c) && matches(letters.as_str(), of_name.as_str())
            })
        }
    }
}

/// Each value of a configuration by its path; what is empty, zero or false is left out, since
/// containerd takes a missing one for it.
pub(crate) fn flat(document: &DocumentMut) -> BTreeMap<String, String> {
    fn walk(path: &str, item: &Item, found: &mut BTreeMap<String, String>) {
        if let Some(table) = item.as_table_like() {
            for (key, item) in table.iter() {
                walk(&format!("{path}/{key}"), item, found);
            }
        } else if let Some(value) = item.as_value() {
            let text = match value {
                Value::String(text) => text.value().clone(),
                other => other.clone().decorated("", "").to_string(),
            };
            if !["", "0", "false", "[]", "{}"].contains(&text.as_str()) {
                found.insert(path.to_owned(), text);
            }
        }
    }
    let mut found = BTreeMap::new();
    for (key, item) in document.iter().filter(|(key, _)| *key != "imports") {
        walk(key, item, &mut found);
    }
    found
}

/// Where a program is: the path itself, or where PATH leads.
pub(crate) fn find_program(name: &Path) -> Option<PathBuf> {
    find_program_in(name, &std::env::var_os("PATH").unwrap_or_default())
}

/// The same in another PATH.
pub(crate) fn find_program_in(name: &Path, path: &std::ffi::OsStr) -> Option<PathBuf> {
    if name.components().count() > 1 {
        return name.exists().then(|| name.to_owned());
    }
    std::env::split_paths(path).map(|directory| directory.join(name)).find(|path| path.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns() {
        assert!(
            matches("*.toml", "a.toml") && matches("a?c*", "abc") && !matches("*.toml", "a.tom")
        );
        assert_eq!(parse_version("2.1.9+unknown"), Some((2, 1)));
        assert_eq!(parse_version("1.6.20~ds1"), Some((1, 6)));
    }
}
