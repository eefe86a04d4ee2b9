# shellcheck shell=bash
# Control groups, of either version. Each process of a cluster is born in a
# cgroup under $group and cannot leave it, so these groups tell which
# processes are the cluster's, whatever became of the files that named them.
# A pid alone would not do: after a restart it may be somebody else's.

cgroup_roots() {
  local root
  if [[ -e /sys/fs/cgroup/cgroup.controllers ]]; then
    echo /sys/fs/cgroup
    return
  fi
  for root in /sys/fs/cgroup/*; do
    # Links are second names, as cpu is of cpu,cpuacct.
    [[ ! -L $root && -e $root/cgroup.procs ]] && echo "$root"
  done
  return 0
}

cgroup_make() { # GROUP
  local root dir file part
  while read -r root; do
    dir=$root
    for part in ${1//\// }; do
      # Version 2: what a group's children may use, it must be told.
      if [[ -e $dir/cgroup.subtree_control && -n $(<"$dir/cgroup.controllers") ]]; then
        sed 's/[^ ]\+/+&/g' "$dir/cgroup.controllers" >"$dir/cgroup.subtree_control" 2>/dev/null ||
          die "cannot pass on the controllers of $dir: run this where that group holds no process itself"
      fi
      mkdir -p "$dir/$part"
      # Version 1: an empty cpuset takes no process.
      for file in cpuset.cpus cpuset.mems; do
        [[ -e $dir/$part/cgroup.clone_children && -e $dir/$part/$file && -z $(<"$dir/$part/$file") ]] &&
          cat "$dir/$file" >"$dir/$part/$file"
      done
      dir=$dir/$part
    done
  done < <(cgroup_roots)
  return 0
}

cgroup_enter() { # GROUP: puts this very shell there
  local root
  while read -r root; do
    echo "$BASHPID" >"$root/$1/cgroup.procs"
  done < <(cgroup_roots)
}

cgroup_dirs() { # GROUP: children first
  local root
  while read -r root; do
    [[ ! -d $root/$1 ]] || find "$root/$1" -depth -type d
  done < <(cgroup_roots)
}

cgroup_pids() { # GROUP
  local dir
  while read -r dir; do
    cat "$dir/cgroup.procs" 2>/dev/null || true # a pod's group may just have gone
  done < <(cgroup_dirs "$1") | sort -un
}

cgroup_has() { # GROUP PID
  [[ -r /proc/$2/cgroup ]] && grep -q ":/$1\(/\|\$\)" "/proc/$2/cgroup"
}

pid_in() { # GROUP FILE: the pid that FILE names, if that is one of GROUP
  local pid
  pid=$(cat "$2" 2>/dev/null) || return 1
  cgroup_has "$1" "$pid" || return 1
  echo "$pid"
}

# Ends all processes of the group and removes it. If INIT is given, it goes
# first and the kernel takes what is in its pid namespace: then the programs
# that wait for it outside end by themselves, and reap what they started.
cgroup_clear() { # GROUP [INIT]
  [[ -n $(cgroup_dirs "$1" | head -n 1) ]] || return 0
  if [[ -n ${2-} ]]; then
    kill -KILL "$2" 2>/dev/null || true
    cgroup_thaw_all "$1" # the frozen die only when they thaw
    until_true 5 cgroup_empty "$1" || true
  fi
  until_true 20 cgroup_kill_all "$1" ||
    die "these processes do not end: $(cgroup_pids "$1" | tr '\n' ' '): look at what holds them"
  until_true 10 cgroup_remove "$1" || die "cannot remove the cgroup $1: look at what holds it"
}

cgroup_empty() { [[ -z $(cgroup_pids "$1") ]]; } # GROUP

cgroup_kill_all() { # GROUP: whether nothing is left
  local pids
  mapfile -t pids < <(cgroup_pids "$1")
  ((${#pids[@]})) || return 0
  kill -KILL "${pids[@]}" 2>/dev/null || true
  cgroup_thaw_all "$1"
  return 1
}

cgroup_remove() { # GROUP
  cgroup_dirs "$1" | xargs -r -n 1 rmdir 2>/dev/null || true
  [[ -z $(cgroup_dirs "$1" | head -n 1) ]]
}

cgroup_thaw_all() { # GROUP
  local dir
  while read -r dir; do
    if [[ -e $dir/freezer.state ]]; then
      echo THAWED >"$dir/freezer.state" || true
    elif [[ -e $dir/cgroup.freeze ]]; then
      echo 0 >"$dir/cgroup.freeze" || true
    fi
  done < <(cgroup_dirs "$1") 2>/dev/null
}

cgroup_freezer() { # GROUP: the file that freezes it
  local root
  if [[ -d /sys/fs/cgroup/freezer/$1 ]]; then
    echo "/sys/fs/cgroup/freezer/$1/freezer.state"
    return
  fi
  for root in /sys/fs/cgroup /sys/fs/cgroup/unified; do
    [[ -e $root/$1/cgroup.freeze ]] && echo "$root/$1/cgroup.freeze" && return
  done
  die "no freezer for the cgroup $1: this kernel has none, or the node is off"
}

# Freezing is asked for and then takes its time; these wait for it.
cgroup_freeze() { # GROUP
  local file
  file=$(cgroup_freezer "$1")
  if [[ $file == *freezer.state ]]; then
    echo FROZEN >"$file"
    until_true 10 grep -qx FROZEN "$file" || die "the cgroup $1 does not freeze: thaw it and try again"
  else
    echo 1 >"$file"
    until_true 10 grep -qx 'frozen 1' "${file%/*}/cgroup.events" || die "the cgroup $1 does not freeze: thaw it and try again"
  fi
}

cgroup_thaw() { # GROUP
  local file
  file=$(cgroup_freezer "$1")
  if [[ $file == *freezer.state ]]; then
    echo THAWED >"$file"
    until_true 10 grep -qx THAWED "$file" || die "the cgroup $1 does not thaw: try again"
  else
    echo 0 >"$file"
    until_true 10 grep -qx 'frozen 0' "${file%/*}/cgroup.events" || die "the cgroup $1 does not thaw: try again"
  fi
}
