//! `cleat generate`: completions and man pages, from the same definitions as the command line.

use crate::{
    args::{Arguments, Generate, Generated},
    node, output,
};
use anyhow::{Context, Result};
use clap::CommandFactory;
use std::process::ExitCode;

pub(super) fn run(command: Generate) -> Result<ExitCode> {
    let mut cleat = Arguments::command().disable_help_subcommand(true);
    match command.what {
        Generated::Completion { shell } => {
            let mut text = Vec::new();
            clap_complete::generate(shell, &mut cleat, "cleat", &mut text);
            let text = String::from_utf8(text).context("a completion is text")?;
            output::print(&[with_ids(shell, &text)])?;
        }
        Generated::Ids => {
            let shims = super::blocking(async { Ok(node::shims().await) })?;
            let mut ids: Vec<String> = shims
                .iter()
                .flat_map(|shim| {
                    let pod = shim.pod.iter().map(|pod| format!("{}/{}", pod.namespace, pod.name));
                    let containers = shim.containers.iter().map(|container| container.id.clone());
                    pod.chain(containers)
                        .chain([shim.id.clone(), shim.pid.to_string()])
                        .collect::<Vec<_>>()
                })
                .collect();
            ids.sort();
            ids.dedup();
            output::print(&ids)?;
        }
        Generated::Man { directory } => {
            clap_mangen::generate_to(cleat, &directory)
                .with_context(|| format!("write man pages into {}", directory.display()))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// The completion of `cleat inspect ID`: clap knows no values that come and go.
fn with_ids(shell: clap_complete::Shell, text: &str) -> String {
    use clap_complete::Shell;
    let text = text.trim_end();
    match shell {
        Shell::Bash => format!(
            "{text}\n\n_cleat_ids() {{\n    _cleat \"$@\"\n    local word=\"${{COMP_WORDS[COMP_CWORD]}}\"\n    if [[ ${{COMP_WORDS[1]}} == inspect && $word != -* && \
             ${{COMP_WORDS[COMP_CWORD-1]}} != -o && ${{COMP_WORDS[COMP_CWORD-1]}} != --output ]]; then\n        \
             COMPREPLY=($(compgen -W \"$(cleat generate ids 2>/dev/null)\" -- \"$word\"))\n    fi\n}}\ncomplete -F _cleat_ids -o nosort -o bashdefault -o default cleat"
        ),
        // The only `id` that stands by itself is inspect's.
        Shell::Zsh => text.replace(
            "':id -- Shim'\\''s pid, id of a container or sandbox or its beginning, pod'\\''s name, or NAMESPACE/POD:_default'",
            "':id:($(cleat generate ids 2>/dev/null))'",
        ),
        Shell::Fish => format!("{text}\ncomplete -c cleat -n '__fish_seen_subcommand_from inspect' -f -a '(cleat generate ids 2>/dev/null)'"),
        _ => text.to_owned(),
    }
}
