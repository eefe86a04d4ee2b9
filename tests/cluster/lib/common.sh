# shellcheck shell=bash
# Names, paths, messages and locks that every other part uses.

here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cache=${XDG_CACHE_HOME:-${HOME:?neither XDG_CACHE_HOME nor HOME is set: set one}/.cache}/lockstep
node_numbers=(1 2 3)

log() { # MESSAGE…
  local elapsed=$((${EPOCHREALTIME/[.,]/} - started))
  printf '[%3d.%ds] %s\n' $((elapsed / 1000000)) $((elapsed / 100000 % 10)) "$*" >&2
}
started=${EPOCHREALTIME/[.,]/}

die() { # MESSAGE…
  printf '%s: %s\n' "${0##*/}" "$*" >&2
  exit 1
}

# Everything that a cluster owns on the machine is named after its id, so that
# two clusters never meet and leftovers can be told from what is foreign.
use_id() { # ID
  [[ $1 =~ ^[a-z0-9]{1,8}$ ]] || die "id '$1' is not 1 to 8 lower-case letters and digits: choose another"
  id=$1
  state=$cache/cluster/$id # mode 700: it holds the cluster's keys
  group=lockstep-$id       # the cgroup that all processes are in
  host_link=ls-$id         # the one network device on the host
}

require_root() {
  [[ $EUID -eq 0 ]] || die "needs root, for namespaces and cgroups: run it as root (sudo -E $0 …), or start a docker server so that kind can be used"
}

until_true() { # SECONDS COMMAND…: whether COMMAND succeeded within the time
  local deadline=$((${EPOCHREALTIME/[.,]/} + $1 * 1000000))
  shift
  until "$@"; do
    ((${EPOCHREALTIME/[.,]/} < deadline)) || return 1
    sleep 0.05
  done
}

# Locks are files that stay; their descriptors (8 and 9) must be closed in
# whatever outlives this program, or the lock would be held for ever.
lock_id() {
  mkdir -p "$cache/cluster"
  exec 9>>"$cache/cluster/$id.lock"
  flock 9
}

unlock_id() { exec 9>&-; }

require_files() {
  [[ -s $state/provider ]] || die "there is no cluster '$id': start it with: cluster up --id $id"
  provider=$(<"$state/provider")
}

# Files may be of a start that failed, or outlast the processes, as on a machine
# that was started again.
require_cluster() {
  require_files
  [[ -e $state/ready ]] || die "cluster '$id' did not start to the end: start it again with: cluster up --id $id"
  [[ $provider != local ]] || control_pid >/dev/null
}
