# shellcheck shell=bash
# What the two inits (PID 1 of the control plane and of each node) share.
# Afterwards all that they need is under /run/lockstep, whatever the paths
# outside are:  state/  the cluster's folder,  bin/  the programs.

init_state=/run/lockstep/state

# Mounts that nobody else sees, so that the usual paths of containerd, the
# kubelet and the rest can stay as they are and vanish with this namespace.
init_mounts() { # STATE [DISK:PATH…]: binds folders of the node's disk
  local state=$1 run=$1/mnt program pair
  shift
  mount -t tmpfs -o mode=755 tmpfs "$run"
  mkdir -p "$run/lockstep/state" "$run/lockstep/bin" "$run/lock" "$run/netns"
  mount --bind "$state" "$run/lockstep/state"
  for program in kubernetes coredns local-path-provisioner; do
    touch "$run/lockstep/bin/$program"
    mount --bind "$(readlink -f "$state/bin/$program")" "$run/lockstep/bin/$program"
  done
  ln -s kubernetes "$run/lockstep/bin/kubectl"
  for pair in "$@"; do
    mkdir -p "${pair%%:*}" "${pair#*:}"
    mount --bind "${pair%%:*}" "${pair#*:}"
  done
  mount --no-mtab --move "$run" /run # its record of mounts is not there yet
  mount -t tmpfs -o mode=1777 tmpfs /tmp
  mount -t proc proc /proc
  PATH=/run/lockstep/bin:$PATH
}

init_wait_for_device() { # DEVICE
  until [[ -e /proc/sys/net/ipv4/conf/$1 ]]; do sleep 0.02; done
}

# Keeps a program running, as systemd would, unless it is to be stopped.
init_supervise() { # NAME COMMAND…
  local name=$1 log
  log=$logs/$name.log
  shift
  while :; do
    while [[ -e /run/lockstep/$name.stopped ]]; do sleep 0.1; done
    "$@" >>"$log" 2>&1 </dev/null &
    echo $! >"/run/lockstep/$name.pid"
    wait $! || true
    printf '%(%FT%T)T %s ended; starting it again\n' -1 "$name" >>"$log"
    sleep 0.5
  done
}

# PID 1 must not end, and reaps what is orphaned.
init_for_ever() {
  while :; do
    wait || true
    sleep 1
  done
}
