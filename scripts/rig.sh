# Sourced by scripts/demo, scripts/chaos and scripts/events, which set $name, $shim and $project first: a private containerd with its own root,
# state, socket and namespace, and what one does with it. All of it goes at the exit.
dir=/run/$name
containerd=
events=
sockets=()

equal() { [ "$1" = "$2" ]; }
contains() { [[ "$1" == *"$2"* ]]; }
until_true() { for _ in $(seq 200); do "$@" >/dev/null 2>&1 && return; sleep 0.05; done; return 1; }
gone() { ! [ -e "/proc/$1" ]; }
C() { timeout -k1 30 ctr -a "$dir/c.sock" -n "$name" "$@"; }
bundle() { echo "$dir/state/io.containerd.runtime.v2.task/$name/$1"; }
init() { cat "$(bundle "$1")/init.pid"; }
# The whole list first: a grep that leaves early would end ctr by SIGPIPE, and pipefail would take that for an answer.
stopped() { ! grep -qE "^$1 .*(RUNNING|CREATED)" <<< "$(C task ls)"; }
no_task() { ! grep -q "^$1 " <<< "$(C task ls)"; }
remove() {
    C task kill -s 9 "$1" >/dev/null 2>&1
    until_true stopped "$1"
    C task delete "$1" >/dev/null 2>&1
    C container delete "$1"
}

# Pids of this rig's shims, daemons only.
shims() {
    local p
    for p in /proc/[0-9]*; do
        if grep -zqx -- "$name" "$p/cmdline" 2>/dev/null && grep -zq 'containerd-shim-' "$p/cmdline" 2>/dev/null; then
            echo "${p#/proc/}"
        fi
    done
}
no_shims() { [ -z "$(shims)" ]; }

# Starts containerd, for the first time or again, and waits until it answers.
start_containerd() {
    mkdir -p "$dir/bin"
    ln -sf "$shim" "$dir/bin/containerd-shim-cleat-v2"
    cat > "$dir/config.toml" <<T
version = 2
root = "$dir/root"
state = "$dir/state"
disabled_plugins = ["io.containerd.grpc.v1.cri", "io.containerd.internal.v1.opt"]
[grpc]
address = "$dir/c.sock"
[ttrpc]
address = "$dir/c.sock.ttrpc"
T
    PATH=$dir/bin:$PATH NOTIFY_SOCKET='' containerd --config "$dir/config.toml" >>"$dir/log" 2>&1 </dev/null &
    containerd=$!
    until_true C version
}

# Whatever there must not be when all is over.
leftovers() {
    local p
    for p in /proc/[0-9]*; do
        [ "${p#/proc/}" = "$containerd" ] && continue
        [ "${p#/proc/}" = "$events" ] && continue
        grep -zqE "^($name|$dir/.*)$" "$p/cmdline" 2>/dev/null && echo "process ${p#/proc/}: $(tr '\0' ' ' < "$p/cmdline")"
    done
    grep -F "$dir/state/" /proc/self/mountinfo
    find "/run/containerd/runc/$name" "$dir/state/io.containerd.runtime.v2.task/$name" -mindepth 1 -maxdepth 1 2>/dev/null
    find /sys/fs/cgroup -mindepth 2 -maxdepth 3 -type d -path "*/$name/*" 2>/dev/null
    for p in "${sockets[@]}"; do [ ! -S "$p" ] || echo "socket $p"; done
}

tidy() {
    local p
    # Chaos may have stopped it.
    [ -z "$containerd" ] || { kill "$containerd"; kill -CONT "$containerd"; } 2>/dev/null
    for p in $events $(shims); do kill -9 "$p" 2>/dev/null; done
    for p in "/run/containerd/runc/$name"/*; do [ ! -e "$p" ] || runc --root "${p%/*}" delete --force "${p##*/}"; done
    rmdir "/run/containerd/runc/$name" 2>/dev/null
    awk -v d="$dir/" 'index($5, d) == 1 {print $5}' /proc/self/mountinfo | sort -r | while read -r p; do umount -l "$p"; done
    find /sys/fs/cgroup -depth -mindepth 1 -maxdepth 3 -type d -path "*/$name*" -exec rmdir {} + 2>/dev/null
    for p in "${sockets[@]}"; do rm -f "$p"; done
    wait 2>/dev/null
    rm -rf "$dir"
}
trap tidy EXIT
