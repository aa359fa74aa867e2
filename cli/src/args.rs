//! The command line, of which the man pages and shell completions are made as well.

use clap::{Args, Parser, Subcommand, ValueEnum};
use std::path::PathBuf;

/// See and manage the shims of a containerd node
#[derive(Debug, Parser)]
#[command(
    name = "cleat",
    version,
    after_help = "Examples:
  cleat ps                     all shims of the node, cleat's and Go's
  cleat inspect web-0          one pod's shim in full
  cleat doctor                 is this node fit for cleat?
  cleat run ./bundle           an OCI bundle under the shim, without containerd"
)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// List the shims of this node
    #[command(after_help = "Examples:
  cleat ps
  cleat ps --containers        a line for each container
  cleat ps -o json | jq '.[] | select(.containerd == false) | .pid'

CONTAINERD says whether a containerd (or another client) holds a connection to the shim. PRIVATE
is what the shim costs: its anonymous memory, which nothing else
has. PSS adds its part of the program's file, which all shims share. On a terminal that is too
narrow columns are left out; -w shows all.")]
    Ps(Ps),
    /// Show one shim in full: processes, I/O, events, open calls, last errors
    #[command(after_help = "Examples:
  cleat inspect 4711           by the shim's pid
  cleat inspect a1b2           by the beginning of a container's or sandbox's id
  cleat inspect kube-system/coredns-abc
  cleat inspect web-0 -o json

What a Go shim does about events, I/O and calls it tells nobody; only cleat's shims show it.")]
    Inspect(Inspect),
    /// Watch containers and shims: CPU, memory, I/O
    #[command(
        after_help = "Keys: c CPU, m memory, i I/O, s shim memory, p pid, each again: the other
way round; arrows, page up and down, home and end scroll;
/ filters by any text of a line (enter ends it, escape takes it back); q quits.

Examples:
  cleat top
  cleat top --sort memory
  cleat top --batch --count 3 --interval 1 > top.txt"
    )]
    Top(Top),
    /// Show what shims publish to containerd
    #[command(
        after_help = "Without -f: events that containerd has not acknowledged yet. With -f: these,
and all that follow, until interrupted.

Examples:
  cleat events -f
  cleat events -f -o json | jq -r 'select(.topic == \"/tasks/oom\") | .event.container_id'"
    )]
    Events(Events),
    /// Check whether this node is fit for cleat, and whether anything was left behind
    #[command(
        after_help = "Exit status: 0 all is well (an `ok` line may still have advice), 1 there are
warnings or something could not be looked at, 2 something is broken: no pod can
start, or none on cleat. containerd is asked over its own API, each shim over its socket, each
with a deadline: the whole takes at most half a minute.

Examples:
  cleat doctor
  cleat doctor -o json | jq '.[] | select(.state != \"ok\")'"
    )]
    Doctor(Doctor),
    /// Remove what is provably orphaned
    #[command(after_help = "What is removed, and by which proof:
  socket    a file in the shims' socket directory, older than a minute, and the kernel refuses a
            connection: nobody listens on it, and nobody can any more.
  shim      its bundle directory is gone, nobody is connected to it, and it says itself that it
            has no container (a Go shim: no bundle names its socket).
            It is asked to end by Shutdown, which a shim with a container refuses, and never by a
signal.
  state     a directory of the OCI runtime whose container's first process has ended, whose bundle
            is gone, and whom no shim knows: `runc delete` removes it.
  mount     a rootfs that is mounted in a bundle without config.json, which no process has as its
            root, in whichever mount namespace.
  run       a container whose `cleat run` was killed, and whose process has ended.
Nothing that lives is touched. Each is looked at again before it is removed; sockets under the
lock that a shim's `start` takes.

Examples:
  cleat gc --dry-run
  cleat gc")]
    Gc(Gc),
    /// Run an OCI bundle under the shim, without containerd
    #[command(
        after_help = "The bundle is not written to: the shim gets a copy of its config.json. All
signals but those of job control are passed on to the container's process. When nobody reads
stdout any more, the container is killed (`| head -1`).

Exit status, as docker run's: the process's own, 128 + signal if one has killed it (141: nobody
read stdout), 127 if the program is not in the bundle,
126 if it cannot be executed, 125 if cleat, the shim or the runtime has failed.

If cleat itself is killed by SIGKILL the container lives on, as it would under containerd; `cleat
ps` shows its shim, and --remove ends it.

Examples:
  mkdir -p bundle/rootfs && busybox --install -s bundle/rootfs/bin && (cd bundle && runc spec)
  cleat run ./bundle
  echo hello | cleat run --no-tty ./bundle cat
  cleat run --events --debug ./bundle true
  cleat run --remove --id cleat-4711       kill and remove what a killed `cleat run` has left"
    )]
    Run(Run),
    /// Print, or write, the part of containerd's configuration that makes cleat a runtime
    #[command(
        after_help = "Without --write nothing is changed: the snippet for the containerd that is
found is printed. With it, the snippet is put at the end of containerd's config.toml, between
marks,
or, where containerd 2 imports a directory (`imports`), into a file of its own there. Before that
`containerd config dump` must show the handler, and all else as it was. The first copy
of your file is kept beside it (.before-cleat). What is there already stays as it is; --undo takes
out what is between the marks, and nothing else. containerd must be restarted by you;
pods live on.

Examples:
  cleat install                          print the snippet of a handler `cleat`
  cleat install --as-default             print it so that all new pods use cleat
  cleat install --write --as-default && systemctl restart containerd
  cleat install --write --no-default     keep the handler, give the default back
  cleat install --undo                   take out what --write has put in
  cleat install --runtime-class | kubectl apply -f -"
    )]
    Install(Install),
    /// Print the figures of all shims in Prometheus' text format
    #[command(after_help = "Examples:
  cleat metrics
  cleat metrics --listen 127.0.0.1:9477
  cleat metrics --listen unix:/run/cleat/metrics.sock
  cleat metrics > /var/lib/node_exporter/textfile/cleat.prom")]
    Metrics(Metrics),
    /// Print the completions for a shell, or write the man pages
    #[command(hide = true)]
    Generate(Generate),
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// For people
    #[default]
    Table,
    /// For programs
    Json,
}

#[derive(Debug, Args)]
pub(crate) struct Ps {
    /// A line for each container
    #[arg(short, long)]
    pub(crate) containers: bool,
    /// All columns, however narrow the terminal
    #[arg(short, long)]
    pub(crate) wide: bool,
    /// table or json
    #[arg(short, long, value_enum, default_value_t)]
    pub(crate) output: Format,
}

#[derive(Debug, Args)]
pub(crate) struct Inspect {
    /// Shim's pid, id of a container or sandbox or its beginning, pod's name, or NAMESPACE/POD
    pub(crate) id: String,
    /// table or json
    #[arg(short, long, value_enum, default_value_t)]
    pub(crate) output: Format,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Sort {
    /// CPU time per second
    #[default]
    Cpu,
    /// The container's memory
    Memory,
    /// Bytes of block I/O and of streams per second
    Io,
    /// The shim's memory
    Shim,
    /// The shim's pid
    Pid,
}

#[derive(Debug, Args)]
pub(crate) struct Top {
    /// Seconds between two looks
    #[arg(short, long, default_value_t = 2.0)]
    pub(crate) interval: f64,
    /// By what to sort
    #[arg(short, long, value_enum, default_value_t)]
    pub(crate) sort: Sort,
    /// Print one table after the other, without a terminal
    #[arg(short, long)]
    pub(crate) batch: bool,
    /// Only lines with this text
    #[arg(short, long, default_value = "")]
    pub(crate) filter: String,
    /// End after so many tables; 0: never
    #[arg(short = 'n', long, default_value_t = 0)]
    pub(crate) count: u64,
}

#[derive(Debug, Args)]
pub(crate) struct Events {
    /// Go on until interrupted
    #[arg(short, long)]
    pub(crate) follow: bool,
    /// table or json (a line for each event)
    #[arg(short, long, value_enum, default_value_t)]
    pub(crate) output: Format,
}

#[derive(Debug, Args)]
pub(crate) struct Doctor {
    /// Only these checks, by their names: the exit status is theirs
    #[arg(long, value_delimiter = ',')]
    pub(crate) only: Vec<String>,
    /// table or json
    #[arg(short, long, value_enum, default_value_t)]
    pub(crate) output: Format,
    #[command(flatten)]
    pub(crate) places: Places,
}

/// containerd's configuration of a node.
pub(crate) const CONFIG: &str = "/etc/containerd/config.toml";
/// containerd's state directory of a node.
pub(crate) const STATE: &str = "/run/containerd";

/// Where things are, if not where everybody has them.
#[derive(Clone, Debug, Args)]
pub(crate) struct Places {
    /// containerd's configuration
    #[arg(long, default_value = CONFIG)]
    pub(crate) config: PathBuf,
    /// containerd's socket
    #[arg(long, default_value = "/run/containerd/containerd.sock")]
    pub(crate) address: PathBuf,
    /// containerd's state directory. With another one than the node's, doctor speaks of its shims
    /// only
    #[arg(long, default_value = STATE)]
    pub(crate) state: PathBuf,
    /// The shims' socket directory
    #[arg(long, default_value = "/run/containerd/s")]
    pub(crate) sockets: PathBuf,
}

#[derive(Debug, Args)]
pub(crate) struct Gc {
    /// Say what would be removed
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// table or json
    #[arg(short, long, value_enum, default_value_t)]
    pub(crate) output: Format,
    #[command(flatten)]
    pub(crate) places: Places,
}

#[derive(Debug, Args)]
pub(crate) struct Run {
    /// The container's id [default: cleat-PID]
    #[arg(long)]
    pub(crate) id: Option<String>,
    /// The shim: a path, or a name that PATH leads to
    #[arg(long, default_value = "containerd-shim-cleat-v2")]
    pub(crate) shim: PathBuf,
    /// The OCI runtime
    #[arg(long, default_value = "runc")]
    pub(crate) runtime: String,
    /// Give it a terminal though config.json does not
    #[arg(short, long, conflicts_with = "no_tty")]
    pub(crate) tty: bool,
    /// Give it none though config.json does
    #[arg(long)]
    pub(crate) no_tty: bool,
    /// Print the events that the shim publishes, on stderr
    #[arg(long)]
    pub(crate) events: bool,
    /// Print the shim's log, on stderr
    #[arg(long)]
    pub(crate) debug: bool,
    /// As `docker run` has it; the container is always removed at its end
    #[arg(long, hide = true)]
    pub(crate) rm: bool,
    /// Kill and remove the container --id, left by a `cleat run` that was killed; with a bundle,
    /// run that then
    #[arg(long, requires = "id")]
    pub(crate) remove: bool,
    /// The bundle: a directory with config.json
    #[arg(required_unless_present = "remove")]
    pub(crate) bundle: Option<PathBuf>,
    /// What to run instead of config.json's process.args
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    pub(crate) arguments: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct Install {
    /// New pods without a RuntimeClass use it (default_runtime_name)
    #[arg(long, conflicts_with = "undo")]
    pub(crate) as_default: bool,
    /// They use what they used before --as-default; with --write
    #[arg(long, conflicts_with_all = ["as_default", "undo"])]
    pub(crate) no_default: bool,
    /// Pods may set cleat's annotations (io.containerd.cleat.*): docs/io.md says what they can do
    #[arg(long, conflicts_with = "undo")]
    pub(crate) pod_annotations: bool,
    /// Print the RuntimeClass for Kubernetes
    #[arg(long, conflicts_with_all = ["write", "undo"])]
    pub(crate) runtime_class: bool,
    /// Edit containerd's configuration
    #[arg(long, conflicts_with = "undo")]
    pub(crate) write: bool,
    /// Take out what --write has put in
    #[arg(long)]
    pub(crate) undo: bool,
    /// With --undo: all handlers that --write has put in
    #[arg(long, requires = "undo")]
    pub(crate) all: bool,
    /// Name of the handler
    #[arg(long, default_value = "cleat")]
    pub(crate) handler: String,
    /// The shim [default: where PATH leads]
    #[arg(long)]
    pub(crate) shim: Option<PathBuf>,
    /// The handler uses systemd's cgroup driver
    #[arg(long)]
    pub(crate) systemd_cgroup: bool,
    /// containerd's program
    #[arg(long, default_value = "containerd")]
    pub(crate) containerd: PathBuf,
    /// containerd's configuration
    #[arg(long, default_value = CONFIG)]
    pub(crate) config: PathBuf,
}

#[derive(Debug, Args)]
pub(crate) struct Metrics {
    /// Serve HTTP there: `unix:PATH` or `ADDRESS:PORT`
    #[arg(long)]
    pub(crate) listen: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct Generate {
    #[command(subcommand)]
    pub(crate) what: Generated,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Generated {
    /// Completions for a shell
    Completion {
        /// Which one
        shell: clap_complete::Shell,
    },
    /// What `cleat inspect` may be asked for: pods, containers, pids of shims
    Ids,
    /// Man pages, into a directory
    Man {
        /// The directory
        directory: PathBuf,
    },
}
